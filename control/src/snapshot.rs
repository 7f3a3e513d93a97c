//! [`Snapshot`]: the Services, EndpointSlices and Nodes of a cluster, read from files.
//!
//! Multi-document YAML, JSON and lists of objects; other kinds are skipped with a note. What the API server would
//! refuse is refused here, with one [`Problem`] per object; what kube-proxy ignores is ignored by
//! [`crate::resolve`]. Endpoints objects become slices where their Service has none.
//!
//! Invariants: objects are sorted by namespace and name and unique by them, so the order of documents and files
//! makes no difference. Read first: [`objects`].

mod blocks;
mod direct;
mod document;
mod endpoints_object;
mod exchange;
mod fields;
mod json;
mod lab;
mod lines;
mod list;
mod merge;
mod notes;
pub mod objects;
mod printed;
mod typed;
mod validate;

pub use exchange::{Followed, ServiceKey, slices};
pub use fields::{parse_cidr, parse_ip};
pub use merge::{merge, objects as untyped};
pub use objects::{EndpointSlice, Node, Service};

use crate::parallel::{beside, on_all_processors};
use crate::problem::{Location, Problem, Problems};
use crate::text;
use ahash::RandomState;
use blocks::{BLOCK, FileBlocks};
use objects::{AddressType, Endpoints, Object};
use std::collections::{BTreeMap, HashMap};
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use typed::{AsTyped, Typed};

/// The objects of a cluster that kube-proxy reads. See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Services.
    pub services: Vec<Service>,
    /// EndpointSlices, those made of Endpoints objects included.
    pub endpoint_slices: Vec<EndpointSlice>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Objects of kinds that kube-proxy does not read.
    skipped: BTreeMap<String, usize>,
    /// Whether Endpoints objects were among them, which serve where a Service has no slice.
    pub has_endpoints_objects: bool,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Objects are wrong.
    #[error(transparent)]
    Invalid(#[from] Problems),
    /// There is nothing that kube-proxy would read.
    #[error(
        "{0}: no Service, EndpointSlice, Endpoints or Node in it; `kubectl get svc,endpointslices,nodes -A -o yaml` prints what is needed"
    )]
    Empty(String),
}

/// What the files with the objects hold, and what tells it from what they hold at another time.
#[derive(Debug)]
pub struct Contents {
    /// The objects.
    pub snapshot: Result<Snapshot, SnapshotError>,
    /// See [`digest`].
    pub digest: u64,
}

impl Contents {
    /// Reads a file, or all `.yaml`, `.yml` and `.json` files of a folder (KubeProxyConfiguration documents are
    /// skipped).
    ///
    /// # Errors
    /// [`SnapshotError::Unreadable`].
    pub fn read(path: &Path, digests: &RandomState) -> Result<Self, SnapshotError> {
        // Processors read parts of large files, and others as a whole.
        let is_large = |file: &PathBuf| file.metadata().is_ok_and(|file| is_large(&file));
        let (large, small): (Vec<_>, Vec<_>) = files(path)?.into_iter().partition(is_large);
        let read = |file: &PathBuf| {
            let (found, digest) = Found::in_file(file, digests).map_err(unreadable(file))?;
            Ok((file.clone(), found, digest))
        };
        let mut read_files: Vec<Result<_, SnapshotError>> = large.iter().map(read).collect();
        read_files.extend(on_all_processors(&small, 1, read));
        let (mut reader, mut of_files) = (Reader::default(), BTreeMap::new());
        for read in read_files {
            let (file, found, digest) = read?;
            reader.add(found);
            of_files.insert(file, digest);
        }
        Ok(Self {
            snapshot: reader.finish(&path.display().to_string()),
            digest: digests.hash_one(of_files),
        })
    }
}

/// Checks that what is there can be read again: a pipe keeps who opens it waiting until somebody writes.
///
/// # Errors
/// [`SnapshotError::Unreadable`].
pub fn require_files(path: &Path) -> Result<(), SnapshotError> {
    let metadata = path.metadata().map_err(unreadable(path))?;
    if metadata.is_file() || metadata.is_dir() {
        return Ok(());
    }
    let message =
        "is neither a file nor a folder any more, so it cannot be followed; put one in its place";
    Err(unreadable(path)(io::Error::other(message)))
}

/// Whether it is worth to be read by several processors.
fn is_large(file: &Metadata) -> bool {
    file.len() > BLOCK as u64
}

/// A digest of the files that [`Contents::read`] reads, of their names and their texts, by the key of `digests`.
///
/// # Errors
/// [`SnapshotError::Unreadable`].
pub fn digest(path: &Path, digests: &RandomState) -> Result<u64, SnapshotError> {
    let files = files(path)?;
    let of_file = |file: PathBuf| -> Result<_, SnapshotError> {
        let digest = blocks::digest_of_file(&file, digests).map_err(unreadable(&file))?;
        Ok((file, digest))
    };
    let of_files: BTreeMap<_, u64> = files
        .into_iter()
        .map(of_file)
        .collect::<Result<_, SnapshotError>>()?;
    Ok(digests.hash_one(of_files))
}

impl Snapshot {
    /// Reads a file or a folder, as [`Contents::read`].
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn read(path: &Path) -> Result<Self, SnapshotError> {
        Contents::read(path, &RandomState::new())?.snapshot
    }

    /// Reads `text`; `name` stands for it in messages.
    pub fn parse(name: &str, text: &str) -> Result<Self, SnapshotError> {
        let mut reader = Reader::default();
        reader.add(Found::read(name, text));
        reader.finish(name)
    }

    /// Says of the objects that `read` has, too, that they were read where it says.
    pub fn locate_in(&mut self, read: &Self) {
        fn locate<T: Object>(objects: &mut [T], read: &[T]) {
            let read: HashMap<_, _> = read
                .iter()
                .map(Object::metadata)
                .map(|of| ((&of.namespace, &of.name), &of.location))
                .collect();
            for object in objects {
                let metadata = object.metadata_mut();
                if let Some(location) = read.get(&(&metadata.namespace, &metadata.name)) {
                    metadata.location = (*location).clone();
                }
            }
        }
        locate(&mut self.services, &read.services);
        locate(&mut self.endpoint_slices, &read.endpoint_slices);
        locate(&mut self.nodes, &read.nodes);
    }

    /// What was skipped or is odd, for people to read. It takes a look at every object.
    pub fn notes(&self) -> Vec<String> {
        let skipped = self.skipped.iter().map(|(kind, count)| {
            format!("{count} {kind} skipped: kube-proxy does not read that kind")
        });
        let odd = notes::all(self);
        skipped.chain(odd.iter().map(Problem::to_string)).collect()
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.metadata.name == name)
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, SnapshotError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(unreadable(path))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(unreadable(path))?.path();
        if file.is_file() && holds_objects(&file) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a file of a folder is read, by its name.
pub(crate) fn holds_objects(file: &Path) -> bool {
    let extension = file.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Unreadable { path, source }
}

/// Collects objects and problems over several texts.
#[derive(Default)]
struct Reader {
    services: Vec<Vec<Service>>,
    endpoint_slices: Vec<Vec<EndpointSlice>>,
    endpoints: Vec<Endpoints>,
    nodes: Vec<Node>,
    skipped: BTreeMap<String, usize>,
    problems: Vec<Problem>,
}

/// What is in a text or a part of it, and what is wrong there.
#[derive(Default)]
struct Found {
    services: Vec<Service>,
    endpoint_slices: Vec<EndpointSlice>,
    endpoints: Vec<Endpoints>,
    nodes: Vec<Node>,
    skipped: Vec<String>,
    problems: Vec<Problem>,
}

impl Extend<Result<Typed, Vec<Problem>>> for Found {
    fn extend<I: IntoIterator<Item = Result<Typed, Vec<Problem>>>>(&mut self, objects: I) {
        for object in objects {
            match object {
                Ok(Typed::Service(service)) => self.services.push(service),
                Ok(Typed::EndpointSlice(slice)) => self.endpoint_slices.push(slice),
                Ok(Typed::Endpoints(endpoints)) => self.endpoints.push(endpoints),
                Ok(Typed::Node(node)) => self.nodes.push(node),
                Ok(Typed::Skipped(kind)) => self.skipped.push(kind),
                Err(problems) => self.problems.extend(problems),
            }
        }
    }
}

impl Found {
    /// In parts, with the digest of the text.
    fn in_file(file: &Path, digests: &RandomState) -> io::Result<(Vec<Self>, u64)> {
        let name = file.display().to_string();
        let metadata = file.metadata()?;
        // What is no file can be read once only.
        if metadata.is_file() && is_large(&metadata) {
            let mut blocks = FileBlocks::open(file, digests)?;
            if let Some(parts) = document::read_list(&name, &mut blocks, AsTyped)
                && parts.iter().all(|part| part.problems.is_empty())
            {
                return Ok((parts, blocks.digest()));
            }
        }
        let text = text::read(file)?;
        let digest = blocks::digest(&text, digests);
        Ok((Self::read(&name, &text), digest))
    }

    /// In parts, the last of which has what is wrong in any.
    fn read(file: &str, text: &str) -> Vec<Self> {
        let (mut parts, mut problems) = document::read(file, text, AsTyped);
        problems.extend(parts.iter_mut().flat_map(|part| part.problems.drain(..)));
        lines::refine(&mut problems, text);
        parts.push(Self {
            problems,
            ..Self::default()
        });
        parts
    }

    /// Its slices, unless there is anything else.
    fn only_slices(mut self) -> Option<Vec<EndpointSlice>> {
        let slices = std::mem::take(&mut self.endpoint_slices);
        self.is_empty().then_some(slices)
    }

    fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.endpoint_slices.is_empty()
            && self.endpoints.is_empty()
            && self.nodes.is_empty()
            && self.skipped.is_empty()
            && self.problems.is_empty()
    }
}

impl Reader {
    fn add(&mut self, parts: Vec<Found>) {
        for part in parts {
            self.services.push(part.services);
            self.endpoint_slices.push(part.endpoint_slices);
            self.endpoints.extend(part.endpoints);
            self.nodes.extend(part.nodes);
            for kind in part.skipped {
                *self.skipped.entry(kind).or_default() += 1;
            }
            self.problems.extend(part.problems);
        }
    }

    fn finish(mut self, name: &str) -> Result<Snapshot, SnapshotError> {
        let problems = &mut self.problems;
        let (of_slices, of_services) = (self.endpoint_slices, self.services);
        let (slices, services) = if of_slices.len() < MANY_PARTS {
            (joined(of_slices), joined(of_services))
        } else {
            beside(|| joined(of_slices), || joined(of_services))
        };
        let mut snapshot = Snapshot {
            services: services.objects(problems),
            endpoint_slices: slices.objects(problems),
            nodes: joined(vec![self.nodes]).objects(problems),
            skipped: self.skipped,
            has_endpoints_objects: !self.endpoints.is_empty(),
        };
        let endpoints = joined(vec![self.endpoints]).objects(problems);
        endpoints_object::convert(endpoints, &mut snapshot.endpoint_slices);
        if !problems.is_empty() {
            self.problems.sort();
            return Err(Problems(self.problems).into());
        }
        if snapshot.services.is_empty()
            && snapshot.endpoint_slices.is_empty()
            && snapshot.nodes.is_empty()
        {
            return Err(SnapshotError::Empty(name.to_owned()));
        }
        Ok(snapshot)
    }
}

/// So many parts are worth a thread: a millisecond's work.
const MANY_PARTS: usize = 32;

/// Objects in order, and those that are twice among them.
struct Joined<T> {
    objects: Vec<T>,
    twice: Vec<Problem>,
}

impl<T> Joined<T> {
    /// The objects; those that are twice become problems.
    fn objects(self, problems: &mut Vec<Problem>) -> Vec<T> {
        problems.extend(self.twice);
        self.objects
    }
}

fn joined<T: Object>(parts: Vec<Vec<T>>) -> Joined<T> {
    let mut objects = Vec::with_capacity(parts.iter().map(Vec::len).sum());
    for part in parts {
        objects.extend(part);
    }
    let twice = sort(&mut objects);
    Joined { objects, twice }
}

/// Sorts by namespace and name; of two objects of one name the later is a problem.
fn sort<T: Object>(objects: &mut [T]) -> Vec<Problem> {
    fn key<T: Object>(object: &T) -> (&str, &str, &Location) {
        let metadata = object.metadata();
        (&metadata.namespace, &metadata.name, &metadata.location)
    }
    // What the API server lists is sorted, and what several files hold in runs, which this makes use of.
    objects.sort_by(|a, b| key(a).cmp(&key(b)));
    let same = |pair: &[T]| {
        let (a, b) = (pair[0].metadata(), pair[1].metadata());
        a.name == b.name && a.namespace == b.namespace && !a.name.is_empty()
    };
    let twice = objects.windows(2).filter(|pair| same(pair));
    twice
        .map(|pair| Problem {
            location: pair[1].metadata().location.clone(),
            object: Some(pair[1].metadata().object_name(T::KIND)),
            field: "metadata.name".to_owned(),
            message: format!(
                "is here a second time, the first is at {}; remove one of them",
                pair[0].metadata().location
            ),
        })
        .collect()
}

/// Positions of slices by namespace and name of their Service.
pub(crate) type SlicesByService<'s> = HashMap<(&'s str, &'s str), Vec<usize>, RandomState>;

/// Positions of the slices of each Service.
pub(crate) fn slices_by_service(slices: &[EndpointSlice]) -> SlicesByService<'_> {
    let hasher = RandomState::new();
    let mut by_service = SlicesByService::with_capacity_and_hasher(slices.len(), hasher);
    for (position, slice) in slices.iter().enumerate() {
        if let Some(service) = slice.service_name() {
            let key = (slice.metadata.namespace.as_str(), service);
            by_service.entry(key).or_default().push(position);
        }
    }
    by_service
}

#[cfg(test)]
mod tests;
