//! The built-in server: what a pod runs when the lab file says nothing.
//!
//! On TCP (and SCTP, where the kernel has it) HTTP/1.1 with keep-alive:
//!
//! | request | answer |
//! | --- | --- |
//! | any other | the facts, as JSON: pod, namespace, node, protocol, peer, local, request |
//! | `/bytes/N` | N bytes; byte i is i modulo 251 |
//! | `/upload`, with a body | length and SHA-256 of the body |
//!
//! On UDP a datagram is answered with the facts and, in `echo`, its payload (`echo_hex` when it is no text). One
//! that starts with a zero byte comes back as it is, for tests of size and speed.
//!
//! One thread serves all connections from one epoll; each UDP socket has a thread. Read first: [`run`].

mod connection;
mod request;

use crate::plan::Protocol;
use connection::Connection;
use rustix::event::epoll;
use rustix::io::Errno;
use serde::Serialize;
use socket2::{Domain, Socket, Type};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// Who answers, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Pod that answers, as NAMESPACE/NAME
    #[arg(long, default_value = "/", value_name = "NAMESPACE/NAME")]
    pub pod: String,
    /// Node that answers
    #[arg(long, default_value = "")]
    pub node: String,
    /// Addresses for UDP, which answers from the one that was asked
    #[arg(long, num_args = 1..)]
    pub address: Vec<IpAddr>,
    /// TCP ports that speak HTTP
    #[arg(long, num_args = 1..)]
    pub http: Vec<u16>,
    /// UDP ports that echo
    #[arg(long, num_args = 1..)]
    pub udp: Vec<u16>,
    /// SCTP ports that speak HTTP
    #[arg(long, num_args = 1..)]
    pub sctp: Vec<u16>,
}

/// What the server says of itself and of whom it talks to.
#[derive(Serialize)]
struct Facts<'a> {
    pod: &'a str,
    namespace: &'a str,
    node: &'a str,
    protocol: Protocol,
    peer: End,
    local: End,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    echo: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    echo_hex: Option<String>,
}

/// One end of a conversation.
#[derive(Clone, Copy, Debug, Serialize)]
struct End {
    address: IpAddr,
    port: u16,
}

impl From<SocketAddr> for End {
    /// IPv4 that came by an IPv6 socket is IPv4.
    fn from(address: SocketAddr) -> Self {
        Self {
            address: address.ip().to_canonical(),
            port: address.port(),
        }
    }
}

impl Arguments {
    fn facts<'a>(&'a self, protocol: Protocol, peer: End, local: End) -> Facts<'a> {
        let (namespace, pod) = self.pod.split_once('/').unwrap_or(("", &self.pod));
        let node = &self.node;
        let (request, bytes, echo, echo_hex) = (None, None, None, None);
        Facts {
            pod,
            namespace,
            node,
            protocol,
            peer,
            local,
            request,
            bytes,
            echo,
            echo_hex,
        }
    }
}

/// Serves until it is killed. Prints `ready` on stdout once all ports are open.
pub fn run(arguments: Arguments) -> io::Result<()> {
    raise_descriptor_limit();
    let arguments = Arc::new(arguments);
    for port in &arguments.udp {
        for address in udp_addresses(&arguments.address) {
            let socket = UdpSocket::bind((address, *port)).map_err(in_words("UDP", *port))?;
            let arguments = arguments.clone();
            std::thread::spawn(move || echo(&socket, &arguments));
        }
    }
    let mut server = Server::new(arguments.clone())?;
    for port in &arguments.http {
        server
            .listen(Protocol::Tcp, *port)
            .map_err(in_words("TCP", *port))?;
    }
    for port in &arguments.sctp {
        match server.listen(Protocol::Sctp, *port) {
            Err(error) if has_no_sctp(&error) => {
                eprintln!("SCTP port {port} skipped: this kernel has no SCTP");
            }
            other => other.map_err(in_words("SCTP", *port))?,
        }
    }
    println!("ready");
    server.serve()
}

/// Whether a socket was refused because the kernel lacks the protocol.
pub fn has_no_sctp(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::PROTONOSUPPORT | Errno::SOCKTNOSUPPORT)
    )
}

fn in_words(protocol: &'static str, port: u16) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{protocol} port {port}: {error}"))
}

/// The pod's own addresses and loopback: a socket per address answers from that address.
fn udp_addresses(own: &[IpAddr]) -> Vec<IpAddr> {
    let mut addresses = own.to_vec();
    addresses.push(Ipv4Addr::LOCALHOST.into());
    if own.iter().any(IpAddr::is_ipv6) {
        addresses.push(Ipv6Addr::LOCALHOST.into());
    }
    addresses.dedup();
    addresses
}

/// Thousands of connections need as many descriptors; the default soft limit is 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // A server with fewer descriptors still serves.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
}

fn echo(socket: &UdpSocket, arguments: &Arguments) {
    let mut datagram = vec![0; 65_536];
    let Ok(local) = socket.local_addr() else {
        return;
    };
    loop {
        // An ICMP error about an earlier answer, or an answer that nobody wants: the next datagram may be fine.
        let Ok((length, peer)) = socket.recv_from(&mut datagram) else {
            continue;
        };
        let payload = &datagram[..length];
        let _ = if payload.first() == Some(&0) {
            socket.send_to(payload, peer)
        } else {
            let facts = arguments.facts(Protocol::Udp, peer.into(), local.into());
            socket.send_to(&echo_answer(facts, payload), peer)
        };
    }
}

fn echo_answer(facts: Facts<'_>, payload: &[u8]) -> Vec<u8> {
    let echo = std::str::from_utf8(payload).ok();
    let hex = || payload.iter().map(|byte| format!("{byte:02x}")).collect();
    let echo_hex = echo.is_none().then(hex);
    json(&Facts {
        bytes: Some(payload.len()),
        echo,
        echo_hex,
        ..facts
    })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

struct Server {
    arguments: Arc<Arguments>,
    epoll: rustix::fd::OwnedFd,
    listeners: HashMap<RawFd, (TcpListener, Protocol)>,
    connections: HashMap<RawFd, Connection>,
}

impl Server {
    fn new(arguments: Arc<Arguments>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self {
            arguments,
            epoll,
            listeners: HashMap::new(),
            connections: HashMap::new(),
        })
    }

    /// Listens on all addresses; an SCTP socket of style one-to-one is used as a TCP one.
    fn listen(&mut self, protocol: Protocol, port: u16) -> io::Result<()> {
        let number = match protocol {
            Protocol::Sctp => socket2::Protocol::from(132),
            _ => socket2::Protocol::TCP,
        };
        let bind = |domain, address: SocketAddr| {
            let socket = Socket::new(domain, Type::STREAM, Some(number))?;
            socket.set_reuse_address(true)?;
            if domain == Domain::IPV6 {
                socket.set_only_v6(false)?;
            }
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>(TcpListener::from(socket))
        };
        let all_v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let all_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listener = match bind(Domain::IPV6, all_v6) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(_) => bind(Domain::IPV4, all_v4)?,
            Ok(listener) => listener,
        };
        self.watch(&listener)?;
        self.listeners
            .insert(listener.as_raw_fd(), (listener, protocol));
        Ok(())
    }

    fn watch(&self, socket: &(impl AsRawFd + std::os::fd::AsFd)) -> io::Result<()> {
        let data = epoll::EventData::new_u64(socket.as_raw_fd() as u64);
        Ok(epoll::add(
            &self.epoll,
            socket,
            data,
            epoll::EventFlags::IN,
        )?)
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(1024);
        loop {
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            ) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            for event in &events {
                let descriptor = event.data.u64() as RawFd;
                if self.listeners.contains_key(&descriptor) {
                    self.accept(descriptor);
                } else {
                    self.advance(descriptor);
                }
            }
        }
    }

    /// Accepts what waits, but not so much that the others starve.
    fn accept(&mut self, descriptor: RawFd) {
        const AT_ONCE: usize = 64;
        for _ in 0..AT_ONCE {
            let Some((listener, protocol)) = self.listeners.get(&descriptor) else {
                return;
            };
            let Ok((stream, peer)) = listener.accept() else {
                return;
            };
            let ends = stream
                .local_addr()
                .map(|local| (End::from(peer), End::from(local)));
            let ready = stream
                .set_nonblocking(true)
                .and_then(|()| stream.set_nodelay(true));
            if let (Ok((peer, local)), Ok(())) = (ends, ready.or_else(sctp_has_no_nodelay))
                && self.watch(&stream).is_ok()
            {
                let arguments = self.arguments.clone();
                let connection = Connection::new(stream, *protocol, peer, local, arguments);
                self.connections.insert(connection.descriptor(), connection);
            }
        }
    }

    fn advance(&mut self, descriptor: RawFd) {
        let Some(connection) = self.connections.get_mut(&descriptor) else {
            return;
        };
        let before = connection.wants();
        // An error of the connection, its end included, closes it.
        if connection.advance().is_err() {
            self.connections.remove(&descriptor);
            return;
        }
        let wants = connection.wants();
        if wants != before {
            let data = epoll::EventData::new_u64(descriptor as u64);
            let changed = epoll::modify(&self.epoll, connection.stream(), data, wants);
            if changed.is_err() {
                self.connections.remove(&descriptor);
            }
        }
    }
}

fn sctp_has_no_nodelay(_: io::Error) -> io::Result<()> {
    Ok(())
}
