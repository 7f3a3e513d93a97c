//! What `conntrack -E` shows: connections as they come, change and go.
//!
//! Invariants: who changes the table never waits for a listener, a slow one loses events and is told how many; without
//! listeners an event costs one load.
//!
//! DIFFERS: the kernel tells nothing about entries that were made while nobody listened (`nf_conntrack_events=2`); here
//! a listener learns of every change from its first moment on.

use super::slots::Snapshot;
use super::{Conntrack, EntryView};
use crate::tuple::Timestamp;
use arc_swap::ArcSwap;
use crossbeam_queue::ArrayQueue;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Events that a listener may be behind.
const CAPACITY: usize = 1 << 15;

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// It was confirmed.
    New,
    /// Its status (SEEN_REPLY, ASSURED) or the state of its protocol changed.
    Update,
    /// It has gone.
    Destroy {
        /// Somebody asked for it (`[USERSPACE]`).
        by_user: bool,
    },
}

/// One change of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// When.
    pub at: Timestamp,
    /// The connection after it; without time left when it has expired.
    pub entry: EntryView,
}

/// Why an entry goes, for those who listen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Farewell {
    pub(super) now: Timestamp,
    pub(super) by_user: bool,
}

impl Farewell {
    /// The table's own doing.
    pub(super) const fn at(now: Timestamp) -> Self {
        Self {
            now,
            by_user: false,
        }
    }
}

#[derive(Clone, Copy)]
struct Change {
    kind: EventKind,
    at: Timestamp,
    entry: Snapshot,
}

struct Queue {
    changes: ArrayQueue<Change>,
    lost: AtomicU64,
}

/// Those who listen.
#[derive(Default)]
pub(super) struct Events {
    queues: ArcSwap<Vec<Arc<Queue>>>,
    is_heard: AtomicBool,
    /// Who comes and who goes take turns, so that `is_heard` is of the queues that there are.
    changing: Mutex<()>,
}

impl Events {
    /// Whether anybody listens: else there is no need to look at what has changed.
    #[inline]
    pub(super) fn is_heard(&self) -> bool {
        self.is_heard.load(Relaxed)
    }

    pub(super) fn tell(&self, kind: EventKind, at: Timestamp, entry: Snapshot) {
        for queue in &**self.queues.load() {
            if queue.changes.push(Change { kind, at, entry }).is_err() {
                queue.lost.fetch_add(1, Relaxed);
            }
        }
    }

    fn change(&self, change: impl Fn(&mut Vec<Arc<Queue>>)) {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut queues = Vec::clone(&self.queues.load());
        change(&mut queues);
        self.is_heard.store(!queues.is_empty(), Relaxed);
        self.queues.store(Arc::new(queues));
    }
}

/// Hears of every change of a table from when it was made until it is dropped.
pub struct Listener<'t> {
    conntrack: &'t Conntrack,
    queue: Arc<Queue>,
}

impl Conntrack {
    /// Begins to tell of changes.
    pub fn listen(&self) -> Listener<'_> {
        let queue = Arc::new(Queue {
            changes: ArrayQueue::new(CAPACITY),
            lost: AtomicU64::new(0),
        });
        self.slots
            .events()
            .change(|queues| queues.push(Arc::clone(&queue)));
        Listener {
            conntrack: self,
            queue,
        }
    }
}

impl Listener<'_> {
    /// The oldest event that was not taken yet, if there is one.
    pub fn next(&self) -> Option<Event> {
        let Change {
            kind,
            at,
            mut entry,
        } = self.queue.changes.pop()?;
        // As the kernel, which tells what passed when it is all.
        entry.counts = entry
            .counts
            .filter(|_| matches!(kind, EventKind::Destroy { .. }));
        Some(Event {
            kind,
            at,
            entry: self.conntrack.view(&entry, at),
        })
    }

    /// How many events were lost since this was last asked, because they were not taken in time.
    pub fn lost(&self) -> u64 {
        self.queue.lost.swap(0, Relaxed)
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        let others = |queue: &Arc<Queue>| !Arc::ptr_eq(queue, &self.queue);
        self.conntrack
            .slots
            .events()
            .change(|queues| queues.retain(others));
    }
}
