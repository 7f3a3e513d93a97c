//! What the calling process may do, asked before it does a part of it.

use crate::lab::Error;
use rustix::thread::{CapabilitySet, capabilities};

/// Requires what making, entering and removing namespaces takes; `what` says why in the message.
pub(crate) fn require(what: &str) -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Unable(format!("{what}; run it with sudo")));
    }
    let has = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let needed = [
        ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN),
        ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
    ];
    match needed
        .iter()
        .find(|(_, capability)| !has.contains(*capability))
    {
        None => Ok(()),
        Some((name, _)) => Err(Error::Unable(format!(
            "{what}, and this root lacks {name}; in a container, start that one with --privileged"
        ))),
    }
}
