//! The threads that tell the agent what happened.

use super::Settings;
use super::servers::Telemetry;
use super::socket::{self, Question};
use crate::conntrack::{self, Responder};
use crate::netlink::Monitor;
use crate::snapshot;
use anyhow::{Context as _, Result};
use notify::{RecursiveMode, Watcher as _};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
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
    /// Links or addresses changed.
    LinksChanged,
    /// Somebody asks on the control socket how the node is.
    Asked(UnixStream),
}

/// Starts the threads. Each ends when the agent no longer listens.
///
/// # Errors
/// When a source of events cannot be opened.
pub(super) fn listen(
    settings: &Settings,
    responder: Responder,
    events: &Sender<Event>,
    telemetry: &Arc<Telemetry>,
) -> Result<()> {
    listen_to_signals(events.clone())?;
    listen_to_links(events.clone())?;
    listen_to_files(&settings.snapshot, events.clone(), Arc::clone(telemetry))?;
    listen_to_questions(&settings.control_socket, responder, events.clone())
}

fn listen_to_signals(events: Sender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot listen to signals")?;
    spawn("signals", move || {
        for _ in signals.forever() {
            if events.send(Event::Stop).is_err() {
                return;
            }
        }
    })
}

fn listen_to_links(events: Sender<Event>) -> Result<()> {
    let mut monitor = Monitor::open().context("cannot listen to changes of links")?;
    spawn("links", move || {
        loop {
            // An error of the socket is a lost message: everything may have changed.
            let changed = monitor
                .wait(Duration::from_secs(3600))
                .map_or(true, |changes| changes.links || changes.addresses);
            if changed && events.send(Event::LinksChanged).is_err() {
                return;
            }
        }
    })
}

/// Watches folders, because editors and ConfigMaps replace files rather than write them: that of the file as it was
/// named, and that of the file behind it when it is a link.
fn listen_to_files(
    snapshot: &Path,
    events: Sender<Event>,
    telemetry: Arc<Telemetry>,
) -> Result<()> {
    let watched = Watched::new(snapshot)?;
    let (changes, changed) = std::sync::mpsc::channel();
    let mut watcher = notify::recommended_watcher(changes)?;
    for folder in &watched.folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    spawn("files", move || {
        let _watching = watcher;
        for change in changed {
            // An error is a lost message: everything may have changed.
            for changed in change.map_or_else(|_| vec![None], |change| watched.changed(&change)) {
                telemetry.queued();
                if events.send(Event::ObjectsChanged(changed)).is_err() {
                    return;
                }
            }
        }
    })
}

/// What to watch for changes of the objects.
struct Watched {
    folders: BTreeSet<PathBuf>,
    /// `None`: any file in the folders.
    files: Option<[PathBuf; 2]>,
}

impl Watched {
    fn new(snapshot: &Path) -> io::Result<Self> {
        let target = snapshot.canonicalize()?;
        if target.is_dir() {
            return Ok(Self {
                folders: BTreeSet::from([target]),
                files: None,
            });
        }
        let named = std::path::absolute(snapshot)?;
        let folder = parent(&named).canonicalize()?;
        let below = named.file_name().map(|name| folder.join(name));
        let named = below.unwrap_or(named);
        Ok(Self {
            folders: BTreeSet::from([folder, parent(&target)]),
            files: Some([named, target]),
        })
    }

    /// The names of the files of the folder that changed; `None` stands for all there are.
    fn changed(&self, change: &notify::Event) -> Vec<Option<OsString>> {
        let kind = change.kind;
        if !(kind.is_create() || kind.is_modify() || kind.is_remove()) {
            return Vec::new();
        }
        let mut paths = change.paths.iter();
        // `..data` is the link by which a mounted ConfigMap replaces all its files at once.
        let is_link = |path: &Path| path.ends_with("..data");
        match &self.files {
            _ if paths.clone().any(|path| is_link(path)) => vec![None],
            Some(files) => {
                let is_ours = paths.any(|path| files.contains(path));
                is_ours.then_some(None).into_iter().collect()
            }
            None => paths
                .filter(|path| snapshot::holds_objects(path))
                .map(|path| path.file_name().map(OsStr::to_owned))
                .collect(),
        }
    }
}

fn parent(file: &Path) -> PathBuf {
    file.parent()
        .map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
}

fn listen_to_questions(path: &Path, responder: Responder, events: Sender<Event>) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    // What a crashed predecessor left; a living one would have failed at its devices.
    let _ = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    spawn("questions", move || {
        for stream in listener.incoming() {
            let Some(request) = stream.ok().and_then(socket::read_request) else {
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
