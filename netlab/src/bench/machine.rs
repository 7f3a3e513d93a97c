//! What is measured on, and which processor does what.

use serde::Serialize;
use std::fs;
use std::io;

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
            bind(thread, usize::from(self == Self::Apart))?;
        }
        Ok(())
    }
}

fn bind(thread: Option<rustix::process::Pid>, processor: usize) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    rustix::thread::sched_setaffinity(thread, &set).map_err(io::Error::from)
}
