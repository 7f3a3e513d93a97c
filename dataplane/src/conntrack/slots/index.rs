//! The index: which entries a tuple may have, by its hash (invariant 4).

use super::entry::{EntryId, Snapshot, pair_v4};
use super::{Bucket, Slots, WIDTH};
use crate::conntrack::sync::{AtomicU64, Ordering};
use crate::sys::memory::prefetch;
use crate::tuple::Tuple;
use std::hash::{BuildHasher, Hasher};

/// A tuple goes to so many slots of its first bucket; when they are filled, to the emptier one of its two.
const PREFERRED: usize = WIDTH / 2;

/// A keyed hash of a tuple, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleHash {
    pub(super) bits: u64,
}

impl TupleHash {
    pub(super) const fn tag(self) -> u64 {
        (self.bits as u16 as u64) << 48
    }

    /// The two buckets. They differ unless there is only one.
    pub(super) fn buckets(self, count: usize) -> [usize; 2] {
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

impl Slots {
    #[inline]
    pub(in crate::conntrack) fn hash(&self, tuple: &Tuple) -> TupleHash {
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
        }
    }

    /// Brings the index lines of a tuple near. For batches: first all buckets, then all entries, then the work.
    #[inline]
    pub(in crate::conntrack) fn prefetch_buckets(&self, hash: TupleHash) {
        for bucket in hash.buckets(self.buckets.len()) {
            prefetch(&self.buckets[bucket]);
        }
    }

    /// Entries whose slots have the tag of `hash`, in its two buckets.
    #[inline(always)]
    pub(super) fn candidates(&self, hash: TupleHash) -> Candidates<'_> {
        let buckets = hash.buckets(self.buckets.len());
        Candidates::new(buckets.map(|bucket| &self.buckets[bucket]), hash.tag())
    }

    /// Puts `id` into an empty slot of one of the two buckets. False when there is none.
    pub(super) fn link(&self, id: EntryId, hash: TupleHash) -> bool {
        let word = id.slot(hash);
        let [first, second] = hash
            .buckets(self.buckets.len())
            .map(|bucket| &self.buckets[bucket]);
        if put(&first.0[..PREFERRED], word) {
            return true;
        }
        let order = if first.filled() <= second.filled() {
            [first, second]
        } else {
            [second, first]
        };
        order.into_iter().any(|bucket| put(&bucket.0, word))
    }

    /// Empties the slots of `id`: one of each tuple, or none that was not filled yet.
    pub(super) fn unlink(&self, id: EntryId, hashes: [TupleHash; 2]) {
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

    /// The LIVE entries of the `nth` bucket from the first of `hash` on.
    pub(in crate::conntrack) fn neighbours(
        &self,
        hash: TupleHash,
        nth: usize,
    ) -> impl Iterator<Item = Snapshot> + '_ {
        let bucket = (hash.buckets(self.buckets.len())[0] + nth) % self.buckets.len();
        self.live_of(bucket)
    }

    /// The LIVE entries of the two buckets of `hash`, when neither has an empty slot.
    pub(in crate::conntrack) fn in_the_way(
        &self,
        hash: TupleHash,
    ) -> impl Iterator<Item = Snapshot> + '_ {
        let buckets = hash.buckets(self.buckets.len());
        let is_empty = |slot: &AtomicU64| slot.load(Ordering::Relaxed) == 0;
        let has_place = buckets
            .into_iter()
            .any(|bucket| self.buckets[bucket].0.iter().any(is_empty));
        buckets
            .into_iter()
            .filter(move |_| !has_place)
            .flat_map(|bucket| self.live_of(bucket))
    }

    #[cfg(all(test, not(any(loom, shuttle))))]
    pub(in crate::conntrack) fn buckets_of(&self, tuple: &Tuple) -> [usize; 2] {
        self.hash(tuple).buckets(self.buckets.len())
    }

    fn live_of(&self, bucket: usize) -> impl Iterator<Item = Snapshot> + '_ {
        self.buckets[bucket].0.iter().filter_map(|slot| {
            let word = slot.load(Ordering::Acquire);
            let id = EntryId {
                index: (word as u32).checked_sub(1)?,
                generation: (word >> 32) as u16 as u32,
            };
            self.snapshot(id).filter(|snapshot| snapshot.is_live)
        })
    }
}

/// Puts `word` into the first empty one of `slots`. False when there is none.
#[inline]
fn put(slots: &[AtomicU64], word: u64) -> bool {
    slots.iter().any(|slot| {
        slot.load(Ordering::Relaxed) == 0
            && slot
                .compare_exchange(0, word, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
    })
}

/// The slots of two buckets that have a tag.
pub(super) struct Candidates<'t> {
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
    fn filled(&self) -> usize {
        let slots = self.0.iter();
        slots
            .filter(|slot| slot.load(Ordering::Relaxed) != 0)
            .count()
    }

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
