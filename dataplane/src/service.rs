//! [`ServiceTable`]: what the Services of a cluster mean on one node, ready for the packet's path.
//!
//! The control plane compiles it ([`Parts`] to [`ServiceTable::new`]); it is immutable and published whole. All
//! policies are resolved: a [`Frontend`] says for each class of source what to do. The same
//! [`ServiceTable::decide`] serves the packet's path and `penstock explain`.
//!
//! Invariants: every range lies inside `endpoints`; a frontend's endpoints are of its family; the index is
//! never more than half full, so a probe always ends; frontends with one key stand together, in the order of the
//! rules.

mod index;
mod parts;

pub use parts::{
    Action, Endpoint, EndpointRange, Endpoints, Frontend, FrontendKey, FrontendKind, Generation,
    LocalDetector, NodePortAddresses, Parts, Prefix, Selection, Service, ServiceIndex,
    UdpEndpoints,
};

use crate::select::Loads;
use crate::tuple::{Address, Origin, Tuple};
use index::Index;
use std::collections::{HashMap, HashSet};
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The Services of a cluster as one node serves them. See the module.
#[derive(Debug)]
pub struct ServiceTable {
    parts: Parts,
    index: Arc<Index>,
    node_addresses: Arc<HashSet<Address>>,
    /// Stable over all versions of the table, one per Service.
    ids: Arc<[u64]>,
    /// For selection in turn, one per Service.
    turns: Arc<[AtomicU32]>,
    /// Services with least-connections.
    counted: Arc<HashSet<u64>>,
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
        let index = Index::new(&parts.frontends, hash);
        let node_addresses = Arc::new(parts.node_addresses.iter().copied().collect());
        let ids: Arc<[u64]> = parts
            .services
            .iter()
            .map(|service| stable_id(&service.name))
            .collect();
        let turns = ids.iter().map(|_| AtomicU32::new(0)).collect();
        let counted = with_selection(&parts.services, &ids, Selection::LeastConnections);
        let counted = Arc::new(counted.map(|(_, id)| id).collect());
        let serving_since = serving_udp(&parts.services, &ids)
            .map(|id| (id, parts.generation))
            .collect();
        Self {
            parts,
            index: Arc::new(index),
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
        let mut table = Self::new(parts, &previous.index.key);
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
                table.turns[position].store(turn.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        table
    }

    /// The next version of this table, in which `changed` says anew what some of the Services mean; their frontends
    /// are the same, what is behind them is not. Everything else is shared, so this takes no time that grows with
    /// the endpoints. `None` where a whole table is due: `changed` has a frontend that this table has not, or many
    /// such versions have been.
    pub fn with_changed(&self, changed: &Parts) -> Option<Self> {
        let mut parts = self.parts.clone();
        parts.generation = changed.generation;
        let offset = parts.endpoints.extend(&changed.endpoints)?;
        for (key, frontend) in &changed.frontends {
            let service = &changed.services[frontend.service.0 as usize];
            let id = stable_id(&service.name);
            let start = self.index.find(key, &parts.frontends)?;
            let claims = parts.frontends[start..].iter_mut();
            let mut same = claims
                .take_while(|claim| claim.0 == *key)
                .map(|(_, claim)| claim)
                .filter(|claim| claim.kind == frontend.kind && self.service_id(claim.service) == id)
                .peekable();
            let position = same.peek()?.service;
            // An address that a Service lists twice has two.
            same.for_each(|claim| *claim = frontend.moved(position, offset));
            parts.services[position.0 as usize] = service.clone();
        }
        let mut serving_since = self.serving_since.clone();
        let served = |service: &Service| {
            let udp = service.udp.as_ref()?;
            Some(((stable_id(&service.name), udp.is_ipv4), udp.serving))
        };
        for (key, is_serving) in changed.services.iter().filter_map(served) {
            if is_serving {
                serving_since.entry(key).or_insert(parts.generation);
            } else {
                serving_since.remove(&key);
            }
        }
        Some(Self {
            parts,
            index: Arc::clone(&self.index),
            node_addresses: Arc::clone(&self.node_addresses),
            ids: Arc::clone(&self.ids),
            turns: Arc::clone(&self.turns),
            counted: Arc::clone(&self.counted),
            loads: Arc::clone(&self.loads),
            serving_since,
        })
    }

    /// A table without Services, of a node without addresses.
    pub fn empty() -> Self {
        let parts = Parts {
            generation: Generation(0),
            services: Vec::new(),
            frontends: Vec::new(),
            endpoints: Endpoints::default(),
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
        self.parts.endpoints.of(range)
    }

    /// How many endpoints the frontends name; an endpoint in two sets of its Service counts twice.
    pub fn endpoint_count(&self) -> usize {
        let frontends = self.parts.frontends.iter().map(|claim| &claim.1);
        let actions = frontends.flat_map(|frontend| {
            [
                frontend.from_pod,
                frontend.from_local,
                frontend.from_outside,
            ]
        });
        let ranges: HashSet<EndpointRange> = actions
            .filter_map(|action| match action {
                Action::Balance { endpoints, .. } => Some(endpoints),
                Action::Reject | Action::Drop => None,
            })
            .collect();
        ranges.iter().map(|range| range.count() as usize).sum()
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
