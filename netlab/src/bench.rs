//! `./lab bench`: dataplanes side by side, each in a lab of equal make: a client outside, a node, a pod that answers.
//!
//! All labs of a run, of all dataplanes with all numbers of Services, are up at the same time and take turns, A B A B, over
//! several rounds: 10,000 Services by one, too, is a ratio of what was measured at the same time. Those of `update`, `snat`
//! and `attack` have one number of Services at a time. An error of a client ends the run. Plain routing and the bare copy loop through the agent's own devices are asked by the pod's address: the
//! one bounds what any dataplane can reach, the other what one on TUN devices can. An agent that never sleeps is stopped in
//! the turns of others.

mod arguments;
mod ask;
mod attack;
mod bed;
mod fill_ports;
mod html;
mod load;
mod load_rules;
mod machine;
mod objects;
mod partial_rules;
mod report;
mod rest;
mod server;
mod snat;
mod turns;
mod update;

pub use arguments::Arguments;
pub use server::serve;

use crate::lab::{Error, io_error};
use crate::process::ProcessId;
use crate::state::{self, State};
use arguments::Form;
use bed::Bed;
use clap::ValueEnum;
use jiff::Timestamp;
use machine::{Placement, Settings};
use objects::Position;
use report::{Key, Report, Row, counted};
use std::time::Duration;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Benchmark {
    /// TCP connections per second: connect, a byte there and back, close
    Connections,
    /// Time of a byte there and back on an established connection
    Latency,
    /// One TCP stream
    Bulk,
    /// Small UDP packets per second
    Packets,
    /// How long all Services take, and the change of one endpoint until a packet goes the new way
    Update,
    /// New flows that arrive when nearly all ports for masquerading towards one destination are taken
    Snat,
    /// Floods, scans, full tables: what becomes of others' established flows and of their new ones
    Attack,
}

impl Benchmark {
    /// As in arguments and reports.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether Penstock can be held against it: all but those that count by time are about Services, and `update` starts
    /// agents of its own.
    const fn can_use(self, subject: Subject) -> bool {
        match self {
            Self::Update => subject.has_services() && !matches!(subject, Subject::BusyPoll),
            Self::Snat | Self::Attack => subject.has_services(),
            _ => true,
        }
    }

    /// Whether it counts what happens in a turn's time.
    const fn is_by_time(self) -> bool {
        matches!(
            self,
            Self::Connections | Self::Latency | Self::Bulk | Self::Packets
        )
    }
}

/// A dataplane that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// Our agent
    Penstock,
    /// The kernel with our rendered rules, iptables
    Iptables,
    /// The kernel with our rendered rules, nftables
    Nftables,
    /// Routing, and nothing else
    Plain,
    /// The agent's devices and routing, each packet copied as it is
    TunCopy,
    /// Our agent with `--busy-poll`
    BusyPoll,
}

impl Subject {
    /// As in arguments and reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Penstock => "penstock",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Plain => "plain",
            Self::TunCopy => "tun-copy",
            Self::BusyPoll => "busy-poll",
        }
    }

    /// Whether it makes Services work; the pod itself is asked otherwise.
    const fn has_services(self) -> bool {
        !matches!(self, Self::Plain | Self::TunCopy)
    }

    /// Whether it is the kernel that makes them work.
    const fn is_kernel(self) -> bool {
        matches!(self, Self::Iptables | Self::Nftables)
    }
}

/// Measures and prints. `interrupted` ends the run; its labs go in any case.
pub fn run(arguments: &Arguments, interrupted: &(dyn Fn() -> bool + Sync)) -> Result<(), Error> {
    arguments.check()?;
    if !rustix::process::geteuid().is_root() {
        let text =
            "a lab is made of network namespaces, which only root may make; run it with sudo";
        return Err(Error::Unable(text.to_owned()));
    }
    arguments.check_report()?;
    if let Some(text) = arguments.left_out() {
        eprintln!("bench: {text}");
    }
    let machine = machine::Machine::describe();
    if machine.is_busy() && !arguments.busy_is_fine {
        let text = format!(
            "the load of this machine is {}, so figures taken now would say little; wait, or add --busy-is-fine",
            machine.load
        );
        return Err(Error::Busy(text));
    }
    clear_dead_labs();
    let mut report = Report {
        benchmark: arguments.benchmark,
        began: Timestamp::now(),
        settings: Settings::of(arguments),
        machine,
        rows: Vec::new(),
    };
    let run = Run {
        arguments,
        interrupted,
    };
    report.rows = match arguments.benchmark {
        Benchmark::Update => run.one_size_at_a_time(update::rows)?,
        Benchmark::Snat => run.one_size_at_a_time(snat::rows)?,
        Benchmark::Attack => run.one_size_at_a_time(attack::rows)?,
        _ => side_by_side(run)?,
    };
    report.machine.load_after = machine::load();
    // The figures are there, and come out whatever becomes of the page.
    let printed = match arguments.output {
        Form::Json => crate::screens::print_json(&report.json()),
        Form::Text => crate::screens::print(&report.text()),
    };
    let written = arguments.report.as_ref().map_or(Ok(()), |path| {
        let page = html::page(&report);
        std::fs::write(path, page).map_err(io_error(path.display().to_string()))
    });
    printed.and(written)
}

/// What all benchmarks are told.
#[derive(Clone, Copy)]
struct Run<'a> {
    arguments: &'a Arguments,
    interrupted: &'a (dyn Fn() -> bool + Sync),
}

impl Run<'_> {
    /// A lab of each subject with each number of Services, at rest until its turn.
    fn beds(self) -> Result<Vec<Bed>, Error> {
        let mut beds = Vec::new();
        for services in self.arguments.sizes() {
            for subject in self.arguments.subjects() {
                let size = counted(services, "Service");
                eprintln!("bench: {} with {size}", subject.name());
                let benchmark = self.arguments.benchmark;
                let bed = Bed::make(subject, services, benchmark, self.interrupted)?;
                bed.rest()?;
                beds.push(bed);
            }
        }
        Ok(beds)
    }

    fn one_size_at_a_time(
        self,
        rows: fn(Self, u32) -> Result<Vec<Row>, Error>,
    ) -> Result<Vec<Row>, Error> {
        let mut all = Vec::new();
        for services in self.arguments.sizes() {
            all.extend(rows(self, services)?);
        }
        Ok(all)
    }
}

/// Without those that came before.
fn each_once<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

/// Whether a lab is one of a benchmark that runs now: who made it for that lives as long as it.
pub(crate) fn is_using(lab: &str) -> bool {
    whose(lab).is_some_and(ProcessId::is_alive)
}

/// The run that a lab was made for, if it was for one.
fn whose(lab: &str) -> Option<ProcessId> {
    let state = lab
        .starts_with(bed::PREFIX)
        .then(|| State::read(lab).ok().flatten())?;
    state.map(|state| state.owner)
}

/// What a run has left that was killed: its labs have an owner that is no more.
fn clear_dead_labs() {
    for lab in state::labs().unwrap_or_default() {
        if whose(&lab).is_some_and(|run| !run.is_alive()) {
            eprintln!("bench: {lab} was left by an earlier run and goes");
            if let Err(error) = crate::lab::down(&lab) {
                eprintln!("bench: {error}");
            }
        }
    }
}

/// All subjects with all numbers of Services, in both placements; through each Service that is probed.
fn side_by_side(run: Run<'_>) -> Result<Vec<Row>, Error> {
    let time = Duration::from_millis(run.arguments.time().into());
    let beds = run.beds()?;
    let mut rows = Vec::new();
    for placement in Placement::of_this_machine() {
        let rounds = counted(run.arguments.rounds(), "round");
        eprintln!("bench: all of them, {}, {rounds}", placement.name());
        let all = in_all_places(run, &beds, placement);
        rows.extend(turns::take(run, all, |(bed, position), _| {
            bed.measure(run.arguments.benchmark, *position, placement, time)
        })?);
    }
    let sizes = run.arguments.sizes();
    rows.sort_by_key(|row| sizes.iter().position(|size| *size == row.key.services));
    Ok(rows)
}

/// Who takes a turn, by number of Services and place: each beside those that it is held against.
fn in_all_places<'a>(
    run: Run<'_>,
    beds: &'a [Bed],
    placement: Placement,
) -> Vec<(Key, (&'a Bed, Position))> {
    let mut all = Vec::new();
    for services in run.arguments.sizes() {
        for position in run.arguments.places() {
            let is_probed = |bed: &&Bed| bed.services == services && bed.has(position);
            all.extend(beds.iter().filter(is_probed).map(|bed| {
                let key = Key::of(services, bed.subject, placement.name()).at(position);
                (key, (bed, position))
            }));
        }
    }
    all
}
