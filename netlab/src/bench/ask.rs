//! Questions by datagram to the server of a bench's lab: who it is, and how many datagrams it got.

use super::server::{HOW_MANY, WHO};
use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Which server a new flow gets to.
fn who_answers(target: SocketAddr) -> io::Result<u32> {
    let socket = question(target)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    answer_to(&socket)
}

/// Asks who answers, by a flow of its own.
fn question(target: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(target)?;
    socket.set_nonblocking(true)?;
    socket.send(WHO)?;
    Ok(socket)
}

fn answer_to(question: &UdpSocket) -> io::Result<u32> {
    let mut answer = [0; 4];
    match question.recv(&mut answer)? {
        4 => Ok(u32::from_be_bytes(answer)),
        _ => Err(io::Error::other("an answer of another length")),
    }
}

/// As [`who_answers`], when one does.
pub(super) fn wait_for_any(target: SocketAddr) -> io::Result<u32> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match who_answers(target) {
            Err(_) if Instant::now() < deadline => {}
            other => return other,
        }
    }
}

/// Asks with one new flow after the other until another server than `before` answers. An answer may be lost, as its flow
/// ends when its endpoint goes: no question waits for the one before.
pub(super) fn wait_for_another(target: SocketAddr, before: u32) -> io::Result<()> {
    const OPEN: usize = 64;
    const EVERY: Duration = Duration::from_micros(100);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut open = VecDeque::new();
    while Instant::now() < deadline {
        open.truncate(OPEN - 1);
        open.push_front(question(target)?);
        std::thread::sleep(EVERY);
        let is_another = |socket| answer_to(socket).is_ok_and(|server| server != before);
        if open.iter().any(is_another) {
            return Ok(());
        }
    }
    let text = "the change took no effect";
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}

/// Asks until an answer comes: the question may be lost in a queue that is full.
pub(super) fn how_many(socket: &UdpSocket) -> io::Result<u64> {
    const TRIES: usize = 5;
    let mut answer = [0; 8];
    for _ in 0..TRIES {
        std::thread::sleep(Duration::from_millis(20));
        socket.send(HOW_MANY)?;
        match socket.recv(&mut answer) {
            Ok(8) => return Ok(u64::from_be_bytes(answer)),
            Ok(_) => return Err(io::Error::other("an answer of another length")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "no answer to how many packets arrived",
    ))
}
