//! Nexthops: where routes lead to, as objects of their own (Linux 5.3 and later).
//!
//! Source: `include/uapi/linux/nexthop.h`, `net/ipv4/nexthop.c`. A nexthop goes with its link, and its routes with it.

use super::{Netlink, Request, Result, address_family};
use crate::model::Family;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NetlinkSerializable};

/// One that leads onto a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nexthop {
    /// Its number, unique in the network namespace whatever the family.
    pub id: u32,
    /// Family of the routes that may lead there.
    pub family: Family,
    /// Interface index to send on.
    pub oif: u32,
    /// Who made it, as [`super::Route::protocol`].
    pub protocol: u8,
}

impl Netlink {
    /// Adds a nexthop whose number is not taken yet.
    ///
    /// # Errors
    /// What the kernel refuses; one that knows no nexthops says that it does not support them.
    pub fn add_nexthop(&mut self, nexthop: &Nexthop) -> Result<()> {
        let request = Request {
            message: NewNexthop(*nexthop),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        };
        let Nexthop { id, oif, .. } = nexthop;
        self.request(request, || format!("add nexthop id {id} dev {oif}"))
    }
}

/// `RTM_NEWNEXTHOP`: a `struct nhmsg` and two attributes of a word.
struct NewNexthop(Nexthop);

impl NewNexthop {
    const TYPE: u16 = 104;
    const NHA_ID: u16 = 1;
    const NHA_OIF: u16 = 5;
    const LENGTH: usize = 8 + 2 * 8;
}

impl NetlinkSerializable for NewNexthop {
    fn message_type(&self) -> u16 {
        Self::TYPE
    }

    fn buffer_len(&self) -> usize {
        Self::LENGTH
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let family = u8::from(address_family(self.0.family));
        let attribute = |kind: u16, value: u32| {
            let [low, high] = kind.to_ne_bytes();
            let [length_low, length_high] = 8u16.to_ne_bytes();
            let [a, b, c, d] = value.to_ne_bytes();
            [length_low, length_high, low, high, a, b, c, d]
        };
        let header = [family, 0, self.0.protocol, 0, 0, 0, 0, 0];
        let id = attribute(Self::NHA_ID, self.0.id);
        let link = attribute(Self::NHA_OIF, self.0.oif);
        buffer.copy_from_slice([header, id, link].as_flattened());
    }
}
