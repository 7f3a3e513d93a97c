//! Policy routing that leads a node's traffic through the three TUN devices.
//!
//! A rule list per family, in this order (numbers are priorities):
//!
//! | from | what |
//! | --- | --- |
//! | 100 | what the devices give back: on with 1000 |
//! | 110 | what the node sends: NodePorts of its own addresses, answers of pods on its network, its ICMP errors, virtual addresses: `pen-node`; the rest on with 1000 |
//! | 200 | links to the outside: on with 700; links of pods: on with 900 |
//! | 700, 900 | TCP, UDP, SCTP and ICMP to `pen-out`, `pen-pod`; ICMPv6 only what is not for the node itself |
//! | 1000 | the local table, which stands at 0 elsewhere, then whatever rules the machine has |
//!
//! DIFFERS, because of what these rules and devices can and cannot do (`docs/behaviours/differences.md`):
//!
//! - rules name four protocols; others are routed untracked, and so is what has an extension header that rules do not
//!   look behind (authentication; in fragments any; one that is cut)
//! - the kernel takes a hop, and looks at IPv4 options, before a device has the packet: with TTL 1 or a malformed option
//!   it answers by itself, and it notes a route or a time twice
//! - what the node answers to others comes by only from endpoints on its own network
//! - what the node sends by `pen-node` has the address that its routes name as the source: one for each route of the main
//!   table, also where the kernel would choose among several of IPv6
//! - the MTU that the kernel learns of a path is of another route than the one that leads to `pen-node`
//! - what has come through a device comes from it, not from the link it came by: sockets bound to that link, rules of a
//!   firewall that name it, and marks do not find it; nor do frames to everybody, whose packet is for one address
//! - policy rules of others between ours are not asked
//! - the devices come before the next link's MTU does: what is turned away there is not told that it is too large, and what
//!   is too large has opened its connection
//!
//! Invariants: each of our rules names its protocol before the local table is reached, because one that takes everything
//! hides the node's own addresses from ARP and neighbour discovery; each carries [`PROTOCOL`], so that the next start
//! finds what a crash left; the routes lie in tables of their own and go with the devices, as do the nexthops that they
//! lead to. (Those that lead past the devices are found as the rules are.)

mod installed;
mod plan;

use crate::model::Family;
use crate::netlink::{Netlink, Nexthop, Result, Route, RouteKind, Rule, RuleAction};
use installed::{Installed, Routes};
pub use plan::Plan;
pub(super) use plan::{LOOPBACK, is_link_local};
use plan::{TABLE_ANSWERS, TABLE_NODE, TABLE_NODE_PORTS, TABLE_OUT, TABLE_POD, TABLE_VIRTUAL};

/// `FRA_PROTOCOL` and `rtm_protocol` of what is ours: an unassigned number.
pub const PROTOCOL: u8 = 83;

const TABLE_LOCAL: u32 = 255;
/// Nexthops of the routes to virtual addresses, per family of [`FAMILIES`]. As the tables, they are numbers of our own.
const NEXTHOPS: [u32; 2] = [8305, 8306];

/// Names of the devices, in the order pods, outside, node.
pub const DEVICES: [&str; 3] = ["pen-pod", "pen-out", "pen-node"];

/// What is installed.
pub struct Steering {
    netlink: Netlink,
    plan: Plan,
    /// What is there, per family of [`FAMILIES`].
    installed: [Installed; 2],
    /// Which lead to `pen-node`, per family of [`FAMILIES`].
    nexthops: [Option<Nexthop>; 2],
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Steering {
    /// Starts from what the kernel has, after removing what a crashed predecessor left. `node_device` is the index of
    /// `pen-node`.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn start(mut netlink: Netlink, node_device: u32) -> Result<Self> {
        restore(&mut netlink)?;
        let nexthops = [0, 1].map(|at| nexthop(&mut netlink, at, node_device));
        Ok(Self {
            netlink,
            plan: Plan::default(),
            installed: <[Installed; 2]>::default(),
            nexthops,
        })
    }

    /// What the kernel follows. After a refusal it leads here what the refused plan does, too, since some of that may be
    /// followed.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Adds the routes of `plan`, to which no rule leads before [`Steering::follow`]: what of them it need not add then.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn lay(&mut self, plan: &Plan) -> Result<()> {
        for (at, family) in FAMILIES.into_iter().enumerate() {
            let mut routes = plan.routes(family, self.nexthops[at]);
            // Those would stay if the devices went before there are rules.
            routes.retain(|_, route| route.kind != RouteKind::Throw);
            self.add_missing(at, &routes)
                .inspect_err(|_| self.installed[at].doubt_routes(&routes))?;
            self.installed[at].routes.append(&mut routes);
        }
        Ok(())
    }

    fn add_missing(&mut self, at: usize, routes: &Routes) -> Result<()> {
        let missing = self.installed[at].missing_routes(routes);
        if missing.iter().any(|route| route.nexthop.is_some())
            && let Some(nexthop) = &self.nexthops[at]
        {
            // It goes when somebody takes the device down.
            match self.netlink.add_nexthop(nexthop) {
                Err(error) if error.is_exists() => {}
                other => other?,
            }
        }
        self.netlink.replace_routes(&missing)
    }

    /// Makes the kernel follow `plan`: first routes, then rules, and what is no longer wanted last. What is done already is
    /// no error, so the same call may be tried again.
    ///
    /// # Errors
    /// Those of netlink; the kernel then follows some of this plan and some of the one before. What the next one does not want
    /// of either goes with that.
    pub fn follow(&mut self, plan: Plan) -> Result<()> {
        for (at, family) in FAMILIES.into_iter().enumerate() {
            let routes = plan.routes(family, self.nexthops[at]);
            let wanted = Installed::new(plan.rules(family), routes);
            if let Err(error) = self.install(at, &wanted) {
                self.installed[at].doubt(&wanted);
                self.plan.lead_here_too(plan);
                return Err(error);
            }
            self.installed[at] = wanted;
        }
        self.plan = plan;
        Ok(())
    }

    /// Whether the kernel has still what leads packets here. If not, somebody has taken a device down, or removed rules that are
    /// not his, or put the local table's own before them: the next [`Self::follow`] makes sure of everything.
    ///
    /// Routes to virtual addresses are not looked at. They may be many, and go with a device as the others do.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn is_whole(&mut self) -> Result<bool> {
        let mut is_whole = true;
        for (at, family) in FAMILIES.into_iter().enumerate() {
            let rules = self.netlink.rules(family)?;
            let mut routes = Vec::new();
            for table in [
                TABLE_POD,
                TABLE_OUT,
                TABLE_NODE,
                TABLE_NODE_PORTS,
                TABLE_ANSWERS,
            ] {
                routes.extend(self.netlink.routes_in(table, family)?);
            }
            let installed = &mut self.installed[at];
            let is_first = |rule: &Rule| rule.priority == 0 && is_local_rule(rule);
            let is_bypassed = !installed.rules.is_empty() && rules.iter().any(is_first);
            if is_bypassed || !installed.are_among(&rules, &routes, TABLE_VIRTUAL) {
                installed.doubt(&Installed::default());
                is_whole = false;
            }
        }
        Ok(is_whole)
    }

    fn install(&mut self, at: usize, wanted: &Installed) -> Result<()> {
        self.add_missing(at, &wanted.routes)?;
        self.follow_rules(at, &wanted.rules)?;
        let gone = self.installed[at].gone_routes(&wanted.routes);
        self.netlink.delete_routes(&gone)
    }

    fn follow_rules(&mut self, at: usize, wanted: &[Rule]) -> Result<()> {
        let installed = &self.installed[at];
        let (missing, gone) = (
            installed.missing_rules(wanted),
            installed.gone_rules(wanted),
        );
        self.netlink.add_rules(&missing)?;
        if wanted.is_empty() && !gone.is_empty() {
            put_back_local_rule(&mut self.netlink, FAMILIES[at])?;
        }
        for rule in &gone {
            delete(&mut self.netlink, rule)?;
        }
        if !wanted.is_empty() {
            delete_first_local_rule(&mut self.netlink, FAMILIES[at])?;
        }
        Ok(())
    }

    /// Puts everything back as it was.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn stop(mut self) -> Result<()> {
        restore(&mut self.netlink)
    }
}

/// A nexthop that leads to `device`; none where the kernel has no nexthops or none of the family, or where somebody has
/// taken the number. The kernel adds a route to one in less than half of the time: of each that names a device it first
/// makes a nexthop to find out whether another route has the same.
fn nexthop(netlink: &mut Netlink, at: usize, device: u32) -> Option<Nexthop> {
    let nexthop = Nexthop {
        id: NEXTHOPS[at],
        family: FAMILIES[at],
        oif: device,
        protocol: PROTOCOL,
    };
    netlink
        .add_nexthop(&nexthop)
        .inspect_err(|error| tracing::debug!("routes name the device: {error}"))
        .ok()
        .map(|()| nexthop)
}

/// The rule of the local table at its usual place, none of ours, and no route that leads past the devices.
fn restore(netlink: &mut Netlink) -> Result<()> {
    for family in FAMILIES {
        put_back_local_rule(netlink, family)?;
        let rules = netlink.rules(family)?;
        for rule in rules.iter().filter(|rule| rule.protocol == PROTOCOL) {
            delete(netlink, rule)?;
        }
        // The others go with the devices.
        let is_past = |route: &Route| route.protocol == PROTOCOL && route.kind == RouteKind::Throw;
        for table in [TABLE_POD, TABLE_OUT, TABLE_NODE, TABLE_ANSWERS] {
            let mut routes = netlink.routes_in(table, family)?;
            routes.retain(is_past);
            netlink.delete_routes(&routes)?;
        }
    }
    Ok(())
}

/// The rule of the local table at its usual place, unless somebody else has one that leads everything there. A family that
/// the kernel does not know has no rules at all.
fn put_back_local_rule(netlink: &mut Netlink, family: Family) -> Result<()> {
    let rules = netlink.rules(family)?;
    let is_of_others = |rule: &Rule| rule.protocol != PROTOCOL && is_local_rule(rule);
    if rules.is_empty() || rules.iter().any(is_of_others) {
        return Ok(());
    }
    let local = Rule::new(family, 0, RuleAction::Table(TABLE_LOCAL));
    netlink.add_rule(&Rule {
        protocol: KERNEL,
        ..local
    })
}

/// Deletes a rule, unless it is gone already.
fn delete(netlink: &mut Netlink, rule: &Rule) -> Result<()> {
    match netlink.delete_rule(rule) {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

/// `RTPROT_KERNEL`.
const KERNEL: u8 = 2;

/// Whether `rule` leads everything to the local table. One that asks for a link, a mark or another thing does not stand for
/// it.
fn is_local_rule(rule: &Rule) -> bool {
    let everything = Rule::new(rule.family, rule.priority, RuleAction::Table(TABLE_LOCAL));
    let protocol = rule.protocol;
    *rule
        == Rule {
            protocol,
            ..everything
        }
}

fn delete_first_local_rule(netlink: &mut Netlink, family: Family) -> Result<()> {
    let rules = netlink.rules(family)?;
    let mut first = rules.iter().filter(|rule| rule.priority == 0);
    match first.find(|rule| is_local_rule(rule)) {
        Some(rule) => netlink.delete_rule(rule),
        None => Ok(()),
    }
}
