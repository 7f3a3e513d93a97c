//! `penstock bench fastpath`: nanoseconds per packet of established flows, beside the limit of the same layout in the
//! same process; new flows per second; ports of nearly full destinations; memory per flow.
//!
//! Every figure is the median over rounds in which path and limit take turns; a round's is the median over chunks of
//! 256 packets, so that chunks in which another program had the processor do not count.

mod flows;
mod limit;
mod measures;
mod subject;

pub use measures::{Memory, NewFlows, Ports};

use dataplane::conntrack::Settings;
use dataplane::frame::Frame;
use dataplane::tuple::{Direction, Timestamp};
use dataplane::worker::Shared;
use fastrand::Rng;
use flows::Flow;
use limit::Limit;
use serde::Serialize;
use std::sync::Barrier;
use std::time::Duration;
use subject::{CHUNK, Subject};

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Size {
    /// Flows in the table, one set of rows each.
    pub flows: Vec<u32>,
    /// Rounds in which path and limit take turns.
    pub rounds: usize,
    /// Chunks of 256 packets in a round.
    pub chunks: usize,
}

impl Size {
    /// That of the documented figures: ten million flows at most, a minute, 4 GB of memory.
    pub fn full() -> Self {
        Self {
            flows: vec![1_000, 100_000, 1_000_000, 10_000_000],
            rounds: 7,
            chunks: 1000,
        }
    }

    /// A second: whether it works, not how fast it is.
    pub fn quick() -> Self {
        Self {
            flows: vec![1_000, 100_000],
            rounds: 2,
            chunks: 20,
        }
    }
}

/// All figures.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this shape.
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    /// `fastpath`.
    pub benchmark: &'static str,
    /// Established flows of UDP over IPv4.
    pub rows: Vec<Row>,
    /// First packets of flows.
    pub new_flows: Vec<NewFlows>,
    /// Ports for masquerading towards one destination.
    pub ports: Vec<Ports>,
    /// Memory.
    pub memory: Memory,
}

/// Packets of established flows.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Flows in the table; packets are of any, in any direction.
    pub flows: u32,
    /// Threads over one table.
    pub threads: usize,
    /// Frames that a worker is given at once.
    pub batch: usize,
    /// Of all threads together: two that do not hinder one another halve it.
    pub ns_per_packet: f64,
    /// The same of the bare loop.
    pub limit_ns_per_packet: f64,
    /// The former by the latter.
    pub ratio: f64,
}

/// Measures all. `progress` hears what comes next.
pub fn run(size: &Size, mut progress: impl FnMut(&str)) -> Report {
    let mut rows = Vec::new();
    for &flows in &size.flows {
        progress(&format!("{flows} flows"));
        rows.extend(established(size, flows));
    }
    let most = size.flows.iter().max().copied().unwrap_or(1000);
    progress("new flows");
    let new_flows =
        [false, true].map(|masquerade| measures::new_flows(most.min(1_000_000), masquerade));
    progress("ports");
    let ports = [0.5, 0.9, 0.99, 0.999].map(measures::ports);
    progress("memory");
    Report {
        schema_version: 1,
        benchmark: "fastpath",
        rows,
        new_flows: new_flows.into(),
        ports: ports.into(),
        memory: measures::memory(most.min(1_000_000)),
    }
}

/// Time of the packets that are measured: late enough that all flows are assured.
const MEASURED_AT: Timestamp = Timestamp::from_seconds(110);

fn established(size: &Size, flows: u32) -> Vec<Row> {
    let shared = subject::shared(Settings::kernel(flows as usize), false, 1);
    establish(&shared, flows);
    let limit = Limit::new(flows, 1);
    let mut rows = Vec::new();
    for threads in [1, 2] {
        for batch in [1, 16, 64] {
            let (ours, bare) = (0..size.rounds)
                .map(|round| {
                    let seed = round as u64;
                    let ours = together(threads, |thread| {
                        path_chunks(&shared, flows, batch, (size.chunks, seed * 64 + thread))
                    });
                    let bare = together(threads, |thread| {
                        limit_chunks(&limit, flows, batch, (size.chunks, seed * 64 + thread))
                    });
                    (ours, bare)
                })
                .unzip::<f64, f64, Vec<f64>, Vec<f64>>();
            let (ns_per_packet, limit_ns_per_packet) = (median(ours), median(bare));
            let ratio = ns_per_packet / limit_ns_per_packet;
            rows.push(Row {
                flows,
                threads,
                batch,
                ns_per_packet,
                limit_ns_per_packet,
                ratio,
            });
        }
    }
    rows
}

/// Makes the flows and lets both sides speak until they are assured.
fn establish(shared: &Shared, flows: u32) {
    let mut subject = Subject::new(shared, 64, 1);
    for (direction, second) in [
        (Direction::Original, 100),
        (Direction::Reply, 101),
        (Direction::Original, 105),
    ] {
        let mut packets = (0..flows)
            .map(|number| (Flow(number), direction))
            .peekable();
        while packets.peek().is_some() {
            let now = Timestamp::from_seconds(second);
            subject.handle(packets.by_ref().take(CHUNK), now);
        }
    }
}

/// Runs the same on several threads that begin together; nanoseconds per packet of all together.
fn together(threads: usize, chunks: impl Fn(u64) -> Vec<Duration> + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let run = |thread: usize| {
        barrier.wait();
        median(
            chunks(thread as u64)
                .into_iter()
                .map(|chunk| chunk.as_nanos() as f64 / CHUNK as f64)
                .collect(),
        )
    };
    let each: Vec<f64> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|thread| scope.spawn(move || run(thread)))
            .collect();
        let first = run(0);
        let others = others.into_iter().filter_map(|other| other.join().ok());
        std::iter::once(first).chain(others).collect()
    });
    1.0 / each
        .iter()
        .map(|nanoseconds| 1.0 / nanoseconds)
        .sum::<f64>()
}

fn path_chunks(
    shared: &Shared,
    flows: u32,
    batch: usize,
    (chunks, seed): (usize, u64),
) -> Vec<Duration> {
    let mut subject = Subject::new(shared, batch, seed);
    let mut packets = random_packets(flows, seed);
    (0..chunks)
        .map(|_| subject.handle(packets.by_ref().take(CHUNK), MEASURED_AT))
        .collect()
}

fn limit_chunks(
    limit: &Limit,
    flows: u32,
    batch: usize,
    (chunks, seed): (usize, u64),
) -> Vec<Duration> {
    let mut frames: Vec<Frame> = (0..CHUNK).map(|_| Frame::from_packet(&[0; 64])).collect();
    let mut packets = random_packets(flows, seed);
    (0..chunks)
        .map(|_| {
            limit.handle(
                packets.by_ref().take(CHUNK),
                &mut frames,
                batch,
                MEASURED_AT.0,
            )
        })
        .collect()
}

/// Packets of flows in any order, half of them answers.
fn random_packets(flows: u32, seed: u64) -> impl Iterator<Item = (Flow, Direction)> {
    let mut rng = Rng::with_seed(seed);
    std::iter::repeat_with(move || {
        let direction = if rng.bool() {
            Direction::Original
        } else {
            Direction::Reply
        };
        (Flow(rng.u32(..flows)), direction)
    })
}

/// The value in the middle; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
