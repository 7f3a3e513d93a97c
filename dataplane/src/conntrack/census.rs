//! How many entries there are, in all and by source address.
//!
//! Invariant: counts of one thread live in its own cache line, so that new flows of two workers do not fight for one.

use super::statistics::Shard;
use crate::tuple::Address;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Counters of each of two rows. 2^16 sources share none of them on average.
const SOURCES: usize = 1 << 16;

#[derive(Default)]
#[repr(align(64))]
struct Count {
    admitted: AtomicU64,
    forgotten: AtomicU64,
}

pub(super) struct Census {
    counts: Box<[Count]>,
    sources: Option<Sources>,
}

/// A limit per source address, with two rows of counters: a source is over its limit when both its counters are, so
/// that a stranger who shares one with a scanner is not taken for it.
struct Sources {
    limit: u32,
    rows: Box<[[AtomicU32; 2]]>,
    hash: ahash::RandomState,
}

impl Census {
    pub(super) fn new(per_source: Option<u32>, hash: ahash::RandomState) -> Self {
        let rows = || (0..SOURCES).map(|_| Default::default()).collect();
        Self {
            counts: (0..super::statistics::SHARDS)
                .map(|_| Count::default())
                .collect(),
            sources: per_source.map(|limit| Sources {
                limit,
                rows: rows(),
                hash,
            }),
        }
    }

    pub(super) fn len(&self) -> usize {
        // Forgotten first: an entry is admitted before it is forgotten, so the difference is never negative.
        let forgotten: u64 = self
            .counts
            .iter()
            .map(|count| count.forgotten.load(Relaxed))
            .sum();
        let admitted: u64 = self
            .counts
            .iter()
            .map(|count| count.admitted.load(Relaxed))
            .sum();
        admitted.saturating_sub(forgotten) as usize
    }

    /// Whether `source` may have one more. Two workers may both be told so for the last one.
    pub(super) fn may_admit(&self, source: Address) -> bool {
        let Some(sources) = &self.sources else {
            return true;
        };
        sources
            .counters(source)
            .any(|counter| counter.load(Relaxed) < sources.limit)
    }

    pub(super) fn admit(&self, source: Address) {
        let shard = Shard::current();
        shard.add(&self.counts[shard.index()].admitted, 1);
        for counter in self
            .sources
            .iter()
            .flat_map(|sources| sources.counters(source))
        {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn forget(&self, source: Address) {
        let shard = Shard::current();
        shard.add(&self.counts[shard.index()].forgotten, 1);
        for counter in self
            .sources
            .iter()
            .flat_map(|sources| sources.counters(source))
        {
            counter.fetch_sub(1, Relaxed);
        }
    }
}

impl Sources {
    fn counters(&self, source: Address) -> impl Iterator<Item = &AtomicU32> {
        let hash = self.hash.hash_one(source) as usize;
        [
            &self.rows[hash % SOURCES][0],
            &self.rows[(hash >> 32) % SOURCES][1],
        ]
        .into_iter()
    }
}
