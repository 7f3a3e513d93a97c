//! Connections that the first packets of a batch open: planned, and on their way into the table.
//!
//! Which index lines a reply tuple needs is known only when its endpoint has been chosen, and they are seldom in the cache. So a
//! planned connection waits here with its packet while its lines are fetched and the next first packets of the batch are
//! planned: their waits overlap.
//! [`settle`] enters them.
//!
//! Invariant: packets leave in the order in which they came, and find what they would have found. Only first packets are
//! handled while one waits; whatever else comes makes all that wait settle first ([`Openings::must_settle_before`]). Of two that
//! plan one reply tuple the second one finds it taken, and looks further, as it would have.
//!
//! DIFFERS: that a packet belongs to a connection which an earlier packet of the same batch opened is known only once the
//! connection has been found. The packet still leaves in its turn; but if it ends its connection, it may free the reply tuple
//! that a waiting first packet wants.

use super::prepared::Prepared;
use super::{Context, is_stale, no_room, translate};
use crate::conntrack::{ConfirmError, Confirmed, Found, Tentative, TupleHash};
use crate::frame::Frame;
use crate::packet::{Layout, Packet};
use crate::ports;
use crate::tuple::Tuple;
use crate::verdict::{DropReason, Verdict};

/// Connections that wait at once. More of them make no difference.
const MOST: usize = 4;

/// A connection that is planned.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) tentative: Tentative,
    /// Of its original and its reply tuple.
    pub(super) hashes: [TupleHash; 2],
    /// Of its packet.
    pub(super) layout: Layout,
}

/// The connections that wait, and their packets.
#[derive(Debug, Default)]
pub struct Openings {
    waiting: Vec<Opening>,
    /// Those of `waiting`, then spare ones.
    frames: Vec<Frame>,
    /// A bit for each tag that a tuple of them has, modulo 64.
    tags: u64,
}

impl Openings {
    /// Whether none waits.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether all that wait must settle before it is this packet's turn: there is no room for one more, or it is probably of a
    /// known connection, or may be of one of them, or about one.
    #[inline]
    pub fn must_settle_before(&self, packet: &Prepared) -> bool {
        !self.is_empty() && (self.waiting.len() == MOST || self.may_concern(packet))
    }

    fn may_concern(&self, packet: &Prepared) -> bool {
        match (packet.layout, &packet.tuple, packet.guess) {
            (Ok(layout), Some(_), None) => {
                layout.protocol.is_icmp() || self.tags & bit(packet.hash) != 0
            }
            _ => true,
        }
    }

    #[inline(always)]
    pub(super) fn add(&mut self, opening: Opening) {
        let [original, reply] = opening.hashes.map(bit);
        self.tags |= original | reply;
        self.waiting.push(opening);
    }

    /// Keeps `frame`, whose packet opens the connection that was added last, and leaves another one for it.
    pub fn keep(&mut self, frame: &mut Frame) {
        let nth = self.waiting.len() - 1;
        if nth == self.frames.len() {
            self.frames.push(Frame::new());
        }
        std::mem::swap(&mut self.frames[nth], frame);
    }

    /// All that wait, in the order in which they came.
    fn waiting(&mut self) -> impl Iterator<Item = (&mut Opening, &mut Frame)> {
        self.waiting.iter_mut().zip(&mut self.frames)
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.tags = 0;
    }
}

/// Tuples with one tag are told apart by nobody here; few have one.
fn bit(hash: TupleHash) -> u64 {
    1 << (hash.tag() % 64)
}

/// Enters the connections that wait into the table, in the order in which they came, and decides on the packets that opened
/// them: each is handed to `decided` with its verdict.
pub fn settle<'a>(
    context: &mut Context<'a>,
    mut decided: impl FnMut(&Context<'a>, &mut Frame, Verdict),
) {
    let mut openings = std::mem::take(context.openings);
    for (opening, frame) in openings.waiting() {
        let verdict = enter(context, opening, frame);
        decided(context, frame, verdict);
    }
    openings.clear();
    *context.openings = openings;
}

/// Enters a connection into the table, and translates its first packet. Not a part of [`settle`], of which there is one for each
/// kind of device.
#[inline(never)]
fn enter(context: &mut Context<'_>, opening: &mut Opening, frame: &mut Frame) -> Verdict {
    let confirmed = confirm(context, opening);
    let Tentative {
        original, reply, ..
    } = &opening.tentative;
    match confirmed {
        Ok(found) => {
            let mut packet = Packet::new(frame, opening.layout);
            translate(&mut packet, original, &found)
        }
        Err(reason) => no_room(context, [original, reply], reason),
    }
}

/// Enters the connection into the table. A reply tuple that is taken gets another source port, also where the source is not
/// masqueraded, as the null binding does; and again while another packet takes a port that was found free.
fn confirm(context: &mut Context<'_>, opening: &mut Opening) -> Result<Found, DropReason> {
    const ATTEMPTS: usize = 8;
    let (conntrack, reserved, now) = (context.conntrack, context.reserved_ports, context.now);
    let Opening {
        tentative, hashes, ..
    } = opening;
    for _ in 0..ATTEMPTS {
        match conntrack.confirm_near(tentative, hashes, now) {
            Ok(Confirmed::Inserted(found) | Confirmed::Adopted(found)) => return Ok(found),
            Err(ConfirmError::TableFull) => return Err(DropReason::TableFull),
            Err(ConfirmError::SourceLimit) => return Err(DropReason::SourceLimit),
            Err(ConfirmError::ReplyTaken) => {}
        }
        if end_stale(context, &tentative.reply) {
            continue;
        }
        ports::lease(conntrack, reserved, &mut tentative.reply, now, context.rng)
            .map_err(|_| DropReason::NoFreePort)?;
        hashes[1] = conntrack.hash(&tentative.reply);
    }
    Err(DropReason::NoFreePort)
}

/// Ends the UDP flow that answers as `reply` if it has lost its place, of which else its own next packet would tell.
fn end_stale(context: &Context<'_>, reply: &Tuple) -> bool {
    let holder = context.conntrack.find(reply, context.now);
    let stale = holder.filter(|found| is_stale(context, reply.protocol, found));
    stale.is_some_and(|found| context.conntrack.end(found.entry(), context.now))
}
