//! `penstock node` on links that somebody else made: namespaces by hand, no lab. Needs root.

#![expect(clippy::unwrap_used, reason = "a test may")]

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A client, a node, and two pods on it; the network of a pod is a veth or a port of a bridge. A pod sends everything
/// to the node: what two ports of a bridge say to each other the node would not see.
struct Network {
    prefix: &'static str,
}

/// Names of the namespaces behind the prefix.
const HOSTS: [&str; 4] = ["client", "node", "pod1", "pod2"];

impl Drop for Network {
    fn drop(&mut self) {
        for host in HOSTS {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name(host)])
                .status();
        }
    }
}

impl Network {
    fn name(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn sh(&self, host: &str, script: &str) -> String {
        let name = self.name(host);
        let arguments = ["netns", "exec", &name, "sh", "-ec", script];
        let output = Command::new("ip").args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{host}: {script}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// `pods` is run in the node's namespace, with `azv1` and `azv2` leading to the pods.
    fn build(prefix: &'static str, pods: &str) -> Self {
        let network = Self { prefix };
        let name = |host: &str| network.name(host);
        for host in HOSTS {
            let added = Command::new("ip")
                .args(["netns", "add", &name(host)])
                .status();
            assert!(added.unwrap().success());
            network.sh(host, "ip link set lo up");
        }
        let veth = |host: &str, own: &str| {
            let peer = name(host);
            let script = format!(
                "ip link add {own} type veth peer name eth0 netns {peer}; ip link set {own} up"
            );
            network.sh("node", &script);
        };
        veth("client", "up0");
        veth("pod1", "azv1");
        veth("pod2", "azv2");
        let node = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
            ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8:1::1/64 dev up0 nodad";
        network.sh("node", &format!("{node}\n{pods}"));
        network.sh(
            "client",
            "ip addr add 192.0.2.9/24 dev eth0; ip addr add 2001:db8:1::9/64 dev eth0 nodad
            ip link set eth0 up
            ip route add 10.244.0.0/24 via 192.0.2.1; ip route add fd00:244::/64 via 2001:db8:1::1
            ip route add 203.0.113.1 via 192.0.2.1; ip route add 2001:db8:2::1 via 2001:db8:1::1",
        );
        for host in [1, 2] {
            let script = format!(
                "ip addr add 10.244.0.1{host}/32 dev eth0; ip addr add fd00:244::1{host}/128 dev eth0 nodad
                ip link set eth0 up
                ip route add default via 10.244.0.1 dev eth0 onlink
                ip route add default via fd00:244::1 dev eth0 onlink"
            );
            network.sh(&format!("pod{host}"), &script);
        }
        network
    }

    /// What routing there is in the node: rules, routes, links, settings; without link-local addresses, which come late.
    fn routing(&self) -> Vec<String> {
        let text = self.sh(
            "node",
            "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip -br link
            sysctl -a 2>/dev/null | grep -E 'rp_filter|accept_local|localnet|redirects|forward'",
        );
        let lines = text.lines().filter(|line| !line.contains("fe80::"));
        lines.map(str::to_owned).collect()
    }

    /// The built-in server of labs in each pod.
    fn serve(&self) -> Vec<Running> {
        let serve = |pod: &str| {
            let server = Command::new("ip")
                .args(["netns", "exec", &self.name(pod)])
                .arg(program("penstock-lab"))
                .args([
                    "serve",
                    "--http",
                    "8080",
                    "--pod",
                    &format!("default/{pod}"),
                ])
                .spawn();
            let waiting = "for i in $(seq 200); do
                    if curl -s http://127.0.0.1:8080/; then exit 0; fi; sleep 0.02
                done; exit 1";
            let server = Running(server.unwrap());
            self.sh(pod, waiting);
            server
        };
        vec![serve("pod1"), serve("pod2")]
    }

    /// A process that has printed its first line.
    fn start(&self, host: &str, command: &[&str]) -> Running {
        let child = Command::new("ip")
            .args(["netns", "exec", &self.name(host)])
            .args(command)
            .stdout(Stdio::piped())
            .spawn();
        let mut running = Running(child.unwrap());
        let mut line = String::new();
        let stdout = running.0.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        running
    }

    fn agent(&self, config: &str, more: &[&str]) -> Running {
        let program = program("penstock");
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node"));
        let (objects, config) = (folder.join("objects.yaml"), folder.join(config));
        let socket = format!("/run/{}.sock", self.prefix);
        let command = [
            program.to_str().unwrap(),
            "node",
            "--snapshot",
            objects.to_str().unwrap(),
            "--config",
            config.to_str().unwrap(),
            "--node",
            "solo",
            "--uplink",
            "up0",
            "--pods",
            "azv+",
            "cbr0",
            "--control-socket",
            &socket,
        ];
        self.start("node", &[&command, more].concat())
    }

    /// Asks `to` from `host` so often that both pods answer; pods, and the addresses that they saw.
    fn answers(&self, host: &str, to: &str) -> Vec<(String, String)> {
        let urls = format!("http://{to}/ ").repeat(24);
        let curl = format!("curl -gs -m 8 -H 'connection: close' -w '\\n' {urls}");
        let text = self.sh(host, &curl);
        let answer = |line: &str| {
            let facts: Value = serde_json::from_str(line).unwrap();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&facts["pod"]), text(&facts["peer"]["address"]))
        };
        let answers: Vec<_> = text
            .lines()
            .filter(|line| !line.is_empty())
            .map(answer)
            .collect();
        assert_eq!(answers.len(), 24, "{host} to {to}: {text}");
        for pod in ["pod1", "pod2"] {
            let mut all = answers.iter();
            assert!(all.any(|(by, _)| by == pod), "{host} to {to}: {text}");
        }
        answers
    }
}

fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().join(name)
}

struct Running(Child);

impl Running {
    fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        let killed = Command::new("kill").args([signal, &pid]).status();
        assert!(killed.unwrap().success());
    }

    fn end(mut self, signal: &str) -> std::process::ExitStatus {
        self.signal(signal);
        self.0.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const VETHS: &str = "for i in 1 2; do
        ip addr add 10.244.0.1/32 dev azv$i; ip addr add fd00:244::1/128 dev azv$i nodad
        ip route add 10.244.0.1$i dev azv$i; ip route add fd00:244::1$i dev azv$i
    done";
const BRIDGE: &str = "ip link add cbr0 type bridge; ip link set cbr0 up
    ip addr add 10.244.0.1/24 dev cbr0; ip addr add fd00:244::1/64 dev cbr0 nodad
    for i in 1 2; do ip link set azv$i master cbr0; done";

/// From everywhere to everything, in both families; then SIGTERM puts all back.
fn works_and_leaves(network: &Network, config: &str) {
    let _servers = network.serve();
    let before = network.routing();
    let agent = network.agent(config, &[]);
    assert_ne!(network.routing(), before);
    for (virtual_ip, cluster_ip, own, client) in [
        ("203.0.113.1", "10.96.0.1", "192.0.2.1", "192.0.2.9"),
        (
            "[2001:db8:2::1]",
            "[fd00:96::1]",
            "[2001:db8:1::1]",
            "2001:db8:1::9",
        ),
    ] {
        let node_port = format!("{own}:30080");
        for host in ["client", "node", "pod1"] {
            for to in [virtual_ip, &node_port] {
                let answers = network.answers(host, to);
                // externalTrafficPolicy is Cluster: the client's address is masqueraded.
                assert!(
                    answers.iter().all(|(_, peer)| peer != client),
                    "{to}: {answers:?}"
                );
            }
        }
        for host in ["node", "pod1", "pod2"] {
            let answers = network.answers(host, cluster_ip);
            // A pod's source stays its own, but towards itself.
            if let Some(number) = host.strip_prefix("pod") {
                for (by, peer) in &answers {
                    let is_own = peer.ends_with(&format!(":1{number}"))
                        || peer.ends_with(&format!(".1{number}"));
                    assert_eq!(is_own, by != host, "{answers:?}");
                }
            }
        }
    }
    network.answers("node", "127.0.0.1:30080");
    network.sh(
        "client",
        "ping -c 1 -W 2 192.0.2.1; ping -c 1 -W 2 2001:db8:1::1",
    );
    network.sh(
        "pod1",
        "ping -c 1 -W 2 192.0.2.9; ping -c 1 -W 2 2001:db8:1::9",
    );

    // A second agent in the place of one that was killed finds rules of it, and clears them.
    assert!(!agent.end("-KILL").success());
    let agent = network.agent(config, &[]);
    network.answers("client", "203.0.113.1");
    assert!(agent.end("-TERM").success());
    assert_eq!(network.routing(), before);
}

#[test]
fn root_a_node_with_a_link_per_pod() {
    let network = Network::build("pen-veth", VETHS);
    works_and_leaves(&network, "prefix.yaml");
    works_and_leaves(&network, "cidr.yaml");
}

#[test]
fn root_a_node_with_a_bridge_for_pods() {
    let network = Network::build("pen-bridge", BRIDGE);
    works_and_leaves(&network, "bridge.yaml");
    works_and_leaves(&network, "node-cidr.yaml");
}

/// Who has as many connections as a source may have gets no more; others do.
#[test]
fn root_a_source_has_a_limit_of_connections() {
    let network = Network::build("pen-limit", VETHS);
    let _servers = network.serve();
    let _agent = network.agent("prefix.yaml", &["--connections-per-source", "3"]);
    let five = "for i in 1 2 3 4 5; do
            if curl -s -m 1 -o /dev/null http://203.0.113.1/; then echo answered; else echo not; fi
        done";
    assert_eq!(
        network.sh("client", five),
        "answered\nanswered\nanswered\nnot\nnot\n"
    );
    let other = "curl -s -m 5 -o /dev/null http://203.0.113.1/ && echo answered";
    assert_eq!(network.sh("pod1", other), "answered\n");
}

/// With `--accounting` packets and bytes are those that the client's own kernel counts.
#[test]
fn root_packets_and_bytes_are_counted() {
    let network = Network::build("pen-count", VETHS);
    let _servers = network.serve();
    let _agent = network.agent("prefix.yaml", &["--accounting"]);
    let count = "nft 'add table ip t; add chain ip t c { type filter hook output priority 0; }; add rule ip t c ct state new accept'
        sysctl -qw net.netfilter.nf_conntrack_acct=1
        curl -s -m 5 -o /dev/null http://203.0.113.1/
        conntrack -L -p tcp --dport 80 2>/dev/null";
    let of_the_kernel = network.sh("client", count);
    let program = program("penstock").display().to_string();
    let list = format!(
        "{program} conntrack -L --node solo --control-socket /run/pen-count.sock -p tcp --dport 80"
    );
    let ours = network.sh("node", &list);
    let counts = |line: &str| {
        let words = line.split(' ').map(str::to_owned);
        words
            .filter(|word| word.starts_with("packets=") || word.starts_with("bytes="))
            .collect::<Vec<_>>()
    };
    assert_eq!(counts(&of_the_kernel).len(), 4, "{of_the_kernel}");
    assert_eq!(
        counts(&ours),
        counts(&of_the_kernel),
        "{ours}{of_the_kernel}"
    );
}

/// Who takes a device down and up, or removes rules, does not end Services; a hangup ends the node as cleanly as SIGTERM.
#[test]
fn root_routing_that_others_took_away_comes_back() {
    let network = Network::build("pen-mend", VETHS);
    let _servers = network.serve();
    let before = network.routing();
    let agent = network.agent("prefix.yaml", &[]);
    network.answers("client", "203.0.113.1");
    for removal in ["ip rule del pref 700", "true"] {
        let toggled = "ip link set pen-out down; ip link set pen-out up";
        network.sh("node", &format!("{removal}; {toggled}"));
        let patient = "for i in $(seq 50); do
                if curl -s -m 1 -o /dev/null http://203.0.113.1/; then exit 0; fi; sleep 0.1
            done; exit 1";
        network.sh("client", patient);
        network.answers("client", "203.0.113.1");
    }
    assert!(agent.end("-HUP").success());
    assert_eq!(network.routing(), before);
}

/// Forwarding of a family takes other settings along when it is switched on, and again when it is switched off.
#[test]
fn root_settings_that_change_with_forwarding_are_put_back() {
    let network = Network::build("pen-forward", VETHS);
    network.sh(
        "node",
        "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0
        sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.up0.forwarding=1
        sysctl -qw net.ipv6.conf.up0.forwarding=1",
    );
    let before = network.routing();
    let agent = network.agent("prefix.yaml", &[]);
    assert_ne!(network.routing(), before);
    assert!(agent.end("-TERM").success());
    assert_eq!(network.routing(), before);
}

#[test]
fn root_a_file_where_the_control_socket_should_be_is_left_alone() {
    let network = Network::build("pen-file", VETHS);
    let file = std::env::temp_dir().join(format!("pen-file-{}", std::process::id()));
    std::fs::write(&file, "precious").unwrap();
    let arguments = ["--node", "solo", "--control-socket", file.to_str().unwrap()];
    let said = refusal(&network, 1, &arguments);
    let kept = std::fs::read_to_string(&file);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(kept.unwrap(), "precious");
    assert!(said.contains("--control-socket"), "{said}");
}

/// What an agent says that does not start; nothing is changed by then.
fn refusal(network: &Network, code: i32, arguments: &[&str]) -> String {
    let before = network.routing();
    let output = Command::new("ip")
        .args(["netns", "exec", &network.name("node")])
        .arg(program("penstock"))
        .args(["node", "--uplink", "up0", "--snapshot", "node/objects.yaml"])
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(network.routing(), before);
    said
}

#[test]
fn root_objects_that_are_wrong_change_nothing() {
    let network = Network::build("pen-wrong", VETHS);
    let said = refusal(&network, 2, &["--node", "other"]);
    assert!(said.contains("other") && said.contains("solo"), "{said}");
}

#[test]
fn root_who_asks_for_more_connections_than_there_can_be_is_told_so() {
    let network = Network::build("pen-large", VETHS);
    let arguments = ["--node", "solo", "--config", "node/too-large.yaml"];
    let said = refusal(&network, 1, &arguments);
    let field = "node/too-large.yaml: conntrack.maxPerCore: 2147483647 for each of ";
    assert!(said.contains(field), "{said}");
}
