//! Runs a case on two sides and holds every packet that comes out, and every connection, of one against the other's.
//!
//! The side that goes first chooses endpoints at random; the other is told and must be able to choose the same. Source
//! ports of masquerading are each side's own: the first packet shows both, they must be in the same range, and from
//! then on one stands for the other.

mod clock;
mod connections;
mod exchange;

use super::canonical;
use super::case::{Body, Case, Packet, Step};
use super::coverage::Coverage;
use super::deliberate;
use super::difference::{Difference, Seen};
use super::modes::Modes;
use super::ports::Ports;
use super::side::{self, Side, Tuple};
use super::wire::{self, Ip};
use super::world::Output;
use anyhow::{Context as _, Result};
use clock::Clock;
use exchange::Exchange;
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What was compared.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Packets sent, fragments counted each.
    pub(super) packets: u64,
    /// The same, by what they carry and how they are packed.
    pub(super) kinds: BTreeMap<&'static str, u64>,
    /// First choices of an endpoint: the flow's number and the endpoint.
    pub(super) choices: Vec<(usize, SocketAddr)>,
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
    /// Whether a timeout may have passed for one side and not for the other.
    pub(super) is_time_unclear: bool,
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
    clock: Clock,
    /// Flows that went apart on purpose: nothing more is compared of them.
    parted: HashSet<usize>,
    /// Clients that the kernel turned away and our side led to this endpoint, on purpose. By affinity they stay with it.
    led_apart: HashSet<(IpAddr, IpAddr)>,
    /// Tuples of flows of UDP that the kernel has ended since objects changed, and that end at our side with their next packet.
    ending: HashSet<(Tuple, Tuple)>,
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
        clock: Clock::of(case),
        parted: HashSet::new(),
        led_apart: HashSet::new(),
        ending: HashSet::new(),
        tally: Tally::default(),
    };
    let mut sides: Sides<'s> = [first, second];
    for (number, step) in case.steps.iter().enumerate() {
        let difference = match step {
            Step::Client(flow, packet) => run.packet(number, *flow, packet, true, &mut sides)?,
            Step::Server(flow, packet) => run.packet(number, *flow, packet, false, &mut sides)?,
            Step::Change(change) => {
                let difference = run.entries(number, &mut sides)?;
                if difference.is_none() {
                    let objects = case.changes.get(*change).context("no such change")?;
                    let snapshot = side::snapshot(objects)?;
                    for side in &mut sides {
                        let bystanders = side.change(&snapshot)?;
                        run.part_udp(&bystanders, "a flow of UDP beside those that changed");
                    }
                    run.part_stale(&mut sides, objects)?;
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

/// The longest wait for a packet to come out at both sides where it need not. Each flow of a case may be one of those.
const MILLISECONDS_FOR_NAMED: u64 = 32;

impl Run<'_> {
    fn outcome(self, difference: Option<Difference>) -> Outcome {
        Outcome {
            tally: self.tally,
            difference,
            is_time_unclear: self.clock.is_unclear(),
            coverage: Coverage::default(),
        }
    }

    fn packet(
        &mut self,
        number: usize,
        flow: usize,
        packet: &Packet,
        from_client: bool,
        sides: &mut Sides<'_>,
    ) -> Result<Option<Difference>> {
        if self.parted.contains(&flow) {
            return Ok(None);
        }
        let mut exchange = self.send(number, flow, packet, from_client, sides)?;
        if !exchange.sent[0].is_empty() {
            self.count(packet);
        }
        if packet.shape.ttl == 1 {
            self.part(flow, "a packet with TTL 1");
            return Ok(None);
        }
        let same = self.settle(flow, packet, from_client, &mut exchange, sides)?;
        let Exchange { tag, sent, outputs } = exchange;
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
        let is_new = from_client && self.heard[flow][0].by_server.is_none();
        if is_new && deliberate::is_too_big(&outputs[0]) {
            self.part(flow, "a first packet that is too large for the next link");
            return Ok(None);
        }
        self.remember(flow, tag, from_client, outputs);
        Ok(None)
    }

    /// Whether both sides did the same in the end. What passes through the node's own stack may take a moment, on a busy
    /// machine a long one, and what stays in it shows its ports elsewhere.
    fn settle(
        &mut self,
        flow: usize,
        packet: &Packet,
        from_client: bool,
        exchange: &mut Exchange,
        sides: &mut Sides<'_>,
    ) -> Result<bool> {
        for milliseconds in [2, 4, 8, 16, 32, 64, 128, 256, 512] {
            if self.agree(flow, packet, from_client, exchange) {
                return Ok(true);
            }
            let may_be_named = milliseconds > MILLISECONDS_FOR_NAMED;
            let Exchange { sent, outputs, .. } = &mut *exchange;
            if may_be_named && self.modes_differ(flow, &sent[0], outputs).is_some() {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(milliseconds));
            for (side, outputs) in sides.iter_mut().zip(outputs) {
                side.work()?;
                side.world().take(outputs)?;
            }
            let [first, second] = &mut *sides;
            self.ports
                .learn_tracked(&first.entries()?, &second.entries()?);
        }
        Ok(self.agree(flow, packet, from_client, exchange))
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

    /// Whether both sides did the same, now that the ports they chose are known.
    fn agree(
        &mut self,
        flow: usize,
        packet: &Packet,
        from_client: bool,
        exchange: &Exchange,
    ) -> bool {
        let &Exchange {
            tag,
            ref sent,
            ref outputs,
        } = exchange;
        let unchanged = |nth: usize| canonical::as_sent(&outputs[nth], &sent[nth]);
        if unchanged(0).is_some() && unchanged(0) == unchanged(1) {
            return true;
        }
        let of = &self.case.flows[flow];
        let seen = outputs
            .each_ref()
            .map(|outputs| forwarded(outputs, tag, of.protocol));
        let ends = self.ends(flow, from_client, 0);
        if let ([Some((first, _)), Some((second, _))], Some((_, ends))) = (&seen, ends) {
            let from = SocketAddr::new(ends.source, ends.source_port);
            self.ports
                .learn(from, from_client, &first.bytes, &second.bytes);
        }
        let ours = canonical::outputs(&outputs[1], tag, &sent[1], &self.ports);
        let kernel = canonical::outputs(&outputs[0], tag, &sent[0], &Ports::default());
        if ours == kernel {
            return true;
        }
        let why = ends.and_then(|(_, ends)| {
            let has_begun = self.clock.has_begun(flow);
            deliberate::reason(self.case, flow, packet, has_begun, &ends, [&kernel, &ours])
        });
        let reached = seen.map(|seen| seen.map(|(_, ip)| ip.destination));
        let stays_apart = self.stays_apart(of.source, reached);
        let why = why.or_else(|| stays_apart.then_some(deliberate::TURNED_AWAY));
        self.tally.deliberate.extend(why);
        if why == Some(deliberate::TURNED_AWAY) {
            self.parted.insert(flow);
            let led_to = reached[1].filter(|endpoint| *endpoint != of.destination);
            self.led_apart
                .extend(led_to.map(|endpoint| (of.source, endpoint)));
        }
        why.is_some()
    }

    /// Whether our side led `client` to the endpoint that it alone knows of, and the kernel to another one.
    fn stays_apart(&self, client: IpAddr, reached: [Option<IpAddr>; 2]) -> bool {
        let [Some(theirs), Some(own)] = reached else {
            return false;
        };
        theirs != own && self.led_apart.contains(&(client, own))
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
