//! What becomes of a new packet on a node, and the rule of Kubernetes that decides it.
//!
//! [`ServiceTable::decide_by`] decides, the same code as on the packet's path; this module finds the words.
//! [`overview`] asks the same for all kinds of clients of one Service.

pub mod overview;
mod reason;
pub mod warnings;

use crate::compile::{CompileError, compile, find_node};
use crate::config::{DetectLocal, KubeProxyConfig};
use crate::model::{Family, ServicePort, Transport};
use crate::node_network::NodeNetwork;
use crate::resolve;
use crate::snapshot::Snapshot;
use dataplane::service::{Decision, Generation, ServiceIndex, ServiceTable};
use dataplane::tuple::{Origin, Protocol, Tuple};
use serde::Serialize;
use std::hash::RandomState;
use std::net::{IpAddr, SocketAddr};

/// A new packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its source address.
    pub source: IpAddr,
    /// Its source port.
    pub source_port: u16,
    /// Where it comes from, as the node sees it.
    pub origin: Origin,
    /// Where it is addressed to.
    pub destination: SocketAddr,
    /// Its protocol.
    pub protocol: Transport,
}

impl Packet {
    /// Its tuple.
    pub fn tuple(&self) -> Tuple {
        Tuple {
            source: self.source.into(),
            destination: self.destination.ip().into(),
            source_port: self.source_port,
            destination_port: self.destination.port(),
            protocol: match self.protocol {
                Transport::Tcp => Protocol::TCP,
                Transport::Udp => Protocol::UDP,
                Transport::Sctp => Protocol::SCTP,
            },
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// To one of the endpoints.
    Forward,
    /// No Service's business: routed like any packet.
    Pass,
    /// Answered with ICMP port unreachable.
    Reject,
    /// Silently dropped.
    Drop,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// The rule that decided, in words.
    pub reason: String,
    /// `namespace/name:port`.
    pub service: Option<String>,
    /// Everything that it may be sent to.
    pub endpoints: Vec<Candidate>,
}

/// An endpoint that a packet may be sent to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// From 0 to 1, over all clients.
    pub probability: f64,
    /// Whether the packet's source becomes an address of the node.
    pub masquerade: bool,
}

/// One node's view of a snapshot.
pub struct Explainer<'s> {
    pub(crate) snapshot: &'s Snapshot,
    pub(crate) config: &'s KubeProxyConfig,
    /// The node's name.
    pub node_name: &'s str,
    pub(crate) table: ServiceTable,
    /// In the order of the table's Services.
    pub(crate) service_ports: Vec<ServicePort>,
    pub(crate) zone: Option<&'s str>,
}

impl<'s> Explainer<'s> {
    /// Compiles the snapshot for a node whose addresses and routes are those that the snapshot tells.
    pub fn new(
        snapshot: &'s Snapshot,
        config: &'s KubeProxyConfig,
        node_name: &str,
    ) -> Result<Self, CompileError> {
        let node = find_node(snapshot, node_name)?;
        let network = NodeNetwork::from_snapshot(node);
        Self::on_network(snapshot, config, node_name, &network)
    }

    /// The same for a node whose addresses and routes are known.
    pub fn on_network(
        snapshot: &'s Snapshot,
        config: &'s KubeProxyConfig,
        node_name: &str,
        network: &NodeNetwork,
    ) -> Result<Self, CompileError> {
        let node = find_node(snapshot, node_name)?;
        let parts = compile(snapshot, config, network, node_name, Generation(0))?;
        let service_ports = |family| resolve::service_ports(snapshot, config, node_name, family);
        let mut all = service_ports(Family::V4);
        all.extend(service_ports(Family::V6));
        Ok(Self {
            snapshot,
            config,
            node_name: &node.metadata.name,
            table: ServiceTable::new(parts, &RandomState::new()),
            service_ports: all,
            zone: node.zone(),
        })
    }

    /// The table that decides.
    pub const fn table(&self) -> &ServiceTable {
        &self.table
    }

    /// What becomes of `packet`.
    pub fn explain(&self, packet: &Packet) -> Explanation {
        let (decision, frontend) = self.table.decide_by(&packet.tuple(), packet.origin);
        let reason = reason::of(self, packet, &decision, frontend);
        let (verdict, service) = match decision {
            Decision::NotAService => (Verdict::Pass, None),
            Decision::Balance { service, .. } => (Verdict::Forward, Some(service)),
            Decision::Reject(service) => (Verdict::Reject, Some(service)),
            Decision::NoLocalEndpoint(service) | Decision::SourceNotAllowed(service) => {
                (Verdict::Drop, Some(service))
            }
        };
        Explanation {
            verdict,
            reason,
            service: service.map(|index| self.table.service(index).name.to_string()),
            endpoints: candidates(packet, &decision),
        }
    }

    /// The origin of what comes in by the interface of that name; empty: the node itself.
    pub fn origin(&self, interface: &str) -> Origin {
        let is_pod = match &self.config.detect_local {
            DetectLocal::BridgeInterface(bridge) => interface == bridge,
            DetectLocal::InterfaceNamePrefix(prefix) => interface.starts_with(prefix.as_str()),
            DetectLocal::ClusterCidr(_) | DetectLocal::NodeCidr => false,
        };
        match (interface, is_pod) {
            ("", _) => Origin::Node,
            (_, true) => Origin::Pod,
            (_, false) => Origin::Outside,
        }
    }

    pub(crate) fn service_port(&self, index: ServiceIndex) -> &ServicePort {
        &self.service_ports[index.0 as usize]
    }
}

/// With the same probability each: over all clients every algorithm comes to that.
fn candidates(packet: &Packet, decision: &Decision<'_>) -> Vec<Candidate> {
    let Decision::Balance {
        endpoints,
        masquerade,
        ..
    } = decision
    else {
        return Vec::new();
    };
    let candidate = |endpoint: &dataplane::service::Endpoint| Candidate {
        address: endpoint.address.into(),
        port: endpoint.port,
        probability: 1.0 / endpoints.len() as f64,
        masquerade: endpoint.is_masqueraded(packet.source.into(), packet.origin, *masquerade),
    };
    endpoints.iter().map(candidate).collect()
}

#[cfg(test)]
mod tests;
