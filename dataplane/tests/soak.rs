//! A node under random flows with churn, faults and pressure, beside a plain model that remembers what every connection
//! was translated to and how long a UDP flow may live.
//!
//! `SOAK_PACKETS=100000000 cargo test --release --workspace --test soak -- --nocapture` soaks for longer.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::*;
use dataplane::conntrack::{Conntrack, EntryView, Settings, Statistics};
use dataplane::frame::Frame;
use dataplane::ports;
use dataplane::service::Generation;
use dataplane::tuple::{Address, Origin, Protocol, Timestamp, Tuple};
use dataplane::verdict::{DropReason, Verdict};
use fastrand::Rng;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

const CAPACITY: usize = 2400;
/// Ports that are left to masquerade with: fewer than there are clients.
const PORTS: u16 = 1000;
const CLIENTS: u32 = 4000;
/// Clients in quiet times, when neither ports nor the table are short.
const FEW_CLIENTS: u32 = 800;
/// Deadlines are kept in ticks of a millisecond; so close to one, either answer is right.
const NEAR: Duration = Duration::from_millis(3);
/// By which the end of a stream may be too early.
const STREAM_LAG: Duration = Duration::from_millis(120_000 / 512 + 3);

/// What the model knows of a connection.
#[derive(Clone, Debug)]
struct Flow {
    id: u32,
    reply: Tuple,
    /// For UDP: when it ends, when it began, whether the other side has answered.
    deadline: Timestamp,
    opened: Timestamp,
    is_answered: bool,
    is_assured: bool,
}

struct Soak {
    names: &'static Names,
    bed: Bed,
    random: Rng,
    frame: Frame,
    flows: HashMap<Tuple, Flow>,
    owners: HashMap<Tuple, Tuple>,
    /// Steps of the script that the client's TCP connection has gone.
    progress: HashMap<Tuple, usize>,
    generation: u64,
    /// Whether the endpoint is the other pod now.
    has_moved: bool,
    /// UDP flows that were gone before their time.
    vanished: u64,
    counts: HashMap<&'static str, u64>,
}

impl Soak {
    fn new(names: &'static Names, seed: u64) -> Self {
        let mut bed = Bed::new(services(names));
        bed.conntrack = Conntrack::new(Settings::kube_proxy(CAPACITY), [seed, 2, 3, 4]);
        for protocol in [Protocol::TCP, Protocol::UDP] {
            bed.reserved_ports.replace(protocol, 0..=u16::MAX - PORTS);
        }
        Self {
            names,
            bed,
            random: Rng::with_seed(seed),
            frame: Frame::new(),
            flows: HashMap::new(),
            owners: HashMap::new(),
            progress: HashMap::new(),
            generation: 1,
            has_moved: false,
            vanished: 0,
            counts: HashMap::new(),
        }
    }

    /// One packet, and now and then what else happens on a node.
    fn step(&mut self) {
        let now = &mut self.bed.now;
        *now = now.after(Duration::from_micros(self.random.u64(..8000)));
        match self.random.u32(..50_000) {
            0 => self.bed.wait(Duration::from_secs(self.random.u64(..400))),
            1..5 => self.publish(),
            5..500 => {
                let now = self.bed.now;
                self.bed.conntrack.expire(now, 1000);
            }
            _ => {}
        }
        let original = self.any_client();
        if original.protocol == Protocol::UDP {
            self.datagram(original);
        } else {
            self.segment(original);
        }
    }

    /// The endpoint moves: connections stay, UDP flows end.
    fn publish(&mut self) {
        self.generation += 1;
        self.has_moved = !self.has_moved;
        let endpoint = if self.has_moved {
            self.names.other_pod
        } else {
            self.names.pod
        };
        self.bed.services = services_with(self.names, endpoint, Generation(self.generation));
    }

    fn endpoint(&self) -> Address {
        address(if self.has_moved {
            self.names.other_pod
        } else {
            self.names.pod
        })
    }

    /// A client outside that reaches the VIP, or a pod that reaches the cluster IP.
    fn any_client(&mut self) -> Tuple {
        let is_busy = self.generation % 8 < 2;
        let clients = if is_busy { CLIENTS } else { FEW_CLIENTS };
        let number = self.random.u32(..clients);
        let is_pod = number.is_multiple_of(4);
        let base = address(if is_pod {
            self.names.pods
        } else {
            self.names.router
        });
        let (high, low) = (u128::from(number / 64 + 1), 40_000 + (number % 64) as u16);
        let destination = if is_pod {
            self.names.cluster_ip
        } else {
            self.names.vip
        };
        Tuple {
            source: Address::from_bits(base.to_bits() + high),
            destination: address(destination),
            source_port: low,
            destination_port: 80,
            protocol: if number.is_multiple_of(3) {
                Protocol::TCP
            } else {
                Protocol::UDP
            },
        }
    }

    fn datagram(&mut self, original: Tuple) {
        let payload = self.random.u64(..).to_be_bytes();
        let is_reply = self.random.bool() && self.flows.contains_key(&original);
        self.packet(original, is_reply, &udp(&payload));
    }

    /// The next segment of a short connection; one in ten is lost before it comes here, one in ten comes twice.
    fn segment(&mut self, original: Tuple) {
        const FIN: u8 = 1;
        const SCRIPT: [(bool, u8, u32, u32); 8] = [
            (false, SYN, 1000, 0),
            (true, SYN | ACK, 5000, 1001),
            (false, ACK, 1001, 5001),
            (true, ACK, 5001, 1001),
            (false, ACK, 1001, 5001),
            (false, FIN | ACK, 1001, 5001),
            (true, FIN | ACK, 5001, 1002),
            (false, ACK, 1002, 5002),
        ];
        let progress = self.progress.entry(original).or_default();
        let (is_reply, flags, sequence, acknowledgement) = SCRIPT[*progress % SCRIPT.len()];
        let start = (*progress / SCRIPT.len()) as u32 * 100_000;
        *progress += usize::from(self.random.u8(..10) > 0);
        if self.random.u8(..10) == 0 || is_reply && !self.flows.contains_key(&original) {
            return;
        }
        let packet = tcp(flags).sequence(sequence + start, acknowledgement + start);
        self.packet(original, is_reply, &packet);
    }

    fn packet(&mut self, original: Tuple, is_reply: bool, packet: &Build) {
        let (sent, origin) = self.as_sent(original, is_reply);
        let before = self.bed.conntrack.get(&original, self.bed.now);
        self.check_life(&original, before.as_ref());
        let packet = between(packet, &sent);
        let bytes = packet.bytes();
        self.frame.set_packet(&bytes);
        let is_broken = self.random.u8(..50) == 0;
        if is_broken {
            *self.frame.packet_mut().last_mut().unwrap() ^= 1;
        }
        let (verdict, out) = self.bed.send_frame(origin, &mut self.frame);
        let after = self.bed.conntrack.get(&original, self.bed.now);
        if is_broken {
            // On its way to the node itself, what is INVALID is not dropped, and not translated either.
            let to_node = sent.destination == address(self.names.node);
            assert_eq!(verdict == Verdict::Pass, to_node, "{verdict:?}");
            assert_eq!(after.map(|entry| entry.id), before.map(|entry| entry.id));
            return self.count("broken");
        }
        let mut before = before;
        if self.is_stale(&original) {
            // A UDP flow ends with its endpoint, at its next packet.
            assert!(before.is_none_or(|before| after.is_none_or(|after| after.id != before.id)));
            self.forget(&original);
            before = None;
        }
        let is_known = |entry: &EntryView| self.is_known(&original, entry);
        let stays = before
            .filter(is_known)
            .filter(|before| after.is_some_and(|after| after.id == before.id));
        match verdict {
            Verdict::Forward if is_reply => {
                // A RST or a restart may have ended it; what it was translated to is what the model remembers.
                assert!(before.is_some_and(|before| self.is_known(&original, &before)));
                let expected = between(&packet, &original.inverse()).hops(64);
                assert_eq!(out, expected.bytes(), "reply of {original:?}");
            }
            Verdict::Forward => {
                let after = after.expect("a forwarded packet has an entry");
                if stays.is_none() {
                    self.learn(original, &after);
                }
                let reply = self.flows[&original].reply;
                assert_eq!(reply, after.reply, "{original:?} changed its translation");
                let expected = between(&packet, &reply.inverse()).hops(64);
                assert_eq!(out, expected.bytes(), "{original:?}");
            }
            // A reply of a connection that is gone is a stranger; an INVALID one goes to the node as it came.
            Verdict::Pass => {
                let is_known = before.is_some_and(|before| self.is_known(&original, &before));
                let may_be_invalid = sent.protocol == Protocol::TCP;
                assert!(is_reply && (!is_known || may_be_invalid), "{original:?}");
                assert_eq!(out, packet.hops(64).bytes());
            }
            Verdict::Drop(reason) => self.check_drop(reason, &original, before.as_ref()),
            other => panic!("{other:?}"),
        }
        if sent.protocol == Protocol::UDP && verdict == Verdict::Forward {
            self.refresh(&original, is_reply);
        }
        self.count(name(verdict));
    }

    /// The tuple that is on the wire, and where the packet comes from.
    fn as_sent(&self, original: Tuple, is_reply: bool) -> (Tuple, Origin) {
        if is_reply {
            return (self.flows[&original].reply, Origin::Pod);
        }
        let from_pod = original.destination == address(self.names.cluster_ip);
        (
            original,
            if from_pod {
                Origin::Pod
            } else {
                Origin::Outside
            },
        )
    }

    fn is_stale(&self, original: &Tuple) -> bool {
        let moved = |flow: &Flow| flow.reply.source != self.endpoint();
        original.protocol == Protocol::UDP && self.flows.get(original).is_some_and(moved)
    }

    fn is_known(&self, original: &Tuple, entry: &EntryView) -> bool {
        self.flows
            .get(original)
            .is_some_and(|flow| flow.id == entry.id)
    }

    /// An entry lives as long as the model says; only early drop may end one before.
    fn check_life(&mut self, original: &Tuple, entry: Option<&EntryView>) {
        let now = self.bed.now;
        let Some(flow) = self
            .flows
            .get(original)
            .filter(|_| original.protocol == Protocol::UDP)
        else {
            return;
        };
        let is_there = entry.is_some_and(|entry| entry.id == flow.id);
        let is_over = flow.deadline <= now;
        let distance = if is_over {
            now.since(flow.deadline)
        } else {
            flow.deadline.since(now)
        };
        let near = if flow.is_assured { STREAM_LAG } else { NEAR };
        if distance <= near || is_over != is_there {
            return;
        }
        assert!(!is_over, "{original:?} outlived its timeout: {flow:?}");
        assert!(
            !flow.is_assured,
            "an assured flow was dropped early: {flow:?}"
        );
        self.vanished += 1;
        self.forget(original);
    }

    /// A new connection goes to the endpoint that there is, and no other live connection has its reply tuple.
    fn learn(&mut self, original: Tuple, entry: &EntryView) {
        self.forget(&original);
        let masqueraded = original.destination == address(self.names.vip);
        let reply = entry.reply;
        assert_eq!((reply.source, reply.source_port), (self.endpoint(), 8080));
        let client = if masqueraded {
            address(self.names.node)
        } else {
            original.source
        };
        assert_eq!(reply.destination, client);
        if masqueraded {
            assert!(reply.destination_port > u16::MAX - PORTS, "a reserved port");
        }
        if let Some(owner) = self.owners.insert(reply, original) {
            let entry = self.bed.conntrack.get(&owner, self.bed.now);
            let lives = entry.is_some_and(|entry| self.is_known(&owner, &entry));
            assert!(!lives, "{owner:?} and {original:?} share {reply:?}");
            self.flows.remove(&owner);
        }
        let (now, id) = (self.bed.now, entry.id);
        self.flows.insert(
            original,
            Flow {
                id,
                reply,
                deadline: now,
                opened: now,
                is_answered: false,
                is_assured: false,
            },
        );
    }

    fn forget(&mut self, original: &Tuple) {
        if let Some(flow) = self.flows.remove(original) {
            self.owners.remove(&flow.reply);
        }
    }

    fn refresh(&mut self, original: &Tuple, is_reply: bool) {
        let now = self.bed.now;
        let flow = self.flows.get_mut(original).unwrap();
        let age = now.since(flow.opened);
        // So close to two seconds either is right: ask the table.
        let is_near = age + NEAR > Duration::from_secs(2) && age < NEAR + Duration::from_secs(2);
        let is_stream = if is_near {
            let entry = self.bed.conntrack.get(original, now).unwrap();
            entry.timeout > Duration::from_secs(31)
        } else {
            flow.is_answered && age > Duration::from_secs(2)
        };
        flow.is_assured |= is_stream;
        flow.is_answered |= is_reply;
        flow.deadline = now.after(Duration::from_secs(if is_stream { 120 } else { 30 }));
    }

    fn check_drop(&mut self, reason: DropReason, original: &Tuple, before: Option<&EntryView>) {
        match reason {
            DropReason::TableFull => assert!(before.is_none()),
            DropReason::NoFreePort => {
                let is_looked_at = self.random.u16(..5000) == 0;
                if is_looked_at {
                    self.check_exhausted(original);
                }
            }
            // The script goes on when segments are lost.
            DropReason::Invalid => assert_eq!(original.protocol, Protocol::TCP),
            other => panic!("{other}"),
        }
    }

    fn check_exhausted(&self, original: &Tuple) {
        let reply = Tuple {
            source: self.endpoint(),
            source_port: 8080,
            destination: address(self.names.node),
            destination_port: original.source_port,
            protocol: original.protocol,
        };
        let bed = &self.bed;
        // A port whose entry has expired, and was not swept, may be found up to 200 ms later.
        let then = Timestamp(bed.now.0 - 210_000_000);
        let (in_use, _) = ports::in_use(&bed.conntrack, &bed.reserved_ports, &reply, then);
        assert_eq!(in_use, usize::from(PORTS), "ports were free");
    }

    fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    /// Everything ends; then there is room for as many as ever, on every port.
    fn end(mut self) {
        let flows: Vec<Tuple> = self.flows.keys().copied().collect();
        for original in flows {
            let entry = self.bed.conntrack.get(&original, self.bed.now);
            self.check_life(&original, entry.as_ref());
        }
        let counted: Statistics = self.bed.conntrack.statistics().into_iter().sum();
        assert!(
            self.vanished <= counted.early_drop,
            "{} of {}",
            self.vanished,
            counted.early_drop
        );
        println!("{:?}, {} vanished, {counted:?}", self.counts, self.vanished);
        self.bed.wait(Duration::from_secs(10 * 86_400));
        while self.bed.conntrack.expire(self.bed.now, CAPACITY) > 0 {}
        assert_eq!(self.bed.conntrack.len(), 0);
        for number in 0..u32::from(PORTS) {
            let client = SocketAddr::new(address(self.names.router).into(), 40_000 + number as u16);
            let vip = SocketAddr::new(address(self.names.vip).into(), 80);
            let packet = udp(b"one more")
                .from(&client.to_string())
                .to(&vip.to_string());
            let (verdict, _) = self.bed.send(Origin::Outside, &packet);
            assert_eq!(verdict, Verdict::Forward, "a port leaked: {number}");
        }
    }
}

fn between(packet: &Build, tuple: &Tuple) -> Build {
    Build {
        source: SocketAddr::new(tuple.source.into(), tuple.source_port),
        destination: SocketAddr::new(tuple.destination.into(), tuple.destination_port),
        ..packet.clone()
    }
}

const fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forward => "forward",
        Verdict::Pass => "pass",
        Verdict::Drop(reason) => reason.name(),
        Verdict::Reject(_) | Verdict::Hold => "other",
    }
}

#[test]
fn soak() {
    let packets = std::env::var("SOAK_PACKETS").map_or(600_000, |packets| packets.parse().unwrap());
    let seed =
        std::env::var("SOAK_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("SOAK_SEED={seed}");
    let halves = FAMILIES.each_ref().map(|names| {
        std::thread::spawn(move || {
            let mut soak = Soak::new(names, seed);
            for packet in 0..packets / 2 {
                soak.step();
                if packet % 10_000_000 == 9_999_999 {
                    println!("{} million packets", packet / 1_000_000 + 1);
                }
            }
            soak.end();
        })
    });
    for half in halves {
        half.join().unwrap();
    }
}
