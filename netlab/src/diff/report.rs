//! What a run found, for people and as JSON.

use super::case::Case;
use super::compare::Outcome;
use super::coverage::Coverage;
use super::proportion::Proportion;
use super::{Request, Rules, Subject};
use dataplane::tuple::Origin;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What a run found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    schema_version: u32,
    /// What was held against the rules.
    subject: Subject,
    /// The rules.
    against: Rules,
    /// The seed of the first case.
    seed: u64,
    /// Cases run.
    pub cases: u64,
    /// Cases left out: with their objects kube-proxy would program nothing.
    pub(super) skipped: u64,
    /// Sets of objects: one per case, and those after changes.
    snapshots: u64,
    /// Packets compared.
    pub packets: u64,
    /// The same, by what they carry and how they are packed.
    packet_kinds: BTreeMap<&'static str, u64>,
    /// Packets per second, cases and all.
    packets_per_second: u64,
    /// Conversations, by protocol and place of the client.
    conversations: BTreeMap<String, u64>,
    /// Connections compared.
    connections: u64,
    /// The same, by protocol and state.
    connection_states: BTreeMap<String, u64>,
    /// Connections whose end was the same when our clock was moved.
    timeouts: u64,
    /// Endpoints that the kernel chose and that we could choose as well.
    choices: u64,
    /// Shares of endpoints when both sides choose freely.
    pub proportions: Vec<Proportion>,
    /// Deliberate differences met, by name.
    pub deliberate: BTreeMap<String, u64>,
    /// What of our dataplane was reached.
    pub coverage: Coverage,
    /// Runs that differed, of cases that did not when they were run again.
    pub repeated: Vec<Repeated>,
    /// Cases that showed any other difference.
    pub differing_cases: u64,
    /// All others, one of each kind.
    pub differences: Vec<Found>,
}

/// A run that does not count: see [`crate::diff`].
#[derive(Clone, Debug, Serialize)]
pub struct Repeated {
    /// The case's seed.
    pub seed: u64,
    /// What differed.
    pub kind: String,
}

/// A difference.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The case's seed.
    pub seed: u64,
    /// The step at which the sides went apart.
    pub step: usize,
    /// What was sent, and what either side made of it, without addresses.
    pub kind: String,
    /// All of it.
    pub story: String,
    /// The case, for `--replay`.
    pub file: PathBuf,
}

impl Report {
    pub(super) fn new(request: &Request) -> Self {
        Self {
            schema_version: 1,
            subject: request.subject,
            against: request.against,
            seed: request.seed,
            cases: 0,
            skipped: 0,
            snapshots: 0,
            packets: 0,
            packet_kinds: BTreeMap::new(),
            packets_per_second: 0,
            conversations: BTreeMap::new(),
            connections: 0,
            connection_states: BTreeMap::new(),
            timeouts: 0,
            choices: 0,
            proportions: Vec::new(),
            deliberate: BTreeMap::new(),
            coverage: match request.subject {
                Subject::Penstock => Coverage::at_start(),
                Subject::Iptables => Coverage::default(),
            },
            repeated: Vec::new(),
            differing_cases: 0,
            differences: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, case: &Case, outcome: Outcome, found: Option<Found>) {
        let Outcome {
            tally,
            coverage,
            difference,
            ..
        } = outcome;
        self.cases += 1;
        self.packets += tally.packets;
        self.snapshots += 1 + case.changes.len() as u64;
        for (kind, count) in tally.kinds {
            *self.packet_kinds.entry(kind).or_default() += count;
        }
        self.timeouts += tally.timeouts;
        self.connections += tally.entries;
        self.choices += tally.choices.len() as u64;
        for flow in &case.flows {
            let from = match case.origin(flow.from) {
                Origin::Outside => "outside",
                Origin::Pod => "pod",
                Origin::Node => "node",
            };
            let family = if flow.source.is_ipv4() {
                "IPv4"
            } else {
                "IPv6"
            };
            let key = format!("{} {family} from {from}", protocol(flow.protocol));
            *self.conversations.entry(key).or_default() += 1;
        }
        for (number, state) in tally.states {
            let key = format!("{} {state}", protocol(number))
                .trim_end()
                .to_owned();
            *self.connection_states.entry(key).or_default() += 1;
        }
        for why in tally.deliberate {
            *self.deliberate.entry(why.to_owned()).or_default() += 1;
        }
        self.coverage.add(&coverage);
        self.differing_cases += u64::from(difference.is_some());
        self.differences.extend(found);
    }

    pub(super) fn finish(&mut self, took: Duration) {
        self.packets_per_second = (self.packets as f64 / took.as_secs_f64().max(0.001)) as u64;
    }

    /// Whether something was compared, and there is no difference but those on purpose.
    pub fn is_same(&self) -> bool {
        self.cases > 0
            && self.differences.is_empty()
            && !self.proportions.iter().any(Proportion::is_wrong)
    }

    /// The summary below the stories.
    pub fn summary(&self) -> String {
        let conversations: u64 = self.conversations.values().sum();
        let mut lines = vec![
            format!(
                "{} cases from seed {}: {} snapshots, {conversations} conversations, {} packets ({} per second), {} connections",
                self.cases,
                self.seed,
                self.snapshots,
                self.packets,
                self.packets_per_second,
                self.connections
            ),
            format!("conversations: {}", self.conversations_by_kind()),
        ];
        if self.skipped > 0 {
            lines.push(format!(
                "left out: {} cases with which kube-proxy would program nothing",
                self.skipped
            ));
        }
        let kinds = self.packet_kinds.iter();
        let kinds: Vec<String> = kinds
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        lines.push(format!("packets: {}", kinds.join(", ")));
        lines.extend(self.reached());
        lines.extend(self.proportions.iter().map(Proportion::line));
        let deliberate = self.deliberate.iter();
        lines.extend(deliberate.map(|(why, count)| {
            let page = match why.strip_prefix("modes: ") {
                Some(_) => "iptables-nftables.md",
                None => "differences.md",
            };
            format!("on purpose: {why}, {count} times (docs/behaviours/{page})")
        }));
        lines.extend(self.repeated.iter().map(|Repeated { seed, kind }| {
            format!("differed, and was the same when it was run again: seed {seed}, {kind}")
        }));
        lines.push(match self.differences.len() {
            _ if self.cases == 0 => "nothing was compared".to_owned(),
            0 if self.is_same() => "no difference".to_owned(),
            0 => "endpoints do not get their shares".to_owned(),
            kinds => format!("{} cases differ, in {kinds} ways", self.differing_cases),
        });
        lines.join("\n") + "\n"
    }

    /// By protocol and by place of the client, both families together; JSON has each apart.
    fn conversations_by_kind(&self) -> String {
        let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
        for (name, count) in &self.conversations {
            let name = name
                .replace(" IPv4", "")
                .replace("v6 IPv6", "")
                .replace(" IPv6", "");
            *kinds.entry(name).or_default() += count;
        }
        let kinds = kinds.iter().map(|(kind, count)| format!("{kind} {count}"));
        kinds.collect::<Vec<String>>().join(", ")
    }

    fn reached(&self) -> Vec<String> {
        let is_known = self.subject == Subject::Penstock;
        let reached = self.coverage.reached().into_iter().filter(|_| is_known);
        reached
            .map(|(kind, all, missing)| {
                let reached = format!("reached: {} of {all} {kind}", all - missing.len());
                if missing.is_empty() {
                    reached
                } else {
                    format!("{reached}, not {}", missing.join("; "))
                }
            })
            .collect()
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    }
}
