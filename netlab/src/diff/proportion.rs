//! Whether endpoints get their share: many flows to Services with two to seven endpoints, each side choosing for itself.
//!
//! Elsewhere our side is told what the kernel chose; only here does it choose freely.

use super::case::{Body, Case, Flow, Link, Packet, Place};
use super::side::Side;
use super::wire::{self, Circumstances, Ends, Ip, UDP};
use super::world::{Client, Sender};
use anyhow::Result;
use fastrand::Rng;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// How often each endpoint of a Service was chosen.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proportion {
    /// Endpoints of the Service.
    pub endpoints: usize,
    /// Flows.
    pub flows: usize,
    /// How many went to each endpoint, in the kernel.
    pub kernel: Vec<u64>,
    /// The same of what is held against it.
    pub subject: Vec<u64>,
}

/// Endpoints of a Service, and chi-square of as many less one degrees of freedom that chance exceeds once in a million.
const SERVICES: [(usize, f64); 4] = [(2, 23.93), (3, 27.63), (5, 33.38), (7, 38.26)];
const FLOWS: usize = 700;

impl Proportion {
    /// Whether either side's choice is no chance, or one that went to nobody.
    pub fn is_wrong(&self) -> bool {
        let limit = SERVICES
            .iter()
            .find(|(endpoints, _)| *endpoints == self.endpoints);
        let limit = limit.map_or(0.0, |(_, limit)| *limit);
        [&self.kernel, &self.subject]
            .into_iter()
            .any(|counts| chi_square(counts, self.flows) > limit)
    }
}

impl Proportion {
    /// For people.
    pub(super) fn line(&self) -> String {
        let Self {
            endpoints,
            flows,
            kernel,
            subject,
        } = self;
        format!(
            "shares of {endpoints} endpoints in {flows} flows: kernel {kernel:?}, we {subject:?}"
        )
    }
}

/// Against equal shares. Flows that reached no endpoint make it large.
fn chi_square(counts: &[u64], flows: usize) -> f64 {
    let expected = flows as f64 / counts.len() as f64;
    let deviation = |count: &u64| (*count as f64 - expected).powi(2) / expected;
    counts.iter().map(deviation).sum()
}

/// The case whose node serves these Services; flows come from one client outside.
pub(super) fn case(seed: u64) -> Result<Case> {
    let address = |text: &str| -> Result<_> { Ok(text.parse()?) };
    let link = |name: &str, own: &str| -> Result<Link> {
        Ok(Link {
            is_outside: false,
            name: name.to_owned(),
            addresses: vec![own.parse()?],
            routes: Vec::new(),
        })
    };
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-a" },
        "spec": { "podCIDR": "10.244.1.0/24" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "172.18.0.2" }] },
    })];
    let mut flows = Vec::new();
    for (number, (endpoints, _)) in SERVICES.into_iter().enumerate() {
        objects.extend(service(number, endpoints));
        flows.push(Flow {
            from: Place::Link(0),
            protocol: UDP,
            source: address("172.18.0.9")?,
            source_port: 0,
            destination: address(&format!("10.96.0.{}", number + 1))?,
            destination_port: 80,
            client_stays: false,
        });
    }
    Ok(Case {
        schema_version: 1,
        seed,
        about: String::new(),
        node: "node-a".to_owned(),
        links: vec![
            link("eth0", "172.18.0.2/24")?,
            link("cni0", "10.244.1.1/24")?,
        ],
        config: json!({ "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration" }),
        icmp_limits: false,
        objects,
        changes: Vec::new(),
        flows,
        steps: Vec::new(),
    })
}

fn service(number: usize, endpoints: usize) -> [Value; 2] {
    let name = format!("s{number}");
    let endpoint = |nth: usize| json!({ "addresses": [format!("10.244.1.{}", 10 + nth)], "nodeName": "node-a" });
    let endpoints: Vec<Value> = (0..endpoints).map(endpoint).collect();
    let address = format!("10.96.0.{}", number + 1);
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "diff" },
            "spec": { "clusterIP": address, "clusterIPs": [address], "ports": [{ "port": 80, "protocol": "UDP" }] },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": name, "namespace": "diff", "labels": { "kubernetes.io/service-name": name } },
            "ports": [{ "port": 8080, "protocol": "UDP" }], "endpoints": endpoints,
        }),
    ]
}

/// Sends the flows of `case` by both sides.
pub(super) fn measure(case: &Case, sides: [&mut dyn Side; 2]) -> Result<Vec<Proportion>> {
    let [kernel, subject] = sides.map(|side| shares(case, side));
    let (kernel, subject) = (kernel?, subject?);
    let proportions = SERVICES.into_iter().zip(kernel.into_iter().zip(subject));
    Ok(proportions
        .map(|((endpoints, _), (kernel, subject))| Proportion {
            endpoints,
            flows: FLOWS,
            kernel,
            subject,
        })
        .collect())
}

fn shares(case: &Case, side: &mut dyn Side) -> Result<Vec<Vec<u64>>> {
    let mut rng = Rng::with_seed(case.seed);
    let mut shares = Vec::new();
    for (flow, (endpoints, _)) in case.flows.iter().zip(SERVICES) {
        let mut chosen: BTreeMap<IpAddr, u64> = BTreeMap::new();
        // Each port once: a port again is the same flow.
        let first = rng.u16(1024..60_000);
        for port in (first..).take(FLOWS) {
            chosen_by(side, flow, port)?
                .into_iter()
                .for_each(|address| *chosen.entry(address).or_default() += 1);
        }
        let mut counts: Vec<u64> = chosen.into_values().collect();
        counts.resize(counts.len().max(endpoints), 0);
        shares.push(counts);
    }
    Ok(shares)
}

/// Where the first packet of a flow went.
fn chosen_by(side: &mut dyn Side, flow: &Flow, source_port: u16) -> Result<Option<IpAddr>> {
    let packet = Packet::from(Body::Udp {
        data: 1,
        no_checksum: false,
    });
    let ends = Ends {
        protocol: flow.protocol,
        source: flow.source,
        source_port,
        destination: flow.destination,
        destination_port: flow.destination_port,
        initial: (0, 0),
    };
    let given = Circumstances {
        tag: 1,
        heard: None,
    };
    let mut outputs = Vec::new();
    for bytes in wire::build(&packet, &ends, given) {
        side.world()
            .send(flow.from, &bytes, Sender::Raw, Client::Gone)?;
        side.work()?;
    }
    side.world().take(&mut outputs)?;
    let first = outputs.first().and_then(|output| Ip::parse(&output.bytes));
    Ok(first.map(|ip| ip.destination))
}
