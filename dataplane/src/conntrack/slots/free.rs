//! The list of FREE entries.

use super::entry::EntryId;
use super::{CONTROL, FREE, NEXT_FREE, Slots};
use crate::conntrack::sync::{Ordering, fence};

impl Slots {
    /// A FREE entry that nobody else has.
    pub(super) fn allocate(&self) -> Option<EntryId> {
        let index = self.pop().or_else(|| self.take_fresh())?;
        let control = self.hot[index as usize].0[CONTROL].load(Ordering::Relaxed);
        Some(EntryId {
            index,
            generation: (control >> 32) as u32,
        })
    }

    fn take_fresh(&self) -> Option<u32> {
        if self.fresh.load(Ordering::Relaxed) as usize >= self.capacity() {
            return None;
        }
        let index = self.fresh.fetch_add(1, Ordering::Relaxed);
        ((index as usize) < self.capacity()).then_some(index as u32)
    }

    fn pop(&self) -> Option<u32> {
        let mut head = self.free.load(Ordering::Acquire);
        loop {
            let index = (head as u32).checked_sub(1)?;
            let next = self.hot[index as usize].0[NEXT_FREE].load(Ordering::Relaxed) & 0xffff_ffff;
            let new = (head >> 32).wrapping_add(1) << 32 | next;
            match self
                .free
                .compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire)
            {
                Ok(_) => return Some(index),
                Err(other) => head = other,
            }
        }
    }

    /// Gives an entry that is not LIVE and in no slot back.
    pub(super) fn release(&self, id: EntryId) {
        let line = &self.hot[id.index as usize].0;
        let next = EntryId {
            generation: id.generation.wrapping_add(1),
            ..id
        };
        line[CONTROL].store(next.control(FREE), Ordering::Release);
        // As in `write`: the next line already writes a word that readers of the old life may copy.
        fence(Ordering::Release);
        let mut head = self.free.load(Ordering::Relaxed);
        loop {
            line[NEXT_FREE].store(head & 0xffff_ffff, Ordering::Relaxed);
            let new = (head >> 32).wrapping_add(1) << 32 | u64::from(id.index + 1);
            match self
                .free
                .compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(other) => head = other,
            }
        }
    }
}
