//! Random objects, and packets that have something to do with them.

use control::config::KubeProxyConfig;
use control::explain::Packet;
use control::model::Transport;
use control::snapshot::Snapshot;
use dataplane::service::Selection;
use dataplane::tuple::Origin;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};

pub(crate) const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

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
        selection in select(Selection::NAMES.map(|(name, _)| name).to_vec()),
        node_port in any::<bool>(),
    ) -> Value {
        let ingress: Vec<Value> = vip.iter().map(|last| json!({"ip": format!("192.0.2.{last}")})).collect();
        let external_ips: Vec<String> = external_ip.iter().map(|last| format!("192.0.2.{last}")).collect();
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": format!("s{index}"), "namespace": "demo",
                "annotations": {
                    "service.kubernetes.io/topology-mode": hints,
                    "penstock.dev/load-balancing": selection,
                },
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

pub(crate) fn snapshot_objects() -> impl Strategy<Value = Vec<Value>> {
    let services: Vec<_> = (0..4).map(objects).collect();
    services.prop_map(|services| {
        let nodes = NODES.iter().enumerate().map(node);
        nodes.chain(services.into_iter().flatten()).collect()
    })
}

prop_compose! {
    pub(crate) fn packet()(
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

pub(crate) fn snapshot(objects: &[Value]) -> Snapshot {
    let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
    Snapshot::parse("random", &documents.join("\n---\n")).unwrap()
}

pub(crate) fn config(masquerade_all: bool, detector: &str) -> KubeProxyConfig {
    let yaml = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "clusterCIDR": detector, "iptables": {"masqueradeAll": masquerade_all},
    });
    KubeProxyConfig::parse("random", &yaml.to_string()).unwrap()
}
