//! Where the parts of an IP packet are ([`Layout`]), and what it is to connection tracking ([`Kind`]).
//!
//! Read first: RFC 791, RFC 8200 section 4 (extension headers), Linux `nf_conntrack_core.c`, `get_l4proto`.

use super::{ICMP_HEADER, IPV4_HEADER, IPV6_HEADER, array, word};
use crate::conntrack::{Headers, SctpPacket, TcpSegment, Transport};
use crate::tuple::{Address, Protocol, Tuple};
use crate::verdict::DropReason;

/// Where the parts of an IP packet are. Offsets are from its first byte. So small that many can wait for their turn; what
/// stands in the packet is read there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Offset of the transport header.
    transport: u32,
    /// Length by the IP header; in a quote it may exceed what is there.
    end: u32,
    pub(crate) protocol: Protocol,
    pub(crate) is_ipv4: bool,
    cut: Option<Cut>,
}

/// Of a fragment: where the header is that says so, and the byte that names the protocol of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    header: u16,
    protocol_at: u16,
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
    /// Its transport header is not intact: INVALID to the kernel.
    Invalid,
    /// Not for connection tracking, e.g. neighbour discovery.
    Untracked,
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug)]
pub struct Quote {
    /// The tuple of the quoted packet, as it was when the error arose.
    pub tuple: Tuple,
    layout: Layout,
}

impl Quote {
    /// Offset of the quoted transport header in the quoted packet.
    pub const fn transport(&self) -> usize {
        self.layout.transport()
    }

    /// Length of the quoted packet by its own header.
    pub const fn original_length(&self) -> usize {
        self.layout.end()
    }
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

/// Both port fields.
const PORTS: usize = 4;

/// Extension headers that are followed.
///
/// DIFFERS: the kernel follows them to the end. More are not on any real packet, and make it malformed here.
const MAXIMUM_EXTENSION_HEADERS: usize = 8;

impl Layout {
    /// Of a whole packet. What lies behind its end by its own header is of no concern.
    ///
    /// # Errors
    /// Why it is not an intact IP packet.
    pub fn of(packet: &[u8]) -> Result<Self, DropReason> {
        Self::of_headers(packet)?.if_within(packet)
    }

    #[inline(always)]
    fn if_within(self, packet: &[u8]) -> Result<Self, DropReason> {
        if self.end() > packet.len() || self.transport > self.end {
            return Err(DropReason::Malformed);
        }
        Ok(self)
    }

    /// Of a packet of which the end may be missing.
    #[inline(always)]
    fn of_headers(packet: &[u8]) -> Result<Self, DropReason> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::of_v4(packet),
            Some(6) => Self::of_v6(packet),
            _ => Err(DropReason::Malformed),
        }
    }

    /// As [`Layout::of`], of what most packets are: UDP or TCP behind an IPv4 header without options, and no fragment.
    #[inline(always)]
    pub(crate) fn of_plain_v4(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<{ IPV4_HEADER + PORTS }>()?;
        let end = u32::from(word(header, 2));
        let is_plain = header[0] == 0x45
            && word(header, 6) & 0x3fff == 0
            && matches!(Protocol(header[9]), Protocol::UDP | Protocol::TCP)
            && (IPV4_HEADER..=packet.len()).contains(&(end as usize));
        is_plain.then_some(Self {
            transport: IPV4_HEADER as u32,
            end,
            protocol: Protocol(header[9]),
            is_ipv4: true,
            cut: None,
        })
    }

    /// The same of IPv6, without extension headers.
    #[inline(always)]
    pub(crate) fn of_plain_v6(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<{ IPV6_HEADER + PORTS }>()?;
        let layout = Self::of_fixed_v6(header);
        let is_plain = header[0] >> 4 == 6
            && matches!(layout.protocol, Protocol::UDP | Protocol::TCP)
            && layout.end() <= packet.len()
            && !layout.source(header).is_ipv4()
            && !layout.destination(header).is_ipv4();
        is_plain.then_some(layout)
    }

    /// Offset of the transport header.
    #[inline]
    pub(super) const fn transport(&self) -> usize {
        self.transport as usize
    }

    /// Length by the IP header.
    #[inline]
    pub(super) const fn end(&self) -> usize {
        self.end as usize
    }

    /// Whether the packet is one of several that make a datagram.
    #[inline]
    pub const fn is_fragment(&self) -> bool {
        self.cut.is_some()
    }

    #[inline]
    pub(super) fn source(&self, packet: &[u8]) -> Address {
        self.address(packet, (12, 8))
    }

    #[inline]
    pub(super) fn destination(&self, packet: &[u8]) -> Address {
        self.address(packet, (16, 24))
    }

    /// The address at the first offset in IPv4, at the second in IPv6.
    #[inline]
    fn address(&self, packet: &[u8], (v4, v6): (usize, usize)) -> Address {
        if self.is_ipv4 {
            Address::from_v4(array(packet, v4))
        } else {
            Address::from_v6(array(packet, v6))
        }
    }

    /// The tuple of the packet, if it has one: nothing is checked but that the bytes are there. That of a fragment is its
    /// datagram's.
    #[inline(always)]
    pub fn tuple(&self, packet: &[u8]) -> Option<Tuple> {
        let (source_port, destination_port) =
            ports(self.protocol, packet.get(self.transport()..)?)?;
        Some(Tuple {
            source: self.source(packet),
            destination: self.destination(packet),
            source_port,
            destination_port,
            protocol: self.protocol,
        })
    }

    /// What the packet is to connection tracking.
    pub(super) fn kind(&self, packet: &[u8]) -> Kind {
        if self.is_fragment() {
            return Kind::Fragment;
        }
        if self.is_icmp_error(packet) {
            return self.quote(packet).map_or(Kind::Invalid, Kind::Error);
        }
        if self.is_untracked(packet) {
            return Kind::Untracked;
        }
        let tuple = self.tuple(packet);
        match tuple.zip(self.transport_header(packet)) {
            Some((tuple, transport)) => Kind::Flow(Headers {
                tuple,
                transport,
                length: self.end,
            }),
            None => Kind::Invalid,
        }
    }

    /// Destination unreachable, source quench, redirect, time exceeded, parameter problem; for IPv6 all errors and
    /// redirect.
    #[inline]
    pub(super) fn is_icmp_error(&self, packet: &[u8]) -> bool {
        match self.protocol {
            Protocol::ICMP => matches!(self.icmp_type(packet), Some(3 | 4 | 5 | 11 | 12)),
            Protocol::ICMPV6 => matches!(self.icmp_type(packet), Some(0..=127 | 137)),
            _ => false,
        }
    }

    /// Never tracked (Linux `nf_conntrack_proto_icmpv6.c`, `noct_valid_new`): MLD, neighbour and router discovery.
    #[inline]
    pub(super) fn is_untracked(&self, packet: &[u8]) -> bool {
        self.protocol == Protocol::ICMPV6
            && matches!(self.icmp_type(packet), Some(130..=136 | 143 | 151 | 152))
    }

    fn icmp_type(&self, packet: &[u8]) -> Option<u8> {
        packet[self.transport()..self.end()].first().copied()
    }

    /// The packet that an ICMP error quotes, if its tuple is there: not in later fragments and short quotes. It is of the error's
    /// family, and nothing else of its header is believed: some quote the length in another order, or as none (the kernel's
    /// `nf_ct_get_tuplepr` reads neither the version nor the length).
    pub(super) fn quote(self, packet: &[u8]) -> Option<Quote> {
        let quoted = packet[self.transport()..self.end()].get(ICMP_HEADER..)?;
        let headers = if self.is_ipv4 {
            Self::of_v4
        } else {
            Self::of_v6
        };
        let layout = headers(quoted).ok()?;
        let is_later = layout
            .fragment(quoted)
            .is_some_and(|fragment| fragment.offset != 0);
        let tuple = layout.tuple(quoted).filter(|_| !is_later)?;
        Some(Quote { tuple, layout })
    }

    /// The transport header; `None` when it is not intact.
    #[inline(always)]
    pub(super) fn transport_header(&self, packet: &[u8]) -> Option<Transport> {
        transport_of(self.protocol, &packet[self.transport()..self.end()])
    }

    /// What the header of a fragment says (RFC 791, section 3.1; RFC 8200, section 4.5).
    pub(super) fn fragment(&self, packet: &[u8]) -> Option<Fragment> {
        let Cut {
            header,
            protocol_at,
        } = self.cut?;
        let (identification, offset, more) = if self.is_ipv4 {
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
            data: self.transport(),
            protocol_at: usize::from(protocol_at),
        })
    }

    #[inline(always)]
    fn of_v4(packet: &[u8]) -> Result<Self, DropReason> {
        let Some(header) = packet.first_chunk::<IPV4_HEADER>() else {
            return Err(DropReason::Malformed);
        };
        let transport = u32::from(header[0] & 0xf) * 4;
        let end = u32::from(word(header, 2));
        if (transport as usize) < IPV4_HEADER || transport as usize > packet.len() {
            return Err(DropReason::Malformed);
        }
        let is_fragment = word(header, 6) & 0x3fff != 0;
        Ok(Self {
            transport,
            end,
            protocol: Protocol(header[9]),
            is_ipv4: true,
            cut: is_fragment.then_some(Cut {
                header: 0,
                protocol_at: 9,
            }),
        })
    }

    #[inline]
    fn of_v6(packet: &[u8]) -> Result<Self, DropReason> {
        let Some(header) = packet.first_chunk::<IPV6_HEADER>() else {
            return Err(DropReason::Malformed);
        };
        let layout = Self::of_fixed_v6(header);
        // DIFFERS: the kernel forwards these. They must not be on the wire, and are IPv4 addresses to the tables.
        if layout.source(header).is_ipv4() || layout.destination(header).is_ipv4() {
            return Err(DropReason::MappedAddress);
        }
        if is_extension_header(layout.protocol) {
            return layout.behind_extension_headers(packet);
        }
        Ok(layout)
    }

    /// By the fixed header of IPv6 alone.
    #[inline(always)]
    fn of_fixed_v6(header: &[u8]) -> Self {
        Self {
            transport: IPV6_HEADER as u32,
            end: IPV6_HEADER as u32 + u32::from(word(header, 4)),
            protocol: Protocol(header[6]),
            is_ipv4: false,
            cut: None,
        }
    }

    /// With `transport` behind the extension headers, at the first header that is none.
    fn behind_extension_headers(mut self, packet: &[u8]) -> Result<Self, DropReason> {
        let mut protocol_at = 6;
        for _ in 0..=MAXIMUM_EXTENSION_HEADERS {
            // What follows a fragment header is part of the datagram.
            if self.is_fragment() || !is_extension_header(self.protocol) {
                return Ok(self);
            }
            let at = self.transport();
            let Some(header) = packet.get(at..at + 8) else {
                return Err(DropReason::Malformed);
            };
            let kind = std::mem::replace(&mut self.protocol, Protocol(header[0]));
            if kind == FRAGMENT {
                // An atomic fragment (RFC 6946) is none.
                self.cut = (word(header, 2) & 0xfff9 != 0).then_some(Cut {
                    header: at as u16,
                    protocol_at,
                });
                self.transport += 8;
            } else {
                protocol_at = at as u16;
                self.transport += 8 + u32::from(header[1]) * 8;
            }
        }
        Err(DropReason::Malformed)
    }
}

/// The fragment header of IPv6.
pub(crate) const FRAGMENT: Protocol = Protocol(44);

/// Hop-by-hop, routing, fragment, destination options.
#[inline]
const fn is_extension_header(protocol: Protocol) -> bool {
    matches!(protocol.0, 0 | 43 | 44 | 60)
}

#[inline(always)]
fn transport_of(protocol: Protocol, bytes: &[u8]) -> Option<Transport> {
    match protocol {
        Protocol::TCP => tcp_of(bytes),
        Protocol::UDP => {
            let length = usize::from(word(bytes.first_chunk::<8>()?, 4));
            (length >= 8 && length <= bytes.len()).then_some(Transport::Udp)
        }
        Protocol::SCTP => SctpPacket::parse(bytes).ok().map(Transport::Sctp),
        Protocol::ICMP | Protocol::ICMPV6 => Some(Transport::Icmp),
        _ => Some(Transport::Other),
    }
}

/// Of TCP. Not inlined: it is to be written once, where it stays ([`crate::path`]).
#[inline(never)]
fn tcp_of(bytes: &[u8]) -> Option<Transport> {
    let header_length = usize::from(*bytes.get(12)? >> 4) * 4;
    let header = bytes
        .get(..header_length)
        .filter(|header| header.len() >= 20)?;
    let data_length = (bytes.len() - header_length) as u32;
    TcpSegment::parse(header, data_length)
        .ok()
        .map(Transport::Tcp)
}

/// The two port fields of a tuple, see [`Tuple`]. `None` when the bytes do not suffice.
#[inline]
fn ports(protocol: Protocol, transport: &[u8]) -> Option<(u16, u16)> {
    match protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => {
            let ports = transport.first_chunk::<4>()?;
            Some((word(ports, 0), word(ports, 2)))
        }
        Protocol::ICMP | Protocol::ICMPV6 => {
            let header = transport.first_chunk::<ICMP_HEADER>()?;
            Some((word(header, 4), word(header, 0)))
        }
        _ => Some((0, 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    /// The short way is one of the long one's answers, whatever stands in the headers; and plain packets take it.
    #[test]
    fn plain_packets_have_the_layout_that_all_have() {
        let mut random = Rng::with_seed(1);
        let mut plain = [0; 2];
        for _ in 0..200_000 {
            let mut packet = vec![0; random.usize(..64)];
            random.fill(&mut packet);
            let fields: [(usize, &[u8]); 8] = [
                (0, &[0x45, 0x45, 0x46, 0x44, 0x60, 0x60, 0x50]),
                (2, &[0]),
                (4, &[0]),
                (5, &[8, 20, 24, 25, 40]),
                (6, &[0, 0x40, 0x20, 6, 17, 44]),
                (7, &[0, 0, 1]),
                (9, &[6, 17, 1, 132]),
                (3, &[19, 20, 24, 28, 46, 60]),
            ];
            for (at, values) in fields {
                if let Some(byte) = packet.get_mut(at) {
                    *byte = values[random.usize(..values.len())];
                }
            }
            if packet.len() > 20 && random.bool() {
                packet[8..18].fill(0);
                packet[18..20].fill(0xff);
            }
            let short = [Layout::of_plain_v4(&packet), Layout::of_plain_v6(&packet)];
            for (layout, count) in short.into_iter().zip(&mut plain) {
                let Some(layout) = layout else { continue };
                assert_eq!(Ok(layout), Layout::of(&packet), "{packet:02x?}");
                *count += 1;
            }
        }
        assert!(plain.iter().all(|count| *count > 300), "{plain:?}");
    }
}
