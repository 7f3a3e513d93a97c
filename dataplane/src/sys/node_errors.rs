//! ICMPv6 errors to the node's own addresses.
//!
//! A routing rule cannot tell them from neighbour discovery, so the kernel keeps them: they never come to a TUN device.
//! A raw socket has a copy of each. Those that are about a translated connection go on, translated, by a TUN device;
//! of the others the kernel's copy is the only one that matters.
//!
//! DIFFERS: such a socket shows no IPv6 header, so translated errors lose traffic class, flow label and extension headers.
//!
//! Source: RFC 3542 (ICMP6_FILTER, ancillary data), RFC 4443 (types below 128 are errors).
#![allow(unsafe_code)]

use super::options;
use crate::frame::{Frame, VIRTIO_HEADER_LENGTH};
use crate::sys::tun::Queue;
use crate::worker::Device;
use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The socket, and the device by which translated errors go on.
#[derive(Debug)]
pub struct NodeErrors {
    socket: OwnedFd,
    device: Queue,
}

/// `ICMP6_FILTER` of `linux/icmpv6.h`.
const ICMP6_FILTER: libc::c_int = 1;
/// Errors pass, also those of types that nobody has defined yet; bits that are set are blocked.
const FILTER: [u32; 8] = [0, 0, 0, 0, !0, !0, !0, !0];
const HEADER_LENGTH: usize = 40;

/// Ancillary data of one packet: an `in6_pktinfo` and an int, each behind a `cmsghdr`, and alignment.
#[repr(C, align(8))]
struct Control([u8; 128]);

impl NodeErrors {
    /// Listens in the calling thread's network namespace; what is translated goes on by `device`.
    ///
    /// # Errors
    /// Those of raw sockets: no privilege, no IPv6.
    pub fn open(device: Queue) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes integers only.
        let socket = unsafe { libc::socket(libc::AF_INET6, kind, libc::IPPROTO_ICMPV6) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was opened just now and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let errors = Self { socket, device };
        let set = |level, option, value: &i32| options::set(&errors.socket, level, option, value);
        options::set(&errors.socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &FILTER)?;
        set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, &1)?;
        set(libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, &1)?;
        Ok(errors)
    }

    /// Receives a message without its IPv6 header into `room`; its length, and what the header said.
    fn receive_message(&self, room: &mut [u8]) -> io::Result<Option<(usize, Header)>> {
        // SAFETY: all-zero is a valid sockaddr_in6 and a valid msghdr.
        let (mut source, mut message): (libc::sockaddr_in6, libc::msghdr) =
            unsafe { (zeroed(), zeroed()) };
        let mut control = MaybeUninit::<Control>::uninit();
        let mut part = libc::iovec {
            iov_base: room.as_mut_ptr().cast(),
            iov_len: room.len(),
        };
        message.msg_name = std::ptr::from_mut(&mut source).cast();
        message.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>();
        // SAFETY: every pointer of `message` is to live memory of the length that stands beside it.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        if length < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock => Ok(None),
                _ => Err(error),
            };
        }
        let mut header = Header {
            source: source.sin6_addr.s6_addr,
            destination: [0; 16],
            hop_limit: 0,
        };
        // SAFETY: recvmsg filled `control` as far as `msg_controllen` says.
        unsafe { header.read_control(&message) };
        Ok(Some((length as usize, header)))
    }
}

/// What a raw socket does not give as bytes.
struct Header {
    source: [u8; 16],
    destination: [u8; 16],
    hop_limit: u8,
}

impl Header {
    /// # Safety
    /// `message` must have been filled by recvmsg, and its control buffer must be live.
    unsafe fn read_control(&mut self, message: &libc::msghdr) {
        // SAFETY: the caller's promise; the macros stay inside the control buffer.
        let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
        while !next.is_null() {
            // SAFETY: not null, so it is a header inside the control buffer.
            let (header, data) = unsafe { (*next, libc::CMSG_DATA(next)) };
            let kind = (header.cmsg_level, header.cmsg_type);
            if kind == (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) {
                // SAFETY: the kernel puts an in6_pktinfo behind this header, whole, for the control buffer has room for it
                // and for a hop limit; read without alignment.
                let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                self.destination = info.ipi6_addr.s6_addr;
            } else if kind == (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) {
                // SAFETY: the kernel puts an int behind this header, whole as well; read without alignment.
                let hops = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                self.hop_limit = hops.clamp(0, 255) as u8;
            }
            // SAFETY: as above.
            next = unsafe { libc::CMSG_NXTHDR(message, next) };
        }
    }

    /// As it was on the wire, one hop later: the kernel has not counted its own, as it has before a TUN device.
    fn write(&self, to: &mut [u8], payload_length: usize) {
        to.fill(0);
        to[0] = 6 << 4;
        to[4..6].copy_from_slice(&(payload_length as u16).to_be_bytes());
        to[6] = libc::IPPROTO_ICMPV6 as u8;
        to[7] = self.hop_limit.saturating_sub(1);
        to[8..24].copy_from_slice(&self.source);
        to[24..40].copy_from_slice(&self.destination);
    }
}

impl AsFd for NodeErrors {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Device for NodeErrors {
    fn has_copies(&self) -> bool {
        true
    }

    fn receive(&mut self, frame: &mut Frame) -> io::Result<bool> {
        let room = frame.room();
        let (start, message) = room.split_at_mut(VIRTIO_HEADER_LENGTH + HEADER_LENGTH);
        // Longer than any error: RFC 4443 keeps them within the minimum MTU.
        let message = &mut message[..1500];
        let Some((length, header)) = self.receive_message(message)? else {
            return Ok(false);
        };
        let (virtio, ip) = start.split_at_mut(VIRTIO_HEADER_LENGTH);
        virtio.fill(0);
        header.write(ip, length);
        frame.set_length(VIRTIO_HEADER_LENGTH + HEADER_LENGTH + length);
        Ok(true)
    }

    fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.device.send(frame)
    }
}
