//! A lab's life: up, apply, down.
//!
//! Everything is worked out and checked before the first thing is made. What is about to be made stands in the
//! state before it is made, so [`down()`] finds all of it whenever `up` ends, also by SIGKILL.

mod apply;
mod down;
mod inputs;

use crate::check::{self, CheckedService};
use crate::dataplane;
use crate::lab_file::{Source, SourceError};
use crate::network::{self, Network};
use crate::plan::{self, Host, Plan};
use crate::privilege;
use crate::servers::{self, Started};
use crate::state::{self, AgentOptions, Dataplane, Lock, Options, Phase, State};
use control::compile::CompileError;
use control::config::{ConfigError, KubeProxyConfig};
use control::problem::Problems;
use control::snapshot::{Snapshot, SnapshotError};
use down::{clear, inside};
use inputs::{Inputs, running_inputs, write_inputs};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use apply::{Applied, apply, name_of_objects};
pub use down::{down, running};

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
    /// It failed, and what it had made by then is not all undone.
    #[error("{error}\nundoing it failed, too: {left}; {remedy}")]
    NotUndone {
        /// Why it failed.
        error: Box<Self>,
        /// Why it is not undone.
        left: Box<Self>,
        /// What to do.
        remedy: String,
    },
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
    made.map_err(|error| match clear_unless_kept(request) {
        Ok(()) => error,
        Err(left) => Error::NotUndone {
            error: Box::new(error),
            left: Box::new(left),
            remedy: format!("./lab down {} removes the rest", request.name),
        },
    })
}

fn clear_unless_kept(request: &Request<'_>) -> Result<()> {
    if request.keep {
        return Ok(());
    }
    clear(request.name)
}

/// What `up` needs of the machine, said before anything is made.
fn check_machine(dataplane: Dataplane, plan: &Plan) -> Result<()> {
    privilege::require("a lab is made of network namespaces, which only root may make")?;
    if dataplane == Dataplane::Penstock && !Path::new("/dev/net/tun").exists() {
        let text = "/dev/net/tun is missing, and the dataplane needs it; load the kernel module (modprobe tun), \
                    or bring the lab up with --dataplane iptables";
        return Err(Error::Unable(text.to_owned()));
    }
    dataplane::check(dataplane)?;
    check_programs(plan)
}

/// What pods run, said before any of it is started.
fn check_programs(plan: &Plan) -> Result<()> {
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
    missing_program(plan).map_or(Ok(()), |text| Err(Error::Unable(text)))
}

/// A pod whose command is not installed. One with a path may stand among the pod's own files.
fn missing_program(plan: &Plan) -> Option<String> {
    plan.hosts.iter().find_map(|host| {
        let plan::Run::Command(words) = &host.server.as_ref()?.run else {
            return None;
        };
        let program = words.first()?;
        let is_missing = !program.contains('/') && servers::in_path(program).is_none();
        is_missing.then(|| {
            format!(
                "{} runs {program}, which is not installed; apt-get install {program}, or the package that has it",
                host.name
            )
        })
    })
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

/// The same lab again: only its Services are asked, as they run.
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
    let mut plan = state.plan.clone().unwrap_or_default();
    (request.progress)("up", "it is up already", Duration::ZERO);
    let config = options.config.as_deref();
    let (own, differing) = running_inputs(request.name, request.source, config, inputs)?;
    if !differing.is_empty() {
        plan.notes.push(not_what_runs(request, &differing));
    }
    let services = ask(request, &own, &plan);
    Ok(Running {
        state,
        services,
        plan,
    })
}

/// What to do about inputs that are not those of the running lab.
fn not_what_runs(request: &Request<'_>, differing: &[&str]) -> String {
    let (name, snapshot) = (request.name, &request.source.snapshot);
    let apply = if differing.contains(&inputs::OBJECTS) && snapshot.is_file() {
        let file = snapshot.display();
        format!("./lab apply --lab {name} -f {file} --prune brings the objects in, and ")
    } else {
        String::new()
    };
    format!(
        "{} is not what runs: edited since, or changed by ./lab apply. What runs is shown; {apply}./lab down \
         {name}, then up, begins anew",
        differing.join(" and ")
    )
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
