//! A lab's life: up, apply, down.
//!
//! Everything is worked out and checked before the first thing is made. What is about to be made stands in the
//! state before it is made, so [`down`] finds all of it whenever `up` ends, also by SIGKILL.

use crate::check::{self, CheckedService};
use crate::dataplane;
use crate::lab_file::{self, LabPod, Source, SourceError};
use crate::namespace::{self, Namespace};
use crate::network::{self, Network};
use crate::plan::{self, Host, Plan};
use crate::process::{self, ProcessId};
use crate::servers::{self, Started};
use crate::state::{self, AgentOptions, Dataplane, Lock, Options, Phase, State, write_whole};
use control::compile::CompileError;
use control::config::{ConfigError, KubeProxyConfig};
use control::problem::Problems;
use control::snapshot::{Snapshot, SnapshotError};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Why a command on a lab did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no lab of that description.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The objects are wrong.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The objects make no lab.
    #[error(transparent)]
    Plan(#[from] Problems),
    /// A node of the lab has no table.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The user asked for what is not there.
    #[error("{0}")]
    Usage(String),
    /// The machine or the user may not.
    #[error("{0}")]
    Unable(String),
    /// A comparison could not be made.
    #[error("{0}")]
    Failed(String),
    /// The lab is not up.
    #[error("{0}")]
    NotUp(String),
    /// Not now.
    #[error("{0}")]
    Busy(String),
    /// Namespaces, links or routes.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// Processes.
    #[error(transparent)]
    Server(#[from] servers::Error),
    /// Agents or rules.
    #[error(transparent)]
    Dataplane(#[from] dataplane::Error),
    /// Files of the lab.
    #[error("{what}: {source}")]
    Io {
        /// Which.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// Everything is made, but Services do not answer.
    #[error("these requests ought to be answered:\n{0}")]
    Unanswered(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

type Result<T> = std::result::Result<T, Error>;

/// Tells a user who waits what is done: the step's name, what it made, and how long it took.
pub type Progress<'a> = &'a (dyn Fn(&str, &str, Duration) + Sync);

/// What `up` is told.
pub struct Request<'a> {
    /// The lab.
    pub source: &'a Source,
    /// Its name.
    pub name: &'a str,
    /// KubeProxyConfiguration instead of the lab's own.
    pub config: Option<PathBuf>,
    /// What makes Services work.
    pub dataplane: Dataplane,
    /// The node for traffic from outside.
    pub via: Option<String>,
    /// How agents run.
    pub agent: AgentOptions,
    /// Leaves the lab as it is when it does not come up.
    pub keep: bool,
    /// Tells the user.
    pub progress: Progress<'a>,
    /// Whether the user wants no more.
    pub interrupted: &'a (dyn Fn() -> bool + Sync),
}

/// A lab that is up, and what was found of it.
#[derive(Debug)]
pub struct Running {
    /// What it has.
    pub state: State,
    /// Its Services, asked.
    pub services: Vec<CheckedService>,
    /// Its client, nodes, pods.
    pub plan: Plan,
}

/// What a lab is made of, read and checked.
struct Inputs {
    snapshot: Snapshot,
    config: KubeProxyConfig,
    pods: Vec<LabPod>,
}

impl Inputs {
    fn plan(&self, lab: &str, via: Option<&str>, dataplane: Dataplane) -> Result<Plan> {
        if let Some(via) = via
            && self.snapshot.node(via).is_none()
        {
            let names: Vec<_> = self
                .snapshot
                .nodes
                .iter()
                .map(|node| node.metadata.name.as_str())
                .collect();
            let text = format!(
                "--via {via}: there is no such node; the nodes are: {}",
                names.join(", ")
            );
            return Err(Error::Usage(text));
        }
        if self.snapshot.nodes.is_empty() {
            let text = "there is no Node among the objects, and a lab is made of nodes; add them \
                        (kubectl get nodes -o yaml)";
            return Err(Error::Usage(text.to_owned()));
        }
        let in_kernel = matches!(dataplane, Dataplane::Iptables | Dataplane::Nftables);
        Ok(Plan::new(plan::Input {
            lab,
            snapshot: &self.snapshot,
            config: &self.config,
            pods: &self.pods,
            via,
            routes_to_services: in_kernel,
        })?)
    }
}

/// Brings a lab up, or leaves nothing behind.
pub fn up(request: &Request<'_>) -> Result<Running> {
    let config_path = request.config.as_ref().or(request.source.config.as_ref());
    let inputs = Inputs {
        snapshot: Snapshot::read(&request.source.snapshot)?,
        config: config_path
            .map(|path| KubeProxyConfig::read(path))
            .transpose()?
            .unwrap_or_default(),
        pods: request.source.pods.clone(),
    };
    let plan = inputs.plan(request.name, request.via.as_deref(), request.dataplane)?;
    check_machine(request.dataplane, &plan)?;
    let options = Options {
        source: request.source.path.clone(),
        config: config_path.cloned(),
        dataplane: request.dataplane,
        via: request.via.clone(),
        agent: request.agent,
    };
    let held = lock(request.name)?;
    let left = State::read(request.name).map_err(io_error("the lab's state"))?;
    let _held = match left.map(|state| (state.broken(), state)) {
        None => held,
        Some((None, state)) => return already_up(state, &options, &inputs, request),
        Some((Some(why), _)) => {
            clear(request.name)?;
            let what = format!("an earlier {}: {why}", request.name);
            (request.progress)("cleared", &what, Duration::ZERO);
            // The lock went with the lab's folder.
            lock(request.name)?
        }
    };
    let mut state = State::new(request.name, options).map_err(io_error("the lab's state"))?;
    let made = make(request, &inputs, plan, &mut state);
    if made.is_err() && !request.keep {
        let lost = clear(request.name);
        lost.map_err(|error| Error::Busy(format!("{error}; ./lab down --all removes the rest")))?;
    }
    made
}

/// What `up` needs of the machine, said before anything is made.
fn check_machine(dataplane: Dataplane, plan: &Plan) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        let text =
            "a lab is made of network namespaces, which only root may make; run it with sudo";
        return Err(Error::Unable(text.to_owned()));
    }
    if dataplane == Dataplane::Penstock && !Path::new("/dev/net/tun").exists() {
        let text = "/dev/net/tun is missing, and the dataplane needs it; load the kernel module (modprobe tun), \
                    or bring the lab up with --dataplane iptables";
        return Err(Error::Unable(text.to_owned()));
    }
    dataplane::check(dataplane)?;
    let runs_nginx = |host: &Host| {
        host.server
            .as_ref()
            .is_some_and(|server| server.run == plan::Run::Nginx)
    };
    if plan.hosts.iter().any(runs_nginx) && servers::in_path("nginx").is_none() {
        let text =
            "a pod of this lab runs nginx, which is not installed; apt-get install nginx-light";
        return Err(Error::Unable(text.to_owned()));
    }
    Ok(())
}

fn lock(lab: &str) -> Result<Lock> {
    let path = state::folder(lab);
    let taken = Lock::take(lab).map_err(io_error(path.display().to_string()))?;
    taken.ok_or_else(|| {
        Error::Busy(format!(
            "another ./lab command is changing {lab}; wait for it to end"
        ))
    })
}

/// The same lab again: only its Services are asked.
fn already_up(
    state: State,
    options: &Options,
    inputs: &Inputs,
    request: &Request<'_>,
) -> Result<Running> {
    if state.options != *options {
        let name = request.name;
        let text = format!(
            "{name} is up already, from {} with --dataplane {}; ./lab down {name} first, or give this one \
             another --name",
            state.options.source.display(),
            state.options.dataplane
        );
        return Err(Error::Busy(text));
    }
    let plan = state.plan.clone().unwrap_or_default();
    (request.progress)("up", "it is up already", Duration::ZERO);
    let services = ask(request, inputs, &plan);
    Ok(Running {
        state,
        services,
        plan,
    })
}

fn make(request: &Request<'_>, inputs: &Inputs, plan: Plan, state: &mut State) -> Result<Running> {
    let lab = request.name;
    let mut step = Step::new(request);
    state.namespaces = namespaces(&plan);
    state.plan = Some(plan.clone());
    save(state)?;
    write_inputs(lab, request.source, state.options.config.as_deref())?;

    let mut network = Network::default();
    network.make(plan.hosts.iter())?;
    step.done("network", &summary(&plan))?;

    let mut started = start_servers(state, plan.hosts.iter(), &network)?;
    if request.dataplane == Dataplane::Penstock {
        let agents = dataplane::start_agents(lab, &plan, &network, request.agent)?;
        state
            .processes
            .extend(agents.iter().map(|agent| agent.process.clone()));
        started.extend(agents);
        save(state)?;
    }
    if matches!(request.dataplane, Dataplane::Iptables | Dataplane::Nftables) {
        dataplane::load_rules(lab, &plan, &network, request.dataplane)?;
    }
    wait_all(&started, request.interrupted)?;
    step.done(
        "processes",
        &format!("{} ready, dataplane {}", started.len(), request.dataplane),
    )?;

    let services = ask(request, inputs, &plan);
    let unanswered = unanswered(&services);
    if !unanswered.is_empty() && !(request.interrupted)() {
        return Err(Error::Unanswered(unanswered.join("\n")));
    }
    let made = services
        .iter()
        .map(|service| service.requests.len())
        .sum::<usize>();
    step.done(
        "services",
        &format!("{} Services, {made} requests", services.len()),
    )?;
    state.phase = Phase::Up;
    save(state)?;
    Ok(Running {
        state: state.clone(),
        services,
        plan,
    })
}

/// Times the steps of `up`, and ends it between them.
struct Step<'a> {
    request: &'a Request<'a>,
    began: Instant,
}

impl<'a> Step<'a> {
    fn new(request: &'a Request<'a>) -> Self {
        Self {
            request,
            began: Instant::now(),
        }
    }

    fn done(&mut self, name: &str, what: &str) -> Result<()> {
        if (self.request.interrupted)() {
            return Err(Error::Interrupted);
        }
        (self.request.progress)(name, what, self.began.elapsed());
        self.began = Instant::now();
        Ok(())
    }
}

fn ask(request: &Request<'_>, inputs: &Inputs, plan: &Plan) -> Vec<CheckedService> {
    let mut services = check::services(check::Input {
        plan,
        snapshot: &inputs.snapshot,
        config: &inputs.config,
        via: request.via.as_deref(),
        has_dataplane: request.dataplane != Dataplane::None,
    });
    check::make_all(&mut services, request.interrupted);
    services
}

/// Requests that ought to be answered and were not, in words.
pub fn unanswered(services: &[CheckedService]) -> Vec<String> {
    let each = services.iter().flat_map(|service| {
        let failed = service.requests.iter().filter(|request| !request.is_fine());
        failed.map(|request| {
            format!(
                "{}: {} to {}: {}",
                service.service, request.from, request.to, request.outcome
            )
        })
    });
    each.collect()
}

fn summary(plan: &Plan) -> String {
    let nodes = plan.nodes().count();
    let pods = plan.hosts.iter().filter(|host| host.node.is_some()).count();
    format!("{nodes} nodes, {pods} pods, 1 client")
}

fn namespaces(plan: &Plan) -> Vec<String> {
    let own = plan.hosts.iter().filter(|host| host.has_namespace());
    own.map(|host| host.namespace.clone()).collect()
}

fn save(state: &State) -> Result<()> {
    state.write().map_err(io_error("the lab's state"))
}

/// The lab's own copies of its inputs: agents follow the objects, `apply` changes them.
fn write_inputs(lab: &str, source: &Source, config: Option<&Path>) -> Result<()> {
    let folder = state::folder(lab);
    let copy = |from: &Path, to: &str| {
        let text = fs::read(from).map_err(io_error(from.display().to_string()))?;
        write_whole(&folder.join(to), &text).map_err(io_error(to))
    };
    fs::create_dir_all(folder.join("logs")).map_err(io_error("the lab's logs"))?;
    match config {
        Some(config) => copy(config, "kube-proxy.yaml")?,
        None => write_whole(&folder.join("kube-proxy.yaml"), DEFAULT_CONFIG.as_bytes())
            .map_err(io_error("kube-proxy.yaml"))?,
    }
    if !source.pods.is_empty() {
        copy(&source.path, "lab.yaml")?;
    }
    if source.snapshot.is_file() {
        return copy(&source.snapshot, "snapshot.yaml");
    }
    let text =
        join_folder(&source.snapshot).map_err(io_error(source.snapshot.display().to_string()))?;
    write_whole(&folder.join("snapshot.yaml"), text.as_bytes()).map_err(io_error("snapshot.yaml"))
}

const DEFAULT_CONFIG: &str =
    "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// All objects of a folder as one stream.
fn join_folder(folder: &Path) -> io::Result<String> {
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let is_objects = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("yaml" | "yml" | "json"))
    };
    let mut files: Vec<PathBuf> = entries
        .into_iter()
        .map(|entry| entry.path())
        .filter(is_objects)
        .collect();
    files.sort();
    let texts = files
        .iter()
        .map(fs::read_to_string)
        .collect::<io::Result<Vec<_>>>()?;
    let joined = texts
        .iter()
        .map(|text| text.trim_end_matches("...\n"))
        .collect::<Vec<_>>();
    Ok(joined.join("\n---\n"))
}

/// Starts the servers of hosts; each is in the state as soon as it runs.
fn start_servers<'a>(
    state: &mut State,
    hosts: impl Iterator<Item = &'a Host>,
    network: &Network,
) -> Result<Vec<Started>> {
    let mut all = Vec::new();
    for host in hosts {
        let namespace = network.namespace(&host.namespace);
        let namespace = namespace.map_err(io_error(host.name.to_string()))?;
        if let Some(started) = servers::start_server(&state.lab, host, namespace)? {
            state.processes.push(started.process.clone());
            save(state)?;
            all.push(started);
        }
    }
    Ok(all)
}

fn wait_all(started: &[Started], interrupted: &(dyn Fn() -> bool + Sync)) -> Result<()> {
    for process in started {
        process
            .wait(&|| interrupted())
            .map_err(|error| match error {
                servers::Error::Interrupted => Error::Interrupted,
                other => Error::Server(other),
            })?;
    }
    Ok(())
}

/// What `apply` did.
#[derive(Debug)]
pub struct Applied {
    /// Hosts that are new, or made anew.
    pub added: Vec<String>,
    /// Hosts that are gone, or made anew.
    pub removed: Vec<String>,
}

/// Changes a running lab's objects: new pods come first, then the agents see the objects, then old pods go.
pub fn apply(lab: &str, file: &Path, prune: bool) -> Result<Applied> {
    // Before the lock, which would make the folder of a lab that is not there.
    running(lab)?;
    let _lock = lock(lab)?;
    let mut state = running(lab)?;
    let folder = state::folder(lab);
    let change = fs::read_to_string(file).map_err(io_error(file.display().to_string()))?;
    let name = file.display().to_string();
    Snapshot::parse(&name, &change)?;
    let text = if prune {
        change
    } else {
        let path = folder.join("snapshot.yaml");
        let base = fs::read_to_string(&path).map_err(io_error(path.display().to_string()))?;
        control::snapshot::merge((&path.display().to_string(), &base), (&name, &change))?
    };
    let snapshot = Snapshot::parse(&name, &text)?;
    let mut pods = lab_file::pods(&folder.join("lab.yaml"))?;
    // What the lab file says of a pod that no slice has any more goes with the pod.
    pods.retain(|pod| pod.node.is_some() || is_endpoint(&snapshot, pod));
    let inputs = Inputs {
        snapshot,
        config: KubeProxyConfig::read(&folder.join("kube-proxy.yaml"))?,
        pods,
    };
    let old = state.plan.clone().unwrap_or_default();
    let new = inputs.plan(lab, state.options.via.as_deref(), state.options.dataplane)?;
    let change = Change::between(&old, &new)?;
    let applied = Applied {
        added: change.names(&change.added),
        removed: change.names(&change.removed),
    };
    change_hosts(&mut state, (&old, &new), &change, &text)?;
    Ok(applied)
}

fn change_hosts(
    state: &mut State,
    (old, new): (&Plan, &Plan),
    change: &Change<'_>,
    objects: &str,
) -> Result<()> {
    let lab = state.lab.clone();
    let folder = state::folder(&lab);
    let mut network = Network::open(old)?;
    // A host that is made anew has the old one's name, so the old one goes first.
    let renewed = || {
        change
            .removed
            .iter()
            .filter(|host| new.host(&host.name).is_some())
            .copied()
    };
    let gone = || {
        change
            .removed
            .iter()
            .filter(|host| new.host(&host.name).is_none())
            .copied()
    };
    stop_hosts(state, &mut network, renewed())?;
    state.namespaces.extend(namespaces(new));
    state.namespaces.sort();
    state.namespaces.dedup();
    save(state)?;
    network.make(change.added.iter().copied())?;
    network.reroute(old, new)?;
    let started = start_servers(state, change.added.iter().copied(), &network)?;
    wait_all(&started, &|| false)?;
    let agents = dataplane::agents(&lab, new);
    write_whole(&folder.join("snapshot.yaml"), objects.as_bytes())
        .map_err(io_error("snapshot.yaml"))?;
    if state.options.dataplane == Dataplane::Penstock {
        dataplane::wait_for_tables(&lab, new, &agents);
    }
    if matches!(
        state.options.dataplane,
        Dataplane::Iptables | Dataplane::Nftables
    ) {
        dataplane::load_rules(&lab, new, &network, state.options.dataplane)?;
    }
    stop_hosts(state, &mut network, gone())?;
    state.namespaces = namespaces(new);
    state.plan = Some(new.clone());
    save(state)
}

/// Ends what runs in hosts and takes them away.
fn stop_hosts<'a>(
    state: &mut State,
    network: &mut Network,
    hosts: impl Iterator<Item = &'a Host>,
) -> Result<()> {
    let hosts: Vec<&Host> = hosts.collect();
    let names: HashSet<String> = hosts.iter().map(|host| host.name.to_string()).collect();
    let of_hosts = |process: &&state::Process| names.contains(&process.host);
    let mut processes: Vec<ProcessId> = state
        .processes
        .iter()
        .filter(of_hosts)
        .map(|process| process.id)
        .collect();
    let own = hosts.iter().filter(|host| host.has_namespace());
    processes.extend(inside(own.map(|host| host.namespace.as_str()))?);
    process::end(&processes);
    state
        .processes
        .retain(|process| !names.contains(&process.host));
    network.remove(hosts.into_iter())?;
    Ok(())
}

fn is_endpoint(snapshot: &Snapshot, pod: &LabPod) -> bool {
    let endpoints = snapshot
        .endpoint_slices
        .iter()
        .flat_map(|slice| &slice.endpoints);
    let mut targets = endpoints.filter_map(|endpoint| endpoint.target_ref.as_ref());
    targets.any(|target| target.name == pod.name && target.namespace == pod.namespace)
}

/// The difference of two plans in hosts.
struct Change<'a> {
    added: Vec<&'a Host>,
    removed: Vec<&'a Host>,
}

impl<'a> Change<'a> {
    fn between(old: &'a Plan, new: &'a Plan) -> Result<Self> {
        let before: HashMap<_, _> = old.hosts.iter().map(|host| (&host.name, host)).collect();
        let after: HashMap<_, _> = new.hosts.iter().map(|host| (&host.name, host)).collect();
        let same = |host: &Host, others: &HashMap<_, &Host>| {
            others
                .get(&host.name)
                .is_some_and(|other| host.same_but_routes(other))
        };
        let change = Self {
            added: new
                .hosts
                .iter()
                .filter(|host| !same(host, &before))
                .collect(),
            removed: old
                .hosts
                .iter()
                .filter(|host| !same(host, &after))
                .collect(),
        };
        let fixed = |host: &&&Host| {
            use crate::names::HostName::{Client, Fabric, Node};
            matches!(host.name, Node(_) | Client | Fabric)
        };
        match change.added.iter().chain(&change.removed).find(fixed) {
            None => Ok(change),
            Some(host) => Err(Error::Usage(format!(
                "{} would change, and apply changes no nodes of a running lab; ./lab down, then up with these \
                 objects",
                host.name
            ))),
        }
    }

    fn names(&self, hosts: &[&Host]) -> Vec<String> {
        hosts.iter().map(|host| host.name.to_string()).collect()
    }
}

/// The state of a lab that runs.
pub fn running(lab: &str) -> Result<State> {
    let state = State::read(lab).map_err(io_error("the lab's state"))?;
    let state = state.ok_or_else(|| Error::NotUp(format!("{lab} is not up; ./lab up {lab}")))?;
    match state.broken() {
        Some(why) if state.phase != Phase::Up || state.is_of_earlier_boot() => Err(Error::Busy(
            format!("{lab} is not whole: {why}; ./lab up makes it anew"),
        )),
        _ => Ok(state),
    }
}

/// Removes all of a lab. Returns whether there was something.
pub fn down(lab: &str) -> Result<bool> {
    if !state::folder(lab).is_dir() {
        return Ok(false);
    }
    let _lock = lock(lab)?;
    clear(lab)?;
    Ok(true)
}

/// Removes all that the state of a lab names; the caller holds its lock.
fn clear(lab: &str) -> Result<()> {
    let folder = state::folder(lab);
    let state = match State::read(lab) {
        Ok(state) => state,
        Err(error) => {
            let what =
                format!("{error}; what the lab made cannot be known. ip netns list shows it");
            return Err(Error::Busy(what));
        }
    };
    if let Some(mut state) = state {
        state.phase = Phase::Stopping;
        save(&state)?;
        if !state.is_of_earlier_boot() {
            end_all(&state)?;
        }
        for name in &state.namespaces {
            namespace::remove(name)
                .map_err(io_error(namespace::path(name).display().to_string()))?;
        }
    }
    fs::remove_dir_all(&folder).map_err(io_error(folder.display().to_string()))?;
    namespace::tidy().map_err(io_error(state::FOLDER))
}

/// Ends the lab's processes, and whatever else runs in its namespaces: a process that was started and not yet
/// written down, or what a user left running there.
fn end_all(state: &State) -> Result<()> {
    const TRIES: usize = 5;
    let mut processes: Vec<ProcessId> = state.processes.iter().map(|process| process.id).collect();
    for _ in 0..TRIES {
        processes.extend(inside(state.namespaces.iter().map(String::as_str))?);
        if processes.is_empty() {
            return Ok(());
        }
        let left = process::end(&processes);
        if !left.is_empty() {
            let text = format!("process {} does not end, not even by SIGKILL", left[0].pid);
            return Err(Error::Busy(text));
        }
        processes.clear();
    }
    Err(Error::Busy(
        "processes keep coming up in the lab's namespaces".to_owned(),
    ))
}

/// Processes in namespaces of these names.
fn inside<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<ProcessId>> {
    let open = names.filter_map(|name| Namespace::open(name).ok());
    let identities: HashSet<_> = open
        .filter_map(|namespace| namespace.identity().ok())
        .collect();
    if identities.is_empty() {
        return Ok(Vec::new());
    }
    process::inside(&identities).map_err(io_error("/proc"))
}
