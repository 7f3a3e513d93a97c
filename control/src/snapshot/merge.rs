//! Objects put over others, as `kubectl apply` does.

use super::{SnapshotError, document, files, unreadable};
use crate::problem::Problems;
use crate::text;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The objects of `change` over those of `base`: one of the same kind, namespace and name takes the other's place.
/// Both are texts as [`super::Snapshot::parse`] takes them, with the names that stand for them in messages; what
/// comes out is such a text, too.
pub fn merge(base: (&str, &str), change: (&str, &str)) -> Result<String, Problems> {
    let mut objects = BTreeMap::new();
    for (file, text) in [base, change] {
        objects.extend(
            untyped(file, text)?
                .into_iter()
                .map(|value| (key(&value), value)),
        );
    }
    let documents: Vec<String> = objects.values().map(Value::to_string).collect();
    Ok(documents.join("\n---\n"))
}

/// The objects in a file or a folder as they stand there, lists taken apart.
///
/// # Errors
/// [`SnapshotError`].
pub fn objects(path: &Path) -> Result<Vec<Value>, SnapshotError> {
    let mut objects = Vec::new();
    for file in files(path)? {
        let text = text::read(&file).map_err(unreadable(&file))?;
        objects.extend(untyped(&file.display().to_string(), &text)?);
    }
    Ok(objects)
}

/// The objects in a text, each with the kind that the list around it gave it.
fn untyped(file: &str, text: &str) -> Result<Vec<Value>, Problems> {
    let (read, problems) = document::read(file, text, |object: document::RawObject| object);
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let whole = |raw: document::RawObject| {
        let mut value = raw.value;
        if let (Some(kind), Some(fields)) = (raw.list_kind, value.as_object_mut()) {
            let version = super::typed::expected_version(&kind).unwrap_or("v1");
            fields.entry("apiVersion").or_insert_with(|| version.into());
            fields.entry("kind").or_insert(Value::String(kind));
        }
        value
    };
    Ok(read.into_iter().flatten().map(whole).collect())
}

fn key(value: &Value) -> [String; 3] {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let metadata = |field: &str| {
        text(
            value
                .get("metadata")
                .and_then(|metadata| metadata.get(field)),
        )
    };
    let kind = text(value.get("kind")).unwrap_or_default();
    // A node has no namespace, and nothing else that is read is without one.
    let namespace = if kind == "Node" {
        None
    } else {
        metadata("namespace").or_else(|| Some("default".to_owned()))
    };
    [
        kind,
        namespace.unwrap_or_default(),
        metadata("name").unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Snapshot;

    const BASE: &str = "apiVersion: v1\nkind: List\nitems:\n\
        - {apiVersion: v1, kind: Node, metadata: {name: a}}\n\
        - {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}}\n";

    #[test]
    fn objects_of_one_name_are_replaced_and_others_stay() {
        let change = "kind: Service\napiVersion: v1\nmetadata: {name: web, namespace: default}\n\
            spec: {clusterIP: 10.0.0.1, ports: [{port: 8080}]}\n---\n\
            kind: Node\napiVersion: v1\nmetadata: {name: b}\n";
        let merged = merge(("base", BASE), ("change", change)).unwrap();
        let snapshot = Snapshot::parse("merged", &merged).unwrap();
        assert_eq!(snapshot.nodes.len(), 2);
        assert_eq!(snapshot.services.len(), 1);
        assert_eq!(snapshot.services[0].spec.ports[0].port, 8080);
    }

    #[test]
    fn objects_have_the_kind_of_their_list() {
        let list = r#"{"kind": "ServiceList", "apiVersion": "v1", "items": [{"metadata": {"name": "web"}}]}"#;
        let mut found = untyped("a.json", &format!("{list}\n{list}")).unwrap();
        found.extend(untyped("b.yaml", BASE).unwrap());
        let kinds: Vec<&Value> = found.iter().map(|object| &object["kind"]).collect();
        assert_eq!(kinds, ["Service", "Service", "Node", "Service"]);
        assert_eq!(found[0]["apiVersion"], "v1");
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let problems = merge(("base", BASE), ("change.yaml", "kind: [\n")).unwrap_err();
        assert!(
            problems.to_string().starts_with("change.yaml:"),
            "{problems}"
        );
    }
}
