//! Properties of decisions over random snapshots.

#![expect(clippy::unwrap_used, reason = "a test may")]

use control::compile::compile;
use control::config::KubeProxyConfig;
use control::explain::{Explainer, Packet, Verdict};
use control::model::Transport;
use control::node_network::NodeNetwork;
use control::snapshot::Snapshot;
use dataplane::service::Generation;
use dataplane::tuple::Origin;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

fn node((index, name): (usize, &&str)) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": format!("zone-{}", index % 2)}},
        "spec": {"podCIDRs": [format!("10.244.{index}.0/24")]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("172.18.0.{}", index + 1)}]},
    })
}

prop_compose! {
    fn service(index: usize)(
        kind in select(vec!["ClusterIP", "NodePort", "LoadBalancer"]),
        internal in select(vec!["Cluster", "Local"]),
        external in select(vec!["Cluster", "Local"]),
        protocol in select(vec!["TCP", "UDP", "SCTP"]),
        vip in prop::option::of(0..3u8),
        external_ip in prop::option::of(0..3u8),
        ranges in select(vec![vec![], vec!["172.18.0.0/24"], vec!["203.0.113.0/24"], vec!["fd00::/8"]]),
        affinity in select(vec!["None", "ClientIP"]),
        hints in select(vec!["", "Auto", "disabled"]),
        node_port in any::<bool>(),
    ) -> Value {
        let ingress: Vec<Value> = vip.iter().map(|last| json!({"ip": format!("192.0.2.{last}")})).collect();
        let external_ips: Vec<String> = external_ip.iter().map(|last| format!("192.0.2.{last}")).collect();
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": format!("s{index}"), "namespace": "demo",
                "annotations": {"service.kubernetes.io/topology-mode": hints},
            },
            "spec": {
                "type": kind, "clusterIP": format!("10.96.0.{}", index + 1),
                "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
                "loadBalancerSourceRanges": ranges, "sessionAffinity": affinity, "externalIPs": external_ips,
                "ports": [{"port": 80, "protocol": protocol, "nodePort": if node_port { 30_000 + index } else { 0 }}],
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        })
    }
}

prop_compose! {
    fn endpoint()(
        last in 2..20u8,
        node in 0..3usize,
        ready in prop::option::of(any::<bool>()),
        serving in prop::option::of(any::<bool>()),
        terminating in prop::option::of(any::<bool>()),
        zone in prop::option::of(0..2u8),
    ) -> Value {
        let zones: Vec<Value> = zone.iter().map(|zone| json!({"name": format!("zone-{zone}")})).collect();
        json!({
            "addresses": [format!("10.244.{node}.{last}")], "nodeName": NODES[node],
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            "hints": {"forZones": zones},
        })
    }
}

/// A Service with a slice or two of the same port.
fn objects(index: usize) -> impl Strategy<Value = Vec<Value>> {
    let slices = prop::collection::vec(prop::collection::vec(endpoint(), 0..5), 0..3);
    (service(index), slices).prop_map(move |(service, slices)| {
        let protocol = service["spec"]["ports"][0]["protocol"].clone();
        let slice = |(number, endpoints): (usize, Vec<Value>)| {
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("s{index}-{number}"), "namespace": "demo",
                    "labels": {"kubernetes.io/service-name": format!("s{index}")},
                },
                "addressType": "IPv4", "ports": [{"port": 8080, "protocol": protocol}], "endpoints": endpoints,
            })
        };
        let slices: Vec<Value> = slices.into_iter().enumerate().map(slice).collect();
        [vec![service], slices].concat()
    })
}

fn snapshot_objects() -> impl Strategy<Value = Vec<Value>> {
    let services: Vec<_> = (0..4).map(objects).collect();
    services.prop_map(|services| {
        let nodes = NODES.iter().enumerate().map(node);
        nodes.chain(services.into_iter().flatten()).collect()
    })
}

prop_compose! {
    fn packet()(
        source in select(vec!["10.244.0.5", "10.244.1.200", "172.18.0.1", "172.18.0.2", "203.0.113.9", "127.0.0.1", "192.0.2.1"]),
        destination in select(vec![
            "10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4", "192.0.2.0", "192.0.2.1", "192.0.2.2",
            "172.18.0.1", "172.18.0.2", "127.0.0.1", "10.244.0.5",
        ]),
        port in select(vec![80, 81, 30_000, 30_001, 30_002, 30_003]),
        origin in select(vec![Origin::Pod, Origin::Outside, Origin::Node]),
        protocol in select(vec![Transport::Tcp, Transport::Udp, Transport::Sctp]),
    ) -> Packet {
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        Packet {
            source: address(source),
            source_port: 40_000,
            origin,
            destination: SocketAddr::new(address(destination), port),
            protocol,
        }
    }
}

fn snapshot(objects: &[Value]) -> Snapshot {
    let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
    Snapshot::parse("random", &documents.join("\n---\n")).unwrap()
}

fn config(masquerade_all: bool, detector: &str) -> KubeProxyConfig {
    let yaml = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "clusterCIDR": detector, "iptables": {"masqueradeAll": masquerade_all},
    });
    KubeProxyConfig::parse("random", &yaml.to_string()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn probabilities_sum_to_one_where_packets_are_forwarded(
        objects in snapshot_objects(),
        packets in prop::collection::vec(packet(), 32),
        masquerade_all in any::<bool>(),
        detector in select(vec!["", "10.244.0.0/16"]),
    ) {
        let snapshot = snapshot(&objects);
        let config = config(masquerade_all, detector);
        for node in NODES {
            let explainer = Explainer::new(&snapshot, &config, node).unwrap();
            for packet in &packets {
                let answer = explainer.explain(packet);
                let total: f64 = answer.endpoints.iter().map(|candidate| candidate.probability).sum();
                let expected = if answer.verdict == Verdict::Forward { 1.0 } else { 0.0 };
                prop_assert!((total - expected).abs() < 1e-9, "{answer:?}");
                prop_assert_eq!(answer.service.is_none(), answer.verdict == Verdict::Pass);
                prop_assert!(!answer.reason.is_empty());
            }
        }
    }

    #[test]
    fn compiling_twice_gives_the_same_table(objects in snapshot_objects()) {
        let config = config(false, "10.244.0.0/16");
        let compiled = || {
            let snapshot = snapshot(&objects);
            let network = NodeNetwork::from_snapshot(&snapshot.nodes[0]);
            format!("{:?}", compile(&snapshot, &config, &network, "node-a", Generation(7)).unwrap())
        };
        prop_assert_eq!(compiled(), compiled());
    }

    #[test]
    fn the_order_of_documents_does_not_matter(
        objects in snapshot_objects(),
        swaps in prop::collection::vec((any::<Index>(), any::<Index>()), 8),
        packets in prop::collection::vec(packet(), 32),
    ) {
        let mut shuffled = objects.clone();
        for (a, b) in swaps {
            let (a, b) = (a.index(shuffled.len()), b.index(shuffled.len()));
            shuffled.swap(a, b);
        }
        let (one, other) = (snapshot(&objects), snapshot(&shuffled));
        let config = config(false, "10.244.0.0/16");
        for node in NODES {
            let one = Explainer::new(&one, &config, node).unwrap();
            let other = Explainer::new(&other, &config, node).unwrap();
            for packet in &packets {
                prop_assert_eq!(one.explain(packet), other.explain(packet));
            }
        }
    }
}
