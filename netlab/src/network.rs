//! Makes the network of a plan: namespaces, links, addresses, routes; and changes it into that of another plan.

use crate::names::hardware_address;
use crate::namespace::{self, Namespace};
use crate::plan::{Bridge, FABRIC_BRIDGE, Host, Link, Neighbour, Plan, Route, UPLINK};
use control::netlink::{self, Netlink, VethEnd, write_sysctl};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// A step that failed, with the host that it was for.
#[derive(Debug, thiserror::Error)]
#[error("{host}: {source}")]
pub struct Error {
    /// The host.
    pub host: String,
    /// What failed.
    #[source]
    pub source: io::Error,
}

/// The namespaces of a lab, open, each with an rtnetlink connection.
#[derive(Default)]
pub struct Network {
    open: BTreeMap<String, (Namespace, Netlink)>,
    /// The namespace of the bridge that nodes and client hang on.
    fabric: String,
}

type Step<T> = Result<T, io::Error>;

impl Network {
    /// Opens the namespaces of hosts that are there already.
    pub fn open<'a>(hosts: impl Iterator<Item = &'a Host>) -> Result<Self, Error> {
        let mut network = Self::default();
        for host in hosts.filter(|host| host.has_namespace()) {
            network
                .add(host, Namespace::open(&host.namespace))
                .map_err(|error| failed(host, error))?;
        }
        Ok(network)
    }

    /// The namespace of that name.
    pub fn namespace(&self, name: &str) -> io::Result<&Namespace> {
        let found = self.open.get(name).map(|(namespace, _)| namespace);
        found.ok_or_else(|| io::Error::other(format!("namespace {name} is not of this lab")))
    }

    /// Makes hosts that are not there yet; those that others hang on come first in a plan.
    pub fn make<'a>(&mut self, hosts: impl Iterator<Item = &'a Host> + Clone) -> Result<(), Error> {
        let own = hosts.filter(|host| host.has_namespace());
        for host in own.clone() {
            self.make_host(host).map_err(|error| failed(host, error))?;
        }
        for host in own {
            let all = Difference::from_nothing(host);
            self.change(&host.namespace, &all)
                .map_err(|error| failed(host, error))?;
        }
        Ok(())
    }

    /// Takes hosts away, with their links.
    pub fn remove<'a>(&mut self, hosts: impl Iterator<Item = &'a Host>) -> Result<(), Error> {
        for host in hosts.filter(|host| host.has_namespace()) {
            self.remove_host(host)
                .map_err(|error| failed(host, error))?;
        }
        Ok(())
    }

    /// Changes routes and neighbours of hosts that stay; those through the link of a host that was made anew went with
    /// the old link, also when both plans have them.
    pub fn reroute(&mut self, old: &Plan, new: &Plan) -> Result<(), Error> {
        let before: HashMap<_, _> = old.hosts.iter().map(|host| (&host.name, host)).collect();
        let is_anew = |host: &&Host| {
            let before = before.get(&host.name);
            before.is_some_and(|before| !before.same_but_routes(host))
        };
        let anew: Vec<_> = new.hosts.iter().filter(is_anew).collect();
        for host in new.hosts.iter().filter(|host| host.has_namespace()) {
            let Some(before) = before.get(&host.name) else {
                continue;
            };
            let is_lost = |device: &str| anew.iter().any(|other| other.hangs_on(host, device));
            let difference = Difference::between(before, host, is_lost);
            self.change(&host.namespace, &difference)
                .map_err(|error| failed(host, error))?;
        }
        Ok(())
    }

    fn add(&mut self, host: &Host, namespace: io::Result<Namespace>) -> Step<()> {
        let namespace = namespace?;
        let netlink = namespace.netlink()?;
        if host.link == Link::Fabric {
            self.fabric.clone_from(&host.namespace);
        }
        self.open
            .insert(host.namespace.clone(), (namespace, netlink));
        Ok(())
    }

    fn make_host(&mut self, host: &Host) -> Step<()> {
        let namespace = Namespace::create(&host.namespace)?;
        namespace.run(|| set_sysctls(host))?;
        self.add(host, Ok(namespace))?;
        self.link(host)?;
        if host.forwards {
            // Only the uplink needs an address of its own link, for neighbour discovery.
            let namespace = self.namespace(&host.namespace)?;
            namespace.run(|| sysctl("ipv6/conf/default/addr_gen_mode", "1"))?;
        }
        let netlink = self.netlink(&host.namespace)?;
        up(netlink, "lo")?;
        if host.link != Link::Fabric {
            let uplink = up(netlink, UPLINK)?;
            for address in &host.addresses {
                netlink
                    .add_address(uplink, *address)
                    .map_err(io::Error::other)?;
            }
        }
        host.bridge.as_ref().map_or(Ok(()), |bridge| {
            make_bridge(netlink, bridge, &host.namespace)
        })
    }

    /// Connects a host's `eth0`.
    fn link(&mut self, host: &Host) -> Step<()> {
        let (at, interface, bridge) = match &host.link {
            Link::Fabric | Link::Shared => return Ok(()),
            Link::ToFabric { port } => (self.fabric.clone(), port, Some(FABRIC_BRIDGE)),
            Link::ToNode {
                namespace,
                interface,
                bridge,
            } => (namespace.clone(), interface, bridge.as_deref()),
        };
        let own = self
            .namespace(&host.namespace)?
            .as_fd()
            .try_clone_to_owned()?;
        let address =
            |namespace: &str, name: &str| Some(hardware_address(&format!("{namespace} {name}")));
        let near = VethEnd {
            name: interface,
            namespace: None,
            hardware_address: address(&at, interface),
        };
        let far = VethEnd {
            name: UPLINK,
            namespace: Some(own.as_fd()),
            hardware_address: address(&host.namespace, UPLINK),
        };
        let netlink = self.netlink(&at)?;
        netlink.add_veth(near, far).map_err(io::Error::other)?;
        let index = netlink.link_index(interface).map_err(io::Error::other)?;
        if let Some(bridge) = bridge {
            let bridge = netlink.link_index(bridge).map_err(io::Error::other)?;
            netlink
                .set_controller(index, bridge)
                .map_err(io::Error::other)?;
            if matches!(host.link, Link::ToNode { .. }) {
                netlink.isolate_port(index).map_err(io::Error::other)?;
            }
        }
        netlink.set_up(index, true).map_err(io::Error::other)
    }

    fn remove_host(&mut self, host: &Host) -> Step<()> {
        let at = match &host.link {
            Link::ToFabric { port } => Some((self.fabric.clone(), port)),
            Link::ToNode {
                namespace,
                interface,
                ..
            } => Some((namespace.clone(), interface)),
            Link::Fabric | Link::Shared => None,
        };
        // The end of a veth pair goes with the namespace, but not at once, and the name is wanted again.
        if let Some((at, interface)) = at
            && let Ok(netlink) = self.netlink(&at)
            && let Ok(index) = netlink.link_index(interface)
        {
            netlink.delete_link(index).map_err(io::Error::other)?;
        }
        self.open.remove(&host.namespace);
        namespace::remove(&host.namespace)
    }

    fn change(&mut self, namespace: &str, difference: &Difference<'_>) -> Step<()> {
        if difference.is_empty() {
            return Ok(());
        }
        let netlink = self.netlink(namespace)?;
        let links = netlink.links().map_err(io::Error::other)?;
        let index: HashMap<&str, u32> = links
            .iter()
            .map(|link| (link.name.as_str(), link.index))
            .collect();
        let wire = |routes: &[&Route]| -> Vec<netlink::Route> {
            // The routes of a link that is gone went with it.
            routes
                .iter()
                .filter_map(|route| to_wire(route, &index))
                .collect()
        };
        netlink
            .delete_routes(&wire(&difference.removed_routes))
            .map_err(io::Error::other)?;
        for neighbour in &difference.added_neighbours {
            let device = *index
                .get(neighbour.device.as_str())
                .ok_or_else(|| missing(&neighbour.device))?;
            let (address, hardware_address) = (neighbour.address, neighbour.hardware_address);
            netlink
                .set_neighbour(device, address, hardware_address)
                .map_err(io::Error::other)?;
        }
        if let Some(route) = difference
            .added_routes
            .iter()
            .find(|route| !index.contains_key(route.device.as_str()))
        {
            return Err(missing(&route.device));
        }
        netlink
            .replace_routes(&wire(&difference.added_routes))
            .map_err(io::Error::other)
    }

    fn netlink(&mut self, namespace: &str) -> Step<&mut Netlink> {
        let found = self.open.get_mut(namespace).map(|(_, netlink)| netlink);
        found.ok_or_else(|| io::Error::other(format!("namespace {namespace} is not of this lab")))
    }
}

fn failed(host: &Host, source: io::Error) -> Error {
    Error {
        host: host.name.to_string(),
        source,
    }
}

fn missing(device: &str) -> io::Error {
    io::Error::other(format!("there is no link {device}"))
}

fn up(netlink: &mut Netlink, name: &str) -> Step<u32> {
    let index = netlink.link_index(name).map_err(io::Error::other)?;
    netlink.set_up(index, true).map_err(io::Error::other)?;
    Ok(index)
}

fn make_bridge(netlink: &mut Netlink, bridge: &Bridge, namespace: &str) -> Step<()> {
    let hardware_address = hardware_address(&format!("{namespace} {}", bridge.name));
    netlink
        .add_bridge(&bridge.name, Some(hardware_address))
        .map_err(io::Error::other)?;
    let index = up(netlink, &bridge.name)?;
    for address in &bridge.addresses {
        netlink
            .add_address(index, *address)
            .map_err(io::Error::other)?;
    }
    Ok(())
}

fn to_wire(route: &Route, index: &HashMap<&str, u32>) -> Option<netlink::Route> {
    Some(netlink::Route {
        oif: Some(*index.get(route.device.as_str())?),
        gateway: route.gateway,
        onlink: route.gateway.is_some(),
        ..netlink::Route::new(route.destination)
    })
}

/// What a fresh namespace has from the machine is set to what a node, or a host, has. Before it has links: they
/// take the defaults when they are made.
fn set_sysctls(host: &Host) -> io::Result<()> {
    for conf in ["all", "default"] {
        for (name, value) in [
            ("rp_filter", "0"),
            ("send_redirects", "0"),
            ("accept_redirects", "0"),
        ] {
            sysctl(&format!("ipv4/conf/{conf}/{name}"), value)?;
        }
        // No waiting for addresses that nobody else can have.
        for (name, value) in [
            ("disable_ipv6", "0"),
            ("accept_dad", "0"),
            ("accept_ra", "0"),
        ] {
            sysctl(&format!("ipv6/conf/{conf}/{name}"), value)?;
        }
    }
    for table in ["iptables", "ip6tables", "arptables"] {
        sysctl(&format!("bridge/bridge-nf-call-{table}"), "0")?;
    }
    if host.forwards {
        sysctl("ipv4/ip_forward", "1")?;
        sysctl("ipv6/conf/all/forwarding", "1")?;
        sysctl("ipv6/conf/default/forwarding", "1")?;
    } else {
        sysctl(
            "ipv6/conf/default/addr_gen_mode",
            if is_pod(host) { "1" } else { "0" },
        )?;
    }
    Ok(())
}

fn is_pod(host: &Host) -> bool {
    matches!(host.link, Link::ToNode { .. })
}

/// A kernel without IPv6 or without bridge filters has no such files, and no need of them.
fn sysctl(name: &str, value: &str) -> io::Result<()> {
    if !Path::new("/proc/sys/net").join(name).exists() {
        return Ok(());
    }
    write_sysctl(name, value).map_err(io::Error::other)
}

/// What is to change at a host.
#[derive(Default)]
struct Difference<'a> {
    removed_routes: Vec<&'a Route>,
    added_routes: Vec<&'a Route>,
    added_neighbours: Vec<&'a Neighbour>,
}

impl<'a> Difference<'a> {
    fn from_nothing(host: &'a Host) -> Self {
        Self {
            removed_routes: Vec::new(),
            added_routes: host.routes.iter().collect(),
            added_neighbours: host.neighbours.iter().collect(),
        }
    }

    /// What went with a device that `is_lost` is neither removed nor known.
    fn between(old: &'a Host, new: &'a Host, is_lost: impl Fn(&str) -> bool) -> Self {
        let left = old.routes.iter().filter(|route| !is_lost(&route.device));
        let left: HashSet<&Route> = left.collect();
        let wanted: HashSet<&Route> = new.routes.iter().collect();
        let known = old.neighbours.iter();
        let known: HashSet<&Neighbour> = known.filter(|entry| !is_lost(&entry.device)).collect();
        let neighbours = new.neighbours.iter();
        Self {
            removed_routes: (old.routes.iter())
                .filter(|route| left.contains(route) && !wanted.contains(route))
                .collect(),
            added_routes: (new.routes.iter())
                .filter(|route| !left.contains(route))
                .collect(),
            added_neighbours: neighbours.filter(|entry| !known.contains(*entry)).collect(),
        }
    }

    const fn is_empty(&self) -> bool {
        self.removed_routes.is_empty()
            && self.added_routes.is_empty()
            && self.added_neighbours.is_empty()
    }
}
