//! 10,000 Services of 10 endpoints. Prints how long each step takes; asserts only that the steps do what they should.
//!
//! `cargo test --release --workspace --test large -- --ignored --nocapture`

#![expect(clippy::unwrap_used, reason = "a test may")]

use control::compile::compile;
use control::config::KubeProxyConfig;
use control::node_network::NodeNetwork;
use control::snapshot::{EndpointSlice, Followed, Snapshot, slices};
use dataplane::service::{Decision, Generation, ServiceTable};
use dataplane::tuple::{Address, Origin, Protocol, Tuple};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::hash::RandomState;
use std::time::Instant;

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;

fn cluster_ip(service: usize) -> [u8; 4] {
    [10, 96, (service >> 8) as u8, service as u8]
}

/// As `kubectl` prints objects, cut down to what matters.
fn objects() -> String {
    let mut text = String::from(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: node-a\nstatus:\n  addresses:\n  - type: InternalIP\n    address: 172.18.0.2\n",
    );
    for service in 0..SERVICES {
        let [a, b, c, d] = cluster_ip(service);
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: service-{service}\n  namespace: load\n  labels:\n    app: service-{service}\nspec:\n  type: ClusterIP\n  clusterIP: {a}.{b}.{c}.{d}\n  clusterIPs:\n  - {a}.{b}.{c}.{d}\n  ipFamilies:\n  - IPv4\n  selector:\n    app: service-{service}\n  ports:\n  - name: http\n    port: 80\n    protocol: TCP\n    targetPort: 8080\n"
        )
        .unwrap();
        write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: service-{service}-x\n  namespace: load\n  labels:\n    kubernetes.io/service-name: service-{service}\naddressType: IPv4\nports:\n- name: http\n  port: 8080\n  protocol: TCP\nendpoints:\n"
        )
        .unwrap();
        for endpoint in 0..ENDPOINTS {
            let number = service * ENDPOINTS + endpoint;
            let (a, b, c) = (number >> 16, number >> 8 & 255, number & 255);
            write!(
                text,
                "- addresses:\n  - 10.{}.{b}.{c}\n  conditions:\n    ready: true\n    serving: true\n    terminating: false\n  nodeName: node-b\n  targetRef:\n    kind: Pod\n    name: pod-{number}\n    namespace: load\n",
                200 + a
            )
            .unwrap();
        }
    }
    text
}

/// Moves the slice of a Service out of the snapshot's file, into a text of its own.
fn slice_of(snapshot: Snapshot, yaml: &str, service: &str) -> (Followed, String) {
    let is_its = |text: &&str| text.contains(&format!("name: {service}-x\n"));
    let text = yaml.split("---\n").find(is_its).unwrap();
    let mut others = snapshot;
    let is_another = |slice: &EndpointSlice| slice.service_name() != Some(service);
    others.endpoint_slices.retain(is_another);
    let mut objects = Followed::new(others);
    let new = slices("slice.yaml", text).unwrap();
    objects.exchange_slices("slice.yaml", new).unwrap();
    objects.prepare();
    (objects, text.to_owned())
}

fn timed<T>(what: &str, step: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = step();
    println!("{what:<48} {:>9.1} ms", start.elapsed().as_secs_f64() * 1e3);
    result
}

fn endpoints(table: &ServiceTable, service: usize) -> Vec<Address> {
    let packet = Tuple {
        source: Address::from_v4([10, 244, 0, 9]),
        destination: Address::from_v4(cluster_ip(service)),
        source_port: 40_000,
        destination_port: 80,
        protocol: Protocol::TCP,
    };
    match table.decide(&packet, Origin::Pod) {
        Decision::Balance { endpoints, .. } => {
            endpoints.iter().map(|endpoint| endpoint.address).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "for its figures"]
fn ten_thousand_services_of_ten_endpoints() {
    let yaml = objects();
    println!("{} bytes of YAML", yaml.len());
    let snapshot = timed("read YAML", || {
        Snapshot::parse("objects.yaml", &yaml).unwrap()
    });
    let config = KubeProxyConfig::default();
    let network = NodeNetwork::from_snapshot(&snapshot.nodes[0]);
    let parts = |snapshot: &Snapshot, generation| {
        compile(
            snapshot,
            &config,
            &network,
            "node-a",
            Generation(generation),
        )
        .unwrap()
    };
    let compiled = timed("compile", || parts(&snapshot, 1));
    let table = timed("index", || ServiceTable::new(compiled, &RandomState::new()));
    assert_eq!(endpoints(&table, 7_000).len(), ENDPOINTS);

    let (mut objects, slice) = slice_of(snapshot, &yaml, "service-7000");
    let slice = slice.replace("10.201.17.112", "10.209.0.2");
    let next = timed("one slice changed: read, compile and share", || {
        let new = slices("slice.yaml", &slice).unwrap();
        let key = ("load".to_owned(), "service-7000".to_owned());
        objects.exchange_slices("slice.yaml", new).unwrap();
        let part = objects.only(&BTreeSet::from([key]), "node-a");
        table.with_changed(parts(&part, 2)).unwrap()
    });
    assert!(endpoints(&next, 7_000).contains(&Address::from_v4([10, 209, 0, 2])));

    let changed = yaml.replace("- 10.201.17.112\n", "- 10.209.0.1\n");
    assert_ne!(changed, yaml);
    let next = timed("one endpoint changed: read YAML", || {
        Snapshot::parse("objects.yaml", &changed).unwrap()
    });
    let next = timed("one endpoint changed: compile and index", || {
        ServiceTable::following(parts(&next, 2), &table)
    });
    assert!(endpoints(&next, 7_000).contains(&Address::from_v4([10, 209, 0, 1])));
    assert!(!endpoints(&table, 7_000).contains(&Address::from_v4([10, 209, 0, 1])));
}
