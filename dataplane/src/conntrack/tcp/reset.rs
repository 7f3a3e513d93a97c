//! Segments that end a connection: which RSTs do, and what FINs and RSTs out of the window mean.

use super::{Arrival, Connection, Kind, Peer, State, Step, TcpSettings};
use crate::conntrack::{Invalid, Outcome, Status, window};
use crate::tuple::Direction;
use std::time::Duration;

impl Connection {
    /// Which RSTs end the connection (reference section 2, "RST validation").
    pub(super) fn reset(
        &mut self,
        arrival: &Arrival<'_>,
        status: Status,
        settings: &TcpSettings,
    ) -> Step {
        let old = self.state;
        if old.is_closing() {
            // The port may be in use again, and all that is known is out of date.
            return Step::Accept {
                old,
                new: State::Close,
            };
        }
        let sequence = arrival.segment.sequence;
        let receiver = &self.receiver;
        // `nf_conntrack_tcp_established`.
        let is_established = old == State::Established && status.has(Status::ASSURED);
        let mut new = State::Close;
        if receiver.has(Peer::MAX_ACK_SET) && self.last.kind != Kind::Syn {
            if sequence == 0 && !is_established {
                return Step::check(old, new);
            }
            if window::before(sequence, receiver.max_ack) && !settings.ignore_invalid_reset {
                return Step::Stop(Outcome::Invalid(Invalid::TcpReset, None));
            }
            if !is_established || sequence == receiver.max_ack || self.ends_train(arrival) {
                return Step::check(old, new);
            }
            // Inside the window but not exact: the peer may answer with RFC 5961's challenge ACK.
            new = old;
        }
        if self.answers_ignored(arrival, status) || self.answers_challenge(arrival) {
            return Step::Accept { old, new };
        }
        Step::check(old, new)
    }

    /// A RST right behind the data that the same side just sent.
    fn ends_train(&self, arrival: &Arrival<'_>) -> bool {
        self.last.kind == Kind::Ack
            && self.last.direction == arrival.direction
            && arrival.segment.sequence == self.last.end
    }

    /// A RST to a SYN that was let through, or to the ACK of a half-open connection: no window to check.
    fn answers_ignored(&self, arrival: &Arrival<'_>, status: Status) -> bool {
        let to_syn = status.has(Status::SEEN_REPLY)
            && self.last.kind == Kind::Syn
            && self.last.direction != arrival.direction;
        let to_ack = !status.has(Status::ASSURED) && self.last.kind == Kind::Ack;
        (to_syn || to_ack) && arrival.segment.acknowledgement == self.last.end
    }

    fn answers_challenge(&self, arrival: &Arrival<'_>) -> bool {
        self.state == State::SynSent
            && self.last.kind == Kind::Ack
            && self.last.direction == Direction::Reply
            && arrival.segment.sequence == self.last.acknowledgement
    }

    /// FINs or RSTs out of the window from both sides: the two ends are probably done with each other, so
    /// an assured entry must not linger for days (`nf_tcp_handle_invalid`). Gives the most it may last.
    pub(super) fn out_of_window_end(
        &mut self,
        arrival: &Arrival<'_>,
        status: Status,
        settings: &TcpSettings,
    ) -> Option<Duration> {
        if !status.has(Status::ASSURED) || !matches!(arrival.kind, Kind::Reset | Kind::Fin) {
            return None;
        }
        if self.last.direction != arrival.direction
            && matches!(self.last.kind, Kind::Reset | Kind::Fin)
        {
            return Some(settings.timeouts.unacknowledged);
        }
        self.last.kind = arrival.kind;
        self.last.direction = arrival.direction;
        None
    }
}
