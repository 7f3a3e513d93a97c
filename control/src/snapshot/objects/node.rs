//! Nodes.

use super::Metadata;
use crate::model::Family;
use crate::snapshot::fields;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use std::net::IpAddr;

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Node {
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// What it should be.
    #[serde(default)]
    pub spec: NodeSpec,
    /// What it is.
    #[serde(default)]
    pub status: NodeStatus,
}

impl Node {
    /// Its zone, if it is labelled with one.
    pub fn zone(&self) -> Option<&str> {
        let zone = self.metadata.labels.get("topology.kubernetes.io/zone")?;
        (!zone.is_empty()).then_some(zone)
    }

    /// Its addresses of type InternalIP.
    pub fn internal_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.ips("InternalIP")
    }

    /// The addresses by which it is reached: its InternalIPs, and of a family that has none the first ExternalIP.
    ///
    /// Source: `pkg/util/node/node.go`, `GetNodeHostIPs`. Of these kube-proxy takes the first of each family.
    pub fn host_ips(&self) -> impl Iterator<Item = IpAddr> {
        let external = [Family::V4, Family::V6].into_iter().filter_map(|family| {
            let is_of_family = |address: &IpAddr| Family::of(*address) == family;
            let has_internal = self.internal_ips().any(|address| is_of_family(&address));
            let first = || self.ips("ExternalIP").find(is_of_family);
            (!has_internal).then(first).flatten()
        });
        self.internal_ips().chain(external)
    }

    fn ips(&self, kind: &'static str) -> impl Iterator<Item = IpAddr> {
        let addresses = self.status.addresses.iter();
        addresses
            .filter(move |address| address.kind == kind)
            .filter_map(|address| fields::parse_ip(&address.address))
    }

    /// Its ranges of pod addresses.
    pub fn pod_cidrs(&self) -> impl Iterator<Item = IpNet> {
        let single = self.spec.pod_cidrs.is_empty().then_some(self.spec.pod_cidr);
        let many = self.spec.pod_cidrs.iter().copied();
        many.chain(single.flatten())
    }
}

/// `Node.spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// The first range of pod addresses.
    #[serde(rename = "podCIDR", deserialize_with = "optional_cidr")]
    pub pod_cidr: Option<IpNet>,
    /// One per family.
    #[serde(rename = "podCIDRs", deserialize_with = "fields::cidrs")]
    pub pod_cidrs: Vec<IpNet>,
    /// Taints.
    pub taints: Vec<Taint>,
}

/// An entry of `spec.taints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Its key.
    pub key: String,
}

fn optional_cidr<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpNet>, D::Error> {
    Ok(Some(fields::Cidr::deserialize(deserializer)?.0))
}

/// `Node.status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Its addresses.
    pub addresses: Vec<NodeAddress>,
}

/// An entry of `status.addresses`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The address or name.
    pub address: String,
}
