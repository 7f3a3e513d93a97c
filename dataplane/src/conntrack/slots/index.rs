//! The index: which entries a tuple may have, by its hash (invariant 4).

use super::entry::{EntryId, Snapshot, pair_v4};
use super::{Bucket, Slots, WIDTH};
use crate::conntrack::sync::{AtomicU64, Ordering};
use crate::sys::memory::prefetch;
use crate::tuple::Tuple;
use std::hash::{BuildHasher, Hasher};
use std::hint::select_unpredictable;

/// A tuple goes to so many slots of its first bucket; when they are filled, to the emptier one of its two.
const PREFERRED: usize = WIDTH / 2;

/// What follows from a keyed hash of a tuple: where its slot is in a table, and its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleHash {
    /// The two buckets. They differ unless there is only one.
    buckets: [u32; 2],
    tag: u16,
}

impl TupleHash {
    /// Of no tuple.
    pub const NONE: Self = Self {
        buckets: [0; 2],
        tag: 0,
    };

    #[inline(always)]
    fn new(bits: u64, buckets: usize) -> Self {
        let first = reduce(bits, buckets);
        let second = reduce(
            bits.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            buckets,
        );
        let next = || {
            if first as usize + 1 == buckets {
                0
            } else {
                first + 1
            }
        };
        Self {
            buckets: [first, if second == first { next() } else { second }],
            // That of empty slots is zero.
            tag: (bits as u16).max(1),
        }
    }

    /// Sixteen bits, as the slots of the index hold them.
    #[inline(always)]
    pub const fn tag(self) -> u16 {
        self.tag
    }

    #[inline(always)]
    pub(super) const fn tag_of_slot(self) -> u64 {
        (self.tag as u64) << 48
    }
}

/// Maps a hash evenly to `0..count` without a division.
const fn reduce(hash: u64, count: usize) -> u32 {
    ((hash as u128 * count as u128) >> 64) as u32
}

impl Slots {
    #[inline(always)]
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
        TupleHash::new(hasher.finish(), self.buckets.len())
    }

    /// Both buckets of a tuple.
    #[inline(always)]
    fn buckets(&self, hash: TupleHash) -> [&Bucket; 2] {
        hash.buckets.map(|bucket| &self.buckets[bucket as usize])
    }

    /// Brings the index lines of a tuple near. For batches: first all buckets, then all entries, then the work.
    #[inline]
    pub(in crate::conntrack) fn prefetch_buckets(&self, hash: TupleHash) {
        for bucket in self.buckets(hash) {
            prefetch(bucket);
        }
    }

    /// Entries whose slots have the tag of `hash`, in its two buckets.
    #[inline(always)]
    pub(super) fn candidates(&self, hash: TupleHash) -> Candidates<'_> {
        Candidates::new(self.buckets(hash), hash.tag_of_slot())
    }

    /// One of [`Self::candidates`], if there are any: of a tuple that is in the table most often its entry.
    #[inline(always)]
    pub(super) fn likely(&self, hash: TupleHash) -> Option<EntryId> {
        let [first, second] = self.buckets(hash);
        let tag = hash.tag_of_slot();
        let word = match first.any_with(tag) {
            0 => second.any_with(tag),
            word => word,
        };
        EntryId::of_slot(word)
    }

    /// Whether there are [`Self::candidates`] beside `id`.
    pub(super) fn has_others(&self, id: EntryId, hash: TupleHash) -> bool {
        let own = id.slot(hash);
        let [first, second] = self.buckets(hash);
        first.has_others(own) | second.has_others(own)
    }

    /// Puts `id` into an empty slot of one of the two buckets. False when there is none.
    pub(super) fn link(&self, id: EntryId, hash: TupleHash) -> bool {
        let [first, second] = self.buckets(hash);
        let [in_first, in_second] = [first, second].map(|bucket| bucket.slots_of(|word| word == 0));
        let first_is_better = in_first.has_preferred() | (in_first.count() >= in_second.count());
        // Nobody can foretell it.
        let best = select_unpredictable(first_is_better, (first, in_first), (second, in_second));
        let other = select_unpredictable(first_is_better, (second, in_second), (first, in_first));
        let word = id.slot(hash);
        [best, other]
            .into_iter()
            .any(|(bucket, empty)| bucket.put(word, empty))
    }

    /// Empties the slots of `id`: one of each tuple, or none that was not filled yet.
    ///
    /// Where both tuples have one tag, both slots hold the same word: the one that is found first may be the other tuple's,
    /// in a bucket that both can be in. So the first is looked for again.
    pub(super) fn unlink(&self, id: EntryId, hashes: [TupleHash; 2]) {
        for hash in hashes {
            self.empty_slot(id, hash);
        }
        let [original, reply] = hashes;
        if original.tag == reply.tag {
            self.empty_slot(id, original);
        }
    }

    #[inline(always)]
    fn empty_slot(&self, id: EntryId, hash: TupleHash) {
        let word = id.slot(hash);
        let [first, second] = self.buckets(hash);
        let slot = first.slot_with(word).or_else(|| second.slot_with(word));
        if let Some(slot) = slot {
            slot.store(0, Ordering::Release);
        }
    }

    /// The LIVE entries of the `nth` bucket from the first of `hash` on.
    pub(in crate::conntrack) fn neighbours(
        &self,
        hash: TupleHash,
        nth: usize,
    ) -> impl Iterator<Item = Snapshot> + '_ {
        let bucket = (hash.buckets[0] as usize + nth) % self.buckets.len();
        self.live_of(&self.buckets[bucket])
    }

    /// Whether a slot is empty that a tuple could have.
    pub(in crate::conntrack) fn has_place(&self, hash: TupleHash) -> bool {
        let is_empty = |slot: &AtomicU64| slot.load(Ordering::Relaxed) == 0;
        let mut slots = self.buckets(hash).into_iter().flat_map(|bucket| &bucket.0);
        slots.any(is_empty)
    }

    /// The LIVE entries of the two buckets of a tuple.
    pub(in crate::conntrack) fn in_buckets(
        &self,
        hash: TupleHash,
    ) -> impl Iterator<Item = Snapshot> + '_ {
        let buckets = self.buckets(hash).into_iter();
        buckets.flat_map(|bucket| self.live_of(bucket))
    }

    #[cfg(all(test, not(any(loom, shuttle))))]
    pub(in crate::conntrack) fn buckets_of(&self, tuple: &Tuple) -> [u32; 2] {
        self.hash(tuple).buckets
    }

    fn live_of<'t>(&'t self, bucket: &'t Bucket) -> impl Iterator<Item = Snapshot> + 't {
        bucket.0.iter().filter_map(|slot| {
            let id = EntryId::of_slot(slot.load(Ordering::Acquire))?;
            self.snapshot(id).filter(|snapshot| snapshot.is_live)
        })
    }
}

/// The slots of two buckets that have a tag.
pub(super) struct Candidates<'t> {
    /// The second bucket, until it is looked at.
    second: Option<&'t Bucket>,
    tag: u64,
    /// The bucket that is looked at, and which of its slots had the tag and were not given out yet.
    bucket: &'t Bucket,
    matching: SlotSet,
}

impl<'t> Candidates<'t> {
    #[inline]
    fn new([first, second]: [&'t Bucket; 2], tag: u64) -> Self {
        Self {
            second: Some(second),
            tag,
            bucket: first,
            matching: first.slots_of(|word| has_tag(word, tag)),
        }
    }
}

impl Bucket {
    /// The slots of which `is` holds. Without a branch: which slot it is nobody can foretell.
    #[inline(always)]
    fn slots_of(&self, is: impl Fn(u64) -> bool) -> SlotSet {
        let slots = self.0.iter().enumerate();
        SlotSet(slots.fold(0, |set, (nth, slot)| {
            set | u64::from(is(slot.load(Ordering::Acquire))) << (8 * nth)
        }))
    }

    /// The slot that holds `word`. Without a branch, too.
    #[inline(always)]
    fn slot_with(&self, word: u64) -> Option<&AtomicU64> {
        let slots = self.0.iter().enumerate();
        let nth = slots.fold(WIDTH, |found, (nth, slot)| {
            select_unpredictable(slot.load(Ordering::Relaxed) == word, nth, found)
        });
        self.0.get(nth)
    }

    /// The first of these slots.
    #[inline(always)]
    fn slot(&self, set: SlotSet) -> Option<&AtomicU64> {
        (set != SlotSet::EMPTY).then(|| &self.0[set.0.trailing_zeros() as usize / 8 % WIDTH])
    }

    /// Puts `word` into the first of these slots that is still empty. False when there is none.
    #[inline]
    fn put(&self, word: u64, mut empty: SlotSet) -> bool {
        while let Some(slot) = self.slot(empty) {
            let put = slot.compare_exchange(0, word, Ordering::SeqCst, Ordering::Relaxed);
            if put.is_ok() {
                return true;
            }
            empty = empty.without_first();
        }
        false
    }

    /// A slot that has the tag, or zero where there is none. As [`Self::slots_of`], in fewer steps.
    #[inline(always)]
    fn any_with(&self, tag: u64) -> u64 {
        self.0.iter().fold(0, |found, slot| {
            let word = slot.load(Ordering::Acquire);
            select_unpredictable(has_tag(word, tag), word, found)
        })
    }

    /// Whether a slot that is not `own` has its tag. Without a branch, as few slots have.
    #[inline(always)]
    fn has_others(&self, own: u64) -> bool {
        const UNTAGGED: u64 = (1 << 48) - 1;
        self.0.iter().fold(false, |found, slot| {
            let difference = slot.load(Ordering::Acquire) ^ own;
            found | (difference.wrapping_sub(1) < UNTAGGED)
        })
    }
}

/// Whether the slot with this `word` has the tag, in its upper 16 bits.
#[inline(always)]
const fn has_tag(word: u64, tag: u64) -> bool {
    (word ^ tag) >> 48 == 0
}

/// Slots of a bucket: a byte for each, which is one or zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SlotSet(u64);

impl SlotSet {
    const EMPTY: Self = Self(0);

    /// How many there are: the multiplication adds all bytes up in the uppermost.
    #[inline(always)]
    const fn count(self) -> u64 {
        self.0.wrapping_mul(0x0101_0101_0101_0101) >> 56
    }

    /// Whether one is among the first [`PREFERRED`].
    #[inline(always)]
    const fn has_preferred(self) -> bool {
        self.0 & ((1 << (8 * PREFERRED)) - 1) != 0
    }

    #[inline(always)]
    const fn without_first(self) -> Self {
        Self(self.0 & self.0.wrapping_sub(1))
    }
}

impl Iterator for Candidates<'_> {
    type Item = EntryId;

    #[inline]
    fn next(&mut self) -> Option<EntryId> {
        loop {
            let Some(slot) = self.bucket.slot(self.matching) else {
                self.bucket = self.second.take()?;
                let tag = self.tag;
                self.matching = self.bucket.slots_of(|word| has_tag(word, tag));
                continue;
            };
            self.matching = self.matching.without_first();
            let word = slot.load(Ordering::Acquire);
            if has_tag(word, self.tag)
                && let Some(id) = EntryId::of_slot(word)
            {
                return Some(id);
            }
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::conntrack::Settings;

    fn bucket(words: [u64; WIDTH]) -> Bucket {
        Bucket(words.map(AtomicU64::new))
    }

    fn words(bucket: &Bucket) -> [u64; WIDTH] {
        bucket.0.each_ref().map(|slot| slot.load(Ordering::Relaxed))
    }

    #[test]
    fn slots_are_found_as_one_by_one() {
        for filled in 0..1u64 << WIDTH {
            let all = std::array::from_fn(|nth| (filled >> nth & 1) * (nth as u64 + 1));
            let bucket = bucket(all);
            let empty = bucket.slots_of(|word| word == 0);
            let naive: Vec<usize> = (0..WIDTH).filter(|&nth| all[nth] == 0).collect();
            assert_eq!(empty.count(), naive.len() as u64, "{filled:b}");
            let preferred = naive.iter().any(|&nth| nth < PREFERRED);
            assert_eq!(empty.has_preferred(), preferred, "{filled:b}");
            let is = |slot: Option<&AtomicU64>, nth: Option<usize>| match (slot, nth) {
                (Some(slot), Some(nth)) => std::ptr::eq(slot, &bucket.0[nth]),
                (slot, nth) => slot.is_none() && nth.is_none(),
            };
            assert!(is(bucket.slot(empty), naive.first().copied()), "{filled:b}");
            let rest = bucket.slot(empty.without_first());
            assert!(is(rest, naive.get(1).copied()), "{filled:b}");
            for word in 1..=WIDTH as u64 + 1 {
                let nth = all.iter().position(|&other| other == word);
                assert!(is(bucket.slot_with(word), nth), "{word} in {filled:b}");
            }
        }
    }

    #[test]
    fn an_entry_whose_tuples_have_one_tag_leaves_no_slot() {
        let tagged = |buckets| TupleHash { buckets, tag: 7 };
        let shares = [[0, 1], [1, 0], [0, 2], [2, 0], [1, 2], [2, 1]];
        let pairs = shares.iter().flat_map(|&a| shares.map(|b| [a, b]));
        let id = EntryId {
            index: 3,
            generation: 0,
        };
        for [original, reply] in pairs {
            for places in [[0, 0], [0, 1], [1, 0], [1, 1]] {
                let hash = ahash::RandomState::with_seeds(1, 2, 3, 4);
                let slots = Slots::new(&Settings::kernel(11), hash).unwrap();
                let hashes = [tagged(original), tagged(reply)];
                let word = id.slot(hashes[0]);
                for (buckets, place) in [original, reply].into_iter().zip(places) {
                    let bucket = &slots.buckets[buckets[place] as usize];
                    assert!(bucket.put(word, bucket.slots_of(|word| word == 0)));
                }
                slots.unlink(id, hashes);
                let is_empty = |bucket: &Bucket| words(bucket) == [0; WIDTH];
                assert!(
                    slots.buckets.iter().all(is_empty),
                    "{original:?} {reply:?} {places:?}"
                );
            }
        }
    }

    #[test]
    fn a_slot_that_another_filled_meanwhile_is_passed_over() {
        let bucket = bucket([9, 0, 0, 9, 9, 0, 9, 9]);
        let empty = bucket.slots_of(|word| word == 0);
        assert!(bucket.put(1, empty));
        assert!(bucket.put(2, empty));
        assert_eq!(words(&bucket), [9, 1, 2, 9, 9, 0, 9, 9]);
        bucket.0[5].store(9, Ordering::Relaxed);
        assert!(!bucket.put(3, empty), "none is left");
        assert_eq!(words(&bucket), [9, 1, 2, 9, 9, 9, 9, 9]);
    }
}
