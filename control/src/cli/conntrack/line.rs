//! A connection on one line, field by field as conntrack-tools 1.4.7 print it (`snprintf_default.c` of
//! libnetfilter_conntrack).

use control::conntrack::{Entry, Event, EventKind, Side};
use std::io::{self, Write};

/// What `-o` asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Style {
    /// The family before each entry.
    pub(super) extended: bool,
    /// The identifier behind it.
    pub(super) id: bool,
    /// The time before each event.
    pub(super) timestamp: bool,
    /// JSON instead.
    pub(super) json: bool,
}

/// Where a line stands: what is behind the tuples depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `-L`, `-D`.
    Listed,
    /// `-G`.
    Got,
    /// `-E`.
    Told,
}

/// One entry, without the end of the line.
pub(super) fn write(
    out: &mut impl Write,
    entry: &Entry,
    form: Form,
    style: Style,
) -> io::Result<()> {
    if style.extended {
        let is_ipv4 = entry.original.source.is_ipv4();
        out.write_all(if is_ipv4 {
            b"ipv4     2 "
        } else {
            b"ipv6     10 "
        })?;
    }
    write!(out, "{:<8} {} ", entry.protocol, entry.protocol_number)?;
    if let Some(milliseconds) = entry.timeout_milliseconds {
        // Whole seconds: what is left of the last one is cut off.
        write!(out, "{} ", milliseconds / 1000)?;
    }
    if let Some(state) = &entry.state {
        write!(out, "{state} ")?;
    }
    write_side(out, entry, &entry.original)?;
    if !entry.seen_reply {
        out.write_all(b" [UNREPLIED]")?;
    }
    out.write_all(b" ")?;
    write_side(out, entry, &entry.reply)?;
    if entry.assured {
        out.write_all(b" [ASSURED]")?;
    }
    out.write_all(match form {
        Form::Listed => b" mark=0 use=1",
        Form::Got => b" mark=0 use=2",
        Form::Told => b"",
    })?;
    if style.id {
        write!(out, " id={}", entry.id)?;
    }
    Ok(())
}

/// One event, without the end of the line.
pub(super) fn write_event(out: &mut impl Write, event: &Event, style: Style) -> io::Result<()> {
    if style.timestamp {
        let (seconds, rest) = (
            event.timestamp_microseconds / 1_000_000,
            event.timestamp_microseconds % 1_000_000,
        );
        write!(out, "[{seconds}.{rest:06}]\t")?;
    }
    let kind = match event.event {
        EventKind::New => "[NEW]",
        EventKind::Update => "[UPDATE]",
        EventKind::Destroy => "[DESTROY]",
    };
    write!(out, "{kind:>9} ")?;
    let mut entry = event.entry.clone();
    // What was just set is told whole; what was left of it is told as it is listed.
    if event.event != EventKind::Destroy {
        entry.timeout_milliseconds = entry
            .timeout_milliseconds
            .map(|left| left.next_multiple_of(1000));
    }
    write(out, &entry, Form::Told, style)?;
    if event.by_user {
        out.write_all(b" [USERSPACE]")?;
    }
    Ok(())
}

fn write_side(out: &mut impl Write, entry: &Entry, side: &Side) -> io::Result<()> {
    write!(out, "src={} dst={}", side.source, side.destination)?;
    if let (Some(source), Some(destination)) = (side.source_port, side.destination_port) {
        write!(out, " sport={source} dport={destination}")?;
    }
    if let Some(icmp) = side.icmp {
        write!(out, " type={} code={} id={}", icmp.kind, icmp.code, icmp.id)?;
    }
    if entry.protocol == "gre" {
        out.write_all(b" srckey=0x0 dstkey=0x0")?;
    }
    if let (Some(packets), Some(bytes)) = (side.packets, side.bytes) {
        write!(out, " packets={packets} bytes={bytes}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    fn side(source: &str, destination: &str, ports: Option<(u16, u16)>) -> Side {
        Side {
            source: source.parse().expect(source),
            destination: destination.parse().expect(destination),
            source_port: ports.map(|(source, _)| source),
            destination_port: ports.map(|(_, destination)| destination),
            icmp: None,
            packets: None,
            bytes: None,
        }
    }

    fn entry(protocol: (&'static str, u8), original: Side, reply: Side) -> Entry {
        Entry {
            protocol: Cow::Borrowed(protocol.0),
            protocol_number: protocol.1,
            timeout_milliseconds: Some(29_999),
            state: None,
            original,
            reply,
            seen_reply: false,
            assured: false,
            source_nat: false,
            destination_nat: true,
            service: None,
            id: 7,
        }
    }

    fn tcp() -> Entry {
        Entry {
            timeout_milliseconds: Some(431_999_999),
            state: Some(Cow::Borrowed("ESTABLISHED")),
            seen_reply: true,
            assured: true,
            ..entry(
                ("tcp", 6),
                side("10.1.0.2", "10.96.0.10", Some((40_000, 80))),
                side("10.2.0.2", "10.1.0.2", Some((8080, 40_000))),
            )
        }
    }

    fn written(entry: &Entry, form: Form, style: Style) -> String {
        let mut text = Vec::new();
        write(&mut text, entry, form, style).expect("memory");
        String::from_utf8(text).expect("text")
    }

    fn listed(entry: &Entry) -> String {
        written(entry, Form::Listed, Style::default())
    }

    fn told(event: EventKind, by_user: bool, entry: Entry, style: Style) -> String {
        let event = Event {
            event,
            timestamp_microseconds: 1_795_172_264_044_234,
            by_user,
            entry,
        };
        let mut text = Vec::new();
        write_event(&mut text, &event, style).expect("memory");
        String::from_utf8(text).expect("text")
    }

    /// Lines of conntrack-tools 1.4.7 from a kernel, character by character.
    #[test]
    fn lists_as_conntrack_tools() {
        let dns = ("10.1.0.2", "10.96.0.10", Some((50_000, 53)));
        let udp = entry(
            ("udp", 17),
            side(dns.0, dns.1, dns.2),
            side("10.2.0.2", "10.1.0.2", Some((5353, 50_000))),
        );
        assert_eq!(
            listed(&tcp()),
            "tcp      6 431999 ESTABLISHED src=10.1.0.2 dst=10.96.0.10 sport=40000 dport=80 \
             src=10.2.0.2 dst=10.1.0.2 sport=8080 dport=40000 [ASSURED] mark=0 use=1"
        );
        assert_eq!(
            listed(&udp),
            "udp      17 29 src=10.1.0.2 dst=10.96.0.10 sport=50000 dport=53 [UNREPLIED] \
             src=10.2.0.2 dst=10.1.0.2 sport=5353 dport=50000 mark=0 use=1"
        );
        let pair = || {
            (
                side("10.1.0.2", "10.96.0.12", None),
                side("10.2.0.3", "10.1.0.2", None),
            )
        };
        let (original, reply) = pair();
        assert_eq!(
            listed(&entry(("unknown", 89), original, reply)),
            "unknown  89 29 src=10.1.0.2 dst=10.96.0.12 [UNREPLIED] src=10.2.0.3 dst=10.1.0.2 mark=0 use=1"
        );
        let (original, reply) = pair();
        assert_eq!(
            listed(&entry(("gre", 47), original, reply)),
            "gre      47 29 src=10.1.0.2 dst=10.96.0.12 srckey=0x0 dstkey=0x0 [UNREPLIED] \
             src=10.2.0.3 dst=10.1.0.2 srckey=0x0 dstkey=0x0 mark=0 use=1"
        );
    }

    #[test]
    fn lists_pings_of_both_families() {
        let ping = |addresses: [&str; 4], protocol, kinds: [u8; 2]| {
            let echo = |kind| control::conntrack::Icmp {
                kind,
                code: 0,
                id: 778,
            };
            let mut original = side(addresses[0], addresses[1], None);
            let mut reply = side(addresses[2], addresses[3], None);
            (original.icmp, reply.icmp) = (Some(echo(kinds[0])), Some(echo(kinds[1])));
            entry(protocol, original, reply)
        };
        assert_eq!(
            listed(&ping(
                ["10.1.0.2", "10.96.0.12", "10.2.0.3", "10.1.0.2"],
                ("icmp", 1),
                [8, 0]
            )),
            "icmp     1 29 src=10.1.0.2 dst=10.96.0.12 type=8 code=0 id=778 [UNREPLIED] \
             src=10.2.0.3 dst=10.1.0.2 type=0 code=0 id=778 mark=0 use=1"
        );
        let v6 = ping(
            ["fd01::2", "fd96::c", "fd02::3", "fd01::2"],
            ("icmpv6", 58),
            [128, 129],
        );
        let extended = Style {
            extended: true,
            ..Style::default()
        };
        assert_eq!(
            written(&v6, Form::Listed, extended),
            "ipv6     10 icmpv6   58 29 src=fd01::2 dst=fd96::c type=128 code=0 id=778 [UNREPLIED] \
             src=fd02::3 dst=fd01::2 type=129 code=0 id=778 mark=0 use=1"
        );
    }

    #[test]
    fn options_and_forms() {
        let style = Style {
            extended: true,
            id: true,
            ..Style::default()
        };
        let line = written(&tcp(), Form::Got, style);
        assert!(
            line.starts_with("ipv4     2 tcp      6 431999 ESTABLISHED "),
            "{line}"
        );
        assert!(line.ends_with("[ASSURED] mark=0 use=2 id=7"), "{line}");
    }

    /// NEW and UPDATE show the timeout that was set, DESTROY what was left of it; nothing after a natural end.
    #[test]
    fn tells_as_conntrack_tools() {
        let style = Style {
            timestamp: true,
            ..Style::default()
        };
        assert_eq!(
            told(EventKind::Update, false, tcp(), style),
            "[1795172264.044234]\t [UPDATE] tcp      6 432000 ESTABLISHED src=10.1.0.2 dst=10.96.0.10 \
             sport=40000 dport=80 src=10.2.0.2 dst=10.1.0.2 sport=8080 dport=40000 [ASSURED]"
        );
        let new = told(EventKind::New, false, tcp(), Style::default());
        assert!(new.starts_with("    [NEW] tcp      6 432000 "), "{new}");
        let deleted = told(EventKind::Destroy, true, tcp(), Style::default());
        assert!(
            deleted.starts_with("[DESTROY] tcp      6 431999 "),
            "{deleted}"
        );
        assert!(deleted.ends_with(" [ASSURED] [USERSPACE]"), "{deleted}");
        let expired = Entry {
            timeout_milliseconds: None,
            ..tcp()
        };
        let expired = told(EventKind::Destroy, false, expired, Style::default());
        assert!(
            expired.starts_with("[DESTROY] tcp      6 ESTABLISHED src="),
            "{expired}"
        );
    }
}
