//! What a run found, for people and as JSON.

use super::case::{Case, Place};
use super::compare::Outcome;
use super::coverage::Coverage;
use super::{Request, Rules, Subject};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
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
    cases: u64,
    /// Packets compared.
    pub packets: u64,
    /// Packets per second, cases and all.
    packets_per_second: u64,
    /// Conversations, by protocol and place of the client.
    conversations: BTreeMap<String, u64>,
    /// Connections compared.
    connections: u64,
    /// The same, by protocol and state.
    connection_states: BTreeMap<String, u64>,
    /// Endpoints that the kernel chose and that we could choose as well.
    choices: u64,
    /// Deliberate differences met, by name.
    deliberate: BTreeMap<String, u64>,
    /// What of our dataplane was reached.
    pub coverage: Coverage,
    /// Cases that showed any other difference.
    pub differing_cases: u64,
    /// All others, one of each kind.
    pub differences: Vec<Found>,
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
            packets: 0,
            packets_per_second: 0,
            conversations: BTreeMap::new(),
            connections: 0,
            connection_states: BTreeMap::new(),
            choices: 0,
            deliberate: BTreeMap::new(),
            coverage: Coverage::default(),
            differing_cases: 0,
            differences: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, case: &Case, outcome: Outcome, found: Option<Found>) {
        let Outcome {
            tally,
            coverage,
            difference,
        } = outcome;
        self.cases += 1;
        self.packets += tally.packets;
        self.connections += tally.entries;
        self.choices += tally.choices.len() as u64;
        for flow in &case.flows {
            let from = match flow.from {
                Place::Link(0) => "outside",
                Place::Link(_) => "pod",
                Place::Node => "node",
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

    /// The summary below the stories.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let conversations: u64 = self.conversations.values().sum();
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{} cases from seed {}, {conversations} conversations, {} packets ({} per second), {} connections",
            self.cases, self.seed, self.packets, self.packets_per_second, self.connections
        );
        for (why, count) in &self.deliberate {
            let _ = writeln!(
                text,
                "on purpose: {why}, {count} times (docs/behaviours/differences.md)"
            );
        }
        let _ = match self.differences.len() {
            0 => writeln!(text, "no difference"),
            kinds => writeln!(
                text,
                "{} cases differ, in {kinds} ways",
                self.differing_cases
            ),
        };
        text
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
