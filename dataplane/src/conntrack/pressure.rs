//! What keeps the table from overflowing: the sweep of what has expired, and early drop when it is full.

use super::events::Farewell;
use super::listing::connection_state;
use super::slots::{EntryId, InsertError, Meta, Snapshot, TupleHash};
use super::{ConfirmError, ConnectionState, Conntrack, Counter, Status, Tentative};
use crate::tuple::Timestamp;
use std::sync::atomic::Ordering::Relaxed;

/// Entries whose index lines are brought near together before the sweep removes them.
const AT_ONCE: usize = 16;

impl Conntrack {
    /// Removes expired entries, looking at no more than `budget` of the table. Returns how many it removed.
    ///
    /// When nothing could be dropped early, closing connections go too, assured or not, for as long as the table is at
    /// 95 % or more (kernel `gc_worker`).
    pub fn expire(&self, now: Timestamp, budget: usize) -> usize {
        let used = self.slots.used();
        if used == 0 {
            return 0;
        }
        let budget = budget.min(used);
        let start = self.cursor.fetch_add(budget, Relaxed);
        let mut surplus = self.surplus();
        let mut removed = 0;
        let mut due = Vec::with_capacity(AT_ONCE);
        for position in start..start + budget {
            let Some(entry) = self.slots.at((position % used) as u32) else {
                continue;
            };
            let is_closing = surplus > 0 && is_closing(&entry);
            if is_closing || entry.meta.is_expired(now) {
                self.slots.bring_near(&entry);
                surplus = surplus.saturating_sub(1);
                due.push((entry.id, is_closing));
            }
            if due.len() == AT_ONCE {
                removed += self.remove(&mut due, now);
            }
        }
        removed + self.remove(&mut due, now)
    }

    /// Removes what is still due, closing or not. Returns how many.
    fn remove(&self, due: &mut Vec<(EntryId, bool)>, now: Timestamp) -> usize {
        let removed = due.drain(..).filter(|&(id, is_closing)| {
            let may_go = |meta: Meta| is_closing || meta.is_expired(now);
            self.slots.remove_if(id, Farewell::at(now), may_go)
        });
        removed.count()
    }

    /// How many closing connections have to go.
    fn surplus(&self) -> usize {
        let few_enough = (self.capacity() * 95).div_ceil(100) - 1;
        let surplus = self.len().saturating_sub(few_enough);
        if surplus > 0 && self.pressed.swap(false, Relaxed) {
            surplus
        } else {
            0
        }
    }

    /// Makes room (kernel `early_drop`): of the eight buckets from the new tuple's on, in the first that holds any
    /// entry which is not assured, all such go. Expired ones go in any case. False when nothing went.
    pub(super) fn early_drop(
        &self,
        tentative: &Tentative,
        error: InsertError,
        now: Timestamp,
    ) -> bool {
        // When a bucket of the tuple is full, room elsewhere is of no use.
        let reach = if error == InsertError::Full { 8 } else { 1 };
        [&tentative.original, &tentative.reply]
            .into_iter()
            .any(|tuple| {
                let hash = self.slots.hash(tuple);
                (0..reach).any(|nth| self.drop_unassured(hash, nth, now) > 0)
            })
    }

    fn drop_unassured(&self, hash: TupleHash, nth_bucket: usize, now: Timestamp) -> usize {
        let may_go = |meta: Meta| meta.is_expired(now) || !Status(meta.status).has(Status::ASSURED);
        let mut gone = 0;
        for entry in self.slots.neighbours(hash, nth_bucket) {
            if may_go(entry.meta) && self.slots.remove_if(entry.id, Farewell::at(now), may_go) {
                gone += 1;
                self.statistics
                    .add(Counter::EarlyDrop, u64::from(!entry.meta.is_expired(now)));
            }
        }
        gone
    }

    pub(super) fn full(&self, error: InsertError) -> ConfirmError {
        if error == InsertError::BucketFull {
            self.statistics.add(Counter::ChainTooLong, 1);
            self.statistics.add(Counter::InsertFailed, 1);
        }
        self.statistics.add(Counter::Drop, 1);
        self.pressed.store(true, Relaxed);
        ConfirmError::TableFull
    }
}

fn is_closing(entry: &Snapshot) -> bool {
    match connection_state(entry) {
        Some(ConnectionState::Tcp(state)) => state.is_closing(),
        Some(ConnectionState::Sctp(state)) => state.is_closing(),
        None => false,
    }
}
