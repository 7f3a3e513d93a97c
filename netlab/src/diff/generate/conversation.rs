//! Random conversations, by people who know the protocols and do not always keep to them.

mod tcp;

use super::super::case::{Body, Extension, Flow, Order, Packet, Place, Shape, Step};
use super::super::wire::{ICMP, ICMPV6, SCTP, TCP, UDP};
use super::cluster::pick;
use super::layout::{LOCALHOST, Layout, Target, has_sockets};
use control::model::Family;
use fastrand::Rng;
use std::net::{IpAddr, Ipv4Addr};

/// One conversation, and how it goes on after a pause that all conversations make together; its flows are added to
/// `flows`.
pub(super) fn random(
    layout: &Layout,
    flows: &mut Vec<Flow>,
    rng: &mut Rng,
) -> (Vec<Step>, Vec<Step>) {
    let target = target(layout, rng);
    let mut client = layout.client(&target, rng);
    // Rare otherwise: the node to an external IP that is its own address.
    if target.is_virtual && layout.is_own(target.address) && rng.bool() {
        client = Some((Place::Node, target.address));
    }
    let Some((from, source)) = client else {
        return Default::default();
    };
    let icmp = if target.address.is_ipv4() {
        ICMP
    } else {
        ICMPV6
    };
    let by_socket = from == Place::Node && layout.is_own(target.address) && !target.is_virtual;
    let protocol = if rng.u8(..12) == 0 && !by_socket {
        icmp
    } else {
        target.protocol
    };
    let mut source_port = source_port(rng);
    // A socket that connects to itself answers itself.
    if (source, source_port) == (target.address, target.port) {
        source_port += 1;
    }
    // The node listens there, and gives such a port to nobody else.
    while layout.health_check_ports.contains(&source_port) {
        source_port += 1;
    }
    flows.push(Flow {
        from,
        protocol,
        source,
        source_port,
        destination: target.address,
        destination_port: target.port,
        client_stays: from == Place::Node && protocol == TCP && rng.bool(),
    });
    if rng.u8(..10) == 0 && flows.len() > 1 {
        // The port of another conversation, towards another destination.
        let last = flows.len() - 1;
        let other = flows[rng.usize(..last)];
        let is_node = |flow: &Flow| flow.from == Place::Node;
        if Family::of(other.source) == Family::of(source)
            && !is_node(&other)
            && !is_node(&flows[last])
        {
            flows[last] = Flow {
                source: other.source,
                from: other.from,
                source_port: other.source_port,
                ..flows[last]
            };
        }
    }
    let mut talk = Talk {
        flow: flows.len() - 1,
        steps: Vec::new(),
        later: Vec::new(),
        rng,
        protocol,
        six: source.is_ipv6(),
        from,
        is_to_node: layout.is_own(target.address),
        by_socket,
    };
    talk.hold();
    (talk.steps, talk.later)
}

fn target(layout: &Layout, rng: &mut Rng) -> Target {
    let anything = Target {
        address: IpAddr::from([10, 96, 200, 1]),
        protocol: TCP,
        port: 80,
        is_virtual: false,
    };
    if layout.targets.is_empty() {
        return anything;
    }
    let mut target = *pick(rng, &layout.targets);
    match rng.u8(..20) {
        // Another port, another protocol, nobody's address.
        0 => target.port = target.port.wrapping_add(7),
        1 => target.protocol = *pick(rng, &[TCP, UDP, SCTP, 47, 50]),
        2 if target.address.is_ipv4() => {
            (target.address, target.is_virtual) = (anything.address, false);
        }
        // An IPv4-mapped address, which must not be on the wire.
        2 if rng.bool() => {
            let mapped = Ipv4Addr::new(10, 96, 0, 10).to_ipv6_mapped();
            (target.address, target.is_virtual) = (mapped.into(), false);
        }
        _ => {}
    }
    if target.address == LOCALHOST && !has_sockets(target.protocol) {
        target.protocol = UDP;
    }
    target
}

fn source_port(rng: &mut Rng) -> u16 {
    match rng.u8(..12) {
        0 => rng.u16(1..512),
        1 => rng.u16(512..1024),
        _ => rng.u16(1024..),
    }
}

struct Talk<'r> {
    flow: usize,
    steps: Vec<Step>,
    later: Vec<Step>,
    rng: &'r mut Rng,
    protocol: u8,
    six: bool,
    from: Place,
    is_to_node: bool,
    /// A socket of the node sends, which does all the packing.
    by_socket: bool,
}

impl Talk<'_> {
    fn hold(&mut self) {
        match (self.protocol, self.rng.u8(..10)) {
            (TCP, 0..4) => self.tcp_in_order(),
            (TCP, _) => self.tcp_anyhow(),
            (UDP, _) => self.udp(),
            (ICMP | ICMPV6, _) => self.icmp(),
            (SCTP, _) => self.sctp(),
            _ => self.other(),
        }
    }

    fn client(&mut self, body: Body) {
        let packet = self.packed(body);
        self.steps.push(Step::Client(self.flow, packet));
    }

    fn server(&mut self, body: Body) {
        let packet = self.packed(body);
        self.steps.push(Step::Server(self.flow, packet));
    }

    /// From either end.
    fn either(&mut self, body: Body) {
        if self.rng.bool() {
            self.client(body);
        } else {
            self.server(body);
        }
    }

    /// Packed as most packets are, or not.
    fn packed(&mut self, body: Body) -> Packet {
        let mut shape = Shape::default();
        let rng = &mut *self.rng;
        if rng.u8(..4) == 0 && !self.by_socket {
            match rng.u8(..11) {
                // A hop cannot be given back above 254 (docs/behaviours/differences.md).
                0 if self.from == Place::Node => shape.ttl = *pick(rng, &[1, 2, 3, 254]),
                0 => shape.ttl = *pick(rng, &[1, 2, 3, 255]),
                1 | 2 => shape.tos = rng.u8(..),
                3 => shape.dont_fragment = false,
                4 => {
                    shape.options = *pick(rng, &[4, 8, 40]);
                    shape.extension = self.extension();
                }
                5 => shape.wrong_checksum = true,
                6 if rng.bool() => shape.cut = Some(rng.u16(..40)),
                // The kernel puts the node's own fragments together before it routes them; ours only those to Services.
                7 | 8 if self.from == Place::Node => {}
                7 | 8 => {
                    let sizes: &[u16] = if self.six {
                        &[1232, 1240, 64, 8]
                    } else {
                        &[8, 16, 24, 64, 512]
                    };
                    shape.fragment = Some(*pick(rng, sizes));
                    shape.dont_fragment = rng.bool();
                    shape.order = *pick(
                        rng,
                        &[
                            Order::Forward,
                            Order::Forward,
                            Order::Backward,
                            Order::Incomplete,
                            Order::Twice,
                            Order::Overlapping,
                        ],
                    );
                }
                // Cut within the extension header.
                9 if self.six => {
                    (shape.options, shape.cut) = (8, Some(rng.u16(..12)));
                    shape.extension = self.extension();
                }
                _ => {}
            }
        }
        Packet { body, shape }
    }

    fn extension(&mut self) -> Extension {
        const ALL: [Extension; 3] = [
            Extension::Destination,
            Extension::HopByHop,
            Extension::Routing,
        ];
        match self.six {
            true => *pick(self.rng, &ALL),
            false => Extension::default(),
        }
    }

    fn length(&mut self) -> u16 {
        *pick(self.rng, &[0, 1, 7, 100, 101, 512, 1200, 1400])
    }

    fn udp(&mut self) {
        for _ in 0..self.rng.usize(1..8) {
            let body = Body::Udp {
                data: self.length(),
                no_checksum: !self.six && self.rng.u8(..8) == 0,
            };
            if self.rng.u8(..3) == 0 {
                self.server(body);
            } else {
                self.client(body);
            }
            self.perhaps_an_error();
        }
        if self.rng.u8(..4) == 0 {
            let body = Body::Udp {
                data: 5,
                no_checksum: false,
            };
            let flow = self.flow;
            self.later = vec![
                Step::Server(flow, body.clone().into()),
                Step::Client(flow, body.into()),
            ];
        }
    }

    fn icmp(&mut self) {
        let (request, reply) = if self.six { (128, 129) } else { (8, 0) };
        for _ in 0..self.rng.usize(1..6) {
            let data = self.length();
            match self.rng.u8(..10) {
                0..5 => self.client(Body::Query {
                    kind: request,
                    code: 0,
                    data,
                }),
                5..8 => self.server(Body::Query {
                    kind: reply,
                    code: 0,
                    data,
                }),
                8 if !self.six => {
                    // Not 13: the node itself would answer with the time.
                    let kind = *pick(self.rng, &[15, 17, 9, 10, 14, 16, 18, 30, 200]);
                    self.client(Body::Query {
                        kind,
                        code: 0,
                        data: 12,
                    });
                }
                8 => {
                    let kind = *pick(self.rng, &[139, 140, 141, 200]);
                    self.client(Body::Query {
                        kind,
                        code: 0,
                        data: 12,
                    });
                }
                _ => self.client(Body::Query {
                    kind: reply,
                    code: 0,
                    data,
                }),
            }
            self.perhaps_an_error();
        }
    }

    fn other(&mut self) {
        for _ in 0..self.rng.usize(1..4) {
            // In one piece: what does not come by our side is not put together either.
            let mut packet = self.packed(Body::Other { data: 100 });
            packet.shape.fragment = None;
            let step = if self.rng.bool() {
                Step::Client
            } else {
                Step::Server
            };
            self.steps.push(step(self.flow, packet));
        }
    }

    /// Somebody on either side has something to say about the last packet.
    fn perhaps_an_error(&mut self) {
        if self.rng.u8(..6) != 0 || self.by_socket {
            return;
        }
        let (kind, code) = if self.six {
            *pick(self.rng, &[(1, 4), (1, 0), (2, 0), (3, 0), (4, 1)])
        } else {
            *pick(
                self.rng,
                &[(3, 3), (3, 1), (3, 4), (11, 0), (12, 0), (4, 0), (5, 1)],
            )
        };
        // The node keeps what it learns of a path's MTU, by route, and its raw packets do not ask for it.
        let is_too_big = matches!((kind, code), (3, 4) | (2, 0));
        if is_too_big && (self.from == Place::Node || self.is_to_node) {
            return;
        }
        let router = match self.rng.u8(..3) {
            _ if self.from == Place::Node => None,
            0 if self.six => "2001:db8:ee::1".parse().ok(),
            0 => "192.0.2.254".parse().ok(),
            _ => None,
        };
        let word = if is_too_big { 1280 } else { 0 };
        let quote = *pick(self.rng, &[8, 8, 20, 20, 28, 200, 4]);
        self.either(Body::Error {
            kind,
            code,
            word,
            quote,
            router,
        });
    }

    fn sctp(&mut self) {
        const ORDERLY: [(bool, u8); 8] = [
            (true, 1),
            (false, 2),
            (true, 10),
            (false, 11),
            (true, 0),
            (false, 3),
            (true, 7),
            (false, 8),
        ];
        for (number, (from_client, chunk)) in ORDERLY.into_iter().enumerate() {
            let chunk = if self.rng.u8(..12) == 0 {
                self.rng.u8(..15)
            } else {
                chunk
            };
            let initiate = if from_client { 0x1111 } else { 0x2222 };
            // INIT carries no tag; all others carry what the other end asked for.
            let tag = if number == 0 { 0 } else { 0x3333 - initiate };
            let body = Body::Sctp {
                chunk,
                tag,
                initiate,
            };
            if from_client {
                self.client(body);
            } else {
                self.server(body);
            }
            if self.rng.u8(..12) == 0 {
                return;
            }
        }
        self.client(Body::Sctp {
            chunk: 14,
            tag: 0x2222,
            initiate: 0,
        });
    }
}
