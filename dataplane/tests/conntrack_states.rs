//! The state table of TCP, driven packet by packet with a virtual clock: every state, every kind of packet, both
//! directions, both families, against the table measured on the kernel.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod flow;

use dataplane::conntrack::TcpFlags;
use dataplane::tuple::Protocol;
use flow::*;

/// The measured table without its column NO, which `conntrack_tcp` has. `=` is a RST to what nobody has answered: the
/// entry ends at once. `+` is a SYN after a FIN, or after a RST of the same side: it begins anew.
const MEASURED: &str = "
    Client SYN     | SS | ig | ig | ig | ig | ig | +  | ig | S2
    Client SYN_ACK | -- | SR | -- | -- | -- | -- | -- | -- | SR
    Client FIN_ACK | -- | FW | FW | LA | LA | LA | TW | CL | --
    Client ACK     | -- | ES | ES | CW | CW | TW | TW | CL | --
    Client RST     | =  | CL | CL | CL | CL | CL | CL | CL | CL
    Server SYN     | S2 | -- | -- | -- | -- | -- | +  | -- | S2
    Server SYN_ACK | SR | ig | ig | ig | ig | ig | ig | ig | SR
    Server FIN_ACK | -- | FW | FW | LA | LA | LA | TW | CL | --
    Server ACK     | ig | SR | ES | CW | CW | TW | TW | CL | ig
    Server RST     | =  | CL | CL | CL | CL | CL | CL | CL | CL";

/// Name in the table, name in `conntrack -L`, seconds shown right after a packet.
const STATES: [(&str, &str, u64); 9] = [
    ("SS", "SYN_SENT", 119),
    ("SR", "SYN_RECV", 59),
    ("ES", "ESTABLISHED", 431_999),
    ("FW", "FIN_WAIT", 119),
    ("CW", "CLOSE_WAIT", 59),
    ("LA", "LAST_ACK", 29),
    ("TW", "TIME_WAIT", 119),
    ("CL", "CLOSE", 9),
    ("S2", "SYN_SENT2", 119),
];

/// A connection in this state; client from 1000, server from 9000.
fn in_state(state: &str, ipv4: bool) -> Flow {
    let mut flow = Flow::new(ipv4, Protocol::TCP);
    let handshake = [
        (Client, SYN, 1000, 0),
        (Server, SYN_ACK, 9000, 1001),
        (Client, ACK, 1001, 9001),
    ];
    let end = [
        (Client, FIN_ACK, 1001, 9001),
        (Server, ACK, 9001, 1002),
        (Server, FIN_ACK, 9001, 1002),
        (Client, ACK, 1002, 9002),
    ];
    let steps: Vec<_> = match state {
        "SS" => handshake[..1].to_vec(),
        "SR" => handshake[..2].to_vec(),
        "ES" => handshake.to_vec(),
        "FW" => [&handshake[..], &end[..1]].concat(),
        "CW" => [&handshake[..], &end[..2]].concat(),
        "LA" => [&handshake[..], &end[..3]].concat(),
        "TW" => [&handshake[..], &end[..]].concat(),
        "CL" => [&handshake[..], &[(Server, RST, 9001, 0)]].concat(),
        _ => vec![handshake[0], (Server, SYN, 9000, 0)],
    };
    for (from, flags, sequence, acknowledgement) in steps {
        let _ = flow.tcp(from, flags, sequence, acknowledgement);
    }
    let (_, name, _) = STATES.iter().find(|(short, ..)| *short == state).unwrap();
    assert!(flow.listed().contains(name), "{state}: {}", flow.listed());
    flow
}

/// Sends what this side would send in this state.
fn send(flow: &mut Flow, state: &str, from: Side, kind: &str) -> Class {
    let fins = match state {
        "FW" | "CW" => (1, 0),
        "LA" | "TW" => (1, 1),
        _ => (0, 0),
    };
    let (client, server) = (1001 + fins.0, 9001 + fins.1);
    let (start, next, seen) = match from {
        Client => (1000, client, server),
        Server => (9000, server, client),
    };
    let unanswered = state == "SS" && from == Server;
    let flags: TcpFlags = match kind {
        "SYN" => SYN,
        "SYN_ACK" => SYN_ACK,
        "FIN_ACK" => FIN_ACK,
        "ACK" => ACK,
        _ if unanswered => RST_ACK,
        _ => RST,
    };
    match kind {
        "SYN" => flow.tcp(from, flags, start, 0),
        "SYN_ACK" => flow.tcp(from, flags, start, seen),
        "RST" if unanswered => flow.tcp(from, flags, 0, seen),
        _ => flow.tcp(from, flags, next, seen),
    }
}

fn check(cell: &str, flow: &Flow, class: Class, before: &str, what: &str) {
    let listed = flow.listed();
    match cell {
        "--" => assert!(matches!(class, Class::Invalid(_)), "{what}: {class:?}"),
        "ig" => assert_eq!(class, Class::Ignored, "{what}"),
        "+" => assert_eq!(class, Class::New, "{what}"),
        _ => assert_eq!(class, Class::Accepted, "{what}"),
    }
    match cell {
        "--" => assert_eq!(listed, before, "{what}"),
        // State and timeout; what is ignored counts as a reply all the same.
        "ig" => assert_eq!(listed, before.replace(" [UNREPLIED]", ""), "{what}"),
        "+" => assert_eq!(listed, "119 SYN_SENT [UNREPLIED]", "{what}"),
        "=" => assert_eq!(listed, "gone", "{what}"),
        state => {
            let (_, name, seconds) = STATES.iter().find(|(short, ..)| *short == state).unwrap();
            let mut words = listed.split(' ');
            let left: u64 = words.next().unwrap().parse().unwrap();
            assert_eq!(words.next(), Some(*name), "{what}");
            assert_eq!(left, *seconds, "{what}");
        }
    }
}

#[test]
fn every_state_every_packet_both_directions() {
    for ipv4 in FAMILIES {
        let mut cells = 0;
        for row in MEASURED.trim().lines() {
            let mut parts = row.split('|').map(str::trim);
            let (side, kind) = parts.next().unwrap().split_once(' ').unwrap();
            let side = if side == "Client" { Client } else { Server };
            for (cell, (state, ..)) in parts.zip(STATES) {
                let mut flow = in_state(state, ipv4);
                let before = flow.listed();
                let class = send(&mut flow, state, side, kind.trim());
                let what = format!("{side:?} {kind} in {state}, IPv4 {ipv4}");
                check(cell, &flow, class, &before, &what);
                cells += 1;
            }
        }
        assert_eq!(cells, 90);
    }
}
