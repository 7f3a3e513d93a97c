//! The control socket of a node: one JSON request on a line, a JSON answer, or several on a line each.

use super::Agent;
use crate::conntrack;
use crate::deadline::read_until;
use dataplane::verdict::{Counts, DropReason};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// How the node is; answered with a [`Status`].
    Status,
    /// About its connections; answered as [`conntrack`] says.
    Conntrack(Box<conntrack::Question>),
}

/// How a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Name of the node.
    pub node: String,
    /// Version of the service table.
    pub generation: u64,
    /// Services (svcports of both families) in the table.
    pub services: usize,
    /// Entries in the connection table.
    pub connections: usize,
    /// Entries that it can hold.
    pub capacity: usize,
    /// Verdicts since the start.
    pub packets: Packets,
    /// Why the objects in the files are not those in the table, if they were refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Verdicts since the start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Packets {
    /// Translated.
    pub forwarded: u64,
    /// Not translated.
    pub passed: u64,
    /// Refused.
    pub rejected: u64,
    /// Fragments that waited for others.
    pub held: u64,
    /// Not taken by the device.
    pub send_failures: u64,
    /// Dropped, by reason; reasons that did not occur are left out.
    pub dropped: BTreeMap<String, u64>,
}

impl From<&Counts> for Packets {
    fn from(counts: &Counts) -> Self {
        let dropped = DropReason::ALL
            .iter()
            .map(|reason| (reason.name().to_owned(), counts.dropped(*reason)))
            .filter(|(_, count)| *count > 0)
            .collect();
        Self {
            forwarded: counts.forward,
            passed: counts.pass,
            rejected: counts.reject,
            held: counts.hold,
            send_failures: counts.send_failure,
            dropped,
        }
    }
}

/// A question with the connection to answer on.
#[derive(Debug)]
pub struct Request {
    pub(super) question: Question,
    pub(super) stream: UnixStream,
}

/// How long either side may keep the other waiting.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long one may take to ask. Less than that: whoever asks next waits as long, and then for the answer.
const TIME_TO_ASK: Duration = Duration::from_secs(1);
/// The longest question, in bytes; one with every filter there is has a few hundred.
const QUESTION_LENGTH: usize = 16 * 1024;

/// Asks the node whose control socket is at `path` how it is.
///
/// # Errors
/// When no agent listens there, or it does not answer.
pub fn ask(path: &Path) -> io::Result<Status> {
    let stream = send(path, &Question::Status)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(serde_json::from_reader(BufReader::new(stream))?)
}

/// Sends a question; the answer comes on the stream.
///
/// # Errors
/// When no agent listens there.
pub fn send(path: &Path, question: &Question) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    let mut line = serde_json::to_string(question)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    Ok(stream)
}

/// Reads the question of a connection; who asks nothing sensible in time gets no answer.
pub fn read_request(mut stream: UnixStream) -> Option<Request> {
    let line = read_line(&mut stream, Instant::now() + TIME_TO_ASK).ok()?;
    let question = serde_json::from_slice(&line).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(Request { question, stream })
}

fn read_line(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    while line.len() < QUESTION_LENGTH {
        let count = read_until(stream, &mut buffer, deadline)?;
        let end = memchr::memchr(b'\n', &buffer[..count]);
        line.extend_from_slice(&buffer[..end.unwrap_or(count)]);
        if count == 0 || end.is_some() {
            return Ok(line);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Tells `stream` how the node is.
pub(super) fn answer(mut stream: UnixStream, agent: &Agent) {
    if let Err(error) = serde_json::to_writer(&mut stream, &status(agent)) {
        tracing::debug!("who asked for the status did not wait for it: {error}");
    }
}

fn status(agent: &Agent) -> Status {
    Status {
        node: agent.settings.node.clone(),
        generation: agent.generation.0,
        services: agent.shared.services.load().service_count(),
        connections: agent.shared.conntrack.len(),
        capacity: agent.shared.conntrack.capacity(),
        packets: Packets::from(&agent.counts()),
        refused: agent.refused.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_question_ends_with_its_line_or_with_all_that_is_sent() {
        for sent in ["\"status\"\nmore", "\"status\""] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(sent.as_bytes()).unwrap();
            drop(theirs);
            let request = read_request(ours).unwrap();
            assert!(matches!(request.question, Question::Status), "{sent}");
        }
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(read_request(ours).is_none());
    }

    /// Nobody keeps others from asking by a question that does not end, a byte now and then.
    #[test]
    fn a_question_that_does_not_end_is_left() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let reader = thread::spawn(|| read_request(ours).is_none());
        let start = Instant::now();
        while theirs.write_all(b" ").is_ok() {
            assert!(start.elapsed() < 20 * TIME_TO_ASK);
            thread::sleep(TIME_TO_ASK / 20);
        }
        assert!(reader.join().unwrap());
    }

    #[test]
    fn a_question_that_is_too_long_is_left() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let reader = thread::spawn(|| read_request(ours).is_none());
        let long = vec![b' '; 64 * QUESTION_LENGTH];
        assert!(theirs.write_all(&long).is_err());
        assert!(reader.join().unwrap());
    }
}
