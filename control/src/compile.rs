//! Snapshot to [`Parts`] of a service table, for one node: all policies resolved.
//!
//! Pure: the same snapshot, configuration and network give the same parts, whatever the order of documents. Source:
//! Kubernetes 1.30 `pkg/proxy/iptables/proxier.go`, `syncProxyRules`. Read first: [`crate::resolve`],
//! [`crate::endpoints`].

mod node;
mod services;

pub use node::{node_ip, node_port_ranges, pod_cidr};

use crate::config::KubeProxyConfig;
use crate::health::{self, HealthCheck, ServiceName};
use crate::metrics::WithoutLocal;
use crate::model::Family;
use crate::node_network::NodeNetwork;
use crate::parallel::on_all_processors;
use crate::problem::did_you_mean;
use crate::resolve::Resolver;
use crate::snapshot::{Node, Service, Snapshot};
use dataplane::service::{Generation, LocalDetector, Parts, ServiceIndex};
use services::{Piece, Settings};
use std::collections::BTreeMap;

/// Why there is no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The node is not in the snapshot.
    #[error("there is no Node {name} in the snapshot{}", .hint)]
    NoSuchNode {
        /// The name asked for.
        name: String,
        /// What to do.
        hint: String,
    },
    /// Detection by the node's pod CIDRs needs them.
    #[error(
        "Node {0} has no spec.podCIDRs, but detectLocalMode is NodeCIDR; add them, or choose another mode"
    )]
    NoPodCidr(String),
    /// They are of the other family only.
    #[error(
        "Node {node} has no spec.podCIDRs of {family}, which its own address is of, but detectLocalMode is NodeCIDR; add one, \
         or choose another mode"
    )]
    NoPodCidrOfFamily {
        /// The node.
        node: String,
        /// Its primary family.
        family: Family,
    },
}

/// What the Services of `snapshot` mean on `node_name`, whose addresses and routes are `network`.
///
/// # Errors
/// [`CompileError`].
pub fn compile(
    snapshot: &Snapshot,
    config: &KubeProxyConfig,
    network: &NodeNetwork,
    node_name: &str,
    generation: Generation,
) -> Result<Parts, CompileError> {
    let compiled = compile_all(snapshot, config, network, node_name, generation)?;
    Ok(compiled.parts)
}

/// All that follows from a snapshot on a node.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// For the table.
    pub parts: Parts,
    /// What load balancers ask.
    pub health_checks: BTreeMap<ServiceName, HealthCheck>,
    /// For the metrics.
    pub without_local: WithoutLocal,
}

/// [`compile`], with what an agent serves beside the table.
///
/// # Errors
/// [`CompileError`].
pub fn compile_all(
    snapshot: &Snapshot,
    config: &KubeProxyConfig,
    network: &NodeNetwork,
    node_name: &str,
    generation: Generation,
) -> Result<Compiled, CompileError> {
    let node = find_node(snapshot, node_name)?;
    let mut compiled = Compiled {
        parts: node::parts(generation, config, network, node)?,
        health_checks: BTreeMap::new(),
        without_local: WithoutLocal::default(),
    };
    let resolver = Resolver::new(snapshot, config, node_name);
    let services: Vec<&[Service]> = snapshot.services.chunks(TURN).collect();
    for family in [Family::V4, Family::V6] {
        let detector = match family {
            Family::V4 => &compiled.parts.local_detector_v4,
            Family::V6 => &compiled.parts.local_detector_v6,
        };
        let settings = Settings {
            config,
            network,
            node,
            family,
            has_detector: *detector != LocalDetector::None,
            selection: node::default_selection(config, node),
        };
        let compile = |services: &&[Service]| Part::of(services, &resolver, settings);
        for part in on_all_processors(&services, 1, compile) {
            compiled.add(part);
        }
    }
    Ok(compiled)
}

/// Services that a processor compiles before it asks for more.
const TURN: usize = 128;

/// What follows from some Services in one family.
struct Part {
    piece: Piece,
    health_checks: BTreeMap<ServiceName, HealthCheck>,
    without_local: WithoutLocal,
}

impl Part {
    fn of(services: &[Service], resolver: &Resolver<'_>, settings: Settings<'_>) -> Self {
        let service_ports = resolver.service_ports(services, settings.family);
        Self {
            piece: Piece::of(&service_ports, settings),
            health_checks: health::health_checks(&service_ports),
            without_local: WithoutLocal::count(&service_ports, settings.node.zone()),
        }
    }
}

impl Compiled {
    fn add(&mut self, part: Part) {
        let before = self.parts.services.len() as u32;
        let moved = part.piece.frontends.into_iter().map(|(key, mut frontend)| {
            frontend.service = ServiceIndex(before + frontend.service.0);
            (key, frontend)
        });
        self.parts.frontends.extend(moved);
        self.parts.services.extend(part.piece.services);
        for (name, check) in part.health_checks {
            self.health_checks.entry(name).or_insert(check);
        }
        self.without_local += part.without_local;
    }
}

/// The node of that name, or a message that helps to find it.
pub fn find_node<'s>(snapshot: &'s Snapshot, name: &str) -> Result<&'s Node, CompileError> {
    snapshot.node(name).ok_or_else(|| {
        let names = || {
            snapshot
                .nodes
                .iter()
                .map(|node| node.metadata.name.as_str())
        };
        let hint = match did_you_mean(name, names()) {
            Some(likely) => format!("; did you mean {likely}?"),
            None if snapshot.nodes.is_empty() => {
                ", nor any other; add those of `kubectl get nodes -o yaml`".to_owned()
            }
            None => format!("; it has {}", names().collect::<Vec<_>>().join(", ")),
        };
        CompileError::NoSuchNode {
            name: name.to_owned(),
            hint,
        }
    })
}

#[cfg(test)]
mod tests;
