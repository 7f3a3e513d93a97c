//! Connections of the node that outlive their Service: TCP and SCTP stay translated until they end, as in the kernel,
//! so their packets must come by although no Service asks for it any more.

use super::facts::{include, transport};
use super::steering::Plan;
use crate::model::Transport;
use dataplane::conntrack::{Conntrack, EntryView};
use dataplane::tuple::{Protocol, Timestamp};
use std::collections::BTreeSet;
use std::net::IpAddr;

impl Plan {
    /// Adds what `refused` led here, which the kernel may follow: connections may pass through that by now.
    pub(super) fn lead_here_too(&mut self, refused: Self) {
        self.virtual_addresses.extend(refused.virtual_addresses);
        self.host_ports.extend(refused.host_ports);
        for (transport, ports) in refused.node_ports {
            include(&mut self.node_ports, transport, *ports.start());
            include(&mut self.node_ports, transport, *ports.end());
        }
    }

    /// Adds what `former` led here, this plan does not, and connections still pass through. The table is looked at only
    /// if there may be something.
    pub(super) fn keep_for_connections(
        &mut self,
        former: &Self,
        table: &Conntrack,
        now: Timestamp,
    ) {
        let gone = Gone {
            addresses: &former.virtual_addresses - &self.virtual_addresses,
            node_ports: former.node_ports != self.node_ports,
            host_ports: &former.host_ports - &self.host_ports,
        };
        if gone != Gone::default() {
            table.for_each(now, |entry| self.keep_for(&gone, entry));
        }
    }

    fn keep_for(&mut self, gone: &Gone, entry: &EntryView) {
        let (original, reply) = (&entry.original, &entry.reply);
        let is_translated = *reply != original.inverse();
        let transport = transport(original.protocol).filter(|_| original.protocol != Protocol::UDP);
        let Some(transport) = transport.filter(|_| is_translated) else {
            return;
        };
        let is_own =
            |address: IpAddr| address.is_loopback() || self.node_addresses.contains(&address);
        let destination = IpAddr::from(original.destination);
        let host_port = (transport, reply.source_port);
        if gone.host_ports.contains(&host_port) && is_own(reply.source.into()) {
            self.host_ports.insert(host_port);
        }
        if !is_own(original.source.into()) {
            return;
        }
        if gone.addresses.contains(&destination) {
            self.virtual_addresses.insert(destination);
        } else if gone.node_ports
            && is_own(destination)
            && !self.virtual_addresses.contains(&destination)
        {
            include(&mut self.node_ports, transport, original.destination_port);
        }
    }
}

/// What one plan led here and the next one does not.
#[derive(Default, PartialEq, Eq)]
struct Gone {
    addresses: BTreeSet<IpAddr>,
    /// Whether ranges of NodePorts changed.
    node_ports: bool,
    host_ports: BTreeSet<(Transport, u16)>,
}
