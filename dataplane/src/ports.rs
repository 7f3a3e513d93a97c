//! Source ports for masquerade, and for the clash of two flows that NAT would make one.
//!
//! Uniqueness is of the whole reply tuple, so one port serves any number of destinations. A free port is found while
//! there is one: by probing at random while that works, by a bitmap of the destination's ports once it does not.
//!
//! Nothing is held between the choice and `Conntrack::confirm`, so no path can leak a port: a port is in use while a live
//! entry has it in its reply tuple, and `confirm` alone decides. So the first try is [`draw`], which does not look whether
//! its port is free; who is told `ReplyTaken` then asks [`lease`], which does.
//!
//! Measure: Linux `nf_nat_core.c` (`get_unique_tuple`, `nf_nat_l4proto_unique_tuple`).
//! DIFFERS: the kernel gives up after 248 probes and drops the packet although ports are free; we look at all of them.
//! DIFFERS: where all ports towards a destination are in use, one whose flow has just expired is found 200 ms later at the
//! latest.
//! DIFFERS: the kernel may choose a port that the node itself listens on; we do not ([`ReservedPorts`]), from the time on
//! that it is noticed. Nothing tells of a socket that begins to listen: the agent looks once a second.
//! DIFFERS: without `--random-fully` the kernel prefers the port that the same client got towards another server, and
//! takes ports over from TIME_WAIT and CLOSE when the search gets hard; kube-proxy always asks for `--random-fully`,
//! and a search that is exhaustive need not take over.

use crate::conntrack::pools::Bitmap;
use crate::conntrack::{Conntrack, PortSearch};
use crate::tuple::{Protocol, Timestamp, Tuple};
use std::iter;
use std::ops::RangeInclusive;

/// Ports that are never leased, by protocol: those that the node itself listens on. Shared with whoever keeps it up to
/// date while packets pass.
#[derive(Debug)]
pub struct ReservedPorts {
    tcp: Bitmap,
    udp: Bitmap,
    sctp: Bitmap,
}

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
        bitmap.set_words(words);
    }

    /// Whether `port` must not be leased.
    #[inline]
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.bitmap(protocol)
            .is_some_and(|bitmap| bitmap.contains(port))
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

/// Random probes before the bitmap is asked. At half full two find a port; this many fail where nine in ten are taken
/// once in five times.
const PROBES: usize = 16;

/// Gives `reply` a random port of its class (see [`lease`]), as `--random-fully` asks for. It is probably free: a
/// destination of which many ports are taken has a bitmap, which is asked. Protocols without ports stay as they are.
///
/// # Errors
/// [`NoPort::Exhausted`]; `reply` is as before then.
pub fn draw(
    conntrack: &Conntrack,
    reserved: &ReservedPorts,
    reply: &mut Tuple,
    now: Timestamp,
    random: &mut fastrand::Rng,
) -> Result<(), NoPort> {
    let Some(range) = class(reply) else {
        return Ok(());
    };
    let bitmap = reserved.bitmap(reply.protocol);
    let start = random.u16(range.clone());
    let search = PortSearch {
        reply,
        range: &range,
        start,
    };
    if let Some(found) = conntrack.find_port(&search, bitmap, now) {
        return keep(reply, found);
    }
    let may_be_drawn = |port: &u16| !bitmap.is_some_and(|bitmap| bitmap.contains(*port));
    let more = (1..PROBES).map(|_| random.u16(range.clone()));
    match iter::once(start).chain(more).find(may_be_drawn) {
        Some(port) => keep(reply, Some(port)),
        None => lease_in(conntrack, reserved, reply, range, now, random),
    }
}

/// Gives `reply` a port that makes it unique. On entry its port ([`Tuple::leased_port`]) is one of the packet's class,
/// which bounds the search: below 512, 512 to 1023 (from 600), from 1024; ICMP identifiers any.
///
/// # Errors
/// [`NoPort`]; `reply` is as before then.
pub fn lease(
    conntrack: &Conntrack,
    reserved: &ReservedPorts,
    reply: &mut Tuple,
    now: Timestamp,
    random: &mut fastrand::Rng,
) -> Result<(), NoPort> {
    match class(reply) {
        Some(class) => lease_in(conntrack, reserved, reply, class, now, random),
        None if conntrack.is_free(reply, now) => Ok(()),
        None => Err(NoPort::NoPorts),
    }
}

/// As [`lease`], among the ports of `range` only, which has one at least: those of iptables' `--to-ports`, or a block of
/// [`Blocks`].
///
/// # Errors
/// [`NoPort::Exhausted`]; `reply` is as before then.
pub fn lease_in(
    conntrack: &Conntrack,
    reserved: &ReservedPorts,
    reply: &mut Tuple,
    range: RangeInclusive<u16>,
    now: Timestamp,
    random: &mut fastrand::Rng,
) -> Result<(), NoPort> {
    let search = PortSearch {
        reply,
        range: &range,
        start: random.u16(range.clone()),
    };
    let reserved = reserved.bitmap(reply.protocol);
    if let Some(found) = conntrack.find_port(&search, reserved, now) {
        return keep(reply, found);
    }
    let mut candidate = *reply;
    for _ in 0..PROBES {
        let port = random.u16(range.clone());
        *candidate.leased_port_mut() = port;
        if !reserved.is_some_and(|reserved| reserved.contains(port))
            && conntrack.is_free(&candidate, now)
        {
            return keep(reply, Some(port));
        }
    }
    let search = PortSearch {
        reply,
        range: &range,
        start: random.u16(range.clone()),
    };
    let found = conntrack.open_pool(&search, reserved, now);
    keep(reply, found)
}

/// Of the ports that a search for `reply` goes through: how many are in use towards its destination, and how many
/// are reserved. Looks at each of them: for the log, not for the path.
pub fn in_use(
    conntrack: &Conntrack,
    reserved: &ReservedPorts,
    reply: &Tuple,
    now: Timestamp,
) -> (usize, usize) {
    let mut candidate = *reply;
    let (mut in_use, mut kept) = (0, 0);
    for port in class(reply).into_iter().flatten() {
        *candidate.leased_port_mut() = port;
        in_use += usize::from(conntrack.find(&candidate, now).is_some());
        kept += usize::from(reserved.contains(reply.protocol, port));
    }
    (in_use, kept)
}

fn keep(reply: &mut Tuple, port: Option<u16>) -> Result<(), NoPort> {
    *reply.leased_port_mut() = port.ok_or(NoPort::Exhausted)?;
    Ok(())
}

/// The ports among which the kernel would search, by the port that the packet had.
fn class(reply: &Tuple) -> Option<RangeInclusive<u16>> {
    match reply.protocol {
        Protocol::ICMP | Protocol::ICMPV6 => Some(0..=u16::MAX),
        Protocol::TCP | Protocol::UDP | Protocol::SCTP | Protocol::UDP_LITE => {
            Some(match reply.destination_port {
                0..512 => 1..=511,
                512..1024 => 600..=1023,
                1024.. => 1024..=u16::MAX,
            })
        }
        _ => None,
    }
}

impl Tuple {
    /// The field of a reply tuple that a masqueraded source port is in; for ICMP the identifier.
    #[inline]
    pub const fn leased_port(&self) -> &u16 {
        if self.protocol.is_icmp() {
            &self.source_port
        } else {
            &self.destination_port
        }
    }

    /// As [`Tuple::leased_port`].
    #[inline]
    pub const fn leased_port_mut(&mut self) -> &mut u16 {
        if self.protocol.is_icmp() {
            &mut self.source_port
        } else {
            &mut self.destination_port
        }
    }
}

/// Fixed blocks of ports for owners, as a cloud's load balancer gives to each of its instances: what one owner does
/// never takes ports from another.
#[derive(Clone, Debug)]
pub struct Blocks {
    first: u16,
    size: u16,
    owners: Vec<Option<u64>>,
}

impl Blocks {
    /// Cuts `ports` into blocks of `size`; what is left over at the end is not used.
    pub fn new(ports: RangeInclusive<u16>, size: u16) -> Self {
        let count = ports.len() / usize::from(size.max(1));
        Self {
            first: *ports.start(),
            size: size.max(1),
            owners: vec![None; count],
        }
    }

    /// One more block for `owner`; `None` when all are given away.
    pub fn claim(&mut self, owner: u64) -> Option<RangeInclusive<u16>> {
        let nth = self.owners.iter().position(Option::is_none)?;
        self.owners[nth] = Some(owner);
        Some(self.ports(nth))
    }

    /// Takes all blocks of `owner` back. Connections that use them live on; `Conntrack` keeps their tuples unique.
    pub fn release(&mut self, owner: u64) {
        for slot in self.owners.iter_mut().filter(|slot| **slot == Some(owner)) {
            *slot = None;
        }
    }

    /// The blocks of `owner`.
    pub fn of(&self, owner: u64) -> impl Iterator<Item = RangeInclusive<u16>> + '_ {
        let owned = self
            .owners
            .iter()
            .enumerate()
            .filter(move |(_, slot)| **slot == Some(owner));
        owned.map(|(nth, _)| self.ports(nth))
    }

    /// Blocks that nobody has.
    pub fn free(&self) -> usize {
        self.owners.iter().filter(|slot| slot.is_none()).count()
    }

    fn ports(&self, nth: usize) -> RangeInclusive<u16> {
        let first = self.first + nth as u16 * self.size;
        first..=first + (self.size - 1)
    }
}
