//! The worker threads of a node.

use dataplane::frame::Frame;
use dataplane::sys::node_errors::NodeErrors;
use dataplane::sys::tun::Queue;
use dataplane::tuple::{Origin, Timestamp};
use dataplane::verdict::{Counters, Counts};
use dataplane::worker::{Device, Shared, Worker};
use fastrand::Rng;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// The node's clock: monotonic, from the start of the agent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts it.
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// The time now.
    pub(crate) fn now(self) -> Timestamp {
        Timestamp(self.start.elapsed().as_nanos() as u64)
    }
}

/// What a worker receives from.
#[derive(Debug)]
pub enum Source {
    /// A queue of a TUN device.
    Tun(Queue),
    /// ICMPv6 errors to the node itself.
    Errors(NodeErrors),
}

impl Device for Source {
    fn receive(&mut self, frame: &mut Frame) -> io::Result<bool> {
        match self {
            Self::Tun(queue) => queue.receive(frame),
            Self::Errors(errors) => errors.receive(frame),
        }
    }

    fn send(&mut self, frame: &Frame) -> io::Result<()> {
        match self {
            Self::Tun(queue) => queue.send(frame),
            Self::Errors(errors) => errors.send(frame),
        }
    }

    fn has_copies(&self) -> bool {
        matches!(self, Self::Errors(_))
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tun(queue) => queue.as_fd(),
            Self::Errors(errors) => errors.as_fd(),
        }
    }
}

/// What workers do with what they get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The dataplane.
    Services(Waiting),
    /// They give it back as it came: the limit that benchmarks hold the dataplane against.
    Copy,
}

/// How a worker waits for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It sleeps.
    Asleep,
    /// It asks again and again, and uses a processor for it.
    Busy,
}

/// The running workers.
#[derive(Debug)]
pub(super) struct Workers {
    stop: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
    counters: Vec<Arc<Counters>>,
}

impl Workers {
    /// Starts one worker per element of `queues`. `failed` is called when a worker ends before it is told to.
    ///
    /// # Errors
    /// When the kernel gives no event descriptor or no thread.
    pub(super) fn start(
        shared: &Arc<Shared>,
        queues: Vec<Vec<(Origin, Source)>>,
        (clock, work): (Clock, Work),
        failed: impl Fn(io::Error) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut workers = Self {
            stop,
            threads: Vec::new(),
            counters: Vec::new(),
        };
        for (number, devices) in queues.into_iter().enumerate() {
            let counters = Arc::new(Counters::default());
            workers.counters.push(Arc::clone(&counters));
            let (shared, stop) = (Arc::clone(shared), Arc::clone(&workers.stop));
            let failed = failed.clone();
            let body = move || {
                let ended = match work {
                    Work::Copy => copy(devices, &stop),
                    Work::Services(waiting) => {
                        let worker = Worker::new(&shared, devices, counters, Rng::new());
                        run(worker, &stop, (clock, waiting))
                    }
                };
                if let Err(error) = ended {
                    failed(error);
                }
            };
            let name = format!("worker-{number}");
            workers
                .threads
                .push(std::thread::Builder::new().name(name).spawn(body)?);
        }
        Ok(workers)
    }

    /// The counters of each worker.
    pub(super) fn counters(&self) -> &[Arc<Counters>] {
        &self.counters
    }

    /// The counts of all workers together.
    pub(super) fn counts(&self) -> Counts {
        let mut total = Counts::default();
        for counters in &self.counters {
            total += &counters.read();
        }
        total
    }

    /// Ends the workers and waits for them; their devices go with them.
    pub(super) fn stop(self) {
        // An eventfd takes eight bytes unless its counter is full, which one write cannot make it.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        for thread in self.threads {
            // A worker that panicked has said so on stderr.
            let _ = thread.join();
        }
    }
}

fn run(
    mut worker: Worker<'_, Source>,
    stop: &OwnedFd,
    (clock, waiting): (Clock, Waiting),
) -> io::Result<()> {
    if waiting == Waiting::Busy {
        return run_busy(worker, stop, clock);
    }
    let queues = descriptors(worker.devices())?;
    let mut polled = polled(&queues, stop);
    while wait(&mut polled, None)? {
        for (device, _) in ready(&polled).filter(|(_, ready)| *ready) {
            worker.drain_one(device, || clock.now())?;
        }
    }
    Ok(())
}

/// Asks the devices again and again, so that no packet waits for this thread to wake up.
fn run_busy(mut worker: Worker<'_, Source>, stop: &OwnedFd, clock: Clock) -> io::Result<()> {
    const ROUNDS: usize = 1000;
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut polled = polled(&[], stop);
    while wait(&mut polled, Some(&at_once))? {
        for _ in 0..ROUNDS {
            worker.drain(|| clock.now())?;
        }
    }
    Ok(())
}

/// The bare copy loop: what any dataplane on these devices has to do, and nothing else.
fn copy(mut devices: Vec<(Origin, Source)>, stop: &OwnedFd) -> io::Result<()> {
    let mut frame = Frame::new();
    let queues = descriptors(&devices)?;
    let mut polled = polled(&queues, stop);
    while wait(&mut polled, None)? {
        for ((_, device), (_, ready)) in devices.iter_mut().zip(ready(&polled)) {
            while ready && device.receive(&mut frame)? {
                if !device.has_copies() {
                    // What cannot be sent is lost, as on any link.
                    let _ = device.send(&frame);
                }
            }
        }
    }
    Ok(())
}

/// Descriptors of their own, to wait for while the devices are used.
fn descriptors(devices: &[(Origin, Source)]) -> io::Result<Vec<OwnedFd>> {
    let own = |(_, device): &(Origin, Source)| device.as_fd().try_clone_to_owned();
    devices.iter().map(own).collect()
}

/// What is waited for: the end, then the devices.
fn polled<'f>(queues: &'f [OwnedFd], stop: &'f OwnedFd) -> Vec<PollFd<'f>> {
    std::iter::once(stop)
        .chain(queues)
        .map(|descriptor| PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN))
        .collect()
}

/// Each device, and whether it has something to receive.
fn ready(polled: &[PollFd<'_>]) -> impl Iterator<Item = (usize, bool)> {
    let devices = polled[1..].iter();
    devices
        .map(|device| !device.revents().is_empty())
        .enumerate()
}

/// Waits until a device has something to receive, or as long as it may. False at the end.
fn wait(polled: &mut [PollFd<'_>], at_most: Option<&Timespec>) -> io::Result<bool> {
    match poll(polled, at_most) {
        Ok(_) => Ok(polled[0].revents().is_empty()),
        Err(rustix::io::Errno::INTR) => {
            polled.iter_mut().for_each(PollFd::clear_revents);
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}
