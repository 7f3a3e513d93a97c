//! kube-proxy's clean-up of UDP flows that lost their place: the `conntrack -D` that it runs when objects changed.
//!
//! Source: `pkg/proxy/conntrack/cleanup.go`, `pkg/proxy/endpointschangetracker.go`. Its deletions reach further than the
//! port that changed: by address alone they take the flows of the Service's other ports, and of other endpoints with the
//! address of one that is gone, by the number of a nodePort
//! alone those to that number anywhere, of both families when the Service's is IPv4. These bystanders are told apart
//! (docs/behaviours/differences.md).

use super::side::Entry;
use super::wire::UDP;
use control::model::{Endpoint, Family, ServicePort, Transport};
use std::net::{IpAddr, SocketAddr};

/// One deletion.
pub(super) struct Deletion {
    /// The Service's address, or none for its nodePort.
    address: Option<IpAddr>,
    /// The Service's port there.
    port: u16,
    /// The endpoint that is gone and its port, if only flows to it go.
    endpoint: Option<SocketAddr>,
    /// All endpoints that flows through the port may have: another Service may have the same address and port.
    endpoints: Vec<IpAddr>,
    family: Family,
}

impl Deletion {
    /// What follows `conntrack -D`. An endpoint is named by the reply's source: `--dst-nat` of conntrack 1.4.7 takes
    /// every flow of IPv6 that is translated, whatever the address.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["-p".to_owned(), "udp".to_owned()];
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        if self.family == Family::V6 {
            add("-f", "ipv6".to_owned());
        }
        match self.address {
            Some(address) => add("--orig-dst", address.to_string()),
            None => add("--dport", self.port.to_string()),
        }
        if let Some(endpoint) = self.endpoint {
            add("--reply-src", endpoint.ip().to_string());
        }
        arguments
    }

    /// Whether the flow of `entry` is through the port that changed, on a node with the addresses `own`.
    pub(super) fn is_about(&self, entry: &Entry, own: &[IpAddr]) -> bool {
        let destination = entry.original.destination;
        let is_addressed = match self.address {
            Some(address) => destination == address,
            None => destination.is_loopback() || own.contains(&destination),
        };
        let from = entry.reply.source;
        let is_to = |endpoint| SocketAddr::new(from, entry.reply.source_port) == endpoint;
        let is_of_service = from == destination || self.endpoints.contains(&from);
        entry.protocol == UDP
            && is_addressed
            && entry.original.destination_port == self.port
            && Family::of(destination) == self.family
            && is_of_service
            && self.endpoint.is_none_or(is_to)
    }
}

/// What kube-proxy deletes when its Services change from `old` to `new`.
pub(super) fn deletions(old: &[ServicePort], new: &[ServicePort]) -> Vec<Deletion> {
    let mut deletions = Vec::new();
    for before in old
        .iter()
        .filter(|port| port.name.protocol == Transport::Udp)
    {
        let after = new
            .iter()
            .find(|after| after.name == before.name && after.family == before.family);
        match after {
            Some(after) => deletions.extend(of_a_change(before, after)),
            None => deletions.push(Deletion {
                address: Some(before.cluster_ip),
                port: before.port,
                endpoint: None,
                endpoints: addresses(before).collect(),
                family: before.family,
            }),
        }
    }
    deletions
}

/// All flows when the Service got its first serving endpoint; those to endpoints that are gone.
fn of_a_change(before: &ServicePort, after: &ServicePort) -> Vec<Deletion> {
    let is_serving = |port: &ServicePort| port.endpoints.iter().any(|endpoint| endpoint.serving);
    let is = |endpoint: &Endpoint, other: &Endpoint| {
        (endpoint.address, endpoint.port) == (other.address, other.port)
    };
    let mut deletions = Vec::new();
    if !is_serving(before) && is_serving(after) {
        deletions.extend(everywhere(before, after, None));
    }
    for endpoint in before.endpoints.iter().filter(|endpoint| endpoint.serving) {
        if !after.endpoints.iter().any(|other| is(endpoint, other)) {
            deletions.extend(everywhere(
                before,
                after,
                Some(SocketAddr::new(endpoint.address, endpoint.port)),
            ));
        }
    }
    deletions
}

/// At each address of the Service, and at its nodePort.
fn everywhere(
    before: &ServicePort,
    after: &ServicePort,
    endpoint: Option<SocketAddr>,
) -> Vec<Deletion> {
    let deletion = |address, port| Deletion {
        address,
        port,
        endpoint,
        endpoints: addresses(before).chain(addresses(after)).collect(),
        family: after.family,
    };
    let others = after.external_ips.iter().chain(&after.load_balancer_vips);
    let addresses = std::iter::once(&after.cluster_ip).chain(others);
    let mut deletions: Vec<Deletion> = addresses
        .map(|address| deletion(Some(*address), after.port))
        .collect();
    deletions.extend(after.node_port.map(|port| deletion(None, port)));
    deletions
}

fn addresses(service: &ServicePort) -> impl Iterator<Item = IpAddr> {
    service.endpoints.iter().map(|endpoint| endpoint.address)
}
