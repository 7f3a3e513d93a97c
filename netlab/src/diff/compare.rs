//! Runs a case on two sides and holds every packet that comes out, and every connection, of one against the other's.
//!
//! The side that goes first chooses endpoints at random; the other is told and must be able to choose the same. Source
//! ports of masquerading are each side's own: the first packet shows both, they must be in the same range, and from
//! then on one stands for the other.

use super::canonical::{self, Ports};
use super::case::{Body, Case, Flow, Packet, Place, Step};
use super::coverage::Coverage;
use super::side::{self, Choice, Entry, Side};
use super::wire::{self, Circumstances, Ends, Ip};
use super::world::Output;
use anyhow::{Context as _, Result};
use std::collections::HashSet;
use std::time::Duration;

/// Where the sides went apart.
#[derive(Clone, Debug)]
pub(super) struct Difference {
    /// The step, by number; the end when it is the number of steps.
    pub(super) step: usize,
    /// What was sent in it.
    pub(super) sent: Vec<Vec<u8>>,
    /// What came out, or is tracked, on either side.
    pub(super) seen: Seen,
}

/// What two sides made of the same.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    /// Packets.
    Packets([Vec<Output>; 2]),
    /// Connections that the other side has not, or has otherwise.
    Entries([Vec<Entry>; 2]),
}

/// What was compared.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Packets sent, fragments counted each.
    pub(super) packets: u64,
    /// First choices of an endpoint: the flow's number and the endpoint.
    pub(super) choices: Vec<(usize, std::net::SocketAddr)>,
    /// Connections compared.
    pub(super) entries: u64,
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
    heard: Vec<[Heard; 2]>,
    ports: Ports,
    /// Flows that went apart on purpose: nothing more is compared of them.
    parted: HashSet<usize>,
    tally: Tally,
}

/// Runs `case` on both sides, up to the first difference.
pub(super) fn run<'s>(
    case: &Case,
    first: &'s mut dyn Side,
    second: &'s mut dyn Side,
) -> Result<Outcome> {
    let mut run = Run {
        case,
        heard: vec![Default::default(); case.flows.len()],
        ports: Ports::default(),
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
                        side.change(&snapshot)?;
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
    let difference = run.entries(case.steps.len(), &mut sides)?;
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
        let tag = number as u16 + 1;
        let mut sent: [Vec<Vec<u8>>; 2] = Default::default();
        let mut outputs: [Vec<Output>; 2] = Default::default();
        for nth in 0..2 {
            if nth == 1 && from_client {
                let mut choice = self.choice(flow, &outputs[0], tag);
                if choice.endpoint.is_none() && !outputs[0].is_empty() {
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
            sent[nth] = wire::build(packet, &ends, Circumstances { tag, heard });
            for bytes in &sent[nth] {
                if let Place::Link(link) = place {
                    sides[nth].world().send(link, bytes)?;
                }
                sides[nth].work()?;
            }
            self.tally.packets += sent[nth].len() as u64;
            sides[nth].world().take(&mut outputs[nth])?;
        }
        self.tally.packets -= sent[1].len() as u64;
        if packet.shape.ttl == 1 {
            self.part(flow, "a packet with TTL 1");
            return Ok(None);
        }
        let same = self.agree(flow, tag, (packet, from_client), &outputs) || {
            let mut same = false;
            // What passes through the node's own stack may take a moment.
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(4));
                for (side, outputs) in sides.iter_mut().zip(&mut outputs) {
                    side.work()?;
                    side.world().take(outputs)?;
                }
                same = self.agree(flow, tag, (packet, from_client), &outputs);
                if same {
                    break;
                }
            }
            same
        };
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
        Some((Place::Link(*link), ends))
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
        tag: u16,
        (packet, from_client): (&Packet, bool),
        outputs: &[Vec<Output>; 2],
    ) -> bool {
        let of = &self.case.flows[flow];
        if from_client
            && let (Some((first, _)), Some((second, _))) = (
                forwarded(&outputs[0], tag, of.protocol),
                forwarded(&outputs[1], tag, of.protocol),
            )
        {
            self.ports
                .learn((of.source, of.source_port), &first.bytes, &second.bytes);
        }
        let ours = canonical::outputs(&outputs[1], tag, &self.ports);
        let kernel = canonical::outputs(&outputs[0], tag, &Ports::default());
        if ours == kernel {
            return true;
        }
        let to = self.ends(flow, from_client, 0);
        let to = to.map(|(_, ends)| ends.destination);
        let to_own_v6 = to.is_some_and(|to| to.is_ipv6() && canonical::is_own(self.case, to));
        let is_error = matches!(packet.body, Body::Error { .. });
        let why = if to_own_v6 && is_error && canonical::same_but_headers(&kernel, &ours) {
            "the IPv6 header of an ICMPv6 error to the node's own address"
        } else if to_own_v6 && canonical::complains_about_headers(&kernel, &ours) {
            "a fragment for the node without its headers"
        } else {
            return false;
        };
        self.tally.deliberate.push(why);
        true
    }

    /// Compares nothing more of a flow.
    fn part(&mut self, flow: usize, why: &'static str) {
        self.parted.insert(flow);
        self.tally.deliberate.push(why);
    }

    /// We end more flows of UDP than kube-proxy does when objects change.
    fn part_stale(&mut self, sides: &mut Sides<'_>) -> Result<()> {
        let [first, second] = sides;
        let kept = first.entries()?;
        for stale in second.entries()?.iter().filter(|entry| entry.is_stale) {
            if !kept.iter().any(|entry| entry.original == stale.original) {
                continue;
            }
            let flows = self.case.flows.iter().enumerate();
            let of: Vec<usize> = flows
                .filter(|(_, flow)| {
                    let (source, port) = (stale.original.source, stale.original.source_port);
                    (flow.source, flow.source_port) == (source, port) && flow.protocol == wire::UDP
                })
                .map(|(number, _)| number)
                .collect();
            for flow in of {
                self.part(flow, "a flow of UDP whose Service changed");
            }
        }
        Ok(())
    }

    fn remember(&mut self, flow: usize, tag: u16, from_client: bool, outputs: [Vec<Output>; 2]) {
        let protocol = self.case.flows[flow].protocol;
        let is_first = self.heard[flow][0].by_server.is_none();
        for (heard, outputs) in self.heard[flow].iter_mut().zip(outputs) {
            let whole = canonical::joined(&outputs);
            let Some((output, _)) = forwarded(&whole, tag, protocol) else {
                continue;
            };
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

    /// Compares what the sides track.
    fn entries(&mut self, step: usize, sides: &mut Sides<'_>) -> Result<Option<Difference>> {
        let [first, second] = sides;
        let kernel =
            canonical::entries(self.case, &self.parted, first.entries()?, &Ports::default());
        let mut ours = second.entries()?;
        ours.retain(|entry| !entry.is_stale);
        let ours = canonical::entries(self.case, &self.parted, ours, &self.ports);
        self.tally.entries += kernel.len() as u64;
        for entry in &kernel {
            self.tally
                .states
                .push((entry.protocol, entry.state.clone()));
        }
        let differing = canonical::differing(&kernel, &ours);
        Ok(differing.map(|entries| Difference {
            step,
            sent: Vec::new(),
            seen: Seen::Entries(entries),
        }))
    }
}

/// The sent packet among what came out: what the node makes itself has another tag.
fn forwarded(outputs: &[Output], tag: u16, protocol: u8) -> Option<(&Output, Ip)> {
    outputs.iter().find_map(|output| {
        let ip = Ip::parse(&output.bytes)?;
        let is_it = ip.tag == tag && ip.protocol == protocol && !ip.is_error(&output.bytes);
        is_it.then_some((output, ip))
    })
}

/// Initial sequence numbers of client and server.
fn initial(seed: u64, flow: &Flow) -> (u32, u32) {
    let ports = u64::from(flow.source_port) << 32 | u64::from(flow.destination_port) << 48;
    let mut rng = fastrand::Rng::with_seed(seed ^ ports);
    (rng.u32(..), rng.u32(..))
}

impl Difference {
    /// What kind of difference it is, for telling a new one from one that is known: no address, no port, no endpoint.
    pub(super) fn kind(&self, case: &Case) -> String {
        let step = match case.steps.get(self.step) {
            Some(Step::Client(flow, packet)) => format!("client {}", body(case, *flow, packet)),
            Some(Step::Server(flow, packet)) => format!("server {}", body(case, *flow, packet)),
            Some(Step::Change(_)) => "change".to_owned(),
            Some(Step::Wait(_)) => "wait".to_owned(),
            None => "end".to_owned(),
        };
        let seen = match &self.seen {
            Seen::Packets(sides) => sides
                .each_ref()
                .map(|outputs| canonical::kinds(outputs))
                .join(" / "),
            Seen::Entries(sides) => sides
                .each_ref()
                .map(|entries| {
                    let of = |entry: &Entry| format!("{} {}", entry.protocol, entry.state);
                    entries.first().map_or_else(|| "none".to_owned(), of)
                })
                .join(" / "),
        };
        format!("{step}: {seen}")
    }
}

fn body(case: &Case, flow: usize, packet: &Packet) -> String {
    let of = match &packet.body {
        Body::Tcp(segment) => format!("tcp {}", segment.flags),
        Body::Udp { .. } => "udp".to_owned(),
        Body::Query { kind, .. } => format!("icmp {kind}"),
        Body::Error { kind, code, .. } => format!("icmp error {kind}/{code}"),
        Body::Sctp { chunk, .. } => format!("sctp {chunk}"),
        Body::Other { .. } => format!("protocol {}", case.flows[flow].protocol),
    };
    let fragments = if packet.shape.fragment.is_some() {
        " in fragments"
    } else {
        ""
    };
    let wrong = if packet.shape.wrong_checksum {
        " with a wrong checksum"
    } else {
        ""
    };
    let cut = if packet.shape.cut.is_some() {
        " cut"
    } else {
        ""
    };
    format!("{of}{fragments}{wrong}{cut}")
}
