//! The objects of a bench's labs.

use super::Benchmark;
use crate::lab::Error;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use serde_json::{Value, json};
use std::fmt::Write;
use std::net::Ipv4Addr;

/// The pod that answers.
pub(super) const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);
/// The one behind the Service in the middle. Were both Services' clients led to one pod, a client's port that was used for
/// one could not be used for the other as long as the first connection is in TIME_WAIT: what is measured then is how
/// long it takes to find another port.
const POD_IN_THE_MIDDLE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 11);
/// Pods of another node, between which a Service moves.
pub(super) const PODS_ELSEWHERE: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 244, 2, 10), Ipv4Addr::new(10, 244, 2, 11)];
/// The node's name.
pub(super) const NODE_NAME: &str = "node-a";
/// The node.
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// The load balancer's address of the probed Service, the last of all.
pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// That of the one in the middle.
pub(super) const VIP_IN_THE_MIDDLE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
/// The Service that an attack goes to, at [`VIP`]; its endpoint is [`SILENT`].
pub(super) const FLOODED_PORT: u16 = 9001;
/// The Service that masquerades, at [`VIP`].
pub(super) const MASQUERADED_PORT: u16 = 9002;
/// An address of the node's pods that takes packets and never answers.
pub(super) const SILENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 99);
/// TCP and UDP, of Services and the pod alike.
pub(super) const PORT: u16 = 9000;

const NODE_OBJECT: &str = "apiVersion: v1
kind: Node
metadata: {name: node-a}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
status:
  addresses:
  - {type: InternalIP, address: 172.18.0.2}
  - {type: Hostname, address: node-a}
";

/// A node for the pods that a node's table leads to.
fn second_node() -> String {
    let other = NODE_OBJECT
        .replace("node-a", "node-b")
        .replace("10.244.1.", "10.244.2.");
    other.replace("172.18.0.2", "172.18.0.3")
}

/// The configuration of kube-proxy.
pub(super) const CONFIG: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: 10.244.0.0/16
";

/// The same with room for so many connections.
pub(super) fn config_with_table(entries: u32) -> String {
    format!("{CONFIG}conntrack: {{maxPerCore: 1, min: {entries}}}\n")
}

/// Where a probed Service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Position {
    /// The last of all rules, the worst place in a list.
    End,
    /// Half of them stand before it, as the mean of all places: kube-proxy's order is another one at every sync.
    Middle,
}

impl Position {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Middle => "middle",
        }
    }
}

/// The number of the Service in the middle, when there is one.
pub(super) const fn middle(services: u32) -> Option<u32> {
    if services > 2 {
        Some(services / 2)
    } else {
        None
    }
}

/// A node and so many Services, each of one endpoint and one port, but the probed ones: the last by name and in the
/// file, and one in the middle of both. With the traffic policy Local sources stay as they are.
pub(super) fn snapshot(services: u32, policy: &str) -> String {
    let mut text = NODE_OBJECT.to_owned();
    for number in 0..services {
        let is_last = number + 1 == services;
        let is_middle = middle(services) == Some(number);
        let (name, vip) = if is_last {
            ("probed".to_owned(), Some(VIP))
        } else {
            (
                format!("other-{number:05}"),
                is_middle.then_some(VIP_IN_THE_MIDDLE),
            )
        };
        let pod = if is_middle { POD_IN_THE_MIDDLE } else { POD };
        let protocols: &[&str] = if vip.is_some() {
            &["TCP", "UDP"]
        } else {
            &["TCP"]
        };
        text += &service(&Service {
            name: &name,
            cluster_ip: cluster_ip(number),
            vip: vip.map(|vip| (vip, policy)),
            protocols,
            port: PORT,
            endpoint: (pod, PORT),
        });
    }
    text
}

/// As [`snapshot`], and what attacks go to: a Service whose endpoint is silent, and one that masquerades.
pub(super) fn attacked(services: u32) -> String {
    let extra = |name, number, policy, port, endpoint| {
        service(&Service {
            name,
            cluster_ip: cluster_ip(services + number),
            vip: Some((VIP, policy)),
            protocols: &["TCP", "UDP"],
            port,
            endpoint,
        })
    };
    snapshot(services, "Local")
        + &extra("flooded", 1, "Local", FLOODED_PORT, (SILENT, PORT))
        + &extra("masqueraded", 2, "Cluster", MASQUERADED_PORT, (POD, PORT))
}

fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 100, 0, 1).to_bits() + number)
}

/// A Service of one endpoint.
struct Service<'a> {
    name: &'a str,
    cluster_ip: Ipv4Addr,
    /// The load balancer's address and the traffic policy of a Service that has one.
    vip: Option<(Ipv4Addr, &'a str)>,
    protocols: &'a [&'a str],
    port: u16,
    endpoint: (Ipv4Addr, u16),
}

/// Its two documents.
fn service(service: &Service<'_>) -> String {
    let Service {
        name,
        cluster_ip,
        port,
        endpoint: (address, target),
        ..
    } = *service;
    let (spec, status) = service.vip.map_or_else(
        || ("type: ClusterIP, ".to_owned(), "{loadBalancer: {}}".to_owned()),
        |(vip, policy)| {
            (
                format!("type: LoadBalancer, externalTrafficPolicy: {policy}, allocateLoadBalancerNodePorts: false, "),
                format!("{{loadBalancer: {{ingress: [{{ip: {vip}, ipMode: VIP}}]}}}}"),
            )
        },
    );
    let each = |form: &dyn Fn(&str, String) -> String| {
        let protocols = service.protocols.iter();
        let ports: Vec<String> = protocols
            .map(|protocol| form(protocol, protocol.to_lowercase()))
            .collect();
        ports.join(", ")
    };
    let ports = each(&|protocol, name| {
        format!("{{name: {name}, protocol: {protocol}, port: {port}, targetPort: {target}}}")
    });
    let targets =
        each(&|protocol, name| format!("{{name: {name}, protocol: {protocol}, port: {target}}}"));
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: bench}}
spec: {{{spec}clusterIP: {cluster_ip}, clusterIPs: [{cluster_ip}], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, ports: [{ports}]}}
status: {status}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: bench, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{targets}]
endpoints: [{{addresses: [{address}], nodeName: node-a, conditions: {{ready: true, serving: true, terminating: false}}, targetRef: {{kind: Pod, namespace: bench, name: server}}}}]
"
    )
}

/// Two nodes and so many Services of so many endpoints; the last, the probed one, is without its slice.
pub(super) fn many(services: u32, endpoints: u32) -> String {
    let mut text = format!("{NODE_OBJECT}---\n{}", second_node());
    for number in 1..services {
        let name = format!("other-{number:05}");
        let cluster_ip = cluster_ip(number);
        let address = |nth: u32| {
            let bits = Ipv4Addr::new(10, 201, 0, 0).to_bits() + number * endpoints + nth;
            let address = Ipv4Addr::from_bits(bits);
            format!("{{addresses: [{address}], nodeName: node-b, conditions: {{ready: true}}}}")
        };
        let addresses: Vec<String> = (0..endpoints).map(address).collect();
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: bench}}
spec: {{type: ClusterIP, clusterIP: {cluster_ip}, clusterIPs: [{cluster_ip}], ipFamilies: [IPv4], ports: [{{name: tcp, protocol: TCP, port: {PORT}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: bench, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: tcp, protocol: TCP, port: {PORT}}}]
endpoints: [{}]
",
            addresses.join(", ")
        );
    }
    let (service, _) = probed();
    text + &service
}

/// The same objects as `kubectl get -o json` prints them.
pub(super) fn as_json(objects: &str) -> Result<String, Error> {
    let document = |text: &str| {
        serde_saphyr::from_str::<Value>(text).map_err(|error| Error::Failed(error.to_string()))
    };
    let documents = objects
        .split("---\n")
        .filter(|text| !text.trim().is_empty());
    let items = documents.map(document).collect::<Result<Vec<_>, _>>()?;
    let list = json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}});
    let mut text = Vec::new();
    let indented = PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, indented);
    let written = list.serialize(&mut serializer);
    written.map_err(|error| Error::Failed(error.to_string()))?;
    String::from_utf8(text).map_err(|error| Error::Failed(error.to_string()))
}

/// The slice of the probed Service in [`many`], with this endpoint.
pub(super) fn probed_slice(pod: Ipv4Addr) -> String {
    let (_, slice) = probed();
    let elsewhere = slice.replace(&POD.to_string(), &pod.to_string());
    elsewhere.replace("nodeName: node-a", "nodeName: node-b")
}

/// Its two documents.
fn probed() -> (String, String) {
    let text = snapshot(1, "Cluster");
    let documents = text.strip_prefix(NODE_OBJECT).unwrap_or(&text);
    let (service, slice) = documents.split_at(documents.rfind("---").unwrap_or(0));
    (service.to_owned(), slice.to_owned())
}

/// A node without Services.
pub(super) fn no_services() -> String {
    NODE_OBJECT.to_owned()
}

/// The lab file. `server` is what pods run; a pod that no slice tells of has to say where it is.
pub(super) fn lab_file(server: &[String], benchmark: Benchmark, has_services: bool) -> String {
    let run: Vec<String> = server.iter().map(|word| format!("{word:?}")).collect();
    let pod = |name: &str, place: &str| {
        format!("- name: bench/{name}\n{place}  run: [{}]\n", run.join(", "))
    };
    let at = |node: &str, address: Ipv4Addr| format!("  node: {node}\n  addresses: [{address}]\n");
    let pods = match (benchmark, has_services) {
        (Benchmark::Update, _) => {
            pod("server", "") + &pod("spare", &at("node-b", PODS_ELSEWHERE[1]))
        }
        (_, true) => pod("server", "") + &pod("middle", &at("node-a", POD_IN_THE_MIDDLE)),
        (_, false) => pod("server", &at("node-a", POD)),
    };
    format!("snapshot: snapshot.yaml\nconfig: kube-proxy.yaml\npods:\n{pods}")
}
