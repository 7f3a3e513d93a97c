//! Labs for real: network namespaces, servers, requests. Needs root.
//!
//! Each test names its labs so that no two tests, and no lab of the user, share one; each removes what it made,
//! also when it fails.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod conntrack;
mod errors;
mod programs;
mod streams;
mod ways;

use netlab::namespace::Namespace;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A lab that is removed when the test ends, however it ends.
struct Lab(String);

impl Drop for Lab {
    fn drop(&mut self) {
        let output = lab(&["down", &self.0]);
        if !std::thread::panicking() {
            assert!(output.status.success(), "{}", stderr(&output));
        }
    }
}

impl Lab {
    /// Brings up `source` under the test's own name.
    fn up(name: &str, source: &str, more: &[&str]) -> (Self, Value) {
        let lab_of_test = Self(name.to_owned());
        let mut arguments = vec!["up", source, "--name", name, "-o", "json"];
        arguments.extend(more);
        let output = lab(&arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        (lab_of_test, serde_json::from_slice(&output.stdout).unwrap())
    }

    fn exec(&self, host: &str, command: &[&str]) -> Output {
        let mut arguments = vec!["exec", "--lab", &self.0, host, "--"];
        arguments.extend(command);
        lab(&arguments)
    }

    /// The network namespace of the host whose name ends so.
    fn namespace(&self, ending: &str) -> Namespace {
        let names = std::fs::read_dir("/run/netns").unwrap();
        let name = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .find(|name| name.starts_with(&format!("{}.", self.0)) && name.ends_with(ending));
        Namespace::open(&name.unwrap()).unwrap()
    }

    fn sh(&self, host: &str, command: &str) -> String {
        let output = self.exec(host, &["sh", "-c", command]);
        assert!(output.status.success(), "{command}: {}", stderr(&output));
        stdout(&output)
    }
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// The binary: where `./lab test` says, else of the tests' own profile (`cargo build -p netlab -p control`).
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    // target/PROFILE/deps/lab-HASH
    let beside = own.parent().and_then(Path::parent).unwrap().to_owned();
    let folder = std::env::var_os("PENSTOCK_PROGRAMS").map_or(beside, PathBuf::from);
    folder.join("penstock-lab")
}

fn lab(arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command
        .args(arguments)
        .current_dir(project())
        .env_remove("PENSTOCK_LABS");
    command
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program().display()))
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What there is of a lab outside its own processes.
fn leftovers(name: &str) -> Vec<String> {
    let prefix = format!("{name}.");
    let namespaces = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<String> = namespaces
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|namespace| namespace.starts_with(&prefix))
        .collect();
    let folder = format!("/run/penstock/{name}");
    if Path::new(&folder).exists() {
        found.push(folder);
    }
    found
}

/// Links, routes and rules of the machine's own namespace.
fn machine() -> String {
    let ip = |arguments: &[&str]| stdout(&Command::new("ip").args(arguments).output().unwrap());
    [
        ip(&["-o", "link"]),
        ip(&["route", "show", "table", "all"]),
        ip(&["-6", "route", "show", "table", "main"]),
        ip(&["rule"]),
    ]
    .concat()
}

/// Processes whose command line names the lab's folder or pods.
fn is_alive(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

fn pids(name: &str) -> Vec<u64> {
    let output = lab(&["status", name, "-o", "json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let processes = status["processes"].as_array().unwrap();
    processes
        .iter()
        .map(|process| process["pid"].as_u64().unwrap())
        .collect()
}

fn answered(up: &Value) -> usize {
    let services = up["services"].as_array().unwrap();
    let requests = services
        .iter()
        .flat_map(|service| service["requests"].as_array().unwrap());
    requests
        .filter(|request| request["outcome"]["result"] == "answered")
        .count()
}

#[test]
fn root_plain_routing_comes_up_serves_and_leaves_nothing() {
    let before = machine();
    let (quick, up) = Lab::up("t-quick", "quickstart", &["--dataplane", "none"]);
    assert_eq!(answered(&up), 2, "{up:#}");

    let page = quick.exec("pod/default/client", &["curl", "-s", "http://10.244.2.10/"]);
    assert_eq!(stdout(&page), "web-2 on node-b\n");
    let page = quick.exec("node/node-a", &["curl", "-s", "http://10.244.1.10/"]);
    assert_eq!(stdout(&page), "web-1 on node-a\n");
    assert_eq!(
        quick.exec("client", &["sh", "-c", "exit 42"]).status.code(),
        Some(42)
    );
    assert_eq!(
        quick.exec("client", &["no-such-program"]).status.code(),
        Some(127)
    );
    // The lab has no way out, and only pods have a default route.
    let routes = quick.exec("client", &["ip", "route"]);
    assert!(
        stdout(&routes).contains("203.0.113.10 via 172.18.0.2"),
        "{}",
        stdout(&routes)
    );
    for host in ["client", "node/node-a"] {
        assert!(!stdout(&quick.exec(host, &["ip", "route"])).contains("default"));
    }

    let pids = pids("t-quick");
    assert_eq!(pids.len(), 3, "two nginx and the echo");
    drop(quick);
    assert_eq!(leftovers("t-quick"), Vec::<String>::new());
    assert!(!pids.into_iter().any(is_alive));
    assert_eq!(machine(), before);
    assert!(lab(&["down", "t-quick"]).status.success(), "twice is fine");
}

#[test]
fn root_a_lab_whose_processes_were_killed_goes_down_and_comes_up_again() {
    let (crashed, _) = Lab::up("t-crash", "quickstart", &["--dataplane", "none"]);
    let first = pids("t-crash");
    for pid in &first {
        let status = Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }
    let status = lab(&["status", "t-crash"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(stderr(&status).contains("unhealthy"), "{}", stderr(&status));

    let (again, up) = Lab::up("t-crash", "quickstart", &["--dataplane", "none"]);
    assert_eq!(answered(&up), 2);
    assert!(
        pids("t-crash")
            .iter()
            .all(|pid| is_alive(*pid) && !first.contains(pid))
    );
    for pid in pids("t-crash") {
        Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()
            .unwrap();
    }
    drop(again);
    assert_eq!(leftovers("t-crash"), Vec::<String>::new());
    drop(crashed);
}

/// `up` is killed after ever longer times: whatever it had made by then goes.
#[test]
fn root_up_that_is_killed_midway_leaves_nothing_after_down() {
    for milliseconds in [5, 20, 50, 100, 200] {
        let of_test = Lab("t-midway".to_owned());
        let arguments = [
            "up",
            "quickstart",
            "--name",
            "t-midway",
            "--dataplane",
            "none",
        ];
        let mut up = Command::new(program())
            .args(arguments)
            .current_dir(project())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        up.kill().unwrap();
        up.wait().unwrap();
        drop(of_test);
        assert_eq!(
            leftovers("t-midway"),
            Vec::<String>::new(),
            "after {milliseconds} ms"
        );
    }
}

#[test]
fn root_ctrl_c_rolls_back() {
    let of_test = Lab("t-ctrl-c".to_owned());
    let mut up = Command::new(program())
        .args([
            "up",
            "tests/fixtures/policy-matrix",
            "--name",
            "t-ctrl-c",
            "--dataplane",
            "none",
        ])
        .current_dir(project())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !Path::new("/run/netns/t-ctrl-c.client").exists() {
        assert!(
            up.try_wait().unwrap().is_none(),
            "it ended before it could be interrupted"
        );
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let pid = up.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(up.wait().unwrap().code(), Some(130));
    assert_eq!(leftovers("t-ctrl-c"), Vec::<String>::new());
    drop(of_test);
}

#[test]
fn root_every_fixture_comes_up() {
    for fixture in [
        "aks-app-routing",
        "aks-kubenet-deploy",
        "aks-kubenet-pod",
        "dual-stack",
        "iks-wordpress",
        "policy-matrix",
    ] {
        let name = format!("t-{fixture}");
        let source = format!("tests/fixtures/{fixture}");
        let (of_test, up) = Lab::up(&name, &source, &["--dataplane", "none"]);
        assert!(answered(&up) > 0, "{fixture}");
        drop(of_test);
        assert_eq!(leftovers(&name), Vec::<String>::new());
    }
}

/// Without a dataplane the client's own routes and both families can be seen to be right.
#[test]
fn root_dual_stack_pods_reach_each_other_in_both_families() {
    let (dual, _) = Lab::up(
        "t-dual",
        "tests/fixtures/dual-stack",
        &["--dataplane", "none"],
    );
    for url in [
        "http://10.244.2.10:8080/",
        "http://[fd00:10:244:2::10]:8080/",
    ] {
        let answer = dual.exec("pod/dual/p-a1", &["curl", "-s", "-m", "2", url]);
        let facts: Value = serde_json::from_slice(&answer.stdout).unwrap();
        assert_eq!(
            (&facts["pod"], &facts["node"]),
            (&"p-b1".into(), &"node-b".into())
        );
        assert!(
            ["10.244.1.10", "fd00:10:244:1::10"]
                .contains(&facts["peer"]["address"].as_str().unwrap())
        );
    }
    let routes = dual.exec("client", &["ip", "-6", "route", "get", "2001:db8::204"]);
    assert!(
        stdout(&routes).contains("via fd00:18::2"),
        "{}",
        stdout(&routes)
    );
}

#[test]
fn root_apply_adds_and_removes_pods() {
    let (quick, _) = Lab::up("t-apply", "quickstart", &["--dataplane", "none"]);
    let slice = |endpoints: &[(&str, &str, &str)]| {
        let endpoints: String = endpoints
            .iter()
            .map(|(address, node, name)| {
                format!(
                    "- addresses: [{address}]\n  nodeName: {node}\n  targetRef: {{kind: Pod, namespace: default, \
                     name: {name}}}\n"
                )
            })
            .collect();
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-x7k2p\n  labels: \
             {{kubernetes.io/service-name: web}}\naddressType: IPv4\nports:\n- {{name: http, port: 80}}\n\
             endpoints:\n{endpoints}"
        )
    };
    let file = std::env::temp_dir().join(format!("penstock-apply-{}.yaml", std::process::id()));
    let apply = |text: &str| {
        std::fs::write(&file, text).unwrap();
        lab(&["apply", "--lab", "t-apply", "-f", file.to_str().unwrap()])
    };
    let web1 = ("10.244.1.10", "node-a", "web-1");
    let web3 = ("10.244.2.30", "node-b", "web-3");
    let before = pids("t-apply");
    let output = apply(&slice(&[web1, web3]));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("- pod/default/web-2\n+ pod/default/web-3\n"),
        "{}",
        stderr(&output)
    );
    let answer = quick.exec("pod/default/client", &["curl", "-s", "http://10.244.2.30/"]);
    let facts: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(facts["pod"], "web-3");
    assert!(!Path::new("/run/netns/t-apply.default-web-2").exists());
    // web-1 was not touched.
    assert!(pids("t-apply").iter().any(|pid| before.contains(pid)));

    let refused = apply(&slice(&[("10.244.1.10", "node-z", "web-1")]));
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("node-z"), "{}", stderr(&refused));
    let answer = quick.exec("pod/default/client", &["curl", "-s", "http://10.244.1.10/"]);
    assert_eq!(stdout(&answer), "web-1 on node-a\n");
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn root_the_built_in_server_serves_and_echoes() {
    let (lab, _) = Lab::up(
        "t-serve",
        "tests/fixtures/dual-stack",
        &["--dataplane", "none"],
    );
    let script = "set -e
        url=http://10.244.2.10:8080
        head -c 3000000 /dev/zero | tr '\\0' x > \"$1\"
        curl -s --data-binary @\"$1\" $url/upload
        sha256sum < \"$1\"
        curl -s -H 'Transfer-Encoding: chunked' --data-binary @\"$1\" $url/upload
        curl -s $url/bytes/1000003 | wc -c
        curl -sI $url/bytes/77 | grep -i content-length
        curl -s $url/ $url/ -w '%{num_connects}\\n' -o /dev/null -o /dev/null
        rm \"$1\"";
    let file = format!("/tmp/penstock-serve-{}", std::process::id());
    let output = lab.exec("pod/dual/p-a1", &["bash", "-c", script, "bash", &file]);
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    let upload: Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(upload["length"], 3_000_000);
    assert_eq!(upload["sha256"].as_str(), lines[1].split(' ').next());
    assert_eq!(lines[2], lines[0], "chunks make no difference");
    assert_eq!(lines[3].trim(), "1000003");
    assert_eq!(lines[4].trim().to_lowercase(), "content-length: 77");
    assert_eq!(
        &lines[5..],
        ["1", "0"],
        "the second request has the first one's connection"
    );

    let echo = "exec 3<>/dev/udp/10.244.2.10/5353; printf 'hi there' >&3; timeout 2 head -n 1 <&3";
    let answer = lab.exec("pod/dual/p-a1", &["bash", "-c", echo]);
    let facts: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(
        (&facts["echo"], &facts["pod"]),
        (&"hi there".into(), &"p-b1".into())
    );
}

/// One clear message, the right exit code, and nothing left half made.
#[test]
fn root_bad_input_is_refused_whole() {
    let folder = std::env::temp_dir().join(format!("penstock-bad-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let node = |name: &str, address: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: 10.244.1.0/24}}\nstatus: \
             {{addresses: [{{type: InternalIP, address: {address}}}]}}\n---\n"
        )
    };
    let endpoint = |endpoint: &str| {
        format!(
            "{}apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, labels: \
             {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 80}}]\nendpoints:\n\
             - {endpoint}\n",
            node("node-a", "172.18.0.2")
        )
    };
    let no_ports = format!(
        "{}apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.1}}\n",
        node("node-a", "172.18.0.2")
    );
    let cases: [(&str, String, i32, &[&str]); 7] = [
        (
            "unreadable.yaml",
            "kind: [\n".to_owned(),
            1,
            &["unreadable.yaml:", "not readable as YAML"],
        ),
        (
            "no-ports.yaml",
            no_ports,
            1,
            &["no-ports.yaml:", "Service default/web", "ports"],
        ),
        (
            "unknown-node.yaml",
            endpoint("{addresses: [10.244.1.5], nodeName: node-b}"),
            1,
            &[
                "EndpointSlice default/web-1",
                "endpoints[0].nodeName",
                "node-b",
                "node-a",
            ],
        ),
        (
            "outside.yaml",
            endpoint(
                "{addresses: [10.9.9.9], targetRef: {kind: Pod, name: web-1, namespace: default}}",
            ),
            1,
            &[
                "EndpointSlice default/web-1",
                "endpoints[0].addresses[0]",
                "10.9.9.9",
                "podCIDRs",
            ],
        ),
        (
            "two-nodes.yaml",
            node("node-a", "172.18.0.2")
                + &node("node-b", "172.18.0.2").replace("10.244.1.", "10.244.2."),
            1,
            &[
                "Node node-b",
                "status.addresses",
                "172.18.0.2",
                "Node node-a",
            ],
        ),
        (
            "lab.yaml",
            "snapshot: none.yaml\npodz: []\n".to_owned(),
            1,
            &["lab.yaml:2", "podz", "pods?"],
        ),
        (
            "no-node.yaml",
            endpoint("{addresses: [10.244.1.5]}")
                .split("---\n")
                .nth(1)
                .unwrap()
                .into(),
            2,
            &["no Node"],
        ),
    ];
    for (file, text, code, words) in cases {
        let path = folder.join(file);
        std::fs::write(&path, text).unwrap();
        let output = lab(&[
            "up",
            path.to_str().unwrap(),
            "--name",
            "t-bad",
            "--dataplane",
            "none",
        ]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{file}: {said}");
        for word in words {
            assert!(said.contains(word), "{file}: {word} in {said}");
        }
        assert!(output.stdout.is_empty());
        assert_eq!(leftovers("t-bad"), Vec::<String>::new());
        std::fs::remove_file(&path).unwrap();
    }
    std::fs::remove_dir(&folder).unwrap();

    let unknown = lab(&["up", "quikstart"]);
    assert_eq!(unknown.status.code(), Some(4));
    assert!(
        stderr(&unknown).contains("did you mean quickstart?"),
        "{}",
        stderr(&unknown)
    );
    assert_eq!(lab(&["status", "t-bad"]).status.code(), Some(4));
    assert_eq!(
        lab(&["up", "quickstart", "--via", "node-q", "--name", "t-bad"])
            .status
            .code(),
        Some(2)
    );
    assert_eq!(lab(&["frobnicate"]).status.code(), Some(2));

    let program = program();
    let as_nobody = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            program.to_str().unwrap(),
        ])
        .args(["up", "quickstart", "--name", "t-bad", "--dataplane", "none"])
        .current_dir(project())
        .output()
        .unwrap();
    // Where the project itself cannot be read by others there is nothing to see.
    if as_nobody.status.code() != Some(127) && as_nobody.status.code() != Some(126) {
        assert_eq!(as_nobody.status.code(), Some(3), "{}", stderr(&as_nobody));
        assert!(
            stderr(&as_nobody).contains("sudo"),
            "{}",
            stderr(&as_nobody)
        );
    }
}

/// Five nodes with twenty pods each come up and leave nothing. Prints how long it took.
#[test]
fn root_a_hundred_pods_come_up() {
    let path = std::env::temp_dir().join(format!("penstock-hundred-{}.yaml", std::process::id()));
    std::fs::write(&path, cluster(5, 20)).unwrap();
    let started = std::time::Instant::now();
    let (of_test, up) = Lab::up(
        "t-hundred",
        path.to_str().unwrap(),
        &["--dataplane", "none"],
    );
    eprintln!("5 nodes with 100 pods: {:?}", started.elapsed());
    assert_eq!(answered(&up), 10);
    drop(of_test);
    assert_eq!(leftovers("t-hundred"), Vec::<String>::new());
    std::fs::remove_file(&path).unwrap();
}

/// A cluster of `nodes` with `pods` each, and a Service for every ten pods.
fn cluster(nodes: usize, pods: usize) -> String {
    let mut text = String::new();
    for node in 1..=nodes {
        text += &format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{node}}}\nspec: {{podCIDR: 10.244.{node}.0/24}}\n\
             status: {{addresses: [{{type: InternalIP, address: 172.18.0.{}}}]}}\n---\n",
            node + 1
        );
    }
    for service in 0..nodes * pods / 10 {
        let endpoint = |index: usize| {
            let node = (service * 10 + index) % nodes + 1;
            let host = (service * 10 + index) / nodes + 10;
            format!(
                "- {{addresses: [10.244.{node}.{host}], nodeName: node-{node}, targetRef: {{kind: Pod, name: \
                 p-{service}-{index}, namespace: default}}}}\n"
            )
        };
        text += &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s-{service}}}\nspec: {{clusterIP: 10.96.0.{}, \
             ports: [{{port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: \
             {{name: s-{service}, labels: {{kubernetes.io/service-name: s-{service}}}}}\naddressType: IPv4\n\
             ports: [{{port: 8080}}]\nendpoints:\n{}---\n",
            service + 1,
            (0..10).map(endpoint).collect::<String>()
        );
    }
    text
}
