//! One subject's lab.

use super::fill_ports::SECOND_CLIENT;
use super::load::{self, Figures};
use super::load_rules::Target;
use super::machine::{self, Placement};
use super::objects::{self, NODE, POD, PORT, Position, VIP, VIP_IN_THE_MIDDLE};
use super::{Benchmark, Subject, io_error, rest};
use crate::dataplane;
use crate::lab::{self, Error};
use crate::lab_file;
use crate::names::HostName;
use crate::namespace::Namespace;
use crate::plan::{Plan, UPLINK};
use crate::process::{self, ProcessId};
use crate::state::{AgentOptions, Dataplane, Process};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A lab that is up. It goes when this is dropped.
pub(super) struct Bed {
    pub(super) subject: Subject,
    lab: String,
    plan: Plan,
    client: Namespace,
    node: Namespace,
    processes: Vec<Process>,
    pub(super) services: u32,
}

impl Bed {
    pub(super) fn make(
        subject: Subject,
        services: u32,
        benchmark: Benchmark,
        interrupted: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, Error> {
        // Two runs at the same time would spoil one another, but not each other's labs.
        let (name, run) = (subject.name(), std::process::id());
        let lab = format!("{PREFIX}{name}-{services}-{run}");
        let folder = std::env::temp_dir().join(&lab);
        let made = Self::make_in(&folder, &lab, subject, services, benchmark, interrupted);
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
        folder: &Path,
        lab: &str,
        subject: Subject,
        services: u32,
        benchmark: Benchmark,
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
                Subject::Penstock | Subject::TunCopy | Subject::BusyPoll => Dataplane::Penstock,
                Subject::Iptables => Dataplane::Iptables,
                Subject::Nftables => Dataplane::Nftables,
                Subject::Plain => Dataplane::None,
            },
            via: Some(objects::NODE_NAME.to_owned()),
            agent: AgentOptions {
                no_offload: false,
                no_reject_limit: false,
                workers: machine::WORKERS,
                copy: subject == Subject::TunCopy,
                busy_poll: subject == Subject::BusyPoll,
            },
            keep: false,
            progress: &|_, _, _| {},
            interrupted,
        })?;
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
            services,
        };
        if benchmark == Benchmark::Update {
            bed.end_agent();
            return Ok(bed);
        }
        let routed = if subject.has_services() {
            VIP_IN_THE_MIDDLE
        } else {
            POD
        };
        // A client outside knows of no pods, and of no addresses that came later.
        bed.route_to(routed)?;
        if subject.has_services() {
            bed.target().prepare()?;
            let objects = if benchmark == Benchmark::Attack {
                objects::attacked(services)
            } else {
                objects::snapshot(services, policy(benchmark))
            };
            bed.target().load(&objects)?;
        }
        bed.inside(Position::End, load::wait)?;
        Ok(bed)
    }

    /// Ends the node's agent: another one takes its place in every round.
    fn end_agent(&self) {
        let node = HostName::Node(objects::NODE_NAME.to_owned()).to_string();
        process::end(&self.agents(|host| host == node));
    }

    /// Agents of these hosts.
    fn agents(&self, is_host: impl Fn(&str) -> bool) -> Vec<ProcessId> {
        let is_agent = |process: &&Process| process.role == "agent" && is_host(&process.host);
        let agents = self.processes.iter().filter(is_agent);
        agents.map(|process| process.id).collect()
    }

    /// Agents that use a processor also when they have nothing to do.
    fn never_sleep(&self) -> Vec<ProcessId> {
        self.agents(|_| self.subject == Subject::BusyPoll)
    }

    /// Leaves the processors to others until [`Self::measure`].
    pub(super) fn rest(&self) -> Result<(), Error> {
        rest::stop(&self.never_sleep()).map_err(io_error(self.lab.clone()))
    }

    /// The client's way to an address through the node.
    pub(super) fn route_to(&self, address: Ipv4Addr) -> Result<(), Error> {
        let (address, node) = (address.to_string(), NODE.to_string());
        self.in_client(&["ip", "route", "add", &address, "via", &node])
    }

    pub(super) fn in_client(&self, command: &[&str]) -> Result<(), Error> {
        run_in(&self.client, command)
    }

    pub(super) fn in_node(&self, command: &[&str]) -> Result<(), Error> {
        run_in(&self.node, command)
    }

    /// Entries of the node's connection table now.
    pub(super) fn table_entries(&self) -> Result<u64, Error> {
        if self.subject.is_kernel() {
            let path = "/proc/sys/net/netfilter/nf_conntrack_count";
            let read = self.node.run(|| fs::read_to_string(path));
            let count = read.map_err(io_error(path))?;
            return Ok(count.trim().parse().unwrap_or(0));
        }
        let statuses = dataplane::agents(&self.lab, &self.plan);
        let status = statuses.into_iter().find_map(|(_, status)| status);
        status
            .map(|status| status.connections as u64)
            .ok_or_else(|| Error::Failed("the agent does not answer".to_owned()))
    }

    /// Whether there is a Service to be asked in this place; without Services the pod is, at the end.
    pub(super) fn has(&self, position: Position) -> bool {
        let has_middle = self.subject.has_services() && objects::middle(self.services).is_some();
        position == Position::End || has_middle
    }

    /// Where clients ask.
    fn address(&self, position: Position) -> SocketAddr {
        let address = match position {
            _ if !self.subject.has_services() => POD,
            Position::End => VIP,
            Position::Middle => VIP_IN_THE_MIDDLE,
        };
        SocketAddr::new(IpAddr::V4(address), PORT)
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
        position: Position,
        act: impl FnOnce(SocketAddr) -> io::Result<T> + Send,
    ) -> Result<T, Error> {
        let address = self.address(position);
        self.client
            .run(|| act(address))
            .map_err(self.failed(address))
    }

    /// A second address of the client, for who needs more ports than one has.
    pub(super) fn add_client_address(&self) -> Result<(), Error> {
        let address = format!("{SECOND_CLIENT}/24");
        self.in_client(&["ip", "address", "add", &address, "dev", UPLINK])
    }

    /// One turn; it rests before and after.
    pub(super) fn measure(
        &self,
        benchmark: Benchmark,
        position: Position,
        placement: Placement,
        time: Duration,
    ) -> Result<Figures, Error> {
        let address = self.address(position);
        let turn = || {
            for process in &self.processes {
                placement.bind_server(process.id.pid)?;
            }
            placement.bind_client()?;
            load::measure(benchmark, address, time)
        };
        let measured = rest::for_a_turn(&self.never_sleep(), || self.client.run(turn));
        measured.map_err(self.failed(address))
    }

    fn failed(&self, address: SocketAddr) -> impl FnOnce(io::Error) -> Error {
        io_error(format!("{}: the client to {address}", self.lab))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // One that is stopped does not obey, and is killed when the time for that is over.
        let _ = rest::go_on(&self.never_sleep());
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

fn run_in(namespace: &Namespace, command: &[&str]) -> Result<(), Error> {
    dataplane::load(namespace, command, "")
        .map_err(|text| Error::Failed(format!("{}: {text}", command.join(" "))))
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
    // Tables of one size on all sides: the kernel's is the machine's.
    let config = if benchmark == Benchmark::Attack {
        objects::config_with_table(machine::kernel_table())
    } else {
        objects::CONFIG.to_owned()
    };
    fs::write(folder.join("kube-proxy.yaml"), config)?;
    let file = folder.join("lab.yaml");
    let text = objects::lab_file(&server, benchmark, subject.has_services());
    fs::write(&file, text)?;
    Ok(file)
}
