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
    pub(super) near: Option<Near>,
}

/// What was brought near for a packet, or is on its way: the index, and the entry that its tuple probably has.
pub(super) type Near = (TupleHash, Option<Guess>);

impl Prepared {
    /// Of no packet yet.
    pub const NONE: Self = Self {
        layout: Err(DropReason::Malformed),
        tuple: None,
        near: None,
    };

    /// Looks at the packet in `frame`, and gives it back the hop that it lost on its way here.
    pub fn new(frame: &mut Frame) -> Self {
        let mut prepared = Self::NONE;
        prepared.look_at(frame);
        prepared
    }

    /// In place: a copy of what was just written in parts would have to wait for them.
    #[inline(always)]
    fn look_at(&mut self, frame: &mut Frame) {
        let packet = frame.packet_mut();
        packet::give_back_hop(packet);
        self.read(packet);
    }

    /// Of a packet that has its hop back.
    #[inline(always)]
    pub(super) fn read(&mut self, packet: &[u8]) {
        if let Some(layout) = Layout::of_plain_v4(packet) {
            self.set(Ok(layout), layout.tuple(packet));
        } else if let Some(layout) = Layout::of_plain_v6(packet) {
            self.set(Ok(layout), layout.tuple(packet));
        } else {
            self.read_odd(packet);
        }
    }

    fn read_odd(&mut self, packet: &[u8]) {
        let layout = Layout::of(packet);
        let whole = layout.ok().filter(|layout| !layout.is_fragment());
        self.set(layout, whole.and_then(|layout| layout.tuple(packet)));
    }

    #[inline(always)]
    fn set(&mut self, layout: Result<Layout, DropReason>, tuple: Option<Tuple>) {
        *self = Self {
            layout,
            tuple,
            near: None,
        };
    }
}

/// Frames whose waits for memory overlap. More of them make no difference.
pub const NEAR: usize = 32;

/// Looks at each of at most [`NEAR`] frames, and begins to bring near where the index has them, so that their waits for
/// memory overlap.
pub fn prepare(conntrack: &Conntrack, frames: &mut [Frame], prepared: &mut [Prepared]) {
    for (packet, frame) in prepared.iter_mut().zip(frames) {
        packet.look_at(frame);
        if let Some(tuple) = &packet.tuple {
            let hash = conntrack.hash(tuple);
            conntrack.prefetch_buckets(hash);
            packet.near = Some((hash, None));
        }
    }
}

/// Begins to bring near what the index has of the same packets: all lines of an entry, and of all entries, at a time.
pub fn guess(conntrack: &Conntrack, prepared: &mut [Prepared]) {
    for packet in prepared {
        if let (Ok(layout), Some((hash, guess))) = (packet.layout, &mut packet.near) {
            *guess = conntrack.guess(*hash, layout.protocol, layout.is_ipv4);
        }
    }
}
