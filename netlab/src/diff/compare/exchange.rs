//! How a packet of a case gets into both sides: who sends it, to whom, and when.

use super::{Run, Sides, forwarded};
use crate::diff::canonical;
use crate::diff::case::{Body, Flow, Packet, Place};
use crate::diff::side::Choice;
use crate::diff::wire::{self, Circumstances, Ends, Ip};
use crate::diff::world::{Client, Output, Sender};
use anyhow::Result;
use std::time::Instant;

/// A packet that was sent into both sides, and what came of it.
pub(super) struct Exchange {
    /// The identification that stands for it.
    pub(super) tag: u16,
    /// What was sent on each side.
    pub(super) sent: [Vec<Vec<u8>>; 2],
    /// What came out of each so far.
    pub(super) outputs: [Vec<Output>; 2],
}

impl Run<'_> {
    /// Sends a packet of `flow` in step `number`: into the first side, then into the second at the same time.
    pub(super) fn send(
        &mut self,
        number: usize,
        flow: usize,
        packet: &Packet,
        from_client: bool,
        sides: &mut Sides<'_>,
    ) -> Result<Exchange> {
        let by = self.sender(flow, packet, from_client);
        let client = match self.case.flows[flow].client_stays && from_client {
            true => Client::Kept,
            false => Client::Gone,
        };
        // A socket chooses the identification.
        let tag = match by {
            Sender::Raw => number as u16 + 1,
            Sender::Socket => wire::ANY_TAG,
        };
        let mut sent: [Vec<Vec<u8>>; 2] = Default::default();
        let mut outputs: [Vec<Output>; 2] = Default::default();
        self.clock.step_past_timeouts(self.case, flow);
        let begin = Instant::now();
        let mut end = begin;
        for nth in 0..2 {
            if nth == 1
                && let Some(mut choice) = self.choice(flow, from_client, &outputs[0], tag)
            {
                // What the node itself gets of IPv6 shows nowhere else.
                let may_be_the_nodes = !outputs[0].is_empty() || choice.source.0.is_ipv6();
                if from_client && choice.endpoint.is_none() && may_be_the_nodes {
                    choice.endpoint = sides[0].endpoint(&choice)?;
                }
                sides[1].follow(&choice);
            }
            let Some((place, ends)) = self.ends(flow, from_client, nth) else {
                continue;
            };
            let heard = &self.heard[flow][nth];
            let heard = match from_client {
                true => heard.by_client.as_deref(),
                false => heard.by_server.as_ref().map(|output| &*output.bytes),
            };
            if !from_client && place == Place::Node && !self.is_server_on_node(flow, by) {
                continue;
            }
            sent[nth] = wire::build(packet, &ends, Circumstances { tag, heard });
            let is_told = nth == 1 && sides[1].set_time(end);
            for bytes in &sent[nth] {
                sides[nth].world().send(place, bytes, by, client)?;
                sides[nth].work()?;
            }
            if !is_told {
                end = Instant::now();
            }
            sides[nth].world().take(&mut outputs[nth])?;
        }
        self.clock.sent(self.case, flow, (begin, end));
        self.tally.packets += sent[0].len() as u64;
        Ok(Exchange { tag, sent, outputs })
    }

    /// Who sends a packet of `flow`, and to whom; nobody if it is the server and the client's packet reached none.
    pub(super) fn ends(
        &self,
        flow: usize,
        from_client: bool,
        side: usize,
    ) -> Option<(Place, Ends)> {
        let initial = initial(self.case.seed, &self.case.flows[flow]);
        let Flow {
            from,
            protocol,
            source,
            source_port,
            destination,
            destination_port,
            ..
        } = self.case.flows[flow];
        if from_client {
            let ends = Ends {
                protocol,
                source,
                source_port,
                destination,
                destination_port,
                initial,
            };
            return Some((from, ends));
        }
        let Output { link, bytes } = self.heard[flow][side].by_server.as_ref()?;
        let place = if *link < self.case.links.len() {
            Place::Link(*link)
        } else {
            Place::Node
        };
        let ip = Ip::parse(bytes)?;
        let (source_port, destination_port) = ip.ports(bytes).unwrap_or((0, 0));
        let ends = Ends {
            protocol,
            source: ip.destination,
            source_port: destination_port,
            destination: ip.source,
            destination_port: source_port,
            initial: (initial.1, initial.0),
        };
        Some((place, ends))
    }

    /// Whether the node itself answers: as an endpoint. What else it says to others does not come by our side.
    fn is_server_on_node(&self, flow: usize, by: Sender) -> bool {
        let of = &self.case.flows[flow];
        let asked = self.ends(flow, false, 0);
        let is_endpoint = asked.is_some_and(|(_, ends)| {
            (ends.source, ends.source_port) != (of.destination, of.destination_port)
        });
        by == Sender::Socket && is_endpoint
    }

    /// How a packet is sent: what goes to a NodePort from the node itself, and what a server there answers, is led by
    /// its ports, and those of raw packets the kernel does not look at.
    fn sender(&self, flow: usize, packet: &Packet, from_client: bool) -> Sender {
        let place = self.ends(flow, from_client, 0).map(|(place, _)| place);
        let by_ports =
            !from_client || canonical::is_own(self.case, self.case.flows[flow].destination);
        match packet.body {
            _ if place != Some(Place::Node) || !by_ports => Sender::Raw,
            Body::Udp { .. } => Sender::Socket,
            // No socket sends a server's segments without a handshake.
            Body::Tcp(_) if from_client => Sender::Socket,
            _ => Sender::Raw,
        }
    }

    /// Where the first side led a packet. That of a server may open a connection, too: where the client's port is a
    /// NodePort, and its own connection has gone.
    fn choice(
        &self,
        flow: usize,
        from_client: bool,
        outputs: &[Output],
        tag: u16,
    ) -> Option<Choice> {
        let (place, ends) = self.ends(flow, from_client, 1)?;
        let endpoint = forwarded(outputs, tag, ends.protocol).map(|(output, ip)| {
            let (_, port) = ip.ports(&output.bytes).unwrap_or((0, 0));
            (ip.destination, port)
        });
        Some(Choice {
            from_client,
            origin: self.case.origin(place),
            protocol: ends.protocol,
            source: (ends.source, ends.source_port),
            destination: (ends.destination, ends.destination_port),
            endpoint,
        })
    }
}

/// Initial sequence numbers of client and server.
fn initial(seed: u64, flow: &Flow) -> (u32, u32) {
    let ports = u64::from(flow.source_port) << 32 | u64::from(flow.destination_port) << 48;
    let mut rng = fastrand::Rng::with_seed(seed ^ ports);
    (rng.u32(..), rng.u32(..))
}
