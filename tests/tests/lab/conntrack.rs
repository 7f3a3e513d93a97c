//! Connections as real programs make them and as operators see them: `conntrack` on our dataplane against the kernel's
//! own, DNS, path MTU discovery, long datagrams, a session that outlives its neighbours.

use super::{Lab, lab, stderr, stdout};
use serde_json::Value;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

impl Lab {
    fn conntrack(&self, node: &str, arguments: &[&str]) -> std::process::Output {
        lab(&[&["conntrack", "--lab", &self.0, node], arguments].concat())
    }
}

/// A line of `conntrack` without what differs from run to run: seconds left, ports that are chosen at random; and
/// kube-proxy's timeout of ESTABLISHED, which rules alone do not set.
fn without_chance(line: &str) -> String {
    let is_wellknown = |port: &str| matches!(port, "7" | "80" | "7007" | "30080");
    let place = match line.split_whitespace().next() {
        Some("ipv4" | "ipv6") => 4,
        Some("[NEW]" | "[UPDATE]" | "[DESTROY]") => 3,
        _ => 2,
    };
    let is_timeout = |nth| nth == place && (place != 3 || line.contains("ESTABLISHED"));
    let word = |(nth, word): (usize, &str)| match word.split_once('=') {
        Some(("sport" | "dport", port)) if !is_wellknown(port) => "PORT".to_owned(),
        None if word.parse::<u32>().is_ok() && is_timeout(nth) => "SECONDS".to_owned(),
        _ => word.to_owned(),
    };
    let words: Vec<String> = line.split_whitespace().enumerate().map(word).collect();
    words.join(" ")
}

/// What `conntrack` says after the same requests: the list, the deletion of UDP, what one connection's events begin with.
fn asked(name: &str, dataplane: &str) -> Vec<String> {
    let (of_test, _) = Lab::up(name, "quickstart", &["--dataplane", dataplane]);
    assert!(of_test.conntrack("node-a", &["-F"]).status.success());
    of_test.sh("client", "curl -s -o /dev/null http://203.0.113.10/");
    of_test.sh(
        "pod/default/client",
        "curl -s -o /dev/null http://10.96.0.10/",
    );
    let ask = |bytes: &[u8]| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(bytes, "10.96.0.20:7")?;
        socket.recv(&mut [0; 100])
    };
    let pod = of_test.namespace("default-client");
    assert!(pod.run(|| ask(b"hello")).is_ok());
    let mut said = Vec::new();
    for filters in [
        &["-L", "-d", "203.0.113.10"][..],
        &[
            "-L",
            "-p",
            "tcp",
            "--dport",
            "80",
            "-d",
            "10.96.0.10",
            "-o",
            "extended",
        ],
        &["-L", "-p", "udp", "--orig-dst", "10.96.0.20"],
        &["-L", "-p", "tcp", "--src-nat"],
        &[
            "-L",
            "-p",
            "tcp",
            "--state",
            "TIME_WAIT",
            "-u",
            "ASSURED",
            "-f",
            "ipv4",
        ],
        &["-D", "-p", "udp", "-d", "10.96.0.20"],
        &["-D", "-p", "udp", "-d", "10.96.0.20"],
        &["-L", "-p", "tcp", "--state", "NO_SUCH_STATE"],
        &["-L", "--sport", "5"],
        &["-L", "-f", "ipv4", "-s", "fd00::1"],
        &["-L", "-e", "NEW"],
        // What is about all of them takes no filter, and leaves them all where they are.
        &["-F", "-p", "tcp"],
        &["-C", "-p", "tcp"],
        &["-L", "-p", "tcp", "-d", "203.0.113.10"],
        &[
            "-G", "-p", "udp", "-s", "1.2.3.4", "-d", "1.2.3.5", "--sport", "1", "--dport", "2",
        ],
    ] {
        let output = of_test.conntrack("node-a", filters);
        let mut lines: Vec<String> = stdout(&output).lines().map(without_chance).collect();
        lines.sort();
        said.push(format!("{filters:?} exits {:?}", output.status.code()));
        // The endpoint is chosen at random too.
        said.extend(lines.iter().map(|line| {
            line.replace("10.244.1.10 ", "WEB ")
                .replace("10.244.2.10 ", "WEB ")
        }));
    }
    said.extend(events(&of_test));
    said
}

/// The first three events of a connection from outside.
fn events(of_test: &Lab) -> Vec<String> {
    let mut command = Command::new(super::program());
    command.args([
        "conntrack",
        "--lab",
        &of_test.0,
        "node-a",
        "-E",
        "-p",
        "tcp",
        "-d",
        "203.0.113.10",
    ]);
    let mut listener = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    // Whoever listens says nothing before the first event.
    std::thread::sleep(Duration::from_millis(500));
    of_test.sh("client", "curl -s -o /dev/null http://203.0.113.10/");
    let events = lines.take(3).map(|line| without_chance(&line.unwrap()));
    let events = events
        .map(|line| {
            line.replace("10.244.1.10 ", "WEB ")
                .replace("10.244.2.10 ", "WEB ")
        })
        .collect();
    listener.kill().unwrap();
    listener.wait().unwrap();
    events
}

/// Field by field what the kernel's `conntrack` says after the same requests, with the same exit codes.
#[test]
fn root_conntrack_says_what_the_kernel_says() {
    let ours = asked("t-conntrack", "penstock");
    let kernels = asked("t-kernel-conntrack", "iptables");
    assert_eq!(ours, kernels);
    assert!(
        ours.iter().any(|line| line.contains("TIME_WAIT")),
        "{ours:?}"
    );
}

#[test]
fn root_conntrack_counts_and_shows_who_uses_what() {
    let (of_test, _) = Lab::up("t-usage", "quickstart", &[]);
    of_test.sh("client", "curl -s -o /dev/null http://203.0.113.10/");
    let json = |arguments: &[&str]| -> Value {
        let output = of_test.conntrack("node-a", arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let entries = json(&["-L", "-d", "203.0.113.10", "-o", "json"]);
    let entry = &entries.as_array().unwrap()[0];
    assert_eq!(entry["service"], "default/web:http");
    assert_eq!(entry["original"]["destination"], "203.0.113.10");
    let snat = &json(&["--top", "snat", "-o", "json"])["rows"][0];
    assert_eq!(
        (&snat["name"], &snat["protocol"]),
        (&"172.18.0.2".into(), &"tcp".into())
    );
    let used = snat["connections"].as_u64().unwrap();
    let all = snat["free"].as_u64().unwrap() + used;
    assert!(
        (64_000..=64_512).contains(&all),
        "all but the node's own: {all}"
    );
    let services = json(&["--top", "service", "-o", "json"]);
    assert_eq!(services["rows"][0]["name"], "default/web:http");
    let statistics = of_test.conntrack("node-a", &["-S"]);
    assert!(
        stdout(&statistics).starts_with("cpu=0   \tfound="),
        "{statistics:?}"
    );
    let count: usize = stdout(&of_test.conntrack("node-a", &["-C"]))
        .trim()
        .parse()
        .unwrap();
    assert!(count >= entries.as_array().unwrap().len());
    let flushed = of_test.conntrack("node-a", &["-F"]);
    assert!(flushed.status.success());
    assert_eq!(stdout(&of_test.conntrack("node-a", &["-C"])).trim(), "0");
}

const DNS: &str = "
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: default}
spec:
  clusterIP: 10.96.0.53
  clusterIPs: [10.96.0.53]
  ipFamilies: [IPv4]
  selector: {app: echo}
  ports: [{name: dns, protocol: UDP, port: 53, targetPort: 5353}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, namespace: default, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: dns, protocol: UDP, port: 5353}]
endpoints: [{addresses: [10.244.2.20], conditions: {ready: true}, nodeName: node-b, targetRef: {kind: Pod, namespace: default, name: echo-1}}]
";

/// The port of the server that was just ended.
fn bind_dns() -> io::Result<UdpSocket> {
    for _ in 0..100 {
        if let Ok(socket) = UdpSocket::bind("10.244.2.20:5353") {
            socket.set_read_timeout(Some(Duration::from_secs(60)))?;
            return Ok(socket);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    UdpSocket::bind("10.244.2.20:5353")
}

/// Answers every query for an address with 192.0.2.1 or 2001:db8::1, until the socket is quiet for long.
fn answer_dns(socket: &UdpSocket) -> io::Result<()> {
    let mut query = [0; 512];
    loop {
        let (length, client) = socket.recv_from(&mut query)?;
        if length < 17 {
            // The lab's own question whether the Service works.
            socket.send_to(&query[..length], client)?;
            continue;
        }
        let name_end = 12
            + query[12..length]
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(0)
            + 1;
        let is_v6 = query[name_end + 1] == 28;
        let mut answer = query[..name_end + 4].to_vec();
        answer[2..12].copy_from_slice(&[0x84, 0, 0, 1, 0, 1, 0, 0, 0, 0]);
        answer.extend([0xc0, 12, 0, query[name_end + 1], 0, 1, 0, 0, 0, 60]);
        if is_v6 {
            answer.extend([
                0, 16, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            ]);
        } else {
            answer.extend([0, 4, 192, 0, 2, 1]);
        }
        socket.send_to(&answer, client)?;
    }
}

/// A query for A (1) or AAAA (28) of `example.com`.
fn dns_query(identifier: u16, kind: u8) -> Vec<u8> {
    let mut query = identifier.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    query.extend(b"\x07example\x03com\x00");
    query.extend([0, kind, 0, 1]);
    query
}

/// 10,000 queries by dig, and pairs of A and AAAA at once from one socket, as resolvers ask: none is lost.
///
/// One dig at each of four hosts: it sets SO_REUSEPORT before it binds to port 0, so that two of one host now and then
/// share a port, and one has the other's answer, with any dataplane.
#[test]
fn root_dns_without_a_loss() {
    dns("t-dns", "penstock");
}

#[test]
fn root_dns_on_the_kernel() {
    dns("t-k-dns", "iptables");
}

fn dns(name: &str, dataplane: &str) {
    const HOSTS: [&str; 4] = [
        "pod/default/client",
        "pod/default/web-1",
        "pod/default/web-2",
        "node/node-a",
    ];
    const ROUNDS: u16 = 5000;
    let (of_test, _) = Lab::up(name, "quickstart", &["--dataplane", dataplane]);
    let objects = std::env::temp_dir().join(format!("{name}-{}.yaml", std::process::id()));
    let questions = objects.with_extension("queries");
    std::fs::write(&objects, DNS).unwrap();
    std::fs::write(&questions, "example.com A\nexample.com AAAA\n".repeat(1250)).unwrap();
    let applied = lab(&["apply", "--lab", name, "-f", objects.to_str().unwrap()]);
    assert!(applied.status.success(), "{}", stderr(&applied));
    // The pod's own server only echoes.
    let kill = format!("for pid in $(ip netns pids {name}.default-echo-1); do kill $pid; done");
    let killed = Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert!(killed.success());
    let server = of_test.namespace("echo-1").run(bind_dns).unwrap();
    std::thread::spawn(move || answer_dns(&server));
    let dig = "dig @10.96.0.53 +short +tries=1 +timeout=5";
    // Before ten thousand fail one after the other.
    let first = of_test.sh(HOSTS[0], &format!("{dig} example.com A"));
    assert_eq!(first, "192.0.2.1\n");
    let all = format!("{dig} -f {}", questions.display());
    let answers = std::thread::scope(|scope| {
        let digs = HOSTS.map(|host| scope.spawn(|| of_test.sh(host, &all)));
        digs.map(|dig| dig.join().unwrap()).concat()
    });
    let count = |address| answers.lines().filter(|line| *line == address).count();
    assert_eq!((count("192.0.2.1"), count("2001:db8::1")), (5000, 5000));
    let pairs = || {
        for round in 0..ROUNDS {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.connect("10.96.0.53:53")?;
            socket.send(&dns_query(2 * round, 1))?;
            socket.send(&dns_query(2 * round + 1, 28))?;
            let mut answered = [0; 2];
            for identifier in &mut answered {
                let mut answer = [0; 512];
                assert!(socket.recv(&mut answer)? > 40);
                *identifier = u16::from_be_bytes([answer[0], answer[1]]);
            }
            answered.sort_unstable();
            assert_eq!(answered, [2 * round, 2 * round + 1]);
        }
        Ok(())
    };
    of_test.namespace("default-client").run(pairs).unwrap();
    let _ = std::fs::remove_file(objects);
    let _ = std::fs::remove_file(questions);
}

/// A transfer over a path whose MTU is smaller behind the node, both ways and both families; what is larger than any
/// MTU comes through in fragments, both ways.
#[test]
fn root_smaller_mtu_behind_the_node_and_long_datagrams() {
    let (of_test, _) = Lab::up("t-mtu", "streams", &[]);
    for address in ["203.0.113.30", "2001:db8::30"] {
        for direction in ["", "--reverse"] {
            let iperf = format!("iperf3 -J -u -l 4000 -b 4M -t 1 {direction} -c {address}");
            let result: Value = serde_json::from_str(&of_test.sh("client", &iperf)).unwrap();
            let sum = &result["end"]["sum"];
            assert!(
                sum["packets"].as_u64() > Some(50),
                "{address} {direction}: {sum}"
            );
            assert_eq!(sum["lost_packets"], 0, "{address} {direction}: {sum}");
        }
    }
    of_test.sh(
        "node/node-a",
        "ip route change 198.51.100.10 dev eth0 mtu lock 1200",
    );
    of_test.sh(
        "node/node-a",
        "ip -6 route change 2001:db8:ffff::10 dev eth0 mtu 1290",
    );
    let make = "head -c 1000000 /dev/urandom | tee /run/penstock/t-mtu/pods/default-files/html/file | sha256sum";
    let made = of_test.sh("pod/default/files", make);
    for address in ["203.0.113.31", "[2001:db8::31]"] {
        let get = format!("curl -s -m 20 http://{address}/file | sha256sum");
        assert_eq!(of_test.sh("client", &get), made, "{address}");
    }
    let learnt = of_test.sh(
        "pod/default/files",
        "ip route get 172.18.0.2; ip -6 route get fd00:18::2",
    );
    assert!(
        learnt.contains("mtu 1200") && learnt.contains("mtu 1290"),
        "{learnt}"
    );
    let pods =
        "for link in $(ip -br link | grep -o '^pod[^@]*'); do ip link set $link mtu 1280; done";
    of_test.sh("node/node-b", pods);
    for address in ["203.0.113.30", "2001:db8::30"] {
        let iperf = format!("iperf3 -J -t 1 -c {address}");
        let result: Value = serde_json::from_str(&of_test.sh("client", &iperf)).unwrap();
        let received = result["end"]["sum_received"]["bytes"].as_u64();
        assert!(received > Some(1_000_000), "{address}: {received:?}");
    }
}

/// A long session stays with its endpoint while that one stops being ready, and others come and go.
#[test]
fn root_a_session_outlives_changes_of_endpoints() {
    let (of_test, _) = Lab::up("t-session", "quickstart", &[]);
    let snapshot =
        std::fs::read_to_string(super::project().join("labs/quickstart/snapshot.yaml")).unwrap();
    let slice = snapshot
        .split("---")
        .find(|object| object.contains("name: web-x7k2p"))
        .unwrap();
    let objects = std::env::temp_dir().join(format!("t-session-{}.yaml", std::process::id()));
    let client = of_test.namespace(".client");
    let connect = || {
        TcpStream::connect(
            "203.0.113.10:80"
                .parse::<SocketAddr>()
                .map_err(io::Error::other)?,
        )
    };
    let mut session = client.run(connect).unwrap();
    session
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let first = answer_of(&mut session);
    for change in 0..6 {
        let mut changed = slice.to_owned();
        if change % 2 == 0 {
            // Whoever serves the session takes no new connections.
            let address = if first.contains("web-1") {
                "10.244.1.10"
            } else {
                "10.244.2.10"
            };
            let (before, after) = changed.split_once(&format!("[{address}]")).unwrap();
            changed = format!(
                "{before}[{address}]{}",
                after.replacen("ready: true", "ready: false", 1)
            );
            assert_ne!(changed, slice);
        }
        std::fs::write(&objects, changed).unwrap();
        let applied = lab(&[
            "apply",
            "--lab",
            "t-session",
            "-f",
            objects.to_str().unwrap(),
        ]);
        assert!(applied.status.success(), "{}", stderr(&applied));
        assert_eq!(answer_of(&mut session), first, "after change {change}");
    }
    let _ = std::fs::remove_file(objects);
}

/// One request on a connection that stays open.
fn answer_of(session: &mut TcpStream) -> String {
    session
        .write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    while !answer.contains("on node-") {
        let mut bytes = [0; 1000];
        let length = session.read(&mut bytes).unwrap();
        assert!(length > 0, "closed after {answer:?}");
        answer.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
    }
    answer.lines().last().unwrap().to_owned()
}
