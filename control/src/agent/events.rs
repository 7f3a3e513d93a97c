//! The threads that tell the agent what happened.

use super::servers::Telemetry;
use super::socket::{self, Question};
use super::{Settings, facts, files};
use crate::conntrack::{self, Responder};
use crate::netlink::{Changes, Monitor};
use anyhow::{Context as _, Result, bail};
use dataplane::ports::ReservedPorts;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// Something that the agent reacts to.
#[derive(Debug)]
pub enum Event {
    /// A signal to stop.
    Stop,
    /// A worker ended by itself.
    WorkerFailed(io::Error),
    /// The files with the objects changed: this one of the folder, or nobody knows which.
    ObjectsChanged(Option<OsString>),
    /// Links, addresses or routes changed.
    LinksChanged,
    /// Somebody asks on the control socket how the node is.
    Asked(UnixStream),
}

/// What happened and was not reacted to yet.
pub(super) struct Inbox {
    received: Receiver<Event>,
    waiting: VecDeque<Event>,
}

/// Of more files that changed than these all are looked at, once.
const MOST_FILES: usize = 16;

impl Inbox {
    pub(super) const fn new(received: Receiver<Event>) -> Self {
        Self {
            received,
            waiting: VecDeque::new(),
        }
    }

    /// What to react to next, at the latest after `patience`. An end goes before everything else; of what is looked at anew
    /// one look is enough, however often it changed.
    ///
    /// # Errors
    /// When nothing happened, or nobody tells any more.
    pub(super) fn next(&mut self, patience: Duration) -> Result<Event, RecvTimeoutError> {
        if self.waiting.is_empty() {
            self.waiting
                .push_back(self.received.recv_timeout(patience)?);
        }
        self.waiting.extend(self.received.try_iter());
        let is_end = |event: &Event| matches!(event, Event::Stop | Event::WorkerFailed(_));
        let end = self.waiting.iter().position(is_end).unwrap_or(0);
        let next = self.waiting.remove(end);
        let next = next.ok_or(RecvTimeoutError::Timeout)?;
        Ok(self.without_repetition(next))
    }

    /// Whether it is known that files changed and were not looked at.
    pub(super) fn has_changed_objects(&self) -> bool {
        self.changed_files().next().is_some()
    }

    fn changed_files(&self) -> impl Iterator<Item = Option<&OsStr>> {
        self.waiting.iter().filter_map(|event| match event {
            Event::ObjectsChanged(file) => Some(file.as_deref()),
            _ => None,
        })
    }

    /// `next`, for all that waits and asks for the same.
    fn without_repetition(&mut self, next: Event) -> Event {
        match next {
            Event::ObjectsChanged(file) => {
                let files: BTreeSet<_> = self.changed_files().chain([file.as_deref()]).collect();
                if files.contains(&None) || files.len() > MOST_FILES {
                    self.waiting
                        .retain(|event| !matches!(event, Event::ObjectsChanged(_)));
                    return Event::ObjectsChanged(None);
                }
                self.waiting.retain(
                    |event| !matches!(event, Event::ObjectsChanged(other) if *other == file),
                );
                Event::ObjectsChanged(file)
            }
            Event::LinksChanged => {
                self.waiting
                    .retain(|event| !matches!(event, Event::LinksChanged));
                Event::LinksChanged
            }
            other => other,
        }
    }
}

/// Starts the threads. Each ends when it would tell something and the agent no longer listens; until then it waits.
///
/// # Errors
/// When a source of events cannot be opened.
pub(super) fn listen(
    settings: &Settings,
    responder: Responder,
    mut files: files::Watch,
    events: &Sender<Event>,
    telemetry: &Arc<Telemetry>,
) -> Result<()> {
    listen_to_links(events.clone())?;
    // They may have changed since they were read.
    events.send(Event::LinksChanged)?;
    let (told, telemetry) = (events.clone(), Arc::clone(telemetry));
    spawn("files", move || {
        loop {
            for changed in files.wait() {
                telemetry.queued();
                if told.send(Event::ObjectsChanged(changed)).is_err() {
                    return;
                }
            }
        }
    })?;
    listen_to_questions(&settings.control_socket, responder, events.clone())
}

/// Keeps the ports that the node listens on in mind as long as the agent lives: nothing tells of them.
pub(super) fn follow_listening_ports(ports: &Arc<ReservedPorts>) -> Result<()> {
    const INTERVAL: Duration = Duration::from_secs(1);
    let ports = Arc::downgrade(ports);
    spawn("ports", move || {
        loop {
            thread::sleep(INTERVAL);
            let Some(ports) = ports.upgrade() else {
                return;
            };
            if let Err(error) = facts::follow_listening_ports(&ports) {
                tracing::debug!("cannot look which ports the node listens on: {error}");
            }
        }
    })
}

/// From here on a signal no longer ends the process, but tells the agent to stop once it runs.
///
/// # Errors
/// When the process cannot listen to signals.
pub(super) fn listen_to_signals(events: Sender<Event>) -> Result<()> {
    let mut ends = vec![SIGTERM, SIGINT];
    if !is_ignored(SIGHUP) {
        ends.push(SIGHUP);
    }
    let mut signals = Signals::new(ends).context("cannot listen to signals")?;
    spawn("signals", move || {
        for _ in signals.forever() {
            if events.send(Event::Stop).is_err() {
                return;
            }
        }
    })
}

/// Removes what a crashed predecessor left; what is no socket is somebody else's.
fn remove_left_socket(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => bail!(
            "{} is there, and no socket; give this agent another --control-socket",
            path.display()
        ),
        // Whether it could be removed is seen when the new one is made.
        Ok(_) => std::fs::remove_file(path).or(Ok(())),
        Err(_) => Ok(()),
    }
}

/// Whether whoever started this process wants it to go on when such a signal comes, as `nohup` does.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 != 0)
}

fn listen_to_links(events: Sender<Event>) -> Result<()> {
    let mut monitor = Monitor::open().context("cannot listen to changes of links")?;
    spawn("links", move || {
        loop {
            let waited = monitor.wait(Duration::from_secs(3600));
            if has_changed(waited, pause) && events.send(Event::LinksChanged).is_err() {
                return;
            }
        }
    })
}

/// An error of the socket is a lost message: everything may have changed. It is told after a `pause`.
fn has_changed(waited: io::Result<Changes>, pause: impl FnOnce()) -> bool {
    waited.map_or_else(
        |error| {
            tracing::debug!("cannot hear of changes of links: {error}");
            pause();
            true
        },
        Changes::any,
    )
}

/// An error that lasts would be told as fast as a processor can.
fn pause() {
    thread::sleep(Duration::from_secs(1));
}

fn listen_to_questions(path: &Path, responder: Responder, events: Sender<Event>) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    if UnixStream::connect(path).is_ok() {
        bail!(
            "another agent listens on {}; give this one another --control-socket",
            path.display()
        );
    }
    remove_left_socket(path)?;
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    spawn("questions", move || {
        for stream in listener.incoming() {
            let Some(stream) = accepted(stream, pause) else {
                continue;
            };
            let Some(request) = socket::read_request(stream) else {
                continue;
            };
            let stream = request.stream;
            match request.question {
                Question::Status => {
                    if events.send(Event::Asked(stream)).is_err() {
                        return;
                    }
                }
                Question::Conntrack(question) => answer(*question, stream, responder.clone()),
            }
        }
    })
}

/// Without descriptors the kernel keeps who asks waiting, and says so at once whenever it is asked who that is.
fn accepted(stream: io::Result<UnixStream>, pause: impl FnOnce()) -> Option<UnixStream> {
    stream
        .inspect_err(|error| {
            tracing::debug!("cannot hear a question: {error}");
            pause();
        })
        .ok()
}

/// Connections are many, and listening to events takes as long as somebody wants: each has a thread.
fn answer(question: conntrack::Question, stream: UnixStream, responder: Responder) {
    let spawned = spawn("conntrack", move || {
        if let Err(error) = responder.answer(&question, &stream) {
            tracing::debug!("who asked for {question:?} did not wait for the answer: {error}");
        }
    });
    if let Err(error) = spawned {
        tracing::warn!("cannot answer about connections: {error}");
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(body)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// What comes out of an inbox, in a word each.
    fn words(events: impl IntoIterator<Item = Event>) -> Vec<String> {
        let (told, received) = channel();
        for event in events {
            told.send(event).unwrap();
        }
        let mut inbox = Inbox::new(received);
        std::iter::from_fn(|| inbox.next(Duration::ZERO).ok())
            .map(|event| match event {
                Event::ObjectsChanged(Some(file)) => file.into_string().unwrap(),
                Event::ObjectsChanged(None) => "all".to_owned(),
                Event::LinksChanged => "links".to_owned(),
                Event::Stop => "stop".to_owned(),
                other => format!("{other:?}"),
            })
            .collect()
    }

    fn file(name: &str) -> Event {
        Event::ObjectsChanged(Some(name.into()))
    }

    #[test]
    fn what_changed_often_is_looked_at_once() {
        let links = || Event::LinksChanged;
        let events = [file("a"), links(), file("b"), file("a"), links(), file("b")];
        assert_eq!(words(events), ["a", "links", "b"]);
        let events = [file("a"), links(), Event::ObjectsChanged(None), file("b")];
        assert_eq!(words(events), ["all", "links"]);
        let many = (0..=MOST_FILES).map(|number| file(&number.to_string()));
        assert_eq!(words(many), ["all"]);
        let most = (0..MOST_FILES).map(|number| file(&number.to_string()));
        assert_eq!(words(most).len(), MOST_FILES);
    }

    /// Or the thread takes a processor, and its events all memory.
    #[test]
    fn an_error_is_told_after_a_pause() {
        let error = || io::Error::from(io::ErrorKind::OutOfMemory);
        let links = |links| {
            Ok(Changes {
                links,
                ..Changes::default()
            })
        };
        for (waited, expected) in [
            (Err(error()), (true, true)),
            (links(true), (true, false)),
            (links(false), (false, false)),
        ] {
            let mut has_paused = false;
            let changed = has_changed(waited, || has_paused = true);
            assert_eq!((changed, has_paused), expected);
        }

        let mut has_paused = false;
        assert!(accepted(Err(error()), || has_paused = true).is_none());
        assert!(has_paused);
        let (stream, _) = UnixStream::pair().unwrap();
        assert!(accepted(Ok(stream), || panic!("no error, no pause")).is_some());
    }

    #[test]
    fn an_end_waits_for_nothing() {
        let events = [file("a"), Event::LinksChanged, Event::Stop, file("b")];
        assert_eq!(words(events)[0], "stop");
    }

    #[test]
    fn files_that_wait_are_known() {
        let (told, received) = channel();
        let mut inbox = Inbox::new(received);
        for event in [file("a"), file("b"), Event::LinksChanged] {
            told.send(event).unwrap();
        }
        for has_changed in [true, false, false] {
            inbox.next(Duration::ZERO).unwrap();
            assert_eq!(inbox.has_changed_objects(), has_changed);
        }
        assert!(matches!(
            inbox.next(Duration::ZERO),
            Err(RecvTimeoutError::Timeout)
        ));
    }
}
