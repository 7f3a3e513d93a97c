//! Heads and bodies of HTTP/1.1 requests (RFC 9112).

/// The longest head that is read, in bytes.
const HEAD_LENGTH: usize = 16 * 1024;
const HEADERS: usize = 64;

/// The head of a request.
#[derive(Debug)]
pub(super) struct Head {
    /// Method and target: `GET /`.
    pub(super) line: String,
    pub(super) target: Target,
    pub(super) is_head: bool,
    pub(super) keeps_alive: bool,
    pub(super) expects_continue: bool,
    pub(super) body: Body,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Facts,
    Bytes(u64),
    Upload,
}

/// What is still to come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes.
    Sized(u64),
    /// The line that says how long the next chunk is.
    ChunkSize,
    /// The rest of a chunk with its line end.
    Chunk(u64),
    /// Lines after the last chunk.
    Trailers,
    /// Nothing.
    Whole,
}

impl Head {
    /// The head at the start of `input` and its length; `None` when it is not complete yet; an HTTP status when
    /// it is wrong.
    pub(super) fn parse(input: &[u8]) -> Result<Option<(Self, usize)>, &'static str> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let length = match request.parse(input) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if input.len() > HEAD_LENGTH => {
                return Err("431 Request Header Fields Too Large");
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("400 Bad Request"),
        };
        let method = request.method.unwrap_or_default();
        let path = request.path.unwrap_or_default();
        let mut head = Self {
            line: format!("{method} {path}"),
            target: target(path),
            is_head: method == "HEAD",
            keeps_alive: request.version == Some(1),
            expects_continue: false,
            body: Body::Whole,
        };
        for header in request.headers {
            head.header(
                header.name,
                std::str::from_utf8(header.value).unwrap_or_default(),
            )?;
        }
        Ok(Some((head, length)))
    }

    fn header(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let length = value.parse().map_err(|_| "400 Bad Request")?;
            // Chunks win over a length (RFC 9112, 6.3).
            if self.body == Body::Whole && length > 0 {
                self.body = Body::Sized(length);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err("501 Not Implemented");
            }
            self.body = Body::ChunkSize;
        } else if name.eq_ignore_ascii_case("connection") {
            let has = |word: &str| {
                value
                    .split(',')
                    .any(|part| part.trim().eq_ignore_ascii_case(word))
            };
            self.keeps_alive = (self.keeps_alive && !has("close")) || has("keep-alive");
        } else if name.eq_ignore_ascii_case("expect") {
            self.expects_continue = value.eq_ignore_ascii_case("100-continue");
        }
        Ok(())
    }
}

fn target(path: &str) -> Target {
    let path = path.split('?').next().unwrap_or(path);
    match path.strip_prefix("/bytes/").map(str::parse) {
        Some(Ok(count)) => Target::Bytes(count),
        _ if path == "/upload" => Target::Upload,
        _ => Target::Facts,
    }
}

impl Body {
    pub(super) const fn is_whole(self) -> bool {
        matches!(self, Self::Whole)
    }

    /// Hands the body's bytes at the start of `input` to `part` and returns how much of `input` is used up.
    pub(super) fn take(&mut self, input: &[u8], mut part: impl FnMut(&[u8])) -> Result<usize, ()> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            match *self {
                Self::Whole => return Ok(used),
                Self::Sized(left) => {
                    let count = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    part(&rest[..count]);
                    let left = left - count as u64;
                    *self = if left == 0 {
                        Self::Whole
                    } else {
                        Self::Sized(left)
                    };
                    return Ok(used + count);
                }
                Self::ChunkSize => match httparse::parse_chunk_size(rest) {
                    Ok(httparse::Status::Partial) => return Ok(used),
                    Ok(httparse::Status::Complete((length, size))) => {
                        used += length;
                        let with_line_end = size.checked_add(2).ok_or(())?;
                        *self = if size == 0 {
                            Self::Trailers
                        } else {
                            Self::Chunk(with_line_end)
                        };
                    }
                    Err(_) => return Err(()),
                },
                Self::Chunk(left) => {
                    let count = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    if count == 0 {
                        return Ok(used);
                    }
                    // The line end, the last two of them, is not part of the body.
                    let data = left.saturating_sub(2).min(count as u64) as usize;
                    part(&rest[..data]);
                    used += count;
                    let left = left - count as u64;
                    *self = if left == 0 {
                        Self::ChunkSize
                    } else {
                        Self::Chunk(left)
                    };
                }
                Self::Trailers => {
                    let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
                        return Ok(used);
                    };
                    used += end + 2;
                    if end == 0 {
                        *self = Self::Whole;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        Head::parse(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn connections_stay_or_close_as_their_version_says() {
        assert!(head("GET / HTTP/1.1\r\n\r\n").keeps_alive);
        assert!(!head("GET / HTTP/1.0\r\n\r\n").keeps_alive);
        assert!(head("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keeps_alive);
        assert!(!head("GET / HTTP/1.1\r\nconnection: close\r\n\r\n").keeps_alive);
    }

    #[test]
    fn targets() {
        assert_eq!(
            head("GET /bytes/100?x=1 HTTP/1.1\r\n\r\n").target,
            Target::Bytes(100)
        );
        assert_eq!(
            head("GET /bytes/many HTTP/1.1\r\n\r\n").target,
            Target::Facts
        );
        assert_eq!(head("POST /upload HTTP/1.1\r\n\r\n").target, Target::Upload);
    }

    #[test]
    fn heads_that_are_not_whole_or_not_http() {
        assert!(Head::parse(b"GET / HT").unwrap().is_none());
        assert_eq!(
            Head::parse(b"\x16\x03\x01\x02").unwrap_err(),
            "400 Bad Request"
        );
        let long = format!("GET /{} HTTP", "x".repeat(HEAD_LENGTH));
        assert!(Head::parse(long.as_bytes()).is_err());
    }

    /// Whatever the pieces that a body comes in, its bytes are the same.
    #[test]
    fn chunks_come_in_any_pieces() {
        let body = b"4\r\nWiki\r\n6;x=y\r\npedia \r\n0\r\nTrailer: x\r\n\r\nGET";
        for size in 1..body.len() {
            let (mut state, mut text, mut input) = (Body::ChunkSize, Vec::new(), Vec::new());
            for piece in body.chunks(size) {
                input.extend_from_slice(piece);
                let used = state
                    .take(&input, |part| text.extend_from_slice(part))
                    .unwrap();
                input.drain(..used);
            }
            assert!(
                state.is_whole() && text == b"Wikipedia ",
                "{size}: {text:?}"
            );
            assert_eq!(input, b"GET");
        }
        assert!(Body::ChunkSize.take(b"zz\r\n", |_| {}).is_err());
    }
}
