//! Svcports to the Services and frontends of a table.

use super::node::{node_ip, prefix};
use crate::config::KubeProxyConfig;
use crate::endpoints::EndpointSets;
use crate::model::{self, Family, ServicePort, TrafficPolicy, Transport};
use crate::node_network::NodeNetwork;
use crate::snapshot::Node;
use dataplane::service::{
    Action, Endpoint, EndpointRange, Frontend, FrontendKey, FrontendKind, Prefix, Selection,
    Service, ServiceIndex, UdpEndpoints,
};
use dataplane::tuple::{Address, Protocol};
use ipnet::IpNet;
use std::net::IpAddr;

/// What svcports of one family are compiled with.
#[derive(Clone, Copy)]
pub(super) struct Settings<'a> {
    pub(super) config: &'a KubeProxyConfig,
    pub(super) network: &'a NodeNetwork,
    pub(super) node: &'a Node,
    pub(super) family: Family,
    /// Whether pods are told from others.
    pub(super) has_detector: bool,
    /// Where a Service does not say.
    pub(super) selection: Selection,
}

/// Some svcports, compiled: a part of a table. Frontends count its Services from 0.
#[derive(Default)]
pub(super) struct Piece {
    pub(super) services: Vec<Service>,
    pub(super) frontends: Vec<(FrontendKey, Frontend)>,
}

impl Piece {
    pub(super) fn of(service_ports: &[ServicePort], settings: Settings<'_>) -> Self {
        let mut compiler = Compiler {
            settings,
            piece: Self::default(),
        };
        for service_port in service_ports {
            compiler.service_port(service_port);
        }
        compiler.piece
    }
}

/// Adds svcports to a piece of a table.
struct Compiler<'a> {
    settings: Settings<'a>,
    piece: Piece,
}

impl Compiler<'_> {
    fn service_port(&mut self, service_port: &ServicePort) {
        let sets = EndpointSets::of(service_port, self.settings.node.zone());
        let service = ServiceIndex(self.piece.services.len() as u32);
        let endpoints = sets.cluster.iter().chain(&sets.local);
        self.piece.services.push(Service {
            name: service_port.name.to_string().into(),
            selection: service_port.selection.unwrap_or(self.settings.selection),
            affinity_timeout: service_port.affinity_timeout,
            udp: udp_endpoints(service_port, &sets),
            endpoints: endpoints.map(|endpoint| self.endpoint(endpoint)).collect(),
        });
        let [in_cluster, on_node] = [&sets.cluster, &sets.local].map(|set| set.len() as u32);
        let cluster = EndpointRange::new(0, in_cluster);
        let local = EndpointRange::new(in_cluster, on_node);
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

    fn endpoint(&self, endpoint: &model::Endpoint) -> Endpoint {
        let network = self.settings.network;
        let masquerade_address = network.masquerade_address(endpoint.address);
        Endpoint {
            address: endpoint.address.into(),
            port: endpoint.port,
            masquerade_address: masquerade_address.map(Address::from),
            on_node: network.is_own(endpoint.address),
        }
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
        let all = self.settings.config.masquerade_all;
        let balance = |masquerade| Action::Balance {
            endpoints,
            masquerade,
        };
        Actions {
            from_pod: balance(all),
            from_local: balance(all || self.settings.has_detector),
            from_outside: balance(all || self.settings.has_detector),
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
        self.piece.frontends.push((key, frontend));
    }

    /// If a range holds the node's own address, the load balancer's addresses are let in as well: a node that
    /// talks to its own VIP may have it as source.
    fn source_ranges(&self, service_port: &ServicePort) -> Vec<Prefix> {
        let ranges = &service_port.source_ranges;
        let mut prefixes: Vec<Prefix> = ranges.iter().copied().map(prefix).collect();
        let node_ip = node_ip(
            self.settings.config,
            self.settings.node,
            self.settings.family,
        );
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
