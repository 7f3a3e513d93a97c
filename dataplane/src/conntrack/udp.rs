//! UDP and GRE: no state but whether both sides were heard, and for how long.
//!
//! Measure: Linux `nf_conntrack_proto_udp.c`, `nf_conntrack_proto_gre.c`.

use super::Status;
use std::time::Duration;

/// A flow that is still alive this long after its first packet is a stream.
pub(super) const STREAM_AFTER: Duration = Duration::from_secs(2);

/// How long an entry lives after a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// `nf_conntrack_udp_timeout` (`_gre_timeout`).
    pub unreplied: Duration,
    /// `nf_conntrack_udp_timeout_stream` (`_gre_timeout_stream`).
    pub stream: Duration,
}

impl Timeouts {
    /// The kernel's defaults for UDP.
    pub const UDP: Self = Self {
        unreplied: Duration::from_secs(30),
        stream: Duration::from_secs(120),
    };
    /// The kernel's defaults for GRE.
    pub const GRE: Self = Self {
        unreplied: Duration::from_secs(30),
        stream: Duration::from_secs(180),
    };
}

/// A datagram of a known flow (`nf_conntrack_udp_packet`): its timeout. `is_old` says whether it lives longer than
/// [`STREAM_AFTER`]; `status` is that before the packet, so the first reply never makes a stream.
pub(super) fn track(is_old: bool, status: &mut Status, timeouts: &Timeouts) -> Duration {
    if !status.has(Status::SEEN_REPLY) || !(is_old || status.has(Status::ASSURED)) {
        return timeouts.unreplied;
    }
    status.set(Status::ASSURED);
    timeouts.stream
}

/// A GRE packet of a known flow (`nf_conntrack_gre_packet`): a stream as soon as both sides were heard.
pub(super) fn track_gre(status: &mut Status, timeouts: &Timeouts) -> Duration {
    if !status.has(Status::SEEN_REPLY) {
        return timeouts.unreplied;
    }
    status.set(Status::ASSURED);
    timeouts.stream
}
