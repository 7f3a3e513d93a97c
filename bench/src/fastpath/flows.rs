//! Flow number `n` by arithmetic: its addresses, ports and frames, so that ten million flows need no list.
//!
//! A thousand Services with one endpoint each. A datagram carries 18 bytes, the smallest frame of Ethernet; a segment none.

use dataplane::checksum;
use dataplane::frame::Frame;
use dataplane::service::{
    Action, Endpoint, EndpointRange, Frontend, FrontendKey, FrontendKind, Generation,
    LocalDetector, NodePortAddresses, Parts, Selection, Service, ServiceIndex, ServiceTable,
    UdpEndpoints,
};
use dataplane::tuple::{Address, Direction, Protocol, Tuple};
use serde::Serialize;

/// Those that flows go through; one more masquerades whatever the others do.
const SERVICES: u32 = 1000;
/// The number of that one.
pub(crate) const MASQUERADED: u32 = SERVICES;
const SERVICE_PORT: u16 = 80;
const ENDPOINT_PORT: u16 = 8080;
/// 10.0.0.0, 172.16.0.0 and 10.128.0.0; in IPv6 the last 32 bits of fd00::/96.
const FIRST_CLIENT: u32 = 0x0a00_0000;
const FIRST_SERVICE: u32 = 0xac10_0000;
const FIRST_ENDPOINT: u32 = 0x0a80_0000;
/// 192.168.0.1: what masquerading puts in place of the client.
const MASQUERADE: u32 = 0xc0a8_0001;
const PREFIX_V6: u128 = 0xfd00 << 112;

/// VIRTIO_NET_HDR_F_DATA_VALID: the device has verified the checksum, as network cards do.
const DATA_VALID: u8 = 2;
const LONGEST: usize = 40 + 26;

/// What kind of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// `udp` or `tcp`.
    pub protocol: Transport,
    /// `ipv4` or `ipv6`.
    pub family: Family,
}

impl Traffic {
    /// What the rows with a limit are of.
    pub(crate) const UDP_V4: Self = Self {
        protocol: Transport::Udp,
        family: Family::Ipv4,
    };
    /// All others.
    pub(super) const OTHERS: [Self; 3] = [
        Self {
            protocol: Transport::Tcp,
            family: Family::Ipv4,
        },
        Self {
            protocol: Transport::Udp,
            family: Family::Ipv6,
        },
        Self {
            protocol: Transport::Tcp,
            family: Family::Ipv6,
        },
    ];

    const fn address(self, bits: u32) -> Address {
        match self.family {
            Family::Ipv4 => Address::from_v4(bits.to_be_bytes()),
            Family::Ipv6 => Address::from_bits(PREFIX_V6 | bits as u128),
        }
    }

    const fn protocol(self) -> Protocol {
        match self.protocol {
            Transport::Udp => Protocol::UDP,
            Transport::Tcp => Protocol::TCP,
        }
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Where in a connection a packet stands; for TCP that is its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// SYN, and the SYN-ACK of the other direction.
    Opening,
    /// ACK.
    Open,
}

/// Source and destination of a packet as it arrives, each with its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends(pub(crate) [(u32, u16); 2]);

/// A flow through a Service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow(pub(crate) u32);

impl Flow {
    /// Of a packet of this direction.
    pub(crate) const fn ends(self, direction: Direction) -> Ends {
        let client = (
            FIRST_CLIENT + (self.0 >> 14),
            1024 + (self.0 & 0x3fff) as u16,
        );
        Ends::of(client, self.0 % SERVICES, direction)
    }
}

impl Ends {
    /// Of a packet between `client` and the `nth` Service.
    pub(crate) const fn of(client: (u32, u16), nth: u32, direction: Direction) -> Self {
        let nth = nth % (SERVICES + 1);
        Self(match direction {
            Direction::Original => [client, (FIRST_SERVICE + nth, SERVICE_PORT)],
            Direction::Reply => [(FIRST_ENDPOINT + nth, ENDPOINT_PORT), client],
        })
    }

    /// Of packets of IPv4 that have this tuple.
    pub(crate) fn of_tuple(tuple: &Tuple) -> Self {
        let bits = |address: Address| address.to_bits() as u32;
        Self([
            (bits(tuple.source), tuple.source_port),
            (bits(tuple.destination), tuple.destination_port),
        ])
    }

    /// The tuple of such a packet.
    pub(crate) const fn tuple(self, traffic: Traffic) -> Tuple {
        let [(source, source_port), (destination, destination_port)] = self.0;
        Tuple {
            source: traffic.address(source),
            destination: traffic.address(destination),
            source_port,
            destination_port,
            protocol: traffic.protocol(),
        }
    }

    /// Writes the packet into `frame`. `direction` and `stage` are those of TCP's flags.
    pub(crate) fn write(
        self,
        traffic: Traffic,
        direction: Direction,
        stage: Stage,
        frame: &mut Frame,
    ) {
        let mut packet = [0; LONGEST];
        let transport_length = match traffic.protocol {
            Transport::Udp => 8 + 18,
            Transport::Tcp => 20,
        };
        let header = self.write_ip(traffic, transport_length, &mut packet);
        let transport = &mut packet[header..];
        let [(_, source_port), (_, destination_port)] = self.0;
        transport[..2].copy_from_slice(&source_port.to_be_bytes());
        transport[2..4].copy_from_slice(&destination_port.to_be_bytes());
        match traffic.protocol {
            Transport::Udp => {
                transport[4..6].copy_from_slice(&(transport_length as u16).to_be_bytes());
                transport[6..8].copy_from_slice(&[0x12, 0x34]);
            }
            Transport::Tcp => write_segment(transport, direction, stage),
        }
        frame.set_packet(&packet[..header + transport_length]);
        frame.room()[0] = DATA_VALID;
    }

    /// Returns the header's length.
    fn write_ip(self, traffic: Traffic, transport_length: usize, packet: &mut [u8]) -> usize {
        let [(source, _), (destination, _)] = self.0;
        let protocol = traffic.protocol().0;
        match traffic.family {
            Family::Ipv4 => {
                let length = (20 + transport_length) as u8;
                let fixed = [0x45, 0, 0, length, 0, 0, 0x40, 0, 63, protocol, 0, 0];
                packet[..12].copy_from_slice(&fixed);
                packet[12..16].copy_from_slice(&source.to_be_bytes());
                packet[16..20].copy_from_slice(&destination.to_be_bytes());
                let sum = checksum::sum(&packet[..20]);
                packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
                20
            }
            Family::Ipv6 => {
                let fixed = [0x60, 0, 0, 0, 0, transport_length as u8, protocol, 63];
                packet[..8].copy_from_slice(&fixed);
                packet[8..24].copy_from_slice(&traffic.address(source).octets());
                packet[24..40].copy_from_slice(&traffic.address(destination).octets());
                40
            }
        }
    }
}

fn write_segment(transport: &mut [u8], direction: Direction, stage: Stage) {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let (sequence, acknowledgement, flags): (u32, u32, u8) = match (stage, direction) {
        (Stage::Opening, Direction::Original) => (0, 0, SYN),
        (Stage::Opening, Direction::Reply) => (0, 1, SYN | ACK),
        (Stage::Open, _) => (1, 1, ACK),
    };
    transport[4..8].copy_from_slice(&sequence.to_be_bytes());
    transport[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    transport[12..16].copy_from_slice(&[5 << 4, flags, 0xff, 0xff]);
    transport[16..18].copy_from_slice(&[0x12, 0x34]);
}

/// The Services that the flows go through.
pub(crate) fn services(traffic: Traffic, masquerade: bool) -> ServiceTable {
    let endpoint = |nth: u32| Endpoint {
        address: traffic.address(FIRST_ENDPOINT + nth),
        port: ENDPOINT_PORT,
        masquerade_address: Some(traffic.address(MASQUERADE)),
        on_node: false,
    };
    let service = |nth: u32| Service {
        name: format!("bench/service-{nth}:port").into(),
        selection: Selection::Random,
        affinity_timeout: None,
        udp: (traffic.protocol == Transport::Udp).then(|| UdpEndpoints {
            unused: Vec::new(),
            serving: true,
            is_ipv4: true,
        }),
        endpoints: [endpoint(nth)].into(),
    };
    let frontend = |nth: u32| {
        let balance =
            EndpointRange::new(0, 1).map_or(Action::Reject, |endpoints| Action::Balance {
                endpoints,
                masquerade: masquerade || nth == MASQUERADED,
            });
        let key = FrontendKey {
            address: traffic.address(FIRST_SERVICE + nth),
            port: SERVICE_PORT,
            protocol: traffic.protocol(),
        };
        let frontend = Frontend {
            service: ServiceIndex(nth),
            kind: FrontendKind::ClusterIp,
            from_pod: balance,
            from_local: balance,
            from_outside: balance,
            source_ranges: Vec::new(),
        };
        (key, frontend)
    };
    let parts = Parts {
        generation: Generation(1),
        services: (0..=MASQUERADED).map(service).collect(),
        frontends: (0..=MASQUERADED).map(frontend).collect(),
        node_addresses: vec![traffic.address(MASQUERADE)],
        node_port_addresses_v4: NodePortAddresses::Only(Vec::new()),
        node_port_addresses_v6: NodePortAddresses::Only(Vec::new()),
        local_detector_v4: LocalDetector::Interface,
        local_detector_v6: LocalDetector::Interface,
    };
    ServiceTable::new(parts, &std::hash::RandomState::new())
}
