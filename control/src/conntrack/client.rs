//! Asking a node about its connections.

use super::{Answer, Question};
use crate::agent::socket;
use std::io::{self, BufRead as _, BufReader};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What comes back, part by part.
#[derive(Debug)]
pub struct Answers {
    stream: BufReader<UnixStream>,
    line: String,
}

/// Asks the node whose control socket is at `path`.
///
/// # Errors
/// When no agent listens there.
pub fn ask(path: &Path, question: &Question) -> io::Result<Answers> {
    let stream = socket::send(
        path,
        &socket::Question::Conntrack(Box::new(question.clone())),
    )?;
    // Only events may come when they come.
    let awaits_events = matches!(question, Question::Events(..));
    stream.set_read_timeout((!awaits_events).then_some(socket::PATIENCE))?;
    Ok(Answers {
        stream: BufReader::with_capacity(1 << 17, stream),
        line: String::new(),
    })
}

impl Iterator for Answers {
    type Item = io::Result<Answer>;

    /// The next part; none at the end. When the agent goes away in the middle, an error of kind `UnexpectedEof`.
    fn next(&mut self) -> Option<io::Result<Answer>> {
        match self.read() {
            Ok(Answer::End) => None,
            other => Some(other),
        }
    }
}

impl Answers {
    fn read(&mut self) -> io::Result<Answer> {
        self.line.clear();
        if self.stream.read_line(&mut self.line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&self.line)?)
    }

    /// A way to end the answers from another thread: the next one is an error of kind `UnexpectedEof`.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn hang_up(&self) -> io::Result<impl Fn() + Send + 'static> {
        let stream = self.stream.get_ref().try_clone()?;
        // An error means that the other side was faster.
        Ok(move || drop(stream.shutdown(Shutdown::Both)))
    }
}
