//! Labs come up, go down, and leave nothing, whatever happens to them meanwhile.

use super::{
    Lab, answered, is_alive, lab, leftovers, machine, pids, program, project, stderr, stdout,
};
use netlab::process::ProcessId;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

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
    // Beside another lab the commands to try say which one is meant.
    let beside = [
        "up",
        "quickstart",
        "--name",
        "t-quick-beside",
        "--dataplane",
        "none",
    ];
    let said = stdout(&lab(&beside));
    assert!(said.contains("./lab exec --lab t-quick-beside "), "{said}");
    assert!(said.contains("./lab down t-quick-beside\n"), "{said}");
    assert!(lab(&["down", "t-quick-beside"]).status.success());
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
    let words = stderr(&status);
    for part in [
        "unhealthy: ",
        " --name t-crash ",
        " --dataplane none ",
        " makes it anew",
    ] {
        assert!(words.contains(part), "{words}");
    }

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

/// The objects are written, but one node forwards by none of them.
#[test]
fn root_apply_names_the_node_whose_agent_did_not_take_the_objects() {
    let (_lab, _) = Lab::up("t-untaken", "quickstart", &[]);
    let output = lab(&["status", "t-untaken", "-o", "json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let processes = status["processes"].as_array().unwrap();
    let of_node_b = |process: &&Value| process["host"] == "node/node-b";
    let agent = processes.iter().find(of_node_b).unwrap();
    let pid = agent["pid"].as_u64().unwrap().to_string();
    let killed = Command::new("kill").args(["-KILL", &pid]).status().unwrap();
    assert!(killed.success());
    let file = std::env::temp_dir().join(format!("penstock-untaken-{}.yaml", std::process::id()));
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: more, namespace: default}\n\
                   spec: {clusterIP: 10.96.0.77, ports: [{port: 80}]}\n";
    std::fs::write(&file, service).unwrap();
    let output = lab(&["apply", "--lab", "t-untaken", "-f", file.to_str().unwrap()]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("the agent of node/node-b does not answer"),
        "{said}"
    );
    assert!(!said.contains("node/node-a"), "{said}");
    std::fs::remove_file(&file).unwrap();
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

/// In a `/run` of its own, where no labs of others are: one of a benchmark, whose process is this one, and a usual one.
const BESIDE_A_BENCHMARK: &str = r#"
set -e
umount --recursive --lazy /run/netns 2>/dev/null || true
mount -t tmpfs none /run
trap '"$LAB" down bench-t; "$LAB" down t-usual' EXIT
for lab in bench-t t-usual; do "$LAB" up quickstart --dataplane none --name $lab; done >/dev/null 2>&1
state=/run/penstock/bench-t/state.json
belongs_to() { jq --argjson owner "$1" '.owner = $owner' $state >/run/new && mv /run/new $state; }
are_up() { "$LAB" ls -o json | jq -r '.labs[] | select(.state == "up") | "up \(.name) \(.benchmark)"'; }
belongs_to "$OWNER"
echo meant $("$LAB" status -o json | jq -r .lab)
"$LAB" down --all 2>/dev/null
are_up
belongs_to '{"pid": 1, "start_time": 1}'
"$LAB" down --all 2>/dev/null
are_up
"#;

#[test]
fn root_labs_of_a_running_benchmark_are_left_to_it() {
    let own = ProcessId::of(std::process::id());
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", BESIDE_A_BENCHMARK])
        .current_dir(project())
        .env("LAB", program())
        .env("OWNER", serde_json::to_string(&own).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "meant t-usual\nup bench-t true\n");
}
