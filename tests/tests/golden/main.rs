//! The rendered rules against those that a real kube-proxy 1.30 programmed, for all fixtures and nodes; and against
//! the kernel, which must take them and give them back as they are.
//!
//! kube-proxy goes through Services in a random order, so both sides are put into one first ([`canonical`]).
//! Everything else counts: every chain, every rule, their order and their number.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod canonical;
mod difference;
mod features;
mod load;

use canonical::{assert_same, iptables, nftables};
use control::config::KubeProxyConfig;
use control::node_network::NodeNetwork;
use control::render::{self, Proxiers, RenderError};
use control::snapshot::Snapshot;
use std::path::{Path, PathBuf};

/// One golden file and what it was made from.
struct Golden {
    fixture: PathBuf,
    node: String,
    path: PathBuf,
}

impl Golden {
    fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap()
    }

    fn proxiers(&self) -> Proxiers {
        let snapshot = Snapshot::read(&self.fixture.join("snapshot.yaml")).unwrap();
        let config = KubeProxyConfig::read(&self.fixture.join("kube-proxy.yaml")).unwrap();
        proxiers(&snapshot, &config, &self.node)
    }
}

fn proxiers(snapshot: &Snapshot, config: &KubeProxyConfig, node: &str) -> Proxiers {
    let network = NodeNetwork::from_snapshot(snapshot.node(node).unwrap());
    Proxiers::new(snapshot, config, &network, node).unwrap()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn folder(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// All golden files of a mode: those named `NODE.mode`.
fn goldens(mode: &str) -> Vec<Golden> {
    let with_rules = folder(&fixtures())
        .into_iter()
        .filter(|fixture| fixture.join("kube-proxy-1.30").is_dir());
    let mut goldens = Vec::new();
    for fixture in with_rules {
        for path in folder(&fixture.join("kube-proxy-1.30")) {
            if path.extension().is_some_and(|extension| extension == mode) {
                goldens.push(Golden {
                    fixture: fixture.clone(),
                    node: path.file_stem().unwrap().to_str().unwrap().to_owned(),
                    path,
                });
            }
        }
    }
    goldens
}

#[test]
fn iptables_rules_are_those_of_a_real_kube_proxy() {
    let goldens = goldens("iptables");
    assert_eq!(goldens.len(), 15, "golden files of all fixtures and nodes");
    for golden in goldens {
        let rendered = render::iptables(&golden.proxiers());
        assert_same(
            &golden.path,
            &iptables(&golden.text()),
            &iptables(&rendered),
        );
    }
}

#[test]
fn nftables_rules_are_those_of_a_real_kube_proxy() {
    let goldens = goldens("nftables");
    assert_eq!(goldens.len(), 8, "golden files of all fixtures and nodes");
    for golden in goldens {
        let rendered = render::nftables(&golden.proxiers()).unwrap();
        assert_same(
            &golden.path,
            &nftables(&golden.text()),
            &nftables(&rendered),
        );
    }
}

/// kube-proxy 1.30 programs nothing there, which is why these fixtures have no `.nftables`.
#[test]
fn nftables_with_an_interface_prefix_fails_as_kube_proxy_does() {
    let golden = goldens("iptables")
        .into_iter()
        .find(|golden| golden.fixture.ends_with("aks-app-routing"))
        .unwrap();
    let error = render::nftables(&golden.proxiers()).unwrap_err();
    assert_eq!(error, RenderError::InterfacePrefix("azv".to_owned()));
}
