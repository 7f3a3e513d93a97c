//! The agent that runs a node: it keeps the service table, the devices and the routing in step with the objects and with
//! the node's links, until it is told to stop.
//!
//! One thread decides ([`Agent::run`]); others only tell it what happened ([`Event`]). Invariants: a table is published
//! whole or not at all; objects that do not compile leave everything as it was; when the agent stops, or dies, the
//! node's traffic is plainly routed again.
//!
//! Read first: [`steering`] (how packets get here), then `dataplane::path` (what happens to them).

mod devices;
mod entrance;
mod events;
mod facts;
mod files;
mod lingering;
mod links;
mod reread;
mod room;
mod servers;
mod settings;
mod slices;
pub mod socket;
pub mod steering;
mod stepped;
mod workers;

pub use events::Event;
use events::Inbox;
pub use facts::{forget_former_sysctls, node_network};
pub use links::LinkPattern;
use links::{NamedLink, Surroundings};
pub use stepped::Stepped;

use crate::compile::{CompileError, compile_all};
use crate::config::KubeProxyConfig;
use crate::conntrack::Responder;
use crate::health::{HealthCheck, Moment, ServiceName};
use crate::metrics::{Changes, WithoutLocal};
use crate::netlink::Netlink;
use crate::parallel::beside;
use crate::problem::in_words;
use crate::snapshot::{Contents, Followed, Snapshot};
use anyhow::{Context as _, Result, bail};
use dataplane::ports::ReservedPorts;
use dataplane::service::{Generation, ServiceTable};
use dataplane::sys::tun::Offloads;
use dataplane::tuple::Timestamp;
use dataplane::verdict::Counts;
use dataplane::worker::Shared;
use devices::Queues;
use entrance::Entrance;
use servers::{Servers, Telemetry};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;
use steering::{Plan, Steering};
pub(crate) use workers::Clock;
use workers::Workers;
pub use workers::{Source, Waiting, Work};

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// File or folder with the Kubernetes objects; followed.
    pub snapshot: PathBuf,
    /// KubeProxyConfiguration; the defaults when absent.
    pub config: Option<PathBuf>,
    /// Name of the node that this is.
    pub node: String,
    /// Links to the outside.
    pub uplinks: Vec<LinkPattern>,
    /// Links of pods.
    pub pods: Vec<LinkPattern>,
    /// Where to answer `penstock conntrack` and others.
    pub control_socket: PathBuf,
    /// Worker threads, each with queues of its own of every device.
    pub workers: usize,
    /// Whether the devices take partial checksums and segments of 64 KiB.
    pub offloads: Offloads,
    /// Whether refusals are limited as the kernel limits them.
    pub limit_rejects: bool,
    /// Connections that one source address may have; no limit but the table's when absent.
    pub connections_per_source: Option<u32>,
    /// Whether packets and bytes of each connection are counted (`nf_conntrack_acct`).
    pub accounting: bool,
    /// What workers do with packets.
    pub work: Work,
}

/// Runs the agent until SIGTERM, SIGINT or a hangup. `ready` is called once packets flow; its error ends the agent.
///
/// # Errors
/// What kept it from starting, or made it stop. Devices, rules and routes are removed in either case.
pub fn run(settings: Settings, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let (events, received) = channel();
    events::listen_to_signals(events.clone())?;
    let mut agent = Agent::start(settings, &events)?;
    let result = ready().and_then(|()| agent.run(Inbox::new(received)));
    agent.stop()?;
    result
}

/// A running node.
struct Agent {
    settings: Settings,
    config: KubeProxyConfig,
    objects: Followed,
    shared: Arc<Shared>,
    workers: Option<Workers>,
    steering: Option<Steering>,
    netlink: Netlink,
    devices: [u32; 3],
    generation: Generation,
    clock: Clock,
    room: room::Log,
    sysctls: facts::Sysctls,
    rounds: usize,
    rounds_since_count: usize,
    telemetry: Arc<Telemetry>,
    servers: Servers,
    /// Digest of what the files with the objects held when all of them were looked at last, if no single one was since.
    seen: Option<u64>,
    /// The key of that.
    digests: ahash::RandomState,
    /// Why the objects that are in the files now are not those in the table.
    refused: Option<String>,
    /// What the table was compiled for.
    surroundings: Surroundings,
    /// Whether table or routing do not follow the links yet.
    is_behind: bool,
    /// Whether a link has changed since it was looked whether the kernel has all of our routing.
    must_look: bool,
    has_socket: bool,
    /// Ports that the node listens on.
    reserved_ports: Arc<ReservedPorts>,
    without_local: WithoutLocal,
}

/// How often connections, affinities and fragments are looked over.
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(200);
/// Rounds of that between looks at the clients with affinity.
const AFFINITY_ROUNDS: usize = 50;
/// Rounds of that between looks whether the kernel has all of our routing: 30 seconds, as kube-proxy's `syncPeriod`.
const ROUTING_ROUNDS: usize = 150;
/// Rounds between looks at objects that could not be taken, by no fault of theirs.
const REREAD_ROUNDS: usize = 5;
/// Entries looked at in one go.
const MAINTENANCE_BUDGET: usize = 20_000;

impl Agent {
    fn start(settings: Settings, events: &Sender<Event>) -> Result<Self> {
        // Watched before they are read, so that no change is missed. Who reads says better what is wrong with a path.
        let watch = files::Watch::open(&settings.snapshot);
        let digests = ahash::RandomState::new();
        let contents = Contents::read(&settings.snapshot, &digests)?;
        let watch = watch?;
        let snapshot = contents.snapshot?;
        let config = match &settings.config {
            Some(path) => KubeProxyConfig::read(path)?,
            None => KubeProxyConfig::default(),
        };
        settings::follow_host(&settings, &config);
        let mut agent = Self::prepare(settings, snapshot, config)?;
        (agent.digests, agent.seen) = (digests, Some(contents.digest));
        match agent.attach(watch, events) {
            Ok(()) => Ok(agent),
            Err(error) => {
                agent.stop()?;
                Err(error)
            }
        }
    }

    /// An agent without a table. Nothing of the node is touched.
    fn prepare(settings: Settings, snapshot: Snapshot, config: KubeProxyConfig) -> Result<Self> {
        let mut netlink = Netlink::open().context("cannot open rtnetlink")?;
        links::require(&mut netlink, &settings.uplinks, &settings.pods)?;
        let ports = ReservedPorts::default();
        if let Err(error) = facts::follow_listening_ports(&ports) {
            tracing::warn!(
                "cannot list sockets ({error}): masquerading may take ports that the node listens on"
            );
        }
        let clock = Clock::start();
        let shared = Arc::new(settings::shared(&settings, &config)?);
        let telemetry = Arc::new(Telemetry::new(&config, Arc::clone(&shared), clock));
        Ok(Self {
            servers: Servers::start(&config, Arc::clone(&telemetry))?,
            telemetry,
            seen: None,
            digests: ahash::RandomState::new(),
            refused: None,
            surroundings: Surroundings::default(),
            is_behind: false,
            must_look: false,
            has_socket: false,
            reserved_ports: Arc::new(ports),
            without_local: WithoutLocal::default(),
            shared,
            sysctls: facts::Sysctls::default(),
            room: room::Log::default(),
            rounds: 0,
            rounds_since_count: 0,
            devices: [0; 3],
            generation: Generation(0),
            workers: None,
            steering: None,
            settings,
            config,
            objects: Followed::new(snapshot),
            netlink,
            clock,
        })
    }

    /// Devices, workers, routing, and the threads that tell of events.
    fn attach(&mut self, watch: files::Watch, events: &Sender<Event>) -> Result<()> {
        let queues = self.begin()?;
        self.sysctls.write_down();
        let failed = events.clone();
        let told = move |error| drop(failed.send(Event::WorkerFailed(error)));
        let workers = Workers::start(&self.shared, queues, self.clock, self.settings.work, told)?;
        self.telemetry.follow_workers(workers.counters());
        self.workers = Some(workers);
        self.steer()?;
        events::follow_listening_ports(&self.reserved_ports)?;
        let responder = Responder::new(Arc::clone(&self.shared), self.clock);
        events::listen(&self.settings, responder, watch, events, &self.telemetry)?;
        self.has_socket = true;
        Ok(())
    }

    /// The first table, and what leads packets to workers but the rules; element `i` of the result is what worker `i`
    /// receives from. Nothing is left of it when the objects do not compile.
    fn begin(&mut self) -> Result<Queues> {
        let start = self.telemetry.moment();
        let at = Surroundings::read(&mut self.netlink, &self.settings)?;
        let (settings, snapshot) = (&self.settings, self.objects.snapshot());
        let make = || Entrance::make(settings, snapshot, &at.network);
        let (entrance, next) = beside(make, || self.compile(&at));
        let (next, entrance) = (next?, entrance?);
        self.devices = entrance.devices;
        self.steering = Some(entrance.steering);
        self.sysctls.prepare_node()?;
        let changes = Changes::between(&Snapshot::default(), self.objects.snapshot());
        self.publish(start, at, next, &changes);
        Ok(entrance.queues)
    }

    fn run(&mut self, mut events: Inbox) -> Result<()> {
        // What the first change begins with; packets flow already.
        self.objects.prepare();
        let mut maintained = self.clock.now();
        loop {
            let now = self.clock.now();
            if now.since(maintained) >= MAINTENANCE_INTERVAL {
                self.maintain();
                maintained = now;
            }
            match events.next(MAINTENANCE_INTERVAL) {
                Ok(Event::Stop) => return Ok(()),
                Ok(Event::WorkerFailed(error)) => bail!("a worker failed: {error}"),
                Ok(Event::ObjectsChanged(file)) => {
                    let is_last = !events.has_changed_objects();
                    self.reread(file.as_deref(), is_last);
                }
                Ok(Event::LinksChanged) => self.relink(),
                Ok(Event::Asked(stream)) => socket::answer(stream, self),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("all event sources ended"),
            }
        }
    }

    fn take(&mut self, snapshot: Snapshot) -> Result<()> {
        let changes = Changes::between(self.objects.snapshot(), &snapshot);
        let old = std::mem::replace(&mut self.objects, Followed::new(snapshot));
        self.compile_and_publish(&changes)
            .inspect_err(|_| self.objects = old)?;
        let steered = self.steer();
        self.catch_up_later(steered);
        Ok(())
    }

    /// Puts back what somebody has removed of our rules and routes, as kube-proxy does from time to time; a device that was down
    /// has lost its own.
    fn look_at_routing(&mut self) {
        self.must_look = false;
        let Some(steering) = &mut self.steering else {
            return;
        };
        match steering.is_whole() {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("rules or routes of this node have been removed; they are put back");
                let steered = self.steer();
                self.catch_up_later(steered);
            }
            Err(error) => tracing::warn!("cannot look at rules and routes: {error}"),
        }
    }

    /// Links, addresses or routes changed: masquerade addresses, local addresses and rules depend on them.
    fn relink(&mut self) {
        self.must_look = true;
        let relinked = self.try_relink();
        self.catch_up_later(relinked);
    }

    /// Most news change nothing here: of one link there are several while it comes up.
    fn try_relink(&mut self) -> Result<()> {
        let is_same = Surroundings::read(&mut self.netlink, &self.settings)? == self.surroundings;
        if is_same && !self.is_behind {
            return Ok(());
        }
        if !is_same {
            self.compile_and_publish(&Changes::default())?;
        }
        self.steer()
    }

    /// What the kernel refuses now, because a link has just gone or an address is not ready, is tried again.
    fn catch_up_later(&mut self, done: Result<()>) {
        if let (Err(error), false) = (&done, self.is_behind) {
            tracing::error!("the node's links are not followed yet: {}", in_words(error));
        }
        self.is_behind = done.is_err();
    }

    /// A whole table.
    fn compile_and_publish(&mut self, changes: &Changes) -> Result<()> {
        let start = self.telemetry.moment();
        let at = Surroundings::read(&mut self.netlink, &self.settings)?;
        let next = self.compile(&at)?;
        self.publish(start, at, next, changes);
        Ok(())
    }

    fn compile(&self, at: &Surroundings) -> Result<Next, CompileError> {
        let compiled = compile_all(
            self.objects.snapshot(),
            &self.config,
            &at.network,
            &self.settings.node,
            Generation(self.generation.0 + 1),
        )?;
        let table = ServiceTable::following(compiled.parts, &self.shared.services.load());
        Ok(Next {
            table: Arc::new(table),
            health_checks: compiled.health_checks,
            without_local: compiled.without_local,
        })
    }

    fn publish(
        &mut self,
        start: Moment,
        surroundings: Surroundings,
        next: Next,
        changes: &Changes,
    ) {
        let network = &surroundings.network;
        let node = &self.settings.node;
        let ports = Arc::clone(&self.reserved_ports);
        let sources = facts::sources(network, self.objects.snapshot(), node);
        let facts = facts::node_facts(&sources, ports);
        self.shared.facts.store(Arc::new(facts));
        let table = next.table;
        self.shared.services.store(Arc::clone(&table));
        self.shared.affinity.follow(&table);
        self.generation = table.generation();
        surroundings.warn_of_left_out(&self.surroundings);
        self.surroundings = surroundings;
        self.without_local = next.without_local;
        self.telemetry.published(start, changes, next.without_local);
        if let Some(node) = self.objects.snapshot().node(node) {
            self.telemetry.health().follow_node(node);
        }
        self.servers.follow(next.health_checks, &table);
    }

    /// Makes the routing follow the links and the table.
    fn steer(&mut self) -> Result<()> {
        let (mut plan, now) = (self.plan(), self.clock.now());
        match &mut self.steering {
            Some(steering) => {
                plan.keep_for_connections(steering.plan(), &self.shared.conntrack, now);
                Ok(steering.follow(plan)?)
            }
            None => Ok(()),
        }
    }

    fn plan(&self) -> Plan {
        let at = &self.surroundings;
        let sources = facts::sources(&at.network, self.objects.snapshot(), &self.settings.node);
        let names = |links: &[NamedLink]| links.iter().map(|link| link.name.clone()).collect();
        let services = self.shared.services.load();
        Plan {
            devices: self.devices,
            uplinks: names(&at.uplinks),
            pods: names(&at.pods),
            broadcasts: facts::broadcasts(&at.network),
            ..facts::addressed(&services, sources)
        }
    }

    fn maintain(&mut self) {
        if self.is_behind {
            self.relink();
        }
        self.objects.prepare();
        let now = self.clock.now();
        self.shared.conntrack.expire(now, MAINTENANCE_BUDGET);
        self.shared.fragments.expire(now);
        self.room.write(&self.shared, now);
        self.recount(now);
        self.servers.retry();
        self.rounds = self.rounds.wrapping_add(1);
        if self.must_look || self.rounds.is_multiple_of(ROUTING_ROUNDS) {
            self.look_at_routing();
        }
        if self.rounds.is_multiple_of(AFFINITY_ROUNDS) {
            self.shared.affinity.expire(now);
        }
        if self.rounds.is_multiple_of(REREAD_ROUNDS) {
            self.reread_unseen();
        }
    }

    /// Counts connections for least-connections, the less often the more there are.
    fn recount(&mut self, now: Timestamp) {
        let conntrack = &self.shared.conntrack;
        self.rounds_since_count += 1;
        if self.rounds_since_count > conntrack.len() / MAINTENANCE_BUDGET {
            self.rounds_since_count = 0;
            let services = self.shared.services.load();
            services.loads().recount(&services, conntrack, now);
        }
    }

    fn counts(&self) -> Counts {
        self.workers
            .as_ref()
            .map(Workers::counts)
            .unwrap_or_default()
    }

    fn stop(&mut self) -> Result<()> {
        let steering = self.steering.take().map(Steering::stop);
        if let Some(workers) = self.workers.take() {
            workers.tell_to_stop();
            devices::delete(&mut self.netlink, self.devices);
            workers.join();
        }
        self.sysctls.restore();
        if self.has_socket {
            // Somebody may have removed it.
            let _ = std::fs::remove_file(&self.settings.control_socket);
        }
        Ok(steering.unwrap_or(Ok(()))?)
    }
}

/// What is about to be published.
struct Next {
    table: Arc<ServiceTable>,
    health_checks: BTreeMap<ServiceName, HealthCheck>,
    without_local: WithoutLocal,
}
