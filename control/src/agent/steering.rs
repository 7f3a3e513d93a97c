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
//! - what the node says of errors goes by `pen-node`, whose routes name the node's address as the source
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

use crate::model::{Family, Transport};
use crate::netlink::{Netlink, Nexthop, Result, Route, RouteKind, Rule, RuleAction};
use installed::{Installed, Routes};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

/// `FRA_PROTOCOL` and `rtm_protocol` of what is ours: an unassigned number.
pub const PROTOCOL: u8 = 83;

const TABLE_LOCAL: u32 = 255;
const TABLE_POD: u32 = 8301;
const TABLE_OUT: u32 = 8302;
const TABLE_NODE: u32 = 8303;
const TABLE_NODE_PORTS: u32 = 8304;
const TABLE_VIRTUAL: u32 = 8305;
const TABLE_ANSWERS: u32 = 8306;

/// Nexthops of the routes to virtual addresses, per family of [`FAMILIES`]. As the tables, they are numbers of our own.
const NEXTHOPS: [u32; 2] = [8305, 8306];

const FROM_DEVICES: u32 = 100;
const FROM_NODE: u32 = 110;
const FROM_LINKS: u32 = 200;
const TO_OUT: u32 = 700;
const TO_POD: u32 = 900;
const LOCAL: u32 = 1000;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// Names of the devices, in the order pods, outside, node.
pub const DEVICES: [&str; 3] = ["pen-pod", "pen-out", "pen-node"];

/// What the rules and routes depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Interface indexes of [`DEVICES`].
    pub devices: [u32; 3],
    /// Links to the outside.
    pub uplinks: Vec<String>,
    /// Links of pods.
    pub pods: Vec<String>,
    /// The node's own addresses.
    pub node_addresses: Vec<IpAddr>,
    /// Address that the node sends from, per family; a family without one is left alone.
    pub sources: Vec<IpAddr>,
    /// Cluster IPs, external IPs and load balancer IPs.
    pub virtual_addresses: BTreeSet<IpAddr>,
    /// The NodePorts, as the smallest range that holds them, per protocol.
    pub node_ports: Vec<(Transport, RangeInclusive<u16>)>,
    /// Ports that pods on the node's own network answer from.
    pub host_ports: BTreeSet<(Transport, u16)>,
    /// Addresses of everybody on a link of the node's.
    pub broadcasts: BTreeSet<IpAddr>,
}

impl Plan {
    fn source(&self, family: Family) -> Option<IpAddr> {
        self.sources
            .iter()
            .copied()
            .find(|source| Family::of(*source) == family)
    }

    fn rules(&self, family: Family) -> Vec<Rule> {
        if self.source(family).is_none() {
            return Vec::new();
        }
        let mut rules = Vec::new();
        for device in DEVICES {
            rules.push(from(family, FROM_DEVICES, device, RuleAction::Goto(LOCAL)));
        }
        rules.extend(self.rules_for_the_node(family));
        for (links, section) in [(&self.uplinks, TO_OUT), (&self.pods, TO_POD)] {
            for link in links {
                rules.push(from(family, FROM_LINKS, link, RuleAction::Goto(section)));
            }
        }
        rules.push(Rule::new(family, FROM_LINKS + 1, RuleAction::Goto(LOCAL)));
        rules.extend(section(family, TO_OUT, TABLE_OUT));
        rules.extend(section(family, TO_POD, TABLE_POD));
        rules.push(Rule::new(family, LOCAL, RuleAction::Table(TABLE_LOCAL)));
        for rule in &mut rules {
            rule.protocol = PROTOCOL;
        }
        rules
    }

    fn rules_for_the_node(&self, family: Family) -> Vec<Rule> {
        let lookup = |table| from(family, FROM_NODE, "lo", RuleAction::Table(table));
        let mut rules = Vec::new();
        for (transport, ports) in &self.node_ports {
            rules.push(Rule {
                ip_protocol: Some(number(*transport)),
                destination_ports: Some(ports.clone()),
                ..lookup(TABLE_NODE_PORTS)
            });
        }
        for (transport, port) in &self.host_ports {
            rules.push(Rule {
                ip_protocol: Some(number(*transport)),
                source_ports: Some(*port..=*port),
                ..lookup(TABLE_ANSWERS)
            });
        }
        for kinds in icmp_errors(family) {
            rules.push(Rule {
                ip_protocol: Some(if family == Family::V4 { ICMP } else { ICMPV6 }),
                destination_ports: Some(kinds),
                ..lookup(TABLE_NODE)
            });
        }
        rules.push(Rule {
            priority: FROM_NODE + 1,
            ..lookup(TABLE_VIRTUAL)
        });
        rules.push(from(family, FROM_NODE + 2, "lo", RuleAction::Goto(LOCAL)));
        rules
    }

    /// Those to virtual addresses, which may be many, lead to `nexthop` where there is one.
    fn routes(&self, family: Family, nexthop: Option<Nexthop>) -> Routes {
        let Some(source) = self.source(family) else {
            return Routes::new();
        };
        let [pod, out, node] = self.devices;
        let mut routes = Vec::new();
        for (table, device) in [(TABLE_POD, pod), (TABLE_OUT, out)] {
            routes.push(route(everything(family), table, device, None));
        }
        for table in [TABLE_NODE, TABLE_ANSWERS] {
            routes.push(route(everything(family), table, node, Some(source)));
        }
        routes.extend(self.routes_past_the_devices(family));
        // Packets to a link's own fe80:: address cannot leave by another link, our device.
        for address in self
            .node_addresses
            .iter()
            .filter(|address| is_of(**address, family) && !is_link_local(**address))
        {
            let itself = Some(*address);
            routes.push(route(IpNet::from(*address), TABLE_NODE_PORTS, node, itself));
        }
        if family == Family::V4 {
            let itself = Some(IpAddr::from([127, 0, 0, 1]));
            routes.push(route(loopback(family), TABLE_NODE_PORTS, node, itself));
        }
        for address in self
            .virtual_addresses
            .iter()
            .filter(|address| is_of(**address, family))
        {
            let to_device = route(IpNet::from(*address), TABLE_VIRTUAL, node, Some(source));
            routes.push(Route {
                oif: to_device.oif.filter(|_| nexthop.is_none()),
                nexthop: nexthop.map(|nexthop| nexthop.id),
                ..to_device
            });
        }
        routes
            .into_iter()
            .map(|route| ((route.table, route.destination), route))
            .collect()
    }

    /// What is for the node itself although a rule takes it: broadcasts, and what a server that has an endpoint's port says to
    /// loopback, from where connections come to endpoints masqueraded. Errors of the node to loopback may be about a
    /// NodePort at 127.0.0.1; there are none at ::1.
    fn routes_past_the_devices(&self, family: Family) -> Vec<Route> {
        let mut routes = vec![past(loopback(family), TABLE_ANSWERS)];
        if family == Family::V6 {
            routes.push(past(loopback(family), TABLE_NODE));
        }
        let broadcasts = self.broadcasts.iter().copied();
        for address in broadcasts.filter(|address| is_of(*address, family)) {
            let tables = [TABLE_POD, TABLE_OUT, TABLE_ANSWERS];
            routes.extend(tables.map(|table| past(IpNet::from(address), table)));
        }
        routes
    }
}

/// What goes where it would without us: the rules behind ours are asked.
fn past(destination: IpNet, table: u32) -> Route {
    Route {
        table,
        kind: RouteKind::Throw,
        protocol: PROTOCOL,
        ..Route::new(destination)
    }
}

/// TCP, UDP, SCTP and ICMP into `table`, the rest on. Neighbour discovery is ICMPv6, so of ICMPv6 only that which is not
/// for the node's own addresses is taken.
fn section(family: Family, priority: u32, table: u32) -> Vec<Rule> {
    let lookup = |protocol| Rule {
        ip_protocol: Some(protocol),
        ..Rule::new(family, priority, RuleAction::Table(table))
    };
    let mut rules = vec![lookup(TCP), lookup(UDP), lookup(SCTP)];
    match family {
        Family::V4 => rules.push(lookup(ICMP)),
        Family::V6 => {
            rules.push(Rule::new(
                family,
                priority + 1,
                RuleAction::Table(TABLE_LOCAL),
            ));
            rules.push(Rule {
                priority: priority + 2,
                ..lookup(ICMPV6)
            });
        }
    }
    rules.push(Rule::new(family, priority + 3, RuleAction::Goto(LOCAL)));
    rules
}

/// Types of ICMP errors that the node makes. The kernel keeps type and code of an ICMP packet that it routes where
/// other packets have their destination port (`flowi_uli`), so that a rule on ports selects them.
fn icmp_errors(family: Family) -> Vec<RangeInclusive<u16>> {
    let kinds = |first: u16, last: u16| first << 8..=(last << 8 | 0xff);
    match family {
        Family::V4 => vec![kinds(3, 3), kinds(11, 12)],
        Family::V6 => vec![kinds(1, 4)],
    }
}

fn from(family: Family, priority: u32, link: &str, action: RuleAction) -> Rule {
    Rule {
        iif: Some(link.to_owned()),
        ..Rule::new(family, priority, action)
    }
}

fn route(destination: IpNet, table: u32, device: u32, source: Option<IpAddr>) -> Route {
    Route {
        table,
        oif: Some(device),
        preferred_source: source,
        protocol: PROTOCOL,
        ..Route::new(destination)
    }
}

fn everything(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(IpAddr::from([0; 4]), 0),
        Family::V6 => IpNet::new_assert(IpAddr::from([0; 16]), 0),
    }
}

/// Whether it is one of a link alone. The kernel takes no such address as the preferred source of a route on another link.
pub(super) const fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn is_of(address: IpAddr, family: Family) -> bool {
    Family::of(address) == family
}

const fn number(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => TCP,
        Transport::Udp => UDP,
        Transport::Sctp => SCTP,
    }
}

fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(IpAddr::from([127, 0, 0, 0]), 8),
        Family::V6 => IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    }
}

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
