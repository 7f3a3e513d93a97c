//! Properties of decisions over random snapshots, asked of `explain` and of the packet's path.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod path;
mod random;

use control::compile::compile;
use control::explain::{Explainer, Verdict};
use control::node_network::NodeNetwork;
use control::snapshot::{Followed, Snapshot};
use dataplane::service::{Decision, Generation, ServiceTable};
use dataplane::tuple::{Address, Tuple};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use random::{NODES, config, packet, snapshot, snapshot_objects};
use serde_json::Value;
use std::collections::BTreeSet;
use std::hash::RandomState;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn probabilities_sum_to_one_where_packets_are_forwarded(
        objects in snapshot_objects(),
        packets in prop::collection::vec(packet(), 32),
        masquerade_all in any::<bool>(),
        detector in select(vec!["", "10.244.0.0/16"]),
    ) {
        let snapshot = snapshot(&objects);
        let config = config(masquerade_all, detector);
        for node in NODES {
            let explainer = Explainer::new(&snapshot, &config, node).unwrap();
            for packet in &packets {
                let answer = explainer.explain(packet);
                let total: f64 = answer.endpoints.iter().map(|candidate| candidate.probability).sum();
                let expected = if answer.verdict == Verdict::Forward { 1.0 } else { 0.0 };
                prop_assert!((total - expected).abs() < 1e-9, "{answer:?}");
                prop_assert_eq!(answer.service.is_none(), answer.verdict == Verdict::Pass);
                prop_assert!(!answer.reason.is_empty());
            }
        }
    }

    #[test]
    fn compiling_twice_gives_the_same_table(objects in snapshot_objects()) {
        let config = config(false, "10.244.0.0/16");
        let compiled = || {
            let snapshot = snapshot(&objects);
            let network = NodeNetwork::from_snapshot(&snapshot.nodes[0]);
            format!("{:?}", compile(&snapshot, &config, &network, "node-a", Generation(7)).unwrap())
        };
        prop_assert_eq!(compiled(), compiled());
    }

    #[test]
    fn a_table_whose_slices_changed_decides_as_one_that_was_compiled_anew(
        objects in snapshot_objects(),
        others in snapshot_objects(),
        service in 0..4usize,
        packets in prop::collection::vec(packet(), 64),
    ) {
        let name = format!("s{service}");
        let is_slice_of_it = |object: &Value| object["metadata"]["labels"]["kubernetes.io/service-name"] == *name;
        let stay = objects.iter().filter(|object| !is_slice_of_it(object));
        let changed: Vec<Value> = stay.chain(others.iter().filter(|object| is_slice_of_it(object))).cloned().collect();
        let (before, after) = (snapshot(&objects), snapshot(&changed));
        let part = Followed::new(after.clone()).only(&BTreeSet::from([("demo".to_owned(), name)]), "node-a");
        let config = config(false, "10.244.0.0/16");
        let network = NodeNetwork::from_snapshot(&before.nodes[0]);
        let parts = |snapshot: &Snapshot, generation| {
            compile(snapshot, &config, &network, "node-a", Generation(generation)).unwrap()
        };
        let table = ServiceTable::new(parts(&before, 1), &RandomState::new());
        let followed = table.with_changed(parts(&part, 2)).unwrap();
        let anew = ServiceTable::following(parts(&after, 2), &table);
        prop_assert_eq!(followed.generation(), Generation(2));
        for packet in &packets {
            let decide = |table: &ServiceTable| format!("{:?}", table.decide(&packet.tuple(), packet.origin));
            prop_assert_eq!(decide(&followed), decide(&anew));
            let stale = |table: &ServiceTable| {
                let reply = Tuple { source: Address::from_v4([10, 244, 0, 5]), source_port: 8080, ..packet.tuple().inverse() };
                let service = match table.decide(&packet.tuple(), packet.origin) {
                    Decision::Balance { service, .. } => Some(table.service_id(service)),
                    _ => None,
                };
                table.is_stale(&packet.tuple(), &reply, service, Generation(1))
            };
            prop_assert_eq!(stale(&followed), stale(&anew));
        }
    }

    #[test]
    fn the_order_of_documents_does_not_matter(
        objects in snapshot_objects(),
        swaps in prop::collection::vec((any::<Index>(), any::<Index>()), 8),
        packets in prop::collection::vec(packet(), 32),
    ) {
        let mut shuffled = objects.clone();
        for (a, b) in swaps {
            let (a, b) = (a.index(shuffled.len()), b.index(shuffled.len()));
            shuffled.swap(a, b);
        }
        let (one, other) = (snapshot(&objects), snapshot(&shuffled));
        let config = config(false, "10.244.0.0/16");
        for node in NODES {
            let one = Explainer::new(&one, &config, node).unwrap();
            let other = Explainer::new(&other, &config, node).unwrap();
            for packet in &packets {
                prop_assert_eq!(one.explain(packet), other.explain(packet));
            }
        }
    }
}
