//! What a lab has made: `/run/penstock/LAB/state.json`, written before each step.
//!
//! Whatever happens to the processes of a lab or to the command that made it, `down` finds here all that there
//! is to remove. Nothing else is ever removed: nothing is matched by the pattern of a name.

use crate::namespace;
use crate::plan::Plan;
use crate::process::ProcessId;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where labs keep what they need while they run.
pub const FOLDER: &str = "/run/penstock";

/// What agents and labs keep there besides, so that no lab is called so.
const NO_LABS: [&str; 3] = ["made-run-netns", "nodes", "sysctls"];

/// A lab that runs, or has run when somebody killed it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Version of this form.
    pub schema_version: u32,
    /// Its name.
    pub lab: String,
    /// The boot that it belongs to: after another one nothing of it is left but files.
    pub boot_id: String,
    /// How far it is.
    pub phase: Phase,
    /// The command that changes it.
    pub owner: ProcessId,
    /// What `up` was told.
    pub options: Options,
    /// Names under `/run/netns` that it has, or is about to make.
    pub namespaces: Vec<String>,
    /// Its processes, in the order of their start.
    pub processes: Vec<Process>,
    /// What it is made of, once known.
    pub plan: Option<Plan>,
    /// What an `apply` leads to, or comes from, until it is done: hosts of it may be there besides those of `plan`.
    #[serde(default)]
    pub unsettled: Option<Plan>,
}

/// How far a lab is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Somebody is making it.
    Starting,
    /// It is complete.
    Up,
    /// Somebody is removing it.
    Stopping,
}

/// What `up` was told, in full paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Lab file, objects or folder.
    pub source: PathBuf,
    /// KubeProxyConfiguration file, if not the lab's own.
    pub config: Option<PathBuf>,
    /// What makes Services work.
    pub dataplane: Dataplane,
    /// The node that VIPs are routed to, if not chosen.
    pub via: Option<String>,
    /// How the agents run.
    pub agent: AgentOptions,
}

impl Options {
    /// The command that makes a lab of this name as it was.
    pub fn command(&self, lab: &str) -> String {
        let mut command = format!("./lab up {} --name {lab}", self.source.display());
        // Writing to a String cannot fail.
        if let Some(config) = &self.config {
            let _ = write!(command, " --config {}", config.display());
        }
        if self.dataplane != Dataplane::default() {
            let _ = write!(command, " --dataplane {}", self.dataplane);
        }
        if let Some(via) = &self.via {
            let _ = write!(command, " --via {via}");
        }
        for argument in self.agent.arguments() {
            let _ = write!(command, " {argument}");
        }
        command
    }
}

/// What `penstock node` is told besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct AgentOptions {
    /// Agents take complete checksums and packets no larger than the MTU
    #[arg(long)]
    pub no_offload: bool,
    /// Agents refuse every packet, without the kernel's limit on ICMP errors
    #[arg(long)]
    pub no_reject_limit: bool,
    /// Worker threads of each agent
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub workers: u8,
    /// Agents never sleep: a processor for each worker
    #[arg(long)]
    #[serde(default)]
    pub busy_poll: bool,
    /// Agents give every packet back as it came: the limit in benchmarks
    #[arg(skip)]
    #[serde(default)]
    pub copy: bool,
}

impl AgentOptions {
    /// As arguments of `penstock node`.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--workers".to_owned(), self.workers.to_string()];
        arguments.extend(self.no_offload.then(|| "--no-offload".to_owned()));
        arguments.extend(self.no_reject_limit.then(|| "--no-reject-limit".to_owned()));
        arguments.extend(self.busy_poll.then(|| "--busy-poll".to_owned()));
        arguments.extend(self.copy.then(|| "--copy".to_owned()));
        arguments
    }
}

/// What makes Services work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dataplane {
    /// An agent on every node.
    #[default]
    Penstock,
    /// The kernel, with the rules of `penstock render iptables`.
    Iptables,
    /// The kernel, with the rules of `penstock render nftables`.
    Nftables,
    /// Nothing: plain routing.
    None,
}

impl std::fmt::Display for Dataplane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Penstock => "penstock",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::None => "none",
        })
    }
}

/// A process of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The host that it belongs to, as `exec` takes it.
    pub host: String,
    /// `agent`, `server` or `nginx`.
    pub role: String,
    /// Which process.
    pub id: ProcessId,
    /// Its command line.
    pub command: Vec<String>,
}

/// The folder of a lab.
pub fn folder(lab: &str) -> PathBuf {
    Path::new(FOLDER).join(lab)
}

impl State {
    /// A lab of which nothing is made yet, by the calling process.
    pub fn new(lab: &str, options: Options) -> io::Result<Self> {
        Ok(Self {
            schema_version: 1,
            lab: lab.to_owned(),
            boot_id: boot_id()?,
            phase: Phase::Starting,
            owner: this_process()?,
            options,
            namespaces: Vec::new(),
            processes: Vec::new(),
            plan: None,
            unsettled: None,
        })
    }

    /// The calling process changes it from now on.
    pub fn take_over(&mut self) -> io::Result<()> {
        self.owner = this_process()?;
        Ok(())
    }

    /// The state of a lab; `None` when there is none of that name.
    pub fn read(lab: &str) -> io::Result<Option<Self>> {
        let path = folder(lab).join("state.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| io::Error::other(format!("{}: {error}", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it, whole or not at all.
    pub fn write(&self) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        write_whole(&folder(&self.lab).join("state.json"), &text)
    }

    /// Whether the machine was started again since.
    pub fn is_of_earlier_boot(&self) -> bool {
        boot_id().is_ok_and(|boot_id| boot_id != self.boot_id)
    }

    /// Whether a command that still runs makes it or removes it.
    pub fn is_in_hand(&self) -> bool {
        !self.is_of_earlier_boot() && self.phase != Phase::Up && self.owner.is_alive()
    }

    /// Why it does not work as it was made; `None` when it does.
    pub fn broken(&self) -> Option<String> {
        if self.is_of_earlier_boot() {
            return Some("the machine was started again".to_owned());
        }
        match self.phase {
            Phase::Starting if self.owner.is_alive() => return Some("it is being made".to_owned()),
            Phase::Starting => return Some("making it was cut short".to_owned()),
            Phase::Stopping if self.owner.is_alive() => {
                return Some("it is being removed".to_owned());
            }
            Phase::Stopping => return Some("removing it was cut short".to_owned()),
            Phase::Up if self.unsettled.is_some() && !self.owner.is_alive() => {
                return Some("an ./lab apply was cut short".to_owned());
            }
            Phase::Up => {}
        }
        let hosts = self.plan.iter().flat_map(|plan| &plan.hosts);
        let mut own = hosts.filter(|host| host.has_namespace());
        if let Some(host) = own.find(|host| !namespace::exists(&host.namespace)) {
            return Some(format!("the network namespace of {} is gone", host.name));
        }
        let ended: Vec<_> = self
            .processes
            .iter()
            .filter(|process| !process.id.is_alive())
            .collect();
        let first = ended.first()?;
        let (role, host) = (&first.role, &first.host);
        Some(match ended.len() {
            1 => format!("the {role} of {host} has ended"),
            more => format!(
                "the {role} of {host} and {} other processes have ended",
                more - 1
            ),
        })
    }
}

/// The labs that have a state, by name.
pub fn labs() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(FOLDER) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut labs = Vec::new();
    for entry in entries {
        let name = entry?.file_name().into_string();
        labs.extend(name.ok().filter(|name| is_lab(name)));
    }
    labs.sort();
    Ok(labs)
}

/// Whether there is a lab of that name, or what is left of one: other folders are not ours to remove.
pub fn is_lab(name: &str) -> bool {
    let has = |file| folder(name).join(file).exists();
    check_name(name).is_ok() && (has("lock") || has("state.json"))
}

/// Why a lab cannot have that name, if so.
pub fn check_name(name: &str) -> Result<(), String> {
    const LENGTH: usize = 40;
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let fits = (1..=LENGTH).contains(&name.len())
        && name.bytes().all(|byte| letter(byte) || byte == b'-')
        && name.bytes().next().is_some_and(letter);
    if !fits {
        return Err(format!(
            "a lab's name is made of up to {LENGTH} lower-case letters, digits and dashes"
        ));
    }
    if NO_LABS.contains(&name) {
        return Err(format!(
            "{FOLDER}/{name} is no lab's, so none can be called so; give it another --name"
        ));
    }
    Ok(())
}

/// Writes a file so that a reader sees the old or the new one, never a part.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    fs::rename(&temporary, path)
}

/// Held while a command changes a lab; given back when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the lab's folder and takes its lock; `None` when another command has it.
    pub fn take(lab: &str) -> io::Result<Option<Self>> {
        let path = folder(lab).join("lock");
        loop {
            fs::create_dir_all(folder(lab))?;
            let file = match File::create(&path) {
                // A `down` took the folder away in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                other => other?,
            }
            // A `down` may have removed the file that we locked.
            let same =
                |path: fs::Metadata| path.ino() == file.metadata().map_or(0, |own| own.ino());
            if fs::metadata(&path).is_ok_and(same) {
                return Ok(Some(Self { _file: file }));
            }
        }
    }
}

fn this_process() -> io::Result<ProcessId> {
    ProcessId::of(std::process::id())
        .ok_or_else(|| io::Error::other("/proc does not show this process"))
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_agents_keep_is_no_lab() {
        for name in [
            "nodes",
            "sysctls",
            "made-run-netns",
            "",
            ".",
            "..",
            "../x",
            "A",
        ] {
            assert!(check_name(name).is_err() && !is_lab(name), "{name}");
        }
        assert_eq!(check_name("quickstart-2"), Ok(()));
    }
}
