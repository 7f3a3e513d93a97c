//! The Kubernetes objects that Services are made of, as far as kube-proxy reads them.
//!
//! Fields that nobody here acts on are skipped, as `kubectl` output is full of them. Addresses and ports are
//! typed, so what is in a [`super::Snapshot`] needs no second look.

mod endpoint_slice;
mod labels;
mod node;
mod service;

pub use endpoint_slice::{
    AddressType, Conditions, Endpoint, EndpointAddress, EndpointPort, EndpointSlice, ForZone,
    Hints, TargetRef,
};
pub(super) use endpoint_slice::{Endpoints, Subset, SubsetAddress};
pub use labels::Labels;
pub use node::{Node, NodeAddress, NodeSpec, NodeStatus, Taint};
pub use service::{
    ClientIpConfig, ClusterIp, Ingress, IpFamily, IpMode, LoadBalancerStatus, Policy, Service,
    ServicePort, ServiceSpec, ServiceStatus, ServiceType, SessionAffinity, SessionAffinityConfig,
    TargetPort,
};

use super::validate::{self, Broken};
use crate::model::Transport;
use crate::problem::{Location, ObjectName};
use serde::Deserialize;
use std::sync::Arc;

/// Name, labels and annotations of an object, and where it was read, which makes no difference to what it is.
#[derive(Clone, Debug, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Namespace; `default` when the object does not say, empty for nodes.
    #[serde(default)]
    pub namespace: String,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
    /// Annotations.
    #[serde(default)]
    pub annotations: Labels,
    /// Set once the object is being deleted.
    #[serde(default)]
    pub deletion_timestamp: Option<String>,
    /// Where it was read.
    #[serde(skip, default = "nowhere")]
    pub location: Location,
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            name,
            namespace,
            labels,
            annotations,
            deletion_timestamp,
            location: _,
        } = self;
        *name == other.name
            && *namespace == other.namespace
            && *labels == other.labels
            && *annotations == other.annotations
            && *deletion_timestamp == other.deletion_timestamp
    }
}

fn nowhere() -> Location {
    Location {
        file: Arc::from(""),
        document: 0,
        line: 0,
    }
}

/// A protocol as objects spell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub enum Protocol {
    /// TCP, also when absent.
    #[default]
    TCP,
    /// UDP.
    UDP,
    /// SCTP.
    SCTP,
}

impl From<Protocol> for Transport {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::TCP => Self::Tcp,
            Protocol::UDP => Self::Udp,
            Protocol::SCTP => Self::Sctp,
        }
    }
}

/// What all kinds have in common.
pub(super) trait Object {
    /// Its `kind`.
    const KIND: &'static str;
    /// Whether objects of the kind live in namespaces.
    const NAMESPACED: bool = true;
    /// Rules that go beyond the types of its fields.
    fn broken(&self) -> Vec<Broken>;
    /// Its metadata.
    fn metadata(&self) -> &Metadata;
    /// Its metadata.
    fn metadata_mut(&mut self) -> &mut Metadata;
}

impl Object for Service {
    const KIND: &'static str = "Service";
    fn broken(&self) -> Vec<Broken> {
        validate::service(self)
    }
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }
}

impl Object for EndpointSlice {
    const KIND: &'static str = "EndpointSlice";
    fn broken(&self) -> Vec<Broken> {
        validate::slice(self)
    }
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }
}

impl Object for Endpoints {
    const KIND: &'static str = "Endpoints";
    fn broken(&self) -> Vec<Broken> {
        Vec::new()
    }
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }
}

impl Object for Node {
    const KIND: &'static str = "Node";
    const NAMESPACED: bool = false;
    fn broken(&self) -> Vec<Broken> {
        validate::node(self)
    }
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }
}

impl Metadata {
    /// The object's name for messages.
    pub fn object_name(&self, kind: &str) -> ObjectName {
        ObjectName {
            kind: kind.to_owned(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}
