//! Ports that sockets of a network namespace take packets on (`sock_diag(7)`).
//!
//! `/proc/net/tcp` tells as much, but goes through the connections of all namespaces for it: 5 ms with any number of them.
//! Asked for sockets that listen, the kernel looks at those alone.

use super::receive;
use crate::model::Family;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP, SockDiagMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use rustix::io::Errno;
use std::io;

/// A connection to the kernel's list of sockets in one network namespace: that of the thread that opened it.
pub struct Sockets {
    socket: Socket,
    received: Vec<u8>,
}

impl Sockets {
    /// # Errors
    /// When the kernel has no `sock_diag`.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            received: Vec::with_capacity(64 * 1024),
        })
    }

    /// Ports that TCP sockets listen on, of both families; one may be there more than once.
    ///
    /// # Errors
    /// When the kernel cannot list them (`CONFIG_INET_TCP_DIAG`).
    pub fn listening_tcp(&mut self) -> io::Result<Vec<u16>> {
        self.ports(IPPROTO_TCP, StateFlags::LISTEN)
    }

    /// Ports that UDP sockets are bound to without being connected, of both families.
    ///
    /// # Errors
    /// When the kernel cannot list them (`CONFIG_INET_UDP_DIAG`).
    pub fn bound_udp(&mut self) -> io::Result<Vec<u16>> {
        self.ports(IPPROTO_UDP, StateFlags::CLOSE)
    }

    /// Ports that SCTP sockets listen on, of both families; none where the kernel has no SCTP.
    ///
    /// # Errors
    /// When the kernel cannot list any sockets.
    pub fn listening_sctp(&mut self) -> io::Result<Vec<u16>> {
        match self.ports(IPPROTO_SCTP, StateFlags::LISTEN) {
            // It knows no SCTP, or none that it could list (`CONFIG_INET_SCTP_DIAG`).
            Err(error) if is_unknown(&error) => Ok(Vec::new()),
            other => other,
        }
    }

    fn ports(&mut self, protocol: u8, states: StateFlags) -> io::Result<Vec<u16>> {
        let mut ports = Vec::new();
        for family in [Family::V4, Family::V6] {
            let (family, socket_id) = match family {
                Family::V4 => (AF_INET, SocketId::new_v4()),
                Family::V6 => (AF_INET6, SocketId::new_v6()),
            };
            self.ask(InetRequest {
                family,
                protocol,
                extensions: ExtensionFlags::empty(),
                states: states.clone(),
                socket_id,
            })?;
            self.take_ports(&mut ports)?;
        }
        Ok(ports)
    }

    fn ask(&self, request: InetRequest) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = SockDiagMessage::InetRequest(request);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut datagram = vec![0; message.buffer_len()];
        message.serialize(&mut datagram);
        self.socket.send(&datagram, 0).map(|_| ())
    }

    /// Reads the answer to the end.
    fn take_ports(&mut self, ports: &mut Vec<u16>) -> io::Result<()> {
        receive(&self.socket, &mut self.received, |message| {
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                    ports.push(found.header.socket_id.source_port);
                }
                // A list that the kernel cannot make ends with the reason.
                NetlinkPayload::Done(end) if end.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-end.code));
                }
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            Ok(false)
        })
    }
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::INVAL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_the_kernel_cannot_make_is_an_error() {
        // A number for experiments.
        const NO_PROTOCOL: u8 = 253;
        let mut sockets = Sockets::open().unwrap();
        let error = sockets.ports(NO_PROTOCOL, StateFlags::LISTEN).unwrap_err();
        assert!(is_unknown(&error), "{error}");
        // What is asked for next has its own answer.
        assert!(sockets.listening_tcp().is_ok());
    }
}
