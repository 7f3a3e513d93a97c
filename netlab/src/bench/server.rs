//! What the pod of a bench's lab runs: TCP and UDP on one port.

use rustix::time::{ClockId, clock_gettime};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// The first byte of a connection says what the client wants: one answer, an answer to each byte, or none until the end.
pub(super) const ANSWER: u8 = b'a';
pub(super) const ECHO: u8 = b'e';
pub(super) const SINK: u8 = b's';
/// A datagram that asks how many others came.
pub(super) const HOW_MANY: &[u8] = b"how many";
/// A datagram that asks which server answers, and when it got this.
pub(super) const WHO: &[u8] = b"who";
/// What streams are read and written by, in bytes.
pub(super) const BUFFER: usize = 128 * 1024;

/// The answer to [`WHO`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    /// Number of its process.
    pub(super) server: u32,
    /// When the question arrived, by [`moment`].
    pub(super) arrived: Duration,
}

impl Who {
    pub(super) const LENGTH: usize = 12;

    fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(&self.server.to_be_bytes());
        let nanoseconds = self.arrived.as_nanos() as u64;
        bytes[4..].copy_from_slice(&nanoseconds.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        let server = u32::from_be_bytes(std::array::from_fn(|at| bytes[at]));
        let nanoseconds = u64::from_be_bytes(std::array::from_fn(|at| bytes[4 + at]));
        Self {
            server,
            arrived: Duration::from_nanos(nanoseconds),
        }
    }
}

/// Now, by the clock that all processes of the machine share.
pub(super) fn moment() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Serves: one connection after the other, but those that stay.
pub fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    std::thread::spawn(move || count(&datagrams));
    let mut buffer = vec![0; BUFFER];
    for stream in listener.incoming() {
        // A client that goes away early says so itself.
        let _ = stream.and_then(|stream| answer(stream, &mut buffer));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    let mut wanted = [0];
    stream.read_exact(&mut wanted)?;
    match wanted[0] {
        ANSWER => stream.write_all(&wanted),
        ECHO => {
            std::thread::spawn(move || echo(stream));
            Ok(())
        }
        _ => {
            while stream.read(buffer)? > 0 {}
            stream.write_all(&wanted)
        }
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn count(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 64];
    let mut received: u64 = 0;
    loop {
        // An ICMP error about an earlier answer, or an answer that finds no room, is no reason to end.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        match &buffer[..length] {
            HOW_MANY => {
                let _ = socket.send_to(&received.to_be_bytes(), client);
                received = 0;
            }
            WHO => {
                let who = Who {
                    server: std::process::id(),
                    arrived: moment(),
                };
                let _ = socket.send_to(&who.to_bytes(), client);
            }
            _ => received += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_who_and_when() {
        let who = Who {
            server: 70_000,
            arrived: Duration::new(5_000_000, 123_456_789),
        };
        assert_eq!(Who::from_bytes(who.to_bytes()), who);
    }
}
