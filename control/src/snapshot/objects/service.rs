//! Services.

use super::{Labels, Metadata, Protocol};
use crate::model::{Family, TrafficPolicy};
use crate::snapshot::fields;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use std::net::IpAddr;

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
    #[serde(rename = "type", deserialize_with = "fields::word_or_default")]
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
    pub selector: Labels,
    /// Addresses that somebody else routes to the nodes.
    #[serde(rename = "externalIPs", deserialize_with = "fields::ips")]
    pub external_ips: Vec<IpAddr>,
    /// Who may reach the load balancer's addresses; empty: everybody.
    #[serde(deserialize_with = "fields::cidrs")]
    pub load_balancer_source_ranges: Vec<IpNet>,
    /// For traffic from outside.
    #[serde(deserialize_with = "fields::optional_word")]
    pub external_traffic_policy: Option<Policy>,
    /// For traffic to the cluster IP.
    pub internal_traffic_policy: Option<Policy>,
    /// Where load balancers ask whether this node has endpoints.
    #[serde(deserialize_with = "fields::optional_port")]
    pub health_check_node_port: Option<u16>,
    /// Whether clients stay with their endpoint.
    #[serde(deserialize_with = "fields::word_or_default")]
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
        fields::from_text(deserializer, |text| match text {
            "" => Ok(Self::Unset),
            "None" => Ok(Self::Headless),
            _ => fields::parse_canonical_ip(text)
                .map(Self::Address)
                .ok_or_else(|| {
                    format!(
                        "`{text}` is not an IP address; write one, or None for a headless Service"
                    )
                }),
        })
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

/// An entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Name; empty when it has none.
    #[serde(default)]
    pub name: String,
    /// Protocol.
    #[serde(default, deserialize_with = "fields::word_or_default")]
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
    #[serde(deserialize_with = "fields::optional_seconds")]
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
