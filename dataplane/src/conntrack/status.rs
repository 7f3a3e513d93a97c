//! [`Status`]: what an entry has seen.

use crate::tuple::Tuple;

/// Bits of an entry, with the kernel's values (`IPS_*` of `nf_conntrack_common.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u16);

impl Status {
    /// A packet of the reply direction was accepted.
    pub const SEEN_REPLY: Self = Self(0x2);
    /// Survives early drop.
    pub const ASSURED: Self = Self(0x4);
    /// Both sides were heard: no packet of UDP changes anything but the end, no segment in the midst of a connection of TCP
    /// its status.
    pub(super) const STREAM: Self = Self(Self::SEEN_REPLY.0 | Self::ASSURED.0);
    /// In the table.
    pub const CONFIRMED: Self = Self(0x8);
    /// The source is translated.
    pub const SRC_NAT: Self = Self(0x10);
    /// The destination is translated.
    pub const DST_NAT: Self = Self(0x20);
    /// Both NAT hooks were passed, as for every entry.
    pub const NAT_DONE: Self = Self(0x180);

    /// Whether all of `bits` are set.
    #[inline]
    pub const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    pub(crate) const fn set(&mut self, bits: Self) {
        self.0 |= bits.0;
    }

    #[inline]
    pub(super) const fn is_translated(self) -> bool {
        self.0 & (Self::SRC_NAT.0 | Self::DST_NAT.0) != 0
    }

    pub(super) fn of_new(original: &Tuple, reply: &Tuple) -> Self {
        let sent = reply.inverse();
        let mut status = Self(Self::CONFIRMED.0 | Self::NAT_DONE.0);
        if (sent.source, sent.source_port) != (original.source, original.source_port) {
            status.set(Self::SRC_NAT);
        }
        if (sent.destination, sent.destination_port)
            != (original.destination, original.destination_port)
        {
            status.set(Self::DST_NAT);
        }
        status
    }
}
