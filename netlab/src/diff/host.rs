//! The node itself as one that sends and receives: sockets in its namespace.
//!
//! Raw sockets send any packet. The kernel routes those by addresses alone, so what a routing rule on ports must see
//! (NodePorts, answers of servers on the node) is sent by a socket of UDP or TCP ([`super::segment`]) instead. Of what is delivered to the node, TCP,
//! UDP and ICMP of IPv4 are seen whole; a raw socket of IPv6 shows no header.

use super::wire::{ICMP, Ip, TCP, UDP};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::sync::{PoisonError, RwLock};

/// `IPPROTO_RAW`: packets come with their IP header.
const RAW: i32 = 255;

/// The node's own sockets.
pub(super) struct Host {
    senders: [Socket; 2],
    receivers: Vec<Socket>,
}

impl Host {
    /// Opens them in the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let raw = |domain, protocol: i32| {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
            socket.set_nonblocking(true)?;
            Ok::<Socket, io::Error>(socket)
        };
        let receivers = [TCP, UDP, ICMP].map(|protocol| raw(Domain::IPV4, protocol.into()));
        Ok(Self {
            senders: [raw(Domain::IPV4, RAW)?, raw(Domain::IPV6, RAW)?],
            receivers: receivers.into_iter().collect::<io::Result<_>>()?,
        })
    }

    /// Sends a packet as it is.
    pub(super) fn send(&self, packet: &[u8]) -> io::Result<()> {
        let Some(ip) = Ip::parse(packet) else {
            return Ok(());
        };
        let socket = &self.senders[usize::from(ip.destination.is_ipv6())];
        refused_is_sent(socket.send_to(packet, &SocketAddr::new(ip.destination, 0).into()))
    }

    /// Receives one packet that was delivered to the node; its length.
    pub(super) fn receive(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        for mut socket in &self.receivers {
            match socket.read(room) {
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Held while a process is started: it holds all sockets for a moment, and with a UDP socket its port.
pub(super) static STARTING: RwLock<()> = RwLock::new(());

/// Sends the data of a UDP packet by a socket of the calling thread's network namespace.
pub(super) fn send_datagram(packet: &[u8]) -> io::Result<()> {
    let ip = Ip::parse(packet);
    let Some((ip, (source, destination))) = ip.and_then(|ip| Some((ip, ip.ports(packet)?))) else {
        return Ok(());
    };
    let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    let socket = Socket::new(
        Domain::for_address(SocketAddr::new(ip.source, 0)),
        Type::DGRAM,
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(ip.source, source).into())?;
    let data = packet.get(ip.transport + 8..).unwrap_or_default();
    let to = SocketAddr::new(ip.destination, destination);
    refused_is_sent(socket.send_to(data, &to.into()))
}

/// Rules may refuse a packet on its way out, and routes may lack: then nothing comes out.
pub(super) fn refused_is_sent<T>(result: io::Result<T>) -> io::Result<()> {
    const REFUSALS: [Errno; 8] = [
        Errno::PERM,
        Errno::ACCESS,
        Errno::INVAL,
        Errno::MSGSIZE,
        Errno::NETUNREACH,
        Errno::HOSTUNREACH,
        Errno::CONNREFUSED,
        // After an ICMP error for the socket.
        Errno::PIPE,
    ];
    match result {
        Err(error)
            if Errno::from_io_error(&error).is_none_or(|errno| !REFUSALS.contains(&errno)) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}
