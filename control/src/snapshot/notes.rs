//! What is odd but has a meaning to kube-proxy: let through, with a note.

use super::Snapshot;
use super::fields::parse_ip;
use super::objects::{AddressType, ClusterIp, EndpointSlice, Node, Service, ServiceType};
use crate::model::Family;
use crate::parallel::on_all_processors;
use crate::problem::Problem;
use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

/// Objects that a processor looks at before it asks for more.
const TURN: usize = 512;

/// Every oddity of the snapshot.
pub(super) fn all(snapshot: &Snapshot) -> Vec<Problem> {
    let services = on_all_processors(&snapshot.services, TURN, service);
    let slices = on_all_processors(&snapshot.endpoint_slices, TURN, slice);
    let nodes = snapshot.nodes.iter().map(no_addresses);
    let single = services.into_iter().chain(slices).chain(nodes).flatten();
    let shared = shared(&snapshot.nodes);
    single
        .chain(shared)
        .chain(unknown_nodes(snapshot))
        .collect()
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

/// Addresses that are none, which kube-proxy skips.
fn no_addresses(node: &Node) -> Vec<Problem> {
    let mut notes = Vec::new();
    for (index, address) in node.status.addresses.iter().enumerate() {
        let is_ip = matches!(address.kind.as_str(), "InternalIP" | "ExternalIP");
        if is_ip && parse_ip(&address.address).is_none() {
            let message = format!(
                "`{}` is not an IP address, so kube-proxy skips it",
                address.address
            );
            let field = format!("status.addresses[{index}].address");
            notes.push(of_node(node, &field, message));
        }
    }
    notes
}

/// Addresses and ranges that two nodes have. Nodes that are gone leave such objects behind, and kube-proxy reads none but
/// its own; a lab has a place for each, and refuses them.
fn shared(nodes: &[Node]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut owners: HashMap<IpAddr, &Node> = HashMap::new();
    for node in nodes {
        for address in node.host_ips() {
            if let Some(owner) = owners.insert(address, node)
                && owner.metadata.name != node.metadata.name
            {
                let message = format!(
                    "{address} is an address of Node {} too ({}); in a lab each node needs its own",
                    owner.metadata.name, owner.metadata.location
                );
                problems.push(of_node(node, "status.addresses", message));
            }
        }
    }
    problems.extend(overlaps(nodes));
    problems
}

/// Nodes one of whose ranges overlaps one of a node before them, with one of these each.
fn overlaps(nodes: &[Node]) -> impl Iterator<Item = Problem> {
    let of_one = |(index, node): (usize, &Node)| {
        let ranges: Vec<IpNet> = node.pod_cidrs().collect();
        ranges.into_iter().map(move |range| (range, index))
    };
    let mut ranges: Vec<(IpNet, usize)> = nodes.iter().enumerate().flat_map(of_one).collect();
    // Around others before these: two ranges are apart, or one is within the other.
    ranges.sort_by_key(|(range, index)| (range.network(), range.prefix_len(), *index));
    let mut around: Vec<(IpNet, usize)> = Vec::new();
    let mut found = BTreeMap::new();
    for (range, index) in ranges {
        while around
            .pop_if(|(outer, _)| !outer.contains(&range))
            .is_some()
        {}
        // What is around one of its own was found with that.
        if let Some(&(outer, other)) = around.last().filter(|(_, other)| *other != index) {
            let (later, earlier) = if other < index {
                ((range, index), (outer, other))
            } else {
                ((outer, other), (range, index))
            };
            found.entry(later.1).or_insert((later.0, earlier));
        }
        around.push((range, index));
    }
    found.into_iter().map(|(index, (range, (theirs, other)))| {
        let (node, other) = (&nodes[index], &nodes[other].metadata);
        let message = format!(
            "{range} overlaps {theirs} of Node {} ({}); in a lab each node needs its own range",
            other.name, other.location
        );
        of_node(node, "spec.podCIDRs", message)
    })
}

fn of_node(node: &Node, field: &str, message: String) -> Problem {
    Problem {
        location: node.metadata.location.clone(),
        object: Some(node.metadata.object_name("Node")),
        field: field.to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each node with its ranges, and the nodes that are told of.
    #[test]
    fn a_range_within_another_nodes_is_found_whatever_stands_between() {
        for (ranges, told) in [
            (
                &["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "11.0.0.0/8"][..],
                &["b", "c"][..],
            ),
            (&["10.1.2.0/24", "10.0.0.0/8"], &["b"]),
            (&["10.0.0.0/8, 10.1.0.0/16", "10.1.2.0/24"], &["b"]),
            (&["10.0.0.0/8, 10.0.0.0/8, 10.1.0.0/16"], &[]),
            (
                &["10.0.0.0/24", "10.0.1.0/24", "fd00::/64", "fd00:0:0:1::/64"],
                &[],
            ),
            (&["10.0.0.0/24"; 4], &["b", "c", "d"]),
            (
                &["10.0.0.0/24, fd00::/64", "10.0.1.0/24, fd00::1:0/112"],
                &["b"],
            ),
        ] {
            let node = |(name, ranges): (char, &&str)| {
                format!(
                    "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDRs: [{ranges}]}}\n"
                )
            };
            let documents: Vec<String> = ('a'..).zip(ranges).map(node).collect();
            let text = documents.join("---\n");
            let problems = shared(&Snapshot::parse("x", &text).unwrap().nodes);
            let named = problems
                .iter()
                .filter_map(|problem| Some(&*problem.object.as_ref()?.name));
            assert_eq!(named.collect::<Vec<&str>>(), told, "{ranges:?}");
        }
    }
}
