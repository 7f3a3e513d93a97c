//! Each benchmark once in a small size: it runs, without errors, and prints what it promises. Nothing is said of time.

#![expect(clippy::unwrap_used, reason = "a test may")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A binary of the workspace, which lies beside the folder of the tests.
fn binary(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join(name)
}

#[test]
fn fastpath_prints_path_and_limit() {
    let mut command = Command::new(binary("penstock"));
    let report = report_of(command.args(["bench", "fastpath", "--quick", "-o", "json"]));
    assert_eq!(report["schemaVersion"], 1);
    assert_eq!(report["benchmark"], "fastpath");
    let rows = report["rows"].as_array().unwrap();
    // Two numbers of flows, two of threads, three batches.
    assert_eq!(rows.len(), 12);
    for row in rows {
        let number = |key: &str| {
            row[key]
                .as_f64()
                .unwrap_or_else(|| panic!("{key} in {row}"))
        };
        let (path, limit) = (number("ns_per_packet"), number("limit_ns_per_packet"));
        assert!(path > 0.0 && limit > 0.0, "{row}");
        let spread = |end: usize| row["ratio_spread"][end].as_f64().unwrap();
        assert!((spread(0)..=spread(1)).contains(&number("ratio")), "{row}");
        assert!(
            number("flows") >= 1000.0 && number("threads") >= 1.0 && number("batch") >= 1.0,
            "{row}"
        );
    }
    for ports in report["ports"].as_array().unwrap() {
        assert_eq!(ports["found"], ports["tried"], "a port was free each time");
    }
}

#[test]
fn instructions_are_counted() {
    let mut command = Command::new("valgrind");
    if command
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        eprintln!("skipped: valgrind is not installed");
        return;
    }
    let mut command = Command::new(binary("penstock"));
    let report = report_of(command.args(["bench", "instructions", "-o", "json"]));
    assert_eq!(report["benchmark"], "instructions");
    let of = |kind: &str| {
        let rows = report["rows"].as_array().unwrap();
        let row = rows.iter().find(|row| row["kind"] == kind);
        value(row.unwrap(), "instructions")
    };
    assert!(of("udp-ipv4") > 100.0 && of("tcp-ipv4") > of("udp-ipv4"));
    assert!(of("udp-ipv6") > of("udp-ipv4") && of("tcp-ipv6") > of("tcp-ipv4"));
    assert!(of("first-masqueraded") > of("first") && of("first") > of("udp-ipv4"));
    assert!(of("expired") > 100.0);
}

#[test]
fn packets_of_every_kind_are_handled_to_be_counted() {
    for (kind, packets) in [("tcp-ipv6", 3000 + 256), ("first-masqueraded", 157 * 256)] {
        let mut command = Command::new(binary("penstock"));
        assert_eq!(
            report_of(command.args(["bench", "handle", kind, "1"])),
            packets
        );
    }
    let mut command = Command::new(binary("penstock"));
    let output = command.args(["bench", "handle", "sctp", "1"]).output();
    assert_eq!(output.unwrap().status.code(), Some(2));
}

#[test]
fn attacks_do_others_no_harm() {
    let mut command = Command::new(binary("penstock"));
    let arguments = ["bench", "attack", "--quick", "-o", "json"];
    let report = report_of(command.args(arguments));
    assert_eq!(report["benchmark"], "attack");
    let rows = report["rows"].as_array().unwrap();
    // Six attacks, and one of random tuples to compare with.
    assert_eq!(rows.len(), 7);
    for row in rows {
        assert_eq!(row["established_lost"], 0, "{row}");
        assert!(row["attack_packets"].as_u64().unwrap() > 0, "{row}");
        // Where assured flows fill the table there is no room for more.
        if row["attack"] != "table full of assured flows" {
            let [made, tried] = ["new_flows_succeeded", "new_flows"].map(|name| row[name].as_u64());
            // One that nobody has answered yet may have to go.
            assert!(made.unwrap() * 100 >= tried.unwrap() * 95, "{row}");
        }
    }
}

fn report_of(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A benchmark through labs, in one round.
fn of_labs(benchmark: &str, arguments: &[&str]) -> Vec<Value> {
    let mut command = Command::new(binary("penstock-lab"));
    command.args(["bench", benchmark, "--rounds", "1", "--busy-is-fine"]);
    let mut report = report_of(command.args(arguments).args(["-o", "json"]));
    assert_eq!(report["schemaVersion"], 1);
    assert_eq!(report["benchmark"], benchmark);
    let machine = &report["machine"];
    assert!(machine["kernel"].is_string() && machine["load"].is_number());
    let began = report["began"].as_str().unwrap();
    assert!(
        began.len() == "2026-01-01T00:00:00Z".len() && began.ends_with('Z'),
        "{began}"
    );
    let is_busy = value(machine, "load") > 0.25 * value(machine, "processors");
    assert_eq!(report["busy"], is_busy, "{machine}");
    assert!(
        report["settings"]["command"]
            .as_str()
            .unwrap()
            .contains(benchmark)
    );
    assert!(report["settings"]["nf_conntrack_max"].as_u64().unwrap() > 0);
    let Value::Array(rows) = report["rows"].take() else {
        panic!("no rows");
    };
    rows
}

fn value(row: &Value, key: &str) -> f64 {
    let number = row[key].as_f64();
    number.unwrap_or_else(|| panic!("{key} in {row}"))
}

/// The rows of what only dataplanes with Services can do, with metrics that all of them must have.
fn root_with_services(benchmark: &str, arguments: &[&str], metrics: &[&str]) -> Vec<Value> {
    let rows = of_labs(benchmark, arguments);
    for dataplane in ["penstock", "iptables", "nftables"] {
        for metric in metrics {
            let is_it = |row: &&Value| row["dataplane"] == dataplane && row["metric"] == *metric;
            let row = rows.iter().find(is_it);
            let row = row.unwrap_or_else(|| panic!("{dataplane} has no {metric}"));
            assert!(value(row, "median") > 0.0, "{row}");
        }
    }
    rows
}

#[test]
fn root_a_changed_endpoint_takes_effect_everywhere() {
    let sizes = ["--services", "20", "--endpoints", "1,10"];
    let rows = root_with_services("update", &sizes, &["cold_load", "change_to_effect"]);
    for endpoints in [1, 10] {
        assert!(rows.iter().any(|row| row["endpoints"] == endpoints));
    }
    for metric in [
        "cold_load_json",
        "change_to_effect_json",
        "read_objects_json",
    ] {
        let row = rows.iter().find(|row| row["metric"] == metric).unwrap();
        assert!(value(row, "median") > 0.0, "{row}");
    }
}

#[test]
fn root_ports_are_found_while_there_are_any() {
    let nearly_all = "delivered_from_99.9_percent";
    let some = ["delivered_from_50_percent"];
    let rows = root_with_services("snat", &["--services", "1"], &some);
    let is_ours = |row: &&Value| row["dataplane"] == "penstock" && row["metric"] == nearly_all;
    assert_eq!(rows.iter().find(is_ours).unwrap()["median"], 100.0);
}

/// A few packets, for which there is room: the attacks are made, and others go on.
#[test]
fn root_others_go_on_while_a_node_is_attacked() {
    let arguments = ["--services", "1", "--thousands", "5"];
    let rows = root_with_services("attack", &arguments, &["established_kept", "table_entries"]);
    for attack in ["syn-flood", "scan", "ports-taken", "full-table"] {
        let of_ours = |metric: &str| {
            let is_it = |row: &&Value| {
                row["attack"] == attack && row["dataplane"] == "penstock" && row["metric"] == metric
            };
            let row = rows.iter().find(is_it);
            value(
                row.unwrap_or_else(|| panic!("{attack} has no {metric}")),
                "median",
            )
        };
        assert_eq!(of_ours("established_kept"), 100.0, "{attack}");
        assert!(of_ours("new_flows_succeeded") > 0.0, "{attack}");
    }
}

/// A lab for each dataplane, one short turn each in both placements, through each probed Service.
fn root_side_by_side(benchmark: &str, services: &str, metric: &str) {
    let page = std::env::temp_dir().join(format!("penstock-bench-{}.html", std::process::id()));
    let page_named = page.to_str().unwrap();
    let sizes = [
        "--services",
        services,
        "--time",
        "50",
        "--report",
        page_named,
    ];
    let rows = of_labs(benchmark, &sizes);
    let written = std::fs::read_to_string(&page).unwrap();
    std::fs::remove_file(&page).unwrap();
    assert!(
        !written.contains("http") && !written.contains("src="),
        "it needs no other file"
    );
    for dataplane in ["penstock", "iptables", "nftables", "plain", "tun-copy"] {
        let own = rows
            .iter()
            .filter(|row| row["dataplane"] == dataplane && row["metric"] == metric);
        let own: Vec<&Value> = own.collect();
        assert!(!own.is_empty(), "{dataplane} has no {metric}");
        assert!(written.contains(&format!("<tr class={dataplane}>")));
        for row in own {
            assert!(value(row, "median") > 0.0, "{row}");
            assert!(value(row, "min") <= value(row, "max"), "{row}");
            assert!(
                row["unit"].is_string() && row["placement"].is_string(),
                "{row}"
            );
            let size = row["services"].to_string();
            assert_eq!(
                (value(row, "runs"), size.as_str()),
                (1.0, services),
                "{row}"
            );
        }
        let in_the_middle = rows
            .iter()
            .any(|row| row["dataplane"] == dataplane && row["probed"] == "middle");
        let has_services = !matches!(dataplane, "plain" | "tun-copy");
        assert_eq!(
            in_the_middle,
            has_services && services != "1",
            "{dataplane}"
        );
    }
}

/// Also without root: nothing is made before.
#[test]
fn what_cannot_be_honoured_is_refused_before_anything_is_made() {
    for (arguments, advice) in [
        ("update --against busy-poll", "iptables, nftables"),
        ("latency --services 1,2 --probed middle", "--probed end"),
        ("attack --probed end", "leave it out"),
    ] {
        let mut command = Command::new(binary("penstock-lab"));
        command.arg("bench").args(arguments.split(' '));
        let output = command.arg("--busy-is-fine").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {said}");
        assert!(
            said.starts_with("error: ") && said.contains(advice),
            "{said}"
        );
        assert_eq!((output.stdout, said.lines().count()), (Vec::new(), 1));
    }
}

/// A disk that is full at the end.
#[test]
fn root_figures_are_printed_though_the_report_cannot_be_written() {
    let run = |report: &str| {
        let mut command = Command::new(binary("penstock-lab"));
        command.args(["bench", "latency", "--services", "1", "--rounds", "1"]);
        command.args(["--against", "plain", "--time", "10", "--busy-is-fine"]);
        command
            .args(["-o", "json", "--report", report])
            .output()
            .unwrap()
    };
    let full = run("/dev/full");
    let said = String::from_utf8(full.stderr).unwrap();
    assert_eq!(full.status.code(), Some(1), "{said}");
    assert!(said.contains("error: /dev/full: "), "{said}");
    let report: Value = serde_json::from_slice(&full.stdout).unwrap();
    assert!(!report["rows"].as_array().unwrap().is_empty());
    let refused = run("/nowhere/page.html");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.starts_with("error: --report /nowhere/page.html: "),
        "{said}"
    );
}

/// What is said on the way tells: no lab is made between two turns.
#[test]
fn root_all_numbers_of_services_take_turns_with_each_other() {
    let mut command = Command::new(binary("penstock-lab"));
    command.args(["bench", "latency", "--services", "1,3,1", "--rounds", "1"]);
    command.args(["--against", "plain", "--time", "10", "--busy-is-fine"]);
    let output = command.args(["-o", "json"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    let made = [
        "bench: penstock with 1 Service",
        "bench: plain with 1 Service",
        "bench: penstock with 3 Services",
        "bench: plain with 3 Services",
    ];
    assert!(lines.starts_with(&made), "{said}");
    let placements = &lines[made.len()..];
    let is_one = |name: &str| said.matches(name).count() <= 1;
    assert!(placements.len() <= 2 && is_one("one-cpu") && is_one("apart"));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let sizes: Vec<u64> = rows
        .iter()
        .map(|row| value(row, "services") as u64)
        .collect();
    assert!(sizes.is_sorted() && sizes.contains(&1) && sizes.contains(&3));
}

/// It would take the processor from the others: it is seen to be stopped, and to run.
#[test]
fn root_who_never_sleeps_is_stopped_in_the_turns_of_others() {
    let mut command = Command::new(binary("penstock-lab"));
    command.args(["bench", "latency", "--services", "1", "--rounds", "4"]);
    command.args(["--against", "busy-poll", "--busy-is-fine", "-o", "json"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut run = command.spawn().unwrap();
    let lab = format!("/run/penstock/bench-busy-poll-1-{}", run.id());
    let [mut stopped, mut running] = [0, 0];
    while run.try_wait().unwrap().is_none() {
        match state_of_agent(&lab) {
            Some('T') => stopped += 1,
            Some(_) if stopped > 0 => running += 1,
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(run.wait().unwrap().success());
    assert!(stopped > 0 && running > 0, "{stopped} {running}");
    assert!(!Path::new(&lab).exists());
}

/// As in field 3 of `/proc/PID/stat`, when the lab is up.
fn state_of_agent(lab: &str) -> Option<char> {
    let state = std::fs::read_to_string(format!("{lab}/state.json")).ok()?;
    let state: Value = serde_json::from_str(&state).ok()?;
    let mut processes = state["processes"].as_array()?.iter();
    let agent = processes.find(|process| process["role"] == "agent")?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent["id"]["pid"])).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn root_connections_go_through_every_dataplane() {
    root_side_by_side("connections", "40", "connections_per_second");
}

#[test]
fn root_bytes_come_back_through_every_dataplane() {
    root_side_by_side("latency", "1", "round_trip_p50");
}

#[test]
fn root_streams_go_through_every_dataplane() {
    root_side_by_side("bulk", "1", "throughput");
}

#[test]
fn root_datagrams_go_through_every_dataplane() {
    root_side_by_side("packets", "1", "packets_received_per_second");
}
