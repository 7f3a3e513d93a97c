//! What is odd but has a meaning to kube-proxy: let through, with a note.

use super::Snapshot;
use super::objects::{AddressType, ClusterIp, EndpointSlice, Service, ServiceType};
use crate::model::Family;
use crate::parallel::on_all_processors;
use crate::problem::Problem;
use std::collections::{BTreeMap, HashSet};

/// Objects that a processor looks at before it asks for more.
const TURN: usize = 512;

/// Every oddity of the snapshot.
pub(super) fn all(snapshot: &Snapshot) -> Vec<Problem> {
    let services = on_all_processors(&snapshot.services, TURN, service);
    let slices = on_all_processors(&snapshot.endpoint_slices, TURN, slice);
    let single = services.into_iter().chain(slices).flatten();
    single.chain(unknown_nodes(snapshot)).collect()
}

fn service(service: &Service) -> Vec<Problem> {
    let spec = &service.spec;
    let mut notes = Vec::new();
    let mut note = |field: &str, message: &str| {
        notes.push(Problem {
            location: service.metadata.location.clone(),
            object: Some(service.metadata.object_name("Service")),
            field: field.to_owned(),
            message: message.to_owned(),
        });
    };
    if spec.cluster_ip == ClusterIp::Unset && spec.kind != ServiceType::ExternalName {
        note(
            "spec.clusterIP",
            "is not set, so kube-proxy ignores the Service; the API server would have chosen one",
        );
    }
    let has_node_port = spec.ports.iter().any(|port| port.node_port.is_some());
    if spec.kind == ServiceType::ClusterIP && has_node_port {
        note(
            "spec.ports",
            "have a nodePort though the type is ClusterIP; kube-proxy serves it all the same",
        );
    }
    let proxied = service.status.load_balancer.ingress.iter();
    if proxied
        .clone()
        .any(|entry| entry.ip.is_none() && !entry.hostname.is_empty())
    {
        note(
            "status.loadBalancer.ingress",
            "has a host name only, which kube-proxy ignores",
        );
    }
    notes
}

fn slice(slice: &EndpointSlice) -> Vec<Problem> {
    let mut notes = Vec::new();
    let mut note = |field: String, message: String| {
        notes.push(Problem {
            location: slice.metadata.location.clone(),
            object: Some(slice.metadata.object_name("EndpointSlice")),
            field,
            message,
        });
    };
    if slice.service_name().is_none() {
        let message =
            "has no kubernetes.io/service-name, so it belongs to no Service and is ignored";
        note("metadata.labels".to_owned(), message.to_owned());
    }
    if slice.address_type == AddressType::FQDN {
        note(
            "addressType".to_owned(),
            "is FQDN, which kube-proxy ignores".to_owned(),
        );
        return notes;
    }
    let wanted = if slice.address_type == AddressType::IPv4 {
        Family::V4
    } else {
        Family::V6
    };
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        if let Some(address) = endpoint.address()
            && Family::of(address) != wanted
        {
            let message = format!(
                "{address} is not of {:?}, so kube-proxy skips it",
                slice.address_type
            );
            note(format!("endpoints[{index}].addresses[0]"), message);
        }
        if endpoint.addresses.len() > 1 {
            let message = "has several addresses, of which kube-proxy uses the first";
            note(format!("endpoints[{index}].addresses"), message.to_owned());
        }
    }
    notes
}

/// Endpoints on nodes that are not here are remote to every node that is.
fn unknown_nodes(snapshot: &Snapshot) -> Vec<Problem> {
    if snapshot.nodes.is_empty() {
        return Vec::new();
    }
    let mut known = HashSet::with_hasher(ahash::RandomState::new());
    let nodes = snapshot.nodes.iter();
    known.extend(nodes.map(|node| node.metadata.name.as_str()));
    // One note for each node, however many slices name it.
    let mut unknown: BTreeMap<&str, (&EndpointSlice, usize, usize)> = BTreeMap::new();
    let slices = &snapshot.endpoint_slices;
    let found = on_all_processors(slices, TURN, |slice| unknown_in(slice, &known));
    for (slice, names) in slices.iter().zip(found) {
        for (index, name) in names {
            unknown.entry(name).or_insert((slice, index, 0)).2 += 1;
        }
    }
    let note = |(name, (slice, index, endpoints)): (&str, (&EndpointSlice, usize, usize))| {
        let of_others = match endpoints {
            1 => String::new(),
            _ => format!("; {endpoints} endpoints are on it"),
        };
        Problem {
            location: slice.metadata.location.clone(),
            object: Some(slice.metadata.object_name("EndpointSlice")),
            field: format!("endpoints[{index}].nodeName"),
            message: format!("there is no Node {name} here{of_others}"),
        }
    };
    unknown.into_iter().map(note).collect()
}

/// Endpoints on nodes that are not known, and these nodes' names.
fn unknown_in<'s>(
    slice: &'s EndpointSlice,
    known: &HashSet<&str, ahash::RandomState>,
) -> Vec<(usize, &'s str)> {
    let endpoints = slice.endpoints.iter().enumerate();
    endpoints
        .filter_map(|(index, endpoint)| Some((index, endpoint.node_name.as_deref()?)))
        .filter(|(_, name)| !known.contains(name))
        .collect()
}
