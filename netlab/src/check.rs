//! One real request to every address of every Service, as far as one host can tell how it ought to end.
//!
//! From the client: the load balancer's and external IPs, or a NodePort where there are none. From a pod: the
//! cluster IPs. Without a dataplane: an endpoint itself. A request is *required* to be answered when the Service
//! has a ready endpoint that this way may use; all others are made too, and only reported.

pub(crate) mod request;

pub use request::Outcome;

use crate::names::HostName;
use crate::namespace::Namespace;
use crate::plan::{Host, Plan, Protocol, Run};
use crate::plan::{addresses_outside, via_node};
use control::config::{KubeProxyConfig, NodePortAddresses};
use control::model::{Family, Transport};
use control::snapshot::Snapshot;
use control::snapshot::objects::{
    AddressType, ClusterIp, Conditions, Endpoint, Policy, Service, ServicePort, ServiceType,
};
use ipnet::IpNet;
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long required requests are tried again.
const WITHIN: Duration = Duration::from_secs(5);
/// How many are under way at once.
const AT_ONCE: usize = 16;

/// Labels of Services that kube-proxy leaves alone.
const NOT_OURS: [&str; 2] = [
    "service.kubernetes.io/service-proxy-name",
    "service.kubernetes.io/headless",
];

/// A Service as the table shows it.
#[derive(Clone, Debug, Serialize)]
pub struct CheckedService {
    /// `namespace/name`.
    pub service: String,
    /// `ClusterIP`, `NodePort`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it is reached: `10.96.0.10:80/TCP`.
    pub addresses: Vec<String>,
    /// Its ready endpoints: `10.244.1.10:8080`.
    pub endpoints: Vec<String>,
    /// Those that end, and serve until then.
    pub terminating: Vec<String>,
    /// Requests that were made.
    pub requests: Vec<Request>,
}

/// A request and its end.
#[derive(Clone, Debug, Serialize)]
pub struct Request {
    /// The host that asks.
    pub from: String,
    /// What it asks.
    pub to: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
    /// Why it need not be answered; absent when it has to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_required: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    #[serde(skip)]
    namespace: String,
}

impl Request {
    /// Whether it ended as it has to.
    pub fn is_fine(&self) -> bool {
        self.not_required.is_some() || self.outcome.is_fine()
    }
}

/// What checks are made of.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The hosts.
    pub plan: &'a Plan,
    /// The Services.
    pub snapshot: &'a Snapshot,
    /// For NodePorts.
    pub config: &'a KubeProxyConfig,
    /// The node that was chosen for traffic from outside.
    pub via: Option<&'a str>,
    /// Whether Services work, or only endpoints can be asked.
    pub has_dataplane: bool,
}

/// The Services with the requests that are to be made, none made yet.
pub fn services(input: Input<'_>) -> Vec<CheckedService> {
    input
        .snapshot
        .services
        .iter()
        .map(|service| checked(input, service))
        .collect()
}

/// Makes all requests; required ones again until they are answered or the time is over.
pub fn make_all(services: &mut [CheckedService], interrupted: &(dyn Fn() -> bool + Sync)) {
    let deadline = Instant::now() + WITHIN;
    let mut left: Vec<&mut Request> = services
        .iter_mut()
        .flat_map(|service| &mut service.requests)
        .collect();
    while !left.is_empty() && !interrupted() {
        for batch in left.chunks_mut(AT_ONCE) {
            std::thread::scope(|scope| {
                for request in batch {
                    scope.spawn(move || make(request));
                }
            });
        }
        left.retain(|request| !request.is_fine());
        if Instant::now() > deadline {
            return;
        }
        if !left.is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn make(request: &mut Request) {
    let timeout = Duration::from_millis(if request.not_required.is_none() {
        1000
    } else {
        400
    });
    let (to, protocol) = (request.to, request.protocol);
    let inside = Namespace::open(&request.namespace);
    let made = inside.and_then(|inside| inside.run(|| Ok(request::make(to, protocol, timeout))));
    request.outcome = made.unwrap_or_else(|error| Outcome::Failed {
        error: error.to_string(),
    });
}

fn checked(input: Input<'_>, service: &Service) -> CheckedService {
    let metadata = &service.metadata;
    let mut checked = CheckedService {
        service: format!("{}/{}", metadata.namespace, metadata.name),
        kind: format!("{:?}", service.spec.kind),
        addresses: Vec::new(),
        endpoints: Vec::new(),
        terminating: Vec::new(),
        requests: Vec::new(),
    };
    if service.spec.kind == ServiceType::ExternalName {
        return checked;
    }
    for port in &service.spec.ports {
        for family in [Family::V4, Family::V6] {
            let all = |is_it: fn(&Conditions) -> bool| {
                let found = endpoints(input.snapshot, service, port, family);
                found
                    .filter(move |(.., endpoint)| is_it(&endpoint.conditions))
                    .map(|(ip, port, _)| SocketAddr::new(ip, port).to_string())
            };
            checked.endpoints.extend(all(is_ready));
            checked.terminating.extend(all(is_terminating));
        }
        let way = Way {
            input,
            service,
            port,
        };
        checked.addresses.extend(way.addresses());
        if input.has_dataplane {
            checked.requests.extend(way.outside());
            checked.requests.extend(way.inside());
        } else {
            checked.requests.extend(way.direct());
        }
    }
    for endpoints in [&mut checked.endpoints, &mut checked.terminating] {
        endpoints.sort();
        endpoints.dedup();
    }
    checked
}

/// As kube-proxy reads conditions: what does not say that it is not ready is.
fn is_ready(conditions: &Conditions) -> bool {
    conditions.ready != Some(false)
}

/// Whether it may stand in where none is ready.
fn is_terminating(conditions: &Conditions) -> bool {
    let serves = conditions.serving != Some(false);
    !is_ready(conditions) && serves && conditions.terminating == Some(true)
}

/// Address, port and endpoint of those that are ready, of one family.
fn ready_endpoints<'a>(
    snapshot: &'a Snapshot,
    service: &'a Service,
    port: &'a ServicePort,
    family: Family,
) -> impl Iterator<Item = (IpAddr, u16, &'a Endpoint)> {
    let all = endpoints(snapshot, service, port, family);
    all.filter(|(.., endpoint)| is_ready(&endpoint.conditions))
}

/// The same of all.
fn endpoints<'a>(
    snapshot: &'a Snapshot,
    service: &'a Service,
    port: &'a ServicePort,
    family: Family,
) -> impl Iterator<Item = (IpAddr, u16, &'a Endpoint)> {
    let kind = match family {
        Family::V4 => AddressType::IPv4,
        Family::V6 => AddressType::IPv6,
    };
    let of_service = snapshot.endpoint_slices.iter().filter(move |slice| {
        slice.address_type == kind
            && slice.metadata.namespace == service.metadata.namespace
            && slice.service_name() == Some(service.metadata.name.as_str())
    });
    of_service.flat_map(move |slice| {
        let same = slice
            .ports
            .iter()
            .find(|own| own.name == port.name && own.protocol == port.protocol);
        let number = same.and_then(|own| own.port);
        let all = slice.endpoints.iter();
        all.filter_map(move |endpoint| Some((endpoint.address()?, number?, endpoint)))
    })
}

/// The cluster IPs of a Service, each once.
pub(crate) fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let all = service
        .spec
        .cluster_ips
        .iter()
        .chain([&service.spec.cluster_ip]);
    let mut addresses: Vec<IpAddr> = all
        .filter_map(|ip| match ip {
            ClusterIp::Address(address) => Some(*address),
            _ => None,
        })
        .collect();
    addresses.dedup();
    if addresses.len() > 1 && addresses.first() == addresses.last() {
        addresses.pop();
    }
    addresses
}

/// One port of one Service.
struct Way<'a> {
    input: Input<'a>,
    service: &'a Service,
    port: &'a ServicePort,
}

impl<'a> Way<'a> {
    fn protocol(&self) -> Protocol {
        Transport::from(self.port.protocol).into()
    }

    fn addresses(&self) -> Vec<String> {
        let word = format!("{:?}", self.port.protocol);
        let all = cluster_ips(self.service)
            .into_iter()
            .chain(addresses_outside(self.service));
        let mut addresses: Vec<String> = all
            .map(|ip| format!("{}/{word}", SocketAddr::new(ip, self.port.port)))
            .collect();
        addresses.extend(
            self.port
                .node_port
                .map(|port| format!("NODE:{port}/{word}")),
        );
        addresses
    }

    /// From the client, by each VIP, else by a NodePort for each family.
    fn outside(&self) -> Vec<Request> {
        let vips = addresses_outside(self.service);
        let mut targets: Vec<SocketAddr> = vips
            .iter()
            .map(|ip| SocketAddr::new(*ip, self.port.port))
            .collect();
        if let (true, Some(port)) = (targets.is_empty(), self.port.node_port) {
            let via = self.via();
            let node = via.as_deref().and_then(|via| self.input.plan.node(via));
            let own = node
                .into_iter()
                .flat_map(|node| &node.addresses)
                .map(IpNet::addr);
            let families = own.filter(|address| self.has_family(Family::of(*address)));
            targets.extend(families.map(|address| SocketAddr::new(address, port)));
        }
        let Some(client) = self.input.plan.host(&HostName::Client) else {
            return Vec::new();
        };
        let required = |target: &SocketAddr| self.required_outside(client, target);
        targets
            .iter()
            .map(|target| self.request(client, *target, required(target)))
            .collect()
    }

    fn via(&self) -> Option<String> {
        via_node(self.input.snapshot, self.service, self.input.via, |_| true)
    }

    /// Whether the Service has a cluster IP of the family.
    fn has_family(&self, family: Family) -> bool {
        cluster_ips(self.service)
            .iter()
            .any(|address| Family::of(*address) == family)
    }

    fn required_outside(&self, client: &Host, target: &SocketAddr) -> Result<(), String> {
        let family = Family::of(target.ip());
        let local = self.service.spec.external_traffic_policy == Some(Policy::Local);
        self.required_endpoint(family, local.then(|| self.via()).flatten().as_deref())?;
        if !client
            .addresses
            .iter()
            .any(|own| Family::of(own.addr()) == family)
        {
            return Err("the client has no address of this family".to_owned());
        }
        let ranges = &self.service.spec.load_balancer_source_ranges;
        let of_family = || {
            ranges
                .iter()
                .filter(|range| Family::of(range.addr()) == family)
        };
        let admits = |range: &IpNet| {
            client
                .addresses
                .iter()
                .any(|own| range.contains(&own.addr()))
        };
        if of_family().next().is_some() && !of_family().any(admits) {
            return Err("loadBalancerSourceRanges does not have the client".to_owned());
        }
        let is_node_port = Some(target.port()) == self.port.node_port;
        match &self.input.config.node_port_addresses {
            NodePortAddresses::Ranges(ranges)
                if is_node_port && !ranges.iter().any(|range| range.contains(&target.ip())) =>
            {
                Err("nodePortAddresses does not have this address".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn required_endpoint(&self, family: Family, on: Option<&str>) -> Result<(), String> {
        let ready: Vec<_> =
            ready_endpoints(self.input.snapshot, self.service, self.port, family).collect();
        let labels = &self.service.metadata.labels;
        if let Some(label) = NOT_OURS.iter().find(|label| labels.contains(label)) {
            return Err(format!("its label {label} leaves it to somebody else"));
        }
        let runs_something = |&(address, ..): &(IpAddr, u16, &Endpoint)| {
            let server = self.input.plan.server(address);
            server.is_some_and(|server| matches!(server.run, Run::Command(_)))
        };
        if ready.iter().any(runs_something) {
            return Err("a pod of it runs a command of its own".to_owned());
        }
        match on {
            _ if ready.is_empty() => Err("it has no ready endpoint".to_owned()),
            Some(node)
                if !ready
                    .iter()
                    .any(|(.., one)| one.node_name.as_deref() == Some(node)) =>
            {
                Err(format!("it has no ready endpoint on {node}"))
            }
            _ => Ok(()),
        }
    }

    /// From a pod, by each cluster IP.
    fn inside(&self) -> Vec<Request> {
        let local = self.service.spec.internal_traffic_policy == Some(Policy::Local);
        let ips = cluster_ips(self.service).into_iter();
        ips.filter_map(|address| {
            let family = Family::of(address);
            let ready = ready_endpoints(self.input.snapshot, self.service, self.port, family);
            let nodes: Vec<&str> = ready
                .filter_map(|(.., endpoint)| endpoint.node_name.as_deref())
                .collect();
            let near = |host: &&Host| {
                !local
                    || host
                        .node
                        .as_deref()
                        .is_some_and(|node| nodes.contains(&node))
            };
            let from = self
                .asker(family, near)
                .or_else(|| self.asker(family, |_| true))?;
            let on = local.then_some(from.node.as_deref()).flatten();
            let required = self.required_endpoint(family, on);
            Some(self.request(from, SocketAddr::new(address, self.port.port), required))
        })
        .collect()
    }

    /// An endpoint itself, where nothing makes Services work.
    fn direct(&self) -> Vec<Request> {
        let families = [Family::V4, Family::V6].into_iter();
        families
            .filter_map(|family| {
                let (address, port, _) =
                    ready_endpoints(self.input.snapshot, self.service, self.port, family).next()?;
                let from = self.asker(family, |_| true)?;
                Some(self.request(from, SocketAddr::new(address, port), Ok(())))
            })
            .collect()
    }

    /// A pod with an address of the family, one that only asks if there is such, else a node.
    fn asker(&self, family: Family, fit: impl Fn(&&'a Host) -> bool) -> Option<&'a Host> {
        let has = |host: &&Host| {
            host.addresses
                .iter()
                .any(|own| Family::of(own.addr()) == family)
        };
        let hosts = || self.input.plan.hosts.iter().filter(has).filter(&fit);
        let is_pod =
            |host: &&Host| matches!(host.name, HostName::Pod { .. }) && host.has_namespace();
        let idle = hosts().find(|host| is_pod(host) && host.server.is_none());
        let pod = idle.or_else(|| hosts().find(is_pod));
        pod.or_else(|| hosts().find(|host| matches!(host.name, HostName::Node(_))))
    }

    fn request(&self, from: &Host, to: SocketAddr, required: Result<(), String>) -> Request {
        Request {
            from: from.name.to_string(),
            to,
            protocol: self.protocol(),
            not_required: required.err(),
            outcome: Outcome::NotMade,
            namespace: from.namespace.clone(),
        }
    }
}
