//! A connection as it is sent and printed.

use dataplane::conntrack::{Count, EntryView, Status};
use dataplane::tuple::{Protocol, Tuple};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::net::IpAddr;

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Name of the protocol, as conntrack-tools have it.
    pub protocol: Cow<'static, str>,
    /// Its number.
    pub protocol_number: u8,
    /// Milliseconds left; none when it has expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_milliseconds: Option<u64>,
    /// State, for TCP and SCTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Cow<'static, str>>,
    /// The first packet.
    pub original: Side,
    /// The answer to it.
    pub reply: Side,
    /// The other side has answered.
    pub seen_reply: bool,
    /// Survives early drop.
    pub assured: bool,
    /// The source is translated.
    pub source_nat: bool,
    /// The destination is translated.
    pub destination_nat: bool,
    /// The Service that it was made for, as kube-proxy names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Identifies it while it lives.
    pub id: u32,
}

/// A tuple. What the protocol does not have is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Side {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// Type, code and identifier of an ICMP query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// Packets, when they are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Bytes, when they are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Type, code and identifier of an ICMP query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Icmp {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// Its identifier.
    pub id: u16,
}

impl Entry {
    /// As the table shows it.
    pub(super) fn new(view: &EntryView, service: Option<&str>) -> Self {
        let protocol = view.original.protocol;
        Self {
            protocol: Cow::Borrowed(protocol_name(protocol)),
            protocol_number: protocol.0,
            timeout_milliseconds: (!view.timeout.is_zero())
                .then_some(view.timeout.as_millis() as u64),
            state: view.state.map(|state| Cow::Borrowed(state.name())),
            original: Side::new(&view.original, view.counts.map(|[original, _]| original)),
            reply: Side::new(&view.reply, view.counts.map(|[_, reply]| reply)),
            seen_reply: view.status.has(Status::SEEN_REPLY),
            assured: view.status.has(Status::ASSURED),
            source_nat: view.status.has(Status::SRC_NAT),
            destination_nat: view.status.has(Status::DST_NAT),
            service: service.map(str::to_owned),
            id: view.id,
        }
    }
}

impl Side {
    fn new(tuple: &Tuple, count: Option<Count>) -> Self {
        let (has_ports, is_icmp) = (has_ports(tuple.protocol), tuple.protocol.is_icmp());
        let [kind, code] = tuple.destination_port.to_be_bytes();
        Self {
            source: tuple.source.into(),
            destination: tuple.destination.into(),
            source_port: has_ports.then_some(tuple.source_port),
            destination_port: has_ports.then_some(tuple.destination_port),
            icmp: is_icmp.then_some(Icmp {
                kind,
                code,
                id: tuple.source_port,
            }),
            packets: count.map(|count| count.packets),
            bytes: count.map(|count| count.bytes),
        }
    }
}

pub(super) const fn has_ports(protocol: Protocol) -> bool {
    matches!(
        protocol,
        Protocol::TCP | Protocol::UDP | Protocol::SCTP | Protocol::UDP_LITE
    )
}

const GRE: u8 = 47;

/// Names that conntrack-tools know.
pub(super) const PROTOCOLS: [(&str, u8); 7] = [
    ("tcp", Protocol::TCP.0),
    ("udp", Protocol::UDP.0),
    ("udplite", Protocol::UDP_LITE.0),
    ("icmp", Protocol::ICMP.0),
    ("icmpv6", Protocol::ICMPV6.0),
    ("sctp", Protocol::SCTP.0),
    ("gre", GRE),
];

fn protocol_name(protocol: Protocol) -> &'static str {
    PROTOCOLS
        .iter()
        .find(|(_, number)| *number == protocol.0)
        .map_or("unknown", |(name, _)| name)
}
