//! Packets of a case as bytes, and their checksums.

use super::case::{Body, Extension, Order, Packet, Segment, Shape};
use super::ip::Fragment;
pub(super) use super::ip::Ip;
use std::net::IpAddr;

pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
pub(super) const ICMPV6: u8 = 58;
pub(super) const OPTIONS: u8 = 60;
pub(super) const SCTP: u8 = 132;

/// Instead of the tag of a packet that has one.
pub(super) const ANY_TAG: u16 = 0;

/// Both ends of a packet that is to be built.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) protocol: u8,
    pub(super) source: IpAddr,
    pub(super) source_port: u16,
    pub(super) destination: IpAddr,
    pub(super) destination_port: u16,
    /// Initial sequence numbers of sender and receiver.
    pub(super) initial: (u32, u32),
}

/// What of a packet is not in its specification.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances<'a> {
    /// Identifies the packet (IPv4 identification, IPv6 flow label); NAT does not change it.
    pub(super) tag: u16,
    /// The last packet that the sender got.
    pub(super) heard: Option<&'a [u8]>,
}

/// The packet, or its fragments. Nothing for an error about a packet that never came.
pub(super) fn build(packet: &Packet, ends: &Ends, given: Circumstances<'_>) -> Vec<Vec<u8>> {
    let mut ends = *ends;
    if let Body::Error {
        router: Some(router),
        ..
    } = packet.body
    {
        ends.source = router;
    }
    let Some((protocol, mut body)) = transport(packet, &ends, given.heard) else {
        return Vec::new();
    };
    // By as much on both sides, whose ports may differ.
    if packet.shape.wrong_checksum
        && !is_unchecked(&packet.body)
        && let Some(at) = checksum_offset(protocol)
        && let Some(right) = word(&body, at)
    {
        let wrong = fold(u32::from(right) + 0x55);
        body[at..at + 2].copy_from_slice(&wrong.to_be_bytes());
    }
    if let Some(cut) = packet.shape.cut {
        body.truncate(cut.into());
    }
    let mut packets = in_fragments(&ends, protocol, &body, &packet.shape, given.tag);
    if let (Some(cut), [only]) = (packet.shape.cut, &mut packets[..])
        && ends.source.is_ipv6()
        && packet.shape.options > 0
    {
        // The cut goes through the extension header.
        only.truncate(40 + usize::from(cut));
        let length = (only.len() - 40) as u16;
        only[4..6].copy_from_slice(&length.to_be_bytes());
    }
    packets
}

fn transport(packet: &Packet, ends: &Ends, heard: Option<&[u8]>) -> Option<(u8, Vec<u8>)> {
    let ports = || {
        [
            ends.source_port.to_be_bytes(),
            ends.destination_port.to_be_bytes(),
        ]
        .concat()
    };
    let icmp = if ends.source.is_ipv4() { ICMP } else { ICMPV6 };
    let (protocol, mut bytes) = match &packet.body {
        Body::Tcp(segment) => (TCP, tcp(segment, ends, ports())),
        Body::Udp { data, .. } => {
            let mut bytes = ports();
            bytes.extend((8 + data).to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(payload(*data));
            (UDP, bytes)
        }
        Body::Query { kind, code, data } => {
            let mut bytes = vec![*kind, *code, 0, 0];
            bytes.extend(ends.source_port.to_be_bytes());
            bytes.extend([0, 1]);
            bytes.extend(payload(*data));
            (icmp, bytes)
        }
        Body::Error {
            kind,
            code,
            word,
            quote,
            ..
        } => {
            let heard = heard?;
            let length = (Ip::parse(heard)?.transport + usize::from(*quote)).min(heard.len());
            let mut bytes = vec![*kind, *code, 0, 0];
            bytes.extend(word.to_be_bytes());
            bytes.extend(&heard[..length]);
            (icmp, bytes)
        }
        Body::Sctp {
            chunk,
            tag,
            initiate,
        } => (SCTP, sctp(*chunk, *tag, *initiate, ports())),
        Body::Other { data } => (ends.protocol, payload(*data)),
    };
    if protocol == SCTP {
        let checksum = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&checksum);
    } else if let Some(at) = checksum_offset(protocol).filter(|_| !is_unchecked(&packet.body)) {
        let sum =
            !fold(pseudo_sum(ends.source, ends.destination, protocol, bytes.len()) + sum(&bytes));
        let sum = if sum == 0 && protocol == UDP {
            0xffff
        } else {
            sum
        };
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    Some((protocol, bytes))
}

/// Whether it is sent without a checksum: a zero says so, of UDP alone. Of other protocols a right one may be zero.
const fn is_unchecked(body: &Body) -> bool {
    let Body::Udp { no_checksum, .. } = body else {
        return false;
    };
    *no_checksum
}

fn tcp(segment: &Segment, ends: &Ends, mut bytes: Vec<u8>) -> Vec<u8> {
    let number = |initial: u32, offset: i64| initial.wrapping_add(offset as u32);
    let mut options = Vec::new();
    if let Some(scale) = segment.scale {
        options.extend([2, 4, 5, 180, 4, 2, 1, 3, 3, scale, 1, 1]);
    }
    if let Some((from, to)) = segment.sack {
        options.extend([1, 1, 5, 10]);
        options.extend(number(ends.initial.1, from).to_be_bytes());
        options.extend(number(ends.initial.1, to).to_be_bytes());
    }
    let flags = "FSRPAU".chars().enumerate();
    let flags = flags.fold(0, |bits, (bit, letter)| {
        bits | u8::from(segment.flags.contains(letter)) << bit
    });
    bytes.extend(number(ends.initial.0, segment.sequence).to_be_bytes());
    let acknowledgement = if flags & 0x10 == 0 && segment.acknowledgement == 0 {
        0
    } else {
        number(ends.initial.1, segment.acknowledgement)
    };
    bytes.extend(acknowledgement.to_be_bytes());
    bytes.extend([(5 + options.len() as u8 / 4) << 4, flags]);
    bytes.extend(segment.window.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(options);
    bytes.extend(payload(segment.data));
    bytes
}

fn sctp(chunk: u8, tag: u32, initiate: u32, mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    let body: Vec<u8> = match chunk {
        // DATA: TSN, stream, sequence, protocol, four bytes.
        0 => [&[0, 0, 0, 1][..], &[0; 8], b"data"].concat(),
        // INIT and INIT ACK: tag, window, streams, TSN.
        1 | 2 => [
            &initiate.to_be_bytes()[..],
            &[0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1],
        ]
        .concat(),
        // SACK: TSN, window, no blocks.
        3 => [&[0, 0, 0, 1][..], &[0, 1, 0, 0, 0, 0, 0, 0]].concat(),
        // HEARTBEAT and its answer: a parameter of eight bytes.
        4 | 5 => vec![0, 1, 0, 8, 1, 2, 3, 4],
        // SHUTDOWN: TSN; COOKIE ECHO: the cookie.
        7 | 10 => vec![0, 0, 0, 1],
        _ => Vec::new(),
    };
    bytes.extend([chunk, if chunk == 0 { 3 } else { 0 }]);
    bytes.extend((4 + body.len() as u16).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn payload(length: u16) -> Vec<u8> {
    (0..length).map(|at| b'a' + (at % 23) as u8).collect()
}

fn in_fragments(ends: &Ends, protocol: u8, body: &[u8], shape: &Shape, tag: u16) -> Vec<Vec<u8>> {
    let Some(size) = shape
        .fragment
        .filter(|size| usize::from(*size) < body.len())
    else {
        return vec![ip(ends, protocol, body, shape, tag, None)];
    };
    let size = usize::from(size.max(8)) / 8 * 8;
    let pieces: Vec<&[u8]> = body.chunks(size).collect();
    let last = pieces.len() - 1;
    let mut fragments: Vec<Vec<u8>> = pieces
        .iter()
        .enumerate()
        .map(|(number, piece)| {
            let fragment = Fragment {
                offset: number * size,
                has_more: number < last,
            };
            ip(ends, protocol, piece, shape, tag, Some(fragment))
        })
        .collect();
    match shape.order {
        Order::Forward => {}
        Order::Backward => fragments.reverse(),
        Order::Incomplete => drop(fragments.pop()),
        Order::Twice => {
            fragments = fragments
                .into_iter()
                .flat_map(|one| [one.clone(), one])
                .collect()
        }
        Order::Overlapping if last > 0 => {
            let start = (size / 2 / 8 * 8).max(8);
            let end = (start + size + 8).min(body.len());
            let across = Fragment {
                offset: start,
                has_more: end < body.len(),
            };
            let across = ip(ends, protocol, &body[start..end], shape, tag, Some(across));
            fragments.insert(1, across);
        }
        Order::Overlapping => {}
    }
    fragments
}

fn ip(
    ends: &Ends,
    protocol: u8,
    body: &[u8],
    shape: &Shape,
    tag: u16,
    fragment: Option<Fragment>,
) -> Vec<u8> {
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let addresses = [source.octets(), destination.octets()].concat();
            ipv4(&addresses, protocol, body, shape, tag, fragment)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let addresses = [source.octets(), destination.octets()].concat();
            ipv6(&addresses, protocol, body, shape, tag, fragment)
        }
        // A case of two families in one packet is nobody's.
        _ => Vec::new(),
    }
}

fn ipv4(
    addresses: &[u8],
    protocol: u8,
    body: &[u8],
    shape: &Shape,
    tag: u16,
    fragment: Option<Fragment>,
) -> Vec<u8> {
    let options = usize::from(shape.options / 4 * 4).min(40);
    let header = 20 + options;
    let whole = fragment.is_none();
    let Fragment { offset, has_more } = fragment.unwrap_or_default();
    let flags = u16::from(shape.dont_fragment && whole) << 14 | u16::from(has_more) << 13;
    let mut bytes = vec![0x40 | (header / 4) as u8, shape.tos];
    bytes.extend(((header + body.len()) as u16).to_be_bytes());
    bytes.extend(tag.to_be_bytes());
    bytes.extend((flags | (offset / 8) as u16).to_be_bytes());
    bytes.extend([shape.ttl, protocol, 0, 0]);
    bytes.extend(addresses);
    bytes.resize(header, 1);
    let sum = !fold(sum(&bytes));
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(body);
    bytes
}

fn ipv6(
    addresses: &[u8],
    protocol: u8,
    body: &[u8],
    shape: &Shape,
    tag: u16,
    fragment: Option<Fragment>,
) -> Vec<u8> {
    // Each names the next one. Only the first fragment's chain is looked at; all carry the same one here.
    let (mut next, mut extensions) = (protocol, Vec::new());
    if let Some(Fragment { offset, has_more }) = fragment {
        let word = (offset as u16) | u16::from(has_more);
        extensions = vec![next, 0];
        extensions.extend(word.to_be_bytes());
        extensions.extend(u32::from(tag).to_be_bytes());
        next = FRAGMENT;
    }
    if shape.options > 0 {
        let (kind, [first, second]) = extension(shape.extension);
        extensions = [&[next, 0, first, second, 0, 0, 0, 0], &extensions[..]].concat();
        next = kind;
    }
    let mut bytes = (0x6000_0000u32 | u32::from(shape.tos) << 20 | u32::from(tag))
        .to_be_bytes()
        .to_vec();
    bytes.extend(((extensions.len() + body.len()) as u16).to_be_bytes());
    bytes.extend([next, shape.ttl]);
    bytes.extend(addresses);
    bytes.extend(extensions);
    bytes.extend(body);
    bytes
}

/// Number of an extension header, and how what it holds begins: a PadN option of six bytes; type 0 and no segment left.
const fn extension(extension: Extension) -> (u8, [u8; 2]) {
    match extension {
        Extension::Destination => (OPTIONS, [1, 4]),
        Extension::HopByHop => (HOP_BY_HOP, [1, 4]),
        Extension::Routing => (ROUTING, [0, 0]),
    }
}

/// Offsets of source and destination port in a transport header.
pub(super) const fn port_offsets(protocol: u8, kind: Option<u8>) -> Option<(usize, usize)> {
    match (protocol, kind) {
        (TCP | UDP | SCTP, _) => Some((0, 2)),
        (ICMP, Some(0 | 8 | 13..=18)) | (ICMPV6, Some(128..=129)) => Some((4, 4)),
        _ => None,
    }
}

/// Offset of the checksum in a transport header, where it is a sum.
pub(super) const fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        ICMP | ICMPV6 => Some(2),
        _ => None,
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

pub(super) fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2);
    words
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum()
}

pub(super) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u32 {
    let addresses = match (source, destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) if protocol == ICMP => return 0,
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            [source.octets(), destination.octets()].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            [source.octets(), destination.octets()].concat()
        }
        _ => Vec::new(),
    };
    sum(&addresses) + u32::from(protocol) + length as u32
}

/// Whether the packet is SCTP with a right checksum.
pub(super) fn sctp_is_right(bytes: &[u8], ip: &Ip) -> bool {
    let mut copy = bytes.to_vec();
    ip.protocol == SCTP && {
        mend_sctp(&mut copy, ip);
        copy == bytes
    }
}

/// Writes the right checksum into an SCTP packet.
pub(super) fn mend_sctp(bytes: &mut [u8], ip: &Ip) {
    if let Some(transport) = bytes
        .get_mut(ip.transport..)
        .filter(|bytes| bytes.len() >= 12)
    {
        transport[8..12].fill(0);
        let checksum = crc32c(transport).to_le_bytes();
        transport[8..12].copy_from_slice(&checksum);
    }
}

/// CRC32c (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A right checksum of zero would say "none" of UDP alone. A client's port is each side's own, so what is wrong with one
    /// must be wrong with all.
    #[test]
    fn a_checksum_is_wrong_whatever_the_right_one_is() {
        let segment = Segment {
            flags: "S".to_owned(),
            sequence: 0,
            acknowledgement: 0,
            window: 1000,
            data: 0,
            scale: None,
            sack: None,
        };
        let right = Packet::from(Body::Tcp(segment));
        let mut wrong = right.clone();
        wrong.shape.wrong_checksum = true;
        let checksum = |packet: &Packet, source_port| {
            let ends = Ends {
                protocol: TCP,
                source: IpAddr::from([10, 0, 0, 1]),
                source_port,
                destination: IpAddr::from([10, 0, 0, 2]),
                destination_port: 80,
                initial: (1, 2),
            };
            let given = Circumstances {
                tag: 1,
                heard: None,
            };
            word(&build(packet, &ends, given)[0], 36)
        };
        let mut ports = 1..=u16::MAX;
        assert!(ports.any(|port| checksum(&right, port) == Some(0)));
        let mut ports = 1..=u16::MAX;
        assert!(ports.all(|port| checksum(&right, port) != checksum(&wrong, port)));
    }
}
