//! Neighbour entries.

use super::{Netlink, Request, Result, address_family};
use crate::model::Family;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use std::net::IpAddr;

impl Netlink {
    /// Sets a permanent neighbour entry: `address` on link `index` is at `hardware_address`.
    pub fn set_neighbour(
        &mut self,
        index: u32,
        address: IpAddr,
        hardware_address: [u8; 6],
    ) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = address_family(Family::of(address));
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        let destination = match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(destination),
            NeighbourAttribute::LinkLayerAddress(hardware_address.to_vec()),
        ];
        let message = RouteNetlinkMessage::NewNeighbour(message);
        let request = Request {
            message,
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        };
        self.request(request, || {
            format!("set neighbour {address} on link {index}")
        })
    }
}
