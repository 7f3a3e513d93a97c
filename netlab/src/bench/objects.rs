//! The objects of a bench's labs.

use std::fmt::Write;
use std::net::Ipv4Addr;

/// The pod that answers.
pub(super) const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);
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

/// The configuration of kube-proxy.
pub(super) const CONFIG: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: 10.244.0.0/16
";

/// A node and so many Services, all with the one endpoint. The probed one is the last by name and in the file, the
/// worst place in a list of rules; its traffic policy is Local, so that sources stay as they are.
pub(super) fn snapshot(services: u32) -> String {
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
                "type: LoadBalancer, externalTrafficPolicy: Local, allocateLoadBalancerNodePorts: false, ",
                format!("{{loadBalancer: {{ingress: [{{ip: {VIP}, ipMode: VIP}}]}}}}"),
            )
        } else {
            ("type: ClusterIP, ", "{loadBalancer: {}}".to_owned())
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

/// A node without Services.
pub(super) fn no_services() -> String {
    NODE_OBJECT.to_owned()
}

/// The lab file. `server` is what the pod runs; without Services it has to say where the pod is, too.
pub(super) fn lab_file(server: &[String], has_services: bool) -> String {
    let place = if has_services {
        String::new()
    } else {
        format!("  node: node-a\n  addresses: [{POD}]\n")
    };
    let run: Vec<String> = server.iter().map(|word| format!("{word:?}")).collect();
    format!(
        "snapshot: snapshot.yaml\nconfig: kube-proxy.yaml\npods:\n- name: bench/server\n{place}  run: [{}]\n",
        run.join(", ")
    )
}
