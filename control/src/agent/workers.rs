//! The worker threads of a node.

use dataplane::frame::Frame;
use dataplane::sys::node_errors::NodeErrors;
use dataplane::sys::tun::Queue;
use dataplane::tuple::{Origin, Timestamp};
use dataplane::verdict::{Counters, Counts};
use dataplane::worker::{Device, REST, Shared, Worker};
use fastrand::Rng;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

/// The node's clock: monotonic, from the start of the agent. Read twice for a packet that comes alone, which is why it is
/// not an [`std::time::Instant`]: that verifies, and counts in two units.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start_nanoseconds: u64,
}

impl Clock {
    /// Starts it.
    pub(crate) fn start() -> Self {
        Self {
            start_nanoseconds: monotonic_nanoseconds(),
        }
    }

    /// The time now.
    pub(crate) fn now(self) -> Timestamp {
        Timestamp(monotonic_nanoseconds().wrapping_sub(self.start_nanoseconds))
    }
}

fn monotonic_nanoseconds() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
    (tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(tv_nsec as u64)
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
        clock: Clock,
        work: Work,
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
                let ended = to_its_end(|| match work {
                    Work::Copy => copy(devices, &stop, clock),
                    Work::Services(waiting) => {
                        let worker = Worker::new(&shared, devices, counters, Rng::new());
                        run(worker, &stop, clock, waiting)
                    }
                });
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

    /// Tells the workers to end.
    pub(super) fn tell_to_stop(&self) {
        // An eventfd takes eight bytes unless its counter is full, which one write cannot make it.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
    }

    /// Waits until they have ended. Their queues are closed then.
    pub(super) fn join(self) {
        for thread in self.threads {
            // What it ended by was told.
            let _ = thread.join();
        }
    }
}

/// Does the work of a worker. A panic, too, ends it, and its queues are closed then.
fn to_its_end(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(io::Error::other("it panicked, for the reason above")))
}

fn run(
    mut worker: Worker<'_, Source>,
    stop: &OwnedFd,
    clock: Clock,
    waiting: Waiting,
) -> io::Result<()> {
    let mut arrivals = Arrivals::of(worker.devices(), stop, waiting)?;
    while let Some(devices) = arrivals.wait()? {
        let count = devices.len();
        for device in devices {
            worker.drain_one(device, count, || clock.now())?;
        }
    }
    Ok(())
}

/// The bare copy loop: what any dataplane on these devices has to do, and nothing else. After a [`REST`] one frame is
/// taken, as by a [`Worker`]: what finds nothing more is a system call too many.
fn copy(mut devices: Vec<(Origin, Source)>, stop: &OwnedFd, clock: Clock) -> io::Result<()> {
    let mut frame = Frame::new();
    let mut arrivals = Arrivals::of(&devices, stop, Waiting::Asleep)?;
    let mut worked_until = clock.now();
    while let Some(ready) = arrivals.wait()? {
        for device in ready {
            let (_, device) = &mut devices[device];
            let is_probably_alone = clock.now() > worked_until.after(REST);
            while device.receive(&mut frame)? {
                if !device.has_copies() {
                    // What cannot be sent is lost, as on any link.
                    let _ = device.send(&frame);
                }
                if is_probably_alone {
                    break;
                }
            }
            worked_until = clock.now();
        }
    }
    Ok(())
}

/// Waits for devices: in the order in which they got something, those that still have something behind the others.
struct Arrivals {
    epoll: OwnedFd,
    events: [epoll::Event; 64],
    timeout: Option<Timespec>,
}

impl Arrivals {
    /// What stands for the end.
    const STOP: u64 = u64::MAX;

    fn of(devices: &[(Origin, Source)], stop: &OwnedFd, waiting: Waiting) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |descriptor: BorrowedFd<'_>, number| {
            let data = epoll::EventData::new_u64(number);
            epoll::add(&epoll, descriptor, data, epoll::EventFlags::IN)
        };
        add(stop.as_fd(), Self::STOP)?;
        for (number, (_, device)) in devices.iter().enumerate() {
            add(device.as_fd(), number as u64)?;
        }
        let nothing = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(Self::STOP),
        };
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        Ok(Self {
            epoll,
            events: [nothing; 64],
            timeout: (waiting == Waiting::Busy).then_some(at_once),
        })
    }

    /// The devices that have something to receive; none when asked not to sleep. Nothing at the end.
    fn wait(&mut self) -> io::Result<Option<impl ExactSizeIterator<Item = usize>>> {
        let count = match epoll::wait(&self.epoll, &mut self.events[..], self.timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => 0,
            other => other?,
        };
        let ready = self.events[..count].iter().map(|event| event.data.u64());
        let is_over = ready.clone().any(|number| number == Self::STOP);
        Ok((!is_over).then(|| ready.map(|number| number as usize)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_has_failed() {
        assert!(to_its_end(|| Ok(())).is_ok());
        let failed = to_its_end(|| Err(io::Error::other("a device is gone")));
        assert_eq!(failed.unwrap_err().to_string(), "a device is gone");
        let panicked = to_its_end(|| panic!("on purpose"));
        assert!(panicked.unwrap_err().to_string().contains("panicked"));
    }
}
