//! Objects, configurations and rules with accidents in them: whatever is read is understood or refused, with a message
//! that says where; nothing panics.
//!
//! `PENSTOCK_FUZZ=100` tries a hundred times as many. A failure prints its seed; the same seed makes the same text.

#![expect(clippy::unwrap_used, reason = "a test may")]

use control::config::{ConfigError, KubeProxyConfig};
use control::explain::{Explainer, Packet, Verdict};
use control::model::Transport;
use control::node_network::NodeNetwork;
use control::problem::Problems;
use control::render::difference::differences;
use control::render::dump::Dump;
use control::render::{self, Proxiers};
use control::snapshot::{Snapshot, SnapshotError};
use dataplane::tuple::Origin;
use fastrand::Rng;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Values that mean something somewhere.
const VALUES: &[&str] = &[
    "",
    "null",
    "~",
    "{}",
    "[]",
    "true",
    "no",
    "0",
    "-1",
    "65535",
    "65536",
    "9999999999999999999999",
    "1.5",
    "1e9",
    "\"\"",
    "\"80\"",
    "None",
    "::",
    "0.0.0.0",
    "::1",
    "127.0.0.1",
    "255.255.255.255",
    "224.0.0.1",
    "::ffff:10.0.0.1",
    "fe80::1",
    "010.0.0.1",
    "10.0.0.1",
    "10.0.0.0/0",
    "10.0.0.0/33",
    "fd00::/129",
    "fd00::/0",
    "IPv4",
    "IPv6",
    "FQDN",
    "Local",
    "Cluster",
    "TCP",
    "UDP",
    "SCTP",
    "ClientIP",
    "LoadBalancer",
    "ExternalName",
    "Proxy",
    "VIP",
    "- a",
    "*x",
    "&x 1",
    "!!str 1",
    "|",
    ">-",
    "'",
    "\"",
    "# c",
    "{a: b",
    "[1, 2",
    "maglev",
    "1h",
    "-1s",
    "\u{7f}",
    "\u{feff}",
];

struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

fn rounds(count: u64) -> impl Iterator<Item = u64> {
    let factor = std::env::var("PENSTOCK_FUZZ").map_or(1, |factor| factor.parse().unwrap());
    0..count * factor
}

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let entries = std::fs::read_dir(folder).unwrap();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Some accidents, most of them on one line.
fn damage(text: &str, rng: &mut Rng) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for _ in 0..rng.usize(1..4) {
        if lines.is_empty() {
            break;
        }
        let at = rng.usize(..lines.len());
        match rng.u8(..9) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at].clone()),
            2 => {
                let other = rng.usize(..lines.len());
                lines.swap(at, other);
            }
            3 => lines[at].insert_str(0, "  "),
            4 => lines[at] = lines[at].trim_start_matches("  ").to_owned(),
            5 => lines.truncate(at),
            6 => lines[at] = flip(&lines[at], rng),
            _ => lines[at] = set_value(&lines[at], rng),
        }
    }
    lines.join("\n")
}

/// Another value behind the last colon or blank.
fn set_value(line: &str, rng: &mut Rng) -> String {
    let value = VALUES[rng.usize(..VALUES.len())];
    match line.rfind([':', ' ']) {
        Some(end) => format!("{} {value}", &line[..=end]),
        None => value.to_owned(),
    }
}

fn flip(line: &str, rng: &mut Rng) -> String {
    let mut bytes = line.as_bytes().to_vec();
    if let Some(byte) = (!bytes.is_empty()).then(|| rng.usize(..line.len())) {
        bytes[byte] ^= 1 << rng.u8(..8);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A few documents of a fixture, its nodes among them.
fn some_documents(fixture: &str, rng: &mut Rng) -> String {
    let is_node = |document: &&str| document.contains("kind: Node\n");
    let (mut chosen, mut others): (Vec<&str>, Vec<&str>) =
        fixture.split("\n---\n").partition(is_node);
    rng.shuffle(&mut others);
    others.truncate(rng.usize(1..12));
    chosen.extend(others);
    chosen.join("\n---\n")
}

fn assert_says_where(problems: &Problems, text: &str) {
    let lines = text.lines().count().max(1);
    assert!(!problems.0.is_empty());
    for problem in &problems.0 {
        let place = &problem.location;
        assert_eq!(&*place.file, "fuzz.yaml");
        assert!((1..=lines + 1).contains(&place.line), "{problem}\n{text}");
        assert!(!problem.message.is_empty());
    }
}

/// All that is done with objects, on every node of them.
fn use_objects(snapshot: &Snapshot, config: &KubeProxyConfig, rng: &mut Rng) {
    for node in &snapshot.nodes {
        let name = &node.metadata.name;
        let Ok(explainer) = Explainer::new(snapshot, config, name) else {
            continue;
        };
        let keys: Vec<_> = explainer.table().frontends().map(|claim| claim.0).collect();
        for key in keys.iter().take(20) {
            let packet = Packet {
                source: key.address.into(),
                source_port: rng.u16(..),
                origin: [Origin::Pod, Origin::Outside, Origin::Node][rng.usize(..3)],
                destination: SocketAddr::new(key.address.into(), key.port),
                protocol: [Transport::Tcp, Transport::Udp, Transport::Sctp][rng.usize(..3)],
            };
            let answer = explainer.explain(&packet);
            let total: f64 = answer
                .endpoints
                .iter()
                .map(|candidate| candidate.probability)
                .sum();
            let expected = f64::from(u8::from(answer.verdict == Verdict::Forward));
            assert!((total - expected).abs() < 1e-9, "{answer:?}");
        }
        let network = NodeNetwork::from_snapshot(node);
        if let Ok(proxiers) = Proxiers::new(snapshot, config, &network, name) {
            let rules = render::iptables(&proxiers);
            let dump = Dump::parse(&rules).unwrap();
            assert_eq!(differences(&proxiers, &dump), []);
            // nftables refuses what kube-proxy cannot do there.
            let _ = render::nftables(&proxiers);
        }
    }
}

#[test]
fn objects() {
    let fixtures: Vec<(String, KubeProxyConfig)> = fixtures()
        .iter()
        .map(|folder| {
            let config = KubeProxyConfig::read(&folder.join("kube-proxy.yaml")).unwrap();
            (read(&folder.join("snapshot.yaml")), config)
        })
        .collect();
    let mut understood = 0;
    let mut refused = 0;
    for seed in rounds(600) {
        let _seed = Seed(seed);
        let mut rng = Rng::with_seed(seed);
        let (fixture, config) = &fixtures[rng.usize(..fixtures.len())];
        let text = damage(&some_documents(fixture, &mut rng), &mut rng);
        match Snapshot::parse("fuzz.yaml", &text) {
            Ok(snapshot) => {
                understood += 1;
                use_objects(&snapshot, config, &mut rng);
            }
            Err(SnapshotError::Invalid(problems)) => {
                refused += 1;
                assert_says_where(&problems, &text);
            }
            Err(error) => assert!(error.to_string().contains("fuzz.yaml")),
        }
    }
    // Of both there must be many, or little is tried.
    assert!(understood > 60 && refused > 60, "{understood} {refused}");
}

#[test]
fn configurations() {
    let texts: Vec<String> = fixtures()
        .iter()
        .map(|folder| read(&folder.join("kube-proxy.yaml")))
        .collect();
    let mut refused = 0;
    for seed in rounds(2000) {
        let _seed = Seed(seed);
        let mut rng = Rng::with_seed(seed);
        let text = damage(&texts[rng.usize(..texts.len())], &mut rng);
        match KubeProxyConfig::parse("fuzz.yaml", &text) {
            Ok(config) => {
                let shown = config.effective().to_string();
                KubeProxyConfig::parse("shown", &shown).unwrap();
            }
            Err(ConfigError::Invalid(problems)) => {
                refused += 1;
                assert_says_where(&problems, &text);
            }
            Err(ConfigError::Unreadable { .. }) => panic!("no file was read"),
        }
    }
    assert!(refused > 200, "{refused}");
}

#[test]
fn rules() {
    let mut dumps = Vec::new();
    for folder in fixtures() {
        let nodes = std::fs::read_dir(folder.join("kube-proxy-1.30")).unwrap();
        for file in nodes.map(|entry| entry.unwrap().path()) {
            if file.to_string_lossy().contains("iptables") {
                let snapshot = Snapshot::read(&folder.join("snapshot.yaml")).unwrap();
                dumps.push((snapshot, read(&file)));
            }
        }
    }
    assert!(!dumps.is_empty());
    let config = KubeProxyConfig::default();
    for seed in rounds(60) {
        let _seed = Seed(seed);
        let mut rng = Rng::with_seed(seed);
        let (snapshot, text) = &dumps[rng.usize(..dumps.len())];
        let Ok(dump) = Dump::parse(&damage(text, &mut rng)) else {
            continue;
        };
        let node = &snapshot.nodes[0];
        let network = NodeNetwork::from_snapshot(node);
        let proxiers = Proxiers::new(snapshot, &config, &network, &node.metadata.name).unwrap();
        for difference in differences(&proxiers, &dump) {
            assert!(!difference.to_string().is_empty());
        }
    }
}
