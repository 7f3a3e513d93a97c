use super::*;
use std::path::Path;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

#[test]
fn compiles_every_fixture_for_every_node() {
    for name in [
        "aks-app-routing",
        "aks-kubenet-deploy",
        "aks-kubenet-pod",
        "dual-stack",
        "iks-wordpress",
        "policy-matrix",
    ] {
        let folder = Path::new(FIXTURES).join(name);
        let snapshot = Snapshot::read(&folder.join("snapshot.yaml")).unwrap();
        let config = KubeProxyConfig::read(&folder.join("kube-proxy.yaml")).unwrap();
        for node in &snapshot.nodes {
            let network = NodeNetwork::from_snapshot(node);
            let parts = compile(
                &snapshot,
                &config,
                &network,
                &node.metadata.name,
                Generation(1),
            );
            let parts = parts.unwrap();
            assert!(parts.frontends.len() >= parts.services.len(), "{name}");
            assert!(!parts.endpoints.is_empty(), "{name}");
        }
    }
}
