//! A client that sends a datagram from each of its ports, so that masquerading must find as many of the node's.

use super::server::HOW_MANY;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// The client's second address: when a dataplane fails to find a port, more flows than one address has are needed.
pub(super) const SECOND_CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);
const FIRST_CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// Ports from 1024 on.
const PORTS: u32 = 64_512;
/// Flows that are counted, unless fewer ports are free.
const COUNTED: u32 = 500;
/// Ports that are left free at the end: the node may use some of its own.
const SPARED: u32 = 5;
/// Datagrams on their way at once: no queue is shorter.
const TOGETHER: u32 = 64;

/// What came of it.
pub(super) struct Filled {
    /// Of the flows that were tried while a port was free, those that arrived; 1 is all.
    pub(super) delivered: f64,
    /// Of those.
    pub(super) per_second: f64,
}

/// Takes ever larger `shares` of the ports towards `target`; after each counts what becomes of the next flows. All of it
/// within the half minute that a flow without an answer lives.
pub(super) fn fill_ports(target: SocketAddr, shares: &[f64]) -> io::Result<Vec<Filled>> {
    let counter = UdpSocket::bind((FIRST_CLIENT, 0))?;
    counter.connect(target)?;
    counter.set_read_timeout(Some(Duration::from_secs(2)))?;
    how_many(&counter)?;
    // The counter's own flow has a port, too.
    let mut taken = 1;
    let mut sources = [FIRST_CLIENT, SECOND_CLIENT]
        .into_iter()
        .flat_map(|address| (1024..=u16::MAX).map(move |port| (address, port)));
    let mut found = Vec::new();
    for share in shares {
        let wanted = (f64::from(PORTS) * share) as u32;
        while taken < wanted {
            if send(&mut sources, target, (wanted - taken).min(TOGETHER))? == 0 {
                return Err(io::Error::other("the ports could not be filled"));
            }
            taken += how_many(&counter)?;
        }
        let tried = COUNTED.min((PORTS - taken).saturating_sub(SPARED)).max(1);
        let (mut left, mut delivered) = (tried, 0);
        let start = Instant::now();
        while left > 0 {
            let sent = send(&mut sources, target, left.min(TOGETHER))?;
            delivered += how_many(&counter)?;
            if sent == 0 {
                break;
            }
            left -= sent;
        }
        taken += delivered;
        found.push(Filled {
            delivered: f64::from(delivered) / f64::from(tried),
            per_second: f64::from(delivered) / start.elapsed().as_secs_f64(),
        });
    }
    Ok(found)
}

/// One datagram from each of the next `count` ports that are free here; how many that were.
fn send(
    sources: &mut impl Iterator<Item = (Ipv4Addr, u16)>,
    target: SocketAddr,
    count: u32,
) -> io::Result<u32> {
    let mut sent = 0;
    for source in sources.by_ref() {
        match UdpSocket::bind(source).and_then(|socket| socket.send_to(&[0; 18], target)) {
            Ok(_) => sent += 1,
            // The counter's own port.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
        if sent == count {
            break;
        }
    }
    Ok(sent)
}

/// Datagrams that the server has counted since it was asked last.
fn how_many(socket: &UdpSocket) -> io::Result<u32> {
    socket.send(HOW_MANY)?;
    let mut answer = [0; 8];
    socket.recv(&mut answer)?;
    Ok(u64::from_be_bytes(answer) as u32)
}
