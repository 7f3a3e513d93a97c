//! Datagrams in fragments: held until they are whole, then translated together and sent on as they came.
//!
//! As in the kernel (`nf_defrag_ipv4`, `nf_defrag_ipv6`) the path sees whole datagrams: nothing is forwarded of one
//! that lacks a fragment, and an overlap kills it (RFC 5722). Bounds on number, bytes and time keep strangers from
//! filling the memory. Fragments are rare, so one lock serves all workers.
//!
//! DIFFERS: the kernel joins the fragments and splits the datagram anew, to the size of its largest fragment and without
//! DF, for IPv6 with a new identification; here the fragments keep their sizes, their DF and their identification.

use crate::checksum;
use crate::frame::Frame;
use crate::packet::{Fragment, Packet};
use crate::tuple::{Address, Protocol, Timestamp};
use crate::verdict::DropReason;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a datagram may stay incomplete (`ipfrag_time`).
const LIFETIME: Duration = Duration::from_secs(30);
/// Bytes held at most (`ipfrag_high_thresh`).
const MAXIMUM_BYTES: usize = 4 << 20;
/// Fragments of one datagram at most: 64 KiB in pieces of the smallest MTU.
const MAXIMUM_FRAGMENTS: usize = 128;

/// The incomplete datagrams.
#[derive(Debug, Default)]
pub struct Fragments {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    datagrams: HashMap<Key, Datagram>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: Address,
    destination: Address,
    protocol: Protocol,
    identification: u32,
}

#[derive(Debug)]
struct Datagram {
    since: Timestamp,
    /// In the order of their offsets, without overlap.
    pieces: Vec<Piece>,
    /// Bytes of all frames.
    bytes: usize,
}

#[derive(Debug)]
struct Piece {
    fragment: Fragment,
    /// Bytes of the datagram in this fragment.
    length: u32,
    frame: Frame,
}

/// What came of a fragment.
#[derive(Debug)]
pub enum Collected {
    /// The datagram is not whole yet.
    Waiting,
    /// It is: all of its fragments, in order.
    Whole(Vec<Frame>),
    /// The fragment, and perhaps its datagram, is given up.
    Dropped(DropReason),
}

impl Fragments {
    /// Takes a copy of `frame`, whose packet has been parsed to `described`.
    pub fn collect(&self, frame: &Frame, described: &Described, now: Timestamp) -> Collected {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.collect(frame, described, now)
    }

    /// Gives up datagrams that are too old. Off the packet's path.
    pub fn expire(&self, now: Timestamp) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.expire(now);
    }

    /// How many datagrams are incomplete.
    pub fn len(&self) -> usize {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .datagrams
            .len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a fragment is a part of, taken from its packet.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    key: Key,
    fragment: Fragment,
    length: u32,
}

impl Described {
    /// `None` when the packet is no fragment.
    pub fn of(packet: &Packet<'_>) -> Option<Self> {
        let fragment = packet.fragment()?;
        Some(Self {
            key: Key {
                source: packet.source(),
                destination: packet.destination(),
                protocol: packet.protocol(),
                identification: fragment.identification,
            },
            fragment,
            length: packet.payload_length() as u32,
        })
    }
}

impl Held {
    fn collect(&mut self, frame: &Frame, described: &Described, now: Timestamp) -> Collected {
        self.expire_one(&described.key, now);
        let size = frame.bytes().len();
        let datagram = self
            .datagrams
            .entry(described.key)
            .or_insert_with(|| Datagram::new(now));
        let crowded = datagram.pieces.len() >= MAXIMUM_FRAGMENTS;
        if crowded || self.bytes + size > MAXIMUM_BYTES {
            self.remove(&described.key);
            return Collected::Dropped(DropReason::TooManyFragments);
        }
        if !datagram.insert(frame, described) {
            self.remove(&described.key);
            return Collected::Dropped(DropReason::OverlappingFragment);
        }
        self.bytes += size;
        if !datagram.is_whole() {
            return Collected::Waiting;
        }
        let pieces = self
            .remove(&described.key)
            .map_or_else(Vec::new, |whole| whole.pieces);
        Collected::Whole(pieces.into_iter().map(|piece| piece.frame).collect())
    }

    fn expire_one(&mut self, key: &Key, now: Timestamp) {
        if self
            .datagrams
            .get(key)
            .is_some_and(|datagram| datagram.is_expired(now))
        {
            self.remove(key);
        }
    }

    fn expire(&mut self, now: Timestamp) {
        let expired: Vec<Key> = self
            .datagrams
            .iter()
            .filter(|(_, datagram)| datagram.is_expired(now))
            .map(|(key, _)| *key)
            .collect();
        for key in expired {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Datagram> {
        let datagram = self.datagrams.remove(key)?;
        self.bytes -= datagram.bytes;
        Some(datagram)
    }
}

impl Datagram {
    const fn new(since: Timestamp) -> Self {
        Self {
            since,
            pieces: Vec::new(),
            bytes: 0,
        }
    }

    fn is_expired(&self, now: Timestamp) -> bool {
        now.since(self.since) > LIFETIME
    }

    /// Puts the fragment in its place. False when it overlaps another or contradicts the end.
    fn insert(&mut self, frame: &Frame, described: &Described) -> bool {
        let start = described.fragment.offset;
        let at = self
            .pieces
            .partition_point(|piece| piece.fragment.offset < start);
        let fits_behind = at == 0 || self.pieces[at - 1].end() <= start;
        let ends_before = |next: &Piece| start + described.length <= next.fragment.offset;
        let fits_before = self.pieces.get(at).is_none_or(ends_before);
        let follows_the_last = at > 0 && !self.pieces[at - 1].fragment.more;
        let precedes_another = !described.fragment.more && at < self.pieces.len();
        if !fits_behind || !fits_before || follows_the_last || precedes_another {
            return false;
        }
        let (fragment, length) = (described.fragment, described.length);
        self.pieces.insert(
            at,
            Piece {
                fragment,
                length,
                frame: frame.duplicate(),
            },
        );
        self.bytes += frame.bytes().len();
        true
    }

    fn is_whole(&self) -> bool {
        let mut next = 0;
        for piece in &self.pieces {
            if piece.fragment.offset != next {
                return false;
            }
            next = piece.end();
        }
        self.pieces.last().is_some_and(|piece| !piece.fragment.more)
    }
}

impl Piece {
    const fn end(&self) -> u32 {
        self.fragment.offset + self.length
    }
}

/// Whether the checksum of a whole datagram is wrong. Fragments are cut at multiples of eight bytes, so that their sums
/// add up. UDP without a checksum is fine.
pub fn has_bad_checksum(frames: &mut [Frame]) -> bool {
    let mut total = 0;
    let mut length = 0;
    let mut first = None;
    for frame in frames {
        let Ok(packet) = Packet::parse(frame) else {
            return true;
        };
        if first.is_none() {
            let is_unchecked_udp =
                packet.protocol() == Protocol::UDP && packet.transport().get(6..8) == Some(&[0, 0]);
            if is_unchecked_udp {
                return false;
            }
            first = Some((packet.source(), packet.destination(), packet.protocol()));
        }
        total = checksum::add(total, checksum::sum(packet.transport()));
        length += packet.payload_length() as u32;
    }
    match first {
        Some((_, _, Protocol::ICMP)) => total != 0xffff,
        Some((
            source,
            destination,
            protocol @ (Protocol::TCP | Protocol::UDP | Protocol::ICMPV6),
        )) => {
            let pseudo = checksum::pseudo_header(source, destination, protocol.0, length);
            checksum::add(total, pseudo) != 0xffff
        }
        _ => false,
    }
}
