//! Random cases: objects, the node that they are about, and conversations. The same seed makes the same case.

mod cluster;
mod conversation;
mod layout;

use super::case::{Body, Case, Step};
use super::{side, wire};
use anyhow::Result;
use control::config::KubeProxyConfig;
use control::snapshot::untyped;
use fastrand::Rng;
use layout::Layout;
use serde_json::Value;
use std::path::Path;

/// What is given rather than random.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Objects, a configuration and a node of them.
    pub cluster: Option<Cluster>,
    /// Each endpoint set has one endpoint only, so that nothing is left to choose.
    pub single_endpoints: bool,
}

/// Objects and the node that they are seen from.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// A KubeProxyConfiguration.
    pub config: Value,
    /// The objects.
    pub objects: Vec<Value>,
    /// The node.
    pub node: String,
}

/// The objects of a file or folder, as they stand there.
///
/// # Errors
/// When they cannot be read.
pub fn objects(path: &Path) -> Result<Vec<Value>> {
    let mut objects = untyped(path)?;
    objects.retain(|object| object["kind"] != "KubeProxyConfiguration");
    Ok(objects)
}

/// Conversations of a case. In a brief one short timeouts pass for real, in its pause and only there: a longer case takes
/// longer than they are.
const CONVERSATIONS: std::ops::Range<usize> = 150..300;
const BRIEF: std::ops::Range<usize> = 15..30;

/// The case of `seed`.
pub fn case(seed: u64, given: &Given) -> Result<Case> {
    let mut rng = Rng::with_seed(seed);
    let is_brief = rng.u8(..6) == 0;
    let cluster = match &given.cluster {
        Some(cluster) => cluster.clone(),
        None => cluster::random(&mut rng, is_brief, given.single_endpoints),
    };
    let snapshot = side::snapshot(&cluster.objects)?;
    let config = KubeProxyConfig::parse("config", &cluster.config.to_string())?;
    let layout = Layout::of(&snapshot, &config, &cluster.node, &mut rng)?;
    let mut case = Case {
        schema_version: 1,
        seed,
        about: String::new(),
        node: cluster.node,
        links: layout.links.clone(),
        config: cluster.config,
        icmp_limits: false,
        changes: Vec::new(),
        objects: cluster.objects,
        flows: Vec::new(),
        steps: Vec::new(),
    };
    let count = rng.usize(if is_brief { BRIEF } else { CONVERSATIONS });
    let (mut conversations, later): (Vec<_>, Vec<_>) = (0..count)
        .map(|_| conversation::random(&layout, &mut case.flows, &mut rng))
        .unzip();
    if rng.bool() && !given.single_endpoints {
        add_changes(&mut case, &mut conversations, &mut rng);
    }
    case.steps = interleave(conversations, &mut rng);
    if is_brief {
        case.steps.push(Step::Wait(PAUSE_MILLISECONDS));
        case.steps.extend(interleave(later, &mut rng));
    }
    Ok(case)
}

/// Flows of UDP that go on after a change.
const GO_ON: usize = 12;

/// A flow of UDP that lives for two seconds is a stream; the shortest timeouts of random configurations pass as well.
const PAUSE_MILLISECONDS: u64 = 2200;

/// Between conversations endpoints come, go and change, and come back. Then some flows of UDP go on: they end or stay.
fn add_changes(case: &mut Case, conversations: &mut Vec<Vec<Step>>, rng: &mut Rng) {
    let mut places: Vec<usize> = (0..rng.usize(1..4))
        .map(|_| rng.usize(..=conversations.len()))
        .collect();
    places.sort_unstable();
    for (number, place) in places.into_iter().enumerate() {
        let changed = cluster::change(case.changes.last().unwrap_or(&case.objects), rng);
        case.changes.push(changed);
        let mut steps = vec![Step::Change(number)];
        let udp = |flow: &usize| case.flows[*flow].protocol == wire::UDP;
        let begun: Vec<usize> = (0..place.min(case.flows.len())).filter(udp).collect();
        for _ in 0..GO_ON.min(begun.len()) {
            let body = Body::Udp {
                data: 3,
                no_checksum: false,
            };
            steps.push(Step::Client(*cluster::pick(rng, &begun), body.into()));
        }
        conversations.insert(place + number, steps);
    }
}

/// One sequence of steps in which each conversation keeps its order. A few run at a time, as they do on a node.
fn interleave(conversations: Vec<Vec<Step>>, rng: &mut Rng) -> Vec<Step> {
    const AT_A_TIME: usize = 4;
    let mut waiting = conversations.into_iter().map(Vec::into_iter);
    let mut running: Vec<_> = waiting.by_ref().take(AT_A_TIME).collect();
    let mut steps = Vec::new();
    while !running.is_empty() {
        let turn = rng.usize(..running.len());
        match running[turn].next() {
            Some(step) => steps.push(step),
            None => {
                running.remove(turn);
                running.extend(waiting.next());
            }
        }
    }
    steps
}
