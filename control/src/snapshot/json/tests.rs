use super::super::Snapshot;
use super::super::document::{self, RawObject};
use serde_json::{Value, json};

/// A Service whose port has this name, by which it is told apart.
fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "demo"},
           "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": name, "port": 80}]}})
}

fn list(items: &[Value]) -> Value {
    json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}})
}

/// As a printer indents it, by so many blanks.
fn indented(value: &Value, by: usize) -> String {
    let mut text = Vec::new();
    let indent = " ".repeat(by);
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(value, &mut serializer).unwrap();
    String::from_utf8(text).unwrap()
}

/// Name and line of each object.
fn objects(text: &str) -> Vec<(String, usize)> {
    let (objects, problems) = document::read("x.json", text, |object: RawObject| {
        let name = object.value["metadata"]["name"].as_str().unwrap();
        assert_eq!(object.value, service(name));
        (name.to_owned(), object.location.line)
    });
    assert_eq!(problems, [], "{text}");
    objects.concat()
}

fn named(names: &[&str], lines: &[usize]) -> Vec<(String, usize)> {
    let names = names.iter().map(|name| (*name).to_owned());
    names.zip(lines.iter().copied()).collect()
}

fn message(text: &str) -> String {
    Snapshot::parse("x.json", text).unwrap_err().to_string()
}

#[test]
fn lists_are_read_in_any_form() {
    let two = list(&[service("a"), service("b")]);
    for (text, lines) in [
        (two.to_string(), [1, 1]),
        (indented(&two, 4), [4, 21]),
        (indented(&two, 2), [4, 21]),
        (indented(&two, 0), [4, 21]),
        (indented(&two, 4).replace('\n', "\r\n"), [4, 21]),
        (format!("\u{feff}{}", indented(&two, 4)), [4, 21]),
        (
            indented(&two, 4).replace("[\n        {", "[\n\n        {"),
            [5, 22],
        ),
        (format!("# a comment\n---\n{}", indented(&two, 4)), [6, 23]),
    ] {
        assert_eq!(objects(&text), named(&["a", "b"], &lines), "{text}");
    }
    assert_eq!(objects(&indented(&list(&[]), 4)), []);
    assert_eq!(objects(r#"{"kind": "List", "items": null}"#), []);
}

#[test]
fn documents_follow_one_another() {
    let (a, b) = (service("a"), service("b"));
    let lists = format!(
        "{}\n{}\n",
        indented(&list(std::slice::from_ref(&a)), 4),
        indented(&list(std::slice::from_ref(&b)), 4)
    );
    for (text, lines) in [
        (format!("{a}\n{b}\n"), [1, 2]),
        (format!("{a}{b}"), [1, 1]),
        (format!("{a}\n---\n{b}\n"), [1, 3]),
        (
            format!(
                "{}\n---\n{b}\n",
                indented(&list(std::slice::from_ref(&a)), 4)
            ),
            [4, 28],
        ),
        (
            format!("{}\n{}\n", indented(&a, 2), indented(&b, 2)),
            [1, 18],
        ),
        (lists, [4, 30]),
    ] {
        assert_eq!(objects(&text), named(&["a", "b"], &lines), "{text}");
    }
}

/// Pieces begin and end where a nested list has the indentation of the items: it is read from its beginning.
#[test]
fn what_only_looks_like_items_is_none() {
    let odd = r#"{
  "kind": "List",
  "items": [
    {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "demo"},
     "spec": {"clusterIP": "10.96.0.10", "ports": [
    {
      "name": "a", "port": 80
    },
    {
      "name": "b", "port": 81
    }
  ]}}]
}"#;
    let snapshot = Snapshot::parse("x.json", odd).unwrap();
    assert_eq!(snapshot.services[0].spec.ports.len(), 2);

    // A list within an object that has none itself.
    let nested = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"items": [service("a"), service("b")]}});
    let text = format!("{}\n{}", indented(&nested, 2), service("c"));
    let snapshot = Snapshot::parse("x.json", &text).unwrap();
    assert_eq!(snapshot.services.len(), 1);
    assert_eq!(snapshot.services[0].metadata.name, "c");
}

#[test]
fn a_large_list_in_pieces_is_the_same_as_in_one() {
    let many: Vec<Value> = (0..500)
        .map(|number| service(&format!("s-{number:03}")))
        .collect();
    let names: Vec<String> = (0..500).map(|number| format!("s-{number:03}")).collect();
    let text = indented(&list(&many), 4);
    let found = objects(&text);
    assert!(found.iter().map(|object| &object.0).eq(&names));
    let lines: Vec<&str> = text.lines().collect();
    for (name, line) in &found {
        let (begins, named) = (lines[line - 1], lines[line + 3]);
        assert_eq!(begins, "        {", "{name}");
        assert!(
            named.ends_with(&format!("\"name\": \"{name}\",")),
            "{named}"
        );
    }
    let in_one: Vec<String> = objects(&list(&many).to_string())
        .into_iter()
        .map(|object| object.0)
        .collect();
    assert_eq!(in_one, names);
}

#[test]
fn what_cannot_be_read_says_where_and_why() {
    let two = indented(&list(&[service("a"), service("b")]), 4);
    let cut_off = two.split_at(two.rfind("\"port\"").unwrap()).0;
    let lines = cut_off.lines().count();
    for (text, expected) in [
        (
            cut_off.to_owned(),
            format!("x.json:{lines}: this is not readable as JSON: EOF while parsing"),
        ),
        (
            two.replacen("\"name\": \"b\",", "\"name\": \"b\", \"name\": \"b\",", 1),
            "x.json:25: this is not readable as JSON: `name` stands twice".to_owned(),
        ),
        (
            two.replace(
                "\"kind\": \"List\"",
                "\"kind\": \"List\", \"kind\": \"List\"",
            ),
            "this is not readable as JSON: `kind` stands twice".to_owned(),
        ),
        (
            two.replacen("80", "1e999", 1),
            "x.json:16: this is not readable as JSON: number out of range".to_owned(),
        ),
        (
            two.replacen("80", "080", 1),
            "x.json:16: this is not readable as JSON: invalid number".to_owned(),
        ),
        (
            format!("{two}\n}}"),
            "x.json:44: this is not readable as JSON".to_owned(),
        ),
        (
            two.replacen("80", "\"80\"", 1),
            "x.json:16: Service demo/a: spec.ports[0].port: invalid type: string \"80\"".to_owned(),
        ),
        (
            two.replace("\"port\": 80", "\"port\": 70000"),
            "x.json:33: Service demo/b: spec.ports[0].port: 70000 is not a port".to_owned(),
        ),
        (
            format!(
                "{}\n{}",
                service("a"),
                indented(&service("b"), 4).replace("80", "0")
            ),
            "x.json:14: Service demo/b: spec.ports[0].port: 0 is not a port".to_owned(),
        ),
        (
            format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200)),
            "x.json:1: this is not readable as JSON: recursion limit exceeded".to_owned(),
        ),
        (
            "{".to_owned(),
            "x.json:1: this is not readable as JSON: EOF".to_owned(),
        ),
        (
            "{\"kind\": \"List\", \"items\": [7]}".to_owned(),
            "x.json:1: kind: is missing".to_owned(),
        ),
        (
            "{kind: List, items: [".to_owned(),
            "x.json:1: this is not readable as YAML: ".to_owned(),
        ),
    ] {
        let said = message(&text);
        assert!(
            said.contains(&expected),
            "expected: {expected}\n     got: {said}\n{text}"
        );
    }
}

#[test]
fn null_is_absent() {
    let text = service("a").to_string();
    let text = text.replace(
        "\"port\":80",
        "\"port\":80,\"nodePort\":null,\"protocol\":null",
    );
    let text = text.replace(
        "\"clusterIP\"",
        "\"externalIPs\":null,\"selector\":null,\"clusterIP\"",
    );
    let with_nulls = Snapshot::parse("x.json", &text).unwrap();
    let without = Snapshot::parse("x.json", &service("a").to_string()).unwrap();
    assert_eq!(with_nulls, without);
}
