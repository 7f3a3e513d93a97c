//! The cluster as one family's kube-proxy on one node sees it: svcports with their endpoints.
//!
//! Everything that kube-proxy ignores is already gone (headless Services, other families, unusable slices), and
//! everything that it defaults is filled in. The compiler, `explain` and the renderers all read this and nothing
//! else of the objects. Source: `pkg/proxy/{serviceport,endpointslicecache,types}.go` of Kubernetes 1.30.
//!
//! Invariants: endpoints are sorted by the string `ip:port` and unique by it; all addresses of a [`ServicePort`]
//! are of its family.

use dataplane::service::Selection;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    /// The family of `address`.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// The protocols that a Service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Transport {
    /// In lower case, as rules print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// What identifies a svcport (`ServicePortName`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortName {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub service: String,
    /// Name of the port, empty when it has none.
    pub port: String,
    /// Protocol; part of the identity but not of the printed name.
    pub protocol: Transport,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TrafficPolicy {
    /// Every endpoint of the cluster.
    #[default]
    Cluster,
    /// Endpoints of this node only.
    Local,
}

/// One port of one Service in one family, with its endpoints (`BaseServicePortInfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Identity.
    pub name: ServicePortName,
    /// The family that this is about.
    pub family: Family,
    /// The cluster IP of this family.
    pub cluster_ip: IpAddr,
    /// The Service's port.
    pub port: u16,
    /// The NodePort, if it has one.
    pub node_port: Option<u16>,
    /// External IPs of this family, in the order of the spec.
    pub external_ips: Vec<IpAddr>,
    /// Load balancer addresses of this family that are VIPs (`ipMode` VIP or absent), in the order of the status.
    pub load_balancer_vips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges` of this family, masked, in the order of the spec.
    pub source_ranges: Vec<IpNet>,
    /// For cluster IPs.
    pub internal_traffic_policy: TrafficPolicy,
    /// For NodePorts, external and load balancer IPs; `Cluster` unless the Service's type honours it.
    pub external_traffic_policy: TrafficPolicy,
    /// ClientIP affinity and its timeout.
    pub affinity_timeout: Option<Duration>,
    /// Only for type LoadBalancer with `externalTrafficPolicy: Local`.
    pub health_check_node_port: Option<u16>,
    /// The topology annotation: `service.kubernetes.io/topology-aware-hints`, else `…/topology-mode`.
    pub hints_annotation: String,
    /// The annotation `penstock.dev/load-balancing`: how endpoints are chosen, if the Service says so.
    pub selection: Option<Selection>,
    /// All endpoints of the slices, usable or not.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint of a svcport (`BaseEndpointInfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whether it runs on the node that this is about.
    pub is_local: bool,
    /// Condition `ready`, true when absent.
    pub ready: bool,
    /// Condition `serving`, true when absent.
    pub serving: bool,
    /// Condition `terminating`, false when absent.
    pub terminating: bool,
    /// `hints.forZones`.
    pub zone_hints: BTreeSet<String>,
}

impl fmt::Display for Endpoint {
    /// `ip:port`, IPv6 in brackets: what kube-proxy sorts and hashes by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(f)
    }
}
