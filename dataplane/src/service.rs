//! [`ServiceTable`]: what the Services of a cluster mean on one node, ready for the packet's path.
//!
//! The control plane compiles it ([`Parts`] to [`ServiceTable::new`]); it is immutable and published whole. All
//! policies are resolved: a [`Frontend`] says for each class of source what to do. The same
//! [`ServiceTable::decide`] serves the packet's path and `penstock explain`.
//!
//! Invariants: every range lies inside the endpoints of its frontend's Service; a frontend's endpoints are of its
//! family; the index is never more than half full, so a probe always ends; frontends with one key stand together, in
//! the order of the rules. Versions of a table share what they have in common ([`ServiceTable::with_changed`]).

mod chunks;
mod decision;
mod index;
mod parts;
mod versions;

pub use decision::{Decision, SourceClass};
pub use parts::{
    Action, Endpoint, EndpointRange, Frontend, FrontendKey, FrontendKind, Generation,
    LocalDetector, NodePortAddresses, Parts, Prefix, Selection, Service, ServiceIndex,
    UdpEndpoints,
};

use crate::select::Loads;
use crate::tuple::Address;
use chunks::{Chunks, Position};
use index::Index;
use std::collections::HashSet;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The Services of a cluster as one node serves them. See the module.
#[derive(Debug)]
pub struct ServiceTable {
    generation: Generation,
    services: Chunks<Entry>,
    frontends: Chunks<Claim>,
    index: Arc<Index>,
    node: Arc<Node>,
    /// For selection in turn, one per Service.
    turns: Arc<[AtomicU32]>,
    /// Services with least-connections.
    counted: Arc<HashSet<u64>>,
    /// For least-connections, shared by all versions of the table.
    loads: Arc<Loads>,
}

/// A frontend under its key.
type Claim = (FrontendKey, Frontend);

/// A Service in a table.
#[derive(Clone, Debug)]
struct Entry {
    service: Service,
    /// Stable over all versions of the table.
    id: u64,
    /// Of a UDP Service that has a serving endpoint: the table since which it has had one.
    serving_since: Option<Generation>,
}

/// What a table knows of the node.
#[derive(Debug)]
struct Node {
    /// In order: there are few, and whether one is among them is asked of each new connection.
    addresses: Vec<Address>,
    port_addresses_v4: NodePortAddresses,
    port_addresses_v6: NodePortAddresses,
    local_detector_v4: LocalDetector,
    local_detector_v6: LocalDetector,
}

impl ServiceTable {
    /// Builds the index. `hash` keys it.
    pub fn new(mut parts: Parts, hash: &RandomState) -> Self {
        parts.frontends.sort_by_key(|(key, _)| *key);
        parts.node_addresses.sort_unstable();
        parts.node_addresses.dedup();
        let frontends = Chunks::cut(parts.frontends, |a: &Claim, b| a.0 != b.0);
        let generation = parts.generation;
        let entry = |service: Service| Entry {
            id: stable_id(&service.name),
            serving_since: service.is_serving_udp().then_some(generation),
            service,
        };
        let services: Vec<Entry> = parts.services.into_iter().map(entry).collect();
        let counts = |entry: &&Entry| entry.service.selection == Selection::LeastConnections;
        let counted = services.iter().filter(counts).map(|entry| entry.id);
        Self {
            generation,
            index: Arc::new(Index::new(&frontends, hash)),
            frontends,
            node: Arc::new(Node {
                addresses: parts.node_addresses,
                port_addresses_v4: parts.node_port_addresses_v4,
                port_addresses_v6: parts.node_port_addresses_v6,
                local_detector_v4: parts.local_detector_v4,
                local_detector_v6: parts.local_detector_v6,
            }),
            turns: services.iter().map(|_| AtomicU32::new(0)).collect(),
            counted: Arc::new(counted.collect()),
            loads: Arc::default(),
            services: Chunks::even(services),
        }
    }

    /// A table without Services, of a node without addresses.
    pub fn empty() -> Self {
        Self::new(Parts::empty(Generation(0)), &RandomState::new())
    }

    /// The table's version.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// All frontends. Those with one key stand together, in the order in which they are tried.
    pub fn frontends(&self) -> impl Iterator<Item = &(FrontendKey, Frontend)> {
        self.frontends.iter()
    }

    /// All Services, in the order of their indexes.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().map(|entry| &entry.service)
    }

    /// How many Services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// How many endpoints the frontends name; an endpoint in two sets of its Service counts twice.
    pub fn endpoint_count(&self) -> usize {
        let sets = self.frontends().flat_map(|(_, frontend)| {
            let endpoints = frontend.actions().map(Action::endpoints);
            let sets = endpoints.into_iter().flatten();
            sets.map(|endpoints| (frontend.service, endpoints))
        });
        let sets: HashSet<(ServiceIndex, EndpointRange)> = sets.collect();
        sets.iter().map(|set| set.1.count() as usize).sum()
    }

    /// A Service by its index.
    pub fn service(&self, index: ServiceIndex) -> &Service {
        &self.entry(index).service
    }

    /// What identifies a Service in all versions of the table.
    pub fn service_id(&self, index: ServiceIndex) -> u64 {
        self.entry(index).id
    }

    fn entry(&self, index: ServiceIndex) -> &Entry {
        self.services.at(Position::from_u32(index.0))
    }

    /// All addresses of the node, each once.
    pub fn node_addresses(&self) -> impl Iterator<Item = Address> {
        self.node.addresses.iter().copied()
    }

    /// Which addresses of the node serve NodePorts of a family.
    pub fn node_port_addresses(&self, is_ipv4: bool) -> &NodePortAddresses {
        if is_ipv4 {
            &self.node.port_addresses_v4
        } else {
            &self.node.port_addresses_v6
        }
    }

    /// Counts the choices in turn.
    pub fn next_turn(&self, index: ServiceIndex) -> u32 {
        self.turns[index.0 as usize].fetch_add(1, Ordering::Relaxed)
    }

    /// Endpoints of Services with ClientIP affinity, with what identifies the Service.
    pub(crate) fn endpoints_with_affinity(&self) -> impl Iterator<Item = (u64, &Endpoint)> {
        let services = self.services.iter();
        let with_affinity = services.filter(|entry| entry.service.affinity_timeout.is_some());
        with_affinity.flat_map(|entry| entry.service.endpoints.iter().map(|at| (entry.id, at)))
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
}

/// FNV-1a of the name.
fn stable_id(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
