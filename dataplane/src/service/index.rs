//! [`Index`]: where in the list of frontends a key's begin.

use super::{Frontend, FrontendKey};
use std::hash::{BuildHasher, RandomState};

/// Open addressing with linear probing from [`FrontendKey`] to the position of the frontend.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) key: RandomState,
    /// Keyed by `key`, and many times as fast.
    hash: ahash::RandomState,
    /// Position plus one; zero is an empty slot. The length is a power of two.
    slots: Vec<u32>,
}

impl Index {
    pub(super) fn new(frontends: &[(FrontendKey, Frontend)], key: &RandomState) -> Self {
        let capacity = (frontends.len() * 2).next_power_of_two().max(2);
        let [a, b, c, d] = std::array::from_fn(|nth| key.hash_one(nth));
        let mut index = Self {
            key: key.clone(),
            hash: ahash::RandomState::with_seeds(a, b, c, d),
            slots: vec![0; capacity],
        };
        for (position, (key, _)) in frontends.iter().enumerate() {
            index.insert(key, position, frontends);
        }
        index
    }

    fn insert(
        &mut self,
        key: &FrontendKey,
        position: usize,
        frontends: &[(FrontendKey, Frontend)],
    ) {
        let mut slot = self.home(key);
        while self.slots[slot] != 0 {
            if frontends[self.slots[slot] as usize - 1].0 == *key {
                return;
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = position as u32 + 1;
    }

    pub(super) fn find(
        &self,
        key: &FrontendKey,
        frontends: &[(FrontendKey, Frontend)],
    ) -> Option<usize> {
        let mut slot = self.home(key);
        while self.slots[slot] != 0 {
            let position = self.slots[slot] as usize - 1;
            if frontends[position].0 == *key {
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
