//! What the sides track, held against each other, and the flows of which nothing more is compared.

use super::{Run, Sides};
use crate::diff::canonical;
use crate::diff::difference::{Difference, Seen};
use crate::diff::ports::Ports;
use crate::diff::side::{Entry, Tuple};
use crate::diff::wire;
use anyhow::Result;
use serde_json::Value;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// What one side tracks and the other does not, of each side, if there is any.
type Differing = Option<[Vec<Entry>; 2]>;

impl Run<'_> {
    /// Compares nothing more of a flow, nor of others with its tuple: they are one connection.
    pub(super) fn part(&mut self, flow: usize, why: &'static str) {
        let tuple = self.case.flows[flow].tuple();
        let flows = self.case.flows.iter().enumerate();
        let of_connection = flows.filter(|(_, other)| other.tuple() == tuple);
        self.parted.extend(of_connection.map(|(number, _)| number));
        self.tally.deliberate.push(why);
    }

    /// We end more flows of UDP than kube-proxy does when objects change, and not those whose endpoint is there again when
    /// their next packet comes.
    pub(super) fn part_stale(&mut self, sides: &mut Sides<'_>, objects: &[Value]) -> Result<()> {
        let [first, second] = sides;
        let kept = first.entries()?;
        let is_kept = |ours: &Entry| kept.iter().any(|entry| entry.original == ours.original);
        let tuples = |entry: &Entry| (entry.original, entry.reply);
        let (stale, live): (Vec<_>, Vec<_>) = second
            .entries()?
            .into_iter()
            .partition(|entry| entry.is_stale);
        let (early, ending): (Vec<_>, Vec<_>) = stale.into_iter().partition(is_kept);
        let is_back = |entry: &Entry| {
            let was_ending = self.ending.contains(&tuples(entry)) && !is_kept(entry);
            was_ending && is_listed(objects, &entry.reply)
        };
        let back: Vec<_> = live.into_iter().filter(is_back).collect();
        self.ending = ending.iter().map(tuples).collect();
        self.part_udp(&early, "a flow of UDP whose Service changed");
        self.part_udp(&back, "a flow of UDP whose endpoint came back");
        Ok(())
    }

    /// Compares nothing more of the flows that made `entries`.
    pub(super) fn part_udp(&mut self, entries: &[Entry], why: &'static str) {
        let clients: HashSet<_> = entries
            .iter()
            .map(|entry| (entry.original.source, entry.original.source_port))
            .collect();
        for (number, flow) in self.case.flows.iter().enumerate() {
            let client = (flow.source, flow.source_port);
            if flow.protocol == wire::UDP && clients.contains(&client) {
                self.part(number, why);
            }
        }
    }

    /// Where two modes of kube-proxy are at work, what they do not do alike may show in no packet.
    fn part_by_modes(&mut self) {
        for (number, flow) in self.case.flows.iter().enumerate() {
            let why = self.modes.and_then(|modes| modes.reason_of(flow));
            if let Some(why) = why.filter(|_| !self.parted.contains(&number)) {
                self.part(number, why);
            }
        }
    }

    /// Compares what the sides track.
    pub(super) fn entries(
        &mut self,
        step: usize,
        sides: &mut Sides<'_>,
    ) -> Result<Option<Difference>> {
        /// The kernel's lists may hide an entry while others come and go. One that is not there is in none of them.
        const TRIES: usize = 4;
        self.part_by_modes();
        let mut tried = 1;
        let (kernel, differing) = loop {
            let (kernel, differing) = self.tracked(sides)?;
            if differing.is_none() || tried == TRIES {
                break (kernel, differing);
            }
            tried += 1;
        };
        self.tally.entries += kernel.len() as u64;
        let states = kernel
            .into_iter()
            .map(|entry| (entry.protocol, entry.state));
        self.tally.states.extend(states);
        Ok(differing.map(|entries| Difference {
            step,
            sent: Vec::new(),
            seen: Seen::Entries(entries),
        }))
    }

    /// What the kernel tracks, and what one side tracks and the other does not.
    fn tracked(&mut self, sides: &mut Sides<'_>) -> Result<(Vec<Entry>, Differing)> {
        let (kernel, mut ours) = self.read(sides)?;
        let repeated = canonical::repeated(&ours);
        if !repeated.is_empty() {
            return Ok((kernel, Some([Vec::new(), repeated])));
        }
        ours.retain(|entry| !entry.is_stale);
        self.ports.learn_tracked(&kernel, &ours);
        let kernel = canonical::entries(self.case, &self.parted, kernel, &Ports::default());
        let ours = canonical::entries(self.case, &self.parted, ours, &self.ports);
        let differing = canonical::differing(&kernel, &ours);
        Ok((kernel, differing))
    }

    /// What the sides track at the same time.
    fn read(&mut self, [first, second]: &mut Sides<'_>) -> Result<(Vec<Entry>, Vec<Entry>)> {
        let begin = Instant::now();
        let kernel = first.entries()?;
        let mut end = Instant::now();
        let is_told = second.set_time(end);
        let ours = second.entries()?;
        if !is_told {
            end = Instant::now();
        }
        self.clock.read((begin, end));
        Ok((kernel, ours))
    }

    /// Compares when what is tracked at the end would end: the kernel says its timeouts, our clock is moved.
    pub(super) fn timeouts(&mut self, sides: &mut Sides<'_>) -> Result<Option<Difference>> {
        /// Between any two timeouts of the kernel, up to the longest, five days.
        const AHEAD: [u64; 12] = [
            1, 5, 15, 40, 75, 110, 150, 200, 400, 4_000, 100_000, 440_000,
        ];
        let (kernel, _) = self.read(sides)?;
        let kernel = canonical::entries(self.case, &self.parted, kernel, &Ports::default());
        let [_, second] = sides;
        for ahead in AHEAD.map(Duration::from_secs) {
            let Some(later) = second.entries_after(ahead)? else {
                return Ok(None);
            };
            let later = canonical::entries(self.case, &self.parted, later, &self.ports);
            if let Some(entries) = canonical::differing_later(&kernel, &later, ahead) {
                return Ok(Some(Difference {
                    step: self.case.steps.len(),
                    sent: Vec::new(),
                    seen: Seen::Later(ahead, entries),
                }));
            }
        }
        self.tally.timeouts += kernel.len() as u64;
        Ok(None)
    }
}

/// Whether `objects` list the endpoint that `reply` comes from.
fn is_listed(objects: &[Value], reply: &Tuple) -> bool {
    let all = |of: &Value, key: &str| of[key].as_array().cloned().unwrap_or_default();
    let is_address = |text: &Value| {
        let address = text.as_str().and_then(|text| text.parse().ok());
        address == Some(reply.source)
    };
    let has_address = |endpoint: &Value| all(endpoint, "addresses").iter().any(is_address);
    let slices = objects
        .iter()
        .filter(|object| object["kind"] == "EndpointSlice");
    slices
        .filter(|slice| all(slice, "endpoints").iter().any(has_address))
        .flat_map(|slice| all(slice, "ports"))
        .any(|port| port["port"] == reply.source_port)
}
