//! Flow number `n` by arithmetic: its addresses, ports and frames, so that ten million flows need no list.
//!
//! A thousand Services with one endpoint each; UDP over IPv4 with 18 bytes of data, the smallest frame of Ethernet.

use dataplane::frame::Frame;
use dataplane::service::{
    Action, Endpoint, EndpointRange, Frontend, FrontendKey, FrontendKind, Generation,
    LocalDetector, NodePortAddresses, Parts, Selection, Service, ServiceIndex, ServiceTable,
    UdpEndpoints,
};
use dataplane::tuple::{Address, Direction, Protocol};

const SERVICES: u32 = 1000;
const SERVICE_PORT: u16 = 80;
const ENDPOINT_PORT: u16 = 8080;
/// 10.0.0.0, 172.16.0.0 and 10.128.0.0.
const FIRST_CLIENT: u32 = 0x0a00_0000;
const FIRST_SERVICE: u32 = 0xac10_0000;
const FIRST_ENDPOINT: u32 = 0x0a80_0000;
/// 192.168.0.1: what masquerading puts in place of the client.
const MASQUERADE: u32 = 0xc0a8_0001;

const IP_HEADER: usize = 20;
const PACKET_LENGTH: usize = IP_HEADER + 8 + 18;
/// VIRTIO_NET_HDR_F_DATA_VALID: the device has verified the checksum, as network cards do.
const DATA_VALID: u8 = 2;

/// A flow of UDP through a Service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow(pub(super) u32);

impl Flow {
    /// Source and destination with their ports, as a packet of this direction has them on arrival.
    pub(super) const fn ends(self, direction: Direction) -> [(u32, u16); 2] {
        let client = (
            FIRST_CLIENT + (self.0 >> 14),
            1024 + (self.0 & 0x3fff) as u16,
        );
        let nth = self.0 % SERVICES;
        match direction {
            Direction::Original => [client, (FIRST_SERVICE + nth, SERVICE_PORT)],
            Direction::Reply => [(FIRST_ENDPOINT + nth, ENDPOINT_PORT), client],
        }
    }

    /// Writes the packet of this direction into `frame`.
    pub(super) fn write(self, direction: Direction, frame: &mut Frame) {
        let [(source, source_port), (destination, destination_port)] = self.ends(direction);
        let mut packet = [0; PACKET_LENGTH];
        packet[..12].copy_from_slice(&[
            0x45,
            0,
            0,
            PACKET_LENGTH as u8,
            0,
            0,
            0x40,
            0,
            63,
            17,
            0,
            0,
        ]);
        packet[12..16].copy_from_slice(&source.to_be_bytes());
        packet[16..20].copy_from_slice(&destination.to_be_bytes());
        let header_sum = dataplane::checksum::sum(&packet[..IP_HEADER]);
        packet[10..12].copy_from_slice(&(!header_sum).to_be_bytes());
        packet[20..22].copy_from_slice(&source_port.to_be_bytes());
        packet[22..24].copy_from_slice(&destination_port.to_be_bytes());
        packet[24..26].copy_from_slice(&((PACKET_LENGTH - IP_HEADER) as u16).to_be_bytes());
        packet[26..28].copy_from_slice(&[0x12, 0x34]);
        frame.set_packet(&packet);
        frame.room()[0] = DATA_VALID;
    }
}

/// The Services that the flows go through.
pub(super) fn services(masquerade: bool) -> ServiceTable {
    let address = |bits: u32| Address::from_v4(bits.to_be_bytes());
    let service = |nth: u32| Service {
        name: format!("bench/service-{nth}:udp").into(),
        selection: Selection::Random,
        affinity_timeout: None,
        udp: Some(UdpEndpoints {
            unused: Vec::new(),
            serving: true,
            is_ipv4: true,
        }),
    };
    let endpoint = |nth: u32| Endpoint {
        address: address(FIRST_ENDPOINT + nth),
        port: ENDPOINT_PORT,
        masquerade_address: Some(address(MASQUERADE)),
        on_node: false,
    };
    let frontend = |nth: u32| {
        let endpoints = EndpointRange {
            start: nth,
            count: 1,
        };
        let balance = Action::Balance {
            endpoints,
            masquerade,
        };
        let key = FrontendKey {
            address: address(FIRST_SERVICE + nth),
            port: SERVICE_PORT,
            protocol: Protocol::UDP,
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
        services: (0..SERVICES).map(service).collect(),
        frontends: (0..SERVICES).map(frontend).collect(),
        endpoints: (0..SERVICES).map(endpoint).collect(),
        node_addresses: vec![address(MASQUERADE)],
        node_port_addresses_v4: NodePortAddresses::Only(Vec::new()),
        node_port_addresses_v6: NodePortAddresses::Only(Vec::new()),
        local_detector_v4: LocalDetector::Interface,
        local_detector_v6: LocalDetector::Interface,
    };
    ServiceTable::new(parts, &std::hash::RandomState::new())
}
