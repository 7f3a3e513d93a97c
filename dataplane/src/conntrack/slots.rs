//! The table's memory: index buckets and entries, shared by all workers. There is no lock but one bit of each entry.
//!
//! # Layout
//!
//! An entry is one hot line of eight words, which is all that a UDP packet touches, five words of TCP windows, and for
//! IPv6 a line of addresses whose memory exists only once IPv6 flows use it. Two index slots name it. With an index
//! filled to 70 % that makes 64 + 40 + 2 * 8 / 0.7 = 127 bytes per IPv4 flow, 191 per IPv6 flow.
//!
//! A bucket is one cache line of eight slots; a slot holds 16 bits of the hash, 16 of the entry's generation, and the
//! entry's number plus one. A tuple's slot is in one of two buckets, so a probe reads two lines of the index at most,
//! whatever strangers send; which two depends on the secret key.
//!
//! # Invariants
//!
//! 1. `CONTROL` of an entry is `generation << 32 | lock | phase`. Its life: FREE (in the free list), PENDING (its
//!    owner is inserting it), LIVE, DEAD, FREE with the next generation. Others than its owner may only turn a PENDING
//!    one DEAD (its owner then tries again or gives up) and lock a LIVE one; who holds the lock may end it. So one
//!    thread at a time unlinks and frees it.
//! 2. Tuples are written only while the phase is FREE and the writer has taken the entry off the free list. A
//!    reader copies them between two loads of `CONTROL`, both LIVE (or PENDING) with the generation that the slot names,
//!    so what it copied belongs to that life of the entry (a sequence lock; the fences are in `write` and `snapshot`).
//! 3. What changes while an entry lives is written only under its lock bit. The lock is held for the time that one
//!    packet's state takes, never across a wait; a lookup does not look at it. One exception: the deadline of a flow
//!    whose status can change no more is replaced by compare-exchange ([`Slots::put_off`]).
//! 4. A slot is filled by compare-exchange from empty, before the entry is LIVE, and emptied by the one who unlinks it.
//!    A slot never moves, and holds no other life's generation. The two of one entry lie apart; they hold the same word
//!    where both tuples have one tag.
//! 5. Of two entries with a tuple in common at most one becomes LIVE. Both publish their slots before they look for the
//!    other (store, SeqCst fence, load: at least one sees the other), and who sees a LIVE one gives up; who sees a
//!    PENDING one gives up or turns it DEAD, and a DEAD one cannot become LIVE.
//!
//! Rejected: one slot's compare-exchange as the moment of insertion (a connection has two, both must appear at once);
//! a pointer per slot (8 bytes more per flow); cuckoo moves (readers would have to look twice).

mod accounts;
mod entry;
mod find;
mod free;
mod guard;
mod index;
mod insert;
#[cfg(all(test, any(loom, shuttle)))]
mod models;

use super::census::Census;
use super::events::Events;
use super::pools::Pools;
use super::settings::Settings;
use super::sync::{AtomicU64, Ordering};

pub use accounts::Count;
use accounts::{Account, Accounts};
pub use entry::EntryId;
pub(super) use entry::{Meta, NewEntry, Sighting, Snapshot, StateWords};
pub use find::Guess;
pub(super) use find::Named;
pub(super) use guard::Guard;
pub use index::TupleHash;
pub(super) use insert::InsertError;

/// Slots of a bucket: one cache line. Models use small ones.
const WIDTH: usize = if cfg!(loom) { 2 } else { 8 };

const PHASE: u64 = 0x3;
const FREE: u64 = 0;
const PENDING: u64 = 1;
const LIVE: u64 = 2;
const DEAD: u64 = 3;
const LOCKED: u64 = 0x4;

/// Words of the hot line.
const CONTROL: usize = 0;
/// deadline in ticks (32) | status (16) | protocol (8) | zero (7) | whether it is of IPv6 (1).
const META: usize = 1;
/// IPv4: source << 32 | destination, of the original tuple. Of IPv6 nobody reads it.
const ORIGINAL: usize = 2;
/// The same of the reply tuple.
const REPLY: usize = 3;
/// original source, original destination, reply source, reply destination.
const PORTS: usize = 4;
/// First of the words that are the protocol's.
const STATE: usize = 5;
/// Of a free entry: the number of the next free one plus one, or zero.
const NEXT_FREE: usize = 7;

#[cfg_attr(not(any(loom, shuttle)), derive(zerocopy::FromZeros))]
#[repr(C, align(64))]
struct Line([AtomicU64; 8]);
#[cfg_attr(not(any(loom, shuttle)), derive(zerocopy::FromZeros))]
#[repr(C, align(64))]
struct Bucket([AtomicU64; WIDTH]);
#[cfg_attr(not(any(loom, shuttle)), derive(zerocopy::FromZeros))]
#[repr(C)]
struct Windows([AtomicU64; 5]);

/// See the module.
pub(super) struct Slots {
    buckets: Zeroed<Bucket>,
    hot: Zeroed<Line>,
    windows: Zeroed<Windows>,
    addresses: Zeroed<Line>,
    accounts: Accounts,
    /// tag << 32 | number of the first free entry plus one. The tag makes each pop's compare-exchange fail when
    /// the list changed meanwhile.
    free: AtomicU64,
    /// Entries from here on were never used.
    fresh: AtomicU64,
    hash: ahash::RandomState,
    census: Census,
    pools: Pools,
    events: Events,
}

/// Memory of zeros; models have no such allocator.
#[cfg(not(any(loom, shuttle)))]
use crate::sys::memory::Zeroed;
#[cfg(any(loom, shuttle))]
type Zeroed<T> = Box<[T]>;

macro_rules! zeroed {
    ($type:ident, $count:expr) => {{
        #[cfg(not(any(loom, shuttle)))]
        let memory = Zeroed::<$type>::try_new($count);
        #[cfg(any(loom, shuttle))]
        let memory: Option<Zeroed<$type>> = (0..$count)
            .map(|_| Some($type(std::array::from_fn(|_| AtomicU64::new(0)))))
            .collect();
        memory
    }};
}

impl Slots {
    /// Memory for all entries, zero and thereby empty: slots 0, entries FREE with generation 0. How many there are, what is
    /// counted of them, and how many a source may have, `settings` say. `None` when the system does not give the memory.
    pub(super) fn new(settings: &Settings, hash: ahash::RandomState) -> Option<Self> {
        let capacity = settings.capacity;
        Some(Self {
            buckets: zeroed!(Bucket, Self::buckets_for(capacity))?,
            hot: zeroed!(Line, capacity)?,
            windows: zeroed!(Windows, capacity)?,
            addresses: zeroed!(Line, capacity)?,
            accounts: Accounts(zeroed!(Account, Self::accounts_for(settings))?),
            free: AtomicU64::new(0),
            fresh: AtomicU64::new(0),
            census: Census::new(settings.per_source, hash.clone()),
            pools: Pools::new(hash.clone()),
            events: Events::default(),
            hash,
        })
    }

    const fn buckets_for(capacity: usize) -> usize {
        let slots = capacity * 2 * 10 / 7;
        let buckets = slots.div_ceil(WIDTH);
        if buckets < 2 { 2 } else { buckets }
    }

    const fn accounts_for(settings: &Settings) -> usize {
        if settings.accounting {
            settings.capacity
        } else {
            0
        }
    }

    /// What [`Self::new`] asks the system for, in bytes.
    pub(super) const fn bytes_for(settings: &Settings) -> u64 {
        let of_entry = size_of::<Line>() + size_of::<Windows>() + size_of::<Line>();
        let of_index = Self::buckets_for(settings.capacity) as u64 * size_of::<Bucket>() as u64;
        let of_accounts = Self::accounts_for(settings) as u64 * size_of::<Account>() as u64;
        of_index + of_accounts + settings.capacity as u64 * of_entry as u64
    }

    /// Ports in use, kept with the entries.
    pub(super) fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Those who listen to what becomes of entries.
    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    /// Entries that are LIVE or on their way in.
    pub(super) fn len(&self) -> usize {
        self.census.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.hot.len()
    }

    /// Entries that were ever used: those that a sweep has to look at.
    pub(super) fn used(&self) -> usize {
        (self.fresh.load(Ordering::Relaxed) as usize).min(self.capacity())
    }

    /// Whether packets and bytes are counted.
    #[inline]
    pub(super) fn has_accounts(&self) -> bool {
        !self.accounts.is_empty()
    }

    /// Memory that is reserved for every entry of IPv4, index and accounts included, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let entries = size_of_val(&*self.hot) + size_of_val(&*self.windows);
        size_of_val(&*self.buckets) + entries + self.accounts.bytes()
    }
}
