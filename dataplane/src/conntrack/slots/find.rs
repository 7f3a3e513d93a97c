//! Readers: they find an entry by a tuple and copy what they need of one life of it (invariant 2).

use super::entry::{Ends, EntryId, Meta, Sighting, Snapshot, has_windows};
use super::entry::{addresses_v6, pair_v4, ports, tuple_v4, tuple_v6};
use super::index::TupleHash;
use super::{CONTROL, LIVE, LOCKED, META, ORIGINAL, PENDING, PHASE, PORTS, REPLY, STATE, Slots};
use crate::conntrack::sync::{AtomicU64, Ordering, fence};
use crate::sys::memory::prefetch;
use crate::tuple::{Direction, Protocol, Tuple};
use std::hint::select_unpredictable;

/// Of the META word: protocol and family.
const KIND: u64 = 0xff01;

/// An entry that a tuple with a certain hash may have.
#[derive(Clone, Copy, Debug)]
pub struct Guess(EntryId);

/// An entry, and what its tuples' hashes were after it had been seen LIVE: who can lock that life of it afterwards knows
/// that they are its own.
#[derive(Clone, Copy, Debug)]
pub(in crate::conntrack) struct Named {
    pub(super) id: EntryId,
    pub(super) hashes: [TupleHash; 2],
}

impl Slots {
    /// Brings the entry near that a tuple of this protocol and family probably has.
    #[inline(always)]
    pub(in crate::conntrack) fn guess(
        &self,
        hash: TupleHash,
        protocol: Protocol,
        is_ipv4: bool,
    ) -> Option<Guess> {
        let id = self.likely(hash)?;
        let index = id.index as usize;
        prefetch(&self.hot[index]);
        if has_windows(protocol) {
            // They may reach into a second line.
            let [first, .., last] = &self.windows[index].0;
            prefetch(first);
            prefetch(last);
        }
        if !is_ipv4 {
            prefetch(&self.addresses[index]);
        }
        Some(Guess(id))
    }

    /// The guessed entry, if it is LIVE and owns `tuple`.
    #[inline(always)]
    pub(in crate::conntrack) fn check(&self, guess: Guess, tuple: &Tuple) -> Option<Sighting> {
        self.sight(guess.0, tuple)
    }

    /// The LIVE entry that owns `tuple`, expired or not.
    #[inline]
    pub(in crate::conntrack) fn find(&self, tuple: &Tuple, hash: TupleHash) -> Option<Sighting> {
        let likely = self.likely(hash)?;
        self.sight(likely, tuple)
            .or_else(|| self.candidates(hash).find_map(|id| self.sight(id, tuple)))
    }

    /// Gives an entry whose meta was `seen` another deadline, if it has still that meta, and if that is more than `lag`
    /// ticks later. False when it has another meta by now.
    ///
    /// Taken apart from the lock (invariant 3): that the word is the same is all that must hold. Should it be that of a
    /// later life, its protocol, status and deadline are the same too, and it is put off in this one's stead.
    #[inline]
    pub(in crate::conntrack) fn put_off(
        &self,
        id: EntryId,
        seen: Meta,
        deadline: u32,
        lag: u32,
    ) -> bool {
        if deadline.wrapping_sub(seen.deadline) as i32 <= lag as i32 {
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

    /// As [`Self::snapshot`] of a LIVE entry that owns `tuple`, but copies only what a packet of it needs.
    #[inline(always)]
    fn sight(&self, id: EntryId, tuple: &Tuple) -> Option<Sighting> {
        let line = &self.hot[id.index as usize].0;
        let before = line[CONTROL].load(Ordering::Acquire);
        if before & PHASE != LIVE || (before >> 32) as u16 != id.generation as u16 {
            return None;
        }
        let word = |at: usize| line[at].load(Ordering::Relaxed);
        let meta = word(META);
        let is_ipv4 = tuple.source.is_ipv4();
        let kind = u64::from(tuple.protocol.0) << 8 | u64::from(!is_ipv4);
        if meta & KIND != kind {
            return None;
        }
        let (direction, other) = if is_ipv4 {
            sides_v4(line, tuple)?
        } else {
            self.sides_v6(id.index, tuple)?
        };
        let service = [word(STATE), word(STATE + 1)];
        // As in `snapshot`.
        fence(Ordering::Acquire);
        let after = line[CONTROL].load(Ordering::Relaxed);
        let is_same_life = (before ^ after) & !LOCKED == 0;
        is_same_life.then_some(Sighting {
            id: EntryId {
                generation: (before >> 32) as u32,
                ..id
            },
            direction,
            other,
            meta: Meta::unpack(meta),
            service,
        })
    }

    /// [`sides_v4`] for IPv6.
    fn sides_v6(&self, index: u32, tuple: &Tuple) -> Option<(Direction, Tuple)> {
        let own = (addresses_v6(tuple), ports(tuple));
        let [original, reply] = self.ends_v6(index);
        let (direction, other) = sides(&own, &original, &reply)?;
        Some((direction, tuple_v6(other, tuple.protocol)))
    }

    /// Copies an entry, if it is PENDING or LIVE with the (lower 16 bits of the) generation of `id` all the while.
    pub(in crate::conntrack) fn snapshot(&self, id: EntryId) -> Option<Snapshot> {
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
        let counts = self.accounts.read(id);
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
            counts,
            is_live: after & PHASE == LIVE,
        })
    }

    /// The entry with this number, if it is LIVE.
    pub(in crate::conntrack) fn at(&self, index: u32) -> Option<Snapshot> {
        let control = self.hot[index as usize].0[CONTROL].load(Ordering::Relaxed);
        self.snapshot(EntryId {
            index,
            generation: (control >> 32) as u32,
        })
        .filter(|snapshot| snapshot.is_live)
    }

    /// Which life the entry with this number is in, and its meta, if it is LIVE. What is read of it after this may be of a
    /// later life: a hint of what to ask for under the lock, which tells.
    #[inline]
    pub(in crate::conntrack) fn glance(&self, index: u32) -> Option<(EntryId, Meta)> {
        let line = &self.hot[index as usize].0;
        let control = line[CONTROL].load(Ordering::Acquire);
        let generation = (control >> 32) as u32;
        let id = EntryId { index, generation };
        (control & PHASE == LIVE).then(|| (id, Meta::unpack(line[META].load(Ordering::Relaxed))))
    }

    /// Brings near what names an entry that was glanced at and is about to be removed, as [`Slots::remove_named`] wants it.
    #[inline]
    pub(in crate::conntrack) fn bring_near(&self, id: EntryId) -> Named {
        let meta = Meta::unpack(self.hot[id.index as usize].0[META].load(Ordering::Relaxed));
        let tuples = self.tuples(id.index, meta.protocol);
        let hashes = tuples.map(|tuple| self.hash(&tuple));
        for hash in hashes {
            self.prefetch_buckets(hash);
        }
        Named { id, hashes }
    }

    pub(super) fn tuples(&self, index: u32, protocol: Protocol) -> [Tuple; 2] {
        let line = &self.hot[index as usize].0;
        let is_ipv6 = line[META].load(Ordering::Relaxed) & 1 != 0;
        if is_ipv6 {
            self.ends_v6(index).map(|ends| tuple_v6(ends, protocol))
        } else {
            ends_v4(line).map(|ends| tuple_v4(ends, protocol))
        }
    }

    /// [`Ends`] of the original and of the reply tuple of an IPv6 entry.
    #[inline]
    fn ends_v6(&self, index: u32) -> [Ends<4>; 2] {
        let addresses = self.addresses[index as usize].0.each_ref();
        let [a, b, c, d, e, f, g, h] = addresses.map(|word| word.load(Ordering::Relaxed));
        let both = self.hot[index as usize].0[PORTS].load(Ordering::Relaxed);
        [
            ([a, b, c, d], (both >> 32) as u32),
            ([e, f, g, h], both as u32),
        ]
    }
}

/// [`Ends`] of the original and of the reply tuple of an IPv4 entry.
#[inline(always)]
fn ends_v4(line: &[AtomicU64; 8]) -> [Ends<1>; 2] {
    let word = |at: usize| line[at].load(Ordering::Relaxed);
    let both = word(PORTS);
    [
        ([word(ORIGINAL)], (both >> 32) as u32),
        ([word(REPLY)], both as u32),
    ]
}

/// Which of an IPv4 entry's tuples this one is, and the other one.
#[inline(always)]
fn sides_v4(line: &[AtomicU64; 8], tuple: &Tuple) -> Option<(Direction, Tuple)> {
    let own = ([pair_v4(tuple)], ports(tuple));
    let [original, reply] = ends_v4(line);
    let (direction, other) = sides(&own, &original, &reply)?;
    Some((direction, tuple_v4(other, tuple.protocol)))
}

/// Which of two this one is, and the other one. Without a branch: nobody can foretell which packets are answers.
#[inline(always)]
fn sides<const WORDS: usize>(
    own: &Ends<WORDS>,
    original: &Ends<WORDS>,
    reply: &Ends<WORDS>,
) -> Option<(Direction, Ends<WORDS>)> {
    let difference = |side: &Ends<WORDS>| {
        let words = own.0.iter().zip(&side.0);
        words.fold(u64::from(own.1 ^ side.1), |all, (ours, its)| {
            all | (ours ^ its)
        })
    };
    let (from_original, from_reply) = (difference(original), difference(reply));
    // The lesser of them: that one or the other is zero would become a branch for each.
    if from_original.min(from_reply) != 0 {
        return None;
    }
    let is_original = from_original == 0;
    let direction = select_unpredictable(is_original, Direction::Original, Direction::Reply);
    let word = |nth: usize| select_unpredictable(is_original, reply.0[nth], original.0[nth]);
    let ports = select_unpredictable(is_original, reply.1, original.1);
    Some((direction, (std::array::from_fn(word), ports)))
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    fn finds_both_sides<const WORDS: usize>(original: Ends<WORDS>, reply: Ends<WORDS>) {
        let side = |own| sides(&own, &original, &reply);
        assert_eq!(side(original), Some((Direction::Original, reply)));
        assert_eq!(side(reply), Some((Direction::Reply, original)));
        for ends in [original, reply] {
            for bit in 0..32 {
                assert_eq!(side((ends.0, ends.1 ^ 1 << bit)), None, "port bit {bit}");
            }
            for bit in 0..64 * WORDS {
                let mut other = ends;
                other.0[bit / 64] ^= 1 << (bit % 64);
                assert_eq!(side(other), None, "address bit {bit}");
            }
        }
        let (addresses, ports) = (original.0, reply.1);
        assert_eq!(side((addresses, ports)), None, "a half of each");
        assert_eq!(
            sides(&original, &original, &original),
            Some((Direction::Original, original)),
            "what answers itself is original"
        );
    }

    #[test]
    fn a_tuple_is_of_the_side_that_it_equals_in_every_bit() {
        finds_both_sides(
            ([0x0a01_0203_ac10_0005], 0x9c40_0050),
            ([0x0a80_0005_0a01_0203], 0x1f90_9c40),
        );
        finds_both_sides(
            ([0xfd00, 0x0a01_0203, 0xfd00, 0xac10_0005], 0x9c40_0050),
            ([0xfd00, 0x0a80_0005, 0xfd00, 0x0a01_0203], 0x1f90_9c40),
        );
    }
}
