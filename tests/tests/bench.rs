//! Each benchmark once in a small size: it runs, without errors, and prints what it promises. Nothing is said of time.

#![expect(clippy::unwrap_used, reason = "a test may")]

use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

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
    let output = command
        .args(["bench", "fastpath", "--quick", "-o", "json"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
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
        assert!((number("ratio") - path / limit).abs() < 1e-6, "{row}");
        assert!(
            number("flows") >= 1000.0 && number("threads") >= 1.0 && number("batch") >= 1.0,
            "{row}"
        );
    }
    for ports in report["ports"].as_array().unwrap() {
        assert_eq!(ports["found"], ports["tried"], "a port was free each time");
    }
}

/// A lab for each dataplane, one short turn each in both placements.
fn root_side_by_side(benchmark: &str, services: &str, metric: &str) {
    let mut command = Command::new(binary("penstock-lab"));
    command.args([
        "bench",
        benchmark,
        "--services",
        services,
        "--rounds",
        "1",
        "--time",
        "50",
    ]);
    command.args(["--busy-is-fine", "-o", "json"]);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["benchmark"], benchmark);
    let rows = report["rows"].as_array().unwrap();
    for dataplane in ["penstock", "iptables", "nftables", "plain", "tun-copy"] {
        let row = rows
            .iter()
            .find(|row| row["dataplane"] == dataplane && row["metric"] == metric);
        let row = row.unwrap_or_else(|| panic!("{dataplane} has no {metric}"));
        let number = |key: &str| {
            row[key]
                .as_f64()
                .unwrap_or_else(|| panic!("{key} in {row}"))
        };
        assert!(
            number("median") > 0.0 && number("min") <= number("max"),
            "{row}"
        );
        assert!(
            row["unit"].is_string() && row["placement"].is_string(),
            "{row}"
        );
        assert_eq!(
            (number("runs"), row["services"].to_string().as_str()),
            (1.0, services),
            "{row}"
        );
    }
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
