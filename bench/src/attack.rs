//! `penstock bench attack`: what strangers can do to others' flows. While each attack goes on, packets of established
//! flows and new flows of others pass in turns with it; what is lost of them is counted, and what a packet of theirs
//! costs is held against the same table without the attack.

use crate::fastpath::{
    CHUNK, Ends, Flow, MASQUERADED, Stage, Subject, Traffic, Wanted, establish, median, of_flow,
    shared,
};
use dataplane::conntrack::{Settings, Statistics};
use dataplane::tuple::{Direction, Timestamp};
use dataplane::worker::Shared;
use fastrand::Rng;
use serde::Serialize;
use std::time::Duration;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Entries that the table has room for.
    pub capacity: u32,
    /// Established flows of others.
    pub established: u32,
    /// Tuples of the attack made for one bucket of an unkeyed hash.
    pub crafted: u32,
}

impl Size {
    /// That of the documented figures: the kernel's table, a minute.
    pub const fn full() -> Self {
        Self {
            capacity: 262_144,
            established: 50_000,
            crafted: 1_000_000,
        }
    }

    /// Whether it works.
    pub const fn quick() -> Self {
        Self {
            capacity: 16_384,
            established: 2_000,
            crafted: 50_000,
        }
    }
}

/// All figures.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this shape.
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    /// `attack`.
    pub benchmark: &'static str,
    /// One per attack.
    pub rows: Vec<Row>,
}

/// What one attack did to others.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Which.
    pub attack: &'static str,
    /// Entries that the table has room for.
    pub capacity: u32,
    /// Packets that the attacker sent.
    pub attack_packets: u64,
    /// Packets of established flows, both directions.
    pub established_packets: u64,
    /// Those that were not forwarded.
    pub established_lost: u64,
    /// New flows of others. Each is answered when the attack has gone on for a while.
    pub new_flows: u64,
    /// Those whose first packet and answer were forwarded.
    pub new_flows_succeeded: u64,
    /// Of a packet of an established flow, in batches of 64.
    pub ns_per_packet: f64,
    /// The same before the attack.
    pub ns_per_packet_before: f64,
    /// The former by the latter.
    pub ratio: f64,
    /// Of a packet of the attack, in batches of 64.
    pub ns_per_attack_packet: f64,
    /// Entries dropped early to make room.
    pub early_drops: u64,
    /// First packets dropped because there was no room for them.
    pub drops: u64,
}

/// Makes all attacks. `progress` hears what comes next.
pub fn run(size: Size, mut progress: impl FnMut(&str)) -> Report {
    let ten_tables = u64::from(size.capacity) * 10;
    let kernel = Settings::kernel(size.capacity as usize);
    let crafted_room = Settings::kernel((size.crafted + 2 * size.established) as usize * 5 / 4);
    // Room for the established flows and nothing else.
    let full = Settings::kernel(size.established as usize);
    let scenarios: [(&'static str, Settings, u64, (Attack, NewFlow)); 7] = [
        (
            "SYN flood from many sources",
            kernel,
            ten_tables,
            (flood, anywhere),
        ),
        (
            "scan of ten tables from one source",
            kernel,
            ten_tables,
            (scan, anywhere),
        ),
        (
            "tuples crafted for an unkeyed hash",
            crafted_room,
            size.crafted.into(),
            (crafted, anywhere),
        ),
        (
            UNIFORM,
            crafted_room,
            size.crafted.into(),
            (uniform, anywhere),
        ),
        (
            "99.9 % of the ports towards a destination taken",
            kernel,
            PORTS_TAKEN,
            (one_destination, masqueraded),
        ),
        (
            "table full of assured flows",
            full,
            u64::from(size.capacity),
            (flood, anywhere),
        ),
        (
            "segments that belong to no connection",
            kernel,
            ten_tables,
            (stray, anywhere),
        ),
    ];
    let rows = scenarios.map(|(name, settings, packets, (attack, new_flow))| {
        progress(name);
        let scenario = Scenario {
            name,
            packets,
            attack,
            new_flow,
        };
        scenario.run(size.established, settings)
    });
    Report {
        schema_version: 1,
        benchmark: "attack",
        rows: rows.into(),
    }
}

/// The packet number `n` of an attack.
type Attack = fn(u64) -> (Ends, Stage);
/// The first packet of the new flow number `n` of others.
type NewFlow = fn(u32) -> Ends;

struct Scenario {
    name: &'static str,
    packets: u64,
    attack: Attack,
    new_flow: NewFlow,
}

/// Rounds by which figures before and during an attack are medians of.
const BEFORE: usize = 400;
const TCP: Traffic = Traffic {
    protocol: crate::fastpath::Transport::Tcp,
    family: crate::fastpath::Family::Ipv4,
};
/// New flows of others per chunk of the attack.
const NEW: usize = 8;

impl Scenario {
    fn run(&self, established: u32, settings: Settings) -> Row {
        let capacity = settings.capacity as u32;
        let shared = shared(settings, TCP, false, 9);
        establish(&shared, TCP, established);
        let mut others = Others::new(&shared, established);
        others.speak_all();
        let before = median((0..BEFORE).map(|_| others.speak()).collect());
        let mut attacker = Subject::new(&shared, TCP, 64, 10);
        let (mut during, mut of_attack) = (Vec::new(), Vec::new());
        let mut number = 0;
        while number < self.packets {
            let packets = (number..self.packets).map(|number| {
                let (ends, stage) = (self.attack)(number);
                (ends, Direction::Original, stage)
            });
            let (elapsed, _) = attacker.count(packets.take(CHUNK), others.now);
            of_attack.push(elapsed.as_nanos() as f64 / CHUNK as f64);
            number += CHUNK as u64;
            others.answer();
            others.open(self.new_flow);
            during.push(others.speak());
        }
        others.answer();
        let during = median(during);
        let counted: Statistics = shared.conntrack.statistics().into_iter().sum();
        Row {
            attack: self.name,
            capacity,
            attack_packets: attacker.handled(),
            established_packets: others.spoken,
            established_lost: others.lost,
            new_flows: others.opened,
            new_flows_succeeded: others.succeeded,
            ns_per_packet: during,
            ns_per_packet_before: before,
            ratio: during / before,
            ns_per_attack_packet: median(of_attack),
            early_drops: counted.early_drop,
            drops: counted.drop,
        }
    }
}

/// Those who are to notice nothing.
struct Others<'a> {
    subject: Subject<'a>,
    shared: &'a Shared,
    established: u32,
    rng: Rng,
    now: Timestamp,
    next_new: u32,
    /// What the endpoints of new flows still have to say.
    answers: Vec<Wanted>,
    spoken: u64,
    lost: u64,
    opened: u64,
    succeeded: u64,
}

impl<'a> Others<'a> {
    fn new(shared: &'a Shared, established: u32) -> Self {
        Self {
            subject: Subject::new(shared, TCP, 64, 11),
            shared,
            established,
            rng: Rng::with_seed(12),
            now: Timestamp::from_seconds(110),
            next_new: 1 << 28,
            answers: Vec::new(),
            spoken: 0,
            lost: 0,
            opened: 0,
            succeeded: 0,
        }
    }

    /// Every flow, both sides: who lost his place to another while a small table filled up is picked up again.
    fn speak_all(&mut self) {
        for direction in [Direction::Original, Direction::Reply] {
            for first in (0..self.established).step_by(CHUNK) {
                let packets = (first..self.established).map(|nth| of_flow(Flow(nth), direction));
                self.subject.count(packets.take(CHUNK), self.now);
            }
        }
    }

    /// A chunk of packets of established flows; nanoseconds of one.
    fn speak(&mut self) -> f64 {
        self.now = self.now.after(Duration::from_micros(40));
        let (rng, established) = (&mut self.rng, self.established);
        let packets = std::iter::repeat_with(|| {
            let direction = if rng.bool() {
                Direction::Original
            } else {
                Direction::Reply
            };
            of_flow(Flow(rng.u32(..established)), direction)
        });
        let (elapsed, forwarded) = self.subject.count(packets.take(CHUNK), self.now);
        self.spoken += CHUNK as u64;
        self.lost += CHUNK as u64 - forwarded;
        // As the agent sweeps: 100,000 entries per second.
        self.shared.conntrack.expire(self.now, 4);
        elapsed.as_nanos() as f64 / CHUNK as f64
    }

    /// First packets of new flows. Whoever gets one will answer as its entry says.
    fn open(&mut self, new_flow: NewFlow) {
        let flows = self.next_new..self.next_new + NEW as u32;
        self.next_new += NEW as u32;
        self.opened += NEW as u64;
        let ends: Vec<Ends> = flows.map(new_flow).collect();
        let first = ends
            .iter()
            .map(|ends| (*ends, Direction::Original, Stage::Opening));
        self.subject.count(first, self.now);
        let conntrack = &self.shared.conntrack;
        let answer = |ends: &Ends| {
            let found = conntrack.find(&ends.tuple(TCP), self.now)?;
            let [_, reply] = conntrack.tuples(found.entry())?;
            Some((Ends::of_tuple(&reply), Direction::Reply, Stage::Opening))
        };
        self.answers = ends.iter().filter_map(answer).collect();
    }

    /// The answers to what was opened last: an entry that had to go meanwhile does not lead them back.
    fn answer(&mut self) {
        let answers = std::mem::take(&mut self.answers);
        let (_, forwarded) = self.subject.count(answers.into_iter(), self.now);
        self.succeeded += forwarded;
    }
}

const fn anywhere(number: u32) -> Ends {
    Flow(number).ends(Direction::Original)
}

/// To the Service whose ports are scarce.
const fn masqueraded(number: u32) -> Ends {
    let Ends([client, _]) = anywhere(number);
    Ends::of(client, MASQUERADED, Direction::Original)
}

/// A SYN from an address that nobody else uses.
const fn flood(number: u64) -> (Ends, Stage) {
    let source = 0x2c00_0000 | (number as u32).wrapping_mul(0x9e37_79b1) & 0x00ff_ffff;
    let client = (source, 1024 + (number % 60_000) as u16);
    (
        Ends::of(client, number as u32, Direction::Original),
        Stage::Opening,
    )
}

/// SYNs of one source from all of its ports to all Services.
const fn scan(number: u64) -> (Ends, Stage) {
    let client = (0xc633_6442, 1024 + (number % 64_000) as u16);
    let ends = Ends::of(client, (number / 64_000) as u32, Direction::Original);
    (ends, Stage::Opening)
}

/// Tuples whose words, the two addresses and the ports, have one and the same sum: what adds them up without a key puts
/// all of them into one bucket.
const fn crafted(number: u64) -> (Ends, Stage) {
    const PORTS: u32 = 16_384;
    let (nth, port) = (number as u32 / PORTS, number as u32 % PORTS);
    // What port and Service add is taken from the client's address.
    let client = (0x6d00_0000 - (port << 16) - nth, 1024 + port as u16);
    (Ends::of(client, nth, Direction::Original), Stage::Opening)
}

/// As many tuples that have nothing in common: what [`crafted`] ones cost is held against these.
const UNIFORM: &str = "as many tuples at random, to compare with";

const fn uniform(number: u64) -> (Ends, Stage) {
    // Odd factors: no two of them are alike.
    let bits = (number as u32).wrapping_mul(0x9e37_79b1);
    let client = (0x6d00_0000 | bits >> 12, 1024 + (bits & 0xfff) as u16);
    let service = (number as u32).wrapping_mul(0x85eb_ca6b) >> 8;
    (
        Ends::of(client, service, Direction::Original),
        Stage::Opening,
    )
}

/// So many that with the new flows of others 99.9 % of the 64,512 ports from 1024 on are taken at the end.
const PORTS_TAKEN: u64 = 64_448 * CHUNK as u64 / (CHUNK + NEW) as u64;

/// SYNs to one Service with one endpoint, to whom masquerading gives ports of one pool.
const fn one_destination(number: u64) -> (Ends, Stage) {
    let source = 0x2e00_0000 + (number / 60_000) as u32;
    let client = (source, 1024 + (number % 60_000) as u16);
    (
        Ends::of(client, MASQUERADED, Direction::Original),
        Stage::Opening,
    )
}

/// Acknowledgements out of nowhere: they are taken for connections from before the start, as the kernel does.
const fn stray(number: u64) -> (Ends, Stage) {
    let (ends, _) = flood(number);
    (ends, Stage::Open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn crafted_tuples_are_many_and_have_one_sum() {
        const COUNT: usize = 1_000_000;
        let words = |number| {
            let (Ends([(source, port), (destination, to)]), _) = crafted(number);
            [source, destination, u32::from(port) << 16 | u32::from(to)]
        };
        let tuples: HashSet<[u32; 3]> = (0..COUNT as u64).map(words).collect();
        assert_eq!(tuples.len(), COUNT);
        let sum = |words: &[u32; 3]| {
            words
                .iter()
                .fold(0, |sum: u32, word| sum.wrapping_add(*word))
        };
        let sums: HashSet<u32> = tuples.iter().map(sum).collect();
        assert_eq!(sums.len(), 1);
    }
}
