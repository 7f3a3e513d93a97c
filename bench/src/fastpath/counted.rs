//! Packets that `penstock bench instructions` has handled in a process of its own, to count what they take.

use super::flows::Traffic;
use super::measures::{self, Coming};
use super::subject::{CHUNK, shared};
use super::{MEASURED_AT, Workload, establish};
use dataplane::conntrack::Settings;
use dataplane::worker::Shared;

/// What is counted: of a packet, or of a flow that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Packets of established flows.
    Established(Traffic),
    /// First packets of flows of UDP over IPv4.
    First {
        /// Whether they are masqueraded.
        masquerade: bool,
    },
    /// The sweep of such flows.
    Expired,
}

/// Established flows: their lines are in the nearest cache, but that makes no difference to what is counted.
const FLOWS: u32 = 1000;
/// Packets that [`establish`] has each of them send.
const SPOKEN: usize = 3;
/// Flows that are alive while others come and go.
const ALIVE: u32 = 20_000;
/// Chunks in which the table fills: two lifetimes.
const LIFETIMES: usize = 2 * ALIVE as usize / CHUNK;

impl Counted {
    /// All of them, by the names that users give them.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("udp-ipv4", Self::Established(Traffic::UDP_V4)),
        ("tcp-ipv4", Self::Established(Traffic::OTHERS[0])),
        ("udp-ipv6", Self::Established(Traffic::OTHERS[1])),
        ("tcp-ipv6", Self::Established(Traffic::OTHERS[2])),
        ("first", Self::First { masquerade: false }),
        ("first-masqueraded", Self::First { masquerade: true }),
        ("expired", Self::Expired),
    ];

    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name)?;
        Some(known.1)
    }

    /// The function that does it and nothing else, as callgrind's `--toggle-collect` wants it.
    pub const fn function(self) -> &'static str {
        match self {
            Self::Established(_) | Self::First { .. } => "*handle_prepared*",
            Self::Expired => "*Conntrack*expire*",
        }
    }

    /// Makes flows, the same number whatever `chunks`, and then handles so many chunks of 256. Returns how many packets it
    /// handled in all, or how many flows ended.
    pub fn handle(self, chunks: usize) -> usize {
        match self {
            Self::Established(traffic) => {
                let shared = shared(Settings::kernel(FLOWS as usize), traffic, false, 1);
                establish(&shared, traffic, FLOWS);
                let workload = Workload {
                    flows: FLOWS,
                    batch: 64,
                    chunks,
                    seed: 1,
                };
                measures::established_chunks(&shared, traffic, workload, MEASURED_AT);
                SPOKEN * FLOWS as usize + chunks * CHUNK
            }
            Self::First { masquerade } => {
                let shared = measures::for_coming(ALIVE, masquerade);
                let chunks = LIFETIMES + chunks;
                lives(&shared, chunks);
                chunks * CHUNK
            }
            Self::Expired => {
                let shared = measures::for_coming(ALIVE, false);
                lives(&shared, LIFETIMES + chunks)
            }
        }
    }
}

/// Flows come, and go. Returns how many went.
fn lives(shared: &Shared, chunks: usize) -> usize {
    let mut coming = Coming::new(shared, ALIVE);
    (0..chunks).map(|_| coming.chunk().expired).sum()
}
