//! Coalescing: packets of one flow that follow one another leave as one frame, which the kernel cuts again (USO, TSO).
//! One system call and one way through the kernel then serve them all.
//!
//! Invariant: the kernel cuts a [`Train`] into the very packets that it was made of, byte by byte. So only packets are
//! coupled that differ in what the cut counts up: the identification of IPv4 by one, the sequence number by the data, all
//! of one size but a shorter last one, PSH on the last alone. And only those whose checksum is still owed: a wrong one
//! would be mended on the way.
//!
//! Source: Linux `net/ipv4/af_inet.c` (`inet_gso_segment`), `udp_offload.c`, `tcp_offload.c`; virtio 1.2, section 5.1.6.

use crate::checksum::{self, Change};
use crate::frame::{ChecksumState, Frame, Segmentation};
use crate::packet::{self, IPV4_HEADER, IPV6_HEADER};
use crate::tuple::Protocol;
use std::ops::Range;

/// Packets of a train: `UDP_MAX_SEGMENTS` of older kernels.
const LONGEST: usize = 64;
/// What the length fields of both families can say.
const MAXIMUM_LENGTH: usize = 65_535;

const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Packets on their way out that are one frame so far.
#[derive(Debug)]
pub struct Train {
    /// The first packet, with the data of the others behind it; its headers are those of the first.
    frame: Frame,
    /// Of the first packet.
    headers: Headers,
    /// Data bytes of every packet but the last.
    size: usize,
    /// Packets in the frame; zero: there is no train.
    count: usize,
    /// Whether one more may follow.
    is_open: bool,
}

/// Where the headers of a packet are that can be part of a train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Headers {
    is_ipv4: bool,
    protocol: Protocol,
    transport: usize,
    data: usize,
}

impl Headers {
    /// Of a packet without fragments, options of IPv4 and extension headers, and with data; of TCP with nothing to say but
    /// ACK and PSH.
    fn of(packet: &[u8]) -> Option<Self> {
        let (is_ipv4, protocol, transport, length) = match packet.first()? {
            0x45 if word(packet, 6)? & 0x3fff == 0 => {
                (true, *packet.get(9)?, IPV4_HEADER, word(packet, 2)?)
            }
            0x60..=0x6f => {
                let length = word(packet, 4)?.checked_add(IPV6_HEADER as u16)?;
                (false, *packet.get(6)?, IPV6_HEADER, length)
            }
            _ => return None,
        };
        let protocol = Protocol(protocol);
        let header = match protocol {
            Protocol::UDP
                if usize::from(word(packet, transport + 4)?) == packet.len() - transport =>
            {
                UDP_HEADER
            }
            Protocol::TCP if packet.get(transport + 13)? & !PSH == ACK => {
                (usize::from(packet[transport + 12] >> 4) * 4).max(TCP_HEADER)
            }
            _ => return None,
        };
        let data = transport + header;
        (usize::from(length) == packet.len() && data < packet.len()).then_some(Self {
            is_ipv4,
            protocol,
            transport,
            data,
        })
    }

    fn has_push(self, packet: &[u8]) -> bool {
        self.protocol == Protocol::TCP && packet[self.transport + 13] & PSH != 0
    }

    /// Fields that all packets of a train have in common.
    fn common(self) -> [Range<usize>; 4] {
        let ip = if self.is_ipv4 {
            // Not the lengths, the identification, and the header's checksum.
            [0..2, 6..10, 12..20]
        } else {
            [0..4, 6..8, 8..40]
        };
        let [first, second, third] = ip;
        [first, second, third, self.transport..self.transport + 4]
    }

    /// The same in the header of TCP: acknowledgement and its length, window, urgent pointer and options.
    fn common_of_tcp(self) -> [Range<usize>; 3] {
        let at = self.transport;
        [at + 8..at + 13, at + 14..at + 16, at + 18..self.data]
    }
}

impl Default for Train {
    fn default() -> Self {
        Self {
            frame: Frame::new(),
            headers: Headers {
                is_ipv4: true,
                protocol: Protocol::UDP,
                transport: 0,
                data: 0,
            },
            size: 0,
            count: 0,
            is_open: false,
        }
    }
}

impl Train {
    /// Takes in a copy of `frame`: as the next packet of the train, or as the first one when there is none. False when it
    /// cannot; the train must leave first, and a frame that cannot be the first of one leaves by itself.
    #[inline]
    pub fn take(&mut self, frame: &Frame) -> bool {
        let owes_one = frame.checksum_state() == ChecksumState::Partial;
        owes_one && !frame.is_segmented() && self.couple(frame)
    }

    fn couple(&mut self, frame: &Frame) -> bool {
        let packet = frame.packet();
        let Some(headers) = Headers::of(packet) else {
            return false;
        };
        let offset = checksum::offset(headers.protocol);
        if !offset.is_some_and(|offset| frame.owes_checksum(headers.transport, offset)) {
            return false;
        }
        if self.count == 0 {
            self.begin(frame, headers);
            return true;
        }
        let follows = self.is_open && headers == self.headers && self.is_followed_by(packet);
        if follows {
            self.append(packet);
        }
        follows
    }

    fn begin(&mut self, frame: &Frame, headers: Headers) {
        let packet = frame.packet();
        self.frame.copy_from(frame);
        self.headers = headers;
        self.size = packet.len() - headers.data;
        self.count = 1;
        self.is_open = !headers.has_push(packet);
    }

    fn append(&mut self, packet: &[u8]) {
        let data = &packet[self.headers.data..];
        self.frame.extend(data);
        self.count += 1;
        let has_push = self.headers.has_push(packet);
        if has_push {
            // The cut leaves it to the last packet.
            self.frame.packet_mut()[self.headers.transport + 13] |= PSH;
        }
        self.is_open = data.len() == self.size && !has_push && self.count < LONGEST;
    }

    /// Whether `packet`, whose headers are as long as those of the first, is the one that the cut would make next.
    fn is_followed_by(&self, packet: &[u8]) -> bool {
        let Headers {
            is_ipv4,
            transport,
            data,
            ..
        } = self.headers;
        let first = self.frame.packet();
        let same = |range: Range<usize>| first[range.clone()] == packet[range];
        let is_next_in = |at, step: usize| {
            word(first, at).map(|w| w.wrapping_add(step as u16)) == word(packet, at)
        };
        let is_tcp = self.headers.protocol == Protocol::TCP;
        packet.len() - data <= self.size
            && first.len() + packet.len() - data <= MAXIMUM_LENGTH
            && self.headers.common().into_iter().all(same)
            && (!is_ipv4 || is_next_in(4, self.count))
            && (!is_tcp
                || self.headers.common_of_tcp().into_iter().all(same)
                    && is_next_sequence(first, packet, transport + 4, self.size * self.count))
    }

    /// The frame that is to be sent for all of its packets; `None` when there is no train.
    #[inline]
    pub fn frame(&mut self) -> Option<&Frame> {
        if self.count > 1 {
            self.write_headers();
        }
        (self.count > 0).then_some(&self.frame)
    }

    /// How many packets are in the train.
    pub const fn packets(&self) -> usize {
        self.count
    }

    /// It has left.
    pub const fn clear(&mut self) {
        self.count = 0;
    }

    /// Lengths and the sums over them, and what the kernel has to know to cut.
    fn write_headers(&mut self) {
        let Headers {
            is_ipv4,
            protocol,
            transport,
            data,
        } = self.headers;
        let packet = self.frame.packet_mut();
        let total = packet.len();
        let length = (total - transport) as u16;
        let before = (self.size + data - transport) as u16;
        if is_ipv4 {
            packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            let change = Change::word((self.size + data) as u16, total as u16);
            packet::update(&mut packet[10..12], change);
        } else {
            packet[4..6].copy_from_slice(&length.to_be_bytes());
        }
        let (checksum, segmentation) = match protocol {
            Protocol::TCP if is_ipv4 => (16, Segmentation::TcpV4),
            Protocol::TCP => (16, Segmentation::TcpV6),
            _ => (6, Segmentation::Udp),
        };
        if protocol == Protocol::UDP {
            packet[transport + 4..transport + 6].copy_from_slice(&length.to_be_bytes());
        }
        let field = &mut packet[transport + checksum..][..2];
        let owed =
            Change::word(before, length).apply_partial(u16::from_be_bytes([field[0], field[1]]));
        field.copy_from_slice(&owed.to_be_bytes());
        self.frame
            .set_segmentation(segmentation, data as u16, self.size as u16);
    }
}

fn is_next_sequence(first: &[u8], packet: &[u8], at: usize, data: usize) -> bool {
    let sequence = |packet: &[u8]| {
        packet[at..]
            .first_chunk()
            .map(|bytes| u32::from_be_bytes(*bytes))
    };
    sequence(first).map(|first| first.wrapping_add(data as u32)) == sequence(packet)
}

fn word(packet: &[u8], at: usize) -> Option<u16> {
    packet
        .get(at..)?
        .first_chunk()
        .map(|bytes| u16::from_be_bytes(*bytes))
}
