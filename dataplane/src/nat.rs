//! Network address translation: what a new connection's reply tuple becomes, and the rewriting of packets.
//!
//! One rule is the whole of NAT: a packet is rewritten to the inverse of the tuple of the *other* direction
//! (Linux `nf_nat_proto.c`, `nf_nat_manip_pkt`). DNAT, masquerade and hairpin differ only in the reply tuple.

use crate::checksum::Change;
use crate::conntrack::Translation;
use crate::frame::ChecksumState;
use crate::packet::{self, Packet, Quote};
use crate::service::Endpoint;
use crate::tuple::{Address, Origin, Protocol, Tuple};
use crate::verdict::DropReason;

/// Makes `reply`, which is the inverse of the original tuple, that of a connection to `endpoint`. Whether the source is
/// masqueraded, and so needs a port of its own.
///
/// # Errors
/// [`DropReason::NoMasqueradeAddress`] when the source must be masqueraded and the node has no address for it.
pub fn plan(
    reply: &mut Tuple,
    endpoint: &Endpoint,
    masquerade: bool,
    origin: Origin,
) -> Result<bool, DropReason> {
    reply.source = endpoint.address;
    reply.source_port = endpoint.port;
    if !endpoint.is_masqueraded(reply.destination, origin, masquerade) {
        return Ok(false);
    }
    reply.destination = endpoint
        .masquerade_address
        .ok_or(DropReason::NoMasqueradeAddress)?;
    Ok(true)
}

/// Rewrites addresses and ports of a packet, whose tuple this is, and mends its checksums.
#[inline(always)]
pub fn rewrite(packet: &mut Packet<'_>, tuple: &Tuple, translation: &Translation) {
    // A copy for each of the protocols that most packets have: it need not ask which one it is.
    match tuple.protocol {
        Protocol::UDP => rewrite_as(Protocol::UDP, packet, tuple, translation),
        Protocol::TCP => rewrite_as(Protocol::TCP, packet, tuple, translation),
        other => rewrite_as(other, packet, tuple, translation),
    }
}

#[inline(always)]
fn rewrite_as(
    protocol: Protocol,
    packet: &mut Packet<'_>,
    tuple: &Tuple,
    translation: &Translation,
) {
    let change = TransportChange::between(packet.is_ipv4(), protocol, tuple, translation);
    let state = packet.checksum_state();
    packet.set_addresses(
        translation.source,
        translation.destination,
        change.addresses,
    );
    let transport = packet.transport_mut();
    write_ports(transport, protocol, translation);
    if protocol != Protocol::SCTP {
        change.mend(transport, protocol, state);
    } else if change.ports != Change::default() {
        // DIFFERS: the kernel computes it anew all the same, and thereby mends a wrong one, which only the node itself can
        // send.
        let checksum = packet::sctp_checksum(transport);
        transport[8..12].copy_from_slice(&checksum);
    }
}

/// Rewrites an ICMP error about a translated connection. `translation` is that of the direction in which the error
/// travels. Its source becomes the translated address whoever sent it, and the quoted packet becomes what the
/// receiver once sent (Linux `nf_nat_icmp_reply_translation`).
///
/// # Errors
/// [`DropReason::QuoteTooShort`] when less than eight bytes of the quoted transport header are there.
pub fn rewrite_error(
    packet: &mut Packet<'_>,
    quote: &Quote,
    translation: &Translation,
) -> Result<(), DropReason> {
    let at = quote.transport();
    if packet.quoted().len() < at + 8 {
        return Err(DropReason::QuoteTooShort);
    }
    let before = crate::checksum::sum(packet.transport());
    rewrite_quoted(
        packet.quoted(),
        quote,
        &inverse(translation, quote.tuple.protocol),
    );
    let (source, destination) = error_addresses(packet, quote, translation);
    let addresses = Change::addresses(
        packet.is_ipv4(),
        [packet.source(), packet.destination()],
        [source, destination],
    );
    packet.set_addresses(source, destination, addresses);
    let after = crate::checksum::sum(packet.transport());
    let body = Change::word(before, after);
    let is_v6 = packet.protocol() == Protocol::ICMPV6;
    let change = if is_v6 { body.and(addresses) } else { body };
    packet::update(&mut packet.transport_mut()[2..4], change);
    Ok(())
}

/// The outer source is replaced where the translation of this direction changes the source, if only its port. (An ICMP
/// identifier is of either end.)
fn error_addresses(
    packet: &Packet<'_>,
    quote: &Quote,
    translation: &Translation,
) -> (Address, Address) {
    let sent_by_the_other_side = quote.tuple.inverse();
    let same_port = sent_by_the_other_side.source_port == translation.source_port
        || quote.tuple.protocol.is_icmp();
    let same = same_port && sent_by_the_other_side.source == translation.source;
    let source = if same {
        packet.source()
    } else {
        translation.source
    };
    (source, translation.destination)
}

/// The quoted packet went the other way: its source is this direction's destination.
fn inverse(translation: &Translation, protocol: Protocol) -> Translation {
    let inverse = Tuple {
        source: translation.source,
        destination: translation.destination,
        source_port: translation.source_port,
        destination_port: translation.destination_port,
        protocol,
    }
    .inverse();
    Translation {
        source: inverse.source,
        destination: inverse.destination,
        source_port: inverse.source_port,
        destination_port: inverse.destination_port,
    }
}

fn rewrite_quoted(quoted: &mut [u8], quote: &Quote, translation: &Translation) {
    let protocol = quote.tuple.protocol;
    let is_ipv4 = quote.tuple.source.is_ipv4();
    let change = TransportChange::between(is_ipv4, protocol, &quote.tuple, translation);
    packet::write_addresses(quoted, translation.source, translation.destination);
    let transport = &mut quoted[quote.transport()..];
    write_ports(transport, protocol, translation);
    change.mend(transport, protocol, ChecksumState::Unverified);
    // Where the field is quoted the kernel computes it anew, of what is quoted (`sctp_manip_pkt`).
    if protocol == Protocol::SCTP && transport.len() >= SCTP_HEADER {
        let checksum = packet::sctp_checksum(transport);
        transport[8..SCTP_HEADER].copy_from_slice(&checksum);
    }
}

/// SCTP's common header: ports, tag, checksum.
const SCTP_HEADER: usize = 12;

/// For ICMP queries the identifier is the one port; type and code never change.
#[inline(always)]
fn write_ports(transport: &mut [u8], protocol: Protocol, translation: &Translation) {
    match protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => {
            let ports = &mut transport[..4];
            ports[..2].copy_from_slice(&translation.source_port.to_be_bytes());
            ports[2..].copy_from_slice(&translation.destination_port.to_be_bytes());
        }
        // An ICMP tuple has its identifier in the source port, in both directions.
        Protocol::ICMP | Protocol::ICMPV6 => {
            transport[4..6].copy_from_slice(&translation.source_port.to_be_bytes());
        }
        _ => {}
    }
}

/// What a translation changes in the sum that a transport checksum covers.
struct TransportChange {
    addresses: Change,
    ports: Change,
}

impl TransportChange {
    #[inline(always)]
    fn between(is_ipv4: bool, protocol: Protocol, old: &Tuple, new: &Translation) -> Self {
        let addresses = Change::addresses(
            is_ipv4,
            [old.source, old.destination],
            [new.source, new.destination],
        );
        let source_port = Change::word(old.source_port, new.source_port);
        let both = source_port.and(Change::word(old.destination_port, new.destination_port));
        let ports = match protocol {
            // Those that are the same add zero, to a sum that is none.
            Protocol::UDP | Protocol::TCP => both,
            _ if (old.source_port, old.destination_port)
                == (new.source_port, new.destination_port) =>
            {
                Change::default()
            }
            _ if protocol.is_icmp() => source_port,
            _ => both,
        };
        Self { addresses, ports }
    }

    /// Mends the checksum field in `transport`. A field that is not there (a short quote) is left alone.
    #[inline(always)]
    fn mend(&self, transport: &mut [u8], protocol: Protocol, state: ChecksumState) {
        let (at, change) = match protocol {
            // The kernel mends a quoted TCP checksum only if the whole header is quoted.
            Protocol::TCP if transport.len() < 20 => return,
            Protocol::TCP => (16, self.addresses.and(self.ports)),
            Protocol::UDP => (6, self.addresses.and(self.ports)),
            Protocol::ICMPV6 => (2, self.addresses.and(self.ports)),
            Protocol::ICMP => (2, self.ports),
            _ => return,
        };
        let Some(field) = transport.get_mut(at..at + 2) else {
            return;
        };
        let old = u16::from_be_bytes([field[0], field[1]]);
        let new = match state {
            ChecksumState::Partial => self.addresses.apply_partial(old),
            _ if protocol == Protocol::UDP => udp(old, change),
            _ => change.apply(old),
        };
        field.copy_from_slice(&new.to_be_bytes());
    }
}

/// Zero means that there is no checksum (RFC 768), so a computed zero is sent as its other form.
#[inline(always)]
fn udp(old: u16, change: Change) -> u16 {
    match change.apply(old) {
        _ if old == 0 => 0,
        0 => 0xffff,
        new => new,
    }
}
