//! What is wanted of the kernel: the rules and routes of a node, from its links, addresses, and the table.
//!
//! No call to the kernel is made here. Read first: the table in [`super`].

use super::installed::Routes;
use super::{DEVICES, PROTOCOL, TABLE_LOCAL};
use crate::model::{Family, Transport};
use crate::netlink::{Nexthop, Route, RouteKind, Rule, RuleAction};
use crate::node_network::{Sources, everything};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

pub(super) const TABLE_POD: u32 = 8301;
pub(super) const TABLE_OUT: u32 = 8302;
pub(super) const TABLE_NODE: u32 = 8303;
pub(super) const TABLE_NODE_PORTS: u32 = 8304;
pub(super) const TABLE_VIRTUAL: u32 = 8305;
pub(super) const TABLE_ANSWERS: u32 = 8306;

const FROM_DEVICES: u32 = 100;
const FROM_NODE: u32 = 110;
const FROM_LINKS: u32 = 200;
const TO_OUT: u32 = 700;
const TO_POD: u32 = 900;
const LOCAL: u32 = 1000;

/// The kernel gives it to the loopback when that goes up.
pub(in crate::agent) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

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
    /// Whether 127.0.0.1 is one of them: not while the loopback is down, and then the kernel takes no route from it.
    pub has_loopback: bool,
    /// What the node sends from; a family of which it has no address is left alone.
    pub sources: Sources,
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
    /// Rules of a family; none where the node has no address to send from.
    pub(super) fn rules(&self, family: Family) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.sources.by_default(family).is_none() {
            return rules;
        }
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
    pub(super) fn routes(&self, family: Family, nexthop: Option<Nexthop>) -> Routes {
        if self.sources.by_default(family).is_none() {
            return Routes::new();
        }
        let [pod, out, node] = self.devices;
        let mut routes = Vec::new();
        for (table, device) in [(TABLE_POD, pod), (TABLE_OUT, out)] {
            routes.push(route(everything(family), table, device, None));
        }
        // What has no source yet gets the one that it would have without us.
        let sources = self.sources.iter();
        for (range, source) in sources.filter(|(range, _)| is_of(range.addr(), family)) {
            let tables = [TABLE_NODE, TABLE_ANSWERS];
            routes.extend(tables.map(|table| route(range, table, node, Some(source))));
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
        if family == Family::V4 && self.has_loopback {
            let itself = Some(LOOPBACK);
            routes.push(route(loopback(family), TABLE_NODE_PORTS, node, itself));
        }
        for address in self
            .virtual_addresses
            .iter()
            .filter(|address| is_of(**address, family))
        {
            let source = self.sources.towards(*address);
            let to_device = route(IpNet::from(*address), TABLE_VIRTUAL, node, source);
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

    /// What is no connection's although a rule takes it: what is for groups, for everybody on a link, and what a server
    /// that has an endpoint's port says to loopback, from where connections come to endpoints masqueraded. Errors of the
    /// node to loopback may be about a NodePort at 127.0.0.1; there are none at ::1.
    fn routes_past_the_devices(&self, family: Family) -> Vec<Route> {
        let mut routes = vec![past(loopback(family), TABLE_ANSWERS)];
        if family == Family::V6 {
            routes.push(past(loopback(family), TABLE_NODE));
        }
        routes.push(past(groups(family), TABLE_ANSWERS));
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

/// Whether it is one of a link alone. The kernel takes no such address as the preferred source of a route on another link.
pub(in crate::agent) const fn is_link_local(address: IpAddr) -> bool {
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

/// Multicast.
fn groups(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(IpAddr::from([224, 0, 0, 0]), 4),
        Family::V6 => IpNet::new_assert(IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
    }
}

fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(IpAddr::from([127, 0, 0, 0]), 8),
        Family::V6 => IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    }
}
