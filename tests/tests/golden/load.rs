//! The rendered rules in a real kernel: it takes them as they are, and lists them as they were rendered. Needs root,
//! iptables (both backends) and nft; each test has a network namespace of its own, which goes with its thread.

use super::goldens;
use control::model::Family;
use control::render::{self, Proxier};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

/// Runs `test` in a thread of its own in a new network namespace, which goes with the thread.
fn in_fresh_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            dataplane::sys::netns::unshare_network().expect("needs root");
            test()
        });
        inside.join().unwrap()
    })
}

/// Runs a command in the thread's namespace and gives back what it prints; it must succeed.
fn run(command: &str, input: &str) -> String {
    let mut words = command.split(' ');
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Tables by their names: iptables-legacy lists them in the order of their creation, the latest first.
fn by_table(text: &str) -> BTreeMap<String, String> {
    let mut tables = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(table) = line.strip_prefix('*') {
            table.clone_into(&mut name);
        }
        let table: &mut String = tables.entry(name.clone()).or_default();
        *table += line;
        *table += "\n";
    }
    tables
}

fn round_trip(tools: &str, backend: &str, proxier: &Proxier) {
    let rendered = render::iptables_tables(proxier);
    let listed = in_fresh_namespace(|| {
        run(&format!("{tools}-{backend}-restore"), &rendered);
        run(&format!("{tools}-{backend}-save"), "")
    });
    let (rendered, listed) = (by_table(&rendered), by_table(&listed));
    assert_eq!(rendered.len(), 3, "mangle, filter and nat");
    for (name, table) in &rendered {
        let differing = table
            .lines()
            .zip(listed[name].lines())
            .find(|(rendered, listed)| rendered != listed);
        assert_eq!(differing, None, "{tools} {backend} {name}");
        assert_eq!(table, &listed[name], "{tools} {backend} {name}");
    }
    assert_eq!(listed.len(), rendered.len(), "{tools} {backend}");
}

pub(super) fn round_trip_everywhere(proxier: &Proxier) {
    let tools = match proxier.family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    for backend in ["nft", "legacy"] {
        round_trip(tools, backend, proxier);
    }
}

pub(super) fn nft_round_trip(proxier: &Proxier) {
    let rendered = render::nftables_table(proxier).unwrap();
    let listed = in_fresh_namespace(|| {
        run("nft -f -", &rendered);
        run("nft list ruleset", "")
    });
    let expected = sets_of_one_opened(&rendered);
    let differing = expected
        .lines()
        .zip(listed.lines())
        .find(|(expected, listed)| expected != listed);
    assert_eq!(differing, None);
    assert_eq!(expected, listed);
}

/// `nft list` shows a set whose ranges merged into one with braces, and drops the braces when it reads that again.
fn sets_of_one_opened(ruleset: &str) -> String {
    let opened = ruleset
        .lines()
        .map(|line| match line.split_once(" saddr != { ") {
            Some((before, after)) if !after.contains(',') => {
                format!("{before} saddr != {}\n", after.replacen(" }", "", 1))
            }
            _ => format!("{line}\n"),
        });
    opened.collect()
}

#[test]
fn root_iptables_takes_all_rules_and_gives_them_back() {
    for golden in goldens("iptables") {
        let proxiers = golden.proxiers();
        round_trip_everywhere(&proxiers.v4);
        round_trip_everywhere(&proxiers.v6);
    }
}

#[test]
fn root_nft_takes_all_rules_and_gives_them_back() {
    for golden in goldens("nftables") {
        let proxiers = golden.proxiers();
        nft_round_trip(&proxiers.v4);
        nft_round_trip(&proxiers.v6);
    }
}
