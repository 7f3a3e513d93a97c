//! Makes a case that shows a difference smaller, for as long as it still shows it.

use super::case::{Body, Case, Packet, Shape, Step};
use serde_json::Value;
use std::collections::BTreeSet;

/// Trials at most; each takes about a tenth of a second.
const TRIALS: usize = 150;

/// A smaller case for which `shows` still holds, as it does for `case`.
pub(super) fn shrink(case: &Case, last_step: usize, shows: impl FnMut(&Case) -> bool) -> Case {
    let mut shrinker = Shrinker { shows, trials: 0 };
    let mut small = case.clone();
    small.steps.truncate(last_step + 1);
    if !shrinker.still_shows(&small) {
        return case.clone();
    }
    small = shrinker.fewer_flows(small);
    small = shrinker.fewer_steps(small);
    small = shrinker.fewer_objects(small);
    small = shrinker.plainer_packets(small);
    without_unused(small)
}

struct Shrinker<F> {
    shows: F,
    trials: usize,
}

impl<F: FnMut(&Case) -> bool> Shrinker<F> {
    fn still_shows(&mut self, case: &Case) -> bool {
        self.trials += 1;
        // The kernel chooses endpoints at random, so a difference may hide once.
        self.trials <= TRIALS && ((self.shows)(case) || (self.shows)(case))
    }

    fn fewer_flows(&mut self, case: Case) -> Case {
        let flows: Vec<usize> = (0..case.flows.len()).collect();
        let with = |kept: &[usize]| {
            let mut smaller = case.clone();
            smaller
                .steps
                .retain(|step| flow(step).is_none_or(|flow| kept.contains(&flow)));
            smaller
        };
        let kept = self.fewer(flows, with);
        with(&kept)
    }

    fn fewer_steps(&mut self, case: Case) -> Case {
        let steps: Vec<usize> = (0..case.steps.len()).collect();
        let with = |kept: &[usize]| {
            let steps = kept.iter().map(|step| case.steps[*step].clone());
            Case {
                steps: steps.collect(),
                ..case.clone()
            }
        };
        let kept = self.fewer(steps, with);
        with(&kept)
    }

    fn fewer_objects(&mut self, case: Case) -> Case {
        let all = case.objects.iter().chain(case.changes.iter().flatten());
        let removable = all.filter(|object| object["kind"] != "Node").map(identity);
        let removable: BTreeSet<String> = removable.collect();
        let with = |kept: &[String]| {
            let keep = |objects: &[Value]| -> Vec<Value> {
                let kept =
                    |object: &&Value| object["kind"] == "Node" || kept.contains(&identity(object));
                objects.iter().filter(kept).cloned().collect()
            };
            Case {
                objects: keep(&case.objects),
                changes: case.changes.iter().map(|objects| keep(objects)).collect(),
                ..case.clone()
            }
        };
        let kept = self.fewer(removable.into_iter().collect(), with);
        with(&kept)
    }

    fn plainer_packets(&mut self, mut case: Case) -> Case {
        for step in 0..case.steps.len() {
            for plainer in [without_shape, without_data] {
                let mut trial = case.clone();
                let (Step::Client(_, packet) | Step::Server(_, packet)) = &mut trial.steps[step]
                else {
                    continue;
                };
                if plainer(packet) && self.still_shows(&trial) {
                    case = trial;
                }
            }
        }
        case
    }

    /// The fewest of `items`, in their order, that the case built from them still shows: halves are left out first.
    fn fewer<T: Clone>(&mut self, mut items: Vec<T>, with: impl Fn(&[T]) -> Case) -> Vec<T> {
        let mut size = items.len().div_ceil(2);
        while size > 0 {
            let mut start = 0;
            while start < items.len() {
                let end = (start + size).min(items.len());
                let fewer = [&items[..start], &items[end..]].concat();
                if self.still_shows(&with(&fewer)) {
                    items = fewer;
                } else {
                    start = end;
                }
            }
            size /= 2;
        }
        items
    }
}

fn flow(step: &Step) -> Option<usize> {
    match step {
        Step::Client(flow, _) | Step::Server(flow, _) => Some(*flow),
        Step::Change(_) | Step::Wait(_) => None,
    }
}

fn identity(object: &Value) -> String {
    format!(
        "{} {} {}",
        object["kind"], object["metadata"]["namespace"], object["metadata"]["name"]
    )
}

/// False when it is plain already.
fn without_shape(packet: &mut Packet) -> bool {
    let was_plain = packet.shape.is_plain();
    packet.shape = Shape::default();
    !was_plain
}

fn without_data(packet: &mut Packet) -> bool {
    let data = match &mut packet.body {
        Body::Tcp(segment) => &mut segment.data,
        Body::Udp { data, .. } | Body::Query { data, .. } | Body::Other { data } => data,
        Body::Error { .. } | Body::Sctp { .. } => return false,
    };
    std::mem::take(data) > 0
}

/// Flows that no step names go; those that stay get new numbers.
fn without_unused(mut case: Case) -> Case {
    let used: BTreeSet<usize> = case.steps.iter().filter_map(flow).collect();
    let used: Vec<usize> = used.into_iter().collect();
    case.flows = used.iter().map(|flow| case.flows[*flow]).collect();
    for step in &mut case.steps {
        if let Step::Client(flow, _) | Step::Server(flow, _) = step
            && let Ok(number) = used.binary_search(flow)
        {
            *flow = number;
        }
    }
    if !case
        .steps
        .iter()
        .any(|step| matches!(step, Step::Change(_)))
    {
        case.changes.clear();
    }
    case
}
