use super::*;
use crate::config::KubeProxyConfig;
use crate::resolve;
use crate::snapshot::Snapshot;

fn moment(seconds: u64) -> Moment {
    let wall: Timestamp = "2026-11-20T10:55:24.633175123Z".parse().unwrap();
    Moment {
        wall: wall + Duration::from_secs(seconds),
        running: Duration::new(seconds, 318_152_212),
    }
}

fn get(path: &str) -> Request {
    Request {
        method: "GET".to_owned(),
        path: path.to_owned(),
    }
}

fn node(text: &str) -> Node {
    let text = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: a{text}");
    Snapshot::parse("x", &text).unwrap().nodes.remove(0)
}

#[test]
fn a_moment_reads_as_in_go() {
    assert_eq!(
        moment(5).to_string(),
        "2026-11-20 10:55:29.633175123 +0000 UTC m=+5.318152212"
    );
    let whole = Moment {
        wall: "2026-11-20T10:55:24Z".parse().unwrap(),
        running: Duration::ZERO,
    };
    assert_eq!(
        whole.to_string(),
        "2026-11-20 10:55:24 +0000 UTC m=+0.000000000"
    );
}

#[test]
fn a_healthy_proxy_is_up_to_date_now() {
    let health = ProxyHealth::new(Duration::from_secs(30));
    let answer = health.answer(&get("/healthz"), moment(5));
    let now = "2026-11-20 10:55:29.633175123 +0000 UTC m=+5.318152212";
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.body,
        format!(r#"{{"lastUpdated": "{now}","currentTime": "{now}", "nodeEligible": true}}"#)
    );
    let answer = health.answer(&get("/livez"), moment(5));
    assert_eq!(
        answer.body,
        format!(r#"{{"lastUpdated": "{now}","currentTime": "{now}"}}"#)
    );
    let headers = [
        ("Content-Type", JSON.to_owned()),
        ("X-Content-Type-Options", "nosniff".to_owned()),
    ];
    assert_eq!(answer.headers, headers);
    assert_eq!(health.answer(&get("/"), moment(5)).status, 404);
}

#[test]
fn a_change_that_waits_for_two_periods_makes_it_unhealthy() {
    let health = ProxyHealth::new(Duration::from_secs(30));
    health.updated(moment(1));
    health.queued(moment(10));
    health.queued(moment(60));
    assert!(health.is_healthy(moment(69)));
    assert!(!health.is_healthy(moment(70)));
    let answer = health.answer(&get("/livez"), moment(70));
    assert_eq!(answer.status, 503);
    assert!(
        answer
            .body
            .starts_with(&format!("{{\"lastUpdated\": \"{}\"", moment(1))),
        "{}",
        answer.body
    );
    assert_eq!(health.answer(&get("/healthz"), moment(70)).status, 503);
    health.updated(moment(71));
    assert_eq!(health.answer(&get("/healthz"), moment(71)).status, 200);
    let (healthz, livez) = health.answers();
    assert_eq!(healthz.read(), [("200", 1), ("503", 1)]);
    assert_eq!(livez.read(), [("200", 0), ("503", 1)]);
}

#[test]
fn a_node_that_goes_is_not_eligible_but_alive() {
    let going = [
        "}\nspec: {taints: [{key: ToBeDeletedByClusterAutoscaler}]}",
        ", deletionTimestamp: \"2026-11-20T10:55:24Z\"}",
    ];
    for text in going {
        let health = ProxyHealth::new(Duration::from_secs(30));
        health.follow_node(&node(text));
        let answer = health.answer(&get("/healthz"), moment(1));
        assert_eq!(answer.status, 503);
        assert!(
            answer.body.ends_with("\"nodeEligible\": false}"),
            "{}",
            answer.body
        );
        assert_eq!(health.answer(&get("/livez"), moment(1)).status, 200);
        health.follow_node(&node("}"));
        assert_eq!(health.answer(&get("/healthz"), moment(1)).status, 200);
    }
}

#[test]
fn a_load_balancer_gets_count_and_weight() {
    let name = ("shop".to_owned(), "web".to_owned());
    let answer = answer_health_check(&name, 2, true);
    let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\
                \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!((answer.status, answer.body.as_str()), (200, body));
    let weight = ("X-Load-Balancing-Endpoint-Weight", "2".to_owned());
    assert!(answer.headers.contains(&weight));
    assert_eq!(answer_health_check(&name, 0, true).status, 503);
    assert_eq!(answer_health_check(&name, 2, false).status, 503);
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  externalTrafficPolicy: Local
  healthCheckNodePort: 31000
  ports: [{name: a, port: 80}, {name: b, port: 81}]
---
apiVersion: v1
kind: Service
metadata: {name: cluster, namespace: shop}
spec: {type: LoadBalancer, clusterIP: 10.96.0.2, healthCheckNodePort: 31001, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: a, port: 8080}, {name: b, port: 8081}]
endpoints:
- {addresses: [10.244.0.1], nodeName: node-a}
- {addresses: [10.244.0.2], nodeName: node-a, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.0.3], nodeName: node-b}
- {addresses: [10.244.0.4], nodeName: node-b}
";

#[test]
fn ready_local_endpoints_count_once_over_all_ports() {
    let snapshot = Snapshot::parse("x", SERVICES).unwrap();
    let config = KubeProxyConfig::default();
    let count = |node| {
        let ports = resolve::service_ports(&snapshot, &config, node, Family::V4);
        let checks = health_checks(&ports);
        assert_eq!(checks.len(), 1, "only policy Local has a health check");
        checks[&("shop".to_owned(), "web".to_owned())]
    };
    let check = |local_endpoints| HealthCheck {
        family: Family::V4,
        port: 31000,
        local_endpoints,
    };
    assert_eq!(count("node-a"), check(1));
    assert_eq!(count("node-b"), check(2));
    assert_eq!(count("node-c"), check(0));
}
