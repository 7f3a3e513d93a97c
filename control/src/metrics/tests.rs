use super::*;
use crate::config::KubeProxyConfig;
use crate::model::Family;
use crate::resolve;

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.1, internalTrafficPolicy: Local, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: lb}
spec: {type: NodePort, clusterIP: 10.96.0.2, externalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30000}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {clusterIP: 10.96.0.3, internalTrafficPolicy: Local, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels: {kubernetes.io/service-name: web}
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: \"2026-11-20T10:00:00.5Z\"}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.0.1], nodeName: node-a}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: lb-1, labels: {kubernetes.io/service-name: lb}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.0.2], nodeName: node-b}]
";

fn snapshot(text: &str) -> Snapshot {
    Snapshot::parse("x", text).unwrap()
}

#[test]
fn policy_local_without_local_endpoints_is_counted() {
    let (snapshot, config) = (snapshot(OBJECTS), KubeProxyConfig::default());
    let count = |node| {
        let ports = resolve::service_ports(&snapshot, &config, node, Family::V4);
        let count = WithoutLocal::count(&ports, None);
        (count.internal, count.external)
    };
    assert_eq!(count("node-a"), (0, 1));
    assert_eq!(count("node-b"), (1, 0));
    assert_eq!(count("node-c"), (1, 1));
}

#[test]
fn only_real_changes_count() {
    let old = snapshot(OBJECTS);
    let moved = snapshot(&format!("# a line more\n{OBJECTS}"));
    assert_eq!(Changes::between(&old, &moved), Changes::default());
    let changed = snapshot(&OBJECTS.replace("10.244.0.1]", "10.244.0.9]"));
    let expected = Changes {
        services: 0,
        slices: 1,
        triggered: vec!["2026-11-20T10:00:00.5Z".parse().unwrap()],
    };
    assert_eq!(Changes::between(&old, &changed), expected);
    let fewer = snapshot(OBJECTS.rsplit_once("---").unwrap().0);
    assert_eq!(Changes::between(&old, &fewer).slices, 1);
    assert_eq!(Changes::between(&fewer, &old).slices, 1);
    let renamed = snapshot(&OBJECTS.replace("name: empty", "name: void"));
    assert_eq!(Changes::between(&old, &renamed).services, 2);
}

#[test]
fn programming_latency_is_of_changes_since_the_start() {
    let at = |text: &str| text.parse::<Wall>().unwrap();
    let mut metrics = SyncMetrics::new(at("2026-11-20T10:00:00Z"));
    let changes = Changes {
        services: 2,
        slices: 3,
        triggered: vec![at("2026-11-20T09:59:00Z"), at("2026-11-20T10:00:00.5Z")],
    };
    let now = at("2026-11-20T10:00:02Z");
    metrics.queued(now);
    metrics.published(
        now,
        Duration::from_millis(3),
        &changes,
        WithoutLocal::default(),
    );
    let mut page = Exposition::default();
    metrics.write(&mut page, &ProxyHealth::new(Duration::from_secs(30)));
    let page = page.finish();
    for line in [
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"1\"} 0",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"2\"} 1",
        "kubeproxy_network_programming_duration_seconds_count 1",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"300\"} 1",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.002\"} 0",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\"} 1",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"16.384\"} 1",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count 0",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_bucket{le=\"16.384\"} 0",
        "kubeproxy_sync_proxy_rules_iptables_total{table=\"nat\"} 0",
        "kubeproxy_sync_proxy_rules_service_changes_total 2",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 3",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds 1795168802",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
}

/// Two masqueraded connections, one from each of the node's addresses, and one that keeps its source.
#[test]
fn inserts_and_ports_by_address_are_counted() {
    use dataplane::conntrack::{Headers, Settings, Transport};
    use dataplane::tuple::{Address, Protocol};
    let conntrack = Conntrack::new(Settings::kernel(100), [1, 2, 3, 4]);
    let now = Timestamp(0);
    for (client, masqueraded) in [(1, Some(1)), (2, Some(2)), (3, Some(2)), (4, None)] {
        let headers = Headers {
            tuple: Tuple {
                source: Address::from_v4([198, 51, 100, client]),
                destination: Address::from_v4([203, 0, 113, 10]),
                source_port: 4000,
                destination_port: 53,
                protocol: Protocol::UDP,
            },
            transport: Transport::Udp,
            length: 60,
        };
        let mut tentative = conntrack.open(&headers, now).unwrap();
        tentative.reply.source = Address::from_v4([10, 244, 1, 10]);
        if let Some(node) = masqueraded {
            tentative.reply.destination = Address::from_v4([172, 18, 0, node]);
            tentative.reply.destination_port = 1000 + u16::from(client);
        }
        let _ = conntrack.confirm(&tentative, now).unwrap();
    }
    let mut page = Exposition::default();
    write_connections(&mut page, &conntrack, now);
    let page = page.finish();
    for line in [
        "penstock_conntrack_entries 4",
        "penstock_conntrack_inserts_total 4",
        "penstock_source_ports_in_use{address=\"172.18.0.1\"} 1",
        "penstock_source_ports_in_use{address=\"172.18.0.2\"} 2",
        "penstock_source_ports_in_use_max 2",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
}

/// A load balancer without an address and without a NodePort.
#[test]
fn a_policy_local_that_nothing_leads_to_counts_as_external() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: lb}\n\
        spec: {type: LoadBalancer, externalTrafficPolicy: Local, clusterIP: 10.96.0.9, ports: [{port: 80}]}\n---\n\
        apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
        metadata: {name: lb-1, labels: {kubernetes.io/service-name: lb}}\naddressType: IPv4\n\
        ports: [{port: 80}]\nendpoints: [{addresses: [10.244.1.5], nodeName: node-b}]\n";
    let config = KubeProxyConfig::default();
    let count = |text: &str, node| {
        let ports = resolve::service_ports(&snapshot(text), &config, node, Family::V4);
        let count = WithoutLocal::count(&ports, None);
        (count.internal, count.external)
    };
    assert_eq!(count(text, "node-a"), (0, 1));
    assert_eq!(count(text, "node-b"), (0, 1));
    let unready = text.replace(
        "[10.244.1.5]",
        "[10.244.1.5], conditions: {ready: false, serving: false}",
    );
    assert_eq!(count(&unready, "node-a"), (0, 0));
}
