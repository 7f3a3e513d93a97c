//! Runs a case on two sides and holds every packet that comes out, and every connection, of one against the other's.
//!
//! The side that goes first chooses endpoints at random; the other is told and must be able to choose the same. Source
//! ports of masquerading are each side's own: the first packet shows both, they must be in the same range, and from
//! then on one stands for the other.

mod connections;

use super::canonical;
use super::case::{Body, Case, Flow, Packet, Place, Step};
use super::coverage::Coverage;
use super::deliberate;
use super::difference::{Difference, Seen};
use super::modes::Modes;
use super::ports::Ports;
use super::side::{self, Choice, Side};
use super::wire::{self, Circumstances, Ends, Ip};
use super::world::{Client, Output, Sender};
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// What was compared.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Packets sent, fragments counted each.
    pub(super) packets: u64,
    /// The same, by what they carry and how they are packed.
    pub(super) kinds: BTreeMap<&'static str, u64>,
    /// First choices of an endpoint: the flow's number and the endpoint.
    pub(super) choices: Vec<(usize, std::net::SocketAddr)>,
    /// Connections compared.
    pub(super) entries: u64,
    /// Connections whose end was foreseen alike.
    pub(super) timeouts: u64,
    /// Connections by protocol and state.
    pub(super) states: Vec<(u8, String)>,
    /// Deliberate differences met.
    pub(super) deliberate: Vec<&'static str>,
}

/// How a case ended.
pub(super) struct Outcome {
    pub(super) tally: Tally,
    pub(super) difference: Option<Difference>,
    /// Filled by who knows our side.
    pub(super) coverage: Coverage,
}

/// What one side knows of a flow.
#[derive(Clone, Debug, Default)]
struct Heard {
    by_server: Option<Output>,
    by_client: Option<Vec<u8>>,
}

struct Run<'a> {
    case: &'a Case,
    /// Where the first side has rules of another mode than the second does as.
    modes: Option<&'a Modes>,
    heard: Vec<[Heard; 2]>,
    ports: Ports,
    /// Flows that went apart on purpose: nothing more is compared of them.
    parted: HashSet<usize>,
    tally: Tally,
}

/// Runs `case` on both sides, up to the first difference.
pub(super) fn run<'s>(
    case: &Case,
    modes: Option<&Modes>,
    first: &'s mut dyn Side,
    second: &'s mut dyn Side,
) -> Result<Outcome> {
    let mut run = Run {
        case,
        modes,
        heard: vec![Default::default(); case.flows.len()],
        ports: Ports::of(case),
        parted: HashSet::new(),
        tally: Tally::default(),
    };
    let mut sides: Sides<'s> = [first, second];
    for (number, step) in case.steps.iter().enumerate() {
        let difference = match step {
            Step::Client(flow, packet) => run.packet(number, *flow, (packet, true), &mut sides)?,
            Step::Server(flow, packet) => run.packet(number, *flow, (packet, false), &mut sides)?,
            Step::Change(change) => {
                let difference = run.entries(number, &mut sides)?;
                if difference.is_none() {
                    let objects = case.changes.get(*change).context("no such change")?;
                    let snapshot = side::snapshot(objects)?;
                    for side in &mut sides {
                        let bystanders = side.change(&snapshot)?;
                        run.part_udp(&bystanders, "a flow of UDP beside those that changed");
                    }
                    run.part_stale(&mut sides)?;
                }
                difference
            }
            Step::Wait(milliseconds) => {
                std::thread::sleep(Duration::from_millis(*milliseconds));
                None
            }
        };
        if difference.is_some() {
            return Ok(run.outcome(difference));
        }
    }
    let difference = match run.entries(case.steps.len(), &mut sides)? {
        None => run.timeouts(&mut sides)?,
        difference => difference,
    };
    Ok(run.outcome(difference))
}

type Sides<'s> = [&'s mut dyn Side; 2];

impl Run<'_> {
    fn outcome(self, difference: Option<Difference>) -> Outcome {
        Outcome {
            tally: self.tally,
            difference,
            coverage: Coverage::default(),
        }
    }

    fn packet(
        &mut self,
        number: usize,
        flow: usize,
        (packet, from_client): (&Packet, bool),
        sides: &mut Sides<'_>,
    ) -> Result<Option<Difference>> {
        if self.parted.contains(&flow) {
            return Ok(None);
        }
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
        for nth in 0..2 {
            if nth == 1 && from_client {
                let mut choice = self.choice(flow, &outputs[0], tag);
                // What the node itself gets of IPv6 shows nowhere else.
                let may_be_the_nodes = !outputs[0].is_empty() || choice.source.0.is_ipv6();
                if choice.endpoint.is_none() && may_be_the_nodes {
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
            for bytes in &sent[nth] {
                sides[nth].world().send(place, bytes, (by, client))?;
                sides[nth].work()?;
            }
            self.tally.packets += sent[nth].len() as u64;
            if nth == 0 && !sent[0].is_empty() {
                self.count(packet);
            }
            sides[nth].world().take(&mut outputs[nth])?;
        }
        self.tally.packets -= sent[1].len() as u64;
        if packet.shape.ttl == 1 {
            self.part(flow, "a packet with TTL 1");
            return Ok(None);
        }
        let mut same = self.agree(flow, (tag, &sent), (packet, from_client), &outputs);
        // What passes through the node's own stack may take a moment, on a busy machine a long one, and what stays in it
        // shows its ports elsewhere.
        for milliseconds in [2, 4, 8, 16, 32, 64, 128] {
            if same {
                break;
            }
            std::thread::sleep(Duration::from_millis(milliseconds));
            for (side, outputs) in sides.iter_mut().zip(&mut outputs) {
                side.work()?;
                side.world().take(outputs)?;
            }
            let [first, second] = &mut *sides;
            self.ports
                .learn_tracked(&first.entries()?, &second.entries()?);
            same = self.agree(flow, (tag, &sent), (packet, from_client), &outputs);
        }
        if !same && let Some(why) = self.modes_differ(flow, &sent[0], &outputs) {
            self.part(flow, why);
            return Ok(None);
        }
        if !same {
            let [sent, _] = sent;
            return Ok(Some(Difference {
                step: number,
                sent,
                seen: Seen::Packets(outputs),
            }));
        }
        self.remember(flow, tag, from_client, outputs);
        Ok(None)
    }

    fn count(&mut self, packet: &Packet) {
        let shape = &packet.shape;
        let is_error = matches!(packet.body, Body::Error { .. });
        let kinds = [
            (true, packet.body.kind()),
            (shape.fragment.is_some(), "in fragments"),
            (shape.wrong_checksum, "with a wrong checksum"),
            (shape.cut.is_some(), "cut"),
            (shape.options > 0, "with options"),
            (
                is_error && shape.fragment.is_some(),
                "ICMP error in fragments",
            ),
        ];
        for (_, kind) in kinds.iter().filter(|(is, _)| *is) {
            *self.tally.kinds.entry(kind).or_default() += 1;
        }
    }

    /// Why the modes of kube-proxy do not do the same, if both are at work. What a client was given in between may stay
    /// with it by affinity.
    fn modes_differ(
        &self,
        flow: usize,
        sent: &[Vec<u8>],
        outputs: &[Vec<Output>; 2],
    ) -> Option<&'static str> {
        let flow = &self.case.flows[flow];
        let is_of_client = |other: &usize| self.case.flows[*other].source == flow.source;
        let follows = self.parted.iter().any(is_of_client);
        let after = follows.then_some("modes: what follows from one of these for the same client");
        self.modes?.reason(flow, sent, outputs).or(after)
    }

    /// Who sends a packet of `flow`, and to whom; nobody if it is the server and the client's packet reached none.
    fn ends(&self, flow: usize, from_client: bool, side: usize) -> Option<(Place, Ends)> {
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

    /// Where the first side led a packet.
    fn choice(&self, flow: usize, outputs: &[Output], tag: u16) -> Choice {
        let flow = &self.case.flows[flow];
        let endpoint = forwarded(outputs, tag, flow.protocol).map(|(output, ip)| {
            let (_, port) = ip.ports(&output.bytes).unwrap_or((0, 0));
            (ip.destination, port)
        });
        Choice {
            link: match flow.from {
                Place::Link(link) => Some(link),
                Place::Node => None,
            },
            protocol: flow.protocol,
            source: (flow.source, flow.source_port),
            destination: (flow.destination, flow.destination_port),
            endpoint,
        }
    }

    /// Whether both sides did the same, now that the ports they chose are known.
    fn agree(
        &mut self,
        flow: usize,
        (tag, sent): (u16, &[Vec<Vec<u8>>; 2]),
        (packet, from_client): (&Packet, bool),
        outputs: &[Vec<Output>; 2],
    ) -> bool {
        let unchanged = |nth: usize| canonical::as_sent(&outputs[nth], &sent[nth]);
        if unchanged(0).is_some() && unchanged(0) == unchanged(1) {
            return true;
        }
        let of = &self.case.flows[flow];
        let seen = outputs
            .each_ref()
            .map(|outputs| forwarded(outputs, tag, of.protocol));
        let ends = self.ends(flow, from_client, 0);
        if let ([Some((first, _)), Some((second, _))], Some((_, ends))) = (seen, ends) {
            let from = (ends.source, ends.source_port);
            let seen = (&*first.bytes, &*second.bytes);
            self.ports.learn(from, from_client, seen);
        }
        let ours = canonical::outputs(&outputs[1], (tag, &sent[1]), &self.ports);
        let kernel = canonical::outputs(&outputs[0], (tag, &sent[0]), &Ports::default());
        if ours == kernel {
            return true;
        }
        let why = ends.and_then(|(_, ends)| {
            deliberate::reason(self.case, (flow, packet), &ends, [&kernel, &ours])
        });
        self.tally.deliberate.extend(why);
        if why == Some(deliberate::TURNED_AWAY) {
            self.parted.insert(flow);
        }
        why.is_some()
    }

    fn remember(&mut self, flow: usize, tag: u16, from_client: bool, outputs: [Vec<Output>; 2]) {
        let protocol = self.case.flows[flow].protocol;
        let is_first = self.heard[flow][0].by_server.is_none();
        let whole = outputs.map(|outputs| canonical::joined(&outputs));
        let arrived = whole
            .each_ref()
            .map(|outputs| forwarded(outputs, tag, protocol));
        let [Some((first, _)), Some((second, _))] = arrived else {
            return;
        };
        for (heard, output) in self.heard[flow].iter_mut().zip([first, second]) {
            match from_client {
                true => heard.by_server = Some(output.clone()),
                false => heard.by_client = Some(output.bytes.clone()),
            }
        }
        if is_first
            && let Some(output) = &self.heard[flow][0].by_server
            && let Some(ip) = Ip::parse(&output.bytes)
            && let Some((_, port)) = ip.ports(&output.bytes)
        {
            self.tally
                .choices
                .push((flow, (ip.destination, port).into()));
        }
    }
}

/// The sent packet among what came out: what the node makes itself has another tag.
fn forwarded(outputs: &[Output], tag: u16, protocol: u8) -> Option<(&Output, Ip)> {
    outputs.iter().find_map(|output| {
        let ip = Ip::parse(&output.bytes)?;
        let is_it = [ip.tag, wire::ANY_TAG].contains(&tag)
            && ip.protocol == protocol
            && !ip.is_error(&output.bytes);
        is_it.then_some((output, ip))
    })
}

/// Initial sequence numbers of client and server.
fn initial(seed: u64, flow: &Flow) -> (u32, u32) {
    let ports = u64::from(flow.source_port) << 32 | u64::from(flow.destination_port) << 48;
    let mut rng = fastrand::Rng::with_seed(seed ^ ports);
    (rng.u32(..), rng.u32(..))
}
