//! Endpoints objects as slices, for Services that have no slice (the EndpointSliceMirroring controller).

use super::objects::{
    AddressType, Conditions, Endpoint, EndpointAddress, EndpointSlice, Endpoints, Hints, Subset,
    SubsetAddress,
};
use crate::model::Family;
use std::collections::HashSet;

/// The label that ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Adds a slice per subset and family for each Endpoints object whose Service has none, and keeps the order.
pub(super) fn convert(objects: Vec<Endpoints>, slices: &mut Vec<EndpointSlice>) {
    // There may be many slices to look through.
    if objects.is_empty() {
        return;
    }
    let with_slices: HashSet<(String, String)> = slices
        .iter()
        .filter_map(|slice| {
            let service = slice.service_name()?.to_owned();
            Some((slice.metadata.namespace.clone(), service))
        })
        .collect();
    let before = slices.len();
    for object in objects {
        let key = (
            object.metadata.namespace.clone(),
            object.metadata.name.clone(),
        );
        if !with_slices.contains(&key) {
            slices.extend(mirror(&object));
        }
    }
    if slices.len() > before {
        slices.sort_by(|a, b| {
            let key = |slice: &EndpointSlice| {
                (
                    slice.metadata.namespace.clone(),
                    slice.metadata.name.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
    }
}

fn mirror(object: &Endpoints) -> Vec<EndpointSlice> {
    let mut slices = Vec::new();
    for (index, subset) in object.subsets.iter().enumerate() {
        for (family, address_type) in [
            (Family::V4, AddressType::IPv4),
            (Family::V6, AddressType::IPv6),
        ] {
            let endpoints = endpoints(subset, family);
            if endpoints.is_empty() {
                continue;
            }
            let mut metadata = object.metadata.clone();
            let service = metadata.name.clone();
            metadata.name = format!("{service}-subset-{index}-{address_type:?}");
            metadata.labels.insert(SERVICE_NAME.to_owned(), service);
            slices.push(EndpointSlice {
                metadata,
                address_type,
                ports: subset.ports.clone(),
                endpoints,
            });
        }
    }
    slices
}

fn endpoints(subset: &Subset, family: Family) -> Vec<Endpoint> {
    let ready = subset.addresses.iter().map(|address| (address, true));
    let not_ready = subset
        .not_ready_addresses
        .iter()
        .map(|address| (address, false));
    ready
        .chain(not_ready)
        .filter(|(address, _)| Family::of(address.ip) == family)
        .map(|(address, ready)| endpoint(address, ready))
        .collect()
}

fn endpoint(address: &SubsetAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![EndpointAddress::Ip(address.ip)],
        conditions: Conditions {
            ready: Some(ready),
            serving: Some(ready),
            terminating: None,
        },
        node_name: address.node_name.clone(),
        hints: Hints::default(),
        target_ref: address.target_ref.clone(),
    }
}

impl EndpointSlice {
    /// The Service that it belongs to, by its label.
    pub fn service_name(&self) -> Option<&str> {
        let name = self.metadata.labels.get(SERVICE_NAME)?;
        (!name.is_empty()).then_some(name)
    }
}
