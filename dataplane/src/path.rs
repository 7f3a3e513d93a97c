//! The path of a packet: [`process`], then [`established`] for packets of known connections, [`new_flow`] and [`settle`] for
//! the first of a new one, [`related`] for ICMP errors about one.
//!
//! A packet takes one pass; the first packet of a connection pauses halfway through it. A hit reads the service table only to find out
//! whether a UDP flow from before the newest table still has its endpoint. Read first: `docs/architecture.md`; then the module
//! whose noun interests you.
//!
//! Whatever a hit passes through is inlined into [`process`]. Functions that are rarely needed are handed small values only: a
//! large one would be passed in memory, written in parts and then read as a whole, and the processor waits for such reads.

mod openings;
mod prepared;

pub use openings::{Openings, settle};
pub use prepared::{NEAR, Prepared, guess, prepare};

use crate::conntrack::{Conntrack, EntryId, Found, HeadersView, ServiceTag};
use crate::conntrack::{Tentative, Tracked, Transport, TupleHash};
use crate::fragments::{self, Collected, Described, Fragments};
use crate::frame::Frame;
use crate::nat;
use crate::notices::{Notice, Notices};
use crate::packet::{Layout, Packet, Quote};
use crate::ports::{self, ReservedPorts};
use crate::select::{self, Affinity, Turn};
use crate::service::{Decision, ServiceTable};
use crate::tuple::{Address, Origin, Protocol, Timestamp, Tuple};
use crate::verdict::{DropReason, RejectWith, Verdict};
use fastrand::Rng;
use openings::Opening;

/// All that the path works with, for the packets of one batch.
#[derive(Debug)]
pub struct Context<'a> {
    /// The connections.
    pub conntrack: &'a Conntrack,
    /// The newest service table.
    pub services: &'a ServiceTable,
    /// Endpoints that clients stay with.
    pub affinity: &'a Affinity,
    /// Ports that masquerading must leave alone.
    pub reserved_ports: &'a ReservedPorts,
    /// Datagrams that arrive in fragments.
    pub fragments: &'a Fragments,
    /// Where dropped connections are noted for the log.
    pub notices: &'a Notices,
    /// Connections that are planned and have not settled. See [`process`].
    pub openings: &'a mut Openings,
    /// Filled when the last fragment of a datagram arrived: all of its frames, which the verdict is about.
    pub datagram: Vec<Frame>,
    /// Whether INVALID packets go on untranslated (`tcpBeLiberal` takes kube-proxy's drop rule away).
    pub forward_invalid: bool,
    /// Randomness.
    pub rng: &'a mut Rng,
    /// Time.
    pub now: Timestamp,
}

/// Decides on the packet in `frame`, which came from `origin` and was prepared, and translates it in place.
///
/// `None`: it opens a connection, which is planned and waits in [`Context::openings`], where the caller leaves the frame
/// ([`Openings::keep`]). [`settle`] decides on it: when [`Openings::must_settle_before`] asks for it, at the latest when no more
/// packets are there.
pub fn process(
    context: &mut Context<'_>,
    origin: Origin,
    frame: &mut Frame,
    prepared: &Prepared,
) -> Option<Verdict> {
    match prepared.layout {
        Err(reason) => Some(Verdict::Drop(reason)),
        Ok(layout) if layout.is_fragment() => Some(datagram(context, origin, frame, layout)),
        Ok(layout) => whole(context, origin, frame, layout, prepared),
    }
}

/// [`process`] and [`settle`] for a packet that no other one waits with.
pub fn process_alone(
    context: &mut Context<'_>,
    origin: Origin,
    frame: &mut Frame,
    prepared: &Prepared,
) -> Verdict {
    let mut verdict = process(context, origin, frame, prepared);
    if verdict.is_none() {
        context.openings.keep(frame);
    }
    settle(context, |_, settled, its_verdict| {
        std::mem::swap(frame, settled);
        verdict = Some(its_verdict);
    });
    // One of the two has set it.
    verdict.unwrap_or(Verdict::Drop(DropReason::Malformed))
}

/// A packet that is no fragment.
#[inline(always)]
fn whole(
    context: &mut Context<'_>,
    origin: Origin,
    frame: &mut Frame,
    layout: Layout,
    prepared: &Prepared,
) -> Option<Verdict> {
    if layout.protocol.is_icmp()
        && let Some(verdict) = icmp(context, origin, frame, layout)
    {
        return Some(verdict);
    }
    let packet = Packet::new(frame, layout);
    let transport = packet.transport_header();
    match (&prepared.tuple, &transport) {
        (Some(tuple), Some(transport)) if !is_damaged(origin, &packet) => {
            flow(context, origin, packet, prepared, tuple, transport)
        }
        _ => Some(broken(
            context,
            origin,
            packet.protocol(),
            packet.destination(),
        )),
    }
}

/// An ICMP error, which is about another packet, or a message that nobody tracks. `None`: it is of a flow.
#[cold]
fn icmp(
    context: &mut Context<'_>,
    origin: Origin,
    frame: &mut Frame,
    layout: Layout,
) -> Option<Verdict> {
    let packet = Packet::new(frame, layout);
    if packet.is_untracked() {
        return Some(Verdict::Pass);
    }
    packet.is_icmp_error().then(|| match packet.quote() {
        Some(quote) if !is_damaged(origin, &packet) => related(context, origin, packet, &quote),
        _ => broken(context, origin, packet.protocol(), packet.destination()),
    })
}

/// Whether the transport checksum is wrong, and somebody looks: the kernel verifies in PREROUTING only.
#[inline(always)]
fn is_damaged(origin: Origin, packet: &Packet<'_>) -> bool {
    origin != Origin::Node && packet.has_bad_checksum()
}

#[inline(always)]
fn flow(
    context: &mut Context<'_>,
    origin: Origin,
    packet: Packet<'_>,
    prepared: &Prepared,
    tuple: &Tuple,
    transport: &Transport,
) -> Option<Verdict> {
    let Prepared { hash, guess, .. } = prepared;
    match context
        .conntrack
        .find_near(tuple, *hash, *guess, context.now)
    {
        Some(found) => established(context, origin, packet, tuple, hash, transport, &found),
        None => {
            let headers = headers(&packet, tuple, transport);
            new_flow(context, origin, packet.layout(), headers, hash)
        }
    }
}

/// A packet of a connection that the table knows: track its state, rewrite, forward.
#[inline(always)]
fn established(
    context: &mut Context<'_>,
    origin: Origin,
    mut packet: Packet<'_>,
    tuple: &Tuple,
    hash: &TupleHash,
    transport: &Transport,
    found: &Found,
) -> Option<Verdict> {
    let (conntrack, now) = (context.conntrack, context.now);
    if is_stale(context, tuple.protocol, found) {
        conntrack.end(found.entry(), now);
        let headers = headers(&packet, tuple, transport);
        return new_flow(context, origin, packet.layout(), headers, hash);
    }
    if conntrack.goes_on(found, now) {
        return Some(translate(&mut packet, tuple, found));
    }
    let headers = headers(&packet, tuple, transport);
    match conntrack.track_locked(found.entry(), found.direction(), headers, now) {
        Tracked::Accepted | Tracked::Ignored => Some(translate(&mut packet, tuple, found)),
        Tracked::Invalid(_) => Some(invalid(context, origin, packet.destination())),
        Tracked::Restart => new_flow(context, origin, packet.layout(), headers, hash),
    }
}

#[inline(always)]
fn headers<'h>(packet: &Packet<'_>, tuple: &'h Tuple, transport: &'h Transport) -> HeadersView<'h> {
    HeadersView {
        tuple,
        transport,
        length: packet.length() as u32,
    }
}

/// The first packet of a connection: find the Service, choose the endpoint, plan the reply tuple. [`settle`] does the rest when
/// the index of that tuple has come near: confirm, rewrite.
fn new_flow(
    context: &mut Context<'_>,
    origin: Origin,
    layout: Layout,
    headers: HeadersView<'_>,
    hash: &TupleHash,
) -> Option<Verdict> {
    let (conntrack, original) = (context.conntrack, headers.tuple);
    if is_with_the_node_itself(context, origin, original) {
        return Some(Verdict::Pass);
    }
    let Ok(mut tentative) = conntrack.open_viewed(headers, context.now) else {
        return Some(invalid(context, origin, original.destination));
    };
    if let Err(verdict) = plan(context, origin, &mut tentative) {
        return Some(verdict);
    }
    let reply = conntrack.hash(&tentative.reply);
    conntrack.prefetch_buckets(reply);
    context.openings.add(Opening {
        tentative,
        hashes: [*hash, reply],
        layout,
    });
    None
}

/// Whether a TCP packet is for the node itself, and neither for a Service nor from the address of one: what the node
/// answers there comes by, and must not be taken for a new connection to the Service.
///
/// DIFFERS: such connections are not tracked. The node's side of them does not come by, so that they would look as if
/// nobody answered for as long as a SYN may wait, when the kernel knows them established or refused.
fn is_with_the_node_itself(context: &Context<'_>, origin: Origin, tuple: &Tuple) -> bool {
    let services = context.services;
    tuple.protocol == Protocol::TCP
        && origin != Origin::Node
        && services.is_node_address(tuple.destination)
        && matches!(services.decide(tuple, origin), Decision::NotAService)
        && matches!(
            services.decide(&tuple.inverse(), Origin::Node),
            Decision::NotAService
        )
}

/// An ICMP error: translated as the connection that the quoted packet belongs to.
///
/// DIFFERS: so are those of the node about a connection from 127.0.0.1, which the kernel loses. Those of the node with a
/// wrong checksum pass where the connection is not known here, because it needs no translation.
#[cold]
fn related(
    context: &mut Context<'_>,
    origin: Origin,
    mut packet: Packet<'_>,
    quote: &Quote,
) -> Verdict {
    let about = quote.tuple.inverse();
    let known = context.conntrack.find(&about, context.now);
    // An error travels to the sender of the quoted packet, or it is a forgery; and the flow has its place still.
    let known = known.filter(|found| {
        packet.destination() == quote.tuple.source && !is_stale(context, about.protocol, found)
    });
    let Some(found) = known else {
        context.conntrack.count_invalid(packet.protocol());
        return invalid(context, origin, packet.destination());
    };
    // Whoever translates verifies (`nf_nat_icmp_reply_translation`); what others sent was verified before.
    if origin == Origin::Node && packet.has_bad_checksum() {
        return Verdict::Drop(DropReason::Invalid);
    }
    let Some(translation) = found.translation() else {
        return Verdict::Pass;
    };
    if packet.is_redirect() {
        return Verdict::Drop(DropReason::Redirect);
    }
    match nat::rewrite_error(&mut packet, quote, &translation) {
        Ok(()) => Verdict::Forward,
        Err(reason) => Verdict::Drop(reason),
    }
}

/// A fragment: waits until its datagram is whole. What becomes of the datagram becomes of all of its fragments.
#[cold]
fn datagram(
    context: &mut Context<'_>,
    origin: Origin,
    frame: &mut Frame,
    layout: Layout,
) -> Verdict {
    let Some(described) = Described::of(&Packet::new(frame, layout)) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    let mut frames = match context.fragments.collect(frame, &described, context.now) {
        Collected::Waiting => return Verdict::Hold,
        Collected::Dropped(reason) => return Verdict::Drop(reason),
        Collected::Incomplete => return invalid(context, origin, described.destination()),
        Collected::Whole(frames) => frames,
    };
    let Some(mut joined) = fragments::join(&mut frames) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    let prepared = Prepared::of(context.conntrack, joined.packet());
    let verdict = match prepared.layout {
        // One more header of a fragment inside.
        Ok(layout) if layout.is_fragment() => invalid(context, origin, described.destination()),
        _ => process_alone(context, origin, &mut joined, &prepared),
    };
    match verdict {
        Verdict::Forward => fragments::spread(&mut joined, &mut frames),
        // A refusal quotes the datagram.
        Verdict::Reject(_) => frame.set_packet(joined.packet()),
        Verdict::Pass | Verdict::Drop(_) | Verdict::Hold => {}
    }
    context.datagram = frames;
    verdict
}

#[inline(always)]
fn translate(packet: &mut Packet<'_>, tuple: &Tuple, found: &Found) -> Verdict {
    let Some(translation) = found.translation() else {
        return Verdict::Pass;
    };
    nat::rewrite(packet, tuple, &translation);
    Verdict::Forward
}

/// Makes the reply tuple what the Service asks for, with a source port of its own where the source is masqueraded; and says for
/// whom the connection is made.
///
/// DIFFERS: what is turned away leaves no entry. In the kernel what the node sends to its own address has one by the time
/// that kube-proxy's rule turns it away, and INVALID packets of that connection pass.
fn plan(
    context: &mut Context<'_>,
    origin: Origin,
    tentative: &mut Tentative,
) -> Result<(), Verdict> {
    let services = context.services;
    let generation = services.generation();
    let Tentative {
        original, reply, ..
    } = tentative;
    let (service, endpoints, masquerade) = match services.decide(original, origin) {
        Decision::NotAService => {
            tentative.set_service(ServiceTag::untranslated(generation));
            return Ok(());
        }
        Decision::Reject(_) => return Err(Verdict::Reject(RejectWith::PortUnreachable)),
        Decision::NoLocalEndpoint(_) => return Err(Verdict::Drop(DropReason::NoLocalEndpoint)),
        Decision::SourceNotAllowed(_) => return Err(Verdict::Drop(DropReason::SourceNotAllowed)),
        Decision::Balance {
            service,
            endpoints,
            masquerade,
        } => (service, endpoints, masquerade),
    };
    let mut turn = Turn {
        affinity: context.affinity,
        rng: context.rng,
        now: context.now,
    };
    let endpoint = select::endpoint(services, service, endpoints, original, &mut turn);
    let masqueraded = nat::plan(reply, endpoint, masquerade, origin).map_err(Verdict::Drop)?;
    if masqueraded {
        let (reserved, now) = (context.reserved_ports, context.now);
        ports::draw(context.conntrack, reserved, reply, now, context.rng)
            .map_err(|_| no_room(context, [original, reply], DropReason::NoFreePort))?;
    }
    let id = services.service_id(service);
    tentative.set_service(ServiceTag { id, generation });
    Ok(())
}

/// A connection that is not made is counted, and noted for the log.
fn no_room(context: &Context<'_>, [original, reply]: [&Tuple; 2], reason: DropReason) -> Verdict {
    if reason == DropReason::NoFreePort {
        context.conntrack.count_no_port();
    }
    context.notices.leave(Notice {
        reason,
        original: *original,
        reply: *reply,
        entries: context.conntrack.len(),
    });
    Verdict::Drop(reason)
}

/// Whether a UDP flow must end because the newest table has no place for it: its endpoint is gone, or what went on
/// untranslated is now addressed to a Service (there a sweep after each sync). See [`ServiceTable::is_stale`].
#[inline]
fn is_stale(context: &Context<'_>, protocol: Protocol, found: &Found) -> bool {
    let newest = context.services.generation();
    let older = found.service().filter(|tag| tag.generation != newest);
    protocol == Protocol::UDP
        && older.is_some_and(|tag| has_lost_its_place(context, found.entry(), tag))
}

/// Asked once of each flow for each table.
#[cold]
fn has_lost_its_place(context: &Context<'_>, entry: EntryId, tag: ServiceTag) -> bool {
    let Some([original, reply]) = context.conntrack.tuples(entry) else {
        return false;
    };
    let services = context.services;
    let stale = services.is_stale(&original, &reply, tag.service(), tag.generation);
    if !stale {
        let newest = services.generation();
        context.conntrack.revalidate(entry, newest);
    }
    stale
}

/// A packet whose headers or checksum are not right: it belongs to no connection.
#[cold]
fn broken(
    context: &Context<'_>,
    origin: Origin,
    protocol: Protocol,
    destination: Address,
) -> Verdict {
    context.conntrack.count_invalid(protocol);
    invalid(context, origin, destination)
}

/// INVALID packets are never translated. kube-proxy drops them in forwarding (KUBE-FORWARD), not on their way to or
/// from the node itself.
///
/// DIFFERS: kube-proxy's rules for health check ports drop what is for the node and lacks a TCP header; here it passes.
fn invalid(context: &Context<'_>, origin: Origin, destination: Address) -> Verdict {
    let forwarded = origin != Origin::Node && !context.services.is_node_address(destination);
    if forwarded && !context.forward_invalid {
        Verdict::Drop(DropReason::Invalid)
    } else {
        Verdict::Pass
    }
}
