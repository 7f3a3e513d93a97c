//! One HTTP connection, as a state machine over a socket that does not block.

use super::request::{Body, Head, Target};
use super::{Arguments, End, Facts, json};
use crate::plan::Protocol;
use rustix::event::epoll::EventFlags;
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, LazyLock};

/// How much is read or prepared at once, in bytes.
const CHUNK: usize = 64 * 1024;
/// The period of the bytes of `/bytes/N`: prime, so that a byte out of place shows.
const PERIOD: usize = 251;

/// The bytes of `/bytes/N`, from any place in the period a chunk long.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    (0..CHUNK + PERIOD)
        .map(|position| (position % PERIOD) as u8)
        .collect()
});

pub(super) struct Connection {
    stream: TcpStream,
    protocol: Protocol,
    peer: End,
    local: End,
    arguments: Arc<Arguments>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// How much of `output` is sent.
    sent: usize,
    /// Next byte and end of a `/bytes/N` that is being sent.
    download: Option<(u64, u64)>,
    receiving: Option<Receiving>,
    closing: bool,
}

/// A request whose body is on its way.
struct Receiving {
    head: Head,
    body: Body,
    length: u64,
    hash: Sha256,
}

impl Connection {
    pub(super) fn new(
        stream: TcpStream,
        protocol: Protocol,
        peer: End,
        local: End,
        arguments: Arc<Arguments>,
    ) -> Self {
        Self {
            stream,
            protocol,
            peer,
            local,
            arguments,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            download: None,
            receiving: None,
            closing: false,
        }
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    pub(super) const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// What it waits for: to send what it has, else to receive.
    pub(super) fn wants(&self) -> EventFlags {
        if self.has_output() {
            EventFlags::OUT
        } else {
            EventFlags::IN
        }
    }

    fn has_output(&self) -> bool {
        self.sent < self.output.len() || self.download.is_some()
    }

    /// Receives, answers and sends as far as that goes without waiting. An error, or the peer's end, means that
    /// it is over.
    pub(super) fn advance(&mut self) -> io::Result<()> {
        loop {
            if !self.send()? {
                return Ok(());
            }
            if self.closing {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            // Requests that came together with the one before are answered without another read.
            if self.answer_next() {
                continue;
            }
            if !self.receive()? {
                return Ok(());
            }
            self.answer_next();
        }
    }

    /// Whether all is sent.
    fn send(&mut self) -> io::Result<bool> {
        while self.has_output() {
            if self.sent == self.output.len() {
                self.refill();
            }
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Prepares the next bytes of a download.
    fn refill(&mut self) {
        let Some((next, end)) = self.download else {
            return;
        };
        let until = end.min(next + CHUNK as u64);
        self.output.clear();
        let start = (next % PERIOD as u64) as usize;
        self.output
            .extend_from_slice(&PATTERN[start..][..(until - next) as usize]);
        self.sent = 0;
        self.download = (until < end).then_some((until, end));
    }

    /// Whether something came.
    fn receive(&mut self) -> io::Result<bool> {
        let start = self.input.len();
        self.input.resize(start + CHUNK, 0);
        let received = self.stream.read(&mut self.input[start..]);
        self.input
            .truncate(start + *received.as_ref().unwrap_or(&0));
        match received {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Answers one request, if one is complete. Returns whether there is something to send.
    fn answer_next(&mut self) -> bool {
        if self.receiving.is_none() {
            match Head::parse(&self.input) {
                Ok(None) => return false,
                Err(status) => {
                    self.closing = true;
                    self.respond(status, "text/plain", b"", false);
                    return true;
                }
                Ok(Some((head, length))) => {
                    self.input.drain(..length);
                    self.begin(head);
                }
            }
        }
        self.take_body() || self.has_output()
    }

    fn begin(&mut self, head: Head) {
        if head.expects_continue {
            self.output
                .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let body = head.body;
        self.receiving = Some(Receiving {
            head,
            body,
            length: 0,
            hash: Sha256::new(),
        });
    }

    /// Takes what has come of the body, and answers when it is whole.
    fn take_body(&mut self) -> bool {
        let Some(mut receiving) = self.receiving.take() else {
            return false;
        };
        let Receiving {
            body, length, hash, ..
        } = &mut receiving;
        let taken = body.take(&self.input, |part| {
            *length += part.len() as u64;
            hash.update(part);
        });
        match taken {
            Ok(count) => {
                self.input.drain(..count);
            }
            Err(()) => {
                self.closing = true;
                self.respond("400 Bad Request", "text/plain", b"", false);
                return true;
            }
        }
        if !receiving.body.is_whole() {
            self.receiving = Some(receiving);
            return false;
        }
        self.answer(receiving);
        true
    }

    fn answer(&mut self, request: Receiving) {
        let head = &request.head;
        self.closing = !head.keeps_alive;
        match head.target {
            Target::Bytes(count) => {
                self.header("200 OK", "application/octet-stream", count);
                self.download = (count > 0 && !head.is_head).then_some((0, count));
            }
            Target::Upload => {
                let hash = request.hash.finalize();
                let sha256: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
                let answer = serde_json::json!({ "length": request.length, "sha256": sha256 });
                self.respond("200 OK", "application/json", &json(&answer), head.is_head);
            }
            Target::Facts => {
                let arguments = self.arguments.clone();
                let facts = arguments.facts(self.protocol, self.peer, self.local);
                let facts = Facts {
                    request: Some(&head.line),
                    ..facts
                };
                self.respond("200 OK", "application/json", &json(&facts), head.is_head);
            }
        }
    }

    fn respond(&mut self, status: &str, kind: &str, body: &[u8], head_only: bool) {
        self.header(status, kind, body.len() as u64);
        if !head_only {
            self.output.extend_from_slice(body);
        }
    }

    fn header(&mut self, status: &str, kind: &str, length: u64) {
        let connection = if self.closing { "close" } else { "keep-alive" };
        let header = format!(
            "HTTP/1.1 {status}\r\nserver: penstock-lab\r\ncontent-type: {kind}\r\n\
             content-length: {length}\r\nconnection: {connection}\r\n\r\n"
        );
        self.output.extend_from_slice(header.as_bytes());
    }
}
