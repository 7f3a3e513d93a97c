//! Packet in, verdict, packet out: every way through the path, for both families.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::*;
use dataplane::conntrack::Translation;
use dataplane::frame::Frame;
use dataplane::nat;
use dataplane::packet::{Packet, sctp_checksum};
use dataplane::service::Generation;
use dataplane::tuple::{Origin, Protocol};
use dataplane::verdict::{DropReason, RejectWith, Verdict};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

/// Runs `test` on a fresh node of each family.
fn for_each_family(test: impl Fn(&Names, &mut Bed)) {
    for names in &FAMILIES {
        test(names, &mut Bed::new(services(names)));
    }
}

/// The source that the path chose for a masqueraded packet.
fn source_of(bytes: &[u8]) -> SocketAddr {
    let mut frame = Frame::from_packet(bytes);
    let packet = Packet::parse(&mut frame).expect("a packet");
    let port = u16::from_be_bytes([packet.transport()[0], packet.transport()[1]]);
    SocketAddr::new(packet.source().into(), port)
}

#[test]
fn pod_to_cluster_ip_is_translated_at_the_destination_only() {
    for_each_family(|n, bed| {
        let (client, service, pod) = (
            at(n.other_pod, 40000),
            at(n.cluster_ip, 80),
            at(n.pod, 8080),
        );
        bed.expect_forward(
            Origin::Pod,
            &tcp(SYN).from(&client).to(&service),
            &tcp(SYN).from(&client).to(&pod),
        );
        bed.expect_forward(
            Origin::Outside,
            &tcp(SYN | ACK).sequence(5000, 1001).from(&pod).to(&client),
            &tcp(SYN | ACK)
                .sequence(5000, 1001)
                .from(&service)
                .to(&client),
        );
        assert_eq!(bed.conntrack.len(), 1);
    });
}

#[test]
fn outside_to_vip_is_masqueraded_and_its_reply_comes_back() {
    for_each_family(|n, bed| {
        let (client, vip, pod) = (at(n.client, 40000), at(n.vip, 80), at(n.pod, 8080));
        let (verdict, out) = bed.send(Origin::Outside, &udp(b"question").from(&client).to(&vip));
        assert_eq!(verdict, Verdict::Forward);
        let masqueraded = source_of(&out);
        assert_eq!(masqueraded.ip().to_string(), n.node);
        assert!(masqueraded.port() >= 1024);
        let masqueraded = masqueraded.to_string();
        assert_eq!(
            out,
            udp(b"question")
                .from(&masqueraded)
                .to(&pod)
                .hops(64)
                .bytes()
        );
        bed.expect_forward(
            Origin::Pod,
            &udp(b"answer").from(&pod).to(&masqueraded),
            &udp(b"answer").from(&vip).to(&client),
        );
    });
}

#[test]
fn a_pod_that_reaches_itself_is_masqueraded() {
    for_each_family(|n, bed| {
        let (pod, service) = (at(n.pod, 40000), at(n.cluster_ip, 80));
        let (verdict, out) = bed.send(Origin::Pod, &tcp(SYN).from(&pod).to(&service));
        assert_eq!(verdict, Verdict::Forward);
        let masqueraded = source_of(&out).to_string();
        assert_eq!(source_of(&out).ip().to_string(), n.node);
        bed.expect_forward(
            Origin::Pod,
            &tcp(SYN | ACK)
                .sequence(1, 1001)
                .from(&at(n.pod, 8080))
                .to(&masqueraded),
            &tcp(SYN | ACK).sequence(1, 1001).from(&service).to(&pod),
        );
    });
}

/// Ten thousand connections by the VIP that are all closed, left alone or refused: after their timeouts no entry is
/// left, and every port serves the same endpoint again.
#[test]
fn connections_leave_no_entry_and_no_port_behind() {
    const CONNECTIONS: usize = 10_000;
    for names in &FAMILIES {
        let mut bed = Bed::with_capacity(services(names), 2 * CONNECTIONS);
        let (vip, pod) = (at(names.vip, 80), at(names.pod, 8080));
        for round in 0..3 {
            let mut ports = HashSet::new();
            for number in 0..CONNECTIONS {
                let client = at(names.client, 20_000 + number as u16);
                let open = tcp(SYN).from(&client).to(&vip);
                let (verdict, out) = bed.send(Origin::Outside, &open);
                assert_eq!(
                    verdict,
                    Verdict::Forward,
                    "round {round}, connection {number}"
                );
                let node = source_of(&out);
                assert!(ports.insert(node.port()), "{node} twice");
                let answer = match number % 3 {
                    0 => tcp(SYN | ACK).sequence(5000, 1001),
                    1 => tcp(RST | ACK).sequence(0, 1001),
                    _ => continue,
                };
                let answer = answer.from(&pod).to(&node.to_string());
                assert_eq!(bed.send(Origin::Pod, &answer).0, Verdict::Forward);
                // A connection that is closed may give way to a new one, as in the kernel.
                if number % 3 == 1 {
                    ports.remove(&node.port());
                }
                if number % 6 == 0 {
                    let close = tcp(RST).sequence(1001, 5001).from(&client).to(&vip);
                    assert_eq!(bed.send(Origin::Outside, &close).0, Verdict::Forward);
                }
            }
            assert!((ports.len()..=CONNECTIONS).contains(&bed.conntrack.len()));
            // The longest timeout that one of them can have: SYN_SENT's 120 s; SYN_RECV has 60 s.
            bed.wait(Duration::from_secs(121));
            bed.conntrack.expire(bed.now, usize::MAX);
            assert_eq!(bed.conntrack.len(), 0, "round {round}");
        }
    }
}

#[test]
fn node_port_answers_on_the_nodes_addresses_only() {
    for_each_family(|n, bed| {
        let client = at(n.client, 40000);
        let (verdict, out) = bed.send(
            Origin::Outside,
            &tcp(SYN).from(&client).to(&at(n.node, 30080)),
        );
        assert_eq!(verdict, Verdict::Forward);
        assert_eq!(source_of(&out).ip().to_string(), n.node);
        bed.expect_untouched(
            Origin::Outside,
            &tcp(SYN).from(&client).to(&at(n.other_pod, 30080)),
            Verdict::Pass,
        );
    });
}

#[test]
fn localhost_node_port_is_for_ipv4() {
    let mut bed = Bed::new(services(&FAMILIES[0]));
    let packet = tcp(SYN).from("127.0.0.1:40000").to("127.0.0.1:30080");
    let (verdict, out) = bed.send(Origin::Node, &packet);
    assert_eq!(verdict, Verdict::Forward);
    assert_eq!(source_of(&out).ip().to_string(), FAMILIES[0].node);
    let mut bed = Bed::new(services(&FAMILIES[1]));
    let packet = tcp(SYN).from("[::1]:40000").to("[::1]:30080");
    bed.expect_untouched(Origin::Node, &packet, Verdict::Pass);
}

#[test]
fn a_pod_on_the_nodes_network_sees_the_client_that_came_from_outside() {
    for_each_family(|n, bed| {
        let (client, vip) = (at(n.client, 40000), at(n.vip, 84));
        bed.expect_forward(
            Origin::Outside,
            &tcp(SYN).from(&client).to(&vip),
            &tcp(SYN).from(&client).to(&at(n.node, 8080)),
        );
        bed.expect_forward(
            Origin::Node,
            &tcp(SYN | ACK)
                .sequence(1, 1001)
                .from(&at(n.node, 8080))
                .to(&client),
            &tcp(SYN | ACK).sequence(1, 1001).from(&vip).to(&client),
        );
    });
}

#[test]
fn without_endpoints_refused_and_nothing_remembered() {
    for_each_family(|n, bed| {
        let reject = Verdict::Reject(RejectWith::PortUnreachable);
        let client = at(n.client, 40000);
        for destination in [at(n.cluster_ip, 81), at(n.vip, 81), at(n.node, 30081)] {
            bed.expect_untouched(
                Origin::Outside,
                &tcp(SYN).from(&client).to(&destination),
                reject,
            );
        }
        // From the node itself nothing refuses addresses outside the cluster.
        let node = at(n.node, 40000);
        bed.expect_untouched(
            Origin::Node,
            &tcp(SYN).from(&node).to(&at(n.cluster_ip, 81)),
            reject,
        );
        bed.expect_untouched(
            Origin::Node,
            &tcp(SYN).from(&node).to(&at(n.vip, 81)),
            Verdict::Pass,
        );
        assert_eq!(bed.conntrack.len(), 1);
    });
}

#[test]
fn local_policy_without_local_endpoint_drops_what_comes_from_outside() {
    for_each_family(|n, bed| {
        let packet = tcp(SYN).from(&at(n.client, 40000)).to(&at(n.vip, 82));
        bed.expect_untouched(
            Origin::Outside,
            &packet,
            Verdict::Drop(DropReason::NoLocalEndpoint),
        );
        let pod = at(n.other_pod, 40000);
        bed.expect_forward(
            Origin::Pod,
            &tcp(SYN).from(&pod).to(&at(n.vip, 82)),
            &tcp(SYN).from(&pod).to(&at(n.pod, 8080)),
        );
    });
}

#[test]
fn source_ranges_guard_the_load_balancers_address_only() {
    for_each_family(|n, bed| {
        let stranger = at(n.router, 40000);
        let refused = Verdict::Drop(DropReason::SourceNotAllowed);
        bed.expect_untouched(
            Origin::Outside,
            &tcp(SYN).from(&stranger).to(&at(n.vip, 83)),
            refused,
        );
        for destination in [at(n.node, 30083), at(n.cluster_ip, 83)] {
            let (verdict, _) =
                bed.send(Origin::Outside, &tcp(SYN).from(&stranger).to(&destination));
            assert_eq!(verdict, Verdict::Forward, "{destination}");
        }
        let client = at(n.client, 40000);
        let (verdict, _) = bed.send(Origin::Outside, &tcp(SYN).from(&client).to(&at(n.vip, 83)));
        assert_eq!(verdict, Verdict::Forward);
    });
}

#[test]
fn what_is_not_for_a_service_passes_and_is_tracked() {
    for_each_family(|n, bed| {
        let packet = tcp(SYN).from(&at(n.pod, 40000)).to(&at(n.other_pod, 9));
        bed.expect_untouched(Origin::Pod, &packet, Verdict::Pass);
        let ping = echo_request(n.client, 77).from(n.client).to(n.node);
        bed.expect_untouched(Origin::Outside, &ping, Verdict::Pass);
        assert_eq!(bed.conntrack.len(), 2);
    });
}

#[test]
fn invalid_packets_are_dropped_in_forwarding_and_reach_the_node() {
    for_each_family(|n, bed| {
        let stray = tcp(SYN | ACK).from(&at(n.client, 40000));
        let drop = Verdict::Drop(DropReason::Invalid);
        bed.expect_untouched(Origin::Outside, &stray.clone().to(&at(n.pod, 8080)), drop);
        bed.expect_untouched(Origin::Outside, &stray.to(&at(n.node, 22)), Verdict::Pass);
        let mut broken = udp(b"x").from(&at(n.client, 1)).to(&at(n.pod, 2)).bytes();
        *broken.last_mut().expect("a byte") ^= 1;
        assert_eq!(bed.send_bytes(Origin::Outside, &broken).0, drop);
        // The kernel verifies only what arrives.
        assert_eq!(bed.send_bytes(Origin::Node, &broken).0, Verdict::Pass);
    });
}

#[test]
fn an_icmp_error_about_a_translated_packet_is_translated() {
    for_each_family(|n, bed| {
        let (client, service, pod) = (
            at(n.other_pod, 40000),
            at(n.cluster_ip, 80),
            at(n.pod, 8080),
        );
        let question = udp(b"question").from(&client).to(&service);
        let (_, out) = bed.send(Origin::Pod, &question);
        let (kind, code) = if n.pod.contains(':') { (3, 0) } else { (11, 0) };
        // A router on the way to the pod complains; the sender must see its own packet and the Service's address.
        bed.expect_forward(
            Origin::Outside,
            &icmp_error(kind, code, &out).from(n.router).to(n.other_pod),
            &icmp_error(kind, code, &question.hops(64).bytes())
                .from(n.cluster_ip)
                .to(n.other_pod),
        );
        // The pod complains about the answer's way.
        let answer = udp(b"answer").from(&service).to(&client);
        bed.expect_forward(
            Origin::Outside,
            &icmp_error(kind, code, &answer.bytes())
                .from(n.other_pod)
                .to(n.cluster_ip),
            &icmp_error(kind, code, &udp(b"answer").from(&pod).to(&client).bytes())
                .from(n.other_pod)
                .to(n.pod),
        );
    });
}

/// Some stacks quote the length in another order, or as none: the kernel reads neither it nor the version.
#[test]
fn an_icmp_error_is_translated_whatever_its_quote_says_of_itself() {
    for_each_family(|n, bed| {
        let (client, service) = (at(n.other_pod, 40000), at(n.cluster_ip, 80));
        let question = udp(b"question").from(&client).to(&service);
        let (_, out) = bed.send(Origin::Pod, &question);
        let is_ipv6 = n.pod.contains(':');
        let length = if is_ipv6 { 4 } else { 2 };
        for (at, value) in [
            (length, 0),
            (length + 1, 0),
            (length + 1, 10),
            (0, 0x05),
            (0, 0x75),
        ] {
            let kind = if is_ipv6 { 3 } else { 11 };
            let error = |quoted: &[u8]| {
                let mut quoted = quoted.to_vec();
                quoted[at] = value;
                icmp_error(kind, 0, &quoted).to(n.other_pod)
            };
            bed.expect_forward(
                Origin::Outside,
                &error(&out).from(n.router),
                &error(&question.clone().hops(64).bytes()).from(n.cluster_ip),
            );
        }
    });
}

/// Where the checksum of SCTP is quoted it is made that of what is quoted; where it is not, ports and addresses are all.
#[test]
fn the_checksum_in_a_quote_of_sctp_is_of_what_is_quoted() {
    let n = &FAMILIES[0];
    for quoted_of_it in [8, 12, 20] {
        let mut quoted = udp(&[7; 12])
            .from(&at(n.client, 5000))
            .to(&at(n.pod, 8080))
            .bytes();
        quoted[9] = Protocol::SCTP.0;
        quoted.truncate(20 + quoted_of_it);
        let error = icmp_error(3, 1, &quoted).from(n.router).to(n.client);
        let mut frame = Frame::from_packet(&error.bytes());
        let mut packet = Packet::parse(&mut frame).unwrap();
        let quote = packet.quote().unwrap();
        let answer = Translation {
            source: address(n.vip),
            destination: address(n.client),
            source_port: 80,
            destination_port: 5000,
        };
        nat::rewrite_error(&mut packet, &quote, &answer).unwrap();
        let transport = &packet.quoted()[20..];
        assert_eq!(
            transport[..4],
            [5000_u16.to_be_bytes(), 80_u16.to_be_bytes()].concat()
        );
        if quoted_of_it == 8 {
            assert_eq!(transport[4..], quoted[24..]);
        } else {
            assert_eq!(transport[8..12], sctp_checksum(transport));
            assert_eq!(transport[12..], quoted[32..]);
        }
        assert!(!packet.has_bad_checksum(), "the error's own");
    }
}

/// NodePorts stand in the table under the unspecified address, which is nobody's.
#[test]
fn nothing_answers_at_the_unspecified_address() {
    for_each_family(|n, bed| {
        let nobody = if n.pod.contains(':') { "::" } else { "0.0.0.0" };
        let packet = tcp(SYN).from(&at(n.client, 40000)).to(&at(nobody, 30080));
        bed.expect_untouched(Origin::Outside, &packet, Verdict::Pass);
    });
}

/// The node's own packets are not verified, but NAT looks at what it is to change.
#[test]
fn an_icmp_error_of_the_node_with_a_wrong_checksum_is_not_translated() {
    for_each_family(|n, bed| {
        let (node, service) = (at(n.node, 40000), at(n.cluster_ip, 80));
        let (verdict, _) = bed.send(Origin::Node, &udp(b"question").from(&node).to(&service));
        assert_eq!(verdict, Verdict::Forward);
        let answer = udp(b"answer").from(&service).to(&node).bytes();
        let error = icmp_error(3, 1, &answer).from(n.node).to(n.cluster_ip);
        let mut broken = error.bytes();
        *broken.last_mut().expect("a byte") ^= 1;
        let (verdict, _) = bed.send_bytes(Origin::Node, &broken);
        assert_eq!(verdict, Verdict::Drop(DropReason::Invalid));
        assert_eq!(bed.send(Origin::Node, &error).0, Verdict::Forward);
    });
}

#[test]
fn icmp_errors_about_unknown_packets_or_to_others_are_invalid() {
    for_each_family(|n, bed| {
        let drop = Verdict::Drop(DropReason::Invalid);
        let kind = if n.pod.contains(':') { 1 } else { 3 };
        let unknown = udp(b"x").from(&at(n.pod, 5)).to(&at(n.client, 6)).bytes();
        let error = icmp_error(kind, 1, &unknown).from(n.router);
        bed.expect_untouched(Origin::Outside, &error.to(n.pod), drop);
        let question = udp(b"q")
            .from(&at(n.other_pod, 40000))
            .to(&at(n.cluster_ip, 80));
        let (_, out) = bed.send(Origin::Pod, &question);
        let forged = icmp_error(kind, 1, &out).from(n.router).to(n.client);
        bed.expect_untouched(Origin::Outside, &forged, drop);
    });
}

#[test]
fn an_icmp_error_that_quotes_too_little_is_dropped() {
    let n = &FAMILIES[0];
    let mut bed = Bed::new(services(n));
    let (_, out) = bed.send(
        Origin::Pod,
        &udp(b"q")
            .from(&at(n.other_pod, 4))
            .to(&at(n.cluster_ip, 80)),
    );
    let error = icmp_error(11, 0, &out[..24]).from(n.router).to(n.other_pod);
    assert_eq!(
        bed.send(Origin::Outside, &error).0,
        Verdict::Drop(DropReason::QuoteTooShort)
    );
}

#[test]
fn a_udp_packet_without_checksum_stays_without() {
    let n = &FAMILIES[0];
    let mut bed = Bed::new(services(n));
    let client = at(n.other_pod, 40000);
    bed.expect_forward(
        Origin::Pod,
        &udp(b"x")
            .without_checksum()
            .from(&client)
            .to(&at(n.cluster_ip, 80)),
        &udp(b"x")
            .without_checksum()
            .from(&client)
            .to(&at(n.pod, 8080)),
    );
}

/// A packet of a tunnel whose inner checksum is owed: the outer one is complete, or there is none.
#[test]
fn a_checksum_that_a_packet_inside_owes_is_left_to_it() {
    for_each_family(|n, bed| {
        let (client, service, pod) = (
            at(n.other_pod, 40000),
            at(n.cluster_ip, 80),
            at(n.pod, 8080),
        );
        let inside = |packet: Build| {
            let mut frame = Frame::from_packet(&packet.bytes());
            frame.set_partial_checksum(70, 16);
            frame
        };
        let question = || udp(&[7; 80]).from(&client);
        for (sent, expected) in [
            (question(), question()),
            (question().without_checksum(), question().without_checksum()),
        ] {
            let (verdict, out) = bed.send_frame(Origin::Pod, &mut inside(sent.to(&service)));
            assert_eq!(verdict, Verdict::Forward);
            assert_eq!(out, inside(expected.to(&pod).hops(64)).packet());
        }
    });
}

#[test]
fn a_partial_checksum_follows_the_addresses_and_not_the_ports() {
    for_each_family(|n, bed| {
        let (client, service, pod) = (
            at(n.other_pod, 40000),
            at(n.cluster_ip, 80),
            at(n.pod, 8080),
        );
        let partial = |packet: &Build| {
            let mut bytes = packet.bytes();
            let transport = if n.pod.contains(':') { 40 } else { 20 };
            bytes[transport + 16..][..2].fill(0);
            let length = bytes.len() - transport;
            let (source, destination) = (packet.source.ip().into(), packet.destination.ip().into());
            let sum = dataplane::checksum::pseudo_header(source, destination, 6, length as u32);
            bytes[transport + 16..][..2].copy_from_slice(&sum.to_be_bytes());
            let mut frame = Frame::from_packet(&bytes);
            frame.set_partial_checksum(transport as u16, 16);
            frame
        };
        let mut frame = partial(&tcp(SYN).from(&client).to(&service));
        let (verdict, out) = bed.send_frame(Origin::Pod, &mut frame);
        assert_eq!(verdict, Verdict::Forward);
        let expected = partial(&tcp(SYN).from(&client).to(&pod).hops(64));
        assert_eq!(out, expected.packet());
        assert_eq!(
            frame.bytes()[..10],
            expected.bytes()[..10],
            "the virtio header stays"
        );
    });
}

#[test]
fn a_udp_flow_ends_with_its_endpoint_and_a_tcp_flow_does_not() {
    for_each_family(|n, bed| {
        let (client, service) = (at(n.other_pod, 40000), at(n.cluster_ip, 80));
        let question = udp(b"q").from(&client).to(&service);
        bed.expect_forward(
            Origin::Pod,
            &question,
            &udp(b"q").from(&client).to(&at(n.pod, 8080)),
        );
        let opening = tcp(SYN).from(&client).to(&service);
        bed.expect_forward(
            Origin::Pod,
            &opening,
            &tcp(SYN).from(&client).to(&at(n.pod, 8080)),
        );
        // The same endpoint in a newer table: nothing changes.
        bed.services = services_with(n, n.pod, Generation(2));
        bed.expect_forward(
            Origin::Pod,
            &question,
            &udp(b"q").from(&client).to(&at(n.pod, 8080)),
        );
        bed.services = services_with(n, n.client, Generation(3));
        bed.expect_forward(
            Origin::Pod,
            &question,
            &udp(b"q").from(&client).to(&at(n.client, 8080)),
        );
        bed.expect_forward(
            Origin::Pod,
            &opening,
            &tcp(SYN).from(&client).to(&at(n.pod, 8080)),
        );
    });
}

#[test]
fn a_udp_flow_that_passed_before_the_service_came_is_taken_up_by_it() {
    for_each_family(|n, bed| {
        let (client, service) = (at(n.other_pod, 40000), at(n.cluster_ip, 80));
        let question = udp(b"q").from(&client).to(&service);
        bed.services = dataplane::service::ServiceTable::empty();
        bed.expect_untouched(Origin::Pod, &question, Verdict::Pass);
        bed.services = services_with(n, n.pod, Generation(2));
        bed.expect_forward(
            Origin::Pod,
            &question,
            &udp(b"q").from(&client).to(&at(n.pod, 8080)),
        );
    });
}

#[test]
fn fragments_wait_for_each_other_and_leave_translated() {
    let n = &FAMILIES[0];
    let client = at(n.other_pod, 40000);
    let whole = udp(&[7; 40])
        .from(&client)
        .to(&at(n.cluster_ip, 80))
        .bytes();
    let expected = udp(&[7; 40])
        .from(&client)
        .to(&at(n.pod, 8080))
        .hops(64)
        .bytes();
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let mut bed = Bed::new(services(n));
        let mut pieces = fragments_of(&whole, 16);
        assert_eq!(pieces.len(), 3);
        for (step, index) in order.iter().enumerate() {
            let (verdict, _) = bed.send_bytes(Origin::Pod, &pieces[*index]);
            let last = if step == 2 {
                Verdict::Forward
            } else {
                Verdict::Hold
            };
            assert_eq!(verdict, last, "{order:?}");
        }
        pieces = fragments_of(&expected, 16);
        assert_eq!(bed.datagram, pieces, "{order:?}");
        assert!(bed.fragments.is_empty());
    }
}

#[test]
fn the_largest_datagrams_are_joined() {
    for_each_family(|n, bed| {
        // The length of IPv6 is without the header.
        let payload = if n.pod.contains(':') {
            65_535
        } else {
            65_535 - 20
        };
        let whole = udp(&vec![7; payload - 8])
            .from(&at(n.other_pod, 40000))
            .to(&at(n.cluster_ip, 80))
            .bytes();
        let first = fragment_of(&whole, 0, 32_768, true);
        assert_eq!(bed.send_bytes(Origin::Pod, &first).0, Verdict::Hold);
        let last = fragment_of(&whole, 32_768, payload, false);
        assert_eq!(bed.send_bytes(Origin::Pod, &last).0, Verdict::Forward);
    });
}

/// Where fragments of a datagram of 48 bytes begin and end, the verdict on the last of them, and whether the datagram
/// still waits for the others then: of IPv4, of IPv6.
type Fragments = (&'static [(usize, usize)], Verdict, bool, bool);

#[test]
fn fragments_that_do_not_fit_each_other() {
    const HOLD: Verdict = Verdict::Hold;
    const OVERLAP: Verdict = Verdict::Drop(DropReason::OverlappingFragment);
    const REPEATED: Verdict = Verdict::Drop(DropReason::RepeatedFragment);
    // As the kernel does: a repetition harms nothing, an overlap ends the datagram; a contradiction about its end too,
    // but for IPv6, where it is only not taken.
    let cases: [Fragments; 11] = [
        (&[(0, 16), (0, 16)], REPEATED, true, true),
        (&[(0, 16), (16, 32), (8, 24)], REPEATED, true, true),
        (&[(16, 32), (0, 16), (8, 24)], OVERLAP, false, false),
        (&[(0, 16), (8, 24)], OVERLAP, false, false),
        (&[(16, 32), (8, 24)], OVERLAP, false, false),
        (&[(32, 48), (32, 48)], REPEATED, true, true),
        (&[(32, 48), (16, 56)], OVERLAP, false, true),
        (&[(0, 16), (24, 24)], OVERLAP, false, true),
        (&[(24, 24)], OVERLAP, false, false),
        (&[(16, 32), (0, 16)], HOLD, true, true),
        (&[(32, 48), (0, 16)], HOLD, true, true),
    ];
    for (family, n) in FAMILIES.iter().enumerate() {
        let whole = udp(&[7; 40])
            .from(&at(n.other_pod, 40000))
            .to(&at(n.cluster_ip, 80))
            .bytes();
        for (pieces, expected, lives_v4, lives_v6) in cases {
            let mut bed = Bed::new(services(n));
            let mut verdict = HOLD;
            for (start, end) in pieces {
                let piece = fragment_of(&whole, *start, *end, *end != 48);
                verdict = bed.send_bytes(Origin::Pod, &piece).0;
            }
            assert_eq!(verdict, expected, "{pieces:?} {family}");
            let lives = if family == 0 { lives_v4 } else { lives_v6 };
            assert_eq!(!bed.fragments.is_empty(), lives, "{pieces:?} {family}");
            bed.wait(Duration::from_secs(31));
            bed.fragments.expire(bed.now);
            assert!(bed.fragments.is_empty());
            assert_eq!(bed.conntrack.len(), 0);
        }
    }
}

/// What the kernel does with a fragment that is no multiple of eight bytes and not the last: it cuts it.
#[test]
fn a_fragment_of_ipv4_is_cut_to_a_multiple_of_eight() {
    let n = &FAMILIES[0];
    let client = at(n.other_pod, 40000);
    let whole = udp(&[7; 40]).from(&client).to(&at(n.cluster_ip, 80));
    let mut bed = Bed::new(services(n));
    let first = fragment_of(&whole.bytes(), 0, 21, true);
    assert_eq!(bed.send_bytes(Origin::Pod, &first).0, Verdict::Hold);
    let rest = fragment_of(&whole.bytes(), 16, 48, false);
    assert_eq!(bed.send_bytes(Origin::Pod, &rest).0, Verdict::Forward);
    let translated = udp(&[7; 40]).from(&client).to(&at(n.pod, 8080)).hops(64);
    let expected = [(0, 16, true), (16, 48, false)]
        .map(|(start, end, more)| fragment_of(&translated.bytes(), start, end, more));
    assert_eq!(bed.datagram, expected);
}

#[test]
fn too_many_fragments_of_one_datagram_are_given_up() {
    let n = &FAMILIES[0];
    let mut bed = Bed::new(services(n));
    let whole = udp(&[7; 11_000])
        .from(&at(n.other_pod, 40000))
        .to(&at(n.cluster_ip, 80))
        .bytes();
    let pieces = fragments_of(&whole, 8);
    let verdicts: Vec<Verdict> = pieces
        .iter()
        .map(|piece| bed.send_bytes(Origin::Pod, piece).0)
        .collect();
    assert!(verdicts.contains(&Verdict::Drop(DropReason::TooManyFragments)));
}

#[test]
fn tracking_sees_the_data_of_all_fragments() {
    let n = &FAMILIES[0];
    let mut bed = Bed::new(services(n));
    let (client, service, pod) = (
        at(n.other_pod, 40000),
        at(n.cluster_ip, 80),
        at(n.pod, 8080),
    );
    let (to, back) = ((&client, &service), (&pod, &client));
    let segment = |flags, sequence, (from, to): (&String, &String)| {
        tcp(flags).sequence(sequence, 5001).from(from).to(to)
    };
    let _ = bed.send(Origin::Pod, &tcp(SYN).sequence(1000, 0).from(to.0).to(to.1));
    let answer = tcp(SYN | ACK).sequence(5000, 1001).from(back.0).to(back.1);
    let _ = bed.send(Origin::Outside, &answer);
    let _ = bed.send(Origin::Pod, &segment(ACK, 1001, to));
    let data = segment(ACK, 1001, to).data(&[7; 100]).bytes();
    for piece in fragments_of(&data, 48) {
        let _ = bed.send_bytes(Origin::Pod, &piece);
    }
    // All hundred bytes were seen: the pod may acknowledge them.
    let acknowledgement = tcp(ACK).sequence(5001, 1101).from(back.0).to(back.1);
    assert_eq!(
        bed.send(Origin::Outside, &acknowledgement).0,
        Verdict::Forward
    );
}

#[test]
fn an_error_in_fragments_is_translated() {
    let n = &FAMILIES[0];
    let mut bed = Bed::new(services(n));
    let question = udp(&[7; 40])
        .from(&at(n.other_pod, 40000))
        .to(&at(n.cluster_ip, 80));
    let (_, out) = bed.send(Origin::Pod, &question);
    let error = |quote: &[u8]| icmp_error(3, 3, quote);
    let sent = error(&out).from(n.pod).to(n.other_pod).bytes();
    let expected = error(&question.hops(64).bytes());
    let expected = expected.from(n.cluster_ip).to(n.other_pod).hops(64).bytes();
    let pieces = fragments_of(&sent, 32);
    assert_eq!(bed.send_bytes(Origin::Pod, &pieces[0]).0, Verdict::Hold);
    for piece in &pieces[1..] {
        let _ = bed.send_bytes(Origin::Pod, piece);
    }
    assert_eq!(bed.datagram, fragments_of(&expected, 32));
}

/// What the others say that comes next is of no concern.
#[test]
fn only_the_first_fragment_of_ipv6_tells_the_protocol() {
    let n = &FAMILIES[1];
    let mut bed = Bed::new(services(n));
    let question = udp(&[7; 100])
        .from(&at(n.other_pod, 40000))
        .to(&at(n.cluster_ip, 80));
    let bytes = question.bytes();
    let first = fragment_of(&bytes, 0, 64, true);
    let mut second = fragment_of(&bytes, 64, bytes.len() - 40, false);
    second[40] = 59;
    assert_eq!(bed.send_bytes(Origin::Pod, &first).0, Verdict::Hold);
    assert_eq!(bed.send_bytes(Origin::Pod, &second).0, Verdict::Forward);
}

#[test]
fn extension_headers_of_ipv6_are_followed() {
    let n = &FAMILIES[1];
    let mut bed = Bed::new(services(n));
    let plain = udp(b"x")
        .from(&at(n.other_pod, 40000))
        .to(&at(n.cluster_ip, 80))
        .bytes();
    for (headers, expected) in [
        (1, Verdict::Forward),
        (8, Verdict::Forward),
        (9, Verdict::Drop(DropReason::Malformed)),
    ] {
        let mut bytes = plain.clone();
        bytes[6] = 60;
        for nth in (0..headers).rev() {
            let next = if nth == headers - 1 { 17 } else { 60 };
            // Four bytes of padding.
            bytes.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
        }
        let payload = (bytes.len() - 40) as u16;
        bytes[4..6].copy_from_slice(&payload.to_be_bytes());
        assert_eq!(bed.send_bytes(Origin::Pod, &bytes).0, expected, "{headers}");
    }
}

#[test]
fn a_first_fragment_of_ipv6_without_its_headers_is_invalid() {
    let n = &FAMILIES[1];
    let mut bed = Bed::new(services(n));
    let whole = tcp(SYN)
        .from(&at(n.other_pod, 40000))
        .to(&at(n.cluster_ip, 80))
        .bytes();
    let first = first_fragment_v6(&whole, 16);
    let invalid = Verdict::Drop(DropReason::Invalid);
    assert_eq!(bed.send_bytes(Origin::Pod, &first).0, invalid);
    let to_node = tcp(SYN)
        .from(&at(n.other_pod, 40000))
        .to(&at(n.node, 30080));
    let first = first_fragment_v6(&to_node.bytes(), 16);
    assert_eq!(bed.send_bytes(Origin::Pod, &first).0, Verdict::Pass);
    let whole = udp(&[7; 40])
        .from(&at(n.other_pod, 40000))
        .to(&at(n.cluster_ip, 80))
        .bytes();
    let first = first_fragment_v6(&whole, 16);
    assert_eq!(bed.send_bytes(Origin::Pod, &first).0, Verdict::Hold);
}

/// The first `size` bytes of an IPv6 packet's payload behind a fragment header.
fn first_fragment_v6(packet: &[u8], size: usize) -> Vec<u8> {
    let header = [packet[6], 0, 0, 1, 0, 0, 0, 9];
    let mut fragment = [&packet[..40], &header, &packet[40..40 + size]].concat();
    fragment[4..6].copy_from_slice(&(8 + size as u16).to_be_bytes());
    fragment[6] = 44;
    fragment
}

#[test]
fn a_redirect_about_a_translated_packet_is_dropped() {
    let n = &FAMILIES[0];
    let mut bed = Bed::new(services(n));
    let question = udp(b"q")
        .from(&at(n.other_pod, 40000))
        .to(&at(n.cluster_ip, 80));
    let (_, out) = bed.send(Origin::Pod, &question);
    let redirect = icmp_error(5, 1, &out).from(n.router).to(n.other_pod);
    let dropped = Verdict::Drop(DropReason::Redirect);
    bed.expect_untouched(Origin::Outside, &redirect, dropped);
}

/// Cuts an IPv4 packet into fragments of `size` bytes of payload.
fn fragments_of(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let length = packet.len() - 20;
    (0..length)
        .step_by(size)
        .map(|start| {
            let end = (start + size).min(length);
            fragment_of(packet, start, end, end < length)
        })
        .collect()
}

/// The fragment of `packet` with the bytes from `start` to `end` behind its IP header, and zeros where it has none.
fn fragment_of(packet: &[u8], start: usize, end: usize, more: bool) -> Vec<u8> {
    let is_v6 = packet[0] >> 4 == 6;
    let (header, payload) = packet.split_at(if is_v6 { 40 } else { 20 });
    let mut data = payload[start.min(payload.len())..end.min(payload.len())].to_vec();
    data.resize(end - start, 0);
    if is_v6 {
        let field = start as u16 | u16::from(more);
        let fragment_header = [&[header[6], 0], &field.to_be_bytes()[..], &[0, 0, 0, 9]].concat();
        let mut fragment = [header, &fragment_header, &data].concat();
        fragment[4..6].copy_from_slice(&(8 + data.len() as u16).to_be_bytes());
        fragment[6] = 44;
        return fragment;
    }
    let mut fragment = [header, &data].concat();
    let length = fragment.len() as u16;
    fragment[2..4].copy_from_slice(&length.to_be_bytes());
    let field = if more { 0x2000 } else { 0 } | (start / 8) as u16;
    fragment[6..8].copy_from_slice(&field.to_be_bytes());
    fragment[10..12].fill(0);
    let checksum = !naive_sum(&fragment[..20]);
    fragment[10..12].copy_from_slice(&checksum.to_be_bytes());
    fragment
}

#[test]
fn what_is_no_ip_packet_is_malformed() {
    let n = &FAMILIES[0];
    let mut bed = Bed::new(services(n));
    let good = udp(b"x").from(&at(n.pod, 1)).to(&at(n.client, 2)).bytes();
    for bytes in [&[][..], &[0x45; 19], &good[..25], &[0x60; 39], &[0x10; 60]] {
        assert_eq!(
            bed.send_bytes(Origin::Pod, bytes).0,
            Verdict::Drop(DropReason::Malformed)
        );
    }
    let mapped = udp(b"x")
        .from("[::ffff:10.0.0.1]:1")
        .to(&at(FAMILIES[1].pod, 2));
    assert_eq!(
        bed.send(Origin::Pod, &mapped).0,
        Verdict::Drop(DropReason::MappedAddress)
    );
}

#[test]
fn neighbour_discovery_is_left_alone() {
    let n = &FAMILIES[1];
    let mut bed = Bed::new(services(n));
    let solicitation = icmp_error(135, 0, &[0; 16])
        .from(n.router)
        .to(n.node)
        .hops(254);
    bed.expect_untouched(Origin::Outside, &solicitation, Verdict::Pass);
    assert_eq!(bed.conntrack.len(), 0);
}
