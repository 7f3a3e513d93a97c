//! Rules that go beyond the type of a field.
//!
//! An object is refused when nobody could say what it means. What the API server refuses but kube-proxy acts on all
//! the same (a nodePort on a ClusterIP Service, one address claimed twice), or skips (an address of the other
//! family, other Nodes), is let through with a note: objects need not have come from an API server.

use super::fields::{not_an_ip, not_seconds};
use super::objects::{
    AddressType, ClusterIp, EndpointAddress, EndpointPort, EndpointSlice, Labels, Node, Service,
    ServicePort, ServiceSpec, ServiceType, SessionAffinity,
};
use crate::model::Family;
use crate::resolve::SELECTION_ANNOTATION;
use dataplane::service::Selection;

/// Path of a field and what is wrong with it.
pub(super) type Broken = (String, String);

fn broken(field: impl Into<String>, message: impl Into<String>) -> Broken {
    (field.into(), message.into())
}

/// Rules of one Service.
pub(super) fn service(service: &Service) -> Vec<Broken> {
    let spec = &service.spec;
    let mut found = Vec::new();
    found.extend(name(&service.metadata.name));
    found.extend(annotation(&service.metadata.annotations));
    found.extend(ports(spec));
    found.extend(cluster_ips(spec));
    found.extend(affinity(spec));
    found
}

fn name(name: &str) -> Option<Broken> {
    if name.is_empty() {
        return Some(broken("metadata.name", "is missing; every object has one"));
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    (!name.chars().all(allowed)).then(|| {
        let rule = "has characters other than a-z, 0-9, `-` and `.`; no cluster would take it";
        broken("metadata.name", format!("`{name}` {rule}"))
    })
}

/// A port's name, if it has one: a DNS label.
fn port_name(field: impl FnOnce() -> String, name: &str) -> Option<Broken> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (name.len() > 63 || !name.chars().all(allowed)).then(|| {
        let rule = "has other characters than a-z, 0-9 and `-`, or more than 63 of them; no cluster would take it";
        broken(field(), format!("`{}` {rule}", name.escape_debug()))
    })
}

fn annotation(annotations: &Labels) -> Option<Broken> {
    let value = annotations.get(SELECTION_ANNOTATION)?;
    Selection::from_name(value).is_none().then(|| {
        let names = Selection::NAMES.map(|(name, _)| name).join(", ");
        let field = format!("metadata.annotations[{SELECTION_ANNOTATION}]");
        broken(field, format!("`{value}` is none of {names}"))
    })
}

fn ports(spec: &ServiceSpec) -> Vec<Broken> {
    let headless = spec.cluster_ip == ClusterIp::Headless;
    if spec.ports.is_empty() && !headless && spec.kind != ServiceType::ExternalName {
        let message = "is empty; a Service needs at least one port";
        return vec![broken("spec.ports", message)];
    }
    let mut found = Vec::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let protocol = port.protocol;
        // They are few.
        let mut others = spec.ports[..index]
            .iter()
            .filter(|other| other.protocol == protocol);
        found.extend(port_name(|| field("name"), &port.name));
        if others.clone().any(|other| other.name == port.name) {
            found.push(if port.name.is_empty() {
                broken(
                    field("name"),
                    "is missing; a Service with several ports names each of them",
                )
            } else {
                let message = format!(
                    "another port is called `{}` too; names are unique",
                    port.name
                );
                broken(field("name"), message)
            });
        }
        if others.clone().any(|other| other.port == port.port) {
            let message = format!(
                "another port has {}/{protocol:?} too; remove one of them",
                port.port
            );
            found.push(broken(field("port"), message));
        }
        let has_its = |other: &ServicePort| other.node_port == port.node_port;
        if port.node_port.is_some() && others.any(has_its) {
            let message = "another port of this Service has the same nodePort; give each its own";
            found.push(broken(field("nodePort"), message));
        }
    }
    found
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<Broken> {
    let mut found = Vec::new();
    let ips = &spec.cluster_ips;
    if ips.len() > 2 || spec.ip_families.len() > 2 {
        found.push(broken(
            "spec.clusterIPs",
            "takes one address of each family at most",
        ));
    }
    if let (ClusterIp::Address(first), Some(ClusterIp::Address(listed))) =
        (spec.cluster_ip, ips.first())
        && first != *listed
    {
        let message = format!("is {listed}, but spec.clusterIP is {first}; they must be the same");
        found.push(broken("spec.clusterIPs[0]", message));
    }
    if spec.ip_families.len() == 2 && spec.ip_families[0] == spec.ip_families[1] {
        found.push(broken(
            "spec.ipFamilies[1]",
            "names the same family again; give the other one",
        ));
    }
    for (index, (ip, family)) in ips.iter().zip(&spec.ip_families).enumerate() {
        if let ClusterIp::Address(address) = ip
            && Family::of(*address) != (*family).into()
        {
            let message =
                format!("{address} is not of {family:?}, which spec.ipFamilies[{index}] asks for");
            found.push(broken(format!("spec.clusterIPs[{index}]"), message));
        }
    }
    let families: Vec<Family> = ips
        .iter()
        .filter_map(|ip| match ip {
            ClusterIp::Address(address) => Some(Family::of(*address)),
            _ => None,
        })
        .collect();
    if families.len() == 2 && families[0] == families[1] {
        let message =
            "is of the same family as the first; a Service has one address of each at most";
        found.push(broken("spec.clusterIPs[1]", message));
    }
    found
}

fn affinity(spec: &ServiceSpec) -> Option<Broken> {
    let seconds = spec.session_affinity_config.client_ip.timeout_seconds?;
    let allowed = (1..=86_400).contains(&seconds);
    (spec.session_affinity == SessionAffinity::ClientIP && !allowed).then(|| {
        let message = not_seconds(seconds.into());
        broken(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            message,
        )
    })
}

/// Rules of one slice.
pub(super) fn slice(slice: &EndpointSlice) -> Vec<Broken> {
    let mut found = Vec::new();
    found.extend(name(&slice.metadata.name));
    for (index, port) in slice.ports.iter().enumerate() {
        found.extend(port_name(|| format!("ports[{index}].name"), &port.name));
        let is_same =
            |other: &EndpointPort| (&other.name, other.protocol) == (&port.name, port.protocol);
        if slice.ports[..index].iter().any(is_same) {
            let message = format!(
                "another port is called `{}` too; names are unique",
                port.name
            );
            found.push(broken(format!("ports[{index}].name"), message));
        }
    }
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        let field = || format!("endpoints[{index}].addresses");
        let Some(address) = endpoint.addresses.first() else {
            found.push(broken(field(), "is empty; an endpoint needs an address"));
            continue;
        };
        if slice.address_type != AddressType::FQDN {
            let wrong = endpoint_address(address);
            found.extend(wrong.map(|message| broken(field() + "[0]", message)));
        }
    }
    found
}

fn endpoint_address(address: &EndpointAddress) -> Option<String> {
    let address = match address {
        EndpointAddress::Ip(address) => address,
        EndpointAddress::Name(name) => return Some(not_an_ip(name)),
    };
    let reason = if address.is_unspecified() {
        "is the unspecified address"
    } else if address.is_loopback() {
        "is a loopback address"
    } else if address.is_multicast() {
        "is a multicast address"
    } else {
        return None;
    };
    Some(format!(
        "{address} {reason}; no packet could be sent there from elsewhere"
    ))
}

/// Rules of one Node.
pub(super) fn node(node: &Node) -> Vec<Broken> {
    let mut found = Vec::new();
    found.extend(name(&node.metadata.name));
    found.extend(annotation(&node.metadata.annotations));
    if let (Some(single), Some(first)) = (node.spec.pod_cidr, node.spec.pod_cidrs.first())
        && single != *first
    {
        let message = format!("is {first}, but spec.podCIDR is {single}; they must be the same");
        found.push(broken("spec.podCIDRs[0]", message));
    }
    found
}
