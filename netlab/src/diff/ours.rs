//! Our side: the agent's devices, routing and tables, with its packets and its choices moved from here.

use super::case::{Case, Place};
use super::coverage::{Coverage, Watched};
use super::side::{self, Choice, Entry, Side, Tuple};
use super::world::World;
use anyhow::Result;
use control::agent::{LinkPattern, Settings, Source, Stepped, Waiting, Work};
use control::snapshot::Snapshot;
use dataplane::conntrack::{EntryView, Status};
use dataplane::service::{Decision, ServiceTable};
use dataplane::sys::tun::Offloads;
use dataplane::tuple::{self, Origin, Protocol, Timestamp};
use dataplane::verdict::Counters;
use dataplane::worker::{Shared, Worker};
use fastrand::Rng;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The node that our dataplane runs.
pub(super) struct Ours<'a> {
    world: World,
    node: Stepped,
    shared: &'a Shared,
    worker: Worker<'a, Source>,
    counters: Arc<Counters>,
    start: Instant,
    /// What the comparison says, so that no time passes here that did not pass for the kernel.
    now: Timestamp,
    coverage: Coverage,
    watched: Watched,
    /// What it draws its choices from.
    rng: Rng,
}

/// Runs `inside` with our side of `case`, for the `run`th time. In each run it draws other ports: where a port is that of another
/// flow by chance, the kernel's is not, and what follows from that must not show again.
pub(super) fn with<T>(
    case: &Case,
    run: usize,
    inside: impl FnOnce(&mut Ours<'_>) -> Result<T>,
) -> Result<T> {
    let world = World::create(case)?;
    let (snapshot, mut config) = (side::snapshot(&case.objects)?, side::config(case)?);
    // The other side serves none of these, so nothing must listen there.
    (config.healthz_bind_address, config.metrics_bind_address) = (None, None);
    let start = || Stepped::start(settings(case), snapshot, config).map_err(io::Error::other);
    let (node, queues) = world.namespace().run(start)?;
    let shared = Arc::clone(node.shared());
    let counters = Arc::new(Counters::default());
    let mut rng = Rng::with_seed(case.seed ^ (run as u64) << 56);
    let mut ours = Ours {
        world,
        node,
        shared: &shared,
        worker: Worker::new(&shared, queues, Arc::clone(&counters), rng.fork()),
        counters,
        start: Instant::now(),
        now: Timestamp(0),
        coverage: Coverage::default(),
        watched: Watched::default(),
        rng,
    };
    let result = inside(&mut ours);
    let Ours { world, node, .. } = ours;
    world
        .namespace()
        .run(|| node.stop().map_err(io::Error::other))?;
    result
}

fn settings(case: &Case) -> Settings {
    let patterns = |origin| {
        let links = case.links.iter().enumerate();
        let of_it = links.filter(|(at, _)| case.origin(Place::Link(*at)) == origin);
        of_it
            .map(|(_, link)| LinkPattern::Name(link.name.clone()))
            .collect()
    };
    Settings {
        snapshot: PathBuf::new(),
        config: None,
        node: case.node.clone(),
        uplinks: patterns(Origin::Outside),
        pods: patterns(Origin::Pod),
        control_socket: PathBuf::new(),
        workers: 1,
        offloads: Offloads::On,
        limit_rejects: case.icmp_limits,
        connections_per_source: None,
        accounting: false,
        work: Work::Services(Waiting::Asleep),
    }
}

impl Ours<'_> {
    fn entries_at(&self, now: Timestamp) -> Vec<Entry> {
        let mut entries = Vec::new();
        let services = self.shared.services.load();
        self.shared.conntrack.for_each(now, |view| {
            entries.push(Entry {
                is_stale: is_stale(&services, view),
                ..entry(view)
            });
        });
        entries
    }
}

impl Side for Ours<'_> {
    fn world(&mut self) -> &mut World {
        &mut self.world
    }

    fn set_time(&mut self, now: Instant) -> bool {
        self.now = Timestamp(now.saturating_duration_since(self.start).as_nanos() as u64);
        true
    }

    fn work(&mut self) -> Result<()> {
        let now = self.now;
        self.worker.drain(|| now)?;
        self.watched
            .look(&self.shared.conntrack, now, &mut self.coverage);
        Ok(())
    }

    /// Makes our next random choice the one of the other side, if it is among ours; if not, that is a difference.
    fn follow(&mut self, choice: &Choice) {
        let first = tuple::Tuple {
            source: choice.source.0.into(),
            destination: choice.destination.0.into(),
            source_port: choice.source.1,
            destination_port: choice.destination.1,
            protocol: Protocol(choice.protocol),
        };
        let origin = choice.origin;
        let services = self.shared.services.load();
        if choice.from_client {
            self.coverage.count_decision(&services, &first, origin);
        }
        let Decision::Balance { endpoints, .. } = services.decide(&first, origin) else {
            return;
        };
        let wanted = endpoints.iter().position(|endpoint| match choice.endpoint {
            Some((address, port)) => (endpoint.address, endpoint.port) == (address.into(), port),
            None => endpoint.on_node,
        });
        let Some(wanted) = wanted else { return };
        let fits = |seed: &u64| Rng::with_seed(*seed).usize(..endpoints.len()) == wanted;
        // Among so many seeds each of up to a few hundred endpoints comes up.
        let start = u64::from(self.rng.u32(..)) << 16;
        if let Some(seed) = (start..start + 10_000).find(fits) {
            self.worker.reseed(Rng::with_seed(seed));
        }
    }

    fn change(&mut self, snapshot: &Snapshot) -> Result<Vec<Entry>> {
        let node = &mut self.node;
        let snapshot = snapshot.clone();
        let namespace = self.world.namespace();
        namespace.run(|| node.change(snapshot).map_err(io::Error::other))?;
        Ok(Vec::new())
    }

    fn entries(&mut self) -> Result<Vec<Entry>> {
        Ok(self.entries_at(self.now))
    }

    fn coverage(&self) -> Coverage {
        let mut coverage = self.coverage.clone();
        coverage.count_verdicts(&self.counters.read());
        coverage
    }

    fn entries_after(&mut self, later: Duration) -> Result<Option<Vec<Entry>>> {
        Ok(Some(self.entries_at(self.now.after(later))))
    }
}

/// Whether a flow of UDP ends at its next packet, where kube-proxy deletes it when the objects change.
fn is_stale(services: &ServiceTable, view: &EntryView) -> bool {
    let tag = view
        .service
        .filter(|tag| tag.generation != services.generation());
    tag.is_some_and(|tag| {
        view.original.protocol == Protocol::UDP
            && services.is_stale(&view.original, &view.reply, tag.service(), tag.generation)
    })
}

fn entry(view: &EntryView) -> Entry {
    Entry {
        protocol: view.original.protocol.0,
        original: tuple_of(&view.original),
        reply: tuple_of(&view.reply),
        state: view
            .state
            .map_or_else(String::new, |state| state.to_string()),
        is_replied: view.status.has(Status::SEEN_REPLY),
        is_assured: view.status.has(Status::ASSURED),
        timeout: view.timeout.as_secs(),
        is_stale: false,
    }
}

fn tuple_of(tuple: &tuple::Tuple) -> Tuple {
    let icmp = tuple.protocol.is_icmp();
    Tuple {
        source: tuple.source.into(),
        source_port: tuple.source_port,
        destination: tuple.destination.into(),
        // Of ICMP the type and code, which the kernel lists apart.
        destination_port: if icmp { 0 } else { tuple.destination_port },
    }
}
