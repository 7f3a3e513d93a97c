//! The words: which rule of Kubernetes decided.

use super::{Explainer, Packet};
use crate::endpoints::EndpointSets;
use crate::model::{Family, ServicePort, TrafficPolicy};
use crate::resolve;
use crate::snapshot::Service;
use crate::snapshot::objects::{ClusterIp, ServiceType};
use dataplane::service::{Decision, Frontend, FrontendKind, SourceClass};
use dataplane::tuple::Origin;
use std::net::{IpAddr, Ipv6Addr};

/// One sentence.
pub(super) fn of(
    explainer: &Explainer<'_>,
    packet: &Packet,
    decision: &Decision<'_>,
    frontend: Option<&Frontend>,
) -> String {
    let Some(frontend) = frontend else {
        return not_a_service(explainer, packet);
    };
    let service_port = explainer.service_port(frontend.service);
    match decision {
        Decision::NotAService => not_a_service(explainer, packet),
        Decision::Balance { .. } => forward(explainer, packet, frontend, service_port),
        Decision::Reject(_) => format!("{} has no ready endpoints", service_port.name),
        Decision::NoLocalEndpoint(_) => format!(
            "{} is Local and {} has no ready endpoint of {}",
            policy_name(frontend.kind),
            explainer.node_name,
            service_port.name
        ),
        Decision::SourceNotAllowed(_) => format!(
            "{} is in none of the loadBalancerSourceRanges of {} ({})",
            packet.source,
            service_port.name,
            join(&service_port.source_ranges)
        ),
    }
}

fn policy_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "internalTrafficPolicy",
        FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp | FrontendKind::NodePort => {
            "externalTrafficPolicy"
        }
    }
}

fn forward(
    explainer: &Explainer<'_>,
    packet: &Packet,
    frontend: &Frontend,
    service_port: &ServicePort,
) -> String {
    let sets = EndpointSets::of(service_port, explainer.zone);
    let class = explainer.table.class(packet.source.into(), packet.origin);
    let policy = match frontend.kind {
        FrontendKind::ClusterIp => service_port.internal_traffic_policy,
        _ => service_port.external_traffic_policy,
    };
    let short_circuit = frontend.kind != FrontendKind::ClusterIp && class != SourceClass::Outside;
    let is_local_set = policy == TrafficPolicy::Local && !short_circuit;
    let set = if is_local_set {
        &sets.local
    } else {
        &sets.cluster
    };
    let name = policy_name(frontend.kind);
    let mut reason = match (policy, short_circuit) {
        (TrafficPolicy::Cluster, _) => {
            format!("{name} is Cluster: any endpoint of {}", service_port.name)
        }
        (TrafficPolicy::Local, false) => format!(
            "{name} is Local: the endpoints of {} on {}",
            service_port.name, explainer.node_name
        ),
        (TrafficPolicy::Local, true) => format!(
            "{name} is Local, but {} inside the cluster may use any endpoint of {}",
            if class == SourceClass::Pod {
                "pods"
            } else {
                "nodes"
            },
            service_port.name
        ),
    };
    if set.iter().all(|endpoint| !endpoint.ready) {
        reason
            .push_str("; none is ready, so those that are terminating but still serving are used");
    } else if !is_local_set && set.len() < ready(service_port) {
        let zone = explainer.zone.unwrap_or_default();
        reason.push_str(&format!("; topology hints keep it to zone {zone}"));
    }
    if let Some(timeout) = service_port.affinity_timeout {
        let seconds = timeout.as_secs();
        reason.push_str(&format!(
            "; sessionAffinity ClientIP: a client stays with its endpoint for {seconds} s"
        ));
    }
    reason
}

fn ready(service_port: &ServicePort) -> usize {
    let endpoints = service_port.endpoints.iter();
    endpoints.filter(|endpoint| endpoint.ready).count()
}

/// Why no Service takes the packet.
fn not_a_service(explainer: &Explainer<'_>, packet: &Packet) -> String {
    let (address, port) = (packet.destination.ip(), packet.destination.port());
    let (protocol, node) = (packet.protocol, explainer.node_name);
    let claimants = claimants(explainer, address);
    let takes = |service_port: &ServicePort| {
        service_port.port == port && service_port.name.protocol == protocol
    };
    if let Some((kind, service_port)) = claimants.iter().find(|claim| takes(claim.1)) {
        return unseen(packet, kind, service_port);
    }
    if let Some((kind, service_port)) = claimants.first() {
        let ports: Vec<String> = claimants
            .iter()
            .filter(|(_, other)| same_service(service_port, other))
            .map(|(_, other)| format!("{}/{}", other.port, other.name.protocol))
            .collect();
        return format!(
            "{address} is a {kind} of {}/{}, which has {} but not {port}/{protocol}; kube-proxy leaves such packets alone",
            service_port.name.namespace,
            service_port.name.service,
            ports.join(", ")
        );
    }
    if explainer.table.is_node_address(address.into()) {
        return match node_port(explainer, packet) {
            Some(service_port) => format!(
                "{port}/{protocol} is the nodePort of {}, but {}",
                service_port.name,
                why_not_on(explainer, address)
            ),
            None => format!(
                "{address} is an address of {node}, and {port}/{protocol} is no Service's nodePort"
            ),
        };
    }
    if let Some(other) = owner(explainer, address) {
        return format!("{address} is an address of node {other}; that node decides");
    }
    let mut services = explainer.snapshot.services.iter();
    if let Some(service) = services.find(|service| has_address(service, address)) {
        return format!(
            "{address} is of {}/{}, {}",
            service.metadata.namespace,
            service.metadata.name,
            why_unserved(service, address)
        );
    }
    format!("no Service has the address {address}; the packet is routed like any other")
}

/// Why the NodePorts of the node are not served on an address that it has.
fn why_not_on(explainer: &Explainer<'_>, address: IpAddr) -> String {
    match address {
        IpAddr::V6(Ipv6Addr::LOCALHOST) => {
            "kube-proxy serves no NodePort on the loopback address of IPv6".to_owned()
        }
        IpAddr::V4(own) if own.is_loopback() && !explainer.config.localhost_node_ports => {
            format!("iptables.localhostNodePorts is false, so none is served on {address}")
        }
        _ => format!("nodePortAddresses does not have {address}"),
    }
}

/// Whether any field of the Service names the address, whatever kube-proxy makes of it.
fn has_address(service: &Service, address: IpAddr) -> bool {
    let spec = &service.spec;
    let first = std::iter::once(&spec.cluster_ip);
    let mut cluster_ips = first.chain(&spec.cluster_ips);
    let ingress = &service.status.load_balancer.ingress;
    cluster_ips.any(|ip| *ip == ClusterIp::Address(address))
        || spec.external_ips.contains(&address)
        || ingress.iter().any(|entry| entry.ip == Some(address))
}

/// Why kube-proxy serves a Service not at all, or not at this address of it.
fn why_unserved(service: &Service, address: IpAddr) -> String {
    let spec = &service.spec;
    if let Some(label) = resolve::ignoring_label(service) {
        return format!("which kube-proxy ignores: it has the label {label}");
    }
    if spec.kind == ServiceType::ExternalName {
        return "which kube-proxy ignores: its type is ExternalName".to_owned();
    }
    match spec.cluster_ip {
        ClusterIp::Headless => return "which kube-proxy ignores: it is headless".to_owned(),
        ClusterIp::Unset => return "which kube-proxy ignores: it has no cluster IP".to_owned(),
        ClusterIp::Address(_) => {}
    }
    let family = Family::of(address);
    if resolve::served_address(service, family).is_none() {
        return format!(
            "which has no cluster IP of {family}, so kube-proxy serves it over {family} nowhere"
        );
    }
    // What else keeps an address of a Service from being served: see `resolve::load_balancer_vips`.
    "whose load balancer has it with ipMode Proxy: what arrives is addressed to a node or a pod, and kube-proxy leaves the \
     address alone"
        .to_owned()
}

/// It is addressed to a Service whose rules are not where this packet passes.
fn unseen(packet: &Packet, kind: &str, service_port: &ServicePort) -> String {
    if packet.origin == Origin::Node {
        return format!(
            "{} has no endpoint for this, but kube-proxy refuses packets to a {kind} in INPUT and FORWARD only: what \
             the node itself sends leaves the node",
            service_port.name
        );
    }
    format!(
        "{} has no endpoint for this, but its {kind} {} is an address of the node, where kube-proxy refuses nothing",
        service_port.name,
        packet.destination.ip()
    )
}

fn same_service(a: &ServicePort, b: &ServicePort) -> bool {
    a.name.namespace == b.name.namespace && a.name.service == b.name.service
}

/// The svcports that have `address`, and what it is to them.
fn claimants<'e>(
    explainer: &'e Explainer<'_>,
    address: IpAddr,
) -> Vec<(&'static str, &'e ServicePort)> {
    let kind = |service_port: &ServicePort| {
        if service_port.cluster_ip == address {
            Some("cluster IP")
        } else if service_port.external_ips.contains(&address) {
            Some("external IP")
        } else if service_port.load_balancer_vips.contains(&address) {
            Some("load balancer IP")
        } else {
            None
        }
    };
    let service_ports = explainer.service_ports.iter();
    service_ports
        .filter_map(|service_port| Some((kind(service_port)?, service_port)))
        .collect()
}

fn node_port<'e>(explainer: &'e Explainer<'_>, packet: &Packet) -> Option<&'e ServicePort> {
    explainer.service_ports.iter().find(|service_port| {
        service_port.family == Family::of(packet.destination.ip())
            && service_port.node_port == Some(packet.destination.port())
            && service_port.name.protocol == packet.protocol
    })
}

fn owner<'e>(explainer: &'e Explainer<'_>, address: IpAddr) -> Option<&'e str> {
    let mut nodes = explainer.snapshot.nodes.iter();
    let node = nodes.find(|node| node.host_ips().any(|own| own == address))?;
    Some(&node.metadata.name)
}

fn join(items: &[impl ToString]) -> String {
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
