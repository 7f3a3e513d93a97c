//! One subject's lab.

use super::fill_ports::SECOND_CLIENT;
use super::load::{self, Figures};
use super::load_rules::Target;
use super::machine::Placement;
use super::objects::{self, CONFIG, NODE, POD, PORT, VIP};
use super::{Benchmark, Subject, io_error};
use crate::lab::{self, Error};
use crate::lab_file;
use crate::names::HostName;
use crate::namespace::Namespace;
use crate::plan::Plan;
use crate::process::{self, ProcessId};
use crate::state::{AgentOptions, Dataplane, Process};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A lab that is up. It goes when this is dropped.
pub(super) struct Bed {
    pub(super) subject: Subject,
    lab: String,
    plan: Plan,
    client: Namespace,
    node: Namespace,
    processes: Vec<Process>,
    address: SocketAddr,
}

impl Bed {
    pub(super) fn make(
        subject: Subject,
        shape: (u32, Benchmark),
        interrupted: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, Error> {
        // Two runs at the same time would spoil one another, but not each other's labs.
        let lab = format!("{PREFIX}{}-{}", subject.name(), std::process::id());
        let folder = std::env::temp_dir().join(&lab);
        let made = Self::make_in((&folder, &lab), subject, shape, interrupted);
        // What the lab needs it has copied.
        let removed = fs::remove_dir_all(&folder).map_err(io_error(folder.display().to_string()));
        if made.is_err() {
            // The first error counts.
            let _ = lab::down(&lab);
        }
        let bed = made?;
        removed.map(|()| bed)
    }

    fn make_in(
        (folder, lab): (&Path, &str),
        subject: Subject,
        (services, benchmark): (u32, Benchmark),
        interrupted: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, Error> {
        let file = write_lab(folder, subject, benchmark)
            .map_err(io_error(folder.display().to_string()))?;
        let source = lab_file::find(folder, &file.display().to_string())?;
        let running = lab::up(&lab::Request {
            source: &source,
            name: lab,
            config: None,
            dataplane: match subject {
                Subject::Penstock | Subject::TunCopy => Dataplane::Penstock,
                Subject::Iptables => Dataplane::Iptables,
                Subject::Nftables => Dataplane::Nftables,
                Subject::Plain => Dataplane::None,
            },
            via: Some(objects::NODE_NAME.to_owned()),
            agent: AgentOptions {
                no_offload: false,
                no_reject_limit: false,
                workers: 1,
                copy: subject == Subject::TunCopy,
            },
            keep: false,
            progress: &|_, _, _| {},
            interrupted,
        })?;
        let address = if subject.has_services() { VIP } else { POD };
        let bed = Self {
            subject,
            lab: lab.to_owned(),
            client: namespace(&running.plan, &HostName::Client)?,
            node: namespace(
                &running.plan,
                &HostName::Node(objects::NODE_NAME.to_owned()),
            )?,
            plan: running.plan,
            processes: running.state.processes,
            address: SocketAddr::new(IpAddr::V4(address), PORT),
        };
        if !subject.has_services() {
            bed.route_to_pod().map_err(io_error("ip route"))?;
        }
        if benchmark == Benchmark::Update {
            bed.end_agent();
            return Ok(bed);
        }
        if subject.has_services() {
            bed.target().prepare()?;
            let objects = objects::snapshot(services, policy(benchmark));
            bed.target().load(&objects)?;
        }
        bed.inside(load::wait)?;
        Ok(bed)
    }

    /// Ends the node's agent: another one takes its place in every round.
    fn end_agent(&self) {
        let node = HostName::Node(objects::NODE_NAME.to_owned()).to_string();
        let is_agent = |process: &&Process| process.role == "agent" && process.host == node;
        let agents = self.processes.iter().filter(is_agent);
        let agents: Vec<ProcessId> = agents.map(|process| process.id).collect();
        process::end(&agents);
    }

    /// A client outside has no route to pods of its own.
    fn route_to_pod(&self) -> io::Result<()> {
        let mut command = Command::new("ip");
        command.args(["route", "add", &POD.to_string(), "via", &NODE.to_string()]);
        let status = self.client.spawn(&mut command)?.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(status.to_string()))
        }
    }

    /// Where objects go.
    pub(super) const fn target(&self) -> Target<'_> {
        Target {
            subject: self.subject,
            lab: self.lab.as_str(),
            plan: &self.plan,
            node: &self.node,
        }
    }

    /// What the client does with the Service's address, in the client's namespace.
    pub(super) fn inside<T: Send>(
        &self,
        act: impl FnOnce(SocketAddr) -> io::Result<T> + Send,
    ) -> Result<T, Error> {
        let address = self.address;
        self.client.run(|| act(address)).map_err(self.failed())
    }

    /// A second address of the client, for who needs more ports than one has.
    pub(super) fn add_client_address(&self) -> Result<(), Error> {
        let address = format!("{SECOND_CLIENT}/24");
        let mut command = Command::new("ip");
        command.args(["address", "add", &address, "dev", "eth0"]);
        let ended = self
            .client
            .spawn(&mut command)
            .and_then(|mut child| child.wait());
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Error::Failed(format!("ip address add {address}: {status}"))),
            Err(error) => Err(io_error("ip address")(error)),
        }
    }

    /// One turn.
    pub(super) fn measure(
        &self,
        benchmark: Benchmark,
        placement: Placement,
        time: Duration,
    ) -> Result<Figures, Error> {
        let measured = self.client.run(|| {
            for process in &self.processes {
                placement.bind_server(process.id.pid)?;
            }
            placement.bind_client()?;
            load::measure(benchmark, self.address, time)
        });
        measured.map_err(self.failed())
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> Error {
        io_error(format!(
            "{}: the client to {}",
            self.subject.name(),
            self.address
        ))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(error) = lab::down(&self.lab) {
            eprintln!("bench: {error}; ./lab down {} removes the rest", self.lab);
        }
    }
}

/// Labs of this bench begin so.
pub(super) const PREFIX: &str = "bench-";

/// Sources stay as they are, unless it is masquerading that is measured.
const fn policy(benchmark: Benchmark) -> &'static str {
    match benchmark {
        Benchmark::Snat => "Cluster",
        _ => "Local",
    }
}

fn namespace(plan: &Plan, host: &HostName) -> Result<Namespace, Error> {
    let opened = plan.host(host).map_or_else(
        || Err(io::Error::other("the lab has none")),
        |host| Namespace::open(&host.namespace),
    );
    opened.map_err(io_error(host.to_string()))
}

fn write_lab(folder: &Path, subject: Subject, benchmark: Benchmark) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let server = [
        std::env::current_exe()?.display().to_string(),
        "bench-serve".to_owned(),
        PORT.to_string(),
    ];
    let objects = match (benchmark, subject.has_services()) {
        (Benchmark::Update, _) => {
            objects::many(1, 0) + &objects::probed_slice(objects::PODS_ELSEWHERE[0])
        }
        (_, true) => objects::snapshot(1, policy(benchmark)),
        (_, false) => objects::no_services(),
    };
    fs::write(folder.join("snapshot.yaml"), objects)?;
    fs::write(folder.join("kube-proxy.yaml"), CONFIG)?;
    let file = folder.join("lab.yaml");
    let text = objects::lab_file(&server, benchmark, subject.has_services());
    fs::write(&file, text)?;
    Ok(file)
}
