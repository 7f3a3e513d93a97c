//! What is run on both sides: a node, its objects, flows and the steps of their conversations. A case is saved as JSON
//! and runs again from that alone.

use anyhow::bail;
use dataplane::tuple::Origin;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::IpAddr;

/// One case. Invariant: flows and changes that steps name are there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Case {
    /// Version of this form.
    pub schema_version: u32,
    /// What the case was made from; says nothing when it was shrunk since.
    pub seed: u64,
    /// Why it is kept, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// Name of the node.
    pub node: String,
    /// Its links.
    pub links: Vec<Link>,
    /// A KubeProxyConfiguration.
    pub config: Value,
    /// Whether ICMP errors are limited as on a node; everywhere else the limits would hide differences.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub icmp_limits: bool,
    /// The objects at the start.
    pub objects: Vec<Value>,
    /// The objects after each change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Vec<Value>>,
    /// Who talks to whom.
    pub flows: Vec<Flow>,
    /// What happens, in this order.
    pub steps: Vec<Step>,
}

impl Case {
    /// Whether everything that it names is there.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.schema_version != 1 {
            bail!(
                "schemaVersion {} is none that this program knows",
                self.schema_version
            );
        }
        for step in &self.steps {
            match step {
                Step::Client(flow, _) | Step::Server(flow, _) if *flow >= self.flows.len() => {
                    bail!(
                        "a step names flow {flow}, and there are {}",
                        self.flows.len()
                    );
                }
                Step::Change(change) if *change >= self.changes.len() => {
                    bail!(
                        "a step names change {change}, and there are {}",
                        self.changes.len()
                    );
                }
                _ => {}
            }
        }
        for flow in &self.flows {
            if matches!(flow.from, Place::Link(link) if link >= self.links.len()) {
                bail!("a flow comes from a link that is not there");
            }
            if flow.source.is_ipv4() != flow.destination.is_ipv4() {
                bail!(
                    "{} and {} are of two families",
                    flow.source,
                    flow.destination
                );
            }
        }
        Ok(())
    }

    /// Where what is sent from there comes from, as the node sees it.
    pub(super) fn origin(&self, place: Place) -> Origin {
        let is_outside =
            |link: usize| link == 0 || self.links.get(link).is_some_and(|link| link.is_outside);
        match place {
            Place::Node => Origin::Node,
            Place::Link(link) if is_outside(link) => Origin::Outside,
            Place::Link(_) => Origin::Pod,
        }
    }

    /// The node's addresses on its links.
    pub(super) fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let addresses = self.links.iter().flat_map(|link| &link.addresses);
        addresses.map(IpNet::addr)
    }
}

/// A link of the node. The first one leads to the outside.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Whether it leads to the outside, though it is not the first. Others lead to pods.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_outside: bool,
    /// The node's addresses on it, with the lengths of their subnets.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
    /// What is reached by it beside these subnets.
    #[serde(default)]
    pub routes: Vec<Route>,
}

/// A route.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// The next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
}

/// A client, and what it sends to.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Flow {
    /// Where the client is.
    pub from: Place,
    /// IP protocol number.
    pub protocol: u8,
    /// The client's address.
    pub source: IpAddr,
    /// Its port, or ICMP identifier.
    #[serde(default)]
    pub source_port: u16,
    /// What it sends to.
    pub destination: IpAddr,
    /// The port there.
    #[serde(default)]
    pub destination_port: u16,
    /// A TCP client on the node has a socket that takes what comes back. Else the node answers for it, with a RST.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub client_stays: bool,
}

impl Flow {
    /// What connection tracking knows it by: protocol, source and destination.
    pub(super) const fn tuple(&self) -> (u8, (IpAddr, u16), (IpAddr, u16)) {
        let source = (self.source, self.source_port);
        (
            self.protocol,
            source,
            (self.destination, self.destination_port),
        )
    }
}

/// Where packets enter the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// Link of this number.
    Link(usize),
    /// The node itself.
    Node,
}

/// Something that happens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// The client sends.
    Client(usize, Packet),
    /// Whoever got the client's last packet sends; nobody, if nobody got it.
    Server(usize, Packet),
    /// The objects become those of this change.
    Change(usize),
    /// Nothing, for this many milliseconds.
    Wait(u64),
}

/// A packet as far as it does not follow from its flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Packet {
    /// What it carries.
    pub body: Body,
    /// How it is packed.
    #[serde(default, skip_serializing_if = "Shape::is_plain")]
    pub shape: Shape,
}

/// What a packet carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Body {
    /// A segment.
    Tcp(Segment),
    /// A datagram of so many bytes of data.
    Udp {
        /// Bytes.
        data: u16,
        /// Sent without a checksum.
        #[serde(default)]
        no_checksum: bool,
    },
    /// An ICMP query: type and code as given for IPv4 or IPv6.
    Query {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Bytes behind the header.
        data: u16,
    },
    /// An ICMP error about the last packet of the flow that the sender got.
    Error {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The word behind the checksum (MTU, pointer).
        word: u32,
        /// Bytes quoted of what follows the IP header.
        quote: u16,
        /// Who sends it, if not the sender itself: a router on the way.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        router: Option<IpAddr>,
    },
    /// SCTP with one chunk of this type.
    Sctp {
        /// Chunk type.
        chunk: u8,
        /// Verification tag.
        tag: u32,
        /// Initiate tag, in INIT and INIT ACK.
        initiate: u32,
    },
    /// Another protocol (that of the flow) with so many bytes.
    Other {
        /// Bytes.
        data: u16,
    },
}

impl Body {
    /// What it is, in a word.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "TCP",
            Self::Udp { .. } => "UDP",
            Self::Query { .. } => "ICMP query",
            Self::Error { .. } => "ICMP error",
            Self::Sctp { .. } => "SCTP",
            Self::Other { .. } => "other protocol",
        }
    }
}

/// A TCP segment. Numbers count from the initial sequence numbers of the two ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Segment {
    /// Letters of the flags: F, S, R, P, A, U.
    pub flags: String,
    /// Sequence number.
    pub sequence: i64,
    /// Acknowledgement number.
    #[serde(default)]
    pub acknowledgement: i64,
    /// Window field.
    pub window: u16,
    /// Bytes of data.
    #[serde(default)]
    pub data: u16,
    /// Window scale and SACK permitted, as a SYN offers them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<u8>,
    /// A SACK block, as numbers of the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sack: Option<(i64, i64)>,
}

/// How a packet is packed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Shape {
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Don't Fragment; IPv4 only.
    pub dont_fragment: bool,
    /// Bytes of IP options (IPv4: no-ops, a multiple of four; IPv6: one extension header, of eight bytes).
    pub options: u8,
    /// Which extension header.
    #[serde(skip_serializing_if = "Extension::is_default")]
    pub extension: Extension,
    /// The transport checksum is wrong.
    pub wrong_checksum: bool,
    /// The packet is cut to so many bytes behind the IP header, whatever the headers say.
    pub cut: Option<u16>,
    /// Sent in fragments of so many bytes.
    pub fragment: Option<u16>,
    /// In which order.
    pub order: Order,
}

/// An extension header of IPv6, with nothing in it that asks for anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Extension {
    /// Destination options.
    #[default]
    Destination,
    /// Hop-by-hop options.
    HopByHop,
    /// Routing, with no segment left.
    Routing,
}

impl Extension {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Order of fragments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    /// First to last.
    #[default]
    Forward,
    /// Last to first.
    Backward,
    /// The last one is missing.
    Incomplete,
    /// Each comes twice.
    Twice,
    /// One comes between two others, and overlaps both.
    Overlapping,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            options: 0,
            extension: Extension::default(),
            wrong_checksum: false,
            cut: None,
            fragment: None,
            order: Order::Forward,
        }
    }
}

impl Shape {
    /// Whether there is nothing special about it.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

impl From<Body> for Packet {
    fn from(body: Body) -> Self {
        Self {
            body,
            shape: Shape::default(),
        }
    }
}
