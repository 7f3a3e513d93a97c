//! The table's memory: index buckets and entries, shared by all workers without a lock.
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
//!    so what it copied belongs to that life of the entry (a sequence lock; the fences are in [`Slots::write`] and
//!    [`Slots::snapshot`]).
//! 3. What changes while an entry lives is written only under its lock bit. The lock is held for the time that one
//!    packet's state takes, never across a wait; a lookup does not look at it. One exception: the deadline of a flow
//!    whose status can change no more is replaced by compare-exchange ([`Slots::put_off`]).
//! 4. A slot is filled by compare-exchange from empty, before the entry is LIVE, and emptied by the one who unlinks it.
//!    A slot never moves. Two of one entry are distinct, and hold no other life's generation.
//! 5. Of two entries with a tuple in common at most one becomes LIVE. Both publish their slots before they look for the
//!    other (store, SeqCst fence, load: at least one sees the other), and who sees a LIVE one gives up; who sees a
//!    PENDING one gives up or turns it DEAD, and a DEAD one cannot become LIVE.
//!
//! Rejected: one slot's compare-exchange as the moment of insertion (a connection has two, both must appear at once);
//! a pointer per slot (8 bytes more per flow); cuckoo moves (readers would have to look twice).

#![allow(unsafe_code)]

use super::census::Census;
use super::events::{EventKind, Events, Farewell};
use super::pools::Pools;
use super::sync::{AtomicU64, Ordering, fence, pause};
use super::tick;
use crate::sys::memory::prefetch;
use crate::tuple::{Address, Direction, Protocol, Timestamp, Tuple};
use std::hash::{BuildHasher, Hasher};

/// Slots of a bucket: one cache line. Models use small ones.
pub(super) const WIDTH: usize = if cfg!(loom) { 2 } else { 8 };
/// A tuple goes to its first bucket until that holds so many; then to the emptier one of its two.
const PREFERRED: usize = WIDTH / 2;

/// Tries of an insertion in which it gives way to others.
const ROUNDS: u32 = 8;

const PHASE: u64 = 0x3;
const FREE: u64 = 0;
const PENDING: u64 = 1;
const LIVE: u64 = 2;
const DEAD: u64 = 3;
const LOCKED: u64 = 0x4;

/// Words of the hot line.
const CONTROL: usize = 0;
/// deadline in ticks (32) | status (16) | protocol (8) | zero.
const META: usize = 1;
/// IPv4: source << 32 | destination, of the original tuple; IPv6: hash of the tuple.
const ORIGINAL: usize = 2;
/// The same of the reply tuple.
const REPLY: usize = 3;
/// original source, original destination, reply source, reply destination.
const PORTS: usize = 4;
/// First of the words that are the protocol's; of a free entry the number of the next free one.
const STATE: usize = 5;
const NEXT_FREE: usize = 7;

/// Words of an entry that belong to the protocol and the Service: three hot, five cold. The cold ones are of TCP and SCTP
/// alone: no other protocol reads or writes them.
pub(super) type StateWords = [u64; 8];
const HOT_STATE: usize = 3;

fn has_windows(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::TCP | Protocol::SCTP)
}

#[cfg_attr(not(any(loom, shuttle)), derive(zerocopy::FromZeros))]
#[repr(C, align(64))]
struct Line([AtomicU64; 8]);
#[cfg_attr(not(any(loom, shuttle)), derive(zerocopy::FromZeros))]
#[repr(C, align(64))]
struct Bucket([AtomicU64; WIDTH]);
#[cfg_attr(not(any(loom, shuttle)), derive(zerocopy::FromZeros))]
#[repr(C)]
struct Windows([AtomicU64; 5]);

/// Deadline, status and protocol of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    /// In ticks, modulo 2^32.
    pub(super) deadline: u32,
    pub(super) status: u16,
    pub(super) protocol: Protocol,
}

impl Meta {
    const fn pack(self) -> u64 {
        (self.deadline as u64) << 32 | (self.status as u64) << 16 | (self.protocol.0 as u64) << 8
    }

    const fn unpack(word: u64) -> Self {
        Self {
            deadline: (word >> 32) as u32,
            status: (word >> 16) as u16,
            protocol: Protocol((word >> 8) as u8),
        }
    }

    /// Whether the deadline has come. Right for deadlines less than 2^31 ticks away.
    pub(super) const fn is_expired(self, now: Timestamp) -> bool {
        (self.deadline.wrapping_sub(tick(now)) as i32) <= 0
    }
}

/// One life of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// What a reader copied of one life of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snapshot {
    pub(super) id: EntryId,
    pub(super) original: Tuple,
    pub(super) reply: Tuple,
    pub(super) meta: Meta,
    /// The hot words of the state.
    pub(super) hot: [u64; 3],
    is_live: bool,
}

/// A LIVE entry, seen from a tuple that it owns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sighting {
    pub(super) id: EntryId,
    /// That of the tuple.
    pub(super) direction: Direction,
    /// The tuple of the other direction.
    pub(super) other: Tuple,
    pub(super) meta: Meta,
    /// The hot words of the state.
    pub(super) hot: [u64; 3],
}

/// A keyed hash of a tuple, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleHash {
    bits: u64,
    /// What of an entry a packet of the tuple touches besides the hot line.
    has_windows: bool,
    is_ipv6: bool,
}

/// An entry that a tuple with a certain hash may have.
#[derive(Clone, Copy, Debug)]
pub struct Guess(EntryId);

impl TupleHash {
    const fn tag(self) -> u64 {
        (self.bits as u16 as u64) << 48
    }

    /// The two buckets. They differ unless there is only one.
    fn buckets(self, count: usize) -> [usize; 2] {
        let first = reduce(self.bits, count);
        let second = reduce(
            self.bits
                .rotate_left(32)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15),
            count,
        );
        [
            first,
            if second == first {
                (first + 1) % count
            } else {
                second
            },
        ]
    }
}

/// Maps a hash evenly to `0..count` without a division.
const fn reduce(hash: u64, count: usize) -> usize {
    ((hash as u128 * count as u128) >> 64) as usize
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InsertError {
    /// Its original tuple is owned already.
    OriginalTaken,
    /// Its reply tuple is owned already.
    ReplyTaken,
    /// No entry is free.
    Full,
    /// The buckets of one of its tuples are full.
    BucketFull,
    /// Its source has as many entries as it may have.
    SourceLimit,
}

/// What a new entry holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewEntry {
    pub(super) original: Tuple,
    pub(super) reply: Tuple,
    pub(super) meta: Meta,
    pub(super) state: StateWords,
}

/// See the module.
pub(super) struct Slots {
    buckets: Zeroed<Bucket>,
    hot: Zeroed<Line>,
    windows: Zeroed<Windows>,
    addresses: Zeroed<Line>,
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
        let memory = Zeroed::<$type>::new($count);
        #[cfg(any(loom, shuttle))]
        let memory: Zeroed<$type> = (0..$count)
            .map(|_| $type(std::array::from_fn(|_| AtomicU64::new(0))))
            .collect();
        memory
    }};
}

impl Slots {
    /// Memory for `capacity` entries, zero and thereby empty: slots 0, entries FREE with generation 0.
    pub(super) fn new(capacity: usize, hash: ahash::RandomState, per_source: Option<u32>) -> Self {
        let slots = capacity * 2 * 10 / 7;
        let buckets = slots.div_ceil(WIDTH).max(2);
        Self {
            buckets: zeroed!(Bucket, buckets),
            hot: zeroed!(Line, capacity),
            windows: zeroed!(Windows, capacity),
            addresses: zeroed!(Line, capacity),
            free: AtomicU64::new(0),
            fresh: AtomicU64::new(0),
            census: Census::new(per_source, hash.clone()),
            pools: Pools::new(hash.clone()),
            events: Events::default(),
            hash,
        }
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

    pub(super) fn hash(&self, tuple: &Tuple) -> TupleHash {
        let mut hasher = self.hash.build_hasher();
        let ports = u64::from(tuple.source_port) << 32 | u64::from(tuple.destination_port) << 16;
        if tuple.source.is_ipv4() {
            hasher.write_u64(pair_v4(tuple));
        } else {
            hasher.write_u128(tuple.source.to_bits());
            hasher.write_u128(tuple.destination.to_bits());
        }
        hasher.write_u64(ports | u64::from(tuple.protocol.0));
        TupleHash {
            bits: hasher.finish(),
            has_windows: has_windows(tuple.protocol),
            is_ipv6: !tuple.source.is_ipv4(),
        }
    }

    /// Brings the index lines of a tuple near. For batches: first all buckets, then all entries, then the work.
    #[inline]
    pub(super) fn prefetch_buckets(&self, hash: TupleHash) {
        for bucket in hash.buckets(self.buckets.len()) {
            prefetch(&self.buckets[bucket]);
        }
    }

    /// Brings near what names an entry that is about to be removed.
    pub(super) fn bring_near(&self, entry: &Snapshot) {
        self.prefetch_buckets(self.hash(&entry.original));
        self.prefetch_buckets(self.hash(&entry.reply));
    }

    /// Brings the entry near that the tuple probably has.
    #[inline]
    pub(super) fn guess(&self, hash: TupleHash) -> Option<Guess> {
        let id = self.candidates(hash).next()?;
        let index = id.index as usize;
        prefetch(&self.hot[index]);
        if hash.has_windows {
            // They may reach into a second line.
            let [first, .., last] = &self.windows[index].0;
            prefetch(first);
            prefetch(last);
        }
        if hash.is_ipv6 {
            prefetch(&self.addresses[index]);
        }
        Some(Guess(id))
    }

    /// The guessed entry, if it is LIVE and owns `tuple`.
    #[inline]
    pub(super) fn check(&self, guess: Guess, tuple: &Tuple) -> Option<Sighting> {
        self.sight(guess.0, tuple)
    }

    /// Gives an entry whose meta was `seen` another deadline, if it has still that meta. False when it has not.
    ///
    /// Taken apart from the lock (invariant 3): that the word is the same is all that must hold. Should it be that of a
    /// later life, its protocol, status and deadline are the same too, and it is put off in this one's stead.
    #[inline]
    pub(super) fn put_off(&self, id: EntryId, seen: Meta, deadline: u32) -> bool {
        if seen.deadline == deadline {
            return true;
        }
        let word = &self.hot[id.index as usize].0[META];
        let new = Meta { deadline, ..seen };
        let family = word.load(Ordering::Relaxed) & 1;
        word.compare_exchange(
            seen.pack() | family,
            new.pack() | family,
            Ordering::Relaxed,
            Ordering::Relaxed,
        )
        .is_ok()
    }

    /// The LIVE entry that owns `tuple`, expired or not.
    #[inline]
    pub(super) fn find(&self, tuple: &Tuple, hash: TupleHash) -> Option<Sighting> {
        self.candidates(hash).find_map(|id| self.sight(id, tuple))
    }

    /// As [`Self::snapshot`] of a LIVE entry that owns `tuple`, but copies only what a packet of it needs.
    #[inline]
    fn sight(&self, id: EntryId, tuple: &Tuple) -> Option<Sighting> {
        let line = &self.hot[id.index as usize].0;
        let before = line[CONTROL].load(Ordering::Acquire);
        if !matches!(before & PHASE, PENDING | LIVE)
            || (before >> 32) as u16 != id.generation as u16
        {
            return None;
        }
        let word = |at: usize| line[at].load(Ordering::Relaxed);
        let meta = Meta::unpack(word(META));
        let (direction, other) = self.sides(id.index, tuple)?;
        let hot = [word(STATE), word(STATE + 1), word(STATE + 2)];
        // As in `snapshot`.
        fence(Ordering::Acquire);
        let after = line[CONTROL].load(Ordering::Relaxed);
        let is_same_life = before >> 32 == after >> 32 && after & PHASE == LIVE;
        is_same_life.then_some(Sighting {
            id: EntryId {
                generation: (before >> 32) as u32,
                ..id
            },
            direction,
            other,
            meta,
            hot,
        })
    }

    /// Which of an entry's tuples this one is, and the other one.
    #[inline]
    fn sides(&self, index: u32, tuple: &Tuple) -> Option<(Direction, Tuple)> {
        let line = &self.hot[index as usize].0;
        let word = |at: usize| line[at].load(Ordering::Relaxed);
        let meta = word(META);
        let is_ipv6 = meta & 1 != 0;
        if is_ipv6 == tuple.source.is_ipv4() || Meta::unpack(meta).protocol != tuple.protocol {
            return None;
        }
        if is_ipv6 {
            let [original, reply] = self.tuples(index, tuple.protocol);
            return if original == *tuple {
                Some((Direction::Original, reply))
            } else {
                (reply == *tuple).then_some((Direction::Reply, original))
            };
        }
        let (own, both) = ((pair_v4(tuple), ports(tuple)), word(PORTS));
        let original = (word(ORIGINAL), (both >> 32) as u32);
        let reply = (word(REPLY), both as u32);
        if own == original {
            Some((Direction::Original, tuple_v4(reply, tuple.protocol)))
        } else {
            (own == reply).then(|| (Direction::Reply, tuple_v4(original, tuple.protocol)))
        }
    }

    /// Entries whose slots have the tag of `hash`, in its two buckets.
    #[inline]
    fn candidates(&self, hash: TupleHash) -> Candidates<'_> {
        let buckets = hash.buckets(self.buckets.len());
        Candidates::new(buckets.map(|bucket| &self.buckets[bucket]), hash.tag())
    }

    /// Copies an entry, if it is PENDING or LIVE with the (lower 16 bits of the) generation of `id` all the while.
    pub(super) fn snapshot(&self, id: EntryId) -> Option<Snapshot> {
        let line = &self.hot[id.index as usize].0;
        let before = line[CONTROL].load(Ordering::Acquire);
        if !matches!(before & PHASE, PENDING | LIVE)
            || (before >> 32) as u16 != id.generation as u16
        {
            return None;
        }
        let word = |at: usize| line[at].load(Ordering::Relaxed);
        let meta = Meta::unpack(word(META));
        let [original, reply] = self.tuples(id.index, meta.protocol);
        let hot = [word(STATE), word(STATE + 1), word(STATE + 2)];
        // Pairs with the fence in `write`: who saw a word of the next life sees that this one is over.
        fence(Ordering::Acquire);
        let after = line[CONTROL].load(Ordering::Relaxed);
        // PENDING may have become LIVE meanwhile: still the same life, with the same tuples. Who would not count that
        // as seen would miss a rival.
        let is_same_life = before >> 32 == after >> 32 && matches!(after & PHASE, PENDING | LIVE);
        let id = EntryId {
            generation: (before >> 32) as u32,
            ..id
        };
        is_same_life.then_some(Snapshot {
            id,
            original,
            reply,
            meta,
            hot,
            is_live: after & PHASE == LIVE,
        })
    }

    fn tuples(&self, index: u32, protocol: Protocol) -> [Tuple; 2] {
        let line = &self.hot[index as usize].0;
        let ports = line[PORTS].load(Ordering::Relaxed);
        let port = |nth: u32| (ports >> (48 - 16 * nth)) as u16;
        let addresses = self.addresses_of(index);
        let tuple = |nth: usize| Tuple {
            source: addresses[2 * nth],
            destination: addresses[2 * nth + 1],
            source_port: port(2 * nth as u32),
            destination_port: port(2 * nth as u32 + 1),
            protocol,
        };
        [tuple(0), tuple(1)]
    }

    fn addresses_of(&self, index: u32) -> [Address; 4] {
        let line = &self.hot[index as usize].0;
        let is_ipv6 = line[META].load(Ordering::Relaxed) & 1 != 0;
        if is_ipv6 {
            let words = &self.addresses[index as usize].0;
            return std::array::from_fn(|nth| {
                let half = |at: usize| u128::from(words[at].load(Ordering::Relaxed));
                Address::from_bits(half(2 * nth) << 64 | half(2 * nth + 1))
            });
        }
        let words = [
            line[ORIGINAL].load(Ordering::Relaxed),
            line[REPLY].load(Ordering::Relaxed),
        ];
        std::array::from_fn(|nth| {
            let pair = words[nth / 2];
            Address::from_v4(
                (if nth % 2 == 0 {
                    (pair >> 32) as u32
                } else {
                    pair as u32
                })
                .to_be_bytes(),
            )
        })
    }

    /// Makes an entry LIVE. Others that have expired no longer own their tuples: they are removed when they are in the
    /// way.
    pub(super) fn insert(&self, new: &NewEntry, now: Timestamp) -> Result<EntryId, InsertError> {
        if !self.census.may_admit(new.original.source) {
            return Err(InsertError::SourceLimit);
        }
        let hashes = [self.hash(&new.original), self.hash(&new.reply)];
        // Those of the original tuple were looked at just now.
        self.prefetch_buckets(hashes[1]);
        let id = self.allocate().ok_or(InsertError::Full)?;
        self.write(id, new);
        self.census.admit(new.original.source);
        self.pools.take(&new.reply);
        let result = self.settle(id, new, hashes, now);
        if result.is_err() {
            self.unlink(id, hashes);
            self.release(id);
            self.census.forget(new.original.source);
            self.pools.give_back(&new.reply);
        }
        result.map(|()| id)
    }

    /// Tries until the entry is LIVE, or is known not to become so.
    fn settle(
        &self,
        id: EntryId,
        new: &NewEntry,
        hashes: [TupleHash; 2],
        now: Timestamp,
    ) -> Result<(), InsertError> {
        let mut round = 0;
        while !self.contend(id, new, hashes, (round, now))? {
            self.unlink(id, hashes);
            pause(round);
            round += 1;
        }
        Ok(())
    }

    /// One try to become LIVE, invariant 5. `Ok(false)`: another one with a tuple of ours is on its way in; try again.
    fn contend(
        &self,
        id: EntryId,
        new: &NewEntry,
        hashes: [TupleHash; 2],
        (round, now): (u32, Timestamp),
    ) -> Result<bool, InsertError> {
        let control = &self.hot[id.index as usize].0[CONTROL];
        // Seen by whoever finds a slot of ours.
        control.store(id.control(PENDING), Ordering::Release);
        if !self.link(id, hashes[0]) || (new.original != new.reply && !self.link(id, hashes[1])) {
            // Rivals for the same tuple fill its buckets for a moment; they step back as we do.
            return if round < ROUNDS {
                Ok(false)
            } else {
                Err(InsertError::BucketFull)
            };
        }
        fence(Ordering::SeqCst);
        let taken = [InsertError::OriginalTaken, InsertError::ReplyTaken];
        for ((tuple, hash), error) in [&new.original, &new.reply]
            .into_iter()
            .zip(hashes)
            .zip(taken)
        {
            match self.rival(id, tuple, hash, (round, now)) {
                Rival::None => {}
                Rival::Live => return Err(error),
                Rival::Pending => return Ok(false),
            }
        }
        // Fails when a rival has turned us DEAD.
        Ok(control
            .compare_exchange(
                id.control(PENDING),
                id.control(LIVE),
                Ordering::SeqCst,
                Ordering::Relaxed,
            )
            .is_ok())
    }

    /// Looks for others that own `tuple`, or are about to.
    fn rival(
        &self,
        id: EntryId,
        tuple: &Tuple,
        hash: TupleHash,
        (round, now): (u32, Timestamp),
    ) -> Rival {
        for other in self
            .candidates(hash)
            .filter(|other| other.index != id.index)
        {
            while let Some(snapshot) = self
                .snapshot(other)
                .filter(|snapshot| snapshot.owns(tuple).is_some())
            {
                if snapshot.is_live {
                    if !snapshot.meta.is_expired(now) {
                        return Rival::Live;
                    }
                    let is_expired = |meta: Meta| meta.is_expired(now);
                    self.remove_if(snapshot.id, Farewell::at(now), is_expired);
                } else if snapshot.id.index < id.index && round < ROUNDS {
                    return Rival::Pending;
                } else {
                    // Ours goes first, or the other was not seen to move for long: it must try again.
                    let control = &self.hot[snapshot.id.index as usize].0[CONTROL];
                    let [pending, dead] = [snapshot.id.control(PENDING), snapshot.id.control(DEAD)];
                    let _ = control.compare_exchange(
                        pending,
                        dead,
                        Ordering::SeqCst,
                        Ordering::Relaxed,
                    );
                }
            }
        }
        Rival::None
    }

    /// Puts `id` into an empty slot of one of the two buckets. False when there is none.
    fn link(&self, id: EntryId, hash: TupleHash) -> bool {
        let [first, second] = hash.buckets(self.buckets.len());
        let fill = |bucket: usize| {
            self.buckets[bucket]
                .0
                .iter()
                .filter(|slot| slot.load(Ordering::Relaxed) != 0)
                .count()
        };
        let filled = fill(first);
        let order = if filled < PREFERRED || filled <= fill(second) {
            [first, second]
        } else {
            [second, first]
        };
        let word = id.slot(hash);
        order
            .into_iter()
            .flat_map(|bucket| &self.buckets[bucket].0)
            .any(|slot| {
                slot.load(Ordering::Relaxed) == 0
                    && slot
                        .compare_exchange(0, word, Ordering::SeqCst, Ordering::Relaxed)
                        .is_ok()
            })
    }

    /// Empties the slots of `id`: one of each tuple, or none that was not filled yet.
    fn unlink(&self, id: EntryId, hashes: [TupleHash; 2]) {
        for hash in hashes {
            let word = id.slot(hash);
            let slot = hash
                .buckets(self.buckets.len())
                .into_iter()
                .flat_map(|bucket| &self.buckets[bucket].0)
                .find(|slot| slot.load(Ordering::Relaxed) == word);
            if let Some(slot) = slot {
                slot.store(0, Ordering::Release);
            }
        }
    }

    /// Removes a LIVE entry if `may_go` says so of what it holds now. False when it had gone or may stay.
    pub(super) fn remove_if(
        &self,
        id: EntryId,
        farewell: Farewell,
        may_go: impl Fn(Meta) -> bool,
    ) -> bool {
        let Some(guard) = self.lock(id) else {
            return false;
        };
        if !may_go(guard.meta()) {
            return false;
        }
        guard.remove(farewell);
        true
    }

    /// Takes the lock bit of a LIVE entry. `None` when that life of it is over.
    pub(super) fn lock(&self, id: EntryId) -> Option<Guard<'_>> {
        let control = &self.hot[id.index as usize].0[CONTROL];
        let [unlocked, locked] = [id.control(LIVE), id.control(LIVE | LOCKED)];
        let mut round = 0;
        loop {
            match control.compare_exchange(unlocked, locked, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(Guard { slots: self, id }),
                Err(other) if other != locked => return None,
                Err(_) => {
                    pause(round);
                    round += 1;
                }
            }
        }
    }

    /// A FREE entry that nobody else has.
    fn allocate(&self) -> Option<EntryId> {
        let index = self.pop().or_else(|| self.take_fresh())?;
        let control = self.hot[index as usize].0[CONTROL].load(Ordering::Relaxed);
        Some(EntryId {
            index,
            generation: (control >> 32) as u32,
        })
    }

    fn take_fresh(&self) -> Option<u32> {
        if self.fresh.load(Ordering::Relaxed) as usize >= self.capacity() {
            return None;
        }
        let index = self.fresh.fetch_add(1, Ordering::Relaxed);
        ((index as usize) < self.capacity()).then_some(index as u32)
    }

    fn pop(&self) -> Option<u32> {
        let mut head = self.free.load(Ordering::Acquire);
        loop {
            let index = (head as u32).checked_sub(1)?;
            let next = self.hot[index as usize].0[NEXT_FREE].load(Ordering::Relaxed) & 0xffff_ffff;
            let new = (head >> 32).wrapping_add(1) << 32 | next;
            match self
                .free
                .compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire)
            {
                Ok(_) => return Some(index),
                Err(other) => head = other,
            }
        }
    }

    /// Gives an entry that is not LIVE and in no slot back.
    fn release(&self, id: EntryId) {
        let line = &self.hot[id.index as usize].0;
        let next = EntryId {
            generation: id.generation.wrapping_add(1),
            ..id
        };
        line[CONTROL].store(next.control(FREE), Ordering::Release);
        // As in `write`: the next line already writes a word that readers of the old life may copy.
        fence(Ordering::Release);
        let mut head = self.free.load(Ordering::Relaxed);
        loop {
            line[NEXT_FREE].store(head & 0xffff_ffff, Ordering::Relaxed);
            let new = (head >> 32).wrapping_add(1) << 32 | u64::from(id.index + 1);
            match self
                .free
                .compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(other) => head = other,
            }
        }
    }

    fn write(&self, id: EntryId, new: &NewEntry) {
        // Pairs with the fence in `snapshot`: CONTROL said FREE before any word of the new life is written.
        fence(Ordering::Release);
        let line = &self.hot[id.index as usize].0;
        let is_ipv6 = !new.original.source.is_ipv4();
        line[META].store(new.meta.pack() | u64::from(is_ipv6), Ordering::Relaxed);
        line[ORIGINAL].store(pair_v4(&new.original), Ordering::Relaxed);
        line[REPLY].store(pair_v4(&new.reply), Ordering::Relaxed);
        line[PORTS].store(
            u64::from(ports(&new.original)) << 32 | u64::from(ports(&new.reply)),
            Ordering::Relaxed,
        );
        if is_ipv6 {
            let addresses = [
                new.original.source,
                new.original.destination,
                new.reply.source,
                new.reply.destination,
            ];
            let halves = addresses
                .into_iter()
                .flat_map(|a| [(a.to_bits() >> 64) as u64, a.to_bits() as u64]);
            for (word, half) in self.addresses[id.index as usize].0.iter().zip(halves) {
                word.store(half, Ordering::Relaxed);
            }
        }
        for (word, &value) in line[STATE..].iter().zip(&new.state) {
            word.store(value, Ordering::Relaxed);
        }
        if has_windows(new.meta.protocol) {
            self.store_windows(id.index, &new.state);
        }
    }

    fn store_windows(&self, index: u32, state: &StateWords) {
        let cold = &state[HOT_STATE..];
        for (word, &value) in self.windows[index as usize].0.iter().zip(cold) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// The LIVE entries of the `nth` bucket from the first of `hash` on.
    pub(super) fn neighbours(
        &self,
        hash: TupleHash,
        nth: usize,
    ) -> impl Iterator<Item = Snapshot> + '_ {
        let bucket = (hash.buckets(self.buckets.len())[0] + nth) % self.buckets.len();
        self.buckets[bucket].0.iter().filter_map(move |slot| {
            let word = slot.load(Ordering::Acquire);
            let id = EntryId {
                index: (word as u32).checked_sub(1)?,
                generation: (word >> 32) as u16 as u32,
            };
            self.snapshot(id).filter(|snapshot| snapshot.is_live)
        })
    }

    /// The entry with this number, if it is LIVE.
    pub(super) fn at(&self, index: u32) -> Option<Snapshot> {
        let control = self.hot[index as usize].0[CONTROL].load(Ordering::Relaxed);
        self.snapshot(EntryId {
            index,
            generation: (control >> 32) as u32,
        })
        .filter(|snapshot| snapshot.is_live)
    }

    /// Memory that is reserved for every entry of IPv4, index included, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.buckets) + size_of_val(&*self.hot) + size_of_val(&*self.windows)
    }
}

/// The slots of two buckets that have a tag.
struct Candidates<'t> {
    /// The second bucket, until it is looked at.
    second: Option<&'t Bucket>,
    tag: u64,
    /// The bucket that is looked at, and which of its slots had the tag and were not given out yet.
    bucket: &'t Bucket,
    matching: u32,
}

impl<'t> Candidates<'t> {
    #[inline]
    fn new([first, second]: [&'t Bucket; 2], tag: u64) -> Self {
        Self {
            second: Some(second),
            tag,
            bucket: first,
            matching: first.matching(tag),
        }
    }
}

impl Bucket {
    /// A bit for each slot that has the tag; a tag of zero is that of empty slots, too. Without a branch: which slot it
    /// is nobody can foretell.
    #[inline(always)]
    fn matching(&self, tag: u64) -> u32 {
        let mut matching = 0;
        for (nth, slot) in self.0.iter().enumerate() {
            let has_tag = (slot.load(Ordering::Acquire) ^ tag) >> 48 == 0;
            matching |= u32::from(has_tag) << nth;
        }
        matching
    }
}

impl Iterator for Candidates<'_> {
    type Item = EntryId;

    #[inline]
    fn next(&mut self) -> Option<EntryId> {
        loop {
            while self.matching == 0 {
                self.bucket = self.second.take()?;
                self.matching = self.bucket.matching(self.tag);
            }
            let slot = &self.bucket.0[self.matching.trailing_zeros() as usize % WIDTH];
            self.matching &= self.matching - 1;
            let word = slot.load(Ordering::Acquire);
            if word != 0 && (word ^ self.tag) >> 48 == 0 {
                // The generation has 16 bits here; the rest of it is checked by whoever reads the entry.
                return Some(EntryId {
                    index: word as u32 - 1,
                    generation: (word >> 32) as u16 as u32,
                });
            }
        }
    }
}

enum Rival {
    None,
    Live,
    Pending,
}

impl EntryId {
    const fn control(self, phase: u64) -> u64 {
        (self.generation as u64) << 32 | phase
    }

    const fn slot(self, hash: TupleHash) -> u64 {
        hash.tag() | (self.generation as u16 as u64) << 32 | (self.index as u64 + 1)
    }
}

impl Snapshot {
    /// Of an entry that was just inserted.
    pub(super) fn of_new(id: EntryId, new: &NewEntry) -> Self {
        let hot = [new.state[0], new.state[1], new.state[2]];
        Self {
            id,
            original: new.original,
            reply: new.reply,
            meta: new.meta,
            hot,
            is_live: true,
        }
    }

    fn owns(&self, tuple: &Tuple) -> Option<Direction> {
        if self.original == *tuple {
            Some(Direction::Original)
        } else if self.reply == *tuple {
            Some(Direction::Reply)
        } else {
            None
        }
    }
}

/// The lock bit of a LIVE entry. Given back when dropped.
pub(super) struct Guard<'t> {
    slots: &'t Slots,
    id: EntryId,
}

impl Guard<'_> {
    fn line(&self) -> &[AtomicU64; 8] {
        &self.slots.hot[self.id.index as usize].0
    }

    pub(super) fn meta(&self) -> Meta {
        Meta::unpack(self.line()[META].load(Ordering::Relaxed))
    }

    pub(super) fn set_meta(&self, meta: Meta) {
        let family = self.line()[META].load(Ordering::Relaxed) & 1;
        self.line()[META].store(meta.pack() | family, Ordering::Relaxed);
    }

    /// All words, of an entry whose protocol has windows.
    pub(super) fn state(&self) -> StateWords {
        let mut state = [0; 8];
        let windows = &self.slots.windows[self.id.index as usize].0;
        let words = self.line()[STATE..].iter().chain(windows);
        for (value, word) in state.iter_mut().zip(words) {
            *value = word.load(Ordering::Relaxed);
        }
        state
    }

    pub(super) fn set_state(&self, state: &StateWords) {
        for (nth, &value) in state[..HOT_STATE].iter().enumerate() {
            self.set_word(nth, value);
        }
        self.slots.store_windows(self.id.index, state);
    }

    /// One hot word of the state.
    pub(super) fn word(&self, nth: usize) -> u64 {
        self.line()[STATE + nth].load(Ordering::Relaxed)
    }

    pub(super) fn set_word(&self, nth: usize, value: u64) {
        self.line()[STATE + nth].store(value, Ordering::Relaxed);
    }

    /// Tells those who listen what became of the entry.
    pub(super) fn tell(&self, kind: EventKind, now: Timestamp) {
        if self.slots.events.is_heard()
            && let Some(entry) = self.slots.snapshot(self.id)
        {
            self.slots.events.tell(kind, now, entry);
        }
    }

    /// Ends this life of the entry: nobody finds it from here on.
    pub(super) fn remove(self, farewell: Farewell) {
        let by_user = farewell.by_user;
        self.tell(EventKind::Destroy { by_user }, farewell.now);
        let Self { slots, id } = self;
        std::mem::forget(self);
        // The tuples are still those of this life: we hold the lock.
        let line = &slots.hot[id.index as usize].0;
        let protocol = Meta::unpack(line[META].load(Ordering::Relaxed)).protocol;
        let [original, reply] = slots.tuples(id.index, protocol);
        line[CONTROL].store(id.control(DEAD), Ordering::SeqCst);
        slots.unlink(id, [slots.hash(&original), slots.hash(&reply)]);
        slots.census.forget(original.source);
        slots.pools.give_back(&reply);
        // What a stranger sent as if it were an answer may have kept a port from being leased.
        slots.pools.give_back(&original);
        slots.release(id);
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.line()[CONTROL].store(self.id.control(LIVE), Ordering::Release);
    }
}

/// The inverse of [`pair_v4`] and [`ports`].
#[inline]
fn tuple_v4((pair, ports): (u64, u32), protocol: Protocol) -> Tuple {
    let address = |bits: u32| Address::from_v4(bits.to_be_bytes());
    Tuple {
        source: address((pair >> 32) as u32),
        destination: address(pair as u32),
        source_port: (ports >> 16) as u16,
        destination_port: ports as u16,
        protocol,
    }
}

#[inline]
fn pair_v4(tuple: &Tuple) -> u64 {
    u64::from(tuple.source.to_bits() as u32) << 32 | u64::from(tuple.destination.to_bits() as u32)
}

#[inline]
fn ports(tuple: &Tuple) -> u32 {
    u32::from(tuple.source_port) << 16 | u32::from(tuple.destination_port)
}

#[cfg(all(test, any(loom, shuttle)))]
#[path = "models.rs"]
mod models;
