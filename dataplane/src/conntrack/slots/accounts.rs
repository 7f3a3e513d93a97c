//! Packets and bytes of each entry, for who asks for them (`nf_conntrack_acct`).

use super::Zeroed;
use super::entry::EntryId;
use crate::conntrack::sync::{AtomicU64, Ordering};
use crate::tuple::Direction;

/// What passed in one direction of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets; one of several segments (GSO) is one.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

/// Packets and bytes of the original, then of the reply direction of an entry. As all that changes while it lives they are
/// written under its lock (invariant 3).
#[cfg_attr(not(any(loom, shuttle)), derive(zerocopy::FromZeros))]
#[repr(C)]
pub(super) struct Account(pub(super) [AtomicU64; 4]);

/// Those of each entry; of none where nothing is counted.
pub(super) struct Accounts(pub(super) Zeroed<Account>);

impl Accounts {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }

    /// Begins with the first packet of an entry's life.
    #[inline]
    pub(super) fn open(&self, id: EntryId, length: u32) {
        if let Some(account) = self.0.get(id.index as usize) {
            for (word, value) in account.0.iter().zip([1, u64::from(length), 0, 0]) {
                word.store(value, Ordering::Relaxed);
            }
        }
    }

    /// One more packet.
    #[inline]
    pub(super) fn add(&self, id: EntryId, direction: Direction, length: u32) {
        if let Some(account) = self.0.get(id.index as usize) {
            let [packets, bytes] = [0, 1].map(|nth| &account.0[2 * direction as usize + nth]);
            for (word, more) in [(packets, 1), (bytes, u64::from(length))] {
                word.store(word.load(Ordering::Relaxed) + more, Ordering::Relaxed);
            }
        }
    }

    /// Of the original and of the reply direction.
    pub(super) fn read(&self, id: EntryId) -> Option<[Count; 2]> {
        let account = self.0.get(id.index as usize)?;
        let [packets, bytes, reply_packets, reply_bytes] = account
            .0
            .each_ref()
            .map(|word| word.load(Ordering::Relaxed));
        let reply = Count {
            packets: reply_packets,
            bytes: reply_bytes,
        };
        Some([Count { packets, bytes }, reply])
    }
}
