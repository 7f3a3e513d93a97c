//! The kernel's time, which nobody can stop.
//!
//! Our side is told the time at which the kernel had each packet, so that for both as long passes between any two. What
//! stays unknown is when within a system call, and within a tick, the kernel looked at its clock: on a busy machine that may
//! be long. Where a timeout of the kernel lies within what is unknown, either answer is right. So:
//!
//! - before each packet the clock is stepped past the end of a timeout that is near;
//! - when a timeout was met all the same, the case is [`unclear`](Clock::is_unclear). Only then may a difference be one
//!   of time, and it must show in each run of the case ([`crate::diff`]), where any other counts when it shows twice.

use crate::diff::case::Case;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Seconds: `nf_conntrack_{tcp,udp,icmp,sctp}` up to what a case may last, UDP streams, waiting fragments.
const TIMEOUTS: [u64; 8] = [2, 3, 10, 30, 60, 120, 180, 300];

/// Seconds that a client stays with an endpoint, in cases that are brief enough to meet the end of it.
const AFFINITY: u64 = 2;

/// More than a tick of any kernel, and more than a packet takes on a machine that is not busy.
const MARGIN: Duration = Duration::from_millis(25);

/// Reading the table may take so long: timeouts are compared by whole seconds.
const READING: Duration = Duration::from_secs(1);

/// When something may have happened: from, until.
type Window = (Instant, Instant);

/// When packets of a case were sent.
pub(super) struct Clock {
    timeouts: Vec<Duration>,
    /// By flow.
    sent: Vec<Vec<Window>>,
    has_short_affinity: bool,
    is_unclear: bool,
}

impl Clock {
    pub(super) fn of(case: &Case) -> Self {
        let is_short = |object: &serde_json::Value| {
            object["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] == AFFINITY
        };
        let objects = std::iter::once(&case.objects).chain(&case.changes);
        Self {
            timeouts: TIMEOUTS.map(Duration::from_secs).to_vec(),
            sent: vec![Vec::new(); case.flows.len()],
            has_short_affinity: objects.flatten().any(is_short),
            is_unclear: false,
        }
    }

    /// Whether a timeout may have passed for one side and not for the other.
    pub(super) fn is_unclear(&self) -> bool {
        self.is_unclear
    }

    /// Whether more than one packet of `flow` was sent.
    pub(super) fn has_begun(&self, flow: usize) -> bool {
        self.sent[flow].len() > 1
    }

    /// Waits until no timeout is about to pass that packets of `flow` began.
    pub(super) fn step_past_timeouts(&self, case: &Case, flow: usize) {
        while let Some(end) = self.near(case, flow, (Instant::now(), Instant::now() + MARGIN)) {
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
        }
    }

    /// A packet of `flow` was sent within `window`.
    pub(super) fn sent(&mut self, case: &Case, flow: usize, window: Window) {
        self.is_unclear |= self.near(case, flow, window).is_some();
        self.sent[flow].push(window);
    }

    /// The table was read within `window`.
    pub(super) fn read(&mut self, (from, until): Window) {
        self.is_unclear |= until - from > READING;
    }

    /// When all timeouts will be over that may pass within `window`; nothing when there is none.
    fn near(&self, case: &Case, flow: usize, (from, until): Window) -> Option<Instant> {
        let own = self.sent[flow].iter().flat_map(|sent| {
            let timeouts = self.timeouts.iter();
            timeouts.map(|timeout| (sent.0 + *timeout, sent.1 + *timeout))
        });
        let client = case.flows[flow].source;
        let of_client = self.of_client(case, client).map(|sent| {
            let timeout = Duration::from_secs(AFFINITY);
            (sent.0 + timeout, sent.1 + timeout)
        });
        let ends = own.chain(of_client);
        let near = ends.filter(|(first, last)| *first < until + MARGIN && from < *last + MARGIN);
        near.map(|(_, last)| last + MARGIN).max()
    }

    /// When `client` sent anything, if its affinity may end within the case.
    fn of_client(&self, case: &Case, client: IpAddr) -> impl Iterator<Item = Window> {
        let flows = case.flows.iter().zip(&self.sent);
        let flows = flows.filter(move |(flow, _)| self.has_short_affinity && flow.source == client);
        flows.flat_map(|(_, sent)| sent.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn case(affinity_seconds: u64) -> Case {
        let flow = |port: u16| {
            json!({ "from": "node", "protocol": 17, "source": "10.0.0.1", "sourcePort": port,
                "destination": "10.0.0.2" })
        };
        let affinity = json!({ "clientIP": { "timeoutSeconds": affinity_seconds } });
        let case = json!({ "schemaVersion": 1, "seed": 1, "node": "a", "links": [], "config": {},
            "objects": [{ "spec": { "sessionAffinityConfig": affinity } }],
            "flows": [flow(1), flow(2)], "steps": [] });
        serde_json::from_value(case).unwrap()
    }

    /// Whether the case is unclear after packets of these flows, sent from and until so many milliseconds.
    fn unclear(case: &Case, packets: &[(usize, u64, u64)]) -> bool {
        let (start, mut clock) = (Instant::now(), Clock::of(case));
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        for (flow, from, until) in packets {
            clock.sent(case, *flow, (at(*from), at(*until)));
        }
        clock.is_unclear()
    }

    #[test]
    fn only_a_timeout_within_what_is_unknown_makes_a_case_unclear() {
        let case = case(3600);
        assert!(!unclear(
            &case,
            &[(0, 0, 1), (0, 1900, 1901), (0, 2100, 2101)]
        ));
        assert!(unclear(&case, &[(0, 0, 1), (0, 2000, 2001)]));
        assert!(unclear(&case, &[(0, 0, 1), (0, 1500, 2200)]));
        assert!(unclear(&case, &[(0, 0, 400), (0, 2100, 2101)]));
        assert!(!unclear(&case, &[(0, 0, 1), (0, 5000, 7000)]));
        assert!(unclear(&case, &[(0, 0, 1), (0, 9000, 11_000)]));
    }

    #[test]
    fn a_client_that_stays_with_an_endpoint_for_two_seconds_counts_with_all_of_its_flows() {
        let packets = [(0, 0, 1), (1, 2000, 2001)];
        assert!(!unclear(&case(3600), &packets));
        assert!(unclear(&case(2), &packets));
    }

    #[test]
    fn a_table_that_was_read_for_seconds_is_unclear() {
        let (now, mut clock) = (Instant::now(), Clock::of(&case(2)));
        clock.read((now, now + Duration::from_millis(900)));
        assert!(!clock.is_unclear());
        clock.read((now, now + Duration::from_millis(1100)));
        assert!(clock.is_unclear());
    }
}
