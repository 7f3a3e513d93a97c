//! What the agent reads from the kernel and from the table, and what it sets on its devices.

use super::steering::{DEVICES, LOOPBACK, Plan, is_link_local};
use crate::model::{Family, Transport};
use crate::netlink::{self, Netlink, RouteKind, Sockets, TABLE_MAIN, read_sysctl, write_sysctl};
use crate::node_network::{InterfaceAddress, NodeNetwork, Route, Scope, Sources};
use crate::resolve::served_address;
use crate::snapshot::Snapshot;
use dataplane::ports::ReservedPorts;
use dataplane::reject;
use dataplane::service::{FrontendKind, Prefix, ServiceTable};
use dataplane::sys::netns;
use dataplane::tuple::Protocol;
use dataplane::worker::NodeFacts;
use ipnet::IpNet;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Addresses and routes of this network namespace, those of our own devices apart. An address of which it is not known yet
/// whether another machine has it (duplicate address detection) is none: the kernel takes it for no source.
///
/// DIFFERS: addresses that only a `local` route makes the node's own are not, so that no NodePort answers there.
///
/// # Errors
/// Those of netlink.
pub fn node_network(netlink: &mut Netlink) -> netlink::Result<NodeNetwork> {
    let addresses = netlink
        .addresses()?
        .into_iter()
        .filter(|address| !address.tentative)
        .map(|address| InterfaceAddress {
            interface: address.index,
            network: address.address,
            scope: scope(address.scope),
            secondary: address.secondary,
        });
    let addresses = addresses.collect();
    let mut routes = Vec::new();
    for family in [Family::V4, Family::V6] {
        for route in netlink.routes_in(TABLE_MAIN, family)? {
            if let (RouteKind::Unicast, Some(interface)) = (route.kind, route.oif) {
                let (destination, gateway) = (route.destination, route.gateway);
                let metric = route.metric.unwrap_or(0);
                let preferred_source = route.preferred_source;
                routes.push(Route {
                    destination,
                    gateway,
                    interface,
                    metric,
                    preferred_source,
                });
            }
        }
    }
    Ok(NodeNetwork { addresses, routes })
}

const fn scope(scope: netlink::Scope) -> Scope {
    match scope {
        netlink::Scope::Host => Scope::Host,
        netlink::Scope::Link => Scope::Link,
        netlink::Scope::Universe | netlink::Scope::Other(_) => Scope::Global,
    }
}

/// Facts for the packet's path.
pub(super) fn node_facts(sources: &Sources, reserved_ports: Arc<ReservedPorts>) -> NodeFacts {
    let mut ranges: Vec<(IpNet, IpAddr)> = sources.iter().collect();
    ranges.sort_by_key(|(range, _)| Reverse(range.prefix_len()));
    let prefix = |range: IpNet| Prefix::new(range.addr().into(), range.prefix_len());
    let sources = ranges
        .into_iter()
        .map(|(range, source)| (prefix(range), source.into()));
    NodeFacts {
        reserved_ports,
        sources: reject::Sources::new(sources.collect()),
    }
}

/// What the node sends from: as its routes say, else the address of its Node if it has that, else its first global one. A
/// family of which it has no address is not there.
pub(super) fn sources(network: &NodeNetwork, snapshot: &Snapshot, node: &str) -> Sources {
    let own = |family: Family| {
        network
            .addresses
            .iter()
            .filter(move |own| own.scope == Scope::Global && !own.network.addr().is_loopback())
            .map(|own| own.network.addr())
            .filter(move |address| Family::of(*address) == family)
    };
    let named: Vec<IpAddr> = snapshot
        .node(node)
        .map(|node| node.host_ips().collect())
        .unwrap_or_default();
    let elsewhere = [Family::V4, Family::V6].into_iter().filter_map(|family| {
        let is_named = |address: &IpAddr| named.contains(address);
        own(family).find(is_named).or_else(|| own(family).next())
    });
    network.sources(elsewhere)
}

/// Where everybody on a link of the node's is addressed.
pub(super) fn broadcasts(network: &NodeNetwork) -> BTreeSet<IpAddr> {
    let own = network
        .addresses
        .iter()
        .filter_map(|own| match own.network {
            IpNet::V4(network) if network.prefix_len() < 31 => Some(network.broadcast().into()),
            _ => None,
        });
    own.chain([Ipv4Addr::BROADCAST.into()]).collect()
}

/// The parts of the plan that follow from the table.
pub(super) fn addressed(services: &ServiceTable, sources: Sources) -> Plan {
    let mut plan = Plan {
        sources,
        ..Plan::default()
    };
    plan.node_addresses = services
        .node_addresses()
        .filter(|address| !address.is_loopback())
        .map(IpAddr::from)
        .filter(|address| !is_link_local(*address))
        .collect();
    plan.node_addresses.sort();
    plan.has_loopback = services
        .node_addresses()
        .any(|address| IpAddr::from(address) == LOOPBACK);
    let mut virtual_addresses = Vec::new();
    for (key, frontend) in services.frontends() {
        let Some(transport) = transport(key.protocol) else {
            continue;
        };
        if frontend.kind == FrontendKind::NodePort {
            include(&mut plan.node_ports, transport, key.port);
        } else {
            virtual_addresses.push(key.address.into());
        }
    }
    // Of many at once a set is made faster.
    plan.virtual_addresses = virtual_addresses.into_iter().collect();
    plan.host_ports = host_ports(services);
    plan
}

/// Those of the plan's virtual addresses that follow from the objects alone: most of them.
pub(super) fn cluster_ips(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let services = snapshot.services.iter();
    let served = services.filter(|service| !service.spec.ports.is_empty());
    served
        .flat_map(|service| [Family::V4, Family::V6].map(|family| served_address(service, family)))
        .flatten()
        .collect()
}

/// Ports of the endpoints on the node's own network: their answers must come by.
fn host_ports(services: &ServiceTable) -> BTreeSet<(Transport, u16)> {
    let endpoints = services.services().flat_map(|service| &*service.endpoints);
    let on_node = endpoints.filter(|endpoint| endpoint.on_node);
    let ports: BTreeSet<u16> = on_node.map(|endpoint| endpoint.port).collect();
    ports
        .into_iter()
        .flat_map(|port| {
            [Transport::Tcp, Transport::Udp, Transport::Sctp].map(|transport| (transport, port))
        })
        .collect()
}

/// Widens the range of `transport` so that it holds `port`.
pub(super) fn include(
    ranges: &mut Vec<(Transport, RangeInclusive<u16>)>,
    transport: Transport,
    port: u16,
) {
    match ranges.iter_mut().find(|(of, _)| *of == transport) {
        Some((_, range)) => *range = *range.start().min(&port)..=*range.end().max(&port),
        None => ranges.push((transport, port..=port)),
    }
}

pub(super) const fn transport(protocol: Protocol) -> Option<Transport> {
    match protocol {
        Protocol::TCP => Some(Transport::Tcp),
        Protocol::UDP => Some(Transport::Udp),
        Protocol::SCTP => Some(Transport::Sctp),
        _ => None,
    }
}

/// Takes the ports anew that sockets of this network namespace listen on or, for UDP, are bound to: nothing tells when one
/// begins to.
///
/// # Errors
/// When the kernel does not list sockets of all protocols; the ports of those that it does not list are as before.
pub(super) fn follow_listening_ports(ports: &ReservedPorts) -> io::Result<()> {
    let mut sockets = Sockets::open()?;
    let listed = [
        (Protocol::TCP, sockets.listening_tcp()),
        (Protocol::UDP, sockets.bound_udp()),
        (Protocol::SCTP, sockets.listening_sctp()),
    ];
    let mut followed = Ok(());
    for (protocol, listed) in listed {
        let listed = listed.map(|listed| ports.replace(protocol, listed));
        followed = followed.and(listed);
    }
    followed
}

/// Sets what packets that come out of one of our devices need: their sources and destinations are the node's own
/// addresses, even loopback, and the way back is another.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn prepare_device(name: &str) -> netlink::Result<()> {
    for (sysctl, value) in [
        ("accept_local", "1"),
        ("rp_filter", "0"),
        ("route_localnet", "1"),
        ("forwarding", "1"),
    ] {
        write_sysctl(&format!("ipv4/conf/{name}/{sysctl}"), value)?;
    }
    if read_sysctl("ipv6/conf/all/disable_ipv6").is_ok_and(|disabled| disabled == "0") {
        for (sysctl, value) in [
            ("addr_gen_mode", "1"),
            ("accept_ra", "0"),
            ("forwarding", "1"),
        ] {
            write_sysctl(&format!("ipv6/conf/{name}/{sysctl}"), value)?;
        }
    }
    Ok(())
}

/// What to say when a device cannot be made.
pub(super) fn cannot_create(name: &str, error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::ResourceBusy => ": another agent runs in this network namespace",
        _ => "",
    };
    anyhow::Error::new(error).context(format!("cannot make the device {name}{hint}"))
}

/// Settings of the whole network namespace that were changed, with what they were. It is written down too, so that the next
/// agent can put back what one that crashed has changed.
#[derive(Debug, Default)]
pub(super) struct Sysctls {
    /// In the order in which they are put back.
    changed: Vec<(String, String)>,
    is_written_down: bool,
}

/// What each setting was, by its name.
type Former = BTreeMap<String, String>;

impl Sysctls {
    /// Forwarding on, strict reverse path filtering of all links off: it would count for our devices as well. Early
    /// demultiplexing off: it ties a packet to the node's own socket before it is routed, and `ip_forward` drops what
    /// has a socket on its way into our devices, so that of a connection to the node only the SYN would arrive.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn prepare_node(&mut self) -> netlink::Result<()> {
        let left = read_former().unwrap_or_default();
        self.forward(&left, "ipv4/ip_forward", "ipv4")?;
        self.change(&left, "ipv4/conf/all/rp_filter", "0", |old| old == "1")?;
        self.change(&left, "ipv4/ip_early_demux", "0", |_| true)?;
        if read_sysctl("ipv6/conf/all/disable_ipv6").is_ok_and(|disabled| disabled == "0") {
            self.forward(&left, "ipv6/conf/all/forwarding", "ipv6")?;
        }
        Ok(())
    }

    /// Switches forwarding of a family on. The kernel changes other settings with it, in either direction, which are put back
    /// after it (`inet_forward_change`, `addrconf_fixup_forwarding`).
    fn forward(&mut self, left: &Former, name: &str, family: &str) -> netlink::Result<()> {
        let with_it = changed_with_forwarding(family);
        let switched_before = self.changed.len();
        self.change(left, name, "1", |_| true)?;
        if self.changed.len() > switched_before {
            let former = |(name, now): (String, String)| {
                let old = left.get(&name).cloned();
                (name, old.unwrap_or(now))
            };
            self.changed.extend(with_it.into_iter().map(former));
        }
        Ok(())
    }

    fn change(
        &mut self,
        left: &Former,
        name: &str,
        value: &str,
        is_wrong: impl Fn(&str) -> bool,
    ) -> netlink::Result<()> {
        let old = read_sysctl(name)?;
        if old == value {
            self.changed.extend(
                left.get(name)
                    .map(|former| (name.to_owned(), former.clone())),
            );
        } else if is_wrong(&old) {
            write_sysctl(name, value)?;
            self.changed.push((name.to_owned(), old));
        }
        Ok(())
    }

    /// For an agent that comes after a crash.
    pub(super) fn write_down(&mut self) {
        match self.write() {
            Ok(()) => self.is_written_down = true,
            Err(error) => {
                tracing::warn!("should the agent crash, sysctls stay as they are: {error}");
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        let former: Former = self.changed.iter().cloned().collect();
        let path = place_of_former()?;
        std::fs::create_dir_all(FORMER_SYSCTLS)?;
        std::fs::write(path, serde_json::to_string(&former)?)
    }

    /// Puts back what was there.
    pub(super) fn restore(&mut self) {
        for (name, old) in self.changed.drain(..) {
            match write_sysctl(&name, &old) {
                // Of a link that has gone.
                Err(error) if error.is_missing() => {}
                Err(error) => tracing::warn!("{error}"),
                Ok(()) => {}
            }
        }
        // What another agent wrote is not ours.
        if self.is_written_down
            && let Ok(place) = place_of_former()
        {
            remove_former(&place);
        }
    }
}

/// What the kernel changes with a family's forwarding, and what it is now: whether each link forwards, and for IPv4 whether
/// redirects count.
fn changed_with_forwarding(family: &str) -> Vec<(String, String)> {
    let links = std::fs::read_dir(format!("/proc/sys/net/{family}/conf"));
    let names = links.into_iter().flatten().flatten();
    let names = names.filter_map(|link| link.file_name().into_string().ok());
    let of_links = names
        .filter(|link| link != "all" && !DEVICES.contains(&link.as_str()))
        .map(|link| format!("{family}/conf/{link}/forwarding"));
    let redirects = (family == "ipv4").then(|| "ipv4/conf/all/accept_redirects".to_owned());
    let settings = of_links.chain(redirects);
    settings
        .filter_map(|name| read_sysctl(&name).ok().map(|value| (name, value)))
        .collect()
}

const FORMER_SYSCTLS: &str = "/run/penstock/sysctls";

/// By network namespace, of which no two have a number, not even one after the other.
fn place_of_former() -> io::Result<PathBuf> {
    Ok(Path::new(FORMER_SYSCTLS).join(netns::cookie()?.to_string()))
}

fn remove_former(place: &Path) {
    // It is not there if nothing was written down.
    let _ = std::fs::remove_file(place);
    // Other agents' lie there as long as they run.
    let _ = std::fs::remove_dir(FORMER_SYSCTLS);
}

/// Forgets what an agent that was killed has changed in the calling thread's network namespace, which is about to go.
///
/// # Errors
/// When the kernel does not tell which one it is.
pub fn forget_former_sysctls() -> io::Result<()> {
    place_of_former().map(|place| remove_former(&place))
}

/// What an agent of this network namespace wrote down that has crashed.
fn read_former() -> io::Result<Former> {
    Ok(serde_json::from_str(&std::fs::read_to_string(
        place_of_former()?,
    )?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::compile;
    use crate::config::KubeProxyConfig;
    use dataplane::service::Generation;

    /// What is led here before there is a table is what the table then says of.
    #[test]
    fn cluster_ips_are_those_of_the_table() {
        const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");
        for name in ["aks-app-routing", "dual-stack", "policy-matrix"] {
            let folder = Path::new(FIXTURES).join(name);
            let snapshot = Snapshot::read(&folder.join("snapshot.yaml")).unwrap();
            let config = KubeProxyConfig::read(&folder.join("kube-proxy.yaml")).unwrap();
            let node = &snapshot.nodes[0];
            let network = NodeNetwork::from_snapshot(node);
            let name = &node.metadata.name;
            let parts = compile(&snapshot, &config, &network, name, Generation(1)).unwrap();
            let frontends = parts.frontends.iter();
            let of_table: BTreeSet<IpAddr> = frontends
                .filter(|(_, frontend)| frontend.kind == FrontendKind::ClusterIp)
                .map(|(key, _)| key.address.into())
                .collect();
            assert_eq!(cluster_ips(&snapshot), of_table, "{name}");
            assert!(!of_table.is_empty());
        }
    }

    #[test]
    fn node_ports_become_the_range_that_holds_them() {
        let mut ranges = Vec::new();
        for (transport, port) in [
            (Transport::Tcp, 30080),
            (Transport::Udp, 5),
            (Transport::Tcp, 30001),
            (Transport::Tcp, 30050),
        ] {
            include(&mut ranges, transport, port);
        }
        assert_eq!(
            ranges,
            [(Transport::Tcp, 30001..=30080), (Transport::Udp, 5..=5)]
        );
    }
}
