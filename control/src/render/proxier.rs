//! [`Proxier`]: what one family's kube-proxy on one node acts on when it writes its rules.
//!
//! Source: `cmd/kube-proxy/app/server_linux.go` and `pkg/proxy/util/nodeport_addresses.go` of Kubernetes 1.30.

use crate::compile::{CompileError, find_node, node_ip, node_port_ranges, pod_cidr};
use crate::config::{DetectLocal, KubeProxyConfig};
use crate::endpoints::EndpointSets;
use crate::model::{Family, ServicePort};
use crate::node_network::{NodeNetwork, Scope};
use crate::resolve;
use crate::snapshot::{Node, Snapshot};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Both proxiers of a node: kube-proxy always runs one per family.
#[derive(Clone, Debug)]
pub struct Proxiers {
    /// IPv4.
    pub v4: Proxier,
    /// IPv6.
    pub v6: Proxier,
    /// Whether the node has an IPv6 address; if not, nobody looks at its ip6tables.
    pub has_ipv6: bool,
}

/// What one family's proxier on one node acts on when it writes its rules.
#[derive(Clone, Debug)]
pub struct Proxier {
    /// The family.
    pub family: Family,
    /// The svcports, sorted by name.
    pub services: Vec<ServicePort>,
    /// Label `topology.kubernetes.io/zone` of the node.
    pub zone: Option<String>,
    /// The node's primary address; of a family that the node has not, the loopback address.
    pub node_ip: IpAddr,
    /// What tells pods' traffic.
    pub detector: Detector,
    /// `iptables.masqueradeAll`.
    pub masquerade_all: bool,
    /// The one bit that marks traffic for masquerade, from `masqueradeBit`.
    pub masquerade_mark: u32,
    /// Where NodePorts are served.
    pub node_port_addresses: NodePortAddresses,
    /// Whether NodePorts are served on 127.0.0.1; never in IPv6.
    pub localhost_node_ports: bool,
    /// Whether packets that conntrack finds invalid are dropped; off with `nf_conntrack_tcp_be_liberal`.
    pub drop_invalid: bool,
}

/// `detectLocalMode`, resolved for one family and node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detector {
    /// Nothing is taken for a pod.
    None,
    /// By source address (ClusterCIDR, NodeCIDR).
    Source(IpNet),
    /// By the bridge that it comes in by.
    Bridge(String),
    /// By the beginning of the name of the interface that it comes in by.
    InterfacePrefix(String),
}

/// `nodePortAddresses`, resolved for one family and node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Not configured for this family: all addresses in iptables mode, the primary one in nftables mode.
    Unset,
    /// All addresses.
    All,
    /// The node's addresses within the configured ranges.
    Only(Vec<IpAddr>),
}

impl Proxiers {
    /// What `node_name`, whose addresses are `network`, acts on.
    ///
    /// # Errors
    ///
    /// The node is not in the snapshot, or has no pod CIDR where the detector needs one.
    pub fn new(
        snapshot: &Snapshot,
        config: &KubeProxyConfig,
        network: &NodeNetwork,
        node_name: &str,
    ) -> Result<Self, CompileError> {
        let node = find_node(snapshot, node_name)?;
        let proxier = |family| {
            Ok(Proxier {
                services: resolve::service_ports(snapshot, config, node_name, family),
                ..Proxier::without_services(config, network, node, family)?
            })
        };
        let has_ipv6 = network
            .addresses
            .iter()
            .any(|own| Family::of(own.network.addr()) == Family::V6 && own.scope == Scope::Global);
        Ok(Self {
            v4: proxier(Family::V4)?,
            v6: proxier(Family::V6)?,
            has_ipv6,
        })
    }

    /// The proxier of a family.
    pub const fn of(&self, family: Family) -> &Proxier {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl Proxier {
    fn without_services(
        config: &KubeProxyConfig,
        network: &NodeNetwork,
        node: &Node,
        family: Family,
    ) -> Result<Self, CompileError> {
        let ranges = node_port_ranges(config, node, family);
        Ok(Self {
            family,
            services: Vec::new(),
            zone: node.zone().map(str::to_owned),
            node_ip: node_ip(config, node, family).unwrap_or_else(|| loopback(family)),
            detector: detector(config, node, family)?,
            masquerade_all: config.masquerade_all,
            // The configuration admits bits 0 to 31.
            masquerade_mark: 1u32.wrapping_shl(config.masquerade_bit.into()),
            node_port_addresses: node_port_addresses(config, network, &ranges, family),
            localhost_node_ports: family == Family::V4
                && config.localhost_node_ports
                && (ranges.is_empty() || ranges.iter().any(contains_loopback)),
            // kube-proxy writes the setting (`setupConntrack`), then looks at it (`iptables.NewProxier`).
            drop_invalid: !config.conntrack.tcp_be_liberal,
        })
    }

    pub(super) fn endpoint_sets<'a>(&self, port: &'a ServicePort) -> EndpointSets<'a> {
        EndpointSets::of(port, self.zone.as_deref())
    }

    /// `loadBalancerSourceRanges`, and the VIPs themselves if the node may use them: traffic from a node to a VIP
    /// that is also an address of the node comes back with that VIP as source.
    pub(super) fn admitted_sources(&self, port: &ServicePort) -> Vec<IpNet> {
        let mut sources = port.source_ranges.clone();
        if sources.iter().any(|range| range.contains(&self.node_ip)) {
            sources.extend(port.load_balancer_vips.iter().copied().map(IpNet::from));
        }
        sources
    }
}

/// Whether there is something to filter and somebody to admit.
pub(super) fn filters_sources(port: &ServicePort) -> bool {
    !port.load_balancer_vips.is_empty() && !port.source_ranges.is_empty()
}

/// Source: `getLocalDetector`.
fn detector(
    config: &KubeProxyConfig,
    node: &Node,
    family: Family,
) -> Result<Detector, CompileError> {
    let by_source = |range: Option<IpNet>| {
        range.map_or(Detector::None, |range| Detector::Source(range.trunc()))
    };
    Ok(match &config.detect_local {
        DetectLocal::ClusterCidr(_) => by_source(config.cluster_cidr(family)),
        DetectLocal::NodeCidr => by_source(pod_cidr(config, node, family)?),
        DetectLocal::BridgeInterface(name) => Detector::Bridge(name.clone()),
        DetectLocal::InterfaceNamePrefix(prefix) => Detector::InterfacePrefix(prefix.clone()),
    })
}

fn node_port_addresses(
    config: &KubeProxyConfig,
    network: &NodeNetwork,
    ranges: &[IpNet],
    family: Family,
) -> NodePortAddresses {
    if ranges.is_empty() {
        return NodePortAddresses::Unset;
    }
    if ranges.iter().any(|range| range.prefix_len() == 0) {
        return NodePortAddresses::All;
    }
    let own = network.addresses.iter().map(|own| own.network.addr());
    let localhost = (family == Family::V4 && config.localhost_node_ports)
        .then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut addresses: Vec<IpAddr> = own
        .filter(|address| !address.is_loopback())
        .chain(localhost)
        .filter(|address| ranges.iter().any(|range| range.contains(address)))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    NodePortAddresses::Only(addresses)
}

/// Source: `NewNodePortAddresses`, `containsIPv4Loopback`.
fn contains_loopback(range: &IpNet) -> bool {
    range.addr().is_loopback() || range.contains(&IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)))
}

/// The loopback address of a family: what kube-proxy takes for the node's address when the node has none.
fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}
