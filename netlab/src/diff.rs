//! Differential tests: the same packets through the kernel with kube-proxy's rules and through our dataplane.
//!
//! A [`case::Case`] is a node, objects and conversations, random or given. `compare` runs it on two `side::Side`s, each
//! a network namespace with the same links and addresses, and stops where they go apart. A difference is made smaller
//! ([`shrink`]), told ([`story`]) and saved as a file that runs again.
//!
//! The kernel's clock cannot be stopped, so a difference may be one of time: a timeout passed between two packets on one
//! side, and on the other, a moment earlier or later, not. `compare::clock` keeps packets away from such moments, and knows when
//! a stall led one into it nevertheless. It may also be one of chance: a port that one side drew is that of another flow. So a
//! case that differs is run again, at most [`REPEATS`] times: a difference counts when it shows a second time, and where time may
//! explain it, when it shows each time. What did not show again is neither told nor hidden: the summary counts it, with its seed.
//!
//! Read first: [`case`], `compare`.

mod canonical;
pub mod case;
mod cleanup;
mod compare;
mod coverage;
mod deliberate;
mod difference;
pub mod generate;
mod host;
mod ip;
mod kernel;
mod modes;
mod ours;
mod ports;
mod proportion;
mod quotes;
pub mod report;
mod segment;
mod shrink;
mod side;
mod story;
mod wire;
mod world;

use anyhow::{Context as _, Result};
use case::Case;
use compare::Outcome;
use control::render::RenderError;
use difference::Difference;
use generate::{Cluster, Given};
pub use kernel::Rules;
use modes::Modes;
pub use proportion::Proportion;
use report::{Found, Repeated, Report};
use serde::{Deserialize, Serialize};
use side::Side;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is held against the kernel's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// Our dataplane.
    Penstock,
    /// The kernel with kube-proxy's rules of mode iptables.
    Iptables,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Request {
    /// The rules that say what is right.
    pub against: Rules,
    /// What is held against them.
    pub subject: Subject,
    /// The seed of the first case; each next one's is one more.
    pub seed: u64,
    /// How many cases; as many as there is time for when absent.
    pub cases: Option<u64>,
    /// For how long.
    pub time: Option<Duration>,
    /// Clusters to take instead of random ones, in turn.
    pub clusters: Vec<Cluster>,
    /// Where differences are saved.
    pub save: PathBuf,
    /// Whether differences are made smaller before they are told.
    pub shrink: bool,
    /// More differences than that are of no use.
    pub enough: usize,
}

/// Cases that run at the same time: much of one is waiting for devices to come and go.
const AT_A_TIME: usize = 6;

/// Runs cases until there are enough, or enough differences. `progress` is told of each difference.
///
/// # Errors
/// When a side cannot be made: no privilege, a missing program, objects that are wrong.
pub fn run(request: &Request, progress: &(dyn Fn(&Found) + Sync)) -> Result<Report> {
    let next = AtomicU64::new(request.seed);
    let end = request
        .cases
        .map_or(u64::MAX, |cases| request.seed.saturating_add(cases));
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let report = Mutex::new(Report::new(request));
    // One of a kind is made smaller and told; others are counted.
    let kinds = Mutex::new(HashSet::new());
    let work = || -> Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let over = request.time.is_some_and(|time| start.elapsed() >= time);
            if seed >= end || over || stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let case = generate::case(seed, &given(request, seed)?)?;
            let (outcome, repeated) = match clear(&case, request) {
                // kube-proxy would program nothing at all.
                Err(error) if error.is::<RenderError>() => {
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    report.skipped += 1;
                    continue;
                }
                outcome => outcome.with_context(|| format!("seed {seed}"))?,
            };
            let difference = outcome.difference.as_ref();
            let is_new = |difference: &&Difference| {
                let mut kinds = kinds.lock().unwrap_or_else(PoisonError::into_inner);
                kinds.insert(difference.kind(&case))
            };
            let new = difference.filter(is_new);
            let found = new
                .map(|difference| find(&case, difference, request))
                .transpose()?;
            if let Some(found) = &found {
                progress(found);
            }
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            report.add(&case, outcome, found);
            report.repeated.extend(repeated);
            if report.differences.len() >= request.enough {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        let results = threads.into_iter().map(|thread| {
            let result = thread.join();
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        results.collect::<Result<Vec<()>>>()
    })?;
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.finish(start.elapsed());
    if request.clusters.is_empty() {
        report.proportions = proportions(request)?;
    }
    Ok(report)
}

fn proportions(request: &Request) -> Result<Vec<Proportion>> {
    let case = proportion::case(request.seed)?;
    with_sides(&case, 0, request, |sides, _| {
        proportion::measure(&case, sides)
    })
}

/// Runs a case again that was saved at `path`.
///
/// # Errors
/// As [`run`].
pub fn replay(path: &Path, case: &Case, request: &Request) -> Result<Report> {
    let start = Instant::now();
    let (outcome, repeated) = clear(case, request)?;
    let found = outcome.difference.as_ref().map(|difference| Found {
        seed: case.seed,
        step: difference.step,
        kind: difference.kind(case),
        story: story::tell(case, difference, &other(request)),
        file: path.to_owned(),
    });
    let mut report = Report::new(request);
    report.add(case, outcome, found);
    report.repeated.extend(repeated);
    report.finish(start.elapsed());
    Ok(report)
}

/// Reads a saved case.
///
/// # Errors
/// When the file cannot be read, or is none.
pub fn read_case(path: &Path) -> Result<Case> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let case: Case = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    case.check().with_context(|| path.display().to_string())?;
    Ok(case)
}

fn given(request: &Request, seed: u64) -> Result<Given> {
    let count = request.clusters.len().max(1) as u64;
    let turn = usize::try_from(seed % count)?;
    Ok(Given {
        cluster: request.clusters.get(turn).cloned(),
        // Two kernels cannot be made to choose the same.
        single_endpoints: request.subject != Subject::Penstock,
    })
}

/// Further runs of a case that differs.
const REPEATS: usize = 3;

/// Runs `case`, and again where it differs: our side does the same each time, but for the ports that it draws, and the kernel
/// has clocks and caches of its own. A difference counts when it shows a second time; those that time may explain, a timeout
/// that passed on one side only, when they show each time. Also what differed in runs that count no more.
fn clear(case: &Case, request: &Request) -> Result<(Outcome, Vec<Repeated>)> {
    let (mut repeated, mut certain, mut same) = (Vec::new(), 0, None);
    let mut runs = 0;
    loop {
        let outcome = one(case, runs, request)?;
        match &outcome.difference {
            None if certain == 0 => return Ok((outcome, repeated)),
            None => same = Some(outcome),
            Some(difference) => {
                certain += usize::from(!outcome.is_time_unclear);
                let is_last = same.is_none() && repeated.len() == REPEATS;
                if certain == 2 || is_last {
                    return Ok((outcome, Vec::new()));
                }
                repeated.push(Repeated {
                    seed: case.seed,
                    kind: difference.kind(case),
                });
            }
        }
        runs += 1;
        match same {
            Some(outcome) if runs > REPEATS => return Ok((outcome, repeated)),
            other => same = other,
        }
    }
}

/// Runs `case` once, for the time of this number.
fn one(case: &Case, run: usize, request: &Request) -> Result<Outcome> {
    with_sides(case, run, request, |[kernel, subject], modes| {
        let mut outcome = compare::run(case, modes, kernel, subject)?;
        outcome.coverage = subject.coverage();
        Ok(outcome)
    })
}

/// Runs `inside` with both sides of `case`, and with what kube-proxy's modes do not do alike if both matter.
fn with_sides<T>(
    case: &Case,
    run: usize,
    request: &Request,
    inside: impl FnOnce([&mut dyn Side; 2], Option<&Modes>) -> Result<T>,
) -> Result<T> {
    let mut kernel = kernel::Kernel::start(case, request.against)?;
    let modes = match request.against {
        Rules::Iptables => None,
        Rules::Nftables => Some(Modes::of(case)?),
    };
    match request.subject {
        Subject::Penstock => ours::with(case, run, |ours| {
            inside([&mut kernel, ours], modes.as_ref())
        }),
        Subject::Iptables => {
            let mut iptables = kernel::Kernel::start(case, Rules::Iptables)?;
            inside([&mut kernel, &mut iptables], modes.as_ref())
        }
    }
}

/// Makes a difference small, tells it and saves it.
fn find(case: &Case, difference: &Difference, request: &Request) -> Result<Found> {
    let kind = difference.kind(case);
    let again = |case: &Case| {
        one(case, 0, request)
            .ok()
            .and_then(|outcome| outcome.difference)
    };
    let shows = |case: &Case| again(case).is_some_and(|difference| difference.kind(case) == kind);
    let mut small = case.clone();
    if request.shrink {
        small = shrink::shrink(case, difference.step, shows);
    }
    // What is random may hide from the last run; then the first one is told.
    let shown = again(&small).filter(|again| again.kind(&small) == kind);
    let (told, difference) = match &shown {
        Some(again) => (&small, again),
        None => (case, difference),
    };
    let file = request
        .save
        .join(format!("penstock-diff-{}.json", case.seed));
    let text = serde_json::to_string_pretty(told)?;
    std::fs::write(&file, text).with_context(|| file.display().to_string())?;
    Ok(Found {
        seed: case.seed,
        step: difference.step,
        kind,
        story: story::tell(told, difference, &other(request)),
        file,
    })
}

/// What the other side is called in stories.
fn other(request: &Request) -> String {
    match request.against {
        Rules::Iptables => "kernel (iptables)".to_owned(),
        Rules::Nftables => "kernel (nftables)".to_owned(),
    }
}
