//! nftables mode: what `nft list ruleset` shows after kube-proxy has synced.
//!
//! Read first: [`base`] (the chains that are always there), then [`service`] (what one svcport adds).
//!
//! kube-proxy creates the chains of Services in random order; here they stand in the order of the Services'
//! names.

mod base;
mod service;
mod sources;
mod table;

use super::{NodePortAddresses, Proxier, RenderError};
use crate::model::Family;
use service::ServiceWriter;
use std::net::IpAddr;
use table::{Block, VerdictMap, address_set};

/// The table `kube-proxy` of one family; `nft -f` loads the text as it is.
///
/// # Errors
///
/// [`RenderError`] where kube-proxy 1.30 programs nothing.
pub(super) fn table(proxier: &Proxier) -> Result<String, RenderError> {
    let mut ruleset = Ruleset::new(proxier.family);
    for port in &proxier.services {
        let writer = ServiceWriter {
            proxier,
            port,
            sets: &proxier.endpoint_sets(port),
            ruleset: &mut ruleset,
        };
        writer.write()?;
    }
    Ok(table::table(proxier.family, &ruleset.blocks(proxier)))
}

/// What the Services fill.
struct Ruleset {
    cluster_ips: Vec<IpAddr>,
    no_endpoint_services: VerdictMap,
    no_endpoint_nodeports: VerdictMap,
    firewall_ips: VerdictMap,
    service_ips: VerdictMap,
    service_nodeports: VerdictMap,
    affinity_sets: Vec<Block>,
    chains: Vec<Block>,
}

impl Ruleset {
    fn new(family: Family) -> Self {
        Self {
            cluster_ips: Vec::new(),
            no_endpoint_services: VerdictMap::by_address(
                "no-endpoint-services",
                "vmap to drop or reject packets to services with no endpoints",
                family,
            ),
            no_endpoint_nodeports: VerdictMap::by_port(
                "no-endpoint-nodeports",
                "vmap to drop or reject packets to service nodeports with no endpoints",
            ),
            firewall_ips: VerdictMap::by_address(
                "firewall-ips",
                "destinations that are subject to LoadBalancerSourceRanges",
                family,
            ),
            service_ips: VerdictMap::by_address(
                "service-ips",
                "ClusterIP, ExternalIP and LoadBalancer IP traffic",
                family,
            ),
            service_nodeports: VerdictMap::by_port("service-nodeports", "NodePort traffic"),
            affinity_sets: Vec::new(),
            chains: Vec::new(),
        }
    }

    /// The map that sends traffic to Services; without an address the one of NodePorts.
    const fn service_map(&mut self, address: Option<IpAddr>) -> &mut VerdictMap {
        match address {
            Some(_) => &mut self.service_ips,
            None => &mut self.service_nodeports,
        }
    }

    /// The map of what has no endpoints; without an address the one of NodePorts.
    const fn no_endpoint_map(&mut self, address: Option<IpAddr>) -> &mut VerdictMap {
        match address {
            Some(_) => &mut self.no_endpoint_services,
            None => &mut self.no_endpoint_nodeports,
        }
    }

    /// Everything in the order in which nft lists it.
    fn blocks(self, proxier: &Proxier) -> Vec<Block> {
        let cluster_ips = "Active ClusterIPs";
        let mut blocks = vec![address_set(
            "cluster-ips",
            cluster_ips,
            proxier.family,
            self.cluster_ips,
        )];
        blocks.extend(node_port_ips(proxier));
        blocks.extend([
            self.no_endpoint_services.block(),
            self.no_endpoint_nodeports.block(),
            self.firewall_ips.block(),
            self.service_ips.block(),
            self.service_nodeports.block(),
        ]);
        blocks.extend(self.affinity_sets);
        blocks.extend(base::chains(proxier));
        blocks.extend(self.chains);
        blocks
    }
}

/// The set `nodeport-ips`, which is not there when NodePorts are served on every address.
fn node_port_ips(proxier: &Proxier) -> Option<Block> {
    let addresses = match &proxier.node_port_addresses {
        NodePortAddresses::All => return None,
        NodePortAddresses::Only(addresses) => addresses.as_slice(),
        NodePortAddresses::Unset => std::slice::from_ref(&proxier.node_ip),
    };
    let addresses = addresses.iter().copied().filter(|ip| !ip.is_loopback());
    let comment = "IPs that accept NodePort traffic";
    Some(address_set(
        "nodeport-ips",
        comment,
        proxier.family,
        addresses,
    ))
}
