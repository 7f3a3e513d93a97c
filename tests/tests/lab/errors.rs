//! ICMP errors about translated packets: they reach the client, and speak of what the client sent.

use super::{Lab, stdout};

/// A path that narrows behind the translation: at the node itself, or at the next one.
#[derive(Clone, Copy, Debug)]
enum Narrow {
    AtTheNode,
    AtTheNext,
}

/// Makes packets to the pod of iperf3 (on node-b) fit into 1,400 bytes only.
fn narrow(lab: &Lab, place: Narrow) {
    let (node, addresses) = match place {
        Narrow::AtTheNode => ("node/node-a", ["10.244.2.0/24", "fd00:10:244:2::/64"]),
        Narrow::AtTheNext => ("node/node-b", ["10.244.2.30", "fd00:10:244:2::30"]),
    };
    for address in addresses {
        let change = format!(
            "ip route change $(ip route show {address} | head -1 | sed 's/ mtu .*//') mtu 1400"
        );
        let change = if address.contains(':') {
            change.replace("ip route", "ip -6 route")
        } else {
            change
        };
        let changed = lab.exec(node, &["sh", "-c", &change]);
        assert!(
            changed.status.success(),
            "{change}: {}",
            super::stderr(&changed)
        );
    }
}

fn path_mtu_is_found(name: &str, place: Narrow, more: &[&str]) {
    let (lab, _) = Lab::up(name, "streams", more);
    narrow(&lab, place);
    for address in ["203.0.113.30", "2001:db8::30"] {
        let command = ["timeout", "10", "iperf3", "-n", "1M", "-c", address];
        let sent = lab.exec("client", &command);
        assert!(
            sent.status.success(),
            "{address} {place:?}: {}",
            stdout(&sent)
        );
        let route = stdout(&lab.exec("client", &["ip", "route", "get", address]));
        assert!(route.contains("mtu 1400"), "{address} {place:?}: {route}");
    }
}

#[test]
fn root_a_narrow_path_behind_the_node_is_found() {
    path_mtu_is_found("t-narrow", Narrow::AtTheNext, &[]);
}

#[test]
fn root_a_narrow_path_at_the_node_is_found() {
    path_mtu_is_found("t-narrow-node", Narrow::AtTheNode, &[]);
}

#[test]
fn root_the_kernel_finds_narrow_paths_too() {
    let more = ["--dataplane", "iptables"];
    path_mtu_is_found("t-narrow-kernel", Narrow::AtTheNext, &more);
}
