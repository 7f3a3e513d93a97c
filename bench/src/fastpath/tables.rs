//! The same work of a table - find a tuple, learn the other one, put the flow's end off - in ours and in maps of the
//! standard kind, so that a reader sees what a table of its own buys.
//!
//! The maps hold an entry per tuple, which knows nothing of its other direction: less than ours has to keep. They are asked
//! for one tuple after the other, and lie in pages of the usual size; ours is asked in both ways, in huge pages.

use super::flows::{Ends, Flow, Traffic};
use super::subject::{self, CHUNK};
use super::{
    CHUNK_TIME, Calm, Size, establish, median, random_packets, rounds, start_of, together,
};
use dashmap::DashMap;
use dataplane::conntrack::{Conntrack, Found, Headers, Settings, Transport};
use dataplane::tuple::{Address, Direction, Protocol, Timestamp, Tuple};
use hashbrown::HashMap;
use serde::Serialize;
use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One table under one load.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// `penstock`, in batches, with one tuple after the other, `dashmap` or `mutexed hashbrown`.
    pub table: &'static str,
    /// Flows in it, two tuples each.
    pub flows: u32,
    /// Threads that look up in it.
    pub threads: usize,
    /// Of all threads together.
    pub ns_per_lookup: f64,
    /// By ours.
    pub ratio: f64,
}

struct Entry {
    other: Tuple,
    deadline: u64,
    packets: u64,
}

impl Entry {
    const fn touch(&mut self, now: Timestamp) -> Tuple {
        self.deadline = now.0;
        self.packets += 1;
        self.other
    }
}

/// What the tables have in common.
trait Lookup: Sync {
    /// Looks all of them up and touches what is found.
    fn touch(&self, tuples: &[Tuple], now: Timestamp);
}

impl Lookup for Conntrack {
    fn touch(&self, tuples: &[Tuple], now: Timestamp) {
        const TOGETHER: usize = 16;
        for tuples in tuples.chunks(TOGETHER) {
            let mut near = [None; TOGETHER];
            for (near, tuple) in near.iter_mut().zip(tuples) {
                let hash = self.hash(tuple);
                self.prefetch_buckets(hash);
                *near = Some((hash, None));
            }
            for ((hash, guess), tuple) in near.iter_mut().flatten().zip(tuples) {
                *guess = self.guess(*hash, tuple.protocol, tuple.source.is_ipv4());
            }
            for (&tuple, (hash, guess)) in tuples.iter().zip(near.into_iter().flatten()) {
                if let Some(found) = self.find_near(&tuple, hash, guess, now) {
                    track(self, &found, tuple, now);
                }
            }
        }
    }
}

/// Ours as the others are asked: one tuple, then the next one.
struct OneByOne<'t>(&'t Conntrack);

impl Lookup for OneByOne<'_> {
    fn touch(&self, tuples: &[Tuple], now: Timestamp) {
        for &tuple in tuples {
            if let Some(found) = self.0.find(&tuple, now) {
                track(self.0, &found, tuple, now);
            }
        }
    }
}

fn track(conntrack: &Conntrack, found: &Found, tuple: Tuple, now: Timestamp) {
    let headers = Headers {
        tuple,
        transport: Transport::Udp,
        length: 46,
    };
    let _ = black_box(conntrack.track(found, &headers, now));
    black_box(found);
}

impl Lookup for DashMap<Tuple, Entry, ahash::RandomState> {
    fn touch(&self, tuples: &[Tuple], now: Timestamp) {
        for tuple in tuples {
            black_box(self.get_mut(tuple).map(|mut entry| entry.touch(now)));
        }
    }
}

impl Lookup for Mutex<HashMap<Tuple, Entry, ahash::RandomState>> {
    fn touch(&self, tuples: &[Tuple], now: Timestamp) {
        for tuple in tuples {
            let mut map = self.lock().unwrap_or_else(PoisonError::into_inner);
            black_box(map.get_mut(tuple).map(|entry| entry.touch(now)));
        }
    }
}

pub(super) fn tables(size: &Size, flows: u32, calm: &mut Calm) -> Vec<Table> {
    let settings = Settings::kernel(flows as usize);
    let shared = subject::shared(settings, Traffic::UDP_V4, false, 1);
    establish(&shared, Traffic::UDP_V4, flows);
    let hash = || ahash::RandomState::with_seeds(1, 2, 3, 4);
    let dashmap = DashMap::with_hasher(hash());
    let mut plain = HashMap::with_hasher(hash());
    for flow in (0..flows).map(Flow) {
        for (tuple, other) in tuples_of(flow) {
            let entry = || Entry {
                other,
                deadline: 0,
                packets: 0,
            };
            dashmap.insert(tuple, entry());
            plain.insert(tuple, entry());
        }
    }
    let mutexed = Mutex::new(plain);
    let one_by_one = OneByOne(&shared.conntrack);
    let all: [(&'static str, &dyn Lookup); TABLES] = [
        ("penstock", &shared.conntrack),
        ("penstock, one by one", &one_by_one),
        ("dashmap", &dashmap),
        ("mutexed hashbrown", &mutexed),
    ];
    let rows = [1, 2].into_iter().flat_map(|threads| {
        let taken = rounds(size.rounds, calm, |round| {
            let turn = (threads as u64 - 1) * size.rounds as u64 + round;
            let start = start_of(turn, size.chunks);
            all.map(|(_, table)| {
                together(threads, |thread| {
                    chunks(table, flows, size.chunks, 2 * round + thread, start)
                })
            })
        });
        let of_rounds =
            |figure: &dyn Fn(&[f64; TABLES]) -> f64| median(taken.iter().map(figure).collect());
        std::array::from_fn::<_, TABLES, _>(|nth| Table {
            table: all[nth].0,
            flows,
            threads,
            ns_per_lookup: of_rounds(&|round| round[nth]),
            ratio: of_rounds(&|round| round[nth] / round[0]),
        })
    });
    rows.collect()
}

const TABLES: usize = 4;

fn chunks(
    table: &dyn Lookup,
    flows: u32,
    chunks: usize,
    seed: u64,
    start: Timestamp,
) -> Vec<Duration> {
    let mut packets = random_packets(flows, seed);
    let mut now = start;
    (0..chunks)
        .map(|_| {
            let tuples: Vec<Tuple> = packets
                .by_ref()
                .take(CHUNK)
                .map(|(flow, direction)| tuple(flow.ends(direction)))
                .collect();
            now = now.after(CHUNK_TIME);
            let start = Instant::now();
            table.touch(&tuples, now);
            start.elapsed()
        })
        .collect()
}

/// Both tuples of a flow, each with the other one.
fn tuples_of(flow: Flow) -> [(Tuple, Tuple); 2] {
    let [original, reply] =
        [Direction::Original, Direction::Reply].map(|direction| tuple(flow.ends(direction)));
    [(original, reply), (reply, original)]
}

fn tuple(Ends([source, destination]): Ends) -> Tuple {
    Tuple {
        source: Address::from_v4(source.0.to_be_bytes()),
        destination: Address::from_v4(destination.0.to_be_bytes()),
        source_port: source.1,
        destination_port: destination.1,
        protocol: Protocol::UDP,
    }
}
