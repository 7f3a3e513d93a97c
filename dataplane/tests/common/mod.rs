//! The language of the packet tables: build a packet, send it, expect a verdict and a packet.
//!
//! The builder has its own, naive checksums, so that it is a second opinion on those of the library.
#![allow(dead_code, reason = "each test file uses its part")]

use dataplane::conntrack::{Conntrack, Settings};
use dataplane::fragments::Fragments;
use dataplane::frame::Frame;
use dataplane::notices::Notices;
use dataplane::path::{self, Context, Openings, Prepared};
use dataplane::ports::ReservedPorts;
use dataplane::select::Affinity;
use dataplane::service::{
    Action, Endpoint, EndpointRange, Frontend, FrontendKey, FrontendKind, Generation,
    LocalDetector, NodePortAddresses, Parts, Prefix, Selection, Service, ServiceIndex,
    ServiceTable, UdpEndpoints,
};
use dataplane::tuple::{Address, Origin, Protocol, Timestamp};
use dataplane::verdict::Verdict;
use dataplane::worker::Shared;
use fastrand::Rng;
use std::hash::RandomState;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// A packet to be.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub body: Body,
    pub hops: u8,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Tcp {
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        payload: Vec<u8>,
    },
    Udp {
        payload: Vec<u8>,
        checksum: bool,
    },
    /// Type, code, the four bytes behind the checksum, the rest.
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
        payload: Vec<u8>,
    },
}

fn build(body: Body) -> Build {
    let nobody = "0.0.0.0:0".parse().unwrap();
    Build {
        source: nobody,
        destination: nobody,
        body,
        hops: 63,
    }
}

pub(crate) fn tcp(flags: u8) -> Build {
    build(Body::Tcp {
        flags,
        sequence: 1000,
        acknowledgement: 0,
        payload: Vec::new(),
    })
}

pub(crate) fn udp(payload: &[u8]) -> Build {
    build(Body::Udp {
        payload: payload.to_vec(),
        checksum: true,
    })
}

pub(crate) fn echo_request(family_of: &str, identifier: u16) -> Build {
    let kind = if family_of.contains(':') { 128 } else { 8 };
    let [high, low] = identifier.to_be_bytes();
    build(Body::Icmp {
        kind,
        code: 0,
        rest: [high, low, 0, 1],
        payload: b"ping".to_vec(),
    })
}

/// An ICMP error that quotes `quoted`.
pub(crate) fn icmp_error(kind: u8, code: u8, quoted: &[u8]) -> Build {
    build(Body::Icmp {
        kind,
        code,
        rest: [0; 4],
        payload: quoted.to_vec(),
    })
}

/// `address` or `address:port`, IPv6 with a port in brackets.
pub(crate) fn socket(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|_| SocketAddr::new(text.parse::<IpAddr>().expect(text), 0))
}

impl Build {
    pub(crate) fn from(mut self, source: &str) -> Self {
        self.source = socket(source);
        self
    }

    pub(crate) fn to(mut self, destination: &str) -> Self {
        self.destination = socket(destination);
        self
    }

    pub(crate) fn sequence(mut self, sequence_: u32, acknowledgement_: u32) -> Self {
        if let Body::Tcp {
            sequence,
            acknowledgement,
            ..
        } = &mut self.body
        {
            (*sequence, *acknowledgement) = (sequence_, acknowledgement_);
        }
        self
    }

    /// The data of a TCP segment.
    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        if let Body::Tcp { payload, .. } = &mut self.body {
            *payload = data.to_vec();
        }
        self
    }

    pub(crate) fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    pub(crate) fn without_checksum(mut self) -> Self {
        if let Body::Udp { checksum, .. } = &mut self.body {
            *checksum = false;
        }
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut packet = vec![
                    0x45,
                    0,
                    0,
                    0,
                    0x12,
                    0x34,
                    0x40,
                    0,
                    self.hops,
                    self.protocol(),
                ];
                packet.extend([0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                let total = (packet.len() + transport.len()) as u16;
                packet[2..4].copy_from_slice(&total.to_be_bytes());
                let checksum = !naive_sum(&packet);
                packet[10..12].copy_from_slice(&checksum.to_be_bytes());
                packet.extend(transport);
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend((transport.len() as u16).to_be_bytes());
                packet.extend([self.protocol(), self.hops]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(transport);
                packet
            }
            (source, destination) => panic!("two families: {source} -> {destination}"),
        }
    }

    fn protocol(&self) -> u8 {
        match self.body {
            Body::Tcp { .. } => 6,
            Body::Udp { .. } => 17,
            Body::Icmp { .. } if self.source.is_ipv4() => 1,
            Body::Icmp { .. } => 58,
        }
    }

    fn transport(&self) -> Vec<u8> {
        let (mut bytes, at) = match &self.body {
            Body::Tcp {
                flags,
                sequence,
                acknowledgement,
                payload,
            } => {
                let mut bytes = Vec::new();
                bytes.extend(self.source.port().to_be_bytes());
                bytes.extend(self.destination.port().to_be_bytes());
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(acknowledgement.to_be_bytes());
                bytes.extend([0x50, *flags, 0xfa, 0xf0, 0, 0, 0, 0]);
                bytes.extend(payload);
                (bytes, Some(16))
            }
            Body::Udp { payload, checksum } => {
                let mut bytes = Vec::new();
                bytes.extend(self.source.port().to_be_bytes());
                bytes.extend(self.destination.port().to_be_bytes());
                bytes.extend((payload.len() as u16 + 8).to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(payload);
                (bytes, checksum.then_some(6))
            }
            Body::Icmp {
                kind,
                code,
                rest,
                payload,
            } => {
                let mut bytes = vec![*kind, *code, 0, 0];
                bytes.extend(rest);
                bytes.extend(payload);
                (bytes, Some(2))
            }
        };
        if let Some(at) = at {
            let checksum =
                match !naive_sum(&[self.pseudo_header(bytes.len()), bytes.clone()].concat()) {
                    0 if self.protocol() == 17 => 0xffff,
                    checksum => checksum,
                };
            bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        bytes
    }

    fn pseudo_header(&self, length: usize) -> Vec<u8> {
        let mut pseudo = Vec::new();
        match (self.source.ip(), self.destination.ip()) {
            _ if self.protocol() == 1 => return pseudo,
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                pseudo.extend(source.octets());
                pseudo.extend(destination.octets());
            }
            (source, destination) => {
                for address in [source, destination] {
                    let IpAddr::V6(address) = address else {
                        panic!("two families")
                    };
                    pseudo.extend(address.octets());
                }
            }
        }
        pseudo.extend([0, self.protocol()]);
        pseudo.extend((length as u16).to_be_bytes());
        pseudo
    }
}

pub(crate) fn naive_sum(bytes: &[u8]) -> u16 {
    let mut total = 0u32;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// What the workers of a node share that has seen no packet yet.
pub(crate) fn shared(settings: Settings, services: ServiceTable) -> Shared {
    Shared::new(Conntrack::new(settings, [1, 2, 3, 4]), services)
}

/// A node with Services, a clock that stands still and a seeded source of randomness.
pub(crate) struct Bed {
    pub conntrack: Conntrack,
    pub services: ServiceTable,
    pub affinity: Affinity,
    pub reserved_ports: ReservedPorts,
    pub fragments: Fragments,
    pub notices: Notices,
    pub rng: Rng,
    pub now: Timestamp,
    /// The fragments of the last whole datagram.
    pub datagram: Vec<Vec<u8>>,
}

impl Bed {
    pub(crate) fn new(services: ServiceTable) -> Self {
        Self::with_capacity(services, 4096)
    }

    /// A node that holds that many connections.
    pub(crate) fn with_capacity(services: ServiceTable, connections: usize) -> Self {
        Self {
            conntrack: Conntrack::new(Settings::kube_proxy(connections), [1, 2, 3, 4]),
            services,
            affinity: Affinity::default(),
            reserved_ports: ReservedPorts::default(),
            fragments: Fragments::default(),
            notices: Notices::default(),
            rng: Rng::with_seed(7),
            now: Timestamp::from_seconds(1000),
            datagram: Vec::new(),
        }
    }

    pub(crate) fn wait(&mut self, duration: Duration) {
        self.now = self.now.after(duration);
    }

    /// Sends bytes; returns the verdict and what the frame holds after it.
    pub(crate) fn send_bytes(&mut self, origin: Origin, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        let mut frame = Frame::from_packet(bytes);
        self.send_frame(origin, &mut frame)
    }

    pub(crate) fn send_frame(&mut self, origin: Origin, frame: &mut Frame) -> (Verdict, Vec<u8>) {
        let mut context = Context {
            conntrack: &self.conntrack,
            services: &self.services,
            affinity: &self.affinity,
            reserved_ports: &self.reserved_ports,
            fragments: &self.fragments,
            notices: &self.notices,
            openings: &mut Openings::default(),
            datagram: Vec::new(),
            forward_invalid: false,
            rng: &mut self.rng,
            now: self.now,
        };
        let prepared = Prepared::new(&self.conntrack, frame);
        let verdict = path::process_alone(&mut context, origin, frame, &prepared);
        self.datagram = context
            .datagram
            .iter()
            .map(|frame| frame.packet().to_vec())
            .collect();
        (verdict, frame.packet().to_vec())
    }

    pub(crate) fn send(&mut self, origin: Origin, packet: &Build) -> (Verdict, Vec<u8>) {
        self.send_bytes(origin, &packet.bytes())
    }

    /// Sends `packet` and expects `verdict`; the packet must not change but for its hop.
    #[track_caller]
    pub(crate) fn expect_untouched(&mut self, origin: Origin, packet: &Build, verdict: Verdict) {
        let (got, bytes) = self.send(origin, packet);
        assert_eq!(got, verdict, "{packet:?}");
        assert_eq!(
            bytes,
            packet.clone().hops(packet.hops + 1).bytes(),
            "{packet:?}"
        );
    }

    /// Sends `packet` and expects it to be forwarded as `expected`, byte for byte.
    #[track_caller]
    pub(crate) fn expect_forward(&mut self, origin: Origin, packet: &Build, expected: &Build) {
        let (got, bytes) = self.send(origin, packet);
        assert_eq!(got, Verdict::Forward, "{packet:?}");
        assert_eq!(
            bytes,
            expected.clone().hops(packet.hops + 1).bytes(),
            "{packet:?}"
        );
    }
}

/// The addresses of one family that the tables speak of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    pub client: &'static str,
    pub pod: &'static str,
    pub other_pod: &'static str,
    pub node: &'static str,
    pub cluster_ip: &'static str,
    pub vip: &'static str,
    pub router: &'static str,
    pub pods: &'static str,
}

pub(crate) const FAMILIES: [Names; 2] = [
    Names {
        client: "198.51.100.10",
        pod: "10.244.1.10",
        other_pod: "10.244.2.20",
        node: "172.18.0.2",
        cluster_ip: "10.96.0.10",
        vip: "203.0.113.1",
        router: "192.0.2.1",
        pods: "10.244.0.0",
    },
    Names {
        client: "2001:db8:ffff::10",
        pod: "fd00:10:244:1::10",
        other_pod: "fd00:10:244:2::20",
        node: "fd00:18::2",
        cluster_ip: "fd00:10:96::10",
        vip: "2001:db8::1",
        router: "2001:db8:1::1",
        pods: "fd00:10:244::",
    },
];

/// `address` with `port`.
pub(crate) fn at(address: &str, port: u16) -> String {
    SocketAddr::new(address.parse().expect(address), port).to_string()
}

pub(crate) fn address(text: &str) -> Address {
    Address::from(text.parse::<IpAddr>().expect(text))
}

/// One Service per name below, with an endpoint at `pod`:8080; NodePorts are 30000 and up.
///
/// 80 → everything as kube-proxy does by default; NodePort 30080; 81 → no endpoints; NodePort 30081; 82 → external
/// policy Local without local endpoint; 83 → source ranges that hold only `client`; 84 → endpoint on the node itself.
pub(crate) fn services(names: &Names) -> ServiceTable {
    services_with(names, names.pod, Generation(1))
}

pub(crate) fn services_with(names: &Names, endpoint: &str, generation: Generation) -> ServiceTable {
    ServiceTable::new(parts_with(names, endpoint, generation), &RandomState::new())
}

/// What [`services`] is made of, with another pod as the endpoint.
pub(crate) fn parts_with(names: &Names, endpoint: &str, generation: Generation) -> Parts {
    let mut parts = Parts::empty(generation);
    let mask = if names.pods.contains(':') { 56 } else { 16 };
    let detector = LocalDetector::Source(vec![Prefix::new(address(names.pods), mask)]);
    parts.local_detector_v4 = detector.clone();
    parts.local_detector_v6 = detector;
    parts.node_port_addresses_v4 = NodePortAddresses::All { localhost: true };
    parts.node_addresses = vec![address(names.node)];
    let node = address(names.node);
    let pod = Endpoint {
        address: address(endpoint),
        port: 8080,
        masquerade_address: Some(node),
        on_node: false,
    };
    let on_node = Endpoint {
        address: node,
        on_node: true,
        ..pod
    };
    for number in 0..5u32 {
        let endpoint = if number == 4 { on_node } else { pod };
        add_service(&mut parts, names, number, endpoint);
    }
    parts
}

fn add_service(parts: &mut Parts, names: &Names, number: u32, endpoint: Endpoint) {
    parts.services.push(Service {
        name: format!("test/service-{number}:port").into(),
        selection: Selection::Random,
        affinity_timeout: None,
        udp: Some(UdpEndpoints::default()),
        endpoints: [endpoint].into(),
    });
    let range = EndpointRange::new(0, 1).unwrap();
    let balance = |masquerade| Action::Balance {
        endpoints: range,
        masquerade,
    };
    let inside = if number == 1 {
        [Action::Reject; 3]
    } else {
        [balance(false), balance(true), balance(true)]
    };
    let outside = match number {
        1 => [Action::Reject; 3],
        2 => [balance(false), balance(true), Action::Drop],
        _ => [balance(true); 3],
    };
    let keys = [
        (
            FrontendKind::ClusterIp,
            address(names.cluster_ip),
            80 + number as u16,
            inside,
        ),
        (
            FrontendKind::LoadBalancerIp,
            address(names.vip),
            80 + number as u16,
            outside,
        ),
        (
            FrontendKind::NodePort,
            address(names.vip).unspecified_of_family(),
            30080 + number as u16,
            outside,
        ),
    ];
    for (kind, address_, port, [from_pod, from_local, from_outside]) in keys {
        let is_filtered = number == 3 && kind == FrontendKind::LoadBalancerIp;
        let length = if names.client.contains(':') { 128 } else { 32 };
        let range = Prefix::new(address(names.client), length);
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let frontend = Frontend {
                service: ServiceIndex(number),
                kind,
                from_pod,
                from_local,
                from_outside,
                source_ranges: if is_filtered { vec![range] } else { Vec::new() },
            };
            parts.frontends.push((
                FrontendKey {
                    address: address_,
                    port,
                    protocol,
                },
                frontend,
            ));
        }
    }
}
