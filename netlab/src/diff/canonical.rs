//! What of packets and connections must be the same on both sides, and what each side may choose for itself.

use super::case::Case;
use super::side::{Entry, Tuple};
use super::wire::{self, ICMP, ICMPV6, Ip, SCTP, TCP, UDP};
use super::world::Output;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

/// Source ports (or ICMP identifiers) that our side chose, and those that the other chose instead.
#[derive(Clone, Debug, Default)]
pub(super) struct Ports {
    /// By protocol, server, its port, translated client, our port.
    pairs: HashMap<(u8, IpAddr, u16, IpAddr, u16), u16>,
}

impl Ports {
    /// Takes the ports of one packet, sent from `sent`, on both sides as the same, if that may be: a source that is
    /// masqueraded gets any port of the range, one that is not another port where its own is taken.
    pub(super) fn learn(&mut self, sent: (IpAddr, u16), kernel: &[u8], ours: &[u8]) {
        let read = |bytes: &[u8]| {
            let ip = Ip::parse(bytes)?;
            Some((ip, ip.ports(bytes)?))
        };
        let (Some((ip, (theirs, port))), Some((own, (our, our_port)))) = (read(kernel), read(ours))
        else {
            return;
        };
        let is_icmp = matches!(ip.protocol, ICMP | ICMPV6);
        let same = (ip.source, ip.destination, ip.protocol)
            == (own.source, own.destination, own.protocol)
            && (is_icmp || port == our_port);
        let (address, sent) = sent;
        let range = range(sent, is_icmp);
        let is_changed = ip.source != address || (theirs != sent && our != sent);
        if same && is_changed && range.contains(&our) && range.contains(&theirs) {
            let port = if is_icmp { 0 } else { port };
            self.pairs
                .insert((ip.protocol, ip.destination, port, ip.source, our), theirs);
        }
    }

    fn theirs(&self, protocol: u8, server: (IpAddr, u16), client: (IpAddr, u16)) -> Option<u16> {
        let key = (protocol, server.0, server.1, client.0, client.1);
        self.pairs.get(&key).copied()
    }

    /// A tuple with the other side's port where ours stands.
    fn replace_in(&self, protocol: u8, tuple: Tuple) -> Tuple {
        let is_icmp = matches!(protocol, ICMP | ICMPV6);
        let Tuple {
            source,
            source_port,
            destination,
            destination_port,
        } = tuple;
        if is_icmp {
            let theirs = self.theirs(protocol, (source, 0), (destination, source_port));
            return Tuple {
                source_port: theirs.unwrap_or(source_port),
                ..tuple
            };
        }
        let from_server = self.theirs(
            protocol,
            (source, source_port),
            (destination, destination_port),
        );
        let to_server = self.theirs(
            protocol,
            (destination, destination_port),
            (source, source_port),
        );
        Tuple {
            source_port: to_server.unwrap_or(source_port),
            destination_port: from_server.unwrap_or(destination_port),
            ..tuple
        }
    }

    /// Puts the other side's port where ours stands, and mends the checksum by the difference.
    fn replace(&self, bytes: &mut [u8]) {
        let Some(ip) = Ip::parse(bytes) else { return };
        if let Some((source, destination)) = ip.ports(bytes) {
            let is_icmp = matches!(ip.protocol, ICMP | ICMPV6);
            let port = |port| if is_icmp { 0 } else { port };
            let (sender, receiver) = ((ip.source, source), (ip.destination, destination));
            let to_server = self
                .theirs(ip.protocol, (receiver.0, port(receiver.1)), sender)
                .map(|theirs| (0, theirs));
            // Sent to our port and not translated back, because the connection is over.
            let to_client = || {
                let server = (sender.0, port(sender.1));
                self.theirs(ip.protocol, server, receiver)
                    .map(|theirs| (2, theirs))
            };
            let Some((at, theirs)) = to_server.or_else(to_client) else {
                return;
            };
            let is_right = wire::sctp_is_right(bytes, &ip);
            write_port(bytes, &ip, if is_icmp { 4 } else { at }, theirs);
            if is_right {
                wire::mend_sctp(bytes, &ip);
            }
        } else if ip.is_error(bytes) {
            self.replace_quoted(bytes, &ip);
        }
    }

    /// An error to a server quotes what that server sent to our port.
    fn replace_quoted(&self, bytes: &mut [u8], ip: &Ip) {
        let at = ip.transport + 8;
        let Some(quoted) = bytes.get(at..).and_then(Ip::parse) else {
            return;
        };
        let Some((source, destination)) = quoted.ports(&bytes[at..]) else {
            return;
        };
        let is_icmp = matches!(quoted.protocol, ICMP | ICMPV6);
        let server = if is_icmp { 0 } else { source };
        let Some(theirs) = self.theirs(
            quoted.protocol,
            (quoted.source, server),
            (quoted.destination, destination),
        ) else {
            return;
        };
        let before = wire::sum(&bytes[at..]);
        write_port(
            &mut bytes[at..],
            &quoted,
            if is_icmp { 4 } else { 2 },
            theirs,
        );
        let after = wire::sum(&bytes[at..]);
        mend(
            bytes,
            ip.transport + 2,
            wire::fold(before),
            wire::fold(after),
        );
    }
}

fn range(port: u16, is_icmp: bool) -> std::ops::RangeInclusive<u16> {
    match port {
        _ if is_icmp => 0..=u16::MAX,
        0..512 => 1..=511,
        512..1024 => 600..=1023,
        _ => 1024..=u16::MAX,
    }
}

fn write_port(bytes: &mut [u8], ip: &Ip, at: usize, port: u16) {
    let at = ip.transport + at;
    let old = wire::word(bytes, at).unwrap_or_default();
    bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
    let Some(checksum) = wire::checksum_offset(ip.protocol).map(|offset| ip.transport + offset)
    else {
        return;
    };
    let is_absent = ip.protocol == UDP && wire::word(bytes, checksum) == Some(0);
    if !is_absent {
        mend(bytes, checksum, old, port);
    }
}

/// RFC 1624, equation 3.
fn mend(bytes: &mut [u8], checksum: usize, old: u16, new: u16) {
    if let Some(field) = wire::word(bytes, checksum) {
        let sum = u32::from(!field) + u32::from(!old) + u32::from(new);
        bytes[checksum..checksum + 2].copy_from_slice(&(!wire::fold(sum)).to_be_bytes());
    }
}

/// Outputs as they are compared: by link, datagrams whole, ports those of the other side, and without the
/// identification of what the node made itself.
pub(super) fn outputs(outputs: &[Output], tag: u16, ports: &Ports) -> Vec<Output> {
    let mut canonical = joined(outputs);
    canonical.sort_by_key(|output| output.link);
    for output in &mut canonical {
        ports.replace(&mut output.bytes);
        let is_sent = Ip::parse(&output.bytes).is_some_and(|ip| ip.tag == tag);
        if !is_sent {
            forget_tag(&mut output.bytes);
        }
        forget_quoted_sctp_checksum(&mut output.bytes);
        one_zero(&mut output.bytes);
    }
    canonical
}

/// NAT leaves the checksum in a quote of SCTP as it was on the other side, where it covered a port of that side's own.
fn forget_quoted_sctp_checksum(bytes: &mut [u8]) {
    let Some(ip) = Ip::parse(bytes).filter(|ip| ip.is_error(bytes)) else {
        return;
    };
    let at = ip.transport + 8;
    let quoted = bytes.get(at..).and_then(Ip::parse);
    let Some(quoted) = quoted.filter(|quoted| quoted.protocol == SCTP) else {
        return;
    };
    let field = at + quoted.transport + 8;
    let end = (field + 4).min(bytes.len());
    if field < end {
        let before = wire::sum(&bytes[at..]);
        bytes[field..end].fill(0);
        let after = wire::sum(&bytes[at..]);
        mend(
            bytes,
            ip.transport + 2,
            wire::fold(before),
            wire::fold(after),
        );
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
            Some((ip, (offset, _))) => {
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

/// Whether the node of our side alone complains about a fragment without its headers. A rule that looks at TCP ports drops
/// what has none, and kube-proxy has one for all that goes to the node where there are health check ports
/// (docs/behaviours/differences.md).
pub(super) fn complains_about_headers(kernel: &[Output], ours: &[Output]) -> bool {
    let complaint = |output: &Output| {
        Ip::parse(&output.bytes).is_some_and(|ip| {
            ip.protocol == ICMPV6
                && output.bytes.get(ip.transport..ip.transport + 2) == Some(&[4, 3])
        })
    };
    kernel.is_empty() && !ours.is_empty() && ours.iter().all(complaint)
}

/// Whether `address` is the node's.
pub(super) fn is_own(case: &Case, address: IpAddr) -> bool {
    let mut addresses = case.links.iter().flat_map(|link| &link.addresses);
    address.is_loopback() || addresses.any(|own| own.addr() == address)
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
        .filter(|entry| is_tracked_by_both(entry, own) && !is_parted(entry))
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
    let with_the_node =
        own(entry.original.source) || (own(entry.reply.source) && own(entry.original.destination));
    matches!(entry.protocol, TCP | UDP | SCTP | ICMP | ICMPV6) && !with_the_node
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
