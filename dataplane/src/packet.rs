//! [`Packet`]: a checked view over the bytes of one IP packet.
//!
//! The door for bytes: after [`Packet::parse`] every offset in the view is known to lie inside the packet, and no
//! later step checks again. What cannot be parsed is sorted as the kernel sorts it ([`Unparsed`]).
//!
//! Read first: RFC 791, RFC 8200 section 4 (extension headers), Linux `nf_conntrack_core.c`, `get_l4proto`.

use crate::checksum;
use crate::conntrack::{Headers, SctpPacket, TcpSegment, Transport};
use crate::frame::{ChecksumState, Frame};
use crate::tuple::{Address, Protocol, Tuple};
use crate::verdict::DropReason;

/// A checked view over one packet.
#[derive(Debug)]
pub struct Packet<'a> {
    bytes: &'a mut [u8],
    ip: IpLayout,
    checksum: ChecksumState,
}

/// What a packet is to connection tracking.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Belongs to a connection of its own tuple.
    Flow(Headers),
    /// An ICMP error about the packet that it quotes.
    Error(Quote),
    /// Part of a datagram, which alone says what it is.
    Fragment,
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug)]
pub struct Quote {
    /// The tuple of the quoted packet, as it was when the error arose.
    pub tuple: Tuple,
    ip: IpLayout,
}

/// Why there is no [`Packet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// Not for connection tracking, e.g. neighbour discovery.
    Untracked,
    /// An intact IP packet whose transport header is not: INVALID to the kernel. Carries the destination.
    Invalid(Address),
    /// Not an intact IP packet.
    Malformed(DropReason),
}

/// Which fragment of which datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification field.
    pub identification: u32,
    /// Offset in the datagram in bytes.
    pub offset: u32,
    /// Whether more follow.
    pub more: bool,
    /// Where its part of the datagram begins in its packet.
    pub data: usize,
    /// Offset of the byte that names the protocol of the data: in IPv6 that is not always the fixed header's.
    pub(crate) protocol_at: usize,
}

/// Where the parts of an IP packet are. Offsets are from its first byte.
#[derive(Clone, Copy, Debug)]
struct IpLayout {
    source: Address,
    destination: Address,
    protocol: Protocol,
    /// Offset of the transport header.
    transport: usize,
    /// Length by the IP header; in a quote it may exceed what is there.
    end: usize,
    cut: Option<Cut>,
}

/// Of a fragment: where the header is that says so, and the byte that names the protocol of the data.
#[derive(Clone, Copy, Debug)]
struct Cut {
    header: u16,
    protocol_at: u16,
}

const MALFORMED: Unparsed = Unparsed::Malformed(DropReason::Malformed);

impl<'a> Packet<'a> {
    /// Checks the packet in `frame`, and says what it is to connection tracking.
    ///
    /// # Errors
    /// [`Unparsed`], see there.
    #[inline]
    pub fn parse(frame: &'a mut Frame) -> Result<(Self, Kind), Unparsed> {
        let checksum = frame.checksum_state();
        let ip = IpLayout::parse(frame.packet())?;
        let available = frame.packet().len();
        if ip.end > available || ip.transport > ip.end {
            return Err(MALFORMED);
        }
        let bytes = &mut frame.packet_mut()[..ip.end];
        let kind = kind_of(bytes, &ip)?;
        let packet = Self {
            bytes,
            ip,
            checksum,
        };
        Ok((packet, kind))
    }

    /// Source address.
    pub const fn source(&self) -> Address {
        self.ip.source
    }

    /// Destination address.
    pub const fn destination(&self) -> Address {
        self.ip.destination
    }

    /// Transport protocol.
    pub const fn protocol(&self) -> Protocol {
        self.ip.protocol
    }

    /// Which fragment it is, if it is one.
    pub fn fragment(&self) -> Option<Fragment> {
        self.ip.fragment(self.bytes)
    }

    /// Length of the IP packet in bytes.
    pub const fn length(&self) -> usize {
        self.ip.end
    }

    /// The state of the transport checksum.
    pub const fn checksum_state(&self) -> ChecksumState {
        self.checksum
    }

    /// The transport header and all behind it.
    pub fn transport(&self) -> &[u8] {
        &self.bytes[self.ip.transport..]
    }

    /// The transport header and all behind it.
    pub fn transport_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.ip.transport..]
    }

    /// Whether the transport checksum is wrong. One that is partial or verified is not; that of a fragment is not known.
    pub fn has_bad_checksum(&self) -> bool {
        if self.checksum != ChecksumState::Unverified || self.ip.cut.is_some() {
            return false;
        }
        let transport = self.transport();
        match self.ip.protocol {
            Protocol::UDP if transport[6..8] == [0, 0] => false,
            Protocol::TCP | Protocol::UDP | Protocol::ICMPV6 => self.transport_sum() != 0xffff,
            Protocol::ICMP => checksum::sum(transport) != 0xffff,
            Protocol::SCTP => sctp_checksum(transport) != transport[8..12],
            _ => false,
        }
    }

    /// Sum over the pseudo header and the transport header with its payload. All that the IP header announces counts,
    /// also behind the end that UDP's own length tells (Linux `nf_ip_checksum`).
    fn transport_sum(&self) -> u16 {
        let transport = self.transport();
        let (source, destination) = (self.ip.source, self.ip.destination);
        let protocol = self.ip.protocol.0;
        let length = transport.len() as u32;
        let pseudo = checksum::pseudo_header(source, destination, protocol, length);
        checksum::add(pseudo, checksum::sum(transport))
    }

    /// Whether the smallest transport header is all there (Linux `ipv6frag_thdr_truncated`).
    pub fn has_transport_header(&self) -> bool {
        let least = match self.ip.protocol {
            Protocol::TCP => 20,
            Protocol::UDP | Protocol::ICMPV6 => 8,
            _ => 1,
        };
        self.transport().len() >= least
    }

    /// Whether it is an ICMP redirect.
    pub fn is_redirect(&self) -> bool {
        let kind = self.transport().first();
        matches!(
            (self.ip.protocol, kind),
            (Protocol::ICMP, Some(5)) | (Protocol::ICMPV6, Some(137))
        )
    }

    /// Replaces the addresses, keeping the IPv4 header checksum right, whose `change` this makes. The transport checksum
    /// is the caller's.
    #[inline]
    pub fn set_addresses(
        &mut self,
        source: Address,
        destination: Address,
        change: checksum::Change,
    ) {
        put_addresses(self.bytes, source, destination, change);
        (self.ip.source, self.ip.destination) = (source, destination);
    }

    /// The quoted packet of an ICMP error, as far as it was quoted.
    pub fn quoted(&mut self) -> &mut [u8] {
        &mut self.bytes[self.ip.transport + ICMP_HEADER..]
    }
}

/// The tuple that a packet will turn out to have if it is one of a flow: nothing is checked but that the bytes are
/// there. None of a fragment, whose datagram alone has one.
#[inline]
pub fn apparent_tuple(packet: &[u8]) -> Option<Tuple> {
    let ip = IpLayout::parse(packet).ok().filter(|ip| ip.cut.is_none())?;
    let (source_port, destination_port) = ports(ip.protocol, packet.get(ip.transport..)?)?;
    Some(Tuple {
        source: ip.source,
        destination: ip.destination,
        source_port,
        destination_port,
        protocol: ip.protocol,
    })
}

/// TTL or hop limit plus one: the kernel takes two on the way through a TUN device, a router takes one.
///
/// DIFFERS: from what the node sends to itself none would be taken; it arrives with one more.
#[inline]
pub fn give_back_hop(packet: &mut [u8]) {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= IPV4_HEADER => {
            let old = u16::from_be_bytes([packet[8], packet[9]]);
            packet[8] = packet[8].saturating_add(1);
            let new = u16::from_be_bytes([packet[8], packet[9]]);
            update(&mut packet[10..12], checksum::Change::word(old, new));
        }
        Some(6) if packet.len() >= IPV6_HEADER => packet[7] = packet[7].saturating_add(1),
        _ => {}
    }
}

/// Applies `change` to the full checksum in the first two bytes of `field`.
#[inline]
pub fn update(field: &mut [u8], change: checksum::Change) {
    let old = u16::from_be_bytes([field[0], field[1]]);
    field[..2].copy_from_slice(&change.apply(old).to_be_bytes());
}

/// Replaces the addresses of an IP packet and keeps its IPv4 header checksum right.
pub fn write_addresses(packet: &mut [u8], source: Address, destination: Address) {
    let old = if source.is_ipv4() {
        [12, 16].map(|at| Address::from_v4(array(packet, at)))
    } else {
        // IPv6 headers have no checksum.
        [source, destination]
    };
    let change = checksum::Change::addresses(old, [source, destination]);
    put_addresses(packet, source, destination, change);
}

#[inline]
fn put_addresses(
    packet: &mut [u8],
    source: Address,
    destination: Address,
    change: checksum::Change,
) {
    if source.is_ipv4() {
        update(&mut packet[10..12], change);
        packet[12..16].copy_from_slice(&source.octets_v4());
        packet[16..20].copy_from_slice(&destination.octets_v4());
    } else {
        packet[8..24].copy_from_slice(&source.octets());
        packet[24..40].copy_from_slice(&destination.octets());
    }
}

/// The four bytes that SCTP's checksum field must hold, computed with the field as zero.
pub fn sctp_checksum(packet: &[u8]) -> [u8; 4] {
    let mut whole = packet.to_vec();
    whole[8..12].fill(0);
    checksum::crc32c(&whole).to_le_bytes()
}

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// ICMP header in front of a quote, both families.
pub const ICMP_HEADER: usize = 8;
/// Extension headers that are followed; more are not on any real packet.
const MAXIMUM_EXTENSION_HEADERS: usize = 8;

impl Quote {
    /// Offset of the quoted transport header in the quoted packet.
    pub const fn transport(&self) -> usize {
        self.ip.transport
    }

    /// Length of the quoted packet by its own header.
    pub const fn original_length(&self) -> usize {
        self.ip.end
    }
}

impl IpLayout {
    #[inline]
    fn parse(packet: &[u8]) -> Result<Self, Unparsed> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            _ => Err(MALFORMED),
        }
    }

    /// What the header of a fragment says (RFC 791, section 3.1; RFC 8200, section 4.5).
    fn fragment(&self, packet: &[u8]) -> Option<Fragment> {
        let Cut {
            header,
            protocol_at,
        } = self.cut?;
        let (identification, offset, more) = if self.source.is_ipv4() {
            let flags = word(packet, 6);
            let offset = u32::from(flags & 0x1fff) * 8;
            (u32::from(word(packet, 4)), offset, flags & 0x2000 != 0)
        } else {
            let field = word(packet, usize::from(header) + 2);
            let identification = u32::from_be_bytes(array(packet, usize::from(header) + 4));
            (identification, u32::from(field & 0xfff8), field & 1 != 0)
        };
        Some(Fragment {
            identification,
            offset,
            more,
            data: self.transport,
            protocol_at: usize::from(protocol_at),
        })
    }

    #[inline]
    fn parse_v4(packet: &[u8]) -> Result<Self, Unparsed> {
        if packet.len() < IPV4_HEADER {
            return Err(MALFORMED);
        }
        let transport = usize::from(packet[0] & 0xf) * 4;
        let end = usize::from(word(packet, 2));
        if transport < IPV4_HEADER || transport > packet.len() || end < transport {
            return Err(MALFORMED);
        }
        Ok(Self {
            source: Address::from_v4(array(packet, 12)),
            destination: Address::from_v4(array(packet, 16)),
            protocol: Protocol(packet[9]),
            transport,
            end,
            cut: (word(packet, 6) & 0x3fff != 0).then_some(Cut {
                header: 0,
                protocol_at: 9,
            }),
        })
    }

    fn parse_v6(packet: &[u8]) -> Result<Self, Unparsed> {
        if packet.len() < IPV6_HEADER {
            return Err(MALFORMED);
        }
        let mut layout = Self {
            source: Address::from_v6(array(packet, 8)),
            destination: Address::from_v6(array(packet, 24)),
            protocol: Protocol(packet[6]),
            transport: IPV6_HEADER,
            end: IPV6_HEADER + usize::from(word(packet, 4)),
            cut: None,
        };
        // DIFFERS: the kernel forwards these. They must not be on the wire, and are IPv4 addresses to the tables.
        if layout.source.is_ipv4() || layout.destination.is_ipv4() {
            return Err(Unparsed::Malformed(DropReason::MappedAddress));
        }
        layout.skip_extension_headers(packet)?;
        Ok(layout)
    }

    /// Moves `transport` behind the extension headers, up to the first that is none.
    fn skip_extension_headers(&mut self, packet: &[u8]) -> Result<(), Unparsed> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const DESTINATION_OPTIONS: u8 = 60;
        let mut protocol_at = 6;
        for _ in 0..MAXIMUM_EXTENSION_HEADERS {
            // What follows is part of the datagram.
            if self.cut.is_some() {
                return Ok(());
            }
            let kind = self.protocol.0;
            if !matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
                return Ok(());
            }
            let Some(header) = packet.get(self.transport..self.transport + 8) else {
                return Err(MALFORMED);
            };
            self.protocol = Protocol(header[0]);
            if kind == FRAGMENT {
                // An atomic fragment (RFC 6946) is none.
                self.cut = (word(header, 2) & 0xfff9 != 0).then_some(Cut {
                    header: self.transport as u16,
                    protocol_at: protocol_at as u16,
                });
                self.transport += 8;
            } else {
                protocol_at = self.transport;
                self.transport += 8 + usize::from(header[1]) * 8;
            }
        }
        Err(MALFORMED)
    }
}

#[inline]
fn kind_of(bytes: &[u8], ip: &IpLayout) -> Result<Kind, Unparsed> {
    if ip.cut.is_some() {
        return Ok(Kind::Fragment);
    }
    let invalid = Unparsed::Invalid(ip.destination);
    let transport = &bytes[ip.transport..];
    if is_icmp_error(ip.protocol, transport) {
        return quote(transport).map(Kind::Error).ok_or(invalid);
    }
    if is_neighbour_or_multicast_discovery(ip.protocol, transport) {
        return Err(Unparsed::Untracked);
    }
    let (source_port, destination_port) = ports(ip.protocol, transport).ok_or(invalid)?;
    let tuple = Tuple {
        source: ip.source,
        destination: ip.destination,
        source_port,
        destination_port,
        protocol: ip.protocol,
    };
    let transport = transport_of(ip.protocol, transport).ok_or(invalid)?;
    Ok(Kind::Flow(Headers {
        tuple,
        transport,
        length: ip.end as u32,
    }))
}

#[inline]
fn transport_of(protocol: Protocol, bytes: &[u8]) -> Option<Transport> {
    match protocol {
        Protocol::TCP => {
            let header_length = usize::from(*bytes.get(12)? >> 4) * 4;
            let header = bytes
                .get(..header_length)
                .filter(|header| header.len() >= 20)?;
            let data_length = (bytes.len() - header_length) as u32;
            TcpSegment::parse(header, data_length)
                .ok()
                .map(Transport::Tcp)
        }
        Protocol::UDP => {
            let length = usize::from(word(bytes.get(..8)?, 4));
            (length >= 8 && length <= bytes.len()).then_some(Transport::Udp)
        }
        Protocol::SCTP => SctpPacket::parse(bytes).ok().map(Transport::Sctp),
        Protocol::ICMP | Protocol::ICMPV6 => Some(Transport::Icmp),
        _ => Some(Transport::Other),
    }
}

/// The two port fields of a tuple, see [`Tuple`]. `None` when the bytes do not suffice.
#[inline]
fn ports(protocol: Protocol, transport: &[u8]) -> Option<(u16, u16)> {
    match protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => {
            let ports = transport.get(..4)?;
            Some((word(ports, 0), word(ports, 2)))
        }
        Protocol::ICMP | Protocol::ICMPV6 => {
            let header = transport.get(..ICMP_HEADER)?;
            Some((word(header, 4), word(header, 0)))
        }
        _ => Some((0, 0)),
    }
}

/// Destination unreachable, source quench, redirect, time exceeded, parameter problem; for IPv6 all errors and redirect.
fn is_icmp_error(protocol: Protocol, transport: &[u8]) -> bool {
    match (protocol, transport.first()) {
        (Protocol::ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (Protocol::ICMPV6, Some(kind)) => *kind < 128 || *kind == 137,
        _ => false,
    }
}

/// Never tracked (Linux `nf_conntrack_proto_icmpv6.c`, `noct_valid_new`): MLD, neighbour and router discovery.
fn is_neighbour_or_multicast_discovery(protocol: Protocol, transport: &[u8]) -> bool {
    protocol == Protocol::ICMPV6 && matches!(transport.first(), Some(130..=136 | 143 | 151 | 152))
}

/// The quoted packet, if its tuple is there: not in later fragments and short quotes.
fn quote(icmp: &[u8]) -> Option<Quote> {
    let quoted = icmp.get(ICMP_HEADER..)?;
    let ip = IpLayout::parse(quoted).ok()?;
    if ip
        .fragment(quoted)
        .is_some_and(|fragment| fragment.offset != 0)
    {
        return None;
    }
    let (source_port, destination_port) = ports(ip.protocol, quoted.get(ip.transport..)?)?;
    let tuple = Tuple {
        source: ip.source,
        destination: ip.destination,
        source_port,
        destination_port,
        protocol: ip.protocol,
    };
    Some(Quote { tuple, ip })
}

#[inline]
fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
