//! What of packets and connections must be the same on both sides, and what each side may choose for itself.

use super::case::Case;
use super::deliberate;
use super::ip::Fragment;
use super::ports::Ports;
use super::quotes;
use super::side::{Entry, Tuple};
use super::wire::{self, ICMP, ICMPV6, Ip, SCTP, TCP, UDP};
use super::world::Output;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

/// Outputs as they are compared: by link, datagrams whole, ports those of the other side, and without the
/// identification of what the node made itself. `sent` went in, with `tag` as identification.
pub(super) fn outputs(
    outputs: &[Output],
    tag: u16,
    sent: &[Vec<u8>],
    ports: &Ports,
) -> Vec<Output> {
    let mut canonical = joined(outputs);
    canonical.sort_by_key(|output| output.link);
    for output in &mut canonical {
        quotes::forget_ports(&mut output.bytes, sent);
        forget_part_of_ports(&mut output.bytes);
        let has_checksum = quotes::has_sctp_checksum(&output.bytes);
        ports.replace(&mut output.bytes);
        quotes::renew_sctp_checksum(&mut output.bytes, has_checksum);
        // The node may choose the same identification for what it makes, but makes other kinds of packets.
        let is_kind = || sent.iter().any(|sent| kind(sent) == kind(&output.bytes));
        let is_sent = Ip::parse(&output.bytes).is_some_and(|ip| ip.tag == tag && is_kind());
        if !is_sent {
            forget_tag(&mut output.bytes);
        }
        if tag == wire::ANY_TAG {
            forget_partial_checksum(&mut output.bytes);
        }
        quotes::forget_identification(&mut output.bytes);
        one_zero(&mut output.bytes);
    }
    canonical
}

/// Protocol, and of ICMP the type: the node answers a request for an echo with one.
fn kind(bytes: &[u8]) -> Option<(u8, Option<u8>)> {
    let ip = Ip::parse(bytes)?;
    let is_icmp = matches!(ip.protocol, ICMP | ICMPV6);
    let icmp_type = bytes.get(ip.transport).filter(|_| is_icmp);
    Some((ip.protocol, icmp_type.copied()))
}

/// Where each packet came out as it went in, but for its hops; nothing if one did not. Ports that each side chose for
/// itself make no difference then.
pub(super) fn as_sent(outputs: &[Output], sent: &[Vec<u8>]) -> Option<Vec<(usize, u8)>> {
    let hops = |bytes: &[u8]| bytes.get(if is_ipv4(bytes) { 8 } else { 7 }).copied();
    let place = |(output, sent): (&Output, &Vec<u8>)| {
        let same = output.bytes.len() == sent.len() && begins_as(&output.bytes, sent, &(0..0));
        Some((output.link, hops(&output.bytes).filter(|_| same)?))
    };
    let is_all = !sent.is_empty() && outputs.len() == sent.len();
    is_all.then(|| outputs.iter().zip(sent).map(place).collect())?
}

/// Whether the shorter of two packets is the beginning of the other, hops, the checksum over them and `but` apart.
pub(super) fn begins_as(one: &[u8], other: &[u8], but: &Range<usize>) -> bool {
    let is_ipv4 = is_ipv4(one);
    let is_hop = |at: usize| {
        if is_ipv4 {
            matches!(at, 8 | 10 | 11)
        } else {
            at == 7
        }
    };
    let mut pairs = one.iter().zip(other).enumerate();
    pairs.all(|(at, (one, other))| one == other || is_hop(at) || but.contains(&at))
}

fn is_ipv4(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| first >> 4 == 4)
}

/// A packet that was cut within its ports has a port of each side's own, as has one that is quoted so far.
fn forget_part_of_ports(bytes: &mut [u8]) {
    let Some(ip) = Ip::parse(bytes) else { return };
    let ports = if ip.is_error(bytes) {
        let quoted = bytes.get(ip.transport + 8..).and_then(Ip::parse);
        quoted.map(|quoted| (quoted.protocol, ip.transport + 8 + quoted.transport))
    } else {
        Some((ip.protocol, ip.transport))
    };
    let has_ports = |protocol| matches!(protocol, TCP | UDP | SCTP);
    let ports = ports.filter(|(protocol, at)| has_ports(*protocol) && bytes.len() < at + 4);
    let Some((_, at)) = ports else { return };
    if ip.is_error(bytes) {
        quotes::change(bytes, &ip, |quote| {
            if let Some(part) = quote.get_mut(at - ip.transport - 8..) {
                part.fill(0);
            }
        });
    } else if let Some(part) = bytes.get_mut(at..) {
        part.fill(0);
    }
}

/// What the node's socket sends to the node itself may never get a whole checksum.
fn forget_partial_checksum(bytes: &mut [u8]) {
    if let Some(ip) = Ip::parse(bytes).filter(|ip| matches!(ip.protocol, TCP | UDP))
        && let Some(at) = wire::checksum_offset(ip.protocol).map(|offset| ip.transport + offset)
        && let Some(checksum) = bytes.get_mut(at..at + 2)
    {
        checksum.fill(0);
    }
}

/// Both forms of a zero checksum mean the same but for UDP, where replacing ports above may have made either.
fn one_zero(bytes: &mut [u8]) {
    let Some(ip) = Ip::parse(bytes) else { return };
    let Some(at) = wire::checksum_offset(ip.protocol).map(|offset| ip.transport + offset) else {
        return;
    };
    if ip.protocol != UDP && wire::word(bytes, at) == Some(0xffff) {
        bytes[at..at + 2].fill(0);
    }
}

fn forget_tag(bytes: &mut [u8]) {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => {
            bytes[4..6].fill(0);
            bytes[10..12].fill(0);
            let length = usize::from(bytes[0] & 0xf) * 4;
            let sum = !wire::fold(wire::sum(&bytes[..length]));
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Some(6) => {
            bytes[1] &= 0xf0;
            bytes[2..4].fill(0);
        }
        _ => {}
    }
}

/// The outputs with fragments of one datagram put together. The sizes of fragments and Don't Fragment are left out
/// (docs/behaviours/differences.md).
pub(super) fn joined(outputs: &[Output]) -> Vec<Output> {
    let mut whole: Vec<Output> = Vec::new();
    let mut parts: BTreeMap<_, Vec<Part<'_>>> = BTreeMap::new();
    for output in outputs {
        match Ip::parse(&output.bytes).and_then(|ip| Some((ip, ip.fragment?))) {
            Some((ip, Fragment { offset, .. })) => {
                let key = (output.link, ip.source, ip.tag);
                parts.entry(key).or_default().push((offset, output, ip));
            }
            None => whole.push(output.clone()),
        }
    }
    for mut fragments in parts.into_values() {
        fragments.sort_by_key(|(offset, ..)| *offset);
        whole.extend(join(&fragments));
    }
    whole
}

/// A fragment: its offset, and itself.
type Part<'a> = (usize, &'a Output, Ip);

fn join(fragments: &[Part<'_>]) -> Option<Output> {
    let (_, first, ip) = fragments.first()?;
    let header = if ip.source.is_ipv4() {
        ip.transport
    } else {
        40
    };
    let mut bytes = first.bytes[..header].to_vec();
    for (offset, output, ip) in fragments {
        bytes.resize(header + offset, 0);
        bytes.extend(&output.bytes[ip.transport..]);
    }
    if ip.source.is_ipv4() {
        let length = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes[6..8].fill(0);
        bytes[10..12].fill(0);
        let sum = !wire::fold(wire::sum(&bytes[..header]));
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        bytes[6] = ip.protocol;
        let length = (bytes.len() - 40) as u16;
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
    }
    Some(Output {
        link: first.link,
        bytes,
    })
}

/// Whether what came out differs in the IPv6 headers of ICMPv6 errors only, addresses apart: those to the node's own
/// address lose the rest (docs/behaviours/differences.md).
pub(super) fn same_but_headers(kernel: &[Output], ours: &[Output]) -> bool {
    let without = |outputs: &[Output]| -> Vec<Output> {
        let mut outputs = outputs.to_vec();
        for output in &mut outputs {
            let Some(ip) = Ip::parse(&output.bytes) else {
                continue;
            };
            if ip.is_error(&output.bytes) && ip.protocol == ICMPV6 {
                let length = (output.bytes.len() - ip.transport) as u16;
                output.bytes.drain(40..ip.transport);
                output.bytes[..4].copy_from_slice(&[0x60, 0, 0, 0]);
                output.bytes[4..6].copy_from_slice(&length.to_be_bytes());
                output.bytes[6] = ICMPV6;
            }
        }
        outputs
    };
    without(kernel) == without(ours)
}

/// Whether `address` is the node's.
pub(super) fn is_own(case: &Case, address: IpAddr) -> bool {
    address.is_loopback() || case.own_addresses().any(|own| own == address)
}

/// Connections as they are compared: those that packets of flows made.
pub(super) fn entries(
    case: &Case,
    parted: &HashSet<usize>,
    entries: Vec<Entry>,
    ports: &Ports,
) -> Vec<Entry> {
    let is_parted = |entry: &Entry| {
        parted.iter().any(|flow| {
            let flow = &case.flows[*flow];
            let ends = (flow.source, flow.source_port);
            entry.protocol == flow.protocol
                && (ends == (entry.original.source, entry.original.source_port)
                    || ends == (entry.original.destination, entry.original.destination_port))
        })
    };
    let own = |address| is_own(case, address);
    let mut canonical: Vec<Entry> = entries
        .into_iter()
        .filter(|entry| is_tracked_by_both(entry, own) && !is_parted(entry) && !is_mapped(entry))
        .map(|entry| Entry {
            original: ports.replace_in(entry.protocol, entry.original),
            reply: ports.replace_in(entry.protocol, entry.reply),
            ..entry
        })
        .collect();
    canonical.sort();
    canonical
}

/// Our side sees TCP, UDP, SCTP and ICMP that traverse the node or are translated. What the node itself says to
/// others does not come by, nor what it answers, nor other protocols (docs/behaviours/differences.md).
fn is_tracked_by_both(entry: &Entry, own: impl Fn(IpAddr) -> bool) -> bool {
    let (original, reply) = (entry.original, entry.reply);
    let translated = (reply.source, reply.destination) != (original.destination, original.source);
    let with_the_node = if own(original.source) {
        !translated
    } else {
        own(reply.source) && own(original.destination)
    };
    matches!(entry.protocol, TCP | UDP | SCTP | ICMP | ICMPV6) && !with_the_node
}

fn is_mapped(entry: &Entry) -> bool {
    let Tuple {
        source,
        destination,
        ..
    } = entry.original;
    deliberate::is_mapped(source) || deliberate::is_mapped(destination)
}

/// Seconds by which timeouts may differ: the sides are read one after the other, and the kernel counts in ticks.
const TOLERANCE: u64 = 2;

/// The connections of either side that the other has not; nothing when they have the same.
pub(super) fn differing(kernel: &[Entry], ours: &[Entry]) -> Option<[Vec<Entry>; 2]> {
    let same = |one: &Entry, other: &Entry| {
        let timeout = one.timeout.abs_diff(other.timeout) <= TOLERANCE;
        timeout
            && Entry {
                timeout: 0,
                ..one.clone()
            } == Entry {
                timeout: 0,
                ..other.clone()
            }
    };
    let about_to_end = |entry: &Entry| entry.timeout <= TOLERANCE;
    let missing = |these: &[Entry], others: &[Entry]| -> Vec<Entry> {
        let missing = these
            .iter()
            .filter(|entry| !about_to_end(entry) && !others.iter().any(|other| same(entry, other)));
        missing.cloned().collect()
    };
    let differing = [missing(kernel, ours), missing(ours, kernel)];
    let same = differing.iter().all(Vec::is_empty);
    (!same).then_some(differing)
}

/// The connections of which `later`, our table seen through a clock that is so much ahead, keeps too few or too many,
/// by the timeouts that the kernel says.
pub(super) fn differing_later(
    kernel: &[Entry],
    later: &[Entry],
    ahead: Duration,
) -> Option<[Vec<Entry>; 2]> {
    let key = |entry: &Entry| (entry.protocol, entry.original, entry.reply);
    let left: HashSet<_> = later.iter().map(key).collect();
    let ahead = ahead.as_secs();
    let lost = kernel
        .iter()
        .filter(|entry| entry.timeout > ahead + TOLERANCE && !left.contains(&key(entry)));
    let over: HashSet<_> = kernel
        .iter()
        .filter(|entry| entry.timeout + TOLERANCE < ahead)
        .map(key)
        .collect();
    let kept = later.iter().filter(|entry| over.contains(&key(entry)));
    let differing = [lost.cloned().collect(), kept.cloned().collect::<Vec<_>>()];
    let same = differing.iter().all(Vec::is_empty);
    (!same).then_some(differing)
}

/// Entries whose reply tuple another entry has as well: two connections would be one. ICMP's is not all of its tuple.
pub(super) fn repeated(entries: &[Entry]) -> Vec<Entry> {
    let mut seen = HashSet::new();
    let again = entries
        .iter()
        .filter(|entry| matches!(entry.protocol, TCP | UDP | SCTP))
        .filter(|entry| !seen.insert((entry.protocol, entry.reply)));
    again.cloned().collect()
}

/// What kinds of packets came out, in a few words.
pub(super) fn kinds(outputs: &[Output]) -> String {
    let kind = |output: &Output| {
        let Some(ip) = Ip::parse(&output.bytes) else {
            return "?".to_owned();
        };
        let kind = output.bytes.get(ip.transport).copied().unwrap_or_default();
        match ip.protocol {
            ICMP | ICMPV6 => format!("icmp {kind}"),
            6 => format!(
                "tcp {:02x}",
                output
                    .bytes
                    .get(ip.transport + 13)
                    .copied()
                    .unwrap_or_default()
                    & 0x17
            ),
            protocol => format!("protocol {protocol}"),
        }
    };
    let kinds: Vec<String> = outputs.iter().map(kind).collect();
    if kinds.is_empty() {
        "nothing".to_owned()
    } else {
        kinds.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let length = (20 + payload.len() as u16).to_be_bytes();
        let mut bytes = vec![
            0x45, 0, length[0], length[1], 0, 7, 0, 0, 64, protocol, 0, 0,
        ];
        bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend(payload);
        bytes
    }

    fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u16).to_be_bytes();
        let mut bytes = vec![0x60, 0, 0, 7, length[0], length[1], next, 64];
        bytes.extend([0xfd; 32]);
        bytes.extend(payload);
        bytes
    }

    /// An ICMP error that quotes `quoted`.
    fn error(quoted: &[u8]) -> Vec<u8> {
        let header = |kind| [kind, 3, 0, 0, 0, 0, 0, 0];
        match quoted.first().map(|first| first >> 4) {
            Some(4) => ipv4(ICMP, &[&header(3)[..], quoted].concat()),
            _ => ipv6(ICMPV6, &[&header(1)[..], quoted].concat()),
        }
    }

    /// What comes out has a header; the kernel quotes as much as it likes, or as there was.
    #[test]
    fn what_is_cut_behind_its_header_is_as_itself_and_not_as_another() {
        let ports = [0x30, 0x39, 0, 80, 0, 1, 2, 3, 4, 5, 6, 7];
        let in_fragments = [UDP, 0, 0, 1, 0, 0, 0, 9, 1, 2, 3, 4];
        let packets = [TCP, UDP, SCTP, ICMP, 47].map(|protocol| ipv4(protocol, &ports));
        let packets = packets.into_iter().chain([
            ipv6(TCP, &ports),
            ipv6(SCTP, &ports),
            ipv6(44, &in_fragments),
            ipv6(0, &[UDP, 0, 1, 4, 0, 0, 0, 0, 0x30, 0x39, 0, 80]),
        ]);
        for packet in packets {
            let error = error(&packet);
            for whole in [&packet, &error] {
                let header = if is_ipv4(whole) { 20 } else { 40 };
                for length in header + 1..=whole.len() {
                    let came = |bytes: &[u8]| {
                        let output = Output {
                            link: 0,
                            bytes: bytes.to_vec(),
                        };
                        let sent = std::slice::from_ref(&packet);
                        outputs(&[output], 7, sent, &Ports::default())
                    };
                    let cut = came(&whole[..length]);
                    assert_eq!(cut, came(&whole[..length]));
                    assert_ne!(cut, came(&whole[..length - 1]));
                }
            }
        }
    }
}
