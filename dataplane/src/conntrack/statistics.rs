//! Counters as `conntrack -S` prints them, one set per worker.

use std::sync::atomic::{
    AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

/// Sets of counters, one of a thread each, the last one of all threads beyond that many.
pub(super) const SHARDS: usize = 64;
const SHARED: usize = SHARDS - 1;

/// What one worker has counted (`struct ip_conntrack_stat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Reply tuples that a choice of port found taken (sic: not lookups).
    pub found: u64,
    /// Connections that were confirmed. What `conntrack -S` calls `insert` is made by hand, and is none of these.
    pub inserted: u64,
    /// Packets of no connection.
    pub invalid: u64,
    /// ICMP messages of no connection.
    pub error: u64,
    /// Connections that could not be confirmed.
    pub insert_failed: u64,
    /// First packets dropped: for the table was full, or with `insert_failed`.
    pub drop: u64,
    /// Entries dropped early, to make room.
    pub early_drop: u64,
    /// First packets that adopted the entry of another one.
    pub clash_resolve: u64,
    /// Connections that could not be confirmed because their buckets were full.
    pub chain_too_long: u64,
    /// First packets dropped because their source has all the entries that it may have; the kernel has no such limit.
    pub source_limit: u64,
}

impl std::iter::Sum for Statistics {
    fn sum<I: Iterator<Item = Self>>(workers: I) -> Self {
        workers.fold(Self::default(), |sum, worker| Self {
            found: sum.found + worker.found,
            inserted: sum.inserted + worker.inserted,
            invalid: sum.invalid + worker.invalid,
            error: sum.error + worker.error,
            insert_failed: sum.insert_failed + worker.insert_failed,
            drop: sum.drop + worker.drop,
            early_drop: sum.early_drop + worker.early_drop,
            clash_resolve: sum.clash_resolve + worker.clash_resolve,
            chain_too_long: sum.chain_too_long + worker.chain_too_long,
            source_limit: sum.source_limit + worker.source_limit,
        })
    }
}

/// Names a counter of [`Statistics`].
#[derive(Clone, Copy)]
pub(super) enum Counter {
    Found,
    Invalid,
    Error,
    InsertFailed,
    Drop,
    EarlyDrop,
    ClashResolve,
    ChainTooLong,
    SourceLimit,
    Inserted,
}

#[derive(Default)]
#[repr(align(64))]
struct Counters([AtomicU64; 10]);

pub(super) struct PerWorker(Box<[Counters]>);

impl PerWorker {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|_| Counters::default()).collect())
    }

    pub(super) fn add(&self, counter: Counter, count: u64) {
        let shard = Shard::current();
        shard.add(&self.0[shard.index()].0[counter as usize], count);
    }

    /// One for each set that a thread has ever had.
    pub(super) fn read(&self) -> Vec<Statistics> {
        let used = EVER_USED.load(Relaxed).min(SHARDS);
        self.0[..used].iter().map(Counters::read).collect()
    }
}

impl Counters {
    fn read(&self) -> Statistics {
        let of = |counter: Counter| self.0[counter as usize].load(Relaxed);
        Statistics {
            found: of(Counter::Found),
            inserted: of(Counter::Inserted),
            invalid: of(Counter::Invalid),
            error: of(Counter::Error),
            insert_failed: of(Counter::InsertFailed),
            drop: of(Counter::Drop),
            early_drop: of(Counter::EarlyDrop),
            clash_resolve: of(Counter::ClashResolve),
            chain_too_long: of(Counter::ChainTooLong),
            source_limit: of(Counter::SourceLimit),
        }
    }
}

/// Which sets belong to a living thread.
static IN_USE: AtomicU64 = AtomicU64::new(0);
static EVER_USED: AtomicUsize = AtomicUsize::new(0);

/// A thread's set; the next thread may have it when this one ends.
struct Owned(Shard);

/// The number of a set.
#[derive(Clone, Copy)]
pub(super) struct Shard(usize);

impl Shard {
    /// The calling thread's.
    #[inline]
    pub(super) fn current() -> Self {
        // While a thread ends, it may have given its set back already.
        OWNED.try_with(|owned| owned.0).unwrap_or(Self(SHARED))
    }

    #[inline]
    pub(super) const fn index(self) -> usize {
        self.0
    }

    /// Adds to a counter of the set. Where only one thread writes, that needs no locked instruction.
    #[inline]
    pub(super) fn add(self, counter: &AtomicU64, count: u64) {
        if self.0 == SHARED {
            counter.fetch_add(count, Relaxed);
        } else {
            counter.store(counter.load(Relaxed).wrapping_add(count), Relaxed);
        }
    }
}

impl Owned {
    /// The first that nobody has, with all that its last owner counted.
    fn take() -> Self {
        let free =
            |in_use: u64| (in_use.trailing_ones() < SHARED as u32).then_some(in_use | (in_use + 1));
        let index = IN_USE
            .fetch_update(Acquire, Relaxed, free)
            .map_or(SHARED, |before| before.trailing_ones() as usize);
        EVER_USED.fetch_max(index + 1, Relaxed);
        Self(Shard(index))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.0.0 != SHARED {
            IN_USE.fetch_and(!(1 << self.0.0), Release);
        }
    }
}

thread_local! {
    static OWNED: Owned = Owned::take();
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use std::sync::Barrier;

    /// More threads than sets: those that share one lose no count.
    #[test]
    fn threads_that_share_a_set_lose_nothing() {
        const THREADS: usize = SHARDS + 16;
        const EACH: u64 = 20_000;
        let statistics = PerWorker::new();
        let all_are_there = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    statistics.add(Counter::Found, 1);
                    all_are_there.wait();
                    (1..EACH).for_each(|_| statistics.add(Counter::Found, 1));
                });
            }
        });
        let sum: Statistics = statistics.read().into_iter().sum();
        assert_eq!(sum.found, THREADS as u64 * EACH);
    }
}
