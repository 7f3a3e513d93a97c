//! How endpoints are chosen, packet by packet.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::*;
use dataplane::service::{
    Action, Endpoint, EndpointRange, Generation, Parts, Selection, ServiceTable,
};
use dataplane::tuple::Origin;
use dataplane::verdict::Verdict;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::RandomState;
use std::net::IpAddr;
use std::time::Duration;

const CLUSTER_IP: &str = "10.96.0.10:80";

/// Cluster IP 10.96.0.10:80 with endpoints 10.244.3.N:8080.
fn parts(selection: Selection, endpoints: &[u8]) -> Parts {
    let names = &FAMILIES[0];
    let mut parts = parts_with(names, names.pod, Generation(1));
    parts.services.truncate(1);
    parts.services[0].endpoints = endpoints
        .iter()
        .map(|last| Endpoint {
            address: address(&format!("10.244.3.{last}")),
            port: 8080,
            masquerade_address: Some(address(names.node)),
            on_node: false,
        })
        .collect();
    parts.services[0].selection = selection;
    parts
        .frontends
        .retain(|(key, _)| key.address == address("10.96.0.10") && key.port == 80);
    let balance = Action::Balance {
        endpoints: EndpointRange::new(0, endpoints.len() as u32).unwrap(),
        masquerade: false,
    };
    for (_, frontend) in &mut parts.frontends {
        (frontend.from_pod, frontend.from_outside) = (balance, balance);
    }
    parts
}

fn bed(selection: Selection, endpoints: &[u8]) -> Bed {
    Bed::new(ServiceTable::new(
        parts(selection, endpoints),
        &RandomState::new(),
    ))
}

/// Publishes the next table.
fn publish(bed: &mut Bed, mut parts: Parts) {
    parts.generation = Generation(bed.services.generation().0 + 1);
    bed.services = ServiceTable::following(parts, &bed.services);
}

/// The last byte of the endpoint that a packet is sent to.
fn sent_to(bed: &mut Bed, packet: &Build) -> u8 {
    let (verdict, bytes) = bed.send(Origin::Pod, packet);
    assert_eq!(verdict, Verdict::Forward, "{packet:?}");
    bytes[19]
}

fn syn(client: u8, port: u16) -> Build {
    let client = format!("10.244.9.{client}:{port}");
    tcp(SYN).from(&client).to(CLUSTER_IP)
}

/// How many of `count` new connections each endpoint gets.
fn spread(bed: &mut Bed, count: u16) -> BTreeMap<u8, usize> {
    let mut spread = BTreeMap::new();
    for port in 0..count {
        *spread
            .entry(sent_to(bed, &syn(1, 10_000 + port)))
            .or_default() += 1;
    }
    spread
}

#[test]
fn random_reaches_every_endpoint_about_as_often() {
    let mut bed = bed(Selection::Random, &[1, 2, 3]);
    let spread = spread(&mut bed, 600);
    assert_eq!(spread.len(), 3);
    assert!(
        spread.values().all(|count| (150..250).contains(count)),
        "{spread:?}"
    );
}

fn with_affinity(endpoints: &[u8]) -> Parts {
    let mut parts = parts(Selection::Random, endpoints);
    parts.services[0].affinity_timeout = Some(Duration::from_secs(60));
    parts
}

#[test]
fn a_client_with_affinity_goes_to_the_first_endpoint_that_it_was_given() {
    let mut bed = bed(Selection::Random, &[1]);
    publish(&mut bed, with_affinity(&[2]));
    assert_eq!(sent_to(&mut bed, &syn(1, 10_000)), 2);
    // Where endpoint 2 may not be chosen, as by policy Local.
    publish(&mut bed, with_affinity(&[1]));
    assert_eq!(sent_to(&mut bed, &syn(1, 10_001)), 1);
    publish(&mut bed, with_affinity(&[3, 1, 4, 2]));
    assert_eq!(sent_to(&mut bed, &syn(1, 10_002)), 1);
    publish(&mut bed, with_affinity(&[3, 2, 4, 1]));
    assert_eq!(sent_to(&mut bed, &syn(1, 10_003)), 2);
}

#[test]
fn an_endpoint_that_leaves_forgets_its_clients() {
    let mut bed = bed(Selection::Random, &[1]);
    publish(&mut bed, with_affinity(&[1, 2]));
    for client in 1..=40 {
        sent_to(&mut bed, &syn(client, 10_000));
    }
    bed.affinity.follow(&bed.services);
    assert_eq!(bed.affinity.len(), 40);
    publish(&mut bed, with_affinity(&[2]));
    bed.affinity.follow(&bed.services);
    let of_the_other = bed.affinity.len();
    assert!((1..40).contains(&of_the_other), "{of_the_other}");
    publish(&mut bed, parts(Selection::Random, &[2]));
    bed.affinity.follow(&bed.services);
    assert!(bed.affinity.is_empty());
}

#[test]
fn round_robin_goes_on_where_the_table_before_left_off() {
    let mut bed = bed(Selection::RoundRobin, &[1, 2, 3]);
    assert_eq!(sent_to(&mut bed, &syn(1, 1)), 1);
    assert_eq!(sent_to(&mut bed, &syn(1, 2)), 2);
    publish(&mut bed, parts(Selection::RoundRobin, &[1, 2, 3]));
    assert_eq!(sent_to(&mut bed, &syn(1, 3)), 3);
    assert_eq!(sent_to(&mut bed, &syn(1, 4)), 1);
}

#[test]
fn source_hash_keeps_a_client_with_its_endpoint() {
    let mut bed = bed(Selection::SourceHash, &[1, 2, 3]);
    let mut used = BTreeSet::new();
    for client in 0..30 {
        let endpoint = sent_to(&mut bed, &syn(client, 1));
        assert_eq!(sent_to(&mut bed, &syn(client, 2)), endpoint);
        used.insert(endpoint);
    }
    assert_eq!(used.len(), 3);
}

#[test]
fn maglev_sends_a_flow_alike_on_every_node_and_moves_only_those_of_a_gone_endpoint() {
    let all = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    let (mut one, mut other) = (bed(Selection::Maglev, &all), bed(Selection::Maglev, &all));
    let mut without = bed(Selection::Maglev, &all[1..]);
    other.rng.seed(99);
    let (mut moved, flows) = (0, 2000);
    for port in 0..flows {
        let flow = syn(1, 10_000 + port);
        let endpoint = sent_to(&mut one, &flow);
        assert_eq!(sent_to(&mut other, &flow), endpoint);
        if endpoint == all[0] {
            moved += 1;
        } else {
            assert_eq!(sent_to(&mut without, &flow), endpoint);
        }
    }
    let bound = usize::from(flows) * 3 / (2 * all.len());
    assert!((1..=bound).contains(&moved), "{moved} of {flows}");
}

#[test]
fn least_connections_fills_up_the_emptiest() {
    let mut bed = bed(Selection::LeastConnections, &[1, 2, 3]);
    assert_eq!(
        spread(&mut bed, 9),
        BTreeMap::from([(1, 3), (2, 3), (3, 3)])
    );
    // A new endpoint gets all new connections until it has as many as the others; a new table forgets nothing.
    publish(&mut bed, parts(Selection::LeastConnections, &[1, 2, 3, 4]));
    for port in 0..3 {
        assert_eq!(sent_to(&mut bed, &syn(2, port)), 4);
    }
}

#[test]
fn least_connections_counts_what_is_in_the_table_and_forgets_what_has_ended() {
    let mut bed = bed(Selection::LeastConnections, &[1, 2]);
    let query = |port: u16| {
        let client = format!("10.244.9.1:{port}");
        udp(b"q").from(&client).to(CLUSTER_IP)
    };
    let mut clients = BTreeMap::new();
    for port in 0..10 {
        clients.insert(port, sent_to(&mut bed, &query(port)));
    }
    // Only those of endpoint 2 go on; the others are forgotten after 30 s of silence.
    bed.wait(Duration::from_secs(20));
    for (port, _) in clients.iter().filter(|(_, endpoint)| **endpoint == 2) {
        sent_to(&mut bed, &query(*port));
    }
    bed.wait(Duration::from_secs(20));
    bed.services
        .loads()
        .recount(&bed.services, &bed.conntrack, bed.now);
    for port in 100..105 {
        assert_eq!(sent_to(&mut bed, &query(port)), 1);
    }
}

#[test]
fn a_connection_that_is_not_established_weighs_little() {
    let mut bed = bed(Selection::LeastConnections, &[1, 2]);
    let first = sent_to(&mut bed, &udp(b"q").from("10.244.9.1:1").to(CLUSTER_IP));
    // Many half-open connections weigh less than the one UDP flow.
    for port in 0..20 {
        sent_to(&mut bed, &syn(3, port));
        bed.services
            .loads()
            .recount(&bed.services, &bed.conntrack, bed.now);
    }
    let mut to = BTreeMap::<IpAddr, usize>::new();
    bed.conntrack.for_each(bed.now, |entry| {
        *to.entry(entry.reply.source.into()).or_default() += 1;
    });
    let first: IpAddr = format!("10.244.3.{first}").parse().unwrap();
    assert_eq!(to[&first], 1, "{to:?}");
}
