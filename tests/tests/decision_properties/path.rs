//! What `explain` says of a packet, and what the path does with it.

use crate::random::{NODES, config, packet, snapshot, snapshot_objects};
use control::explain::{Candidate, Explainer, Explanation, Packet, Verdict as Explained};
use control::model::Transport;
use dataplane::conntrack::{Conntrack, Settings};
use dataplane::fragments::Fragments;
use dataplane::frame::Frame;
use dataplane::notices::Notices;
use dataplane::packet::sctp_checksum;
use dataplane::path::{self, Context, Openings, Prepared};
use dataplane::ports::ReservedPorts;
use dataplane::select::Affinity;
use dataplane::tuple::Timestamp;
use dataplane::verdict::{DropReason, RejectWith, Verdict};
use fastrand::Rng;
use proptest::prelude::*;
use proptest::sample::select;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Sends `packet` through the path of a node that has seen no packet before.
fn send(explainer: &Explainer<'_>, packet: &Packet, seed: u64) -> (Verdict, Vec<u8>) {
    let conntrack = Conntrack::new(Settings::kernel(64), [1, 2, 3, 4]);
    let mut frame = Frame::from_packet(&bytes(packet));
    let mut context = Context {
        conntrack: &conntrack,
        services: explainer.table(),
        affinity: &Affinity::default(),
        reserved_ports: &ReservedPorts::default(),
        fragments: &Fragments::default(),
        notices: &Notices::default(),
        openings: &mut Openings::default(),
        datagram: Vec::new(),
        forward_invalid: false,
        rng: &mut Rng::with_seed(seed),
        now: Timestamp::from_seconds(1000),
    };
    let prepared = Prepared::new(&conntrack, &mut frame);
    let verdict = path::process_alone(&mut context, packet.origin, &mut frame, &prepared);
    (verdict, frame.packet().to_vec())
}

/// The first packet of a connection: a SYN, a datagram, an INIT.
fn bytes(packet: &Packet) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (packet.source, packet.destination.ip())
    else {
        panic!("the random packets are of IPv4")
    };
    let mut transport = Vec::new();
    transport.extend(packet.source_port.to_be_bytes());
    transport.extend(packet.destination.port().to_be_bytes());
    let protocol = match packet.protocol {
        Transport::Tcp => {
            transport.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xfa, 0xf0, 0, 0, 0, 0]);
            6
        }
        Transport::Udp => {
            transport.extend([0, 8, 0, 0]);
            17
        }
        Transport::Sctp => {
            transport.extend([0; 8]);
            transport.extend([1, 0, 0, 20, 0, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
            132
        }
    };
    let length = transport.len() as u16;
    let addresses = [source.octets(), destination.octets()].concat();
    match packet.protocol {
        Transport::Tcp => {
            let pseudo = [addresses.as_slice(), &[0, 6], &length.to_be_bytes()].concat();
            let checksum = !sum(&[pseudo, transport.clone()].concat());
            transport[16..18].copy_from_slice(&checksum.to_be_bytes());
        }
        // Zero: without checksum.
        Transport::Udp => {}
        Transport::Sctp => {
            let checksum = sctp_checksum(&transport);
            transport[8..12].copy_from_slice(&checksum);
        }
    }
    let mut header = vec![0x45, 0];
    header.extend((20 + length).to_be_bytes());
    header.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(addresses);
    let checksum = !sum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    [header, transport].concat()
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let mut total: u32 = words
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Source and destination of a packet.
fn ends(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let socket = |address: &[u8], port: &[u8]| {
        let address = Ipv4Addr::new(address[0], address[1], address[2], address[3]);
        SocketAddr::from((address, u16::from_be_bytes([port[0], port[1]])))
    };
    (
        socket(&bytes[12..16], &bytes[20..22]),
        socket(&bytes[16..20], &bytes[22..24]),
    )
}

/// Whether what the path did is one of the things that were explained.
fn is_as_explained(packet: &Packet, said: &Explanation, did: &Verdict, bytes: &[u8]) -> bool {
    let (source, destination) = ends(bytes);
    let is_kept = source == SocketAddr::new(packet.source, packet.source_port);
    let is_listed = |candidate: &Candidate| {
        destination == SocketAddr::new(candidate.address, candidate.port)
            && is_kept != candidate.masquerade
    };
    match (said.verdict, did) {
        (Explained::Forward, Verdict::Forward) => said.endpoints.iter().any(is_listed),
        (Explained::Pass, Verdict::Pass) => is_kept && destination == packet.destination,
        (Explained::Reject, Verdict::Reject(RejectWith::PortUnreachable)) => true,
        (Explained::Drop, Verdict::Drop(reason)) => {
            let by_policy = [DropReason::NoLocalEndpoint, DropReason::SourceNotAllowed];
            by_policy.contains(reason)
        }
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_path_does_what_is_explained(
        objects in snapshot_objects(),
        packets in prop::collection::vec(packet(), 48),
        masquerade_all in any::<bool>(),
        detector in select(vec!["", "10.244.0.0/16"]),
        seed in any::<u64>(),
    ) {
        let snapshot = snapshot(&objects);
        let config = config(masquerade_all, detector);
        for node in NODES {
            let explainer = Explainer::new(&snapshot, &config, node).unwrap();
            for packet in &packets {
                let said = explainer.explain(packet);
                let (did, bytes) = send(&explainer, packet, seed);
                prop_assert!(
                    is_as_explained(packet, &said, &did, &bytes),
                    "{node}: {packet:?}\nsaid {said:?}\ndid {did:?} {:?}", ends(&bytes)
                );
            }
        }
    }
}
