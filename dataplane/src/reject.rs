//! Answers to refused packets: ICMP port unreachable, as `iptables -j REJECT` sends them.
//!
//! Source: Linux `nf_reject_ipv4.c`, `nf_reject_ipv6.c`, `net/ipv4/icmp.c`; RFC 1812 section 4.3.2, RFC 4443.

use crate::checksum;
use crate::frame::Frame;
use crate::packet::{ICMP_HEADER, IPV4_HEADER, IPV6_HEADER, Kind, Packet};
use crate::service::Prefix;
use crate::tuple::{Address, Origin, Protocol, Timestamp};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The kernel quotes as much as fits into 576 bytes.
const MAXIMUM_LENGTH_V4: usize = 576;
/// RFC 4443, section 3.1: as much as fits into the smallest MTU.
const MAXIMUM_LENGTH_V6: usize = 1280;
const TIME_TO_LIVE: u8 = 64;

/// The addresses that a node sends from, and so refuses with, by whom to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources(Vec<(Prefix, Address)>);

impl Sources {
    /// Of several prefixes around an address the first one counts.
    pub const fn new(longest_first: Vec<(Prefix, Address)>) -> Self {
        Self(longest_first)
    }

    /// `None` where the node has no address.
    fn towards(&self, receiver: Address) -> Option<Address> {
        let mut around = self
            .0
            .iter()
            .filter(|(prefix, _)| prefix.contains(receiver));
        around.next().map(|(_, source)| *source)
    }
}

/// Source and destination of the packet in `frame`.
pub fn ends(frame: &mut Frame) -> Option<(Address, Address)> {
    let packet = Packet::parse(frame).ok()?;
    Some((packet.source(), packet.destination()))
}

/// Turns `frame`, which came from `origin` and was refused, into the answer for its sender. False when there must be
/// none: the packet was itself an ICMP error, a fragment, for many or not intact, or the node has no address to answer from.
pub fn port_unreachable(
    frame: &mut Frame,
    origin: Origin,
    is_node_address: bool,
    sources: &Sources,
) -> bool {
    let Ok(packet) = Packet::parse(frame) else {
        return false;
    };
    let (sender, destination, length) = (packet.source(), packet.destination(), packet.length());
    // That of SCTP is not looked at (`nf_reject_verify_csum`); where it is verified at all, that was before.
    let is_intact = packet.protocol() == Protocol::SCTP || !packet.has_bad_checksum();
    let is_answerable =
        matches!(packet.kind(), Kind::Flow(_)) && !is_for_many(destination) && is_intact;
    let source = if is_node_address {
        Some(destination)
    } else {
        sources.towards(sender)
    };
    let (true, Some(source)) = (is_answerable, source) else {
        return false;
    };
    let mut quoted = frame.packet()[..length].to_vec();
    // What the node sends itself has lost no hop on its way here, and was given one.
    if origin == Origin::Node || !is_node_address {
        take_hop(&mut quoted);
    }
    let mut answer = if source.is_ipv4() {
        answer_v4(source, sender, &quoted)
    } else {
        answer_v6(source, sender, &quoted)
    };
    if origin != Origin::Node {
        // The way from the device to the sender takes one.
        crate::packet::give_back_hop(&mut answer);
    }
    frame.set_packet(&answer);
    true
}

fn is_for_many(destination: Address) -> bool {
    if destination.is_ipv4() {
        destination.octets_v4()[0] >= 224
    } else {
        destination.octets()[0] == 0xff
    }
}

/// REJECT stands in FORWARD, behind the decrement of the TTL.
fn take_hop(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        let old = u16::from_be_bytes([packet[8], packet[9]]);
        packet[8] = packet[8].saturating_sub(1);
        let new = u16::from_be_bytes([packet[8], packet[9]]);
        crate::packet::update(&mut packet[10..12], checksum::Change::word(old, new));
    } else {
        packet[7] = packet[7].saturating_sub(1);
    }
}

fn answer_v4(source: Address, sender: Address, refused: &[u8]) -> Vec<u8> {
    let quoted = refused
        .len()
        .min(MAXIMUM_LENGTH_V4 - IPV4_HEADER - ICMP_HEADER);
    let length = IPV4_HEADER + ICMP_HEADER + quoted;
    let mut answer = vec![0; length];
    answer[0] = 0x45;
    // The precedence of network control (RFC 1812, section 4.3.2.5), the rest from the refused packet.
    answer[1] = (refused[1] & 0x1e) | 0xc0;
    answer[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    answer[8] = TIME_TO_LIVE;
    answer[9] = Protocol::ICMP.0;
    answer[12..16].copy_from_slice(&source.octets_v4());
    answer[16..20].copy_from_slice(&sender.octets_v4());
    let header_checksum = !checksum::sum(&answer[..IPV4_HEADER]);
    answer[10..12].copy_from_slice(&header_checksum.to_be_bytes());
    let icmp = &mut answer[IPV4_HEADER..];
    (icmp[0], icmp[1]) = (3, 3);
    icmp[ICMP_HEADER..].copy_from_slice(&refused[..quoted]);
    let icmp_checksum = !checksum::sum(icmp);
    icmp[2..4].copy_from_slice(&icmp_checksum.to_be_bytes());
    answer
}

fn answer_v6(source: Address, sender: Address, refused: &[u8]) -> Vec<u8> {
    let quoted = refused
        .len()
        .min(MAXIMUM_LENGTH_V6 - IPV6_HEADER - ICMP_HEADER);
    let payload = ICMP_HEADER + quoted;
    let mut answer = vec![0; IPV6_HEADER + payload];
    answer[0] = 0x60;
    answer[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
    answer[6] = Protocol::ICMPV6.0;
    answer[7] = TIME_TO_LIVE;
    answer[8..24].copy_from_slice(&source.octets());
    answer[24..40].copy_from_slice(&sender.octets());
    let icmp = &mut answer[IPV6_HEADER..];
    (icmp[0], icmp[1]) = (1, 4);
    icmp[ICMP_HEADER..].copy_from_slice(&refused[..quoted]);
    let pseudo = checksum::pseudo_header(source, sender, Protocol::ICMPV6.0, payload as u32);
    let icmp_checksum = !checksum::add(pseudo, checksum::sum(icmp));
    icmp[2..4].copy_from_slice(&icmp_checksum.to_be_bytes());
    answer
}

/// The kernel's limits on ICMP errors: per receiver one in `icmp_ratelimit` (1 s) after a burst of six
/// (`inet_peer_xrlim_allow`); in all 1,000 per second after a burst of 50 (`icmp_global_allow`), so that who makes up
/// senders cannot make the node flood them.
#[derive(Debug, Default)]
pub struct RateLimit {
    receivers: Mutex<Receivers>,
}

#[derive(Debug, Default)]
struct Receivers {
    all: Option<Bucket>,
    buckets: HashMap<Address, Bucket>,
    looked_through: Option<Timestamp>,
}

/// Tokens are time: each error takes an interval of it.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: Duration,
    last: Timestamp,
}

impl Bucket {
    fn full(interval: Duration, burst: u32, now: Timestamp) -> Self {
        Self {
            tokens: interval * burst,
            last: now,
        }
    }

    /// Whether it has a token, after it got what time gave it.
    fn has_one(&mut self, interval: Duration, burst: u32, now: Timestamp) -> bool {
        self.tokens = (self.tokens + now.since(self.last)).min(interval * burst);
        // Clocks of workers differ by a batch.
        self.last = self.last.max(now);
        self.tokens >= interval
    }

    fn take_one(&mut self, interval: Duration) {
        self.tokens -= interval;
    }
}

/// `icmp_ratelimit`.
const INTERVAL: Duration = Duration::from_secs(1);
/// DIFFERS: the shorter the prefix of the route to the receiver, the less the kernel limits ICMPv6 errors; here all are
/// limited as those that leave by a default route (`icmpv6_xrlim_allow`: a second, halved four times).
const INTERVAL_V6: Duration = Duration::from_micros(62_500);
const BURST: u32 = 6;
/// `icmp_msgs_per_sec`, `icmp_msgs_burst`.
const INTERVAL_OF_ALL: Duration = Duration::from_millis(1);
const BURST_OF_ALL: u32 = 50;
/// Receivers remembered at most; strangers choose them.
const MAXIMUM_RECEIVERS: usize = 65_536;

impl Receivers {
    /// Whether one more may be remembered. Those that have all their tokens again are forgotten when it gets full, once in
    /// an interval: looking through all of them takes as long as hundreds of packets.
    fn have_room(&mut self, now: Timestamp) -> bool {
        let is_due = |at: Timestamp| now.since(at) >= INTERVAL;
        if self.buckets.len() >= MAXIMUM_RECEIVERS && self.looked_through.is_none_or(is_due) {
            self.buckets
                .retain(|_, bucket| now.since(bucket.last) < INTERVAL * BURST);
            self.looked_through = Some(now);
        }
        self.buckets.len() < MAXIMUM_RECEIVERS
    }

    /// Whether `receiver` may have one more. As in the kernel, one for whom there is no room may.
    fn allow(&mut self, receiver: Address, now: Timestamp) -> bool {
        if !self.buckets.contains_key(&receiver) && !self.have_room(now) {
            return true;
        }
        let interval = if receiver.is_ipv4() {
            INTERVAL
        } else {
            INTERVAL_V6
        };
        let full = || Bucket::full(interval, BURST, now);
        let bucket = self.buckets.entry(receiver).or_insert_with(full);
        let allowed = bucket.has_one(interval, BURST, now);
        if allowed {
            bucket.take_one(interval);
        }
        allowed
    }
}

impl RateLimit {
    /// Whether one more error may be sent to `receiver`. Loopback is exempt.
    pub fn allows(&self, receiver: Address, now: Timestamp) -> bool {
        if receiver.is_loopback() {
            return true;
        }
        let mut receivers = self
            .receivers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let full = || Bucket::full(INTERVAL_OF_ALL, BURST_OF_ALL, now);
        let mut all = receivers.all.unwrap_or_else(full);
        // What one receiver may not have costs the others nothing.
        let allowed =
            all.has_one(INTERVAL_OF_ALL, BURST_OF_ALL, now) && receivers.allow(receiver, now);
        if allowed {
            all.take_one(INTERVAL_OF_ALL);
        }
        receivers.all = Some(all);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_receivers_is_forgotten_again() {
        let mut receivers = Receivers::default();
        let start = Timestamp::from_seconds(100);
        for nth in 0..2 * MAXIMUM_RECEIVERS {
            assert!(receivers.allow(receiver(nth), start));
        }
        assert_eq!(receivers.buckets.len(), MAXIMUM_RECEIVERS);
        // Who is remembered is limited still.
        let of_first = (0..10).filter(|_| receivers.allow(receiver(0), start));
        assert_eq!(of_first.count(), BURST as usize - 1);
        let later = start.after(INTERVAL * BURST);
        assert!(receivers.allow(receiver(MAXIMUM_RECEIVERS), later));
        assert_eq!(receivers.buckets.len(), 1);
    }

    /// As the kernel: of 2,000 packets of as many senders within 18 ms it refused 51 with an error.
    #[test]
    fn many_receivers_together_get_a_thousand_a_second() {
        let limit = RateLimit::default();
        // The agent's clock begins at zero.
        let start = Timestamp(0);
        let mut allowed = [0; 2];
        for nth in 0..20_000 {
            let now = start.after(Duration::from_micros(100) * nth as u32);
            let is_late = usize::from(nth >= 10_000);
            allowed[is_late] += usize::from(limit.allows(receiver(nth), now));
        }
        assert_eq!(allowed, [BURST_OF_ALL as usize + 999, 1000]);
        assert!(limit.allows(Address::from_v4([127, 0, 0, 1]), start));
    }

    /// What the limit of one receiver forbids is not taken from all.
    #[test]
    fn one_receiver_does_not_use_up_the_limit_of_all() {
        let limit = RateLimit::default();
        let start = Timestamp::from_seconds(100);
        let of_one = (0..1000).filter(|_| limit.allows(receiver(0), start));
        assert_eq!(of_one.count(), BURST as usize);
        let of_others = (1..1000).filter(|&nth| limit.allows(receiver(nth), start));
        assert_eq!(of_others.count(), (BURST_OF_ALL - BURST) as usize);
    }

    fn receiver(nth: usize) -> Address {
        Address::from_v4((0x0a00_0000 + nth as u32).to_be_bytes())
    }
}
