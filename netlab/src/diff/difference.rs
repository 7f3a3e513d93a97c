//! A difference between two sides, and what kind it is.

use super::canonical;
use super::case::{Body, Case, Packet, Step};
use super::side::Entry;
use super::world::Output;
use std::time::Duration;

/// Where the sides went apart.
#[derive(Clone, Debug)]
pub(super) struct Difference {
    /// The step, by number; the end when it is the number of steps.
    pub(super) step: usize,
    /// What was sent in it.
    pub(super) sent: Vec<Vec<u8>>,
    /// What came out, or is tracked, on either side.
    pub(super) seen: Seen,
}

/// What two sides made of the same.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    /// Packets.
    Packets([Vec<Output>; 2]),
    /// Connections that the other side has not, or has otherwise.
    Entries([Vec<Entry>; 2]),
    /// Connections that our table would lose too early, or keep too long, in so long a time.
    Later(Duration, [Vec<Entry>; 2]),
}

impl Difference {
    /// What kind of difference it is, for telling a new one from one that is known: no address, no port, no endpoint.
    pub(super) fn kind(&self, case: &Case) -> String {
        let step = match case.steps.get(self.step) {
            Some(Step::Client(flow, packet)) => format!("client {}", body(case, *flow, packet)),
            Some(Step::Server(flow, packet)) => format!("server {}", body(case, *flow, packet)),
            Some(Step::Change(_)) => "change".to_owned(),
            Some(Step::Wait(_)) => "wait".to_owned(),
            None => match self.seen {
                Seen::Later(ahead, _) => format!("{} s after the end", ahead.as_secs()),
                _ => "end".to_owned(),
            },
        };
        let seen = match &self.seen {
            Seen::Packets(sides) => sides
                .each_ref()
                .map(|outputs| canonical::kinds(outputs))
                .join(" / "),
            Seen::Entries(sides) | Seen::Later(_, sides) => sides
                .each_ref()
                .map(|entries| {
                    let of = |entry: &Entry| format!("{} {}", entry.protocol, entry.state);
                    entries.first().map_or_else(|| "none".to_owned(), of)
                })
                .join(" / "),
        };
        format!("{step}: {seen}")
    }
}

fn body(case: &Case, flow: usize, packet: &Packet) -> String {
    let of = match &packet.body {
        Body::Tcp(segment) => format!("tcp {}", segment.flags),
        Body::Udp { .. } => "udp".to_owned(),
        Body::Query { kind, .. } => format!("icmp {kind}"),
        Body::Error { kind, code, .. } => format!("icmp error {kind}/{code}"),
        Body::Sctp { chunk, .. } => format!("sctp {chunk}"),
        Body::Other { .. } => format!("protocol {}", case.flows[flow].protocol),
    };
    let fragments = if packet.shape.fragment.is_some() {
        " in fragments"
    } else {
        ""
    };
    let wrong = if packet.shape.wrong_checksum {
        " with a wrong checksum"
    } else {
        ""
    };
    let cut = if packet.shape.cut.is_some() {
        " cut"
    } else {
        ""
    };
    format!("{of}{fragments}{wrong}{cut}")
}
