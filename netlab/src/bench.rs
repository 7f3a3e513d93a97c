//! `./lab bench`: dataplanes side by side, each in a lab of equal make: a client outside, a node, a pod that answers.
//!
//! All labs of a run are up at the same time and take turns, A B A B, over several rounds; an error of a client ends
//! the run. Plain routing and the bare copy loop through the agent's own devices are asked by the pod's address: the
//! one bounds what any dataplane can reach, the other what one on TUN devices can.

mod bed;
mod fill_ports;
mod load;
mod load_rules;
mod machine;
mod objects;
mod report;
mod snat;
mod update;

pub use load::serve;

use crate::lab::{Error, io_error};
use crate::state::{self, State};
use bed::Bed;
use clap::ValueEnum;
use machine::Placement;
use report::{Report, Row};
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
    /// What Penstock is held against
    #[arg(long, value_name = "PEER,PEER", value_delimiter = ',', default_values = ["iptables", "nftables", "plain", "tun-copy"])]
    against: Vec<Subject>,
    /// Rounds in which all take turns
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each is measured in a round
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=60_000))]
    time: u32,
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
}

impl Subject {
    /// As in arguments and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Penstock => "penstock",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Plain => "plain",
            Self::TunCopy => "tun-copy",
        }
    }

    /// Whether it makes Services work; the pod itself is asked otherwise.
    const fn has_services(self) -> bool {
        matches!(self, Self::Penstock | Self::Iptables | Self::Nftables)
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
    let mut report = Report {
        benchmark: arguments.benchmark,
        milliseconds: arguments.time,
        machine,
        rows: Vec::new(),
    };
    clear_dead_labs();
    for &services in &arguments.services {
        report.rows.extend(match arguments.benchmark {
            Benchmark::Update => update::rows(arguments, services, interrupted)?,
            Benchmark::Snat => snat::rows(arguments, services, interrupted)?,
            _ => side_by_side(arguments, services, interrupted)?,
        });
    }
    report.machine.load_after = machine::load();
    if let Some(path) = &arguments.report {
        std::fs::write(path, report.html()).map_err(io_error(path.display().to_string()))?;
    }
    match arguments.output {
        Form::Json => crate::screens::print_json(&report.json()),
        Form::Text => crate::screens::print(&report.text()),
    }
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

/// Those of the subjects that make Services work, Penstock first.
fn with_services(arguments: &Arguments) -> Vec<Subject> {
    let peers = arguments.against.iter().copied();
    let mut subjects = vec![Subject::Penstock];
    subjects.extend(peers.filter(|peer| matches!(peer, Subject::Iptables | Subject::Nftables)));
    subjects
}

/// All subjects with so many Services, in both placements.
fn side_by_side(
    arguments: &Arguments,
    services: u32,
    interrupted: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<Row>, Error> {
    let mut subjects = vec![Subject::Penstock];
    for subject in &arguments.against {
        if !subjects.contains(subject) {
            subjects.push(*subject);
        }
    }
    let mut beds = Vec::new();
    for subject in subjects {
        eprintln!("bench: {} with {services} Services", subject.name());
        let shape = (services, arguments.benchmark);
        beds.push(Bed::make(subject, shape, interrupted)?);
    }
    let mut rows = Vec::new();
    for placement in Placement::of_this_machine() {
        eprintln!(
            "bench: {services} Services, {}, {} rounds",
            placement.name(),
            arguments.rounds
        );
        let mut measured: Vec<Vec<load::Figures>> = vec![Vec::new(); beds.len()];
        for _ in 0..arguments.rounds {
            for (bed, figures) in beds.iter().zip(&mut measured) {
                if interrupted() {
                    return Err(Error::Interrupted);
                }
                let time = Duration::from_millis(arguments.time.into());
                figures.push(bed.measure(arguments.benchmark, placement, time)?);
            }
        }
        for (bed, figures) in beds.iter().zip(measured) {
            rows.extend(Row::of(
                services,
                bed.subject.name(),
                placement.name(),
                &figures,
            ));
        }
    }
    Ok(rows)
}
