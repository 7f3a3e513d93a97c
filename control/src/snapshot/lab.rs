//! What a snapshot must have beyond kube-proxy's needs to be brought up as a lab: a place for every address.

use super::objects::EndpointSlice;
use super::{AddressType, Node, Snapshot};
use crate::problem::{ObjectName, Problem};
use std::collections::HashMap;
use std::net::IpAddr;

/// A few thousand namespaces are what a laptop takes within seconds.
const PODS: usize = 2000;

impl Snapshot {
    /// Everything that stands in the way of a lab with these nodes and pods. Empty: nothing.
    pub fn check_for_lab(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.nodes.iter().filter_map(without_address).collect();
        let mut places: HashMap<IpAddr, &str> = HashMap::new();
        for slice in &self.endpoint_slices {
            if slice.address_type == AddressType::FQDN {
                continue;
            }
            for (index, endpoint) in slice.endpoints.iter().enumerate() {
                let Some(address) = endpoint.address() else {
                    continue;
                };
                let problem = |field: &str, message: String| {
                    of_slice(slice, format!("endpoints[{index}].{field}"), message)
                };
                let node = match self.place(address, endpoint.node_name.as_deref()) {
                    Ok(node) => node,
                    Err((field, message)) => {
                        problems.push(problem(field, message));
                        continue;
                    }
                };
                let name = node.metadata.name.as_str();
                if let Some(other) = places.insert(address, name)
                    && other != name
                {
                    let message = format!(
                        "is {name}, but {address} is on {other} elsewhere; an address has one place"
                    );
                    problems.push(problem("nodeName", message));
                }
            }
        }
        problems.extend(self.clashes(&places));
        problems.extend(self.too_many(&places));
        problems
    }

    fn too_many(&self, places: &HashMap<IpAddr, &str>) -> Option<Problem> {
        let own = self.nodes.iter().flat_map(Node::host_ips);
        let pods = places.len() - own.filter(|own| places.contains_key(own)).count();
        let last = self.endpoint_slices.last().filter(|_| pods > PODS)?;
        let message = format!(
            "brings the lab to {pods} pods, each a network namespace; a lab takes {PODS}, so leave Services out"
        );
        Some(of_slice(last, "endpoints".to_owned(), message))
    }

    /// The node that an endpoint is on: the one it names, else the one that has its address or range.
    pub fn place(
        &self,
        address: IpAddr,
        node_name: Option<&str>,
    ) -> Result<&Node, (&'static str, String)> {
        if let Some(name) = node_name {
            let message = || format!("there is no Node {name}; add it, or name another");
            return self.node(name).ok_or_else(|| ("nodeName", message()));
        }
        let holds = |node: &&Node| {
            node.host_ips().any(|own| own == address)
                || node.pod_cidrs().any(|range| range.contains(&address))
        };
        let message = || {
            format!("{address} is on no node and in no spec.podCIDRs; give the endpoint a nodeName")
        };
        self.nodes
            .iter()
            .find(holds)
            .ok_or_else(|| ("addresses", message()))
    }

    /// Pods whose address is that of a node that they are not on.
    fn clashes(&self, places: &HashMap<IpAddr, &str>) -> Vec<Problem> {
        let mut problems = Vec::new();
        for node in &self.nodes {
            for address in node.host_ips() {
                if let Some(place) = places.get(&address)
                    && *place != node.metadata.name
                {
                    problems.push(Problem {
                        location: node.metadata.location.clone(),
                        object: Some(ObjectName {
                            kind: "Node".to_owned(),
                            namespace: String::new(),
                            name: node.metadata.name.clone(),
                        }),
                        field: "status.addresses".to_owned(),
                        message: format!(
                            "{address} is also an endpoint on {place}; an address has one place"
                        ),
                    });
                }
            }
        }
        problems
    }
}

fn without_address(node: &Node) -> Option<Problem> {
    node.host_ips().next().is_none().then(|| Problem {
        location: node.metadata.location.clone(),
        object: Some(node.metadata.object_name("Node")),
        field: "status.addresses".to_owned(),
        message: "has no InternalIP; a node of a lab needs one".to_owned(),
    })
}

fn of_slice(slice: &EndpointSlice, field: String, message: String) -> Problem {
    Problem {
        location: slice.metadata.location.clone(),
        object: Some(slice.metadata.object_name("EndpointSlice")),
        field,
        message,
    }
}
