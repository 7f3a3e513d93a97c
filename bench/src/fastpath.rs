//! `penstock bench fastpath`: nanoseconds per packet of established flows, beside the limit of the same layout in the
//! same process; new flows per second; ports of nearly full destinations; memory per flow.
//!
//! Every figure is the median over rounds in which path and limit take turns; a round's is the median over chunks of
//! 256 packets, so that chunks in which another program had the processor do not count. Rounds are short and many: what
//! the machine does beside changes within a second, and a ratio of the two must not be of two states of it.

mod calm;
mod flows;
mod limit;
mod measures;
mod subject;
mod tables;

use calm::Calm;
pub use calm::Waited;
pub(crate) use flows::{Ends, Flow, MASQUERADED, Stage};
pub use flows::{Family, Traffic, Transport};
pub use measures::{Churn, Kind, Memory, NewFlows, Ports};
pub(crate) use subject::{CHUNK, Subject, Wanted, of_flow, shared};
pub use tables::Table;

use dataplane::conntrack::Settings;
use dataplane::frame::Frame;
use dataplane::tuple::{Direction, Timestamp};
use dataplane::worker::Shared;
use fastrand::Rng;
use limit::Limit;
use serde::Serialize;
use std::sync::Barrier;
use std::time::Duration;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Size {
    /// Flows in the table, one set of rows each.
    pub flows: Vec<u32>,
    /// Rounds in which path and limit take turns.
    pub rounds: usize,
    /// Chunks of 256 packets in a round.
    pub chunks: usize,
    /// How long to wait, in all, for others to leave the processor.
    pub patience: Duration,
}

impl Size {
    /// That of the documented figures: ten million flows at most, two minutes, 4 GB of memory.
    pub fn full() -> Self {
        Self {
            flows: vec![1_000, 100_000, 1_000_000, 10_000_000],
            rounds: 31,
            chunks: 250,
            patience: Duration::from_secs(120),
        }
    }

    /// A second: whether it works, not how fast it is.
    pub fn quick() -> Self {
        Self {
            flows: vec![1_000, 100_000],
            rounds: 2,
            chunks: 20,
            patience: Duration::ZERO,
        }
    }

    fn most(&self) -> u32 {
        self.flows.iter().max().copied().unwrap_or(1000)
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
    /// Other protocols and the other family.
    pub kinds: Vec<Kind>,
    /// Established flows while others come and go.
    pub churn: Vec<Churn>,
    /// The table alone, beside maps of the standard kind.
    pub tables: Vec<Table>,
    /// First packets of flows.
    pub new_flows: Vec<NewFlows>,
    /// Ports for masquerading towards one destination.
    pub ports: Vec<Ports>,
    /// Memory.
    pub memory: Memory,
    /// Whether the processor was ours alone.
    pub waited: Waited,
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
    /// The former by the latter, in the same round.
    pub ratio: f64,
    /// Least and most of the rounds' ratios.
    pub ratio_spread: [f64; 2],
    /// How many times as fast as one thread.
    pub scaling: f64,
}

/// Measures all. `progress` hears what comes next.
pub fn run(size: &Size, mut progress: impl FnMut(&str)) -> Report {
    let mut rows = Vec::new();
    let mut calm = Calm::new(size.patience);
    for &flows in &size.flows {
        progress(&format!("{flows} flows"));
        rows.extend(established(size, flows, &mut calm));
    }
    let many = size.most().min(1_000_000);
    progress("memory");
    let memory = measures::memory(many);
    progress("TCP, IPv6");
    let kinds = measures::kinds(size, many, &mut calm);
    progress("churn");
    let churn = measures::churn(size, many, &mut calm);
    progress("other tables");
    let tables = tables::tables(size, many, &mut calm);
    progress("new flows");
    let new_flows =
        [false, true].map(|masquerade| measures::new_flows(many, masquerade, &mut calm));
    progress("ports");
    let ports = [0.5, 0.9, 0.99, 0.999].map(measures::ports);
    Report {
        schema_version: 1,
        benchmark: "fastpath",
        rows,
        kinds,
        churn,
        tables,
        new_flows: new_flows.into(),
        ports: ports.into(),
        memory,
        waited: calm.waited(),
    }
}

/// Time of the packets that are measured: late enough that all flows are assured.
const MEASURED_AT: Timestamp = Timestamp::from_seconds(110);

fn established(size: &Size, flows: u32, calm: &mut Calm) -> Vec<Row> {
    let settings = Settings::kernel(flows as usize);
    let shared = shared(settings, (Traffic::UDP_V4, false), 1);
    establish(&shared, Traffic::UDP_V4, flows);
    let limit = Limit::<{ limit::V4 }>::new(Traffic::UDP_V4, flows, 1);
    let mut rows: Vec<Row> = Vec::new();
    for threads in [1, 2] {
        for batch in [1, 16, 64] {
            let turns = Turns::take(size.rounds, calm, |round| {
                let chunks = |thread| (batch, size.chunks, round * 64 + thread);
                let ours = together(threads, |thread| {
                    measures::established_chunks(&shared, Traffic::UDP_V4, flows, chunks(thread))
                });
                let bare = together(threads, |thread| {
                    limit_chunks(&limit, flows, chunks(thread))
                });
                (ours, bare)
            });
            let alone = rows.iter().find(|row| row.batch == batch);
            let scaling = alone.map_or(1.0, |alone| alone.ns_per_packet / turns.ns_per_packet);
            rows.push(Row {
                flows,
                threads,
                batch,
                ns_per_packet: turns.ns_per_packet,
                limit_ns_per_packet: turns.limit_ns_per_packet,
                ratio: turns.ratio,
                ratio_spread: turns.ratio_spread,
                scaling,
            });
        }
    }
    rows
}

/// Makes the flows and lets both sides speak until they are assured.
pub(crate) fn establish(shared: &Shared, traffic: Traffic, flows: u32) {
    let mut subject = Subject::new(shared, traffic, 64, 1);
    for (direction, stage, second) in [
        (Direction::Original, Stage::Opening, 100),
        (Direction::Reply, Stage::Opening, 101),
        (Direction::Original, Stage::Open, 105),
    ] {
        let mut packets = (0..flows)
            .map(|number| (Flow(number).ends(direction), direction, stage))
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

fn limit_chunks<const WORDS: usize>(
    limit: &Limit<WORDS>,
    flows: u32,
    (batch, chunks, seed): (usize, usize, u64),
) -> Vec<Duration> {
    let mut frames: Vec<Frame> = (0..CHUNK).map(|_| Frame::from_packet(&[0; 64])).collect();
    let mut packets = random_packets(flows, seed);
    (0..chunks as u64)
        .map(|chunk| {
            let packets = packets.by_ref().take(CHUNK);
            limit.handle(packets, &mut frames, batch, MEASURED_AT.0 + chunk)
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

/// What rounds found in which path and limit took turns.
struct Turns {
    ns_per_packet: f64,
    limit_ns_per_packet: f64,
    ratio: f64,
    ratio_spread: [f64; 2],
}

impl Turns {
    /// `of_round` measures path and limit.
    fn take(rounds: usize, calm: &mut Calm, of_round: impl Fn(u64) -> (f64, f64)) -> Self {
        let taken = (0..rounds as u64).map(|round| {
            calm.wait();
            of_round(round)
        });
        let (ours, bare): (Vec<f64>, Vec<f64>) = taken.unzip();
        let ratios = ours.iter().zip(&bare).map(|(path, limit)| path / limit);
        let ratios: Vec<f64> = ratios.collect();
        let least = ratios.iter().copied().fold(f64::MAX, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        Self {
            ns_per_packet: median(ours),
            limit_ns_per_packet: median(bare),
            ratio: median(ratios),
            ratio_spread: [least, most],
        }
    }
}

/// The value in the middle; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
