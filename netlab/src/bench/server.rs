//! What the pod of a bench's lab runs: TCP and UDP on one port.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

/// The first byte of a connection says what the client wants: one answer, an answer to each byte, or none until the end.
pub(super) const ANSWER: u8 = b'a';
pub(super) const ECHO: u8 = b'e';
pub(super) const SINK: u8 = b's';
/// A datagram that asks how many others came.
pub(super) const HOW_MANY: &[u8] = b"how many";
/// A datagram that asks which server answers.
pub(super) const WHO: &[u8] = b"who";
/// What streams are read and written by, in bytes.
pub(super) const BUFFER: usize = 128 * 1024;

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
                let _ = socket.send_to(&std::process::id().to_be_bytes(), client);
            }
            _ => received += 1,
        }
    }
}
