//! What is measured: a [`Worker`] with all that it does to a packet, over a device in memory.

use super::flows::{self, Ends, Flow, Stage, Traffic};
use dataplane::conntrack::{Conntrack, Settings};
use dataplane::frame::Frame;
use dataplane::tuple::{Direction, Origin, Timestamp};
use dataplane::verdict::Counters;
use dataplane::worker::{BATCH, Device, Shared, Worker};
use fastrand::Rng;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Frames that are prepared, then handled at one go: they stay in the first cache, as frames do that were just read.
pub(crate) const CHUNK: usize = 256;

/// A device whose frames are prepared in memory. Giving one to the worker and taking it back costs an exchange of
/// two buffers.
#[derive(Debug)]
struct Memory {
    frames: Vec<Frame>,
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
            frames: (0..CHUNK).map(|_| Frame::from_packet(&[0; 66])).collect(),
            next: CHUNK,
            batch,
            left_in_batch: batch,
        }
    }
}

impl Device for Memory {
    #[inline]
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

    #[inline]
    fn send(&mut self, _frame: &Frame) -> io::Result<()> {
        Ok(())
    }
}

/// What workers share, for `capacity` connections.
pub(crate) fn shared(settings: Settings, traffic: Traffic, masquerade: bool, seed: u64) -> Shared {
    let mut rng = Rng::with_seed(seed);
    let key = std::array::from_fn(|_| rng.u64(..));
    Shared::new(
        Conntrack::new(settings, key),
        flows::services(traffic, masquerade),
    )
}

/// A packet that is to be made: its ends, its direction, where in its connection it stands.
pub(crate) type Wanted = (Ends, Direction, Stage);

/// A packet of an established flow.
pub(crate) const fn of_flow(flow: Flow, direction: Direction) -> Wanted {
    (flow.ends(direction), direction, Stage::Open)
}

/// A packet of a flow that is being opened.
pub(crate) const fn opening(flow: Flow, direction: Direction) -> Wanted {
    (flow.ends(direction), direction, Stage::Opening)
}

/// One worker and its device.
pub(crate) struct Subject<'a> {
    worker: Worker<'a, Memory>,
    traffic: Traffic,
    counters: Arc<Counters>,
    handled: u64,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(shared: &'a Shared, traffic: Traffic, batch: usize, seed: u64) -> Self {
        let counters = Arc::new(Counters::default());
        let devices = vec![(Origin::Pod, Memory::new(batch))];
        let rng = Rng::with_seed(seed);
        Self {
            worker: Worker::new(shared, devices, Arc::clone(&counters), rng),
            traffic,
            counters,
            handled: 0,
        }
    }

    /// Prepares a chunk of packets at most, then handles it at `now`; the time that handling took.
    ///
    /// # Panics
    /// When more than one packet of a thousand was not forwarded, beside the first two: then nothing of worth was measured.
    /// One of a million flows may be gone, because both buckets of a tuple were full.
    pub(crate) fn handle(
        &mut self,
        packets: impl Iterator<Item = Wanted>,
        now: Timestamp,
    ) -> Duration {
        let (elapsed, _) = self.count(packets, now);
        let counts = self.counters.read();
        assert!(
            self.handled - counts.forward <= 2 + self.handled / 1000,
            "packets were not forwarded: {counts:?}"
        );
        elapsed
    }

    /// As [`Self::handle`]; says how many of the packets were forwarded, too.
    pub(crate) fn count(
        &mut self,
        packets: impl Iterator<Item = Wanted>,
        now: Timestamp,
    ) -> (Duration, u64) {
        let before = self.counters.read().forward;
        let (_, device) = &mut self.worker.devices_mut()[0];
        device.next = CHUNK;
        for (ends, direction, stage) in packets.take(CHUNK) {
            device.next -= 1;
            ends.write(
                self.traffic,
                direction,
                stage,
                &mut device.frames[device.next],
            );
        }
        // In the order in which they were asked for.
        device.frames[device.next..].reverse();
        self.handled += (CHUNK - device.next) as u64;
        let start = Instant::now();
        handle_prepared(&mut self.worker, now);
        let elapsed = start.elapsed();
        (elapsed, self.counters.read().forward - before)
    }

    /// How many packets were made so far.
    pub(crate) const fn handled(&self) -> u64 {
        self.handled
    }
}

/// All that is timed. A function of its own, so that a profiler can count what is done in it and nothing else.
#[inline(never)]
fn handle_prepared(worker: &mut Worker<'_, Memory>, now: Timestamp) {
    // The device has no errors.
    let _ = worker.drain(|| now);
}
