//! Reading from strangers, who may send a byte now and then to keep somebody waiting.

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::Instant;

/// Reads what there is, once there is something.
///
/// # Errors
/// Those of the socket, also when the deadline comes first.
pub(crate) fn read_until(
    socket: &mut (impl Read + AsFd),
    buffer: &mut [u8],
    deadline: Instant,
) -> io::Result<usize> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    set_socket_timeout(&*socket, Timeout::Recv, Some(left))?;
    socket.read(buffer)
}
