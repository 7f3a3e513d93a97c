//! The lock of an entry: changes while it lives, and its end (invariants 1 and 3).

use super::entry::{EntryId, HOT_STATE, Meta, StateWords};
use super::find::Named;
use super::index::TupleHash;
use super::{CONTROL, DEAD, LIVE, LOCKED, META, STATE, Slots};
use crate::conntrack::events::{EventKind, Farewell};
use crate::conntrack::sync::{AtomicU64, Ordering, pause};
use crate::tuple::{Direction, Timestamp};

impl Slots {
    /// Removes a LIVE entry if `may_go` says so of what it holds now. False when it had gone or may stay.
    pub(in crate::conntrack) fn remove_if(
        &self,
        id: EntryId,
        farewell: Farewell,
        may_go: impl Fn(Meta) -> bool,
    ) -> bool {
        self.lock_if(id, may_go)
            .map(|guard| guard.remove(farewell))
            .is_some()
    }

    /// The same with the hashes of its tuples at hand.
    pub(in crate::conntrack) fn remove_named(
        &self,
        named: &Named,
        farewell: Farewell,
        may_go: impl Fn(Meta) -> bool,
    ) -> bool {
        self.lock_if(named.id, may_go)
            .map(|guard| guard.remove_named(named.hashes, farewell))
            .is_some()
    }

    fn lock_if(&self, id: EntryId, may_go: impl Fn(Meta) -> bool) -> Option<Guard<'_>> {
        self.lock(id).filter(|guard| may_go(guard.meta()))
    }

    /// Takes the lock bit of a LIVE entry. `None` when that life of it is over.
    pub(in crate::conntrack) fn lock(&self, id: EntryId) -> Option<Guard<'_>> {
        let line = &self.hot[id.index as usize].0;
        let [unlocked, locked] = [id.control(LIVE), id.control(LIVE | LOCKED)];
        let mut round = 0;
        loop {
            let taken = line[CONTROL].compare_exchange(
                unlocked,
                locked,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            match taken {
                Ok(_) => {
                    return Some(Guard {
                        slots: self,
                        id,
                        line,
                    });
                }
                Err(other) if other != locked => return None,
                Err(_) => {
                    pause(round);
                    round += 1;
                }
            }
        }
    }
}

/// The lock bit of a LIVE entry. Given back when dropped.
pub(in crate::conntrack) struct Guard<'t> {
    slots: &'t Slots,
    id: EntryId,
    line: &'t [AtomicU64; 8],
}

impl Guard<'_> {
    /// Counts a packet of the connection, of so many bytes.
    #[inline]
    pub(in crate::conntrack) fn count(&self, direction: Direction, length: u32) {
        self.slots.accounts.add(self.id, direction, length);
    }

    pub(in crate::conntrack) fn meta(&self) -> Meta {
        Meta::unpack(self.line[META].load(Ordering::Relaxed))
    }

    pub(in crate::conntrack) fn set_meta(&self, meta: Meta) {
        let family = self.line[META].load(Ordering::Relaxed) & 1;
        self.line[META].store(meta.pack() | family, Ordering::Relaxed);
    }

    /// Puts its end off, or forward, to a tick.
    pub(in crate::conntrack) fn set_deadline(&self, deadline: u32) {
        self.set_meta(Meta {
            deadline,
            ..self.meta()
        });
    }

    /// All words, of an entry whose protocol has windows.
    pub(in crate::conntrack) fn state(&self) -> StateWords {
        let mut state = [0; 8];
        let windows = &self.slots.windows[self.id.index as usize].0;
        let words = self.line[STATE..].iter().chain(windows);
        for (value, word) in state.iter_mut().zip(words) {
            *value = word.load(Ordering::Relaxed);
        }
        state
    }

    pub(in crate::conntrack) fn set_state(&self, state: &StateWords) {
        for (nth, &value) in state[..HOT_STATE].iter().enumerate() {
            self.set_word(nth, value);
        }
        self.slots.store_windows(self.id.index, state);
    }

    /// One hot word of the state.
    pub(in crate::conntrack) fn word(&self, nth: usize) -> u64 {
        self.line[STATE + nth].load(Ordering::Relaxed)
    }

    pub(in crate::conntrack) fn set_word(&self, nth: usize, value: u64) {
        self.line[STATE + nth].store(value, Ordering::Relaxed);
    }

    /// Tells those who listen what became of the entry.
    pub(in crate::conntrack) fn tell(&self, kind: EventKind, now: Timestamp) {
        if self.slots.events.is_heard()
            && let Some(entry) = self.slots.snapshot(self.id)
        {
            self.slots.events.tell(kind, now, entry);
        }
    }

    /// Ends this life of the entry: nobody finds it from here on.
    pub(in crate::conntrack) fn remove(self, farewell: Farewell) {
        let tuples = self.slots.tuples(self.id.index, self.meta().protocol);
        let hashes = tuples.map(|tuple| self.slots.hash(&tuple));
        self.remove_named(hashes, farewell);
    }

    fn remove_named(self, hashes: [TupleHash; 2], farewell: Farewell) {
        let by_user = farewell.by_user;
        self.tell(EventKind::Destroy { by_user }, farewell.now);
        let Self { slots, id, line } = self;
        std::mem::forget(self);
        // The tuples are still those of this life: we hold the lock.
        let protocol = Meta::unpack(line[META].load(Ordering::Relaxed)).protocol;
        let [original, reply] = slots.tuples(id.index, protocol);
        line[CONTROL].store(id.control(DEAD), Ordering::SeqCst);
        slots.unlink(id, hashes);
        slots.census.forget(original.source);
        slots.pools.give_back(&reply);
        // What a stranger sent as if it were an answer may have kept a port from being leased.
        slots.pools.give_back(&original);
        slots.release(id);
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.line[CONTROL].store(self.id.control(LIVE), Ordering::Release);
    }
}
