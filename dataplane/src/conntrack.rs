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

mod census;
mod events;
pub mod icmp;
mod listing;
pub(crate) mod pools;
mod port_search;
mod pressure;
pub mod sctp;
pub mod segment;
mod settings;
mod slots;
mod state;
mod statistics;
mod sync;
pub mod tcp;
pub mod udp;
mod window;

use crate::service::Generation;
use crate::tuple::{Address, Direction, Protocol, Timestamp, Tuple};
use events::Farewell;
use slots::{EntryId, Guard, InsertError, Meta, NewEntry, Sighting, Slots, Snapshot, StateWords};
use statistics::{Counter, PerWorker};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

pub use events::{Event, EventKind, Listener};
pub use listing::{ConnectionState, EntryView};
pub(crate) use port_search::PortSearch;
pub use segment::{SctpChunk, SctpChunkKind, SctpPacket, TcpFlags, TcpOptions, TcpSegment};
pub use settings::{Settings, Timeouts};
pub use slots::{Guess, TupleHash};
pub use statistics::Statistics;
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
    /// Both sides were heard for long: no packet of UDP changes anything but the end.
    const STREAM: Self = Self(Self::SEEN_REPLY.0 | Self::ASSURED.0);
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

    #[inline]
    const fn is_translated(self) -> bool {
        self.0 & (Self::SRC_NAT.0 | Self::DST_NAT.0) != 0
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

/// Which svcport a connection was made for, and the table that last agreed with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceTag {
    /// A stable hash of the svcport's name; zero when no Service translated the connection.
    pub id: u64,
    /// The table that last confirmed the endpoint, modulo 2^32.
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
    state: StateWords,
    timeout: Duration,
    length: u32,
}

/// A live entry and which of its directions a tuple is of.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    id: EntryId,
    direction: Direction,
    status: Status,
    meta: Meta,
    /// What packets of this direction leave as.
    sent: Tuple,
    hot: [u64; 3],
}

impl Found {
    #[inline]
    fn new(entry: &Sighting) -> Self {
        Self {
            id: entry.id,
            direction: entry.direction,
            status: Status(entry.meta.status),
            meta: entry.meta,
            sent: entry.other.inverse(),
            hot: entry.hot,
        }
    }

    /// Direction of the tuple that was looked up.
    #[inline]
    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// What packets of this direction are rewritten to; `None` when the connection is not translated.
    #[inline]
    pub fn translation(&self) -> Option<Translation> {
        self.status.is_translated().then_some(Translation {
            source: self.sent.source,
            destination: self.sent.destination,
            source_port: self.sent.source_port,
            destination_port: self.sent.destination_port,
        })
    }

    /// For whom the connection was made.
    #[inline]
    pub fn service(&self) -> Option<ServiceTag> {
        state::load_service(self.hot)
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
    /// The source has as many entries as [`Settings::per_source`] allows.
    #[error("the source has reached its limit of connections")]
    SourceLimit,
}

/// Ticks are 2^20 ns, about a millisecond; deadlines are kept modulo 2^32 of them, 52 days.
const TICK_BITS: u32 = 20;
/// The longest timeout: deadlines must be less than 2^31 ticks away.
const LONGEST: Duration = Duration::from_secs(20 * 86_400);

const fn tick(now: Timestamp) -> u32 {
    (now.0 >> TICK_BITS) as u32
}

fn deadline(now: Timestamp, timeout: Duration) -> u32 {
    tick(now.after(timeout.min(LONGEST)))
}

/// Time until `deadline`; none when it has come.
fn remaining(deadline: u32, now: Timestamp) -> Duration {
    let ticks = deadline.wrapping_sub(tick(now)) as i32;
    let ticks = u64::from(ticks.max(0) as u32);
    Duration::from_nanos((ticks << TICK_BITS).saturating_sub(now.0 & ((1 << TICK_BITS) - 1)))
}

/// Time since a tick less than 2^31 ticks ago; nothing when it is still to come, as the clocks of two batches may say.
fn age(opened: u32, now: Timestamp) -> Duration {
    let ticks = tick(now).wrapping_sub(opened) as i32;
    Duration::from_nanos(u64::from(ticks.max(0) as u32) << TICK_BITS)
}

/// The table of connections. Shared by all workers; nothing on a packet's way waits for another flow.
pub struct Conntrack {
    settings: Settings,
    slots: Slots,
    /// Packets and bytes of the original, then of the reply direction.
    accounts: Box<[[AtomicU64; 4]]>,
    statistics: PerWorker,
    /// Where the next sweep begins.
    cursor: AtomicUsize,
    /// An early drop found nothing to drop: the next sweep takes closing connections too.
    pressed: AtomicBool,
}

impl fmt::Debug for Conntrack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conntrack")
            .field("settings", &self.settings)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl Conntrack {
    /// An empty table. `hash_key` must not be known to those who send packets.
    pub fn new(settings: Settings, hash_key: [u64; 4]) -> Self {
        let [a, b, c, d] = hash_key;
        let hash = ahash::RandomState::with_seeds(a, b, c, d);
        let accounts = if settings.accounting {
            settings.capacity
        } else {
            0
        };
        Self {
            settings,
            slots: Slots::new(settings.capacity, hash, settings.per_source),
            accounts: (0..accounts).map(|_| Default::default()).collect(),
            statistics: PerWorker::new(),
            cursor: AtomicUsize::new(0),
            pressed: AtomicBool::new(false),
        }
    }

    /// The live connection that owns `tuple`.
    #[inline]
    pub fn find(&self, tuple: &Tuple, now: Timestamp) -> Option<Found> {
        self.find_near(tuple, self.hash(tuple), None, now)
    }

    /// The hash of a tuple, for batches: hash all, prefetch all buckets, guess all entries, then [`Self::find_near`].
    #[inline]
    pub fn hash(&self, tuple: &Tuple) -> TupleHash {
        self.slots.hash(tuple)
    }

    /// Brings the index of a tuple near.
    #[inline]
    pub fn prefetch_buckets(&self, hash: TupleHash) {
        self.slots.prefetch_buckets(hash);
    }

    /// The entry that a tuple probably has, brought near.
    #[inline]
    pub fn guess(&self, hash: TupleHash) -> Option<Guess> {
        self.slots.guess(hash)
    }

    /// [`Self::find`] with the hash at hand, and the entry that it probably is.
    #[inline]
    pub fn find_near(
        &self,
        tuple: &Tuple,
        hash: TupleHash,
        guess: Option<Guess>,
        now: Timestamp,
    ) -> Option<Found> {
        debug_assert_eq!(hash, self.hash(tuple));
        let entry = guess
            .and_then(|guess| self.slots.check(guess, tuple))
            .or_else(|| self.slots.find(tuple, hash))?;
        (!entry.meta.is_expired(now)).then(|| Found::new(&entry))
    }

    /// Whether no live connection owns `reply`.
    pub fn is_free(&self, reply: &Tuple, now: Timestamp) -> bool {
        let taken = self.find(reply, now).is_some();
        if taken {
            self.statistics.add(Counter::Found, 1);
        }
        !taken
    }

    /// A further packet of a connection. When its entry has gone meanwhile the packet passes as `found` says.
    #[inline]
    pub fn track(&self, found: &Found, headers: &Headers, now: Timestamp) -> Tracked {
        if self.goes_on(found, headers, now) {
            return Tracked::Accepted;
        }
        self.advance_locked(found, headers, now)
    }

    /// A datagram of an assured flow only puts its end off: that needs no lock. False when there is more to do.
    #[inline]
    fn goes_on(&self, found: &Found, headers: &Headers, now: Timestamp) -> bool {
        let is_stream = matches!(headers.transport, Transport::Udp)
            && found.status.has(Status::STREAM)
            && self.accounts.is_empty();
        is_stream && {
            let deadline = deadline(now, self.settings.timeouts.udp.stream);
            self.slots.put_off(found.id, found.meta, deadline)
        }
    }

    fn advance_locked(&self, found: &Found, headers: &Headers, now: Timestamp) -> Tracked {
        let Some(entry) = self.slots.lock(found.id) else {
            return Tracked::Ignored;
        };
        let mut meta = entry.meta();
        let mut status = Status(meta.status);
        let state = state::bits_of_state(entry.word(state::DETAIL));
        let outcome = self.advance(&entry, headers, found.direction, &mut status, now);
        if !matches!(outcome, Outcome::Invalid(..) | Outcome::Restart) {
            // The kernel destroys an entry before it marks it.
            if found.direction == Direction::Reply && outcome != Outcome::End {
                status.set(Status::SEEN_REPLY);
            }
            self.account(found.id.index, found.direction, headers.length);
        }
        let has_changed =
            status.0 != meta.status || state::bits_of_state(entry.word(state::DETAIL)) != state;
        meta.status = status.0;
        match outcome {
            Outcome::Refresh(timeout) => meta.deadline = deadline(now, timeout),
            Outcome::Invalid(_, Some(at_most)) if remaining(meta.deadline, now) > at_most => {
                meta.deadline = deadline(now, at_most);
            }
            Outcome::Invalid(..)
            | Outcome::Keep
            | Outcome::Ignored
            | Outcome::Restart
            | Outcome::End => {}
        }
        entry.set_meta(meta);
        if matches!(outcome, Outcome::End | Outcome::Restart) {
            entry.remove(Farewell::at(now));
        } else if has_changed {
            entry.tell(EventKind::Update, now);
        }
        match outcome {
            Outcome::Refresh(_) | Outcome::Keep | Outcome::End => Tracked::Accepted,
            Outcome::Ignored => Tracked::Ignored,
            Outcome::Restart => Tracked::Restart,
            Outcome::Invalid(reason, _) => {
                self.statistics.add(Counter::Invalid, 1);
                Tracked::Invalid(reason)
            }
        }
    }

    #[inline]
    fn advance(
        &self,
        entry: &Guard<'_>,
        headers: &Headers,
        direction: Direction,
        status: &mut Status,
        now: Timestamp,
    ) -> Outcome {
        let timeouts = &self.settings.timeouts;
        match &headers.transport {
            Transport::Tcp(segment) => {
                let mut words = entry.state();
                let mut connection = state::load_tcp(&words);
                let outcome = connection.track(segment, direction, status, &self.settings.tcp);
                state::store_tcp(&mut words, &connection);
                entry.set_state(&words);
                outcome
            }
            Transport::Sctp(packet) => {
                let mut words = entry.state();
                let mut association = state::load_sctp(&words);
                let outcome = association.track(packet, direction, status, &timeouts.sctp);
                state::store_sctp(&mut words, &association);
                entry.set_state(&words);
                outcome
            }
            Transport::Udp => {
                let opened = state::load_opened(entry.word(state::DETAIL));
                Outcome::Refresh(udp::track(age(opened, now), status, &timeouts.udp))
            }
            Transport::Other if headers.tuple.protocol == GRE => {
                Outcome::Refresh(udp::track_gre(status, &timeouts.gre))
            }
            Transport::Icmp | Transport::Other => {
                Outcome::Refresh(self.stateless_timeout(headers.tuple.protocol))
            }
        }
    }

    fn account(&self, index: u32, direction: Direction, length: u32) {
        let Some(account) = self.accounts.get(index as usize) else {
            return;
        };
        account[2 * direction as usize].fetch_add(1, Relaxed);
        account[2 * direction as usize + 1].fetch_add(u64::from(length), Relaxed);
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
    pub fn open(&self, headers: &Headers, now: Timestamp) -> Result<Tentative, Invalid> {
        self.try_open(headers, now)
            .inspect_err(|_| self.statistics.add(Counter::Invalid, 1))
    }

    fn try_open(&self, headers: &Headers, now: Timestamp) -> Result<Tentative, Invalid> {
        let mut state = StateWords::default();
        let timeout = match &headers.transport {
            Transport::Tcp(segment) => {
                let (connection, timeout) = tcp::Connection::open(segment, &self.settings.tcp)?;
                state::store_tcp(&mut state, &connection);
                timeout
            }
            Transport::Sctp(packet) => {
                let (association, timeout) =
                    sctp::Association::open(packet, &self.settings.timeouts.sctp)?;
                state::store_sctp(&mut state, &association);
                timeout
            }
            Transport::Icmp => {
                icmp::open(&headers.tuple)?;
                self.stateless_timeout(headers.tuple.protocol)
            }
            Transport::Udp => {
                state[state::DETAIL] = state::opened(tick(now));
                self.settings.timeouts.udp.unreplied
            }
            Transport::Other => self.stateless_timeout(headers.tuple.protocol),
        };
        let (original, reply) = (headers.tuple, headers.tuple.inverse());
        Ok(Tentative {
            original,
            reply,
            service: None,
            state,
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
    pub fn confirm(
        &self,
        tentative: &Tentative,
        now: Timestamp,
    ) -> Result<Confirmed, ConfirmError> {
        let new = new_entry(tentative, now);
        loop {
            match self.slots.insert(&new, now) {
                Ok(id) => {
                    self.statistics.add(Counter::Inserted, 1);
                    self.open_account(id.index, tentative.length);
                    let entry = Snapshot::of_new(id, &new);
                    if self.slots.events().is_heard() {
                        self.slots.events().tell(EventKind::New, now, entry);
                    }
                    let sighting = Sighting {
                        id,
                        direction: Direction::Original,
                        other: new.reply,
                        meta: new.meta,
                        hot: entry.hot,
                    };
                    return Ok(Confirmed::Inserted(Found::new(&sighting)));
                }
                Err(InsertError::OriginalTaken) => {
                    // When the winner has gone again meanwhile, there is room for us.
                    if let Some(found) = self.find(&tentative.original, now) {
                        self.statistics.add(Counter::ClashResolve, 1);
                        return Ok(Confirmed::Adopted(found));
                    }
                }
                Err(InsertError::ReplyTaken) => {
                    self.statistics.add(Counter::Found, 1);
                    return Err(ConfirmError::ReplyTaken);
                }
                Err(InsertError::SourceLimit) => {
                    self.statistics.add(Counter::SourceLimit, 1);
                    self.statistics.add(Counter::Drop, 1);
                    return Err(ConfirmError::SourceLimit);
                }
                Err(error @ (InsertError::Full | InsertError::BucketFull)) => {
                    if !self.early_drop(tentative, error, now) {
                        return Err(self.full(error));
                    }
                }
            }
        }
    }

    /// Counts a packet that the path could not even look up, or an ICMP error that belongs to no connection.
    pub(crate) fn count_invalid(&self, protocol: Protocol) {
        let is_icmp = protocol.is_icmp();
        self.statistics.add(
            if is_icmp {
                Counter::Error
            } else {
                Counter::Invalid
            },
            1,
        );
    }

    /// Counts a first packet for which there was no port, as the kernel counts it when it fails to confirm.
    pub(crate) fn count_no_port(&self) {
        self.statistics.add(Counter::InsertFailed, 1);
        self.statistics.add(Counter::Drop, 1);
    }

    fn open_account(&self, index: u32, length: u32) {
        if let Some(account) = self.accounts.get(index as usize) {
            for (word, value) in account.iter().zip([1, u64::from(length), 0, 0]) {
                word.store(value, Relaxed);
            }
        }
    }

    /// Notes that the endpoint of a connection is still one of its Service's, as of `generation`.
    pub fn revalidate(&self, found: &Found, generation: Generation) {
        if let Some(entry) = self.slots.lock(found.id) {
            entry.set_word(
                state::FLAGS,
                state::with_generation(entry.word(state::FLAGS), generation),
            );
        }
    }

    /// Ends a connection. False when it had gone already.
    pub fn end(&self, found: &Found, now: Timestamp) -> bool {
        self.slots.remove_if(found.id, Farewell::at(now), |_| true)
    }

    /// Entries in the table, expired ones that were not swept yet included.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it was made with.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many entries the table can hold.
    pub fn capacity(&self) -> usize {
        self.slots.capacity()
    }

    /// Bytes that the table takes when it is full of IPv4 flows: index, entries, accounts.
    pub fn bytes(&self) -> usize {
        self.slots.bytes() + size_of_val(&*self.accounts)
    }

    /// Counters by worker.
    pub fn statistics(&self) -> Vec<Statistics> {
        self.statistics.read()
    }
}

fn new_entry(tentative: &Tentative, now: Timestamp) -> NewEntry {
    let mut state = tentative.state;
    state::store_service(&mut state, tentative.service);
    NewEntry {
        original: tentative.original,
        reply: tentative.reply,
        meta: Meta {
            deadline: deadline(now, tentative.timeout),
            status: Status::of_new(&tentative.original, &tentative.reply).0,
            protocol: tentative.original.protocol,
        },
        state,
    }
}
