//! What of our dataplane the cases reached.

use dataplane::conntrack::{ConnectionState, Conntrack};
use dataplane::service::{Decision, FrontendKind, ServiceTable, SourceClass};
use dataplane::tuple::{Origin, Timestamp, Tuple};
use dataplane::verdict::{Counts, DropReason};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// How often each thing was reached. All that can be reached is there, with zero if it was not.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Coverage {
    /// Verdicts.
    pub verdicts: BTreeMap<String, u64>,
    /// Reasons of drops.
    pub drop_reasons: BTreeMap<String, u64>,
    /// TCP: state before and after a packet.
    pub tcp_transitions: BTreeMap<String, u64>,
    /// Kind of address, class of the source, decision.
    pub decisions: BTreeMap<String, u64>,
}

/// Steps of the kernel's state table (`nf_conntrack_proto_tcp.c`, `tcp_conntracks`), from each state where they lead.
/// Several at once show as one that is not among these.
const TRANSITIONS: [(&str, &[&str]); 10] = [
    ("NONE", &["SYN_SENT", "ESTABLISHED"]),
    ("SYN_SENT", &["SYN_SENT2", "SYN_RECV", "CLOSE"]),
    ("SYN_SENT2", &["SYN_RECV", "CLOSE"]),
    ("SYN_RECV", &["ESTABLISHED", "FIN_WAIT", "CLOSE"]),
    ("ESTABLISHED", &["FIN_WAIT", "CLOSE"]),
    ("FIN_WAIT", &["CLOSE_WAIT", "LAST_ACK", "CLOSE"]),
    ("CLOSE_WAIT", &["LAST_ACK", "CLOSE"]),
    ("LAST_ACK", &["TIME_WAIT", "CLOSE"]),
    ("TIME_WAIT", &["SYN_SENT", "CLOSE"]),
    ("CLOSE", &["SYN_SENT"]),
];

const KEEP: &str = "keep source";
const MASQUERADE: &str = "masquerade";
const REJECT: &str = "reject";
const NO_LOCAL: &str = "no local endpoint";
const NOT_ALLOWED: &str = "source not allowed";

/// What policies can decide: kind of address, class of the source, decisions. What is missing cannot be: the node's own
/// packets to external addresses are always masqueraded, policy Local does not hold for pods and the node there, and
/// only load balancer IPs have source ranges.
const DECISIONS: [(&str, &str, &[&str]); 12] = [
    ("cluster IP", "pod", &[KEEP, MASQUERADE, REJECT, NO_LOCAL]),
    ("cluster IP", "node", &[KEEP, MASQUERADE, REJECT, NO_LOCAL]),
    (
        "cluster IP",
        "outside",
        &[KEEP, MASQUERADE, REJECT, NO_LOCAL],
    ),
    ("NodePort", "pod", &[KEEP, MASQUERADE, REJECT, NO_LOCAL]),
    ("NodePort", "node", &[MASQUERADE, REJECT, NO_LOCAL]),
    ("NodePort", "outside", &[KEEP, MASQUERADE, REJECT, NO_LOCAL]),
    ("external IP", "pod", &[KEEP, MASQUERADE, REJECT]),
    ("external IP", "node", &[MASQUERADE, REJECT]),
    (
        "external IP",
        "outside",
        &[KEEP, MASQUERADE, REJECT, NO_LOCAL],
    ),
    (
        "load balancer IP",
        "pod",
        &[KEEP, MASQUERADE, REJECT, NOT_ALLOWED],
    ),
    ("load balancer IP", "node", &[MASQUERADE, NOT_ALLOWED]),
    (
        "load balancer IP",
        "outside",
        &[KEEP, MASQUERADE, REJECT, NO_LOCAL, NOT_ALLOWED],
    ),
];

/// Reasons that no packets to a node in a namespace can bring about beside a kernel that does the same: its table cannot
/// be made small there, nor its node be without an address. Tests of the dataplane produce them
/// (`dataplane/tests/no_room.rs`, `ports.rs`, `packets.rs`).
const BEYOND: [DropReason; 5] = [
    DropReason::NoFreePort,
    DropReason::NoMasqueradeAddress,
    DropReason::TableFull,
    DropReason::SourceLimit,
    DropReason::TooManyFragments,
];

impl Coverage {
    /// With all that can be reached, at zero.
    pub(super) fn at_start() -> Self {
        let mut coverage = Self::default();
        coverage.count_verdicts(&Counts::default());
        let beyond = |name: &String| BEYOND.iter().any(|reason| reason.name() == name);
        coverage.drop_reasons.retain(|name, _| !beyond(name));
        let transitions = TRANSITIONS
            .iter()
            .flat_map(|(from, states)| states.iter().map(move |to| format!("{from} to {to}")));
        coverage.tcp_transitions = transitions.map(|transition| (transition, 0)).collect();
        let decisions = DECISIONS.iter().flat_map(|(kind, class, decisions)| {
            decisions
                .iter()
                .map(move |decision| format!("{kind}, {class}, {decision}"))
        });
        coverage.decisions = decisions.map(|decision| (decision, 0)).collect();
        coverage
    }

    /// How much there is of each kind, how much of it was reached, and what was not.
    pub fn reached(&self) -> [(&'static str, usize, Vec<&str>); 4] {
        [
            ("verdicts", &self.verdicts),
            ("drop reasons", &self.drop_reasons),
            ("TCP transitions", &self.tcp_transitions),
            ("policy combinations", &self.decisions),
        ]
        .map(|(kind, counts)| {
            let missing = counts.iter().filter(|(_, count)| **count == 0);
            (
                kind,
                counts.len(),
                missing.map(|(name, _)| name.as_str()).collect(),
            )
        })
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.verdicts, &other.verdicts),
            (&mut self.drop_reasons, &other.drop_reasons),
            (&mut self.tcp_transitions, &other.tcp_transitions),
            (&mut self.decisions, &other.decisions),
        ] {
            for (key, count) in theirs.iter().filter(|(_, count)| **count > 0) {
                *mine.entry(key.clone()).or_default() += count;
            }
        }
    }

    pub(super) fn count_verdicts(&mut self, counts: &Counts) {
        let verdicts = [
            ("forward", counts.forward),
            ("pass", counts.pass),
            ("reject", counts.reject),
            ("hold", counts.hold),
            ("drop", counts.drop.iter().sum()),
        ];
        self.verdicts = verdicts
            .map(|(name, count)| (name.to_owned(), count))
            .into();
        let reason = |reason: &DropReason| (reason.name().to_owned(), counts.dropped(*reason));
        self.drop_reasons = DropReason::ALL.iter().map(reason).collect();
    }

    /// What the table says about a client's packet.
    pub(super) fn count_decision(
        &mut self,
        services: &ServiceTable,
        tuple: &Tuple,
        origin: Origin,
    ) {
        let (decision, frontend) = services.decide_by(tuple, origin);
        let kind = match frontend.map(|frontend| frontend.kind) {
            None => return,
            Some(FrontendKind::ClusterIp) => "cluster IP",
            Some(FrontendKind::ExternalIp) => "external IP",
            Some(FrontendKind::LoadBalancerIp) => "load balancer IP",
            Some(FrontendKind::NodePort) => "NodePort",
        };
        let class = match services.class(tuple.source, origin) {
            SourceClass::Pod => "pod",
            SourceClass::Local => "node",
            SourceClass::Outside => "outside",
        };
        let decision = match decision {
            Decision::NotAService => return,
            Decision::Balance {
                masquerade: true, ..
            } => MASQUERADE,
            Decision::Balance { .. } => KEEP,
            Decision::Reject(_) => REJECT,
            Decision::NoLocalEndpoint(_) => NO_LOCAL,
            Decision::SourceNotAllowed(_) => NOT_ALLOWED,
        };
        let key = format!("{kind}, {class}, {decision}");
        *self.decisions.entry(key).or_default() += 1;
    }
}

/// Watches the TCP connections of a table.
#[derive(Debug, Default)]
pub(super) struct Watched {
    states: HashMap<Tuple, String>,
}

impl Watched {
    /// Counts what changed since the last look.
    pub(super) fn look(&mut self, table: &Conntrack, now: Timestamp, coverage: &mut Coverage) {
        table.for_each(now, |entry| {
            let Some(ConnectionState::Tcp(state)) = entry.state else {
                return;
            };
            let state = state.to_string();
            let before = self.states.insert(entry.original, state.clone());
            let before = before.unwrap_or_else(|| "NONE".to_owned());
            if before != state {
                let transition = format!("{before} to {state}");
                *coverage.tcp_transitions.entry(transition).or_default() += 1;
            }
        });
    }
}
