//! Segments that the node's own TCP sends, so that routing and rules see them as a connection's.
//!
//! Each segment is of a socket that was given its numbers, sends it and goes without a word: nothing is sent again, and
//! no time matters. A keeper, a socket that throws away what comes, may stand for the connection in between: without one
//! the node answers with a RST.

use super::host::{STARTING, refused_is_sent};
use super::wire::{self, Ip, TCP};
use dataplane::sys::repair::{self, Repair};
use rustix::net::connect_unspec;
use socket2::{Domain, SockFilter, Socket, Type};
use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::sync::PoisonError;

/// One for all routes, whose MTUs the two sides do not share.
const SEGMENT_SIZE: u32 = 1000;
const WINDOW: u32 = 64_240;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Connections of the node whose clients are there, by their two ends.
#[derive(Debug, Default)]
pub(super) struct Keepers {
    sockets: HashMap<(SocketAddr, SocketAddr), Socket>,
}

impl Keepers {
    /// Lets the node send the segment that `packet` holds, from a socket of the calling thread's network namespace. Its
    /// options and its window are the kernel's. What no socket sends (other flags) is not sent.
    pub(super) fn send(&mut self, packet: &[u8], keep: bool) -> io::Result<()> {
        let Some(segment) = Segment::of(packet) else {
            return Ok(());
        };
        let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
        // Two sockets cannot have the same two ends.
        self.sockets.remove(&segment.ends).map_or(Ok(()), end)?;
        refused_is_sent(segment.send())?;
        self.keep(&segment, keep)
    }

    /// Keeps the client's end of the connection that `packet` belongs to.
    pub(super) fn keep_for(&mut self, packet: &[u8]) -> io::Result<()> {
        match Segment::of(packet) {
            Some(segment) if !self.sockets.contains_key(&segment.ends) => self.keep(&segment, true),
            _ => Ok(()),
        }
    }

    fn keep(&mut self, segment: &Segment<'_>, keep: bool) -> io::Result<()> {
        if keep {
            let socket = segment.connected()?;
            // Takes nothing of any packet.
            const RETURN: u16 = 6;
            socket.attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)])?;
            self.sockets.insert(segment.ends, socket);
        }
        Ok(())
    }
}

/// A segment that is to be sent.
struct Segment<'a> {
    /// Who sends it, and to whom.
    ends: (SocketAddr, SocketAddr),
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    data: &'a [u8],
}

impl<'a> Segment<'a> {
    fn of(packet: &'a [u8]) -> Option<Self> {
        let ip = Ip::parse(packet).filter(|ip| ip.protocol == TCP)?;
        let (source, destination) = ip.ports(packet)?;
        let header = packet.get(ip.transport..ip.transport + 20)?;
        let number = |at: usize| {
            let words = (wire::word(header, at), wire::word(header, at + 2));
            u32::from(words.0.unwrap_or_default()) << 16 | u32::from(words.1.unwrap_or_default())
        };
        Some(Self {
            ends: (
                (ip.source, source).into(),
                (ip.destination, destination).into(),
            ),
            sequence: number(4),
            acknowledgement: number(8),
            flags: header[13] & (FIN | SYN | RST | ACK),
            data: packet.get(ip.transport + usize::from(header[12] >> 4) * 4..)?,
        })
    }

    fn send(&self) -> io::Result<()> {
        match self.flags {
            SYN => self.send_syn(),
            // Who leaves repair mode sends the number before its next one.
            ACK if self.data.is_empty() => {
                let next = Self {
                    sequence: self.sequence.wrapping_add(1),
                    ..*self
                };
                let socket = next.connected()?;
                repair::set_mode(&socket, Repair::Off)?;
                end(socket)
            }
            ACK => {
                let mut socket = self.connected()?;
                repair::set_mode(&socket, Repair::OffSilently)?;
                let sent = socket.write_all(self.data);
                end(socket).and(sent)
            }
            flags if flags == FIN | ACK => {
                let socket = self.connected()?;
                repair::set_mode(&socket, Repair::OffSilently)?;
                let sent = socket.shutdown(Shutdown::Write);
                end(socket).and(sent)
            }
            flags if flags == RST | ACK => {
                let socket = self.connected()?;
                repair::set_mode(&socket, Repair::OffSilently)?;
                let sent = connect_unspec(&socket);
                end(socket).and(Ok(sent?))
            }
            _ => Ok(()),
        }
    }

    fn send_syn(&self) -> io::Result<()> {
        let socket = self.bound()?;
        repair::set_mode(&socket, Repair::OffSilently)?;
        let sent = match socket.connect(&self.ends.1.into()) {
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
            {
                Ok(())
            }
            result => result,
        };
        end(socket).and(sent)
    }

    /// A socket in repair mode with the segment's numbers.
    fn bound(&self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.ends.0), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.set_tcp_mss(SEGMENT_SIZE)?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&self.ends.0.into())?;
        repair::set_mode(&socket, Repair::On)?;
        repair::set_numbers(&socket, self.sequence, self.acknowledgement)?;
        Ok(socket)
    }

    /// The same, connected without a word.
    fn connected(&self) -> io::Result<Socket> {
        let socket = self.bound()?;
        socket.connect(&self.ends.1.into())?;
        repair::set_windows(&socket, self.acknowledgement, WINDOW)?;
        Ok(socket)
    }
}

/// Ends a connection without a word. At once, and leaves the port to others, which repair mode does: a process that is
/// just being started may still hold the socket.
fn end(socket: Socket) -> io::Result<()> {
    repair::set_mode(&socket, Repair::On)?;
    Ok(connect_unspec(&socket)?)
}
