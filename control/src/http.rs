//! A small HTTP/1.1 server, for what kubelets, load balancers and Prometheus ask of a proxy.
//!
//! Answers are short and made at once; bodies of requests are ignored; each connection takes one request. Bounded in
//! what strangers can take: connections, bytes of a head, time. Source: RFC 9112.

use crate::deadline::read_until;
use jiff::Timestamp;
use rustix::net::Shutdown;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Connections at one time; further ones are closed unanswered.
const CONNECTIONS: usize = 64;
/// The longest head that is read, in bytes.
const HEAD_LENGTH: usize = 16 * 1024;
/// For the request, and again for the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much of a body is read and thrown away, so that closing the connection does not take the answer with it.
const IGNORED_BODY: usize = 64 * 1024;
/// How long that may take.
const LINGER: Duration = Duration::from_secs(1);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, …
    pub method: String,
    /// Path without query.
    pub path: String,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Headers beyond those that every answer has.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
}

impl Response {
    /// Plain text, or another `content_type`, with the header that keeps browsers from guessing.
    pub fn new(status: u16, content_type: &str, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: vec![
                ("Content-Type", content_type.to_owned()),
                ("X-Content-Type-Options", "nosniff".to_owned()),
            ],
            body: body.into(),
        }
    }

    /// 404.
    pub fn not_found() -> Self {
        Self::new(404, TEXT, "404 page not found\n")
    }

    /// Head and body as bytes; without body for HEAD.
    fn bytes(&self, method: &str, now: Timestamp) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            _ => "Service Unavailable",
        };
        let mut text = format!("HTTP/1.1 {} {reason}\r\n", self.status);
        for (name, value) in &self.headers {
            // Writing to a String cannot fail.
            let _ = write!(text, "{name}: {value}\r\n");
        }
        let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT");
        let length = self.body.len();
        let _ = write!(
            text,
            "Date: {date}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        if method != "HEAD" {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }
}

/// Content type of plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// A listening server. It ends, and its port is free again, when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `address`; `0.0.0.0` takes IPv6 as well, as in Go.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(
        address: SocketAddr,
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = Arc::new(listen(address)?);
        let accepting = Arc::clone(&listener);
        let name = format!("http-{}", address.port());
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || accept(&accepting, &Arc::new(answer)))?;
        Ok(Self {
            listener,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the thread: on Linux `accept` fails on a socket that was shut down.
        let _ = rustix::net::shutdown(&*self.listener, Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so on stderr.
            let _ = thread.join();
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        let both = SocketAddr::new(IpAddr::from(Ipv6Addr::UNSPECIFIED), address.port());
        match TcpListener::bind(both) {
            // Without IPv6 in the kernel there is IPv4.
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
    TcpListener::bind(address)
}

fn accept<F: Fn(&Request) -> Response + Send + Sync + 'static>(
    listener: &TcpListener,
    answer: &Arc<F>,
) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_passing(&error) => {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            Err(_) => return,
        };
        if open.load(Relaxed) >= CONNECTIONS {
            continue;
        }
        open.fetch_add(1, Relaxed);
        let (answer, guard) = (Arc::clone(answer), Open(Arc::clone(&open)));
        let serve = move || {
            let _guard = guard;
            // Who went away or was too slow gets nothing.
            let _ = serve(stream, &*answer);
        };
        // Without a thread, neither.
        let _ = thread::Builder::new().name("http".to_owned()).spawn(serve);
    }
}

/// Of one connection, or of the machine for the moment; the socket itself is well.
fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let number = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        number,
        Some(
            Errno::CONNABORTED
                | Errno::INTR
                | Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::PROTO
                | Errno::PERM
        )
    )
}

/// Counts a connection as open while it lives.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn serve(mut stream: TcpStream, answer: &impl Fn(&Request) -> Response) -> io::Result<()> {
    let request = read_request(&mut stream, Instant::now() + PATIENCE)?;
    let (method, response) = match &request {
        Some(request) => (request.method.as_str(), answer(request)),
        None => ("", Response::new(400, TEXT, "400 Bad Request")),
    };
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&response.bytes(method, Timestamp::now()))?;
    stream.shutdown(std::net::Shutdown::Write)?;
    ignore_rest(&mut stream, Instant::now() + LINGER)
}

/// Reads what a client still sends: it would lose the answer if the connection were closed before.
fn ignore_rest(stream: &mut TcpStream, deadline: Instant) -> io::Result<()> {
    let mut ignored = 0;
    let mut buffer = [0; 4096];
    while ignored < IGNORED_BODY {
        match read_until(stream, &mut buffer, deadline)? {
            0 => break,
            count => ignored += count,
        }
    }
    Ok(())
}

/// The request; `None` when it is not one of HTTP/1.
fn read_request(stream: &mut TcpStream, deadline: Instant) -> io::Result<Option<Request>> {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = read_until(stream, &mut buffer, deadline)?;
        head.extend_from_slice(&buffer[..count]);
        match parse(&head) {
            Ok(Some(request)) => return Ok(Some(request)),
            Ok(None) if count > 0 && head.len() < HEAD_LENGTH => {}
            Ok(None) | Err(_) => return Ok(None),
        }
    }
}

fn parse(head: &[u8]) -> Result<Option<Request>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    if request.parse(head)?.is_partial() {
        return Ok(None);
    }
    let target = request.path.unwrap_or_default();
    let path = target.split('?').next().unwrap_or(target);
    Ok(Some(Request {
        method: request.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn exchange(server: &Server, request: &[u8]) -> String {
        let port = server.address().unwrap().port();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn start() -> Server {
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        let echo = |request: &Request| {
            Response::new(200, TEXT, format!("{} {}", request.method, request.path))
        };
        Server::start(address, echo).unwrap()
    }

    #[test]
    fn answers_any_method_with_length_date_and_body() {
        let server = start();
        let answer = exchange(
            &server,
            b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        );
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "POST /a");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("\r\nContent-Length: 7\r\n"), "{head}");
        assert!(
            head.contains("\r\nDate: ") && head.contains(" GMT\r\n"),
            "{head}"
        );
    }

    #[test]
    fn head_gets_the_length_without_the_body() {
        let answer = exchange(&start(), b"HEAD / HTTP/1.1\r\n\r\n");
        assert!(
            answer.ends_with("\r\n\r\n") && answer.contains("Content-Length: 6"),
            "{answer}"
        );
    }

    #[test]
    fn what_is_no_request_is_told_so() {
        let server = start();
        assert!(exchange(&server, b"\x16\x03\x01 hello\r\n\r\n").starts_with("HTTP/1.1 400"));
        let long = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &[b'a'; 20_000]].concat();
        assert!(exchange(&server, &long).starts_with("HTTP/1.1 400"));
    }

    /// Nobody holds a connection by going on for ever, a byte now and then.
    #[test]
    fn a_body_that_does_not_end_is_left() {
        let server = start();
        let mut stream = TcpStream::connect(server.address().unwrap()).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let start = Instant::now();
        while stream.write_all(b"x").is_ok() {
            assert!(start.elapsed() < 20 * LINGER);
            thread::sleep(LINGER / 20);
        }
    }

    #[test]
    fn a_dropped_server_gives_its_port_back() {
        let server = start();
        let port = server.address().unwrap().port();
        exchange(&server, b"GET / HTTP/1.1\r\n\r\n");
        drop(server);
        let address = SocketAddr::from(([0, 0, 0, 0], port));
        let again = Server::start(address, |_: &Request| Response::not_found()).unwrap();
        assert!(exchange(&again, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
    }
}
