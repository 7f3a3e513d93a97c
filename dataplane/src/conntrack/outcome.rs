//! What tracking says about a packet.

use super::segment::TcpFlags;
use super::{sctp, tcp};
use std::time::Duration;

/// Why a packet belongs to no connection. Such a packet is not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The transport header is not whole.
    #[error("truncated packet")]
    Truncated,
    /// A combination of flags that no connection uses.
    #[error("invalid TCP flag combination {0:?}")]
    TcpFlags(TcpFlags),
    /// The segment can open no connection.
    #[error("TCP segment opens no connection")]
    TcpNew,
    /// The state table refuses it.
    #[error("TCP segment is invalid in state {0}")]
    TcpState(tcp::State),
    /// More than a window above what the receiver allows.
    #[error("SEQ is over upper bound (over the window of the receiver)")]
    TcpSequence,
    /// Acknowledges what was not sent.
    #[error("ACK is over upper bound (ACKed data not seen yet)")]
    TcpAcknowledgement,
    /// A RST from before what the other side has acknowledged.
    #[error("invalid RST")]
    TcpReset,
    /// SCTP chunks that may not stand together.
    #[error("SCTP chunks are not in order")]
    SctpChunks,
    /// Wrong SCTP verification tag.
    #[error("SCTP verification tag check failed")]
    SctpVerificationTag,
    /// The state table refuses it.
    #[error("SCTP chunk is invalid in state {0}")]
    SctpState(sctp::State),
    /// An ICMP message that opens no entry.
    #[error("ICMP type {0} opens no connection")]
    IcmpType(u8),
}

/// What [`Conntrack::track`](super::Conntrack::track) says about a packet of a known connection.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracked {
    /// Of the connection, which now knows of it.
    Accepted,
    /// Passes and is translated; state and timeout are as before.
    Ignored,
    /// Not of the connection: must not be translated.
    Invalid(Invalid),
    /// The old entry is gone, the packet opens a new connection.
    Restart,
}

/// What a protocol says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Accepted; the entry now lives this long.
    Refresh(Duration),
    /// Accepted; the timeout runs on.
    Keep,
    /// Accepted; nothing changes.
    Ignored,
    /// Refused; the entry lives at most this long.
    Invalid(Invalid, Option<Duration>),
    /// The entry makes way for a new connection.
    Restart,
    /// Accepted; the entry is over.
    End,
}
