//! Random objects: every field of Services, EndpointSlices and the configuration that kube-proxy acts on.

use super::Cluster;
use fastrand::Rng;
use serde_json::{Value, json};

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// A cluster of three nodes, seen from the first.
pub(super) fn random(rng: &mut Rng, is_brief: bool, single_endpoints: bool) -> Cluster {
    let families = *pick(
        rng,
        &[
            &["IPv4"][..],
            &["IPv4", "IPv6"],
            &["IPv6", "IPv4"],
            &["IPv6"],
        ],
    );
    let mut objects: Vec<Value> = NODES
        .iter()
        .enumerate()
        .map(|(number, name)| node(number, name, rng))
        .collect();
    for number in 0..rng.usize(4..14) {
        let one_family = rng.u8(..4) == 0;
        let families = if one_family { &families[..1] } else { families };
        service(
            number,
            families,
            is_brief,
            single_endpoints,
            rng,
            &mut objects,
        );
    }
    Cluster {
        config: config(is_brief, rng),
        objects,
        node: NODES[0].to_owned(),
    }
}

pub(super) fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(..from.len())]
}

fn config(is_brief: bool, rng: &mut Rng) -> Value {
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
    });
    match rng.u8(..8) {
        0 => config["detectLocalMode"] = "NodeCIDR".into(),
        1 => {
            config["detectLocalMode"] = "BridgeInterface".into();
            config["detectLocal"] = json!({ "bridgeInterface": "cni0" });
        }
        2 => {
            config["detectLocalMode"] = "InterfaceNamePrefix".into();
            config["detectLocal"] = json!({ "interfaceNamePrefix": "azv" });
        }
        3 => {}
        4 => config["clusterCIDR"] = "10.244.0.0/16".into(),
        _ => config["clusterCIDR"] = "10.244.0.0/16,fd00:10:244::/48".into(),
    }
    match rng.u8(..8) {
        0 => config["nodePortAddresses"] = json!(["172.18.0.0/16", "fc00:f853:ccd::/64"]),
        1 => config["nodePortAddresses"] = json!(["172.18.0.102/32", "127.0.0.0/8"]),
        2 => config["nodePortAddresses"] = json!(["0.0.0.0/0"]),
        _ => {}
    }
    let iptables = json!({
        "masqueradeAll": rng.u8(..6) == 0,
        "localhostNodePorts": rng.u8(..4) != 0,
    });
    config["iptables"] = iptables;
    if is_brief && rng.bool() {
        config["conntrack"] = json!({ "udpTimeout": "2s", "udpStreamTimeout": "2s" });
    }
    config
}

fn node(number: usize, name: &str, rng: &mut Rng) -> Value {
    let mut labels = json!({ "kubernetes.io/hostname": name });
    if rng.u8(..4) != 0 {
        labels["topology.kubernetes.io/zone"] = format!("zone-{}", number % 2).into();
    }
    let pods = [
        format!("10.244.{}.0/24", number + 1),
        format!("fd00:10:244:{}::/64", number + 1),
    ];
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "labels": labels },
        "spec": { "podCIDR": pods[0], "podCIDRs": pods },
        "status": { "addresses": [
            { "type": "InternalIP", "address": format!("172.18.0.{}", number + 2) },
            { "type": "InternalIP", "address": format!("fc00:f853:ccd::{}", number + 2) },
            { "type": "Hostname", "address": name },
        ]},
    })
}

/// A Service of these families, and its slices, of one endpoint each when it is `single`. In a brief case affinity may end.
fn service(
    number: usize,
    families: &[&str],
    is_brief: bool,
    single: bool,
    rng: &mut Rng,
    objects: &mut Vec<Value>,
) {
    let name = format!("s{number}");
    let ports = ports(number, rng);
    let (mut spec, status) = addresses(number, families, &ports, rng);
    set_policies(&mut spec, number, is_brief, rng);
    let (labels, annotations) = marks(rng);
    let hinted = rng.u8(..3) == 0;
    for family in families {
        let parts = rng.usize(1..3);
        for part in 0..if single { 1 } else { parts } {
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{}-{part}", family.to_lowercase()),
                    "namespace": "diff",
                    "labels": { "kubernetes.io/service-name": name },
                },
                "addressType": family,
                "ports": slice_ports(&ports, part),
                "endpoints": endpoints(*family == "IPv6", part, hinted, single, rng),
            }));
        }
    }
    objects.push(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "diff", "labels": labels, "annotations": annotations },
        "spec": spec,
        "status": status,
    }));
}

/// `spec` and `status` as far as they say where a Service is to be found.
fn addresses(number: usize, families: &[&str], ports: &[Port], rng: &mut Rng) -> (Value, Value) {
    let of = |four: &str, six: &str| -> Vec<String> {
        let address = |family: &&str| match *family {
            "IPv6" => format!("{six}{number:x}"),
            _ => format!("{four}{number}"),
        };
        families.iter().map(address).collect()
    };
    let cluster_ips = of("10.96.0.1", "fd00:10:96::a");
    let kind = *pick(
        rng,
        &["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"],
    );
    let has_node_ports = kind == "NodePort" || kind == "LoadBalancer" && rng.u8(..5) != 0;
    let wire = |(nth, port): (usize, &Port)| {
        let mut wire = json!({ "name": port.name, "port": port.number, "protocol": port.protocol });
        if has_node_ports {
            wire["nodePort"] = (30_000 + number * 4 + nth).into();
        }
        wire
    };
    let mut spec = json!({
        "type": kind,
        "clusterIP": cluster_ips[0],
        "clusterIPs": cluster_ips,
        "ipFamilies": families,
        "ports": ports.iter().enumerate().map(wire).collect::<Vec<_>>(),
        "internalTrafficPolicy": pick(rng, &["Cluster", "Cluster", "Local"]),
    });
    if rng.u8(..4) == 0 {
        spec["externalIPs"] = json!(of("198.51.100.1", "2001:db8:198::a"));
    } else if rng.u8(..3) == 0 {
        // An address of the node itself.
        spec["externalIPs"] = json!(["172.18.0.102"]);
    }
    let mut status = json!({});
    if kind == "LoadBalancer" {
        let mut ingress: Vec<Value> = of("203.0.113.1", "2001:db8:203::a")
            .into_iter()
            .map(|ip| json!({ "ip": ip, "ipMode": pick(rng, &["VIP", "VIP", "VIP", "Proxy"]) }))
            .collect();
        if rng.bool() {
            ingress.push(json!({ "hostname": "lb.example" }));
        }
        status["loadBalancer"] = json!({ "ingress": ingress });
    }
    (spec, status)
}

/// Who may come, where they may be led, and how long they stay there.
fn set_policies(spec: &mut Value, number: usize, is_brief: bool, rng: &mut Rng) {
    let is_load_balancer = spec["type"] == "LoadBalancer";
    if is_load_balancer && rng.u8(..3) == 0 {
        let ranges: &[&[&str]] = &[
            &["192.0.2.0/28", "2001:db8:ffff::/64"],
            &["192.0.2.0/24", " 10.244.0.0/16"],
            &["172.18.0.0/24", "fc00:f853:ccd::/64"],
            &["2001:db8:eeee::/64"],
        ];
        spec["loadBalancerSourceRanges"] = json!(pick(rng, ranges));
    }
    if spec["type"] != "ClusterIP" || spec.get("externalIPs").is_some() {
        spec["externalTrafficPolicy"] = json!(pick(rng, &["Cluster", "Local"]));
    }
    if is_load_balancer && spec["externalTrafficPolicy"] == "Local" {
        spec["healthCheckNodePort"] = (31_000 + number).into();
    }
    if rng.u8(..5) == 0 {
        spec["sessionAffinity"] = "ClientIP".into();
        let short = if is_brief { 2 } else { 3600 };
        let timeout = *pick(rng, &[short, 60, 10_800]);
        spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": timeout } });
    }
}

/// Labels and annotations, of which few Services have any.
fn marks(rng: &mut Rng) -> (Value, Value) {
    let (mut labels, mut annotations) = (json!({}), json!({}));
    match rng.u8(..30) {
        0 => labels["service.kubernetes.io/service-proxy-name"] = "other".into(),
        1 => labels["service.kubernetes.io/headless"] = "".into(),
        2..8 => {
            annotations["service.kubernetes.io/topology-mode"] =
                (*pick(rng, &["Auto", "Disabled", "auto"])).into();
        }
        _ => {}
    }
    (labels, annotations)
}

struct Port {
    name: String,
    number: u16,
    protocol: &'static str,
    target: u16,
}

fn ports(number: usize, rng: &mut Rng) -> Vec<Port> {
    let count = rng.usize(1..4);
    (0..count)
        .map(|nth| {
            let protocol = *pick(rng, &["TCP", "TCP", "UDP", "UDP", "SCTP"]);
            let target = if rng.u8(..6) == 0 {
                80
            } else {
                8000 + number as u16
            };
            Port {
                name: if count == 1 {
                    String::new()
                } else {
                    format!("p{nth}")
                },
                number: [80, 443, 53][nth],
                protocol,
                target: target + nth as u16,
            }
        })
        .collect()
}

fn slice_ports(ports: &[Port], part: usize) -> Vec<Value> {
    let port = |port: &Port| {
        // Slices of one Service may have other port numbers.
        let number = port.target + 100 * part as u16;
        json!({ "name": port.name, "port": number, "protocol": port.protocol })
    };
    ports.iter().map(port).collect()
}

fn endpoints(v6: bool, part: usize, hinted: bool, single: bool, rng: &mut Rng) -> Vec<Value> {
    let mut endpoints = Vec::new();
    let count = if single { 1 } else { rng.usize(..5) };
    for _ in 0..count {
        let node = rng.usize(..NODES.len());
        let host_network = rng.u8(..8) == 0;
        let last = 10 + part + 2 * rng.usize(..3);
        let address = match (v6, host_network) {
            (false, false) => format!("10.244.{}.{last}", node + 1),
            (false, true) => format!("172.18.0.{}", node + 2),
            (true, false) => format!("fd00:10:244:{}::{last:x}", node + 1),
            (true, true) => format!("fc00:f853:ccd::{}", node + 2),
        };
        let taken = |one: &Value| one["addresses"][0] == address;
        if endpoints.iter().any(taken) {
            continue;
        }
        let mut endpoint = json!({ "addresses": [address], "conditions": conditions(rng) });
        if rng.u8(..12) != 0 {
            endpoint["nodeName"] = NODES[node].into();
        }
        if hinted {
            endpoint["hints"] = json!({ "forZones": [{ "name": format!("zone-{}", node % 2) }] });
        }
        endpoints.push(endpoint);
    }
    endpoints
}

fn conditions(rng: &mut Rng) -> Value {
    match rng.u8(..10) {
        0 => json!({ "ready": false, "serving": true, "terminating": true }),
        1 => json!({ "ready": false, "serving": false, "terminating": true }),
        2 => json!({ "ready": false }),
        3 => json!({}),
        4 => json!({ "ready": false, "serving": true, "terminating": false }),
        _ => json!({ "ready": true, "serving": true, "terminating": false }),
    }
}

/// `objects` after a change: endpoints gone, come or changed, or a Service gone or changed.
pub(super) fn change(objects: &[Value], rng: &mut Rng) -> Vec<Value> {
    let mut changed = objects.to_vec();
    for _ in 0..rng.usize(1..4) {
        let turn = rng.usize(..changed.len());
        let object = &mut changed[turn];
        match object["kind"].as_str() {
            Some("EndpointSlice") => {
                let v6 = object["addressType"] == "IPv6";
                let part = usize::from(
                    object["metadata"]["name"]
                        .as_str()
                        .is_some_and(|name| name.ends_with('1')),
                );
                match rng.u8(..3) {
                    0 => object["endpoints"] = json!([]),
                    1 => {
                        let (hinted, single) = (false, false);
                        object["endpoints"] = endpoints(v6, part, hinted, single, rng).into();
                    }
                    _ => {
                        for endpoint in object["endpoints"].as_array_mut().into_iter().flatten() {
                            endpoint["conditions"] = conditions(rng);
                        }
                    }
                }
            }
            Some("Service") => match rng.u8(..3) {
                0 => drop(changed.remove(turn)),
                1 => object["spec"]["internalTrafficPolicy"] = "Local".into(),
                _ => object["spec"]["internalTrafficPolicy"] = "Cluster".into(),
            },
            _ => {}
        }
    }
    changed
}
