//! Addresses of links.

use super::{Netlink, Request, Result, Scope, address_family};
use crate::model::Family;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};

/// An address of a link as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Interface index.
    pub index: u32,
    /// The address with its prefix length; host bits are the address.
    pub address: IpNet,
    /// `Link` for `fe80::/10` and `169.254.0.0/16`, `Host` for the loopback's.
    pub scope: Scope,
    /// Whether another address of the same prefix was there before (`IFA_F_SECONDARY`; in IPv6 this bit
    /// means temporary).
    pub secondary: bool,
    /// Whether duplicate address detection still runs, or failed: it cannot be used yet.
    pub tentative: bool,
}

impl Netlink {
    /// All addresses of both families.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let all = self.dump(request, "list addresses")?;
        Ok(all
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(address) => parse(address),
                _ => None,
            })
            .collect())
    }

    /// Adds an address. IPv6 ones are usable at once (no duplicate address detection) by who binds to them; the kernel adds the
    /// route to them a moment later, from a queue.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<()> {
        let message = RouteNetlinkMessage::NewAddress(message(index, address));
        let request = Request {
            message,
            flags: NLM_F_CREATE | NLM_F_EXCL,
        };
        self.request(request, || format!("add address {address} to link {index}"))
    }

    /// Deletes an address.
    pub fn delete_address(&mut self, index: u32, address: IpNet) -> Result<()> {
        let message = RouteNetlinkMessage::DelAddress(message(index, address));
        self.request(Request { message, flags: 0 }, || {
            format!("delete address {address} from link {index}")
        })
    }
}

fn message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    let family = Family::of(address.addr());
    message.header.family = address_family(family);
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    if family == Family::V6 {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
    ];
    message
}

fn parse(message: AddressMessage) -> Option<Address> {
    let (mut local, mut address) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL ours; IPv6 has IFA_ADDRESS only.
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    Some(Address {
        index: message.header.index,
        address: IpNet::new(local.or(address)?, message.header.prefix_len).ok()?,
        scope: Scope::from(u8::from(message.header.scope)),
        secondary: flags.contains(AddressFlags::Secondary),
        tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
    })
}
