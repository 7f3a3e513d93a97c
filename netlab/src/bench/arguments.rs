//! What `./lab bench` is told, and what of it cannot be honoured.

use super::objects::{Position, middle};
use super::{Benchmark, Subject, each_once};
use crate::lab::Error;
use clap::ValueEnum;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `./lab bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// What is measured
    pub(super) benchmark: Benchmark,
    /// Numbers of Services; 1,10000 when absent, but 1 in `attack`, where the kernel's rules for many would take all the time
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=60_000))]
    services: Option<Vec<u32>>,
    /// Endpoints of each Service but the probed one, in `update`; 10 when absent
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=20))]
    endpoints: Option<Vec<u32>>,
    /// Where the probed Service stands among the others, in benchmarks that ask through one Service; all places when absent
    #[arg(long, value_name = "PLACE,PLACE", value_delimiter = ',')]
    probed: Option<Vec<Position>>,
    /// What Penstock is compared with; when absent iptables and nftables, and also plain and tun-copy in benchmarks that
    /// ask through one Service
    #[arg(long, value_name = "PEER,PEER", value_delimiter = ',')]
    against: Option<Vec<Subject>>,
    /// Rounds in which all take turns; 15 when absent, and 5 in `update`, `snat` and `attack`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// How long each is measured in a round, in those that count by time; 300 when absent
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u32).range(10..=60_000))]
    time: Option<u32>,
    /// When a cold load of rules is given up, in `update`; 240 when absent
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    patience: Option<u32>,
    /// Thousands of packets per attack; when absent as many as fill the table ten times for the scan, twice for the others
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) thousands: Option<u32>,
    /// Measure although other programs use the processors
    #[arg(long)]
    pub(super) busy_is_fine: bool,
    /// Write the figures as a page for browsers, too
    #[arg(long, value_name = "FILE")]
    pub(super) report: Option<PathBuf>,
    /// How to print
    #[arg(short, long, default_value = "text")]
    pub(super) output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// For people
    Text,
    /// One JSON document
    Json,
}

impl Arguments {
    /// Numbers of Services, each once.
    pub(super) fn sizes(&self) -> Vec<u32> {
        let usual: &[u32] = if self.benchmark == Benchmark::Attack {
            &[1]
        } else {
            &[1, 10_000]
        };
        each_once(self.services.as_deref().unwrap_or(usual).iter().copied())
    }

    pub(super) fn endpoints(&self) -> Vec<u32> {
        let given = self.endpoints.as_deref();
        each_once(given.unwrap_or(&[10]).iter().copied())
    }

    /// Where Services are probed.
    pub(super) fn places(&self) -> Vec<Position> {
        let given = self.probed.as_deref();
        let places = given.unwrap_or_else(Position::value_variants);
        let mut places = each_once(places.iter().copied());
        places.retain(|place| *place == Position::End || self.has_middle());
        places
    }

    /// Whether a Service stands in the middle in one of the sizes.
    fn has_middle(&self) -> bool {
        let mut sizes = self.sizes().into_iter();
        sizes.any(|services| middle(services).is_some())
    }

    /// Penstock, and what it is held against, each once.
    pub(super) fn subjects(&self) -> Vec<Subject> {
        let usual = [
            Subject::Iptables,
            Subject::Nftables,
            Subject::Plain,
            Subject::TunCopy,
        ];
        let peers = self.against.as_deref().unwrap_or(&usual).iter().copied();
        let mut subjects = each_once([Subject::Penstock].into_iter().chain(peers));
        subjects.retain(|subject| self.benchmark.can_use(*subject));
        subjects
    }

    /// Many short turns rather than few long ones: what else the machine does changes within seconds.
    pub(super) fn rounds(&self) -> u32 {
        let usual = if self.benchmark.is_by_time() { 15 } else { 5 };
        self.rounds.unwrap_or(usual)
    }

    /// Milliseconds of a turn.
    pub(super) fn time(&self) -> u32 {
        self.time.unwrap_or(300)
    }

    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience.unwrap_or(240).into())
    }

    /// The command, with all that was left out and counts.
    pub(super) fn command(&self) -> String {
        let subjects = self.subjects();
        let peers = match subjects.as_slice() {
            [_, peers @ ..] if !peers.is_empty() => peers,
            alone => alone,
        };
        let mut text = format!(
            "./lab bench {} --services {} --against {} --rounds {}",
            self.benchmark.name(),
            list(&self.sizes(), u32::to_string),
            list(peers, |peer| peer.name().to_owned()),
            self.rounds(),
        );
        if self.benchmark.is_by_time() {
            let places = list(&self.places(), |place| place.name().to_owned());
            text += &format!(" --probed {places} --time {}", self.time());
        }
        if self.benchmark == Benchmark::Update {
            let endpoints = list(&self.endpoints(), u32::to_string);
            let patience = self.patience().as_secs();
            text += &format!(" --endpoints {endpoints} --patience {patience}");
        }
        let thousands = self
            .thousands
            .map(|number| format!(" --thousands {number}"));
        text + &thousands.unwrap_or_default()
    }

    /// Refuses what cannot be honoured. What the user did not name himself adapts to the benchmark.
    pub(super) fn check(&self) -> Result<(), Error> {
        let refusal = self.useless_option();
        let refusal = refusal.or_else(|| self.useless_peer());
        let refusal = refusal.or_else(|| self.useless_place());
        refusal.map_or(Ok(()), |text| Err(Error::Usage(text)))
    }

    /// Refuses a report that cannot be written, and leaves what is in its place as it is.
    pub(super) fn check_report(&self) -> Result<(), Error> {
        let Some(path) = &self.report else {
            return Ok(());
        };
        let writable = match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(_) => fs::remove_file(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                OpenOptions::new().write(true).open(path).map(drop)
            }
            Err(error) => Err(error),
        };
        writable.map_err(|error| {
            let path = path.display();
            let advice = "name a file in a folder that is there and can be written to";
            Error::Usage(format!("--report {path}: {error}; {advice}"))
        })
    }

    fn useless_option(&self) -> Option<String> {
        let is_by_time = self.benchmark.is_by_time();
        let is_update = self.benchmark == Benchmark::Update;
        let is_attack = self.benchmark == Benchmark::Attack;
        let options = [
            ("--endpoints", self.endpoints.is_some(), is_update),
            ("--patience", self.patience.is_some(), is_update),
            ("--thousands", self.thousands.is_some(), is_attack),
            ("--probed", self.probed.is_some(), is_by_time),
            ("--time", self.time.is_some(), is_by_time),
        ];
        let is_useless = |(_, is_given, is_used): &(_, bool, bool)| *is_given && !is_used;
        let (option, ..) = options.into_iter().find(is_useless)?;
        let benchmark = self.benchmark.name();
        Some(format!("{benchmark} has no use for {option}; leave it out"))
    }

    /// Peers without Services, in a benchmark that is about these, are left out; who names one list for all benchmarks is
    /// told so.
    pub(super) fn left_out(&self) -> Option<String> {
        let named = self.against.iter().flatten();
        let left_out = named.filter(|peer| !self.benchmark.can_use(**peer));
        let names: Vec<&str> = left_out.map(|peer| peer.name()).collect();
        (!names.is_empty()).then(|| {
            let (benchmark, names) = (self.benchmark.name(), names.join(", "));
            format!("{benchmark} is about Services; left out, without any: {names}")
        })
    }

    fn useless_peer(&self) -> Option<String> {
        let mut peers = self.against.iter().flatten();
        let is_useless = |peer: &&Subject| peer.has_services() && !self.benchmark.can_use(**peer);
        let useless = peers.find(is_useless)?;
        let can_be_used = Subject::value_variants()
            .iter()
            .filter(|peer| **peer != Subject::Penstock && self.benchmark.can_use(**peer));
        let names: Vec<&str> = can_be_used.map(|peer| peer.name()).collect();
        Some(format!(
            "{} has no use for {}; what it can be held --against is {}",
            self.benchmark.name(),
            useless.name(),
            names.join(", ")
        ))
    }

    fn useless_place(&self) -> Option<String> {
        let places = self.probed.as_deref()?;
        if places.contains(&Position::Middle) && !self.has_middle() {
            let text = "so few Services have none in the middle; give --services 3 or more, or --probed end";
            return Some(text.to_owned());
        }
        let mut peers = self.against.iter().flatten();
        let never_asked = peers.find(|peer| !peer.has_services())?;
        (!places.contains(&Position::End)).then(|| {
            let name = never_asked.name();
            format!("{name} has no Services, and its pod counts as the end; add end to --probed, or leave {name} out of --against")
        })
    }
}

/// As arguments take it.
fn list<T>(all: &[T], text: impl Fn(&T) -> String) -> String {
    all.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(line: &str) -> Arguments {
        Line::parse_from(["bench"].into_iter().chain(line.split(' '))).arguments
    }

    #[test]
    fn what_the_user_named_and_cannot_be_honoured_is_refused_with_what_to_do() {
        for (line, advice) in [
            ("update --against iptables,busy-poll", "iptables, nftables"),
            ("latency --probed middle --services 1,2", "--probed end"),
            ("latency --probed end,middle --services 1", "--services 3"),
            ("bulk --probed middle --against plain", "add end"),
            ("snat --probed end", "leave it out"),
            ("attack --time 100", "leave it out"),
            ("latency --endpoints 1", "leave it out"),
            ("snat --patience 10", "leave it out"),
            ("update --thousands 1", "leave it out"),
        ] {
            let refused = arguments(line).check().unwrap_err();
            assert!(
                matches!(&refused, Error::Usage(text) if text.contains(advice)),
                "{line}: {refused}"
            );
        }
    }

    #[test]
    fn the_command_of_a_report_can_be_given_again() {
        for (line, command) in [
            (
                "latency --services 1,1 --rounds 2",
                "latency --services 1 --against iptables,nftables,plain,tun-copy --rounds 2 --probed end --time 300",
            ),
            (
                "update --services 7 --against nftables --endpoints 1,10",
                "update --services 7 --against nftables --rounds 5 --endpoints 1,10 --patience 240",
            ),
            (
                "attack --against penstock --thousands 5",
                "attack --services 1 --against penstock --rounds 5 --thousands 5",
            ),
        ] {
            let told = arguments(line).command();
            assert_eq!(told, format!("./lab bench {command}"));
            let again = arguments(command);
            assert!(again.check().is_ok() && again.command() == told, "{told}");
        }
    }

    #[test]
    fn a_report_that_cannot_be_written_is_refused_and_files_stay_as_they_are() {
        let folder = std::env::temp_dir().join(format!("bench-report-{}", std::process::id()));
        let check = |name: &str| {
            let path = folder.join(name);
            arguments(&format!("bulk --report {}", path.display())).check_report()
        };
        let refused = check("page.html").unwrap_err();
        assert!(
            matches!(&refused, Error::Usage(text) if text.contains("name a file in a folder")),
            "{refused}"
        );
        fs::create_dir(&folder).unwrap();
        assert!(check("").is_err(), "a folder");
        assert!(check("page.html").is_ok() && !folder.join("page.html").exists());
        fs::write(folder.join("page.html"), "yesterday's").unwrap();
        assert!(check("page.html").is_ok());
        let left = fs::read_to_string(folder.join("page.html")).unwrap();
        assert_eq!(left, "yesterday's");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_usual_fits_every_benchmark() {
        for benchmark in Benchmark::value_variants() {
            for services in ["1", "1,10000"] {
                let line = format!("{} --services {services}", benchmark.name());
                let arguments = arguments(&line);
                assert!(arguments.check().is_ok(), "{line}");
                let all = if benchmark.is_by_time() { 5 } else { 3 };
                assert_eq!(arguments.subjects().len(), all, "{line}");
            }
        }
        assert!(arguments("snat --against busy-poll").check().is_ok());
        for benchmark in Benchmark::value_variants() {
            let name = benchmark.name();
            let arguments = arguments(&format!(
                "{name} --against iptables,nftables,plain,tun-copy"
            ));
            assert!(arguments.check().is_ok(), "{name}");
            assert_eq!(arguments.left_out().is_none(), benchmark.is_by_time());
        }
        assert!(
            arguments("bulk --probed middle --services 1,3")
                .check()
                .is_ok()
        );
    }
}
