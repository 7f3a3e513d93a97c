//! Every address of every Service, asked from everywhere: real requests against what `penstock explain` says, on our
//! dataplane and on the kernel's.

use super::{Lab, lab, leftovers, stderr};
use serde_json::Value;

const FIXTURES: [&str; 6] = [
    "aks-app-routing",
    "aks-kubenet-deploy",
    "aks-kubenet-pod",
    "dual-stack",
    "iks-wordpress",
    "policy-matrix",
];

/// Asks a lab by all its ways; every request ends as explained.
fn check(name: &str, source: &str, more: &[&str], requests: usize) -> Vec<Value> {
    let (of_test, _) = Lab::up(name, source, more);
    let requests = requests.to_string();
    let output = lab(&["check", name, "--requests", &requests, "-o", "json"]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{source}: {}",
        stderr(&output)
    );
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ways = checked["ways"].as_array().unwrap().clone();
    for way in &ways {
        assert_eq!(way["asked"], way["as_expected"], "{source}: {way:#}");
        let is_asked = way["asked"].as_u64() > Some(0) || way["skipped"].is_string();
        assert!(is_asked, "{source}: {way:#}");
    }
    drop(of_test);
    assert_eq!(leftovers(name), Vec::<String>::new());
    ways
}

fn ended<'a>(ways: &'a [Value], result: &'a str) -> impl Iterator<Item = &'a Value> {
    ways.iter()
        .filter(move |way| way["expected"]["result"] == result)
}

#[test]
fn root_twenty_of_twenty_requests_by_every_way_in_every_fixture() {
    for fixture in FIXTURES {
        let source = format!("tests/fixtures/{fixture}");
        let ways = check(&format!("t-ways-{fixture}"), &source, &[], 20);
        let from_all = ["client", "node/", "pod/"];
        for host in from_all {
            let mut from = ended(&ways, "answered")
                .filter(|way| way["from"].as_str().unwrap().starts_with(host));
            assert!(from.any(|way| way["asked"] == 20), "{fixture} from {host}");
        }
        let is_v6 = |way: &Value| way["to"].as_str().unwrap().starts_with('[');
        let has_v6 = ended(&ways, "answered").any(is_v6);
        assert_eq!(has_v6, fixture == "dual-stack", "{fixture}");
        if fixture == "policy-matrix" {
            assert!(ended(&ways, "refused").count() > 5);
            assert!(ended(&ways, "silent").count() > 5);
        }
    }
}

/// kube-proxy's nftables mode programs nothing with the AKS fixtures' detectLocalMode InterfaceNamePrefix.
#[test]
fn root_the_kernel_under_our_rules_does_what_is_explained() {
    for dataplane in ["iptables", "nftables"] {
        for fixture in FIXTURES {
            if dataplane == "nftables" && fixture.starts_with("aks-") {
                continue;
            }
            let source = format!("tests/fixtures/{fixture}");
            let more = ["--dataplane", dataplane];
            check(&format!("t-{dataplane}-{fixture}"), &source, &more, 3);
        }
    }
}

/// The ways that `check` has differ by hosts and addresses as far as the objects allow.
#[test]
fn root_quickstart_has_these_ways() {
    let ways = check("t-ways", "quickstart", &["--workers", "2"], 4);
    let web = ways
        .iter()
        .filter(|way| way["service"] == "default/web:http");
    let mut asked: Vec<(&str, &str)> = web
        .map(|way| (way["from"].as_str().unwrap(), way["to"].as_str().unwrap()))
        .collect();
    asked.sort_unstable();
    let mut expected = Vec::new();
    let nodes = ["node/node-a", "node/node-b"];
    let inside = ["pod/default/client", "pod/default/echo-1"];
    for host in nodes.iter().chain(&inside).chain(&["client"]) {
        expected.push((*host, "172.18.0.2:30080"));
        expected.push((*host, "172.18.0.3:30080"));
        expected.push((*host, "203.0.113.10:80"));
        if *host != "client" {
            expected.push((*host, "10.96.0.10:80"));
        }
    }
    expected.extend(nodes.iter().map(|node| (*node, "127.0.0.1:30080")));
    expected.sort_unstable();
    assert_eq!(asked, expected);
}
