//! The kernel with kube-proxy's rules is the judge of the dataplane: `./lab diff`, within limits that fit into a test.
//! Needs root.

use netlab::diff::case::Case;
use netlab::diff::generate::{Cluster, objects};
use netlab::diff::report::Report;
use netlab::diff::{Proportion, Request, Rules, Subject, read_case, replay, run};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

fn request() -> Request {
    Request {
        against: Rules::Iptables,
        subject: Subject::Penstock,
        seed: 1,
        cases: None,
        time: None,
        clusters: Vec::new(),
        save: std::env::temp_dir(),
        shrink: true,
        enough: 3,
    }
}

fn assert_same(report: &Report) {
    let stories: Vec<String> = report
        .differences
        .iter()
        .map(|found| {
            let (seed, file) = (found.seed, found.file.display());
            format!("seed {seed}, {file}: {}\n{}", found.kind, found.story)
        })
        .collect();
    assert!(
        report.is_same(),
        "{}\n{}",
        stories.join("\n"),
        report.summary()
    );
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The same cases each time. They reach all that can be reached, so that "no difference" says something.
#[test]
fn root_fixed_cases_are_the_same_and_reach_the_dataplane() {
    let report = run(
        &Request {
            cases: Some(40),
            ..request()
        },
        &|_| {},
    )
    .unwrap();
    assert_same(&report);
    assert!(report.packets > 20_000, "{}", report.packets);
    say(&report.summary());
    for (kind, all, missing) in report.coverage.reached() {
        assert!(all > 4, "{kind}");
        assert_eq!(missing, Vec::<&str>::new(), "{kind}");
    }
}

/// Cases that nobody has seen before; a failure names the seed.
#[test]
fn root_fresh_cases_are_the_same() {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let time = Some(Duration::from_secs(130));
    let request = Request {
        seed: since.as_secs() << 16,
        time,
        ..request()
    };
    let report = run(&request, &|_| {}).unwrap();
    say(&report.summary());
    assert_same(&report);
    // What time and the kernel's caches explain is rare.
    let seeds: BTreeSet<u64> = report.repeated.iter().map(|run| run.seed).collect();
    assert!(seeds.len() as u64 <= 1 + report.cases / 20, "{seeds:?}");
}

/// Also when the test passes: its output is kept back then, but not what goes straight to the process's.
fn say(text: &str) {
    // A test does not fail for want of a reader.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// What kube-proxy's own modes do not do alike has names, and nothing else differs.
#[test]
fn root_modes_differ_as_named() {
    for subject in [Subject::Penstock, Subject::Iptables] {
        let request = Request {
            against: Rules::Nftables,
            subject,
            cases: Some(5),
            ..request()
        };
        let report = run(&request, &|_| {}).unwrap();
        assert_same(&report);
        let is_of_modes = |why: &&String| why.starts_with("modes: ");
        let named = report.deliberate.keys().filter(is_of_modes).count();
        assert!(named >= 1, "{:?}", report.deliberate);
    }
}

/// Two kernels with the same rules: whatever differs here would be the harness's own.
#[test]
fn root_two_kernels_are_the_same() {
    let request = Request {
        subject: Subject::Iptables,
        cases: Some(5),
        ..request()
    };
    assert_same(&run(&request, &|_| {}).unwrap());
}

#[test]
fn shares_that_are_no_chance_are_wrong() {
    let of = |kernel: [u64; 2], subject: [u64; 2]| Proportion {
        endpoints: 2,
        flows: 700,
        kernel: kernel.into(),
        subject: subject.into(),
    };
    assert!(!of([350, 350], [330, 370]).is_wrong());
    assert!(of([350, 350], [270, 430]).is_wrong());
    assert!(of([700, 0], [350, 350]).is_wrong());
    // Half of them reached nobody.
    assert!(of([350, 350], [175, 175]).is_wrong());
}

/// Every node of every fixture.
#[test]
fn root_fixtures_are_the_same() {
    let mut clusters = Vec::new();
    for entry in std::fs::read_dir(folder("fixtures")).unwrap() {
        let fixture = entry.unwrap().path();
        if !fixture.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(fixture.join("kube-proxy.yaml")).unwrap();
        let config: Value = serde_saphyr::from_str(&text).unwrap();
        let objects = objects(&fixture.join("snapshot.yaml")).unwrap();
        for node in objects.iter().filter(|object| object["kind"] == "Node") {
            let node = node["metadata"]["name"].as_str().unwrap().to_owned();
            clusters.push(Cluster {
                config: config.clone(),
                objects: objects.clone(),
                node,
            });
        }
    }
    assert!(clusters.len() >= 6);
    let cases = Some(2 * clusters.len() as u64);
    assert_same(
        &run(
            &Request {
                clusters,
                cases,
                ..request()
            },
            &|_| {},
        )
        .unwrap(),
    );
}

/// Limits let one more refusal pass with each sixteenth of a second; a busy machine may take that long between two packets.
fn replay_in_time(file: &Path, case: &Case) -> Report {
    let attempts = if case.icmp_limits { 8 } else { 1 };
    let replay = || replay(file, case, &request()).expect("the case runs");
    let mut reports = (0..attempts).map(|_| replay());
    let same = reports.find(Report::is_same);
    same.unwrap_or_else(replay)
}

/// Differences that were found once, by the rule of the kernel that they were about.
#[test]
fn root_regressions_stay_the_same() {
    let mut count = 0;
    for entry in std::fs::read_dir(folder("differential")).unwrap() {
        let file = entry.unwrap().path();
        let case = read_case(&file).unwrap();
        let report = replay_in_time(&file, &case);
        assert!(report.packets > 0, "{}", file.display());
        assert_same(&report);
        count += 1;
    }
    assert!(count >= 15);
}
