//! EndpointSlices, and Endpoints, their older form.

use super::{Metadata, Protocol};
use crate::snapshot::fields;
use serde::{Deserialize, Deserializer};
use std::net::IpAddr;

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
    /// Its addresses; kube-proxy reads the first only.
    pub addresses: Vec<EndpointAddress>,
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
        match self.addresses.first()? {
            EndpointAddress::Ip(address) => Some(*address),
            EndpointAddress::Name(_) => None,
        }
    }
}

/// An entry of an endpoint's `addresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointAddress {
    /// An IP address.
    Ip(IpAddr),
    /// A host name, which only slices of type FQDN may have.
    Name(String),
}

impl<'de> Deserialize<'de> for EndpointAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fields::from_text(deserializer, |text| {
            let address = fields::parse_ip(text).map(Self::Ip);
            Ok(address.unwrap_or_else(|| Self::Name(text.to_owned())))
        })
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
pub(in crate::snapshot) struct Endpoints {
    pub(in crate::snapshot) metadata: Metadata,
    #[serde(default)]
    pub(in crate::snapshot) subsets: Vec<Subset>,
}

/// An entry of `subsets`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::snapshot) struct Subset {
    pub(in crate::snapshot) addresses: Vec<SubsetAddress>,
    pub(in crate::snapshot) not_ready_addresses: Vec<SubsetAddress>,
    pub(in crate::snapshot) ports: Vec<EndpointPort>,
}

/// An address of a subset.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::snapshot) struct SubsetAddress {
    #[serde(deserialize_with = "fields::ip")]
    pub(in crate::snapshot) ip: IpAddr,
    #[serde(default)]
    pub(in crate::snapshot) node_name: Option<String>,
    #[serde(default)]
    pub(in crate::snapshot) target_ref: Option<TargetRef>,
}
