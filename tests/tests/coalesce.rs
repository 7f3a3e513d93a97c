//! Coalesced frames against the real kernel: it cuts them into the packets that they were made of. Needs root.
//!
//! The same packets go through two TUN devices twice, one by one and coalesced, forwarded by the kernel; the second device
//! has no offloads, so that packets come out of it cut and with complete checksums.

#![expect(clippy::unwrap_used, reason = "a test may")]

use control::netlink::{Netlink, Route, write_sysctl};
use dataplane::checksum::{pseudo_header, sum};
use dataplane::coalesce::Train;
use dataplane::frame::Frame;
use dataplane::sys::tun::{self, Offloads, Queue};
use dataplane::tuple::Address;
use dataplane::worker::Device;
use fastrand::Rng;
use std::time::{Duration, Instant};

const UDP: u8 = 17;
const TCP: u8 = 6;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;

/// What a packet is made of.
#[derive(Clone)]
struct Recipe {
    ipv4: bool,
    protocol: u8,
    source_port: u16,
    identification: u16,
    hops: u8,
    traffic_class: u8,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    data: Vec<u8>,
    owes_checksum: bool,
}

impl Recipe {
    fn any(rng: &mut Rng) -> Self {
        let options = if rng.bool() {
            [vec![1, 1, 8, 10], vec![rng.u8(..); 8]].concat()
        } else {
            Vec::new()
        };
        Self {
            ipv4: rng.bool(),
            protocol: if rng.bool() { UDP } else { TCP },
            source_port: rng.u16(1024..),
            identification: rng.u16(..),
            hops: 64,
            traffic_class: 0,
            sequence: rng.u32(..),
            acknowledgement: rng.u32(..),
            flags: ACK,
            window: 500,
            options,
            data: vec![rng.u8(..); rng.usize(1..1400)],
            owes_checksum: true,
        }
    }

    /// The packet that a sender would send next, but for one thing now and then.
    fn next(&self, rng: &mut Rng) -> Self {
        let mut next = self.clone();
        next.identification = self.identification.wrapping_add(1);
        next.sequence = self.sequence.wrapping_add(self.data.len() as u32);
        next.flags = ACK;
        let size = match self.data.len() {
            0 => rng.usize(1..1400),
            size => size,
        };
        next.data = vec![rng.u8(..); size];
        match rng.u8(..60) {
            0 => next = Self::any(rng),
            1 => next.identification = rng.u16(..),
            2 => next.hops -= 1,
            3 => next.traffic_class ^= 8,
            4 => next.sequence = next.sequence.wrapping_add(1),
            5 => next.acknowledgement = next.acknowledgement.wrapping_add(1),
            6 => next.flags |= PSH,
            7 => next.flags |= FIN,
            8 => next.window += 1,
            9 => next.options.iter_mut().for_each(|byte| *byte ^= 1),
            10 => next.data.truncate(rng.usize(..=size)),
            11 => next.data = vec![7; rng.usize(1..1400)],
            12 => next.owes_checksum = !next.owes_checksum,
            13 => next.source_port ^= 1,
            14 => next.data.clear(),
            _ => {}
        }
        next
    }

    fn frame(&self) -> Frame {
        let transport = self.transport();
        let mut packet = self.ip_header(transport.len());
        let start = packet.len();
        packet.extend(transport);
        let mut frame = Frame::from_packet(&packet);
        let at = if self.protocol == UDP { 6 } else { 16 };
        let address = |nth: usize| {
            if self.ipv4 {
                Address::from_v4(packet[12 + 4 * nth..][..4].try_into().unwrap())
            } else {
                Address::from_v6(packet[8 + 16 * nth..][..16].try_into().unwrap())
            }
        };
        let length = (packet.len() - start) as u32;
        let owed = pseudo_header(address(0), address(1), self.protocol, length);
        let field = start + at..start + at + 2;
        frame.packet_mut()[field.clone()].copy_from_slice(&owed.to_be_bytes());
        if self.owes_checksum {
            frame.set_partial_checksum(start as u16, at as u16);
        } else {
            let complete = !sum(&frame.packet()[start..]);
            frame.packet_mut()[field].copy_from_slice(&complete.to_be_bytes());
        }
        frame
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = [self.source_port.to_be_bytes(), 80u16.to_be_bytes()].concat();
        if self.protocol == UDP {
            bytes.extend((8 + self.data.len() as u16).to_be_bytes());
            bytes.extend([0, 0]);
        } else {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend(self.acknowledgement.to_be_bytes());
            bytes.extend([(5 + self.options.len() as u8 / 4) << 4, self.flags]);
            bytes.extend(self.window.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(&self.options);
        }
        bytes.extend(&self.data);
        bytes
    }

    fn ip_header(&self, length: usize) -> Vec<u8> {
        if self.ipv4 {
            let mut header = vec![0x45, self.traffic_class];
            header.extend((20 + length as u16).to_be_bytes());
            header.extend(self.identification.to_be_bytes());
            header.extend([0x40, 0, self.hops, self.protocol, 0, 0]);
            header.extend([10, 9, 0, 2, 10, 9, 1, 2]);
            let checksum = !sum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        } else {
            let mut header = vec![
                0x60 | self.traffic_class >> 4,
                self.traffic_class << 4,
                0,
                0,
            ];
            header.extend((length as u16).to_be_bytes());
            header.extend([self.protocol, self.hops]);
            for net in [0, 1] {
                header.extend([0xfd, 9, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            }
            header
        }
    }
}

/// Two devices, between which the kernel of this network namespace forwards.
struct Wire {
    entry: Queue,
    exit: Queue,
}

impl Wire {
    fn new() -> Self {
        let queue = |name, offloads| tun::create(name, 1, offloads).unwrap().remove(0);
        let entry = queue("entry", Offloads::On);
        let exit = queue("exit", Offloads::Off);
        let mut netlink = Netlink::open().unwrap();
        for (name, net) in [("entry", 0), ("exit", 1)] {
            let index = netlink.link_index(name).unwrap();
            netlink.set_up(index, true).unwrap();
            for prefix in [format!("10.9.{net}.0/24"), format!("fd09:{net}::/64")] {
                let mut route = Route::new(prefix.parse().unwrap());
                route.oif = Some(index);
                netlink.add_route(&route).unwrap();
            }
        }
        write_sysctl("ipv4/ip_forward", "1").unwrap();
        write_sysctl("ipv6/conf/all/forwarding", "1").unwrap();
        Self { entry, exit }
    }

    /// What comes out, until there were so many packets.
    fn receive(&mut self, packets: usize) -> Vec<Vec<u8>> {
        let mut frame = Frame::new();
        let mut received = Vec::new();
        let end = Instant::now() + Duration::from_secs(5);
        while received.len() < packets && Instant::now() < end {
            if !self.exit.receive(&mut frame).unwrap() {
                std::thread::sleep(Duration::from_millis(1));
            } else if frame.packet()[0] == 0x45 || frame.packet()[8] == 0xfd {
                // Not what the kernel says of itself from link-local addresses.
                received.push(frame.packet().to_vec());
            }
        }
        received
    }
}

/// Sends the frames as a worker does. Returns how many there were then.
fn send_coalesced(queue: &mut Queue, frames: &[Frame]) -> usize {
    let mut train = Train::default();
    let mut sent = 0;
    let mut send = |frame: &Frame| {
        queue.send(frame).unwrap();
        sent += 1;
    };
    for frame in frames {
        if train.take(frame) {
            continue;
        }
        train.frame().into_iter().for_each(&mut send);
        train.clear();
        if !train.take(frame) {
            send(frame);
        }
    }
    train.frame().into_iter().for_each(&mut send);
    sent
}

#[test]
fn root_the_kernel_cuts_a_train_into_its_packets() {
    const PACKETS: usize = 150;
    std::thread::spawn(|| {
        dataplane::sys::netns::unshare_network().expect("needs root");
        let mut wire = Wire::new();
        let mut rng = Rng::with_seed(7);
        let (mut packets, mut frames_sent) = (0, 0);
        for round in 0..60 {
            let mut recipe = Recipe::any(&mut rng);
            let frames: Vec<Frame> = std::iter::repeat_with(|| {
                recipe = recipe.next(&mut rng);
                recipe.frame()
            })
            .take(PACKETS)
            .collect();
            for frame in &frames {
                wire.entry.send(frame).unwrap();
            }
            let singly = wire.receive(PACKETS);
            assert_eq!(singly.len(), PACKETS, "round {round}");
            packets += PACKETS;
            frames_sent += send_coalesced(&mut wire.entry, &frames);
            let coalesced = wire.receive(PACKETS);
            assert_eq!(coalesced.len(), PACKETS, "round {round}");
            for (nth, (one, other)) in singly.iter().zip(&coalesced).enumerate() {
                assert_eq!(one, other, "round {round}, packet {nth}");
            }
        }
        assert!(
            frames_sent * 2 < packets,
            "{packets} packets were {frames_sent} frames"
        );
    })
    .join()
    .unwrap();
}
