//! A worker: receives a batch of frames from a device, lets the path decide on each, counts, and sends.
//!
//! Never waits for a batch to fill: it takes what is there. Packets of one flow that follow one another in a batch leave
//! as one frame ([`Train`]). All workers share one [`Shared`].

use crate::coalesce::Train;
use crate::conntrack::Conntrack;
use crate::fragments::Fragments;
use crate::frame::Frame;
use crate::notices::Notices;
use crate::path::{self, Context, NEAR, Openings, Prepared};
use crate::ports::ReservedPorts;
use crate::reject::{self, RateLimit, Sources};
use crate::select::Affinity;
use crate::service::ServiceTable;
use crate::tuple::{Origin, Timestamp};
use crate::verdict::{Counters, Verdict};
use arc_swap::ArcSwap;
use fastrand::Rng;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// What frames come from and go to.
pub trait Device {
    /// Receives one frame. False when there is none now.
    ///
    /// # Errors
    /// Those of the device.
    fn receive(&mut self, frame: &mut Frame) -> io::Result<bool>;

    /// Sends one frame.
    ///
    /// # Errors
    /// Those of the device.
    fn send(&mut self, frame: &Frame) -> io::Result<()>;

    /// Whether the kernel has what is received here as well, so that only what is translated is of use.
    fn has_copies(&self) -> bool {
        false
    }
}

/// What the path needs to know of the node beside its Services.
#[derive(Debug, Default)]
pub struct NodeFacts {
    /// Ports that masquerading leaves alone.
    pub reserved_ports: Arc<ReservedPorts>,
    /// Addresses to refuse with.
    pub sources: Sources,
}

/// What all workers of a node share.
#[derive(Debug)]
pub struct Shared {
    /// The connections.
    pub conntrack: Conntrack,
    /// The newest service table; published whole.
    pub services: ArcSwap<ServiceTable>,
    /// The newest facts about the node.
    pub facts: ArcSwap<NodeFacts>,
    /// Endpoints that clients stay with.
    pub affinity: Affinity,
    /// Datagrams in fragments.
    pub fragments: Fragments,
    /// Connections that could not be made, for the log.
    pub notices: Notices,
    /// The limit on refusals, unless it is switched off.
    pub reject_limit: Option<RateLimit>,
    /// See [`Context::forward_invalid`].
    pub forward_invalid: bool,
}

impl Shared {
    /// Of a node of which nothing else is known yet: it refuses without a limit, and forwards no INVALID packets.
    pub fn new(conntrack: Conntrack, services: ServiceTable) -> Self {
        Self {
            conntrack,
            services: ArcSwap::from_pointee(services),
            facts: ArcSwap::default(),
            affinity: Affinity::default(),
            fragments: Fragments::default(),
            notices: Notices::default(),
            reject_limit: None,
            forward_invalid: false,
        }
    }
}

/// Frames that a worker takes at once. More do not help: the caches are full.
pub const BATCH: usize = 64;

/// The fewest frames of a turn, however many devices there are.
const SMALLEST_SHARE: usize = 8;

/// After a rest of this long a frame is probably alone, as a question or an answer is.
pub const REST: Duration = Duration::from_micros(5);

/// One worker: its devices, its buffers, its randomness.
#[derive(Debug)]
pub struct Worker<'a, D> {
    shared: &'a Shared,
    services: arc_swap::Cache<&'a ArcSwap<ServiceTable>, Arc<ServiceTable>>,
    facts: arc_swap::Cache<&'a ArcSwap<NodeFacts>, Arc<NodeFacts>>,
    devices: Vec<(Origin, D)>,
    /// What the next batch of each device may be: one frame, unless its last turn ended before it was empty.
    sizes: Vec<usize>,
    counters: Arc<Counters>,
    rng: Rng,
    frames: Vec<Frame>,
    prepared: [Prepared; NEAR],
    openings: Openings,
    train: Train,
    /// When it last had work.
    worked_until: Timestamp,
}

impl<'a, D: Device> Worker<'a, D> {
    /// A worker over `devices`, each with the origin of what it receives.
    pub fn new(
        shared: &'a Shared,
        devices: Vec<(Origin, D)>,
        counters: Arc<Counters>,
        rng: Rng,
    ) -> Self {
        let services = arc_swap::Cache::new(&shared.services);
        let facts = arc_swap::Cache::new(&shared.facts);
        let frames = (0..BATCH).map(|_| Frame::new()).collect();
        Self {
            shared,
            services,
            facts,
            sizes: vec![1; devices.len()],
            devices,
            counters,
            rng,
            frames,
            prepared: [Prepared::NONE; NEAR],
            openings: Openings::default(),
            train: Train::default(),
            worked_until: Timestamp(0),
        }
    }

    /// The devices, to wait for.
    pub fn devices(&self) -> &[(Origin, D)] {
        &self.devices
    }

    /// Begins a new sequence of random choices, for who must foretell them.
    pub fn reseed(&mut self, rng: Rng) {
        self.rng = rng;
    }

    /// The devices, to feed those that are not of the operating system.
    pub fn devices_mut(&mut self) -> &mut [(Origin, D)] {
        &mut self.devices
    }

    /// Takes all that has arrived, until every device is empty.
    ///
    /// # Errors
    /// When a device cannot receive. A frame that cannot be sent is counted and forgotten.
    pub fn drain(&mut self, clock: impl Fn() -> Timestamp) -> io::Result<()> {
        loop {
            let mut received = 0;
            for device in 0..self.devices.len() {
                let count = self.receive_batch(device, BATCH)?;
                self.handle_batch(device, count, &clock);
                received += count;
            }
            if received == 0 {
                return Ok(());
            }
        }
    }

    /// Takes what has arrived at one device, until it is empty or has had its share. The first frame goes on its way
    /// before the device is asked for another one; while there are more, batches double, and where a turn ended before the
    /// device was empty the next one goes on with whole batches.
    ///
    /// `of` is how many devices have their turns now: all turns together are about a batch, so that one of them that
    /// floods lets the others wait no longer for having many queues.
    ///
    /// After a rest the first frame is all: who waits for the device learns of a second one as well, and else asking
    /// would be in vain.
    ///
    /// # Errors
    /// As [`Self::drain`].
    pub fn drain_one(
        &mut self,
        device: usize,
        of: usize,
        clock: impl Fn() -> Timestamp,
    ) -> io::Result<()> {
        let share = (BATCH / of.max(1)).max(SMALLEST_SHARE);
        let mut received = 0;
        while received < share {
            let size = self.sizes[device].min(share);
            let count = self.receive_batch(device, size)?;
            if count == 0 {
                self.sizes[device] = 1;
                break;
            }
            let now = self.handle_batch(device, count, &clock);
            let is_probably_alone = size == 1 && now > self.worked_until.after(REST);
            if count < size || is_probably_alone {
                self.sizes[device] = 1;
                break;
            }
            self.sizes[device] = (2 * size).min(BATCH);
            received += count;
        }
        self.worked_until = clock();
        Ok(())
    }

    /// At most `size` frames.
    fn receive_batch(&mut self, device: usize, size: usize) -> io::Result<usize> {
        let (_, device) = &mut self.devices[device];
        let frames = &mut self.frames[..size];
        for (count, frame) in frames.iter_mut().enumerate() {
            match device.receive(frame) {
                Ok(true) => {}
                Ok(false) => return Ok(count),
                // What came before it goes on its way; one that lasts comes again.
                Err(_) if count > 0 => return Ok(count),
                Err(error) => return Err(error),
            }
        }
        Ok(size)
    }

    /// Handles the first frames; returns the time that it took them for.
    fn handle_batch(
        &mut self,
        device: usize,
        count: usize,
        clock: &impl Fn() -> Timestamp,
    ) -> Timestamp {
        let shared = self.shared;
        let frames = &mut self.frames[..count];
        let first = &mut frames[..count.min(NEAR)];
        path::prepare(&shared.conntrack, first, &mut self.prepared);
        // Read while the index comes near.
        let now = clock();
        let facts = self.facts.load();
        let mut context = Context {
            conntrack: &shared.conntrack,
            services: self.services.load(),
            affinity: &shared.affinity,
            reserved_ports: &facts.reserved_ports,
            fragments: &shared.fragments,
            notices: &shared.notices,
            openings: &mut self.openings,
            datagram: Vec::new(),
            forward_invalid: shared.forward_invalid,
            rng: &mut self.rng,
            now,
        };
        let (origin, device) = &mut self.devices[device];
        let mut exit = Exit {
            device,
            train: &mut self.train,
            counters: &self.counters,
            shared,
            facts,
            origin: *origin,
            is_alone: count == 1,
        };
        for (nth, frames) in frames.chunks_mut(NEAR).enumerate() {
            if nth > 0 {
                path::prepare(&shared.conntrack, frames, &mut self.prepared);
            }
            let prepared = &mut self.prepared[..frames.len()];
            path::guess(&shared.conntrack, prepared);
            exit.decide(&mut context, frames, prepared);
        }
        exit.leave();
        now
    }
}

/// Where the frames of a batch leave, in the order in which they came.
struct Exit<'e, D> {
    device: &'e mut D,
    train: &'e mut Train,
    counters: &'e Counters,
    shared: &'e Shared,
    facts: &'e NodeFacts,
    origin: Origin,
    /// Whether the batch is one frame, which nothing can follow.
    is_alone: bool,
}

impl<D: Device> Exit<'_, D> {
    /// Has the path decide on each frame, and carries it out.
    #[inline]
    fn decide(&mut self, context: &mut Context<'_>, frames: &mut [Frame], prepared: &[Prepared]) {
        for (frame, prepared) in frames.iter_mut().zip(prepared) {
            if context.openings.must_settle_before(prepared) {
                self.settle(context);
            }
            let Some(verdict) = path::process(context, self.origin, frame, prepared) else {
                context.openings.keep(frame);
                continue;
            };
            // It was of a known connection after all, or opens none.
            if !context.openings.is_empty() {
                self.settle(context);
            }
            self.carry_out(context, frame, verdict);
            context.datagram.clear();
        }
        if !context.openings.is_empty() {
            self.settle(context);
        }
    }

    /// Lets the connections settle that wait.
    fn settle(&mut self, context: &mut Context<'_>) {
        path::settle(context, |context, frame, verdict| {
            self.carry_out(context, frame, verdict);
        });
    }

    /// Counts a verdict, and does what it says.
    #[inline]
    fn carry_out(&mut self, context: &Context<'_>, frame: &mut Frame, verdict: Verdict) {
        if self.device.has_copies() && verdict != Verdict::Forward {
            return;
        }
        self.counters.count(verdict);
        match verdict {
            Verdict::Forward | Verdict::Pass => self.send_on(context, frame),
            Verdict::Reject(_) if refuse(self.shared, self.facts, context, self.origin, frame) => {
                self.send(frame);
            }
            Verdict::Reject(_) | Verdict::Drop(_) | Verdict::Hold => {}
        }
    }

    /// Sends a packet on its way, or all fragments of its datagram.
    #[inline(always)]
    fn send_on(&mut self, context: &Context<'_>, frame: &Frame) {
        if !context.datagram.is_empty() {
            for fragment in &context.datagram {
                self.send(fragment);
            }
        } else if self.is_alone {
            give(self.device, frame, 1, self.counters);
        } else {
            self.send(frame);
        }
    }

    /// Sends `frame`, or takes it into the train that leaves later.
    fn send(&mut self, frame: &Frame) {
        if self.train.take(frame) {
            return;
        }
        if self.train.packets() > 0 {
            self.leave();
            if self.train.take(frame) {
                return;
            }
        }
        give(self.device, frame, 1, self.counters);
    }

    /// Sends the train, if there is one.
    fn leave(&mut self) {
        let packets = self.train.packets();
        if let Some(frame) = self.train.frame() {
            give(self.device, frame, packets, self.counters);
        }
        self.train.clear();
    }
}

/// Sends a frame of so many packets. Those that the device does not take are counted.
fn give<D: Device>(device: &mut D, frame: &Frame, packets: usize, counters: &Counters) {
    if device.send(frame).is_err() {
        (0..packets).for_each(|_| counters.count_send_failure());
    }
}

/// Makes the answer to a refused packet in its frame, if there is to be one.
fn refuse(
    shared: &Shared,
    facts: &NodeFacts,
    context: &Context<'_>,
    origin: Origin,
    frame: &mut Frame,
) -> bool {
    let Some((sender, destination)) = reject::ends(frame) else {
        return false;
    };
    let is_node_address = context.services.is_node_address(destination);
    let is_allowed = |limit: &RateLimit| limit.allows(sender, context.now);
    // What cannot be answered takes nothing of the limit.
    reject::port_unreachable(frame, origin, is_node_address, &facts.sources)
        && shared.reject_limit.as_ref().is_none_or(is_allowed)
}
