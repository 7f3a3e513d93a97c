//! What an administrator may set: the sysctls `net.netfilter.nf_conntrack_*`.

use super::{TcpSettings, sctp, udp};
use std::time::Duration;

/// What an administrator may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `nf_conntrack_max`: entries, fixed for the life of the table; at most [`Self::MOST_ENTRIES`].
    pub capacity: usize,
    /// TCP, timeouts included.
    pub tcp: TcpSettings,
    /// All other timeouts.
    pub timeouts: Timeouts,
    /// `nf_conntrack_acct`: count packets and bytes of each entry, for 32 more bytes each.
    pub accounting: bool,
    /// Entries that one source address may open, so that a scanner does not push out others. The kernel has none.
    pub per_source: Option<u32>,
}

/// Timeouts of all protocols but TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// UDP.
    pub udp: udp::Timeouts,
    /// GRE.
    pub gre: udp::Timeouts,
    /// SCTP.
    pub sctp: sctp::Timeouts,
    /// `nf_conntrack_icmp_timeout`.
    pub icmp: Duration,
    /// `nf_conntrack_icmpv6_timeout`.
    pub icmpv6: Duration,
    /// `nf_conntrack_generic_timeout`.
    pub generic: Duration,
}

impl Timeouts {
    /// The kernel's defaults.
    pub const KERNEL: Self = Self {
        udp: udp::Timeouts::UDP,
        gre: udp::Timeouts::GRE,
        sctp: sctp::Timeouts::KERNEL,
        icmp: Duration::from_secs(30),
        icmpv6: Duration::from_secs(30),
        generic: Duration::from_secs(600),
    };
}

/// Why there is no table with some settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTable {
    /// It cannot tell so many entries apart.
    #[error(
        "{entries} entries are more than the {} that a table holds",
        Settings::MOST_ENTRIES
    )]
    TooManyEntries {
        /// How many were asked for.
        entries: usize,
    },
    /// The system does not give the memory.
    #[error("{entries} entries take {bytes} bytes of memory, which the system does not give")]
    NoMemory {
        /// How many were asked for.
        entries: usize,
        /// What they would take.
        bytes: u64,
    },
}

impl Settings {
    /// What the kernel's sysctl takes. An entry's number has 32 bits here, of which one value means none.
    pub const MOST_ENTRIES: u32 = i32::MAX as u32;

    /// The kernel's defaults.
    pub fn kernel(capacity: usize) -> Self {
        Self {
            capacity,
            tcp: TcpSettings::default(),
            timeouts: Timeouts::KERNEL,
            accounting: false,
            per_source: None,
        }
    }

    /// What kube-proxy sets when its configuration says nothing (`SetDefaults_KubeProxyConfiguration`).
    pub fn kube_proxy(capacity: usize) -> Self {
        let mut settings = Self::kernel(capacity);
        settings.tcp.timeouts.established = Duration::from_secs(86_400);
        settings.tcp.timeouts.close_wait = Duration::from_secs(3_600);
        settings
    }
}
