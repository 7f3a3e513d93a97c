//! Random bytes and random sequences of packets through the whole path: it never panics, what it forwards is an intact
//! packet, what it passes is unchanged, and nothing is left of it when all has ended.
//!
//! `FUZZ_SECONDS=600 cargo test --release --workspace --test fuzz -- --nocapture` looks for longer. A finding prints
//! `FUZZ_SEED`, which runs it again.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::*;
use dataplane::conntrack::{Conntrack, Settings};
use dataplane::frame::Frame;
use dataplane::packet::{Kind, Packet};
use dataplane::service::Generation;
use dataplane::tuple::Origin;
use dataplane::verdict::Verdict;
use fastrand::Rng;
use std::time::{Duration, Instant};

const ORIGINS: [Origin; 3] = [Origin::Pod, Origin::Outside, Origin::Node];
/// Packets of one node, before the next begins anew.
const PACKETS: usize = 2000;

/// Runs `round` on one seed after another, until the time is over.
fn fuzz(round: impl Fn(&mut Rng)) {
    let variable = |name| {
        std::env::var(name)
            .ok()
            .map(|text: String| text.parse().unwrap())
    };
    if let Some(seed) = variable("FUZZ_SEED") {
        return round(&mut Rng::with_seed(seed));
    }
    let end = Instant::now() + Duration::from_secs(variable("FUZZ_SECONDS").unwrap_or(2));
    let mut rounds = 0_u64;
    while Instant::now() < end {
        let seed = fastrand::u64(..);
        let failure = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            round(&mut Rng::with_seed(seed));
        }));
        assert!(failure.is_ok(), "FUZZ_SEED={seed}");
        rounds += 1;
    }
    println!("{rounds} rounds of up to {PACKETS} packets");
}

#[test]
fn packet_bytes() {
    fuzz(|random| {
        let mut bed = small_bed(random);
        for _ in 0..PACKETS {
            let mut packet = if random.u8(..8) == 0 {
                bytes(random, 200)
            } else {
                any_packet(random)
            };
            for _ in 0..random.u8(..4) {
                spoil(random, &mut packet);
            }
            send(random, &mut bed, &packet);
        }
        check_end(&mut bed);
    });
}

/// Packets that have to do with each other: replies, errors about them, fragments of them, while time goes on and
/// endpoints come and go.
#[test]
fn packet_sequences() {
    fuzz(|random| {
        let mut bed = small_bed(random);
        let mut seen: Vec<Vec<u8>> = vec![any_packet(random)];
        for step in 0..PACKETS / 2 {
            let earlier = seen[random.usize(..seen.len())].clone();
            let packets = match random.u8(..12) {
                0..4 => vec![any_packet(random)],
                4..7 => vec![answer(&earlier)],
                7 => vec![error_about(random, &earlier)],
                8 => fragments(random, &earlier),
                9 => vec![with_more_headers(random, &earlier)],
                10 => vec![with_other_flags(random, &earlier)],
                _ => vec![earlier],
            };
            for mut packet in packets {
                mend(&mut packet);
                let sent = send(random, &mut bed, &packet);
                seen.extend(sent);
            }
            seen.truncate(64);
            match random.u8(..200) {
                0 => bed.wait(Duration::from_secs(random.u64(..200))),
                1 => {
                    let n = names(random);
                    bed.services = services_with(n, n.pod, Generation(step as u64));
                }
                2..10 => bed.wait(Duration::from_millis(random.u64(..3000))),
                10..30 => drop(bed.conntrack.expire(bed.now, 50)),
                30 => bed.fragments.expire(bed.now),
                _ => {}
            }
            let any = random.usize(..seen.len());
            seen.swap(0, any);
        }
        check_end(&mut bed);
    });
}

fn names(random: &mut Rng) -> &'static Names {
    // Services are of one family at a time.
    &FAMILIES[random.usize(..FAMILIES.len())]
}

fn small_bed(random: &mut Rng) -> Bed {
    let mut bed = Bed::new(services(names(random)));
    let settings = Settings {
        accounting: random.bool(),
        per_source: random.bool().then_some(30),
        ..Settings::kube_proxy(random.usize(1..200))
    };
    bed.conntrack = Conntrack::new(settings, [random.u64(..), 2, 3, 4]);
    bed
}

fn bytes(random: &mut Rng, fewer_than: usize) -> Vec<u8> {
    (0..random.usize(..fewer_than))
        .map(|_| random.u8(..))
        .collect()
}

/// A packet that is right, between hosts of the lab.
fn any_packet(random: &mut Rng) -> Vec<u8> {
    let n = names(random);
    let hosts = [
        n.client,
        n.pod,
        n.other_pod,
        n.node,
        n.cluster_ip,
        n.vip,
        n.router,
    ];
    let host = |random: &mut Rng| hosts[random.usize(..hosts.len())];
    let port = |random: &mut Rng| {
        [80, 81, 84, 8080, 30080, 40000, 40001, random.u16(..)][random.usize(..8)]
    };
    let payload = bytes(random, 40);
    let packet = match random.u8(..6) {
        0..3 => tcp(random.u8(..64)).sequence(random.u32(990..1010), random.u32(990..1010)),
        3..5 => udp(&payload),
        _ => echo_request(n.pod, random.u16(..4)),
    };
    let (from, to) = (
        at(host(random), port(random)),
        at(host(random), port(random)),
    );
    packet.from(&from).to(&to).bytes()
}

/// Sends a packet and holds the verdict against what came of it. Returns what went out.
fn send(random: &mut Rng, bed: &mut Bed, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut frame = Frame::from_packet(packet);
    if random.u8(..20) == 0 {
        frame.set_partial_checksum(random.u16(..80), random.u16(..20));
    }
    let is_partial = frame.checksum_state() != dataplane::frame::ChecksumState::Unverified;
    let is_intact = is_intact(packet);
    let origin = ORIGINS[random.usize(..3)];
    let (verdict, out) = bed.send_frame(origin, &mut frame);
    // A refusal is about the whole datagram.
    assert!(out.len() == packet.len() || matches!(verdict, Verdict::Reject(_)));
    if !bed.datagram.is_empty() {
        return bed.datagram.clone();
    }
    match verdict {
        Verdict::Forward => {
            assert!(is_parsed(&out), "{packet:02x?} became {out:02x?}");
            assert!(
                !is_intact || is_partial || self::is_intact(&out),
                "{packet:02x?} became {out:02x?}"
            );
        }
        Verdict::Pass => assert_eq!(without_hop(&out), without_hop(packet)),
        Verdict::Drop(_) | Verdict::Hold | Verdict::Reject(_) => return Vec::new(),
    }
    vec![out]
}

/// Whether it is a packet whose checksums are right.
fn is_intact(packet: &[u8]) -> bool {
    let header_is_right = packet.first().is_none_or(|first| first >> 4 != 4)
        || naive_sum(&packet[..(usize::from(packet[0] & 15) * 4).min(packet.len())]) == 0xffff;
    let mut frame = Frame::from_packet(packet);
    header_is_right
        && is_parsed(packet)
        && Packet::parse(&mut frame).is_ok_and(|packet| !packet.has_bad_checksum())
}

/// Whether connection tracking can make something of the packet.
fn is_parsed(packet: &[u8]) -> bool {
    Packet::parse(&mut Frame::from_packet(packet)).is_ok_and(|packet| {
        let kind = packet.kind();
        matches!(kind, Kind::Flow(_) | Kind::Error(_) | Kind::Fragment)
    })
}

/// All but hop limit or TTL, and the header checksum that follows it.
fn without_hop(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => {
            packet[8] = 0;
            packet[10..12].fill(0);
        }
        Some(6) if packet.len() >= 40 => packet[7] = 0,
        _ => {}
    }
    packet
}

/// One change that no sender would make.
fn spoil(random: &mut Rng, packet: &mut Vec<u8>) {
    if packet.is_empty() {
        return;
    }
    let at = random.usize(..packet.len().min(80));
    match random.u8(..6) {
        0 => packet[at] ^= 1 << random.u8(..8),
        1 => packet[at] = [0, 1, 0x7f, 0x80, 0xff][random.usize(..5)],
        2 => packet.truncate(at),
        3 => packet.extend(std::iter::repeat_n(random.u8(..), random.usize(..100))),
        4 => drop(packet.splice(at..at, [random.u8(..); 4])),
        _ => mend(packet),
    }
}

/// Makes lengths and checksums right again, as far as that goes.
fn mend(packet: &mut [u8]) {
    let Some((header, protocol, pseudo)) = layout(packet) else {
        return;
    };
    let at = match protocol {
        6 => 16,
        17 => 6,
        1 | 58 => 2,
        _ => return,
    };
    if let Some(field) = packet.get_mut(header + at..header + at + 2) {
        field.fill(0);
        let checksum = !naive_sum(&[&pseudo, &packet[header..]].concat());
        let checksum = if checksum == 0 && protocol == 17 {
            0xffff
        } else {
            checksum
        };
        packet[header + at..header + at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Mends the IP header; where the transport header begins, its protocol, and the pseudo-header of its checksum.
fn layout(packet: &mut [u8]) -> Option<(usize, u8, Vec<u8>)> {
    let length = packet.len();
    match packet.first()? >> 4 {
        4 if length >= 20 => {
            let header = usize::from(packet[0] & 15) * 4;
            if header < 20 || header > length || length > 65_535 {
                return None;
            }
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            packet[10..12].fill(0);
            let checksum = !naive_sum(&packet[..header]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            let protocol = packet[9];
            let mut pseudo = packet[12..20].to_vec();
            pseudo.extend([0, protocol]);
            pseudo.extend(((length - header) as u16).to_be_bytes());
            Some((
                header,
                protocol,
                if protocol == 1 { Vec::new() } else { pseudo },
            ))
        }
        6 if (40..65_575).contains(&length) => {
            packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            let protocol = packet[6];
            let mut pseudo = packet[8..40].to_vec();
            pseudo.extend([0, protocol]);
            pseudo.extend(((length - 40) as u16).to_be_bytes());
            Some((40, protocol, pseudo))
        }
        _ => None,
    }
}

/// The same packet from the other side.
fn answer(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let (addresses, size, header) = match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 28 => (12, 4, usize::from(packet[0] & 15) * 4),
        Some(6) if packet.len() >= 48 => (8, 16, 40),
        _ => return packet,
    };
    for nth in addresses..addresses + size {
        packet.swap(nth, nth + size);
    }
    if packet.len() >= header + 4 {
        packet.swap(header, header + 2);
        packet.swap(header + 1, header + 3);
        if let [.., 8 | 0, _, _, _] = packet[..header + 4] {
            packet[header] ^= 8;
        }
    }
    packet
}

fn error_about(random: &mut Rng, quoted: &[u8]) -> Vec<u8> {
    let is_ipv4 = quoted.first().is_some_and(|first| first >> 4 == 4);
    let n = &FAMILIES[usize::from(!is_ipv4)];
    let (kind, size, at) = if is_ipv4 {
        ([3, 4, 5, 11, 12][random.usize(..5)], 4, 12)
    } else {
        ([1, 2, 3, 4, 137][random.usize(..5)], 16, 8)
    };
    let quoted = &quoted[..random.usize(..=quoted.len())];
    let mut error = icmp_error(kind, random.u8(..5), quoted)
        .from(n.router)
        .to(n.client)
        .bytes();
    // To the sender of what it quotes.
    if let Some(sender) = quoted.get(at..at + size) {
        error[at + size..at + 2 * size].copy_from_slice(sender);
    }
    error
}

/// Cuts the packet up; some pieces are lost, come twice, late, or overlap.
fn fragments(random: &mut Rng, packet: &[u8]) -> Vec<Vec<u8>> {
    let is_ipv4 = packet.first().is_some_and(|first| first >> 4 == 4);
    let header = if is_ipv4 { 20 } else { 40 };
    if packet.len() < header + 9 {
        return vec![packet.to_vec()];
    }
    let (head, body) = packet.split_at(header);
    let size = random.usize(1..=body.len().div_ceil(16)) * 8;
    let identification = random.u16(..3);
    let mut pieces: Vec<Vec<u8>> = (0..body.len().div_ceil(size))
        .map(|nth| {
            let skew = usize::from(random.u8(..40) == 0);
            let data = &body[nth * size..((nth + 1) * size).min(body.len())];
            let is_last = (nth + 1) * size >= body.len();
            let offset = (nth * size / 8).saturating_sub(skew) as u16;
            if is_ipv4 {
                let mut head = head.to_vec();
                head[4..6].copy_from_slice(&identification.to_be_bytes());
                let field = offset | if is_last { 0 } else { 0x2000 };
                head[6..8].copy_from_slice(&field.to_be_bytes());
                [&head, data].concat()
            } else {
                let mut head = head.to_vec();
                let field = offset << 3 | u16::from(!is_last);
                let [high, low] = field.to_be_bytes();
                let fragment = [head[6], 0, high, low, 0, 0, 0, identification as u8];
                head[6] = 44;
                [&head, &fragment[..], data].concat()
            }
        })
        .collect();
    random.shuffle(&mut pieces);
    pieces.retain(|_| random.u8(..20) > 0);
    pieces
}

/// IPv4 options, or IPv6 extension headers.
fn with_more_headers(random: &mut Rng, packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 && packet[0] & 15 < 13 => {
            packet[0] += 2;
            packet.splice(20..20, [7, 7, 4, 10, 0, 0, random.u8(..), 0]);
        }
        Some(6) if packet.len() >= 40 => {
            let next = std::mem::replace(&mut packet[6], [0, 43, 60, 135][random.usize(..4)]);
            packet.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
        }
        _ => {}
    }
    packet
}

fn with_other_flags(random: &mut Rng, packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let header = if packet.first().is_some_and(|first| first >> 4 == 4) {
        20
    } else {
        40
    };
    if let Some(flags) = packet.get_mut(header + 13) {
        *flags = [2, 18, 16, 17, 4, 20, 24][random.usize(..7)];
    }
    packet
}

/// When all has ended nothing is left.
fn check_end(bed: &mut Bed) {
    bed.wait(Duration::from_secs(20 * 86_400));
    while bed.conntrack.expire(bed.now, 1000) > 0 {}
    bed.fragments.expire(bed.now);
    assert_eq!(bed.conntrack.len(), 0);
    assert!(bed.fragments.is_empty());
    let mut entries = 0;
    bed.conntrack.for_each(bed.now, |_| entries += 1);
    assert_eq!(entries, 0);
}
