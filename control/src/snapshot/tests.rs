use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

#[test]
fn reads_every_fixture() {
    for (name, services, nodes) in [
        ("aks-kubenet-pod", 1, 2),
        ("policy-matrix", 1, 3),
        ("dual-stack", 1, 2),
    ] {
        let path = format!("{FIXTURES}/{name}/snapshot.yaml");
        let snapshot = Snapshot::read(Path::new(&path)).unwrap();
        assert!(snapshot.services.len() > services, "{name}");
        assert_eq!(snapshot.nodes.len(), nodes, "{name}");
    }
}
