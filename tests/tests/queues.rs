//! A flood in front of a TUN device that nobody reads from meanwhile, through the real kernel. Needs root.

#![expect(clippy::unwrap_used, reason = "a test may")]

use control::netlink::{Netlink, Route, write_sysctl};
use dataplane::checksum::sum;
use dataplane::frame::Frame;
use dataplane::sys::netns::unshare_network;
use dataplane::sys::queue_choice::{Keys, QueueChoice};
use dataplane::sys::tun::{self, Offloads, Queue};
use dataplane::worker::Device as _;
use fastrand::Rng;

const VIP: [u8; 4] = [10, 9, 1, 10];
const FLOODED: u16 = 80;
/// What a queue of a TUN device takes (`TUN_READQ_SIZE` of `drivers/net/tun.c`).
const ROOM: usize = 500;

/// A device from which the kernel of this network namespace forwards to another one.
struct Way {
    entry: Queue,
    exits: Vec<Queue>,
}

impl Way {
    /// None where the kernel lets this process load no program.
    fn new() -> Option<Self> {
        let mut rng = Rng::with_seed(7);
        let keys = Keys::from_numbers(|| rng.u64(..));
        let choice = QueueChoice::load(1, &keys)
            .inspect_err(|error| eprintln!("skipped: eBPF is not permitted here: {error}"))
            .ok()?;
        let entry = tun::create("entry", 1, Offloads::Off).unwrap().remove(0);
        let exits = tun::create("exit", choice.queues_per_worker(), Offloads::Off).unwrap();
        choice.attach_to(&exits[0]).unwrap();
        let mut netlink = Netlink::open().unwrap();
        for (name, prefix) in [("entry", "10.9.0.0/24"), ("exit", "10.9.1.0/24")] {
            let index = netlink.link_index(name).unwrap();
            netlink.set_up(index, true).unwrap();
            let mut route = Route::new(prefix.parse().unwrap());
            route.oif = Some(index);
            netlink.add_route(&route).unwrap();
        }
        write_sysctl("ipv4/ip_forward", "1").unwrap();
        Some(Self { entry, exits })
    }

    fn send(&mut self, packet: &[u8]) {
        self.entry.send(&Frame::from_packet(packet)).unwrap();
    }

    /// All that waits, queue by queue: source and destination port of each packet of TCP.
    fn waiting(&mut self) -> Vec<Vec<(u16, u16)>> {
        let mut frame = Frame::new();
        let mut take = |queue: &mut Queue| {
            let mut waiting = Vec::new();
            while queue.receive(&mut frame).unwrap() {
                // The kernel says something of itself by IPv6.
                if let [0x45, .., _] = frame.packet() {
                    let ports = frame.packet()[20..24].as_chunks::<2>().0;
                    waiting.push((u16::from_be_bytes(ports[0]), u16::from_be_bytes(ports[1])));
                }
            }
            waiting
        };
        self.exits.iter_mut().map(&mut take).collect()
    }
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A segment without data.
fn segment(flags: u8, host: u8, from: u16, to: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 9, 0, host];
    packet.extend(VIP);
    let checksum = !sum(&packet);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 7, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet
}

#[test]
fn root_a_flood_of_syns_takes_no_room_of_others() {
    const CONNECTIONS: u16 = 200;
    let test = || {
        unshare_network().expect("needs root");
        let Some(mut way) = Way::new() else { return };
        for number in 0..8 * ROOM {
            let (host, port) = ((number % 250) as u8 + 2, 1000 + (number / 250) as u16);
            way.send(&segment(SYN, host, port, FLOODED));
        }
        for connection in 0..CONNECTIONS {
            way.send(&segment(
                ACK,
                connection as u8 + 2,
                5000 + connection,
                FLOODED,
            ));
            way.send(&segment(SYN, 7, 6000 + connection, 1 + connection % 32));
        }
        let queues = way.waiting();
        let all = || queues.iter().flatten();

        let of_the_flood = all().filter(|(from, _)| *from < 5000).count();
        let full = queues.iter().filter(|queue| queue.len() == ROOM).count();
        assert_eq!((of_the_flood, full), (4 * ROOM, 4), "it fills its column");
        let established = all()
            .filter(|(from, _)| (5000..6000).contains(from))
            .count();
        assert_eq!(established, usize::from(CONNECTIONS), "none is lost");
        let opened = all().filter(|(from, _)| *from >= 6000).count();
        assert!(
            opened >= usize::from(CONNECTIONS) / 2,
            "{opened} of {CONNECTIONS}"
        );
    };
    std::thread::spawn(test).join().unwrap();
}
