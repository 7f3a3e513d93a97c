//! What is known of a packet before it is its turn ([`Prepared`]), and what is brought near for it meanwhile: for all of a
//! batch the index first ([`prepare`]), then the entries ([`guess`]).
//!
//! Invariant: a guess only saves time; what is not guessed right is looked up.

use crate::conntrack::{Conntrack, Guess, TupleHash};
use crate::frame::Frame;
use crate::packet::{self, Layout};
use crate::tuple::Tuple;
use crate::verdict::DropReason;

/// What is known of a packet before it is its turn.
#[derive(Clone, Copy, Debug)]
pub struct Prepared {
    pub(super) layout: Result<Layout, DropReason>,
    /// Of a packet that is no fragment.
    pub(super) tuple: Option<Tuple>,
    /// Of the tuple, if there is one.
    pub(super) hash: TupleHash,
    /// The entry that the tuple probably has, which was brought near.
    pub(super) guess: Option<Guess>,
}

impl Prepared {
    /// Of no packet yet.
    pub const NONE: Self = Self {
        layout: Err(DropReason::Malformed),
        tuple: None,
        hash: TupleHash::NONE,
        guess: None,
    };

    /// Looks at the packet in `frame`, and gives it back the hop that it lost on its way here.
    pub fn new(conntrack: &Conntrack, frame: &mut Frame) -> Self {
        let packet = frame.packet_mut();
        packet::give_back_hop(packet);
        Self::of(conntrack, packet)
    }

    /// Of a packet that has its hop back.
    pub(super) fn of(conntrack: &Conntrack, packet: &[u8]) -> Self {
        let mut prepared = Self::NONE;
        prepared.read(packet);
        prepared.hash_tuple(conntrack);
        prepared
    }

    /// In place: a copy of what was just written in parts would have to wait for them.
    #[inline(always)]
    fn read(&mut self, packet: &[u8]) {
        if let Some(layout) = Layout::of_plain_v4(packet) {
            self.set(Ok(layout), layout.tuple(packet));
        } else if let Some(layout) = Layout::of_plain_v6(packet) {
            self.set(Ok(layout), layout.tuple(packet));
        } else {
            self.read_odd(packet);
        }
    }

    /// The hash of the tuple, if there is one: not to be read from where it was just written.
    #[inline(always)]
    fn hash_tuple(&mut self, conntrack: &Conntrack) -> Option<TupleHash> {
        let hash = conntrack.hash(self.tuple.as_ref()?);
        self.hash = hash;
        Some(hash)
    }

    fn read_odd(&mut self, packet: &[u8]) {
        let layout = Layout::of(packet);
        let whole = layout.ok().filter(|layout| !layout.is_fragment());
        self.set(layout, whole.and_then(|layout| layout.tuple(packet)));
    }

    #[inline(always)]
    fn set(&mut self, layout: Result<Layout, DropReason>, tuple: Option<Tuple>) {
        self.layout = layout;
        self.tuple = tuple;
        self.guess = None;
    }
}

/// Frames whose waits for memory overlap. More of them make no difference.
pub const NEAR: usize = 32;

/// Looks at each of at most [`NEAR`] frames, and begins to bring near where the index has them, so that their waits for
/// memory overlap.
pub fn prepare(conntrack: &Conntrack, frames: &mut [Frame], prepared: &mut [Prepared]) {
    for (prepared, frame) in prepared.iter_mut().zip(frames) {
        let packet = frame.packet_mut();
        packet::give_back_hop(packet);
        prepared.read(packet);
        if let Some(hash) = prepared.hash_tuple(conntrack) {
            conntrack.prefetch_buckets(hash);
        }
    }
}

/// Begins to bring near what the index has of the same packets: all lines of an entry, and of all entries, at a time.
pub fn guess(conntrack: &Conntrack, prepared: &mut [Prepared]) {
    for packet in prepared {
        if let (Ok(layout), Some(_)) = (packet.layout, &packet.tuple) {
            packet.guess = conntrack.guess(packet.hash, layout.protocol, layout.is_ipv4);
        }
    }
}
