//! Options of sockets that no crate of ours names.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Sets an option of a socket.
pub(super) fn set<T: Copy>(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let (socket, value) = (socket.as_fd().as_raw_fd(), std::ptr::from_ref(value).cast());
    // SAFETY: `value` is live and `length` bytes long.
    let result = unsafe { libc::setsockopt(socket, level, option, value, length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
