//! `./lab bench update`: a node takes so many Services, then one endpoint of one of them changes again and again; how long
//! until a packet goes the new way.
//!
//! Time runs from the moment when the new objects, in a file, or the new rules, in memory, are ready to be handed over, until
//! the first packet of a client arrives at the new endpoint: it says so itself. It is asked from when they are handed over
//! on, by one new flow after the other. The peers are the kernel
//! with the rules that kube-proxy writes ([`super::partial_rules`]): all at once into an empty table when it starts, then
//! those of a change. A cold load that takes long is made once and the changes of all rounds go on top of it; one that is
//! given up is told as such, and the rules go in in portions.

use super::bed::Bed;
use super::load::Figures;
use super::objects::{self, CONFIG, NODE_NAME, PODS_ELSEWHERE, Position};
use super::report::{Key, Row, counted};
use super::server::moment;
use super::{Benchmark, Run, Subject, ask, io_error, turns};
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
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A cold load that takes longer is not made again.
const ONCE: Duration = Duration::from_secs(15);

pub(super) fn rows(run: Run<'_>, services: u32) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for endpoints in run.arguments.endpoints() {
        let size = counted(services, "Service") + " of " + &counted(endpoints, "endpoint");
        let mut all = Vec::new();
        for subject in run.arguments.subjects() {
            let bed = Bed::make(subject, 1, Benchmark::Update, run.interrupted)?;
            bed.target().prepare()?;
            let key = Key::of(services, subject, "any").with_endpoints(endpoints);
            all.push((key, Updated::of(bed, services, endpoints)?));
        }
        let patience = run.arguments.patience();
        rows.extend(turns::take(run, all, |updated, round| {
            let name = updated.bed().subject.name();
            eprintln!("bench: {name}, {size}, round {}", round + 1);
            match updated {
                Updated::Agent(agent) => agent.round(),
                Updated::Kernel(kernel) => kernel.round(patience),
            }
        })?);
        eprintln!("bench: {size} in this process");
        let key = Key::of(services, Subject::Penstock, "in-process").with_endpoints(endpoints);
        let text = objects::many(services, endpoints) + &objects::probed_slice(PODS_ELSEWHERE[0]);
        let texts = (objects::as_json(&text)?, text);
        rows.extend(turns::take(run, vec![(key, texts)], |(list, text), _| {
            in_memory(text, list)
        })?);
    }
    Ok(rows)
}

/// A node whose objects change.
enum Updated {
    Agent(Box<ByAgent>),
    Kernel(Box<ByRules>),
}

impl Updated {
    fn of(bed: Bed, services: u32, endpoints: u32) -> Result<Self, Error> {
        let objects = objects::many(services, endpoints);
        if !bed.subject.is_kernel() {
            let forms = Form::both(objects)?;
            return Ok(Self::Agent(Box::new(ByAgent { bed, forms })));
        }
        let [old, new] = PODS_ELSEWHERE.map(|pod| objects.clone() + &objects::probed_slice(pod));
        let rules = bed.target().rules(&old)?;
        let changes = [
            bed.target().changed(&rules),
            bed.target().changed(&bed.target().rules(&new)?),
        ];
        Ok(Self::Kernel(Box::new(ByRules {
            bed,
            rules,
            changes,
            is_new: false,
            keeps: false,
        })))
    }

    const fn bed(&self) -> &Bed {
        match self {
            Self::Agent(agent) => &agent.bed,
            Self::Kernel(kernel) => &kernel.bed,
        }
    }
}

const fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// Changes the endpoint: milliseconds until a packet goes the new way. Who asks is there already: to enter a network
/// namespace can take milliseconds.
fn change_to_effect(
    bed: &Bed,
    change: impl FnOnce() -> Result<(), Error> + Send,
) -> Result<f64, Error> {
    let took = bed.inside(Position::End, |address| {
        let before = ask::wait_for_any(address)?;
        let start = moment();
        change().map_err(|error| io::Error::other(error.to_string()))?;
        Ok(ask::first_arrival_elsewhere(address, before)?.saturating_sub(start))
    })?;
    Ok(milliseconds(took))
}

/// Our agent.
struct ByAgent {
    bed: Bed,
    forms: [Form; 2],
}

/// A way to write the objects down.
struct Form {
    extension: &'static str,
    /// All but the slice of the probed Service.
    objects: String,
    /// That slice, with the first and the second endpoint.
    slices: [String; 2],
    /// What the cold load and the change are called.
    metrics: [&'static str; 2],
}

impl Form {
    /// Documents in YAML, as people write them, and lists in JSON, as `kubectl -o json` prints them.
    fn both(objects: String) -> Result<[Self; 2], Error> {
        let slices = PODS_ELSEWHERE.map(objects::probed_slice);
        let [old, new] = &slices;
        Ok([
            Self {
                extension: "json",
                objects: objects::as_json(&objects)?,
                slices: [objects::as_json(old)?, objects::as_json(new)?],
                metrics: ["cold_load_json", "change_to_effect_json"],
            },
            Self {
                extension: "yaml",
                objects,
                slices,
                metrics: ["cold_load", "change_to_effect"],
            },
        ])
    }
}

impl ByAgent {
    fn round(&self) -> Result<Figures, Error> {
        let [first, second] = &self.forms;
        let mut figures = self.measure(first)?;
        figures.extend(self.measure(second)?);
        Ok(figures)
    }

    /// An agent over a folder in which the slice that changes has a file of its own: from its start until packets flow; then
    /// from a new file until a packet goes the new way, there and back and there again.
    fn measure(&self, form: &Form) -> Result<Figures, Error> {
        let folder = state::folder(self.bed.target().lab).join(form.extension);
        let next = folder.with_extension("next");
        let ready = |text: &str| std::fs::write(&next, text).map_err(io_error("the next objects"));
        let put = |name: &str| {
            let file = folder.join(name).with_extension(form.extension);
            std::fs::rename(&next, file).map_err(io_error(name.to_owned()))
        };
        std::fs::create_dir_all(&folder).map_err(io_error(folder.display().to_string()))?;
        let [old, new] = &form.slices;
        for (name, text) in [("services", &form.objects), ("probed", old)] {
            ready(text)?;
            put(name)?;
        }
        let agent = Agent::start(self.bed.target().node, &folder)?;
        let [cold_load, change] = form.metrics;
        let mut figures = vec![(cold_load, "ms", milliseconds(agent.ready_after))];
        for slice in [new, old, new, old, new] {
            ready(slice)?;
            let effect = change_to_effect(&self.bed, || put("probed"))?;
            figures.push((change, "ms", effect));
        }
        Ok(figures)
    }
}

/// The kernel.
struct ByRules {
    bed: Bed,
    /// All rules, with the first endpoint.
    rules: String,
    /// Those that change to the first and to the second endpoint.
    changes: [String; 2],
    /// Whether the second is the endpoint now.
    is_new: bool,
    /// Whether the rules are in to stay.
    keeps: bool,
}

impl ByRules {
    fn round(&mut self, patience: Duration) -> Result<Figures, Error> {
        let mut figures = if self.keeps {
            Vec::new()
        } else {
            vec![self.load(patience)?]
        };
        self.is_new = !self.is_new;
        let change = &self.changes[usize::from(self.is_new)];
        let effect = change_to_effect(&self.bed, || self.bed.target().change(change))?;
        figures.push(("change_to_effect", "ms", effect));
        Ok(figures)
    }

    /// All rules into an empty table.
    fn load(&mut self, patience: Duration) -> Result<(&'static str, &'static str, f64), Error> {
        self.bed.target().clear()?;
        let loaded = self.bed.target().load_at_once(&self.rules, patience)?;
        self.is_new = false;
        let Some(took) = loaded else {
            self.keeps = true;
            self.bed.target().load_in_portions(&self.rules)?;
            return Ok(("cold_load_given_up_after", "ms", milliseconds(patience)));
        };
        self.keeps = took > ONCE;
        Ok(("cold_load", "ms", milliseconds(took)))
    }
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
fn in_memory(objects: &str, list: &str) -> Result<Figures, Error> {
    let start = Instant::now();
    let snapshot = Snapshot::parse("list.json", list)?;
    let read_json = milliseconds(start.elapsed());
    drop(snapshot);
    let start = Instant::now();
    let snapshot = Snapshot::parse("objects.yaml", objects)?;
    let read = milliseconds(start.elapsed());
    let config = KubeProxyConfig::parse("kube-proxy.yaml", CONFIG)?;
    let network = NodeNetwork::from_snapshot(&snapshot.nodes[0]);
    let start = Instant::now();
    let parts = compile(&snapshot, &config, &network, NODE_NAME, Generation(1))?;
    let compiled = milliseconds(start.elapsed());
    let start = Instant::now();
    let table = ServiceTable::new(parts, &RandomState::new());
    let indexed = milliseconds(start.elapsed());
    drop(table);
    Ok(vec![
        ("read_objects", "ms", read),
        ("read_objects_json", "ms", read_json),
        ("compile_table", "ms", compiled),
        ("index_table", "ms", indexed),
        // What the peers do with rules that are ready made, but for the routes by which the node's own packets get here.
        ("objects_to_table", "ms", compiled + indexed),
    ])
}
