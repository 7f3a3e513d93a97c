//! What a [`super::ServiceTable`] is made of: [`Parts`], which the control plane compiles.

use super::SourceClass;
use crate::tuple::{Address, Origin, Protocol};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

/// The version of a table: grows by one with each that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

/// Index into [`Parts::services`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceIndex(pub u32);

/// One port of a Service: kube-proxy's svcport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `namespace/name:port`, as kube-proxy prints it (no colon when the port has no name).
    pub name: Arc<str>,
    /// How an endpoint is chosen.
    pub selection: Selection,
    /// For ClientIP affinity: how long a client stays with its endpoint after its last new connection.
    pub affinity_timeout: Option<Duration>,
    /// For UDP only: what ends its flows.
    pub udp: Option<UdpEndpoints>,
    /// The endpoints that new connections are sent to; the ranges of its frontends lie in here.
    pub endpoints: Arc<[Endpoint]>,
}

/// What the slices say of a UDP Service's endpoints, beyond where new connections go: its flows end by it.
///
/// An endpoint that merely is no longer ready keeps its flows, one that is no longer listed does not. Source:
/// kube-proxy's `detectStaleConntrackEntries`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpEndpoints {
    /// Addresses and ports that are listed but that no new connection is sent to from this node.
    pub unused: Vec<(Address, u16)>,
    /// Whether any endpoint is serving.
    pub serving: bool,
    /// Which of the two families of the Service this is: each is served on its own.
    pub is_ipv4: bool,
}

/// How an endpoint is chosen for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Selection {
    /// Each with the same probability, as kube-proxy's `statistic` rules do.
    #[default]
    Random,
    /// In turn, as IPVS `rr`.
    RoundRobin,
    /// The one with the fewest connections, as IPVS `lc`.
    LeastConnections,
    /// By a hash of the client's address, as IPVS `sh`.
    SourceHash,
    /// By Maglev's consistent hash of the five-tuple.
    Maglev,
}

impl Selection {
    /// All of them, by the names that users give them.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("random", Self::Random),
        ("round-robin", Self::RoundRobin),
        ("least-connections", Self::LeastConnections),
        ("source-hash", Self::SourceHash),
        ("maglev", Self::Maglev),
    ];

    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name)?;
        Some(known.1)
    }
}

/// Where one of a Service's pods answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Address of the pod.
    pub address: Address,
    /// Port of the pod.
    pub port: u16,
    /// What MASQUERADE would choose as source towards this endpoint: an address of the interface that the
    /// route to it leaves by. `None`: the node has none, and what must be masqueraded is dropped.
    pub masquerade_address: Option<Address>,
    /// Whether the address is one of this node's own (a pod on the host's network).
    pub on_node: bool,
}

/// A contiguous run of a [`Service`]'s endpoints. Invariant: there is one at least, so that a choice among them cannot
/// fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointRange {
    start: u32,
    count: NonZeroU32,
}

/// What a Service is reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey {
    /// The virtual address; for a NodePort the unspecified address of its family.
    pub address: Address,
    /// The Service's port, or the NodePort.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// The kind of address behind a [`FrontendKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancerIp,
    /// `spec.ports[].nodePort`.
    NodePort,
}

/// What happens to a new connection, once its source's class is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// DNAT to one of these endpoints (at least one).
    Balance {
        /// The candidates.
        endpoints: EndpointRange,
        /// Whether kube-proxy marks the packet for masquerade. Hairpin traffic is masqueraded anyway.
        masquerade: bool,
    },
    /// No endpoints: answered with ICMP port unreachable.
    Reject,
    /// The traffic policy is Local and this node has no endpoint.
    Drop,
}

/// One address and port of a Service, its policies resolved for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The Service behind it.
    pub service: ServiceIndex,
    /// The kind of address.
    pub kind: FrontendKind,
    /// For sources that the local detector takes for pods.
    pub from_pod: Action,
    /// For sources that are addresses of this node.
    pub from_local: Action,
    /// For all others.
    pub from_outside: Action,
    /// `loadBalancerSourceRanges`: sources outside them are dropped. Empty: no filter.
    pub source_ranges: Vec<Prefix>,
}

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    network: u128,
    mask: u128,
}

impl Prefix {
    /// `address/length`; bits after `length` are cleared. `length` beyond the family's width counts as full.
    pub fn new(address: Address, length: u8) -> Self {
        let bits = u32::from(length) + if address.is_ipv4() { 96 } else { 0 };
        let mask = u128::MAX
            .checked_shl(128u32.saturating_sub(bits))
            .unwrap_or(0);
        Self {
            network: address.to_bits() & mask,
            mask,
        }
    }

    /// Whether `address` lies in it. An IPv4 prefix never contains an IPv6 address.
    #[inline]
    pub const fn contains(&self, address: Address) -> bool {
        address.to_bits() & self.mask == self.network
    }
}

/// How kube-proxy tells pods' traffic from other traffic (`detectLocalMode`).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum LocalDetector {
    /// No detector: nothing is taken for a pod.
    #[default]
    None,
    /// By source address (ClusterCIDR, NodeCIDR): one prefix of either family, where there is one.
    Source(Vec<Prefix>),
    /// By the interface that it came in by (BridgeInterface, InterfaceNamePrefix): [`Origin::Pod`].
    Interface,
}

/// Which of the node's addresses serve NodePorts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All of them; loopback of IPv4 only if `localhost`.
    All {
        /// `localhostNodePorts`.
        localhost: bool,
    },
    /// Just these.
    Only(Vec<Address>),
}

/// What a [`ServiceTable`](super::ServiceTable) is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The version.
    pub generation: Generation,
    /// The Services.
    pub services: Vec<Service>,
    /// The frontends. Those with one key are tried in this order, as the rules of a chain are.
    ///
    /// DIFFERS: kube-proxy writes the rules of all Services in a random order at each sync, so which of two Services
    /// serves an address that both claim changes; here it is the first in the order of the control plane.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// All addresses of the node.
    pub node_addresses: Vec<Address>,
    /// NodePorts of IPv4 answer on these.
    pub node_port_addresses_v4: NodePortAddresses,
    /// NodePorts of IPv6 answer on these.
    pub node_port_addresses_v6: NodePortAddresses,
    /// Detector of IPv4 traffic of pods.
    pub local_detector_v4: LocalDetector,
    /// Detector of IPv6 traffic of pods.
    pub local_detector_v6: LocalDetector,
}

impl EndpointRange {
    /// `count` endpoints from the one with index `start` on; `None` when these are none.
    pub const fn new(start: u32, count: u32) -> Option<Self> {
        match NonZeroU32::new(count) {
            Some(count) => Some(Self { start, count }),
            None => None,
        }
    }

    /// How many.
    pub(super) const fn count(self) -> u32 {
        self.count.get()
    }

    /// The endpoints themselves, of the Service that the range is of.
    pub(super) fn of(self, service: &Service) -> &[Endpoint] {
        &service.endpoints[self.start as usize..][..self.count() as usize]
    }
}

impl Parts {
    /// No Services, on a node without addresses.
    pub const fn empty(generation: Generation) -> Self {
        Self {
            generation,
            services: Vec::new(),
            frontends: Vec::new(),
            node_addresses: Vec::new(),
            node_port_addresses_v4: NodePortAddresses::All { localhost: true },
            node_port_addresses_v6: NodePortAddresses::All { localhost: false },
            local_detector_v4: LocalDetector::None,
            local_detector_v6: LocalDetector::None,
        }
    }
}

impl Service {
    /// Whether it is of UDP and any endpoint is serving.
    pub(super) fn is_serving_udp(&self) -> bool {
        self.udp.as_ref().is_some_and(|udp| udp.serving)
    }
}

impl Action {
    /// Where it leads, if anywhere.
    pub(super) const fn endpoints(self) -> Option<EndpointRange> {
        match self {
            Self::Balance { endpoints, .. } => Some(endpoints),
            Self::Reject | Self::Drop => None,
        }
    }
}

impl Frontend {
    /// What happens to connections from sources of each class.
    pub(super) const fn actions(&self) -> [Action; 3] {
        [self.from_pod, self.from_local, self.from_outside]
    }

    pub(super) const fn action(&self, class: SourceClass) -> Action {
        match class {
            SourceClass::Pod => self.from_pod,
            SourceClass::Local => self.from_local,
            SourceClass::Outside => self.from_outside,
        }
    }

    pub(super) fn admits(&self, source: Address) -> bool {
        self.source_ranges.is_empty()
            || self
                .source_ranges
                .iter()
                .any(|range| range.contains(source))
    }
}

impl FrontendKind {
    /// Whether a packet that was not translated meets this kind's filter rules: cluster IPs have theirs in FORWARD
    /// and OUTPUT, external addresses in INPUT and FORWARD, NodePorts in INPUT. What the node sends to itself comes
    /// in again.
    pub(super) const fn is_filtered(self, origin: Origin, to_node: bool) -> bool {
        let from_node = matches!(origin, Origin::Node);
        match self {
            Self::ClusterIp => from_node || !to_node,
            Self::ExternalIp | Self::LoadBalancerIp => to_node || !from_node,
            Self::NodePort => to_node,
        }
    }
}

impl Endpoint {
    /// Whether a packet from `source` that kube-proxy marked, or did not mark, for masquerade leaves with another
    /// source. Hairpin traffic always does. What came in and is delivered on this node never reaches POSTROUTING.
    pub fn is_masqueraded(&self, source: Address, origin: Origin, marked: bool) -> bool {
        let leaves = !self.on_node || origin == Origin::Node;
        (marked || source == self.address) && leaves
    }
}
