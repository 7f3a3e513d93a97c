//! UDP, ICMP, SCTP, GRE and unknown protocols against the rows of the project's conntrack reference, section 3, with a
//! virtual clock, for both families.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod flow;

use dataplane::conntrack::{Invalid, SctpPacket, Status, Transport};
use dataplane::tuple::Protocol;
use flow::{Class, Client, FAMILIES, Flow, Server, Side};
use std::time::Duration;

/// "UDP event" rows, samples section 2.
#[test]
fn udp() {
    for ipv4 in FAMILIES {
        let mut flow = Flow::new(ipv4, Protocol::UDP);
        assert_eq!(flow.packet(Client, Transport::Udp), Class::New);
        for _ in 0..10 {
            flow.wait(20_000);
            flow.packet(Client, Transport::Udp);
            assert_eq!(
                flow.listed(),
                "29 [UNREPLIED]",
                "client only: refreshed by each"
            );
        }

        let mut flow = Flow::new(ipv4, Protocol::UDP);
        flow.packet(Client, Transport::Udp);
        flow.wait(1_900);
        flow.packet(Server, Transport::Udp);
        assert_eq!(flow.listed(), "29", "reply within 2 s");
        flow.wait(200);
        flow.packet(Client, Transport::Udp);
        assert_eq!(flow.listed(), "119 [ASSURED]", "any packet after 2 s");

        let mut flow = Flow::new(ipv4, Protocol::UDP);
        flow.packet(Client, Transport::Udp);
        flow.wait(2_500);
        flow.packet(Server, Transport::Udp);
        assert_eq!(flow.listed(), "29", "the first reply itself, after 2.5 s");
        flow.packet(Server, Transport::Udp);
        assert_eq!(flow.listed(), "119 [ASSURED]", "the next packet");
    }
}

/// Not with each packet, but never by more than a 512th too early.
#[test]
fn the_end_of_a_stream_is_put_off_in_steps() {
    let whole = Duration::from_secs(120);
    for ipv4 in FAMILIES {
        let mut flow = Flow::new(ipv4, Protocol::UDP);
        for from in [Client, Server, Client] {
            flow.packet(from, Transport::Udp);
            flow.wait(2_500);
        }
        let mut lags = Vec::new();
        for from in [Client, Server, Server, Client]
            .into_iter()
            .cycle()
            .take(100)
        {
            flow.packet(from, Transport::Udp);
            let entry = flow.conntrack.get(&flow.from_client, flow.now).unwrap();
            lags.push(whole - entry.timeout);
            flow.wait(30);
        }
        let tick = Duration::from_millis(2);
        assert!(
            lags.iter().all(|lag| *lag <= whole / 512 + tick),
            "{lags:?}"
        );
        let put_off = lags.iter().filter(|lag| **lag <= tick).count();
        assert!((10..15).contains(&put_off), "{lags:?}");
    }
}

/// "ICMP", "ICMPv6" rows: which types open an entry, timeout, never assured.
#[test]
fn icmp() {
    let rows: [(bool, &[u8]); 2] = [(true, &[8, 13, 15, 17]), (false, &[128, 139])];
    for (ipv4, requests) in rows {
        let protocol = if ipv4 {
            Protocol::ICMP
        } else {
            Protocol::ICMPV6
        };
        for kind in 0..=255 {
            let mut flow = Flow::new(ipv4, protocol);
            flow.from_client.source_port = 777;
            flow.from_client.destination_port = u16::from_be_bytes([kind, 0]);
            flow.from_server = flow.from_client.inverse();
            let class = flow.packet(Client, Transport::Icmp);
            if !requests.contains(&kind) {
                assert_eq!(class, Class::Invalid(Invalid::IcmpType(kind)));
                continue;
            }
            assert_eq!(class, Class::New);
            assert_eq!(flow.listed(), "29 [UNREPLIED]");
            for _ in 0..5 {
                flow.wait(10_000);
                assert_eq!(flow.packet(Server, Transport::Icmp), Class::Accepted);
            }
            assert_eq!(
                flow.listed(),
                "29",
                "not removed by the reply, never assured"
            );
        }
    }
}

/// "GRE", "any other" rows.
#[test]
fn gre_and_unknown_protocols() {
    for ipv4 in FAMILIES {
        for (protocol, first, later) in [
            (47, "29", "179 [ASSURED]"),
            (89, "599", "599"),
            (4, "599", "599"),
        ] {
            let mut flow = Flow::new(ipv4, Protocol(protocol));
            for tuple in [&mut flow.from_client, &mut flow.from_server] {
                (tuple.source_port, tuple.destination_port) = (0, 0);
            }
            flow.packet(Client, Transport::Other);
            assert_eq!(flow.listed(), format!("{first} [UNREPLIED]"));
            flow.packet(Server, Transport::Other);
            flow.packet(Client, Transport::Other);
            assert_eq!(flow.listed(), later);
        }
    }
}

const CLIENT_TAG: u32 = 0x1111;
const SERVER_TAG: u32 = 0x2222;

fn sctp(flow: &mut Flow, from: Side, tag: u32, chunks: &[(u8, u32)]) -> Class {
    flow.packet(
        from,
        Transport::Sctp(SctpPacket::parse(&sctp_bytes(tag, chunks)).unwrap()),
    )
}

/// Chunks are (type, initiate tag).
fn sctp_bytes(tag: u32, chunks: &[(u8, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    for &(kind, initiate_tag) in chunks {
        let length: u8 = if matches!(kind, 1 | 2) { 20 } else { 4 };
        let start = bytes.len();
        bytes.extend([kind, 0, 0, length]);
        if length == 20 {
            bytes.extend(initiate_tag.to_be_bytes());
        }
        bytes.resize(start + usize::from(length), 0);
    }
    bytes
}

/// Samples section 4, SCTP from INIT to SHUTDOWN COMPLETE.
#[test]
fn sctp_life() {
    let steps: [(Side, u32, (u8, u32), &str); 7] = [
        (Client, 0, (1, CLIENT_TAG), "9 CLOSED [UNREPLIED]"),
        (Server, CLIENT_TAG, (2, SERVER_TAG), "2 COOKIE_WAIT"),
        (Client, SERVER_TAG, (10, 0), "2 COOKIE_ECHOED"),
        (Server, CLIENT_TAG, (11, 0), "209 ESTABLISHED [ASSURED]"),
        (Client, SERVER_TAG, (7, 0), "2 SHUTDOWN_SENT [ASSURED]"),
        (Server, CLIENT_TAG, (8, 0), "2 SHUTDOWN_ACK_SENT [ASSURED]"),
        (Client, SERVER_TAG, (14, 0), "9 CLOSED [ASSURED]"),
    ];
    for ipv4 in FAMILIES {
        let mut flow = Flow::new(ipv4, Protocol::SCTP);
        for (from, tag, chunk, listed) in steps {
            let class = sctp(&mut flow, from, tag, &[chunk]);
            assert!(
                matches!(class, Class::New | Class::Accepted),
                "{class:?} at {listed}"
            );
            assert_eq!(flow.listed(), listed);
        }
    }
}

fn sctp_established() -> Flow {
    let mut flow = Flow::new(true, Protocol::SCTP);
    sctp(&mut flow, Client, 0, &[(1, CLIENT_TAG)]);
    sctp(&mut flow, Server, CLIENT_TAG, &[(2, SERVER_TAG)]);
    sctp(&mut flow, Client, SERVER_TAG, &[(10, 0), (0, 0)]);
    sctp(&mut flow, Server, CLIENT_TAG, &[(11, 0), (3, 0)]);
    assert_eq!(flow.listed(), "209 ESTABLISHED [ASSURED]");
    flow
}

/// "vtag checks; ABORT -> CLOSED"; RFC 9260, 8.5.
#[test]
fn sctp_verification_tags() {
    let wrong = Class::Invalid(Invalid::SctpVerificationTag);
    let mut flow = sctp_established();
    assert_eq!(
        sctp(&mut flow, Client, SERVER_TAG, &[(0, 0)]),
        Class::Accepted,
        "DATA"
    );
    assert_eq!(
        sctp(&mut flow, Client, CLIENT_TAG, &[(0, 0)]),
        wrong,
        "DATA"
    );
    assert_eq!(
        sctp(&mut flow, Client, 7, &[(6, 0)]),
        wrong,
        "ABORT with a guessed tag"
    );
    assert_eq!(flow.listed(), "209 ESTABLISHED [ASSURED]");
    assert_eq!(
        sctp(&mut flow, Client, 7, &[(1, 9)]),
        wrong,
        "INIT must carry tag 0"
    );
    assert_eq!(
        sctp(&mut flow, Client, 7, &[(4, 0)]),
        Class::Ignored,
        "HEARTBEAT of another path"
    );
    assert_eq!(
        sctp(&mut flow, Client, SERVER_TAG, &[(6, 0)]),
        Class::Accepted,
        "ABORT"
    );
    assert_eq!(flow.listed(), "9 CLOSED [ASSURED]");

    for out_of_the_blue in [6, 11, 14] {
        let mut flow = Flow::new(true, Protocol::SCTP);
        assert!(matches!(
            sctp(&mut flow, Client, 5, &[(out_of_the_blue, 0)]),
            Class::Invalid(_)
        ));
    }
    let mut flow = Flow::new(true, Protocol::SCTP);
    sctp(&mut flow, Client, 0, &[(1, CLIENT_TAG)]);
    flow.wait(5_000);
    assert_eq!(
        sctp(&mut flow, Client, 0, &[(1, CLIENT_TAG)]),
        Class::Ignored
    );
    assert_eq!(
        flow.listed(),
        "4 CLOSED [UNREPLIED]",
        "INIT again does not refresh"
    );
}

/// HEARTBEAT opens an entry for a second path (HEARTBEAT_SENT 30, then ESTABLISHED).
#[test]
fn sctp_heartbeat() {
    let mut flow = Flow::new(true, Protocol::SCTP);
    sctp(&mut flow, Client, SERVER_TAG, &[(4, 0)]);
    assert_eq!(flow.listed(), "29 HEARTBEAT_SENT [UNREPLIED]");
    sctp(&mut flow, Server, CLIENT_TAG, &[(5, 0)]);
    assert_eq!(flow.listed(), "209 ESTABLISHED [ASSURED]");
}

/// `do_basic_checks`.
#[test]
fn sctp_chunk_order() {
    let parse = |chunks: &[(u8, u32)]| SctpPacket::parse(&sctp_bytes(1, chunks)).map(|_| ());
    assert_eq!(parse(&[]), Err(Invalid::SctpChunks), "no chunk");
    assert_eq!(
        parse(&[(1, 1), (0, 0)]),
        Err(Invalid::SctpChunks),
        "INIT is alone"
    );
    assert_eq!(
        parse(&[(0, 0), (14, 0)]),
        Err(Invalid::SctpChunks),
        "SHUTDOWN COMPLETE is alone"
    );
    assert_eq!(
        parse(&[(0, 0), (10, 0)]),
        Err(Invalid::SctpChunks),
        "COOKIE ECHO is first"
    );
    assert_eq!(parse(&[(10, 0), (0, 0)]), Ok(()));
    let mut zero_length = sctp_bytes(1, &[(0, 0)]);
    zero_length[15] = 0;
    assert_eq!(
        SctpPacket::parse(&zero_length).map(|_| ()),
        Err(Invalid::SctpChunks)
    );
    let whole = sctp_bytes(0, &[(1, 1)]);
    assert_eq!(
        SctpPacket::parse(&whole[..24]).map(|_| ()),
        Err(Invalid::Truncated)
    );
    for many in 0..300 {
        let bytes = sctp_bytes(1, &vec![(0, 0); many + 1]);
        assert!(SctpPacket::parse(&bytes).unwrap().has_data);
    }
}

/// Samples section 3 and 4: SRC_NAT and DST_NAT as the tuples differ.
#[test]
fn status_bits() {
    for (change_source, change_destination) in
        [(false, false), (true, false), (false, true), (true, true)]
    {
        let mut flow = Flow::new(true, Protocol::UDP);
        flow.from_server = flow.from_client.inverse();
        if change_source {
            flow.from_server.destination_port = 1;
        }
        if change_destination {
            flow.from_server.source = flow::address(true, 2);
        }
        flow.packet(Client, Transport::Udp);
        let status = flow.entry().unwrap().status;
        assert_eq!(status.has(Status::SRC_NAT), change_source);
        assert_eq!(status.has(Status::DST_NAT), change_destination);
        let found = flow.conntrack.find(&flow.from_client, flow.now).unwrap();
        assert_eq!(
            found.translation().is_some(),
            change_source || change_destination
        );
    }
}
