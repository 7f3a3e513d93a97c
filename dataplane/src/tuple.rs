//! The words of connection tracking: address, protocol, tuple, direction, time.
//!
//! Invariant: a [`Tuple`] holds two addresses of one family. Read first: Linux
//! `include/net/netfilter/nf_conntrack_tuple.h`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IPv4 or IPv6 address in 16 bytes; IPv4 in its mapped form (`::ffff:a.b.c.d`).
///
/// The family is part of the value, so tuples of the two families never compare equal and need no
/// family field. IPv6 packets that carry mapped addresses are refused by the parser.
// Two words, not a `u128`: its alignment would fill up every tuple, and filling is copied, too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    high: u64,
    low: u64,
}

/// The upper half of the lower word of mapped addresses.
const MAPPED: u64 = 0xffff;

impl Address {
    /// `0.0.0.0`.
    pub const UNSPECIFIED_V4: Self = Self::from_v4([0; 4]);
    /// `::`.
    pub const UNSPECIFIED_V6: Self = Self::from_bits(0);

    /// From the four bytes of an IPv4 header field.
    #[inline]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self {
            high: 0,
            low: MAPPED << 32 | u32::from_be_bytes(octets) as u64,
        }
    }

    /// From the sixteen bytes of an IPv6 header field.
    #[inline]
    pub const fn from_v6(octets: [u8; 16]) -> Self {
        Self::from_bits(u128::from_be_bytes(octets))
    }

    /// Whether this is an IPv4 address.
    #[inline]
    pub const fn is_ipv4(self) -> bool {
        self.high | (self.low >> 32 ^ MAPPED) == 0
    }

    /// The four bytes of an IPv4 address (the last four of an IPv6 one).
    #[inline]
    pub const fn octets_v4(self) -> [u8; 4] {
        (self.low as u32).to_be_bytes()
    }

    /// The sixteen bytes, IPv4 mapped.
    #[inline]
    pub const fn octets(self) -> [u8; 16] {
        self.to_bits().to_be_bytes()
    }

    /// The value as a number, IPv4 mapped.
    #[inline]
    pub const fn to_bits(self) -> u128 {
        (self.high as u128) << 64 | self.low as u128
    }

    /// Inverse of [`Address::to_bits`].
    #[inline]
    pub const fn from_bits(bits: u128) -> Self {
        Self {
            high: (bits >> 64) as u64,
            low: bits as u64,
        }
    }

    /// `0.0.0.0` or `::`, whichever is of the family of `self`.
    #[inline]
    pub const fn unspecified_of_family(self) -> Self {
        if self.is_ipv4() {
            Self::UNSPECIFIED_V4
        } else {
            Self::UNSPECIFIED_V6
        }
    }

    /// 127.0.0.0/8 or `::1`.
    #[inline]
    pub const fn is_loopback(self) -> bool {
        if self.is_ipv4() {
            self.octets_v4()[0] == 127
        } else {
            self.to_bits() == 1
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_v4(address.octets())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        Self::from_v6(address.octets())
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_ipv4() {
            Self::V4(Ipv4Addr::from(address.octets_v4()))
        } else {
            Self::V6(Ipv6Addr::from(address.octets()))
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IP protocol number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// UDP-Lite.
    pub const UDP_LITE: Self = Self(136);

    /// ICMP of either family.
    #[inline]
    pub const fn is_icmp(self) -> bool {
        self.0 == Self::ICMP.0 || self.0 == Self::ICMPV6.0
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMP => f.write_str("icmp"),
            Self::TCP => f.write_str("tcp"),
            Self::UDP => f.write_str("udp"),
            Self::ICMPV6 => f.write_str("icmpv6"),
            Self::SCTP => f.write_str("sctp"),
            Self(other) => write!(f, "proto{other}"),
        }
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What identifies one direction of a connection.
///
/// Ports are in host order. As in the kernel, an ICMP query has its identifier as source port and
/// `type << 8 | code` as destination port; protocols without ports have zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Address of the sender.
    pub source: Address,
    /// Address of the receiver.
    pub destination: Address,
    /// Port of the sender, or the ICMP identifier.
    pub source_port: u16,
    /// Port of the receiver, or ICMP type and code.
    pub destination_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl Tuple {
    /// The tuple of the answer to this one (`nf_ct_invert_tuple`).
    #[inline]
    pub fn inverse(&self) -> Self {
        let (source_port, destination_port) = if self.protocol.is_icmp() {
            (
                self.source_port,
                invert_icmp(self.protocol, self.destination_port),
            )
        } else {
            (self.destination_port, self.source_port)
        };
        Self {
            source: self.destination,
            destination: self.source,
            source_port,
            destination_port,
            protocol: self.protocol,
        }
    }
}

/// Request to answer and back: echo, timestamp, information, address mask; for IPv6 echo and node
/// information (Linux `nf_conntrack_proto_icmp.c` and `_icmpv6.c`, `invmap`). Others stay as they are.
fn invert_icmp(protocol: Protocol, type_and_code: u16) -> u16 {
    let [kind, code] = type_and_code.to_be_bytes();
    let inverted = match (protocol, kind) {
        (Protocol::ICMP, 8) => 0,
        (Protocol::ICMP, 0) => 8,
        (Protocol::ICMP, 13) => 14,
        (Protocol::ICMP, 14) => 13,
        (Protocol::ICMP, 15) => 16,
        (Protocol::ICMP, 16) => 15,
        (Protocol::ICMP, 17) => 18,
        (Protocol::ICMP, 18) => 17,
        (Protocol::ICMPV6, 128) => 129,
        (Protocol::ICMPV6, 129) => 128,
        (Protocol::ICMPV6, 139) => 140,
        (Protocol::ICMPV6, 140) => 139,
        (_, other) => other,
    };
    u16::from_be_bytes([inverted, code])
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = SocketAddr::new(self.source.into(), self.source_port);
        let destination = SocketAddr::new(self.destination.into(), self.destination_port);
        write!(f, "{} {source} -> {destination}", self.protocol)
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which side of a connection a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// That of the first packet.
    Original = 0,
    /// The other one.
    Reply = 1,
}

impl Direction {
    /// The other direction.
    #[inline]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// Monotonic time in nanoseconds since a start that the caller chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// `seconds` after the start.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds * 1_000_000_000)
    }

    /// This much later.
    #[inline]
    pub const fn after(self, duration: std::time::Duration) -> Self {
        Self(self.0 + duration.as_nanos() as u64)
    }

    /// Time since `earlier`, zero when `earlier` is later.
    #[inline]
    pub const fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Where a packet came from: the device that it arrived on says so (see docs/architecture.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Sent by a pod of this node (`pen-pod`).
    Pod,
    /// From outside the node (`pen-out`).
    Outside,
    /// Sent by the node itself (`pen-node`).
    Node,
}
