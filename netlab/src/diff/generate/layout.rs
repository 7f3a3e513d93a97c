//! The node that objects are about: its links, who can talk there, and what there is to talk to.

use super::super::case::{Link, Place, Route};
use super::super::wire::{TCP, UDP};
use super::cluster::pick;
use anyhow::{Context as _, Result};
use control::config::{DetectLocal, KubeProxyConfig};
use control::model::{Family, Transport};
use control::node_network::NodeNetwork;
use control::render::Proxiers;
use control::snapshot::{Node, Snapshot};
use fastrand::Rng;
use ipnet::IpNet;
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

pub(super) const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Links of single pods; more pods share one.
const POD_LINKS: usize = 6;

/// A node and its surroundings.
pub(super) struct Layout {
    pub(super) links: Vec<Link>,
    pub(super) clients: Vec<(Place, IpAddr)>,
    pub(super) targets: Vec<Target>,
    /// Where the node listens for health checks.
    pub(super) health_check_ports: HashSet<u16>,
}

/// An address and port that may mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) address: IpAddr,
    pub(super) protocol: u8,
    pub(super) port: u16,
    /// Whether it is an address of a Service, not of a node or an endpoint.
    pub(super) is_virtual: bool,
}

impl Layout {
    pub(super) fn of(
        snapshot: &Snapshot,
        config: &KubeProxyConfig,
        name: &str,
        rng: &mut Rng,
    ) -> Result<Self> {
        let node = snapshot
            .node(name)
            .context("the node is not in the snapshot")?;
        let own: Vec<IpAddr> = node.host_ips().collect();
        let proxiers = Proxiers::new(snapshot, config, &NodeNetwork::from_snapshot(node), name)?;
        let services = || proxiers.v4.services.iter().chain(&proxiers.v6.services);
        let mut pods = BTreeSet::new();
        for endpoint in services().flat_map(|service| &service.endpoints) {
            if endpoint.is_local && !own.contains(&endpoint.address) {
                pods.insert(endpoint.address);
            }
        }
        // A pod that is no endpoint.
        pods.extend(
            pod_ranges(node)
                .iter()
                .filter_map(|range| range.hosts().nth(200)),
        );
        let pods: Vec<IpAddr> = pods.into_iter().collect();
        let mut links = vec![uplink(snapshot, node, rng)];
        links.extend(pod_links(node, &pods, config, rng));
        if rng.u8(..3) == 0 {
            links.push(second_uplink()?);
        }
        let node_addresses: Vec<IpAddr> = links
            .iter()
            .flat_map(|link| &link.addresses)
            .map(IpNet::addr)
            .collect();
        let mut targets = Vec::new();
        for service in services() {
            let protocol = number(service.name.protocol);
            let mut add = |address: IpAddr, port, is_virtual| {
                if Family::of(address) == service.family {
                    targets.push(Target {
                        address,
                        protocol,
                        port,
                        is_virtual,
                    });
                }
            };
            add(service.cluster_ip, service.port, true);
            for address in service
                .external_ips
                .iter()
                .chain(&service.load_balancer_vips)
            {
                add(*address, service.port, true);
            }
            if let Some(port) = service.node_port {
                let own = node_addresses.iter().copied();
                let localhost = Some(LOCALHOST).filter(|_| has_sockets(protocol));
                own.chain(localhost)
                    .for_each(|address| add(address, port, false));
            }
            for endpoint in &service.endpoints {
                add(endpoint.address, endpoint.port, false);
            }
        }
        targets.sort();
        targets.dedup();
        let clients = clients(&links, &pods, snapshot, node);
        Ok(Self {
            links,
            clients,
            targets,
            health_check_ports: snapshot
                .services
                .iter()
                .filter_map(|service| service.spec.health_check_node_port)
                .collect(),
        })
    }

    /// Somebody who may talk to `target`. The node itself talks to Services, to its own addresses by sockets only
    /// (`super::super::host`), and nobody else to localhost.
    pub(super) fn client(&self, target: &Target, rng: &mut Rng) -> Option<(Place, IpAddr)> {
        if target.address == LOCALHOST {
            return Some((Place::Node, LOCALHOST));
        }
        let is_own = self.is_own(target.address);
        let may = |place: &Place| {
            *place != Place::Node || target.is_virtual || is_own && has_sockets(target.protocol)
        };
        let family = Family::of(target.address);
        let of: Vec<_> = self
            .clients
            .iter()
            .filter(|(place, address)| Family::of(*address) == family && may(place))
            .collect();
        (!of.is_empty()).then(|| **pick(rng, &of))
    }

    /// Whether `address` is the node's.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        let mut own = self.links.iter().flat_map(|link| &link.addresses);
        address == LOCALHOST || own.any(|own| own.addr() == address)
    }
}

/// Whether the node can send by sockets of this protocol.
pub(super) const fn has_sockets(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP)
}

pub(super) const fn number(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
        Transport::Sctp => 132,
    }
}

fn pod_ranges(node: &Node) -> Vec<IpNet> {
    let ranges: Vec<IpNet> = node.pod_cidrs().collect();
    if ranges.is_empty() {
        vec![IpNet::new_assert(IpAddr::from([10, 200, 0, 0]), 24)]
    } else {
        ranges
    }
}

/// The subnet of a node's address.
fn subnet(address: IpAddr) -> IpNet {
    IpNet::new_assert(address, if address.is_ipv4() { 24 } else { 64 })
}

fn uplink(snapshot: &Snapshot, node: &Node, rng: &mut Rng) -> Link {
    let own: Vec<IpAddr> = node.host_ips().collect();
    let mut addresses: Vec<IpNet> = own.iter().map(|address| subnet(*address)).collect();
    if let Some(IpAddr::V4(first)) = own.iter().find(|address| address.is_ipv4())
        && rng.u8(..3) != 0
    {
        // Another address of the node, unless it is somebody's.
        let [a, b, c, _] = first.octets();
        let second = IpAddr::from([a, b, c, 102]);
        let mut others = snapshot.nodes.iter().flat_map(Node::host_ips);
        if !others.any(|other| other == second) {
            addresses.push(subnet(second));
        }
    }
    let mut routes = Vec::new();
    for address in &own {
        let everything = if address.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        let gateway = subnet(*address).hosts().find(|host| !own.contains(host));
        // Two fixed texts.
        routes.extend(everything.parse().ok().map(|to| Route { to, via: gateway }));
    }
    routes.dedup_by_key(|route| route.to);
    for other in snapshot
        .nodes
        .iter()
        .filter(|other| other.metadata.name != node.metadata.name)
    {
        for range in other.pod_cidrs() {
            let via = other
                .host_ips()
                .find(|address| Family::of(*address) == Family::of(range.addr()))
                .filter(|via| addresses.iter().any(|own| own.contains(via)));
            routes.push(Route { to: range, via });
        }
    }
    Link {
        name: "eth0".to_owned(),
        is_outside: true,
        addresses,
        routes,
    }
}

/// Another network that the node has a link to, which its Node does not tell of, and one behind that.
fn second_uplink() -> Result<Link> {
    let route = |(to, via): (&str, &str)| -> Result<Route> {
        Ok(Route {
            to: to.parse()?,
            via: Some(via.parse()?),
        })
    };
    let behind = [
        ("192.168.78.0/24", "192.168.77.1"),
        ("fd00:78::/64", "fd00:77::1"),
    ];
    Ok(Link {
        name: "eth1".to_owned(),
        is_outside: true,
        addresses: vec!["192.168.77.2/24".parse()?, "fd00:77::2/64".parse()?],
        routes: behind.into_iter().map(route).collect::<Result<_>>()?,
    })
}

/// Who is in the networks of [`second_uplink`].
const BY_THE_SECOND_UPLINK: [&str; 4] =
    ["192.168.77.9", "192.168.78.5", "fd00:77::9", "fd00:78::5"];

/// One link with all pods, as a bridge is, or one per pod, with or without an address of the node's on it.
fn pod_links(node: &Node, pods: &[IpAddr], config: &KubeProxyConfig, rng: &mut Rng) -> Vec<Link> {
    let (prefix, bridge) = match &config.detect_local {
        DetectLocal::InterfaceNamePrefix(prefix) => (prefix.as_str(), None),
        DetectLocal::BridgeInterface(bridge) => ("veth", Some(bridge.as_str())),
        _ if rng.bool() => ("veth", Some("cni0")),
        _ => ("veth", None),
    };
    let gateways = || {
        pod_ranges(node).into_iter().filter_map(|range| {
            let gateway = range.hosts().next()?;
            IpNet::new(gateway, range.prefix_len()).ok()
        })
    };
    let host = |pod: &IpAddr| Route {
        to: IpNet::from(*pod),
        via: None,
    };
    let on_bridge = |pods: &[IpAddr]| {
        let outside = pods
            .iter()
            .filter(|pod| !gateways().any(|range| range.contains(*pod)));
        outside.map(host).collect()
    };
    if let Some(bridge) = bridge {
        let link = Link {
            name: bridge.to_owned(),
            is_outside: false,
            addresses: gateways().collect(),
            routes: on_bridge(pods),
        };
        return vec![link];
    }
    let with_address = rng.bool();
    let mut links: Vec<Link> = Vec::new();
    let mut four_and_six: Vec<Vec<IpAddr>> = vec![Vec::new(); POD_LINKS.min(pods.len())];
    for (number, pod) in pods.iter().enumerate() {
        let turn = number % four_and_six.len();
        four_and_six[turn].push(*pod);
    }
    for (number, pods) in four_and_six.iter().enumerate() {
        let addresses = if with_address {
            gateways()
                .map(|gateway| IpNet::from(gateway.addr()))
                .collect()
        } else {
            Vec::new()
        };
        links.push(Link {
            name: format!("{prefix}{number}"),
            is_outside: false,
            addresses,
            routes: pods.iter().map(host).collect(),
        });
    }
    links
}

fn clients(
    links: &[Link],
    pods: &[IpAddr],
    snapshot: &Snapshot,
    node: &Node,
) -> Vec<(Place, IpAddr)> {
    let outside = [
        "192.0.2.5",
        "192.0.2.77",
        "198.18.0.7",
        "2001:db8:ffff::5",
        "2001:db8:eeee::5",
    ];
    let mut clients: Vec<(Place, IpAddr)> = outside
        .iter()
        .filter_map(|address| Some((Place::Link(0), address.parse().ok()?)))
        .collect();
    for other in snapshot
        .nodes
        .iter()
        .filter(|other| other.metadata.name != node.metadata.name)
    {
        clients.extend(other.host_ips().map(|address| (Place::Link(0), address)));
        let pod = other.pod_cidrs().filter_map(|range| range.hosts().nth(9));
        clients.extend(pod.map(|address| (Place::Link(0), address)));
    }
    if let Some(second) = links.iter().skip(1).position(|link| link.is_outside) {
        let there = BY_THE_SECOND_UPLINK
            .iter()
            .filter_map(|address| address.parse().ok());
        clients.extend(there.flat_map(|address| [(Place::Link(second + 1), address); 2]));
    }
    let own: BTreeSet<IpAddr> = links
        .iter()
        .flat_map(|link| &link.addresses)
        .map(IpNet::addr)
        .collect();
    for address in own {
        clients.extend([(Place::Node, address); 2]);
    }
    for pod in pods {
        let link = links.iter().position(|link| {
            let routed = link
                .routes
                .iter()
                .any(|route| route.to == IpNet::from(*pod));
            routed
                || link
                    .addresses
                    .iter()
                    .any(|own| own.contains(pod) && !link.is_outside)
        });
        // Pods count twice: there is more to decide about them.
        clients.extend(link.map(|link| (Place::Link(link), *pod)));
        clients.extend(link.map(|link| (Place::Link(link), *pod)));
    }
    clients
}
