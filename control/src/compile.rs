//! Snapshot to [`Parts`] of a service table, for one node: all policies resolved.
//!
//! Pure: the same snapshot, configuration and network give the same parts, whatever the order of documents. Source:
//! Kubernetes 1.30 `pkg/proxy/iptables/proxier.go`, `syncProxyRules`. Read first: [`crate::resolve`],
//! [`crate::endpoints`].

use crate::config::{DetectLocal, KubeProxyConfig, NodePortAddresses as ConfiguredAddresses};
use crate::endpoints::EndpointSets;
use crate::health::{self, HealthCheck, ServiceName};
use crate::metrics::WithoutLocal;
use crate::model::{self, Family, ServicePort, TrafficPolicy, Transport};
use crate::node_network::NodeNetwork;
use crate::problem::did_you_mean;
use crate::resolve;
use crate::snapshot::{Node, Snapshot};
use dataplane::service::{
    Action, Endpoint, EndpointRange, Endpoints, Frontend, FrontendKey, FrontendKind, Generation,
    LocalDetector, NodePortAddresses, Parts, Prefix, Selection, Service, ServiceIndex,
    UdpEndpoints,
};
use dataplane::tuple::{Address, Protocol};
use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Why there is no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The node is not in the snapshot.
    #[error("there is no Node {name} in the snapshot{}", .hint)]
    NoSuchNode {
        /// The name asked for.
        name: String,
        /// What to do.
        hint: String,
    },
    /// Detection by the node's pod CIDRs needs them.
    #[error(
        "Node {0} has no spec.podCIDRs, but detectLocalMode is NodeCIDR; add them, or choose another mode"
    )]
    NoPodCidr(String),
}

/// What the Services of `snapshot` mean on `node_name`, whose addresses and routes are `network`.
///
/// # Errors
/// [`CompileError`].
pub fn compile(
    snapshot: &Snapshot,
    config: &KubeProxyConfig,
    network: &NodeNetwork,
    node_name: &str,
    generation: Generation,
) -> Result<Parts, CompileError> {
    let compiled = compile_all(snapshot, config, network, node_name, generation)?;
    Ok(compiled.parts)
}

/// All that follows from a snapshot on a node.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// For the table.
    pub parts: Parts,
    /// What load balancers ask.
    pub health_checks: BTreeMap<ServiceName, HealthCheck>,
    /// For the metrics.
    pub without_local: WithoutLocal,
}

/// [`compile`], with what an agent serves beside the table.
///
/// # Errors
/// [`CompileError`].
pub fn compile_all(
    snapshot: &Snapshot,
    config: &KubeProxyConfig,
    network: &NodeNetwork,
    node_name: &str,
    generation: Generation,
) -> Result<Compiled, CompileError> {
    let node = find_node(snapshot, node_name)?;
    let mut compiler = Compiler {
        config,
        network,
        node,
        family: Family::V4,
        has_detector: false,
        selection: default_selection(config, node),
        masquerade_addresses: HashMap::new(),
        endpoints: Vec::new(),
        parts: empty_parts(generation, config, network, node)?,
    };
    let mut health_checks = BTreeMap::new();
    let mut without_local = WithoutLocal::default();
    for family in [Family::V4, Family::V6] {
        let service_ports = resolve::service_ports(snapshot, config, node_name, family);
        compiler.family(family, &service_ports);
        without_local += WithoutLocal::count(&service_ports, node.zone());
        for (name, check) in health::health_checks(&service_ports) {
            health_checks.entry(name).or_insert(check);
        }
    }
    compiler.parts.endpoints = compiler.endpoints.into_iter().collect();
    Ok(Compiled {
        parts: compiler.parts,
        health_checks,
        without_local,
    })
}

/// The node of that name, or a message that helps to find it.
pub fn find_node<'s>(snapshot: &'s Snapshot, name: &str) -> Result<&'s Node, CompileError> {
    snapshot.node(name).ok_or_else(|| {
        let names = || {
            snapshot
                .nodes
                .iter()
                .map(|node| node.metadata.name.as_str())
        };
        let hint = match did_you_mean(name, names()) {
            Some(likely) => format!("; did you mean {likely}?"),
            None if snapshot.nodes.is_empty() => {
                ", nor any other; add those of `kubectl get nodes -o yaml`".to_owned()
            }
            None => format!("; it has {}", names().collect::<Vec<_>>().join(", ")),
        };
        CompileError::NoSuchNode {
            name: name.to_owned(),
            hint,
        }
    })
}

fn empty_parts(
    generation: Generation,
    config: &KubeProxyConfig,
    network: &NodeNetwork,
    node: &Node,
) -> Result<Parts, CompileError> {
    let own = network.addresses.iter();
    Ok(Parts {
        generation,
        services: Vec::new(),
        frontends: Vec::new(),
        endpoints: Endpoints::default(),
        node_addresses: own.map(|own| own.network.addr().into()).collect(),
        node_port_addresses_v4: node_port_addresses(config, network, node, Family::V4),
        node_port_addresses_v6: node_port_addresses(config, network, node, Family::V6),
        local_detector_v4: local_detector(config, node, Family::V4)?,
        local_detector_v6: local_detector(config, node, Family::V6)?,
    })
}

/// Source: `cmd/kube-proxy/app/server_linux.go`, `getLocalDetector`.
fn local_detector(
    config: &KubeProxyConfig,
    node: &Node,
    family: Family,
) -> Result<LocalDetector, CompileError> {
    let by_source = |range: Option<IpNet>| {
        range.map_or(LocalDetector::None, |range| {
            LocalDetector::Source(vec![prefix(range)])
        })
    };
    match &config.detect_local {
        DetectLocal::ClusterCidr(_) => Ok(by_source(config.cluster_cidr(family))),
        DetectLocal::NodeCidr => {
            if node.pod_cidrs().next().is_none() {
                return Err(CompileError::NoPodCidr(node.metadata.name.clone()));
            }
            let mut ranges = node.pod_cidrs();
            Ok(by_source(
                ranges.find(|range| Family::of(range.addr()) == family),
            ))
        }
        DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_) => {
            Ok(LocalDetector::Interface)
        }
    }
}

fn default_selection(config: &KubeProxyConfig, node: &Node) -> Selection {
    let annotation = node.metadata.annotations.get(resolve::SELECTION_ANNOTATION);
    annotation
        .and_then(|name| Selection::from_name(name))
        .unwrap_or(config.selection)
}

/// Source: `pkg/proxy/util/nodeport_addresses.go`.
fn node_port_addresses(
    config: &KubeProxyConfig,
    network: &NodeNetwork,
    node: &Node,
    family: Family,
) -> NodePortAddresses {
    let localhost = family == Family::V4 && config.localhost_node_ports;
    let ranges: Vec<IpNet> = match &config.node_port_addresses {
        ConfiguredAddresses::Default => Vec::new(),
        ConfiguredAddresses::Primary => {
            let primary = node_ip(config, node, family);
            return NodePortAddresses::Only(primary.map(Address::from).into_iter().collect());
        }
        ConfiguredAddresses::Ranges(ranges) => ranges
            .iter()
            .copied()
            .filter(|range| Family::of(range.addr()) == family)
            .collect(),
    };
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return NodePortAddresses::All { localhost };
    }
    let serves = |address: &IpAddr| {
        ranges.iter().any(|range| range.contains(address)) && (localhost || !address.is_loopback())
    };
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let own = network.addresses.iter().map(|own| own.network.addr());
    let mut addresses: Vec<Address> = own
        .filter(|address| *address != loopback)
        .chain([loopback])
        .filter(serves)
        .map(Address::from)
        .collect();
    addresses.sort();
    NodePortAddresses::Only(addresses)
}

/// The node's address of a family: `bindAddress`, else its first InternalIP.
pub fn node_ip(config: &KubeProxyConfig, node: &Node, family: Family) -> Option<IpAddr> {
    let bound = config.bind_address;
    if !bound.is_unspecified() && Family::of(bound) == family {
        return Some(bound);
    }
    node.internal_ips()
        .find(|address| Family::of(*address) == family)
}

fn prefix(range: IpNet) -> Prefix {
    Prefix::new(range.addr().into(), range.prefix_len())
}

/// Adds svcports to the parts of a table.
struct Compiler<'a> {
    config: &'a KubeProxyConfig,
    network: &'a NodeNetwork,
    node: &'a Node,
    family: Family,
    has_detector: bool,
    /// Where a Service does not say.
    selection: Selection,
    masquerade_addresses: HashMap<IpAddr, Option<IpAddr>>,
    endpoints: Vec<Endpoint>,
    parts: Parts,
}

impl Compiler<'_> {
    fn family(&mut self, family: Family, service_ports: &[ServicePort]) {
        self.family = family;
        let detector = match family {
            Family::V4 => &self.parts.local_detector_v4,
            Family::V6 => &self.parts.local_detector_v6,
        };
        self.has_detector = *detector != LocalDetector::None;
        for service_port in service_ports {
            self.service_port(service_port);
        }
    }

    fn service_port(&mut self, service_port: &ServicePort) {
        let sets = EndpointSets::of(service_port, self.node.zone());
        let service = ServiceIndex(self.parts.services.len() as u32);
        self.parts.services.push(Service {
            name: service_port.name.to_string().into(),
            selection: service_port.selection.unwrap_or(self.selection),
            affinity_timeout: service_port.affinity_timeout,
            udp: udp_endpoints(service_port, &sets),
        });
        let cluster = self.push_endpoints(&sets.cluster);
        let local = self.push_endpoints(&sets.local);
        let internal = self.internal(service_port, &sets, cluster, local);
        self.push_frontend(
            service_port,
            service,
            FrontendKind::ClusterIp,
            service_port.cluster_ip,
            internal,
        );
        if !service_port.is_externally_accessible() {
            return;
        }
        let external = external(service_port, &sets, cluster, local);
        for address in &service_port.external_ips {
            self.push_frontend(
                service_port,
                service,
                FrontendKind::ExternalIp,
                *address,
                external,
            );
        }
        for address in &service_port.load_balancer_vips {
            self.push_frontend(
                service_port,
                service,
                FrontendKind::LoadBalancerIp,
                *address,
                external,
            );
        }
        if service_port.node_port.is_some() {
            let any = IpAddr::from(Address::from(service_port.cluster_ip).unspecified_of_family());
            self.push_frontend(service_port, service, FrontendKind::NodePort, any, external);
        }
    }

    fn push_endpoints(&mut self, endpoints: &[&model::Endpoint]) -> Option<EndpointRange> {
        let start = self.endpoints.len() as u32;
        for endpoint in endpoints {
            let network = self.network;
            let masquerade_address = *self
                .masquerade_addresses
                .entry(endpoint.address)
                .or_insert_with_key(|address| network.masquerade_address(*address));
            self.endpoints.push(Endpoint {
                address: endpoint.address.into(),
                port: endpoint.port,
                masquerade_address: masquerade_address.map(Address::from),
                on_node: self.network.is_own(endpoint.address),
            });
        }
        EndpointRange::new(start, endpoints.len() as u32)
    }

    /// What happens to traffic to the cluster IP.
    fn internal(
        &self,
        service_port: &ServicePort,
        sets: &EndpointSets<'_>,
        cluster: Option<EndpointRange>,
        local: Option<EndpointRange>,
    ) -> Actions {
        let endpoints = match service_port.internal_traffic_policy {
            TrafficPolicy::Cluster => cluster,
            TrafficPolicy::Local => local,
        };
        let Some(endpoints) = endpoints else {
            return Actions::all(unavailable(sets));
        };
        let all = self.config.masquerade_all;
        let balance = |masquerade| Action::Balance {
            endpoints,
            masquerade,
        };
        Actions {
            from_pod: balance(all),
            from_local: balance(all || self.has_detector),
            from_outside: balance(all || self.has_detector),
        }
    }

    fn push_frontend(
        &mut self,
        service_port: &ServicePort,
        service: ServiceIndex,
        kind: FrontendKind,
        address: IpAddr,
        actions: Actions,
    ) {
        let port = match kind {
            FrontendKind::NodePort => service_port.node_port.unwrap_or_default(),
            _ => service_port.port,
        };
        let key = FrontendKey {
            address: address.into(),
            port,
            protocol: protocol(service_port.name.protocol),
        };
        let source_ranges = match kind {
            FrontendKind::LoadBalancerIp => self.source_ranges(service_port),
            _ => Vec::new(),
        };
        let frontend = Frontend {
            service,
            kind,
            from_pod: actions.from_pod,
            from_local: actions.from_local,
            from_outside: actions.from_outside,
            source_ranges,
        };
        self.parts.frontends.push((key, frontend));
    }

    /// If a range holds the node's own address, the load balancer's addresses are let in as well: a node that
    /// talks to its own VIP may have it as source.
    fn source_ranges(&self, service_port: &ServicePort) -> Vec<Prefix> {
        let ranges = &service_port.source_ranges;
        let mut prefixes: Vec<Prefix> = ranges.iter().copied().map(prefix).collect();
        let node_ip = node_ip(self.config, self.node, self.family);
        if node_ip.is_some_and(|address| ranges.iter().any(|range| range.contains(&address))) {
            let vips = service_port.load_balancer_vips.iter();
            prefixes.extend(vips.map(|vip| prefix(IpNet::from(*vip))));
        }
        prefixes
    }
}

/// What happens to a packet, by the class of its source.
#[derive(Clone, Copy)]
struct Actions {
    from_pod: Action,
    from_local: Action,
    from_outside: Action,
}

impl Actions {
    const fn all(action: Action) -> Self {
        Self {
            from_pod: action,
            from_local: action,
            from_outside: action,
        }
    }
}

/// What happens to traffic to NodePorts, external and load balancer IPs. Pods and the node itself are sent to the
/// whole cluster even under policy Local: for them a load balancer in between would change nothing.
fn external(
    service_port: &ServicePort,
    sets: &EndpointSets<'_>,
    cluster: Option<EndpointRange>,
    local: Option<EndpointRange>,
) -> Actions {
    let balance = |endpoints: Option<EndpointRange>, masquerade| {
        endpoints.map_or_else(
            || unavailable(sets),
            |endpoints| Action::Balance {
                endpoints,
                masquerade,
            },
        )
    };
    if service_port.external_traffic_policy == TrafficPolicy::Cluster {
        return Actions::all(balance(cluster, true));
    }
    Actions {
        from_pod: balance(cluster, false),
        from_local: balance(cluster, true),
        from_outside: balance(local, false),
    }
}

fn unavailable(sets: &EndpointSets<'_>) -> Action {
    if sets.has {
        Action::Drop
    } else {
        Action::Reject
    }
}

fn udp_endpoints(service_port: &ServicePort, sets: &EndpointSets<'_>) -> Option<UdpEndpoints> {
    if service_port.name.protocol != Transport::Udp {
        return None;
    }
    let all = &service_port.endpoints;
    let mut used = sets.reachable.iter().copied().peekable();
    let is_unused = |endpoint: &&model::Endpoint| {
        used.next_if(|next| std::ptr::eq(*next, *endpoint))
            .is_none()
    };
    let unused = all.iter().filter(is_unused);
    Some(UdpEndpoints {
        unused: unused
            .map(|endpoint| (endpoint.address.into(), endpoint.port))
            .collect(),
        serving: all.iter().any(|endpoint| endpoint.serving),
        is_ipv4: service_port.family == Family::V4,
    })
}

const fn protocol(transport: Transport) -> Protocol {
    match transport {
        Transport::Tcp => Protocol::TCP,
        Transport::Udp => Protocol::UDP,
        Transport::Sctp => Protocol::SCTP,
    }
}

#[cfg(test)]
mod tests;
