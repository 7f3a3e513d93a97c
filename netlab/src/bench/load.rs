//! The load: one client thread and one server, blocking, a byte at a time, so that what lies between them is what takes
//! the time. Any error, and any answer that does not come within two seconds, is an error of the run.

use super::Benchmark;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// What one turn found: metric, unit, value.
pub(super) type Figures = Vec<(&'static str, &'static str, f64)>;

/// The first byte of a connection says what the client wants.
const ANSWER: u8 = b'a';
const ECHO: u8 = b'e';
const SINK: u8 = b's';
/// A datagram that asks how many others came.
pub(super) const HOW_MANY: &[u8] = b"how many";
/// A datagram that asks which server answers.
const WHO: &[u8] = b"who";
/// The smallest frame of Ethernet carries so much over UDP and IPv4.
const SMALL: [u8; 18] = [0; 18];

const PATIENCE: Duration = Duration::from_secs(2);
const BUFFER: usize = 128 * 1024;

/// What the pod runs: TCP and UDP on `port`, one connection after the other.
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
    stream.set_nodelay(true)?;
    let mut wanted = [0];
    stream.read_exact(&mut wanted)?;
    match wanted[0] {
        ANSWER => stream.write_all(&wanted),
        ECHO => loop {
            match stream.read(&mut buffer[..1])? {
                0 => return Ok(()),
                _ => stream.write_all(&buffer[..1])?,
            }
        },
        _ => {
            while stream.read(buffer)? > 0 {}
            stream.write_all(&wanted)
        }
    }
}

fn count(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 64];
    let mut received: u64 = 0;
    loop {
        match socket.recv_from(&mut buffer)? {
            (length, client) if &buffer[..length] == HOW_MANY => {
                socket.send_to(&received.to_be_bytes(), client)?;
                received = 0;
            }
            (length, client) if &buffer[..length] == WHO => {
                socket.send_to(&std::process::id().to_be_bytes(), client)?;
            }
            _ => received += 1,
        }
    }
}

/// Waits until the server answers through whatever lies between.
pub(super) fn wait(target: SocketAddr) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match connect_and_ask(target) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            other => return other,
        }
    }
}

pub(super) fn measure(
    benchmark: Benchmark,
    target: SocketAddr,
    time: Duration,
) -> io::Result<Figures> {
    match benchmark {
        Benchmark::Connections => connections(target, time),
        Benchmark::Latency => latency(target, time),
        Benchmark::Bulk => bulk(target, time),
        Benchmark::Packets => packets(target, time),
        Benchmark::Update | Benchmark::Snat => Err(io::Error::other(
            "not measured by the time that a turn takes",
        )),
    }
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn connect_and_ask(target: SocketAddr) -> io::Result<()> {
    let mut stream = connect(target)?;
    stream.write_all(&[ANSWER])?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    // The server closes first: who closes first cannot use its port again for a minute.
    match stream.read(&mut byte)? {
        0 => Ok(()),
        _ => Err(io::Error::other("more came than was asked for")),
    }
}

fn connections(target: SocketAddr, time: Duration) -> io::Result<Figures> {
    let (each, took) = repeat(time, || connect_and_ask(target))?;
    Ok(vec![
        (
            "connections_per_second",
            "1/s",
            each.len() as f64 / took.as_secs_f64(),
        ),
        ("connection_p50", "us", percentile(&each, 0.50)),
        ("connection_p99", "us", percentile(&each, 0.99)),
    ])
}

fn latency(target: SocketAddr, time: Duration) -> io::Result<Figures> {
    let mut stream = connect(target)?;
    stream.write_all(&[ECHO])?;
    let (each, took) = repeat(time, || {
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])
    })?;
    Ok(vec![
        (
            "requests_per_second",
            "1/s",
            each.len() as f64 / took.as_secs_f64(),
        ),
        ("round_trip_p50", "us", percentile(&each, 0.50)),
        ("round_trip_p99", "us", percentile(&each, 0.99)),
    ])
}

fn bulk(target: SocketAddr, time: Duration) -> io::Result<Figures> {
    let mut stream = connect(target)?;
    stream.write_all(&[SINK])?;
    let data = vec![0; BUFFER];
    let (each, _) = repeat(time, || stream.write_all(&data))?;
    let start = Instant::now();
    stream.shutdown(std::net::Shutdown::Write)?;
    // The answer comes when all has arrived.
    stream.read_exact(&mut [0])?;
    let took: Duration = each.iter().sum::<Duration>() + start.elapsed();
    let bits = (each.len() * BUFFER * 8) as f64;
    Ok(vec![(
        "throughput",
        "Gbit/s",
        bits / took.as_secs_f64() / 1e9,
    )])
}

fn packets(target: SocketAddr, time: Duration) -> io::Result<Figures> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    how_many(&socket)?;
    let (sent, took) = repeat(time, || socket.send(&SMALL).map(drop))?;
    // What is still in queues arrives before the question does, or is lost by then.
    let received = how_many(&socket)?;
    Ok(vec![
        (
            "packets_received_per_second",
            "1/s",
            received as f64 / took.as_secs_f64(),
        ),
        (
            "packets_sent_per_second",
            "1/s",
            sent.len() as f64 / took.as_secs_f64(),
        ),
    ])
}

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
fn how_many(socket: &UdpSocket) -> io::Result<u64> {
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

/// Does the same again until `time` is over; how long each took, and all together.
fn repeat(
    time: Duration,
    mut once: impl FnMut() -> io::Result<()>,
) -> io::Result<(Vec<Duration>, Duration)> {
    let mut each = Vec::new();
    let start = Instant::now();
    let mut last = start;
    while last.duration_since(start) < time {
        once()?;
        let now = Instant::now();
        each.push(now.duration_since(last));
        last = now;
    }
    Ok((each, last.duration_since(start)))
}

/// In microseconds.
fn percentile(durations: &[Duration], share: f64) -> f64 {
    let mut sorted = durations.to_vec();
    sorted.sort();
    let nth = (sorted.len() as f64 * share) as usize;
    let value = sorted.get(nth.min(sorted.len().saturating_sub(1)));
    value.map_or(0.0, |duration| duration.as_nanos() as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_values() {
        let durations: Vec<Duration> = (1..=100).rev().map(Duration::from_micros).collect();
        assert_eq!(percentile(&durations, 0.5), 51.0);
        assert_eq!(percentile(&durations, 0.99), 100.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
