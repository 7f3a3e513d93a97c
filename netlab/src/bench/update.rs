//! `./lab bench update`: a node takes so many Services of ten endpoints, then one endpoint of one of them changes again
//! and again; how long until a packet goes the new way.
//!
//! The peers are the kernel with the chains that kube-proxy writes for such a change. Time runs from the moment when the
//! new objects, or the new rules, are ready to be handed over.

use super::bed::Bed;
use super::load::{self, Figures};
use super::objects::{self, CONFIG, NODE_NAME, PODS_ELSEWHERE};
use super::report::Row;
use super::{Arguments, Benchmark, Subject, io_error, with_services};
use crate::lab::Error;
use crate::namespace::Namespace;
use crate::plan::UPLINK;
use crate::process::{self, ProcessId};
use crate::servers::beside_us;
use crate::state;
use control::compile::compile;
use control::config::KubeProxyConfig;
use control::node_network::NodeNetwork;
use control::snapshot::Snapshot;
use dataplane::service::{Generation, ServiceTable};
use std::hash::RandomState;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Endpoints of each Service but the probed one.
const ENDPOINTS: u32 = 10;

pub(super) fn rows(
    arguments: &Arguments,
    services: u32,
    interrupted: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    let mut beds = Vec::new();
    for subject in with_services(arguments) {
        let bed = Bed::make(subject, (1, Benchmark::Update), interrupted)?;
        bed.target().prepare()?;
        beds.push((bed, Vec::new()));
    }
    for round in 0..arguments.rounds {
        for (bed, rounds) in &mut beds {
            if interrupted() {
                return Err(Error::Interrupted);
            }
            let subject = bed.subject.name();
            eprintln!(
                "bench: {subject}, {services} Services of {ENDPOINTS} endpoints, round {}",
                round + 1
            );
            rounds.push(one(bed, services)?);
        }
    }
    for (bed, rounds) in &beds {
        rows.extend(Row::of(services, bed.subject.name(), "any", rounds));
    }
    eprintln!("bench: {services} Services in this process");
    let rounds: Result<Vec<Figures>, Error> =
        (0..arguments.rounds).map(|_| in_memory(services)).collect();
    rows.extend(Row::of(services, "penstock", "in-process", &rounds?));
    Ok(rows)
}

fn one(bed: &Bed, services: u32) -> Result<Figures, Error> {
    let (cold, change) = if bed.subject == Subject::Penstock {
        by_agent(bed, services)?
    } else {
        by_rules(bed, services)?
    };
    let milliseconds = |took: Duration| took.as_secs_f64() * 1e3;
    Ok(vec![
        ("cold_load", "ms", milliseconds(cold)),
        ("change_to_effect", "ms", milliseconds(change)),
    ])
}

/// An agent over a folder in which the slice that changes has a file of its own: from its start until packets flow; from
/// the new file until one goes the new way.
fn by_agent(bed: &Bed, services: u32) -> Result<(Duration, Duration), Error> {
    let folder = state::folder(bed.target().lab).join("objects");
    let put = |name: &str, text: &str| {
        let ready = folder.with_extension("next");
        std::fs::write(&ready, text)
            .and_then(|()| std::fs::rename(&ready, folder.join(name)))
            .map_err(io_error(name.to_owned()))
    };
    std::fs::create_dir_all(&folder).map_err(io_error(folder.display().to_string()))?;
    let [old, new] = PODS_ELSEWHERE.map(objects::probed_slice);
    put("services.yaml", &objects::many(services, ENDPOINTS))?;
    put("probed.yaml", &old)?;
    let agent = Agent::start(bed.target().node, &folder)?;
    let before = bed.inside(load::wait_for_any)?;
    let start = Instant::now();
    put("probed.yaml", &new)?;
    bed.inside(|address| load::wait_for_another(address, before))?;
    Ok((agent.ready_after, start.elapsed()))
}

/// All rules at once; then those that the change makes.
fn by_rules(bed: &Bed, services: u32) -> Result<(Duration, Duration), Error> {
    let target = bed.target();
    let all = objects::many(services, ENDPOINTS);
    let [old, new] = PODS_ELSEWHERE.map(|pod| all.clone() + &objects::probed_slice(pod));
    let cold = target.load(&old)?;
    let changed = target.changed_rules(&new)?;
    let before = bed.inside(load::wait_for_any)?;
    let start = Instant::now();
    target.restore(&changed, true)?;
    bed.inside(|address| load::wait_for_another(address, before))?;
    Ok((cold, start.elapsed()))
}

/// `penstock node` on the lab's links; ends when this is dropped.
struct Agent {
    process: Child,
    ready_after: Duration,
}

impl Agent {
    fn start(node: &Namespace, folder: &Path) -> Result<Self, Error> {
        let program = beside_us("penstock")?;
        let mut command = Command::new(program);
        command.arg("node").arg("--snapshot").arg(folder);
        let socket = folder.with_extension("sock");
        command.arg("--control-socket").arg(socket);
        command.args(["--node", NODE_NAME, "--uplink", UPLINK]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let start = Instant::now();
        let process = node
            .spawn(&mut command)
            .map_err(io_error("penstock node"))?;
        let mut agent = Self {
            process,
            ready_after: Duration::ZERO,
        };
        let mut line = String::new();
        if let Some(output) = agent.process.stdout.take() {
            let read = BufReader::new(output).read_line(&mut line);
            read.map_err(io_error("penstock node"))?;
        }
        if line != "ready\n" {
            return Err(Error::Failed("penstock node ended at once".to_owned()));
        }
        agent.ready_after = start.elapsed();
        Ok(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(process) = ProcessId::of(self.process.id()) {
            process::end(&[process]);
        }
        // It has ended.
        let _ = self.process.wait();
    }
}

/// What of it is the agent's own work, apart from files and packets.
fn in_memory(services: u32) -> Result<Figures, Error> {
    let text = objects::many(services, ENDPOINTS) + &objects::probed_slice(PODS_ELSEWHERE[0]);
    let milliseconds = |start: Instant| start.elapsed().as_secs_f64() * 1e3;
    let start = Instant::now();
    let snapshot = Snapshot::parse("objects.yaml", &text)?;
    let read = milliseconds(start);
    let config = KubeProxyConfig::parse("kube-proxy.yaml", CONFIG)?;
    let network = NodeNetwork::from_snapshot(&snapshot.nodes[0]);
    let start = Instant::now();
    let parts = compile(&snapshot, &config, &network, "node-a", Generation(1))?;
    let compiled = milliseconds(start);
    let start = Instant::now();
    let table = ServiceTable::new(parts, &RandomState::new());
    let indexed = milliseconds(start);
    drop(table);
    Ok(vec![
        ("read_objects", "ms", read),
        ("compile_table", "ms", compiled),
        ("index_table", "ms", indexed),
    ])
}
