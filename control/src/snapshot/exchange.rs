//! The slices of one file in place of those that it held before: what changes most often, taken without reading
//! everything anew.

use super::{EndpointSlice, Service, Snapshot, Typed, document, typed};
use std::collections::BTreeSet;

/// Namespace and name of a Service.
pub type ServiceKey = (String, String);

/// The slices in `text`; `None` if it holds anything else, or anything wrong.
pub fn slices(file: &str, text: &str) -> Option<Vec<EndpointSlice>> {
    let (objects, problems) = document::read(file, text, typed);
    let slice = |object| match object {
        Ok(Typed::EndpointSlice(slice)) => Some(slice),
        _ => None,
    };
    let mut slices: Vec<EndpointSlice> = objects.into_iter().map(slice).collect::<Option<_>>()?;
    slices.sort_by(|a, b| key(a).cmp(&key(b)));
    let is_unique = slices.windows(2).all(|pair| key(&pair[0]) != key(&pair[1]));
    (problems.is_empty() && is_unique).then_some(slices)
}

impl Snapshot {
    /// Puts `slices`, which are sorted, in place of those that were read from `file`, and gives those back. `None`, and
    /// nothing changed, where that is not all that there is to do: the file held other objects, another file has a
    /// slice of one of the names, or Endpoints objects depend on which Services have slices.
    pub fn exchange_slices(
        &mut self,
        file: &str,
        slices: Vec<EndpointSlice>,
    ) -> Option<Vec<EndpointSlice>> {
        let is_in = |of: &str| of == file;
        let has_others = self.has_endpoints_objects
            || (self.services.iter()).any(|service| is_in(&service.metadata.location.file))
            || (self.nodes.iter()).any(|node| is_in(&node.metadata.location.file));
        let is_taken = |slice: &EndpointSlice| {
            let found = self.find_slice(slice).map(|at| &self.endpoint_slices[at]);
            found.is_ok_and(|other| !is_in(&other.metadata.location.file))
        };
        if has_others || slices.iter().any(is_taken) {
            return None;
        }
        let old = self
            .endpoint_slices
            .extract_if(.., |slice| is_in(&slice.metadata.location.file))
            .collect();
        for slice in slices {
            let (Ok(at) | Err(at)) = self.find_slice(&slice);
            self.endpoint_slices.insert(at, slice);
        }
        Some(old)
    }

    /// These Services with their slices, and one Node: all that it takes to compile them.
    pub fn only(&self, services: &BTreeSet<ServiceKey>, node: &str) -> Self {
        let position = |(namespace, name): &ServiceKey| {
            let of = |service: &Service| {
                let metadata = &service.metadata;
                (metadata.namespace.as_str(), metadata.name.as_str()).cmp(&(namespace, name))
            };
            self.services.binary_search_by(of).ok()
        };
        let is_theirs = |slice: &&EndpointSlice| {
            slice.service_name().is_some_and(|name| {
                let mut keys = services.iter();
                keys.any(|key| key.1 == name && key.0 == slice.metadata.namespace)
            })
        };
        let found = services.iter().filter_map(position);
        Self {
            services: found.map(|at| self.services[at].clone()).collect(),
            endpoint_slices: self
                .endpoint_slices
                .iter()
                .filter(is_theirs)
                .cloned()
                .collect(),
            nodes: self.node(node).cloned().into_iter().collect(),
            ..Self::default()
        }
    }

    fn find_slice(&self, slice: &EndpointSlice) -> Result<usize, usize> {
        self.endpoint_slices
            .binary_search_by(|other| key(other).cmp(&key(slice)))
    }
}

fn key(slice: &EndpointSlice) -> (&str, &str) {
    (&slice.metadata.namespace, &slice.metadata.name)
}

#[cfg(test)]
mod tests {
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
    fn before() -> Snapshot {
        let mut reader = super::super::Reader::default();
        reader.add("others.yaml", OTHERS);
        reader.add(
            "b.yaml",
            &(slice("web-b", "10.0.0.2") + &slice("web-d", "10.0.0.4")),
        );
        reader.add("c.yaml", &slice("web-c", "10.0.0.3"));
        reader.finish("x").unwrap()
    }

    fn names(snapshot: &Snapshot) -> Vec<&str> {
        let slices = snapshot.endpoint_slices.iter();
        slices.map(|slice| slice.metadata.name.as_str()).collect()
    }

    #[test]
    fn slices_of_a_file_take_the_place_of_those_before() {
        let mut snapshot = before();
        let text = slice("web-e", "10.0.0.5") + &slice("web-a", "10.0.0.1");
        let new = slices("b.yaml", &text).unwrap();
        let old = snapshot.exchange_slices("b.yaml", new).unwrap();
        assert_eq!(names(&snapshot), ["web-a", "web-c", "web-e"]);
        assert_eq!(old.len(), 2);
        // There and back again.
        snapshot.exchange_slices("b.yaml", old).unwrap();
        assert_eq!(snapshot, before());
        // A file that is gone holds nothing.
        snapshot.exchange_slices("c.yaml", slices("c.yaml", "").unwrap());
        assert_eq!(names(&snapshot), ["web-b", "web-d"]);
    }

    #[test]
    fn what_is_more_than_slices_of_one_file_is_declined() {
        assert_eq!(slices("b.yaml", OTHERS), None);
        let twice = slice("web-b", "10.0.0.1") + &slice("web-b", "10.0.0.2");
        assert_eq!(slices("b.yaml", &twice), None);
        assert_eq!(slices("b.yaml", &slice("web-b", "nowhere")), None);
        let mut snapshot = before();
        let mut declines = |file: &str, name: &str| {
            let new = slices(file, &slice(name, "10.0.0.9")).unwrap();
            snapshot.exchange_slices(file, new).is_none() && snapshot == before()
        };
        assert!(declines("others.yaml", "web-x"));
        assert!(declines("b.yaml", "web-c"));
        snapshot.has_endpoints_objects = true;
        let new = slices("b.yaml", &slice("web-b", "10.0.0.9")).unwrap();
        assert_eq!(snapshot.exchange_slices("b.yaml", new), None);
    }

    #[test]
    fn a_part_has_the_services_their_slices_and_one_node() {
        let snapshot = before();
        let web = BTreeSet::from([("default".to_owned(), "web".to_owned())]);
        let part = snapshot.only(&web, "node-a");
        assert_eq!(part.services, snapshot.services);
        assert_eq!(part.endpoint_slices, snapshot.endpoint_slices);
        let other = BTreeSet::from([("other".to_owned(), "web".to_owned())]);
        let part = snapshot.only(&other, "node-a");
        assert!(part.services.is_empty() && part.endpoint_slices.is_empty());
    }
}
