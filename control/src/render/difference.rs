//! [`differences`]: a real node's rules against what the snapshot calls for, in words.
//!
//! Compared is what kube-proxy owns: its chains, and the jumps into them. Chains of others (CNI plugins, kubelet's
//! canary, Docker) and their rules in the built-in chains are left alone; a rule of somebody else inside one of
//! kube-proxy's chains is told. The order of Services in shared chains and of the jumps in built-in chains does not
//! count, since kube-proxy does not keep it; the order of one Service's rules, and of those in all other chains, does.
//! Comments of endpoint rules do not count: whether they are there depends on how large the cluster was when they were
//! written.
//!
//! Read first: [`Comparison::run`].

mod rules;
mod side;
mod words;

use super::dump::{ChainName, Dump, Rule, Tables};
use super::{Proxier, Proxiers, iptables_tables};
use crate::model::{Endpoint, Family, ServicePort};
use rules::{
    by_service, comparable, endpoint_chains, endpoint_of, is_balancing, is_built_in,
    is_kube_proxy_chain, is_of_kube_proxy, is_shared, is_twin, unmatched,
};
use serde::Serialize;
use side::Side;
use std::collections::BTreeSet;
use std::fmt;

/// One thing that is not as the snapshot calls for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// What is wrong.
    pub kind: Kind,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// The svcport that it is about, if about one.
    pub service: Option<String>,
    /// In words, without the svcport.
    pub message: String,
    /// The rule that the snapshot calls for.
    pub expected: Option<String>,
    /// The rule that the node has.
    pub found: Option<String>,
}

/// How something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The snapshot calls for it, the node has it not.
    Missing,
    /// The node has it, in other words or in another order.
    Changed,
    /// The node has it, the snapshot does not call for it (any more).
    Stale,
    /// It is in a chain of kube-proxy's and not by kube-proxy.
    Foreign,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Missing => "missing",
            Self::Changed => "changed",
            Self::Stale => "stale",
            Self::Foreign => "foreign",
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<7}  {}  ", self.kind, self.family)?;
        if let Some(service) = &self.service {
            write!(f, "{service}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// All differences of the families that both the dump and the node have, those of one Service together.
pub fn differences(proxiers: &Proxiers, dump: &Dump) -> Vec<Difference> {
    let v6 = dump.v6.as_ref().filter(|_| proxiers.has_ipv6);
    let mut all = Vec::new();
    for (proxier, found) in [(&proxiers.v4, dump.v4.as_ref()), (&proxiers.v6, v6)] {
        if let Some(found) = found {
            all.extend(Comparison::new(proxier, found).run());
        }
    }
    all
}

/// One family's comparison.
struct Comparison<'a> {
    proxier: &'a Proxier,
    expected: Side,
    found: Side,
    differences: Vec<Difference>,
}

impl<'a> Comparison<'a> {
    fn new(proxier: &'a Proxier, found: &Tables) -> Self {
        // What we render, we can read; nothing read would show as everything missing.
        let rendered = Dump::parse(&iptables_tables(proxier)).unwrap_or_default();
        let expected = rendered.v4.or(rendered.v6).unwrap_or_default();
        Self {
            proxier,
            expected: Side::new(expected),
            found: Side::new(found.clone()),
            differences: Vec::new(),
        }
    }

    fn run(mut self) -> Vec<Difference> {
        let is_not_shared = |name: &&ChainName| name.chain != "KUBE-FIREWALL";
        let mut present = self.found.tables.keys().filter(is_not_shared);
        if !present.any(is_of_kube_proxy) {
            self.no_kube_proxy();
            return self.differences;
        }
        let (called_for, present) = (self.expected.services(), self.found.services());
        let missing: BTreeSet<String> = called_for.difference(&present).cloned().collect();
        let stale: BTreeSet<String> = present.difference(&called_for).cloned().collect();
        self.missing_services(&missing);
        self.stale_services(&stale);
        let names: BTreeSet<ChainName> = self.expected.tables.keys().cloned().collect();
        let found = self
            .found
            .tables
            .keys()
            .filter(|name| is_of_kube_proxy(name));
        for name in names.union(&found.cloned().collect()) {
            self.chain(name, &missing, &stale);
        }
        self.differences
            .sort_by(|a, b| a.service.cmp(&b.service).then(a.kind.cmp(&b.kind)));
        self.differences
    }

    fn no_kube_proxy(&mut self) {
        let message = "the node has none of kube-proxy's chains: it has not synced, runs in another mode, or its \
                       rules are in the other iptables (look at iptables-legacy-save and iptables-nft-save)";
        self.report(Kind::Missing, None, message.to_owned(), None, None);
    }

    fn missing_services(&mut self, missing: &BTreeSet<String>) {
        for service in missing {
            let message = "is in the snapshot but the node has no rule for it".to_owned();
            self.report(Kind::Missing, Some(service), message, None, None);
        }
    }

    fn stale_services(&mut self, stale: &BTreeSet<String>) {
        for service in stale {
            let mut message =
                "the node still has rules for it, the snapshot does not have it".to_owned();
            let captured: Vec<String> = self
                .found
                .tables
                .iter()
                .filter(|(name, _)| name.table == "nat" && name.chain == "KUBE-SERVICES")
                .flat_map(|(_, rules)| rules)
                .filter(|rule| words::service_of(rule) == Some(service.as_str()))
                .map(words::destination)
                .collect();
            if !captured.is_empty() {
                message.push_str(&format!(" ({})", captured.join(", ")));
            }
            self.report(Kind::Stale, Some(service), message, None, None);
        }
    }

    /// Compares one chain, the Services that are missing or stale as a whole left aside.
    fn chain(&mut self, name: &ChainName, missing: &BTreeSet<String>, stale: &BTreeSet<String>) {
        let owner = |side: &Side| side.owners.get(&name.chain).cloned();
        match (
            self.expected.tables.contains_key(name),
            self.found.tables.contains_key(name),
        ) {
            (true, false) => {
                let owner = owner(&self.expected);
                if owner.as_ref().is_none_or(|owner| !missing.contains(owner)) {
                    self.missing_chain(name, owner);
                }
            }
            (false, _) => {
                let owner = owner(&self.found);
                if owner.as_ref().is_none_or(|owner| !stale.contains(owner)) {
                    self.stale_chain(name, owner);
                }
            }
            (true, true) => self.rules(name, missing, stale),
        }
    }

    fn missing_chain(&mut self, name: &ChainName, service: Option<String>) {
        let message = match endpoint_of(&self.expected.tables[name]) {
            Some(endpoint) => {
                format!(
                    "endpoint {endpoint} is in the snapshot but the node has no KUBE-SEP rule for it"
                )
            }
            None => format!("the node has no chain {name}"),
        };
        self.report(Kind::Missing, service.as_deref(), message, None, None);
    }

    fn stale_chain(&mut self, name: &ChainName, service: Option<String>) {
        let message = match endpoint_of(&self.found.tables[name]) {
            Some(endpoint) => {
                let why = self.why_unused(service.as_deref(), endpoint);
                format!("the node still sends traffic to endpoint {endpoint}: {why}")
            }
            None => format!("the node still has chain {name}, the snapshot does not call for it"),
        };
        self.report(Kind::Stale, service.as_deref(), message, None, None);
    }

    fn why_unused(&self, service: Option<&str>, endpoint: &str) -> &'static str {
        let is_it = |port: &&ServicePort| Some(port.name.to_string().as_str()) == service;
        let ports = self.proxier.services.iter().filter(is_it);
        let mut endpoints = ports.flat_map(|port| &port.endpoints);
        match endpoints.find(|known| known.to_string() == endpoint) {
            None => "it is not in the snapshot",
            Some(known) => why_not_used(known),
        }
    }

    fn rules(&mut self, name: &ChainName, missing: &BTreeSet<String>, stale: &BTreeSet<String>) {
        let expected = self.expected.rules_without(name, missing);
        let mut found = self.found.rules_without(name, stale);
        if is_built_in(&name.chain) {
            found.retain(|rule| {
                let target = rule.target().unwrap_or_default();
                is_kube_proxy_chain(&name.table, target)
            });
        }
        self.node_ports_last(name, &found);
        let (called_for, present) = unmatched(name, &expected, &found);
        if called_for.is_empty() && present.is_empty() {
            self.order(name, &expected, &found);
        } else {
            self.unmatched_rules(name, called_for, present);
        }
    }

    /// The same rules on both sides: they must stand in the same order too, where kube-proxy keeps one.
    fn order(&mut self, name: &ChainName, expected: &[Rule], found: &[Rule]) {
        if is_built_in(&name.chain) {
            return;
        }
        let differing: BTreeSet<Option<String>> = if is_shared(&name.chain) {
            let (called_for, present) = (by_service(expected), by_service(found));
            let differs = |service: &&_| called_for.get(*service) != present.get(*service);
            let services = called_for.keys().filter(differs);
            services.map(|key| Some(key.0.to_owned())).collect()
        } else {
            let owner = || self.expected.owners.get(&name.chain).cloned();
            let mut pairs = expected.iter().zip(found);
            let differs = pairs.any(|(a, b)| comparable(name, a) != comparable(name, b));
            differs.then(owner).into_iter().collect()
        };
        for service in differing {
            let message = format!("the rules of {name} stand in another order");
            self.report(Kind::Changed, service.as_deref(), message, None, None);
        }
    }

    /// What comes behind the jump to NodePorts may be caught by it.
    fn node_ports_last(&mut self, name: &ChainName, found: &[Rule]) {
        let is_jump = |rule: &Rule| rule.target() == Some("KUBE-NODEPORTS");
        let mut from_jump = found.iter().skip_while(|rule| !is_jump(rule));
        if name.table == "nat"
            && name.chain == "KUBE-SERVICES"
            && from_jump.any(|rule| !is_jump(rule))
        {
            let message = format!("the jump to KUBE-NODEPORTS is not the last rule of {name}");
            self.report(Kind::Changed, None, message, None, None);
        }
    }

    fn unmatched_rules(&mut self, name: &ChainName, called_for: Vec<Rule>, mut present: Vec<Rule>) {
        let endpoints_differ = endpoint_chains(&called_for) != endpoint_chains(&present);
        for expected in called_for {
            let twin = present.iter().position(|rule| is_twin(rule, &expected));
            match twin.map(|position| present.remove(position)) {
                // Other endpoints, other probabilities: told once, for the endpoint.
                Some(found)
                    if is_balancing(&expected) && is_balancing(&found) && endpoints_differ => {}
                Some(found) => self.changed_rule(name, &expected, &found),
                None => self.missing_rule(name, &expected),
            }
        }
        for found in present {
            self.surplus_rule(name, &found);
        }
    }

    fn changed_rule(&mut self, name: &ChainName, expected: &Rule, found: &Rule) {
        let service = self.expected.owner(name, expected).map(str::to_owned);
        let subject = words::subject(name, expected);
        let message = format!(
            "{subject} is there, but differs in {name}: the node has `{}`, the snapshot calls for `{}`",
            found.text, expected.text
        );
        self.report(
            Kind::Changed,
            service.as_deref(),
            message,
            Some(expected),
            Some(found),
        );
    }

    fn missing_rule(&mut self, name: &ChainName, expected: &Rule) {
        let target = expected.target().unwrap_or_default();
        // An endpoint whose whole chain is missing is told for that.
        if target.starts_with("KUBE-SEP-") && !self.found.has_nat_chain(target) {
            return;
        }
        let service = self.expected.owner(name, expected).map(str::to_owned);
        let subject = words::subject(name, expected);
        let message = format!("{subject} is called for but the node has no rule for it in {name}");
        let service = service.as_deref();
        self.report(Kind::Missing, service, message, Some(expected), None);
    }

    fn surplus_rule(&mut self, name: &ChainName, found: &Rule) {
        let target = found.target().unwrap_or_default();
        let is_of_stale_endpoint =
            target.starts_with("KUBE-SEP-") && !self.expected.has_nat_chain(target);
        // kubelet writes into this chain too.
        let is_kubelets =
            name.chain == "KUBE-FIREWALL" && !self.expected.tables[name].contains(found);
        if is_of_stale_endpoint || is_kubelets {
            return;
        }
        let service = words::service_of(found).map(str::to_owned);
        let subject = words::subject(name, found);
        let is_ours = service.is_some() || target.starts_with("KUBE-");
        let (kind, message) = if is_ours {
            let again = "that the snapshot does not call for";
            (
                Kind::Stale,
                format!("the node has a rule for {subject} in {name} {again}"),
            )
        } else {
            let text = &found.text;
            (
                Kind::Foreign,
                format!("{name} has a rule that kube-proxy did not write: `{text}`"),
            )
        };
        self.report(kind, service.as_deref(), message, None, Some(found));
    }

    fn report(
        &mut self,
        kind: Kind,
        service: Option<&str>,
        message: String,
        expected: Option<&Rule>,
        found: Option<&Rule>,
    ) {
        self.differences.push(Difference {
            kind,
            family: match self.proxier.family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            },
            service: service.map(str::to_owned),
            message,
            expected: expected.map(|rule| rule.text.clone()),
            found: found.map(|rule| rule.text.clone()),
        });
    }
}

const fn why_not_used(endpoint: &Endpoint) -> &'static str {
    if endpoint.ready {
        "no traffic policy of this node leads to it"
    } else if endpoint.terminating {
        "it is terminating and others are ready, or it serves no more"
    } else {
        "it is not ready in the snapshot"
    }
}
