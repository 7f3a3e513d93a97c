//! Every address of every Service, asked from everywhere: `./lab check`.
//!
//! What ought to happen is what `penstock explain` says of the packet; what does happen is told by real requests
//! through whatever dataplane the lab runs. So it holds explanations against the dataplane, and against the kernel.
//! Read first: [`ways`], then [`Way::make`].

use crate::check::cluster_ips;
use crate::check::request::{self, Outcome};
use crate::names::HostName;
use crate::namespace::Namespace;
use crate::plan::{Host, Plan, Protocol, Run, addresses_outside};
use crate::state::Dataplane;
use control::compile::CompileError;
use control::config::KubeProxyConfig;
use control::explain::{Explainer, Explanation, Packet, Verdict};
use control::model::{Family, Transport};
use control::snapshot::Snapshot;
use control::snapshot::objects::{Service, ServicePort, ServiceType};
use dataplane::service::{Action, Frontend, FrontendKey, FrontendKind};
use dataplane::tuple::{Origin, Protocol as Number};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// How many ways are asked at once.
const AT_ONCE: usize = 8;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a refusal may take: a host gets few ICMP errors a second, and only retransmissions ask again.
const REFUSAL: Duration = Duration::from_secs(8);
/// How long silence is listened to.
const SILENCE: Duration = Duration::from_millis(300);

/// One host that asks one address of one Service.
#[derive(Clone, Debug, Serialize)]
pub struct Way {
    /// `namespace/name:port`.
    pub service: String,
    /// The host that asks.
    pub from: String,
    /// What it asks.
    pub to: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
    /// How every request ought to end.
    pub expected: Expected,
    /// The rule that decides, in words.
    pub reason: String,
    /// Requests that were made.
    pub asked: usize,
    /// Requests that ended as they ought to.
    pub as_expected: usize,
    /// Who answered how often.
    pub answers: BTreeMap<String, usize>,
    /// How the others ended, each ending once.
    pub otherwise: BTreeSet<String>,
    /// Why nothing could be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    #[serde(skip)]
    pub(crate) namespace: String,
}

/// How a request ought to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "camelCase")]
pub enum Expected {
    /// One of these pods answers; any, when they do not say their names.
    Answered {
        /// `namespace/name`.
        pods: BTreeSet<String>,
    },
    /// ICMP port unreachable.
    Refused,
    /// Nothing comes back.
    Silent,
}

impl Way {
    /// Whether every request ended as it ought to.
    pub fn is_fine(&self) -> bool {
        self.asked == self.as_expected
    }

    /// Asks `requests` times; once where no answer is expected, since refusals are limited and silence is long.
    fn make(&mut self, requests: usize) {
        let (to, protocol) = (self.to, self.protocol);
        let (times, timeout) = match self.expected {
            Expected::Answered { .. } => (requests, ANSWER),
            Expected::Refused => (1, REFUSAL),
            Expected::Silent => (1, SILENCE),
        };
        let inside = Namespace::open(&self.namespace);
        let outcomes = inside.and_then(|inside| {
            inside.run(|| {
                let one = |_| request::make(to, protocol, timeout);
                Ok((0..times).map(one).collect::<Vec<_>>())
            })
        });
        match outcomes {
            Ok(outcomes) => outcomes.into_iter().for_each(|outcome| self.count(outcome)),
            Err(error) => {
                self.asked += 1;
                let from = &self.from;
                self.otherwise
                    .insert(format!("{from} cannot be entered: {error}"));
            }
        }
    }

    fn count(&mut self, outcome: Outcome) {
        if let Outcome::Skipped { why } = outcome {
            self.skipped = Some(why);
            return;
        }
        self.asked += 1;
        let fits = match (&self.expected, &outcome) {
            (Expected::Answered { pods }, Outcome::Answered { by, .. }) => {
                pods.is_empty() || pods.contains(by)
            }
            (Expected::Refused, Outcome::Refused) | (Expected::Silent, Outcome::Silent) => true,
            _ => false,
        };
        if let Outcome::Answered { by, .. } = &outcome {
            *self.answers.entry(by.clone()).or_default() += 1;
        } else if !fits {
            self.otherwise.insert(outcome.to_string());
        }
        self.as_expected += usize::from(fits);
    }
}

/// All ways that a Service of `snapshot` can be asked, none asked yet.
pub fn ways(
    plan: &Plan,
    snapshot: &Snapshot,
    config: &KubeProxyConfig,
    dataplane: Dataplane,
) -> Result<Vec<Way>, CompileError> {
    let explainer = |(name, _)| Ok((name, Explainer::new(snapshot, config, name)?));
    let cluster = Cluster {
        plan,
        is_nftables: dataplane == Dataplane::Nftables,
        explainers: plan.nodes().map(explainer).collect::<Result<_, _>>()?,
    };
    let mut ways = Vec::new();
    for service in &snapshot.services {
        if service.spec.kind == ServiceType::ExternalName {
            continue;
        }
        for port in &service.spec.ports {
            for (from, to) in cluster.questions(service, port) {
                ways.extend(cluster.way(service, port, from, to));
            }
        }
    }
    Ok(ways)
}

/// Asks them all.
pub fn make_all(ways: &mut [Way], requests: usize, interrupted: &dyn Fn() -> bool) {
    for batch in ways.chunks_mut(AT_ONCE) {
        if interrupted() {
            return;
        }
        std::thread::scope(|scope| {
            for way in batch {
                scope.spawn(move || way.make(requests));
            }
        });
    }
}

/// The hosts that ask; the client, the nodes, and of each node a pod, two where none has addresses of both families.
fn askers(plan: &Plan) -> Vec<&Host> {
    let client = plan.host(&HostName::Client).into_iter();
    let pods = plan.nodes().flat_map(|(node, _)| {
        let pods = || plan.hosts.iter().filter(|host| is_pod_of(host, node));
        let has = |host: &Host, family| {
            let mut addresses = host.addresses.iter();
            addresses.any(|address| Family::of(address.addr()) == family)
        };
        let both = pods().find(|pod| has(pod, Family::V4) && has(pod, Family::V6));
        let one_of = |family| pods().find(|pod| has(pod, family));
        let each = || {
            [Family::V4, Family::V6]
                .into_iter()
                .filter_map(one_of)
                .collect()
        };
        both.map_or_else(each, |pod| vec![pod])
    });
    let nodes = plan.nodes().map(|(_, host)| host);
    client.chain(nodes).chain(pods).collect()
}

fn is_pod_of(host: &Host, node: &str) -> bool {
    let is_pod = matches!(host.name, HostName::Pod { .. }) && host.has_namespace();
    is_pod && host.node.as_deref() == Some(node)
}

struct Cluster<'a> {
    plan: &'a Plan,
    /// Whether the kernel does what kube-proxy's nftables mode makes of it.
    is_nftables: bool,
    explainers: BTreeMap<&'a str, Explainer<'a>>,
}

impl<'a> Cluster<'a> {
    /// Who asks which address of a port.
    fn questions(&self, service: &Service, port: &ServicePort) -> Vec<(&'a Host, SocketAddr)> {
        let vips = cluster_ips(service).into_iter();
        let all = vips.chain(addresses_outside(service));
        let mut targets: BTreeSet<SocketAddr> =
            all.map(|ip| SocketAddr::new(ip, port.port)).collect();
        if let Some(node_port) = port.node_port {
            let nodes = self.plan.nodes().flat_map(|(_, host)| &host.addresses);
            targets.extend(nodes.map(|address| SocketAddr::new(address.addr(), node_port)));
        }
        let mut questions: Vec<_> = askers(self.plan)
            .into_iter()
            .flat_map(|from| targets.iter().map(move |to| (from, *to)))
            .collect();
        // kube-proxy's nftables mode has no NodePorts on 127.0.0.1.
        if let (Some(node_port), false) = (port.node_port, self.is_nftables) {
            let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), node_port);
            questions.extend(self.plan.nodes().map(|(_, host)| (host, loopback)));
        }
        questions
    }

    /// One way; none when no Service takes the packet, the host cannot send it, or the answer goes another way.
    fn way(
        &self,
        service: &Service,
        port: &ServicePort,
        from: &Host,
        to: SocketAddr,
    ) -> Option<Way> {
        let transport = Transport::from(port.protocol);
        let (at, explanation) = self.explanation(from, to, transport)?;
        if !self.comes_back(from, at, &explanation) {
            return None;
        }
        let expected = match explanation.verdict {
            Verdict::Pass => return None,
            _ if self.is_dropped_by_nftables(from, to, transport) => Expected::Silent,
            Verdict::Forward => Expected::Answered {
                pods: self.answering(&explanation)?,
            },
            Verdict::Reject => Expected::Refused,
            Verdict::Drop => Expected::Silent,
        };
        let own = format!("{}/{}", service.metadata.namespace, service.metadata.name);
        Some(Way {
            service: explanation.service.unwrap_or(own),
            from: from.name.to_string(),
            to,
            protocol: transport.into(),
            expected,
            reason: explanation.reason,
            asked: 0,
            as_expected: 0,
            answers: BTreeMap::new(),
            otherwise: BTreeSet::new(),
            skipped: None,
            namespace: from.namespace.clone(),
        })
    }

    /// What the first node that takes the packet for a Service's makes of it.
    fn explanation(
        &self,
        from: &Host,
        to: SocketAddr,
        protocol: Transport,
    ) -> Option<(&'a str, Explanation)> {
        let family = Family::of(to.ip());
        let own = from.addresses.iter().map(|address| address.addr());
        let source = if to.ip().is_loopback() {
            to.ip()
        } else {
            let same = own.clone().find(|address| *address == to.ip());
            same.or_else(|| own.clone().find(|address| Family::of(*address) == family))?
        };
        let packet = |origin| Packet {
            source,
            source_port: 40_000,
            origin,
            destination: to,
            protocol,
        };
        let at = |node: &str, origin| {
            let (node, explainer) = self.explainers.get_key_value(node)?;
            let explanation = explainer.explain(&packet(origin));
            (explanation.verdict != Verdict::Pass).then_some((*node, explanation))
        };
        let first = match &from.name {
            HostName::Node(node) => at(node, Origin::Node),
            _ => from.node.as_deref().and_then(|node| at(node, Origin::Pod)),
        };
        let next = || at(self.next_node(from, to.ip())?, Origin::Outside);
        first.or_else(next)
    }

    /// kube-proxy's nftables mode drops what a node itself sends to an external address whose policy is Local when it
    /// has no endpoint of it: there the check stands before the translation. Explanations are of iptables mode.
    fn is_dropped_by_nftables(&self, from: &Host, to: SocketAddr, protocol: Transport) -> bool {
        let HostName::Node(node) = &from.name else {
            return false;
        };
        let is_lacking = |(key, frontend): &(FrontendKey, Frontend)| {
            let is_external = matches!(
                frontend.kind,
                FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp
            );
            let of_key = (SocketAddr::new(key.address.into(), key.port), key.protocol);
            is_external && frontend.from_outside == Action::Drop && of_key == (to, number(protocol))
        };
        let explainer = self.explainers.get(node.as_str());
        let mut frontends = explainer
            .into_iter()
            .flat_map(|explainer| explainer.table().frontends());
        self.is_nftables && frontends.any(is_lacking)
    }

    /// Whether what endpoints answer passes the node `at`, which has to translate it back. It does not when a host
    /// inside the cluster asks by another node that leaves its source alone, as for pods under Local policy.
    fn comes_back(&self, from: &Host, at: &str, explanation: &Explanation) -> bool {
        let own = match &from.name {
            HostName::Node(node) => Some(node.as_str()),
            _ => from.node.as_deref(),
        };
        let is_there = |address: IpAddr| {
            let mut hosts = self.plan.hosts.iter();
            let has = |host: &Host| host.addresses.iter().any(|own| own.addr() == address);
            hosts.any(|host| host.node.as_deref() == Some(at) && has(host))
        };
        let mut endpoints = explanation.endpoints.iter();
        own.is_none_or(|own| own == at)
            || endpoints.all(|endpoint| endpoint.masquerade || is_there(endpoint.address))
    }

    /// The node that a packet from outside, or one that its own node lets pass, comes to.
    fn next_node(&self, from: &Host, to: IpAddr) -> Option<&'a str> {
        let owner = |address: IpAddr| {
            let mut nodes = self.plan.nodes();
            nodes.find(|(_, host)| host.addresses.iter().any(|own| own.addr() == address))
        };
        if let Some((node, _)) = owner(to) {
            return Some(node);
        }
        let routes = from.routes.iter();
        let fitting = routes.filter(|route| route.destination.contains(&to));
        let best = fitting.max_by_key(|route| route.destination.prefix_len())?;
        (from.name == HostName::Client)
            .then(|| owner(best.gateway?))
            .flatten()
            .map(|(node, _)| node)
    }

    /// The pods that may answer; empty when one of them does not say its name, `None` when one cannot answer.
    fn answering(&self, explanation: &Explanation) -> Option<BTreeSet<String>> {
        let mut pods = BTreeSet::new();
        for endpoint in &explanation.endpoints {
            let server = self.plan.server(endpoint.address)?;
            match server.run {
                Run::BuiltIn => pods.insert(format!("{}/{}", server.pod.0, server.pod.1)),
                Run::Nginx => return Some(BTreeSet::new()),
                Run::Command(_) => return None,
            };
        }
        Some(pods)
    }
}

const fn number(transport: Transport) -> Number {
    match transport {
        Transport::Tcp => Number::TCP,
        Transport::Udp => Number::UDP,
        Transport::Sctp => Number::SCTP,
    }
}
