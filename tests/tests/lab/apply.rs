//! An `apply` that does not end as it should: the lab is what it was, or the next command makes it so.

use super::{Lab, lab, leftovers, pids, program, project, stderr, stdout};
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Address, node and name of a pod.
type Pod<'a> = (&'a str, &'a str, &'a str);

const WEB_1: Pod<'_> = ("10.244.1.10", "node-a", "web-1");
const WEB_2: Pod<'_> = ("10.244.2.10", "node-b", "web-2");

/// The quickstart's slice with other pods, in a file that goes with the test.
struct Slice(PathBuf);

impl Slice {
    fn new(name: &str, pods: &[Pod<'_>]) -> Self {
        let endpoint = |(address, node, name): &Pod<'_>| {
            format!(
                "- {{addresses: [{address}], nodeName: {node}, targetRef: {{kind: Pod, namespace: default, \
                 name: {name}}}}}\n"
            )
        };
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-x7k2p\n  labels: \
             {{kubernetes.io/service-name: web}}\naddressType: IPv4\nports:\n- {{name: http, port: 80}}\n\
             endpoints:\n{}",
            pods.iter().map(endpoint).collect::<String>()
        );
        let path =
            std::env::temp_dir().join(format!("penstock-{name}-{}.yaml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    /// Twenty pods beside those that the lab has.
    fn of_many(name: &str) -> Self {
        let more: Vec<_> = (0..20)
            .map(|index| (format!("10.244.2.{}", 100 + index), format!("more-{index}")))
            .collect();
        let more = more
            .iter()
            .map(|(address, name)| (address.as_str(), "node-b", name.as_str()));
        let pods: Vec<_> = [WEB_1, WEB_2].into_iter().chain(more).collect();
        Self::new(name, &pods)
    }

    fn arguments<'a>(&'a self, lab: &'a str) -> [&'a str; 5] {
        ["apply", "--lab", lab, "-f", self.0.to_str().unwrap()]
    }

    fn apply(&self, name: &str) -> std::process::Output {
        lab(&self.arguments(name))
    }

    /// Begins to apply it.
    fn begin(&self, name: &str) -> Child {
        let mut command = Command::new(program());
        command.args(self.arguments(name)).current_dir(project());
        command.stderr(Stdio::null()).spawn().unwrap()
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn has_pod(lab: &str, pod: &str) -> bool {
    Path::new(&format!("/run/netns/{lab}.default-{pod}")).exists()
}

fn signal(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
    assert!(sent.success());
}

/// Both pods answer, and nothing else is there.
fn assert_is_as_it_was(of_test: &Lab) {
    let name = &of_test.0;
    let status = lab(&["status", name]);
    assert_eq!(status.status.code(), Some(0), "{}", stderr(&status));
    let pods = leftovers(name);
    let is_known = |found: &&String| {
        let hosts = [
            "fabric",
            "client",
            "node-a",
            "node-b",
            "default-client",
            "default-echo-1",
            "default-web-1",
            "default-web-2",
        ];
        hosts.iter().any(|host| **found == format!("{name}.{host}")) || found.starts_with('/')
    };
    assert!(pods.iter().all(|found| is_known(&found)), "{pods:?}");
    for (url, page) in [
        ("http://10.244.1.10/", "web-1 on node-a\n"),
        ("http://10.244.2.10/", "web-2 on node-b\n"),
    ] {
        let answer = of_test.exec("pod/default/client", &["curl", "-s", "-m", "2", url]);
        assert_eq!(stdout(&answer), page);
    }
}

#[test]
fn root_an_apply_that_is_interrupted_is_undone() {
    let (of_test, _) = Lab::up("t-cut-short", "quickstart", &["--dataplane", "none"]);
    let slice = Slice::of_many("cut-short");
    let mut apply = slice.begin("t-cut-short");
    while !has_pod("t-cut-short", "more-0") {
        assert!(apply.try_wait().unwrap().is_none(), "it ended too early");
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(&apply, "-INT");
    assert_eq!(apply.wait().unwrap().code(), Some(130));
    assert_is_as_it_was(&of_test);
    let again = slice.apply("t-cut-short");
    assert!(again.status.success(), "{}", stderr(&again));
    assert!(has_pod("t-cut-short", "more-19"));
    let back = Slice::new("cut-short-back", &[WEB_1, WEB_2]).apply("t-cut-short");
    assert!(back.status.success(), "{}", stderr(&back));
    assert_is_as_it_was(&of_test);
    drop(of_test);
    assert_eq!(leftovers("t-cut-short"), Vec::<String>::new());
}

/// One pod moves to the other node, and one cannot be started: where its folder ought to be there is a file.
#[test]
fn root_an_apply_that_fails_brings_back_the_pods_that_it_made_anew() {
    let (of_test, _) = Lab::up("t-undone", "quickstart", &["--dataplane", "none"]);
    let in_the_way = "/run/penstock/t-undone/pods/default-web-3";
    std::fs::write(in_the_way, "").unwrap();
    let moved = ("10.244.2.11", "node-b", "web-1");
    let slice = Slice::new("undone", &[moved, ("10.244.2.30", "node-b", "web-3")]);
    let failed = slice.apply("t-undone");
    let said = stderr(&failed);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("pod/default/web-3: "), "{said}");
    assert_is_as_it_was(&of_test);
    assert_eq!(pids("t-undone").len(), 3, "two nginx and the echo");

    std::fs::remove_file(in_the_way).unwrap();
    let again = slice.apply("t-undone");
    assert!(again.status.success(), "{}", stderr(&again));
    let answer = of_test.exec("pod/default/client", &["curl", "-s", "http://10.244.2.30/"]);
    let facts: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(facts["pod"], "web-3");
    drop(of_test);
    assert_eq!(leftovers("t-undone"), Vec::<String>::new());
}

/// What is shown is what runs, with a word that the files say something else.
#[test]
fn root_up_of_a_running_lab_whose_files_were_edited_says_so() {
    let folder = std::env::temp_dir().join(format!("penstock-edited-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["lab.yaml", "snapshot.yaml", "kube-proxy.yaml"] {
        let from = project().join("labs/quickstart").join(file);
        std::fs::copy(from, folder.join(file)).unwrap();
    }
    let source = folder.to_str().unwrap();
    let up = || {
        let more = ["--dataplane", "none", "--name", "t-edited"];
        let output = lab(&[&["up", source], &more[..]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        (stdout(&output), stderr(&output))
    };
    let of_test = Lab("t-edited".to_owned());
    up();
    let (_, said) = up();
    assert!(
        said.contains("up already") && !said.contains("note: "),
        "{said}"
    );

    let objects = folder.join("snapshot.yaml");
    let text = std::fs::read_to_string(&objects).unwrap();
    std::fs::write(&objects, text.replace("203.0.113.10", "203.0.113.77")).unwrap();
    let (shown, said) = up();
    assert!(said.contains("snapshot.yaml is not what runs"), "{said}");
    let apply = format!(
        "./lab apply --lab t-edited -f {} --prune",
        objects.display()
    );
    assert!(
        said.contains(&apply) && said.contains("./lab down t-edited"),
        "{said}"
    );
    assert!(
        shown.contains("203.0.113.10:80") && !shown.contains("203.0.113.77"),
        "{shown}"
    );

    // The same objects, merged into those that were there, are the same.
    let applied = lab(&[
        "apply",
        "--lab",
        "t-edited",
        "-f",
        objects.to_str().unwrap(),
    ]);
    assert!(applied.status.success(), "{}", stderr(&applied));
    let (shown, said) = up();
    assert!(!said.contains("note: "), "{said}");
    assert!(shown.contains("203.0.113.77:80"), "{shown}");
    drop(of_test);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn root_objects_come_by_standard_input_too() {
    let (of_test, _) = Lab::up("t-piped", "quickstart", &["--dataplane", "none"]);
    let slice = Slice::new("piped", &[WEB_1, WEB_2, ("10.244.2.30", "node-b", "web-3")]);
    let output = Command::new(program())
        .args(["apply", "--lab", "t-piped", "-f", "-"])
        .stdin(std::fs::File::open(&slice.0).unwrap())
        .output()
        .unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(
        said,
        "+ pod/default/web-3\nt-piped: applied standard input\n"
    );
    assert!(has_pod("t-piped", "web-3"));
    drop(of_test);
}

/// Something in the lab does not end by itself, so that `down` takes two seconds.
#[test]
fn root_an_apply_while_the_lab_goes_down_says_so() {
    let (of_test, _) = Lab::up("t-going", "quickstart", &["--dataplane", "none"]);
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let mut stays = Command::new(program())
        .args([
            "exec", "--lab", "t-going", "client", "--", "sh", "-c", stubborn,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0];
    stays
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    let mut down = Command::new(program())
        .args(["down", "t-going"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let output = Slice::new("going", &[WEB_1]).apply("t-going");
    let said = stderr(&output);
    assert!(down.try_wait().unwrap().is_none(), "it went too early");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("it is being removed; wait"), "{said}");
    assert!(down.wait().unwrap().success());
    stays.wait().unwrap();
    drop(of_test);
}

#[test]
fn root_what_a_killed_apply_left_goes_with_the_next_apply_or_with_down() {
    for milliseconds in [20, 60, 120, 250] {
        let (of_test, _) = Lab::up("t-killed-apply", "quickstart", &["--dataplane", "none"]);
        let mut apply = Slice::of_many("killed-apply").begin("t-killed-apply");
        std::thread::sleep(Duration::from_millis(milliseconds));
        apply.kill().unwrap();
        apply.wait().unwrap();
        if milliseconds > 60 {
            let next = Slice::new("killed-apply-next", &[WEB_1, WEB_2]).apply("t-killed-apply");
            assert!(next.status.success(), "{}", stderr(&next));
            assert_is_as_it_was(&of_test);
        }
        drop(of_test);
        assert_eq!(
            leftovers("t-killed-apply"),
            Vec::<String>::new(),
            "after {milliseconds} ms"
        );
    }
}
