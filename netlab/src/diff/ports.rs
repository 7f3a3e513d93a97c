//! Source ports that each side chose for itself: from the first packet, or entry, that shows both, one stands for the other.

use super::case::Case;
use super::quotes;
use super::side::{Entry, Tuple};
use super::wire::{self, ICMP, ICMPV6, Ip, UDP};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

/// Source ports (or ICMP identifiers) that our side chose, and those that the other chose instead.
#[derive(Clone, Debug, Default)]
pub(super) struct Ports {
    /// The other side's by ours.
    pairs: HashMap<Key, u16>,
    /// The node's addresses: masquerading leaves them, and may by chance leave the port.
    own: HashSet<IpAddr>,
}

/// Protocol, server, translated client with our port.
type Key = (u8, SocketAddr, SocketAddr);

impl Ports {
    /// Nothing learnt yet about the node of `case`.
    pub(super) fn of(case: &Case) -> Self {
        Self {
            pairs: HashMap::new(),
            own: case.own_addresses().collect(),
        }
    }

    /// Takes the ports of one packet, sent from `sent`, on both sides as the same, if that may be: a source that is
    /// masqueraded gets any port of the range, one that is not another port where its own is taken.
    ///
    /// A server's packet may begin a connection too; its source is not masqueraded.
    pub(super) fn learn(
        &mut self,
        sent: SocketAddr,
        from_client: bool,
        kernel: &[u8],
        ours: &[u8],
    ) {
        let read = |bytes: &[u8]| {
            let ip = Ip::parse(bytes)?;
            Some((ip, ip.ports(bytes)?))
        };
        let (Some((ip, (theirs, port))), Some((own, (our, our_port)))) = (read(kernel), read(ours))
        else {
            return;
        };
        let same = (ip.source, ip.destination, ip.protocol)
            == (own.source, own.destination, own.protocol)
            && (is_icmp(ip.protocol) || port == our_port)
            && (from_client || ip.source == sent.ip());
        if same {
            let server = SocketAddr::new(ip.destination, port);
            let client = SocketAddr::new(ip.source, our);
            self.learn_pair(ip.protocol, sent, server, client, theirs);
        }
    }

    /// The same from what the sides track, for connections of which no packet was seen: they end at the node itself.
    pub(super) fn learn_tracked(&mut self, kernel: &[Entry], ours: &[Entry]) {
        let key = |entry: &Entry| (entry.protocol, entry.original);
        let own: HashMap<_, &Entry> = ours.iter().map(|entry| (key(entry), entry)).collect();
        for entry in kernel {
            let Some(own) = own.get(&key(entry)) else {
                continue;
            };
            let server =
                |entry: &Entry| SocketAddr::new(entry.reply.source, entry.reply.source_port);
            let client = |entry: &Entry| {
                let port = match is_icmp(entry.protocol) {
                    true => entry.reply.source_port,
                    false => entry.reply.destination_port,
                };
                SocketAddr::new(entry.reply.destination, port)
            };
            let (theirs, our) = (client(entry), client(own));
            let same = theirs.ip() == our.ip()
                && (is_icmp(entry.protocol) && entry.reply.source == own.reply.source
                    || server(entry) == server(own));
            if same && self.theirs(entry.protocol, server(entry), our).is_none() {
                let sent = SocketAddr::new(entry.original.source, entry.original.source_port);
                self.learn_pair(entry.protocol, sent, server(entry), our, theirs.port());
            }
        }
    }

    /// What was sent from `sent` came from `client` on our side, and from the port `theirs` on the other.
    fn learn_pair(
        &mut self,
        protocol: u8,
        sent: SocketAddr,
        server: SocketAddr,
        client: SocketAddr,
        theirs: u16,
    ) {
        let our = client.port();
        let range = range(sent.port(), is_icmp(protocol));
        let is_masqueraded = client.ip() != sent.ip() || self.own.contains(&sent.ip());
        let is_changed = is_masqueraded || (theirs != sent.port() && our != sent.port());
        if is_changed && range.contains(&our) && range.contains(&theirs) {
            self.pairs.insert(key_of(protocol, server, client), theirs);
        }
    }

    fn theirs(&self, protocol: u8, server: SocketAddr, client: SocketAddr) -> Option<u16> {
        self.pairs.get(&key_of(protocol, server, client)).copied()
    }

    /// A tuple with the other side's port where ours stands.
    pub(super) fn replace_in(&self, protocol: u8, tuple: Tuple) -> Tuple {
        let is_icmp = matches!(protocol, ICMP | ICMPV6);
        let Tuple {
            source,
            source_port,
            destination,
            destination_port,
        } = tuple;
        if is_icmp {
            let server = SocketAddr::new(source, 0);
            let theirs = self.theirs(protocol, server, SocketAddr::new(destination, source_port));
            return Tuple {
                source_port: theirs.unwrap_or(source_port),
                ..tuple
            };
        }
        let sender = SocketAddr::new(source, source_port);
        let receiver = SocketAddr::new(destination, destination_port);
        let from_server = self.theirs(protocol, sender, receiver);
        let to_server = self.theirs(protocol, receiver, sender);
        Tuple {
            source_port: to_server.unwrap_or(source_port),
            destination_port: from_server.unwrap_or(destination_port),
            ..tuple
        }
    }

    /// Puts the other side's port where ours stands, and mends the checksum by the difference.
    pub(super) fn replace(&self, bytes: &mut [u8]) {
        let Some(ip) = Ip::parse(bytes) else { return };
        if ip.is_error(bytes) {
            self.replace_quoted(bytes);
        } else if let Some((at, theirs)) = self.replacement(&ip, bytes) {
            let is_right = wire::sctp_is_right(bytes, &ip);
            write_port(bytes, &ip, at, theirs);
            if is_right {
                wire::mend_sctp(bytes, &ip);
            }
        }
    }

    /// An error quotes what the server sent to our port, or what came from there.
    fn replace_quoted(&self, bytes: &mut [u8]) {
        if let Some((ip, at, quoted)) = quotes::quote(bytes)
            && let Some((offset, theirs)) = self.replacement(&quoted, &bytes[at..])
        {
            quotes::change(bytes, &ip, |quote| {
                write_port(quote, &quoted, offset, theirs);
            });
        }
    }

    /// Where in the transport header one of our ports stands, and the other side's. What is sent to our port and not
    /// translated back belongs to a connection that is over.
    fn replacement(&self, ip: &Ip, bytes: &[u8]) -> Option<(usize, u16)> {
        let (source, destination) = ip.ports(bytes)?;
        let sender = SocketAddr::new(ip.source, source);
        let receiver = SocketAddr::new(ip.destination, destination);
        let [client, server] = if is_icmp(ip.protocol) { [4, 4] } else { [0, 2] };
        let to_server = self.theirs(ip.protocol, receiver, sender);
        let to_client = || self.theirs(ip.protocol, sender, receiver);
        to_server
            .map(|theirs| (client, theirs))
            .or_else(|| to_client().map(|theirs| (server, theirs)))
    }
}

/// Of ICMP the server has no port: the one identifier of a query is the client's.
const fn key_of(protocol: u8, mut server: SocketAddr, client: SocketAddr) -> Key {
    if is_icmp(protocol) {
        server.set_port(0);
    }
    (protocol, server, client)
}

const fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, ICMP | ICMPV6)
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
        // A zero would say that there is none.
        if ip.protocol == UDP && wire::word(bytes, checksum) == Some(0) {
            bytes[checksum..checksum + 2].fill(0xff);
        }
    }
}

/// RFC 1624, equation 3.
pub(super) fn mend(bytes: &mut [u8], checksum: usize, old: u16, new: u16) {
    if let Some(field) = wire::word(bytes, checksum) {
        let sum = u32::from(!field) + u32::from(!old) + u32::from(new);
        bytes[checksum..checksum + 2].copy_from_slice(&(!wire::fold(sum)).to_be_bytes());
    }
}
