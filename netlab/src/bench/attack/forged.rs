//! Packets with addresses of others, made by hand and sent by a raw socket.

use dataplane::checksum::{add, pseudo_header, sum};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

/// The first of the strangers' addresses; a range for benchmarks (RFC 2544), of 2^17 addresses.
pub(super) const STRANGERS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

/// `IPPROTO_RAW`: packets come with their IP header, whose checksum the kernel fills in.
const RAW: i32 = 255;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Sends from the network namespace that it was made in.
pub(super) struct Forger {
    socket: Socket,
    deadline: Instant,
}

impl Forger {
    pub(super) fn new(deadline: Instant) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)))?,
            deadline,
        })
    }

    /// So many first packets of TCP connections, each of another stranger's.
    pub(super) fn syns(&mut self, count: u32, to: SocketAddrV4) -> io::Result<()> {
        self.each(count, |number| {
            packet(TCP, stranger(number), to, &syn(number))
        })
    }

    /// So many datagrams, each of another stranger's; the same ones when called again.
    pub(super) fn datagrams(
        &mut self,
        count: u32,
        to: SocketAddrV4,
        data: &[u8],
    ) -> io::Result<()> {
        self.each(count, |number| {
            packet(UDP, stranger(number), to, &datagram(data))
        })
    }

    /// So many datagrams from one address to port after port of another one.
    pub(super) fn scan(&mut self, count: u32, from: Ipv4Addr, to: Ipv4Addr) -> io::Result<()> {
        self.each(count, |number| {
            let from = SocketAddrV4::new(from, 40_000 + (number >> 16) as u16);
            let to = SocketAddrV4::new(to, number as u16);
            packet(UDP, from, to, &datagram(&[0; 10]))
        })
    }

    fn each(&mut self, count: u32, forge: impl Fn(u32) -> Vec<u8>) -> io::Result<()> {
        for number in 0..count {
            if number % 1024 == 0 && Instant::now() > self.deadline {
                let text = format!("only {number} of {count} packets were sent within the time");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            let packet = forge(number);
            let to = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
            match self
                .socket
                .send_to(&packet, &SocketAddrV4::new(to, 0).into())
            {
                // A queue is full: the packet is lost as on any link.
                Err(error) if Errno::from_io_error(&error) != Some(Errno::NOBUFS) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Another address and port for each number, spread over both.
fn stranger(number: u32) -> SocketAddrV4 {
    let address = STRANGERS.to_bits() + (number & 0x1_ffff);
    let port = 1024 + (number >> 17) as u16 + (number % 61) as u16 * 1000;
    SocketAddrV4::new(Ipv4Addr::from_bits(address), port)
}

/// Behind the ports: sequence number, flags, window; no options.
fn syn(number: u32) -> Vec<u8> {
    let mut bytes = number.wrapping_mul(0x9e37_79b9).to_be_bytes().to_vec();
    bytes.extend([0, 0, 0, 0, 5 << 4, 2, 0xfa, 0xf0, 0, 0, 0, 0]);
    bytes
}

/// Behind the ports: the length; and no checksum, as UDP over IPv4 may.
fn datagram(data: &[u8]) -> Vec<u8> {
    let mut bytes = (8 + data.len() as u16).to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(data);
    bytes
}

/// An IPv4 packet; `rest` is what comes behind the ports.
fn packet(protocol: u8, from: SocketAddrV4, to: SocketAddrV4, rest: &[u8]) -> Vec<u8> {
    let length = 24 + rest.len() as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(rest);
    if protocol == TCP {
        const CHECKSUM: usize = 20 + 16;
        let header = pseudo_header(
            (*from.ip()).into(),
            (*to.ip()).into(),
            TCP,
            u32::from(length) - 20,
        );
        let checksum = !add(header, sum(&packet[20..]));
        packet[CHECKSUM..CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn strangers_are_all_different() {
        let all: HashSet<SocketAddrV4> = (0..700_000).map(stranger).collect();
        assert_eq!(all.len(), 700_000);
    }

    #[test]
    fn what_is_forged_is_intact() {
        let from = SocketAddrV4::new(Ipv4Addr::new(198, 18, 3, 4), 5000);
        let to = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 10), 9001);
        for (protocol, rest) in [(TCP, syn(7)), (UDP, datagram(b"who"))] {
            let bytes = packet(protocol, from, to, &rest);
            let length = u16::from_be_bytes([bytes[2], bytes[3]]);
            assert_eq!(usize::from(length), bytes.len());
            if protocol == TCP {
                let header = pseudo_header((*from.ip()).into(), (*to.ip()).into(), TCP, 20);
                assert_eq!(add(header, sum(&bytes[20..])), 0xffff);
            }
            let port = u16::from_be_bytes([bytes[20], bytes[21]]);
            assert_eq!(port, 5000);
        }
    }
}
