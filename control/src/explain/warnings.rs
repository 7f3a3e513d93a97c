//! What usually goes wrong with a Service, said before it does.

use super::Explainer;
use crate::compile::node_ip;
use crate::endpoints::EndpointSets;
use crate::model::{Family, ServicePort, TrafficPolicy};
use crate::resolve;
use crate::snapshot::objects::{ClusterIp, ServiceType};
use crate::snapshot::{EndpointSlice, Service};
use std::collections::BTreeSet;

/// Everything that a user of `service` should know. `nodes` are all nodes' views of one snapshot.
pub fn of(service: &Service, nodes: &[Explainer<'_>]) -> Vec<String> {
    let Some(first) = nodes.first() else {
        return Vec::new();
    };
    if let Some(reason) = ignored(service) {
        return vec![reason];
    }
    let slices: Vec<&EndpointSlice> = first
        .snapshot
        .endpoint_slices
        .iter()
        .filter(|slice| {
            slice.metadata.namespace == service.metadata.namespace
                && slice.service_name() == Some(service.metadata.name.as_str())
        })
        .collect();
    let mut warnings = Vec::new();
    warnings.extend(no_endpoints(service, &slices));
    warnings.extend(unmatched_ports(service, &slices));
    warnings.extend(not_ready(first, service));
    warnings.extend(nodes_without_endpoints(service, nodes));
    warnings.extend(locked_out_nodes(service, nodes));
    warnings.extend(unfiltered_family(first, service));
    warnings.extend(claimed_twice(first, service));
    warnings
}

fn ignored(service: &Service) -> Option<String> {
    let served = [Family::V4, Family::V6]
        .iter()
        .any(|family| resolve::served_address(service, *family).is_some());
    if served {
        return None;
    }
    let reason = match (service.spec.kind, service.spec.cluster_ip) {
        (ServiceType::ExternalName, _) => "its type is ExternalName, an alias in DNS",
        (_, ClusterIp::Headless) => "it is headless: clients find its pods by DNS",
        (_, ClusterIp::Unset) => "it has no clusterIP",
        (_, ClusterIp::Address(_)) => match resolve::ignoring_label(service) {
            Some(label) => return Some(format!("kube-proxy ignores it: it has the label {label}")),
            None => "its families have no address",
        },
    };
    Some(format!("kube-proxy ignores it: {reason}"))
}

fn no_endpoints(service: &Service, slices: &[&EndpointSlice]) -> Option<String> {
    if slices.iter().any(|slice| !slice.endpoints.is_empty()) {
        return None;
    }
    let selector: Vec<String> = service
        .spec
        .selector
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    Some(match (selector.is_empty(), slices.is_empty()) {
        (false, _) => format!("its selector {} matched no pod", selector.join(",")),
        (true, true) => {
            "it has no selector, and nobody has written an EndpointSlice for it".to_owned()
        }
        (true, false) => "it has no selector, and its EndpointSlices have no endpoints".to_owned(),
    })
}

/// kube-proxy ties ports together by name: a Service port that no slice names leads nowhere.
fn unmatched_ports(service: &Service, slices: &[&EndpointSlice]) -> Vec<String> {
    let named: BTreeSet<_> = slices
        .iter()
        .flat_map(|slice| {
            slice
                .ports
                .iter()
                .map(|port| (port.name.as_str(), port.protocol))
        })
        .collect();
    if slices.iter().all(|slice| slice.endpoints.is_empty()) {
        return Vec::new();
    }
    let unmatched = service
        .spec
        .ports
        .iter()
        .filter(|port| !named.contains(&(port.name.as_str(), port.protocol)));
    unmatched
        .map(|port| {
            let target = match &port.target_port {
                Some(crate::snapshot::objects::TargetPort::Name(name)) => {
                    format!(" (no pod has a port called {name})")
                }
                _ => String::new(),
            };
            format!(
                "no EndpointSlice has its port `{}` ({}/{:?}){target}: connections to it are refused",
                port.name, port.port, port.protocol
            )
        })
        .collect()
}

fn not_ready(explainer: &Explainer<'_>, service: &Service) -> Vec<String> {
    let mut warnings = Vec::new();
    for service_port in service_ports(explainer, service) {
        let all = service_port.endpoints.len();
        let ready = service_port
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.ready)
            .count();
        let draining = service_port
            .endpoints
            .iter()
            .any(|endpoint| endpoint.is_draining());
        if all == ready {
            continue;
        }
        let use_of = match (ready, draining) {
            (0, true) => "; those that are terminating but still serving are used",
            (0, false) => "; every connection is refused",
            _ => "",
        };
        let missing = all - ready;
        warnings.push(format!(
            "{missing} of {all} endpoints of {} are not ready{use_of}",
            label(service_port)
        ));
    }
    warnings
}

fn nodes_without_endpoints(service: &Service, nodes: &[Explainer<'_>]) -> Vec<String> {
    let mut warnings = Vec::new();
    let count = nodes
        .first()
        .map_or(0, |first| service_ports(first, service).count());
    for index in 0..count {
        for (name, policy, has, what) in POLICIES {
            let lacking: Vec<&str> = nodes
                .iter()
                .filter(|node| {
                    service_ports(node, service)
                        .nth(index)
                        .is_some_and(|service_port| {
                            let sets = EndpointSets::of(service_port, node.zone);
                            policy(service_port) == TrafficPolicy::Local && sets.has && !has(&sets)
                        })
                })
                .map(|node| node.node_name)
                .collect();
            let port = nodes
                .first()
                .and_then(|first| service_ports(first, service).nth(index));
            if let (false, Some(port)) = (lacking.is_empty(), port) {
                warnings.push(format!(
                    "{name} is Local and there is no ready endpoint of {} on {}: {what} there is dropped",
                    label(port),
                    lacking.join(", ")
                ));
            }
        }
    }
    warnings
}

type PolicyOf = (
    &'static str,
    fn(&ServicePort) -> TrafficPolicy,
    fn(&EndpointSets<'_>) -> bool,
    &'static str,
);

const POLICIES: [PolicyOf; 2] = [
    (
        "internalTrafficPolicy",
        |service_port| service_port.internal_traffic_policy,
        |sets| sets.has_internal,
        "traffic to the cluster IP",
    ),
    (
        "externalTrafficPolicy",
        |service_port| {
            if service_port.is_externally_accessible() {
                service_port.external_traffic_policy
            } else {
                TrafficPolicy::Cluster
            }
        },
        |sets| sets.has_external,
        "what comes from outside",
    ),
];

fn locked_out_nodes(service: &Service, nodes: &[Explainer<'_>]) -> Vec<String> {
    let mut warnings = Vec::new();
    for family in [Family::V4, Family::V6] {
        let ranges: Vec<_> = service
            .spec
            .load_balancer_source_ranges
            .iter()
            .filter(|range| Family::of(range.addr()) == family)
            .collect();
        let locked_out: Vec<String> = nodes
            .iter()
            .filter_map(|explainer| {
                let node = explainer.snapshot.node(explainer.node_name)?;
                let address = node_ip(explainer.config, node, family)?;
                let inside = ranges.iter().any(|range| range.contains(&address));
                (!inside).then(|| format!("{} ({address})", explainer.node_name))
            })
            .collect();
        let has_vip = nodes
            .first()
            .is_some_and(|first| has_vip(first, service, family));
        if has_vip && !ranges.is_empty() && !locked_out.is_empty() {
            warnings.push(format!(
                "loadBalancerSourceRanges do not include the nodes {}: they cannot reach the load balancer IP",
                locked_out.join(", ")
            ));
        }
    }
    warnings
}

fn unfiltered_family(explainer: &Explainer<'_>, service: &Service) -> Vec<String> {
    let ranges = &service.spec.load_balancer_source_ranges;
    if ranges.is_empty() {
        return Vec::new();
    }
    let open = |family: &Family| {
        has_vip(explainer, service, *family)
            && !ranges
                .iter()
                .any(|range| Family::of(range.addr()) == *family)
    };
    [Family::V4, Family::V6]
        .into_iter()
        .filter(open)
        .map(|family| {
            let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
            format!("loadBalancerSourceRanges has no {name} range: over {name} everyone is let in")
        })
        .collect()
}

fn has_vip(explainer: &Explainer<'_>, service: &Service, family: Family) -> bool {
    service_ports(explainer, service)
        .any(|port| port.family == family && !port.load_balancer_vips.is_empty())
}

fn claimed_twice(explainer: &Explainer<'_>, service: &Service) -> BTreeSet<String> {
    let mut warnings = BTreeSet::new();
    for mine in service_ports(explainer, service) {
        for other in &explainer.service_ports {
            let same_service = other.name.namespace == mine.name.namespace
                && other.name.service == mine.name.service;
            if same_service || other.name.protocol != mine.name.protocol {
                continue;
            }
            if other.port == mine.port {
                for address in addresses(mine)
                    .filter(|address| addresses(other).any(|theirs| theirs == *address))
                {
                    warnings.insert(format!(
                        "{address} port {} is claimed by {} too: which of the two answers is not defined",
                        mine.port, other.name
                    ));
                }
            }
            if mine.family == other.family
                && mine.node_port.is_some()
                && mine.node_port == other.node_port
            {
                warnings.insert(format!(
                    "nodePort {} is claimed by {} too: which of the two answers is not defined",
                    mine.node_port.unwrap_or_default(),
                    other.name
                ));
            }
        }
    }
    warnings
}

fn addresses(service_port: &ServicePort) -> impl Iterator<Item = std::net::IpAddr> + '_ {
    let external = service_port
        .external_ips
        .iter()
        .chain(&service_port.load_balancer_vips);
    external.copied().chain([service_port.cluster_ip])
}

/// The svcports of a Service as a node sees them, in the same order on every node.
pub(super) fn service_ports<'e>(
    explainer: &'e Explainer<'_>,
    service: &'e Service,
) -> impl Iterator<Item = &'e ServicePort> {
    explainer.service_ports.iter().filter(|service_port| {
        service_port.name.namespace == service.metadata.namespace
            && service_port.name.service == service.metadata.name
    })
}

fn label(service_port: &ServicePort) -> String {
    let family = if service_port.family == Family::V4 {
        "IPv4"
    } else {
        "IPv6"
    };
    format!("{} ({family})", service_port.name)
}
