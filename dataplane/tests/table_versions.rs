//! Versions of a table that share what they have in common.

#![expect(clippy::unwrap_used, reason = "a test may")]

use dataplane::service::{
    Action, Decision, Endpoint, EndpointRange, Frontend, FrontendKey, FrontendKind, Generation,
    Parts, Selection, Service, ServiceIndex, ServiceTable,
};
use dataplane::tuple::{Address, Origin, Protocol, Tuple};
use std::hash::RandomState;

/// More than are kept in one piece.
const SERVICES: u32 = 500;
const SHARED: Address = Address::from_v4([203, 0, 113, 1]);

fn cluster_ip(number: u32) -> Address {
    Address::from_v4([10, 96, (number >> 8) as u8, number as u8])
}

/// Services by their numbers, each with one endpoint in 10.(200 + generation).0.0/16 and two frontends: a cluster IP of
/// its own, and an external IP that all claim, so that all of these must stay together.
fn parts(numbers: impl Iterator<Item = u32>, generation: u64) -> Parts {
    let mut parts = Parts::empty(Generation(generation));
    for (position, number) in numbers.enumerate() {
        let address = [
            10,
            200 + generation as u8,
            (number >> 8) as u8,
            number as u8,
        ];
        parts.services.push(Service {
            name: format!("test/service-{number}:port").into(),
            selection: Selection::Random,
            affinity_timeout: None,
            udp: None,
            endpoints: [Endpoint {
                address: Address::from_v4(address),
                port: 8080,
                masquerade_address: None,
                on_node: false,
            }]
            .into(),
        });
        for (address, kind) in [
            (cluster_ip(number), FrontendKind::ClusterIp),
            (SHARED, FrontendKind::ExternalIp),
        ] {
            let frontend = frontend(ServiceIndex(position as u32), kind);
            parts.frontends.push((key(address), frontend));
        }
    }
    parts
}

fn key(address: Address) -> FrontendKey {
    FrontendKey {
        address,
        port: 80,
        protocol: Protocol::TCP,
    }
}

fn frontend(service: ServiceIndex, kind: FrontendKind) -> Frontend {
    let balance = Action::Balance {
        endpoints: EndpointRange::new(0, 1).unwrap(),
        masquerade: false,
    };
    Frontend {
        service,
        kind,
        from_pod: balance,
        from_local: balance,
        from_outside: balance,
        source_ranges: Vec::new(),
    }
}

/// The Service that serves an address, and its endpoint.
fn served(table: &ServiceTable, address: Address) -> (String, Address) {
    let packet = Tuple {
        source: Address::from_v4([10, 244, 0, 9]),
        destination: address,
        source_port: 40_000,
        destination_port: 80,
        protocol: Protocol::TCP,
    };
    match table.decide(&packet, Origin::Pod) {
        Decision::Balance {
            service, endpoints, ..
        } => (
            table.service(service).name.to_string(),
            endpoints[0].address,
        ),
        other => panic!("{other:?}"),
    }
}

fn expected(number: u32, generation: u8) -> (String, Address) {
    let address = [10, 200 + generation, (number >> 8) as u8, number as u8];
    let name = format!("test/service-{number}:port");
    (name, Address::from_v4(address))
}

#[test]
fn of_many_services_those_that_changed_are_served_anew() {
    let first = ServiceTable::new(parts(0..SERVICES, 1), &RandomState::new());
    let second = first.with_changed(parts([70, 499].into_iter(), 2)).unwrap();
    let third = second.with_changed(parts([0, 70].into_iter(), 3)).unwrap();
    assert_eq!(third.generation(), Generation(3));
    assert_eq!(third.service_count(), SERVICES as usize);
    assert_eq!(third.endpoint_count(), SERVICES as usize);
    for number in 0..SERVICES {
        let (in_second, in_third) = match number {
            0 => (1, 3),
            70 => (2, 3),
            499 => (2, 2),
            _ => (1, 1),
        };
        let address = cluster_ip(number);
        assert_eq!(served(&first, address), expected(number, 1));
        assert_eq!(served(&second, address), expected(number, in_second));
        assert_eq!(served(&third, address), expected(number, in_third));
    }
    // The first of those that claim it.
    assert_eq!(served(&second, SHARED), expected(0, 1));
    assert_eq!(served(&third, SHARED), expected(0, 3));
}

#[test]
fn a_frontend_that_is_new_makes_a_whole_table_due() {
    let table = ServiceTable::new(parts(0..SERVICES, 1), &RandomState::new());
    let news = parts([SERVICES].into_iter(), 2);
    assert!(table.with_changed(news).is_none());
    let mut moved = parts([7].into_iter(), 2);
    moved.frontends[0].1.kind = FrontendKind::LoadBalancerIp;
    assert!(table.with_changed(moved).is_none());
    let mut of_another = parts([7].into_iter(), 2);
    of_another.frontends[0].0 = key(cluster_ip(8));
    assert!(table.with_changed(of_another).is_none());
}
