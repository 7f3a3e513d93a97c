//! The Kubernetes objects that Services are made of, as far as kube-proxy reads them.
//!
//! Fields that nobody here acts on are skipped, as `kubectl` output is full of them. Addresses and ports are
//! typed, so what is in a [`super::Snapshot`] needs no second look.

use super::fields;
use super::validate::{self, Broken};
use crate::model::{Family, TrafficPolicy, Transport};
use crate::problem::{Location, ObjectName};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::net::IpAddr;
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
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
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

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// What it should be.
    #[serde(default)]
    pub spec: ServiceSpec,
    /// What the cluster made of it.
    #[serde(default)]
    pub status: ServiceStatus,
}

/// `Service.spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `spec.type`.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// The first cluster IP.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: ClusterIp,
    /// One per entry of `ip_families`.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<ClusterIp>,
    /// Families, in the order of preference.
    pub ip_families: Vec<IpFamily>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Labels of the pods behind it.
    pub selector: BTreeMap<String, String>,
    /// Addresses that somebody else routes to the nodes.
    #[serde(rename = "externalIPs", deserialize_with = "fields::ips")]
    pub external_ips: Vec<IpAddr>,
    /// Who may reach the load balancer's addresses; empty: everybody.
    #[serde(deserialize_with = "fields::cidrs")]
    pub load_balancer_source_ranges: Vec<IpNet>,
    /// For traffic from outside.
    pub external_traffic_policy: Option<Policy>,
    /// For traffic to the cluster IP.
    pub internal_traffic_policy: Option<Policy>,
    /// Where load balancers ask whether this node has endpoints.
    #[serde(deserialize_with = "fields::optional_port")]
    pub health_check_node_port: Option<u16>,
    /// Whether clients stay with their endpoint.
    pub session_affinity: SessionAffinity,
    /// For how long.
    pub session_affinity_config: SessionAffinityConfig,
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ServiceType {
    /// Reached inside the cluster.
    #[default]
    ClusterIP,
    /// And on a port of every node.
    NodePort,
    /// And through a load balancer.
    LoadBalancer,
    /// A DNS alias.
    ExternalName,
}

/// `spec.clusterIP`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterIp {
    /// Not allocated.
    #[default]
    Unset,
    /// `None`: headless.
    Headless,
    /// Its address.
    Address(IpAddr),
}

impl<'de> Deserialize<'de> for ClusterIp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "" => Ok(Self::Unset),
            "None" => Ok(Self::Headless),
            _ => fields::parse_ip(&text).map(Self::Address).ok_or_else(|| {
                serde::de::Error::custom(format!(
                    "`{text}` is not an IP address; write one, or None for a headless Service"
                ))
            }),
        }
    }
}

/// An entry of `spec.ipFamilies`, or the address type of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum IpFamily {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

impl From<IpFamily> for Family {
    fn from(family: IpFamily) -> Self {
        match family {
            IpFamily::IPv4 => Self::V4,
            IpFamily::IPv6 => Self::V6,
        }
    }
}

/// A traffic policy as objects spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Policy {
    /// Every endpoint.
    Cluster,
    /// Endpoints of the node.
    Local,
}

impl From<Policy> for TrafficPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Cluster => Self::Cluster,
            Policy::Local => Self::Local,
        }
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

/// An entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Name; empty when it has none.
    #[serde(default)]
    pub name: String,
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Port of the Service.
    #[serde(deserialize_with = "fields::port")]
    pub port: u16,
    /// Port of the pods, by number or name. kube-proxy never reads it.
    #[serde(default)]
    pub target_port: Option<TargetPort>,
    /// Port of the nodes.
    #[serde(default, deserialize_with = "fields::optional_port")]
    pub node_port: Option<u16>,
}

/// `targetPort`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// By number.
    Number(i64),
    /// By the name of a container's port.
    Name(String),
}

/// `spec.sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum SessionAffinity {
    /// None.
    #[default]
    None,
    /// By the client's address.
    ClientIP,
}

/// `spec.sessionAffinityConfig`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    /// For ClientIP.
    #[serde(rename = "clientIP")]
    pub client_ip: ClientIpConfig,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// Seconds; 10800 when absent.
    pub timeout_seconds: Option<u32>,
}

/// `Service.status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// What the load balancer reported.
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerStatus {
    /// Its addresses.
    pub ingress: Vec<Ingress>,
}

/// An entry of `status.loadBalancer.ingress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// Its address; a load balancer may have a host name only.
    #[serde(deserialize_with = "fields::optional_ip")]
    pub ip: Option<IpAddr>,
    /// Its host name.
    pub hostname: String,
    /// How packets arrive at the nodes.
    pub ip_mode: Option<IpMode>,
}

/// `ipMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum IpMode {
    /// With the load balancer's address as destination; also when absent.
    VIP,
    /// With a node's or pod's address as destination: nothing for the nodes to do.
    Proxy,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Name, labels, annotations. The Service's name is a label.
    pub metadata: Metadata,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: AddressType,
    /// Ports of all its endpoints.
    #[serde(default)]
    pub ports: Vec<EndpointPort>,
    /// The endpoints.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

/// `addressType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum AddressType {
    /// IPv4 addresses.
    IPv4,
    /// IPv6 addresses.
    IPv6,
    /// Host names, which kube-proxy ignores.
    FQDN,
}

/// An entry of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPort {
    /// Name; the Service's port of this name is meant. Absent and empty are the same once the API server is done.
    #[serde(default)]
    pub name: String,
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Number; absent means every port, which kube-proxy skips.
    #[serde(default, deserialize_with = "fields::optional_port")]
    pub port: Option<u16>,
}

/// An entry of a slice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Addresses as written; kube-proxy reads the first only.
    pub addresses: Vec<String>,
    /// State of the pod.
    #[serde(default)]
    pub conditions: Conditions,
    /// The node that it runs on.
    #[serde(default)]
    pub node_name: Option<String>,
    /// Zones that should use it.
    #[serde(default)]
    pub hints: Hints,
    /// The pod behind it.
    #[serde(default)]
    pub target_ref: Option<TargetRef>,
}

impl Endpoint {
    /// The address that kube-proxy uses. `None` for host names.
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses
            .first()
            .and_then(|text| fields::parse_ip(text))
    }
}

/// `conditions` of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// True when absent.
    pub ready: Option<bool>,
    /// True when absent.
    pub serving: Option<bool>,
    /// False when absent.
    pub terminating: Option<bool>,
}

/// `hints` of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    /// Zones.
    pub for_zones: Vec<ForZone>,
}

/// An entry of `hints.forZones`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ForZone {
    /// Name of the zone.
    pub name: String,
}

/// `targetRef` of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TargetRef {
    /// `Pod`, usually.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

/// An Endpoints object, the older form of slices.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Endpoints {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) subsets: Vec<Subset>,
}

/// An entry of `subsets`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Subset {
    pub(super) addresses: Vec<SubsetAddress>,
    pub(super) not_ready_addresses: Vec<SubsetAddress>,
    pub(super) ports: Vec<EndpointPort>,
}

/// An address of a subset.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SubsetAddress {
    #[serde(deserialize_with = "fields::ip")]
    pub(super) ip: IpAddr,
    #[serde(default)]
    pub(super) node_name: Option<String>,
    #[serde(default)]
    pub(super) target_ref: Option<TargetRef>,
}

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
        (!zone.is_empty()).then_some(zone.as_str())
    }

    /// Its addresses of type InternalIP.
    pub fn internal_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.status
            .addresses
            .iter()
            .filter(|address| address.kind == "InternalIP")
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
