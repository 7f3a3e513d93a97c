//! What kube-proxy answers to those who ask for its health: `/healthz`, `/livez`, and for each Service with a
//! healthCheckNodePort whether this node has endpoints of it.
//!
//! Source: Kubernetes 1.30 `pkg/proxy/healthcheck/{proxier_health,service_health}.go`.

use crate::http::{Request, Response};
use crate::model::{Family, ServicePort};
use crate::snapshot::Node;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const JSON: &str = "application/json";
/// The taint that the cluster autoscaler puts on a node that it is about to remove.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// A moment, on the wall and since the start of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// On the wall.
    pub wall: Timestamp,
    /// Since the start; never goes back.
    pub running: Duration,
}

impl fmt::Display for Moment {
    /// As Go prints a time: `2026-11-20 10:55:24.633175123 +0000 UTC m=+5.318152212`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wall = self.wall.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC");
        let running = self.running;
        write!(
            f,
            "{wall} m=+{}.{:09}",
            running.as_secs(),
            running.subsec_nanos()
        )
    }
}

/// Whether the proxy keeps up with what changes.
#[derive(Debug)]
pub struct ProxyHealth {
    /// A change that waits longer makes the proxy unhealthy: twice the sync period.
    timeout: Duration,
    state: Mutex<State>,
    healthz: Answers,
    livez: Answers,
}

#[derive(Debug)]
struct State {
    /// When the oldest change that is not in the table yet came.
    oldest_change: Option<Moment>,
    updated: Option<Moment>,
    node_eligible: bool,
}

/// How often each code was answered.
#[derive(Debug, Default)]
pub struct Answers {
    ok: AtomicU64,
    unavailable: AtomicU64,
}

impl Answers {
    /// Counts by code.
    pub fn read(&self) -> [(&'static str, u64); 2] {
        [
            ("200", self.ok.load(Relaxed)),
            ("503", self.unavailable.load(Relaxed)),
        ]
    }

    fn count(&self, ok: bool) -> u16 {
        let (counter, code) = if ok {
            (&self.ok, 200)
        } else {
            (&self.unavailable, 503)
        };
        counter.fetch_add(1, Relaxed);
        code
    }
}

impl ProxyHealth {
    /// Of a proxy that has just started.
    pub fn new(sync_period: Duration) -> Self {
        Self {
            timeout: 2 * sync_period,
            state: Mutex::new(State {
                oldest_change: None,
                updated: None,
                node_eligible: true,
            }),
            healthz: Answers::default(),
            livez: Answers::default(),
        }
    }

    /// A change has come that is not in the table yet.
    pub fn queued(&self, now: Moment) {
        self.state().oldest_change.get_or_insert(now);
    }

    /// All changes are in the table, or were refused.
    pub fn updated(&self, now: Moment) {
        let mut state = self.state();
        state.oldest_change = None;
        state.updated = Some(now);
    }

    /// What the Node says of itself: one that is about to go gets no new traffic.
    pub fn follow_node(&self, node: &Node) {
        let is_going = node.metadata.deletion_timestamp.is_some()
            || node
                .spec
                .taints
                .iter()
                .any(|taint| taint.key == TO_BE_DELETED);
        self.state().node_eligible = !is_going;
    }

    /// Whether no change waits for too long.
    pub fn is_healthy(&self, now: Moment) -> bool {
        self.state().is_healthy(now, self.timeout)
    }

    /// Answers to `/healthz` and to `/livez` so far.
    pub const fn answers(&self) -> (&Answers, &Answers) {
        (&self.healthz, &self.livez)
    }

    /// Answers `/healthz` and `/livez`.
    pub fn answer(&self, request: &Request, now: Moment) -> Response {
        let state = self.state();
        let is_healthy = state.is_healthy(now, self.timeout);
        let eligible = state.node_eligible;
        let (counted, code, tail) = match request.path.as_str() {
            "/healthz" => {
                let tail = format!(", \"nodeEligible\": {eligible}");
                (is_healthy && eligible, &self.healthz, tail)
            }
            "/livez" => (is_healthy, &self.livez, String::new()),
            _ => return Response::not_found(),
        };
        let updated = if counted { Some(now) } else { state.updated };
        let updated = updated.map_or_else(|| NEVER.to_owned(), |updated| updated.to_string());
        let body = format!("{{\"lastUpdated\": \"{updated}\",\"currentTime\": \"{now}\"{tail}}}");
        Response::new(code.count(counted), JSON, body)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Go's zero time.
const NEVER: &str = "0001-01-01 00:00:00 +0000 UTC";

impl State {
    fn is_healthy(&self, now: Moment, timeout: Duration) -> bool {
        self.oldest_change
            .is_none_or(|change| now.running.saturating_sub(change.running) < timeout)
    }
}

/// Namespace and name of a Service.
pub type ServiceName = (String, String);

/// The port that a load balancer asks, and how many endpoints this node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The family that counts.
    pub family: Family,
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Distinct addresses of ready endpoints on this node; terminating ones do not count though they are used.
    pub local_endpoints: usize,
}

/// The health checks of the Services of one family. Of a dual-stack Service the first family counts: kube-proxy's
/// second cannot bind the port.
pub fn health_checks(service_ports: &[ServicePort]) -> BTreeMap<ServiceName, HealthCheck> {
    let mut found: BTreeMap<ServiceName, (HealthCheck, BTreeSet<IpAddr>)> = BTreeMap::new();
    for service_port in service_ports {
        let Some(port) = service_port.health_check_node_port else {
            continue;
        };
        let name = &service_port.name;
        let name = (name.namespace.clone(), name.service.clone());
        let check = HealthCheck {
            family: service_port.family,
            port,
            local_endpoints: 0,
        };
        let (_, addresses) = found
            .entry(name)
            .or_insert_with(|| (check, BTreeSet::new()));
        let endpoints = service_port.endpoints.iter();
        let local = endpoints.filter(|endpoint| endpoint.is_local && endpoint.ready);
        addresses.extend(local.map(|endpoint| endpoint.address));
    }
    let counted = |(check, addresses): (HealthCheck, BTreeSet<IpAddr>)| HealthCheck {
        local_endpoints: addresses.len(),
        ..check
    };
    found
        .into_iter()
        .map(|(name, found)| (name, counted(found)))
        .collect()
}

/// Answers a load balancer, whatever it asks for.
pub fn answer_health_check(
    (namespace, name): &ServiceName,
    local_endpoints: usize,
    is_healthy: bool,
) -> Response {
    let code = if local_endpoints > 0 && is_healthy {
        200
    } else {
        503
    };
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
         \t\"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {is_healthy}\n}}"
    );
    let mut response = Response::new(code, JSON, body);
    let weight = local_endpoints.to_string();
    response
        .headers
        .push(("X-Load-Balancing-Endpoint-Weight", weight));
    response
}

#[cfg(test)]
mod tests;
