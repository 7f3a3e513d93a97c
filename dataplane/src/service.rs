//! [`ServiceTable`]: what the Services of a cluster mean on one node, ready for the packet's path.
//!
//! The control plane compiles it ([`Parts`] to [`ServiceTable::new`]); it is immutable and published whole. All
//! policies are resolved: a [`Frontend`] says for each class of source what to do. The same
//! [`ServiceTable::decide`] serves the packet's path and `penstock explain`.
//!
//! Invariants: every range lies inside `endpoints`; a frontend's endpoints are of its family; the index is
//! never more than half full, so a probe always ends; frontends with one key stand together, in the order of the
//! rules.

use crate::select::Loads;
use crate::tuple::{Address, Origin, Protocol, Tuple};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The version of a table: grows by one with each that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

/// Index into [`ServiceTable::services`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceIndex(pub u32);

/// One port of a Service: kube-proxy's svcport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `namespace/name:port`, as kube-proxy prints it (no colon when the port has no name).
    pub name: String,
    /// How an endpoint is chosen.
    pub selection: Selection,
    /// For ClientIP affinity: how long a client stays with its endpoint after its last new connection.
    pub affinity_timeout: Option<Duration>,
    /// For UDP only: what ends its flows.
    pub udp: Option<UdpEndpoints>,
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

/// A contiguous run of [`ServiceTable::endpoints`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointRange {
    /// Index of the first.
    pub start: u32,
    /// How many.
    pub count: u32,
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

/// What a [`ServiceTable`] is made of.
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
    /// All endpoints; ranges point into them.
    pub endpoints: Vec<Endpoint>,
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

/// The Services of a cluster as one node serves them. See the module.
#[derive(Debug)]
pub struct ServiceTable {
    parts: Parts,
    index: Index,
    node_addresses: HashSet<Address>,
    /// Stable over all versions of the table, one per Service.
    ids: Vec<u64>,
    /// For selection in turn, one per Service.
    turns: Vec<AtomicU32>,
    /// Services with least-connections.
    counted: HashSet<u64>,
    /// For least-connections, shared by all versions of the table.
    loads: Arc<Loads>,
    /// Of each UDP Service and family (whether IPv4) that has a serving endpoint: the table since which it has had one.
    serving_since: HashMap<(u64, bool), Generation>,
}

/// The class of a packet's source (kube-proxy's local detector, then `addrtype --src-type LOCAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceClass {
    /// Taken for a pod by the local detector.
    Pod,
    /// An address of this node.
    Local,
    /// Any other.
    Outside,
}

/// What the table says about a new connection.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'t> {
    /// No Service: routed like any packet.
    NotAService,
    /// To one of `endpoints`.
    Balance {
        /// The Service.
        service: ServiceIndex,
        /// The candidates, at least one.
        endpoints: &'t [Endpoint],
        /// Whether the source is masqueraded whatever the endpoint.
        masquerade: bool,
    },
    /// Refused: the Service has no endpoints.
    Reject(ServiceIndex),
    /// Dropped: the policy is Local and this node has no endpoint.
    NoLocalEndpoint(ServiceIndex),
    /// Dropped: the source is in none of `loadBalancerSourceRanges`.
    SourceNotAllowed(ServiceIndex),
}

impl ServiceTable {
    /// Builds the index. `hash` keys it.
    pub fn new(mut parts: Parts, hash: &RandomState) -> Self {
        parts.frontends.sort_by_key(|(key, _)| *key);
        let index = Index::new(&parts.frontends, hash.clone());
        let node_addresses = parts.node_addresses.iter().copied().collect();
        let ids: Vec<u64> = parts
            .services
            .iter()
            .map(|service| stable_id(&service.name))
            .collect();
        let turns = ids.iter().map(|_| AtomicU32::new(0)).collect();
        let counted = with_selection(&parts.services, &ids, Selection::LeastConnections);
        let counted = counted.map(|(_, id)| id).collect();
        let serving_since = serving_udp(&parts.services, &ids)
            .map(|id| (id, parts.generation))
            .collect();
        Self {
            parts,
            index,
            node_addresses,
            ids,
            turns,
            counted,
            loads: Arc::default(),
            serving_since,
        }
    }

    /// The next version of a table: turns and counts of connections go on, and it knows since when UDP is served.
    pub fn following(parts: Parts, previous: &Self) -> Self {
        let mut table = Self::new(parts, &previous.index.hash);
        table.loads = Arc::clone(&previous.loads);
        for (id, since) in &mut table.serving_since {
            *since = previous.serving_since.get(id).copied().unwrap_or(*since);
        }
        let in_turn = |table: &Self| {
            let services = &table.parts.services;
            with_selection(services, &table.ids, Selection::RoundRobin).collect::<Vec<_>>()
        };
        let turns: HashMap<u64, &AtomicU32> = in_turn(previous)
            .into_iter()
            .map(|(position, id)| (id, &previous.turns[position]))
            .collect();
        for (position, id) in in_turn(&table) {
            if let Some(turn) = turns.get(&id) {
                table.turns[position] = AtomicU32::new(turn.load(Ordering::Relaxed));
            }
        }
        table
    }

    /// A table without Services, of a node without addresses.
    pub fn empty() -> Self {
        let parts = Parts {
            generation: Generation(0),
            services: Vec::new(),
            frontends: Vec::new(),
            endpoints: Vec::new(),
            node_addresses: Vec::new(),
            node_port_addresses_v4: NodePortAddresses::All { localhost: true },
            node_port_addresses_v6: NodePortAddresses::All { localhost: false },
            local_detector_v4: LocalDetector::None,
            local_detector_v6: LocalDetector::None,
        };
        Self::new(parts, &RandomState::new())
    }

    /// What becomes of a new connection `tuple` that comes from `origin`.
    pub fn decide(&self, tuple: &Tuple, origin: Origin) -> Decision<'_> {
        self.decide_by(tuple, origin).0
    }

    /// [`ServiceTable::decide`] with the frontend that decided, for explanations.
    ///
    /// The order is that of kube-proxy's rules in iptables: whatever the nat table translates is settled, a packet
    /// that falls through the rules of one frontend may still match those of the next, and only what was not
    /// translated meets the filter table's drops and rejects.
    pub fn decide_by(&self, tuple: &Tuple, origin: Origin) -> (Decision<'_>, Option<&Frontend>) {
        let class = self.class(tuple.source, origin);
        let virtual_ips = self.claims(tuple.destination, tuple);
        if let Some(settled) = self.translate(virtual_ips, tuple.source, class) {
            return settled;
        }
        let to_node = self.is_node_address(tuple.destination);
        let node_ports = if to_node {
            self.claims(tuple.destination.unspecified_of_family(), tuple)
        } else {
            &[]
        };
        if !node_ports.is_empty()
            && self.serves_node_ports(tuple.destination)
            && let Some(settled) = self.translate(node_ports, tuple.source, class)
        {
            return settled;
        }
        let sees = |frontend: &Frontend| frontend.kind.is_filtered(origin, to_node);
        let refused = firewall(virtual_ips, tuple.source)
            .or_else(|| refusal(virtual_ips.iter().chain(node_ports), sees));
        refused.map_or((Decision::NotAService, None), |(decision, frontend)| {
            (decision, Some(frontend))
        })
    }

    /// The first frontend that translates packets of this class from `source` (nat KUBE-SERVICES, KUBE-NODEPORTS).
    fn translate<'t>(
        &'t self,
        frontends: &'t [(FrontendKey, Frontend)],
        source: Address,
        class: SourceClass,
    ) -> Option<(Decision<'t>, Option<&'t Frontend>)> {
        frontends.iter().find_map(|(_, frontend)| {
            let Action::Balance {
                endpoints,
                masquerade,
            } = frontend.action(class)
            else {
                return None;
            };
            let decision = Decision::Balance {
                service: frontend.service,
                endpoints: self.endpoints(endpoints),
                masquerade,
            };
            frontend
                .admits(source)
                .then_some((decision, Some(frontend)))
        })
    }

    /// The frontends that `tuple` is addressed to, in the order in which they are tried.
    fn addressed<'t>(&'t self, tuple: &Tuple) -> impl Iterator<Item = &'t Frontend> + use<'t> {
        let virtual_ips = self.claims(tuple.destination, tuple);
        let is_node_port =
            self.is_node_address(tuple.destination) && self.serves_node_ports(tuple.destination);
        let node_ports = if is_node_port {
            self.claims(tuple.destination.unspecified_of_family(), tuple)
        } else {
            &[]
        };
        virtual_ips.iter().chain(node_ports).map(|claim| &claim.1)
    }

    /// All frontends with `address` and the port and protocol of `tuple`, in the order of the rules.
    fn claims(&self, address: Address, tuple: &Tuple) -> &[(FrontendKey, Frontend)] {
        let key = FrontendKey {
            address,
            port: tuple.destination_port,
            protocol: tuple.protocol,
        };
        let frontends = &self.parts.frontends;
        let Some(start) = self.index.find(&key, frontends) else {
            return &[];
        };
        let count = frontends[start..].iter().take_while(|claim| claim.0 == key);
        &frontends[start..][..count.count()]
    }

    /// Only translation minds `nodePortAddresses`; the filter table's rules match every address of the node.
    fn serves_node_ports(&self, destination: Address) -> bool {
        let addresses = if destination.is_ipv4() {
            &self.parts.node_port_addresses_v4
        } else {
            &self.parts.node_port_addresses_v6
        };
        match addresses {
            NodePortAddresses::All { localhost } => *localhost || !destination.is_loopback(),
            NodePortAddresses::Only(list) => list.contains(&destination),
        }
    }

    /// The class of a source address.
    pub fn class(&self, source: Address, origin: Origin) -> SourceClass {
        let detector = if source.is_ipv4() {
            &self.parts.local_detector_v4
        } else {
            &self.parts.local_detector_v6
        };
        let is_pod = match detector {
            LocalDetector::None => false,
            LocalDetector::Source(prefixes) => {
                prefixes.iter().any(|prefix| prefix.contains(source))
            }
            LocalDetector::Interface => origin == Origin::Pod,
        };
        if is_pod {
            SourceClass::Pod
        } else if self.is_node_address(source) {
            SourceClass::Local
        } else {
            SourceClass::Outside
        }
    }

    /// Whether `address` is one of the node's (`addrtype LOCAL`), loopback included.
    pub fn is_node_address(&self, address: Address) -> bool {
        address.is_loopback() || self.node_addresses.contains(&address)
    }

    /// The endpoints of a range.
    pub fn endpoints(&self, range: EndpointRange) -> &[Endpoint] {
        &self.parts.endpoints[range.start as usize..][..range.count as usize]
    }

    /// A Service by its index.
    pub fn service(&self, index: ServiceIndex) -> &Service {
        &self.parts.services[index.0 as usize]
    }

    /// What identifies a Service in all versions of the table.
    pub fn service_id(&self, index: ServiceIndex) -> u64 {
        self.ids[index.0 as usize]
    }

    /// Counts the choices in turn.
    pub fn next_turn(&self, index: ServiceIndex) -> u32 {
        self.turns[index.0 as usize].fetch_add(1, Ordering::Relaxed)
    }

    /// Connections of endpoints, for Services that choose by them.
    pub fn loads(&self) -> &Loads {
        &self.loads
    }

    /// Whether any Service chooses by connections.
    pub(crate) fn counts_connections(&self) -> bool {
        !self.counted.is_empty()
    }

    /// Whether the Service with this identifier chooses by connections.
    pub(crate) fn counts_connections_of(&self, id: u64) -> bool {
        self.counted.contains(&id)
    }

    /// Whether a UDP flow that the table `checked` let live has lost its place since (kube-proxy's
    /// `CleanStaleEntries`): its endpoint is no longer listed, the Service got its first serving endpoint, or the
    /// flow was not translated and its destination has become a Service's.
    ///
    /// DIFFERS: kube-proxy forgets flows through other addresses than the cluster IP when their Service goes, flows
    /// whose address of the Service goes, and flows whose endpoint stopped serving before it went. They end here too.
    pub fn is_stale(
        &self,
        original: &Tuple,
        reply: &Tuple,
        service: Option<u64>,
        checked: Generation,
    ) -> bool {
        let mut addressed = self.addressed(original);
        let Some(id) = service else {
            return addressed.next().is_some();
        };
        let served = (id, original.destination.is_ipv4());
        let since = self.serving_since.get(&served);
        let is_newly_served = since.is_some_and(|since| checked < *since);
        let lists = |frontend: &Frontend| {
            self.service_id(frontend.service) == id && self.lists(frontend, reply)
        };
        is_newly_served || !addressed.any(lists)
    }

    /// Whether the endpoint that answers as `reply` is one of the Service's, whatever its condition.
    fn lists(&self, frontend: &Frontend, reply: &Tuple) -> bool {
        let actions = [
            frontend.from_pod,
            frontend.from_local,
            frontend.from_outside,
        ];
        let is_used = actions.iter().any(|action| match action {
            Action::Balance { endpoints, .. } => {
                self.endpoints(*endpoints).iter().any(|endpoint| {
                    endpoint.address == reply.source && endpoint.port == reply.source_port
                })
            }
            Action::Reject | Action::Drop => false,
        });
        let udp = self.service(frontend.service).udp.as_ref();
        is_used || udp.is_some_and(|udp| udp.unused.contains(&(reply.source, reply.source_port)))
    }

    /// All that the table was made of.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The table's version.
    pub fn generation(&self) -> Generation {
        self.parts.generation
    }
}

/// Positions and identifiers of the Services with this selection.
fn with_selection<'s>(
    services: &'s [Service],
    ids: &'s [u64],
    selection: Selection,
) -> impl Iterator<Item = (usize, u64)> + 's {
    services
        .iter()
        .zip(ids)
        .enumerate()
        .filter(move |(_, (service, _))| service.selection == selection)
        .map(|(position, (_, id))| (position, *id))
}

/// Identifiers and families of the UDP Services that have a serving endpoint.
fn serving_udp<'s>(
    services: &'s [Service],
    ids: &'s [u64],
) -> impl Iterator<Item = (u64, bool)> + 's {
    services.iter().zip(ids).filter_map(|(service, id)| {
        let udp = service.udp.as_ref().filter(|udp| udp.serving)?;
        Some((*id, udp.is_ipv4))
    })
}

/// FNV-1a of the name.
fn stable_id(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl Frontend {
    const fn action(&self, class: SourceClass) -> Action {
        match class {
            SourceClass::Pod => self.from_pod,
            SourceClass::Local => self.from_local,
            SourceClass::Outside => self.from_outside,
        }
    }

    fn admits(&self, source: Address) -> bool {
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
    const fn is_filtered(self, origin: Origin, to_node: bool) -> bool {
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

/// What KUBE-PROXY-FIREWALL drops: all that is addressed to a load balancer IP with source ranges and was not
/// translated. Without endpoints there is no such rule: everyone is rejected.
fn firewall(
    frontends: &[(FrontendKey, Frontend)],
    source: Address,
) -> Option<(Decision<'_>, &Frontend)> {
    let guarded = frontends.iter().map(|claim| &claim.1).find(|frontend| {
        !frontend.source_ranges.is_empty() && frontend.from_outside != Action::Reject
    })?;
    let decision = if guarded.admits(source) {
        Decision::NoLocalEndpoint(guarded.service)
    } else {
        Decision::SourceNotAllowed(guarded.service)
    };
    Some((decision, guarded))
}

/// The first reject or drop rule. There is one per frontend, whatever the class of the source: where pods and the
/// node are served all the same, translation has settled it.
fn refusal<'t>(
    mut frontends: impl Iterator<Item = &'t (FrontendKey, Frontend)>,
    sees: impl Fn(&Frontend) -> bool,
) -> Option<(Decision<'t>, &'t Frontend)> {
    frontends.find_map(|(_, frontend)| match frontend.from_outside {
        Action::Reject if sees(frontend) => Some((Decision::Reject(frontend.service), frontend)),
        Action::Drop if sees(frontend) => {
            Some((Decision::NoLocalEndpoint(frontend.service), frontend))
        }
        _ => None,
    })
}

/// Open addressing with linear probing from [`FrontendKey`] to the position of the frontend.
#[derive(Debug)]
struct Index {
    hash: RandomState,
    /// Position plus one; zero is an empty slot. The length is a power of two.
    slots: Vec<u32>,
}

impl Index {
    fn new(frontends: &[(FrontendKey, Frontend)], hash: RandomState) -> Self {
        let capacity = (frontends.len() * 2).next_power_of_two().max(2);
        let mut index = Self {
            hash,
            slots: vec![0; capacity],
        };
        for (position, (key, _)) in frontends.iter().enumerate() {
            index.insert(key, position, frontends);
        }
        index
    }

    fn insert(
        &mut self,
        key: &FrontendKey,
        position: usize,
        frontends: &[(FrontendKey, Frontend)],
    ) {
        let mut slot = self.home(key);
        while self.slots[slot] != 0 {
            if frontends[self.slots[slot] as usize - 1].0 == *key {
                return;
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = position as u32 + 1;
    }

    fn find(&self, key: &FrontendKey, frontends: &[(FrontendKey, Frontend)]) -> Option<usize> {
        let mut slot = self.home(key);
        while self.slots[slot] != 0 {
            let position = self.slots[slot] as usize - 1;
            if frontends[position].0 == *key {
                return Some(position);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        None
    }

    fn home(&self, key: &FrontendKey) -> usize {
        self.hash.hash_one(key) as usize & (self.slots.len() - 1)
    }
}
