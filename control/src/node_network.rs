//! [`NodeNetwork`]: the addresses and routes of a node, as far as Services need them.
//!
//! They decide which endpoints are the node itself, what MASQUERADE would choose as source towards an endpoint, and what the
//! node itself sends from.
//! The agent fills it from the kernel; [`NodeNetwork::from_snapshot`] makes one for nodes that are not at hand.

use crate::model::Family;
use crate::snapshot::Node;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Scope of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Valid everywhere.
    Global,
    /// Valid on the link only.
    Link,
    /// Valid on the node only (loopback).
    Host,
}

/// An address of one of the node's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Index of the interface.
    pub interface: u32,
    /// The address with the length of its subnet; host bits set.
    pub network: IpNet,
    /// Its scope.
    pub scope: Scope,
    /// Whether the kernel lists it as secondary (`IFA_F_SECONDARY`).
    pub secondary: bool,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads to.
    pub destination: IpNet,
    /// The next hop, unless the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the interface that it leaves by.
    pub interface: u32,
    /// Of two routes to one destination the one of the lower metric is taken.
    pub metric: u32,
    /// What the node sends from by this route, where that is told (`src`).
    pub preferred_source: Option<IpAddr>,
}

/// Addresses and routes of a node. Addresses are in the order of the interfaces, as the kernel lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNetwork {
    /// All addresses, those of loopback included or not.
    pub addresses: Vec<InterfaceAddress>,
    /// All routes to other hosts.
    pub routes: Vec<Route>,
}

impl NodeNetwork {
    /// A node with the addresses that its Node tells on one interface, and everything else behind it.
    pub fn from_snapshot(node: &Node) -> Self {
        let interface = 2;
        let mut network = Self::default();
        for address in node.host_ips() {
            let default = match address {
                IpAddr::V4(_) => "0.0.0.0/0",
                IpAddr::V6(_) => "::/0",
            };
            network.addresses.push(InterfaceAddress {
                interface,
                network: IpNet::from(address),
                scope: Scope::Global,
                secondary: false,
            });
            network
                .routes
                .extend(default.parse().map(|destination| Route {
                    destination,
                    gateway: None,
                    interface,
                    metric: 0,
                    preferred_source: None,
                }));
        }
        network
    }

    /// Whether `address` is one of the node's, loopback included.
    pub fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback()
            || self
                .addresses
                .iter()
                .any(|own| own.network.addr() == address)
    }

    /// What MASQUERADE chooses as source towards `destination`; `None`: it drops the packet.
    ///
    /// Source: Linux `nf_nat_masquerade.c` (`inet_select_addr` of the output interface towards the next hop for
    /// IPv4, `ipv6_dev_get_saddr` for IPv6). Hints of routes are not used.
    pub fn masquerade_address(&self, destination: IpAddr) -> Option<IpAddr> {
        let (interface, next_hop) = self.way(destination);
        match Family::of(destination) {
            Family::V4 => self.select_v4(interface, next_hop),
            Family::V6 => self.select_v6(interface, destination),
        }
    }

    /// What the node sends from, unless a program has chosen; `elsewhere`, one of a family, to where no route leads.
    ///
    /// Source: Linux `fib_result_prefsrc` for IPv4, `ip6_route_get_saddr` for IPv6.
    pub fn sources(&self, elsewhere: impl IntoIterator<Item = IpAddr>) -> Sources {
        let is_of_any_link = |route: &&Route| route.is_of_any_link();
        let mut routes: Vec<&Route> = self.routes.iter().filter(is_of_any_link).collect();
        // Shorter ones first: what they say already is not said again.
        routes.sort_by_key(|route| (route.destination.prefix_len(), route.metric));
        let mut sources = Sources::everywhere(elsewhere);
        let mut known = BTreeSet::new();
        for route in routes {
            let destination = route.destination.trunc();
            if let Some(source) = self.source_by(route)
                && known.insert(destination)
                && sources.towards(destination.addr()) != Some(source)
            {
                sources.0.insert(destination, source);
            }
        }
        for own in self.addresses.iter().filter(|own| own.is_sent_from()) {
            sources.lead_to_itself(own.network.addr());
        }
        sources
    }

    fn source_by(&self, route: &Route) -> Option<IpAddr> {
        let interface = Some(route.interface);
        let destination = route.destination.addr();
        route
            .preferred_source
            .or_else(|| match Family::of(destination) {
                Family::V4 => self.select_v4(interface, route.gateway.unwrap_or(destination)),
                Family::V6 => self.select_v6(interface, destination),
            })
    }

    /// The interface and next hop towards `destination`; no interface for the node itself and without a route.
    fn way(&self, destination: IpAddr) -> (Option<u32>, IpAddr) {
        if self.is_own(destination) {
            return (None, destination);
        }
        let route = self
            .routes
            .iter()
            .filter(|route| route.destination.contains(&destination))
            .min_by_key(|route| (u8::MAX - route.destination.prefix_len(), route.metric));
        route.map_or((None, destination), |route| {
            (Some(route.interface), route.gateway.unwrap_or(destination))
        })
    }

    /// `inet_select_addr`: a primary address in the subnet of the next hop, else the interface's first, else that
    /// of any other interface.
    fn select_v4(&self, interface: Option<u32>, next_hop: IpAddr) -> Option<IpAddr> {
        let primaries = || {
            self.of_family(Family::V4)
                .filter(|own| !own.secondary && own.scope == Scope::Global)
        };
        let here = || primaries().filter(|own| Some(own.interface) == interface);
        let chosen = here()
            .find(|own| own.network.contains(&next_hop))
            .or_else(|| here().next())
            .or_else(|| primaries().next())?;
        Some(chosen.network.addr())
    }

    /// A short form of RFC 6724: the destination itself, then an address of the interface, then of any other; of
    /// several the one that shares the longest prefix with the destination.
    fn select_v6(&self, interface: Option<u32>, destination: IpAddr) -> Option<IpAddr> {
        let scope = match destination {
            IpAddr::V6(address) if address.is_unicast_link_local() => Scope::Link,
            _ => Scope::Global,
        };
        let candidates = self.of_family(Family::V6).filter(|own| own.scope == scope);
        // Of equals the first: `max_by_key` keeps the last.
        let chosen = candidates.rev().max_by_key(|own| {
            let address = own.network.addr();
            (
                address == destination,
                Some(own.interface) == interface,
                common_prefix(address, destination).min(own.network.prefix_len().into()),
            )
        })?;
        Some(chosen.network.addr())
    }

    fn of_family(&self, family: Family) -> impl DoubleEndedIterator<Item = &InterfaceAddress> {
        self.addresses
            .iter()
            .filter(move |own| Family::of(own.network.addr()) == family)
    }
}

impl Route {
    /// Whether it leads to hosts, and not just to those of its link: a route of another link cannot stand for it then.
    pub(crate) fn is_of_any_link(&self) -> bool {
        match self.destination.addr() {
            IpAddr::V4(address) => !address.is_multicast(),
            IpAddr::V6(address) => !address.is_multicast() && !address.is_unicast_link_local(),
        }
    }
}

impl InterfaceAddress {
    /// Whether the node sends to it from it, and not from the first address of its subnet.
    fn is_sent_from(&self) -> bool {
        let is_first = !self.secondary || self.network.addr().is_ipv6();
        self.scope == Scope::Global && is_first
    }
}

/// What a node sends from, by where to: of several ranges around a destination the longest prefix counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources(BTreeMap<IpNet, IpAddr>);

impl Sources {
    /// These, one of a family, to everything.
    pub fn everywhere(sources: impl IntoIterator<Item = IpAddr>) -> Self {
        let sources = sources.into_iter();
        Self(
            sources
                .map(|source| (everything(Family::of(source)), source))
                .collect(),
        )
    }

    /// What the node sends from to what no other range is around.
    pub fn by_default(&self, family: Family) -> Option<IpAddr> {
        self.0.get(&everything(family)).copied()
    }

    /// What the node sends from to `destination`; `None` where it does not.
    pub fn towards(&self, destination: IpAddr) -> Option<IpAddr> {
        let around = self
            .0
            .iter()
            .filter(|(range, _)| range.contains(&destination));
        let longest = around.max_by_key(|(range, _)| range.prefix_len())?;
        Some(*longest.1)
    }

    /// Makes `own` what is sent from to `own`. It gets a range of its own, too, where it is the first address of one: to such an
    /// address of IPv6, which may be of many, the kernel sends no errors (`ipv6_anycast_destination`).
    fn lead_to_itself(&mut self, own: IpAddr) {
        let is_first_of_any = self.0.keys().any(|range| range.addr() == own);
        if is_first_of_any || self.towards(own) != Some(own) {
            self.0.insert(own.into(), own);
        }
    }

    /// Ranges and what the node sends from to these, in no order that counts.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, IpAddr)> {
        self.0.iter().map(|(range, source)| (*range, *source))
    }
}

/// All addresses of a family.
pub fn everything(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(IpAddr::from([0; 4]), 0),
        Family::V6 => IpNet::new_assert(IpAddr::from([0; 16]), 0),
    }
}

fn common_prefix(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(interface: u32, network: &str) -> InterfaceAddress {
        InterfaceAddress {
            interface,
            network: network.parse().unwrap(),
            scope: Scope::Global,
            secondary: false,
        }
    }

    fn route(destination: &str, interface: u32) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            gateway: None,
            interface,
            metric: 0,
            preferred_source: None,
        }
    }

    #[test]
    fn the_node_sends_from_what_the_route_says_or_its_link_has() {
        let network = NodeNetwork {
            addresses: vec![
                own(2, "172.18.0.2/16"),
                own(3, "10.0.0.2/24"),
                own(3, "10.0.1.2/24"),
                own(2, "fd00:18::2/64"),
                own(3, "fd00:10::2/64"),
            ],
            routes: vec![
                route("10.0.0.0/24", 3),
                route("172.18.0.0/16", 2),
                Route {
                    gateway: Some("10.0.1.1".parse().unwrap()),
                    metric: 10,
                    ..route("0.0.0.0/0", 3)
                },
                Route {
                    metric: 20,
                    ..route("0.0.0.0/0", 2)
                },
                Route {
                    preferred_source: Some("10.0.0.2".parse().unwrap()),
                    ..route("172.18.5.0/24", 2)
                },
                route("10.244.1.7/32", 9),
                route("224.0.0.0/4", 2),
                route("fd00:18::/64", 2),
                route("fe80::/64", 3),
                route("ff00::/8", 3),
            ],
        };
        let sources = network.sources(["fd00:10::2".parse().unwrap()]);
        let towards = |destination: &str| {
            let source = sources.towards(destination.parse().unwrap());
            source.map(|source| source.to_string())
        };
        for (destination, source) in [
            ("8.8.8.8", "10.0.1.2"),
            ("10.0.0.9", "10.0.0.2"),
            ("172.18.9.9", "172.18.0.2"),
            ("172.18.5.9", "10.0.0.2"),
            // A link without an address: the node's first one.
            ("10.244.1.7", "172.18.0.2"),
            ("fd00:18::9", "fd00:18::2"),
            ("2001:db8::1", "fd00:10::2"),
        ] {
            assert_eq!(
                towards(destination).as_deref(),
                Some(source),
                "{destination}"
            );
        }
        let of_groups = sources
            .iter()
            .filter(|(range, _)| range.addr().is_multicast());
        assert_eq!(of_groups.count(), 0);
        assert_eq!(sources.iter().count(), 7);
    }

    /// Where it is the first of its subnet as well.
    #[test]
    fn to_itself_the_node_sends_from_where_it_sends_to() {
        let network = NodeNetwork {
            addresses: vec![
                own(2, "fd00:18::/64"),
                own(2, "fd00:18::2/64"),
                own(3, "fd00:19::/64"),
            ],
            routes: vec![route("fd00:18::/64", 2), route("fd00:19::/64", 3)],
        };
        let sources = network.sources(["fd00:18::2".parse().unwrap()]);
        for itself in ["fd00:18::", "fd00:18::2", "fd00:19::"] {
            let itself: IpAddr = itself.parse().unwrap();
            assert_eq!(sources.towards(itself), Some(itself));
        }
        let ranges: Vec<IpNet> = sources.iter().map(|(range, _)| range).collect();
        assert!(
            ranges.contains(&"fd00:19::/128".parse().unwrap()),
            "{ranges:?}"
        );
    }

    #[test]
    fn what_a_shorter_route_says_is_not_said_again() {
        let network = NodeNetwork {
            addresses: vec![
                own(2, "172.18.0.2/16"),
                InterfaceAddress {
                    secondary: true,
                    ..own(2, "172.18.0.3/16")
                },
                own(3, "10.0.0.2/8"),
                own(4, "192.0.2.1/32"),
            ],
            routes: vec![
                route("0.0.0.0/0", 2),
                route("172.18.0.0/16", 2),
                route("10.0.0.0/8", 3),
                route("10.1.0.0/16", 2),
                route("10.1.2.0/24", 2),
            ],
        };
        let sources = network.sources(["192.0.2.1".parse().unwrap()]);
        let ranges = sources.iter().map(|(range, _)| range.to_string());
        assert_eq!(
            ranges.collect::<Vec<_>>(),
            ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32"]
        );
    }
}
