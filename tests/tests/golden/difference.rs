//! Dumps of nodes against the snapshot: real ones are the same, and each kind of damage is told in words.

use super::goldens;
use control::render::difference::{Difference, Kind, differences};
use control::render::dump::Dump;
use control::render::{Proxiers, iptables};

fn compare(proxiers: &Proxiers, dump: &str) -> Vec<Difference> {
    differences(proxiers, &Dump::parse(dump).unwrap())
}

#[test]
fn a_real_nodes_dump_is_the_same() {
    for golden in goldens("iptables") {
        let found = compare(&golden.proxiers(), &golden.text());
        assert!(found.is_empty(), "{}: {found:#?}", golden.path.display());
    }
}

/// The rules of policy-matrix on node-a, once damaged by `damage`.
fn damaged(damage: impl FnOnce(&str) -> String) -> Vec<String> {
    let golden = goldens("iptables")
        .into_iter()
        .find(|golden| {
            golden
                .path
                .ends_with("policy-matrix/kube-proxy-1.30/node-a.iptables")
        })
        .unwrap();
    let text = golden.text();
    let damaged = damage(&text);
    assert_ne!(damaged, text, "there is damage");
    let found = compare(&golden.proxiers(), &damaged);
    found.iter().map(Difference::to_string).collect()
}

/// Leaves out the lines that contain `what`.
fn without(text: &str, what: &str) -> String {
    let kept = text.lines().filter(|line| !line.contains(what));
    kept.map(|line| format!("{line}\n")).collect()
}

/// Puts `lines` before the last COMMIT, that of the nat table.
fn with_nat(text: &str, lines: &str) -> String {
    let body = text.trim_end().strip_suffix("COMMIT").unwrap();
    format!("{body}{lines}\nCOMMIT\n")
}

/// The KUBE-SEP chain that matrix/cluster-ip:http has for 10.244.1.11:8080.
const ENDPOINT: &str = "KUBE-SEP-JLNLFGLJT4MNVFVX";

#[test]
fn a_missing_endpoint_is_told_once() {
    let found = damaged(|text| without(text, ENDPOINT));
    assert_eq!(
        found,
        [
            "missing  IPv4  matrix/cluster-ip:http: endpoint 10.244.1.11:8080 is in the snapshot but the node has no \
          KUBE-SEP rule for it"
        ]
    );
}

#[test]
fn a_stale_endpoint_is_told_once() {
    let found = damaged(|text| {
        let service = "KUBE-SVC-6O7CPDCPFEWSTBLM";
        let stale = "KUBE-SEP-AAAAAAAAAAAAAAAA";
        let comment = "-m comment --comment \"matrix/cluster-ip:http\"";
        with_nat(
            text,
            &format!(
                "-A {stale} -s 10.244.9.9/32 {comment} -j KUBE-MARK-MASQ\n\
                 -A {stale} -p tcp {comment} -m tcp -j DNAT --to-destination 10.244.9.9:8080\n\
                 -A {service} -m comment --comment \"matrix/cluster-ip:http -> 10.244.9.9:8080\" -j {stale}"
            ),
        )
    });
    assert_eq!(
        found,
        [
            "stale    IPv4  matrix/cluster-ip:http: the node still sends traffic to endpoint 10.244.9.9:8080: it is \
          not in the snapshot"
        ]
    );
}

#[test]
fn a_missing_service_is_told_once() {
    let found = damaged(|text| {
        let without_rules = without(text, "\"matrix/cluster-ip:http");
        without(&without_rules, ":KUBE-SVC-6O7CPDCPFEWSTBLM")
    });
    assert_eq!(
        found,
        [
            "missing  IPv4  matrix/cluster-ip:http: is in the snapshot but the node has no rule for it"
        ]
    );
}

#[test]
fn a_service_that_is_gone_is_told_once() {
    let found = damaged(|text| text.replace("matrix/cluster-ip:http", "matrix/gone:http"));
    assert!(found.contains(
        &"stale    IPv4  matrix/gone:http: the node still has rules for it, the snapshot does not have it \
          (10.96.1.1:80/tcp)"
            .to_owned()
    ));
    assert_eq!(found.len(), 2, "{found:#?}");
}

#[test]
fn a_changed_cluster_ip_is_told_with_both() {
    let found = damaged(|text| text.replace("-d 10.96.1.1/32", "-d 10.96.7.7/32"));
    assert_eq!(
        found.len(),
        2,
        "the rule and the masquerade rule: {found:#?}"
    );
    assert!(
        found[0].starts_with("changed  IPv4  matrix/cluster-ip:http: "),
        "{found:#?}"
    );
    assert!(
        found[0].contains("10.96.7.7") && found[0].contains("10.96.1.1"),
        "{found:#?}"
    );
}

#[test]
fn a_wrong_probability_is_told() {
    let found = damaged(|text| {
        let rule = "\"matrix/cluster-ip:http -> 10.244.1.10:8080\" -m statistic --mode random --probability ";
        text.replace(
            &format!("{rule}0.33333333349"),
            &format!("{rule}0.90000000037"),
        )
    });
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("0.90000000037"), "{found:#?}");
}

/// Endpoint rules of one Service, of the cluster and of affinity, and the same with another target.
#[test]
fn an_endpoint_rule_that_leads_elsewhere_is_told() {
    let web = "\"matrix/cluster-ip:http -> 10.244.1.10:8080\"";
    let affinity = "\"matrix/affinity:http -> 10.244.1.10:8080\" -m recent --rcheck";
    for target in ["RETURN", "ACCEPT", "KUBE-MARK-MASQ"] {
        for (which, count) in [(web, 1), (affinity, 1), ("\"matrix/cluster-ip:http -> ", 3)] {
            let found = damaged(|text| retargeted(text, which, target));
            assert_eq!(found.len(), count, "{which} to {target}: {found:#?}");
            for line in found {
                assert!(line.starts_with("changed  IPv4  matrix/"), "{line}");
                assert!(line.contains(&format!("-j {target}`")), "{line}");
            }
        }
    }
}

/// The lines that contain `what`, with `target` as theirs.
fn retargeted(text: &str, what: &str, target: &str) -> String {
    let line = |line: &str| match line.split_once(" -j ") {
        Some((head, _)) if line.contains(what) => format!("{head} -j {target}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// Exchanges the line that contains `first` and the one behind it.
fn exchanged(text: &str, first: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    let place = lines.iter().position(|line| line.contains(first)).unwrap();
    lines.swap(place, place + 1);
    lines.join("\n") + "\n"
}

#[test]
fn another_order_is_told_where_order_decides() {
    for (first, expected) in [
        (
            "-A KUBE-POSTROUTING -m mark",
            "changed  IPv4  the rules of nat KUBE-POSTROUTING stand in another order",
        ),
        (
            "-A KUBE-POSTROUTING -j MARK",
            "changed  IPv4  the rules of nat KUBE-POSTROUTING stand in another order",
        ),
        (
            "-A KUBE-FORWARD -m conntrack --ctstate INVALID",
            "changed  IPv4  the rules of filter KUBE-FORWARD stand in another order",
        ),
        (
            "-A KUBE-SVC-6O7CPDCPFEWSTBLM -m comment --comment \"matrix/cluster-ip:http -> 10.244.1.10",
            "changed  IPv4  matrix/cluster-ip:http: the rules of nat KUBE-SVC-6O7CPDCPFEWSTBLM stand in another order",
        ),
    ] {
        assert_eq!(damaged(|text| exchanged(text, first)), [expected]);
    }
}

#[test]
fn services_may_stand_in_any_order_but_not_the_rules_of_one() {
    let of_two_services = damaged(|text| exchanged(text, "-A KUBE-SERVICES -d 10.96.1.29/32"));
    assert_eq!(of_two_services, [""; 0]);
    let of_one = damaged(|text| exchanged(text, "-A KUBE-SERVICES -d 10.96.1.23/32"));
    assert_eq!(
        of_one,
        [
            "changed  IPv4  matrix/affinity-local:http: the rules of nat KUBE-SERVICES stand in another order"
        ]
    );
    let jumps = damaged(|text| exchanged(text, "-A FORWARD -m conntrack"));
    assert_eq!(jumps, [""; 0]);
}

#[test]
fn rules_of_others_inside_are_told_and_outside_are_not() {
    let inside = damaged(|text| with_nat(text, "-A KUBE-SERVICES -d 10.96.1.1/32 -j ACCEPT"));
    assert_eq!(
        inside.len(),
        2,
        "the rule, and that NodePorts are no longer last: {inside:#?}"
    );
    assert!(
        inside.iter().any(|line| line.starts_with("foreign")),
        "{inside:#?}"
    );
    let outside = damaged(|text| {
        let text = with_nat(
            text,
            ":CNI-0 - [0:0]\n-A CNI-0 -j MASQUERADE\n-A POSTROUTING -s 10.244.0.0/16 -j CNI-0\n\
             :KUBE-KUBELET-CANARY - [0:0]",
        );
        text.replace("[0:0]", "[12:3456]")
    });
    assert_eq!(outside, [""; 0]);
}

#[test]
fn a_missing_jump_and_a_wrong_mark_are_told() {
    let jump = damaged(|text| {
        without(
            text,
            "-A FORWARD -m comment --comment \"kubernetes forwarding rules\"",
        )
    });
    assert_eq!(
        jump,
        [
            "missing  IPv4  the jump to KUBE-FORWARD is called for but the node has no rule for it in filter FORWARD"
        ]
    );
    let mark = damaged(|text| text.replace("0x4000", "0x8000"));
    assert_eq!(mark.len(), 4, "{mark:#?}");
    assert!(
        mark.iter().all(|line| line.starts_with("changed")),
        "{mark:#?}"
    );
}

#[test]
fn a_node_without_kube_proxy_is_told_in_one_line() {
    let found = damaged(|_| "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n".to_owned());
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("none of kube-proxy's chains"));
}

/// Whatever single rule is gone, something is told; and of what is too much as well.
#[test]
fn no_single_rule_goes_unnoticed() {
    let goldens = goldens("iptables");
    for golden in [&goldens[0], &goldens[7]] {
        let proxiers = golden.proxiers();
        let text = iptables(&proxiers);
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines
            .iter()
            .enumerate()
            .filter(|(_, line)| line.starts_with("-A"))
        {
            let mut damaged = lines.clone();
            damaged.remove(index);
            let found = compare(&proxiers, &damaged.join("\n"));
            assert!(!found.is_empty(), "without {line}");
            let is_missing =
                |difference: &Difference| matches!(difference.kind, Kind::Missing | Kind::Changed);
            assert!(found.iter().any(is_missing), "without {line}: {found:#?}");
            let mut damaged = lines.clone();
            damaged.insert(index, line);
            assert!(
                !compare(&proxiers, &damaged.join("\n")).is_empty(),
                "twice {line}"
            );
        }
    }
}
