//! Random cases: objects, the node that they are about, and conversations. The same seed makes the same case.

mod cluster;
mod conversation;
mod layout;

use super::case::{Case, Step};
use super::side;
use anyhow::{Context as _, Result};
use control::config::KubeProxyConfig;
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
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        files = std::fs::read_dir(path)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()?;
        files.sort();
    }
    let mut objects = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        for document in documents {
            match document["items"].as_array() {
                Some(items) => objects.extend(items.iter().cloned()),
                None => objects.push(document),
            }
        }
    }
    objects.retain(|object| object["kind"] != "KubeProxyConfiguration");
    Ok(objects)
}

/// Conversations of a case.
const CONVERSATIONS: std::ops::Range<usize> = 30..60;

/// The case of `seed`.
pub fn case(seed: u64, given: &Given) -> Result<Case> {
    let mut rng = Rng::with_seed(seed);
    let cluster = match &given.cluster {
        Some(cluster) => cluster.clone(),
        None => cluster::random(&mut rng, given.single_endpoints),
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
        changes: Vec::new(),
        objects: cluster.objects,
        flows: Vec::new(),
        steps: Vec::new(),
    };
    let count = rng.usize(CONVERSATIONS);
    let mut conversations: Vec<Vec<Step>> = (0..count)
        .map(|_| conversation::random(&layout, &mut case.flows, &mut rng))
        .collect();
    if rng.u8(..3) == 0 {
        conversations.push(changes(&mut case, &mut rng));
    }
    case.steps = interleave(conversations, &mut rng);
    Ok(case)
}

/// Endpoints come, go and change, and come back.
fn changes(case: &mut Case, rng: &mut Rng) -> Vec<Step> {
    for _ in 0..rng.usize(1..3) {
        let changed = cluster::change(case.changes.last().unwrap_or(&case.objects), rng);
        case.changes.push(changed);
    }
    (0..case.changes.len()).map(Step::Change).collect()
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
