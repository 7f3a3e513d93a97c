//! Objects to svcports: everything that kube-proxy ignores is left out, everything it defaults is filled in.
//!
//! Source: Kubernetes 1.30 `pkg/proxy/{serviceport,servicechangetracker,endpointslicecache}.go` and
//! `pkg/proxy/util/utils.go`.

use crate::config::KubeProxyConfig;
use crate::model::{Endpoint, Family, ServicePort, ServicePortName, TrafficPolicy, Transport};
use crate::snapshot::objects::{
    self, AddressType, ClusterIp, EndpointPort, EndpointSlice, IpMode, Policy, Service,
    ServiceType, SessionAffinity,
};
use crate::snapshot::{SlicesByService, Snapshot, slices_by_service};
use dataplane::service::Selection;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

/// Objects with one of these labels are somebody else's business, whatever the value.
const IGNORE_LABELS: [&str; 2] = [
    "service.kubernetes.io/service-proxy-name",
    "service.kubernetes.io/headless",
];
const HINTS_ANNOTATIONS: [&str; 2] = [
    "service.kubernetes.io/topology-aware-hints",
    "service.kubernetes.io/topology-mode",
];
/// Says how endpoints of a Service, or of all Services on a Node, are chosen.
pub const SELECTION_ANNOTATION: &str = "penstock.dev/load-balancing";
/// What the API server writes where nothing is said.
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);

/// All svcports of one family as the proxy of `node_name` sees them, sorted by namespace, name, port and protocol.
pub fn service_ports(
    snapshot: &Snapshot,
    config: &KubeProxyConfig,
    node_name: &str,
    family: Family,
) -> Vec<ServicePort> {
    let resolver = Resolver::new(snapshot, config, node_name);
    resolver.service_ports(&snapshot.services, family)
}

/// A snapshot whose slices are sorted by Service, seen from one node.
pub struct Resolver<'s> {
    snapshot: &'s Snapshot,
    config: &'s KubeProxyConfig,
    node_name: &'s str,
    slices: SlicesByService<'s>,
}

impl<'s> Resolver<'s> {
    /// Looks at the slices once for all Services.
    pub fn new(snapshot: &'s Snapshot, config: &'s KubeProxyConfig, node_name: &'s str) -> Self {
        Self {
            snapshot,
            config,
            node_name,
            slices: slices_by_service(&snapshot.endpoint_slices),
        }
    }

    /// The svcports of some of the snapshot's Services, sorted by namespace, name, port and protocol.
    pub fn service_ports(&self, services: &[Service], family: Family) -> Vec<ServicePort> {
        let mut service_ports = Vec::with_capacity(services.len());
        for service in services {
            let Some(cluster_ip) = served_address(service, family) else {
                continue;
            };
            let slices = self.slices_of(service, family);
            for port in &service.spec.ports {
                let mut service_port = service_port(service, port, cluster_ip, self.config);
                service_port.endpoints = endpoints(&slices, &service_port.name, self.node_name);
                service_ports.push(service_port);
            }
        }
        service_ports.sort_by(|a, b| a.name.cmp(&b.name));
        service_ports
    }

    fn slices_of(&self, service: &Service, family: Family) -> Vec<&'s EndpointSlice> {
        let metadata = &service.metadata;
        let key = (metadata.namespace.as_str(), metadata.name.as_str());
        let positions = self.slices.get(&key).into_iter().flatten();
        positions
            .map(|position| &self.snapshot.endpoint_slices[*position])
            .filter(|slice| is_slice_used(slice, family))
            .collect()
    }
}

/// The label by which a Service is somebody else's.
pub fn ignoring_label(service: &Service) -> Option<&'static str> {
    let mut labels = IGNORE_LABELS.into_iter();
    labels.find(|label| service.metadata.labels.contains(label))
}

/// The cluster IP of `family` of a Service that kube-proxy serves (`ShouldSkipService`, `GetClusterIPByFamily`).
pub fn served_address(service: &Service, family: Family) -> Option<IpAddr> {
    let spec = &service.spec;
    if ignoring_label(service).is_some() || spec.kind == ServiceType::ExternalName {
        return None;
    }
    let ClusterIp::Address(first) = spec.cluster_ip else {
        return None;
    };
    if spec.ip_families.is_empty() {
        return (Family::of(first) == family).then_some(first);
    }
    let index = spec
        .ip_families
        .iter()
        .position(|entry| Family::from(*entry) == family)?;
    match spec.cluster_ips.get(index) {
        Some(ClusterIp::Address(address)) => Some(*address),
        // Manifests by hand often give clusterIP alone; the API server then fills in the list.
        None if index == 0 => Some(first),
        _ => None,
    }
}

fn is_slice_used(slice: &EndpointSlice, family: Family) -> bool {
    let address_type = match family {
        Family::V4 => AddressType::IPv4,
        Family::V6 => AddressType::IPv6,
    };
    let labels = &slice.metadata.labels;
    slice.address_type == address_type && !IGNORE_LABELS.iter().any(|label| labels.contains(label))
}

fn service_port(
    service: &Service,
    port: &objects::ServicePort,
    cluster_ip: IpAddr,
    config: &KubeProxyConfig,
) -> ServicePort {
    let spec = &service.spec;
    let family = Family::of(cluster_ip);
    let of_family = |address: &IpAddr| Family::of(*address) == family;
    let external_traffic_policy = external_policy(service);
    ServicePort {
        name: ServicePortName {
            namespace: service.metadata.namespace.clone(),
            service: service.metadata.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol.into(),
        },
        family,
        cluster_ip,
        port: port.port,
        node_port: port.node_port,
        external_ips: spec
            .external_ips
            .iter()
            .copied()
            .filter(of_family)
            .collect(),
        load_balancer_vips: load_balancer_vips(service, config)
            .filter(of_family)
            .collect(),
        source_ranges: spec
            .load_balancer_source_ranges
            .iter()
            .copied()
            .filter(|range| Family::of(range.addr()) == family)
            .collect(),
        internal_traffic_policy: spec
            .internal_traffic_policy
            .map_or(TrafficPolicy::Cluster, TrafficPolicy::from),
        external_traffic_policy,
        affinity_timeout: affinity_timeout(service),
        health_check_node_port: spec.health_check_node_port.filter(|_| {
            spec.kind == ServiceType::LoadBalancer
                && external_traffic_policy == TrafficPolicy::Local
        }),
        hints_annotation: hints_annotation(service, config),
        selection: selection(service),
        endpoints: Vec::new(),
    }
}

/// Addresses of the load balancer at which packets arrive unchanged.
fn load_balancer_vips<'s>(
    service: &'s Service,
    config: &KubeProxyConfig,
) -> impl Iterator<Item = IpAddr> + use<'s> {
    let ingress = service.status.load_balancer.ingress.iter();
    let minds_mode = config.load_balancer_ip_mode;
    ingress
        .filter(move |entry| !minds_mode || entry.ip_mode != Some(IpMode::Proxy))
        .filter_map(|entry| entry.ip)
}

/// `ExternalPolicyLocal`: the only place where the type of a Service counts, with the health check port.
fn external_policy(service: &Service) -> TrafficPolicy {
    let spec = &service.spec;
    let honoured = match spec.kind {
        ServiceType::LoadBalancer | ServiceType::NodePort => true,
        ServiceType::ClusterIP => !spec.external_ips.is_empty(),
        ServiceType::ExternalName => false,
    };
    if honoured && spec.external_traffic_policy == Some(Policy::Local) {
        TrafficPolicy::Local
    } else {
        TrafficPolicy::Cluster
    }
}

fn affinity_timeout(service: &Service) -> Option<Duration> {
    let spec = &service.spec;
    let seconds = spec.session_affinity_config.client_ip.timeout_seconds;
    (spec.session_affinity == SessionAffinity::ClientIP).then(|| {
        seconds.map_or(DEFAULT_AFFINITY, |seconds| {
            Duration::from_secs(seconds.into())
        })
    })
}

/// The first of the two annotations that is present wins, even when it is empty.
///
/// Source: `pkg/proxy/topology.go`, `canUseTopology`.
fn hints_annotation(service: &Service, config: &KubeProxyConfig) -> String {
    if config.service_traffic_distribution {
        // Whatever it says, as if it asked for them.
        return "Auto".to_owned();
    }
    if !config.topology_aware_hints {
        return String::new();
    }
    let annotations = &service.metadata.annotations;
    let value = HINTS_ANNOTATIONS
        .iter()
        .find_map(|name| annotations.get(name));
    value.unwrap_or_default().to_owned()
}

fn selection(service: &Service) -> Option<Selection> {
    Selection::from_name(service.metadata.annotations.get(SELECTION_ANNOTATION)?)
}

/// The endpoints of a svcport from all its slices, unique by `ip:port` and sorted by that string.
///
/// DIFFERS: kube-proxy takes the address as the slice has it, and so two endpoints for `FD00::5` and `fd00::5`
/// (`endpointslicecache.go`, `addEndpoints`). Here an address is one however it is written, and is written in one way.
fn endpoints(slices: &[&EndpointSlice], name: &ServicePortName, node_name: &str) -> Vec<Endpoint> {
    let of_slice = |slice: &&EndpointSlice| slice.endpoints.len();
    let mut endpoints = Vec::with_capacity(slices.iter().map(of_slice).sum());
    for slice in slices {
        for port in ports(slice, name) {
            let of_port = |endpoint| resolve_endpoint(endpoint, port, slice, node_name);
            endpoints.extend(slice.endpoints.iter().filter_map(of_port));
        }
    }
    // Of duplicates a local one comes first, and of equals the one that was listed first.
    endpoints.sort_by_cached_key(|endpoint| (text(endpoint), !endpoint.is_local));
    endpoints.dedup_by_key(|endpoint| (endpoint.address, endpoint.port));
    endpoints
}

/// `ip:port`, with zeros behind it: comparing these is comparing the strings, without an allocation for each.
fn text(endpoint: &Endpoint) -> [u8; LONGEST] {
    let mut text = [0; LONGEST];
    let IpAddr::V4(address) = endpoint.address else {
        // It fits.
        let _ = write!(&mut text[..], "{endpoint}");
        return text;
    };
    // As that would write it, which takes ten times as long; there are many of these.
    let mut end = 0;
    for octet in address.octets() {
        end = write_decimal(&mut text, end, octet.into());
        text[end] = b'.';
        end += 1;
    }
    text[end - 1] = b':';
    write_decimal(&mut text, end, endpoint.port);
    text
}

/// Writes `number` from `start` on; returns the end.
fn write_decimal(text: &mut [u8; LONGEST], start: usize, number: u16) -> usize {
    let end = start + number.checked_ilog10().unwrap_or(0) as usize + 1;
    let mut rest = number;
    for digit in text[start..end].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    end
}

/// Bytes of `[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535`.
const LONGEST: usize = 47;

fn ports<'s>(
    slice: &'s EndpointSlice,
    name: &'s ServicePortName,
) -> impl Iterator<Item = u16> + 's {
    let matches = |port: &&EndpointPort| {
        port.name == name.port && Transport::from(port.protocol) == name.protocol
    };
    slice
        .ports
        .iter()
        .filter(matches)
        .filter_map(|port| port.port)
}

fn resolve_endpoint(
    endpoint: &objects::Endpoint,
    port: u16,
    slice: &EndpointSlice,
    node_name: &str,
) -> Option<Endpoint> {
    let address = endpoint.address()?;
    let is_of_slice = matches!(
        (Family::of(address), slice.address_type),
        (Family::V4, AddressType::IPv4) | (Family::V6, AddressType::IPv6)
    );
    is_of_slice.then(|| Endpoint {
        address,
        port,
        is_local: endpoint.node_name.as_deref() == Some(node_name),
        ready: endpoint.conditions.ready.unwrap_or(true),
        serving: endpoint.conditions.serving.unwrap_or(true),
        terminating: endpoint.conditions.terminating.unwrap_or(false),
        zone_hints: endpoint
            .hints
            .for_zones
            .iter()
            .map(|zone| zone.name.clone())
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_compared_as_they_are_written() {
        for address in [
            "0.0.0.0",
            "10.20.105.9",
            "255.255.255.255",
            "fd00::10",
            "99.100.1.0",
        ] {
            for port in [0, 1, 9, 10, 99, 100, 9_999, 10_000, 65_535] {
                let endpoint = Endpoint {
                    address: address.parse().unwrap(),
                    port,
                    is_local: false,
                    ready: true,
                    serving: true,
                    terminating: false,
                    zone_hints: Default::default(),
                };
                let written = endpoint.to_string();
                let text = text(&endpoint);
                assert_eq!(&text[..written.len()], written.as_bytes());
                assert!(text[written.len()..].iter().all(|byte| *byte == 0));
            }
        }
    }
}
