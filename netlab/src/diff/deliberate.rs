//! Differences on purpose that show in what comes out: docs/behaviours/differences.md explains each.

use super::canonical;
use super::case::{Body, Case, Flow, Packet, Place};
use super::wire::{self, Ends, ICMPV6, Ip, SCTP, TCP, UDP};
use super::world::Output;
use std::net::IpAddr;

/// What goes on is of another connection on either side.
pub(super) const TURNED_AWAY: &str = "a refused connection of the node with itself";

/// Why `kernel` and `ours`, which came out when `packet` of `flow` was sent between `ends`, may differ. Not the first
/// packet of its flow if that `has_begun`.
pub(super) fn reason(
    case: &Case,
    flow: usize,
    packet: &Packet,
    has_begun: bool,
    ends: &Ends,
    [kernel, ours]: [&[Output]; 2],
) -> Option<&'static str> {
    let to = ends.destination;
    let is_own = canonical::is_own(case, to);
    let is_error = matches!(packet.body, Body::Error { .. });
    let shape = &packet.shape;
    if is_own && to.is_ipv6() && is_error && canonical::same_but_headers(kernel, ours) {
        return Some("the IPv6 header of an ICMPv6 error to the node's own address");
    }
    let lacks_headers = shape.cut.is_some() || shape.fragment.is_some();
    if is_own && lacks_headers && kept_without_headers(case.links.len(), kernel, ours) {
        return Some("a packet for the node without its headers");
    }
    let flow = &case.flows[flow];
    let is_damaged = shape.wrong_checksum || shape.cut.is_some();
    if is_damaged && is_error && canonical::is_own(case, ends.source) && passed(kernel, ours, ends)
    {
        return Some("an error of the node with a wrong checksum");
    }
    let is_cut_sctp = ends.protocol == SCTP && shape.cut.is_some();
    if is_cut_sctp && canonical::is_own(case, ends.source) && same_but_mended(kernel, ours) {
        return Some("a wrong checksum of SCTP that the node sent");
    }
    if is_too_big(kernel) && (ours.is_empty() || is_refused(ours)) {
        return Some("what is turned away is larger than the way");
    }
    if ours.is_empty() && (is_mapped(flow.source) || is_mapped(flow.destination)) {
        return Some("an IPv4-mapped address in IPv6");
    }
    let is_broken = to.is_ipv6() && shape.options > 0 && shape.cut.is_some();
    if is_broken && kernel.len() + ours.len() == 1 {
        return Some("an IPv6 packet cut within its extension headers");
    }
    if flow.from == Place::Node && is_own && turned_away_once(case, flow, has_begun, kernel, ours) {
        return Some(TURNED_AWAY);
    }
    let is_over_mtu = || same_but_cut(kernel, ours) || exceeds_mtu(kernel, ours);
    let quotes_cut = || is_error && same_but_cut_quote(case, kernel, ours);
    if canonical::is_own(case, ends.source) && is_over_mtu() || quotes_cut() {
        return Some("the MTU of a path that another connection learnt");
    }
    let is_of_others = ends.protocol == TCP && is_own && ends.source == flow.destination;
    if is_of_others && flow.from == Place::Node && has_another_port(case, kernel, ours) {
        return Some("a connection of others with the node, which has another's tuple");
    }
    if flow.source.is_loopback() && same_but_errors(kernel, ours) {
        return Some("an error of the node about a connection of localhost");
    }
    if same_to_the_node(case, kernel, ours) {
        return Some("hop limits of what the node sends to itself");
    }
    None
}

/// Whether our side alone sent an error on, to where it was sent.
fn passed(kernel: &[Output], ours: &[Output], ends: &Ends) -> bool {
    let is_as_sent = |output: &Output| {
        let ip = Ip::parse(&output.bytes);
        ip.is_some_and(|ip| (ip.source, ip.destination) == (ends.source, ends.destination))
    };
    kernel.is_empty() && !ours.is_empty() && ours.iter().all(is_as_sent)
}

/// Whether the kernel mended wrong checksums of SCTP, which our side left as they were, and nothing else differs.
fn same_but_mended(kernel: &[Output], ours: &[Output]) -> bool {
    let mended = |output: &Output| {
        let ip = Ip::parse(&output.bytes).filter(|ip| !wire::sctp_is_right(&output.bytes, ip))?;
        let mut mended = output.clone();
        wire::mend_sctp(&mut mended.bytes, &ip);
        Some(mended)
    };
    let mended: Option<Vec<Output>> = ours.iter().map(mended).collect();
    mended.is_some_and(|mended| !mended.is_empty() && mended == kernel)
}

/// Whether a router said that a packet is too big, and nothing else.
pub(super) fn is_too_big(outputs: &[Output]) -> bool {
    matches!(refusal(outputs), Some([3, 4] | [2, 0]))
}

/// Whether the kernel told the sender of an MTU, and what went on on our side is larger than that.
fn exceeds_mtu(kernel: &[Output], ours: &[Output]) -> bool {
    let ([error], [sent]) = (kernel, ours) else {
        return false;
    };
    let mtu = is_too_big(kernel).then(|| {
        let ip = Ip::parse(&error.bytes)?;
        let field = error.bytes.get(ip.transport + 6..ip.transport + 8)?;
        Some(usize::from(u16::from_be_bytes([field[0], field[1]])))
    });
    let is_forwarded = Ip::parse(&sent.bytes).is_some_and(|ip| !ip.is_error(&sent.bytes));
    is_forwarded && mtu.flatten().is_some_and(|mtu| mtu < sent.bytes.len())
}

/// Whether it is an IPv4 address in the form of IPv6.
pub(super) fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// Whether what came out differs only in Don't Fragment: what the kernel cut lost it when it was joined.
fn same_but_cut(kernel: &[Output], ours: &[Output]) -> bool {
    let without = |outputs: &[Output]| -> Vec<Output> {
        let mut outputs = outputs.to_vec();
        for Output { bytes, .. } in &mut outputs {
            if Ip::parse(bytes).is_some_and(|ip| ip.source.is_ipv4()) {
                for field in [6, 10, 11] {
                    bytes[field] = 0;
                }
            }
        }
        outputs
    };
    without(kernel) == without(ours)
}

/// Whether errors to the node itself differ only in that they quote what it sent whole on our side, and the kernel had cut:
/// that has no Don't Fragment, and an identification.
fn same_but_cut_quote(case: &Case, kernel: &[Output], ours: &[Output]) -> bool {
    const DONT_FRAGMENT: u8 = 0x40;
    let without = |outputs: &[Output], expected: u8| -> Option<Vec<Output>> {
        let without = |output: &Output| {
            let ip = Ip::parse(&output.bytes).filter(|ip| ip.is_error(&output.bytes))?;
            let mut output = output.clone();
            let quote = output.bytes.get_mut(ip.transport + 8..)?;
            let is_v4 = quote.len() >= 20 && quote[0] >> 4 == 4;
            let is_expected = is_v4 && quote[6] == expected && output.link == case.links.len();
            for field in [4, 5, 6] {
                *quote.get_mut(field)? = 0;
            }
            forget_hops(&mut output.bytes);
            is_expected.then_some(output)
        };
        outputs.iter().map(without).collect()
    };
    let kernels = without(kernel, 0);
    !kernel.is_empty() && kernels.is_some() && kernels == without(ours, DONT_FRAGMENT)
}

/// Whether the node itself got a packet from another port than on our side, which does not track its connections. Of
/// IPv6 its answer alone shows, a RST.
fn has_another_port(case: &Case, kernel: &[Output], ours: &[Output]) -> bool {
    const RST: u8 = 4;
    let is_reset = |output: &Output| {
        Ip::parse(&output.bytes).is_some_and(|ip| {
            let flags = output.bytes.get(ip.transport + 13);
            ip.source.is_ipv6() && ip.protocol == TCP && flags.is_some_and(|flags| flags & RST != 0)
        })
    };
    if !kernel.is_empty() && kernel.iter().chain(ours).all(is_reset) {
        return true;
    }
    let port = |outputs: &[Output]| {
        let mut at_node = outputs
            .iter()
            .filter(|output| output.link == case.links.len());
        at_node.find_map(|output| Some(Ip::parse(&output.bytes)?.ports(&output.bytes)?.0))
    };
    let ports = port(kernel).zip(port(ours));
    ports.is_some_and(|(theirs, own)| theirs != own)
}

/// Whether our side has ICMP errors more, and nothing else.
fn same_but_errors(kernel: &[Output], ours: &[Output]) -> bool {
    let is_error =
        |output: &&Output| Ip::parse(&output.bytes).is_some_and(|ip| ip.is_error(&output.bytes));
    let rest: Vec<&Output> = ours.iter().filter(|output| !is_error(output)).collect();
    rest.len() < ours.len() && rest.into_iter().eq(kernel)
}

/// Whether one side turned away what the node sent to itself, for want of endpoints, and the other gave it to the node
/// as it was; or who turned it away were two.
fn turned_away_once(
    case: &Case,
    flow: &Flow,
    has_begun: bool,
    kernel: &[Output],
    ours: &[Output],
) -> bool {
    // Nobody is told of a drop, nor of the refusal of what is broken.
    let is_turned_away = |outputs: &[Output]| outputs.is_empty() || is_refused(outputs);
    let is_given = |outputs: &[Output]| {
        let first = outputs
            .first()
            .filter(|first| first.link == case.links.len());
        let ends = first.and_then(|first| {
            let ip = Ip::parse(&first.bytes)?;
            Some((ip.destination, ip.ports(&first.bytes)?.1))
        });
        ends == Some((flow.destination, flow.destination_port))
    };
    let is_half = |one, other| is_turned_away(one) && is_given(other);
    let by_two = refusal(kernel).zip(refusal(ours));
    let is_by_two = by_two.is_some_and(|(theirs, own)| theirs != own);
    // Our side leads it to the endpoints that came since.
    let is_left = is_given(kernel) || is_turned_away(kernel) && has_begun;
    let is_kept = !case.changes.is_empty() && is_left && !is_given(ours);
    is_half(kernel, ours) || is_half(ours, kernel) || is_by_two || is_kept
}

/// Whether nothing but one ICMP error came out.
pub(super) fn is_refused(outputs: &[Output]) -> bool {
    refusal(outputs).is_some()
}

/// Type and code of the ICMP error that came out, if nothing else did.
fn refusal(outputs: &[Output]) -> Option<[u8; 2]> {
    let [Output { bytes, .. }] = outputs else {
        return None;
    };
    let ip = Ip::parse(bytes).filter(|ip| ip.is_error(bytes))?;
    Some([*bytes.get(ip.transport)?, *bytes.get(ip.transport + 1)?])
}

/// Whether our side alone gives a packet without its headers to the node, which may complain. A rule that looks at TCP
/// ports drops what has none, and kube-proxy has one for all that goes to the node where there are health check ports.
/// The node's own link has the number `node`.
pub(super) fn kept_without_headers(node: usize, kernel: &[Output], ours: &[Output]) -> bool {
    let complaint = |output: &Output| {
        Ip::parse(&output.bytes).is_some_and(|ip| {
            ip.protocol == ICMPV6
                && output.bytes.get(ip.transport..ip.transport + 2) == Some(&[4, 3])
        })
    };
    let expected = |output: &Output| complaint(output) || output.link == node;
    kernel.is_empty() && !ours.is_empty() && ours.iter().all(expected)
}

/// Whether what came out differs only in what the node itself got: in its TTL and in that of what is quoted to it, by one
/// at most.
fn same_to_the_node(case: &Case, kernel: &[Output], ours: &[Output]) -> bool {
    let pairs = || kernel.iter().zip(ours);
    let ttl_alike = |(one, other): (&Output, &Output)| {
        let ttl = |output: &Output| output.bytes.get(8).copied().unwrap_or_default();
        ttl(other).wrapping_sub(ttl(one)) <= 1
    };
    let without = |outputs: &[Output]| -> Vec<Output> {
        let mut outputs = outputs.to_vec();
        let at_node = |output: &&mut Output| output.link == case.links.len();
        for output in outputs.iter_mut().filter(at_node) {
            forget_hops(&mut output.bytes);
        }
        outputs
    };
    kernel.len() == ours.len() && pairs().all(ttl_alike) && without(kernel) == without(ours)
}

/// TTLs of an IPv4 packet and of what it quotes, with the checksums over them.
fn forget_hops(bytes: &mut [u8]) {
    let Some(ip) = Ip::parse(bytes) else { return };
    let quoted = ip.transport + 8;
    let is_error = ip.is_error(bytes) && bytes.len() >= quoted + 20;
    let fields = [
        8,
        10,
        11,
        ip.transport + 2,
        ip.transport + 3,
        quoted + 8,
        quoted + 10,
        quoted + 11,
    ];
    let count = if is_error { fields.len() } else { 3 };
    // The kernel counts a port into a quoted checksum that was never whole.
    let checksum = match bytes.get(quoted + 9) {
        Some(&UDP) => quoted + 26..quoted + 28,
        Some(&TCP) => quoted + 36..quoted + 38,
        _ => 0..0,
    };
    if let Some(checksum) = bytes.get_mut(checksum).filter(|_| is_error) {
        checksum.fill(0);
    }
    for field in &fields[..count] {
        bytes[*field] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::generate;

    /// An ICMP error to the node about a datagram with this identification and these flags.
    fn error(case: &Case, identification: u16, flags: u8) -> Output {
        let mut bytes = vec![0; 20 + 8 + 20 + 8];
        for (start, protocol) in [(0, 1), (28, UDP)] {
            bytes[start] = 0x45;
            bytes[start + 8] = 64;
            bytes[start + 9] = protocol;
        }
        let length = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes[20] = 3;
        bytes[32..34].copy_from_slice(&identification.to_be_bytes());
        bytes[34] = flags;
        Output {
            link: case.links.len(),
            bytes,
        }
    }

    #[test]
    fn a_quote_of_what_the_kernel_cut_is_known() {
        let given = generate::Given::default();
        let case = generate::case(1, &given).unwrap();
        let (cut, whole) = (error(&case, 7, 0), error(&case, 0, 0x40));
        let is_known = |kernel: &[Output], ours: &[Output]| same_but_cut_quote(&case, kernel, ours);
        let alone = std::slice::from_ref::<Output>;
        assert!(is_known(alone(&cut), alone(&whole)));
        assert!(!is_known(alone(&whole), alone(&cut)));
        assert!(!is_known(alone(&cut), alone(&error(&case, 8, 0))));
        assert!(!is_known(&[], &[]));
        let mut other_port = whole.clone();
        other_port.bytes[49] ^= 1;
        assert!(!is_known(alone(&cut), alone(&other_port)));
        let mut elsewhere = whole.clone();
        elsewhere.link = 0;
        assert!(!is_known(alone(&cut), alone(&elsewhere)));
    }
}
