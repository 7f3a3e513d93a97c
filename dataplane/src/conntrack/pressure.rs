//! What keeps the table from overflowing: the sweep of what has expired, and early drop when it is full.

use super::events::Farewell;
use super::listing::connection_state;
use super::slots::{InsertError, Meta, Named, Snapshot, TupleHash};
use super::{ConfirmError, ConnectionState, Conntrack, Counter, Status, Tentative};
use crate::tuple::Timestamp;
use std::sync::atomic::Ordering::Relaxed;

/// Entries whose index lines are brought near together before the sweep removes them.
const AT_ONCE: usize = 16;

impl Conntrack {
    /// Removes expired entries, looking at no more than `budget` of the table. Returns how many it removed.
    ///
    /// When nothing could be dropped early, closing connections go too, assured or not: for one round through the table, while
    /// it is at 95 % or more (kernel `gc_worker`).
    pub fn expire(&self, now: Timestamp, budget: usize) -> usize {
        let used = self.slots.used();
        if used == 0 {
            return 0;
        }
        let budget = budget.min(used);
        let start = self.cursor.fetch_add(budget, Relaxed);
        let mut surplus = self.surplus(budget);
        let mut removed = 0;
        let mut due = Vec::with_capacity(AT_ONCE);
        let first = start % used;
        for index in (first..used).chain(0..first).take(budget) {
            let Some((id, meta)) = self.slots.glance(index as u32) else {
                continue;
            };
            let is_closing = surplus > 0 && self.slots.snapshot(id).is_some_and(is_closing);
            if is_closing || meta.is_expired(now) {
                surplus = surplus.saturating_sub(1);
                due.push((self.slots.bring_near(id), is_closing));
            }
            if due.len() == AT_ONCE {
                removed += self.remove(&mut due, now);
            }
        }
        removed + self.remove(&mut due, now)
    }

    /// Removes what is still due, closing or not. Returns how many.
    fn remove(&self, due: &mut Vec<(Named, bool)>, now: Timestamp) -> usize {
        let removed = due.drain(..).filter(|(named, is_closing)| {
            let may_go = |meta: Meta| *is_closing || meta.is_expired(now);
            self.slots.remove_named(named, Farewell::at(now), may_go)
        });
        removed.count()
    }

    /// How many closing connections have to go among the next `budget` entries.
    fn surplus(&self, budget: usize) -> usize {
        let left = |left: usize| (left > 0).then(|| left.saturating_sub(budget));
        if self.pressed.fetch_update(Relaxed, Relaxed, left).is_err() {
            return 0;
        }
        let few_enough = (self.capacity() * 95).div_ceil(100) - 1;
        self.len().saturating_sub(few_enough)
    }

    /// Makes room, unless there is some by now. False when there is none.
    pub(super) fn early_drop(
        &self,
        tentative: &Tentative,
        error: InsertError,
        now: Timestamp,
    ) -> bool {
        let mut hashes = [&tentative.original, &tentative.reply]
            .map(|tuple| self.slots.hash(tuple))
            .into_iter();
        if error == InsertError::BucketFull {
            let has_room = |hash| self.slots.has_place(hash) || self.drop_one(hash, now);
            return hashes.all(has_room);
        }
        self.len() < self.capacity() || hashes.any(|hash| self.drop_near(hash, now))
    }

    /// As the kernel's `early_drop`: of the eight buckets from the new tuple's on, in the first that holds any entry which
    /// is not assured, all such go. Expired ones go in any case.
    fn drop_near(&self, hash: TupleHash, now: Timestamp) -> bool {
        (0..8).any(|nth| {
            let gone = self
                .slots
                .neighbours(hash, nth)
                .filter(|entry| self.drop_unassured(entry, now));
            gone.count() > 0
        })
    }

    /// One of those in the buckets of a tuple. The kernel's chains have no end that one comes to: where a bucket has, no more
    /// go than need to.
    fn drop_one(&self, hash: TupleHash, now: Timestamp) -> bool {
        let mut entries = self.slots.in_buckets(hash);
        entries.any(|entry| self.drop_unassured(&entry, now))
    }

    fn drop_unassured(&self, entry: &Snapshot, now: Timestamp) -> bool {
        let may_go = |meta: Meta| meta.is_expired(now) || !Status(meta.status).has(Status::ASSURED);
        let is_gone =
            may_go(entry.meta) && self.slots.remove_if(entry.id, Farewell::at(now), may_go);
        if is_gone && !entry.meta.is_expired(now) {
            self.statistics.add(Counter::EarlyDrop, 1);
        }
        is_gone
    }

    pub(super) fn full(&self, error: InsertError) -> ConfirmError {
        if error == InsertError::BucketFull {
            self.statistics.add(Counter::ChainTooLong, 1);
            self.statistics.add(Counter::InsertFailed, 1);
        }
        self.statistics.add(Counter::Drop, 1);
        self.pressed.store(self.slots.used(), Relaxed);
        ConfirmError::TableFull
    }
}

fn is_closing(entry: Snapshot) -> bool {
    match connection_state(&entry) {
        Some(ConnectionState::Tcp(state)) => state.is_closing(),
        Some(ConnectionState::Sctp(state)) => state.is_closing(),
        None => false,
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::conntrack::{Confirmed, Headers, Settings, Transport};
    use crate::tuple::{Address, Protocol, Tuple};

    const NOW: Timestamp = Timestamp::from_seconds(100);

    /// Datagrams from one client to one pod, from any port, both of whose tuples have only these two buckets to be in.
    fn flows_of(conntrack: &Conntrack, wanted: [u32; 2]) -> Vec<Headers> {
        let flow = |source_port| Headers {
            tuple: Tuple {
                source: Address::from_v4([10, 0, 0, 1]),
                destination: Address::from_v4([10, 0, 0, 2]),
                source_port,
                destination_port: 53,
                protocol: Protocol::UDP,
            },
            transport: Transport::Udp,
            length: 28,
        };
        let is_wanted = |headers: &Headers| {
            [headers.tuple, headers.tuple.inverse()]
                .iter()
                .flat_map(|tuple| conntrack.slots.buckets_of(tuple))
                .all(|bucket| wanted.contains(&bucket))
        };
        (0..=u16::MAX).map(flow).filter(is_wanted).collect()
    }

    #[test]
    fn room_that_others_made_meanwhile_is_room() {
        let conntrack = Conntrack::new(Settings::kernel(16), [7; 4]);
        let headers = flows_of(&conntrack, [0, 1]).remove(0);
        let tentative = conntrack.open(&headers, NOW).unwrap();
        for error in [InsertError::BucketFull, InsertError::Full] {
            assert!(conntrack.early_drop(&tentative, error, NOW), "{error:?}");
        }
    }

    #[test]
    fn full_buckets_of_a_tuple_cost_one_flow() {
        const ROOM: usize = 2 * 8 / 2;
        let conntrack = Conntrack::new(Settings::kernel(2 * ROOM), [7; 4]);
        let flows = flows_of(&conntrack, [0, 1]);
        for (nth, headers) in flows[..2 * ROOM].iter().enumerate() {
            let tentative = conntrack.open(headers, NOW).unwrap();
            let confirmed = conntrack.confirm(&tentative, NOW);
            assert!(matches!(confirmed, Ok(Confirmed::Inserted(_))));
            assert_eq!(conntrack.len(), ROOM.min(nth + 1), "the table has room");
        }
        let counted: crate::conntrack::Statistics = conntrack.statistics().into_iter().sum();
        assert_eq!(counted.early_drop, ROOM as u64);
    }
}
