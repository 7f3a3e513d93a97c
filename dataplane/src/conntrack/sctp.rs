//! SCTP as connection tracking sees it: chunks move the state, verification tags tell forgeries.
//!
//! Measure: Linux `net/netfilter/nf_conntrack_proto_sctp.c`; RFC 9260, 8.4 and 8.5. Start at [`Association::track`].

use super::segment::{SctpChunk, SctpChunkKind, SctpPacket};
use super::{Invalid, Outcome, Status};
use crate::tuple::Direction;
use std::fmt;
use std::time::Duration;

/// State of an association, as `conntrack -L` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum State {
    /// Nothing seen yet.
    #[default]
    None,
    /// INIT seen (sic), or ended.
    Closed,
    /// INIT ACK seen.
    CookieWait,
    /// COOKIE ECHO seen.
    CookieEchoed,
    /// COOKIE ACK seen.
    Established,
    /// SHUTDOWN from the original side.
    ShutdownSent,
    /// SHUTDOWN from the reply side.
    ShutdownReceived,
    /// SHUTDOWN ACK seen.
    ShutdownAckSent,
    /// A new path opened by HEARTBEAT.
    HeartbeatSent,
}

impl State {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Closed,
        Self::CookieWait,
        Self::CookieEchoed,
        Self::Established,
        Self::ShutdownSent,
        Self::ShutdownReceived,
        Self::ShutdownAckSent,
        Self::HeartbeatSent,
    ];

    /// Whether the association may be dropped early although assured (`sctp_can_early_drop`).
    pub const fn is_closing(self) -> bool {
        matches!(
            self,
            Self::ShutdownSent | Self::ShutdownReceived | Self::ShutdownAckSent
        )
    }

    /// Name in `conntrack -L`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Closed => "CLOSED",
            Self::CookieWait => "COOKIE_WAIT",
            Self::CookieEchoed => "COOKIE_ECHOED",
            Self::Established => "ESTABLISHED",
            Self::ShutdownSent => "SHUTDOWN_SENT",
            Self::ShutdownReceived => "SHUTDOWN_RECD",
            Self::ShutdownAckSent => "SHUTDOWN_ACK_SENT",
            Self::HeartbeatSent => "HEARTBEAT_SENT",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How long an entry lives after a packet that left it in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// `nf_conntrack_sctp_timeout_closed`.
    pub closed: Duration,
    /// `nf_conntrack_sctp_timeout_cookie_wait`.
    pub cookie_wait: Duration,
    /// `nf_conntrack_sctp_timeout_cookie_echoed`.
    pub cookie_echoed: Duration,
    /// `nf_conntrack_sctp_timeout_established`.
    pub established: Duration,
    /// `nf_conntrack_sctp_timeout_shutdown_sent`; `_recd` and `_ack_sent` have the same.
    pub shutdown: Duration,
    /// `nf_conntrack_sctp_timeout_heartbeat_sent`.
    pub heartbeat_sent: Duration,
}

impl Timeouts {
    /// The kernel's defaults.
    pub const KERNEL: Self = Self {
        closed: Duration::from_secs(10),
        cookie_wait: Duration::from_secs(3),
        cookie_echoed: Duration::from_secs(3),
        established: Duration::from_secs(210),
        shutdown: Duration::from_secs(3),
        heartbeat_sent: Duration::from_secs(30),
    };

    const fn of(&self, state: State) -> Duration {
        match state {
            State::None | State::Closed => self.closed,
            State::CookieWait => self.cookie_wait,
            State::CookieEchoed => self.cookie_echoed,
            State::Established => self.established,
            State::ShutdownSent | State::ShutdownReceived | State::ShutdownAckSent => self.shutdown,
            State::HeartbeatSent => self.heartbeat_sent,
        }
    }
}

/// The state after a chunk (kernel table `sctp_conntracks`); `None`: not of this association.
pub(super) fn next_state(direction: Direction, kind: SctpChunkKind, state: State) -> Option<State> {
    match direction {
        Direction::Original => Some(next_original(kind, state)),
        Direction::Reply => next_reply(kind, state),
    }
}

fn next_original(kind: SctpChunkKind, state: State) -> State {
    use SctpChunkKind as Chunk;
    match (kind, state) {
        (Chunk::Other, _) => state,
        (Chunk::Abort, _) => State::Closed,
        (Chunk::Init, State::ShutdownSent | State::ShutdownReceived) => State::Closed,
        (Chunk::Init, State::HeartbeatSent) => State::CookieWait,
        (Chunk::Shutdown, State::Established) => State::ShutdownSent,
        (
            Chunk::ShutdownAck,
            State::None | State::ShutdownSent | State::ShutdownReceived | State::HeartbeatSent,
        ) => State::ShutdownAckSent,
        (Chunk::CookieEcho, State::CookieWait) => State::CookieEchoed,
        (Chunk::CookieAck, State::CookieEchoed) => State::Established,
        (Chunk::ShutdownComplete, State::ShutdownAckSent) => State::Closed,
        (Chunk::Heartbeat, State::None | State::HeartbeatSent) => State::HeartbeatSent,
        (Chunk::HeartbeatAck, State::HeartbeatSent) => State::HeartbeatSent,
        (_, State::None | State::HeartbeatSent) => State::Closed,
        _ => state,
    }
}

fn next_reply(kind: SctpChunkKind, state: State) -> Option<State> {
    use SctpChunkKind as Chunk;
    Some(match (kind, state) {
        (Chunk::Other, _) => state,
        (_, State::None) => return None,
        (Chunk::Heartbeat, State::HeartbeatSent) => State::HeartbeatSent,
        (Chunk::HeartbeatAck, State::HeartbeatSent) => State::Established,
        (_, State::HeartbeatSent) => return None,
        (Chunk::InitAck, State::Closed) => State::CookieWait,
        (Chunk::Abort, _) => State::Closed,
        (Chunk::Shutdown, State::Established) => State::ShutdownReceived,
        (Chunk::ShutdownAck, State::ShutdownSent | State::ShutdownReceived) => {
            State::ShutdownAckSent
        }
        (Chunk::Error, State::CookieEchoed) => State::Closed,
        (Chunk::CookieEcho, State::CookieWait) => State::CookieEchoed,
        (Chunk::CookieAck, State::CookieEchoed) => State::Established,
        (Chunk::ShutdownComplete, State::ShutdownAckSent) => State::Closed,
        _ => state,
    })
}

/// A tracked SCTP association (`struct ip_ct_sctp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Association {
    pub(super) state: State,
    /// The tag that packets of each direction must carry.
    pub(super) tags: [u32; 2],
    /// Whether an INIT of each direction is unanswered.
    pub(super) init: [bool; 2],
    /// A HEARTBEAT carried an unexpected tag; its acknowledgement may prove it right.
    pub(super) heartbeat_failed: bool,
    pub(super) last_direction: Direction,
}

impl Default for Association {
    fn default() -> Self {
        Self {
            state: State::None,
            tags: [0; 2],
            init: [false; 2],
            heartbeat_failed: false,
            last_direction: Direction::Original,
        }
    }
}

/// What one chunk does to the packet.
enum Step {
    /// Counts.
    Apply,
    /// Counts, but must not keep the entry alive.
    ApplyWithoutRefresh,
    /// Is passed over.
    Skip,
}

impl Association {
    /// The association that a first packet opens, and its timeout (`sctp_new`, then the first pass).
    pub(super) fn open(
        packet: &SctpPacket,
        timeouts: &Timeouts,
    ) -> Result<(Self, Duration), Invalid> {
        use SctpChunkKind as Chunk;
        // Out of the blue: RFC 9260, 8.4.
        if packet.has(Chunk::Abort)
            || packet.has(Chunk::ShutdownComplete)
            || packet.has(Chunk::CookieAck)
        {
            return Err(Invalid::SctpState(State::None));
        }
        let mut association = Self::default();
        for chunk in packet.chunks() {
            match chunk.kind {
                Chunk::Other => return Err(Invalid::SctpState(State::None)),
                Chunk::Init if packet.verification_tag != 0 => {
                    return Err(Invalid::SctpVerificationTag);
                }
                Chunk::Init => association.tags[Direction::Reply as usize] = packet.initiate_tag,
                Chunk::Heartbeat => {
                    association.tags[Direction::Original as usize] = packet.verification_tag
                }
                Chunk::ShutdownAck => {
                    association.tags[Direction::Reply as usize] = packet.verification_tag
                }
                _ => {}
            }
        }
        match association.track(
            packet,
            Direction::Original,
            &mut Status::default(),
            timeouts,
        ) {
            Outcome::Refresh(timeout) => Ok((association, timeout)),
            Outcome::Invalid(reason, _) => Err(reason),
            Outcome::Ignored => Ok((association, timeouts.closed)),
            Outcome::Keep | Outcome::Restart | Outcome::End => Err(Invalid::SctpState(State::None)),
        }
    }

    /// A further packet (`nf_conntrack_sctp_packet`). What its first chunks did stays even when a later one is
    /// invalid, as in the kernel.
    pub(super) fn track(
        &mut self,
        packet: &SctpPacket,
        direction: Direction,
        status: &mut Status,
        timeouts: &Timeouts,
    ) -> Outcome {
        if !has_special_tag(packet) && packet.verification_tag != self.tags[direction as usize] {
            return Outcome::Invalid(Invalid::SctpVerificationTag, None);
        }
        let mut refresh = true;
        let mut heartbeat_skipped = false;
        for chunk in packet.chunks() {
            match self.apply(packet, chunk, direction, heartbeat_skipped) {
                Err(reason) => return Outcome::Invalid(reason, None),
                Ok(Step::Apply) => {}
                Ok(Step::ApplyWithoutRefresh) => refresh = false,
                Ok(Step::Skip) => {
                    refresh = false;
                    heartbeat_skipped = true;
                }
            }
            if self.state == State::Established && chunk.kind != SctpChunkKind::Other {
                status.set(Status::ASSURED);
            }
        }
        if refresh {
            Outcome::Refresh(timeouts.of(self.state))
        } else {
            Outcome::Ignored
        }
    }

    fn apply(
        &mut self,
        packet: &SctpPacket,
        chunk: &SctpChunk,
        direction: Direction,
        heartbeat_skipped: bool,
    ) -> Result<Step, Invalid> {
        if !self.check_tag(packet, chunk, direction, heartbeat_skipped)? {
            return Ok(Step::Skip);
        }
        let old = self.state;
        let new = next_state(direction, chunk.kind, old).ok_or(Invalid::SctpState(old))?;
        match chunk.kind {
            SctpChunkKind::Init => self.note_init(packet.initiate_tag, direction, old),
            SctpChunkKind::InitAck => self.note_init_ack(packet.initiate_tag, direction)?,
            SctpChunkKind::CookieAck => self.init = [false; 2],
            _ => {}
        }
        self.state = new;
        // A client that tries the same port again must not keep a dead translation alive.
        let is_retransmitted_init =
            chunk.kind == SctpChunkKind::Init && old == State::Closed && new == State::Closed;
        Ok(if is_retransmitted_init {
            Step::ApplyWithoutRefresh
        } else {
            Step::Apply
        })
    }

    /// RFC 9260, 8.5.1. `Ok(false)`: pass the chunk over.
    fn check_tag(
        &mut self,
        packet: &SctpPacket,
        chunk: &SctpChunk,
        direction: Direction,
        heartbeat_skipped: bool,
    ) -> Result<bool, Invalid> {
        let tag = packet.verification_tag;
        let own = self.tags[direction as usize];
        let peer = self.tags[direction.opposite() as usize];
        let fits = match chunk.kind {
            SctpChunkKind::Init => tag == 0,
            SctpChunkKind::Abort | SctpChunkKind::ShutdownComplete => {
                tag == if chunk.tag_reflected { peer } else { own }
            }
            SctpChunkKind::CookieEcho => tag == own,
            SctpChunkKind::Heartbeat | SctpChunkKind::HeartbeatAck => {
                return self.check_heartbeat(packet, chunk.kind, direction, heartbeat_skipped);
            }
            _ => true,
        };
        if fits {
            Ok(true)
        } else {
            Err(Invalid::SctpVerificationTag)
        }
    }

    fn check_heartbeat(
        &mut self,
        packet: &SctpPacket,
        kind: SctpChunkKind,
        direction: Direction,
        heartbeat_skipped: bool,
    ) -> Result<bool, Invalid> {
        let own = &mut self.tags[direction as usize];
        if *own == 0 {
            *own = packet.verification_tag;
            return Ok(true);
        }
        if *own == packet.verification_tag {
            self.heartbeat_failed = false;
            return Ok(true);
        }
        if packet.has_data || heartbeat_skipped {
            return Err(Invalid::SctpVerificationTag);
        }
        if kind == SctpChunkKind::Heartbeat {
            self.heartbeat_failed = true;
            self.last_direction = direction;
            return Ok(false);
        }
        if !self.heartbeat_failed || self.last_direction == direction {
            return Err(Invalid::SctpVerificationTag);
        }
        *own = packet.verification_tag;
        self.heartbeat_failed = false;
        self.tags[direction.opposite() as usize] = 0;
        Ok(true)
    }

    fn note_init(&mut self, initiate_tag: u32, direction: Direction, old: State) {
        let [own, peer] = [direction as usize, direction.opposite() as usize];
        if old == State::None || self.tags[peer] != initiate_tag {
            if self.init[own] {
                self.init[peer] = false;
            }
            self.init[own] = true;
        }
        self.tags[peer] = initiate_tag;
    }

    fn note_init_ack(&mut self, initiate_tag: u32, direction: Direction) -> Result<(), Invalid> {
        let [own, peer] = [direction as usize, direction.opposite() as usize];
        let known = self.tags[peer];
        let unexpected = !self.init[peer] && known != 0;
        let collision = self.init[own] && self.init[peer];
        if (unexpected || collision) && known != initiate_tag {
            return Err(Invalid::SctpVerificationTag);
        }
        self.tags[peer] = initiate_tag;
        Ok(())
    }
}

/// Whether a chunk of the packet has rules of its own for the tag.
fn has_special_tag(packet: &SctpPacket) -> bool {
    use SctpChunkKind as Chunk;
    packet.chunks().iter().any(|chunk| {
        matches!(
            chunk.kind,
            Chunk::Init
                | Chunk::ShutdownComplete
                | Chunk::CookieEcho
                | Chunk::Abort
                | Chunk::ShutdownAck
                | Chunk::Heartbeat
                | Chunk::HeartbeatAck
        )
    })
}
