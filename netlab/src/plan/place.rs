//! Which endpoint is which host, and on which node.
//!
//! | an endpoint whose address … | becomes |
//! | --- | --- |
//! | is a node's address | a server in that node's network |
//! | has a `nodeName`, or lies in a node's pod CIDR | a pod on that node |
//! | does neither, and is no pod (`targetRef`) | a host outside the cluster, as an API server is |
//!
//! Everything else is refused: a pod that is on no node, an unknown node, two pods with one address.

mod placer;

use super::{Protocol, Run};
use crate::lab_file::LabPod;
use control::model::Family;
use control::problem::{Location, Problems};
use control::snapshot::Snapshot;
use ipnet::IpNet;
use placer::Placer;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// All nodes and pods, each in its place.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    /// Nodes, in the order of the snapshot.
    pub nodes: Vec<PlacedNode>,
    /// Pods and hosts outside, by namespace and name.
    pub pods: Vec<PlacedPod>,
    /// What is odd, for people to read.
    pub notes: Vec<String>,
}

/// A node.
#[derive(Clone, Debug)]
pub struct PlacedNode {
    /// Its name.
    pub name: String,
    /// Its addresses, by which others reach it.
    pub addresses: Vec<IpAddr>,
    /// Its ranges of pod addresses.
    pub pod_cidrs: Vec<IpNet>,
}

/// A pod, or a host outside the cluster.
#[derive(Clone, Debug)]
pub struct PlacedPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub placing: Placing,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Ports that it serves.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// What it runs.
    pub run: Run,
    /// Files of its folder.
    pub files: BTreeMap<String, String>,
    /// The object that named it first.
    pub location: Location,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placing {
    /// In a namespace of its own, linked to this node.
    Pod(String),
    /// In this node's network.
    HostNetwork(String),
    /// Beside the nodes, with this address.
    Outside(IpAddr),
}

impl Placing {
    /// The node, for those that have one.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Pod(node) | Self::HostNetwork(node) => Some(node),
            Self::Outside(_) => None,
        }
    }
}

impl Placement {
    /// Places all endpoints of the snapshot and all pods of the lab file.
    pub fn new(snapshot: &Snapshot, lab_pods: &[LabPod]) -> Result<Self, Problems> {
        let mut placer = Placer::default();
        placer.nodes(&snapshot.nodes);
        if !placer.problems.is_empty() {
            return Err(placer.into_problems());
        }
        for slice in &snapshot.endpoint_slices {
            placer.slice(slice);
        }
        for pod in lab_pods {
            placer.lab_pod(pod);
        }
        placer.check_addresses();
        if !placer.problems.is_empty() {
            return Err(placer.into_problems());
        }
        placer.share_host_ports();
        let pods = placer.pods.into_values().collect();
        Ok(Self {
            nodes: placer.nodes,
            pods,
            notes: placer.notes,
        })
    }

    /// All ranges of pod addresses.
    pub fn ranges(&self) -> Vec<IpNet> {
        self.nodes
            .iter()
            .flat_map(|node| node.pod_cidrs.iter().copied())
            .collect()
    }

    /// The nodes' addresses of one family.
    pub fn node_addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        let all = self
            .nodes
            .iter()
            .flat_map(|node| node.addresses.iter().copied());
        all.filter(move |address| Family::of(*address) == family)
    }
}
