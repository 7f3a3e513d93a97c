//! [`Index`]: at which place in the list of frontends those of a key begin.

use super::chunks::{Chunks, Position};
use super::{Claim, FrontendKey};
use std::hash::{BuildHasher, RandomState};

/// Open addressing with linear probing from [`FrontendKey`] to the position of the frontend.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) key: RandomState,
    /// Keyed by `key`, and many times as fast.
    hash: ahash::RandomState,
    /// [`Position`] plus one; zero is an empty slot. The length is a power of two.
    slots: Vec<u32>,
}

impl Index {
    pub(super) fn new(frontends: &Chunks<Claim>, key: &RandomState) -> Self {
        let capacity = (frontends.len() * 2).next_power_of_two().max(2);
        let [a, b, c, d] = std::array::from_fn(|nth| key.hash_one(nth));
        let mut index = Self {
            key: key.clone(),
            hash: ahash::RandomState::with_seeds(a, b, c, d),
            slots: vec![0; capacity],
        };
        let mut last = None;
        for (position, (key, _)) in frontends.positions() {
            // Those with one key stand together, and the first stands for all.
            if last.replace(key) != Some(key) {
                index.insert(key, position);
            }
        }
        index
    }

    fn insert(&mut self, key: &FrontendKey, position: Position) {
        let mut slot = self.home(key);
        while self.slots[slot] != 0 {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = position.to_u32() + 1;
    }

    pub(super) fn find(&self, key: &FrontendKey, frontends: &Chunks<Claim>) -> Option<Position> {
        let mut slot = self.home(key);
        while self.slots[slot] != 0 {
            let position = Position::from_u32(self.slots[slot] - 1);
            if frontends.at(position).0 == *key {
                return Some(position);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        None
    }

    fn home(&self, key: &FrontendKey) -> usize {
        self.hash.hash_one(key) as usize & (self.slots.len() - 1)
    }
}
