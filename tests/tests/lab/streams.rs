//! Long streams through the dataplane: large files by their hash, iperf3, both families, offloads on and off.

use super::{Lab, is_alive, lab, leftovers, pids, stderr, stdout};
use dataplane::sys::netns::cookie;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const FILE_BYTES: usize = 100_000_000;

fn iperf(lab: &Lab, address: &str, more: &[&str]) -> Value {
    let command = ["iperf3", "--json", "--client", address];
    let output = lab.exec("client", &[&command[..], more].concat());
    let text = stdout(&output);
    assert!(output.status.success(), "{address} {more:?}: {text}");
    serde_json::from_str(&text).unwrap()
}

fn streams(name: &str, more: &[&str]) {
    let (streams, _) = Lab::up(name, "streams", more);
    let file = format!("/run/penstock/{name}/pods/default-files/html/big");
    let make = format!("head -c {FILE_BYTES} /dev/urandom | tee {file} | sha256sum");
    let made = stdout(&Command::new("sh").args(["-c", &make]).output().unwrap());
    for address in ["203.0.113.31", "[2001:db8::31]"] {
        let get = format!("curl -s -m 60 http://{address}/big | sha256sum");
        let got = streams.exec("client", &["sh", "-c", &get]);
        assert_eq!(stdout(&got), made, "{address} {more:?}");
    }
    for address in ["203.0.113.30", "2001:db8::30"] {
        let amount = ["--bytes", "100M"];
        for direction in [&amount[..], &[&amount[..], &["--reverse"]].concat()] {
            let tcp = iperf(&streams, address, direction);
            let bytes = tcp["end"]["sum_received"]["bytes"].as_u64();
            // What is still in sockets when the sender is done does not count.
            assert!(
                bytes >= Some(50_000_000),
                "{address} {direction:?}: {bytes:?}"
            );
        }
        let some = ["--udp", "--bitrate", "20M", "--blockcount", "3000"];
        let udp = iperf(&streams, address, &some);
        let sum = &udp["end"]["sum"];
        assert!(sum["packets"].as_u64() >= Some(3000), "{address}: {sum}");
        assert!(
            sum["lost_percent"].as_f64() < Some(50.0),
            "{address}: {sum}"
        );
    }
    drop(streams);
    assert_eq!(leftovers(name), Vec::<String>::new());
}

#[test]
fn root_streams_with_offloads() {
    streams("t-streams", &[]);
}

#[test]
fn root_streams_without_offloads() {
    streams("t-plain-streams", &["--no-offload"]);
}

#[test]
fn root_streams_on_the_kernel() {
    streams("t-k-streams", &["--dataplane", "iptables"]);
}

/// Of a packet of a tunnel the kernel owes the checksum of the packet inside: a node that takes it for the outer one's
/// loses nearly all of them.
#[test]
fn root_a_tunnel_between_pods_carries_a_large_file() {
    let name = "t-tunnel";
    let (streams, _) = Lab::up(name, "streams", &[]);
    let ends = [("pod/default/client", 1), ("pod/default/files", 2)];
    let address = |pod: &str| {
        let shown = streams.sh(pod, "ip -4 -o address show scope global");
        let address = shown.split_whitespace().nth(3).unwrap();
        address.split('/').next().unwrap().to_owned()
    };
    let [own, remote] = ends.map(|(pod, _)| address(pod));
    for ((pod, last), local, remote) in [(ends[0], &own, &remote), (ends[1], &remote, &own)] {
        let kind = format!("vxlan id 42 dstport 4789 local {local} remote {remote}");
        streams.sh(pod, &format!("ip link add tunnel type {kind}"));
        streams.sh(
            pod,
            &format!("ip address add 192.168.77.{last}/24 dev tunnel"),
        );
        streams.sh(pod, "ip link set tunnel up");
    }
    let file = format!("/run/penstock/{name}/pods/default-files/html/big");
    let make = format!("head -c 50000000 /dev/urandom | tee {file} | sha256sum");
    let made = stdout(&Command::new("sh").args(["-c", &make]).output().unwrap());
    let got = streams.sh(
        ends[0].0,
        "curl -s -m 60 http://192.168.77.2/big | sha256sum",
    );
    assert_eq!(got, made);
    for node in ["node-a", "node-b"] {
        let socket = format!("/run/penstock/{name}/{node}.sock");
        let status = control::agent::socket::ask(Path::new(&socket)).unwrap();
        assert_eq!(status.packets.send_failures, 0, "{node}");
        assert!(status.packets.passed > 1000, "{node}");
    }
}

/// All processes of a lab die, agents too: `down --all` leaves nothing of it, and `up` begins anew.
#[test]
fn root_a_lab_whose_agents_were_killed_goes_down_and_comes_up_again() {
    let name = "t-agents";
    let (first, _) = Lab::up(name, "quickstart", &[]);
    let killed = pids(name);
    assert_eq!(killed.len(), 5, "two agents, two nginx and the echo");
    for pid in &killed {
        let kill = Command::new("kill").args(["-9", &pid.to_string()]).status();
        assert!(kill.unwrap().success());
    }
    let (again, _) = Lab::up(name, "quickstart", &[]);
    let check = lab(&["check", name]);
    assert_eq!(check.status.code(), Some(0), "{}", stderr(&check));
    for pid in pids(name) {
        let kill = Command::new("kill").args(["-9", &pid.to_string()]).status();
        assert!(kill.unwrap().success());
    }
    let cookie = again.namespace("node-a").run(cookie).unwrap();
    let former_sysctls = format!("/run/penstock/sysctls/{cookie}");
    assert!(Path::new(&former_sysctls).exists(), "{former_sysctls}");
    drop(again);
    assert_eq!(leftovers(name), Vec::<String>::new());
    assert!(!Path::new(&former_sysctls).exists());
    assert!(!killed.into_iter().any(is_alive));
    drop(first);
}
