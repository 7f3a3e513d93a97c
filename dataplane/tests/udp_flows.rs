//! When UDP flows end because the endpoints of their Service changed, as kube-proxy's clean-up of stale entries.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::*;
use dataplane::service::{
    Action, EndpointRange, Generation, NodePortAddresses, Parts, ServiceTable, UdpEndpoints,
};
use dataplane::tuple::Origin;
use dataplane::verdict::{DropReason, RejectWith, Verdict};

const NAMES: &Names = &FAMILIES[0];
const OLD: &str = "10.244.3.1";
const NEW: &str = "10.244.3.2";

/// Service 0 (cluster IP 10.96.0.10:80) with one endpoint in use, and what else its slices list.
fn parts(generation: u64, used: Option<&str>, unused: &[&str], serving: bool) -> Parts {
    let mut parts = parts_with(NAMES, used.unwrap_or(OLD), Generation(generation));
    parts.services[0].udp = Some(UdpEndpoints {
        unused: unused
            .iter()
            .map(|unused| (address(unused), 8080))
            .collect(),
        serving,
        is_ipv4: true,
    });
    if used.is_none() {
        for (_, frontend) in parts
            .frontends
            .iter_mut()
            .filter(|claim| claim.1.service.0 == 0)
        {
            frontend.from_pod = Action::Reject;
            frontend.from_outside = Action::Reject;
            frontend.from_local = Action::Reject;
        }
    }
    parts
}

fn start() -> Bed {
    let parts = parts(1, Some(OLD), &[], true);
    let mut bed = Bed::new(ServiceTable::following(parts, &ServiceTable::empty()));
    assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(OLD));
    bed
}

fn publish(bed: &mut Bed, parts: Parts) {
    bed.services = ServiceTable::following(parts, &bed.services);
}

/// The verdict on a question of a client, and where it was sent.
fn ask(bed: &mut Bed, port: u16) -> (Verdict, Option<String>) {
    let client = at(NAMES.other_pod, port);
    let question = udp(b"q").from(&client).to(&at(NAMES.cluster_ip, 80));
    let (verdict, bytes) = bed.send(Origin::Pod, &question);
    let destination = std::net::Ipv4Addr::new(bytes[16], bytes[17], bytes[18], bytes[19]);
    let forwarded = verdict == Verdict::Forward;
    (verdict, forwarded.then(|| destination.to_string()))
}

trait To {
    fn to(self, destination: &str) -> (Verdict, Option<String>);
}

impl To for Verdict {
    fn to(self, destination: &str) -> (Verdict, Option<String>) {
        (self, Some(destination.to_owned()))
    }
}

const REJECTED: (Verdict, Option<String>) = (Verdict::Reject(RejectWith::PortUnreachable), None);

/// For years, as a log is sent, before the first answer comes.
#[test]
fn a_flow_of_a_month_becomes_a_stream() {
    let mut bed = start();
    let seconds = std::time::Duration::from_secs;
    for _ in 0..27 * 24 * 3600 / 25 {
        bed.now = bed.now.after(seconds(25));
        assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(OLD));
    }
    let (client, pod) = (at(NAMES.other_pod, 40_000), at(OLD, 8080));
    let (verdict, _) = bed.send(Origin::Pod, &udp(b"a").from(&pod).to(&client));
    assert_eq!(verdict, Verdict::Forward);
    assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(OLD));
    publish(&mut bed, parts(2, Some(NEW), &[OLD], true));
    bed.now = bed.now.after(seconds(119));
    assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(OLD));
}

#[test]
fn an_endpoint_that_is_listed_but_not_ready_keeps_its_flows_and_gets_no_new_ones() {
    let mut bed = start();
    publish(&mut bed, parts(2, Some(NEW), &[OLD], true));
    assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(OLD));
    assert_eq!(ask(&mut bed, 40_001), Verdict::Forward.to(NEW));
    publish(&mut bed, parts(3, Some(NEW), &[], true));
    assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(NEW));
}

/// The filter table knows nothing of `nodePortAddresses`, and turns away what has no answer yet.
#[test]
fn a_flow_to_the_node_ends_when_a_node_port_that_is_served_elsewhere_loses_its_endpoints() {
    let elsewhere = |generation, used| Parts {
        node_port_addresses_v4: NodePortAddresses::Only(Vec::new()),
        ..parts(generation, used, &[], used.is_some())
    };
    let first = ServiceTable::following(elsewhere(1, Some(OLD)), &ServiceTable::empty());
    let mut bed = Bed::new(first);
    let question = udp(b"q").from(&at(NAMES.client, 40_000));
    let question = question.to(&at(NAMES.node, 30_080));
    assert_eq!(bed.send(Origin::Outside, &question).0, Verdict::Pass);
    publish(&mut bed, elsewhere(2, Some(NEW)));
    assert_eq!(bed.send(Origin::Outside, &question).0, Verdict::Pass);
    publish(&mut bed, elsewhere(3, None));
    assert_eq!(bed.send(Origin::Outside, &question).0, REJECTED.0);
}

/// Its reply tuple is free for others at once, not only with its own next packet.
#[test]
fn a_flow_that_lost_its_place_leaves_its_port_to_another() {
    let mut bed = start();
    publish(&mut bed, parts(2, Some(NEW), &[], true));
    let direct = udp(b"q").from(&at(NAMES.other_pod, 40_000));
    let (verdict, _) = bed.send(Origin::Pod, &direct.to(&at(OLD, 8080)));
    assert_eq!(verdict, Verdict::Pass);
}

#[test]
fn the_last_endpoint_keeps_its_flows_until_another_serves() {
    let mut bed = start();
    publish(&mut bed, parts(2, None, &[OLD], false));
    assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(OLD));
    assert_eq!(ask(&mut bed, 40_001), REJECTED);
    // From none to one serving endpoint: every flow of the Service starts anew.
    publish(&mut bed, parts(3, Some(NEW), &[OLD], true));
    assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(NEW));
}

#[test]
fn a_flow_learns_of_the_first_serving_endpoint_however_late_it_asks() {
    let mut bed = start();
    publish(&mut bed, parts(2, None, &[OLD], false));
    publish(&mut bed, parts(3, Some(NEW), &[OLD], true));
    publish(&mut bed, parts(4, Some(NEW), &[OLD], true));
    assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(NEW));
}

#[test]
fn a_flow_whose_service_went_and_came_back_starts_anew() {
    let mut bed = start();
    let mut without = parts(2, Some(OLD), &[], true);
    without.frontends.clear();
    without.services.clear();
    publish(&mut bed, without);
    publish(&mut bed, parts(3, Some(NEW), &[OLD], true));
    assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(NEW));
}

/// The table says nothing of ranges that moved: endpoints are compared by address and port.
#[test]
fn a_flow_stays_when_its_endpoint_is_at_another_place_of_the_table() {
    let mut bed = start();
    let mut moved = parts(2, Some(OLD), &[], true);
    let other = parts(2, Some(NEW), &[], true).services.swap_remove(0);
    let service = &mut moved.services[0];
    service.endpoints = [other.endpoints[0], service.endpoints[0]].into();
    let range = EndpointRange::new(1, 1).unwrap();
    for (_, frontend) in moved
        .frontends
        .iter_mut()
        .filter(|claim| claim.1.service.0 == 0)
    {
        let masquerade = false;
        frontend.from_pod = Action::Balance {
            endpoints: range,
            masquerade,
        };
    }
    publish(&mut bed, moved);
    let entries = bed.conntrack.len();
    assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(OLD));
    assert_eq!(bed.conntrack.len(), entries);
}

#[test]
fn a_family_that_is_served_does_not_hide_the_other_getting_its_first_endpoint() {
    let other_family = |generation| {
        let mut parts = parts(generation, Some(OLD), &[], false);
        let mut service = parts.services[0].clone();
        service.udp = Some(UdpEndpoints {
            serving: true,
            ..UdpEndpoints::default()
        });
        parts.services.push(service);
        parts
    };
    let mut bed = Bed::new(ServiceTable::following(
        other_family(1),
        &ServiceTable::empty(),
    ));
    assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(OLD));
    let mut served = other_family(2);
    served.services[0].udp.as_mut().unwrap().serving = true;
    let new = parts(2, Some(NEW), &[], true).services.swap_remove(0);
    served.services[0].endpoints = new.endpoints;
    let endpoint = (address(OLD), 8080);
    served.services[0]
        .udp
        .as_mut()
        .unwrap()
        .unused
        .push(endpoint);
    publish(&mut bed, served);
    assert_eq!(ask(&mut bed, 40_000), Verdict::Forward.to(NEW));
}

#[test]
fn an_error_about_a_flow_that_lost_its_place_is_about_nothing() {
    let mut bed = start();
    let question = udp(b"q")
        .from(&at(NAMES.other_pod, 40_000))
        .to(&at(NAMES.cluster_ip, 80));
    let (_, sent) = bed.send(Origin::Pod, &question);
    let error = icmp_error(3, 3, &sent).from(OLD).to(NAMES.other_pod);
    assert_eq!(bed.send(Origin::Outside, &error).0, Verdict::Forward);
    publish(&mut bed, parts(2, Some(NEW), &[], true));
    bed.expect_untouched(Origin::Outside, &error, Verdict::Drop(DropReason::Invalid));
}
