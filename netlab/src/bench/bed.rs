//! One subject's lab.

use super::load::{self, Figures};
use super::machine::Placement;
use super::objects::{self, CONFIG, NODE, POD, PORT, VIP};
use super::{Benchmark, Subject, io_error};
use crate::lab::{self, Error};
use crate::lab_file;
use crate::names::HostName;
use crate::namespace::Namespace;
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
    client: Namespace,
    processes: Vec<Process>,
    target: SocketAddr,
}

impl Bed {
    pub(super) fn make(
        subject: Subject,
        services: u32,
        interrupted: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, Error> {
        // Two runs at the same time would spoil one another, but not each other's labs.
        let lab = format!("bench-{}-{}", subject.name(), std::process::id());
        let folder = std::env::temp_dir().join(&lab);
        let made = Self::make_in(&folder, subject, (&lab, services), interrupted);
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
        subject: Subject,
        (lab, services): (&str, u32),
        interrupted: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, Error> {
        let file = write_lab(folder, subject).map_err(io_error(folder.display().to_string()))?;
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
            via: None,
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
        if subject.has_services() && services > 1 {
            let path = folder.join("all.yaml");
            fs::write(&path, objects::snapshot(services))
                .map_err(io_error(path.display().to_string()))?;
            lab::apply(lab, &path, true)?;
        }
        let address = if subject.has_services() { VIP } else { POD };
        let client = running.plan.host(&HostName::Client);
        let client = client.map_or_else(
            || Err(io::Error::other("the lab has no client")),
            |host| Namespace::open(&host.namespace),
        );
        let bed = Self {
            subject,
            lab: lab.to_owned(),
            client: client.map_err(io_error("client"))?,
            processes: running.state.processes,
            target: SocketAddr::new(IpAddr::V4(address), PORT),
        };
        if !subject.has_services() {
            bed.route_to_pod().map_err(io_error("ip route"))?;
        }
        bed.client
            .run(|| load::wait(bed.target))
            .map_err(bed.failed())?;
        Ok(bed)
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
            load::measure(benchmark, self.target, time)
        });
        measured.map_err(self.failed())
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> Error {
        io_error(format!(
            "{}: the client to {}",
            self.subject.name(),
            self.target
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

fn write_lab(folder: &Path, subject: Subject) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let server = [
        std::env::current_exe()?.display().to_string(),
        "bench-serve".to_owned(),
        PORT.to_string(),
    ];
    let objects = if subject.has_services() {
        objects::snapshot(1)
    } else {
        objects::no_services()
    };
    fs::write(folder.join("snapshot.yaml"), objects)?;
    fs::write(folder.join("kube-proxy.yaml"), CONFIG)?;
    let file = folder.join("lab.yaml");
    fs::write(&file, objects::lab_file(&server, subject.has_services()))?;
    Ok(file)
}
