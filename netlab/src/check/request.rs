//! A request from the namespace of the calling thread: HTTP GET, or a datagram.

use crate::plan::Protocol;
use crate::serve::has_no_sctp;
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "result", rename_all = "camelCase")]
pub enum Outcome {
    /// Not yet.
    NotMade,
    /// Somebody answered.
    Answered {
        /// The pod, where it says so; else the first words of the answer.
        by: String,
        /// Status of HTTP.
        status: Option<u16>,
        /// From the first packet to the last byte.
        milliseconds: f64,
    },
    /// Refused: a reset, or ICMP port unreachable.
    Refused,
    /// No answer at all.
    Silent,
    /// Not made, because the kernel cannot.
    Skipped {
        /// What it lacks.
        why: String,
    },
    /// Something else.
    Failed {
        /// What.
        error: String,
    },
}

impl Outcome {
    /// Answered, or nothing that could be asked.
    pub const fn is_fine(&self) -> bool {
        matches!(self, Self::Answered { .. } | Self::Skipped { .. })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMade => f.write_str("not asked"),
            Self::Answered {
                by,
                status,
                milliseconds,
            } => {
                let status = status
                    .map(|status| format!("{status} "))
                    .unwrap_or_default();
                write!(f, "{status}{by}, {milliseconds:.1} ms")
            }
            Self::Refused => f.write_str("refused"),
            Self::Silent => f.write_str("no answer"),
            Self::Skipped { why } => write!(f, "skipped: {why}"),
            Self::Failed { error } => f.write_str(error),
        }
    }
}

/// Makes a request, with `timeout` for each of its steps.
pub(crate) fn make(to: SocketAddr, protocol: Protocol, timeout: Duration) -> Outcome {
    let started = Instant::now();
    let answer = match protocol {
        Protocol::Tcp => http(TcpStream::connect_timeout(&to, timeout), to, timeout),
        Protocol::Udp => datagram(to, timeout),
        Protocol::Sctp => http(sctp(to, timeout), to, timeout),
    };
    match answer {
        Ok((status, by)) => {
            let milliseconds = started.elapsed().as_secs_f64() * 1000.0;
            Outcome::Answered {
                by,
                status,
                milliseconds,
            }
        }
        Err(error) if has_no_sctp(&error) => Outcome::Skipped {
            why: "this kernel has no SCTP".to_owned(),
        },
        Err(error) => failure(&error),
    }
}

fn failure(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Outcome::Refused,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Outcome::Silent,
        // A refusal that came before it was waited for (`TcpStream::connect_timeout` finds a hang-up without a reason).
        _ if error.to_string() == "no error set after POLLHUP" => Outcome::Refused,
        // What netfilter drops where it is sent: the sender of a datagram is told, others wait.
        io::ErrorKind::PermissionDenied => Outcome::Silent,
        _ => Outcome::Failed {
            error: error.to_string(),
        },
    }
}

type Answer = io::Result<(Option<u16>, String)>;

fn http(stream: io::Result<TcpStream>, to: SocketAddr, timeout: Duration) -> Answer {
    let mut stream = stream?;
    stream.set_read_timeout(Some(timeout))?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    // What is no HTTP server may wait for more, or close: that it was reached is what counts.
    match stream.take(64 * 1024).read_to_end(&mut answer) {
        Err(error) if answer.is_empty() && error.kind() == io::ErrorKind::ConnectionReset => {
            return Err(error);
        }
        _ => {}
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).filter(|_| text.starts_with("HTTP/"));
    let status = status.and_then(|status| status.parse().ok());
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, who(body).unwrap_or_else(|| "connected".to_owned())))
}

fn datagram(to: SocketAddr, timeout: Duration) -> Answer {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.connect(to)?;
    socket.send(b"hello")?;
    let mut answer = vec![0; 65_536];
    let length = socket.recv(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..length]);
    Ok((
        None,
        who(&text).unwrap_or_else(|| format!("{length} bytes")),
    ))
}

/// A one-to-one SCTP socket is used as a TCP one.
fn sctp(to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let protocol = Some(socket2::Protocol::from(132));
    let domain = socket2::Domain::for_address(to);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, protocol)?;
    socket.connect_timeout(&to.into(), timeout)?;
    Ok(TcpStream::from(socket))
}

/// The pod that the built-in server says, else the first line.
fn who(answer: &str) -> Option<String> {
    const LENGTH: usize = 40;
    if let Ok(Value::Object(facts)) = serde_json::from_str(answer.trim()) {
        let text = |field: &str| facts.get(field).and_then(Value::as_str).unwrap_or_default();
        if facts.contains_key("pod") {
            return Some(format!("{}/{}", text("namespace"), text("pod")));
        }
    }
    let line = answer.lines().next()?.trim();
    (!line.is_empty()).then(|| line.chars().take(LENGTH).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_dropped_on_its_senders_host_is_silent() {
        let eperm = rustix::io::Errno::PERM.into();
        assert_eq!(failure(&eperm), Outcome::Silent);
    }
}
