//! The subnet that the nodes share, and the client's addresses.

use super::{Placement, Placing};
use control::model::Family;
use control::snapshot::Snapshot;
use control::snapshot::objects::ClusterIp;
use ipnet::IpNet;
use std::net::IpAddr;

/// Addresses of the client, the first that no address of the cluster is near. All are for documentation or
/// benchmarks (RFC 5737, 3849, 2544, 9637).
const CLIENTS: [&str; 7] = [
    "198.51.100.10/24",
    "203.0.113.10/24",
    "192.0.2.10/24",
    "198.18.0.10/24",
    "2001:db8:ffff::10/64",
    "2001:db8:fffe::10/64",
    "3fff:fff::10/64",
];

/// Prefix lengths of the nodes' subnet, the smallest subnet first.
const LENGTHS_V4: [u8; 3] = [24, 20, 16];
const LENGTHS_V6: [u8; 2] = [64, 48];

/// The subnets of nodes and client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fabric {
    /// The nodes' subnets, one of each family at most; a family without one is routed host by host.
    pub subnets: Vec<IpNet>,
    /// The client's addresses, one of each family that nodes have.
    pub client: Vec<IpNet>,
}

impl Fabric {
    /// Chooses them so that they overlap nothing of the cluster.
    pub fn new(snapshot: &Snapshot, placement: &Placement) -> Self {
        let families = [Family::V4, Family::V6];
        let subnets: Vec<_> = families
            .iter()
            .filter_map(|family| subnet(placement, *family))
            .collect();
        let used = used(snapshot, placement);
        let near = |client: &IpNet| {
            let inside = used.iter().any(|address| client.contains(address));
            inside
                || subnets
                    .iter()
                    .chain(&placement.ranges())
                    .any(|range| overlap(range, client))
        };
        let clients = || CLIENTS.iter().filter_map(|text| text.parse::<IpNet>().ok());
        let client = families
            .iter()
            .filter(|family| placement.node_addresses(**family).next().is_some())
            .filter_map(|family| {
                let mut own = clients().filter(|client| Family::of(client.addr()) == *family);
                own.clone()
                    .find(|client| !near(client))
                    .or_else(|| own.next())
            })
            .collect();
        Self { subnets, client }
    }

    /// An address of a host on the fabric, with the length of its subnet.
    pub fn on_link(&self, address: IpAddr) -> IpNet {
        let subnet = self.subnets.iter().find(|subnet| subnet.contains(&address));
        let length = subnet.map(IpNet::prefix_len);
        let host = IpNet::from(address);
        length
            .and_then(|length| IpNet::new(address, length).ok())
            .unwrap_or(host)
    }
}

/// The smallest subnet that holds all nodes of the family and no range of pods.
fn subnet(placement: &Placement, family: Family) -> Option<IpNet> {
    let addresses: Vec<IpAddr> = placement.node_addresses(family).collect();
    let lengths: &[u8] = match family {
        Family::V4 => &LENGTHS_V4,
        Family::V6 => &LENGTHS_V6,
    };
    let first = *addresses.first()?;
    lengths
        .iter()
        .filter_map(|length| IpNet::new(first, *length).ok())
        .map(|subnet| subnet.trunc())
        .find(|subnet| {
            let holds = addresses.iter().all(|address| subnet.contains(address));
            holds
                && !placement
                    .ranges()
                    .iter()
                    .any(|range| overlap(range, subnet))
        })
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.trunc()) || b.contains(&a.trunc())
}

/// Every address that the cluster uses.
fn used(snapshot: &Snapshot, placement: &Placement) -> Vec<IpAddr> {
    let mut used: Vec<IpAddr> = Vec::new();
    for service in &snapshot.services {
        used.extend(&service.spec.external_ips);
        used.extend(
            service
                .status
                .load_balancer
                .ingress
                .iter()
                .filter_map(|ingress| ingress.ip),
        );
        let cluster = service
            .spec
            .cluster_ips
            .iter()
            .chain([&service.spec.cluster_ip]);
        used.extend(cluster.filter_map(|ip| match ip {
            ClusterIp::Address(address) => Some(*address),
            _ => None,
        }));
    }
    used.extend(
        placement
            .nodes
            .iter()
            .flat_map(|node| node.addresses.iter().copied()),
    );
    for pod in &placement.pods {
        used.extend(&pod.addresses);
        if let Placing::Outside(address) = pod.placing {
            used.push(address);
        }
    }
    used
}
