//! Source ports for masquerade, and for the clash of two flows that NAT would make one.
//!
//! Uniqueness is of the whole reply tuple, so one port serves any number of destinations. A free port is found while
//! there is one.
//!
//! Measure: Linux `nf_nat_core.c` (`get_unique_tuple`, `nf_nat_l4proto_unique_tuple`).
//! DIFFERS: the kernel gives up after 248 probes and drops the packet although ports are free; we look at all of them.
//! DIFFERS: the kernel may choose a port that the node itself listens on; we never do ([`ReservedPorts`]).

use crate::conntrack::Conntrack;
use crate::tuple::{Protocol, Timestamp, Tuple};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Ports that are never leased, by protocol: those that the node itself listens on.
#[derive(Debug)]
pub struct ReservedPorts {
    tcp: Bitmap,
    udp: Bitmap,
    sctp: Bitmap,
}

/// One bit per port.
#[derive(Debug)]
struct Bitmap([AtomicU64; 1024]);

impl Default for ReservedPorts {
    fn default() -> Self {
        Self {
            tcp: Bitmap::new(),
            udp: Bitmap::new(),
            sctp: Bitmap::new(),
        }
    }
}

impl ReservedPorts {
    /// Replaces the ports of one protocol. Protocols without ports have none.
    pub fn replace(&self, protocol: Protocol, ports: impl IntoIterator<Item = u16>) {
        let Some(bitmap) = self.bitmap(protocol) else {
            return;
        };
        let mut words = [0_u64; 1024];
        for port in ports {
            words[usize::from(port >> 6)] |= 1 << (port & 63);
        }
        for (word, bits) in bitmap.0.iter().zip(words) {
            word.store(bits, Relaxed);
        }
    }

    /// Whether `port` must not be leased.
    #[inline]
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.bitmap(protocol)
            .is_some_and(|bitmap| bitmap.word(port >> 6) >> (port & 63) & 1 != 0)
    }

    const fn bitmap(&self, protocol: Protocol) -> Option<&Bitmap> {
        match protocol {
            Protocol::TCP => Some(&self.tcp),
            Protocol::UDP => Some(&self.udp),
            Protocol::SCTP => Some(&self.sctp),
            _ => None,
        }
    }
}

impl Bitmap {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 1024])
    }

    #[inline]
    fn word(&self, index: u16) -> u64 {
        self.0[usize::from(index)].load(Relaxed)
    }
}

/// How a port is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Keep the packet's own port while the reply tuple is free, else search (`MASQUERADE`, and the null binding
    /// that every untranslated flow gets).
    KeepIfFree,
    /// Always search from a random port (`--random-fully`).
    Random,
}

/// Why no port could be leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPort {
    /// Every port of the class is in use towards this destination.
    #[error("no source port is free towards this destination")]
    Exhausted,
    /// The protocol has no ports, and the address pair is in use.
    #[error("the protocol has no ports, and this pair of addresses is in use")]
    NoPorts,
}

/// Gives `reply` a port that makes it unique. `reply.destination_port` (the ICMP identifier: `source_port`) is on entry
/// that of the packet; it is the field that changes, and its class bounds the search.
///
/// The port is not held: `Conntrack::confirm` says `ReplyTaken` when another packet was faster, and the caller leases
/// again.
///
/// # Errors
/// [`NoPort`]; `reply` is as before then.
pub fn lease(
    conntrack: &Conntrack,
    reserved: &ReservedPorts,
    reply: &mut Tuple,
    choice: Choice,
    (now, random): (Timestamp, &mut fastrand::Rng),
) -> Result<(), NoPort> {
    if choice == Choice::KeepIfFree && conntrack.is_free(reply, now) {
        return Ok(());
    }
    let Some(class) = class(reply) else {
        return if conntrack.is_free(reply, now) {
            Ok(())
        } else {
            Err(NoPort::NoPorts)
        };
    };
    let (first, last) = (u32::from(*class.start()), u32::from(*class.end()));
    let size = last - first + 1;
    let offset = random.u32(..size);
    let mut candidate = *reply;
    for step in 0..size {
        let port = (first + (offset + step) % size) as u16;
        *port_mut(&mut candidate) = port;
        if !reserved.contains(reply.protocol, port) && conntrack.is_free(&candidate, now) {
            *reply = candidate;
            return Ok(());
        }
    }
    Err(NoPort::Exhausted)
}

/// The field of a reply tuple that a masqueraded source port is in.
fn port_mut(reply: &mut Tuple) -> &mut u16 {
    if reply.protocol.is_icmp() {
        &mut reply.source_port
    } else {
        &mut reply.destination_port
    }
}

/// The ports among which the kernel would search, by the port that the packet had.
fn class(reply: &Tuple) -> Option<RangeInclusive<u16>> {
    match reply.protocol {
        Protocol::ICMP | Protocol::ICMPV6 => Some(0..=u16::MAX),
        Protocol::TCP | Protocol::UDP | Protocol::SCTP | Protocol(136) => {
            Some(match reply.destination_port {
                0..512 => 1..=511,
                512..1024 => 600..=1023,
                1024.. => 1024..=u16::MAX,
            })
        }
        _ => None,
    }
}
