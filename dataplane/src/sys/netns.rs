//! The network namespace of the calling thread.

#![allow(unsafe_code)]

use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

/// Moves the calling thread, and no other, into a new and empty network namespace. It lives as long as
/// something holds it: this thread, a descriptor of `/proc/thread-self/ns/net`, or a bind mount of that.
///
/// Needs `CAP_SYS_ADMIN`, else `EPERM`.
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: what is unsafe about unshare(2) is CLONE_FILES, which gives a thread its own descriptor table;
    // CLONE_NEWNET touches neither descriptors nor memory.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// A number of the calling thread's network namespace that no other one gets for as long as the machine runs, unlike
/// its inode (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// When the kernel does not tell.
pub fn cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: getsockopt writes no more than `length` bytes, to a live address that has room for them.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}
