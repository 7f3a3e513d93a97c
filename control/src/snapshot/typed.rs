//! Untyped objects to those that kube-proxy reads, by their kind.

use super::Found;
use super::direct;
use super::document::{Decode, RawObject};
use super::objects::{EndpointSlice, Endpoints, Node, Object, Service};
use crate::problem::{Location, ObjectName, Problem, did_you_mean};
use crate::strict::{self, Strict};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The kinds that are read.
const KINDS: [&str; 4] = ["Service", "EndpointSlice", "Endpoints", "Node"];

/// An object of a kind that is read, or another's kind.
#[derive(Debug, PartialEq)]
pub(super) enum Typed {
    Service(Service),
    EndpointSlice(EndpointSlice),
    Endpoints(Endpoints),
    Node(Node),
    Skipped(String),
}

/// Makes typed objects, or says what is wrong with them.
pub(super) struct AsTyped;

impl Decode for AsTyped {
    type Object = Result<Typed, Vec<Problem>>;
    type Objects = Found;

    fn decode(&self, object: RawObject) -> Self::Object {
        typed(object)
    }

    fn decode_json(&self, text: &str, location: &Location) -> Option<Self::Object> {
        direct::typed(text, location).map(Ok)
    }
}

/// What `raw` is, or what is wrong with it.
pub(super) fn typed(raw: RawObject) -> Result<Typed, Vec<Problem>> {
    let kind = kind_of(&raw).map_err(|problem| vec![problem])?;
    Ok(match kind.as_str() {
        "Service" => Typed::Service(decode(raw)?),
        "EndpointSlice" => Typed::EndpointSlice(decode(raw)?),
        "Endpoints" => Typed::Endpoints(decode(raw)?),
        "Node" => Typed::Node(decode(raw)?),
        _ => Typed::Skipped(kind),
    })
}

/// `group/Kind` of kinds that are skipped, the bare kind of those that are read.
fn kind_of(raw: &RawObject) -> Result<String, Problem> {
    let text = |field: &str| raw.value.get(field).and_then(Value::as_str);
    let Some(kind) = text("kind").or(raw.list_kind.as_deref()) else {
        return Err(problem(
            raw,
            None,
            "kind",
            "is missing; every Kubernetes object has one",
        ));
    };
    let version = match (text("apiVersion"), &raw.list_kind) {
        (Some(version), _) => version,
        (None, Some(_)) => expected_version(kind).unwrap_or("v1"),
        (None, None) => {
            return Err(problem(
                raw,
                Some(kind),
                "apiVersion",
                "is missing; every Kubernetes object has one",
            ));
        }
    };
    if expected_version(kind) == Some(version) {
        return Ok(kind.to_owned());
    }
    if version == "discovery.k8s.io/v1beta1" {
        let message = "discovery.k8s.io/v1beta1 is no longer served; write discovery.k8s.io/v1";
        return Err(problem(raw, Some(kind), "apiVersion", message));
    }
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    // Groups of others have a dot in their name, and may have a kind of the same name.
    let is_built_in = !group.contains('.') || group == "discovery.k8s.io";
    if is_built_in && let Some(expected) = expected_version(kind) {
        let message =
            format!("{kind} is in {expected}, not in {version}; write `apiVersion: {expected}`");
        return Err(problem(raw, Some(kind), "apiVersion", &message));
    }
    if is_list(kind) && raw.value.get("items").is_some() {
        let message = "is a list within a list; put its items into the one around it";
        return Err(problem(raw, Some(kind), "kind", message));
    }
    if (version == "v1" || version == "discovery.k8s.io/v1")
        && kind != "Endpoint"
        && let Some(likely) = misspelt(kind)
    {
        let message = format!("there is no kind {kind} in {version}; did you mean {likely}?");
        return Err(problem(raw, Some(kind), "kind", &message));
    }
    Ok(format!("{kind} ({version})"))
}

/// The apiVersion of a kind that is read.
pub(super) fn expected_version(kind: &str) -> Option<&'static str> {
    match kind {
        "Service" | "Endpoints" | "Node" => Some("v1"),
        "EndpointSlice" => Some("discovery.k8s.io/v1"),
        _ => None,
    }
}

/// Whether objects of a kind are lists that may have something in them to read.
fn is_list(kind: &str) -> bool {
    kind.strip_suffix("List")
        .is_some_and(|items| items.is_empty() || KINDS.contains(&items))
}

/// A kind that differs from one of ours by little, and is none of the core kinds that look alike.
fn misspelt(kind: &str) -> Option<&'static str> {
    if matches!(kind, "ServiceAccount" | "Secret") {
        return None;
    }
    did_you_mean(kind, KINDS)
}

fn problem(raw: &RawObject, kind: Option<&str>, field: &str, message: &str) -> Problem {
    let metadata = |field: &str| {
        let value = raw
            .value
            .get("metadata")
            .and_then(|metadata| metadata.get(field));
        value.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    Problem {
        location: raw.location.clone(),
        object: kind.map(|kind| ObjectName {
            kind: kind.to_owned(),
            namespace: match metadata("namespace") {
                namespace if namespace.is_empty() && kind != "Node" => "default".to_owned(),
                namespace => namespace,
            },
            name: metadata("name"),
        }),
        field: field.to_owned(),
        message: message.to_owned(),
    }
}

/// Typed, with its place and namespace filled in.
fn decode<T: Object + DeserializeOwned>(raw: RawObject) -> Result<T, Vec<Problem>> {
    let object = T::deserialize(Strict(&raw.value)).map_err(|_| vec![undecodable::<T>(&raw)])?;
    let broken = object.broken();
    if !broken.is_empty() {
        let of_object =
            |(field, message): (String, String)| problem(&raw, Some(T::KIND), &field, &message);
        return Err(broken.into_iter().map(of_object).collect());
    }
    Ok(placed(object, raw.location))
}

/// With its place, and its namespace where it does not say.
pub(super) fn placed<T: Object>(mut object: T, location: Location) -> T {
    let metadata = object.metadata_mut();
    metadata.location = location;
    if T::NAMESPACED && metadata.namespace.is_empty() {
        "default".clone_into(&mut metadata.namespace);
    }
    object
}

/// Decodes again, with the path of the field that is wrong.
fn undecodable<T: Object + DeserializeOwned>(raw: &RawObject) -> Problem {
    match serde_path_to_error::deserialize::<_, T>(Strict(&raw.value)) {
        Err(error) => {
            let path = error.path().to_string();
            let field = if path == "." { "" } else { &path };
            let message = strict::reason(error.inner());
            problem(raw, Some(T::KIND), field, &message)
        }
        Ok(_) => problem(raw, Some(T::KIND), "", "cannot be read"),
    }
}
