//! One connection driven packet by packet with a virtual clock, for the tests of connection tracking.
#![allow(dead_code, reason = "each test file uses its part")]

use dataplane::conntrack::{
    Confirmed, Conntrack, EntryView, Headers, Invalid, Settings, Status, TcpFlags, TcpOptions,
    TcpSegment, Tracked, Transport,
};
use dataplane::tuple::{Address, Direction, Protocol, Timestamp, Tuple};
use std::rc::Rc;
use std::time::Duration;

pub(crate) const SYN: TcpFlags = TcpFlags::SYN;
pub(crate) const SYN_ACK: TcpFlags = TcpFlags::SYN.with(TcpFlags::ACK);
pub(crate) const ACK: TcpFlags = TcpFlags::ACK;
pub(crate) const FIN_ACK: TcpFlags = TcpFlags::FIN.with(TcpFlags::ACK);
pub(crate) const RST: TcpFlags = TcpFlags::RST;
pub(crate) const RST_ACK: TcpFlags = TcpFlags::RST.with(TcpFlags::ACK);

/// IPv4 and IPv6.
pub(crate) const FAMILIES: [bool; 2] = [true, false];

/// Class of a packet as `-m conntrack --ctstate` and the NAT table see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    New,
    Accepted,
    Ignored,
    Invalid(Invalid),
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}
pub(crate) use Side::{Client, Server};

/// client 40000 -> VIP 80, DNAT to pod 8080; packets of the server arrive as the pod sends them.
pub(crate) struct Flow {
    pub conntrack: Rc<Conntrack>,
    pub now: Timestamp,
    pub from_client: Tuple,
    pub from_server: Tuple,
}

pub(crate) fn address(ipv4: bool, last: u8) -> Address {
    if ipv4 {
        return Address::from_v4([10, 0, 0, last]);
    }
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[15] = last;
    Address::from_v6(octets)
}

/// Ends the connection with this original tuple. False when there is none.
pub(crate) fn remove(conntrack: &Conntrack, original: &Tuple, now: Timestamp) -> bool {
    let found = conntrack
        .find(original, now)
        .filter(|found| found.direction() == Direction::Original);
    found.is_some_and(|found| conntrack.end(found.entry(), now))
}

impl Flow {
    pub(crate) fn new(ipv4: bool, protocol: Protocol) -> Self {
        Self::with(Settings::kernel(1000), ipv4, protocol)
    }

    pub(crate) fn with(settings: Settings, ipv4: bool, protocol: Protocol) -> Self {
        let from_client = Tuple {
            source: address(ipv4, 1),
            destination: address(ipv4, 99),
            source_port: 40_000,
            destination_port: 80,
            protocol,
        };
        let from_server = Tuple {
            source: address(ipv4, 2),
            destination: address(ipv4, 1),
            source_port: 8080,
            destination_port: 40_000,
            protocol,
        };
        Self {
            conntrack: Rc::new(Conntrack::new(settings, [1, 2, 3, 4])),
            now: Timestamp::from_seconds(1000),
            from_client,
            from_server,
        }
    }

    /// A packet through the table as the path does it.
    pub(crate) fn packet(&mut self, from: Side, transport: Transport) -> Class {
        let tuple = match from {
            Client => self.from_client,
            Server => self.from_server,
        };
        let headers = Headers {
            tuple,
            transport,
            length: 100,
        };
        if let Some(found) = self.conntrack.find(&tuple, self.now) {
            match self.conntrack.track(&found, &headers, self.now) {
                Tracked::Accepted => return Class::Accepted,
                Tracked::Ignored => return Class::Ignored,
                Tracked::Invalid(reason) => return Class::Invalid(reason),
                Tracked::Restart => {}
            }
        }
        let mut tentative = match self.conntrack.open(&headers, self.now) {
            Ok(tentative) => tentative,
            Err(reason) => return Class::Invalid(reason),
        };
        if from == Client {
            tentative.reply = self.from_server;
        }
        let confirmed = self.conntrack.confirm(&tentative, self.now).unwrap();
        assert!(matches!(confirmed, Confirmed::Inserted(_)));
        Class::New
    }

    pub(crate) fn tcp(
        &mut self,
        from: Side,
        flags: TcpFlags,
        sequence: u32,
        acknowledgement: u32,
    ) -> Class {
        self.segment(from, segment(flags, sequence, acknowledgement))
    }

    pub(crate) fn segment(&mut self, from: Side, segment: TcpSegment) -> Class {
        self.packet(from, Transport::Tcp(segment))
    }

    pub(crate) fn wait(&mut self, milliseconds: u64) {
        self.now = self.now.after(Duration::from_millis(milliseconds));
    }

    pub(crate) fn entry(&self) -> Option<EntryView> {
        let mut entries = Vec::new();
        self.conntrack
            .for_each(self.now, |entry| entries.push(*entry));
        assert!(entries.len() <= 1, "one connection, not {entries:?}");
        entries.pop()
    }

    /// State, seconds and flags as `conntrack -L` would print them the moment after; `gone` without entry.
    pub(crate) fn listed(&self) -> String {
        let Some(entry) = self.entry() else {
            return "gone".to_owned();
        };
        let left = (entry.timeout - Duration::from_millis(1)).as_secs();
        let mut line = left.to_string();
        if let Some(state) = entry.state {
            line += &format!(" {state}");
        }
        if !entry.status.has(Status::SEEN_REPLY) {
            line += " [UNREPLIED]";
        }
        if entry.status.has(Status::ASSURED) {
            line += " [ASSURED]";
        }
        line
    }

    /// SYN, SYN+ACK, ACK: client at 1001, server at 9001, window 64240, no scaling.
    pub(crate) fn established(ipv4: bool) -> Self {
        let mut flow = Self::new(ipv4, Protocol::TCP);
        flow.handshake();
        flow
    }

    pub(crate) fn handshake(&mut self) {
        assert_eq!(self.tcp(Client, SYN, 1000, 0), Class::New);
        assert_eq!(self.tcp(Server, SYN_ACK, 9000, 1001), Class::Accepted);
        assert_eq!(self.tcp(Client, ACK, 1001, 9001), Class::Accepted);
        assert_eq!(self.listed(), "431999 ESTABLISHED [ASSURED]");
    }
}

pub(crate) fn segment(flags: TcpFlags, sequence: u32, acknowledgement: u32) -> TcpSegment {
    TcpSegment {
        flags,
        sequence,
        acknowledgement,
        window: 64_240,
        data_length: 0,
        options: TcpOptions::default(),
    }
}

pub(crate) fn data(sequence: u32, acknowledgement: u32, data_length: u32) -> TcpSegment {
    TcpSegment {
        data_length,
        ..segment(ACK, sequence, acknowledgement)
    }
}
