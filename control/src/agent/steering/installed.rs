//! Which rules and routes of ours the kernel has.
//!
//! Once it has refused something of a plan, of what that plan adds or removes nobody knows whether it is there. The next
//! plan then adds what it wants of that, and removes what it does not want: neither is an error if it is done already.

use super::PROTOCOL;
use crate::netlink::{Route, Rule};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};

/// Routes by table and destination.
pub(super) type Routes = BTreeMap<(u32, IpNet), Route>;

/// Those of one family.
#[derive(Default)]
pub(super) struct Installed {
    /// Rules that are there.
    pub(super) rules: Vec<Rule>,
    /// Routes that are there.
    pub(super) routes: Routes,
    /// Rules that may be there.
    doubtful_rules: Vec<Rule>,
    /// Routes that may be there, with what names one in any plan.
    doubtful_routes: Routes,
}

impl Installed {
    /// These alone.
    pub(super) fn new(rules: Vec<Rule>, routes: Routes) -> Self {
        Self {
            rules,
            routes,
            ..Self::default()
        }
    }

    /// Which of `wanted` are not there, or may not be.
    pub(super) fn missing_rules(&self, wanted: &[Rule]) -> Vec<Rule> {
        without(wanted, &self.rules)
    }

    /// Which are there, or may be, and are not `wanted`.
    pub(super) fn gone_rules(&self, wanted: &[Rule]) -> Vec<Rule> {
        let mut gone = without(&self.rules, wanted);
        gone.extend(without(&self.doubtful_rules, wanted));
        gone
    }

    /// As [`Self::missing_rules`].
    pub(super) fn missing_routes(&self, wanted: &Routes) -> Vec<Route> {
        beyond(wanted, &self.routes, |a, b| a == b)
    }

    /// As [`Self::gone_rules`].
    pub(super) fn gone_routes(&self, wanted: &Routes) -> Vec<Route> {
        let mut gone = beyond(&self.routes, wanted, |_, _| true);
        gone.extend(beyond(&self.doubtful_routes, wanted, |_, _| true));
        gone
    }

    /// Whether all of it is among what the kernel has, but for the routes of one table.
    pub(super) fn are_among(&self, rules: &[Rule], routes: &[Route], but: u32) -> bool {
        let keys: BTreeSet<_> = routes
            .iter()
            .map(|route| (route.table, route.destination))
            .collect();
        let mut own = self.routes.keys().filter(|(table, _)| *table != but);
        own.all(|key| keys.contains(key)) && without(&self.rules, rules).is_empty()
    }

    /// The kernel has refused something of `wanted`.
    pub(super) fn doubt(&mut self, wanted: &Self) {
        self.doubt_rules(&wanted.rules);
        self.doubt_routes(&wanted.routes);
    }

    fn doubt_rules(&mut self, wanted: &[Rule]) {
        let mut touched = self.missing_rules(wanted);
        touched.extend(without(&self.rules, wanted));
        self.rules.retain(|rule| wanted.contains(rule));
        let touched = without(&touched, &self.doubtful_rules);
        self.doubtful_rules.extend(touched);
    }

    /// The kernel has refused one of `wanted`.
    pub(super) fn doubt_routes(&mut self, wanted: &Routes) {
        let mut touched = self.missing_routes(wanted);
        touched.extend(beyond(&self.routes, wanted, |_, _| true));
        for route in touched {
            let key = (route.table, route.destination);
            self.routes.remove(&key);
            // It may be the one of either plan.
            let of_any_plan = Route {
                table: route.table,
                protocol: PROTOCOL,
                ..Route::new(route.destination)
            };
            self.doubtful_routes.insert(key, of_any_plan);
        }
    }
}

/// Which of `rules` are not among `others`.
fn without(rules: &[Rule], others: &[Rule]) -> Vec<Rule> {
    let beyond = rules.iter().filter(|rule| !others.contains(rule));
    beyond.cloned().collect()
}

/// Which of `routes` are not among `others`, by table and destination, or are `same` as none of them. There may be many of
/// either: both are gone through once.
fn beyond(routes: &Routes, others: &Routes, same: impl Fn(&Route, &Route) -> bool) -> Vec<Route> {
    let mut others = others.iter().peekable();
    let is_beyond = |(key, route): &(&(u32, IpNet), &Route)| {
        while others.next_if(|(other, _)| other < key).is_some() {}
        let other = others.peek().filter(|(other, _)| other == key);
        other.is_none_or(|(_, other)| !same(route, other))
    };
    let beyond = routes.iter().filter(is_beyond);
    beyond.map(|(_, route)| *route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::netlink::RuleAction;

    fn rules(priorities: &[u32]) -> Vec<Rule> {
        let rule = |priority| Rule::new(Family::V4, priority, RuleAction::Table(1));
        priorities.iter().copied().map(rule).collect()
    }

    /// By last byte of the destination and link.
    fn routes(of: &[(u8, u32)]) -> Routes {
        let route = |(last, link): (u8, u32)| Route {
            oif: Some(link),
            protocol: PROTOCOL,
            ..Route::new(std::net::IpAddr::from([10, 0, 0, last]).into())
        };
        let routes = of.iter().copied().map(route);
        let by_key = routes.map(|route| ((route.table, route.destination), route));
        by_key.collect()
    }

    fn last_bytes(routes: &[Route]) -> Vec<u8> {
        let last = |route: &Route| route.destination.to_string();
        let texts = routes.iter().map(last);
        let number = |text: String| text.trim_start_matches("10.0.0.").replace("/32", "");
        texts.map(|text| number(text).parse().unwrap()).collect()
    }

    #[test]
    fn what_a_refused_plan_touched_is_added_again_or_removed() {
        let first = || Installed::new(rules(&[1, 2]), routes(&[(1, 7), (2, 7), (3, 7)]));
        let refused = Installed::new(rules(&[2, 3]), routes(&[(2, 7), (3, 8), (4, 7)]));
        let mut installed = first();
        installed.doubt(&refused);

        let again = first();
        assert_eq!(installed.missing_rules(&again.rules), rules(&[1]));
        assert_eq!(installed.gone_rules(&again.rules), rules(&[3]));
        let missing = installed.missing_routes(&again.routes);
        assert_eq!(last_bytes(&missing), [1, 3]);
        let gone = installed.gone_routes(&again.routes);
        assert_eq!(last_bytes(&gone), [4]);

        assert_eq!(installed.missing_rules(&refused.rules), rules(&[3]));
        assert_eq!(installed.gone_rules(&refused.rules), rules(&[1]));
        let missing = installed.missing_routes(&refused.routes);
        assert_eq!(last_bytes(&missing), [3, 4]);
    }

    /// The kernel finds a route by all that a request names, and whose link it has is not known.
    #[test]
    fn a_route_that_may_be_of_either_plan_is_removed_by_its_destination() {
        let mut installed = Installed::new(Vec::new(), routes(&[(1, 7)]));
        installed.doubt_routes(&routes(&[(1, 8)]));
        let gone = installed.gone_routes(&Routes::new());
        assert_eq!(last_bytes(&gone), [1]);
        assert_eq!(gone[0].oif, None);
    }

    #[test]
    fn refusals_one_after_another_add_up() {
        let mut installed = Installed::default();
        for priority in [1, 2, 1] {
            installed.doubt(&Installed::new(rules(&[priority]), Routes::new()));
        }
        assert_eq!(installed.gone_rules(&[]), rules(&[1, 2]));
    }
}
