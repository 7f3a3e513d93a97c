//! Packets that are handled together, against the same packets one by one: nobody can tell that connections wait for one another
//! on their way into the table.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::{
    ACK, Build, FAMILIES, Names, RST, SYN, at, echo_request, icmp_error, naive_sum, parts_with,
    shared, tcp, udp,
};
use dataplane::conntrack::{Settings, Statistics};
use dataplane::frame::Frame;
use dataplane::service::{Generation, Selection, ServiceTable};
use dataplane::tuple::{Origin, Timestamp};
use dataplane::verdict::{Counters, Counts};
use dataplane::worker::{Device, Worker};
use fastrand::Rng;
use std::collections::VecDeque;
use std::hash::RandomState;
use std::io;
use std::sync::Arc;

const NOW: Timestamp = Timestamp::from_seconds(1000);
const V4: &Names = &FAMILIES[0];

/// Gives out packets, and keeps those that come back.
struct Queue {
    to_come: VecDeque<Vec<u8>>,
    /// So many are given out before it says that there are none.
    at_once: usize,
    left: usize,
    sent: Vec<Vec<u8>>,
}

impl Device for Queue {
    fn receive(&mut self, frame: &mut Frame) -> io::Result<bool> {
        if self.left == 0 || self.to_come.is_empty() {
            self.left = self.at_once;
            return Ok(false);
        }
        self.left -= 1;
        frame.set_packet(&self.to_come.pop_front().unwrap());
        Ok(true)
    }

    fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.sent.push(frame.packet().to_vec());
        Ok(())
    }
}

/// What became of packets: those that left, in their order, the connections, and what was counted.
#[derive(Debug, PartialEq)]
struct Outcome {
    sent: Vec<Vec<u8>>,
    connections: Vec<String>,
    verdicts: Counts,
    counted: Statistics,
}

/// Without chance in the choice of endpoints, so that what chance there is comes in one order.
fn table() -> ServiceTable {
    let mut parts = parts_with(V4, V4.pod, Generation(1));
    for service in &mut parts.services {
        service.selection = Selection::SourceHash;
    }
    ServiceTable::new(parts, &RandomState::new())
}

/// Of packets from `origin`, `at_once` of which are handled together.
fn outcome(origin: Origin, packets: &[Vec<u8>], at_once: usize) -> Outcome {
    let shared = shared(Settings::kube_proxy(1024), table());
    let queue = Queue {
        to_come: packets.iter().cloned().collect(),
        at_once,
        left: at_once,
        sent: Vec::new(),
    };
    let counters = Arc::new(Counters::default());
    let devices = vec![(origin, queue)];
    let mut worker = Worker::new(&shared, devices, Arc::clone(&counters), Rng::with_seed(1));
    while !worker.devices()[0].1.to_come.is_empty() {
        worker.drain(|| NOW).unwrap();
    }
    let sent = std::mem::take(&mut worker.devices_mut()[0].1.sent);
    let mut connections = Vec::new();
    shared.conntrack.for_each(NOW, |entry| {
        let state = entry.state.map(|state| format!("{state:?}"));
        connections.push(format!("{:?} {:?} {state:?}", entry.original, entry.reply));
    });
    connections.sort();
    Outcome {
        sent,
        connections,
        verdicts: counters.read(),
        counted: shared.conntrack.statistics().into_iter().sum(),
    }
}

/// The packet with another identification.
fn numbered(packet: &Build, number: u16) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes[4..6].copy_from_slice(&number.to_be_bytes());
    bytes[10..12].fill(0);
    let checksum = !naive_sum(&bytes[..20]);
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// A packet of one of few flows, some of which want the same reply tuple, or one about such a flow, or an answer. None ends a
/// connection: that of one which an earlier packet of the same batch opened is the case that differs (`path/openings.rs`).
fn packet(rng: &mut Rng, (address, ports): (&str, u16)) -> Build {
    let client = at(address, 2000 + rng.u16(..ports));
    let pod = at(V4.pod, 8080);
    let server = match rng.u8(..8) {
        0..=2 => at(V4.cluster_ip, 80),
        3 => at(V4.cluster_ip, 82),
        4 => at(V4.cluster_ip, 81),
        _ => pod.clone(),
    };
    let flags = [SYN, ACK, ACK | 8][rng.usize(..3)];
    match rng.u8(..16) {
        0..=5 => udp(b"question").from(&client).to(&server),
        6..=9 => tcp(flags).from(&client).to(&server),
        10 => udp(b"answer").from(&pod).to(&client),
        11 => tcp(SYN | ACK).from(&pod).to(&client).sequence(5000, 1001),
        12 => echo_request(V4.client, rng.u16(..3))
            .from(V4.client)
            .to(V4.pod),
        _ => {
            let quoted = udp(b"question").from(&client).to(&pod).bytes();
            icmp_error(3, 1, &quoted).from(V4.router).to(address)
        }
    }
}

fn packets(seed: u64, clients: (&str, u16)) -> Vec<Vec<u8>> {
    let mut rng = Rng::with_seed(seed);
    (1..=64)
        .map(|number| numbered(&packet(&mut rng, clients), number))
        .collect()
}

#[track_caller]
fn assert_the_same(origin: Origin, packets: &[Vec<u8>], seed: u64) -> Outcome {
    let one_by_one = outcome(origin, packets, 1);
    for at_once in [2, 5, 64] {
        let together = outcome(origin, packets, at_once);
        assert_eq!(together, one_by_one, "seed {seed}, {at_once} together");
    }
    one_by_one
}

/// Reply tuples clash: the second flow that wants one gets another port.
#[test]
fn flows_that_want_the_same_reply_tuple() {
    let (mut clashes, mut forwarded) = (0, 0);
    for seed in 0..200 {
        let packets = packets(seed, ("10.244.1.7", 6));
        let outcome = assert_the_same(Origin::Pod, &packets, seed);
        clashes += outcome.counted.found;
        forwarded += outcome.verdicts.forward;
    }
    assert!(clashes > 200 && forwarded > 2000, "{clashes} {forwarded}");
}

/// Every connection gets a port of its own.
#[test]
fn flows_that_are_masqueraded() {
    let mut forwarded = 0;
    for seed in 0..200 {
        let packets = packets(seed, (V4.client, 6));
        forwarded += assert_the_same(Origin::Outside, &packets, seed)
            .verdicts
            .forward;
    }
    assert!(forwarded > 2000, "{forwarded}");
}

/// A reset ends a connection that nobody has answered, and with it frees the reply tuple that the one before it wants: too late.
#[test]
fn a_tuple_is_freed_in_its_turn() {
    let segment = |flags, port, number| {
        let segment = tcp(flags).from(&at("10.244.1.7", 2000));
        numbered(&segment.to(&at(V4.cluster_ip, port)), number)
    };
    let other = udp(b"").from(&at("10.244.1.7", 9)).to(&at(V4.pod, 9));
    let packets = [
        segment(SYN, 80, 1),
        numbered(&other, 2),
        segment(SYN, 82, 3),
        segment(RST, 80, 4),
    ];
    let one_by_one = outcome(Origin::Pod, &packets, 1);
    assert_eq!(
        (one_by_one.counted.found, one_by_one.verdicts.forward),
        (1, 3)
    );
    assert_eq!(outcome(Origin::Pod, &packets, 2), one_by_one);
}

/// A datagram in two fragments, of sixteen bytes and the rest.
fn in_fragments(packet: &Build, number: u16) -> [Vec<u8>; 2] {
    const MORE: u16 = 0x2000;
    let whole = numbered(packet, number);
    [(20..36, MORE), (36..whole.len(), 2)].map(|(data, fragment)| {
        let mut bytes = [&whole[..20], &whole[data]].concat();
        let length = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
        bytes[10..12].fill(0);
        let checksum = !naive_sum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes
    })
}

/// The whole datagram opens a connection of its own, and takes nobody's place among those that wait.
#[test]
fn a_datagram_in_fragments_among_first_packets() {
    let from = |port| udp(b"a longer question").from(&at("10.244.1.7", port));
    let opens = |port| from(port).to(&at(V4.cluster_ip, 80));
    let [first, second] = in_fragments(&opens(2002), 2);
    let packets = [
        numbered(&opens(2001), 1),
        first,
        numbered(&opens(2003), 3),
        second,
        numbered(&opens(2004), 4),
    ];
    let outcome = assert_the_same(Origin::Pod, &packets, 0);
    let sent: Vec<u8> = outcome.sent.iter().map(|packet| packet[5]).collect();
    assert_eq!(sent, [1, 3, 2, 2, 4]);
    assert_eq!(outcome.connections.len(), 4);
}

/// More first packets than may wait at once.
#[test]
fn many_flows() {
    let opens = |number| {
        let packet = udp(b"question").from(&at(V4.client, 2000 + number));
        numbered(&packet.to(&at(V4.cluster_ip, 80)), number)
    };
    let packets: Vec<_> = (1..=64).map(opens).collect();
    let outcome = assert_the_same(Origin::Outside, &packets, 0);
    assert_eq!(outcome.connections.len(), 64);
    assert_eq!(outcome.verdicts.forward, 64);
}
