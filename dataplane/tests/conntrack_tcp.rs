//! TCP against the rows of the project's conntrack reference, section 2 (measured on Linux 6.18), with a virtual
//! clock, for both families.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod flow;

use dataplane::conntrack::{Invalid, Settings, TcpFlags, TcpOptions, TcpSegment};
use dataplane::tuple::Protocol;
use flow::{
    ACK, Class, Client, FAMILIES, FIN_ACK, Flow, RST, RST_ACK, SYN, SYN_ACK, Server, data, segment,
};

/// Samples section 1: one connection through every state, and what `conntrack -L` shows.
#[test]
fn life_of_a_connection() {
    for ipv4 in FAMILIES {
        let mut flow = Flow::new(ipv4, Protocol::TCP);
        flow.tcp(Client, SYN, 1000, 0);
        assert_eq!(flow.listed(), "119 SYN_SENT [UNREPLIED]");
        flow.tcp(Server, SYN_ACK, 9000, 1001);
        assert_eq!(flow.listed(), "59 SYN_RECV");
        flow.tcp(Client, ACK, 1001, 9001);
        assert_eq!(flow.listed(), "431999 ESTABLISHED [ASSURED]");
        flow.segment(Client, data(1001, 9001, 10));
        assert_eq!(flow.listed(), "299 ESTABLISHED [ASSURED]", "timeout (c)");
        flow.tcp(Server, ACK, 9001, 1011);
        assert_eq!(flow.listed(), "431999 ESTABLISHED [ASSURED]");
        flow.tcp(Client, FIN_ACK, 1011, 9001);
        assert_eq!(flow.listed(), "119 FIN_WAIT [ASSURED]");
        flow.tcp(Server, ACK, 9001, 1012);
        assert_eq!(flow.listed(), "59 CLOSE_WAIT [ASSURED]");
        flow.tcp(Server, FIN_ACK, 9001, 1012);
        assert_eq!(flow.listed(), "29 LAST_ACK [ASSURED]");
        flow.tcp(Client, ACK, 1012, 9002);
        assert_eq!(flow.listed(), "119 TIME_WAIT [ASSURED]");
        flow.wait(119_990);
        assert!(flow.entry().is_some());
        flow.wait(10);
        assert_eq!(flow.listed(), "gone", "an expired entry is never found");
        assert_eq!(
            flow.tcp(Server, SYN_ACK, 9000, 1001),
            Class::Invalid(Invalid::TcpNew)
        );
    }
}

/// Section 2, timeouts: kube-proxy's settings.
#[test]
fn kube_proxy_timeouts() {
    let mut flow = Flow::with(Settings::kube_proxy(100), true, Protocol::TCP);
    flow.tcp(Client, SYN, 1000, 0);
    flow.tcp(Server, SYN_ACK, 9000, 1001);
    flow.tcp(Client, ACK, 1001, 9001);
    assert_eq!(flow.listed(), "86399 ESTABLISHED [ASSURED]");
    flow.tcp(Client, FIN_ACK, 1001, 9001);
    flow.tcp(Server, ACK, 9001, 1002);
    assert_eq!(flow.listed(), "3599 CLOSE_WAIT [ASSURED]");
}

/// Samples section 1, "SYN_SENT2 (simultaneous open)"; rule 6.
#[test]
fn simultaneous_open() {
    for ipv4 in FAMILIES {
        let mut flow = Flow::new(ipv4, Protocol::TCP);
        flow.tcp(Client, SYN, 1000, 0);
        assert_eq!(flow.tcp(Server, SYN, 9000, 0), Class::Accepted);
        assert_eq!(flow.listed(), "119 SYN_SENT2");
        assert_eq!(flow.tcp(Client, SYN_ACK, 1000, 9001), Class::Accepted);
        assert_eq!(flow.listed(), "59 SYN_RECV");
        assert_eq!(flow.tcp(Server, ACK, 9001, 1001), Class::Accepted);
        assert_eq!(flow.listed(), "431999 ESTABLISHED [ASSURED]");
    }
}

/// Rule 1 and "conntrack -L after a server RST": rule 2.
#[test]
fn port_reuse() {
    let closed_in_order = |flow: &mut Flow| {
        flow.tcp(Client, FIN_ACK, 1001, 9001);
        flow.tcp(Server, FIN_ACK, 9001, 1002);
        flow.tcp(Client, ACK, 1002, 9002);
        assert_eq!(flow.listed(), "119 TIME_WAIT [ASSURED]");
    };
    for ipv4 in FAMILIES {
        let mut flow = Flow::established(ipv4);
        closed_in_order(&mut flow);
        assert_eq!(
            flow.tcp(Client, SYN, 500_000, 0),
            Class::New,
            "TIME_WAIT: reopened"
        );
        assert_eq!(flow.listed(), "119 SYN_SENT [UNREPLIED]");

        let mut flow = Flow::established(ipv4);
        closed_in_order(&mut flow);
        assert_eq!(
            flow.tcp(Server, SYN, 500_000, 0),
            Class::New,
            "from the reply side too"
        );
        let entry = flow.entry().unwrap();
        assert_eq!(entry.original, flow.from_server, "and then not translated");
        assert_eq!(entry.reply, flow.from_server.inverse());

        let mut flow = Flow::established(ipv4);
        assert_eq!(flow.tcp(Client, RST, 1001, 0), Class::Accepted);
        assert_eq!(flow.listed(), "9 CLOSE [ASSURED]");
        assert_eq!(
            flow.tcp(Client, SYN, 500_000, 0),
            Class::New,
            "after the client's RST"
        );

        let mut flow = Flow::established(ipv4);
        assert_eq!(flow.tcp(Server, RST, 9001, 0), Class::Accepted);
        assert_eq!(
            flow.tcp(Client, SYN, 500_000, 0),
            Class::Ignored,
            "after the server's RST"
        );
        assert_eq!(flow.listed(), "9 CLOSE [ASSURED]");
        assert_eq!(
            flow.tcp(Server, SYN_ACK, 70_000, 500_001),
            Class::Accepted,
            "rule 3"
        );
        assert_eq!(flow.listed(), "59 SYN_RECV [ASSURED]");
        assert_eq!(flow.tcp(Client, ACK, 500_001, 70_001), Class::Accepted);
        assert_eq!(flow.listed(), "431999 ESTABLISHED [ASSURED]");
    }
}

/// Rule 3 in ESTABLISHED, trap 30: a client SYN passes, and the matching SYN+ACK re-syncs the entry.
#[test]
fn syn_while_established() {
    for ipv4 in FAMILIES {
        let mut flow = Flow::established(ipv4);
        assert_eq!(flow.tcp(Client, SYN, 700_000, 0), Class::Ignored);
        assert_eq!(flow.listed(), "431999 ESTABLISHED [ASSURED]");
        assert_eq!(
            flow.tcp(Server, SYN_ACK, 80_000, 1),
            Class::Ignored,
            "acknowledges another"
        );
        assert_eq!(flow.tcp(Client, SYN, 700_000, 0), Class::Ignored);
        assert_eq!(flow.tcp(Server, SYN_ACK, 80_000, 700_001), Class::Accepted);
        assert_eq!(flow.listed(), "59 SYN_RECV [ASSURED]");
    }
}

/// Rule 4: in LAST_ACK one ACK after an ignored SYN is a challenge ACK.
#[test]
fn challenge_ack_in_last_ack() {
    let mut flow = Flow::established(true);
    flow.tcp(Client, FIN_ACK, 1001, 9001);
    flow.tcp(Server, FIN_ACK, 9001, 1002);
    assert_eq!(flow.tcp(Client, SYN, 500_000, 0), Class::Ignored);
    assert_eq!(flow.tcp(Server, ACK, 9002, 1002), Class::Ignored);
    assert_eq!(flow.listed(), "29 LAST_ACK [ASSURED]");
    assert_eq!(flow.tcp(Server, ACK, 9002, 1002), Class::Accepted);
    assert_eq!(flow.listed(), "119 TIME_WAIT [ASSURED]");
}

/// Rule 5: a FIN twice from one side, then the peer's ACK.
#[test]
fn retransmitted_fin() {
    let mut flow = Flow::established(true);
    flow.tcp(Client, FIN_ACK, 1001, 9001);
    assert_eq!(flow.tcp(Client, FIN_ACK, 1001, 9001), Class::Accepted);
    assert_eq!(flow.listed(), "29 LAST_ACK [ASSURED]");
    flow.tcp(Server, ACK, 9001, 1002);
    assert_eq!(flow.listed(), "119 TIME_WAIT [ASSURED]");
}

/// Rule 7, and "in SYN_SENT" rows of the RST table.
#[test]
fn answered_by_reset() {
    for ipv4 in FAMILIES {
        let mut flow = Flow::new(ipv4, Protocol::TCP);
        flow.tcp(Client, SYN, 1000, 0);
        flow.wait(50_000);
        assert_eq!(flow.tcp(Client, SYN, 1000, 0), Class::Accepted);
        assert_eq!(
            flow.listed(),
            "69 SYN_SENT [UNREPLIED]",
            "a SYN again does not refresh"
        );
        assert_eq!(
            flow.tcp(Server, RST_ACK, 0, 1003),
            Class::Invalid(Invalid::TcpAcknowledgement)
        );
        assert_eq!(flow.tcp(Server, RST_ACK, 0, 1001), Class::Accepted);
        assert_eq!(flow.listed(), "gone");
    }
}

/// Rule 8: what may open a connection.
#[test]
fn first_packets() {
    for ipv4 in FAMILIES {
        for flags in [SYN_ACK, FIN_ACK, RST, RST_ACK] {
            let mut flow = Flow::new(ipv4, Protocol::TCP);
            assert_eq!(
                flow.tcp(Client, flags, 1, 1),
                Class::Invalid(Invalid::TcpNew),
                "{flags:?}"
            );
            assert_eq!(flow.listed(), "gone");
        }
        let mut strict = Settings::kernel(100);
        strict.tcp.loose = false;
        let mut flow = Flow::with(strict, ipv4, Protocol::TCP);
        assert_eq!(flow.tcp(Client, ACK, 1, 1), Class::Invalid(Invalid::TcpNew));
    }
}

/// Only an assured connection outlives a RST that is not exact (`nf_conntrack_tcp_established`).
#[test]
fn a_reset_ends_what_is_not_assured_yet() {
    for ipv4 in FAMILIES {
        let mut flow = Flow::new(ipv4, Protocol::TCP);
        flow.tcp(Client, ACK, 5000, 70_000);
        flow.tcp(Server, ACK, 70_000, 5000);
        assert_eq!(flow.listed(), "299 ESTABLISHED");
        assert_eq!(flow.tcp(Client, RST, 5050, 0), Class::Accepted);
        assert_eq!(flow.listed(), "9 CLOSE");
        let mut flow = Flow::established(ipv4);
        assert_eq!(flow.tcp(Client, RST, 1050, 0), Class::Accepted);
        assert_eq!(flow.listed(), "9 ESTABLISHED [ASSURED]");
    }
}

/// A connection that was picked up stays liberal on the side that answers a new SYN, whatever that offers.
#[test]
fn options_of_a_syn_do_not_end_liberality() {
    for ipv4 in FAMILIES {
        let mut flow = Flow::new(ipv4, Protocol::TCP);
        flow.tcp(Client, ACK, 5000, 70_000);
        assert_eq!(flow.tcp(Client, SYN, 5000, 0), Class::Ignored);
        let mut answer = segment(SYN_ACK, 70_000, 5001);
        answer.options = TcpOptions {
            present: true,
            window_scale: Some(7),
            ..answer.options
        };
        assert_eq!(flow.segment(Server, answer), Class::Accepted);
        assert_eq!(flow.listed(), "59 SYN_RECV");
        let beyond = segment(FIN_ACK, 70_000 + 130_000, 5001);
        assert_eq!(flow.segment(Server, beyond), Class::Accepted);
        assert_eq!(flow.listed(), "119 FIN_WAIT");
    }
}

/// Samples section 1, "loose pickup"; rule 9.
#[test]
fn loose_pick_up() {
    for ipv4 in FAMILIES {
        let mut flow = Flow::new(ipv4, Protocol::TCP);
        assert_eq!(flow.tcp(Client, ACK, 5000, 70_000), Class::New);
        assert_eq!(flow.listed(), "299 ESTABLISHED [UNREPLIED]");
        assert_eq!(flow.tcp(Server, ACK, 70_000, 5000), Class::Accepted);
        assert_eq!(flow.listed(), "299 ESTABLISHED");
        assert_eq!(flow.tcp(Client, ACK, 5000, 70_000), Class::Accepted);
        assert_eq!(flow.listed(), "431999 ESTABLISHED [ASSURED]");
        let beyond = data(70_000 + 200_000, 5000, 10);
        assert_eq!(
            flow.segment(Server, beyond),
            Class::Accepted,
            "both sides are liberal"
        );
    }
}

/// "Timeout set by an accepted packet", (a), (d).
#[test]
fn shorter_timeouts() {
    let mut flow = Flow::established(true);
    for (nth, seconds) in [(1, "431999"), (2, "431999"), (3, "299")] {
        assert_eq!(flow.tcp(Client, ACK, 1001, 9001), Class::Accepted);
        assert_eq!(
            flow.listed(),
            format!("{seconds} ESTABLISHED [ASSURED]"),
            "(a), duplicate {nth}"
        );
    }
    let mut flow = Flow::established(true);
    flow.segment(
        Server,
        TcpSegment {
            window: 0,
            ..segment(ACK, 9001, 1001)
        },
    );
    assert_eq!(flow.listed(), "299 ESTABLISHED [ASSURED]", "(d)");
}

/// "Measured, server side, window 64240, no scaling"; what is ESTABLISHED there is accepted or ignored here.
#[test]
fn window_rows() {
    let edge = 9001 + 64_240;
    let rows = [
        ("at the right edge", data(edge, 1001, 10), Class::Accepted),
        (
            "the last byte inside",
            data(edge - 1, 1001, 1),
            Class::Accepted,
        ),
        (
            "about one window beyond",
            data(edge + 64_000, 1001, 10),
            Class::Ignored,
        ),
        (
            "two windows beyond",
            data(edge + 128_480, 1001, 10),
            Class::Invalid(Invalid::TcpSequence),
        ),
        (
            "100000 old",
            data(9001_u32.wrapping_sub(100_000), 1001, 10),
            Class::Ignored,
        ),
        (
            "ack one beyond",
            data(9001, 1002, 10),
            Class::Invalid(Invalid::TcpAcknowledgement),
        ),
        (
            "ack 200000 old",
            data(9001, 1001_u32.wrapping_sub(200_000), 10),
            Class::Ignored,
        ),
    ];
    for ipv4 in FAMILIES {
        for (row, packet, class) in rows {
            let mut flow = Flow::established(ipv4);
            assert_eq!(flow.segment(Server, packet), class, "{row}");
            if class == Class::Ignored {
                assert_eq!(
                    flow.listed(),
                    "431999 ESTABLISHED [ASSURED]",
                    "{row}: unchanged"
                );
            }
        }
    }
}

/// The same with `tcp_be_liberal=1`.
#[test]
fn be_liberal() {
    let mut settings = Settings::kernel(100);
    settings.tcp.be_liberal = true;
    let mut flow = Flow::with(settings, true, Protocol::TCP);
    flow.handshake();
    assert_eq!(flow.segment(Server, data(9001, 1002, 10)), Class::Accepted);
    assert_eq!(
        flow.segment(Server, data(300_000, 1001, 10)),
        Class::Accepted
    );
    assert_eq!(
        flow.tcp(Server, RST, 8000, 0),
        Class::Invalid(Invalid::TcpReset),
        "RST below td_maxack: INVALID even with be_liberal"
    );
}

/// Window scale counts only when both SYNs offer it (RFC 7323), and SACK edges count as acknowledgement.
#[test]
fn scale_and_sack() {
    let with = |flags, sequence, acknowledgement, options| TcpSegment {
        options,
        ..segment(flags, sequence, acknowledgement)
    };
    let offer = TcpOptions {
        present: true,
        window_scale: Some(7),
        sack_permitted: true,
        highest_sack: None,
    };
    let nothing = TcpOptions {
        present: true,
        ..TcpOptions::default()
    };
    for (answer, reaches) in [(offer, true), (nothing, false)] {
        let mut flow = Flow::new(true, Protocol::TCP);
        flow.segment(Client, with(SYN, 1000, 0, offer));
        flow.segment(Server, with(SYN_ACK, 9000, 1001, answer));
        flow.tcp(Client, ACK, 1001, 9001);
        let far = data(9001 + 1_000_000, 1001, 10);
        assert_eq!(
            flow.segment(Server, far) == Class::Accepted,
            reaches,
            "{answer:?}"
        );
    }
    let mut flow = Flow::new(true, Protocol::TCP);
    flow.segment(Client, with(SYN, 1000, 0, offer));
    flow.segment(Server, with(SYN_ACK, 9000, 1001, offer));
    let unseen = TcpOptions {
        present: true,
        highest_sack: Some(9500),
        ..TcpOptions::default()
    };
    assert_eq!(
        flow.segment(Client, with(ACK, 1001, 9001, unseen)),
        Class::Invalid(Invalid::TcpAcknowledgement)
    );
}

/// "RST validation", rows 1 to 4 and the last.
#[test]
fn reset_rows() {
    for ipv4 in FAMILIES {
        let mut flow = Flow::established(ipv4);
        assert_eq!(
            flow.tcp(Server, RST, 9001, 0),
            Class::Accepted,
            "== td_maxack"
        );
        assert_eq!(flow.listed(), "9 CLOSE [ASSURED]");

        let mut flow = Flow::established(ipv4);
        flow.segment(Server, data(9001, 1001, 19));
        assert_eq!(
            flow.tcp(Server, RST, 9020, 0),
            Class::Accepted,
            "end of own segment"
        );
        assert_eq!(flow.listed(), "9 CLOSE [ASSURED]");

        let mut flow = Flow::established(ipv4);
        assert_eq!(
            flow.tcp(Server, RST, 9002, 0),
            Class::Accepted,
            "inside, not exact"
        );
        assert_eq!(flow.listed(), "9 ESTABLISHED [ASSURED]", "10 s on 6.18");

        let mut flow = Flow::established(ipv4);
        assert_eq!(
            flow.tcp(Server, RST, 9001 + 64_240 + 100, 0),
            Class::Ignored,
            "beyond"
        );
        assert_eq!(flow.listed(), "431999 ESTABLISHED [ASSURED]");

        for below in [9000, 0] {
            let mut flow = Flow::established(ipv4);
            assert_eq!(
                flow.tcp(Server, RST, below, 0),
                Class::Invalid(Invalid::TcpReset)
            );
            assert_eq!(flow.listed(), "431999 ESTABLISHED [ASSURED]");
        }

        let mut flow = Flow::established(ipv4);
        flow.tcp(Client, FIN_ACK, 1001, 9001);
        assert_eq!(
            flow.tcp(Server, RST, 123, 0),
            Class::Accepted,
            "closing: no check at all"
        );
        assert_eq!(flow.listed(), "9 CLOSE [ASSURED]");
    }
    let mut settings = Settings::kernel(100);
    settings.tcp.ignore_invalid_reset = true;
    let mut flow = Flow::with(settings, true, Protocol::TCP);
    flow.handshake();
    assert_eq!(
        flow.tcp(Server, RST, 9000, 0),
        Class::Accepted,
        "tcp_ignore_invalid_rst=1"
    );
}

/// "An out-of-window FIN/RST in each direction on an ASSURED flow lowers its timeout to 300".
#[test]
fn out_of_window_ends_lower_the_timeout() {
    let mut flow = Flow::established(true);
    let far = |flags, sequence, acknowledgement| segment(flags, sequence, acknowledgement);
    assert!(matches!(
        flow.segment(Server, far(FIN_ACK, 900_000, 1001)),
        Class::Invalid(_)
    ));
    assert_eq!(flow.listed(), "431999 ESTABLISHED [ASSURED]");
    assert!(matches!(
        flow.segment(Client, far(FIN_ACK, 900_000, 9001)),
        Class::Invalid(_)
    ));
    assert_eq!(flow.listed(), "299 ESTABLISHED [ASSURED]");
}

/// The packet index ignores PSH, ECE and CWR; all other flag sets are INVALID in every state.
#[test]
fn flag_sets() {
    let header = |flags: u8| {
        let mut header = [0; 20];
        header[12] = 0x50;
        header[13] = flags;
        header
    };
    let valid: Vec<u8> = (0..64)
        .filter(|&f| TcpSegment::parse(&header(f), 0).is_ok())
        .collect();
    let expected = [
        0x02, 0x04, 0x0c, 0x0a, 0x10, 0x11, 0x12, 0x14, 0x18, 0x19, 0x1a, 0x1c,
    ];
    let urgent = [0x22, 0x2a, 0x30, 0x31, 0x38, 0x39];
    let mut expected: Vec<u8> = expected.into_iter().chain(urgent).collect();
    expected.sort_unstable();
    assert_eq!(valid, expected);
    let syn_fin = header(0x03);
    assert_eq!(
        TcpSegment::parse(&syn_fin, 0),
        Err(Invalid::TcpFlags(TcpFlags(0x03)))
    );
    assert_eq!(
        TcpSegment::parse(&syn_fin[..19], 0),
        Err(Invalid::Truncated)
    );
    let mut short = header(0x02);
    short[12] = 0x40;
    assert_eq!(
        TcpSegment::parse(&short, 0),
        Err(Invalid::Truncated),
        "doff < 5"
    );
}

/// RFC 9293, 3.1; RFC 7323; RFC 2018.
#[test]
fn options() {
    let parse = |options: &[u8]| {
        let mut header = vec![0; 20];
        header[11] = 10;
        header[13] = 0x10;
        header.extend(options);
        header.resize(header.len().next_multiple_of(4), 0);
        header[12] = ((header.len() / 4) << 4) as u8;
        TcpSegment::parse(&header, 0).unwrap().options
    };
    let none = TcpOptions::default();
    assert_eq!(parse(&[]), none);
    let some = TcpOptions {
        present: true,
        ..none
    };
    let syn = parse(&[2, 4, 5, 180, 1, 3, 3, 7, 4, 2]);
    assert_eq!(
        syn,
        TcpOptions {
            window_scale: Some(7),
            sack_permitted: true,
            ..some
        }
    );
    assert_eq!(
        parse(&[3, 3, 99]),
        TcpOptions {
            window_scale: Some(14),
            ..some
        },
        "at most 14"
    );
    assert_eq!(parse(&[3, 0]), some, "silly length");
    assert_eq!(parse(&[3, 9, 7]), some, "longer than the header");
    assert_eq!(parse(&[0, 3, 3, 7]), some, "behind the end");
    let sack = parse(&[
        1, 1, 5, 18, 0, 0, 0, 20, 0, 0, 0, 30, 0, 0, 0, 40, 0, 0, 0, 50,
    ]);
    assert_eq!(sack.highest_sack, Some(50));
    let below = parse(&[1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 5]);
    assert_eq!(below.highest_sack, None, "below the acknowledgement");
}
