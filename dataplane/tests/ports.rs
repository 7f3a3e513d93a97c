//! Source ports: classes, clashes, the last free port, blocks; no port leaks.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod flow;

use dataplane::conntrack::{ConfirmError, Confirmed, Conntrack, Headers, Settings, Transport};
use dataplane::ports::{Blocks, NoPort, ReservedPorts, draw, lease, lease_in};
use dataplane::tuple::{Address, Protocol, Timestamp, Tuple};
use flow::{FAMILIES, address, remove};
use std::collections::HashSet;
use std::time::Duration;

const NOW: Timestamp = Timestamp::from_seconds(5000);

/// As sent by client `nth`, masqueraded to the node, towards one server: the reply tuple before a port is chosen.
fn flow_of(ipv4: bool, nth: u32, source_port: u16) -> (Tuple, Tuple) {
    let source = if ipv4 {
        Address::from_v4((0x0a01_0000 + nth).to_be_bytes())
    } else {
        Address::from_bits(0xfd01 << 112 | u128::from(nth))
    };
    let original = Tuple {
        source,
        destination: address(ipv4, 9),
        source_port,
        destination_port: 443,
        protocol: Protocol::UDP,
    };
    let reply = Tuple {
        destination: address(ipv4, 1),
        ..original.inverse()
    };
    (original, reply)
}

struct Node {
    conntrack: Conntrack,
    reserved: ReservedPorts,
    random: fastrand::Rng,
}

impl Node {
    fn new() -> Self {
        Self {
            conntrack: Conntrack::new(Settings::kernel(200_000), [7; 4]),
            reserved: ReservedPorts::default(),
            random: fastrand::Rng::with_seed(1),
        }
    }

    fn lease(&mut self, reply: &mut Tuple, now: Timestamp) -> Result<(), NoPort> {
        let random = &mut self.random;
        lease(&self.conntrack, &self.reserved, reply, now, random)
    }

    fn draw(&mut self, reply: &mut Tuple) -> Result<(), NoPort> {
        let random = &mut self.random;
        draw(&self.conntrack, &self.reserved, reply, NOW, random)
    }

    fn try_confirm(
        &self,
        original: Tuple,
        reply: Tuple,
        now: Timestamp,
    ) -> Result<Confirmed, ConfirmError> {
        let headers = Headers {
            tuple: original,
            transport: Transport::Udp,
            length: 60,
        };
        let mut tentative = self.conntrack.open(&headers, now).unwrap();
        tentative.reply = reply;
        self.conntrack.confirm(&tentative, now)
    }

    fn confirm(&self, original: Tuple, reply: Tuple, now: Timestamp) {
        let confirmed = self.try_confirm(original, reply, now);
        assert!(matches!(confirmed, Ok(Confirmed::Inserted(_))));
    }

    fn masquerade(&mut self, ipv4: bool, nth: u32, now: Timestamp) -> Result<(Tuple, u16), NoPort> {
        let (original, mut reply) = flow_of(ipv4, nth, 40_000);
        self.lease(&mut reply, now)?;
        self.confirm(original, reply, now);
        Ok((original, reply.destination_port))
    }
}

/// Section 4, step 4: classes by the packet's own port; identifiers of ICMP.
#[test]
fn classes() {
    let rows = [
        (1, 1..=511),
        (511, 1..=511),
        (512, 600..=1023),
        (1023, 600..=1023),
        (1024, 1024..=65_535),
    ];
    let mut node = Node::new();
    for (own, class) in rows {
        let mut seen = HashSet::new();
        for _ in 0..4000 {
            let (_, mut reply) = flow_of(true, 1, own);
            node.lease(&mut reply, NOW).unwrap();
            assert!(
                class.contains(&reply.destination_port),
                "{own}: {}",
                reply.destination_port
            );
            seen.insert(reply.destination_port);
        }
        assert!(seen.len() > 300, "{own}: ports are random");
    }
    let mut reply = flow_of(true, 1, 0).1;
    (reply.protocol, reply.source_port, reply.destination_port) = (Protocol::ICMP, 777, 0);
    let before = reply;
    node.lease(&mut reply, NOW).unwrap();
    assert_ne!(reply.source_port, 777);
    assert_eq!(
        Tuple {
            source_port: 777,
            ..reply
        },
        before,
        "only the identifier changes"
    );
}

/// Section 4: the port is kept while the reply tuple is free (null binding, plain MASQUERADE), else another is found.
#[test]
fn kept_if_free() {
    for ipv4 in FAMILIES {
        let mut node = Node::new();
        let (original, reply) = flow_of(ipv4, 1, 5000);
        node.confirm(original, reply, NOW);
        let (original, mut second) = flow_of(ipv4, 2, 5000);
        let taken = node.try_confirm(original, second, NOW).map(drop);
        assert_eq!(taken, Err(ConfirmError::ReplyTaken));
        node.lease(&mut second, NOW).unwrap();
        assert_ne!(
            second.destination_port, 5000,
            "trap 2: changed although nothing else is translated"
        );
        node.confirm(original, second, NOW);
        let (original, third) = flow_of(ipv4, 3, 5000);
        let elsewhere = Tuple {
            source: address(ipv4, 10),
            ..third
        };
        node.confirm(original, elsewhere, NOW);
    }
}

/// What is drawn is of the packet's class and not reserved; a protocol without ports has none to draw.
#[test]
fn drawn_ports() {
    let mut node = Node::new();
    node.reserved.replace(Protocol::UDP, 600..1020);
    let mut seen = HashSet::new();
    for _ in 0..200 {
        let (_, mut reply) = flow_of(true, 1, 700);
        node.draw(&mut reply).unwrap();
        seen.insert(reply.destination_port);
    }
    assert!(seen.len() > 1 && seen.iter().all(|port| (1020..1024).contains(port)));
    node.reserved.replace(Protocol::UDP, 600..1024);
    let (_, mut reply) = flow_of(true, 1, 700);
    assert_eq!(node.draw(&mut reply), Err(NoPort::Exhausted));
    assert_eq!(reply.destination_port, 700);
    reply.protocol = Protocol(47);
    let before = reply;
    node.draw(&mut reply).unwrap();
    assert_eq!(reply, before);
}

/// Every port of the class is found, each once, none that the node listens on; then it says so; then what is freed is
/// found again.
#[test]
fn until_the_last_port() {
    for ipv4 in FAMILIES {
        let mut node = Node::new();
        node.reserved
            .replace(Protocol::UDP, [1024, 8472, 30_000, 65_535]);
        let mut flows = Vec::new();
        for nth in 0..64_512 - 4 {
            flows.push(node.masquerade(ipv4, nth, NOW).unwrap());
        }
        let ports: HashSet<u16> = flows.iter().map(|(_, port)| *port).collect();
        assert_eq!(ports.len(), flows.len(), "each once");
        assert!(
            [1024, 8472, 30_000, 65_535]
                .iter()
                .all(|port| !ports.contains(port))
        );
        assert_eq!(node.masquerade(ipv4, 100_000, NOW), Err(NoPort::Exhausted));
        for round in 0..200 {
            let victim = node.random.usize(..flows.len());
            let (original, port) = flows[victim];
            assert!(remove(&node.conntrack, &original, NOW));
            flows[victim] = node.masquerade(ipv4, 200_000 + round, NOW).unwrap();
            assert_eq!(flows[victim].1, port, "the only one that is free");
        }
        let (original, mut low) = flow_of(ipv4, 300_000, 700);
        node.lease(&mut low, NOW).unwrap();
        node.confirm(original, low, NOW);
        let later = NOW.after(Duration::from_secs(31));
        assert!(
            node.masquerade(ipv4, 400_000, later).is_ok(),
            "expired, not swept: free"
        );
        while node.conntrack.expire(later, 10_000) > 0 {}
        assert_eq!(node.conntrack.len(), 1, "no entry leaks");
        for nth in 0..64_512 - 5 {
            node.masquerade(ipv4, 500_000 + nth, later)
                .expect("no port leaks");
        }
    }
}

/// Over random sequences of lease, confirm, give up, remove and expire: a port is found exactly while one is free.
#[test]
fn no_port_leaks() {
    let range = 2000..=2063_u16;
    for seed in 0..30 {
        let mut node = Node::new();
        node.random.seed(seed);
        let mut live: Vec<(Tuple, u16)> = Vec::new();
        let mut now = NOW;
        for nth in 0..2000 {
            now = now.after(Duration::from_millis(20));
            let (original, mut reply) = flow_of(true, nth, 40_000);
            let result = lease_in(
                &node.conntrack,
                &node.reserved,
                &mut reply,
                range.clone(),
                now,
                &mut node.random,
            );
            assert_eq!(
                result.is_ok(),
                live.len() < range.len(),
                "seed {seed}, {nth}: {} live",
                live.len()
            );
            if result.is_ok() && node.random.u8(..8) > 0 {
                assert!(live.iter().all(|(_, port)| *port != reply.destination_port));
                node.confirm(original, reply, now);
                live.push((original, reply.destination_port));
            }
            if node.random.u8(..20) == 0 {
                for _ in 0..node.random.usize(..=live.len()) {
                    let (original, _) = live.swap_remove(node.random.usize(..live.len()));
                    assert!(remove(&node.conntrack, &original, now));
                }
            }
            // Live ones are kept alive.
            for (original, _) in &live {
                let found = node.conntrack.find(original, now).unwrap();
                let headers = Headers {
                    tuple: *original,
                    transport: Transport::Udp,
                    length: 60,
                };
                let _ = node.conntrack.track(&found, &headers, now);
            }
        }
    }
}

/// Section 3, "any other": one flow per pair of addresses.
#[test]
fn protocols_without_ports() {
    let mut node = Node::new();
    let bare = |tuple: Tuple| Tuple {
        protocol: Protocol(89),
        source_port: 0,
        destination_port: 0,
        ..tuple
    };
    let (original, reply) = flow_of(true, 1, 0);
    let (original, mut reply) = (bare(original), bare(reply));
    node.lease(&mut reply, NOW).unwrap();
    node.confirm(original, reply, NOW);
    let mut second = bare(flow_of(true, 2, 0).1);
    assert_eq!(node.lease(&mut second, NOW), Err(NoPort::NoPorts));
}

/// Blocks are disjoint, of the given size, and come back.
#[test]
fn blocks() {
    let mut blocks = Blocks::new(1024..=65_535, 1000);
    assert_eq!(blocks.free(), 64);
    let mut seen = HashSet::new();
    for owner in 0..64 {
        let block = blocks.claim(owner % 8).unwrap();
        assert_eq!(block.len(), 1000);
        assert!(
            block
                .into_iter()
                .all(|port| port >= 1024 && seen.insert(port))
        );
    }
    assert_eq!(blocks.claim(1), None);
    assert_eq!(blocks.of(3).count(), 8);
    blocks.release(3);
    assert_eq!((blocks.free(), blocks.of(3).count()), (8, 0));
    let mut node = Node::new();
    let block = blocks.of(4).next().unwrap();
    for nth in 0..1000 {
        let (original, mut reply) = flow_of(true, nth, 40_000);
        lease_in(
            &node.conntrack,
            &node.reserved,
            &mut reply,
            block.clone(),
            NOW,
            &mut node.random,
        )
        .unwrap();
        assert!(block.contains(&reply.destination_port));
        node.confirm(original, reply, NOW);
    }
    let (_, mut reply) = flow_of(true, 5000, 40_000);
    let full = lease_in(
        &node.conntrack,
        &node.reserved,
        &mut reply,
        block,
        NOW,
        &mut node.random,
    );
    assert_eq!(full, Err(NoPort::Exhausted));
}
