//! What is measured: a [`Worker`] with all that it does to a packet, over a device in memory.

use super::flows::{self, Flow};
use arc_swap::ArcSwap;
use dataplane::conntrack::{Conntrack, Settings};
use dataplane::fragments::Fragments;
use dataplane::frame::Frame;
use dataplane::notices::Notices;
use dataplane::select::Affinity;
use dataplane::tuple::{Direction, Origin, Timestamp};
use dataplane::verdict::Counters;
use dataplane::worker::{BATCH, Device, NodeFacts, Shared, Worker};
use fastrand::Rng;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Frames that are prepared, then handled at one go: they stay in the first cache, as frames do that were just read.
pub(super) const CHUNK: usize = 256;

/// A device whose frames are prepared in memory. Giving one to the worker and taking it back costs an exchange of
/// two buffers.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) frames: Vec<Frame>,
    /// The first that is still to be received.
    next: usize,
    /// The worker gets at most so many at once.
    batch: usize,
    left_in_batch: usize,
}

impl Memory {
    fn new(batch: usize) -> Self {
        // A worker stops at its own batch size without asking for more.
        let batch = if batch >= BATCH { usize::MAX } else { batch };
        Self {
            frames: (0..CHUNK).map(|_| Frame::from_packet(&[0; 64])).collect(),
            next: CHUNK,
            batch,
            left_in_batch: batch,
        }
    }
}

impl Device for Memory {
    fn receive(&mut self, frame: &mut Frame) -> io::Result<bool> {
        if self.left_in_batch == 0 || self.next == self.frames.len() {
            self.left_in_batch = self.batch;
            return Ok(false);
        }
        std::mem::swap(frame, &mut self.frames[self.next]);
        self.next += 1;
        self.left_in_batch -= 1;
        Ok(true)
    }

    fn send(&mut self, _frame: &Frame) -> io::Result<()> {
        Ok(())
    }
}

/// What workers share, for `capacity` connections.
pub(super) fn shared(settings: Settings, masquerade: bool, seed: u64) -> Shared {
    let mut rng = Rng::with_seed(seed);
    Shared {
        conntrack: Conntrack::new(settings, std::array::from_fn(|_| rng.u64(..))),
        services: ArcSwap::from_pointee(flows::services(masquerade)),
        facts: ArcSwap::from_pointee(NodeFacts::default()),
        affinity: Affinity::default(),
        fragments: Fragments::default(),
        notices: Notices::default(),
        reject_limit: None,
        forward_invalid: false,
    }
}

/// One worker and its device.
pub(super) struct Subject<'a> {
    worker: Worker<'a, Memory>,
    counters: Arc<Counters>,
    handled: u64,
}

impl<'a> Subject<'a> {
    pub(super) fn new(shared: &'a Shared, batch: usize, seed: u64) -> Self {
        let counters = Arc::new(Counters::default());
        let devices = vec![(Origin::Pod, Memory::new(batch))];
        let rng = Rng::with_seed(seed);
        Self {
            worker: Worker::new(shared, devices, Arc::clone(&counters), rng),
            counters,
            handled: 0,
        }
    }

    /// Prepares a chunk of packets, then handles it at `now`; the time that handling took.
    ///
    /// # Panics
    /// When more than one packet of a thousand was not forwarded: then nothing of worth was measured. One of a million
    /// flows may be gone, because both buckets of a tuple were full.
    pub(super) fn handle(
        &mut self,
        packets: impl Iterator<Item = (Flow, Direction)>,
        now: Timestamp,
    ) -> Duration {
        let (_, device) = &mut self.worker.devices_mut()[0];
        device.next = CHUNK;
        for (flow, direction) in packets.take(CHUNK) {
            device.next -= 1;
            flow.write(direction, &mut device.frames[device.next]);
        }
        self.handled += (CHUNK - device.next) as u64;
        let start = Instant::now();
        let result = self.worker.drain(|| now);
        let elapsed = start.elapsed();
        let counts = self.counters.read();
        assert!(
            result.is_ok() && self.handled - counts.forward <= self.handled / 1000,
            "packets were not forwarded: {counts:?}"
        );
        elapsed
    }
}
