//! What a protocol and a Service remember, packed into the words of an entry.
//!
//! ```text
//! hot   0  identifier of the Service
//!       1  generation plus one, 0 without a tag (32)
//!          TCP: flags (8) and scale (4) of the last segment, scale (4) and flags (6) of the sides, reply first
//!       2  TCP: end of the last segment (32), its window (16), duplicates (6), state (4), zero (2), direction (1), kind (3)
//!          SCTP: state, flags; others: tick of the first packet (32)
//! cold  3  TCP: end, max_end of the original side; SCTP: tags
//!       4  max_window, max_ack; 5 and 6 the same of the reply side; 7 sequence, acknowledgement of the last segment
//! ```

use super::slots::StateWords;
use super::tcp::{self, Kind, Last, Peer};
use super::{ServiceTag, sctp};
use crate::service::Generation;
use crate::tuple::Direction;
use std::hint::select_unpredictable;

pub(super) const SERVICE: usize = 0;
pub(super) const FLAGS: usize = 1;
pub(super) const DETAIL: usize = 2;

const fn pair(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

const fn low(word: u64) -> u32 {
    word as u32
}

const fn direction_of(bit: u32) -> Direction {
    if bit & 1 == 0 {
        Direction::Original
    } else {
        Direction::Reply
    }
}

/// Generations are kept modulo 2^32; a table is not published that often.
#[inline]
pub(super) fn store_service(words: &mut StateWords, tag: ServiceTag) {
    words[SERVICE] = tag.id;
    words[FLAGS] = with_generation(words[FLAGS], tag.generation);
}

/// Of the words SERVICE and FLAGS.
#[inline]
pub(super) fn load_service([service, flags]: [u64; 2]) -> Option<ServiceTag> {
    let generation = high(flags).checked_sub(1)?;
    Some(ServiceTag {
        id: service,
        generation: Generation(u64::from(generation)),
    })
}

pub(super) const fn with_generation(flags: u64, generation: Generation) -> u64 {
    pair((generation.0 as u32).wrapping_add(1), low(flags))
}

/// The words of a connection after a segment of `direction`.
#[inline(always)]
pub(super) fn store_tcp(
    words: &mut StateWords,
    connection: &tcp::Connection,
    direction: Direction,
) {
    let tcp::Connection {
        state,
        sender,
        receiver,
        last,
        retransmissions,
    } = connection;
    let [original, reply] = turned([sender, receiver].map(packed), direction);
    let flags =
        u64::from(last.flags) << 24 | u64::from(last.scale) << 20 | reply[2] << 10 | original[2];
    let detail = u32::from(last.window) << 16
        | (*state as u32) << 6
        | u32::from((*retransmissions).min(63)) << 10
        | (last.direction as u32) << 3
        | last.kind as u32;
    words[FLAGS] = pair(high(words[FLAGS]), low(flags));
    words[DETAIL] = pair(last.end, detail);
    words[3..5].copy_from_slice(&original[..2]);
    words[5..7].copy_from_slice(&reply[..2]);
    words[7] = pair(last.sequence, last.acknowledgement);
}

/// A connection as a segment of `direction` sees it.
#[inline(always)]
pub(super) fn load_tcp(words: &StateWords, direction: Direction) -> tcp::Connection {
    let flags = low(words[FLAGS]);
    let detail = low(words[DETAIL]);
    let original = [words[3], words[4], u64::from(flags)];
    let reply = [words[5], words[6], u64::from(flags >> 10)];
    let [sender, receiver] = turned([original, reply], direction).map(unpacked);
    tcp::Connection {
        state: tcp_state(words[DETAIL]),
        sender,
        receiver,
        last: Last {
            direction: direction_of(detail >> 3),
            kind: Kind::ALL[(detail & 0x7) as usize % Kind::ALL.len()],
            sequence: high(words[7]),
            acknowledgement: low(words[7]),
            end: high(words[DETAIL]),
            window: (detail >> 16) as u16,
            scale: (flags >> 20 & 0xf) as u8,
            flags: (flags >> 24) as u8,
        },
        retransmissions: (detail >> 10 & 0x3f) as u8,
    }
}

/// A side of a connection: its two words, its scale and flags.
type PackedPeer = [u64; 3];

#[inline(always)]
fn packed(peer: &Peer) -> PackedPeer {
    [
        pair(peer.end, peer.max_end),
        pair(peer.max_window, peer.max_ack),
        u64::from(peer.scale) << 6 | u64::from(peer.flags),
    ]
}

#[inline(always)]
fn unpacked([sequence, window, flags]: PackedPeer) -> Peer {
    Peer {
        end: high(sequence),
        max_end: low(sequence),
        max_window: high(window),
        max_ack: low(window),
        scale: (flags >> 6 & 0xf) as u8,
        flags: (flags & 0x3f) as u8,
    }
}

/// Sides in the order original, reply to the order sender, receiver, or back. Without a branch: nobody can foretell which
/// segments are answers.
#[inline(always)]
fn turned([first, second]: [PackedPeer; 2], direction: Direction) -> [PackedPeer; 2] {
    let is_reply = direction == Direction::Reply;
    let chosen = |of_reply: PackedPeer, else_: PackedPeer| -> PackedPeer {
        std::array::from_fn(|nth| select_unpredictable(is_reply, of_reply[nth], else_[nth]))
    };
    [chosen(second, first), chosen(first, second)]
}

/// The state of TCP or SCTP; zero for other protocols.
pub(super) const fn bits_of_state(detail: u64) -> usize {
    (detail >> 6 & 0xf) as usize
}

pub(super) fn tcp_state(detail: u64) -> tcp::State {
    tcp::State::ALL[bits_of_state(detail) % tcp::State::ALL.len()]
}

pub(super) fn store_sctp(words: &mut StateWords, association: &sctp::Association) {
    words[DETAIL] = (association.state as u64) << 6
        | u64::from(association.init[0])
        | u64::from(association.init[1]) << 1
        | u64::from(association.heartbeat_failed) << 2
        | (association.last_direction as u64) << 3;
    words[3] = pair(association.tags[0], association.tags[1]);
}

pub(super) fn load_sctp(words: &StateWords) -> sctp::Association {
    let detail = low(words[DETAIL]);
    sctp::Association {
        state: sctp_state(words[DETAIL]),
        tags: [high(words[3]), low(words[3])],
        init: [detail & 1 != 0, detail & 2 != 0],
        heartbeat_failed: detail & 4 != 0,
        last_direction: direction_of(detail >> 3),
    }
}

pub(super) fn sctp_state(detail: u64) -> sctp::State {
    sctp::State::ALL[bits_of_state(detail) % sctp::State::ALL.len()]
}

/// Tick of the first packet, for UDP.
pub(super) const fn opened(tick: u32) -> u64 {
    pair(tick, 0)
}

pub(super) const fn load_opened(detail: u64) -> u32 {
    high(detail)
}

/// That a UDP flow is old enough for a stream is written down: after 26 days its first tick says it no more.
const OLD: u64 = 1;

pub(super) const fn is_old(detail: u64) -> bool {
    detail & OLD != 0
}

pub(super) const fn made_old(detail: u64) -> u64 {
    detail | OLD
}
