//! A node of a case: a network namespace whose links end in this process, so that nothing else answers on them.
//!
//! The links are TUN devices. The kernel takes a frame that is written to one all the way to the next device before the
//! write returns, so that whatever comes out at once is there to be read. The node's own sockets ([`host`]) are one place
//! more. Invariant: the namespace has no name and goes with its last descriptor.

use super::case::{Case, Link, Place};
use super::host::{self, Host};
use super::segment::Keepers;
use super::wire::{ICMP, ICMPV6, Ip, TCP};
use crate::namespace::Namespace;
use control::model::Family;
use control::netlink::{Netlink, Route, RouteKind, TABLE_LOCAL, write_sysctl};
use dataplane::frame::Frame;
use dataplane::sys::tun::{self, Offloads, Queue};
use dataplane::worker::Device;
use ipnet::IpNet;
use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A packet that came out, and the number of the link that it came out of; the number of links for the node itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) link: usize,
    pub(super) bytes: Vec<u8>,
}

/// The namespace of a node with its links.
pub(super) struct World {
    namespace: Namespace,
    links: Vec<Queue>,
    host: Host,
    keepers: Keepers,
    frame: Frame,
}

/// How a packet is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// As it is.
    Raw,
    /// By a socket of the node: the data of a UDP packet, or what a TCP segment says.
    Socket,
}

/// Whether a TCP client of the node has a socket that takes what comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// It has.
    Kept,
    /// The node answers for it, with a RST.
    Gone,
}

impl World {
    /// The node of `case` with its links, and nothing that handles Services.
    pub(super) fn create(case: &Case) -> io::Result<Self> {
        let namespace = Namespace::unnamed()?;
        let (links, host) = namespace.run(|| {
            set_defaults(case.icmp_limits).map_err(io::Error::other)?;
            let mut netlink = Netlink::open()?;
            let lo = netlink.link_index("lo").map_err(io::Error::other)?;
            netlink.set_up(lo, true).map_err(io::Error::other)?;
            let links = case.links.iter();
            let queues = links.map(|link| create_link(&mut netlink, link));
            let queues = queues.collect::<io::Result<Vec<Queue>>>()?;
            wait_for_addresses(&mut netlink, case)?;
            Ok((queues, Host::open()?))
        })?;
        Ok(Self {
            namespace,
            links,
            host,
            keepers: Keepers::default(),
            frame: Frame::new(),
        })
    }

    pub(super) const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Lets `packet` arrive on a link, or the node send it.
    pub(super) fn send(
        &mut self,
        place: Place,
        packet: &[u8],
        by: Sender,
        client: Client,
    ) -> io::Result<()> {
        let Self {
            namespace, keepers, ..
        } = self;
        let is_tcp = Ip::parse(packet).is_some_and(|ip| ip.protocol == TCP);
        let is_kept = is_tcp && client == Client::Kept;
        match (place, by) {
            (Place::Link(link), _) => self.arrive(link, packet),
            (Place::Node, Sender::Raw) => {
                if is_kept {
                    namespace.run(|| keepers.keep_for(packet))?;
                }
                self.host.send(packet)
            }
            (Place::Node, Sender::Socket) if is_tcp => {
                namespace.run(|| keepers.send(packet, is_kept))
            }
            (Place::Node, Sender::Socket) => namespace.run(|| host::send_datagram(packet)),
        }
    }

    fn arrive(&mut self, link: usize, packet: &[u8]) -> io::Result<()> {
        self.frame.set_packet(packet);
        match self.links[link].send(&self.frame) {
            // The kernel takes nothing that is shorter than an IP header.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            result => result,
        }
    }

    /// Everything that came out and was not taken yet, link by link.
    pub(super) fn take(&mut self, outputs: &mut Vec<Output>) -> io::Result<()> {
        for (link, queue) in self.links.iter_mut().enumerate() {
            while queue.receive(&mut self.frame)? {
                let bytes = self.frame.packet().to_vec();
                if !is_noise(&bytes) {
                    outputs.push(Output { link, bytes });
                }
            }
        }
        let link = self.links.len();
        let mut room = [0; 1 << 16];
        while let Some(length) = self.host.receive(&mut room)? {
            let bytes = room[..length].to_vec();
            outputs.push(Output { link, bytes });
        }
        Ok(())
    }
}

/// What the kernel sends by itself when links come up (multicast listener reports, router solicitations), and when it has
/// waited for fragments for half a minute (docs/behaviours/differences.md), as in a case on a busy machine.
fn is_noise(packet: &[u8]) -> bool {
    let Some(ip) = Ip::parse(packet) else {
        return false;
    };
    let kind = packet.get(ip.transport..ip.transport + 2);
    let is_late = match ip.protocol {
        ICMP => kind == Some(&[11, 1]),
        ICMPV6 => kind == Some(&[3, 1]),
        _ => false,
    };
    let is_multicast = ip.destination.is_ipv6() && ip.destination.is_multicast();
    is_multicast || is_late
}

/// No filters but those of Services, and no limits on ICMP unless they are what is tried; the same for both sides.
fn set_defaults(icmp_limits: bool) -> control::netlink::Result<()> {
    let limits = [
        ("ipv4/icmp_ratemask", "0"),
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
        // No type is limited.
        ("ipv6/icmp/ratemask", ""),
    ];
    for (name, value) in limits.iter().filter(|_| !icmp_limits) {
        write_sysctl(name, value)?;
    }
    for (name, value) in [
        ("ipv4/ip_forward", "1"),
        // No two kernels have the same.
        ("ipv4/tcp_timestamps", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/auto_flowlabels", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/forwarding", "1"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/addr_gen_mode", "1"),
    ] {
        write_sysctl(name, value)?;
    }
    Ok(())
}

fn create_link(netlink: &mut Netlink, link: &Link) -> io::Result<Queue> {
    let mut queues = tun::create(&link.name, 1, Offloads::Off)?;
    let queue = queues.pop().ok_or_else(|| io::Error::other("no queue"))?;
    let mut configure = || {
        let index = netlink.link_index(&link.name)?;
        netlink.set_up(index, true)?;
        for address in &link.addresses {
            netlink.add_address(index, *address)?;
        }
        for route in &link.routes {
            netlink.add_route(&Route {
                oif: Some(index),
                gateway: route.via,
                onlink: route.via.is_some() && Family::of(route.to.addr()) == Family::V4,
                ..Route::new(route.to)
            })?;
        }
        Ok::<(), control::netlink::Error>(())
    };
    configure().map_err(io::Error::other)?;
    // Taking a device down takes longer than a case; the namespace takes all of its own down at once.
    queue.persist()?;
    Ok(queue)
}

/// Waits until packets to the node's addresses reach it. The kernel adds the route to an address of IPv6 from a queue of its own
/// (`addrconf_dad_work`), also without duplicate address detection, and on a busy machine packets overtake it: they are sent on.
fn wait_for_addresses(netlink: &mut Netlink, case: &Case) -> io::Result<()> {
    const LONGEST: Duration = Duration::from_secs(10);
    let own: HashSet<IpNet> = case
        .own_addresses()
        .filter(IpAddr::is_ipv6)
        .map(IpNet::from)
        .collect();
    let start = Instant::now();
    loop {
        let routes = netlink.routes_in(TABLE_LOCAL, Family::V6);
        let routes = routes.map_err(io::Error::other)?;
        let is_local = |route: &&Route| route.kind == RouteKind::Local;
        let local: HashSet<IpNet> = routes
            .iter()
            .filter(is_local)
            .map(|route| route.destination)
            .collect();
        if own.is_subset(&local) {
            return Ok(());
        }
        if start.elapsed() > LONGEST {
            return Err(io::Error::other("addresses of the node are not routed"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
