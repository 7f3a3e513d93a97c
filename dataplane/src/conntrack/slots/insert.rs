//! Insertion: how an entry becomes LIVE, or learns that its tuples are another's (invariant 5).

use super::entry::{EntryId, HOT_STATE, Meta, NewEntry, StateWords};
use super::entry::{addresses_v6, has_windows, pair_v4, ports};
use super::index::TupleHash;
use super::{CONTROL, DEAD, LIVE, META, ORIGINAL, PENDING, PORTS, REPLY, STATE, Slots};
use crate::conntrack::events::Farewell;
use crate::conntrack::sync::{Ordering, fence, pause};
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
        let result = self.settle(id, new, hashes, now);
        if result.is_err() {
            self.unlink(id, *hashes);
            self.release(id);
            self.census.forget(new.original.source);
            self.pools.give_back(new.reply);
        }
        result.map(|()| id)
    }

    /// Tries until the entry is LIVE, or is known not to become so.
    #[inline]
    fn settle(
        &self,
        id: EntryId,
        new: &NewEntry<'_>,
        hashes: &[TupleHash; 2],
        now: Timestamp,
    ) -> Result<(), InsertError> {
        if self.contend(id, new, hashes, 0, now)? {
            return Ok(());
        }
        self.settle_later(id, new, hashes, now)
    }

    /// After a first try in vain: rivals are rare.
    #[cold]
    fn settle_later(
        &self,
        id: EntryId,
        new: &NewEntry<'_>,
        hashes: &[TupleHash; 2],
        now: Timestamp,
    ) -> Result<(), InsertError> {
        let mut round = 0;
        loop {
            self.unlink(id, *hashes);
            pause(round);
            round += 1;
            if self.contend(id, new, hashes, round, now)? {
                return Ok(());
            }
        }
    }

    /// One try to become LIVE, invariant 5. `Ok(false)`: another one with a tuple of ours is on its way in; try again.
    #[inline(always)]
    fn contend(
        &self,
        id: EntryId,
        new: &NewEntry<'_>,
        hashes: &[TupleHash; 2],
        round: u32,
        now: Timestamp,
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
        match self.rival(id, new.original, hashes[0], round, now) {
            Rival::None => {}
            Rival::Live => return Err(InsertError::OriginalTaken),
            Rival::Pending => return Ok(false),
        }
        match self.rival(id, new.reply, hashes[1], round, now) {
            Rival::None => {}
            Rival::Live => return Err(InsertError::ReplyTaken),
            Rival::Pending => return Ok(false),
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
    #[inline]
    fn rival(
        &self,
        id: EntryId,
        tuple: &Tuple,
        hash: TupleHash,
        round: u32,
        now: Timestamp,
    ) -> Rival {
        if self.has_others(id, hash) {
            self.rival_among_others(id, tuple, hash, round, now)
        } else {
            Rival::None
        }
    }

    /// Few tuples share a tag with others in their buckets.
    #[cold]
    fn rival_among_others(
        &self,
        id: EntryId,
        tuple: &Tuple,
        hash: TupleHash,
        round: u32,
        now: Timestamp,
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

enum Rival {
    None,
    Live,
    Pending,
}
