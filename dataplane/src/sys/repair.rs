//! TCP sockets with numbers of one's choice, by the kernel's repair mode (`net/ipv4/tcp.c`, `do_tcp_setsockopt`).
//!
//! A socket in repair mode sends nothing: it connects and closes without a word. Needs `CAP_NET_ADMIN`.

use super::options;
use std::io;
use std::os::fd::AsFd;

/// Whether a socket is in repair mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It is.
    On,
    /// Not any more. A connected socket tells its peer so: an acknowledgement with the number before its next one.
    Off,
    /// Not any more, silently.
    OffSilently,
}

const SEND_QUEUE: libc::c_int = 2;
const RECEIVE_QUEUE: libc::c_int = 1;

/// Changes the mode.
///
/// # Errors
/// The kernel's.
pub fn set_mode(socket: &impl AsFd, mode: Repair) -> io::Result<()> {
    let mode: libc::c_int = match mode {
        Repair::On => 1,
        Repair::Off => 0,
        Repair::OffSilently => -1,
    };
    options::set(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &mode)
}

/// Sets the next sequence number to send and the next one expected, of a socket in repair mode that is not connected.
///
/// # Errors
/// The kernel's.
pub fn set_numbers(socket: &impl AsFd, send: u32, receive: u32) -> io::Result<()> {
    let set = |option, value: &u32| options::set(socket, libc::IPPROTO_TCP, option, value);
    for (queue, number) in [(SEND_QUEUE, send), (RECEIVE_QUEUE, receive)] {
        set(libc::TCP_REPAIR_QUEUE, &queue.cast_unsigned())?;
        set(libc::TCP_QUEUE_SEQ, &number)?;
    }
    Ok(())
}

/// Sets the windows of both ends, bytes, of a connected socket in repair mode that expects `receive`.
///
/// # Errors
/// The kernel's.
pub fn set_windows(socket: &impl AsFd, receive: u32, window: u32) -> io::Result<()> {
    // struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    let windows = [receive, window, window, window, receive];
    options::set(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, &windows)
}
