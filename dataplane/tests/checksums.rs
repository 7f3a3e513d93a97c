//! Which bytes a transport checksum covers.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::*;
use dataplane::tuple::Origin;
use dataplane::verdict::{DropReason, Verdict};

const QUESTION: &[u8] = b"question";
const BEHIND: &[u8] = b"behind it";

/// Bytes of an IP header without options.
fn ip_header(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}

/// A datagram whose own length ends after the question, in a packet that goes on.
fn with_more_behind(datagram: &Build, sum_over_all: bool) -> Vec<u8> {
    let mut packet = datagram.bytes();
    let header = ip_header(&packet);
    let own_length = (packet.len() - header) as u16;
    packet.extend(BEHIND);
    let ip_payload = (packet.len() - header) as u16;
    if header == 20 {
        let total = packet.len() as u16;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[10..12].fill(0);
        let sum = !naive_sum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&ip_payload.to_be_bytes());
    }
    if sum_over_all {
        // The pseudo header has the length of what is summed.
        let old = u16::from_be_bytes([packet[header + 6], packet[header + 7]]);
        let more = [&(ip_payload - own_length).to_be_bytes(), BEHIND].concat();
        let sum = !naive_sum(&[&(!old).to_be_bytes(), &more[..]].concat());
        packet[header + 6..header + 8].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The sum over all that the IP header announces, and the pseudo header with its length.
fn is_right_over_all(packet: &[u8]) -> bool {
    let header = ip_header(packet);
    let addresses = if header == 20 { 12..20 } else { 8..40 };
    let length = (packet.len() - header) as u16;
    let pseudo = [&packet[addresses], &[0, 17], &length.to_be_bytes()].concat();
    naive_sum(&[&pseudo, &packet[header..]].concat()) == 0xffff
}

/// Source: Linux `nf_ip_checksum`, `nf_ip6_checksum`, which connection tracking asks.
#[test]
fn the_checksum_of_udp_covers_all_that_the_ip_header_announces() {
    for names in &FAMILIES {
        let question = udp(QUESTION)
            .from(&at(names.other_pod, 40000))
            .to(&at(names.cluster_ip, 80));

        let mut bed = Bed::new(services(names));
        let packet = with_more_behind(&question, true);
        assert!(is_right_over_all(&packet));
        let (verdict, sent) = bed.send_bytes(Origin::Pod, &packet);
        assert_eq!(verdict, Verdict::Forward);
        assert_eq!(bed.conntrack.len(), 1);
        assert!(is_right_over_all(&sent) && sent.ends_with(BEHIND));
        assert_ne!(sent, packet);

        let mut bed = Bed::new(services(names));
        let packet = with_more_behind(&question, false);
        let (verdict, _) = bed.send_bytes(Origin::Pod, &packet);
        assert_eq!(verdict, Verdict::Drop(DropReason::Invalid));
        assert_eq!(bed.conntrack.len(), 0);
        let statistics = bed.conntrack.statistics();
        assert_eq!(statistics.iter().map(|one| one.invalid).sum::<u64>(), 1);
    }
}
