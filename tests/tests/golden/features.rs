//! What the fixtures do not show: other detectors, masquerade settings, NodePort addresses, source ranges, large
//! clusters. The expected text is what kube-proxy 1.30 writes and the tools print of it; where
//! there is a kernel, it must list the rules as they were rendered too.

use super::load::{nft_round_trip, round_trip_everywhere};
use super::proxiers;
use control::config::KubeProxyConfig;
use control::render::{self, Proxiers, RenderError, iptables_tables, nftables, nftables_table};
use control::snapshot::Snapshot;

const NODE: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}
spec: {podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.10}, {type: InternalIP, address: "2001:db8:1::10"}]}
"#;

/// A Service `default/web:http` at 10.96.0.10:80 with NodePort 30080, and two endpoints, the first on n1.
const WEB: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:10:96::10"]
  ipFamilies: [IPv4, IPv6]
  ports: [{name: http, port: 80, nodePort: 30080, protocol: TCP}]
  loadBalancerSourceRanges: [0.0.0.0/0, 198.51.100.0/25, 198.51.100.128/25, "2001:db8:5::/48"]
  externalTrafficPolicy: Local
  healthCheckNodePort: 30999
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}, {ip: "2001:db8:2::1"}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.244.1.5], nodeName: n1, conditions: {ready: true}}
- {addresses: [10.244.2.5], nodeName: n2, conditions: {ready: true}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: ["fd00:10:244:2::5"], nodeName: n2, conditions: {ready: true}}
"#;

fn rendered_from(objects: &str, config: &str) -> Proxiers {
    let snapshot = Snapshot::parse("test", &format!("{NODE}---\n{objects}")).unwrap();
    proxiers(&snapshot, &configured(config), "n1")
}

fn configured(config: &str) -> KubeProxyConfig {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    KubeProxyConfig::parse("test", &format!("{head}{config}")).unwrap()
}

fn web(config: &str) -> Proxiers {
    rendered_from(WEB, config)
}

/// The lines of `text` that contain `what`.
fn lines<'t>(text: &'t str, what: &str) -> Vec<&'t str> {
    text.lines().filter(|line| line.contains(what)).collect()
}

/// The rules that mark for masquerade in the chain of the cluster IP.
fn cluster_ip_masquerade(config: &str) -> Vec<String> {
    let text = iptables_tables(&web(config).v4);
    let rules = lines(&text, "cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ");
    let without_chain = |rule: &&str| {
        rule.split_once(" ")
            .unwrap()
            .1
            .split_once(' ')
            .unwrap()
            .1
            .to_owned()
    };
    rules.iter().map(without_chain).collect()
}

/// kube-proxy writes the setting, then finds it and leaves the rule out.
#[test]
fn be_liberal_takes_the_rule_for_invalid_packets_away() {
    let rule = "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n";
    assert!(iptables_tables(&web("").v4).contains(rule));
    let liberal = web("conntrack: {tcpBeLiberal: true}\n");
    assert!(!iptables_tables(&liberal.v4).contains("INVALID"));
    assert!(!iptables_tables(&liberal.v6).contains("INVALID"));
}

#[test]
fn each_detector_has_its_own_test_of_the_source() {
    let tail =
        "-m comment --comment \"default/web:http cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ";
    let cases = [
        (
            "clusterCIDR: 10.244.0.0/16",
            "! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp",
        ),
        (
            "detectLocalMode: NodeCIDR",
            "! -s 10.244.1.0/24 -d 10.96.0.10/32 -p tcp",
        ),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
            "-d 10.96.0.10/32 ! -i cni0 -p tcp",
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
            "-d 10.96.0.10/32 ! -i veth+ -p tcp",
        ),
        ("iptables: {masqueradeAll: true}", "-d 10.96.0.10/32 -p tcp"),
    ];
    for (config, head) in cases {
        assert_eq!(
            cluster_ip_masquerade(config),
            [format!("{head} {tail}")],
            "{config}"
        );
    }
    assert_eq!(
        cluster_ip_masquerade("detectLocalMode: ClusterCIDR"),
        [""; 0]
    );
}

#[test]
fn without_a_detector_pods_get_no_way_of_their_own() {
    let text = iptables_tables(&web("").v4);
    assert_eq!(lines(&text, "pod traffic for"), [""; 0]);
    assert_eq!(lines(&text, "route LOCAL traffic for").len(), 1);
    let nft = nftables_table(&web("").v4).unwrap();
    assert_eq!(lines(&nft, "short-circuit pod traffic"), [""; 0]);
}

#[test]
fn nft_compares_interfaces_by_name_for_bridges() {
    let config =
        "mode: nftables\ndetectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}";
    let nft = nftables_table(&web(config).v4).unwrap();
    let rules = lines(&nft, "iif");
    let masquerade = "ip daddr 10.96.0.10 tcp dport 80 iif != \"cni0\" jump mark-for-masquerade";
    assert_eq!(rules[0].trim(), masquerade);
    assert!(
        rules[1].contains("\tiif \"cni0\" goto service-"),
        "{}",
        rules[1]
    );
    assert_eq!(rules.len(), 2);
}

#[test]
fn the_masquerade_bit_moves_the_mark() {
    let text = iptables_tables(&web("iptables: {masqueradeBit: 0}").v4);
    assert!(text.contains("-A KUBE-MARK-MASQ -j MARK --set-xmark 0x1/0x1\n"));
    assert!(text.contains("-A KUBE-POSTROUTING -j MARK --set-xmark 0x1/0x0\n"));
    assert!(text.contains("-m mark --mark 0x1/0x1 -j ACCEPT\n"));
    assert!(!text.contains("0x4000"));
    let text = iptables_tables(&web("iptables: {masqueradeBit: 31}").v4);
    assert!(text.contains("--set-xmark 0x80000000/0x80000000\n"));
}

#[test]
fn node_ports_are_where_they_are_configured() {
    let jump = "this must be the last rule in this chain\"";
    let jumps = |config: &str| -> Vec<String> {
        let text = iptables_tables(&web(config).v4);
        let jumps = lines(&text, jump);
        let part = |line: &&str| {
            let (address, _) = line.split_once(" -m comment").unwrap();
            let (_, test) = line.split_once(jump).unwrap();
            address.replace("-A KUBE-SERVICES", "") + test
        };
        jumps.iter().map(part).collect()
    };
    let local = " -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS";
    assert_eq!(jumps(""), [local]);
    assert_eq!(jumps("nodePortAddresses: [0.0.0.0/0]"), [local]);
    assert_eq!(jumps("nodePortAddresses: [\"2001:db8::/32\"]"), [local]);
    let not_loopback = format!(" ! -d 127.0.0.0/8{local}");
    assert_eq!(
        jumps("iptables: {localhostNodePorts: false}"),
        [not_loopback]
    );
    assert_eq!(
        jumps("nodePortAddresses: [127.0.0.0/8, 192.0.2.0/24, 198.18.0.0/15]"),
        [
            " -d 127.0.0.1/32 -j KUBE-NODEPORTS",
            " -d 192.0.2.10/32 -j KUBE-NODEPORTS"
        ]
    );
    assert_eq!(
        jumps("nodePortAddresses: [192.0.2.0/24]"),
        [" -d 192.0.2.10/32 -j KUBE-NODEPORTS"]
    );
}

#[test]
fn the_localnet_rule_is_there_when_localhost_serves_node_ports() {
    let has_rule = |config: &str| {
        let text = iptables_tables(&web(config).v4);
        lines(&text, "block incoming localnet connections").len()
    };
    assert_eq!(has_rule(""), 1);
    assert_eq!(has_rule("nodePortAddresses: [127.0.0.0/8]"), 1);
    assert_eq!(has_rule("nodePortAddresses: [192.0.2.0/24]"), 0);
    assert_eq!(has_rule("iptables: {localhostNodePorts: false}"), 0);
}

#[test]
fn nft_node_ports_are_on_the_primary_address_unless_configured() {
    let set = |config: &str| {
        let nft = nftables_table(&web(config).v4).unwrap();
        let (_, set) = nft.split_once("set nodeport-ips").unwrap();
        lines(set.split('}').next().unwrap(), "elements").concat()
    };
    assert_eq!(set(""), "\t\telements = { 192.0.2.10 ");
    assert_eq!(set("nodePortAddresses: [198.18.0.0/15]"), "");
    let nft = nftables(&web("nodePortAddresses: [0.0.0.0/0, \"::/0\"]")).unwrap();
    assert!(!nft.contains("nodeport-ips"));
    let local = "fib daddr type local";
    let lookup = "meta l4proto . th dport vmap @service-nodeports";
    assert!(nft.contains(&format!("{local} ip daddr != 127.0.0.0/8 {lookup}")));
    assert!(nft.contains(&format!("{local} ip6 daddr != ::1 {lookup}")));
}

/// `primary` is a range of one address: with it there is nothing at localhost, and a family without an address of its
/// own is served as if nothing was said.
#[test]
fn primary_is_the_same_as_the_nodes_addresses_written_out() {
    let written_out = web("nodePortAddresses: [192.0.2.10/32, \"2001:db8:1::10/128\"]");
    let primary = web("nodePortAddresses: [primary]");
    assert_eq!(render::iptables(&primary), render::iptables(&written_out));
    assert_eq!(nftables(&primary).unwrap(), nftables(&written_out).unwrap());
    assert!(!render::iptables(&primary).contains("block incoming localnet connections"));
    let bound = web("nodePortAddresses: [primary]\nbindAddress: 192.0.2.10");
    assert_eq!(render::iptables(&bound), render::iptables(&written_out));

    let only_v4 = NODE.replace(", {type: InternalIP, address: \"2001:db8:1::10\"}", "");
    let text = format!("{only_v4}---\n{WEB}");
    let snapshot = Snapshot::parse("test", &text).unwrap();
    let config = configured("nodePortAddresses: [primary]");
    let rules = iptables_tables(&proxiers(&snapshot, &config, "n1").v6);
    let jump = "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS";
    assert_eq!(lines(&rules, jump).len(), 1, "{rules}");
}

/// A range of everything is printed without `-s`; it holds the node, so the VIP itself is admitted as well.
#[test]
fn source_ranges_are_printed_as_the_tools_do() {
    let proxiers = web("");
    let text = iptables_tables(&proxiers.v4);
    let firewall: Vec<&str> = lines(&text, "-A KUBE-FW-");
    let sources: Vec<&str> = firewall
        .iter()
        .map(|rule| rule.split_once(" -m comment").unwrap().0)
        .map(|head| head.split_once(" -s ").map_or("", |(_, source)| source))
        .collect();
    assert_eq!(
        sources,
        [
            "",
            "198.51.100.0/25",
            "198.51.100.128/25",
            "203.0.113.1/32",
            ""
        ]
    );
    let nft = nftables_table(&proxiers.v4).unwrap();
    assert_eq!(
        lines(&nft, "ip saddr != "),
        ["\t\tip saddr != { 0.0.0.0/0 } drop"]
    );
    let nft = nftables_table(&proxiers.v6).unwrap();
    assert_eq!(
        lines(&nft, "ip6 saddr != "),
        ["\t\tip6 saddr != 2001:db8:5::/48 drop"]
    );
}

/// Source ranges are filtered without endpoints in nftables mode, not in iptables mode.
#[test]
fn source_ranges_without_endpoints() {
    let (service, _) = WEB.split_once("---").unwrap();
    let proxiers = rendered_from(service, "");
    let text = iptables_tables(&proxiers.v4);
    assert_eq!(lines(&text, "KUBE-FW-"), [""; 0]);
    assert_eq!(
        lines(&text, "-j REJECT --reject-with icmp-port-unreachable").len(),
        3
    );
    let nft = nftables_table(&proxiers.v4).unwrap();
    assert_eq!(
        lines(&nft, "chain firewall-").len(),
        2,
        "the check, and the Service's"
    );
}

fn many(endpoints: usize) -> String {
    let mut objects = WEB.to_owned();
    let (slice, _) = WEB
        .split_once(
            "\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-6",
        )
        .unwrap();
    let (_, slice) = slice.split_once("---").unwrap();
    let (head, _) = slice.split_once("- {addresses").unwrap();
    objects.push_str(&format!("---{}", head.replace("web-4", "more")));
    // WEB has two already.
    for index in 0..endpoints - 2 {
        let (high, low) = (index / 250, index % 250);
        objects.push_str(&format!(
            "- {{addresses: [10.245.{high}.{low}], conditions: {{ready: false}}}}\n"
        ));
    }
    objects
}

/// The limit counts unready endpoints, and is passed by more than 1000.
#[test]
fn a_large_cluster_has_no_comments_on_endpoint_rules() {
    let at_limit = iptables_tables(&rendered_from(&many(1000), "").v4);
    assert_eq!(lines(&at_limit, "default/web:http -> ").len(), 3);
    let above = iptables_tables(&rendered_from(&many(1001), "").v4);
    assert_eq!(lines(&above, " -> "), [""; 0]);
    for rule in lines(&above, "-A KUBE-SEP-") {
        assert!(!rule.contains("comment"), "{rule}");
    }
    let with_comments = |text: &str| lines(text, "--comment").len();
    assert_eq!(with_comments(&at_limit) - with_comments(&above), 3 + 2 * 2);
}

#[test]
fn two_services_with_one_address_fail_in_nftables_mode_only() {
    let second = WEB
        .replace("web", "other")
        .replace("10.96.0.10", "10.96.0.11")
        .replace("fd00:10:96::10", "fd00:10:96::11")
        .replace("30080", "30081")
        .replace("30999", "30998");
    let proxiers = rendered_from(&format!("{WEB}---{second}"), "");
    let text = iptables_tables(&proxiers.v4);
    assert_eq!(lines(&text, "-A KUBE-SERVICES -d 203.0.113.1/32").len(), 2);
    let error = nftables(&proxiers).unwrap_err();
    assert_eq!(
        error,
        RenderError::SharedAddress {
            key: "203.0.113.1 . tcp . 80".to_owned(),
            first: "default/other:http".to_owned(),
            second: "default/web:http".to_owned(),
            map: "service-ips",
        }
    );
}

/// The name is the comment of a map's element, but not of the map of served addresses.
#[test]
fn a_long_name_fails_in_nftables_mode_only_where_it_is_printed() {
    let long = WEB
        .replace("web", &format!("w{}", "e".repeat(62)))
        .replace("default", &"n".repeat(63));
    let named = rendered_from(&long.replace("name: http", "name: p"), "");
    assert!(matches!(
        nftables(&named),
        Err(RenderError::LongName { length: 129, .. })
    ));
    let unnamed = rendered_from(&long.replace("name: http, ", ""), "");
    assert!(nftables(&unnamed).is_ok(), "63 + 1 + 63 characters");
}

#[test]
fn root_the_kernel_lists_these_rules_as_they_were_rendered() {
    let configs = [
        "clusterCIDR: 10.244.0.0/16,fd00:10:244::/56",
        "detectLocalMode: NodeCIDR",
        "iptables: {masqueradeAll: true, masqueradeBit: 31, localhostNodePorts: false}",
        "nodePortAddresses: [192.0.2.0/24, \"2001:db8::/32\", 127.0.0.0/8]",
        "nodePortAddresses: [0.0.0.0/0, \"::/0\"]",
    ];
    for config in configs {
        let proxiers = web(config);
        for proxier in [&proxiers.v4, &proxiers.v6] {
            round_trip_everywhere(proxier);
            nft_round_trip(proxier);
        }
    }
    let interfaces = [
        "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
        "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
    ];
    for config in interfaces {
        round_trip_everywhere(&web(config).v4);
    }
    round_trip_everywhere(&rendered_from(&many(1001), "").v4);
}
