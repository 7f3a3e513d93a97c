//! Routes of all tables.

use super::{Netlink, Request, Result, address_family, family};
use crate::model::Family;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteNextHopFlags, RouteProtocol, RouteScope, RouteType,
};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The main table (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;
/// The table of the machine's own addresses (`RT_TABLE_LOCAL`).
pub const TABLE_LOCAL: u32 = 255;
/// `RTPROT_BOOT`, what `ip route add` writes.
const PROTOCOL_BOOT: u8 = 3;

/// How far a destination is (`rtm_scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Anywhere.
    Universe,
    /// On the link.
    Link,
    /// On this machine.
    Host,
    /// Another one, by number.
    Other(u8),
}

impl From<u8> for Scope {
    fn from(scope: u8) -> Self {
        match scope {
            0 => Self::Universe,
            253 => Self::Link,
            254 => Self::Host,
            other => Self::Other(other),
        }
    }
}

impl Scope {
    const fn to_wire(self) -> u8 {
        match self {
            Self::Universe => 0,
            Self::Link => 253,
            Self::Host => 254,
            Self::Other(other) => other,
        }
    }
}

/// What a route does (`rtm_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Sends to a gateway or onto a link.
    Unicast,
    /// Delivers to this machine.
    Local,
    /// Says that this table has none: the next rule is asked.
    Throw,
    /// Another one, by number (`RTN_BROADCAST`, …).
    Other(u8),
}

/// A route. Build one from [`Route::new`] by naming what differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination, without host bits.
    pub destination: IpNet,
    /// Table, [`TABLE_MAIN`] and others.
    pub table: u32,
    /// Interface index to send on; of a route with several next hops, as the kernel lists it, that of the first.
    pub oif: Option<u32>,
    /// Number of the nexthop that says where to send, instead of a link and gateway here.
    pub nexthop: Option<u32>,
    /// Next hop, of the destination's family.
    pub gateway: Option<IpAddr>,
    /// The gateway is on the link, whatever the addresses say.
    pub onlink: bool,
    /// Preferred source address of what this machine sends.
    pub preferred_source: Option<IpAddr>,
    /// What it does.
    pub kind: RouteKind,
    /// As `ip route` derives it when `None`: host for local routes, link without a gateway. IPv6 ignores it.
    pub scope: Option<Scope>,
    /// MTU of the path in bytes.
    pub mtu: Option<u32>,
    /// Metric; the lower wins. IPv6 takes 1024 when `None`.
    pub metric: Option<u32>,
    /// Who made it (`rtm_protocol`), 3 by default as `ip route` writes.
    pub protocol: u8,
}

impl Route {
    /// A unicast route of the main table to `destination`, host bits cleared, that names nothing else.
    pub fn new(destination: IpNet) -> Self {
        Self {
            destination: destination.trunc(),
            table: TABLE_MAIN,
            oif: None,
            nexthop: None,
            gateway: None,
            onlink: false,
            preferred_source: None,
            kind: RouteKind::Unicast,
            scope: None,
            mtu: None,
            metric: None,
            protocol: PROTOCOL_BOOT,
        }
    }

    /// The family of the destination.
    pub fn family(&self) -> Family {
        Family::of(self.destination.addr())
    }

    fn wire_scope(&self) -> Scope {
        self.scope
            .unwrap_or_else(|| match (self.kind, self.gateway) {
                _ if self.family() == Family::V6 => Scope::Universe,
                (RouteKind::Local, _) => Scope::Host,
                (RouteKind::Unicast, None) => Scope::Link,
                _ => Scope::Universe,
            })
    }
}

impl fmt::Display for Route {
    /// As in `ip route`, links by index.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Local => f.write_str("local ")?,
            RouteKind::Throw => f.write_str("throw ")?,
            RouteKind::Unicast | RouteKind::Other(_) => {}
        }
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(oif) = self.oif {
            write!(f, " dev {oif}")?;
        }
        if let Some(nexthop) = self.nexthop {
            write!(f, " nhid {nexthop}")?;
        }
        if self.table != TABLE_MAIN {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

impl Netlink {
    /// All routes of a family, of all tables.
    pub fn routes(&mut self, of: Family) -> Result<Vec<Route>> {
        self.list_routes(of, Vec::new())
    }

    /// All routes of a family in one table, in a time that does not grow with what other tables hold (Linux 4.20 and
    /// later).
    pub fn routes_in(&mut self, table: u32, of: Family) -> Result<Vec<Route>> {
        match self.list_routes(of, vec![RouteAttribute::Table(table)]) {
            Ok(mut routes) => {
                routes.retain(|route| route.table == table);
                Ok(routes)
            }
            // A table without routes may not be there.
            Err(error) if error.is_missing() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn list_routes(&mut self, of: Family, filter: Vec<RouteAttribute>) -> Result<Vec<Route>> {
        let mut request = RouteMessage::default();
        request.header.address_family = address_family(of);
        request.attributes = filter;
        let all = self.dump(RouteNetlinkMessage::GetRoute(request), "list routes")?;
        Ok(all
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) => parse(route),
                _ => None,
            })
            .collect())
    }

    /// Adds a route that is not there yet.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        self.add_routes(std::slice::from_ref(route))
    }

    /// Adds routes that are not there yet, many at once. All are tried; the first refusal is the error.
    pub fn add_routes(&mut self, routes: &[Route]) -> Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let make = |route: &Route| new_request(route, flags);
        self.request_all(
            routes,
            make,
            |route| format!("add route {route}"),
            |_| false,
        )
    }

    /// Adds routes, or replaces those to the same destination in the same table with the same metric.
    pub fn replace_routes(&mut self, routes: &[Route]) -> Result<()> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let make = |route: &Route| new_request(route, flags);
        self.request_all(
            routes,
            make,
            |route| format!("replace route {route}"),
            |_| false,
        )
    }

    /// Deletes routes, many at once; those that are gone already are no error, with their nexthop or without.
    pub fn delete_routes(&mut self, routes: &[Route]) -> Result<()> {
        // The kernel refuses the number of a nexthop that is gone, and needs none to find a route.
        let found_by = |route: &Route| Route {
            nexthop: None,
            ..*route
        };
        let make = |route: &Route| Request {
            message: RouteNetlinkMessage::DelRoute(message(&found_by(route))),
            flags: 0,
        };
        let missing = |error: &super::Error| error.is_missing();
        self.request_all(
            routes,
            make,
            |route| format!("delete route {route}"),
            missing,
        )
    }
}

fn new_request(route: &Route, flags: u16) -> Request {
    Request {
        message: RouteNetlinkMessage::NewRoute(message(route)),
        flags,
    }
}

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: address_family(route.family()),
        destination_prefix_length: route.destination.prefix_len(),
        // Tables above 255 do not fit the header and stand in RTA_TABLE only.
        table: u8::try_from(route.table).unwrap_or_default(),
        protocol: RouteProtocol::from(route.protocol),
        scope: RouteScope::from(route.wire_scope().to_wire()),
        kind: wire_kind(route.kind),
        flags: if route.onlink {
            RouteFlags::Onlink
        } else {
            RouteFlags::empty()
        },
        ..RouteHeader::default()
    };
    message.attributes = attributes(route);
    message
}

fn attributes(route: &Route) -> Vec<RouteAttribute> {
    let mut attributes = vec![RouteAttribute::Table(route.table)];
    if route.destination.prefix_len() > 0 {
        let destination = RouteAddress::from(route.destination.addr());
        attributes.push(RouteAttribute::Destination(destination));
    }
    attributes.extend(route.oif.map(RouteAttribute::Oif));
    attributes.extend(route.nexthop.map(RouteAttribute::NhId));
    attributes.extend(
        route
            .gateway
            .map(|gateway| RouteAttribute::Gateway(gateway.into())),
    );
    attributes.extend(
        route
            .preferred_source
            .map(|ip| RouteAttribute::PrefSource(ip.into())),
    );
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    attributes.extend(
        route
            .mtu
            .map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])),
    );
    attributes
}

const fn wire_kind(kind: RouteKind) -> RouteType {
    match kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
        RouteKind::Throw => RouteType::Throw,
        RouteKind::Other(other) => RouteType::Other(other),
    }
}

fn parse(message: RouteMessage) -> Option<Route> {
    let header = &message.header;
    let any: IpAddr = match family(header.address_family)? {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut route = Route::new(IpNet::new(any, header.destination_prefix_length).ok()?);
    route.table = u32::from(header.table);
    route.protocol = u8::from(header.protocol);
    route.scope = Some(Scope::from(u8::from(header.scope)));
    route.onlink = header.flags.bits() & u32::from(RouteNextHopFlags::Onlink.bits()) != 0;
    route.kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::Throw => RouteKind::Throw,
        other => RouteKind::Other(u8::from(other)),
    };
    for attribute in message.attributes {
        read_attribute(&mut route, attribute);
    }
    Some(route)
}

fn read_attribute(route: &mut Route, attribute: RouteAttribute) {
    match attribute {
        RouteAttribute::Table(table) => route.table = table,
        RouteAttribute::Destination(address) => {
            let length = route.destination.prefix_len();
            if let Some(Ok(destination)) = ip(&address).map(|ip| IpNet::new(ip, length)) {
                route.destination = destination;
            }
        }
        RouteAttribute::Oif(index) => route.oif = Some(index),
        RouteAttribute::NhId(id) => route.nexthop = Some(id),
        RouteAttribute::Gateway(address) => route.gateway = ip(&address),
        RouteAttribute::PrefSource(address) => route.preferred_source = ip(&address),
        RouteAttribute::MultiPath(hops) => {
            if let Some(first) = hops.into_iter().next() {
                route.oif = Some(first.interface_index);
                for attribute in first.attributes {
                    read_attribute(route, attribute);
                }
            }
        }
        RouteAttribute::Priority(metric) => route.metric = Some(metric),
        RouteAttribute::Metrics(metrics) => {
            route.mtu = metrics.into_iter().find_map(|metric| match metric {
                RouteMetric::Mtu(mtu) => Some(mtu),
                _ => None,
            });
        }
        _ => {}
    }
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnet::{Ipv4Net, Ipv6Net};

    #[test]
    fn scope_is_derived_as_ip_route_does() {
        let route = Route::new(IpNet::V4(Ipv4Net::default()));
        assert_eq!(route.wire_scope(), Scope::Link);
        let gateway = Some(Ipv4Addr::LOCALHOST.into());
        assert_eq!(Route { gateway, ..route }.wire_scope(), Scope::Universe);
        assert_eq!(
            Route {
                kind: RouteKind::Local,
                ..route
            }
            .wire_scope(),
            Scope::Host
        );
        assert_eq!(
            Route::new(IpNet::V6(Ipv6Net::default())).wire_scope(),
            Scope::Universe
        );
    }
}
