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

impl Coverage {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.verdicts, &other.verdicts),
            (&mut self.drop_reasons, &other.drop_reasons),
            (&mut self.tcp_transitions, &other.tcp_transitions),
            (&mut self.decisions, &other.decisions),
        ] {
            for (key, count) in theirs {
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
            Decision::NotAService => "no Service",
            Decision::Balance {
                masquerade: true, ..
            } => "masquerade",
            Decision::Balance { .. } => "keep source",
            Decision::Reject(_) => "reject",
            Decision::NoLocalEndpoint(_) => "no local endpoint",
            Decision::SourceNotAllowed(_) => "source not allowed",
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
