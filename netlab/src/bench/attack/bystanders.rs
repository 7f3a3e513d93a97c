//! Clients that have done nothing: some with established connections, some that open new ones, again and again.
//!
//! Established connections go through the Service that masquerades: an entry that is lost and made anew gets another port,
//! and the server refuses it, so what is lost shows. What is only late, because queues are full, does not count as lost.

use super::super::load::{PATIENCE, Taken, connect_and_ask, connect_to_stay, echo};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections that stay.
const ESTABLISHED: usize = 64;
/// Clients that open new ones at the same time.
const OPENERS: usize = 4;
/// An established connection that does not answer for so long is lost; TCP sends again meanwhile.
const LOST: Duration = Duration::from_secs(15);
/// A client rests between two.
const REST: Duration = Duration::from_millis(2);

/// They run in threads of the network namespace in which they began.
pub(super) struct Bystanders {
    is_over: Arc<AtomicBool>,
    established: JoinHandle<io::Result<Established>>,
    openers: Vec<JoinHandle<()>>,
    opened: Arc<Mutex<Opened>>,
}

/// The connections that still answer, and how long each answer took.
struct Established {
    streams: Vec<TcpStream>,
    taken: Taken,
}

/// What became of new connections.
struct Opened {
    tried: u32,
    taken: Taken,
}

/// What they saw; shares are of 1.
pub(super) struct Seen {
    pub(super) established_kept: f64,
    /// Microseconds of a byte there and back.
    pub(super) established_p99: f64,
    pub(super) new_flows_succeeded: f64,
    /// Microseconds, of those that succeeded.
    pub(super) new_flow_p99: f64,
}

impl Bystanders {
    pub(super) fn begin(target: SocketAddr, masqueraded: SocketAddr) -> io::Result<Self> {
        let open = |_| {
            let mut stream = connect_to_stay(masqueraded)?;
            stream.set_read_timeout(Some(LOST))?;
            echo(&mut stream).map(|()| stream)
        };
        let streams: Vec<TcpStream> = (0..ESTABLISHED).map(open).collect::<io::Result<_>>()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let opened = Arc::new(Mutex::new(Opened {
            tried: 0,
            taken: Taken::nothing()?,
        }));
        let opener = |_| {
            let (is_over, opened) = (Arc::clone(&is_over), Arc::clone(&opened));
            std::thread::spawn(move || open_again(target, &is_over, &opened))
        };
        let openers = (0..OPENERS).map(opener).collect();
        let flag = Arc::clone(&is_over);
        Ok(Self {
            established: std::thread::spawn(move || ask_again(streams, &flag)),
            openers,
            is_over,
            opened,
        })
    }

    /// Only new connections from now on count.
    pub(super) fn forget_new_flows(&self) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.tried = 0;
        opened.taken.each.reset();
    }

    /// Waits for the last of them, and asks on every established connection once more.
    pub(super) fn end(self) -> io::Result<Seen> {
        self.is_over.store(true, Ordering::Relaxed);
        let panicked = |_| io::Error::other("a client panicked");
        for opener in self.openers {
            opener.join().map_err(panicked)?;
        }
        let mut established = self.established.join().map_err(panicked)??;
        established
            .streams
            .retain_mut(|stream| echo(stream).is_ok());
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let succeeded = opened.taken.each.len() as f64;
        Ok(Seen {
            established_kept: established.streams.len() as f64 / ESTABLISHED as f64,
            established_p99: established.taken.microseconds(0.99),
            new_flows_succeeded: succeeded / f64::from(opened.tried.max(1)),
            new_flow_p99: opened.taken.microseconds(0.99),
        })
    }
}

/// Asks on one after the other.
fn ask_again(streams: Vec<TcpStream>, is_over: &AtomicBool) -> io::Result<Established> {
    let mut established = Established {
        streams,
        taken: Taken::nothing()?,
    };
    let Established { streams, taken } = &mut established;
    while !is_over.load(Ordering::Relaxed) {
        streams.retain_mut(|stream| {
            if is_over.load(Ordering::Relaxed) {
                return true;
            }
            std::thread::sleep(REST);
            let start = Instant::now();
            echo(stream)
                .and_then(|()| taken.add(start.elapsed()))
                .is_ok()
        });
        std::thread::sleep(REST);
    }
    Ok(established)
}

fn open_again(target: SocketAddr, is_over: &AtomicBool, opened: &Mutex<Opened>) {
    while !is_over.load(Ordering::Relaxed) {
        let start = Instant::now();
        let result = connect_and_ask(target, PATIENCE);
        let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.tried += 1;
        if result.is_ok() {
            // It takes any time there is.
            let _ = opened.taken.add(start.elapsed());
        }
        drop(opened);
        std::thread::sleep(REST);
    }
}
