//! Properties of decisions over random snapshots, asked of `explain` and of the packet's path.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod path;
mod random;

use control::compile::compile;
use control::explain::{Explainer, Verdict};
use control::node_network::NodeNetwork;
use dataplane::service::Generation;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use random::{NODES, config, packet, snapshot, snapshot_objects};

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
