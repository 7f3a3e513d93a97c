//! The little reading of packets that comparing them needs.

use super::wire::{FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, OPTIONS, ROUTING, port_offsets, word};
use std::net::IpAddr;

/// The IP header of a packet, extension headers included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ip {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    /// IPv4 identification, or the lower half of the IPv6 flow label.
    pub(super) tag: u16,
    /// Where the transport header begins.
    pub(super) transport: usize,
    /// Unless the packet is whole.
    pub(super) fragment: Option<Fragment>,
}

/// Which part of a packet a fragment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fragment {
    /// Where it begins, in bytes.
    pub(super) offset: usize,
    /// Whether more follow.
    pub(super) has_more: bool,
}

impl Ip {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &[u8]) -> Option<Self> {
        let octets = |at: usize| Some(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?.into());
        let flags = word(bytes, 6)?;
        let fragment = Fragment {
            offset: usize::from(flags & 0x1fff) * 8,
            has_more: flags & 0x2000 != 0,
        };
        Some(Self {
            source: octets(12)?,
            destination: octets(16)?,
            protocol: bytes[9],
            tag: word(bytes, 4)?,
            transport: usize::from(bytes[0] & 0xf) * 4,
            fragment: (fragment != Fragment::default()).then_some(fragment),
        })
    }

    fn parse_v6(bytes: &[u8]) -> Option<Self> {
        let octets = |at: usize| Some(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?.into());
        let (mut next, mut at, mut fragment) = (*bytes.get(6)?, 40, None);
        loop {
            match next {
                HOP_BY_HOP | ROUTING | OPTIONS => {
                    next = *bytes.get(at)?;
                    at += 8 + usize::from(*bytes.get(at + 1)?) * 8;
                }
                FRAGMENT => {
                    let header = bytes.get(at..at + 8)?;
                    let word = word(header, 2)?;
                    next = header[0];
                    fragment = Some(Fragment {
                        offset: usize::from(word & 0xfff8),
                        has_more: word & 1 != 0,
                    });
                    at += 8;
                    if word & 0xfff8 != 0 {
                        break;
                    }
                }
                _ => break,
            }
        }
        Some(Self {
            source: octets(8)?,
            destination: octets(24)?,
            protocol: next,
            tag: word(bytes, 2)?,
            transport: at,
            fragment,
        })
    }

    /// Source and destination port; of ICMP queries the identifier, twice.
    pub(super) fn ports(&self, bytes: &[u8]) -> Option<(u16, u16)> {
        let (source, destination) =
            port_offsets(self.protocol, bytes.get(self.transport).copied())?;
        Some((
            word(bytes, self.transport + source)?,
            word(bytes, self.transport + destination)?,
        ))
    }

    /// Whether it is an ICMP error.
    pub(super) fn is_error(&self, bytes: &[u8]) -> bool {
        match (self.protocol, bytes.get(self.transport)) {
            (ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
            (ICMPV6, Some(kind)) => *kind < 128,
            _ => false,
        }
    }
}
