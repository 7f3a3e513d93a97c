//! A difference as people read it: what was sent, what the other side did, what we did, and where to look it up.

use super::canonical;
use super::case::{Case, Step};
use super::difference::{Difference, Seen};
use super::ip::Fragment;
use super::side::Entry;
use super::wire::{self, ICMP, ICMPV6, Ip, SCTP, TCP, UDP};
use super::world::Output;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// Packets of one step that are told, of hundreds when there are fragments.
const PACKETS: usize = 6;

/// The whole story of a difference, several lines.
pub(super) fn tell(case: &Case, difference: &Difference, other: &str) -> String {
    let mut story = String::new();
    let tell = |story: &mut String, line: String| {
        // Writing to a String does not fail.
        let _ = writeln!(story, "{line}");
    };
    const BEFORE: usize = 12;
    let earlier = case.steps.iter().enumerate().take(difference.step);
    for (number, step) in earlier.skip(difference.step.saturating_sub(BEFORE)) {
        tell(&mut story, format!("  {number:>3}  {}", said(case, step)));
    }
    if let Some(step) = case.steps.get(difference.step) {
        tell(
            &mut story,
            format!("  {:>3}  {}", difference.step, said(case, step)),
        );
    }
    for packet in difference.sent.iter().take(PACKETS) {
        tell(&mut story, format!("       sent  {}", packet_line(packet)));
    }
    match &difference.seen {
        Seen::Packets(sides) => {
            for (name, outputs) in [other, "we"].iter().zip(sides) {
                if outputs.is_empty() {
                    tell(&mut story, format!("       {name}: nothing came out"));
                }
                for output in outputs.iter().take(PACKETS) {
                    let link = case.links.get(output.link);
                    let link = link.map_or("the node itself", |link| &link.name);
                    tell(
                        &mut story,
                        format!("       {name}: {link}  {}", packet_line(&output.bytes)),
                    );
                }
                if outputs.len() > PACKETS {
                    let more = outputs.len() - PACKETS;
                    tell(&mut story, format!("       {name}: and {more} more"));
                }
            }
            tell(&mut story, byte_difference(sides));
        }
        Seen::Entries(sides) | Seen::Later(_, sides) => {
            if let Seen::Later(ahead, _) = difference.seen {
                tell(&mut story, format!("       {} s later:", ahead.as_secs()));
            }
            for (name, entries) in [other, "we"].iter().zip(sides) {
                if entries.is_empty() {
                    tell(&mut story, format!("       {name} track: nothing else"));
                }
                for entry in entries {
                    tell(
                        &mut story,
                        format!("       {name} track: {}", entry_line(entry)),
                    );
                }
            }
        }
    }
    story
}

/// The first bytes that differ, as the packets are compared.
fn byte_difference([kernel, ours]: &[Vec<Output>; 2]) -> String {
    let pairs = canonical::joined(kernel)
        .into_iter()
        .zip(canonical::joined(ours));
    for (kernel, ours) in pairs {
        let differing = kernel.bytes.iter().zip(&ours.bytes).enumerate();
        let differing: Vec<String> = differing
            .filter(|(_, (one, other))| one != other)
            .map(|(at, (one, other))| format!("{at}: {one:02x}/{other:02x}"))
            .take(12)
            .collect();
        if !differing.is_empty() {
            return format!("       bytes that differ: {}", differing.join(", "));
        }
    }
    String::new()
}

fn said(case: &Case, step: &Step) -> String {
    let flow = |number: usize| {
        let flow = &case.flows[number];
        format!(
            "{} > {} (flow {number})",
            SocketAddr::new(flow.source, flow.source_port),
            SocketAddr::new(flow.destination, flow.destination_port)
        )
    };
    match step {
        Step::Client(number, packet) => format!(
            "client of {}: {:?} {}",
            flow(*number),
            packet.body,
            shape(packet)
        ),
        Step::Server(number, packet) => format!(
            "server of {}: {:?} {}",
            flow(*number),
            packet.body,
            shape(packet)
        ),
        Step::Change(number) => format!("the objects become those of change {number}"),
        Step::Wait(milliseconds) => format!("{milliseconds} ms pass"),
    }
}

fn shape(packet: &super::case::Packet) -> String {
    if packet.shape.is_plain() {
        String::new()
    } else {
        format!("{:?}", packet.shape)
    }
}

fn packet_line(bytes: &[u8]) -> String {
    let Some(ip) = Ip::parse(bytes) else {
        return format!("no IP packet, {} bytes", bytes.len());
    };
    let end = |address: IpAddr, port: Option<u16>| match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let ports = ip
        .ports(bytes)
        .filter(|_| ip.fragment.is_none_or(|fragment| fragment.offset == 0));
    let mut line = format!(
        "{} > {}",
        end(ip.source, ports.map(|ports| ports.0)),
        end(ip.destination, ports.map(|ports| ports.1))
    );
    let at = |offset: usize| {
        bytes
            .get(ip.transport + offset)
            .copied()
            .unwrap_or_default()
    };
    let long = |offset: usize| {
        (0..4).fold(0u32, |value, byte| {
            value << 8 | u32::from(at(offset + byte))
        })
    };
    let what = match ip.protocol {
        TCP => {
            let flags: String = "FSRPAU"
                .chars()
                .enumerate()
                .filter(|(bit, _)| at(13) >> bit & 1 != 0)
                .map(|(_, letter)| letter)
                .collect();
            format!(
                "tcp [{flags}] seq {} ack {} win {}",
                long(4),
                long(8),
                wire::word(bytes, ip.transport + 14).unwrap_or_default()
            )
        }
        UDP => "udp".to_owned(),
        SCTP => format!("sctp chunk {}", at(12)),
        ICMP | ICMPV6 => format!("icmp {}/{}", at(0), at(1)),
        protocol => format!("protocol {protocol}"),
    };
    let ttl = if ip.source.is_ipv4() {
        bytes[8]
    } else {
        bytes[7]
    };
    // Writing to a String does not fail.
    let _ = write!(line, "  {what}  {} bytes, ttl {ttl}", bytes.len());
    if let Some(Fragment { offset, has_more }) = ip.fragment {
        let more = if has_more { "+" } else { "" };
        let _ = write!(line, ", fragment {offset}{more}");
    }
    if ip.is_error(bytes)
        && let Some(quoted) = bytes.get(ip.transport + 8..)
    {
        let _ = write!(line, ", about {{{}}}", packet_line(quoted));
    }
    line
}

fn entry_line(entry: &Entry) -> String {
    let tuple = |tuple: &super::side::Tuple| {
        format!(
            "{} > {}",
            SocketAddr::new(tuple.source, tuple.source_port),
            SocketAddr::new(tuple.destination, tuple.destination_port)
        )
    };
    format!(
        "protocol {} {} {} s  {}  reply {}{}{}",
        entry.protocol,
        entry.state,
        entry.timeout,
        tuple(&entry.original),
        tuple(&entry.reply),
        if entry.is_replied { "" } else { " [UNREPLIED]" },
        if entry.is_assured { " [ASSURED]" } else { "" },
    )
}
