//! The load: one client thread and one server, blocking, a byte at a time, so that what lies between them is what takes
//! the time; as few system calls as each exchange needs. Any error, and any answer that does not come within two
//! seconds (ten to connect), is an error of the run. Times go into an HDR histogram with three digits.

use super::Benchmark;
use super::ask::how_many;
use super::server::{ANSWER, BUFFER, ECHO, SINK};
use hdrhistogram::Histogram;
use socket2::{Domain, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// What one turn found: metric, unit, value.
pub(super) type Figures = Vec<(&'static str, &'static str, f64)>;

/// The smallest frame of Ethernet carries so much over UDP and IPv4.
const SMALL: [u8; 18] = [0; 18];

/// An answer that takes longer is an error.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// So is a connection that takes longer to make where connections are counted. TCP sends a SYN again after one, three and
/// seven seconds: what loses two has a bad round, which its spread shows, and does not end the run.
const PATIENCE_OF_SYN: Duration = Duration::from_secs(10);

/// Waits until the server answers through whatever lies between.
pub(super) fn wait(target: SocketAddr) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match connect_and_ask(target, PATIENCE) {
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
        Benchmark::Update | Benchmark::Snat | Benchmark::Attack => Err(io::Error::other(
            "not measured by the time that a turn takes",
        )),
    }
}

/// The timeout for sending holds for connecting, too.
fn connect(target: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_write_timeout(Some(patience))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&target.into())?;
    Ok(socket.into())
}

pub(super) fn connect_and_ask(target: SocketAddr, patience: Duration) -> io::Result<()> {
    let mut stream = connect(target, patience)?;
    stream.write_all(&[ANSWER])?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    // The server closes first: who closes first cannot use its port again for a minute.
    match stream.read(&mut byte)? {
        0 => Ok(()),
        _ => Err(io::Error::other("more came than was asked for")),
    }
}

/// A connection that stays, on which [`echo`] asks.
pub(super) fn connect_to_stay(target: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = connect(target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[ECHO])?;
    Ok(stream)
}

/// A byte there and back.
pub(super) fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])
}

fn connections(target: SocketAddr, time: Duration) -> io::Result<Figures> {
    let taken = repeat(time, || connect_and_ask(target, PATIENCE_OF_SYN))?;
    Ok(vec![
        ("connections_per_second", "1/s", taken.per_second()),
        ("connection_p50", "us", taken.microseconds(0.5)),
        ("connection_p99", "us", taken.microseconds(0.99)),
        ("connection_p99.9", "us", taken.microseconds(0.999)),
    ])
}

fn latency(target: SocketAddr, time: Duration) -> io::Result<Figures> {
    let mut stream = connect_to_stay(target)?;
    let taken = repeat(time, || echo(&mut stream))?;
    Ok(vec![
        ("requests_per_second", "1/s", taken.per_second()),
        ("round_trip_p50", "us", taken.microseconds(0.5)),
        ("round_trip_p99", "us", taken.microseconds(0.99)),
        ("round_trip_p99.9", "us", taken.microseconds(0.999)),
    ])
}

fn bulk(target: SocketAddr, time: Duration) -> io::Result<Figures> {
    let mut stream = connect(target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[SINK])?;
    let data = vec![0; BUFFER];
    let taken = repeat(time, || stream.write_all(&data))?;
    let start = Instant::now();
    stream.shutdown(std::net::Shutdown::Write)?;
    // The answer comes when all has arrived.
    stream.read_exact(&mut [0])?;
    let seconds = (taken.all + start.elapsed()).as_secs_f64();
    let bits = (taken.each.len() * BUFFER as u64 * 8) as f64;
    Ok(vec![("throughput", "Gbit/s", bits / seconds / 1e9)])
}

fn packets(target: SocketAddr, time: Duration) -> io::Result<Figures> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    how_many(&socket)?;
    let sent = repeat(time, || socket.send(&SMALL).map(drop))?;
    // What is still in queues arrives before the question does, or is lost by then.
    let received = how_many(&socket)?;
    let per_second = received as f64 / sent.all.as_secs_f64();
    Ok(vec![
        ("packets_received_per_second", "1/s", per_second),
        ("packets_sent_per_second", "1/s", sent.per_second()),
    ])
}

/// How long something took that was done again and again.
pub(super) struct Taken {
    /// Nanoseconds of each.
    pub(super) each: Histogram<u64>,
    /// Of all together.
    pub(super) all: Duration,
}

impl Taken {
    pub(super) fn nothing() -> io::Result<Self> {
        Ok(Self {
            each: Histogram::new(3).map_err(io::Error::other)?,
            all: Duration::ZERO,
        })
    }

    pub(super) fn add(&mut self, took: Duration) -> io::Result<()> {
        let nanoseconds = took.as_nanos() as u64;
        self.each.record(nanoseconds).map_err(io::Error::other)
    }

    fn per_second(&self) -> f64 {
        self.each.len() as f64 / self.all.as_secs_f64()
    }

    /// What this share of them did not exceed.
    pub(super) fn microseconds(&self, share: f64) -> f64 {
        self.each.value_at_quantile(share) as f64 / 1000.0
    }
}

/// Does the same again until `time` is over.
fn repeat(time: Duration, mut once: impl FnMut() -> io::Result<()>) -> io::Result<Taken> {
    let mut taken = Taken::nothing()?;
    let start = Instant::now();
    let mut last = start;
    while last.duration_since(start) < time {
        once()?;
        let now = Instant::now();
        taken.add(now.duration_since(last))?;
        last = now;
    }
    taken.all = last.duration_since(start);
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_keep_three_digits_of_any_time() {
        let mut taken = Taken::nothing().unwrap();
        for microseconds in 1..=1000 {
            taken.add(Duration::from_micros(microseconds)).unwrap();
        }
        taken.add(Duration::from_secs(100)).unwrap();
        let is_near = |share, microseconds: f64| {
            let found = taken.microseconds(share);
            assert!(
                (found / microseconds - 1.0).abs() < 1e-3,
                "{found} at {share}"
            );
        };
        is_near(0.5, 501.0);
        is_near(0.99, 991.0);
        is_near(0.999, 1000.0);
        is_near(1.0, 1e8);
    }
}
