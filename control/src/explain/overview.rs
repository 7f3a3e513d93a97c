//! How each kind of client reaches a Service, from every node.

use super::{Explainer, Explanation, Packet, warnings};
use crate::model::{Family, ServicePort};
use crate::snapshot::Service;
use dataplane::service::SourceClass;
use dataplane::tuple::Origin;
use serde::Serialize;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The whole picture of one Service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overview {
    /// `namespace/name`.
    pub service: String,
    /// What usually goes wrong, where it would here.
    pub warnings: Vec<String>,
    /// One per node, client and address.
    pub ways: Vec<Way>,
}

/// One way to the Service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Way {
    /// The node where the packet is first seen.
    pub node: String,
    /// `pod`, `node` or `outside`.
    pub client: &'static str,
    /// A source address of that kind.
    pub from: IpAddr,
    /// `clusterIP`, `externalIP`, `loadBalancerIP` or `nodePort`.
    pub via: &'static str,
    /// The address and port that the client uses.
    pub to: SocketAddr,
    /// The protocol.
    pub protocol: String,
    /// What becomes of it.
    #[serde(flatten)]
    pub explanation: Explanation,
}

/// How clients reach `service`, as each of `nodes` sees it.
pub fn of(service: &Service, nodes: &[Explainer<'_>]) -> Overview {
    let mut ways = Vec::new();
    for explainer in nodes {
        for service_port in warnings::service_ports(explainer, service) {
            for (via, to) in addresses(explainer, service_port) {
                for (client, source, origin) in clients(explainer, service_port.family) {
                    let packet = Packet {
                        source,
                        source_port: 40_000,
                        origin,
                        destination: to,
                        protocol: service_port.name.protocol,
                    };
                    ways.push(way(explainer, client, via, &packet));
                }
            }
        }
    }
    Overview {
        service: format!("{}/{}", service.metadata.namespace, service.metadata.name),
        warnings: warnings::of(service, nodes),
        ways,
    }
}

fn way(explainer: &Explainer<'_>, client: &'static str, via: &'static str, packet: &Packet) -> Way {
    Way {
        node: explainer.node_name.to_owned(),
        client,
        from: packet.source,
        via,
        to: packet.destination,
        protocol: packet.protocol.to_string(),
        explanation: explainer.explain(packet),
    }
}

fn addresses(
    explainer: &Explainer<'_>,
    service_port: &ServicePort,
) -> Vec<(&'static str, SocketAddr)> {
    let at = |address: IpAddr| SocketAddr::new(address, service_port.port);
    let mut addresses = vec![("clusterIP", at(service_port.cluster_ip))];
    addresses.extend(
        service_port
            .external_ips
            .iter()
            .map(|address| ("externalIP", at(*address))),
    );
    addresses.extend(
        service_port
            .load_balancer_vips
            .iter()
            .map(|address| ("loadBalancerIP", at(*address))),
    );
    if let (Some(port), Some(address)) = (
        service_port.node_port,
        own_address(explainer, service_port.family),
    ) {
        addresses.push(("nodePort", SocketAddr::new(address, port)));
    }
    addresses
}

fn own_address(explainer: &Explainer<'_>, family: Family) -> Option<IpAddr> {
    let node = explainer.snapshot.node(explainer.node_name)?;
    node.host_ips()
        .find(|address| Family::of(*address) == family)
}

/// One of each kind. What counts as a pod depends on the detector, so an address is tried before it is taken.
fn clients(explainer: &Explainer<'_>, family: Family) -> Vec<(&'static str, IpAddr, Origin)> {
    let outside: IpAddr = match family {
        Family::V4 => [192, 0, 2, 1].into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into(),
    };
    let pod = pod_address(explainer, family).unwrap_or(outside);
    let mut clients = Vec::new();
    if explainer.table.class(pod.into(), Origin::Pod) == SourceClass::Pod {
        clients.push(("pod", pod, Origin::Pod));
    }
    clients.extend(own_address(explainer, family).map(|own| ("node", own, Origin::Node)));
    clients.push(("outside", outside, Origin::Outside));
    clients
}

/// The last address of the node's pod range, else of the cluster's: seldom an endpoint, which would be hairpin.
fn pod_address(explainer: &Explainer<'_>, family: Family) -> Option<IpAddr> {
    let node = explainer.snapshot.node(explainer.node_name)?;
    let of_family = |range: &ipnet::IpNet| Family::of(range.addr()) == family;
    let own = node.pod_cidrs().find(of_family);
    let range = own.or_else(|| explainer.config.cluster_cidr(family))?;
    Some(match range.broadcast() {
        IpAddr::V4(last) => IpAddr::from((last.to_bits() & !1).to_be_bytes()),
        IpAddr::V6(last) => IpAddr::from((last.to_bits() & !1).to_be_bytes()),
    })
}
