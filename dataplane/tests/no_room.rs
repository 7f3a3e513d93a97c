//! First packets for which there is no room: dropped by name, counted as the kernel counts, noted for the log.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::*;
use dataplane::conntrack::{Conntrack, Settings, Statistics};
use dataplane::frame::Frame;
use dataplane::packet::Packet;
use dataplane::tuple::{Origin, Protocol};
use dataplane::verdict::{DropReason, Verdict};

fn for_each_family(test: impl Fn(&Names, &mut Bed)) {
    for names in &FAMILIES {
        test(names, &mut Bed::new(services(names)));
    }
}

/// Drops the first packet from `client` to the VIP for `reason`, and checks that the log can name it.
#[track_caller]
fn expect_no_room(names: &Names, bed: &mut Bed, reason: DropReason) {
    let (client, vip) = (at(names.client, 40001), at(names.vip, 80));
    let before = bed.conntrack.len();
    bed.expect_untouched(
        Origin::Outside,
        &udp(b"question").from(&client).to(&vip),
        Verdict::Drop(reason),
    );
    assert_eq!(bed.conntrack.len(), before);
    let notice = bed.notices.next().expect("a notice");
    assert_eq!(notice.reason, reason);
    assert_eq!(notice.original.source, address(names.client));
    assert_eq!(notice.original.destination, address(names.vip));
    assert_eq!(notice.reply.source, address(names.pod));
    assert_eq!(notice.reply.destination, address(names.node));
    let counted: Statistics = bed.conntrack.statistics().into_iter().sum();
    assert_eq!(counted.drop, 1);
}

fn source_port_of(bytes: &[u8]) -> u16 {
    let mut frame = Frame::from_packet(bytes);
    let packet = Packet::parse(&mut frame).unwrap();
    u16::from_be_bytes([packet.transport()[0], packet.transport()[1]])
}

#[test]
fn without_a_free_port_dropped_and_noted() {
    for_each_family(|n, bed| {
        bed.reserved_ports.replace(Protocol::UDP, 1024..=u16::MAX);
        expect_no_room(n, bed, DropReason::NoFreePort);
        bed.reserved_ports.replace(Protocol::UDP, 1024..u16::MAX);
        let (client, vip) = (at(n.client, 40001), at(n.vip, 80));
        let (_, out) = bed.send(Origin::Outside, &udp(b"question").from(&client).to(&vip));
        assert_eq!(source_port_of(&out), u16::MAX, "the only one left");
    });
}

#[test]
fn with_a_full_table_dropped_and_noted() {
    for_each_family(|n, bed| {
        bed.conntrack = Conntrack::new(Settings::kube_proxy(1), [1, 2, 3, 4]);
        let (client, pod) = (at(n.client, 40000), at(n.pod, 8080));
        let to_pod = |flags| tcp(flags).from(&client).to(&pod);
        let to_client = |flags| tcp(flags).from(&pod).to(&client);
        let (syn, syn_ack, ack) = (
            to_pod(SYN),
            to_client(SYN | ACK).sequence(9000, 1001),
            to_pod(ACK).sequence(1001, 9001),
        );
        for (origin, packet) in [
            (Origin::Outside, &syn),
            (Origin::Pod, &syn_ack),
            (Origin::Outside, &ack),
        ] {
            bed.expect_untouched(origin, packet, Verdict::Pass);
        }
        expect_no_room(n, bed, DropReason::TableFull);
    });
}

#[test]
fn a_source_over_its_limit_is_dropped_and_noted() {
    for_each_family(|n, bed| {
        let settings = Settings {
            per_source: Some(1),
            ..Settings::kube_proxy(1000)
        };
        bed.conntrack = Conntrack::new(settings, [1, 2, 3, 4]);
        let first = udp(b"question")
            .from(&at(n.client, 40000))
            .to(&at(n.vip, 80));
        let (verdict, _) = bed.send(Origin::Outside, &first);
        assert_eq!(verdict, Verdict::Forward);
        expect_no_room(n, bed, DropReason::SourceLimit);
        let other = udp(b"question")
            .from(&at(n.router, 40000))
            .to(&at(n.vip, 80));
        let (verdict, _) = bed.send(Origin::Outside, &other);
        assert_eq!(verdict, Verdict::Forward);
    });
}

/// What `conntrack -S` counts as `invalid` and as `error`.
#[test]
fn invalid_packets_and_errors_are_counted() {
    for_each_family(|n, bed| {
        let (client, pod) = (at(n.client, 40000), at(n.pod, 8080));
        let mut broken = udp(b"question").from(&client).to(&pod).bytes();
        *broken.last_mut().unwrap() ^= 1;
        let _ = bed.send_bytes(Origin::Outside, &broken);
        let _ = bed.send(Origin::Outside, &tcp(SYN | ACK).from(&client).to(&pod));
        let unknown = udp(b"question").from(&pod).to(&client).bytes();
        let (kind, code) = if n.pod.contains(':') { (1, 4) } else { (3, 3) };
        let error = icmp_error(kind, code, &unknown).from(n.client).to(n.pod);
        let _ = bed.send(Origin::Outside, &error);
        let counted: Statistics = bed.conntrack.statistics().into_iter().sum();
        assert_eq!((counted.invalid, counted.error), (2, 1));
        // Flags that no connection uses.
        let _ = bed.send(Origin::Outside, &tcp(SYN | RST).from(&client).to(&pod));
        let counted: Statistics = bed.conntrack.statistics().into_iter().sum();
        assert_eq!((counted.invalid, counted.error), (3, 1));
    });
}
