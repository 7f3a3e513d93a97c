//! Differences on purpose that show in what comes out: docs/behaviours/differences.md explains each.

use super::canonical;
use super::case::{Body, Case, Packet, Place};
use super::wire::{ICMPV6, Ip, UDP};
use super::world::Output;
use std::net::IpAddr;

/// Why `kernel` and `ours`, which came out when `packet` of `flow` was sent to `to`, may differ.
pub(super) fn reason(
    case: &Case,
    (flow, packet): (usize, &Packet),
    to: IpAddr,
    [kernel, ours]: [&[Output]; 2],
) -> Option<&'static str> {
    let is_own = canonical::is_own(case, to);
    let is_error = matches!(packet.body, Body::Error { .. });
    let shape = &packet.shape;
    if is_own && to.is_ipv6() && is_error && canonical::same_but_headers(kernel, ours) {
        return Some("the IPv6 header of an ICMPv6 error to the node's own address");
    }
    let lacks_headers = shape.cut.is_some() || shape.fragment.is_some();
    if is_own && lacks_headers && kept_without_headers(case, kernel, ours) {
        return Some("a packet for the node without its headers");
    }
    let flow = &case.flows[flow];
    if ours.is_empty() && (is_mapped(flow.source) || is_mapped(flow.destination)) {
        return Some("an IPv4-mapped address in IPv6");
    }
    let is_broken = to.is_ipv6() && shape.options > 0 && shape.cut.is_some();
    if is_broken && kernel.len() + ours.len() == 1 {
        return Some("an IPv6 packet cut within its extension headers");
    }
    let refused = [kernel, ours].map(is_refused);
    if flow.from == Place::Node && is_own && refused.contains(&true) && refused.contains(&false) {
        return Some("a refused connection of the node with itself");
    }
    if flow.source.is_loopback() && same_but_errors(kernel, ours) {
        return Some("an error of the node about a connection of localhost");
    }
    if same_to_the_node(case, kernel, ours) {
        return Some("hop limits and sources of errors, of what the node sends to itself");
    }
    None
}

/// Whether it is an IPv4 address in the form of IPv6.
pub(super) fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// Whether our side has ICMP errors more, and nothing else.
fn same_but_errors(kernel: &[Output], ours: &[Output]) -> bool {
    let is_error =
        |output: &&Output| Ip::parse(&output.bytes).is_some_and(|ip| ip.is_error(&output.bytes));
    let rest: Vec<&Output> = ours.iter().filter(|output| !is_error(output)).collect();
    rest.len() < ours.len() && rest.into_iter().eq(kernel)
}

/// Whether nothing but one ICMP error came out.
pub(super) fn is_refused(outputs: &[Output]) -> bool {
    let is_error =
        |output: &Output| Ip::parse(&output.bytes).is_some_and(|ip| ip.is_error(&output.bytes));
    outputs.len() == 1 && outputs.iter().all(is_error)
}

/// Whether our side alone gives a packet without its headers to the node, which may complain. A rule that looks at TCP
/// ports drops what has none, and kube-proxy has one for all that goes to the node where there are health check ports.
fn kept_without_headers(case: &Case, kernel: &[Output], ours: &[Output]) -> bool {
    let complaint = |output: &Output| {
        Ip::parse(&output.bytes).is_some_and(|ip| {
            ip.protocol == ICMPV6
                && output.bytes.get(ip.transport..ip.transport + 2) == Some(&[4, 3])
        })
    };
    let expected = |output: &Output| complaint(output) || output.link == case.links.len();
    kernel.is_empty() && !ours.is_empty() && ours.iter().all(expected)
}

/// Whether what came out differs only in what the node itself got: in its TTL and in that of what is quoted to it, by one
/// at most, and in which of its addresses an error comes from.
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
            forget_hops(case, &mut output.bytes);
        }
        outputs
    };
    kernel.len() == ours.len() && pairs().all(ttl_alike) && without(kernel) == without(ours)
}

/// TTLs of an IPv4 packet and of what it quotes, the source of an error, with the checksums over them.
fn forget_hops(case: &Case, bytes: &mut [u8]) {
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
    if is_error && canonical::is_own(case, ip.source) {
        bytes[12..16].fill(0);
    }
    // The kernel counts a port into a quoted checksum that was never whole.
    if is_error && bytes.len() >= quoted + 28 && bytes[quoted + 9] == UDP {
        bytes[quoted + 26..quoted + 28].fill(0);
    }
    for field in &fields[..count] {
        bytes[*field] = 0;
    }
}
