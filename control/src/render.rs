//! The rules that kube-proxy 1.30 programs, as text: for reading, for loading into a kernel beside ours, and for
//! comparing with what a real node has.
//!
//! Read first: [`Proxier`] (what decides the text), then `render/iptables.rs` or `render/nftables.rs`.
//!
//! How a Service looks in iptables mode (`iptables-save`), here one with two endpoints, a NodePort and a load
//! balancer address that only some may use:
//!
//! ```text
//! PREROUTING, OUTPUT
//!   KUBE-SERVICES                     one rule per address and port
//!     10.96.1.11:80      -> KUBE-SVC-A35…      the cluster IP
//!     203.0.113.11:80    -> KUBE-FW-A35…       the load balancer's address
//!     (a node's address) -> KUBE-NODEPORTS     always the last rule
//!   KUBE-NODEPORTS
//!     :30111             -> KUBE-EXT-A35…
//!   KUBE-FW-A35…                      only the allowed sources go on; the filter table drops the others
//!     198.51.100.0/24    -> KUBE-EXT-A35…
//!   KUBE-EXT-A35…                     traffic from outside the cluster
//!                        -> KUBE-MARK-MASQ
//!                        -> KUBE-SVC-A35…
//!   KUBE-SVC-A35…                     (KUBE-SVL-… for the endpoints of trafficPolicy Local)
//!     not from a pod     -> KUBE-MARK-MASQ
//!     probability 0.5    -> KUBE-SEP-GLM…
//!                        -> KUBE-SEP-RZ6…
//!   KUBE-SEP-GLM…                     one per endpoint
//!     from itself        -> KUBE-MARK-MASQ     hairpin
//!                        -> DNAT to 10.244.1.10:8080
//! POSTROUTING
//!   KUBE-POSTROUTING                  SNAT of what is marked
//! ```
//!
//! The hash is of name and protocol ([`names`]), so a chain keeps its name for as long as its Service has the port.
//!
//! DIFFERS: kube-proxy goes through the Services in a random order, different at every sync; here they are sorted
//! by name, so that two renderings can be compared line by line.

pub mod difference;
pub mod dump;
mod iptables;
pub mod names;
mod nftables;
mod proxier;

pub use proxier::{Detector, NodePortAddresses, Proxier, Proxiers};

/// Why there is no ruleset: kube-proxy 1.30 would fail in the same place and program nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// Rules with a wildcard interface are refused by nft.
    #[error(
        "kube-proxy 1.30 programs nothing in nftables mode with detectLocalMode InterfaceNamePrefix: it writes \
         `iif \"{0}*\"` and nft answers \"Interface does not exist\"; use another detectLocalMode or mode iptables"
    )]
    InterfacePrefix(String),
    /// Two svcports want one element of a map.
    #[error(
        "kube-proxy 1.30 programs nothing in nftables mode: {first} and {second} both claim {key} in map {map}, \
         and nft answers \"File exists\"; give one of them another address or port"
    )]
    SharedAddress {
        /// `address . protocol . port`.
        key: String,
        /// The svcport that came first.
        first: String,
        /// The other one.
        second: String,
        /// The map.
        map: &'static str,
    },
    /// The svcport's name is the comment of an element, and nft limits those.
    #[error(
        "kube-proxy 1.30 programs nothing in nftables mode: {service} has {length} characters, and nft answers \
         \"comment too long, 128 characters maximum allowed\"; give it a shorter name"
    )]
    LongName {
        /// The svcport.
        service: String,
        /// Its length in bytes.
        length: usize,
    },
}

/// What `iptables-save` shows on the node, and with IPv6 `ip6tables-save` after it, each behind a line that says so.
pub fn iptables(proxiers: &Proxiers) -> String {
    let mut text = format!("# iptables-save\n{}", iptables_tables(&proxiers.v4));
    if proxiers.has_ipv6 {
        text.push_str("# ip6tables-save\n");
        text.push_str(&iptables_tables(&proxiers.v6));
    }
    text
}

/// One family's part of [`iptables()`]; `iptables-restore` or `ip6tables-restore` loads it as it is.
pub fn iptables_tables(proxier: &Proxier) -> String {
    iptables::tables(proxier)
}

/// What `nft list ruleset` shows on the node; `nft -f` loads it as it is.
///
/// # Errors
///
/// [`RenderError`] where kube-proxy 1.30 fails and programs nothing.
pub fn nftables(proxiers: &Proxiers) -> Result<String, RenderError> {
    Ok(nftables_table(&proxiers.v4)? + &nftables_table(&proxiers.v6)?)
}

/// One family's part of [`nftables()`].
///
/// # Errors
///
/// As [`nftables()`].
pub fn nftables_table(proxier: &Proxier) -> Result<String, RenderError> {
    nftables::table(proxier)
}
