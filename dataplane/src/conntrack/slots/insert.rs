//! Insertion: how an entry becomes LIVE, or learns that its tuples are another's (invariant 5).

use super::entry::{EntryId, HOT_STATE, Meta, NewEntry, StateWords};
use super::entry::{addresses_v6, has_windows, pair_v4, ports};
use super::index::TupleHash;
use super::{CONTROL, DEAD, LIVE, META, ORIGINAL, PENDING, PORTS, REPLY, STATE, Slots};
use crate::conntrack::events::Farewell;
use crate::conntrack::sync::{AtomicU64, Ordering, fence, pause};
use crate::tuple::{Timestamp, Tuple};

/// Tries in which an insertion gives way to others.
const ROUNDS: u32 = 8;

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::conntrack) enum InsertError {
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

impl Slots {
    /// Makes an entry LIVE. Others that have expired no longer own their tuples: they are removed when they are in the
    /// way. `hashes` are those of its original and its reply tuple.
    #[inline(never)]
    pub(in crate::conntrack) fn insert(
        &self,
        new: &NewEntry<'_>,
        hashes: &[TupleHash; 2],
        now: Timestamp,
    ) -> Result<EntryId, InsertError> {
        if !self.census.may_admit(new.original.source) {
            return Err(InsertError::SourceLimit);
        }
        let id = self.allocate().ok_or(InsertError::Full)?;
        self.write(id, new);
        self.census.admit(new.original.source);
        self.pools.take(new.reply);
        let newcomer = Newcomer {
            slots: self,
            id,
            new,
            hashes,
            now,
        };
        let result = newcomer.settle();
        if result.is_err() {
            self.unlink(id, *hashes);
            self.release(id);
            self.census.forget(new.original.source);
            self.pools.give_back(new.reply);
        }
        result.map(|()| id)
    }

    fn control(&self, id: EntryId) -> &AtomicU64 {
        &self.hot[id.index as usize].0[CONTROL]
    }

    fn write(&self, id: EntryId, new: &NewEntry<'_>) {
        // Pairs with the fence in `snapshot`: CONTROL said FREE before any word of the new life is written.
        fence(Ordering::Release);
        let line = &self.hot[id.index as usize].0;
        let is_ipv6 = !new.original.source.is_ipv4();
        line[META].store(new.meta | u64::from(is_ipv6), Ordering::Relaxed);
        line[ORIGINAL].store(pair_v4(new.original), Ordering::Relaxed);
        line[REPLY].store(pair_v4(new.reply), Ordering::Relaxed);
        line[PORTS].store(
            u64::from(ports(new.original)) << 32 | u64::from(ports(new.reply)),
            Ordering::Relaxed,
        );
        if is_ipv6 {
            let tuples = [new.original, new.reply];
            let halves = tuples.into_iter().flat_map(addresses_v6);
            for (word, half) in self.addresses[id.index as usize].0.iter().zip(halves) {
                word.store(half, Ordering::Relaxed);
            }
        }
        self.accounts.open(id, new.length);
        for (word, &value) in line[STATE..].iter().zip(new.state) {
            word.store(value, Ordering::Relaxed);
        }
        if has_windows(new.original.protocol) {
            self.store_windows(id.index, new.state);
        }
    }

    pub(super) fn store_windows(&self, index: u32, state: &StateWords) {
        let cold = &state[HOT_STATE..];
        for (word, &value) in self.windows[index as usize].0.iter().zip(cold) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// A written entry that is to become LIVE.
struct Newcomer<'a> {
    slots: &'a Slots,
    id: EntryId,
    new: &'a NewEntry<'a>,
    /// Of its original and its reply tuple.
    hashes: &'a [TupleHash; 2],
    now: Timestamp,
}

/// Who else has a tuple, or is about to.
enum Rival {
    None,
    Live,
    Pending,
}

impl Newcomer<'_> {
    /// Tries until it is LIVE, or is known not to become so.
    #[inline]
    fn settle(&self) -> Result<(), InsertError> {
        if self.contend(0)? {
            return Ok(());
        }
        self.settle_later()
    }

    /// After a first try in vain: rivals are rare.
    #[cold]
    fn settle_later(&self) -> Result<(), InsertError> {
        let mut round = 0;
        loop {
            self.slots.unlink(self.id, *self.hashes);
            pause(round);
            round += 1;
            if self.contend(round)? {
                return Ok(());
            }
        }
    }

    /// One try to become LIVE, invariant 5. `Ok(false)`: another one with a tuple of ours is on its way in; try again.
    #[inline(always)]
    fn contend(&self, round: u32) -> Result<bool, InsertError> {
        // Seen by whoever finds a slot of ours.
        let control = self.slots.control(self.id);
        control.store(self.id.control(PENDING), Ordering::Release);
        if !self.link() {
            // Rivals for the same tuple fill its buckets for a moment; they step back as we do.
            return if round < ROUNDS {
                Ok(false)
            } else {
                Err(InsertError::BucketFull)
            };
        }
        fence(Ordering::SeqCst);
        match self.rival(self.new.original, self.hashes[0], round) {
            Rival::None => {}
            Rival::Live => return Err(InsertError::OriginalTaken),
            Rival::Pending => return Ok(false),
        }
        match self.rival(self.new.reply, self.hashes[1], round) {
            Rival::None => {}
            Rival::Live => return Err(InsertError::ReplyTaken),
            Rival::Pending => return Ok(false),
        }
        // Fails when a rival has turned us DEAD.
        Ok(turn(control, self.id, LIVE))
    }

    /// Puts both tuples into the index; one that answers itself has one.
    #[inline(always)]
    fn link(&self) -> bool {
        let [original, reply] = *self.hashes;
        self.slots.link(self.id, original)
            && (self.new.original == self.new.reply || self.slots.link(self.id, reply))
    }

    /// Looks for others that own `tuple`, or are about to.
    #[inline]
    fn rival(&self, tuple: &Tuple, hash: TupleHash, round: u32) -> Rival {
        if self.slots.has_others(self.id, hash) {
            self.rival_among_others(tuple, hash, round)
        } else {
            Rival::None
        }
    }

    /// Few tuples share a tag with others in their buckets.
    #[cold]
    fn rival_among_others(&self, tuple: &Tuple, hash: TupleHash, round: u32) -> Rival {
        let candidates = self.slots.candidates(hash);
        for other in candidates.filter(|other| other.index != self.id.index) {
            while let Some(snapshot) = self
                .slots
                .snapshot(other)
                .filter(|snapshot| snapshot.owns(tuple).is_some())
            {
                if snapshot.is_live {
                    let is_expired = |meta: Meta| meta.is_expired(self.now);
                    if !is_expired(snapshot.meta) {
                        return Rival::Live;
                    }
                    let farewell = Farewell::at(self.now);
                    self.slots.remove_if(snapshot.id, farewell, is_expired);
                } else if snapshot.id.index < self.id.index && round < ROUNDS {
                    return Rival::Pending;
                } else {
                    // Ours goes first, or the other was not seen to move for long: it must try again.
                    turn(self.slots.control(snapshot.id), snapshot.id, DEAD);
                }
            }
        }
        Rival::None
    }
}

/// Turns a PENDING entry LIVE or DEAD. False when another has turned it before.
#[inline(always)]
fn turn(control: &AtomicU64, id: EntryId, phase: u64) -> bool {
    let [pending, turned] = [PENDING, phase].map(|phase| id.control(phase));
    control
        .compare_exchange(pending, turned, Ordering::SeqCst, Ordering::Relaxed)
        .is_ok()
}
