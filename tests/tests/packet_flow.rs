//! The cases of kube-proxy's own packet-flow and endpoint-set tests, through `explain` and so through
//! `ServiceTable::decide`.

#![expect(clippy::unwrap_used, reason = "a test may")]

use control::config::KubeProxyConfig;
use control::endpoints::EndpointSets;
use control::explain::{Explainer, Packet, Verdict};
use control::model::{self, Family, ServicePort, ServicePortName, TrafficPolicy, Transport};
use control::node_network::{InterfaceAddress, NodeNetwork, Route, Scope};
use control::snapshot::Snapshot;
use dataplane::tuple::Origin;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

const NODE: &str = "test-node";

fn cases() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/packet-flow-cases.yaml"
    );
    let text = std::fs::read_to_string(path).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Services and slices of a case as Kubernetes objects, with the node that decides.
fn objects(case: &Value, with_slices: bool) -> Value {
    let mut items = vec![json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "192.168.0.2"},
            {"type": "InternalIP", "address": "2001:db8::1"},
        ]},
    })];
    items.extend(list(&case["services"]).iter().map(service));
    if with_slices {
        items.extend(list(&case["endpointslices"]).iter().enumerate().map(slice));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn service(service: &Value) -> Value {
    let ingress: Vec<Value> = list(&service["lbIngressIPs"])
        .iter()
        .map(|ip| json!({"ip": ip, "ipMode": service["lbIPMode"]}))
        .collect();
    let mut spec = service.clone();
    for name in ["namespace", "name", "lbIngressIPs", "lbIPMode"] {
        spec.as_object_mut().unwrap().remove(name);
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": service["namespace"], "name": service["name"]},
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    })
}

fn slice((index, slice): (usize, &Value)) -> Value {
    let endpoints: Vec<Value> = list(&slice["endpoints"])
        .iter()
        .map(|endpoint| {
            json!({
                "addresses": [endpoint["address"]],
                "nodeName": endpoint["nodeName"],
                "conditions": endpoint["conditions"],
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": slice["namespace"],
            "name": format!("{}-{index}", text(&slice["service"])),
            "labels": {"kubernetes.io/service-name": slice["service"]},
        },
        "addressType": slice["addressType"],
        "ports": slice["ports"],
        "endpoints": endpoints,
    })
}

fn config(case: &Value) -> KubeProxyConfig {
    let given = &case["config"];
    let cluster_cidr = match text(&given["detectLocal"]) {
        "none" => "",
        _ => "10.0.0.0/8,fd00:10::/64",
    };
    let yaml = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "clusterCIDR": cluster_cidr,
        "nodePortAddresses": list(&given["nodePortAddresses"]),
        "iptables": {
            "masqueradeAll": given["masqueradeAll"].as_bool().unwrap_or(false),
            "localhostNodePorts": given["localhostNodePorts"].as_bool().unwrap_or(true),
        },
    });
    KubeProxyConfig::parse("case", &yaml.to_string()).unwrap()
}

fn network(defaults: &Value) -> NodeNetwork {
    let addresses = list(&defaults["localIPs"]).iter().map(|ip| {
        let address: IpAddr = text(ip).parse().unwrap();
        InterfaceAddress {
            interface: if address.is_loopback() { 1 } else { 2 },
            network: IpNet::from(address),
            scope: if address.is_loopback() {
                Scope::Host
            } else {
                Scope::Global
            },
            secondary: false,
        }
    });
    let route = |destination: &str| Route {
        destination: destination.parse().unwrap(),
        gateway: None,
        interface: 2,
        metric: 0,
        preferred_source: None,
    };
    NodeNetwork {
        addresses: addresses.collect(),
        routes: vec![route("0.0.0.0/0"), route("::/0")],
    }
}

fn packet(packet: &Value, network: &NodeNetwork) -> Packet {
    let source: IpAddr = text(&packet["src"]).parse().unwrap();
    let destination: IpAddr = text(&packet["dst"]).parse().unwrap();
    Packet {
        source,
        source_port: 12_345,
        origin: if network.is_own(source) {
            Origin::Node
        } else {
            Origin::Outside
        },
        destination: SocketAddr::new(destination, packet["port"].as_u64().unwrap() as u16),
        protocol: match text(&packet["proto"]) {
            "TCP" => Transport::Tcp,
            "UDP" => Transport::Udp,
            "SCTP" => Transport::Sctp,
            other => panic!("protocol {other}"),
        },
    }
}

/// Checks the packets of `case`; says how many there were.
fn check(label: &str, explainer: &Explainer<'_>, network: &NodeNetwork, packets: &Value) -> usize {
    for given in list(packets) {
        let answer = explainer.explain(&packet(given, network));
        let label = format!("{label}: {}", text(&given["name"]));
        let expect = &given["expect"];
        let verdict = match text(&expect["action"]) {
            "dnat" => Verdict::Forward,
            // A health check port is only let in: the packet goes to whoever listens.
            "none" | "ACCEPT" => Verdict::Pass,
            "REJECT" => Verdict::Reject,
            "DROP" => Verdict::Drop,
            other => panic!("action {other}"),
        };
        assert_eq!(answer.verdict, verdict, "{label}: {}", answer.reason);
        if verdict != Verdict::Forward {
            assert!(answer.endpoints.is_empty(), "{label}");
            continue;
        }
        let endpoints: BTreeSet<String> = answer
            .endpoints
            .iter()
            .map(|candidate| SocketAddr::new(candidate.address, candidate.port).to_string())
            .collect();
        let expected: BTreeSet<String> = list(&expect["endpoints"])
            .iter()
            .map(|endpoint| text(endpoint).to_owned())
            .collect();
        assert_eq!(endpoints, expected, "{label}: {}", answer.reason);
        let masquerade = expect["masq"].as_bool().unwrap();
        assert!(
            answer
                .endpoints
                .iter()
                .all(|candidate| candidate.masquerade == masquerade),
            "{label}: {}",
            answer.reason
        );
        let total: f64 = answer
            .endpoints
            .iter()
            .map(|candidate| candidate.probability)
            .sum();
        assert!((total - 1.0).abs() < 1e-9, "{label}: {total}");
    }
    list(packets).len()
}

/// Cases of nftables mode alone describe what iptables does not do (reject of unknown ports of a cluster IP).
fn is_ours(case: &Value) -> bool {
    list(&case["backends"])
        .iter()
        .any(|backend| text(backend) == "iptables")
        || text(&case["name"]).contains("multiple nodeport-addresses")
}

#[test]
fn packet_flow_cases() {
    let cases = cases();
    let network = network(&cases["defaults"]);
    let mut packets = 0;
    for case in list(&cases["cases"]).iter().filter(|case| is_ours(case)) {
        let label = format!("{} / {}", text(&case["test"]), text(&case["name"]));
        let config = config(case);
        let snapshot = Snapshot::parse(&label, &objects(case, true).to_string()).unwrap();
        let explainer = Explainer::on_network(&snapshot, &config, NODE, &network).unwrap();
        packets += check(&label, &explainer, &network, &case["packets"]);
        let after = &case["after"];
        if after["change"] == "endpointslice deleted" {
            let snapshot = Snapshot::parse(&label, &objects(case, false).to_string()).unwrap();
            let explainer = Explainer::on_network(&snapshot, &config, NODE, &network).unwrap();
            packets += check(&label, &explainer, &network, &after["packets"]);
        }
    }
    assert_eq!(packets, 182, "cases were lost");
}

fn endpoint(value: &Value) -> model::Endpoint {
    let socket: SocketAddr = text(&value["ep"]).parse().unwrap();
    let flag = |name: &str| value[name].as_bool().unwrap();
    model::Endpoint {
        address: socket.ip(),
        port: socket.port(),
        is_local: flag("local"),
        ready: flag("ready"),
        serving: flag("serving"),
        terminating: flag("terminating"),
        zone_hints: list(&value["hints"])
            .iter()
            .map(|zone| text(zone).to_owned())
            .collect(),
    }
}

fn policy(value: &Value) -> TrafficPolicy {
    if value.as_bool().unwrap() {
        TrafficPolicy::Local
    } else {
        TrafficPolicy::Cluster
    }
}

#[test]
fn endpoint_set_cases() {
    let cases = cases();
    let cases = list(&cases["categorize_endpoints"]);
    assert_eq!(cases.len(), 18);
    for case in cases {
        let service = ServicePort {
            name: ServicePortName {
                namespace: "ns".to_owned(),
                service: "svc".to_owned(),
                port: String::new(),
                protocol: Transport::Tcp,
            },
            family: Family::V4,
            cluster_ip: [10, 0, 0, 1].into(),
            port: 80,
            node_port: case["nodePort"]
                .as_u64()
                .map(|port| port as u16)
                .filter(|port| *port > 0),
            external_ips: Vec::new(),
            load_balancer_vips: Vec::new(),
            source_ranges: Vec::new(),
            internal_traffic_policy: policy(&case["internalPolicyLocal"]),
            external_traffic_policy: policy(&case["externalPolicyLocal"]),
            affinity_timeout: None,
            health_check_node_port: None,
            hints_annotation: text(&case["annotation"]).to_owned(),
            selection: None,
            endpoints: list(&case["endpoints"]).iter().map(endpoint).collect(),
        };
        let zone = Some(text(&case["nodeZone"])).filter(|zone| !zone.is_empty());
        let sets = EndpointSets::of(&service, zone);
        for (set, name) in [
            (&sets.cluster, "cluster"),
            (&sets.local, "local"),
            (&sets.reachable, "allReachable"),
        ] {
            let got: BTreeSet<String> = set.iter().map(ToString::to_string).collect();
            let expected: BTreeSet<String> = list(&case[name])
                .iter()
                .map(|endpoint| text(endpoint).to_owned())
                .collect();
            assert_eq!(got, expected, "{}: {name}", text(&case["name"]));
        }
    }
}
