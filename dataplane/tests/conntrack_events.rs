//! What `conntrack -E` shows, against the samples of the project's conntrack reference, section 8.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod flow;

use dataplane::conntrack::{Event, EventKind, Listener, Status, Transport};
use dataplane::tuple::Protocol;
use flow::{ACK, Client, FAMILIES, FIN_ACK, Flow, RST_ACK, SYN, Server, data};
use std::rc::Rc;

/// What a listener hears while `happen` goes on: kind, seconds left, state and flags.
fn heard(flow: &mut Flow, happen: impl FnOnce(&mut Flow)) -> Vec<String> {
    let conntrack = Rc::clone(&flow.conntrack);
    let listener = conntrack.listen();
    happen(flow);
    assert_eq!(listener.lost(), 0);
    written(&listener)
}

fn written(listener: &Listener<'_>) -> Vec<String> {
    std::iter::from_fn(|| listener.next())
        .map(|event| line(&event))
        .collect()
}

fn line(event: &Event) -> String {
    let mut line = match event.kind {
        EventKind::New => "NEW",
        EventKind::Update => "UPDATE",
        EventKind::Destroy { by_user: false } => "DESTROY",
        EventKind::Destroy { by_user: true } => "DESTROY by user",
    }
    .to_owned();
    if !event.entry.timeout.is_zero() {
        line += &format!(" {}", event.entry.timeout.as_secs_f64().round());
    }
    if let Some(state) = event.entry.state {
        line += &format!(" {state}");
    }
    if !event.entry.status.has(Status::SEEN_REPLY) {
        line += " [UNREPLIED]";
    }
    if event.entry.status.has(Status::ASSURED) {
        line += " [ASSURED]";
    }
    line
}

/// One event per packet that changes something, none for data and plain ACKs; a SYN in TIME_WAIT makes a new entry.
#[test]
fn life_of_a_tcp_connection() {
    for ipv4 in FAMILIES {
        let events = heard(&mut Flow::new(ipv4, Protocol::TCP), |flow| {
            flow.handshake();
            let _ = flow.segment(Client, data(1001, 9001, 100));
            let _ = flow.tcp(Server, ACK, 9001, 1101);
            let _ = flow.tcp(Client, FIN_ACK, 1101, 9001);
            let _ = flow.tcp(Server, ACK, 9001, 1102);
            let _ = flow.tcp(Server, FIN_ACK, 9001, 1102);
            let _ = flow.tcp(Client, ACK, 1102, 9002);
            flow.wait(1000);
            let _ = flow.tcp(Client, SYN, 500_000, 0);
        });
        let expected = [
            "NEW 120 SYN_SENT [UNREPLIED]",
            "UPDATE 60 SYN_RECV",
            "UPDATE 432000 ESTABLISHED [ASSURED]",
            "UPDATE 120 FIN_WAIT [ASSURED]",
            "UPDATE 60 CLOSE_WAIT [ASSURED]",
            "UPDATE 30 LAST_ACK [ASSURED]",
            "UPDATE 120 TIME_WAIT [ASSURED]",
            "DESTROY 119 TIME_WAIT [ASSURED]",
            "NEW 120 SYN_SENT [UNREPLIED]",
        ];
        assert_eq!(events, expected);
    }
}

/// "SYN answered by RST".
#[test]
fn refused() {
    let events = heard(&mut Flow::new(true, Protocol::TCP), |flow| {
        let _ = flow.tcp(Client, SYN, 1000, 0);
        let _ = flow.tcp(Server, RST_ACK, 0, 1001);
    });
    let expected = [
        "NEW 120 SYN_SENT [UNREPLIED]",
        "DESTROY 120 CLOSE [UNREPLIED]",
    ];
    assert_eq!(events, expected);
}

/// "UDP: reply, assured, then deleted"; who listens later hears the rest.
#[test]
fn udp_until_it_is_deleted() {
    let mut flow = Flow::new(true, Protocol::UDP);
    let events = heard(&mut flow, |flow| {
        let _ = flow.packet(Client, Transport::Udp);
        let _ = flow.packet(Client, Transport::Udp);
        let _ = flow.packet(Server, Transport::Udp);
        flow.wait(2500);
        let _ = flow.packet(Client, Transport::Udp);
        let _ = flow.packet(Server, Transport::Udp);
    });
    let expected = ["NEW 30 [UNREPLIED]", "UPDATE 30", "UPDATE 120 [ASSURED]"];
    assert_eq!(events, expected);
    let events = heard(&mut flow, |flow| {
        flow.wait(1000);
        let mut removed = 0;
        flow.conntrack
            .remove_each(flow.now, |_| true, |_| removed += 1);
        assert_eq!(removed, 1);
    });
    assert_eq!(events, ["DESTROY by user 119 [ASSURED]"]);
}

/// "natural expiry": when the sweep meets the entry, or another one takes its tuple; there is no time left then.
#[test]
fn expiry() {
    for sweeps in [true, false] {
        let mut flow = Flow::new(true, Protocol::UDP);
        let _ = flow.packet(Client, Transport::Udp);
        let events = heard(&mut flow, |flow| {
            flow.wait(30_001);
            if sweeps {
                flow.conntrack.expire(flow.now, 10);
            } else {
                let _ = flow.packet(Client, Transport::Udp);
            }
        });
        assert_eq!(events[0], "DESTROY [UNREPLIED]");
        assert_eq!(events.len(), if sweeps { 1 } else { 2 });
    }
}

/// A listener that takes nothing loses the newest, knows how many, and holds nobody up.
#[test]
fn a_slow_listener_loses_events() {
    let mut flow = Flow::new(true, Protocol::UDP);
    let conntrack = Rc::clone(&flow.conntrack);
    let listener = conntrack.listen();
    for nth in 0..100_000_u32 {
        flow.from_client.source_port = (nth % 50_000) as u16;
        flow.from_server.destination_port = flow.from_client.source_port;
        let _ = flow.packet(Client, Transport::Udp);
        conntrack.remove_each(flow.now, |_| nth % 100 == 99, |_| {});
    }
    let taken = written(&listener).len();
    assert!(taken >= 10_000, "{taken}");
    assert_eq!(taken as u64 + listener.lost(), 200_000);
    assert_eq!(listener.lost(), 0, "told once");
}
