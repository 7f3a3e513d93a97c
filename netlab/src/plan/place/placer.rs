//! Placing one object after the other.

use super::{PlacedNode, PlacedPod, Placing};
use crate::lab_file::LabPod;
use crate::plan::{Protocol, Run};
use control::model::Transport;
use control::problem::{Location, ObjectName, Problem, Problems};
use control::snapshot::objects::{Endpoint, TargetRef};
use control::snapshot::{EndpointSlice, Node};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What is placed so far, and what is wrong.
#[derive(Default)]
pub(super) struct Placer {
    pub(super) nodes: Vec<PlacedNode>,
    /// By namespace and name.
    pub(super) pods: BTreeMap<(String, String), PlacedPod>,
    pub(super) problems: Vec<Problem>,
    pub(super) notes: Vec<String>,
}

impl Placer {
    pub(super) fn into_problems(mut self) -> Problems {
        self.problems.sort();
        Problems(self.problems)
    }

    fn refuse(&mut self, location: &Location, object: ObjectName, field: String, message: String) {
        let (location, object) = (location.clone(), Some(object));
        self.problems.push(Problem {
            location,
            object,
            field,
            message,
        });
    }

    pub(super) fn nodes(&mut self, nodes: &[Node]) {
        let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
        for node in nodes {
            let addresses: Vec<IpAddr> = node.host_ips().collect();
            let metadata = &node.metadata;
            let object = || ObjectName {
                kind: "Node".to_owned(),
                namespace: String::new(),
                name: metadata.name.clone(),
            };
            let field = || "status.addresses".to_owned();
            if addresses.is_empty() {
                let message = "has no address of type InternalIP, so nobody can reach it; add one";
                self.refuse(&metadata.location, object(), field(), message.to_owned());
            }
            for address in &addresses {
                if let Some(owner) = owners.insert(*address, metadata.name.clone()) {
                    let message =
                        format!("{address} is the address of Node {owner} too; give each its own");
                    self.refuse(&metadata.location, object(), field(), message);
                }
            }
            let pod_cidrs: Vec<IpNet> = node.pod_cidrs().map(|range| range.trunc()).collect();
            let overlapping = self.nodes.iter().find_map(|other| {
                let clash = |a: &&IpNet| pod_cidrs.iter().any(|b| a.contains(b) || b.contains(*a));
                other
                    .pod_cidrs
                    .iter()
                    .find(clash)
                    .map(|range| (other.name.clone(), *range))
            });
            if let Some((other, range)) = overlapping {
                let message = format!(
                    "overlaps {range} of Node {other}, so a pod's node would be unknown; give each its own range"
                );
                self.refuse(
                    &metadata.location,
                    object(),
                    "spec.podCIDRs".to_owned(),
                    message,
                );
            }
            self.nodes.push(PlacedNode {
                name: metadata.name.clone(),
                addresses,
                pod_cidrs,
            });
        }
    }

    pub(super) fn slice(&mut self, slice: &EndpointSlice) {
        let ports: BTreeSet<(Protocol, u16)> = slice
            .ports
            .iter()
            .filter_map(|port| Some((Transport::from(port.protocol).into(), port.port?)))
            .collect();
        for (index, endpoint) in slice.endpoints.iter().enumerate() {
            // Host names (addressType FQDN) are nothing that kube-proxy sends packets to.
            let Some(address) = endpoint.address() else {
                continue;
            };
            match self.place(endpoint, address) {
                Ok(placing) => self.endpoint(slice, endpoint, address, placing, &ports),
                Err((field, message)) => {
                    let object = slice_name(slice);
                    let field = format!("endpoints[{index}].{field}");
                    self.refuse(&slice.metadata.location, object, field, message);
                }
            }
        }
    }

    /// Where an endpoint is; else the field that is wrong and why.
    fn place(
        &self,
        endpoint: &Endpoint,
        address: IpAddr,
    ) -> Result<Placing, (&'static str, String)> {
        let name = endpoint.node_name.as_deref();
        if let Some(node) = self
            .nodes
            .iter()
            .find(|node| node.addresses.contains(&address))
        {
            return match name {
                Some(name) if name != node.name => Err((
                    "nodeName",
                    format!(
                        "is {name}, but {address} is the address of Node {}; mend one of them",
                        node.name
                    ),
                )),
                _ => Ok(Placing::HostNetwork(node.name.clone())),
            };
        }
        if let Some(name) = name {
            if self.nodes.iter().any(|node| node.name == name) {
                return Ok(Placing::Pod(name.to_owned()));
            }
            let known = self.nodes.iter().map(|node| node.name.as_str());
            let hint = control::problem::did_you_mean(name, known).map_or_else(
                || "add that Node, or mend the name".to_owned(),
                |near| format!("did you mean {near}?"),
            );
            return Err((
                "nodeName",
                format!("is {name}, which is no Node of this snapshot; {hint}"),
            ));
        }
        let in_range =
            |node: &&PlacedNode| node.pod_cidrs.iter().any(|range| range.contains(&address));
        match (self.nodes.iter().find(in_range), &endpoint.target_ref) {
            (Some(node), _) => Ok(Placing::Pod(node.name.clone())),
            (None, Some(target)) if target.kind == "Pod" => Err((
                "addresses[0]",
                format!(
                    "{address} is a pod's, but lies in no Node's podCIDRs, and no nodeName says where it runs; \
                     add nodeName, or the Node"
                ),
            )),
            (None, _) => Ok(Placing::Outside(address)),
        }
    }

    fn endpoint(
        &mut self,
        slice: &EndpointSlice,
        endpoint: &Endpoint,
        address: IpAddr,
        placing: Placing,
        ports: &BTreeSet<(Protocol, u16)>,
    ) {
        let key = match &endpoint.target_ref {
            Some(TargetRef {
                kind,
                name,
                namespace,
            }) if kind == "Pod" && !name.is_empty() => {
                let own = if namespace.is_empty() {
                    &slice.metadata.namespace
                } else {
                    namespace
                };
                (own.clone(), name.clone())
            }
            _ => self.key_by_address(slice, address, &placing),
        };
        let location = slice.metadata.location.clone();
        if let Some(pod) = self.pods.get(&key)
            && pod.placing.node() != placing.node()
        {
            let message = format!(
                "has pod {}/{} on node {}, but {} has it on node {}; mend one of them",
                key.0,
                key.1,
                placing.node().unwrap_or("none"),
                pod.location,
                pod.placing.node().unwrap_or("none"),
            );
            self.refuse(
                &location,
                slice_name(slice),
                "endpoints".to_owned(),
                message,
            );
            return;
        }
        let pod = self
            .pods
            .entry(key)
            .or_insert_with_key(|(namespace, name)| {
                PlacedPod::new(namespace, name, placing, location)
            });
        pod.addresses.insert(address);
        pod.ports.extend(ports);
    }

    /// An endpoint that names no pod is the pod of its address, or a new one named after slice and address.
    fn key_by_address(
        &self,
        slice: &EndpointSlice,
        address: IpAddr,
        placing: &Placing,
    ) -> (String, String) {
        let is_same =
            |pod: &&PlacedPod| pod.addresses.contains(&address) && pod.placing == *placing;
        if let Some(pod) = self.pods.values().find(is_same) {
            return (pod.namespace.clone(), pod.name.clone());
        }
        let address = address.to_string().replace(':', "-");
        (
            slice.metadata.namespace.clone(),
            format!("{}-{address}", slice.metadata.name),
        )
    }

    /// A pod of the lab file: new, or more about one that a slice names.
    pub(super) fn lab_pod(&mut self, pod: &LabPod) {
        let object = || ObjectName {
            kind: "pod".to_owned(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        };
        let key = (pod.namespace.clone(), pod.name.clone());
        let known = self
            .nodes
            .iter()
            .any(|node| Some(&node.name) == pod.node.as_ref());
        let placed = self.pods.get(&key).map(|placed| placed.placing.clone());
        let node = match (&pod.node, &placed) {
            (Some(node), _) if !known => {
                let names = self.nodes.iter().map(|node| node.name.as_str());
                let hint = control::problem::did_you_mean(node, names).map_or_else(
                    || "name one of the snapshot".to_owned(),
                    |near| format!("did you mean {near}?"),
                );
                let message = format!("{node} is no Node of the snapshot; {hint}");
                return self.refuse(&pod.location, object(), "node".to_owned(), message);
            }
            (Some(node), Some(placed)) if placed.node() != Some(node.as_str()) => {
                let other = placed.node().unwrap_or("none");
                let message =
                    format!("is {node}, but its EndpointSlice says {other}; mend one of them");
                return self.refuse(&pod.location, object(), "node".to_owned(), message);
            }
            (None, None) => {
                let message =
                    "is missing, and no EndpointSlice has this pod; say on which node it runs";
                return self.refuse(
                    &pod.location,
                    object(),
                    "node".to_owned(),
                    message.to_owned(),
                );
            }
            (Some(node), None) => node.clone(),
            (None, Some(_)) | (Some(_), Some(_)) => String::new(),
        };
        let addresses = match placed.is_some() || !pod.addresses.is_empty() {
            true => pod.addresses.clone(),
            false => self.free_addresses(&node),
        };
        let location = pod.location.clone();
        let entry = self.pods.entry(key);
        let placed = entry.or_insert_with_key(|(namespace, name)| {
            PlacedPod::new(namespace, name, Placing::Pod(node), location)
        });
        placed.addresses.extend(addresses);
        placed.run = pod.run.clone();
        placed.files.clone_from(&pod.files);
        if placed.addresses.is_empty() {
            let message = "is missing, and the node has no podCIDRs to choose from; give one";
            self.refuse(
                &pod.location,
                object(),
                "addresses".to_owned(),
                message.to_owned(),
            );
        }
    }

    /// One free address of each of the node's ranges; the first hundred are left to the endpoints.
    fn free_addresses(&self, node: &str) -> Vec<IpAddr> {
        const LEFT: usize = 100;
        let ranges = self.nodes.iter().filter(|placed| placed.name == node);
        let taken = |address: &IpAddr| {
            self.pods
                .values()
                .any(|pod| pod.addresses.contains(address))
        };
        ranges
            .flat_map(|node| &node.pod_cidrs)
            .filter_map(|range| {
                let free = |skipped| {
                    range
                        .hosts()
                        .skip(skipped)
                        .take(10_000)
                        .find(|ip| !taken(ip))
                };
                free(LEFT).or_else(|| free(1))
            })
            .collect()
    }

    /// In the pods' network an address is one pod's.
    pub(super) fn check_addresses(&mut self) {
        let mut owners: BTreeMap<IpAddr, (String, String)> = BTreeMap::new();
        let mut clashes = Vec::new();
        for (key, pod) in &self.pods {
            if matches!(pod.placing, Placing::HostNetwork(_)) {
                continue;
            }
            for address in &pod.addresses {
                if let Some(owner) = owners.insert(*address, key.clone()) {
                    clashes.push((pod.location.clone(), key.clone(), *address, owner));
                }
            }
        }
        for (location, (namespace, name), address, owner) in clashes {
            let message = format!(
                "{address} is the address of pod {}/{} too; give each its own",
                owner.0, owner.1
            );
            let object = ObjectName {
                kind: "pod".to_owned(),
                namespace,
                name,
            };
            self.refuse(&location, object, "addresses".to_owned(), message);
        }
    }

    /// In a node's network a port is the first pod's that wants it.
    pub(super) fn share_host_ports(&mut self) {
        let mut taken: BTreeMap<(String, (Protocol, u16)), String> = BTreeMap::new();
        for pod in self.pods.values_mut() {
            let Placing::HostNetwork(node) = &pod.placing else {
                continue;
            };
            let name = format!("{}/{}", pod.namespace, pod.name);
            pod.ports.retain(|port| {
                let owner = taken
                    .entry((node.clone(), *port))
                    .or_insert_with(|| name.clone());
                if *owner != name {
                    let note = format!(
                        "port {} of node {node} is wanted by {owner} and {name}: {owner} serves it",
                        port.1
                    );
                    self.notes.push(note);
                }
                *owner == name
            });
        }
    }
}

impl PlacedPod {
    fn new(namespace: &str, name: &str, placing: Placing, location: Location) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            placing,
            addresses: BTreeSet::new(),
            ports: BTreeSet::new(),
            run: Run::default(),
            files: BTreeMap::new(),
            location,
        }
    }
}

fn slice_name(slice: &EndpointSlice) -> ObjectName {
    ObjectName {
        kind: "EndpointSlice".to_owned(),
        namespace: slice.metadata.namespace.clone(),
        name: slice.metadata.name.clone(),
    }
}
