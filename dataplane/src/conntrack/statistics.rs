//! Counters as `conntrack -S` prints them, one set per worker.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Sets of counters. Threads beyond that many share them, which costs time, not counts.
pub(super) const SHARDS: usize = 64;

/// What one worker has counted (`struct ip_conntrack_stat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Reply tuples that a choice of port found taken (sic: not lookups).
    pub found: u64,
    /// Packets of no connection.
    pub invalid: u64,
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

/// Names a counter of [`Statistics`].
#[derive(Clone, Copy)]
pub(super) enum Counter {
    Found,
    Invalid,
    InsertFailed,
    Drop,
    EarlyDrop,
    ClashResolve,
    ChainTooLong,
    SourceLimit,
}

#[derive(Default)]
#[repr(align(64))]
struct Counters([AtomicU64; 8]);

pub(super) struct PerWorker(Box<[Counters]>);

impl PerWorker {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|_| Counters::default()).collect())
    }

    pub(super) fn add(&self, counter: Counter, count: u64) {
        self.0[shard()].0[counter as usize].fetch_add(count, Relaxed);
    }

    /// One for each thread that has used the table, in the order of their first use of any table.
    pub(super) fn read(&self) -> Vec<Statistics> {
        let threads = NEXT_SHARD.load(Relaxed).min(SHARDS);
        self.0[..threads].iter().map(Counters::read).collect()
    }
}

impl Counters {
    fn read(&self) -> Statistics {
        let of = |counter: Counter| self.0[counter as usize].load(Relaxed);
        Statistics {
            found: of(Counter::Found),
            invalid: of(Counter::Invalid),
            insert_failed: of(Counter::InsertFailed),
            drop: of(Counter::Drop),
            early_drop: of(Counter::EarlyDrop),
            clash_resolve: of(Counter::ClashResolve),
            chain_too_long: of(Counter::ChainTooLong),
            source_limit: of(Counter::SourceLimit),
        }
    }
}

static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The calling thread's set of counters.
pub(super) fn shard() -> usize {
    SHARD.with(|shard| {
        if shard.get() == usize::MAX {
            shard.set(NEXT_SHARD.fetch_add(1, Relaxed) % SHARDS);
        }
        shard.get()
    })
}
