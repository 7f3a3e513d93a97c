use super::*;
use std::path::Path;

const MATRIX: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/fixtures/policy-matrix"
);

fn matrix() -> (Snapshot, KubeProxyConfig) {
    let folder = Path::new(MATRIX);
    let snapshot = Snapshot::read(&folder.join("snapshot.yaml")).unwrap();
    let config = KubeProxyConfig::read(&folder.join("kube-proxy.yaml")).unwrap();
    (snapshot, config)
}

fn ask(explainer: &Explainer<'_>, from: &str, interface: &str, to: &str) -> Explanation {
    explainer.explain(&Packet {
        source: from.parse().unwrap(),
        source_port: 40_000,
        origin: explainer.origin(interface),
        destination: to.parse().unwrap(),
        protocol: Transport::Tcp,
    })
}

#[test]
fn the_reason_names_the_rule() {
    let (snapshot, config) = matrix();
    let explainer = Explainer::new(&snapshot, &config, "node-c").unwrap();
    for (from, interface, to, verdict, reason) in [
        (
            "198.51.100.1",
            "eth0",
            "203.0.113.8:80",
            Verdict::Drop,
            "externalTrafficPolicy is Local and node-c has no ready endpoint of matrix/external-local:http",
        ),
        (
            "10.244.3.9",
            "veth0",
            "203.0.113.8:80",
            Verdict::Forward,
            "externalTrafficPolicy is Local, but pods inside the cluster may use any endpoint of matrix/external-local:http",
        ),
        (
            "10.244.3.9",
            "veth0",
            "10.96.1.7:80",
            Verdict::Drop,
            "internalTrafficPolicy is Local and node-c has no ready endpoint of matrix/internal-local:http",
        ),
        (
            "10.244.3.9",
            "veth0",
            "10.96.1.4:80",
            Verdict::Reject,
            "matrix/no-endpoints:http has no ready endpoints",
        ),
        (
            "192.0.2.1",
            "eth0",
            "203.0.113.11:80",
            Verdict::Drop,
            "192.0.2.1 is in none of the loadBalancerSourceRanges of matrix/source-ranges:http (198.51.100.0/24, 172.18.0.2/32)",
        ),
        (
            "10.244.3.9",
            "veth0",
            "10.96.1.1:81",
            Verdict::Pass,
            "10.96.1.1 is a cluster IP of matrix/cluster-ip, which has 80/tcp but not 81/tcp; kube-proxy leaves such packets alone",
        ),
        (
            "10.244.3.9",
            "veth0",
            "10.96.9.9:80",
            Verdict::Pass,
            "no Service has the address 10.96.9.9; the packet is routed like any other",
        ),
        (
            "192.0.2.1",
            "eth0",
            "172.18.0.4:30999",
            Verdict::Pass,
            "172.18.0.4 is an address of node-c, and 30999/tcp is no Service's nodePort",
        ),
        (
            "192.0.2.1",
            "eth0",
            "172.18.0.2:30110",
            Verdict::Pass,
            "172.18.0.2 is an address of node node-a; that node decides",
        ),
        (
            "172.18.0.4",
            "",
            "10.96.1.6:80",
            Verdict::Forward,
            "internalTrafficPolicy is Cluster: any endpoint of matrix/affinity:http; sessionAffinity ClientIP: a client stays with its endpoint for 60 s",
        ),
    ] {
        let answer = ask(&explainer, from, interface, to);
        assert_eq!(
            (answer.verdict, answer.reason.as_str()),
            (verdict, reason),
            "{from} -> {to}"
        );
    }
}

#[test]
fn a_service_that_a_label_leaves_to_others_is_named() {
    for label in [
        "service.kubernetes.io/service-proxy-name",
        "service.kubernetes.io/headless",
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: a}}\n---\napiVersion: v1\nkind: Service\n\
             metadata: {{name: web, namespace: demo, labels: {{{label}: x}}}}\n\
             spec: {{clusterIP: 10.96.0.9, externalIPs: [192.0.2.9], ports: [{{port: 80}}]}}\n\
             status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.9}}]}}}}\n"
        );
        let snapshot = Snapshot::parse("x", &text).unwrap();
        let config = KubeProxyConfig::default();
        let explainer = Explainer::new(&snapshot, &config, "a").unwrap();
        for address in ["10.96.0.9", "192.0.2.9", "203.0.113.9"] {
            let answer = ask(&explainer, "10.244.3.9", "veth0", &format!("{address}:80"));
            let reason = format!(
                "{address} is of demo/web, which kube-proxy ignores: it has the label {label}"
            );
            assert_eq!((answer.verdict, answer.reason), (Verdict::Pass, reason));
        }
    }
}

/// The node is in zone a.
#[test]
fn hints_need_an_annotation_or_a_feature() {
    let endpoint = |address, zone| {
        format!("- {{addresses: [{address}], hints: {{forZones: [{{name: {zone}}}]}}}}\n")
    };
    let text = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: a, labels: {{topology.kubernetes.io/zone: za}}}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: demo}}\n\
         spec: {{clusterIP: 10.96.0.9, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-1, namespace: demo, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{port: 80}}]\nendpoints:\n{}{}",
        endpoint("10.244.1.1", "za"),
        endpoint("10.244.1.2", "zb")
    );
    let snapshot = Snapshot::parse("x", &text).unwrap();
    for (gates, endpoints) in [
        ("{}", 2),
        ("{ServiceTrafficDistribution: true}", 1),
        ("{ServiceTrafficDistribution: false}", 2),
        (
            "{ServiceTrafficDistribution: true, TopologyAwareHints: false}",
            1,
        ),
    ] {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let body = format!("{head}featureGates: {gates}\n");
        let config = KubeProxyConfig::parse("x", &body).unwrap();
        assert_eq!(config.warnings, [""; 0]);
        let explainer = Explainer::new(&snapshot, &config, "a").unwrap();
        let answer = ask(&explainer, "10.244.3.9", "veth0", "10.96.0.9:80");
        assert_eq!(answer.endpoints.len(), endpoints, "{gates}");
    }
}

#[test]
fn the_json_is_that_of_the_contract() {
    let (snapshot, config) = matrix();
    let explainer = Explainer::new(&snapshot, &config, "node-a").unwrap();
    let answer = ask(&explainer, "192.0.2.1", "eth0", "203.0.113.8:80");
    let json = serde_json::to_value(&answer).unwrap();
    let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["endpoints", "reason", "service", "verdict"]);
    assert_eq!(json["verdict"], "forward");
    assert_eq!(json["service"], "matrix/external-local:http");
    let candidate = &json["endpoints"][0];
    assert_eq!(candidate["masquerade"], false);
    assert!(candidate["address"].is_string() && candidate["port"] == 8080);
    assert!(candidate["probability"].as_f64().unwrap() > 0.0);
}

/// Two nodes; one ready endpoint on node-a; another Service with the same load balancer IP and port.
const TROUBLE: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: node-a}, spec: {podCIDR: 10.244.1.0/24}, status: {addresses: [{type: InternalIP, address: 172.18.0.2}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-b}, spec: {podCIDR: 10.244.2.0/24}, status: {addresses: [{type: InternalIP, address: 172.18.0.3}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd00:96::1']
  ipFamilies: [IPv4, IPv6]
  externalTrafficPolicy: Local
  loadBalancerSourceRanges: [172.18.0.2/32]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: web}, {name: metrics, port: 9000, targetPort: prom}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {ip: 'fd00:1b::1'}]}}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: demo}
spec: {type: LoadBalancer, clusterIP: 10.96.0.2, selector: {app: other}, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: demo, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.10], nodeName: node-a}
- {addresses: [10.244.2.10], nodeName: node-b, conditions: {ready: false, serving: false}}
"#;

#[test]
fn the_overview_warns_about_what_goes_wrong() {
    let snapshot = Snapshot::parse("x", TROUBLE).unwrap();
    let config = KubeProxyConfig::default();
    let nodes: Vec<_> = ["node-a", "node-b"]
        .iter()
        .map(|name| Explainer::new(&snapshot, &config, name).unwrap())
        .collect();
    let service = |name: &str| {
        snapshot
            .services
            .iter()
            .find(|service| service.metadata.name == name)
            .unwrap()
    };
    let overview = overview::of(service("web"), &nodes);
    assert_eq!(
        overview.warnings,
        [
            "no EndpointSlice has its port `metrics` (9000/TCP) (no pod has a port called prom): connections to it are refused",
            "1 of 2 endpoints of demo/web:http (IPv4) are not ready",
            "externalTrafficPolicy is Local and there is no ready endpoint of demo/web:http (IPv4) on node-b: what comes from outside there is dropped",
            "loadBalancerSourceRanges do not include the nodes node-b (172.18.0.3): they cannot reach the load balancer IP",
            "loadBalancerSourceRanges has no IPv6 range: over IPv6 everyone is let in",
            "192.0.2.1 port 80 is claimed by demo/other too: which of the two answers is not defined",
        ]
    );
    let clients: Vec<_> = overview
        .ways
        .iter()
        .map(|way| (way.node.as_str(), way.client, way.via))
        .collect();
    assert!(
        clients.contains(&("node-b", "outside", "loadBalancerIP")),
        "{clients:?}"
    );
    assert_eq!(
        overview::of(service("other"), &nodes).warnings[0],
        "its selector app=other matched no pod"
    );
}

/// The first Service has no endpoint on this node, so its rules let the packet fall through to the second's.
#[test]
fn of_two_claims_the_first_that_can_serve_does() {
    let text = TROUBLE.replace("loadBalancerSourceRanges: [172.18.0.2/32]", "");
    let snapshot = Snapshot::parse("x", &text).unwrap();
    let config = KubeProxyConfig::default();
    let on_node_a = Explainer::new(&snapshot, &config, "node-a").unwrap();
    let answer = ask(&on_node_a, "192.0.2.9", "eth0", "192.0.2.1:80");
    assert_eq!(answer.service.as_deref(), Some("demo/web:http"));
    assert_eq!(answer.verdict, Verdict::Forward);
    let on_node_b = Explainer::new(&snapshot, &config, "node-b").unwrap();
    let answer = ask(&on_node_b, "192.0.2.9", "eth0", "192.0.2.1:80");
    assert_eq!(
        (answer.verdict, answer.service.as_deref()),
        (Verdict::Reject, Some("demo/other"))
    );
}

#[test]
fn what_the_node_sends_is_not_refused_in_output() {
    let (snapshot, config) = matrix();
    let text = TROUBLE.replace("192.0.2.1}, {", "192.0.2.8}, {");
    let mine = Snapshot::parse("x", &text).unwrap();
    let explainer = Explainer::new(&mine, &config, "node-a").unwrap();
    assert_eq!(
        ask(&explainer, "172.18.0.2", "", "192.0.2.1:80").verdict,
        Verdict::Pass
    );
    assert_eq!(
        ask(&explainer, "192.0.2.9", "eth0", "192.0.2.1:80").verdict,
        Verdict::Reject
    );
    // A NodePort's packets come back in through lo and meet INPUT's rules.
    let explainer = Explainer::new(&snapshot, &config, "node-a").unwrap();
    assert_eq!(
        ask(&explainer, "172.18.0.2", "", "172.18.0.2:30104").verdict,
        Verdict::Reject
    );
}

const REASONS: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: a}, status: {addresses: [{type: InternalIP, address: 172.18.0.2}, {type: InternalIP, address: "fc00::2"}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec: {type: LoadBalancer, clusterIP: 10.96.0.2, externalIPs: ["2001:db8::53"], ports: [{port: 80, nodePort: 30080}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.9, ipMode: Proxy}]}}
---
apiVersion: v1
kind: Service
metadata: {name: six, namespace: demo}
spec: {type: NodePort, clusterIP: "fd00:96::2", ports: [{port: 80, nodePort: 30081}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: demo}
spec: {clusterIP: None, externalIPs: [198.51.100.50], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: demo}
spec: {type: ExternalName, externalName: x.y, externalIPs: [198.51.100.51], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: new, namespace: demo}
spec: {externalIPs: [198.51.100.52], ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: demo, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.0.5]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: six-1, namespace: demo, labels: {kubernetes.io/service-name: six}}
addressType: IPv6
ports: [{port: 8080}]
endpoints: [{addresses: ["fd00:244::5"]}]
"#;

#[test]
fn what_keeps_an_address_from_being_served_is_named() {
    let snapshot = Snapshot::parse("x", REASONS).unwrap();
    for (settings, from, to, reason) in [
        (
            "",
            "::1",
            "[::1]:30081",
            "30081/tcp is the nodePort of demo/six, but kube-proxy serves no NodePort on the loopback address of IPv6",
        ),
        (
            "iptables: {localhostNodePorts: false}\n",
            "127.0.0.1",
            "127.0.0.1:30080",
            "30080/tcp is the nodePort of demo/web, but iptables.localhostNodePorts is false, so none is served on 127.0.0.1",
        ),
        (
            "nodePortAddresses: [10.0.0.0/8]\n",
            "127.0.0.1",
            "127.0.0.1:30080",
            "30080/tcp is the nodePort of demo/web, but nodePortAddresses does not have 127.0.0.1",
        ),
        (
            "",
            "fc00::2",
            "[fc00::2]:30080",
            "fc00::2 is an address of a, and 30080/tcp is no Service's nodePort",
        ),
        (
            "",
            "172.18.0.2",
            "203.0.113.9:80",
            "203.0.113.9 is of demo/web, whose load balancer has it with ipMode Proxy: what arrives is addressed to a node \
             or a pod, and kube-proxy leaves the address alone",
        ),
        (
            "",
            "fc00::2",
            "[2001:db8::53]:80",
            "2001:db8::53 is of demo/web, which has no cluster IP of IPv6, so kube-proxy serves it over IPv6 nowhere",
        ),
        (
            "",
            "172.18.0.2",
            "198.51.100.50:80",
            "198.51.100.50 is of demo/headless, which kube-proxy ignores: it is headless",
        ),
        (
            "",
            "172.18.0.2",
            "198.51.100.51:80",
            "198.51.100.51 is of demo/alias, which kube-proxy ignores: its type is ExternalName",
        ),
        (
            "",
            "172.18.0.2",
            "198.51.100.52:80",
            "198.51.100.52 is of demo/new, which kube-proxy ignores: it has no cluster IP",
        ),
    ] {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let config = KubeProxyConfig::parse("x", &format!("{head}{settings}")).unwrap();
        let explainer = Explainer::new(&snapshot, &config, "a").unwrap();
        let answer = ask(&explainer, from, "", to);
        assert_eq!(
            (answer.verdict, answer.reason.as_str()),
            (Verdict::Pass, reason)
        );
    }
}
