//! What of a table depends on the node alone: its addresses, and how its pods are told from others.

use super::CompileError;
use crate::config::{DetectLocal, KubeProxyConfig, NodePortAddresses as ConfiguredAddresses};
use crate::model::Family;
use crate::node_network::NodeNetwork;
use crate::resolve;
use crate::snapshot::Node;
use dataplane::service::{Generation, LocalDetector, NodePortAddresses, Parts, Prefix, Selection};
use dataplane::tuple::Address;
use ipnet::IpNet;
use std::net::IpAddr;

/// A table's parts without any Service.
pub(super) fn parts(
    generation: Generation,
    config: &KubeProxyConfig,
    network: &NodeNetwork,
    node: &Node,
) -> Result<Parts, CompileError> {
    let own = network.addresses.iter();
    Ok(Parts {
        node_addresses: own.map(|own| own.network.addr().into()).collect(),
        node_port_addresses_v4: node_port_addresses(config, network, node, Family::V4),
        node_port_addresses_v6: node_port_addresses(config, network, node, Family::V6),
        local_detector_v4: local_detector(config, node, Family::V4)?,
        local_detector_v6: local_detector(config, node, Family::V6)?,
        ..Parts::empty(generation)
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
        DetectLocal::NodeCidr => Ok(by_source(pod_cidr(config, node, family)?)),
        DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_) => {
            Ok(LocalDetector::Interface)
        }
    }
}

/// The range by which mode NodeCIDR tells pods of a family. kube-proxy waits for a Node that has none, and does not start
/// where it has none of the family of its own address.
///
/// Source: `cmd/kube-proxy/app/server.go`, `checkIPConfig`.
///
/// # Errors
/// That there is none, of any family or of that.
pub fn pod_cidr(
    config: &KubeProxyConfig,
    node: &Node,
    family: Family,
) -> Result<Option<IpNet>, CompileError> {
    let of = |family| {
        let mut ranges = node.pod_cidrs();
        ranges.find(|range| Family::of(range.addr()) == family)
    };
    let name = || node.metadata.name.clone();
    if node.pod_cidrs().next().is_none() {
        return Err(CompileError::NoPodCidr(name()));
    }
    let bound = Some(config.bind_address).filter(|bound| !bound.is_unspecified());
    if let Some(own) = bound.or_else(|| node.host_ips().next())
        && of(Family::of(own)).is_none()
    {
        return Err(CompileError::NoPodCidrOfFamily {
            node: name(),
            family: Family::of(own),
        });
    }
    Ok(of(family))
}

/// How endpoints are chosen where a Service does not say.
pub(super) fn default_selection(config: &KubeProxyConfig, node: &Node) -> Selection {
    let annotation = node.metadata.annotations.get(resolve::SELECTION_ANNOTATION);
    annotation
        .and_then(Selection::from_name)
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
    let ranges = node_port_ranges(config, node, family);
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

/// `nodePortAddresses` of a family; none where it has none of it. `primary` is the node's own address, as a range.
///
/// Source: `cmd/kube-proxy/app/server.go`, `newProxyServer`, which does so before there is a proxier.
pub fn node_port_ranges(config: &KubeProxyConfig, node: &Node, family: Family) -> Vec<IpNet> {
    match &config.node_port_addresses {
        ConfiguredAddresses::Default => Vec::new(),
        ConfiguredAddresses::Primary => {
            let primary = node_ip(config, node, family);
            let primary = primary.filter(|address| !address.is_loopback());
            primary.map(IpNet::from).into_iter().collect()
        }
        ConfiguredAddresses::Ranges(ranges) => {
            let of_family = |range: &IpNet| Family::of(range.addr()) == family;
            ranges.iter().copied().filter(of_family).collect()
        }
    }
}

/// The node's address of a family: `bindAddress`, else its first of [`Node::host_ips`].
pub fn node_ip(config: &KubeProxyConfig, node: &Node, family: Family) -> Option<IpAddr> {
    let bound = config.bind_address;
    if !bound.is_unspecified() && Family::of(bound) == family {
        return Some(bound);
    }
    node.host_ips()
        .find(|address| Family::of(*address) == family)
}

pub(super) fn prefix(range: IpNet) -> Prefix {
    Prefix::new(range.addr().into(), range.prefix_len())
}
