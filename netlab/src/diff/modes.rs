//! Where kube-proxy's modes iptables and nftables do not do the same: docs/behaviours/iptables-nftables.md.
//!
//! Known differences of these modes are named, so that what is left is ours, or not known yet.

use super::case::{Case, Flow, Place};
use super::deliberate::{is_refused, kept_without_headers};
use super::side;
use super::wire::Ip;
use super::world::Output;
use anyhow::{Context as _, Result};
use control::model::{Family, ServicePort};
use control::node_network::NodeNetwork;
use control::render::Proxiers;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What the modes' rules depend on, before and after all changes of a case.
pub(super) struct Modes {
    cluster_ips: BTreeSet<IpAddr>,
    external_ips: BTreeSet<IpAddr>,
    node_ports: BTreeSet<u16>,
    /// The node's address that NodePorts are served at.
    primary: Vec<IpAddr>,
    own: BTreeSet<IpAddr>,
    /// How many links the node has; its own place has the next number.
    links: usize,
}

impl Modes {
    pub(super) fn of(case: &Case) -> Result<Self> {
        let config = side::config(case)?;
        let mut modes = Self {
            cluster_ips: BTreeSet::new(),
            external_ips: BTreeSet::new(),
            node_ports: BTreeSet::new(),
            primary: Vec::new(),
            own: case.own_addresses().collect(),
            links: case.links.len(),
        };
        for objects in std::iter::once(&case.objects).chain(&case.changes) {
            let snapshot = side::snapshot(objects)?;
            let node = snapshot.node(&case.node).context("no such node")?;
            let network = NodeNetwork::from_snapshot(node);
            let proxiers = Proxiers::new(&snapshot, &config, &network, &case.node)?;
            for family in [Family::V4, Family::V6] {
                let mut own = node.host_ips();
                modes
                    .primary
                    .extend(own.find(|address| Family::of(*address) == family));
            }
            for service in proxiers.v4.services.iter().chain(&proxiers.v6.services) {
                modes.add(service);
            }
        }
        Ok(modes)
    }

    fn add(&mut self, service: &ServicePort) {
        self.cluster_ips.insert(service.cluster_ip);
        self.external_ips.extend(&service.external_ips);
        self.external_ips.extend(&service.load_balancer_vips);
        self.node_ports.extend(service.node_port);
    }

    /// Why the kernel in mode nftables and a side that does as mode iptables did not make the same of `sent`.
    pub(super) fn reason(
        &self,
        flow: &Flow,
        sent: &[Vec<u8>],
        [nftables, iptables]: &[Vec<Output>; 2],
    ) -> Option<&'static str> {
        let to = sent.first().and_then(|bytes| Ip::parse(bytes))?;
        let is_own = |address: IpAddr| address.is_loopback() || self.own.contains(&address);
        if iptables.is_empty() && went_on_as_sent(sent, nftables) {
            return Some("modes: an INVALID packet goes on, in mode nftables");
        }
        if is_own(to.destination) && kept_without_headers(self.links, iptables, nftables) {
            return Some("modes: no rule looks at ports of what lacks them, in mode nftables");
        }
        if let Some(why) = self.reason_of(flow) {
            return Some(why);
        }
        if is_own(flow.destination) && self.node_ports.contains(&flow.destination_port) {
            return if iptables.is_empty() || is_refused(iptables) {
                Some("modes: NodePorts are refused where they are served only, in mode nftables")
            } else {
                None
            };
        }
        let is_silent = nftables.is_empty() && flow.from == Place::Node;
        if self.cluster_ips.contains(&to.destination) && (is_silent || is_refused(nftables)) {
            return Some("modes: what no port of a cluster IP serves is refused, in mode nftables");
        }
        if flow.from == Place::Node && self.external_ips.contains(&to.destination) {
            return Some("modes: the node to an external address without endpoints for it");
        }
        if self.external_ips.contains(&to.destination)
            && nftables.is_empty()
            && is_refused(iptables)
        {
            return Some("modes: source ranges come before endpoints, in mode nftables");
        }
        None
    }
}

impl Modes {
    /// Why the modes do not do the same with a flow, whatever comes out.
    pub(super) fn reason_of(&self, flow: &Flow) -> Option<&'static str> {
        let address = flow.destination;
        let is_own = address.is_loopback() || self.own.contains(&address);
        let is_elsewhere = is_own && !self.primary.contains(&address);
        (is_elsewhere && self.node_ports.contains(&flow.destination_port))
            .then_some("modes: NodePorts at the node's primary address only, in mode nftables")
    }
}

/// Whether one packet came out, with the addresses and ports that it was sent with.
fn went_on_as_sent(sent: &[Vec<u8>], outputs: &[Output]) -> bool {
    let ends = |bytes: &[u8]| {
        let ip = Ip::parse(bytes)?;
        Some((ip.source, ip.destination, ip.protocol, ip.tag))
    };
    let first = sent.first().and_then(|bytes| ends(bytes));
    let of_it = |output: &Output| ends(&output.bytes) == first;
    first.is_some() && outputs.iter().any(of_it)
}
