//! Routes and permanent neighbours of all hosts.

use super::{
    Fabric, Host, Input, Link, Neighbour, PlacedNode, Placement, Placing, Plan, Route, UPLINK,
};
use crate::names::{HostName, hardware_address};
use control::model::Family;
use control::snapshot::Snapshot;
use control::snapshot::objects::{ClusterIp, IpMode, Policy, Service};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What pods send everything to. Only their permanent neighbour entries know it; no host has it.
const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
];

/// Adds them to all hosts.
pub(super) fn add(plan: &mut Plan, placement: &Placement, fabric: &Fabric, input: Input<'_>) {
    let vips = vips(input, placement);
    let outside: Vec<IpAddr> = plan
        .hosts
        .iter()
        .filter_map(|host| match host.name {
            HostName::Outside(address) => Some(address),
            _ => None,
        })
        .collect();
    for host in &mut plan.hosts {
        let own: Vec<IpAddr> = host.addresses.iter().map(IpNet::addr).collect();
        let all_nodes = placement
            .nodes
            .iter()
            .flat_map(|node| node.addresses.iter().copied());
        let mut on_link: Vec<IpAddr> = Vec::new();
        match &host.name.clone() {
            HostName::Node(name) => {
                on_link.extend(all_nodes);
                on_link.extend(fabric.client.iter().map(IpNet::addr));
                on_link.extend(&outside);
                host.routes = to_pods(placement, Some(name));
                if input.routes_to_services {
                    let services = input.snapshot.services.iter();
                    on_link.extend(services.flat_map(addresses).filter(|ip| !own.contains(ip)));
                }
            }
            HostName::Client => {
                on_link.extend(all_nodes);
                host.routes.extend(vips.iter().filter_map(|(vip, via)| {
                    let node = placement.nodes.iter().find(|node| node.name == *via)?;
                    gateway_route(IpNet::from(*vip), node)
                }));
            }
            HostName::Outside(_) => {
                on_link.extend(all_nodes);
                host.routes = to_pods(placement, None);
            }
            HostName::Pod { .. } if host.has_namespace() => pod(host),
            HostName::Pod { .. } | HostName::Fabric => {}
        }
        let families: Vec<Family> = own.iter().map(|address| Family::of(*address)).collect();
        on_link.retain(|address| {
            let reached = host.addresses.iter().any(|subnet| subnet.contains(address));
            !reached && families.contains(&Family::of(*address))
        });
        host.routes.extend(
            on_link
                .into_iter()
                .map(|address| link_route(UPLINK, address)),
        );
        host.routes.sort();
        host.routes.dedup();
    }
    links_of_pods(plan);
}

/// Ranges of pods by their nodes, and pods outside their node's ranges one by one; those of `own` excepted.
fn to_pods(placement: &Placement, own: Option<&String>) -> Vec<Route> {
    let others = || {
        placement
            .nodes
            .iter()
            .filter(|node| Some(&node.name) != own)
    };
    let mut routes: Vec<Route> = Vec::new();
    for node in others() {
        routes.extend(
            node.pod_cidrs
                .iter()
                .filter_map(|range| gateway_route(*range, node)),
        );
    }
    for pod in &placement.pods {
        let Placing::Pod(name) = &pod.placing else {
            continue;
        };
        let Some(node) = others().find(|node| node.name == *name) else {
            continue;
        };
        let inside = |address: &IpAddr| node.pod_cidrs.iter().any(|range| range.contains(address));
        let strangers = pod.addresses.iter().filter(|address| !inside(address));
        routes.extend(strangers.filter_map(|address| gateway_route(IpNet::from(*address), node)));
    }
    routes
}

/// A route by a node's address of the destination's family; none when it has no such address.
fn gateway_route(destination: IpNet, node: &PlacedNode) -> Option<Route> {
    let family = Family::of(destination.addr());
    let gateway = *node
        .addresses
        .iter()
        .find(|address| Family::of(**address) == family)?;
    let is_own = node.addresses.contains(&destination.addr());
    let device = UPLINK.to_owned();
    (!is_own).then_some(Route {
        destination,
        device,
        gateway: Some(gateway),
    })
}

fn link_route(device: &str, address: IpAddr) -> Route {
    Route {
        destination: IpNet::from(address),
        device: device.to_owned(),
        gateway: None,
    }
}

/// A pod sends everything to its node.
fn pod(host: &mut Host) {
    let Link::ToNode {
        namespace,
        interface,
        bridge,
    } = &host.link
    else {
        return;
    };
    let device = bridge.as_ref().unwrap_or(interface);
    let peer = hardware_address(&format!("{namespace} {device}"));
    for gateway in GATEWAYS {
        let family = Family::of(gateway);
        if !host
            .addresses
            .iter()
            .any(|address| Family::of(address.addr()) == family)
        {
            continue;
        }
        let destination = match family {
            Family::V4 => IpNet::V4(Ipv4Net::default()),
            Family::V6 => IpNet::V6(Ipv6Net::default()),
        };
        let device = UPLINK.to_owned();
        host.routes.push(Route {
            destination,
            device,
            gateway: Some(gateway),
        });
        let device = UPLINK.to_owned();
        host.neighbours.push(Neighbour {
            device,
            address: gateway,
            hardware_address: peer,
        });
    }
}

/// A node reaches each of its pods by the pod's link.
fn links_of_pods(plan: &mut Plan) {
    let mut by_node: BTreeMap<String, (Vec<Route>, Vec<Neighbour>)> = BTreeMap::new();
    for host in &plan.hosts {
        let Link::ToNode {
            namespace,
            interface,
            bridge,
        } = &host.link
        else {
            continue;
        };
        let (routes, neighbours) = by_node.entry(namespace.clone()).or_default();
        let device = bridge.as_ref().unwrap_or(interface);
        for address in host.addresses.iter().map(IpNet::addr) {
            routes.push(link_route(device, address));
            neighbours.push(Neighbour {
                device: device.clone(),
                address,
                hardware_address: hardware_address(&format!("{} {UPLINK}", host.namespace)),
            });
        }
    }
    for host in &mut plan.hosts {
        if host.has_namespace()
            && let Some((routes, neighbours)) = by_node.remove(&host.namespace)
        {
            host.routes.extend(routes);
            host.neighbours.extend(neighbours);
        }
    }
}

/// Load balancer and external IPs with the node that the client reaches each by.
fn vips(input: Input<'_>, placement: &Placement) -> BTreeMap<IpAddr, String> {
    let mut vips = BTreeMap::new();
    for service in &input.snapshot.services {
        let is_of_node = |address: &IpAddr| {
            let mut nodes = placement.nodes.iter();
            nodes.any(|node| node.addresses.contains(address))
        };
        // An external IP that is a node's address leads to that node already.
        for address in addresses_outside(service) {
            if is_of_node(&address) {
                continue;
            }
            let via = via_node(input.snapshot, service, input.via, |node| {
                let placed = placement.nodes.iter().find(|placed| placed.name == node);
                placed.is_some_and(|placed| {
                    placed
                        .addresses
                        .iter()
                        .any(|own| Family::of(*own) == Family::of(address))
                })
            });
            let Some(via) = via else { continue };
            let is_local = service.spec.external_traffic_policy == Some(Policy::Local);
            if is_local || !vips.contains_key(&address) {
                vips.insert(address, via);
            }
        }
    }
    vips
}

/// Everything that a Service is reached by.
fn addresses(service: &Service) -> Vec<IpAddr> {
    let spec = &service.spec;
    let cluster = spec
        .cluster_ips
        .iter()
        .chain([&spec.cluster_ip])
        .filter_map(|ip| match ip {
            ClusterIp::Address(address) => Some(*address),
            _ => None,
        });
    cluster.chain(addresses_outside(service)).collect()
}

/// External IPs, and load balancer IPs that packets keep until they are at a node.
pub(crate) fn addresses_outside(service: &Service) -> Vec<IpAddr> {
    let ingress = service.status.load_balancer.ingress.iter();
    let vips = ingress.filter(|ingress| ingress.ip_mode != Some(IpMode::Proxy));
    vips.filter_map(|ingress| ingress.ip)
        .chain(service.spec.external_ips.iter().copied())
        .collect()
}

/// The node by which traffic from outside reaches a Service: `via`, else one with a ready endpoint where only
/// those serve, else the first; of those that are `usable`.
pub fn via_node(
    snapshot: &Snapshot,
    service: &Service,
    via: Option<&str>,
    usable: impl Fn(&str) -> bool,
) -> Option<String> {
    if let Some(via) = via.filter(|via| usable(via)) {
        return Some(via.to_owned());
    }
    let names = || {
        snapshot
            .nodes
            .iter()
            .map(|node| node.metadata.name.as_str())
            .filter(|name| usable(name))
    };
    let ready = ready_nodes(snapshot, service);
    let local = service.spec.external_traffic_policy == Some(Policy::Local);
    let chosen = names()
        .find(|name| !local || ready.contains(name))
        .or_else(|| names().next());
    chosen.map(str::to_owned)
}

/// Nodes with a ready endpoint of a Service.
pub(crate) fn ready_nodes<'a>(snapshot: &'a Snapshot, service: &Service) -> Vec<&'a str> {
    let of_service = snapshot.endpoint_slices.iter().filter(|slice| {
        slice.metadata.namespace == service.metadata.namespace
            && slice.service_name() == Some(service.metadata.name.as_str())
    });
    let endpoints = of_service.flat_map(|slice| &slice.endpoints);
    let ready = endpoints.filter(|endpoint| endpoint.conditions.ready != Some(false));
    ready
        .filter_map(|endpoint| endpoint.node_name.as_deref())
        .collect()
}
