//! First packets that were dropped for want of room, for whoever writes the log: the path itself writes nothing.
//!
//! Invariants: a packet never waits for the reader; what the reader does not take in time is only counted.

use crate::tuple::Tuple;
use crate::verdict::DropReason;
use crossbeam_queue::ArrayQueue;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Notices kept until they are read. The log is limited to fewer.
const CAPACITY: usize = 16;

/// A connection that could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Why: [`DropReason::TableFull`], [`DropReason::SourceLimit`] or [`DropReason::NoFreePort`].
    pub reason: DropReason,
    /// Tuple of the first packet.
    pub original: Tuple,
    /// The reply tuple that it would have had; its port is the last one tried.
    pub reply: Tuple,
    /// Entries in the table then.
    pub entries: usize,
}

/// Notices since they were last read.
#[derive(Debug)]
pub struct Notices {
    queue: ArrayQueue<Notice>,
    suppressed: AtomicU64,
}

impl Default for Notices {
    fn default() -> Self {
        Self {
            queue: ArrayQueue::new(CAPACITY),
            suppressed: AtomicU64::new(0),
        }
    }
}

impl Notices {
    pub(crate) fn leave(&self, notice: Notice) {
        if self.queue.push(notice).is_err() {
            self.suppressed.fetch_add(1, Relaxed);
        }
    }

    /// The oldest notice that was not read yet.
    pub fn next(&self) -> Option<Notice> {
        self.queue.pop()
    }

    /// How many more there were since this was last asked.
    pub fn suppressed(&self) -> u64 {
        self.suppressed.swap(0, Relaxed)
    }
}
