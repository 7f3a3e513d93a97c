//! What is measured on, and which processor does what.

use super::report::counted;
use super::{Arguments, Benchmark, Subject};
use crate::servers::in_path;
use rustix::io::Errno;
use serde::Serialize;
use std::fs;
use std::io;
use std::process::Command;

/// A description for who reads the figures.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) processors: usize,
    pub(super) kernel: String,
    /// Load average of one minute when the run began.
    pub(super) load: f64,
    /// And when it ended.
    pub(super) load_after: f64,
}

impl Machine {
    pub(super) fn describe() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            processor: model.map_or_else(String::new, |(_, name)| name.trim().to_owned()),
            processors: processors(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load(),
            load_after: 0.0,
        }
    }

    /// Whether others use so much that figures say little.
    pub(super) fn is_busy(&self) -> bool {
        self.load > 0.25 * self.processors as f64
    }
}

/// How it is measured, and with which programs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Settings {
    /// The command, with what was left out filled in.
    pub(super) command: String,
    pub(super) services: Vec<u32>,
    /// What Penstock is held against.
    pub(super) against: Vec<&'static str>,
    pub(super) rounds: u32,
    /// Of one turn.
    pub(super) milliseconds: u32,
    /// Threads of the agent, each with queues of its own of every device.
    pub(super) workers: u8,
    /// What the kernel's rules are loaded by.
    pub(super) iptables: String,
    pub(super) nftables: String,
    /// Room of the kernel's connection table.
    pub(super) nf_conntrack_max: u32,
}

impl Settings {
    pub(super) fn of(arguments: &Arguments) -> Self {
        let subjects = arguments.subjects().into_iter();
        let peers = subjects.filter(|subject| *subject != Subject::Penstock);
        Self {
            command: arguments.command(),
            services: arguments.sizes(),
            against: peers.map(Subject::name).collect(),
            rounds: arguments.rounds(),
            milliseconds: arguments.time(),
            workers: WORKERS,
            iptables: version(super::load_rules::iptables_restore()),
            nftables: version("nft"),
            nf_conntrack_max: kernel_table(),
        }
    }

    /// For people.
    pub(super) fn words(&self, benchmark: Benchmark) -> String {
        let turn = if benchmark.is_by_time() {
            format!(" of {} ms", self.milliseconds)
        } else {
            String::new()
        };
        format!(
            "{}{turn}, {} worker, {}, {}, nf_conntrack_max {}",
            counted(self.rounds, "round"),
            self.workers,
            self.iptables,
            self.nftables,
            self.nf_conntrack_max
        )
    }
}

/// Of the agents that are measured.
pub(super) const WORKERS: u8 = 1;

/// What a program says that it is; its name when it does not.
fn version(program: &str) -> String {
    let asked = in_path(program).map(|path| Command::new(path).arg("--version").output());
    let said = match asked {
        Some(Ok(output)) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => String::new(),
    };
    if said.is_empty() {
        program.to_owned()
    } else {
        said
    }
}

/// Room of the kernel's connection table: one number for all network namespaces, which only the first one can change.
pub(super) fn kernel_table() -> u32 {
    let text = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(262_144)
}

/// Load average of one minute; 0 when the system does not say.
pub(super) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0.0)
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Which processor runs what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// Client, node and server on one processor: no time is spent on waking another one.
    OneProcessor,
    /// The client on one, node and server on another one.
    Apart,
}

impl Placement {
    /// Those that this machine has processors for.
    pub(super) fn of_this_machine() -> Vec<Self> {
        if processors() > 1 {
            vec![Self::OneProcessor, Self::Apart]
        } else {
            vec![Self::OneProcessor]
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::OneProcessor => "one-cpu",
            Self::Apart => "apart",
        }
    }

    /// Binds the calling thread as a client.
    pub(super) fn bind_client(self) -> io::Result<()> {
        bind(None, 0)
    }

    /// Binds a process of the node or the pod, with all of its threads.
    pub(super) fn bind_server(self, process: u32) -> io::Result<()> {
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = task?
                .file_name()
                .to_string_lossy()
                .parse()
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            match bind(thread, usize::from(self == Self::Apart)) {
                // It ended since it was listed.
                Err(error) if error.raw_os_error() == Some(NO_SUCH_THREAD) => {}
                bound => bound?,
            }
        }
        Ok(())
    }
}

const NO_SUCH_THREAD: i32 = Errno::SRCH.raw_os_error();

fn bind(thread: Option<rustix::process::Pid>, processor: usize) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    rustix::thread::sched_setaffinity(thread, &set).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn threads_that_end_while_a_process_is_bound_do_no_harm() {
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(Placement::OneProcessor.bind_server(sleeper.id()).is_ok());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(Placement::OneProcessor.bind_server(sleeper.id()).is_err());
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    std::thread::scope(|short| {
                        short.spawn(|| {});
                    });
                }
            });
            let bound = (0..2000).map(|_| Placement::OneProcessor.bind_server(std::process::id()));
            let failed = bound.filter(Result::is_err).count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(failed, 0);
        });
    }
}
