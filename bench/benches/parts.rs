//! The parts of the path, each alone: `cargo bench --workspace --bench parts`.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use dataplane::checksum;
use dataplane::conntrack::{Confirmed, Conntrack, Found, Settings};
use dataplane::frame::Frame;
use dataplane::packet::{Kind, Packet};
use dataplane::ports::{self, ReservedPorts};
use dataplane::tuple::{Address, Timestamp, Tuple};
use fastrand::Rng;
use std::hint::black_box;

const NOW: Timestamp = Timestamp::from_seconds(100);
const FLOWS: u32 = 100_000;

/// A datagram with 18 bytes of data from client number `number`.
fn frame(number: u32) -> Frame {
    let mut packet = [0; 46];
    packet[..10].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0x40, 0, 63, 17]);
    packet[12..16].copy_from_slice(&(0x0a00_0000 + (number >> 14)).to_be_bytes());
    packet[16..20].copy_from_slice(&[10, 128, 0, 1]);
    packet[20..22].copy_from_slice(&(1024 + (number & 0x3fff) as u16).to_be_bytes());
    packet[22..24].copy_from_slice(&8080_u16.to_be_bytes());
    packet[24..26].copy_from_slice(&26_u16.to_be_bytes());
    let sum = checksum::sum(&packet[..20]);
    packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    Frame::from_packet(&packet)
}

fn tuple(number: u32) -> Tuple {
    match Packet::parse(&mut frame(number)).map(|packet| packet.kind()) {
        Ok(Kind::Flow(headers)) => headers.tuple,
        _ => unreachable!("the frame is a datagram"),
    }
}

/// A table with [`FLOWS`] flows that are not translated.
fn table() -> Conntrack {
    let conntrack = Conntrack::new(Settings::kernel(2 * FLOWS as usize), [1, 2, 3, 4]);
    for number in 0..FLOWS {
        let _ = open(&conntrack, number);
    }
    conntrack
}

fn open(conntrack: &Conntrack, number: u32) -> Option<Found> {
    let mut frame = frame(number);
    let Kind::Flow(headers) = Packet::parse(&mut frame).ok()?.kind() else {
        return None;
    };
    let tentative = conntrack.open(&headers, NOW).ok()?;
    match conntrack.confirm(&tentative, NOW).ok()? {
        Confirmed::Inserted(found) | Confirmed::Adopted(found) => Some(found),
    }
}

fn parts(criterion: &mut Criterion) {
    let mut small = frame(1);
    criterion.bench_function("parse a datagram", |bencher| {
        bencher.iter(|| Packet::parse(black_box(&mut small)).map(|packet| packet.kind()));
    });
    let bytes = [0x5a; 1500];
    criterion.bench_function("checksum of 1,500 bytes", |bencher| {
        bencher.iter(|| checksum::sum(black_box(&bytes)));
    });
    let conntrack = table();
    let mut rng = Rng::with_seed(1);
    criterion.bench_function("find one of 100,000 flows", |bencher| {
        bencher.iter_batched(
            || tuple(rng.u32(..FLOWS)),
            |tuple| conntrack.find(&tuple, NOW).is_some(),
            BatchSize::SmallInput,
        );
    });
    criterion.bench_function("find none", |bencher| {
        bencher.iter_batched(
            || tuple(FLOWS + rng.u32(..FLOWS)),
            |tuple| conntrack.find(&tuple, NOW).is_some(),
            BatchSize::SmallInput,
        );
    });
    criterion.bench_function("open and end a flow", |bencher| {
        bencher.iter(|| open(&conntrack, FLOWS + 1).map(|found| conntrack.end(found.entry(), NOW)));
    });
    let reserved = ReservedPorts::default();
    criterion.bench_function("lease a port", |bencher| {
        bencher.iter_batched(
            || Tuple {
                destination: Address::from_v4([192, 168, 0, 1]),
                ..tuple(1).inverse()
            },
            |mut reply| {
                let random = &mut Rng::with_seed(2);
                ports::lease(&conntrack, &reserved, &mut reply, NOW, random).is_ok()
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(all, parts);
criterion_main!(all);
