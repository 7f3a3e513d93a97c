//! TCP as connection tracking sees it from the middle: states, windows, timeouts.
//!
//! Measure: Linux `net/netfilter/nf_conntrack_proto_tcp.c` as driven on 6.18; the rows that tests cite are those
//! of the project's conntrack reference, section 2. Guido van Rooij, "Real Stateful TCP Packet Filtering
//! in IP Filter", is where the window checks come from. Start at [`Connection::track`].
//!
//! Sequence numbers are compared modulo 2^32 ([`after`](super::window::after), [`before`](super::window::before)), never
//! with `<`.

mod reset;
mod states;

use super::window::{self, Fit};
use super::{Invalid, Outcome, Status};
use crate::tuple::Direction;
use std::time::Duration;

pub use super::segment::{TcpFlags, TcpOptions, TcpSegment};
pub use states::State;
pub(super) use states::{Kind, Next, next_state};

/// How long an entry lives after a packet that left it in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// `nf_conntrack_tcp_timeout_syn_sent`; SYN_SENT2 has the same.
    pub syn_sent: Duration,
    /// `nf_conntrack_tcp_timeout_syn_recv`.
    pub syn_received: Duration,
    /// `nf_conntrack_tcp_timeout_established`.
    pub established: Duration,
    /// `nf_conntrack_tcp_timeout_fin_wait`.
    pub fin_wait: Duration,
    /// `nf_conntrack_tcp_timeout_close_wait`.
    pub close_wait: Duration,
    /// `nf_conntrack_tcp_timeout_last_ack`.
    pub last_ack: Duration,
    /// `nf_conntrack_tcp_timeout_time_wait`.
    pub time_wait: Duration,
    /// `nf_conntrack_tcp_timeout_close`.
    pub close: Duration,
    /// `nf_conntrack_tcp_timeout_max_retrans`.
    pub max_retransmissions: Duration,
    /// `nf_conntrack_tcp_timeout_unacknowledged`.
    pub unacknowledged: Duration,
}

impl Timeouts {
    /// The kernel's defaults.
    pub const KERNEL: Self = Self {
        syn_sent: Duration::from_secs(120),
        syn_received: Duration::from_secs(60),
        established: Duration::from_secs(432_000),
        fin_wait: Duration::from_secs(120),
        close_wait: Duration::from_secs(60),
        last_ack: Duration::from_secs(30),
        time_wait: Duration::from_secs(120),
        close: Duration::from_secs(10),
        max_retransmissions: Duration::from_secs(300),
        unacknowledged: Duration::from_secs(300),
    };

    const fn of(&self, state: State) -> Duration {
        match state {
            State::None | State::SynSent | State::SynSent2 => self.syn_sent,
            State::SynReceived => self.syn_received,
            State::Established => self.established,
            State::FinWait => self.fin_wait,
            State::CloseWait => self.close_wait,
            State::LastAck => self.last_ack,
            State::TimeWait => self.time_wait,
            State::Close => self.close,
        }
    }
}

/// What an administrator may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSettings {
    /// Timeouts by state.
    pub timeouts: Timeouts,
    /// `nf_conntrack_tcp_loose`: pick connections up in their middle.
    pub loose: bool,
    /// `nf_conntrack_tcp_be_liberal`: only RSTs out of the window are INVALID.
    pub be_liberal: bool,
    /// `nf_conntrack_tcp_ignore_invalid_rst`: not even those.
    pub ignore_invalid_reset: bool,
    /// `nf_conntrack_tcp_max_retrans`: after so many, at most 63, the entry gets the shorter timeout.
    pub max_retransmissions: u8,
}

impl Default for TcpSettings {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::KERNEL,
            loose: true,
            be_liberal: false,
            ignore_invalid_reset: false,
            max_retransmissions: 3,
        }
    }
}

/// What is known of one side (`struct ip_ct_tcp_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Peer {
    /// Highest sequence number sent, plus length.
    pub(super) end: u32,
    /// Highest that the other side allows.
    pub(super) max_end: u32,
    /// Largest window offered, scaled. Zero: nothing was seen of this side.
    pub(super) max_window: u32,
    /// Highest acknowledgement sent.
    pub(super) max_ack: u32,
    /// Window scale, 0 to 14.
    pub(super) scale: u8,
    /// [`Peer::SACK_PERMITTED`] and the others.
    pub(super) flags: u8,
}

impl Peer {
    pub(super) const WINDOW_SCALE: u8 = 0x01;
    pub(super) const SACK_PERMITTED: u8 = 0x02;
    /// Sent the first FIN.
    pub(super) const CLOSE_INIT: u8 = 0x04;
    pub(super) const BE_LIBERAL: u8 = 0x08;
    pub(super) const DATA_UNACKNOWLEDGED: u8 = 0x10;
    pub(super) const MAX_ACK_SET: u8 = 0x20;

    pub(super) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Takes over what a SYN offers. Without any option nothing changes, with some all is replaced but what the
    /// connection was picked up with (`tcp_options`).
    pub(super) fn take_options(&mut self, options: &TcpOptions) {
        if options.present {
            self.flags = self.flags & Self::BE_LIBERAL | options.peer_flags();
            self.scale = options.window_scale.unwrap_or(0);
        }
    }

    fn forget(&mut self) {
        *self = Self {
            flags: self.flags & Self::BE_LIBERAL,
            ..Self::default()
        };
    }
}

/// The last segment that mattered: what a duplicate, a RST or the answer to an ignored SYN is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) direction: Direction,
    pub(super) kind: Kind,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    pub(super) end: u32,
    /// As in the header, not scaled.
    pub(super) window: u16,
    /// Options of an ignored SYN.
    pub(super) scale: u8,
    /// Flags of a [`Peer`] from an ignored SYN; and [`Last::SIMULTANEOUS_OPEN`], [`Last::CHALLENGE_ACK`].
    pub(super) flags: u8,
}

impl Last {
    pub(super) const SIMULTANEOUS_OPEN: u8 = 0x40;
    /// A SYN was let through in LAST_ACK: one ACK of the other side may be RFC 5961's challenge.
    pub(super) const CHALLENGE_ACK: u8 = 0x80;
}

impl Default for Last {
    fn default() -> Self {
        Self {
            direction: Direction::Original,
            kind: Kind::None,
            sequence: 0,
            acknowledgement: 0,
            end: 0,
            window: 0,
            scale: 0,
            flags: 0,
        }
    }
}

/// A tracked TCP connection (`struct ip_ct_tcp`), as the segment in hand sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Connection {
    pub(super) state: State,
    /// The side that sent the segment.
    pub(super) sender: Peer,
    /// The other side.
    pub(super) receiver: Peer,
    pub(super) last: Last,
    /// Identical ACKs in a row, saturating.
    pub(super) retransmissions: u8,
}

/// A segment on its way through a connection.
#[derive(Clone, Copy)]
pub(super) struct Arrival<'s> {
    pub(super) segment: &'s TcpSegment,
    pub(super) direction: Direction,
    pub(super) kind: Kind,
}

impl Connection {
    /// The connection that a first segment opens, and its timeout (`tcp_new`, then the first pass).
    pub(super) fn open(
        segment: &TcpSegment,
        settings: &TcpSettings,
    ) -> Result<(Self, Duration), Invalid> {
        let kind = Kind::of(segment.flags);
        let mut connection = Self::default();
        let peer = &mut connection.sender;
        peer.end = segment.end();
        peer.max_window = u32::from(segment.window).max(1);
        match next_state(Direction::Original, kind, State::None) {
            Next::To(State::SynSent) => {
                peer.max_end = peer.end;
                peer.take_options(&segment.options);
            }
            Next::To(_) if settings.loose => {
                peer.max_end = peer.end.wrapping_add(peer.max_window);
                // Scale and SACK are not known any more, so the windows cannot be judged.
                peer.flags = Peer::SACK_PERMITTED | Peer::BE_LIBERAL;
                connection.receiver.flags = peer.flags;
            }
            _ => return Err(Invalid::TcpNew),
        }
        let mut status = Status::default();
        match connection.track(segment, Direction::Original, &mut status, settings) {
            Outcome::Refresh(timeout) => Ok((connection, timeout)),
            Outcome::Invalid(reason, _) => Err(reason),
            Outcome::Ignored | Outcome::Keep | Outcome::Restart | Outcome::End => {
                Err(Invalid::TcpNew)
            }
        }
    }

    /// All of [`Self::track`] for most segments by far: in an established connection that both sides know, neither SYN nor
    /// FIN nor RST, and inside the windows. Its timeout; `None` when there is more to do, and then nothing has changed.
    #[inline(always)]
    pub(super) fn go_on(
        &mut self,
        segment: &TcpSegment,
        direction: Direction,
        settings: &TcpSettings,
    ) -> Option<Duration> {
        let arrival = Arrival {
            segment,
            direction,
            kind: Kind::Ack,
        };
        let is_plain = self.state == State::Established
            && Kind::of(segment.flags) == Kind::Ack
            && self.sender.max_window != 0;
        if !is_plain || !window::advance_if_fits(self, &arrival) {
            return None;
        }
        self.last.kind = Kind::Ack;
        Some(self.timeout(Kind::Ack, settings))
    }

    /// A further segment (`nf_conntrack_tcp_packet`). `status` is that before the packet.
    pub(super) fn track(
        &mut self,
        segment: &TcpSegment,
        direction: Direction,
        status: &mut Status,
        settings: &TcpSettings,
    ) -> Outcome {
        let arrival = Arrival {
            segment,
            direction,
            kind: Kind::of(segment.flags),
        };
        let old = self.state;
        let step = match next_state(direction, arrival.kind, old) {
            Next::Invalid => return Outcome::Invalid(Invalid::TcpState(old), None),
            Next::Ignore => self.ignore(&arrival, old),
            Next::To(State::SynSent) if matches!(old, State::TimeWait | State::Close) => {
                if self.may_reopen(direction) {
                    return Outcome::Restart;
                }
                self.ignore(&arrival, old)
            }
            Next::To(State::TimeWait) if self.is_challenge_ack(&arrival) => {
                self.last.flags &= !Last::CHALLENGE_ACK;
                Step::Stop(Outcome::Ignored)
            }
            Next::To(State::SynSent2) => {
                self.last.flags |= Last::SIMULTANEOUS_OPEN;
                Step::check(old, State::SynSent2)
            }
            Next::To(State::SynReceived) if self.completes_simultaneous_open(&arrival) => {
                Step::check(old, State::Established)
            }
            Next::To(State::Close) if arrival.kind == Kind::Reset => {
                self.reset(&arrival, *status, settings)
            }
            Next::To(new) => Step::check(old, new),
        };
        self.finish(&arrival, step, status, settings)
    }

    fn finish(
        &mut self,
        arrival: &Arrival<'_>,
        step: Step,
        status: &mut Status,
        settings: &TcpSettings,
    ) -> Outcome {
        let (old, new) = match step {
            Step::Stop(outcome) => return outcome,
            Step::Accept { old, new } => (old, new),
            Step::Check { old, new } => {
                // The window check still sees the old state, as the kernel's does.
                match window::check(self, arrival, settings.be_liberal) {
                    Fit::Accepted => (old, new),
                    Fit::Ignored => return Outcome::Ignored,
                    Fit::Invalid(reason) => {
                        return Outcome::Invalid(
                            reason,
                            self.out_of_window_end(arrival, *status, settings),
                        );
                    }
                }
            }
        };
        self.accept(arrival, old, new, status, settings)
    }

    /// The segment fits: new state, ASSURED, timeout.
    fn accept(
        &mut self,
        arrival: &Arrival<'_>,
        old: State,
        new: State,
        status: &mut Status,
        settings: &TcpSettings,
    ) -> Outcome {
        self.last.kind = arrival.kind;
        self.last.direction = arrival.direction;
        self.state = new;
        if old != new && new == State::FinWait {
            self.sender.flags |= Peer::CLOSE_INIT;
        }
        let timeout = self.timeout(arrival.kind, settings);
        if !status.has(Status::SEEN_REPLY) {
            return match arrival.kind {
                // Only answered by a RST: there was no connection.
                Kind::Reset => Outcome::End,
                // A client that tries the same port again must not keep a dead translation alive.
                Kind::Syn if old == State::SynSent => Outcome::Keep,
                _ if new == State::Established => {
                    Outcome::Refresh(timeout.min(settings.timeouts.unacknowledged))
                }
                _ => Outcome::Refresh(timeout),
            };
        }
        if matches!(old, State::SynReceived | State::Established) && new == State::Established {
            status.set(Status::ASSURED);
        }
        Outcome::Refresh(timeout)
    }

    /// Reference section 2, "Timeout set by an accepted packet, first match: (a) ... (e)".
    #[inline(always)]
    fn timeout(&self, kind: Kind, settings: &TcpSettings) -> Duration {
        let timeouts = &settings.timeouts;
        let of_state = timeouts.of(self.state);
        let unacknowledged =
            (self.sender.flags | self.receiver.flags) & Peer::DATA_UNACKNOWLEDGED != 0;
        if self.retransmissions >= settings.max_retransmissions
            && of_state > timeouts.max_retransmissions
        {
            timeouts.max_retransmissions
        } else if kind == Kind::Reset {
            timeouts.close
        } else if unacknowledged {
            of_state.min(timeouts.unacknowledged)
        } else if self.last.window == 0 {
            of_state.min(timeouts.max_retransmissions)
        } else {
            of_state
        }
    }

    /// A SYN in TIME_WAIT or CLOSE opens a new connection when this one was closed in order, or aborted by
    /// the side that now tries again (reference section 2, rule 1).
    fn may_reopen(&self, direction: Direction) -> bool {
        (self.sender.flags | self.receiver.flags) & Peer::CLOSE_INIT != 0
            || (self.last.direction == direction && self.last.kind == Kind::Reset)
    }

    /// We may be out of step with the two ends: let it pass and remember it (rules 2 and 3).
    fn ignore(&mut self, arrival: &Arrival<'_>, old: State) -> Step {
        let segment = arrival.segment;
        if arrival.kind == Kind::SynAck
            && self.last.kind == Kind::Syn
            && self.last.direction != arrival.direction
            && segment.acknowledgement == self.last.end
        {
            self.resynchronise();
            return Step::check(State::SynSent, State::SynReceived);
        }
        self.last.kind = arrival.kind;
        self.last.direction = arrival.direction;
        self.last.sequence = segment.sequence;
        self.last.end = segment.end();
        self.last.window = segment.window;
        if arrival.kind == Kind::Syn && arrival.direction == Direction::Original {
            self.last.scale = segment.options.window_scale.unwrap_or(0);
            self.last.flags = segment.options.peer_flags();
            if old == State::LastAck {
                self.last.flags |= Last::CHALLENGE_ACK;
            }
        }
        if old == State::SynSent
            && arrival.kind == Kind::Ack
            && arrival.direction == Direction::Reply
        {
            self.last.acknowledgement = segment.acknowledgement;
        }
        Step::Stop(Outcome::Ignored)
    }

    /// A SYN+ACK answers the SYN that was ignored: both ends agree, so start over from that SYN.
    fn resynchronise(&mut self) {
        self.last.flags &= !Last::CHALLENGE_ACK;
        let peer = &mut self.receiver;
        peer.end = self.last.end;
        peer.max_end = self.last.end;
        peer.max_window = u32::from(self.last.window).max(1);
        peer.scale = self.last.scale;
        peer.flags = self.last.flags & !Last::SIMULTANEOUS_OPEN;
        self.sender.forget();
    }

    fn is_challenge_ack(&self, arrival: &Arrival<'_>) -> bool {
        self.state == State::LastAck
            && arrival.kind == Kind::Ack
            && self.last.direction != arrival.direction
            && self.last.kind == Kind::Syn
            && self.last.flags & Last::CHALLENGE_ACK != 0
    }

    fn completes_simultaneous_open(&self, arrival: &Arrival<'_>) -> bool {
        arrival.direction == Direction::Reply
            && arrival.kind == Kind::Ack
            && self.last.flags & Last::SIMULTANEOUS_OPEN != 0
    }
}

/// What is left to do after the state table.
enum Step {
    /// Check the window, then go from `old` to `new`.
    Check {
        old: State,
        new: State,
    },
    /// Go there without looking at the window.
    Accept {
        old: State,
        new: State,
    },
    Stop(Outcome),
}

impl Step {
    const fn check(old: State, new: State) -> Self {
        Self::Check { old, new }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::state;
    use fastrand::Rng;

    const DIRECTIONS: [Direction; 2] = [Direction::Original, Direction::Reply];

    fn peer(random: &mut Rng) -> Peer {
        let end = random.u32(..);
        Peer {
            end,
            max_end: end.wrapping_add(random.u32(..100_000)),
            max_window: random.u32(0..4) * 30_000,
            max_ack: end.wrapping_sub(random.u32(..3)),
            scale: random.u8(..15),
            flags: random.u8(..64),
        }
    }

    /// Most are established; numbers are small where a segment has to meet them.
    fn connection(random: &mut Rng) -> Connection {
        let state = if random.u8(..4) == 0 {
            State::ALL[random.usize(..State::ALL.len())]
        } else {
            State::Established
        };
        Connection {
            state,
            sender: peer(random),
            receiver: peer(random),
            last: Last {
                direction: DIRECTIONS[random.usize(..2)],
                kind: Kind::ALL[random.usize(..Kind::ALL.len())],
                sequence: random.u32(..),
                acknowledgement: random.u32(..),
                end: random.u32(..),
                window: random.u16(..),
                scale: random.u8(..15),
                flags: random.u8(..),
            },
            retransmissions: random.u8(..64),
        }
    }

    /// About where the connection is, often a duplicate of the last one.
    fn segment(random: &mut Rng, connection: &mut Connection) -> TcpSegment {
        let near =
            |random: &mut Rng, number: u32| number.wrapping_add(random.u32(..5)).wrapping_sub(2);
        let flags = if random.u8(..4) == 0 {
            random.u8(..)
        } else {
            0x10
        };
        let segment = TcpSegment {
            flags: TcpFlags(flags),
            sequence: near(random, connection.sender.end),
            acknowledgement: near(random, connection.receiver.end),
            window: random.u16(..),
            data_length: random.u32(..3) * 700,
            options: TcpOptions {
                highest_sack: random.bool().then(|| near(random, connection.receiver.end)),
                ..TcpOptions::default()
            },
        };
        if random.bool() {
            connection.last.sequence = segment.sequence;
            connection.last.acknowledgement = segment.acknowledgement;
            connection.last.end = segment.end();
            connection.last.window = segment.window;
        }
        segment
    }

    #[test]
    fn the_short_way_is_the_long_one_or_none() {
        let mut random = Rng::with_seed(1);
        let settings = TcpSettings::default();
        let mut taken = 0;
        for _ in 0..200_000 {
            let mut short = connection(&mut random);
            let segment = segment(&mut random, &mut short);
            let (before, mut long) = (short, short);
            let direction = DIRECTIONS[random.usize(..2)];
            let Some(timeout) = short.go_on(&segment, direction, &settings) else {
                assert_eq!(short, before);
                continue;
            };
            let mut status = Status::STREAM;
            let outcome = long.track(&segment, direction, &mut status, &settings);
            assert_eq!(
                (outcome, status),
                (Outcome::Refresh(timeout), Status::STREAM)
            );
            assert_eq!(short, long, "{before:?} {segment:?}");
            taken += 1;
        }
        assert!((40_000..150_000).contains(&taken), "{taken}");
    }

    /// Packed and unpacked again it is the same, and the other way round for who answers.
    #[test]
    fn words_hold_a_connection_whoever_looks_at_it() {
        let mut random = Rng::with_seed(2);
        for _ in 0..1000 {
            let connection = connection(&mut random);
            for direction in DIRECTIONS {
                let mut words = [random.u64(..); 8];
                let service = [words[0], words[1] >> 32];
                state::store_tcp(&mut words, &connection, direction);
                assert_eq!(state::load_tcp(&words, direction), connection);
                let turned = Connection {
                    sender: connection.receiver,
                    receiver: connection.sender,
                    ..connection
                };
                assert_eq!(state::load_tcp(&words, direction.opposite()), turned);
                assert_eq!([words[0], words[1] >> 32], service);
            }
        }
    }
}
