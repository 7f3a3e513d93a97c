//! rtnetlink, synchronous: links, addresses, routes, rules and neighbours of one network namespace.
//!
//! A [`Netlink`] belongs to the namespace of the thread that opened it, for as long as it lives, whichever
//! thread uses it later. Requests are written by the kernel's own order of commands (`rtnetlink(7)`): what
//! a call returns has happened. Many requests of one kind travel together ([`Netlink::add_routes`]): only
//! the last of a batch asks for an acknowledgement, the others answer only when they fail.
//!
//! Read first: [`Netlink`], [`Error`]; then one file per kind of object. [`Monitor`] tells of changes that
//! others made; [`Sockets`] lists sockets.

mod address;
mod link;
mod monitor;
mod neighbour;
mod nexthop;
mod route;
mod rule;
mod socket;
mod sysctl;

pub use address::Address;
pub use link::{Link, VethEnd};
pub use monitor::{Changes, Monitor};
pub use nexthop::Nexthop;
pub use route::{Route, RouteKind, Scope, TABLE_LOCAL, TABLE_MAIN};
pub use rule::{Rule, RuleAction};
pub use socket::Sockets;
pub use sysctl::{read_sysctl, write_sysctl};

use crate::model::Family;
use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the kernel refused, by the words of the request: `add route 10.0.0.0/24 dev eth0: File exists`.
#[derive(Debug, thiserror::Error)]
#[error("{request}: {}", errno_text(.refusal))]
pub struct Error {
    /// What was asked for.
    pub request: String,
    /// The kernel's answer. It is part of the words, and so no source of its own.
    pub refusal: io::Error,
}

impl Error {
    pub(crate) fn new(request: impl Into<String>, refusal: io::Error) -> Self {
        Self {
            request: request.into(),
            refusal,
        }
    }

    /// Whether the object was there already.
    pub fn is_exists(&self) -> bool {
        self.refusal.kind() == io::ErrorKind::AlreadyExists
    }

    /// Whether the object, or the link that it names, is not there (`ENOENT`, `ESRCH`, `ENODEV`,
    /// `EADDRNOTAVAIL`).
    pub fn is_missing(&self) -> bool {
        use rustix::io::Errno;
        let missing = [Errno::NOENT, Errno::SRCH, Errno::NODEV, Errno::ADDRNOTAVAIL];
        Errno::from_io_error(&self.refusal).is_some_and(|errno| missing.contains(&errno))
    }
}

/// The kernel's words without Rust's `(os error 17)`.
fn errno_text(source: &io::Error) -> String {
    let text = source.to_string();
    text.split(" (os error")
        .next()
        .map(str::to_owned)
        .unwrap_or_default()
}

/// The result of a request.
pub type Result<T> = std::result::Result<T, Error>;

/// A request and its words, for the error.
pub(crate) struct Request<M = RouteNetlinkMessage> {
    message: M,
    /// `NLM_F_*` beside `NLM_F_REQUEST` and `NLM_F_ACK`.
    flags: u16,
}

/// How many requests travel together. Their refusals must fit the socket's receive buffer (212,992 bytes by
/// default, 768 for a message).
const BATCH: usize = 128;

/// A connection to the kernel's rtnetlink in one network namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl Netlink {
    /// Opens a connection in the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        // Lets the kernel filter lists. One that cannot lists all.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self {
            socket,
            sequence: 0,
            received: Vec::with_capacity(64 * 1024),
        })
    }

    /// One request, acknowledged.
    pub(crate) fn request<M: NetlinkSerializable>(
        &mut self,
        request: Request<M>,
        words: impl Fn() -> String,
    ) -> Result<()> {
        match self.exchange([request].into_iter()) {
            Ok(failures) => match failures.into_iter().next() {
                None => Ok(()),
                Some((_, source)) => Err(Error::new(words(), source)),
            },
            Err(source) => Err(Error::new(words(), source)),
        }
    }

    /// Many requests, in order. All are tried, unless the socket itself fails; `tolerated` says which refusals are none.
    /// Returns the first other refusal.
    pub(crate) fn request_all<T>(
        &mut self,
        items: &[T],
        make: impl Fn(&T) -> Request,
        words: impl Fn(&T) -> String,
        tolerated: impl Fn(&Error) -> bool,
    ) -> Result<()> {
        let mut first = None;
        for batch in items.chunks(BATCH) {
            let failures = self
                .exchange(batch.iter().map(&make))
                .map_err(|source| Error::new(words(&batch[0]), source))?;
            let mut refusals = failures
                .into_iter()
                .map(|(index, source)| Error::new(words(&batch[index]), source))
                .filter(|error| !tolerated(error));
            first = first.or_else(|| refusals.next());
        }
        first.map_or(Ok(()), Err)
    }

    /// Sends at most [`BATCH`] requests in one datagram and reads until the last is acknowledged. Returns the
    /// refused ones by index.
    fn exchange<M: NetlinkSerializable>(
        &mut self,
        requests: impl ExactSizeIterator<Item = Request<M>>,
    ) -> io::Result<Vec<(usize, io::Error)>> {
        let count = requests.len();
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(count * 128);
        for (index, request) in requests.enumerate() {
            let acknowledge = if index + 1 == count { NLM_F_ACK } else { 0 };
            self.append(&mut datagram, request.message, request.flags | acknowledge);
        }
        self.send(&datagram)?;
        let last = self.sequence;
        let mut failures = Vec::new();
        self.receive(|message| {
            if let NetlinkPayload::Error(error) = message.payload {
                let sequence = message.header.sequence_number;
                if error.code.is_some() {
                    failures.push((sequence.wrapping_sub(first) as usize, error.to_io()));
                }
                return Ok(sequence == last);
            }
            Ok(false)
        })?;
        failures.retain(|(index, _)| *index < count);
        Ok(failures)
    }

    /// All objects that a dump request names, as messages. Asks again when the kernel says that the list
    /// changed meanwhile.
    pub(crate) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        words: &str,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        const TRIES: usize = 16;
        for _ in 0..TRIES {
            let dumped = self.dump_once(message.clone());
            if let Some(all) = dumped.map_err(|source| Error::new(words, source))? {
                return Ok(all);
            }
        }
        let changing = io::Error::other("it changes faster than it can be read");
        Err(Error::new(words, changing))
    }

    fn dump_once(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let mut datagram = Vec::new();
        self.append(&mut datagram, message, NLM_F_DUMP);
        self.send(&datagram)?;
        let sequence = self.sequence;
        let (mut all, mut interrupted) = (Vec::new(), false);
        self.receive(|message| {
            if message.header.sequence_number != sequence {
                return Ok(false);
            }
            interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => all.push(inner),
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
            Ok(false)
        })?;
        Ok((!interrupted).then_some(all))
    }

    fn append<M: NetlinkSerializable>(&mut self, datagram: &mut Vec<u8>, message: M, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = datagram.len();
        datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut datagram[start..start + message.buffer_len()]);
    }

    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send(datagram, 0).map(|_| ())
    }

    fn receive(
        &mut self,
        take: impl FnMut(NetlinkMessage<RouteNetlinkMessage>) -> io::Result<bool>,
    ) -> io::Result<()> {
        receive(&self.socket, &mut self.received, take)
    }
}

/// Reads datagrams and hands their messages to `take` until that returns true.
fn receive<M: NetlinkDeserializable>(
    socket: &Socket,
    received: &mut Vec<u8>,
    mut take: impl FnMut(NetlinkMessage<M>) -> io::Result<bool>,
) -> io::Result<()> {
    loop {
        received.clear();
        match socket.recv(received, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if take_each(received, &mut take)? {
            return Ok(());
        }
    }
}

/// Hands the messages of a datagram to `take`, as long as that returns false, and returns what it did last.
fn take_each<M: NetlinkDeserializable>(
    mut datagram: &[u8],
    mut take: impl FnMut(NetlinkMessage<M>) -> io::Result<bool>,
) -> io::Result<bool> {
    while !datagram.is_empty() {
        let header = NetlinkBuffer::new_checked(datagram).map_err(unreadable)?;
        match NetlinkMessage::deserialize(datagram) {
            Ok(message) => {
                if take(message)? {
                    return Ok(true);
                }
            }
            // One link or route that is not understood does not hide the others.
            Err(error) if header.message_type() >= FIRST_OBJECT => leave_out(&error),
            Err(error) => return Err(unreadable(error)),
        }
        let length = (header.length() as usize).next_multiple_of(4);
        datagram = datagram.get(length..).unwrap_or_default();
    }
    Ok(false)
}

/// `NLMSG_MIN_TYPE`: types below are netlink's own, such as the end of a list.
const FIRST_OBJECT: u16 = 0x10;

fn unreadable(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Says so, once aloud: lists are asked for again and again.
fn leave_out(error: &DecodeError) {
    static IS_SAID: AtomicBool = AtomicBool::new(false);
    const WORDS: &str = "the kernel lists something that is not understood here, and left out";
    if IS_SAID.swap(true, Ordering::Relaxed) {
        tracing::debug!("{WORDS}: {error}");
    } else {
        tracing::warn!("{WORDS}: {error}");
    }
}

pub(crate) const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

pub(crate) const fn family(family: AddressFamily) -> Option<Family> {
    match family {
        AddressFamily::Inet => Some(Family::V4),
        AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::LinkMessage;

    const RTM_NEWLINK: u16 = 16;
    const NLMSG_DONE: u16 = 3;

    fn raw(message_type: u16, payload: &[u8]) -> Vec<u8> {
        let length = 16 + payload.len();
        let mut bytes = (length as u32).to_ne_bytes().to_vec();
        bytes.extend(message_type.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    fn link(index: u32) -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let message = RouteNetlinkMessage::NewLink(message);
        let payload = NetlinkPayload::InnerMessage(message);
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    /// Indexes of links up to the end of the list, and whether that came.
    fn links(datagram: &[u8]) -> io::Result<(Vec<u32>, bool)> {
        let mut indexes = Vec::new();
        let is_complete = take_each(datagram, |message| {
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) =
                &message.payload
            {
                indexes.push(link.header.index);
            }
            Ok(matches!(message.payload, NetlinkPayload::Done(_)))
        })?;
        Ok((indexes, is_complete))
    }

    #[test]
    fn what_is_not_understood_does_not_hide_the_rest() {
        // A link that is cut, and one with an MTU of a single byte.
        let mtu_of_a_byte = [[0; 16].as_slice(), &[5, 0, 4, 0, 1]].concat();
        let datagram = [
            link(1),
            raw(RTM_NEWLINK, &[0; 3]),
            link(2),
            raw(RTM_NEWLINK, &mtu_of_a_byte),
            raw(NLMSG_DONE, &[]),
            link(3),
        ];
        assert_eq!(links(&datagram.concat()).unwrap(), (vec![1, 2], true));
        assert_eq!(links(&datagram[..4].concat()).unwrap(), (vec![1, 2], false));
    }

    #[test]
    fn an_end_that_is_not_understood_is_an_error() {
        let datagram = [link(1), raw(NLMSG_DONE, &[0])].concat();
        assert!(links(&datagram).is_err());
        assert!(links(&link(1)[..20]).is_err());
    }
}
