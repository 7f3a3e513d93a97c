//! The log lines about connections for which there was no room.

use dataplane::conntrack::Conntrack;
use dataplane::notices::Notice;
use dataplane::ports::{self, ReservedPorts};
use dataplane::tuple::{Protocol, Timestamp, Tuple};
use dataplane::verdict::DropReason;
use dataplane::worker::Shared;
use std::fmt;
use std::time::Duration;

/// Lines in [`INTERVAL`] at most (`net_ratelimit` of the kernel).
const LINES: u32 = 10;
const INTERVAL: Duration = Duration::from_secs(5);

/// Writes what the workers noted, as often as a log can bear.
#[derive(Debug, Default)]
pub(super) struct Log {
    since: Option<Timestamp>,
    lines: u32,
    suppressed: u64,
}

impl Log {
    /// Writes notices that were left since the last time.
    pub(super) fn write(&mut self, shared: &Shared, now: Timestamp) {
        self.suppressed += shared.notices.suppressed();
        while let Some(notice) = shared.notices.next() {
            if self.may_write(now) {
                let facts = shared.facts.load();
                let line = Line::new(&notice, &shared.conntrack, &facts.reserved_ports, now);
                tracing::warn!("{line}");
            } else {
                self.suppressed += 1;
            }
        }
        if self.suppressed > 0 && self.may_write(now) {
            tracing::warn!(
                "{} more first packets were dropped for want of room",
                self.suppressed
            );
            self.suppressed = 0;
        }
    }

    fn may_write(&mut self, now: Timestamp) -> bool {
        if self.since.is_none_or(|since| now.since(since) >= INTERVAL) {
            (self.since, self.lines) = (Some(now), 0);
        }
        let may = self.lines < LINES;
        self.lines += u32::from(may);
        may
    }
}

/// What an operator needs to know: who was dropped, and what is full.
#[derive(Debug)]
enum Line {
    TableFull {
        original: Tuple,
        entries: usize,
        capacity: usize,
    },
    SourceLimit {
        original: Tuple,
        limit: u32,
    },
    NoFreePort {
        original: Tuple,
        reply: Tuple,
        in_use: usize,
        reserved: usize,
    },
}

impl Line {
    fn new(
        notice: &Notice,
        conntrack: &Conntrack,
        reserved: &ReservedPorts,
        now: Timestamp,
    ) -> Self {
        let (original, reply) = (notice.original, notice.reply);
        match notice.reason {
            DropReason::NoFreePort => {
                let (in_use, reserved) = ports::in_use(conntrack, reserved, &reply, now);
                Self::NoFreePort {
                    original,
                    reply,
                    in_use,
                    reserved,
                }
            }
            DropReason::SourceLimit => Self::SourceLimit {
                original,
                limit: conntrack.settings().per_source.unwrap_or_default(),
            },
            _ => Self::TableFull {
                original,
                entries: notice.entries,
                capacity: conntrack.capacity(),
            },
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The words that operators know and search for.
            Self::TableFull {
                original,
                entries,
                capacity,
            } => write!(
                f,
                "nf_conntrack: table full, dropping packet: {} has no room, {entries} of {capacity} entries are in use",
                ends(original)
            ),
            Self::SourceLimit { original, limit } => write!(
                f,
                "limit per source reached, dropping packet: {} would be more than the {limit} connections \
                 that one source may have",
                ends(original)
            ),
            Self::NoFreePort {
                original,
                reply,
                in_use,
                reserved,
            } => write!(
                f,
                "no free source port, dropping packet: {} goes to {} as {}, which has {in_use} ports in use \
                 towards it; {reserved} more are the node's own",
                ends(original),
                end(reply.source, reply.source_port, reply.protocol),
                std::net::IpAddr::from(reply.destination),
            ),
        }
    }
}

fn ends(tuple: &Tuple) -> String {
    format!(
        "{} {} to {}",
        tuple.protocol,
        end(tuple.source, tuple.source_port, tuple.protocol),
        end(tuple.destination, tuple.destination_port, tuple.protocol)
    )
}

fn end(address: dataplane::tuple::Address, port: u16, protocol: Protocol) -> String {
    let address = std::net::IpAddr::from(address);
    if protocol.is_icmp() {
        address.to_string()
    } else {
        std::net::SocketAddr::new(address, port).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::tuple::Address;

    fn tuple(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Tuple {
        Tuple {
            source: Address::from_v4(source),
            destination: Address::from_v4(destination),
            source_port: ports[0],
            destination_port: ports[1],
            protocol: Protocol::UDP,
        }
    }

    /// The lines name source and destination and how much is in use.
    #[test]
    fn lines() {
        let original = tuple([198, 51, 100, 10], [203, 0, 113, 1], [40_000, 53]);
        let reply = tuple([10, 244, 1, 10], [172, 18, 0, 2], [5353, 40_000]);
        let line = Line::NoFreePort {
            original,
            reply,
            in_use: 64_500,
            reserved: 12,
        };
        assert_eq!(
            line.to_string(),
            "no free source port, dropping packet: udp 198.51.100.10:40000 to 203.0.113.1:53 goes to \
             10.244.1.10:5353 as 172.18.0.2, which has 64500 ports in use towards it; 12 more are the node's own"
        );
        let line = Line::TableFull {
            original,
            entries: 1000,
            capacity: 1000,
        };
        assert_eq!(
            line.to_string(),
            "nf_conntrack: table full, dropping packet: udp 198.51.100.10:40000 to 203.0.113.1:53 has no room, \
             1000 of 1000 entries are in use"
        );
    }

    /// Ten lines in five seconds, then the number of those that were not written.
    #[test]
    fn limit() {
        let mut log = Log::default();
        let written = |log: &mut Log, seconds| {
            (0..20)
                .filter(|_| log.may_write(Timestamp::from_seconds(seconds)))
                .count()
        };
        assert_eq!(written(&mut log, 100), 10);
        assert_eq!(written(&mut log, 104), 0);
        assert_eq!(written(&mut log, 105), 10);
    }
}
