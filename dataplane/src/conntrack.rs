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
mod first_packet;
mod further_packet;
pub mod icmp;
mod listing;
mod outcome;
pub(crate) mod pools;
mod port_search;
mod pressure;
pub mod sctp;
pub mod segment;
mod settings;
mod slots;
mod state;
mod statistics;
mod status;
mod sync;
pub mod tcp;
pub mod udp;
mod window;

use crate::service::Generation;
use crate::tuple::{Address, Direction, Protocol, Timestamp, Tuple};
use events::Farewell;
use slots::{Sighting, Slots};
use statistics::{Counter, PerWorker};
use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

pub use events::{Event, EventKind, Listener};
pub use first_packet::{ConfirmError, Confirmed, Tentative};
pub use listing::{ConnectionState, EntryView};
use outcome::Outcome;
pub use outcome::{Invalid, Tracked};
pub(crate) use pools::PortSearch;
pub use segment::{SctpChunk, SctpChunkKind, SctpPacket, TcpFlags, TcpOptions, TcpSegment};
pub use settings::{NoTable, Settings, Timeouts};
pub use slots::{Count, EntryId, Guess, TupleHash};
pub use statistics::Statistics;
pub use status::Status;
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

/// [`Headers`] where they lie: to copy what was just written in parts, a processor waits for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadersView<'a> {
    pub(crate) tuple: &'a Tuple,
    pub(crate) transport: &'a Transport,
    pub(crate) length: u32,
}

impl Headers {
    fn view(&self) -> HeadersView<'_> {
        HeadersView {
            tuple: &self.tuple,
            transport: &self.transport,
            length: self.length,
        }
    }
}

/// The transport header, by how it is tracked.
#[derive(Clone, Copy, Debug)]
pub enum Transport {
    /// TCP.
    Tcp(TcpSegment),
    /// UDP.
    Udp,
    /// SCTP.
    Sctp(SctpPacket),
    /// ICMP or ICMPv6, not an error.
    Icmp,
    /// All others.
    Other,
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

/// A live entry and which of its directions a tuple is of.
#[derive(Clone, Copy, Debug)]
pub struct Found(Sighting);

impl Found {
    /// The entry. It may be gone by now.
    #[inline]
    pub const fn entry(&self) -> EntryId {
        self.0.id
    }

    /// Direction of the tuple that was looked up.
    #[inline]
    pub const fn direction(&self) -> Direction {
        self.0.direction
    }

    /// What packets of this direction are rewritten to; `None` when the connection is not translated.
    #[inline]
    pub fn translation(&self) -> Option<Translation> {
        let sent = self.0.other.inverse();
        self.status().is_translated().then_some(Translation {
            source: sent.source,
            destination: sent.destination,
            source_port: sent.source_port,
            destination_port: sent.destination_port,
        })
    }

    /// For whom the connection was made.
    #[inline]
    pub fn service(&self) -> Option<ServiceTag> {
        state::load_service(self.0.service)
    }

    /// Status bits when it was found.
    #[inline]
    pub const fn status(&self) -> Status {
        Status(self.0.meta.status)
    }

    /// Whether the other side has answered (`[UNREPLIED]` otherwise).
    #[inline]
    pub const fn seen_reply(&self) -> bool {
        self.status().has(Status::SEEN_REPLY)
    }
}

/// Ticks are 2^20 ns, about a millisecond; deadlines are kept modulo 2^32 of them, 52 days.
const TICK_BITS: u32 = 20;
/// The end of a stream lags behind what its last packet asks for by one of so many parts of the timeout at the most.
const STREAM_LAG_PARTS: u32 = 512;
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

/// The table of connections. Shared by all workers. A packet may wait for another one of its own flow; for one of another flow
/// only where that one's entry has to make room, for as long as a packet's state takes.
pub struct Conntrack {
    settings: Settings,
    slots: Slots,
    statistics: PerWorker,
    /// That of UDP streams, bounded, for every datagram needs it.
    stream_timeout: Duration,
    /// Ticks by which the end of one lags at the most: see [`Self::goes_on`].
    stream_lag: u32,
    /// Where the next sweep begins.
    cursor: AtomicUsize,
    /// An early drop found nothing to drop: of so many entries the sweep takes closing connections, too.
    pressed: AtomicUsize,
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
    ///
    /// # Panics
    /// When there can be none with these settings: [`Self::try_new`] says why.
    pub fn new(settings: Settings, hash_key: [u64; 4]) -> Self {
        Self::try_new(settings, hash_key).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Self::new`], for settings of somebody who may ask for more than there is.
    ///
    /// # Errors
    /// [`NoTable`].
    pub fn try_new(settings: Settings, hash_key: [u64; 4]) -> Result<Self, NoTable> {
        let entries = settings.capacity;
        if entries > Settings::MOST_ENTRIES as usize {
            return Err(NoTable::TooManyEntries { entries });
        }
        let [a, b, c, d] = hash_key;
        let hash = ahash::RandomState::with_seeds(a, b, c, d);
        let stream_timeout = settings.timeouts.udp.stream.min(LONGEST);
        let slots = Slots::new(&settings, hash);
        let bytes = Slots::bytes_for(&settings);
        Ok(Self {
            stream_timeout,
            stream_lag: tick(Timestamp::default().after(stream_timeout / STREAM_LAG_PARTS)),
            slots: slots.ok_or(NoTable::NoMemory { entries, bytes })?,
            settings,
            statistics: PerWorker::new(),
            cursor: AtomicUsize::new(0),
            pressed: AtomicUsize::new(0),
        })
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

    /// The entry that a tuple of this protocol and family probably has, brought near.
    #[inline]
    pub fn guess(&self, hash: TupleHash, protocol: Protocol, is_ipv4: bool) -> Option<Guess> {
        self.slots.guess(hash, protocol, is_ipv4)
    }

    /// [`Self::find`] with the hash at hand, and the entry that it probably is.
    #[inline(always)]
    pub fn find_near(
        &self,
        tuple: &Tuple,
        hash: TupleHash,
        guess: Option<Guess>,
        now: Timestamp,
    ) -> Option<Found> {
        debug_assert_eq!(hash, self.hash(tuple));
        let unless_expired =
            |entry: Sighting| (!entry.meta.is_expired(now)).then_some(Found(entry));
        if let Some(entry) = guess.and_then(|guess| self.slots.check(guess, tuple)) {
            return unless_expired(entry);
        }
        unless_expired(self.slots.find(tuple, hash)?)
    }

    /// Whether no live connection owns `reply`.
    pub fn is_free(&self, reply: &Tuple, now: Timestamp) -> bool {
        let taken = self.find(reply, now).is_some();
        if taken {
            self.statistics.add(Counter::Found, 1);
        }
        !taken
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

    /// Original and reply tuple of a connection; `None` when it has gone.
    pub fn tuples(&self, entry: EntryId) -> Option<[Tuple; 2]> {
        let entry = self.slots.snapshot(entry)?;
        Some([entry.original, entry.reply])
    }

    /// Notes that the endpoint of a connection is still one of its Service's, as of `generation`.
    pub fn revalidate(&self, entry: EntryId, generation: Generation) {
        if let Some(entry) = self.slots.lock(entry) {
            entry.set_word(
                state::FLAGS,
                state::with_generation(entry.word(state::FLAGS), generation),
            );
        }
    }

    /// Ends a connection. False when it had gone already.
    pub fn end(&self, entry: EntryId, now: Timestamp) -> bool {
        self.slots.remove_if(entry, Farewell::at(now), |_| true)
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
        self.slots.bytes()
    }

    /// Counters by worker.
    pub fn statistics(&self) -> Vec<Statistics> {
        self.statistics.read()
    }
}
