//! Whether a TCP segment lies inside the windows of its connection (`tcp_in_window`).
//!
//! For a sender S and a receiver R, a segment fits when
//!
//! ```text
//! I    sequence <= S.max_end                                   else INVALID (ignored when just above)
//! II   end      >= S.end - R.max_window                        else ignored: old data again
//! III  sack     <= R.end                                       else INVALID: acknowledges the unseen
//! IV   sack     >= R.end - max(S.max_window, 66000)            else ignored: a late ACK
//! ```
//!
//! where `sack` is the highest SACK edge, or the acknowledgement. Only a segment that fits moves the windows.

use super::Invalid;
use super::segment::{TcpFlags, TcpSegment};
use super::tcp::{Arrival, Connection, Kind, Peer, State};
use crate::tuple::Direction;

/// Kernel `MAXACKWINCONST`, bytes.
const MAX_ACK_WINDOW: u32 = 66_000;

/// Verdict of the window check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// Inside: the windows moved.
    Accepted,
    /// Passes, changes nothing.
    Ignored,
    /// Not of this connection.
    Invalid(Invalid),
}

/// `a` comes before `b`, modulo 2^32.
#[inline]
pub(super) const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// `a` comes after `b`, modulo 2^32.
#[inline]
pub(super) const fn after(a: u32, b: u32) -> bool {
    before(b, a)
}

/// The numbers of a segment as the checks use them.
#[derive(Clone, Copy)]
struct Numbers {
    sequence: u32,
    end: u32,
    ack: u32,
    sack: u32,
}

/// Moves the windows when a segment of a side that was heard before, and that is no SYN, fits. Nothing changes when it does
/// not.
#[inline(always)]
pub(super) fn advance_if_fits(connection: &mut Connection, arrival: &Arrival<'_>) -> bool {
    let sack = sack(connection, arrival.segment);
    let numbers = numbers(connection, arrival, sack);
    let fits = judge(connection, &numbers) == Position::Fits;
    if fits {
        advance(connection, arrival, &numbers);
    }
    fits
}

/// Checks a segment and, when it fits, moves the windows.
pub(super) fn check(connection: &mut Connection, arrival: &Arrival<'_>, be_liberal: bool) -> Fit {
    let sack = sack(connection, arrival.segment);
    if prepare_sender(connection, arrival, sack) {
        return Fit::Accepted;
    }
    let numbers = numbers(connection, arrival, sack);
    let position = judge(connection, &numbers);
    if position == Position::Fits {
        advance(connection, arrival, &numbers);
        return Fit::Accepted;
    }
    let sender = &mut connection.sender;
    if position == Position::JustAbove {
        // Should the rules let it pass, its acknowledgement must not look like one of unseen data.
        sender.end = numbers.end;
        sender.flags |= Peer::DATA_UNACKNOWLEDGED;
    }
    if be_liberal || sender.has(Peer::BE_LIBERAL) {
        return Fit::Accepted;
    }
    match position {
        Position::Above(reason) => Fit::Invalid(reason),
        Position::Fits | Position::JustAbove | Position::Below => Fit::Ignored,
    }
}

/// How far the segment acknowledges: to its highest SACK edge, where the other side permits them, or to its acknowledgement.
#[inline(always)]
fn sack(connection: &Connection, segment: &TcpSegment) -> u32 {
    match segment.options.highest_sack {
        Some(edge)
            if connection.receiver.has(Peer::SACK_PERMITTED)
                && after(edge, segment.acknowledgement) =>
        {
            edge
        }
        _ => segment.acknowledgement,
    }
}

/// What is learnt before the checks: the first segment of a side, or a SYN that starts it over. True when
/// there is nothing to check (a SYN without ACK from the reply side: simultaneous open).
fn prepare_sender(connection: &mut Connection, arrival: &Arrival<'_>, sack: u32) -> bool {
    let segment = arrival.segment;
    let is_syn = segment.flags.has(TcpFlags::SYN);
    let has_ack = segment.flags.has(TcpFlags::ACK);
    let state = connection.state;
    let Connection {
        sender, receiver, ..
    } = connection;
    if sender.max_window == 0 {
        if !is_syn {
            pick_up(sender, receiver, segment, sack);
            return false;
        }
        start_sender(sender, receiver, arrival);
        return !has_ack;
    }
    let starts_over = is_syn
        && after(segment.end(), sender.end)
        && matches!(state, State::SynSent | State::SynReceived);
    if starts_over {
        start_sender(sender, receiver, arrival);
        return arrival.direction == Direction::Reply && !has_ack;
    }
    false
}

/// `tcp_init_sender`. Window scaling holds only when both SYNs offer it (RFC 7323, 2.2).
fn start_sender(sender: &mut Peer, receiver: &mut Peer, arrival: &Arrival<'_>) {
    let segment = arrival.segment;
    sender.end = segment.end();
    sender.max_end = sender.end;
    sender.max_window = u32::from(segment.window).max(1);
    sender.take_options(&segment.options);
    let both_scale = sender.has(Peer::WINDOW_SCALE) && receiver.has(Peer::WINDOW_SCALE);
    if arrival.direction == Direction::Reply && !both_scale {
        sender.scale = 0;
        receiver.scale = 0;
    }
}

/// The first segment of this side that we see is not its SYN: believe it.
fn pick_up(sender: &mut Peer, receiver: &mut Peer, segment: &TcpSegment, sack: u32) {
    sender.end = segment.end();
    sender.max_window = (u32::from(segment.window) << sender.scale).max(1);
    sender.max_end = sender.end.wrapping_add(sender.max_window);
    if receiver.max_window == 0 {
        receiver.end = sack;
        receiver.max_end = sack;
    } else if sack == receiver.end.wrapping_add(1) {
        // Likely the answer to a keep-alive.
        receiver.end = sack;
    }
}

#[inline(always)]
fn numbers(connection: &Connection, arrival: &Arrival<'_>, sack: u32) -> Numbers {
    let segment = arrival.segment;
    let mut numbers = Numbers {
        sequence: segment.sequence,
        end: segment.end(),
        ack: segment.acknowledgement,
        sack,
    };
    let is_reset = segment.flags.has(TcpFlags::RST);
    // No acknowledgement, or that of stacks which set ACK in a RST and leave the number zero: take it for right.
    if !segment.flags.has(TcpFlags::ACK) || (is_reset && segment.acknowledgement == 0) {
        numbers.ack = connection.receiver.end;
        numbers.sack = numbers.ack;
    }
    if is_reset && segment.sequence == 0 && connection.state == State::SynSent {
        numbers.sequence = connection.sender.end;
        numbers.end = numbers.sequence;
    }
    numbers
}

/// Where a segment lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    Fits,
    /// Within one more window above the bound, all else in order.
    JustAbove,
    Above(Invalid),
    /// Old data or an old acknowledgement.
    Below,
}

#[inline(always)]
fn judge(connection: &Connection, numbers: &Numbers) -> Position {
    let Connection {
        sender, receiver, ..
    } = connection;
    let lowest_end = sender.end.wrapping_sub(receiver.max_window).wrapping_sub(1);
    let lowest_ack = receiver
        .end
        .wrapping_sub(sender.max_window.max(MAX_ACK_WINDOW))
        .wrapping_sub(1);
    let end_fits = after(numbers.end, lowest_end);
    let ack_is_late = !after(numbers.sack, lowest_ack);
    let ack_is_of_unseen = !before(numbers.sack, receiver.end.wrapping_add(1));

    if !before(numbers.sequence, sender.max_end.wrapping_add(1)) {
        let overshot = numbers.end.wrapping_sub(sender.max_end).wrapping_add(1);
        let just_above = receiver.max_window != 0
            && end_fits
            && !ack_is_late
            && overshot <= receiver.max_window
            && !ack_is_of_unseen;
        return if just_above {
            Position::JustAbove
        } else {
            Position::Above(Invalid::TcpSequence)
        };
    }
    if ack_is_of_unseen {
        return Position::Above(Invalid::TcpAcknowledgement);
    }
    if (receiver.max_window != 0 && !end_fits) || ack_is_late {
        return Position::Below;
    }
    Position::Fits
}

/// Moves the windows behind a segment that fits, and counts duplicates.
#[inline(always)]
fn advance(connection: &mut Connection, arrival: &Arrival<'_>, numbers: &Numbers) {
    let segment = arrival.segment;
    let &Numbers { end, ack, sack, .. } = numbers;
    let Connection {
        sender, receiver, ..
    } = connection;
    let mut window = u32::from(segment.window);
    if !segment.flags.has(TcpFlags::SYN) {
        window <<= sender.scale;
    }
    sender.max_window = sender
        .max_window
        .max(window.wrapping_add(sack.wrapping_sub(ack)));
    if after(end, sender.end) {
        sender.end = end;
        sender.flags |= Peer::DATA_UNACKNOWLEDGED;
    }
    if segment.flags.has(TcpFlags::ACK)
        && (!sender.has(Peer::MAX_ACK_SET) || after(ack, sender.max_ack))
    {
        sender.max_ack = ack;
        sender.flags |= Peer::MAX_ACK_SET;
    }
    if receiver.max_window != 0 && after(end, sender.max_end) {
        receiver.max_window = receiver
            .max_window
            .wrapping_add(end.wrapping_sub(sender.max_end));
    }
    let allowed = sack.wrapping_add(window);
    if after(allowed, receiver.max_end.wrapping_sub(1)) {
        // A zero window still lets one byte through, to probe it.
        receiver.max_end = allowed.wrapping_add(u32::from(window == 0));
    }
    if ack == receiver.end {
        receiver.flags &= !Peer::DATA_UNACKNOWLEDGED;
    }
    if arrival.kind == Kind::Ack {
        count_duplicate(connection, arrival, numbers);
    }
}

#[inline(always)]
fn count_duplicate(connection: &mut Connection, arrival: &Arrival<'_>, numbers: &Numbers) {
    let last = &mut connection.last;
    // At once, not one after another: nobody can foretell whether the last one went the same way.
    let difference = (last.direction as u32 ^ arrival.direction as u32)
        | (last.sequence ^ numbers.sequence)
        | (last.acknowledgement ^ numbers.ack)
        | (last.end ^ numbers.end)
        | u32::from(last.window ^ arrival.segment.window);
    connection.retransmissions = if difference == 0 {
        connection.retransmissions.saturating_add(1)
    } else {
        0
    };
    last.direction = arrival.direction;
    last.sequence = numbers.sequence;
    last.acknowledgement = numbers.ack;
    last.end = numbers.end;
    last.window = arrival.segment.window;
}
