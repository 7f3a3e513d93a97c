//! What an entry holds, and how it is packed into words.

use super::accounts::Count;
use super::index::TupleHash;
use crate::conntrack::tick;
use crate::tuple::{Address, Direction, Protocol, Timestamp, Tuple};

/// Words of an entry that belong to the protocol and the Service: three hot, five cold. The cold ones are of TCP and SCTP
/// alone: no other protocol reads or writes them.
pub(in crate::conntrack) type StateWords = [u64; 8];

pub(super) const HOT_STATE: usize = 3;

pub(super) fn has_windows(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::TCP | Protocol::SCTP)
}

/// Deadline, status and protocol of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::conntrack) struct Meta {
    /// In ticks, modulo 2^32.
    pub(in crate::conntrack) deadline: u32,
    pub(in crate::conntrack) status: u16,
    pub(in crate::conntrack) protocol: Protocol,
}

impl Meta {
    pub(in crate::conntrack) const fn pack(self) -> u64 {
        (self.deadline as u64) << 32 | (self.status as u64) << 16 | (self.protocol.0 as u64) << 8
    }

    pub(in crate::conntrack) const fn unpack(word: u64) -> Self {
        Self {
            deadline: (word >> 32) as u32,
            status: (word >> 16) as u16,
            protocol: Protocol((word >> 8) as u8),
        }
    }

    /// Whether the deadline has come. Right for deadlines less than 2^31 ticks away.
    pub(in crate::conntrack) const fn is_expired(self, now: Timestamp) -> bool {
        (self.deadline.wrapping_sub(tick(now)) as i32) <= 0
    }
}

/// One life of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId {
    pub(in crate::conntrack) index: u32,
    pub(in crate::conntrack) generation: u32,
}

impl EntryId {
    pub(super) const fn control(self, phase: u64) -> u64 {
        (self.generation as u64) << 32 | phase
    }

    pub(super) const fn slot(self, hash: TupleHash) -> u64 {
        hash.tag_of_slot() | (self.generation as u16 as u64) << 32 | (self.index as u64 + 1)
    }

    /// The one that a slot names. Its generation has 16 bits; the rest of it is checked by whoever reads the entry.
    #[inline(always)]
    pub(super) fn of_slot(word: u64) -> Option<Self> {
        Some(Self {
            index: (word as u32).checked_sub(1)?,
            generation: (word >> 32) as u16 as u32,
        })
    }
}

/// What a reader copied of one life of an entry.
#[derive(Clone, Copy, Debug)]
pub(in crate::conntrack) struct Snapshot {
    pub(in crate::conntrack) id: EntryId,
    pub(in crate::conntrack) original: Tuple,
    pub(in crate::conntrack) reply: Tuple,
    pub(in crate::conntrack) meta: Meta,
    /// The hot words of the state.
    pub(in crate::conntrack) hot: [u64; 3],
    /// What passed, when it is counted.
    pub(in crate::conntrack) counts: Option<[Count; 2]>,
    pub(super) is_live: bool,
}

impl Snapshot {
    /// Of an entry that was just inserted; what is counted of it is left out.
    pub(in crate::conntrack) fn of_new(id: EntryId, new: &NewEntry<'_>) -> Self {
        let hot = [new.state[0], new.state[1], new.state[2]];
        Self {
            id,
            original: *new.original,
            reply: *new.reply,
            meta: Meta::unpack(new.meta),
            hot,
            counts: None,
            is_live: true,
        }
    }

    pub(super) fn owns(&self, tuple: &Tuple) -> Option<Direction> {
        if self.original == *tuple {
            Some(Direction::Original)
        } else if self.reply == *tuple {
            Some(Direction::Reply)
        } else {
            None
        }
    }
}

/// A LIVE entry, seen from a tuple that it owns.
#[derive(Clone, Copy, Debug)]
pub(in crate::conntrack) struct Sighting {
    pub(in crate::conntrack) id: EntryId,
    /// That of the tuple.
    pub(in crate::conntrack) direction: Direction,
    /// The tuple of the other direction.
    pub(in crate::conntrack) other: Tuple,
    pub(in crate::conntrack) meta: Meta,
    /// The first words of the state, which say for whom it was made.
    pub(in crate::conntrack) service: [u64; 2],
}

/// What a new entry holds. It lies where it was made until it is written to the entry: there is much of it.
#[derive(Clone, Copy, Debug)]
pub(in crate::conntrack) struct NewEntry<'t> {
    pub(in crate::conntrack) original: &'t Tuple,
    pub(in crate::conntrack) reply: &'t Tuple,
    /// Packed ([`Meta::pack`]), for it is read as a whole.
    pub(in crate::conntrack) meta: u64,
    pub(in crate::conntrack) state: &'t StateWords,
    /// Of its first packet, in bytes.
    pub(in crate::conntrack) length: u32,
}

/// Addresses and ports of a tuple, as an entry has them: of IPv4 both addresses in one word, of IPv6 in four.
pub(super) type Ends<const WORDS: usize> = ([u64; WORDS], u32);

/// The inverse of [`pair_v4`] and [`ports`].
#[inline]
pub(super) fn tuple_v4(([pair], ports): Ends<1>, protocol: Protocol) -> Tuple {
    let address = |bits: u32| Address::from_v4(bits.to_be_bytes());
    Tuple {
        source: address((pair >> 32) as u32),
        destination: address(pair as u32),
        source_port: (ports >> 16) as u16,
        destination_port: ports as u16,
        protocol,
    }
}

/// The inverse of [`addresses_v6`] and [`ports`].
#[inline]
pub(super) fn tuple_v6(([a, b, c, d], ports): Ends<4>, protocol: Protocol) -> Tuple {
    let address = |high, low| Address::from_bits(u128::from(high) << 64 | u128::from(low));
    Tuple {
        source: address(a, b),
        destination: address(c, d),
        source_port: (ports >> 16) as u16,
        destination_port: ports as u16,
        protocol,
    }
}

#[inline]
pub(super) fn pair_v4(tuple: &Tuple) -> u64 {
    u64::from(tuple.source.to_bits() as u32) << 32 | u64::from(tuple.destination.to_bits() as u32)
}

/// The upper and the lower half of the source, then of the destination.
#[inline]
pub(super) fn addresses_v6(tuple: &Tuple) -> [u64; 4] {
    let [source, destination] = [tuple.source, tuple.destination].map(Address::to_bits);
    [source >> 64, source, destination >> 64, destination].map(|half| half as u64)
}

#[inline]
pub(super) fn ports(tuple: &Tuple) -> u32 {
    u32::from(tuple.source_port) << 16 | u32::from(tuple.destination_port)
}
