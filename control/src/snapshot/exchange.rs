//! The slices of one file in place of those that it held before: what changes most often, taken without reading
//! everything anew.

use super::typed::AsTyped;
use super::{EndpointSlice, Service, Snapshot, document};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Namespace and name of a Service.
pub type ServiceKey = (String, String);

/// The slices in `text`; `None` if it holds anything else, or anything wrong.
pub fn slices(file: &str, text: &str) -> Option<Vec<EndpointSlice>> {
    let (parts, problems) = document::read(file, text, AsTyped);
    let mut slices = Vec::new();
    for part in parts {
        slices.extend(part.only_slices()?);
    }
    slices.sort_by(|a, b| key(a).cmp(&key(b)));
    let is_unique = slices.windows(2).all(|pair| key(&pair[0]) != key(&pair[1]));
    (problems.is_empty() && is_unique).then_some(slices)
}

/// A snapshot whose slices are exchanged, file by file: while they keep their names, in a time that does not grow with what
/// the others hold.
#[derive(Clone, Debug, Default)]
pub struct Followed {
    snapshot: Snapshot,
    /// Found when first needed, and again after slices came or went.
    places: Option<Places>,
}

/// Where in a snapshot things are.
#[derive(Clone, Debug)]
struct Places {
    /// Files that hold objects of other kinds.
    files_of_others: HashSet<Arc<str>>,
    /// Positions of the slices of each file, ascending.
    by_file: HashMap<Arc<str>, Vec<usize>>,
    /// Hash of each slice's Service and position of the slice, ascending.
    by_service: Vec<(u64, usize)>,
    hash: RandomState,
}

impl Followed {
    /// Begins with `snapshot`.
    pub const fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            places: None,
        }
    }

    /// What it is now.
    pub const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Does beforehand what the next exchange would begin with.
    pub fn prepare(&mut self) {
        self.places();
    }

    fn places(&mut self) -> &Places {
        let snapshot = &self.snapshot;
        self.places.get_or_insert_with(|| Places::of(snapshot))
    }

    /// Puts `slices`, which are sorted, in place of those that were read from `file`, and gives those back. `None`, and
    /// nothing changed, where that is not all that there is to do: the file held other objects, another file has a
    /// slice of one of the names, or Endpoints objects depend on which Services have slices.
    pub fn exchange_slices(
        &mut self,
        file: &str,
        slices: Vec<EndpointSlice>,
    ) -> Option<Vec<EndpointSlice>> {
        let places = self.places();
        let has_others = places.files_of_others.contains(file);
        let positions = places.by_file.get(file).cloned().unwrap_or_default();
        let is_taken = |slice: &EndpointSlice| {
            let found = self.snapshot.find_slice(slice);
            found.is_ok_and(|at| positions.binary_search(&at).is_err())
        };
        if self.snapshot.has_endpoints_objects || has_others || slices.iter().any(is_taken) {
            return None;
        }
        let stands = |(at, slice): (&usize, &EndpointSlice)| {
            let old = &self.snapshot.endpoint_slices[*at];
            key(old) == key(slice) && old.service_name() == slice.service_name()
        };
        if positions.len() == slices.len() && positions.iter().zip(&slices).all(stands) {
            let exchange = |(at, slice): (&usize, EndpointSlice)| {
                std::mem::replace(&mut self.snapshot.endpoint_slices[*at], slice)
            };
            return Some(positions.iter().zip(slices).map(exchange).collect());
        }
        self.places = None;
        let of_file = |slice: &mut EndpointSlice| &*slice.metadata.location.file == file;
        let all = &mut self.snapshot.endpoint_slices;
        let old = all.extract_if(.., of_file).collect();
        all.extend(slices);
        // Two runs that are sorted already.
        all.sort_by(|a, b| key(a).cmp(&key(b)));
        Some(old)
    }

    /// These Services with their slices, and one Node: all that it takes to compile them.
    pub fn only(&mut self, services: &BTreeSet<ServiceKey>, node: &str) -> Snapshot {
        let mut slices: Vec<usize> = Vec::new();
        for service in services {
            let positions = self.places().of_service(service);
            let is_its = |at: &usize| {
                service_of(&self.snapshot.endpoint_slices[*at]) == Some(key_of(service))
            };
            slices.extend(positions.into_iter().filter(is_its));
        }
        slices.sort_unstable();
        let all = &self.snapshot;
        let found = services
            .iter()
            .filter_map(|service| all.find_service(service));
        Snapshot {
            services: found.map(|at| all.services[at].clone()).collect(),
            endpoint_slices: slices
                .iter()
                .map(|at| all.endpoint_slices[*at].clone())
                .collect(),
            nodes: all.node(node).cloned().into_iter().collect(),
            ..Snapshot::default()
        }
    }
}

impl Places {
    fn of(snapshot: &Snapshot) -> Self {
        let services = snapshot.services.iter().map(|service| &service.metadata);
        let nodes = snapshot.nodes.iter().map(|node| &node.metadata);
        let mut files: Vec<&Arc<str>> = services
            .chain(nodes)
            .map(|metadata| &metadata.location.file)
            .collect();
        files.dedup_by(|a, b| is_same(a, b));
        let files_of_others = files.into_iter().map(Arc::clone).collect();
        let mut places = Self {
            files_of_others,
            by_file: HashMap::new(),
            by_service: Vec::with_capacity(snapshot.endpoint_slices.len()),
            hash: RandomState::new(),
        };
        let mut first = 0;
        let are_of_one = |a: &EndpointSlice, b: &EndpointSlice| is_same(file_of(a), file_of(b));
        for slices in snapshot.endpoint_slices.chunk_by(are_of_one) {
            let file = Arc::clone(file_of(&slices[0]));
            let positions = places.by_file.entry(file).or_default();
            positions.extend(first..first + slices.len());
            first += slices.len();
        }
        for (at, slice) in snapshot.endpoint_slices.iter().enumerate() {
            if let Some(service) = service_of(slice) {
                places.by_service.push((places.hash.hash_one(service), at));
            }
        }
        places.by_service.sort_unstable();
        places
    }

    /// Positions of the slices of a Service, and of any whose hash is the same.
    fn of_service(&self, service: &ServiceKey) -> Vec<usize> {
        let hash = self.hash.hash_one(key_of(service));
        let first = self.by_service.partition_point(|place| place.0 < hash);
        let same = self.by_service[first..]
            .iter()
            .take_while(|place| place.0 == hash);
        same.map(|place| place.1).collect()
    }
}

impl Snapshot {
    fn find_slice(&self, slice: &EndpointSlice) -> Result<usize, usize> {
        self.endpoint_slices
            .binary_search_by(|other| key(other).cmp(&key(slice)))
    }

    fn find_service(&self, service: &ServiceKey) -> Option<usize> {
        let of = |other: &Service| {
            let metadata = &other.metadata;
            (metadata.namespace.as_str(), metadata.name.as_str()).cmp(&key_of(service))
        };
        self.services.binary_search_by(of).ok()
    }
}

/// Where a slice was read.
const fn file_of(slice: &EndpointSlice) -> &Arc<str> {
    &slice.metadata.location.file
}

/// Whether two names of files are one and the same in memory, as those of the objects of one file are.
fn is_same(a: &Arc<str>, b: &Arc<str>) -> bool {
    Arc::ptr_eq(a, b)
}

/// Namespace and name of a slice's Service.
fn service_of(slice: &EndpointSlice) -> Option<(&str, &str)> {
    Some((&slice.metadata.namespace, slice.service_name()?))
}

fn key_of((namespace, name): &ServiceKey) -> (&str, &str) {
    (namespace, name)
}

fn key(slice: &EndpointSlice) -> (&str, &str) {
    (&slice.metadata.namespace, &slice.metadata.name)
}

#[cfg(test)]
mod tests {
    use super::super::Found;
    use super::*;

    fn slice(name: &str, address: &str) -> String {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\n\
             ports: [{{port: 80}}]\nendpoints: [{{addresses: [{address}]}}]\n"
        )
    }

    const OTHERS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
        spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\n\
        apiVersion: v1\nkind: Node\nmetadata: {name: node-a}\n";

    /// A snapshot of three files, and what a file of slices holds now.
    fn before() -> Followed {
        let mut reader = super::super::Reader::default();
        let in_b = slice("web-b", "10.0.0.2") + &slice("web-d", "10.0.0.4");
        reader.add(Found::read("others.yaml", OTHERS));
        reader.add(Found::read("b.yaml", &in_b));
        reader.add(Found::read("c.yaml", &slice("web-c", "10.0.0.3")));
        Followed::new(reader.finish("x").unwrap())
    }

    fn names(followed: &Followed) -> Vec<&str> {
        let slices = followed.snapshot.endpoint_slices.iter();
        slices.map(|slice| slice.metadata.name.as_str()).collect()
    }

    #[test]
    fn slices_of_a_file_take_the_place_of_those_before() {
        let mut followed = before();
        let text = slice("web-e", "10.0.0.5") + &slice("web-a", "10.0.0.1");
        let new = slices("b.yaml", &text).unwrap();
        let old = followed.exchange_slices("b.yaml", new).unwrap();
        assert_eq!(names(&followed), ["web-a", "web-c", "web-e"]);
        assert_eq!(old.len(), 2);
        // There and back again.
        followed.exchange_slices("b.yaml", old).unwrap();
        assert_eq!(followed.snapshot, before().snapshot);
        // A file that is gone holds nothing.
        followed.exchange_slices("c.yaml", slices("c.yaml", "").unwrap());
        assert_eq!(names(&followed), ["web-b", "web-d"]);
    }

    #[test]
    fn what_is_found_after_an_exchange_is_what_is_there() {
        let mut followed = before();
        let addresses = |followed: &mut Followed| {
            let part = followed.only(&web("web"), "node-a");
            let endpoints = part
                .endpoint_slices
                .iter()
                .flat_map(|slice| &slice.endpoints);
            let addresses = endpoints.filter_map(|endpoint| endpoint.address());
            addresses
                .map(|address| address.to_string())
                .collect::<Vec<String>>()
        };
        let mut exchange = |file: &str, text: &str| {
            let new = slices(file, text).unwrap();
            followed.exchange_slices(file, new).unwrap();
            addresses(&mut followed)
        };
        assert_eq!(
            exchange("c.yaml", &slice("web-c", "10.0.0.9")),
            ["10.0.0.2", "10.0.0.9", "10.0.0.4"]
        );
        assert_eq!(
            exchange("c.yaml", &slice("web-a", "10.0.0.1")),
            ["10.0.0.1", "10.0.0.2", "10.0.0.4"]
        );
        assert_eq!(exchange("b.yaml", ""), ["10.0.0.1"]);
        let of_other =
            slice("web-a", "10.0.0.1").replace("service-name: web", "service-name: other");
        assert!(exchange("c.yaml", &of_other).is_empty());
        assert_eq!(
            exchange("new.yaml", &slice("web-n", "10.0.0.7")),
            ["10.0.0.7"]
        );
    }

    fn web(name: &str) -> BTreeSet<ServiceKey> {
        BTreeSet::from([("default".to_owned(), name.to_owned())])
    }

    #[test]
    fn what_is_more_than_slices_of_one_file_is_declined() {
        assert_eq!(slices("b.yaml", OTHERS), None);
        let twice = slice("web-b", "10.0.0.1") + &slice("web-b", "10.0.0.2");
        assert_eq!(slices("b.yaml", &twice), None);
        assert_eq!(slices("b.yaml", &slice("web-b", "nowhere")), None);
        let mut followed = before();
        let mut declines = |file: &str, name: &str| {
            let new = slices(file, &slice(name, "10.0.0.9")).unwrap();
            let declined = followed.exchange_slices(file, new).is_none();
            declined && followed.snapshot == before().snapshot
        };
        assert!(declines("others.yaml", "web-x"));
        assert!(declines("b.yaml", "web-c"));
        assert!(declines("new.yaml", "web-c"));
        followed.snapshot.has_endpoints_objects = true;
        let new = slices("b.yaml", &slice("web-b", "10.0.0.9")).unwrap();
        assert_eq!(followed.exchange_slices("b.yaml", new), None);
    }

    #[test]
    fn a_part_has_the_services_their_slices_and_one_node() {
        let mut followed = before();
        let part = followed.only(&web("web"), "node-a");
        assert_eq!(part.services, followed.snapshot.services);
        assert_eq!(part.endpoint_slices, followed.snapshot.endpoint_slices);
        let other = BTreeSet::from([("other".to_owned(), "web".to_owned())]);
        let part = followed.only(&other, "node-a");
        assert!(part.services.is_empty() && part.endpoint_slices.is_empty());
    }
}
