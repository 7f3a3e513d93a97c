//! What becomes of a packet, and the one place where that is counted.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// What becomes of a packet.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Translated; goes back to the kernel to be routed.
    Forward,
    /// Not translated; goes back to the kernel as it came.
    Pass,
    /// Refused; the sender gets an ICMP error.
    Reject(RejectWith),
    /// Silently discarded.
    Drop(DropReason),
    /// A fragment that waits for the rest of its datagram.
    Hold,
}

/// How a packet is refused (`iptables -j REJECT --reject-with`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectWith {
    /// ICMP 3/3 or ICMPv6 1/4, for TCP as well.
    PortUnreachable,
}

macro_rules! reasons {
    ($($(#[doc = $text:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet was dropped. Each has a test that produces it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason { $($(#[doc = $text])+ $variant,)+ }

        impl DropReason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in counters and messages.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One sentence for people.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => concat!($($text),+),)+ }
            }
        }
    };
}

reasons! {
    /// The packet is shorter than its headers say, or a header field contradicts another.
    Malformed = "malformed",
    /// An IPv6 packet with an IPv4-mapped address, which must not be on the wire.
    MappedAddress = "mapped-address",
    /// Connection tracking finds the packet invalid, and kube-proxy drops such packets in forwarding.
    Invalid = "invalid",
    /// The Service's traffic policy is Local and this node has no endpoint.
    NoLocalEndpoint = "no-local-endpoint",
    /// The source is in none of the Service's loadBalancerSourceRanges.
    SourceNotAllowed = "source-not-allowed",
    /// The node has no address to masquerade with towards the endpoint.
    NoMasqueradeAddress = "no-masquerade-address",
    /// Every source port towards this destination is in use.
    NoFreePort = "no-free-port",
    /// The connection table is full and nothing in it may be evicted.
    TableFull = "table-full",
    /// The source has as many connections as one address may have.
    SourceLimit = "source-limit",
    /// An ICMP error quotes too little of a translated packet to be translated.
    QuoteTooShort = "quote-too-short",
    /// An ICMP redirect about a translated connection would lead its packets past the translation.
    Redirect = "redirect",
    /// Too many fragments wait for the rest of their datagrams.
    TooManyFragments = "too-many-fragments",
    /// A fragment overlaps another of its datagram, or contradicts its end.
    OverlappingFragment = "overlapping-fragment",
    /// A fragment is there already.
    RepeatedFragment = "repeated-fragment",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Counts of verdicts. Written by one worker, read by anybody.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    forward: AtomicU64,
    pass: AtomicU64,
    reject: AtomicU64,
    hold: AtomicU64,
    drop: [AtomicU64; DropReason::ALL.len()],
    send_failure: AtomicU64,
}

/// A copy of [`Counters`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets translated.
    pub forward: u64,
    /// Packets that went on as they came.
    pub pass: u64,
    /// Packets refused.
    pub reject: u64,
    /// Fragments held back.
    pub hold: u64,
    /// Packets dropped, in the order of [`DropReason::ALL`].
    pub drop: [u64; DropReason::ALL.len()],
    /// Packets whose frame the device did not take.
    pub send_failure: u64,
}

impl Counters {
    /// Counts one packet.
    #[inline]
    pub fn count(&self, verdict: Verdict) {
        match verdict {
            Verdict::Forward => increment(&self.forward),
            other => self.count_other(other),
        }
    }

    /// Apart, or all verdicts would be led through one table of jumps.
    #[inline(never)]
    fn count_other(&self, verdict: Verdict) {
        let counter = match verdict {
            Verdict::Forward => &self.forward,
            Verdict::Pass => &self.pass,
            Verdict::Reject(_) => &self.reject,
            Verdict::Hold => &self.hold,
            Verdict::Drop(reason) => &self.drop[reason as usize],
        };
        increment(counter);
    }

    /// Counts a packet whose frame the device did not take.
    pub fn count_send_failure(&self) {
        increment(&self.send_failure);
    }

    /// The counts now.
    pub fn read(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            forward: load(&self.forward),
            pass: load(&self.pass),
            reject: load(&self.reject),
            hold: load(&self.hold),
            drop: std::array::from_fn(|reason| load(&self.drop[reason])),
            send_failure: load(&self.send_failure),
        }
    }
}

/// There is one writer: a load and a store cost less than an atomic addition.
#[inline]
fn increment(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl Counts {
    /// Packets dropped for `reason`.
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.drop[reason as usize]
    }
}

impl std::ops::AddAssign<&Self> for Counts {
    fn add_assign(&mut self, other: &Self) {
        self.forward += other.forward;
        self.pass += other.pass;
        self.reject += other.reject;
        self.hold += other.hold;
        self.send_failure += other.send_failure;
        for (mine, theirs) in self.drop.iter_mut().zip(other.drop) {
            *mine += theirs;
        }
    }
}
