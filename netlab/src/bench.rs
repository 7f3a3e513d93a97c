//! `./lab bench`: dataplanes side by side, each in a lab of equal make: a client outside, a node, a pod that answers.
//!
//! All labs of a run, of all dataplanes with all numbers of Services, are up at the same time and take turns, A B A B, over
//! several rounds: 10,000 Services by one, too, is a ratio of what was measured at the same time. Those of `update`, `snat`
//! and `attack` have one number of Services at a time. An error of a client ends the run. Plain routing and the bare copy loop through the agent's own devices are asked by the pod's address: the
//! one bounds what any dataplane can reach, the other what one on TUN devices can. An agent that never sleeps is stopped in
//! the turns of others.

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

pub use server::serve;

use crate::lab::{Error, io_error};
use crate::state::{self, State};
use bed::Bed;
use clap::ValueEnum;
use machine::{Placement, Settings};
use objects::Position;
use report::{Key, Report, Row, counted};
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `./lab bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// What is measured
    benchmark: Benchmark,
    /// Numbers of Services
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 10_000], value_parser = clap::value_parser!(u32).range(1..=60_000))]
    services: Vec<u32>,
    /// Endpoints of each Service but the probed one, in `update`
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [10], value_parser = clap::value_parser!(u32).range(1..=20))]
    endpoints: Vec<u32>,
    /// Where the probed Service stands among the others, in those that ask through one; the middle only where there is one
    #[arg(long, value_name = "PLACE,PLACE", value_delimiter = ',', default_values = ["end", "middle"])]
    probed: Vec<Position>,
    /// What Penstock is held against
    #[arg(long, value_name = "PEER,PEER", value_delimiter = ',', default_values = ["iptables", "nftables", "plain", "tun-copy"])]
    against: Vec<Subject>,
    /// Rounds in which all take turns; 15 when absent, and 5 in `update`, `snat` and `attack`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// How long each is measured in a round
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=60_000))]
    time: u32,
    /// When a cold load of rules is given up, in `update`
    #[arg(long, value_name = "SECONDS", default_value_t = 240, value_parser = clap::value_parser!(u32).range(1..=3600))]
    patience: u32,
    /// Packets of an attack by 1,000; as many as are ten tables when absent, for the scan, and two for others
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    thousands: Option<u32>,
    /// Measure although other programs use the processors
    #[arg(long)]
    busy_is_fine: bool,
    /// Write the figures as a page for browsers, too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// How to print
    #[arg(short, long, default_value = "text")]
    output: Form,
}

impl Arguments {
    /// Many short turns rather than few long ones: what else the machine does changes within seconds.
    fn rounds(&self) -> u32 {
        let usual = if self.benchmark.is_by_time() { 15 } else { 5 };
        self.rounds.unwrap_or(usual)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Text,
    /// One JSON document
    Json,
}

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
    /// Ten endpoints each: how long all Services take, and the change of one endpoint until a packet goes the new way
    Update,
    /// New flows that arrive when nearly all ports for masquerading towards one destination are taken
    Snat,
    /// Floods, scans, full tables: what becomes of others' established flows and of their new ones
    Attack,
}

impl Benchmark {
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
    if !rustix::process::geteuid().is_root() {
        let text =
            "a lab is made of network namespaces, which only root may make; run it with sudo";
        return Err(Error::Unable(text.to_owned()));
    }
    let machine = machine::Machine::describe();
    if machine.is_busy() && !arguments.busy_is_fine {
        let text = format!(
            "the load of this machine is {}: what is measured now says little; wait, or add --busy-is-fine",
            machine.load
        );
        return Err(Error::Busy(text));
    }
    clear_dead_labs();
    let mut report = Report {
        benchmark: arguments.benchmark,
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
    if let Some(path) = &arguments.report {
        std::fs::write(path, html::page(&report)).map_err(io_error(path.display().to_string()))?;
    }
    match arguments.output {
        Form::Json => crate::screens::print_json(&report.json()),
        Form::Text => crate::screens::print(&report.text()),
    }
}

/// What all benchmarks are told.
#[derive(Clone, Copy)]
struct Run<'a> {
    arguments: &'a Arguments,
    interrupted: &'a (dyn Fn() -> bool + Sync),
}

impl Run<'_> {
    /// Numbers of Services, each once.
    fn sizes(&self) -> Vec<u32> {
        each_once(self.arguments.services.iter().copied())
    }

    /// Penstock, and what it is held against, each once.
    fn subjects(&self) -> Vec<Subject> {
        let peers = self.arguments.against.iter().copied();
        each_once([Subject::Penstock].into_iter().chain(peers))
    }

    /// Those of them that make Services work.
    fn with_services(&self) -> Vec<Subject> {
        let mut subjects = self.subjects();
        subjects.retain(|subject| subject.has_services());
        subjects
    }

    /// A lab of each subject with each number of Services, at rest until its turn.
    fn beds(self) -> Result<Vec<Bed>, Error> {
        let mut beds = Vec::new();
        for services in self.sizes() {
            for subject in self.subjects() {
                let size = counted(services, "Service");
                eprintln!("bench: {} with {size}", subject.name());
                let shape = (services, self.arguments.benchmark);
                let bed = Bed::make(subject, shape, self.interrupted)?;
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
        for services in self.sizes() {
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

/// What a run has left that was killed: its labs have an owner that is no more.
fn clear_dead_labs() {
    for lab in state::labs().unwrap_or_default() {
        let is_dead = |state: State| !state.owner.is_alive();
        let is_left = lab.starts_with(bed::PREFIX)
            && State::read(&lab).is_ok_and(|state| state.is_some_and(is_dead));
        if is_left {
            eprintln!("bench: {lab} was left by an earlier run and goes");
            if let Err(error) = crate::lab::down(&lab) {
                eprintln!("bench: {error}");
            }
        }
    }
}

/// All subjects with all numbers of Services, in both placements; through each Service that is probed.
fn side_by_side(run: Run<'_>) -> Result<Vec<Row>, Error> {
    let time = Duration::from_millis(run.arguments.time.into());
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
    let sizes = run.sizes();
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
    for services in run.sizes() {
        for position in each_once(run.arguments.probed.iter().copied()) {
            let is_probed = |bed: &&Bed| bed.services == services && bed.has(position);
            all.extend(beds.iter().filter(is_probed).map(|bed| {
                let key = Key::of(services, bed.subject, placement.name()).at(position);
                (key, (bed, position))
            }));
        }
    }
    all
}
