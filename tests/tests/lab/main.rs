//! Labs for real: network namespaces, servers, requests. Needs root.
//!
//! Each test names its labs so that no two tests, and no lab of the user, share one; each removes what it made,
//! also when it fails.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod apply;
mod conntrack;
mod errors;
mod health;
mod life;
mod pods;
mod programs;
mod refusals;
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
