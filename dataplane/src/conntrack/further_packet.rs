//! Further packets: what one does to the connection that it belongs to.
//!
//! Most only put the end of a flow off, without its lock ([`Conntrack::goes_on`]), or move the windows of a connection of
//! TCP; the rest is the protocols' own.

use super::events::{EventKind, Farewell};
use super::outcome::{Outcome, Tracked};
use super::slots::Guard;
use super::statistics::Counter;
use super::{Conntrack, EntryId, Found, GRE, Headers, HeadersView, Status, TcpSegment, Transport};
use super::{age, deadline, remaining, state, tick, udp};
use crate::tuple::{Direction, Protocol, Timestamp};
use std::time::Duration;

impl Conntrack {
    /// A further packet of a connection. When its entry has gone meanwhile the packet passes as `found` says.
    #[inline]
    pub fn track(&self, found: &Found, headers: &Headers, now: Timestamp) -> Tracked {
        if self.goes_on(found, now) {
            return Tracked::Accepted;
        }
        self.track_locked(found.entry(), found.direction(), headers.view(), now)
    }

    /// All of [`Self::track`] for a datagram of an assured flow, which only puts its end off: that needs no lock, and
    /// nothing of the packet. False when there is more to do.
    ///
    /// DIFFERS: it is put off when that is worth a 512th of the timeout, 0.23 of 120 seconds. Most datagrams write nothing
    /// that other workers read then; a flow may end by as much too early.
    #[inline(always)]
    pub fn goes_on(&self, found: &Found, now: Timestamp) -> bool {
        let meta = found.0.meta;
        let is_stream = meta.protocol == Protocol::UDP
            && found.status().has(Status::STREAM)
            && !self.slots.has_accounts();
        is_stream && {
            let deadline = tick(now.after(self.stream_timeout));
            self.slots
                .put_off(found.0.id, meta, deadline, self.stream_lag)
        }
    }

    /// The rest of [`Self::track`], for a packet for which [`Self::goes_on`] is false. It is handed no more of what was found
    /// than it needs: all of that would have to stand in memory, for packets that do not come here, too.
    pub(crate) fn track_locked(
        &self,
        id: EntryId,
        direction: Direction,
        headers: HeadersView<'_>,
        now: Timestamp,
    ) -> Tracked {
        let Some(entry) = self.slots.lock(id) else {
            return Tracked::Ignored;
        };
        if let Transport::Tcp(segment) = headers.transport
            && self.moves_windows(&entry, segment, direction, now)
        {
            entry.count(direction, headers.length);
            return Tracked::Accepted;
        }
        self.advance_any(entry, direction, headers, now)
    }

    /// All that there is to do for a segment which changes nothing but windows and deadline. False when there is more, and
    /// then nothing has changed.
    #[inline(always)]
    fn moves_windows(
        &self,
        entry: &Guard<'_>,
        segment: &TcpSegment,
        direction: Direction,
        now: Timestamp,
    ) -> bool {
        if !Status(entry.meta().status).has(Status::STREAM) {
            return false;
        }
        let mut words = entry.state();
        let mut connection = state::load_tcp(&words, direction);
        let Some(timeout) = connection.go_on(segment, direction, &self.settings.tcp) else {
            return false;
        };
        state::store_tcp(&mut words, &connection, direction);
        entry.set_state(&words);
        entry.set_deadline(deadline(now, timeout));
        true
    }

    /// Whatever the packet does to the entry: its state, its end, or that it is none of its packets.
    fn advance_any(
        &self,
        entry: Guard<'_>,
        direction: Direction,
        headers: HeadersView<'_>,
        now: Timestamp,
    ) -> Tracked {
        let mut meta = entry.meta();
        let mut status = Status(meta.status);
        let state = state::bits_of_state(entry.word(state::DETAIL));
        let outcome = self.advance(&entry, headers, direction, &mut status, now);
        if !matches!(outcome, Outcome::Invalid(..) | Outcome::Restart) {
            // The kernel destroys an entry before it marks it.
            if direction == Direction::Reply && outcome != Outcome::End {
                status.set(Status::SEEN_REPLY);
            }
        }
        // Where the timeout is not renewed nothing is counted either (`nf_ct_refresh_acct`).
        if matches!(outcome, Outcome::Refresh(_) | Outcome::End) {
            entry.count(direction, headers.length);
        }
        let has_changed =
            status.0 != meta.status || state::bits_of_state(entry.word(state::DETAIL)) != state;
        meta.status = status.0;
        match outcome {
            Outcome::Refresh(timeout) => meta.deadline = deadline(now, timeout),
            Outcome::Invalid(_, Some(at_most)) if remaining(meta.deadline, now) > at_most => {
                meta.deadline = deadline(now, at_most);
            }
            Outcome::Invalid(..)
            | Outcome::Keep
            | Outcome::Ignored
            | Outcome::Restart
            | Outcome::End => {}
        }
        entry.set_meta(meta);
        if matches!(outcome, Outcome::End | Outcome::Restart) {
            entry.remove(Farewell::at(now));
        } else if has_changed {
            entry.tell(EventKind::Update, now);
        }
        match outcome {
            Outcome::Refresh(_) | Outcome::Keep | Outcome::End => Tracked::Accepted,
            Outcome::Ignored => Tracked::Ignored,
            Outcome::Restart => Tracked::Restart,
            Outcome::Invalid(reason, _) => {
                self.statistics.add(Counter::Invalid, 1);
                Tracked::Invalid(reason)
            }
        }
    }

    fn advance(
        &self,
        entry: &Guard<'_>,
        headers: HeadersView<'_>,
        direction: Direction,
        status: &mut Status,
        now: Timestamp,
    ) -> Outcome {
        let timeouts = &self.settings.timeouts;
        match headers.transport {
            Transport::Tcp(segment) => {
                let mut words = entry.state();
                let mut connection = state::load_tcp(&words, direction);
                let outcome = connection.track(segment, direction, status, &self.settings.tcp);
                state::store_tcp(&mut words, &connection, direction);
                entry.set_state(&words);
                outcome
            }
            Transport::Sctp(packet) => {
                let mut words = entry.state();
                let mut association = state::load_sctp(&words);
                let outcome = association.track(packet, direction, status, &timeouts.sctp);
                state::store_sctp(&mut words, &association);
                entry.set_state(&words);
                outcome
            }
            Transport::Udp => {
                let detail = entry.word(state::DETAIL);
                let is_old = state::is_old(detail)
                    || udp::STREAM_AFTER < age(state::load_opened(detail), now);
                if is_old {
                    entry.set_word(state::DETAIL, state::made_old(detail));
                }
                Outcome::Refresh(udp::track(is_old, status, &timeouts.udp))
            }
            Transport::Other if headers.tuple.protocol == GRE => {
                Outcome::Refresh(udp::track_gre(status, &timeouts.gre))
            }
            Transport::Icmp | Transport::Other => {
                Outcome::Refresh(self.stateless_timeout(headers.tuple.protocol))
            }
        }
    }

    pub(super) const fn stateless_timeout(&self, protocol: Protocol) -> Duration {
        let timeouts = &self.settings.timeouts;
        match protocol {
            Protocol::ICMP => timeouts.icmp,
            Protocol::ICMPV6 => timeouts.icmpv6,
            GRE => timeouts.gre.unreplied,
            _ => timeouts.generic,
        }
    }
}
