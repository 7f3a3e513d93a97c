//! What is measured besides the rows of UDP over IPv4: other traffic, churn, first packets, ports of nearly full destinations,
//! memory.

use super::flows::{Family, Flow, Traffic};
use super::limit::{self, Limit};
use super::subject::{self, CHUNK, Subject, Wanted, of_flow, opening};
use super::{
    CHUNK_TIME, Calm, Size, Turn, Turns, Workload, establish, limit_chunks, median, random_packets,
    rounds, start_of, together,
};
use dataplane::conntrack::{Confirmed, Conntrack, Headers, Settings, Statistics, Transport};
use dataplane::ports::{self, ReservedPorts};
use dataplane::tuple::{Address, Direction, Protocol, Timestamp, Tuple};
use dataplane::worker::Shared;
use fastrand::Rng;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Packets of established flows by kind, on one thread, in batches of 64.
#[derive(Clone, Debug, Serialize)]
pub struct Kind {
    /// Of which kind.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Flows in the table.
    pub flows: u32,
    /// Of one packet.
    pub ns_per_packet: f64,
    /// The same of the bare loop over packets of this kind.
    pub limit_ns_per_packet: f64,
    /// The former by the latter, in the same round.
    pub ratio: f64,
    /// Least and most of the rounds' ratios.
    pub ratio_spread: [f64; 2],
    /// By that of UDP over IPv4, which was measured before.
    pub ratio_to_udp_ipv4: f64,
}

pub(super) fn kinds(size: &Size, flows: u32, calm: &mut Calm) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for traffic in std::iter::once(Traffic::UDP_V4).chain(Traffic::OTHERS) {
        let mut kind = match traffic.family {
            Family::Ipv4 => kind::<{ limit::V4 }>(size, traffic, flows, calm),
            Family::Ipv6 => kind::<{ limit::V6 }>(size, traffic, flows, calm),
        };
        if let Some(udp_ipv4) = kinds.first() {
            kind.ratio_to_udp_ipv4 = kind.ns_per_packet / udp_ipv4.ns_per_packet;
        }
        kinds.push(kind);
    }
    kinds
}

fn kind<const WORDS: usize>(size: &Size, traffic: Traffic, flows: u32, calm: &mut Calm) -> Kind {
    let settings = Settings::kernel(flows as usize);
    let shared = subject::shared(settings, traffic, false, 1);
    establish(&shared, traffic, flows);
    let limit = Limit::<WORDS>::new(traffic, flows, 1);
    let taken = rounds(size.rounds, calm, |round| {
        let workload = Workload {
            flows,
            batch: 64,
            chunks: size.chunks,
            seed: round,
        };
        let start = start_of(round, size.chunks);
        let ours = together(1, |_| established_chunks(&shared, traffic, workload, start));
        let bare = together(1, |_| limit_chunks(&limit, workload));
        Turn { ours, bare }
    });
    let turns = Turns::of(taken.into_iter());
    Kind {
        traffic,
        flows,
        ns_per_packet: turns.ns_per_packet,
        limit_ns_per_packet: turns.limit_ns_per_packet,
        ratio: turns.ratio,
        ratio_spread: turns.ratio_spread,
        ratio_to_udp_ipv4: 1.0,
    }
}

/// The time of each chunk of packets; the first comes after `start`.
pub(super) fn established_chunks(
    shared: &Shared,
    traffic: Traffic,
    workload: Workload,
    start: Timestamp,
) -> Vec<Duration> {
    let mut subject = Subject::new(shared, traffic, workload.batch, workload.seed);
    let mut packets = workload
        .packets()
        .map(|(flow, direction)| of_flow(flow, direction));
    let mut now = start;
    (0..workload.chunks)
        .map(|_| {
            now = now.after(CHUNK_TIME);
            subject.handle(packets.by_ref().take(CHUNK), now)
        })
        .collect()
}

/// Established packets while flows come and go.
#[derive(Clone, Debug, Serialize)]
pub struct Churn {
    /// Established flows.
    pub flows: u32,
    /// One packet in so many opens a flow. As many end, a chunk of packets later, and the sweep goes on beside it.
    pub packets_per_new_flow: usize,
    /// Threads over one table.
    pub threads: usize,
    /// Of all threads together.
    pub ns_per_packet: f64,
    /// New flows per second of all threads together.
    pub new_flows_per_second: f64,
    /// How many times as fast as one thread.
    pub scaling: f64,
}

/// New flows of a chunk, few and many. At thirteen million packets per second of all threads one of a chunk makes 50,000 per
/// second.
pub(super) const NEW: [usize; 2] = [1, 4];

/// Of so many new flows in each chunk, by one thread and by two.
pub(super) fn churn(size: &Size, flows: u32, new: usize, calm: &mut Calm) -> [Churn; 2] {
    let room = flows as usize * 5 / 4 + 100_000;
    let shared = subject::shared(Settings::kernel(room), Traffic::UDP_V4, false, 5);
    establish(&shared, Traffic::UDP_V4, flows);
    let taken = rounds(size.rounds, calm, |round| {
        [1, 2].map(|threads| {
            // No two have flows in common.
            let seed = |thread| round * 4 + threads as u64 + thread;
            let start = start_of(2 * round + threads as u64 - 1, size.chunks);
            together(threads, |thread| {
                churn_chunks(&shared, flows, new, size.chunks, seed(thread), start)
            })
        })
    });
    assert_churned(&shared.conntrack, flows, new, size);
    let of_rounds = |figure: &dyn Fn(&[f64; 2]) -> f64| median(taken.iter().map(figure).collect());
    let packets_per_new_flow = CHUNK / new;
    [0, 1].map(|nth| {
        let ns_per_packet = of_rounds(&|round| round[nth]);
        Churn {
            flows,
            packets_per_new_flow,
            threads: nth + 1,
            ns_per_packet,
            new_flows_per_second: 1e9 / ns_per_packet / packets_per_new_flow as f64,
            scaling: of_rounds(&|round| round[0] / round[nth]),
        }
    })
}

/// # Panics
/// When one of a thousand flows did not come or did not go: then nothing of worth was measured.
fn assert_churned(conntrack: &Conntrack, flows: u32, new: usize, size: &Size) {
    let counted: Statistics = conntrack.statistics().into_iter().sum();
    let last = size.rounds * (1 + 2) * new;
    let all = last * size.chunks;
    let inserted = counted.inserted as usize - flows as usize;
    assert!(inserted * 1000 >= all * 999, "{inserted} of {all} came");
    // The last ones of each thread stay.
    let left = conntrack.len() - flows as usize;
    assert!(left <= last + all / 1000, "{left} of {all} stayed");
}

fn churn_chunks(
    shared: &Shared,
    flows: u32,
    new: usize,
    chunks: usize,
    seed: u64,
    start: Timestamp,
) -> Vec<Duration> {
    let mut subject = Subject::new(shared, Traffic::UDP_V4, 64, seed);
    let mut rng = Rng::with_seed(seed);
    let mut established =
        random_packets(flows, seed).map(|(flow, direction)| of_flow(flow, direction));
    let mut now = start;
    // Flows of the chunk before.
    let mut before = Vec::new();
    let mut one = || {
        now = now.after(CHUNK_TIME);
        let coming = || Flow(rng.u32(1 << 31..3 << 30));
        let coming: Vec<Flow> = std::iter::repeat_with(coming).take(new).collect();
        let mut packets: Vec<Wanted> = established.by_ref().take(CHUNK - new).collect();
        let first = |flow: &Flow| of_flow(*flow, Direction::Original);
        packets.extend(coming.iter().map(first));
        let handled = subject.handle(packets.into_iter(), now);
        let start = Instant::now();
        for flow in std::mem::replace(&mut before, coming) {
            let tuple = flow.ends(Direction::Original).tuple(Traffic::UDP_V4);
            if let Some(found) = shared.conntrack.find(&tuple, now) {
                shared.conntrack.end(found.entry(), now);
            }
        }
        shared.conntrack.expire(now, 4 * new);
        handled + start.elapsed()
    };
    (0..chunks).map(|_| one()).collect()
}

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
pub(super) fn new_flows(flows: u32, masquerade: bool, calm: &mut Calm) -> NewFlows {
    const CHUNKS_OF_A_ROUND: usize = 64;
    let shared = for_coming(flows, masquerade);
    let mut coming = Coming::new(&shared, flows);
    let mut round = || {
        let mut round = Lives::default();
        for _ in 0..CHUNKS_OF_A_ROUND {
            let Lives {
                first_packets,
                sweeps,
                expired,
            } = coming.chunk();
            round.first_packets += first_packets;
            round.sweeps += sweeps;
            round.expired += expired;
        }
        round
    };
    let in_a_lifetime = flows as usize / (CHUNK * CHUNKS_OF_A_ROUND);
    // The first lifetimes fill the table.
    for _ in 0..=2 * in_a_lifetime {
        round();
    }
    let rounds = (0..2 * in_a_lifetime.max(1)).map(|_| {
        calm.wait();
        round()
    });
    let rounds: Vec<Lives> = rounds.collect();
    let packets = (CHUNK * CHUNKS_OF_A_ROUND) as f64;
    let first_packets = rounds
        .iter()
        .map(|round| round.first_packets.as_nanos() as f64 / packets);
    let ns_per_first_packet = median(first_packets.collect());
    // One round may meet many flows to remove, and the next none: only of all together is it known what one takes.
    let sweeps: Duration = rounds.iter().map(|round| round.sweeps).sum();
    let expired: usize = rounds.iter().map(|round| round.expired).sum();
    let ns_per_expired_flow = sweeps.as_nanos() as f64 / expired.max(1) as f64;
    NewFlows {
        flows,
        masquerade,
        flows_per_second: 1e9 / (ns_per_first_packet + ns_per_expired_flow),
        ns_per_first_packet,
        ns_per_expired_flow,
    }
}

/// What workers share where `flows` are alive at once, and others come. The sweep comes by once in a lifetime: at the most two
/// lifetimes' flows are there at once.
pub(super) fn for_coming(flows: u32, masquerade: bool) -> Shared {
    let settings = Settings::kernel(flows as usize * 2);
    subject::shared(settings, Traffic::UDP_V4, masquerade, 2)
}

/// Flows that come, and go because nobody answers.
pub(super) struct Coming<'a> {
    shared: &'a Shared,
    subject: Subject<'a>,
    step: Duration,
    now: Timestamp,
    next: u32,
}

impl<'a> Coming<'a> {
    pub(super) fn new(shared: &'a Shared, flows: u32) -> Self {
        Self {
            shared,
            subject: Subject::new(shared, Traffic::UDP_V4, 64, 2),
            step: LIFETIME * CHUNK as u32 / flows,
            now: Timestamp::from_seconds(100),
            next: 0,
        }
    }

    /// A chunk of first packets, and the sweep meanwhile.
    pub(super) fn chunk(&mut self) -> Lives {
        let packets = (self.next..).map(|number| opening(Flow(number), Direction::Original));
        let first_packets = self.subject.handle(packets.take(CHUNK), self.now);
        self.next += CHUNK as u32;
        self.now = self.now.after(self.step);
        let start = Instant::now();
        let expired = self.shared.conntrack.expire(self.now, 2 * CHUNK);
        Lives {
            first_packets,
            sweeps: start.elapsed(),
            expired,
        }
    }
}

/// Flows that came, and flows that went.
#[derive(Default)]
pub(super) struct Lives {
    first_packets: Duration,
    sweeps: Duration,
    pub(super) expired: usize,
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
    const TRIES: usize = 20_000;
    // Reading the clock takes as long as what is measured: it is read around so many.
    const AT_ONCE: usize = 8;
    let conntrack = Conntrack::new(Settings::kernel(2 * PORTS), [5, 6, 7, 8]);
    let reserved = ReservedPorts::default();
    let mut rng = Rng::with_seed(3);
    let now = Timestamp::from_seconds(100);
    let mut live = Vec::new();
    let mut times = Vec::new();
    let mut found = 0;
    let fill = (PORTS as f64 * taken) as usize;
    for number in 0..fill + TRIES {
        let is_measured = number >= fill;
        if is_measured {
            let gone = live.swap_remove(rng.usize(..live.len()));
            conntrack.end(gone, now);
        }
        let headers = client(number as u32);
        let Ok(mut tentative) = conntrack.open(&headers, now) else {
            continue;
        };
        tentative.reply.destination = Address::from_v4([192, 168, 0, 1]);
        let reply = tentative.reply;
        let start = Instant::now();
        let mut lease = Ok(());
        for _ in 0..AT_ONCE {
            tentative.reply = reply;
            let reply = &mut tentative.reply;
            lease = ports::lease(&conntrack, &reserved, reply, now, &mut rng);
        }
        let elapsed = start.elapsed().as_nanos() as f64 / AT_ONCE as f64;
        if let (Ok(()), Ok(confirmed)) = (lease, conntrack.confirm(&tentative, now)) {
            let (Confirmed::Inserted(entry) | Confirmed::Adopted(entry)) = confirmed;
            live.push(entry.entry());
            found += usize::from(is_measured);
        }
        if is_measured {
            times.push(elapsed);
        }
    }
    Ports {
        taken,
        tried: TRIES,
        found,
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
    let settings = Settings::kernel(flows as usize);
    let shared = subject::shared(settings, Traffic::UDP_V4, false, 4);
    establish(&shared, Traffic::UDP_V4, flows);
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
