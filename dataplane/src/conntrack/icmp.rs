//! ICMP and ICMPv6: which messages open an entry.
//!
//! Measure: Linux `nf_conntrack_proto_icmp.c`, `nf_conntrack_proto_icmpv6.c`. Errors are not tracked: they belong to
//! the flow whose packet they quote.

use super::Invalid;
use crate::tuple::{Protocol, Tuple};

/// Whether a message may open an entry: requests whose answers can be told (echo, timestamp, information, address
/// mask; echo and node information of ICMPv6).
pub(super) fn open(tuple: &Tuple) -> Result<(), Invalid> {
    let kind = (tuple.destination_port >> 8) as u8;
    let is_request = match tuple.protocol {
        Protocol::ICMP => matches!(kind, 8 | 13 | 15 | 17),
        _ => matches!(kind, 128 | 139),
    };
    if is_request {
        Ok(())
    } else {
        Err(Invalid::IcmpType(kind))
    }
}
