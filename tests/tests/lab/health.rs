//! `status`, `check` and `up` see when a lab does not work.

use super::{Lab, lab, program, project, stderr};
use serde_json::Value;
use std::process::{Command, Output};

#[test]
fn root_a_lab_that_lost_a_namespace_is_unhealthy_until_up_makes_it_anew() {
    let (_lab, _) = Lab::up("t-lost", "quickstart", &["--dataplane", "none"]);
    let delete = ["netns", "delete", "t-lost.default-client"];
    assert!(Command::new("ip").args(delete).status().unwrap().success());
    let status = lab(&["status", "t-lost"]);
    let said = stderr(&status);
    assert_eq!(status.status.code(), Some(1), "{said}");
    assert!(
        said.contains("the network namespace of pod/default/client is gone"),
        "{said}"
    );
    let check = lab(&["check", "t-lost", "--requests", "1"]);
    let said = stderr(&check);
    assert_eq!(check.status.code(), Some(1), "{said}");
    assert!(said.contains("unhealthy: "), "{said}");
    let (_lab, _) = Lab::up("t-lost", "quickstart", &["--dataplane", "none"]);
    assert_eq!(lab(&["status", "t-lost"]).status.code(), Some(0));
}

#[test]
fn root_an_agent_that_does_not_answer_makes_a_lab_unhealthy() {
    let (_lab, _) = Lab::up("t-silent", "quickstart", &[]);
    let status = || -> (Output, Value) {
        let output = lab(&["status", "t-silent", "-o", "json"]);
        let status = serde_json::from_slice(&output.stdout).unwrap();
        (output, status)
    };
    let (output, healthy) = status();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(healthy["agents"][1]["answers"], true);
    let processes = healthy["processes"].as_array().unwrap();
    let of_node_b = |process: &&Value| process["host"] == "node/node-b";
    let pid = processes.iter().find(of_node_b).unwrap()["pid"].to_string();
    let signal = |name: &str| {
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    };

    signal("-STOP");
    let (output, silent) = status();
    signal("-CONT");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let why = "the agent of node/node-b does not answer";
    assert!(said.contains(why), "{said}");
    assert_eq!(
        (&silent["healthy"], &silent["why"]),
        (&false.into(), &why.into())
    );
    let of_node_b = &silent["agents"][1];
    assert_eq!(of_node_b["node"], "node-b", "{silent:#}");
    assert_eq!(of_node_b["answers"], false, "{silent:#}");
}

/// Requests that could not be made are no requests that ended as they ought to.
#[test]
fn root_check_needs_the_privilege_to_enter_namespaces() {
    let (_lab, _) = Lab::up("t-unprivileged", "quickstart", &["--dataplane", "none"]);
    let check = Command::new("setpriv")
        .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"])
        .arg(program())
        .args(["check", "t-unprivileged"])
        .current_dir(project())
        .output()
        .unwrap();
    let said = stderr(&check);
    assert_eq!(check.status.code(), Some(3), "{said}");
    assert!(said.contains("CAP_SYS_ADMIN"), "{said}");
}
