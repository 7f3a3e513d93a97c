//! Datagrams in fragments: held until they are whole, then translated together and sent on as they came.
//!
//! As in the kernel (`nf_defrag_ipv4`, `nf_defrag_ipv6`) the path sees whole datagrams: nothing is forwarded of one
//! that lacks a fragment, an overlap kills it (RFC 5722), a repetition does not. Bounds on number, bytes and time keep
//! strangers from filling the memory. Fragments are rare, so one lock serves all workers.
//!
//! DIFFERS: the kernel joins the fragments and splits the datagram anew, to the size of its largest fragment and without
//! DF, for IPv6 with a new identification; here the fragments keep their sizes, their DF and their identification.

use crate::checksum;
use crate::frame::{Frame, VIRTIO_HEADER_LENGTH};
use crate::packet::{self, Fragment, IPV6_HEADER, Packet};
use crate::tuple::{Address, Protocol, Timestamp};
use crate::verdict::DropReason;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a datagram may stay incomplete (`ipfrag_time`).
const LIFETIME: Duration = Duration::from_secs(30);
/// Bytes held at most (`ipfrag_high_thresh`).
const MAXIMUM_BYTES: usize = 4 << 20;
/// What a fragment costs beside its bytes.
const OVERHEAD: usize = 256;
/// Fragments of one datagram at most: 64 KiB in pieces of the smallest MTU of all (RFC 791).
const MAXIMUM_FRAGMENTS: usize = 1366;

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
    /// Where the highest fragment ends. Once the last one was seen, the datagram's length.
    end: u32,
    has_end: bool,
    /// Bytes of all frames.
    bytes: usize,
}

#[derive(Debug)]
struct Piece {
    fragment: Fragment,
    /// Bytes of the datagram in this fragment.
    length: u32,
    /// Whether it did not come right behind the one before it: see [`Datagram::place_among`].
    begins_run: bool,
    frame: Frame,
}

/// What a fragment is to those of its datagram that are there.
enum Place {
    /// It belongs to this index of the pieces.
    Free { at: usize, begins_run: bool },
    /// All of it is there already.
    Taken,
    /// It contradicts the end of the datagram, and is not taken.
    Odd,
    /// It contradicts the others, and the datagram is given up.
    Corrupt,
}

/// What came of a fragment.
#[derive(Debug)]
pub enum Collected {
    /// The datagram is not whole yet.
    Waiting,
    /// It is: all of its fragments, in order.
    Whole(Vec<Frame>),
    /// It lacks headers that must be in it: INVALID, and not held.
    Incomplete,
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
    /// Whether a first fragment of IPv6 has all headers, as RFC 8200, section 4.5 asks.
    has_headers: bool,
}

impl Described {
    /// `None` when the packet is no fragment.
    pub fn of(packet: &Packet<'_>) -> Option<Self> {
        let fragment = packet.fragment()?;
        let is_v6 = !packet.source().is_ipv4();
        let length = (packet.length() - fragment.data) as u32;
        Some(Self {
            key: Key {
                source: packet.source(),
                destination: packet.destination(),
                // Only the first fragment of IPv6 tells the datagram's (RFC 8200, section 4.5).
                protocol: if is_v6 {
                    packet::FRAGMENT
                } else {
                    packet.protocol()
                },
                identification: fragment.identification,
            },
            fragment,
            // All but the last are multiples of eight bytes. The kernel cuts those of IPv4 that are not.
            length: if fragment.more && !is_v6 {
                length & !7
            } else {
                length
            },
            has_headers: !is_v6 || fragment.offset != 0 || packet.has_transport_header(),
        })
    }

    /// Where the datagram goes to.
    pub const fn destination(&self) -> Address {
        self.key.destination
    }
}

impl Held {
    fn collect(&mut self, frame: &Frame, described: &Described, now: Timestamp) -> Collected {
        self.expire_one(&described.key, now);
        if !described.has_headers {
            return Collected::Incomplete;
        }
        let size = frame.bytes().len() + OVERHEAD;
        let datagram = self
            .datagrams
            .entry(described.key)
            .or_insert_with(|| Datagram::new(now));
        let crowded = datagram.pieces.len() >= MAXIMUM_FRAGMENTS;
        if crowded || self.bytes + size > MAXIMUM_BYTES {
            self.remove(&described.key);
            return Collected::Dropped(DropReason::TooManyFragments);
        }
        match datagram.place(described) {
            Place::Free { at, begins_run } => datagram.insert(frame, described, at, begins_run),
            Place::Taken => return Collected::Dropped(DropReason::RepeatedFragment),
            Place::Odd => {
                // One without data, of a datagram that nothing else is known of: strangers can send many.
                if datagram.pieces.is_empty() {
                    self.remove(&described.key);
                }
                return Collected::Dropped(DropReason::OverlappingFragment);
            }
            Place::Corrupt => {
                self.remove(&described.key);
                return Collected::Dropped(DropReason::OverlappingFragment);
            }
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
            end: 0,
            has_end: false,
            bytes: 0,
        }
    }

    fn is_expired(&self, now: Timestamp) -> bool {
        now.since(self.since) > LIFETIME
    }

    /// Where the fragment belongs (Linux `ip_frag_queue`, `nf_ct_frag6_queue`, `inet_frag_queue_insert`).
    fn place(&mut self, described: &Described) -> Place {
        let Fragment { offset, more, .. } = described.fragment;
        let end = offset + described.length;
        let is_v6 = !described.key.source.is_ipv4();
        if is_v6 && more && !end.is_multiple_of(8) {
            return Place::Corrupt;
        }
        let beyond_the_end = self.has_end
            && if more {
                end > self.end
            } else {
                end != self.end
            };
        if end == offset || beyond_the_end || (!more && end < self.end) {
            return if is_v6 { Place::Odd } else { Place::Corrupt };
        }
        self.end = self.end.max(end);
        self.has_end |= !more;
        match self.pieces.last() {
            Some(last) if end <= last.end() => self.place_among(offset, end),
            Some(last) if offset < last.end() => Place::Corrupt,
            last => Place::Free {
                at: self.pieces.len(),
                begins_run: last.is_none_or(|last| last.end() != offset),
            },
        }
    }

    /// In a gap, or inside a run of fragments that came one behind the other: then it is a repetition. The kernel looks
    /// at nothing smaller than runs, so what reaches from one run into the next overlaps.
    fn place_among(&self, start: u32, end: u32) -> Place {
        let mut at = 0;
        for run in self.pieces.chunk_by(|_, next| !next.begins_run) {
            let run_start = run.first().map_or(0, |first| first.fragment.offset);
            let run_end = run.last().map_or(0, Piece::end);
            if start >= run_end {
                at += run.len();
            } else if end <= run_start {
                return Place::Free {
                    at,
                    begins_run: true,
                };
            } else if start >= run_start && end <= run_end {
                return Place::Taken;
            } else {
                return Place::Corrupt;
            }
        }
        Place::Corrupt
    }

    fn insert(&mut self, frame: &Frame, described: &Described, at: usize, begins_run: bool) {
        let (fragment, length) = (described.fragment, described.length);
        let mut frame = frame.duplicate();
        self.bytes += frame.bytes().len() + OVERHEAD;
        cut(&mut frame, fragment.data + length as usize);
        let piece = Piece {
            fragment,
            length,
            begins_run,
            frame,
        };
        self.pieces.insert(at, piece);
    }

    fn is_whole(&self) -> bool {
        if !self.has_end {
            return false;
        }
        let mut next = 0;
        for piece in &self.pieces {
            if piece.fragment.offset != next {
                return false;
            }
            next = piece.end();
        }
        next == self.end
    }
}

impl Piece {
    const fn end(&self) -> u32 {
        self.fragment.offset + self.length
    }
}

/// Cuts an IPv4 packet that is longer than `length` to it.
fn cut(frame: &mut Frame, length: usize) {
    let packet = frame.packet_mut();
    let old = u16::from_be_bytes([packet[2], packet[3]]);
    if packet[0] >> 4 != 4 || length >= usize::from(old) {
        return;
    }
    let new = length as u16;
    packet[2..4].copy_from_slice(&new.to_be_bytes());
    packet::update(&mut packet[10..12], checksum::Change::word(old, new));
    frame.set_length(VIRTIO_HEADER_LENGTH + length);
}

/// The whole datagram of `fragments`, behind the IP header of the first one. `None` when that is more than an IP packet
/// can be.
pub fn join(fragments: &mut [Frame]) -> Option<Frame> {
    let mut bytes = Vec::new();
    for fragment in fragments.iter_mut() {
        let (data, end) = extent(fragment)?;
        if bytes.is_empty() {
            bytes = header(fragment);
        }
        bytes.extend_from_slice(&fragment.packet()[data..end]);
    }
    let is_ipv4 = bytes.first()? >> 4 == 4;
    // That of IPv6 is without the header.
    let length = if is_ipv4 {
        bytes.len()
    } else {
        bytes.len() - IPV6_HEADER
    };
    if length > MAXIMUM_LENGTH {
        return None;
    }
    if is_ipv4 {
        bytes[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        bytes[6..8].fill(0);
        bytes[10..12].fill(0);
        let header = usize::from(bytes[0] & 0xf) * 4;
        let checksum = !checksum::sum(&bytes[..header]);
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        bytes[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    }
    Some(Frame::from_packet(&bytes))
}

/// What the length in an IP header can say.
const MAXIMUM_LENGTH: usize = 65_535;

/// Where a fragment's part of the datagram begins and ends in its packet.
fn extent(fragment: &mut Frame) -> Option<(usize, usize)> {
    let packet = Packet::parse(fragment).ok()?;
    Some((packet.fragment()?.data, packet.length()))
}

/// The IP header of the datagram: that of its first fragment, without a fragment header.
fn header(first: &mut Frame) -> Vec<u8> {
    let Some(described) = Packet::parse(first)
        .ok()
        .and_then(|packet| packet.fragment())
    else {
        return Vec::new();
    };
    let packet = first.packet();
    if packet[0] >> 4 == 4 {
        return packet[..described.data].to_vec();
    }
    let fragment_header = described.data - FRAGMENT_HEADER;
    let mut header = packet[..fragment_header].to_vec();
    header[described.protocol_at] = packet[fragment_header];
    header
}

const FRAGMENT_HEADER: usize = 8;

/// Gives each fragment its part of the translated datagram, and its addresses.
pub fn spread(whole: &mut Frame, fragments: &mut [Frame]) {
    let Ok(packet) = Packet::parse(whole) else {
        return;
    };
    let (source, destination, length) = (packet.source(), packet.destination(), packet.length());
    let data: usize = fragments
        .iter_mut()
        .filter_map(|fragment| extent(fragment).map(|(start, end)| end - start))
        .sum();
    let mut at = length.saturating_sub(data);
    for fragment in fragments {
        let Some((start, end)) = extent(fragment) else {
            return;
        };
        let part = at..at + (end - start);
        at = part.end;
        if let Some(part) = whole.packet().get(part) {
            fragment.packet_mut()[start..end].copy_from_slice(part);
        }
        packet::write_addresses(fragment.packet_mut(), source, destination);
    }
}
