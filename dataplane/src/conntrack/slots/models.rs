//! The slots under every interleaving that matters: loom for two threads and a table of two entries, exhaustively up to
//! a bound of preemptions; shuttle for mixes of all operations, at random.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p dataplane --release --lib models`, and the same with `--cfg shuttle`.

use super::*;
use crate::conntrack::Settings;
use crate::conntrack::events::Farewell;
use crate::tuple::{Address, Direction, Protocol, Timestamp, Tuple};

const DEADLINE: u32 = 100;
const EXPIRED: u32 = 1;
const NOW: Timestamp = Timestamp(10 << 20);
const FAREWELL: Farewell = Farewell::at(NOW);

/// What a [`NewEntry`] is made of.
#[derive(Clone, Copy)]
struct Flow {
    original: Tuple,
    reply: Tuple,
    meta: Meta,
    state: StateWords,
}

/// Flow `nth` of one client, to endpoint `endpoint`. State word 0 says whose entry it is.
fn flow(nth: u16, endpoint: u8) -> Flow {
    flow_until(nth, endpoint, DEADLINE)
}

fn flow_until(nth: u16, endpoint: u8, deadline: u32) -> Flow {
    let original = Tuple {
        source: Address::from_v4([10, 0, 0, 1]),
        destination: Address::from_v4([10, 0, 0, 99]),
        source_port: nth,
        destination_port: 53,
        protocol: Protocol::UDP,
    };
    let reply = Tuple {
        source: Address::from_v4([10, 1, 0, endpoint]),
        ..original.inverse()
    };
    let meta = Meta {
        deadline,
        status: 0,
        protocol: Protocol::UDP,
    };
    Flow {
        original,
        reply,
        meta,
        state: [
            u64::from(nth) << 8 | u64::from(endpoint),
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ],
    }
}

fn table(capacity: usize) -> Slots {
    let hash = ahash::RandomState::with_seeds(1, 2, 3, 4);
    Slots::new(&Settings::kernel(capacity), hash).unwrap()
}

fn insert(slots: &Slots, flow: &Flow) -> Result<EntryId, InsertError> {
    let hashes = [slots.hash(&flow.original), slots.hash(&flow.reply)];
    let new = NewEntry {
        original: &flow.original,
        reply: &flow.reply,
        meta: flow.meta.pack(),
        state: &flow.state,
        length: 0,
    };
    slots.insert(&new, &hashes, NOW)
}

/// What a lookup of `tuple` gives, checked to be one flow's and that flow's.
fn look(slots: &Slots, tuple: &Tuple) -> Option<EntryId> {
    let entry = slots.find(tuple, slots.hash(tuple))?;
    let (original, reply) = match entry.direction {
        Direction::Original => (*tuple, entry.other),
        Direction::Reply => (entry.other, *tuple),
    };
    let [.., endpoint] = reply.source.octets_v4();
    assert_eq!(
        entry.service[0],
        u64::from(original.source_port) << 8 | u64::from(endpoint)
    );
    assert_eq!(reply.destination_port, original.source_port);
    Some(entry.id)
}

/// Once all is quiet: no tuple has two owners, every entry is found by both tuples, nothing leaks.
fn check_and_empty(slots: &Slots) {
    let live: Vec<Snapshot> = (0..slots.used() as u32)
        .filter_map(|index| slots.at(index))
        .collect();
    assert_eq!(slots.len(), live.len());
    for entry in &live {
        assert_eq!(look(slots, &entry.original), Some(entry.id));
        assert_eq!(look(slots, &entry.reply), Some(entry.id));
        assert!(slots.remove_if(entry.id, FAREWELL, |_| true));
    }
    let slot_words = slots.buckets.iter().flat_map(|bucket| &bucket.0);
    assert_eq!(
        slot_words
            .filter(|slot| slot.load(Ordering::SeqCst) != 0)
            .count(),
        0,
        "a slot leaked"
    );
    let free = std::iter::from_fn(|| slots.allocate()).count();
    assert_eq!(free, slots.capacity(), "an entry leaked");
}

#[cfg(loom)]
mod with_loom {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    fn explore(name: &str, model: impl Fn() + Sync + Send + 'static) {
        static INTERLEAVINGS: AtomicUsize = AtomicUsize::new(0);
        let before = INTERLEAVINGS.load(Relaxed);
        let mut builder = loom::model::Builder::new();
        // `LOOM_MAX_PREEMPTIONS` sets another bound.
        builder.preemption_bound = builder.preemption_bound.or(Some(3));
        builder.max_branches = 100_000;
        builder.check(move || {
            INTERLEAVINGS.fetch_add(1, Relaxed);
            model();
        });
        println!(
            "{name}: about {} interleavings",
            INTERLEAVINGS.load(Relaxed) - before
        );
    }

    /// Invariant 5, for tuples that are equal and for a reply tuple in common.
    #[test]
    fn racing_inserts() {
        let other_vip = Tuple {
            destination: Address::from_v4([10, 0, 0, 98]),
            ..flow(1, 1).original
        };
        for second in [
            flow(1, 2),
            flow(1, 1),
            Flow {
                original: other_vip,
                ..flow(1, 1)
            },
        ] {
            explore("racing inserts", move || {
                let slots = Arc::new(table(2));
                let other = Arc::clone(&slots);
                let thread = thread::spawn(move || insert(&other, &flow(1, 1)).is_ok());
                let here = insert(&slots, &second).is_ok();
                let there = thread.join().unwrap();
                assert!(here != there, "exactly one of them");
                assert_eq!(slots.len(), 1);
                check_and_empty(&slots);
            });
        }
    }

    /// Invariant 2: an entry that is removed and used again under a reader.
    #[test]
    fn reuse_under_a_reader() {
        explore("reuse under a reader", || {
            let slots = Arc::new(table(1));
            let id = insert(&slots, &flow(1, 1)).unwrap();
            let other = Arc::clone(&slots);
            let thread = thread::spawn(move || {
                assert!(other.remove_if(id, FAREWELL, |_| true));
                insert(&other, &flow(2, 2)).unwrap();
            });
            look(&slots, &flow(1, 1).original);
            look(&slots, &flow(2, 2).reply);
            thread.join().unwrap();
            assert!(look(&slots, &flow(1, 1).original).is_none());
            assert!(look(&slots, &flow(2, 2).reply).is_some());
            check_and_empty(&slots);
        });
    }

    /// Invariant 3: a packet that refreshes an entry against the sweep that would remove it.
    #[test]
    fn refresh_against_sweep() {
        explore("refresh against sweep", || {
            let slots = Arc::new(table(1));
            let id = insert(&slots, &flow_until(1, 1, EXPIRED)).unwrap();
            let other = Arc::clone(&slots);
            let thread =
                thread::spawn(move || other.remove_if(id, FAREWELL, |meta| meta.is_expired(NOW)));
            let refreshed = slots.lock(id).map(|entry| {
                let meta = entry.meta();
                entry.set_meta(Meta {
                    deadline: DEADLINE,
                    ..meta
                });
            });
            let removed = thread.join().unwrap();
            assert!(removed != refreshed.is_some(), "one or the other");
            check_and_empty(&slots);
        });
    }
}

#[cfg(shuttle)]
mod with_shuttle {
    use super::*;
    use shuttle::sync::Arc;
    use shuttle::thread;

    /// How many to try; `INTERLEAVINGS` in the environment sets another number.
    fn interleavings() -> usize {
        let wanted = std::env::var("INTERLEAVINGS");
        wanted.map_or(20_000, |number| number.parse().unwrap())
    }

    /// One step of a thread; `choice` is random.
    fn step(slots: &Slots, choice: u8, nth: u16, endpoint: u8) {
        let new = if choice == 0 {
            flow_until(nth, endpoint, EXPIRED)
        } else {
            flow(nth, endpoint)
        };
        match choice {
            0..=3 => {
                let _ = insert(slots, &new);
            }
            4 => {
                let _ = look(slots, &new.original)
                    .is_some_and(|id| slots.remove_if(id, FAREWELL, |_| true));
            }
            // The sweep.
            5 => {
                let live = (0..slots.used() as u32).filter_map(|index| slots.glance(index));
                for (id, _) in live.filter(|(_, meta)| meta.is_expired(NOW)) {
                    let named = slots.bring_near(id);
                    slots.remove_named(&named, FAREWELL, |meta| meta.is_expired(NOW));
                }
            }
            // Early drop.
            6 => {
                for entry in slots.neighbours(slots.hash(&new.original), 0) {
                    slots.remove_if(entry.id, FAREWELL, |meta| meta.status == 0);
                }
            }
            // A packet.
            _ => {
                if let Some(entry) = look(slots, &new.reply).and_then(|id| slots.lock(id)) {
                    let meta = entry.meta();
                    entry.set_meta(Meta {
                        status: 4,
                        deadline: DEADLINE,
                        ..meta
                    });
                    assert_eq!(entry.state()[0] >> 8, u64::from(nth));
                }
            }
        }
    }

    /// Insert, find, remove, expire, early drop and packets, in all mixes of three threads on a table too small for
    /// their flows.
    #[test]
    fn all_mixes() {
        shuttle::check_random(
            || {
                use shuttle::rand::Rng;
                let slots = Arc::new(table(3));
                let threads: Vec<_> = (0..3)
                    .map(|_| {
                        let slots = Arc::clone(&slots);
                        thread::spawn(move || {
                            for _ in 0..4 {
                                let mut random = shuttle::rand::thread_rng();
                                let choice = random.gen_range(0..9_u8);
                                let nth = random.gen_range(1..4_u16);
                                step(&slots, choice, nth, random.gen_range(1..3_u8));
                            }
                        })
                    })
                    .collect();
                for thread in threads {
                    thread.join().unwrap();
                }
                check_and_empty(&slots);
            },
            interleavings(),
        );
    }

    /// First packets that race: one entry, and every other one is told that its original tuple is owned.
    #[test]
    fn racing_first_packets() {
        shuttle::check_random(
            || {
                let slots = Arc::new(table(4));
                let threads: Vec<_> = (1..=3)
                    .map(|endpoint| {
                        let slots = Arc::clone(&slots);
                        thread::spawn(move || insert(&slots, &flow(1, endpoint)))
                    })
                    .collect();
                let results: Vec<_> = threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .collect();
                assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
                let lost = |result: &Result<_, _>| *result == Err(InsertError::OriginalTaken);
                assert_eq!(results.iter().filter(|result| lost(result)).count(), 2);
                check_and_empty(&slots);
            },
            interleavings(),
        );
    }
}
