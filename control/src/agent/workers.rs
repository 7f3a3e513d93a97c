//! The worker threads of a node.

use dataplane::frame::Frame;
use dataplane::sys::node_errors::NodeErrors;
use dataplane::sys::tun::Queue;
use dataplane::tuple::{Origin, Timestamp};
use dataplane::verdict::{Counters, Counts};
use dataplane::worker::{Device, Shared, Worker};
use fastrand::Rng;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
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

/// The running workers.
#[derive(Debug)]
pub(super) struct Workers {
    stop: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
    counters: Vec<Arc<Counters>>,
}

impl Workers {
    /// Starts one worker per element of `queues`; one that `copies` only gives back what it gets. `failed` is called when a worker ends before it is told to.
    ///
    /// # Errors
    /// When the kernel gives no event descriptor or no thread.
    pub(super) fn start(
        shared: &Arc<Shared>,
        queues: Vec<Vec<(Origin, Source)>>,
        (clock, copies): (Clock, bool),
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
                let ended = if copies {
                    copy(devices, &stop)
                } else {
                    let worker = Worker::new(&shared, devices, counters, Rng::new());
                    run(worker, &stop, clock)
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

fn run(mut worker: Worker<'_, Source>, stop: &OwnedFd, clock: Clock) -> io::Result<()> {
    loop {
        if is_stopped(worker.devices(), stop)? {
            return Ok(());
        }
        worker.drain(|| clock.now())?;
    }
}

/// The bare copy loop: what any dataplane on these devices has to do, and nothing else.
fn copy(mut devices: Vec<(Origin, Source)>, stop: &OwnedFd) -> io::Result<()> {
    let mut frame = Frame::new();
    while !is_stopped(&devices, stop)? {
        for (_, device) in &mut devices {
            while device.receive(&mut frame)? {
                if !device.has_copies() {
                    // What cannot be sent is lost, as on any link.
                    let _ = device.send(&frame);
                }
            }
        }
    }
    Ok(())
}

/// Waits until a device has something to receive, or until the end.
fn is_stopped(devices: &[(Origin, Source)], stop: &OwnedFd) -> io::Result<bool> {
    let mut polled = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
    for (_, queue) in devices {
        polled.push(PollFd::from_borrowed_fd(queue.as_fd(), PollFlags::IN));
    }
    match poll(&mut polled, None) {
        Ok(_) => Ok(!polled[0].revents().is_empty()),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
