//! What is measured without a limit beside it: first packets, ports of nearly full destinations, memory.

use super::flows::Flow;
use super::subject::{self, CHUNK, Subject};
use super::{establish, median};
use dataplane::conntrack::{Conntrack, Headers, Settings, Transport};
use dataplane::ports::{self, Choice, ReservedPorts};
use dataplane::tuple::{Address, Direction, Protocol, Timestamp, Tuple};
use fastrand::Rng;
use serde::Serialize;
use std::time::{Duration, Instant};

/// First packets: find the Service, choose, lease a port, enter into the table; and the sweep that removes the flow
/// when its time is over.
#[derive(Clone, Debug, Serialize)]
pub struct NewFlows {
    /// Flows in the table while more come and as many expire.
    pub flows: u32,
    /// Whether each is masqueraded too.
    pub masquerade: bool,
    /// On one thread.
    pub flows_per_second: f64,
    /// Sweeping apart.
    pub ns_per_first_packet: f64,
    /// Of the sweep.
    pub ns_per_expired_flow: f64,
}

/// Lifetime of a UDP flow without an answer.
const LIFETIME: Duration = Duration::from_secs(30);

/// Flows come at a rate at which `flows` are alive at once.
pub(super) fn new_flows(flows: u32, masquerade: bool) -> NewFlows {
    let shared = subject::shared(Settings::kernel(flows as usize * 5 / 4), masquerade, 2);
    let mut subject = Subject::new(&shared, 64, 2);
    let step = LIFETIME * CHUNK as u32 / flows;
    let mut now = Timestamp::from_seconds(100);
    let (mut first_packets, mut sweeps) = (Vec::new(), Vec::new());
    let (mut sweep_time, mut expired) = (Duration::ZERO, 0);
    let mut next = 0;
    for chunk in 0..4 * flows as usize / CHUNK {
        let packets = (next..).map(|number| (Flow(number), Direction::Original));
        let elapsed = subject.handle(packets.take(CHUNK), now);
        next += CHUNK as u32;
        now = now.after(step);
        let start = Instant::now();
        expired += shared.conntrack.expire(now, CHUNK * 5 / 4);
        sweep_time += start.elapsed();
        // The first lifetimes fill the table.
        if chunk > 2 * flows as usize / CHUNK {
            first_packets.push(elapsed.as_nanos() as f64 / CHUNK as f64);
        }
        if expired >= CHUNK {
            sweeps.push(sweep_time.as_nanos() as f64 / expired as f64);
            (sweep_time, expired) = (Duration::ZERO, 0);
        }
    }
    let (ns_per_first_packet, ns_per_expired_flow) = (median(first_packets), median(sweeps));
    NewFlows {
        flows,
        masquerade,
        flows_per_second: 1e9 / (ns_per_first_packet + ns_per_expired_flow),
        ns_per_first_packet,
        ns_per_expired_flow,
    }
}

/// Allocation of a port towards one destination.
#[derive(Clone, Debug, Serialize)]
pub struct Ports {
    /// Share of the ports that are in use.
    pub taken: f64,
    /// Allocations that were tried while a port was free.
    pub tried: usize,
    /// Those that found one.
    pub found: usize,
    /// Of one allocation, the entry into the table apart.
    pub ns_per_allocation: f64,
}

/// Ports that masquerading of a client's port above 1023 may use.
const PORTS: usize = 65_536 - 1024;

/// Fills the table up to `taken`; then leases, enters, and ends a random one, again and again.
pub(super) fn ports(taken: f64) -> Ports {
    const TRIES: usize = 2000;
    let conntrack = Conntrack::new(Settings::kernel(2 * PORTS), [5, 6, 7, 8]);
    let reserved = ReservedPorts::default();
    let mut rng = Rng::with_seed(3);
    let now = Timestamp::from_seconds(100);
    let mut live = Vec::new();
    let mut times = Vec::new();
    let fill = (PORTS as f64 * taken) as usize;
    for number in 0..fill + TRIES {
        let is_measured = number >= fill;
        if is_measured {
            let found = live.swap_remove(rng.usize(..live.len()));
            conntrack.end(&found, now);
        }
        let headers = client(number as u32);
        let Ok(mut tentative) = conntrack.open(&headers, now) else {
            continue;
        };
        tentative.reply.destination = Address::from_v4([192, 168, 0, 1]);
        let start = Instant::now();
        let lease = ports::lease(
            &conntrack,
            &reserved,
            &mut tentative.reply,
            Choice::Random,
            (now, &mut rng),
        );
        let elapsed = start.elapsed().as_nanos() as f64;
        if let (Ok(()), Ok(confirmed)) = (lease, conntrack.confirm(tentative, now)) {
            use dataplane::conntrack::Confirmed::{Adopted, Inserted};
            let (Inserted(found) | Adopted(found)) = confirmed;
            live.push(found);
            if is_measured {
                times.push(elapsed);
            }
        }
    }
    Ports {
        taken,
        tried: TRIES,
        found: times.len(),
        ns_per_allocation: median(times),
    }
}

/// The first packet of a client to the one destination.
fn client(number: u32) -> Headers {
    let tuple = Tuple {
        source: Address::from_v4((0x0a00_0000 + (number >> 14)).to_be_bytes()),
        destination: Address::from_v4([10, 128, 0, 1]),
        source_port: 1024 + (number & 0x3fff) as u16,
        destination_port: 8080,
        protocol: Protocol::UDP,
    };
    Headers {
        tuple,
        transport: Transport::Udp,
        length: 46,
    }
}

/// Memory of a table that is full.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// Flows, translated, seen in both directions.
    pub flows: u32,
    /// By the table's own account: index and entries.
    pub bytes_per_flow: f64,
    /// By what the process grew while the table was made and filled.
    pub resident_bytes_per_flow: f64,
}

pub(super) fn memory(flows: u32) -> Memory {
    let before = resident_bytes();
    let shared = subject::shared(Settings::kernel(flows as usize), false, 4);
    establish(&shared, flows);
    let grown = resident_bytes().saturating_sub(before);
    Memory {
        flows,
        bytes_per_flow: shared.conntrack.bytes() as f64 / f64::from(flows),
        resident_bytes_per_flow: grown as f64 / f64::from(flows),
    }
}

/// Of this process (`VmRSS` of /proc/self/status); 0 when the system does not say.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| {
        line.strip_prefix("VmRSS:")?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    });
    kilobytes.unwrap_or(0_usize) * 1024
}
