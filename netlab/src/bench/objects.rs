//! The objects of a bench's labs.

use super::Benchmark;
use std::fmt::Write;
use std::net::Ipv4Addr;

/// The pod that answers.
pub(super) const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);
/// Pods of another node, between which a Service moves.
pub(super) const PODS_ELSEWHERE: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 244, 2, 10), Ipv4Addr::new(10, 244, 2, 11)];
/// The node's name.
pub(super) const NODE_NAME: &str = "node-a";
/// The node.
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// The load balancer's address of the probed Service.
pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
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

/// A node and so many Services, all with the one endpoint. The probed one is the last by name and in the file, the
/// worst place in a list of rules; with the traffic policy Local sources stay as they are.
pub(super) fn snapshot(services: u32, policy: &str) -> String {
    let mut text = NODE_OBJECT.to_owned();
    for number in 0..services {
        let is_probed = number + 1 == services;
        let name = if is_probed {
            "probed".to_owned()
        } else {
            format!("other-{number:05}")
        };
        let cluster_ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 100, 0, 1).to_bits() + number);
        let (spec, status) = if is_probed {
            (
                format!(
                    "type: LoadBalancer, externalTrafficPolicy: {policy}, allocateLoadBalancerNodePorts: false, "
                ),
                format!("{{loadBalancer: {{ingress: [{{ip: {VIP}, ipMode: VIP}}]}}}}"),
            )
        } else {
            (
                "type: ClusterIP, ".to_owned(),
                "{loadBalancer: {}}".to_owned(),
            )
        };
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: bench}}
spec: {{{spec}clusterIP: {cluster_ip}, clusterIPs: [{cluster_ip}], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, ports: [{{name: tcp, protocol: TCP, port: {PORT}, targetPort: {PORT}}}, {{name: udp, protocol: UDP, port: {PORT}, targetPort: {PORT}}}]}}
status: {status}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: bench, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: tcp, protocol: TCP, port: {PORT}}}, {{name: udp, protocol: UDP, port: {PORT}}}]
endpoints: [{{addresses: [{POD}], nodeName: node-a, conditions: {{ready: true, serving: true, terminating: false}}, targetRef: {{kind: Pod, namespace: bench, name: server}}}}]
"
        );
    }
    text
}

/// Two nodes and so many Services of so many endpoints; the last, the probed one, is without its slice.
pub(super) fn many(services: u32, endpoints: u32) -> String {
    let mut text = format!("{NODE_OBJECT}---\n{}", second_node());
    for number in 1..services {
        let name = format!("other-{number:05}");
        let cluster_ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 100, 0, 1).to_bits() + number);
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
        (_, true) => pod("server", ""),
        (_, false) => pod("server", &at("node-a", POD)),
    };
    format!("snapshot: snapshot.yaml\nconfig: kube-proxy.yaml\npods:\n{pods}")
}
