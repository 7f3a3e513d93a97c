use super::*;
use crate::render::Proxiers;
use dataplane::service::{NodePortAddresses, UdpEndpoints};
use dataplane::tuple::Address;
use std::net::IpAddr;
use std::path::Path;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

#[test]
fn compiles_every_fixture_for_every_node() {
    for name in [
        "aks-app-routing",
        "aks-kubenet-deploy",
        "aks-kubenet-pod",
        "dual-stack",
        "iks-wordpress",
        "policy-matrix",
    ] {
        let folder = Path::new(FIXTURES).join(name);
        let snapshot = Snapshot::read(&folder.join("snapshot.yaml")).unwrap();
        let config = KubeProxyConfig::read(&folder.join("kube-proxy.yaml")).unwrap();
        for node in &snapshot.nodes {
            let network = NodeNetwork::from_snapshot(node);
            let parts = compile(
                &snapshot,
                &config,
                &network,
                &node.metadata.name,
                Generation(1),
            );
            let parts = parts.unwrap();
            assert!(parts.frontends.len() >= parts.services.len(), "{name}");
            let mut endpoints = parts
                .services
                .iter()
                .flat_map(|service| &*service.endpoints);
            assert!(endpoints.next().is_some(), "{name}");
        }
    }
}

const UDP: &str = "
apiVersion: v1
kind: Node
metadata: {name: node-a}
---
apiVersion: v1
kind: Service
metadata: {name: dns}
spec:
  clusterIP: 10.96.0.10
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]
endpoints:
- {addresses: [10.244.0.1], conditions: {ready: false, serving: false}}
- {addresses: [10.244.0.2]}
- {addresses: [10.244.0.3], conditions: {ready: false, serving: true, terminating: true}}
";

#[test]
fn a_udp_service_knows_the_listed_endpoints_that_it_does_not_use() {
    let parts = |text: &str| {
        let snapshot = Snapshot::parse("x", text).unwrap();
        let network = NodeNetwork::from_snapshot(&snapshot.nodes[0]);
        let config = KubeProxyConfig::default();
        compile(&snapshot, &config, &network, "node-a", Generation(1)).unwrap()
    };
    let address = |last| Address::from_v4([10, 244, 0, last]);
    let found = parts(UDP);
    let [dns, dns_tcp] = &found.services[..] else {
        panic!("{found:?}")
    };
    assert_eq!(dns_tcp.udp, None);
    let udp = dns.udp.clone().unwrap();
    assert_eq!(udp.unused, [(address(1), 53), (address(3), 53)]);
    assert!(udp.serving);
    // Serving is what counts, even while terminating and unused.
    let found = parts(&UDP.replace("- {addresses: [10.244.0.2]}\n", ""));
    assert_eq!(
        found.services[0].udp,
        Some(UdpEndpoints {
            unused: vec![(address(1), 53)],
            serving: true,
            is_ipv4: true,
        })
    );
    let found = parts(
        &UDP.replace("serving: true", "serving: false")
            .replace("- {addresses: [10.244.0.2]}\n", ""),
    );
    assert!(!found.services[0].udp.clone().unwrap().serving);
}

/// Addresses of a node, and those that kube-proxy takes for its own.
#[test]
fn an_external_ip_is_the_nodes_where_a_family_has_no_internal_ip() {
    let (internal, external, name) = ("InternalIP", "ExternalIP", "Hostname");
    for (addresses, own) in [
        (
            vec![
                (name, "node-a"),
                (external, "203.0.113.50"),
                (internal, "2001:db8::10"),
            ],
            ["203.0.113.50", "2001:db8::10"],
        ),
        (
            vec![
                (external, "2001:db8::9"),
                (external, "2001:db8::10"),
                (internal, "192.0.2.10"),
            ],
            ["192.0.2.10", "2001:db8::9"],
        ),
        (
            vec![
                (external, "203.0.113.50"),
                (internal, "192.0.2.10"),
                (internal, "192.0.2.11"),
            ],
            ["192.0.2.10", "::1"],
        ),
    ] {
        let entry =
            |(kind, address): &(&str, &str)| format!("{{type: {kind}, address: '{address}'}}");
        let entries: Vec<String> = addresses.iter().map(entry).collect();
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: a}}\nstatus: {{addresses: [{}]}}\n",
            entries.join(", ")
        );
        let snapshot = Snapshot::parse("x", &text).unwrap();
        let network = NodeNetwork::from_snapshot(&snapshot.nodes[0]);
        let proxiers =
            Proxiers::new(&snapshot, &KubeProxyConfig::default(), &network, "a").unwrap();
        let found = [proxiers.v4.node_ip, proxiers.v6.node_ip].map(|address| address.to_string());
        assert_eq!(found, own, "{addresses:?}");
        assert_eq!(proxiers.has_ipv6, own[1] != "::1", "{addresses:?}");
        let is_own = |address: &IpAddr| network.is_own(*address);
        assert!(
            [proxiers.v4.node_ip, proxiers.v6.node_ip]
                .iter()
                .all(is_own)
        );
    }
}

/// With `primary`, the table serves NodePorts where the rules do: a family without an address everywhere.
#[test]
fn primary_serves_node_ports_at_the_nodes_own_address_of_each_family() {
    let config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
        nodePortAddresses: [primary]\n";
    let config = KubeProxyConfig::parse("x", config).unwrap();
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: a}\n\
        status: {addresses: [{type: InternalIP, address: 192.0.2.10}, {type: InternalIP, address: 192.0.2.11}]}\n";
    let snapshot = Snapshot::parse("x", node).unwrap();
    let network = NodeNetwork::from_snapshot(&snapshot.nodes[0]);
    let parts = compile(&snapshot, &config, &network, "a", Generation(1)).unwrap();
    let primary = NodePortAddresses::Only(vec![Address::from_v4([192, 0, 2, 10])]);
    assert_eq!(parts.node_port_addresses_v4, primary);
    let all = NodePortAddresses::All { localhost: false };
    assert_eq!(parts.node_port_addresses_v6, all);
}

/// `Test_checkBadIPConfig` of kube-proxy: it does not start where no range is of the primary family.
#[test]
fn mode_node_cidr_needs_a_range_of_the_nodes_own_family() {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\ndetectLocalMode: NodeCIDR\n";
    let errors = |config: &str, ranges: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: a}}\nspec: {{podCIDRs: [{ranges}]}}\n\
             status: {{addresses: [{{type: InternalIP, address: 172.18.0.2}}, {{type: InternalIP, address: 'fd00:18::2'}}]}}\n"
        );
        let snapshot = Snapshot::parse("x", &text).unwrap();
        let config = KubeProxyConfig::parse("x", &format!("{head}{config}")).unwrap();
        let network = NodeNetwork::from_snapshot(&snapshot.nodes[0]);
        let compiled = compile(&snapshot, &config, &network, "a", Generation(1));
        let rendered = Proxiers::new(&snapshot, &config, &network, "a");
        [compiled.err(), rendered.err()]
    };
    let of = |family| {
        let node = "a".to_owned();
        Some(CompileError::NoPodCidrOfFamily { node, family })
    };
    for (config, ranges, expected) in [
        ("", "10.244.0.0/24", None),
        ("", "10.244.0.0/24, 'fd00:10::/64'", None),
        ("", "'fd00:10::/64'", of(Family::V4)),
        ("bindAddress: 'fd00:18::2'\n", "'fd00:10::/64'", None),
        (
            "bindAddress: 'fd00:18::2'\n",
            "10.244.0.0/24",
            of(Family::V6),
        ),
        ("", "", Some(CompileError::NoPodCidr("a".to_owned()))),
    ] {
        assert_eq!(
            errors(config, ranges),
            [expected.clone(), expected],
            "{config}{ranges}"
        );
    }
}
