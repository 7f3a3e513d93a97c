//! What a node tells Prometheus: kube-proxy's metrics by their names, and ours beside them.
//!
//! Source: Kubernetes 1.30 `pkg/proxy/metrics/metrics.go`. Counts of packets and connections are read where they are
//! kept when somebody asks; only what belongs to the control plane is kept here.

mod exposition;

pub use exposition::{Exposition, Histogram, Kind};

use crate::endpoints::EndpointSets;
use crate::health::ProxyHealth;
use crate::model::{ServicePort, TrafficPolicy};
use crate::snapshot::objects::Metadata;
use crate::snapshot::{EndpointSlice, Snapshot};
use dataplane::conntrack::{Conntrack, Statistics, Status};
use dataplane::tuple::{Timestamp, Tuple};
use dataplane::verdict::{Counts, DropReason};
use jiff::Timestamp as Wall;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

/// Says when the change that made a slice what it is was triggered.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What happened in the control plane since the start.
#[derive(Clone, Debug)]
pub struct SyncMetrics {
    started: Wall,
    duration: Histogram,
    network_programming: Histogram,
    last_sync: Option<Wall>,
    last_queued: Option<Wall>,
    service_changes: u64,
    endpoint_changes: u64,
    failures: u64,
    without_local: WithoutLocal,
}

/// Svcports whose policy is Local, that have endpoints somewhere, but none on this node.
///
/// Those that nothing but their cluster IP leads to count by their `externalTrafficPolicy`, too, wherever their endpoints
/// are (`pkg/proxy/iptables/proxier.go`, `syncProxyRules`): a load balancer that is not ready yet, without a NodePort.
///
/// DIFFERS: both families add up; kube-proxy's two proxies write the same gauge, so it shows the one that synced last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    /// By `internalTrafficPolicy`.
    pub internal: usize,
    /// By `externalTrafficPolicy`.
    pub external: usize,
}

impl WithoutLocal {
    /// Counts in svcports of a node in `zone`.
    pub fn count(service_ports: &[ServicePort], zone: Option<&str>) -> Self {
        let mut count = Self::default();
        for service_port in service_ports {
            let (internal, external) = (
                service_port.internal_traffic_policy,
                service_port.external_traffic_policy,
            );
            if internal != TrafficPolicy::Local && external != TrafficPolicy::Local {
                continue;
            }
            let sets = EndpointSets::of(service_port, zone);
            count.internal += usize::from(sets.has && !sets.has_internal);
            count.external += usize::from(sets.has && !sets.has_external);
        }
        count
    }
}

impl std::ops::AddAssign for WithoutLocal {
    fn add_assign(&mut self, other: Self) {
        self.internal += other.internal;
        self.external += other.external;
    }
}

/// What changed between two snapshots, for counting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services.
    pub services: usize,
    /// Slices.
    pub slices: usize,
    /// When the changes of slices were triggered, where they say so.
    pub triggered: Vec<Wall>,
}

impl Changes {
    /// From one snapshot to another. Where an object was read does not matter.
    pub fn between(old: &Snapshot, new: &Snapshot) -> Self {
        let services = changed(&old.services, &new.services, |service| {
            name(&service.metadata)
        });
        Self {
            services: services.0,
            ..Self::of_slices(&old.endpoint_slices, &new.endpoint_slices)
        }
    }

    /// From some slices to others, both sorted.
    pub fn of_slices(old: &[EndpointSlice], new: &[EndpointSlice]) -> Self {
        let slices = changed(old, new, |slice| name(&slice.metadata));
        let triggered =
            |slice: &EndpointSlice| slice.metadata.annotations.get(TRIGGER_TIME)?.parse().ok();
        Self {
            services: 0,
            slices: slices.0,
            triggered: slices.1.into_iter().filter_map(triggered).collect(),
        }
    }
}

fn name(metadata: &Metadata) -> (&str, &str) {
    (&metadata.namespace, &metadata.name)
}

/// How many objects came, went or changed, and those that came or changed. Both lists are sorted by `key`.
fn changed<'n, T: PartialEq>(
    old: &[T],
    new: &'n [T],
    key: impl Fn(&T) -> (&str, &str),
) -> (usize, Vec<&'n T>) {
    let mut old = old.iter().peekable();
    let mut gone = 0;
    let mut found = Vec::new();
    for object in new {
        while old
            .next_if(|candidate| key(candidate) < key(object))
            .is_some()
        {
            gone += 1;
        }
        let same = old.next_if(|candidate| key(candidate) == key(object));
        if same != Some(object) {
            found.push(object);
        }
    }
    (gone + old.count() + found.len(), found)
}

impl SyncMetrics {
    /// Of a process that started at `started`.
    pub fn new(started: Wall) -> Self {
        let doubling = (0..15).map(|power| 0.001 * f64::from(1 << power));
        let seconds = (1..60)
            .chain((60..120).step_by(5))
            .chain((120..=300).step_by(30));
        let programming = [0.25, 0.5].into_iter().chain(seconds.map(f64::from));
        Self {
            started,
            duration: Histogram::new(doubling.collect()),
            network_programming: Histogram::new(programming.collect()),
            last_sync: None,
            last_queued: None,
            service_changes: 0,
            endpoint_changes: 0,
            failures: 0,
            without_local: WithoutLocal::default(),
        }
    }

    /// Somebody asked for a sync.
    pub const fn queued(&mut self, now: Wall) {
        self.last_queued = Some(now);
    }

    /// A table was published, `duration` after the start of the sync.
    pub fn published(
        &mut self,
        now: Wall,
        duration: Duration,
        changes: &Changes,
        without_local: WithoutLocal,
    ) {
        self.duration.observe(duration.as_secs_f64());
        self.last_sync = Some(now);
        self.service_changes += changes.services as u64;
        self.endpoint_changes += changes.slices as u64;
        self.without_local = without_local;
        let ours = changes
            .triggered
            .iter()
            .filter(|time| **time > self.started);
        for triggered in ours {
            let age = now.duration_since(*triggered).as_secs_f64();
            self.network_programming.observe(age.max(0.0));
        }
    }

    /// A change was refused.
    pub const fn refused(&mut self) {
        self.failures += 1;
    }

    /// Kube-proxy's metrics.
    pub fn write(&self, page: &mut Exposition, health: &ProxyHealth) {
        self.write_times(page);
        self.write_changes(page);
        self.write_iptables(page);
        write_answers(page, health);
    }

    fn write_times(&self, page: &mut Exposition) {
        let seconds =
            |time: Option<Wall>| time.map_or(0.0, |time| time.as_nanosecond() as f64 / 1e9);
        let help = "SyncProxyRules latency in seconds";
        page.histogram(&of_syncs("duration_seconds"), help, &self.duration);
        let help = "SyncProxyRules latency in seconds for full resyncs (every sync is one)";
        page.histogram(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            help,
            &self.duration,
        );
        let help = "In Cluster Network Programming Latency in seconds";
        page.histogram(
            "kubeproxy_network_programming_duration_seconds",
            help,
            &self.network_programming,
        );
        let help = "The last time proxy rules were successfully synced";
        page.single(
            Kind::Gauge,
            &of_syncs("last_timestamp_seconds"),
            help,
            seconds(self.last_sync),
        );
        let help = "The last time a sync of proxy rules was queued";
        page.single(
            Kind::Gauge,
            &of_syncs("last_queued_timestamp_seconds"),
            help,
            seconds(self.last_queued),
        );
    }

    fn write_changes(&self, page: &mut Exposition) {
        use Kind::{Counter, Gauge};
        let help = "Cumulative proxy rules Service changes";
        page.single(
            Counter,
            &of_syncs("service_changes_total"),
            help,
            self.service_changes,
        );
        let help = "Pending proxy rules Service changes (changes are taken at once)";
        page.single(Gauge, &of_syncs("service_changes_pending"), help, 0);
        let help = "Cumulative proxy rules Endpoint changes";
        page.single(
            Counter,
            &of_syncs("endpoint_changes_total"),
            help,
            self.endpoint_changes,
        );
        let help = "Pending proxy rules Endpoint changes (changes are taken at once)";
        page.single(Gauge, &of_syncs("endpoint_changes_pending"), help, 0);
        let help = "Number of services with a Local traffic policy and no endpoints";
        let counts = [
            ("internal", self.without_local.internal),
            ("external", self.without_local.external),
        ];
        page.labelled(
            Gauge,
            &of_syncs("no_local_endpoints_total"),
            help,
            "traffic_policy",
            counts,
        );
    }

    /// A partial sync and rules in the kernel are what this proxy does not have; dashboards ask for them.
    fn write_iptables(&self, page: &mut Exposition) {
        use Kind::{Counter, Gauge};
        let help = "SyncProxyRules latency in seconds for partial resyncs (there are none)";
        page.histogram(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            help,
            &self.duration.emptied(),
        );
        let tables = [("filter", 0), ("nat", 0)];
        let help = "Total number of iptables rules owned by kube-proxy (none)";
        page.labelled(Gauge, &of_syncs("iptables_total"), help, "table", tables);
        let help = "Number of iptables rules written by kube-proxy in last sync (none)";
        page.labelled(Gauge, &of_syncs("iptables_last"), help, "table", tables);
        let help = "Cumulative proxy iptables partial restore failures (there are none)";
        page.single(
            Counter,
            &of_syncs("iptables_partial_restore_failures_total"),
            help,
            0,
        );
        let help = "Cumulative proxy iptables restore failures (here: changes that were refused)";
        page.single(
            Counter,
            &of_syncs("iptables_restore_failures_total"),
            help,
            self.failures,
        );
    }
}

/// What was answered to those who asked for the proxy's health.
fn write_answers(page: &mut Exposition, health: &ProxyHealth) {
    let (healthz, livez) = health.answers();
    let help = "Cumulative proxy healthz HTTP status";
    page.labelled(
        Kind::Counter,
        "kubeproxy_proxy_healthz_total",
        help,
        "code",
        healthz.read(),
    );
    let help = "Cumulative proxy livez HTTP status";
    page.labelled(
        Kind::Counter,
        "kubeproxy_proxy_livez_total",
        help,
        "code",
        livez.read(),
    );
}

/// The whole name of a metric of kube-proxy's syncs.
fn of_syncs(rest: &str) -> String {
    format!("kubeproxy_sync_proxy_rules_{rest}")
}

/// Writes the verdicts of all workers.
pub fn write_packets(page: &mut Exposition, counts: &Counts) {
    let verdicts = [
        ("forward", counts.forward),
        ("pass", counts.pass),
        ("reject", counts.reject),
        ("hold", counts.hold),
        ("drop", counts.drop.iter().sum()),
    ];
    let help = "Packets by verdict";
    page.labelled(
        Kind::Counter,
        "penstock_packets_total",
        help,
        "verdict",
        verdicts,
    );
    let help = "Packets dropped, by reason";
    let reasons = DropReason::ALL.iter();
    let reasons = reasons.map(|reason| (reason.name(), counts.dropped(*reason)));
    page.labelled(
        Kind::Counter,
        "penstock_dropped_packets_total",
        help,
        "reason",
        reasons,
    );
    let help = "Packets whose frame a device did not take";
    page.single(
        Kind::Counter,
        "penstock_send_failures_total",
        help,
        counts.send_failure,
    );
}

/// Writes how full the table of connections and the ports of masquerading are.
pub fn write_connections(page: &mut Exposition, conntrack: &Conntrack, now: Timestamp) {
    let help = "Entries in the table of connections";
    page.single(
        Kind::Gauge,
        "penstock_conntrack_entries",
        help,
        conntrack.len(),
    );
    let help = "Entries that the table of connections can hold";
    page.single(
        Kind::Gauge,
        "penstock_conntrack_entries_limit",
        help,
        conntrack.capacity(),
    );
    let statistics: Statistics = conntrack.statistics().into_iter().sum();
    let help = "Connections that were entered into the table";
    let name = "penstock_conntrack_inserts_total";
    page.single(Kind::Counter, name, help, statistics.inserted);
    let help = "What conntrack -S counts, by its names there";
    let events = events(&statistics);
    page.labelled(
        Kind::Counter,
        "penstock_conntrack_events_total",
        help,
        "event",
        events,
    );
    let (by_address, most) = source_ports(conntrack, now);
    let help = "Source ports that masquerading has leased, over all destinations, by the address that they belong to";
    let by_address = by_address.iter().map(|(of, ports)| (of.as_str(), *ports));
    let name = "penstock_source_ports_in_use";
    page.labelled(Kind::Gauge, name, help, "address", by_address);
    let help = "Source ports leased towards the one destination that has most; there are 64512";
    page.single(Kind::Gauge, "penstock_source_ports_in_use_max", help, most);
}

fn events(counted: &Statistics) -> [(&'static str, u64); 8] {
    [
        ("found", counted.found),
        ("invalid", counted.invalid),
        ("insert_failed", counted.insert_failed),
        ("drop", counted.drop),
        ("early_drop", counted.early_drop),
        ("clash_resolve", counted.clash_resolve),
        ("chaintoolong", counted.chain_too_long),
        ("source_limit", counted.source_limit),
    ]
}

/// Leased ports by address, and those towards the destination that has most of them. A client whose port alone was
/// changed, for another had it, keeps its own address and leases none of the node's.
fn source_ports(conntrack: &Conntrack, now: Timestamp) -> (BTreeMap<String, u64>, u64) {
    let mut by_destination: HashMap<Tuple, u64> = HashMap::new();
    conntrack.for_each(now, |entry| {
        let is_masqueraded = entry.reply.destination != entry.original.source;
        if entry.status.has(Status::SRC_NAT) && is_masqueraded {
            let without_port = Tuple {
                destination_port: 0,
                ..entry.reply
            };
            *by_destination.entry(without_port).or_default() += 1;
        }
    });
    let mut by_address = BTreeMap::new();
    for (reply, ports) in &by_destination {
        let address = IpAddr::from(reply.destination).to_string();
        *by_address.entry(address).or_default() += ports;
    }
    (by_address, by_destination.into_values().max().unwrap_or(0))
}

#[cfg(test)]
mod tests;
