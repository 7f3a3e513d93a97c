//! Changes of links, addresses and routes that anybody makes.

use super::TABLE_MAIN;
use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Bits of `RTMGRP_*`: link, IPv4 and IPv6 addresses, IPv4 and IPv6 routes.
const GROUPS: u32 = 0x1 | 0x10 | 0x100 | 0x40 | 0x400;

/// Where `struct rtmsg` has the table: `RT_TABLE_MAIN`, or another one.
const ROUTE_TABLE: usize = 4;
const MAIN: u8 = TABLE_MAIN as u8;

/// What changed since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Links came, went or changed.
    pub links: bool,
    /// Addresses came, went or changed.
    pub addresses: bool,
    /// Routes of the main table came, went or changed.
    pub routes: bool,
}

impl Changes {
    /// Whether anything changed.
    pub const fn any(self) -> bool {
        self.links || self.addresses || self.routes
    }

    fn note(&mut self, message_type: u16, payload: &[u8]) {
        match message_type {
            // RTM_NEWLINK to RTM_SETLINK, RTM_NEWADDR and RTM_DELADDR, RTM_NEWROUTE and RTM_DELROUTE.
            16..=19 => self.links = true,
            20 | 21 => self.addresses = true,
            24 | 25 => self.routes |= payload.get(ROUTE_TABLE) == Some(&MAIN),
            _ => {}
        }
    }
}

/// Tells of changes in the network namespace of the thread that opened it. It becomes readable, for `poll(2)`,
/// when there is something to [`Monitor::take`].
pub struct Monitor {
    socket: Socket,
    received: Vec<u8>,
}

impl Monitor {
    /// Starts listening: every change after this call is told.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        socket.set_non_blocking(true)?;
        Ok(Self {
            socket,
            received: Vec::with_capacity(64 * 1024),
        })
    }

    /// Waits for the first change, at most `timeout`, and returns it with all that came with it; nothing
    /// when the time is over.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Changes> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        let socket = self.as_fd();
        let mut polled = [PollFd::new(&socket, PollFlags::IN)];
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(Changes::default()),
            Ok(_) => self.take(),
            Err(error) => Err(error.into()),
        }
    }

    /// What changed until now, without waiting. When the kernel lost messages, everything may have changed.
    pub fn take(&mut self) -> io::Result<Changes> {
        let mut changes = Changes::default();
        loop {
            self.received.clear();
            match self.socket.recv(&mut self.received, 0) {
                Ok(_) => note_all(&mut changes, &self.received),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) =>
                {
                    changes = Changes {
                        links: true,
                        addresses: true,
                        routes: true,
                    };
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn note_all(changes: &mut Changes, mut bytes: &[u8]) {
    while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
        changes.note(message.message_type(), message.payload());
        let length = (message.length() as usize).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
