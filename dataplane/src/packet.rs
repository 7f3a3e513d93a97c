//! [`Packet`]: a checked view over the bytes of one IP packet.
//!
//! The door for bytes: after [`Layout::of`] every offset in the view is known to lie inside the packet, and no later step
//! checks again.

mod layout;

pub(crate) use layout::FRAGMENT;
pub use layout::{Fragment, Kind, Layout, Quote};

use crate::checksum;
use crate::conntrack::Transport;
use crate::frame::{ChecksumState, Frame};
use crate::tuple::{Address, Protocol};
use crate::verdict::DropReason;

/// A checked view over one packet.
#[derive(Debug)]
pub struct Packet<'a> {
    bytes: &'a mut [u8],
    layout: Layout,
    checksum: ChecksumState,
}

impl<'a> Packet<'a> {
    /// Checks the packet in `frame`.
    ///
    /// # Errors
    /// Why it is not an intact IP packet.
    pub fn parse(frame: &'a mut Frame) -> Result<Self, DropReason> {
        let layout = Layout::of(frame.packet())?;
        Ok(Self::new(frame, layout))
    }

    /// The view over the packet in `frame`, whose layout this is.
    ///
    /// # Panics
    /// When it is the layout of another packet, which is longer.
    #[inline(always)]
    pub fn new(frame: &'a mut Frame, layout: Layout) -> Self {
        let owes_own = || {
            let offset = checksum::offset(layout.protocol);
            offset.is_none_or(|offset| frame.owes_checksum(layout.transport(), offset))
        };
        let checksum = match frame.checksum_state() {
            // That of a packet inside; until it is filled in, ours cannot be verified.
            ChecksumState::Partial if !owes_own() => ChecksumState::Verified,
            state => state,
        };
        Self {
            checksum,
            bytes: &mut frame.packet_mut()[..layout.end()],
            layout,
        }
    }

    /// Where its parts are.
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// What it is to connection tracking.
    pub fn kind(&self) -> Kind {
        self.layout.kind(self.bytes)
    }

    /// Whether connection tracking does not look at it.
    #[inline]
    pub fn is_untracked(&self) -> bool {
        self.layout.is_untracked(self.bytes)
    }

    /// Whether it is an ICMP error.
    #[inline]
    pub fn is_icmp_error(&self) -> bool {
        self.layout.is_icmp_error(self.bytes)
    }

    /// What it quotes, of an ICMP error; `None` when too little of it is there.
    #[inline(always)]
    pub fn quote(&self) -> Option<Quote> {
        Layout::quote(self.layout, self.bytes)
    }

    /// Its transport header; `None` when it is not intact.
    #[inline(always)]
    pub fn transport_header(&self) -> Option<Transport> {
        self.layout.transport_header(self.bytes)
    }

    /// Source address.
    #[inline]
    pub fn source(&self) -> Address {
        self.layout.source(self.bytes)
    }

    /// Destination address.
    #[inline]
    pub fn destination(&self) -> Address {
        self.layout.destination(self.bytes)
    }

    /// Transport protocol.
    pub const fn protocol(&self) -> Protocol {
        self.layout.protocol
    }

    /// Its family.
    #[inline]
    pub const fn is_ipv4(&self) -> bool {
        self.layout.is_ipv4
    }

    /// Which fragment it is, if it is one.
    pub fn fragment(&self) -> Option<Fragment> {
        self.layout.fragment(self.bytes)
    }

    /// Length of the IP packet in bytes.
    pub const fn length(&self) -> usize {
        self.layout.end()
    }

    /// The state of the transport checksum.
    pub const fn checksum_state(&self) -> ChecksumState {
        self.checksum
    }

    /// The transport header and all behind it.
    pub fn transport(&self) -> &[u8] {
        &self.bytes[self.layout.transport()..]
    }

    /// The transport header and all behind it.
    pub fn transport_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.layout.transport()..]
    }

    /// Whether it is one of several that make a datagram.
    #[inline]
    pub const fn is_fragment(&self) -> bool {
        self.layout.is_fragment()
    }

    /// Whether the transport checksum is wrong. One that is partial or verified is not; that of a fragment is not known.
    #[inline(always)]
    pub fn has_bad_checksum(&self) -> bool {
        self.checksum == ChecksumState::Unverified
            && !self.is_fragment()
            && !adds_up(self.bytes, self.layout)
    }

    /// Whether the smallest transport header is all there (Linux `ipv6frag_thdr_truncated`).
    pub fn has_transport_header(&self) -> bool {
        let least = match self.layout.protocol {
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
            (self.layout.protocol, kind),
            (Protocol::ICMP, Some(5)) | (Protocol::ICMPV6, Some(137))
        )
    }

    /// Replaces the addresses, keeping the IPv4 header checksum right, whose `change` this makes. The transport checksum
    /// is the caller's.
    #[inline(always)]
    pub fn set_addresses(
        &mut self,
        source: Address,
        destination: Address,
        change: checksum::Change,
    ) {
        let is_ipv4 = self.is_ipv4();
        put_addresses(self.bytes, is_ipv4, source, destination, change);
    }

    /// The quoted packet of an ICMP error, as far as it was quoted.
    pub fn quoted(&mut self) -> &mut [u8] {
        &mut self.bytes[self.layout.transport() + ICMP_HEADER..]
    }
}

/// Whether the checksum of a packet with this layout is right.
fn adds_up(packet: &[u8], layout: Layout) -> bool {
    let transport = &packet[layout.transport()..];
    match layout.protocol {
        Protocol::UDP if transport.get(6..8) == Some(&[0, 0]) => true,
        Protocol::TCP | Protocol::UDP | Protocol::ICMPV6 => transport_sum(packet, layout) == 0xffff,
        Protocol::ICMP => checksum::sum(transport) == 0xffff,
        Protocol::SCTP => transport
            .get(8..12)
            .is_some_and(|field| sctp_checksum(transport) == field),
        _ => true,
    }
}

/// Sum over the pseudo header and the transport header with its payload. All that the IP header announces counts, also
/// behind the end that UDP's own length tells (Linux `nf_ip_checksum`).
fn transport_sum(packet: &[u8], layout: Layout) -> u16 {
    let transport = &packet[layout.transport()..];
    let (source, destination) = (layout.source(packet), layout.destination(packet));
    let length = transport.len() as u32;
    let pseudo = checksum::pseudo_header(source, destination, layout.protocol.0, length);
    checksum::add(pseudo, checksum::sum(transport))
}

/// TTL or hop limit plus one: the kernel takes two on the way through a TUN device, a router takes one.
///
/// DIFFERS: from what the node sends to itself none would be taken; it arrives with one more.
#[inline]
pub fn give_back_hop(packet: &mut [u8]) {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= IPV4_HEADER && packet[8] < u8::MAX => {
            packet[8] += 1;
            let checksum = checksum::after_growth(word(packet, 10), 0x0100);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
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
    let is_ipv4 = source.is_ipv4();
    let old = if is_ipv4 {
        [12, 16].map(|at| Address::from_v4(array(packet, at)))
    } else {
        // IPv6 headers have no checksum.
        [source, destination]
    };
    let change = checksum::Change::addresses(is_ipv4, old, [source, destination]);
    put_addresses(packet, is_ipv4, source, destination, change);
}

#[inline(always)]
fn put_addresses(
    packet: &mut [u8],
    is_ipv4: bool,
    source: Address,
    destination: Address,
    change: checksum::Change,
) {
    if is_ipv4 {
        let header = &mut packet[10..20];
        update(header, change);
        header[2..6].copy_from_slice(&source.octets_v4());
        header[6..10].copy_from_slice(&destination.octets_v4());
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

/// IPv4 header without options.
pub(crate) const IPV4_HEADER: usize = 20;
/// IPv6 header without extensions.
pub(crate) const IPV6_HEADER: usize = 40;
/// ICMP header in front of a quote, both families.
pub const ICMP_HEADER: usize = 8;

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
