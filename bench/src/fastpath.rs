//! `penstock bench fastpath`: nanoseconds per packet of established flows, beside the limit of the same layout in the
//! same process; new flows per second; ports of nearly full destinations; memory per flow.
//!
//! Every figure is the median over rounds in which all that is compared takes turns; a round's is the mean over its chunks
//! of 256 packets but the first ones, so that whatever takes time counts. Rounds are short and many: what the machine does
//! beside changes within a second, and a ratio of two must not be of two states of it. Between chunks a thread prepares the
//! next packets, which is not counted.

mod calm;
mod counted;
mod flows;
mod limit;
mod measures;
mod subject;
mod tables;

use calm::Calm;
pub use calm::Waited;
pub use counted::Counted;
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
use std::time::{Duration, Instant};

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
    /// How many times as fast as one thread, in the same round.
    pub scaling: f64,
    /// The same of the bare loop.
    pub limit_scaling: f64,
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
    let churn = measures::NEW.map(|new| measures::churn(size, many, new, &mut calm));
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
        churn: churn.concat(),
        tables,
        new_flows: new_flows.into(),
        ports: ports.into(),
        memory,
        waited: calm.waited(),
    }
}

/// Time of the first packets that are measured: late enough that all flows are assured.
const MEASURED_AT: Timestamp = Timestamp::from_seconds(110);

/// About the time that a chunk takes, so that deadlines move as they do in life.
const CHUNK_TIME: Duration = Duration::from_micros(20);

/// When a turn of so many chunks begins, so many of which were before it: time goes on from one to the next.
fn start_of(turn: u64, chunks: usize) -> Timestamp {
    MEASURED_AT.after(CHUNK_TIME * (turn * chunks as u64) as u32)
}

fn established(size: &Size, flows: u32, calm: &mut Calm) -> Vec<Row> {
    let settings = Settings::kernel(flows as usize);
    let shared = shared(settings, Traffic::UDP_V4, false, 1);
    establish(&shared, Traffic::UDP_V4, flows);
    let limit = Limit::<{ limit::V4 }>::new(Traffic::UDP_V4, flows, 1);
    (0..)
        .zip([1, 16, 64])
        .flat_map(|(nth, batch)| {
            let round = |round: u64| {
                [1, 2].map(|threads| {
                    let turn = (nth * size.rounds as u64 + round) * 2 + threads as u64 - 1;
                    let start = start_of(turn, size.chunks);
                    let workload = |thread| Workload {
                        flows,
                        batch,
                        chunks: size.chunks,
                        seed: round * 64 + thread,
                    };
                    let ours = together(threads, |thread| {
                        let workload = workload(thread);
                        measures::established_chunks(&shared, Traffic::UDP_V4, workload, start)
                    });
                    let bare = together(threads, |thread| limit_chunks(&limit, workload(thread)));
                    Turn { ours, bare }
                })
            };
            rows_of(flows, batch, &rounds(size.rounds, calm, round))
        })
        .collect()
}

/// One row for one thread, one for two, which took turns.
fn rows_of(flows: u32, batch: usize, rounds: &[[Turn; 2]]) -> [Row; 2] {
    let by_one = |of: fn(&Turn) -> f64, nth: usize| {
        median(
            rounds
                .iter()
                .map(|round| of(&round[0]) / of(&round[nth]))
                .collect(),
        )
    };
    [0, 1].map(|nth| {
        let turns = Turns::of(rounds.iter().map(|round| round[nth]));
        Row {
            flows,
            threads: nth + 1,
            batch,
            ns_per_packet: turns.ns_per_packet,
            limit_ns_per_packet: turns.limit_ns_per_packet,
            ratio: turns.ratio,
            ratio_spread: turns.ratio_spread,
            scaling: by_one(|turn| turn.ours, nth),
            limit_scaling: by_one(|turn| turn.bare, nth),
        }
    })
}

/// Makes the flows and lets both sides speak until they are assured. What was said last is as long ago as it is in life, so
/// that as many ends are to be put off.
pub(crate) fn establish(shared: &Shared, traffic: Traffic, flows: u32) {
    let mut subject = Subject::new(shared, traffic, 64, 1);
    let mut speak = |direction, stage, at: &dyn Fn(u32) -> Timestamp| {
        for first in (0..flows).step_by(CHUNK) {
            let numbers = first..flows.min(first + CHUNK as u32);
            let packets = numbers.map(|number| (Flow(number).ends(direction), direction, stage));
            subject.handle(packets, at(first));
        }
    };
    speak(Direction::Original, Stage::Opening, &|_| {
        Timestamp::from_seconds(100)
    });
    speak(Direction::Reply, Stage::Opening, &|_| {
        Timestamp::from_seconds(101)
    });
    let longest_ago = PUT_OFF_EVERY + CHUNK_TIME * flows.div_ceil(CHUNK as u32);
    speak(Direction::Original, Stage::Open, &|number| {
        let ago = longest_ago.mul_f64(f64::from(flows - number) / f64::from(flows));
        Timestamp(MEASURED_AT.0 - ago.as_nanos() as u64)
    });
}

/// How long a flow whose end was put off does without it: a 512th of its timeout.
const PUT_OFF_EVERY: Duration = Duration::from_millis(234);

/// The first chunks of a round find caches that hold something else; they do not count.
const WARM_UP: usize = 8;

/// What a thread did: from when to when, and nanoseconds per packet.
struct Stint {
    start: Instant,
    end: Instant,
    ns_per_packet: f64,
}

impl Stint {
    fn of(chunks: impl FnOnce() -> Vec<Duration>) -> Self {
        let start = Instant::now();
        let chunks = chunks();
        let end = Instant::now();
        let counted = &chunks[WARM_UP.min(chunks.len() - 1)..];
        let nanoseconds = counted.iter().sum::<Duration>().as_nanos() as f64;
        let ns_per_packet = nanoseconds / (counted.len() * CHUNK) as f64;
        Self {
            start,
            end,
            ns_per_packet,
        }
    }
}

/// Runs the same on several threads that begin together; nanoseconds per packet of all together.
fn together(threads: usize, chunks: impl Fn(u64) -> Vec<Duration> + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let run = |thread: usize| {
        barrier.wait();
        Stint::of(|| chunks(thread as u64))
    };
    let stints: Vec<Stint> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|thread| scope.spawn(move || run(thread)))
            .collect();
        let first = run(0);
        let others = others.into_iter().filter_map(|other| other.join().ok());
        std::iter::once(first).chain(others).collect()
    });
    ns_of_all(&stints)
}

/// Threads count for as much as they ran at the same time: two that had to share a processor, or took turns on it, are as
/// fast as one.
fn ns_of_all(stints: &[Stint]) -> f64 {
    let count = stints.len() as f64;
    let mean = stints.iter().map(|stint| stint.ns_per_packet).sum::<f64>() / count;
    let (Some(start), Some(end)) = (
        stints.iter().map(|stint| stint.start).min(),
        stints.iter().map(|stint| stint.end).max(),
    ) else {
        return mean;
    };
    let of_each: Duration = stints.iter().map(|stint| stint.end - stint.start).sum();
    mean * (end - start).as_secs_f64() / of_each.as_secs_f64()
}

/// Packets of established flows that path and limit handle in the same turn.
#[derive(Clone, Copy)]
struct Workload {
    /// Flows in the table; packets are of any, in any direction.
    flows: u32,
    /// Frames that are handled at once.
    batch: usize,
    /// Chunks of packets.
    chunks: usize,
    /// Which packets they are.
    seed: u64,
}

impl Workload {
    fn packets(self) -> impl Iterator<Item = (Flow, Direction)> {
        random_packets(self.flows, self.seed)
    }
}

fn limit_chunks<const WORDS: usize>(limit: &Limit<WORDS>, workload: Workload) -> Vec<Duration> {
    let mut frames: Vec<Frame> = (0..CHUNK).map(|_| Frame::from_packet(&[0; 64])).collect();
    let mut packets = workload.packets();
    (0..workload.chunks as u64)
        .map(|chunk| {
            let packets = packets.by_ref().take(CHUNK);
            limit.handle(packets, &mut frames, workload.batch, MEASURED_AT.0 + chunk)
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

/// Waits until it is calm before each round.
fn rounds<T>(count: usize, calm: &mut Calm, of_round: impl Fn(u64) -> T) -> Vec<T> {
    let round = |number| {
        calm.wait();
        of_round(number)
    };
    (0..count as u64).map(round).collect()
}

/// Nanoseconds per packet of path and limit in one round.
#[derive(Clone, Copy)]
struct Turn {
    ours: f64,
    bare: f64,
}

/// What rounds found in which path and limit took turns.
struct Turns {
    ns_per_packet: f64,
    limit_ns_per_packet: f64,
    ratio: f64,
    ratio_spread: [f64; 2],
}

impl Turns {
    fn of(turns: impl Iterator<Item = Turn> + Clone) -> Self {
        let ratios: Vec<f64> = turns.clone().map(|turn| turn.ours / turn.bare).collect();
        let least = ratios.iter().copied().fold(f64::MAX, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        Self {
            ns_per_packet: median(turns.clone().map(|turn| turn.ours).collect()),
            limit_ns_per_packet: median(turns.map(|turn| turn.bare).collect()),
            ratio: median(ratios),
            ratio_spread: [least, most],
        }
    }
}

/// The value in the middle, or the mean of the two there; 0 of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    let lower = values.len().saturating_sub(1) / 2;
    let at = |nth: usize| values.get(nth).copied().unwrap_or(0.0);
    f64::midpoint(at(lower), at(upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_take_turns_are_as_fast_as_one() {
        let begin = Instant::now();
        let stint = |start: u64, end: u64| Stint {
            start: begin + Duration::from_millis(start),
            end: begin + Duration::from_millis(end),
            ns_per_packet: 60.0,
        };
        let is = |stints: &[Stint], expected: f64| (ns_of_all(stints) - expected).abs() < 1e-6;
        assert!(is(&[stint(0, 10)], 60.0));
        assert!(is(&[stint(0, 10), stint(0, 10)], 30.0));
        assert!(is(&[stint(0, 10), stint(10, 20)], 60.0));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        assert!(median(vec![]).abs() < 1e-9);
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
