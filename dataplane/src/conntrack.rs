//! Connection tracking: which connection a packet belongs to, in what state it is, and what it must be rewritten to.
//!
//! An entry is two tuples: *original*, that of the first packet as it arrived, which never changes; and *reply*, the
//! inverse of the original at birth, which NAT replaces before the entry is confirmed. A packet of one direction is
//! rewritten to the inverse of the other direction's tuple: that is all there is to NAT.
//!
//! A first packet goes `open` (may it open a connection?), then the path plans the reply tuple, then `confirm`; until
//! then nobody can find it, and dropping the [`Tentative`] leaves nothing behind. All others go `find`, `track`.
//!
//! Invariants: a tuple is owned by one live entry, in either direction; an expired entry is never found, swept or not;
//! the tuples of an entry never change while it lives.
//!
//! Read first: [`crate::tuple`]; Linux `net/netfilter/nf_conntrack_core.c`.

pub mod icmp;
pub mod sctp;
pub mod segment;
pub mod tcp;
pub mod udp;
mod window;

use crate::service::Generation;
use crate::tuple::{Address, Direction, Protocol, Timestamp, Tuple};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use segment::{SctpChunk, SctpChunkKind, SctpPacket, TcpFlags, TcpOptions, TcpSegment};
pub use tcp::TcpSettings;

const GRE: Protocol = Protocol(47);

/// What tracking needs of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    /// Its tuple as it arrived.
    pub tuple: Tuple,
    /// Its transport header.
    pub transport: Transport,
    /// Bytes of the whole IP packet.
    pub length: u32,
}

/// The transport header, by how it is tracked.
#[derive(Clone, Copy, Debug)]
pub enum Transport {
    /// TCP.
    Tcp(TcpSegment),
    /// UDP and UDP-Lite.
    Udp,
    /// SCTP.
    Sctp(SctpPacket),
    /// ICMP or ICMPv6, not an error.
    Icmp,
    /// All others.
    Other,
}

/// Bits of an entry, with the kernel's values (`IPS_*` of `nf_conntrack_common.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u16);

impl Status {
    /// A packet of the reply direction was accepted.
    pub const SEEN_REPLY: Self = Self(0x2);
    /// Survives early drop.
    pub const ASSURED: Self = Self(0x4);
    /// In the table.
    pub const CONFIRMED: Self = Self(0x8);
    /// The source is translated.
    pub const SRC_NAT: Self = Self(0x10);
    /// The destination is translated.
    pub const DST_NAT: Self = Self(0x20);
    /// Both NAT hooks were passed, as for every entry.
    pub const NAT_DONE: Self = Self(0x180);

    /// Whether all of `bits` are set.
    #[inline]
    pub const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    pub(crate) const fn set(&mut self, bits: Self) {
        self.0 |= bits.0;
    }

    fn of_new(original: &Tuple, reply: &Tuple) -> Self {
        let sent = reply.inverse();
        let mut status = Self(Self::CONFIRMED.0 | Self::NAT_DONE.0);
        if (sent.source, sent.source_port) != (original.source, original.source_port) {
            status.set(Self::SRC_NAT);
        }
        if (sent.destination, sent.destination_port)
            != (original.destination, original.destination_port)
        {
            status.set(Self::DST_NAT);
        }
        status
    }
}

/// Why a packet belongs to no connection. Such a packet is not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The transport header is not whole.
    #[error("truncated packet")]
    Truncated,
    /// A combination of flags that no connection uses.
    #[error("invalid TCP flag combination {0:?}")]
    TcpFlags(TcpFlags),
    /// The segment can open no connection.
    #[error("TCP segment opens no connection")]
    TcpNew,
    /// The state table refuses it.
    #[error("TCP segment is invalid in state {0}")]
    TcpState(tcp::State),
    /// More than a window above what the receiver allows.
    #[error("SEQ is over upper bound (over the window of the receiver)")]
    TcpSequence,
    /// Acknowledges what was not sent.
    #[error("ACK is over upper bound (ACKed data not seen yet)")]
    TcpAcknowledgement,
    /// A RST from before what the other side has acknowledged.
    #[error("invalid RST")]
    TcpReset,
    /// SCTP chunks that may not stand together.
    #[error("SCTP chunks are not in order")]
    SctpChunks,
    /// Wrong SCTP verification tag.
    #[error("SCTP verification tag check failed")]
    SctpVerificationTag,
    /// The state table refuses it.
    #[error("SCTP chunk is invalid in state {0}")]
    SctpState(sctp::State),
    /// An ICMP message that opens no entry.
    #[error("ICMP type {0} opens no connection")]
    IcmpType(u8),
}

/// What [`Conntrack::track`] says about a packet of a known connection.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracked {
    /// Of the connection, which now knows of it.
    Accepted,
    /// Passes and is translated; state and timeout are as before.
    Ignored,
    /// Not of the connection: must not be translated.
    Invalid(Invalid),
    /// The old entry is gone, the packet opens a new connection.
    Restart,
}

/// What a protocol says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Accepted; the entry now lives this long.
    Refresh(Duration),
    /// Accepted; the timeout runs on.
    Keep,
    /// Accepted; nothing changes.
    Ignored,
    /// Refused; the entry lives at most this long.
    Invalid(Invalid, Option<Duration>),
    /// The entry makes way for a new connection.
    Restart,
    /// Accepted; the entry is over.
    End,
}

/// What an administrator may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `nf_conntrack_max`: entries, fixed for the life of the table.
    pub capacity: usize,
    /// TCP, timeouts included.
    pub tcp: TcpSettings,
    /// All other timeouts.
    pub timeouts: Timeouts,
}

/// Timeouts of all protocols but TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// UDP and UDP-Lite.
    pub udp: udp::Timeouts,
    /// GRE.
    pub gre: udp::Timeouts,
    /// SCTP.
    pub sctp: sctp::Timeouts,
    /// `nf_conntrack_icmp_timeout`.
    pub icmp: Duration,
    /// `nf_conntrack_icmpv6_timeout`.
    pub icmpv6: Duration,
    /// `nf_conntrack_generic_timeout`.
    pub generic: Duration,
}

impl Timeouts {
    /// The kernel's defaults.
    pub const KERNEL: Self = Self {
        udp: udp::Timeouts::UDP,
        gre: udp::Timeouts::GRE,
        sctp: sctp::Timeouts::KERNEL,
        icmp: Duration::from_secs(30),
        icmpv6: Duration::from_secs(30),
        generic: Duration::from_secs(600),
    };
}

impl Settings {
    /// The kernel's defaults.
    pub fn kernel(capacity: usize) -> Self {
        Self {
            capacity,
            tcp: TcpSettings::default(),
            timeouts: Timeouts::KERNEL,
        }
    }

    /// What kube-proxy sets when its configuration says nothing (`SetDefaults_KubeProxyConfiguration`).
    pub fn kube_proxy(capacity: usize) -> Self {
        let mut settings = Self::kernel(capacity);
        settings.tcp.timeouts.established = Duration::from_secs(86_400);
        settings.tcp.timeouts.close_wait = Duration::from_secs(3_600);
        settings
    }
}

/// Which svcport a connection was made for, and the table that last agreed with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceTag {
    /// A stable hash of the svcport's name; zero when no Service translated the connection.
    pub id: u64,
    /// The table that last confirmed the endpoint.
    pub generation: Generation,
}

impl ServiceTag {
    /// Of a connection that no Service translated.
    pub const fn untranslated(generation: Generation) -> Self {
        Self { id: 0, generation }
    }

    /// The svcport, if there is one.
    pub fn service(self) -> Option<u64> {
        (self.id != 0).then_some(self.id)
    }
}

/// What a packet of one direction must carry after rewriting: the inverse of the other direction's tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port or ICMP identifier.
    pub source_port: u16,
    /// Destination port; of ICMP messages type and code, which never change.
    pub destination_port: u16,
}

/// A connection that nobody can find yet.
#[derive(Clone, Debug)]
pub struct Tentative {
    /// Tuple of the first packet.
    pub original: Tuple,
    /// Tuple of the answer; NAT replaces it.
    pub reply: Tuple,
    /// For whom the connection is made.
    pub service: Option<ServiceTag>,
    protocol: ProtocolState,
    timeout: Duration,
    length: u32,
}

/// What a protocol remembers.
#[derive(Clone, Copy, Debug)]
enum ProtocolState {
    Tcp(tcp::Connection),
    Sctp(sctp::Association),
    Stateless,
}

/// A live entry and which of its directions a tuple is of.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    entry: u32,
    generation: u32,
    direction: Direction,
    status: Status,
    translation: Option<Translation>,
    service: Option<ServiceTag>,
}

impl Found {
    /// Direction of the tuple that was looked up.
    #[inline]
    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// What packets of this direction are rewritten to; `None` when the connection is not translated.
    #[inline]
    pub const fn translation(&self) -> Option<Translation> {
        self.translation
    }

    /// For whom the connection was made.
    #[inline]
    pub const fn service(&self) -> Option<ServiceTag> {
        self.service
    }

    /// Status bits when it was found.
    #[inline]
    pub const fn status(&self) -> Status {
        self.status
    }

    /// Whether the other side has answered (`[UNREPLIED]` otherwise).
    #[inline]
    pub const fn seen_reply(&self) -> bool {
        self.status.has(Status::SEEN_REPLY)
    }
}

/// A confirmed first packet.
#[must_use]
#[derive(Clone, Copy, Debug)]
pub enum Confirmed {
    /// The connection is in the table; the packet is counted.
    Inserted(Found),
    /// Another packet of the same tuple was faster: this one goes the winner's way, as any packet of its connection.
    Adopted(Found),
}

/// Why a connection could not be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfirmError {
    /// Full, and nothing may be dropped early.
    #[error("nf_conntrack: table full, dropping packet")]
    TableFull,
    /// Another connection owns the reply tuple: choose another port.
    #[error("the reply tuple is taken")]
    ReplyTaken,
}

/// A connection's state, for TCP and SCTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Of TCP.
    Tcp(tcp::State),
    /// Of SCTP.
    Sctp(sctp::State),
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(state) => state.fmt(f),
            Self::Sctp(state) => state.fmt(f),
        }
    }
}

/// An entry as it is listed.
#[derive(Clone, Copy, Debug)]
pub struct EntryView {
    /// Tuple of the first packet.
    pub original: Tuple,
    /// Tuple of the answer.
    pub reply: Tuple,
    /// State, for TCP and SCTP.
    pub state: Option<ConnectionState>,
    /// Time left.
    pub timeout: Duration,
    /// Status bits.
    pub status: Status,
    /// Packets by direction.
    pub packets: [u64; 2],
    /// Bytes by direction.
    pub bytes: [u64; 2],
    /// For whom the connection was made.
    pub service: Option<ServiceTag>,
    /// Identifies the entry while it lives (`-o id`).
    pub id: u32,
}

#[derive(Debug)]
struct Entry {
    original: Tuple,
    reply: Tuple,
    protocol: ProtocolState,
    opened: Timestamp,
    deadline: Timestamp,
    status: Status,
    packets: [u64; 2],
    bytes: [u64; 2],
    service: Option<ServiceTag>,
}

impl Entry {
    fn tuple(&self, direction: Direction) -> &Tuple {
        match direction {
            Direction::Original => &self.original,
            Direction::Reply => &self.reply,
        }
    }

    fn count(&mut self, direction: Direction, length: u32) {
        self.packets[direction as usize] += 1;
        self.bytes[direction as usize] += u64::from(length);
    }
}

#[derive(Debug)]
struct Table {
    index: HashMap<Tuple, (u32, Direction), ahash::RandomState>,
    entries: Vec<(u32, Option<Entry>)>,
    free: Vec<u32>,
}

impl Table {
    fn live(&self, tuple: &Tuple, now: Timestamp) -> Option<(u32, Direction)> {
        let &(position, direction) = self.index.get(tuple)?;
        let entry = self.entries[position as usize].1.as_ref()?;
        (entry.deadline > now).then_some((position, direction))
    }

    fn found(&self, position: u32, direction: Direction) -> Option<Found> {
        let (generation, entry) = &self.entries[position as usize];
        let entry = entry.as_ref()?;
        let sent = entry.tuple(direction.opposite()).inverse();
        Some(Found {
            entry: position,
            generation: *generation,
            direction,
            status: entry.status,
            translation: (sent != *entry.tuple(direction)).then_some(Translation {
                source: sent.source,
                destination: sent.destination,
                source_port: sent.source_port,
                destination_port: sent.destination_port,
            }),
            service: entry.service,
        })
    }

    fn remove(&mut self, position: u32) -> bool {
        let slot = &mut self.entries[position as usize];
        let Some(entry) = slot.1.take() else {
            return false;
        };
        slot.0 = slot.0.wrapping_add(1);
        self.free.push(position);
        self.index.remove(&entry.original);
        self.index.remove(&entry.reply);
        true
    }

    /// Frees what expired entries still hold of these tuples.
    fn bury(&mut self, tuples: [&Tuple; 2], now: Timestamp) {
        for tuple in tuples {
            if let Some(&(position, _)) = self.index.get(tuple)
                && self.live(tuple, now).is_none()
            {
                self.remove(position);
            }
        }
    }

    fn insert(&mut self, entry: Entry) -> u32 {
        let position = self.free.pop().unwrap_or_else(|| {
            self.entries.push((0, None));
            self.entries.len() as u32 - 1
        });
        self.index.insert(entry.reply, (position, Direction::Reply));
        self.index
            .insert(entry.original, (position, Direction::Original));
        self.entries[position as usize].1 = Some(entry);
        position
    }
}

/// The table of connections. Shared by all workers.
#[derive(Debug)]
pub struct Conntrack {
    settings: Settings,
    table: Mutex<Table>,
}

impl Conntrack {
    /// An empty table. `hash_key` must not be known to those who send packets.
    pub fn new(settings: Settings, hash_key: [u64; 4]) -> Self {
        let [a, b, c, d] = hash_key;
        let index = HashMap::with_hasher(ahash::RandomState::with_seeds(a, b, c, d));
        Self {
            settings,
            table: Mutex::new(Table {
                index,
                entries: Vec::new(),
                free: Vec::new(),
            }),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The live connection that owns `tuple`.
    pub fn find(&self, tuple: &Tuple, now: Timestamp) -> Option<Found> {
        let table = self.table();
        let (position, direction) = table.live(tuple, now)?;
        table.found(position, direction)
    }

    /// Whether no live connection owns `reply`.
    pub fn is_free(&self, reply: &Tuple, now: Timestamp) -> bool {
        self.table().live(reply, now).is_none()
    }

    /// A further packet of a connection. When its entry has gone meanwhile the packet passes as `found` says.
    pub fn track(&self, found: &Found, headers: &Headers, now: Timestamp) -> Tracked {
        let mut table = self.table();
        let slot = &mut table.entries[found.entry as usize];
        let (true, Some(entry)) = (slot.0 == found.generation, &mut slot.1) else {
            return Tracked::Ignored;
        };
        let outcome = self.advance(entry, headers, found.direction, now);
        if !matches!(outcome, Outcome::Invalid(..) | Outcome::Restart) {
            entry.count(found.direction, headers.length);
            if found.direction == Direction::Reply {
                entry.status.set(Status::SEEN_REPLY);
            }
        }
        match outcome {
            Outcome::Refresh(timeout) => entry.deadline = now.after(timeout),
            Outcome::Invalid(_, Some(at_most)) => {
                entry.deadline = entry.deadline.min(now.after(at_most))
            }
            Outcome::End | Outcome::Restart => {
                table.remove(found.entry);
            }
            Outcome::Keep | Outcome::Ignored | Outcome::Invalid(_, None) => {}
        }
        match outcome {
            Outcome::Refresh(_) | Outcome::Keep | Outcome::End => Tracked::Accepted,
            Outcome::Ignored => Tracked::Ignored,
            Outcome::Invalid(reason, _) => Tracked::Invalid(reason),
            Outcome::Restart => Tracked::Restart,
        }
    }

    fn advance(
        &self,
        entry: &mut Entry,
        headers: &Headers,
        direction: Direction,
        now: Timestamp,
    ) -> Outcome {
        let timeouts = &self.settings.timeouts;
        let status = &mut entry.status;
        match (&mut entry.protocol, &headers.transport) {
            (ProtocolState::Tcp(connection), Transport::Tcp(segment)) => {
                connection.track(segment, direction, status, &self.settings.tcp)
            }
            (ProtocolState::Sctp(association), Transport::Sctp(packet)) => {
                association.track(packet, direction, status, &timeouts.sctp)
            }
            (_, Transport::Udp) => {
                Outcome::Refresh(udp::track(entry.opened, now, status, &timeouts.udp))
            }
            (_, Transport::Other) if entry.original.protocol == GRE => {
                Outcome::Refresh(udp::track_gre(status, &timeouts.gre))
            }
            _ => Outcome::Refresh(self.stateless_timeout(entry.original.protocol)),
        }
    }

    const fn stateless_timeout(&self, protocol: Protocol) -> Duration {
        let timeouts = &self.settings.timeouts;
        match protocol {
            Protocol::ICMP => timeouts.icmp,
            Protocol::ICMPV6 => timeouts.icmpv6,
            GRE => timeouts.gre.unreplied,
            _ => timeouts.generic,
        }
    }

    /// What a first packet opens. The reply tuple is the inverse of the original: not translated.
    ///
    /// # Errors
    /// The packet can open no connection: it is INVALID.
    pub fn open(&self, headers: &Headers, _now: Timestamp) -> Result<Tentative, Invalid> {
        let (protocol, timeout) = match &headers.transport {
            Transport::Tcp(segment) => {
                let (connection, timeout) = tcp::Connection::open(segment, &self.settings.tcp)?;
                (ProtocolState::Tcp(connection), timeout)
            }
            Transport::Sctp(packet) => {
                let (association, timeout) =
                    sctp::Association::open(packet, &self.settings.timeouts.sctp)?;
                (ProtocolState::Sctp(association), timeout)
            }
            Transport::Icmp => {
                icmp::open(&headers.tuple)?;
                (
                    ProtocolState::Stateless,
                    self.stateless_timeout(headers.tuple.protocol),
                )
            }
            Transport::Udp => (
                ProtocolState::Stateless,
                self.settings.timeouts.udp.unreplied,
            ),
            Transport::Other => (
                ProtocolState::Stateless,
                self.stateless_timeout(headers.tuple.protocol),
            ),
        };
        Ok(Tentative {
            original: headers.tuple,
            reply: headers.tuple.inverse(),
            service: None,
            protocol,
            timeout,
            length: headers.length,
        })
    }

    /// Puts a connection into the table. Its timeout begins now.
    ///
    /// DIFFERS: of two racing first packets with one tuple the loser goes the winner's way, whatever the protocol. The
    /// kernel drops it for TCP, SCTP and ICMP, and for UDP when the two chose different endpoints (the "DNS five
    /// seconds").
    ///
    /// # Errors
    /// [`ConfirmError`]; the connection is not in the table then, and holds nothing.
    pub fn confirm(&self, tentative: Tentative, now: Timestamp) -> Result<Confirmed, ConfirmError> {
        let mut table = self.table();
        table.bury([&tentative.original, &tentative.reply], now);
        if let Some((position, direction)) = table.live(&tentative.original, now)
            && let Some(found) = table.found(position, direction)
        {
            return Ok(Confirmed::Adopted(found));
        }
        if table.live(&tentative.reply, now).is_some() {
            return Err(ConfirmError::ReplyTaken);
        }
        if table.entries.len() - table.free.len() >= self.settings.capacity {
            return Err(ConfirmError::TableFull);
        }
        let mut entry = Entry {
            original: tentative.original,
            reply: tentative.reply,
            protocol: tentative.protocol,
            opened: now,
            deadline: now.after(tentative.timeout),
            status: Status::of_new(&tentative.original, &tentative.reply),
            packets: [0; 2],
            bytes: [0; 2],
            service: tentative.service,
        };
        entry.count(Direction::Original, tentative.length);
        let position = table.insert(entry);
        table
            .found(position, Direction::Original)
            .map(Confirmed::Inserted)
            .ok_or(ConfirmError::TableFull)
    }

    /// Notes that the endpoint of a connection is still one of its Service's, as of `generation`.
    pub fn revalidate(&self, found: &Found, generation: Generation) {
        let mut table = self.table();
        let slot = &mut table.entries[found.entry as usize];
        if let (
            true,
            Some(Entry {
                service: Some(service),
                ..
            }),
        ) = (slot.0 == found.generation, &mut slot.1)
        {
            service.generation = generation;
        }
    }

    /// Ends a connection. False when it had gone already.
    pub fn end(&self, found: &Found) -> bool {
        let mut table = self.table();
        table.entries[found.entry as usize].0 == found.generation && table.remove(found.entry)
    }

    /// Ends the connection with this original tuple (`conntrack -D`). False when there is none.
    pub fn remove(&self, original: &Tuple, now: Timestamp) -> bool {
        let mut table = self.table();
        match table.live(original, now) {
            Some((position, Direction::Original)) => table.remove(position),
            _ => false,
        }
    }

    /// Removes expired entries, looking at no more than `budget` of the table. Returns how many it removed.
    pub fn expire(&self, now: Timestamp, _budget: usize) -> usize {
        let mut table = self.table();
        let expired = |slot: &(u32, Option<Entry>)| {
            slot.1.as_ref().is_some_and(|entry| entry.deadline <= now)
        };
        let positions: Vec<u32> = (0..table.entries.len() as u32)
            .filter(|&position| expired(&table.entries[position as usize]))
            .collect();
        for &position in &positions {
            table.remove(position);
        }
        positions.len()
    }

    /// Entries in the table, expired ones that were not swept yet included.
    pub fn len(&self) -> usize {
        let table = self.table();
        table.entries.len() - table.free.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries the table can hold.
    pub fn capacity(&self) -> usize {
        self.settings.capacity
    }

    /// Shows every live entry, in no order. Packets pass meanwhile.
    pub fn for_each(&self, now: Timestamp, mut visit: impl FnMut(&EntryView)) {
        let table = self.table();
        for (id, (_, entry)) in table.entries.iter().enumerate() {
            if let Some(entry) = entry
                && entry.deadline > now
            {
                visit(&EntryView {
                    original: entry.original,
                    reply: entry.reply,
                    state: match &entry.protocol {
                        ProtocolState::Tcp(connection) => {
                            Some(ConnectionState::Tcp(connection.state))
                        }
                        ProtocolState::Sctp(association) => {
                            Some(ConnectionState::Sctp(association.state))
                        }
                        ProtocolState::Stateless => None,
                    },
                    timeout: entry.deadline.since(now),
                    status: entry.status,
                    packets: entry.packets,
                    bytes: entry.bytes,
                    service: entry.service,
                    id: id as u32,
                });
            }
        }
    }
}
