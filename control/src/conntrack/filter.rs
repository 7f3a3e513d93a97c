//! Which connections somebody wants to see or to end: the filters of conntrack-tools.

use super::entry::{PROTOCOLS, has_ports};
use dataplane::conntrack::{EntryView, Status};
use dataplane::tuple::{Address, Protocol, Tuple};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// All that is given must match; what is not given matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// `-f`.
    pub family: Option<Family>,
    /// `-p`.
    pub protocol: Option<u8>,
    /// `-s`, `-d`, `--sport`, `--dport` and their longer names.
    pub original: SideFilter,
    /// `-r`, `-q`, `--reply-port-src`, `--reply-port-dst`.
    pub reply: SideFilter,
    /// `--icmp-type`.
    pub icmp_type: Option<u8>,
    /// `--icmp-code`.
    pub icmp_code: Option<u8>,
    /// `--icmp-id`.
    pub icmp_id: Option<u16>,
    /// `--state`.
    pub state: Option<String>,
    /// `-u`: all of these.
    pub status: Vec<StatusFilter>,
    /// `-n`. DIFFERS, as the next two: entries of ICMP that nothing translates do not match, in conntrack-tools they do.
    pub source_nat: Option<Translation>,
    /// `-g`.
    pub destination_nat: Option<Translation>,
    /// `-j`.
    pub any_nat: Option<Translation>,
}

/// A part of a [`Filter`] about one tuple.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideFilter {
    /// Its source is one of these.
    pub source: Option<IpNet>,
    /// Its destination is one of these.
    pub destination: Option<IpNet>,
    /// Its source port.
    pub source_port: Option<u16>,
    /// Its destination port.
    pub destination_port: Option<u16>,
}

/// Of which family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// A status that is asked for with `-u`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StatusFilter {
    /// Survives early drop.
    Assured,
    /// The other side has answered.
    SeenReply,
    /// In the table, as all are.
    Confirmed,
    /// Source translated.
    SourceNat,
    /// Destination translated.
    DestinationNat,
}

/// Translated, to anything or to something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translation {
    /// To this; to anything when absent.
    pub to: Option<Translated>,
}

/// `ADDRESS[:PORT]` that something was translated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translated {
    address: IpAddr,
    port: Option<u16>,
}

impl Filter {
    /// Whether the connection is wanted.
    pub(super) fn matches(&self, entry: &EntryView) -> bool {
        let protocol = entry.original.protocol;
        let family = |family| (family == Family::Ipv4) == entry.original.source.is_ipv4();
        let state = |state: &String| entry.state.is_some_and(|of| of.name() == state);
        self.family.is_none_or(family)
            && self.protocol.is_none_or(|wanted| wanted == protocol.0)
            && self.original.matches(&entry.original)
            && self.reply.matches(&entry.reply)
            && self.matches_icmp(&entry.original)
            && self.state.as_ref().is_none_or(state)
            && self.matches_status(entry.status)
            && self.matches_translation(entry)
    }

    fn matches_icmp(&self, tuple: &Tuple) -> bool {
        let [kind, code] = tuple.destination_port.to_be_bytes();
        let asked = self.icmp_type.is_some() || self.icmp_code.is_some() || self.icmp_id.is_some();
        !asked
            || tuple.protocol.is_icmp()
                && self.icmp_type.is_none_or(|wanted| wanted == kind)
                && self.icmp_code.is_none_or(|wanted| wanted == code)
                && self
                    .icmp_id
                    .is_none_or(|wanted| wanted == tuple.source_port)
    }

    fn matches_status(&self, status: Status) -> bool {
        self.status.iter().all(|wanted| {
            status.has(match wanted {
                StatusFilter::Assured => Status::ASSURED,
                StatusFilter::SeenReply => Status::SEEN_REPLY,
                StatusFilter::Confirmed => Status::CONFIRMED,
                StatusFilter::SourceNat => Status::SRC_NAT,
                StatusFilter::DestinationNat => Status::DST_NAT,
            })
        })
    }

    fn matches_translation(&self, entry: &EntryView) -> bool {
        let reply = &entry.reply;
        let to = |wanted: &Translation, bit: Status, to: SocketAddr| {
            entry.status.has(bit) && wanted.to.is_none_or(|wanted| wanted.is(to))
        };
        let source = |wanted: &_| {
            let new = SocketAddr::new(reply.destination.into(), reply.destination_port);
            to(wanted, Status::SRC_NAT, new)
        };
        let destination = |wanted: &_| {
            let new = SocketAddr::new(reply.source.into(), reply.source_port);
            to(wanted, Status::DST_NAT, new)
        };
        self.source_nat.as_ref().is_none_or(source)
            && self.destination_nat.as_ref().is_none_or(destination)
            && self
                .any_nat
                .as_ref()
                .is_none_or(|wanted| source(wanted) || destination(wanted))
    }

    /// The one original tuple that this names, if it names every part of it.
    pub fn tuple(&self) -> Option<Tuple> {
        let protocol = Protocol(self.protocol?);
        let one = |net: Option<IpNet>| net.map(|net| Address::from(net.addr()));
        let (source_port, destination_port) = if has_ports(protocol) {
            (self.original.source_port?, self.original.destination_port?)
        } else if protocol.is_icmp() {
            let kind_and_code = [self.icmp_type?, self.icmp_code?];
            (self.icmp_id?, u16::from_be_bytes(kind_and_code))
        } else {
            (0, 0)
        };
        Some(Tuple {
            source: one(self.original.source)?,
            destination: one(self.original.destination)?,
            source_port,
            destination_port,
            protocol,
        })
    }
}

impl SideFilter {
    fn matches(&self, tuple: &Tuple) -> bool {
        let within = |net: &Option<IpNet>, address: Address| {
            net.is_none_or(|net| net.contains(&IpAddr::from(address)))
        };
        let is = |wanted: Option<u16>, port: u16| wanted.is_none_or(|wanted| wanted == port);
        within(&self.source, tuple.source)
            && within(&self.destination, tuple.destination)
            && is(self.source_port, tuple.source_port)
            && is(self.destination_port, tuple.destination_port)
    }
}

impl Translated {
    fn is(self, to: SocketAddr) -> bool {
        self.address == to.ip() && self.port.is_none_or(|wanted| wanted == to.port())
    }
}

impl FromStr for Translated {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = text.parse().map(|address| Self {
            address,
            port: None,
        });
        let with_port = |socket: SocketAddr| Self {
            address: socket.ip(),
            port: Some(socket.port()),
        };
        whole
            .or_else(|_| text.parse().map(with_port))
            .map_err(|_| format!("`{text}` is not ADDRESS or ADDRESS:PORT"))
    }
}

/// The number of a protocol that is given by name or number.
///
/// # Errors
/// The message of conntrack-tools.
pub fn parse_protocol(text: &str) -> Result<u8, String> {
    let named = PROTOCOLS.iter().find(|(name, _)| *name == text);
    named
        .map(|(_, number)| *number)
        .or_else(|| text.parse().ok())
        .ok_or_else(|| format!("`{text}' unsupported protocol"))
}
