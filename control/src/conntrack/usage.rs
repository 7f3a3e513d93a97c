//! Who uses the table and the ports: what an operator looks for when one of them runs out.

use dataplane::conntrack::{Conntrack, EntryView, Status};
use dataplane::ports::ReservedPorts;
use dataplane::tuple::{Address, Protocol, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};

/// By what connections are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UsageBy {
    /// Address that sources are translated to, and the destination: both together have one set of ports.
    Snat,
    /// Client.
    Src,
    /// Address and port that clients asked for.
    Dst,
    /// Service.
    Service,
}

/// Who uses what, the greatest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// By what it is counted.
    pub by: UsageBy,
    /// Connections in the table.
    pub connections: u64,
    /// Connections that it can hold.
    pub capacity: u64,
    /// One for each user.
    pub rows: Vec<UsageRow>,
}

/// One user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageRow {
    /// Whom or what this is about: an address, an address with port, or a Service.
    pub name: String,
    /// For translated sources: the destination that the ports are used towards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub towards: Option<String>,
    /// The protocol, where ports are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Connections.
    pub connections: u64,
    /// Those of them that nobody has answered.
    pub unreplied: u64,
    /// Ports, or entries of this source, that are left; absent where there is no limit but the table's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
}

/// Rows that are sent. More than anybody reads, few enough to send.
const ROWS: usize = 10_000;

/// First of the ports that are searched for a source port of 1024 or more.
const FIRST_PORT: u16 = 1024;

#[derive(Clone, Copy, Default)]
struct Count {
    connections: u64,
    unreplied: u64,
}

impl Usage {
    /// Counts the connections in the table.
    pub(super) fn count(
        conntrack: &Conntrack,
        now: Timestamp,
        by: UsageBy,
        reserved: &ReservedPorts,
        names: &HashMap<u64, String>,
    ) -> Self {
        let rows = match by {
            UsageBy::Snat => by_translated_source(conntrack, now, reserved),
            UsageBy::Src => by_source(conntrack, now),
            UsageBy::Dst => by_destination(conntrack, now),
            UsageBy::Service => by_service(conntrack, now, names),
        };
        Self {
            by,
            connections: conntrack.len() as u64,
            capacity: conntrack.capacity() as u64,
            rows: greatest_first(rows),
        }
    }
}

fn greatest_first(mut rows: Vec<UsageRow>) -> Vec<UsageRow> {
    rows.sort_by(|a, b| {
        let names = |row: &UsageRow| (row.name.clone(), row.towards.clone());
        (b.connections.cmp(&a.connections)).then_with(|| names(a).cmp(&names(b)))
    });
    rows.truncate(ROWS);
    rows
}

fn counts<K: Eq + Hash>(
    conntrack: &Conntrack,
    now: Timestamp,
    key: impl Fn(&EntryView) -> Option<K>,
) -> HashMap<K, Count> {
    let mut counts: HashMap<K, Count> = HashMap::new();
    conntrack.for_each(now, |entry| {
        let Some(key) = key(entry) else { return };
        let count = counts.entry(key).or_default();
        count.connections += 1;
        count.unreplied += u64::from(!entry.status.has(Status::SEEN_REPLY));
    });
    counts
}

fn by_translated_source(
    conntrack: &Conntrack,
    now: Timestamp,
    reserved: &ReservedPorts,
) -> Vec<UsageRow> {
    // Ports below 1024 are a class of their own, for clients that came from such ports.
    let pool = |entry: &EntryView| {
        let reply = &entry.reply;
        let is_high = reply.protocol.is_icmp() || *reply.leased_port() >= FIRST_PORT;
        let is_translated = entry.status.has(Status::SRC_NAT);
        let server_port = if reply.protocol.is_icmp() {
            0
        } else {
            reply.source_port
        };
        let key = (reply.destination, reply.source, server_port, reply.protocol);
        (is_translated && is_high).then_some(key)
    };
    let row =
        |((address, server, port, protocol), count): ((Address, Address, u16, Protocol), Count)| {
            UsageRow {
                towards: Some(socket(server, port, protocol)),
                protocol: Some(protocol.to_string()),
                free: ports(protocol, reserved)
                    .map(|ports| ports.saturating_sub(count.connections)),
                ..named(IpAddr::from(address).to_string(), count)
            }
        };
    counts(conntrack, now, pool).into_iter().map(row).collect()
}

/// How many ports there are to choose from.
fn ports(protocol: Protocol, reserved: &ReservedPorts) -> Option<u64> {
    match protocol {
        Protocol::ICMP | Protocol::ICMPV6 => Some(1 << 16),
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => {
            let free = |port: &u16| !reserved.contains(protocol, *port);
            Some((FIRST_PORT..=u16::MAX).filter(free).count() as u64)
        }
        _ => None,
    }
}

fn by_source(conntrack: &Conntrack, now: Timestamp) -> Vec<UsageRow> {
    let limit = conntrack.settings().per_source.map(u64::from);
    let counts = counts(conntrack, now, |entry| Some(entry.original.source));
    let row = |(address, count): (Address, Count)| UsageRow {
        free: limit.map(|limit| limit.saturating_sub(count.connections)),
        ..named(IpAddr::from(address).to_string(), count)
    };
    counts.into_iter().map(row).collect()
}

fn by_destination(conntrack: &Conntrack, now: Timestamp) -> Vec<UsageRow> {
    let counts = counts(conntrack, now, |entry| {
        let original = &entry.original;
        let is_icmp = original.protocol.is_icmp();
        let port = if is_icmp {
            0
        } else {
            original.destination_port
        };
        Some((original.destination, port, original.protocol))
    });
    let row = |((address, port, protocol), count): ((Address, u16, Protocol), Count)| UsageRow {
        protocol: Some(protocol.to_string()),
        ..named(socket(address, port, protocol), count)
    };
    counts.into_iter().map(row).collect()
}

fn by_service(
    conntrack: &Conntrack,
    now: Timestamp,
    names: &HashMap<u64, String>,
) -> Vec<UsageRow> {
    let counts = counts(conntrack, now, |entry| entry.service?.service());
    let row = |(id, count): (u64, Count)| {
        let name = names.get(&id).cloned();
        named(name.unwrap_or_else(|| "(removed)".to_owned()), count)
    };
    counts.into_iter().map(row).collect()
}

fn named(name: String, count: Count) -> UsageRow {
    UsageRow {
        name,
        towards: None,
        protocol: None,
        connections: count.connections,
        unreplied: count.unreplied,
        free: None,
    }
}

/// Address and port; the address alone for protocols without ports.
fn socket(address: Address, port: u16, protocol: Protocol) -> String {
    if super::entry::has_ports(protocol) {
        SocketAddr::new(address.into(), port).to_string()
    } else {
        IpAddr::from(address).to_string()
    }
}
