//! A fresh network namespace for the calling thread.

#![allow(unsafe_code)]

use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::io;

/// Moves the calling thread, and no other, into a new and empty network namespace. It lives as long as
/// something holds it: this thread, a descriptor of `/proc/thread-self/ns/net`, or a bind mount of that.
///
/// Needs `CAP_SYS_ADMIN`, else `EPERM`.
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: what is unsafe about unshare(2) is CLONE_FILES, which gives a thread its own descriptor table;
    // CLONE_NEWNET touches neither descriptors nor memory.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}
