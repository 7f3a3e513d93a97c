//! [`NodeNetwork`]: the addresses and routes of a node, as far as Services need them.
//!
//! They decide which endpoints are the node itself and what MASQUERADE would choose as source towards an endpoint.
//! The agent fills it from the kernel; [`NodeNetwork::from_snapshot`] makes one for nodes that are not at hand.

use crate::model::Family;
use crate::snapshot::Node;
use ipnet::IpNet;
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

fn common_prefix(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    }
}
