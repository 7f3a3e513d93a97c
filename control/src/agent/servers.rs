//! What the agent serves to kubelets, load balancers and Prometheus, on the addresses of the configuration.
//!
//! The servers' threads read what they need themselves, so that they answer, and tell the truth, when the agent hangs.

use super::workers::Clock;
use crate::config::{KubeProxyConfig, ProxyMode};
use crate::health::{self, HealthCheck, Moment, ProxyHealth, ServiceName};
use crate::http::{Request, Response, Server, TEXT};
use crate::metrics::{self, Changes, Exposition, Kind, SyncMetrics, WithoutLocal};
use crate::model::Family;
use anyhow::{Context as _, Result};
use dataplane::service::{NodePortAddresses, ServiceTable};
use dataplane::verdict::{Counters, Counts};
use dataplane::worker::Shared;
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long after a failure an address is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What the servers tell of.
pub(super) struct Telemetry {
    clock: Clock,
    shared: Arc<Shared>,
    health: ProxyHealth,
    sync: Mutex<SyncMetrics>,
    workers: Mutex<Vec<Arc<Counters>>>,
    mode: ProxyMode,
    configz: String,
}

impl Telemetry {
    pub(super) fn new(config: &KubeProxyConfig, shared: Arc<Shared>, clock: Clock) -> Self {
        Self {
            clock,
            shared,
            health: ProxyHealth::new(config.sync_period),
            sync: Mutex::new(SyncMetrics::new(Timestamp::now())),
            workers: Mutex::default(),
            mode: config.mode,
            configz: json!({"kubeproxy.config.k8s.io": config.effective()}).to_string(),
        }
    }

    pub(super) fn moment(&self) -> Moment {
        Moment {
            wall: Timestamp::now(),
            running: Duration::from_nanos(self.clock.now().0),
        }
    }

    /// The objects have changed, but not the table yet.
    pub(super) fn queued(&self) {
        let now = self.moment();
        self.health.queued(now);
        self.sync().queued(now.wall);
    }

    /// A table was published.
    pub(super) fn published(&self, start: Moment, changes: &Changes, without_local: WithoutLocal) {
        let now = self.moment();
        let duration = now.running.saturating_sub(start.running);
        self.sync()
            .published(now.wall, duration, changes, without_local);
        self.health.updated(now);
    }

    /// The objects were looked at and nothing was to do, or they were refused.
    pub(super) fn settled(&self, refused: bool) {
        if refused {
            self.sync().refused();
        }
        self.health.updated(self.moment());
    }

    pub(super) const fn health(&self) -> &ProxyHealth {
        &self.health
    }

    /// Whose packets are counted.
    pub(super) fn follow_workers(&self, counters: &[Arc<Counters>]) {
        *self.workers.lock().unwrap_or_else(PoisonError::into_inner) = counters.to_vec();
    }

    fn sync(&self) -> std::sync::MutexGuard<'_, SyncMetrics> {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer_metrics(&self, request: &Request) -> Response {
        match request.path.as_str() {
            "/metrics" => Response::new(200, Exposition::CONTENT_TYPE, self.page()),
            "/healthz" => Response::new(200, TEXT, "ok"),
            "/proxyMode" => Response::new(200, TEXT, self.mode.name()),
            "/configz" => Response::new(200, "application/json", self.configz.clone()),
            _ => Response::not_found(),
        }
    }

    fn page(&self) -> String {
        let mut page = Exposition::default();
        self.sync().write(&mut page, &self.health);
        let mut counts = Counts::default();
        for worker in &*self.workers.lock().unwrap_or_else(PoisonError::into_inner) {
            counts += &worker.read();
        }
        metrics::write_packets(&mut page, &counts);
        metrics::write_connections(&mut page, &self.shared.conntrack, self.clock.now());
        let table = self.shared.services.load();
        let mut gauge = |name: &str, help: &str, value: u64| {
            page.single(Kind::Gauge, name, help, value);
        };
        let help = "Version of the service table";
        gauge("penstock_table_generation", help, table.generation().0);
        let help = "Ports of Services in the table, both families";
        gauge("penstock_services", help, table.service_count() as u64);
        let help = "Members of the endpoint sets in the table";
        gauge("penstock_endpoints", help, table.endpoint_count() as u64);
        let help = "Clients whose endpoint is remembered for session affinity";
        gauge(
            "penstock_affinity_clients",
            help,
            self.shared.affinity.len() as u64,
        );
        page.finish()
    }
}

/// A server that may not have its address yet.
struct Wanted {
    address: SocketAddr,
    server: Option<Server>,
}

/// The running servers.
pub(super) struct Servers {
    telemetry: Arc<Telemetry>,
    healthz: Option<Wanted>,
    metrics: Option<Wanted>,
    checks: BTreeMap<ServiceName, Check>,
    tried: Duration,
}

/// The servers of one healthCheckNodePort.
struct Check {
    local_endpoints: Arc<AtomicUsize>,
    servers: Vec<Wanted>,
}

impl Servers {
    /// Starts those of the configuration.
    ///
    /// # Errors
    /// When an address cannot be bound and the configuration says that this is fatal.
    pub(super) fn start(config: &KubeProxyConfig, telemetry: Arc<Telemetry>) -> Result<Self> {
        let wanted = |address: Option<SocketAddr>| {
            address.map(|address| Wanted {
                address,
                server: None,
            })
        };
        let mut servers = Self {
            healthz: wanted(config.healthz_bind_address),
            metrics: wanted(config.metrics_bind_address),
            checks: BTreeMap::new(),
            tried: telemetry.moment().running,
            telemetry,
        };
        let result = servers.bind();
        if config.bind_address_hard_fail {
            result?;
        } else if let Err(error) = result {
            tracing::error!("{error:#}; trying again");
        }
        Ok(servers)
    }

    /// Tries those again that have no address yet, from time to time.
    pub(super) fn retry(&mut self) {
        let now = self.telemetry.moment().running;
        if now.saturating_sub(self.tried) < RETRY {
            return;
        }
        self.tried = now;
        // Its failure was logged the first time.
        let _ = self.bind();
        for (name, check) in &mut self.checks {
            let _ = check.bind(name, &self.telemetry);
        }
    }

    /// The first error, after all were tried.
    fn bind(&mut self) -> Result<()> {
        let health = Arc::clone(&self.telemetry);
        let healthz = self.healthz.as_mut().map_or(Ok(()), |wanted| {
            wanted.bind("healthzBindAddress", move |request| {
                health.health.answer(request, health.moment())
            })
        });
        let telemetry = Arc::clone(&self.telemetry);
        let metrics = self.metrics.as_mut().map_or(Ok(()), |wanted| {
            wanted.bind("metricsBindAddress", move |request| {
                telemetry.answer_metrics(request)
            })
        });
        healthz.and(metrics)
    }

    /// Makes the health checks those of a new table. Servers whose port stays go on.
    pub(super) fn follow(
        &mut self,
        checks: BTreeMap<ServiceName, HealthCheck>,
        table: &ServiceTable,
    ) {
        self.checks.retain(|name, check| {
            let wanted = checks.get(name).map(|wanted| sockets(*wanted, table));
            wanted
                .is_some_and(|wanted| check.servers.iter().map(|server| server.address).eq(wanted))
        });
        for (name, wanted) in checks {
            if let Some(check) = self.checks.get(&name) {
                check.local_endpoints.store(wanted.local_endpoints, Relaxed);
                continue;
            }
            let mut check = Check::new(wanted, table);
            if let Err(error) = check.bind(&name, &self.telemetry) {
                tracing::error!("{error:#}; trying again");
            }
            self.checks.insert(name, check);
        }
    }
}

impl Wanted {
    fn bind(
        &mut self,
        what: &str,
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Result<()> {
        if self.server.is_none() {
            let server = Server::start(self.address, answer);
            let address = self.address;
            let server = server.with_context(|| format!("{what}: cannot listen on {address}"))?;
            self.server = Some(server);
        }
        Ok(())
    }
}

impl Check {
    fn new(wanted: HealthCheck, table: &ServiceTable) -> Self {
        let server = |address| Wanted {
            address,
            server: None,
        };
        Self {
            local_endpoints: Arc::new(AtomicUsize::new(wanted.local_endpoints)),
            servers: sockets(wanted, table).into_iter().map(server).collect(),
        }
    }

    /// The first error, after all were tried.
    fn bind(&mut self, name: &ServiceName, telemetry: &Arc<Telemetry>) -> Result<()> {
        let mut result = Ok(());
        for wanted in &mut self.servers {
            let (name, telemetry) = (name.clone(), Arc::clone(telemetry));
            let local_endpoints = Arc::clone(&self.local_endpoints);
            let what = format!("healthCheckNodePort of {}/{}", name.0, name.1);
            let bound = wanted.bind(&what, move |_| {
                let is_healthy = telemetry.health.is_healthy(telemetry.moment());
                health::answer_health_check(&name, local_endpoints.load(Relaxed), is_healthy)
            });
            result = result.and(bound);
        }
        result
    }
}

/// Where a healthCheckNodePort listens: everywhere, or on the addresses that serve NodePorts of its family.
fn sockets(check: HealthCheck, table: &ServiceTable) -> Vec<SocketAddr> {
    let socket = |address: IpAddr| SocketAddr::new(address, check.port);
    match table.node_port_addresses(check.family == Family::V4) {
        NodePortAddresses::All { .. } => vec![socket(IpAddr::from(Ipv4Addr::UNSPECIFIED))],
        NodePortAddresses::Only(list) => list.iter().map(|own| socket((*own).into())).collect(),
    }
}
