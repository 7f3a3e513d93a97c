//! The text of a lab file. What is wrong is said with line, object, field and remedy.

use super::LabPod;
use crate::plan::Run;
use control::problem::{Location, ObjectName, Problem, did_you_mean};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;

const LAB_FIELDS: [&str; 3] = ["snapshot", "config", "pods"];
const POD_FIELDS: [&str; 5] = ["name", "node", "addresses", "run", "files"];

/// A lab file that is read.
pub(super) struct Reader<'a> {
    pub(super) file: Arc<str>,
    pub(super) text: &'a str,
}

pub(super) type Read<T> = Result<T, Problem>;

impl Reader<'_> {
    /// Snapshot, configuration, pods.
    pub(super) fn lab(&self) -> Read<(String, Option<String>, Vec<LabPod>)> {
        let value: Value = serde_saphyr::from_str(self.text).map_err(|error| {
            let line = error.location().map_or(1, |at| at.line() as usize);
            self.problem(
                line,
                None,
                "",
                format!(
                    "this is not readable as YAML: {}",
                    control::yaml::reason(&error)
                ),
            )
        })?;
        let fields = self.mapping(&value, None, "the lab file")?;
        self.known_fields(fields, &LAB_FIELDS, None, "")?;
        let text = |field: &str| self.optional_text(fields, field, None, field);
        let Some(snapshot) = text("snapshot")? else {
            let message = "is missing; name the file of the cluster's objects";
            return Err(self.problem(1, None, "snapshot", message.to_owned()));
        };
        let mut pods: Vec<LabPod> = Vec::new();
        for (index, value) in self.list(fields, "pods", None, "pods")?.iter().enumerate() {
            let pod = self.pod(value, index)?;
            if pods
                .iter()
                .any(|other| (&other.namespace, &other.name) == (&pod.namespace, &pod.name))
            {
                let name = format!("{}/{}", pod.namespace, pod.name);
                let field = format!("pods[{index}].name");
                let message = "is here a second time; remove one of them".to_owned();
                return Err(self.problem(pod.location.line, Some(&name), &field, message));
            }
            pods.push(pod);
        }
        Ok((snapshot, text("config")?, pods))
    }

    fn pod(&self, value: &Value, index: usize) -> Read<LabPod> {
        let path = |field: &str| format!("pods[{index}].{field}");
        let fields = self.mapping(value, None, &format!("pods[{index}]"))?;
        let full_name = self
            .optional_text(fields, "name", None, &path("name"))?
            .unwrap_or_default();
        let Some((namespace, name)) = full_name
            .split_once('/')
            .filter(|(a, b)| is_name(a) && is_name(b))
        else {
            let message = format!("`{full_name}` is no pod's name; write NAMESPACE/NAME");
            return Err(self.problem(self.line("name", &full_name), None, &path("name"), message));
        };
        let object = Some(full_name.as_str());
        self.known_fields(fields, &POD_FIELDS, object, &format!("pods[{index}]."))?;
        let line = self.line("name", &full_name);
        let mut addresses = Vec::new();
        for value in self.list(fields, "addresses", object, &path("addresses"))? {
            let address = value
                .as_str()
                .and_then(control::snapshot::parse_ip)
                .ok_or_else(|| {
                    let message = format!("{value} is not an IP address");
                    self.problem(line, object, &path("addresses"), message)
                })?;
            addresses.push(address);
        }
        Ok(LabPod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: self.optional_text(fields, "node", object, &path("node"))?,
            addresses,
            run: self.run(fields, object, &path("run"), line)?,
            files: self.files(fields, object, &path("files"), line)?,
            location: Location {
                file: self.file.clone(),
                document: 1,
                line,
            },
        })
    }

    fn run(
        &self,
        pod: &Map<String, Value>,
        object: Option<&str>,
        path: &str,
        line: usize,
    ) -> Read<Run> {
        let words = match pod.get("run") {
            None | Some(Value::Null) => return Ok(Run::BuiltIn),
            Some(Value::String(word)) if word == "nginx" => return Ok(Run::Nginx),
            Some(Value::Array(words)) if !words.is_empty() => words,
            Some(other) => {
                let message = format!(
                    "{other} is nothing to run; write nginx, or a command as a list ([echo, hello])"
                );
                return Err(self.problem(line, object, path, message));
            }
        };
        let word = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let command: Option<Vec<String>> = words.iter().map(word).collect();
        command.map(Run::Command).ok_or_else(|| {
            self.problem(
                line,
                object,
                path,
                "a command is a list of words".to_owned(),
            )
        })
    }

    fn files(
        &self,
        pod: &Map<String, Value>,
        object: Option<&str>,
        path: &str,
        line: usize,
    ) -> Read<BTreeMap<String, String>> {
        let Some(value) = pod.get("files").filter(|value| !value.is_null()) else {
            return Ok(BTreeMap::new());
        };
        let mut files = BTreeMap::new();
        for (name, contents) in self.mapping(value, object, path)? {
            let stays = Path::new(name)
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            let (true, Some(contents), false) = (stays, contents.as_str(), name.is_empty()) else {
                let message = "maps paths inside the pod's folder to text".to_owned();
                return Err(self.problem(line, object, &format!("{path}.{name}"), message));
            };
            files.insert(name.clone(), contents.to_owned());
        }
        Ok(files)
    }

    fn mapping<'a>(
        &self,
        value: &'a Value,
        object: Option<&str>,
        path: &str,
    ) -> Read<&'a Map<String, Value>> {
        value.as_object().ok_or_else(|| {
            self.problem(
                1,
                object,
                path,
                "must be a mapping (`field: value` lines)".to_owned(),
            )
        })
    }

    fn list<'a>(
        &self,
        fields: &'a Map<String, Value>,
        field: &str,
        object: Option<&str>,
        path: &str,
    ) -> Read<&'a [Value]> {
        match fields.get(field) {
            None | Some(Value::Null) => Ok(&[]),
            Some(Value::Array(elements)) => Ok(elements),
            Some(_) => Err(self.problem(
                self.line(field, ""),
                object,
                path,
                "must be a list".to_owned(),
            )),
        }
    }

    fn optional_text(
        &self,
        fields: &Map<String, Value>,
        field: &str,
        object: Option<&str>,
        path: &str,
    ) -> Read<Option<String>> {
        match fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.problem(
                self.line(field, ""),
                object,
                path,
                "must be text".to_owned(),
            )),
        }
    }

    fn known_fields(
        &self,
        fields: &Map<String, Value>,
        known: &[&'static str],
        object: Option<&str>,
        prefix: &str,
    ) -> Read<()> {
        let Some(unknown) = fields.keys().find(|field| !known.contains(&field.as_str())) else {
            return Ok(());
        };
        let hint = did_you_mean(unknown, known.iter().copied()).map_or_else(
            || format!("the fields are: {}", known.join(", ")),
            |near| format!("did you mean {near}?"),
        );
        let message = format!("there is no such field; {hint}");
        Err(self.problem(
            self.line(unknown, ""),
            object,
            &format!("{prefix}{unknown}"),
            message,
        ))
    }

    /// The first line that sets `field` to something that has `value` in it; 1 when there is none.
    pub(super) fn line(&self, field: &str, value: &str) -> usize {
        let sets = |line: &str| {
            let rest = line
                .trim_start_matches([' ', '-', '{', '"'])
                .strip_prefix(field);
            rest.is_some_and(|rest| {
                rest.trim_start_matches('"').starts_with(':') && rest.contains(value)
            })
        };
        self.text
            .lines()
            .position(sets)
            .map_or(1, |index| index + 1)
    }

    pub(super) fn problem(
        &self,
        line: usize,
        object: Option<&str>,
        field: &str,
        message: String,
    ) -> Problem {
        let object = object
            .and_then(|name| name.split_once('/'))
            .map(|(namespace, name)| ObjectName {
                kind: "pod".to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            });
        let location = Location {
            file: self.file.clone(),
            document: 1,
            line,
        };
        Problem {
            location,
            object,
            field: field.to_owned(),
            message,
        }
    }
}

/// What Kubernetes takes for a name, and what cannot lead out of a folder.
fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| letter(byte) || byte == b'-' || byte == b'.')
        && text.bytes().next().is_some_and(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Read<(String, Option<String>, Vec<LabPod>)> {
        Reader {
            file: Arc::from("lab.yaml"),
            text,
        }
        .lab()
    }

    #[test]
    fn a_lab_file_says_what_pods_run() {
        let (snapshot, config, pods) = read(
            "snapshot: s.yaml\nconfig: c.yaml\npods:\n- name: a/b\n  run: nginx\n- name: a/c\n  node: node-a\n  \
             addresses: [10.0.0.1, 'fd00::1']\n  run: [sleep, 60]\n  files: {html/x: hello}\n",
        )
        .unwrap();
        assert_eq!(
            (snapshot.as_str(), config.as_deref()),
            ("s.yaml", Some("c.yaml"))
        );
        assert_eq!((&pods[0].run, pods[0].location.line), (&Run::Nginx, 4));
        assert_eq!(
            pods[1].run,
            Run::Command(vec!["sleep".to_owned(), "60".to_owned()])
        );
        assert_eq!(
            (pods[1].addresses.len(), pods[1].node.as_deref()),
            (2, Some("node-a"))
        );
        assert_eq!(pods[1].files["html/x"], "hello");
    }

    #[test]
    fn what_is_wrong_is_said_with_line_object_field_and_remedy() {
        let cases = [
            (
                "snapshot: s\npodz: []\n",
                "lab.yaml:2: podz: there is no such field; did you mean pods?",
            ),
            (
                "pods: []\n",
                "lab.yaml:1: snapshot: is missing; name the file of the cluster's objects",
            ),
            (
                "snapshot: s\npods:\n- name: a/b\n  rum: nginx\n",
                "lab.yaml:4: pod a/b: pods[0].rum: there is no such field; did you mean run?",
            ),
            (
                "snapshot: s\npods:\n- name: b\n",
                "lab.yaml:3: pods[0].name: `b` is no pod's name; write NAMESPACE/NAME",
            ),
            (
                "snapshot: s\npods:\n- name: a/b\n  run: apache\n",
                "lab.yaml:3: pod a/b: pods[0].run: \"apache\" is nothing to run; write nginx, or a command as \
                 a list ([echo, hello])",
            ),
            (
                "snapshot: s\npods:\n- name: a/b\n  files: {../x: y}\n",
                "lab.yaml:3: pod a/b: pods[0].files.../x: maps paths inside the pod's folder to text",
            ),
            (
                "snapshot: s\npods:\n- {name: a/b}\n- {name: a/b}\n",
                "lab.yaml:3: pod a/b: pods[1].name: is here a second time; remove one of them",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text).unwrap_err().to_string(), expected, "{text}");
        }
        let unreadable = read("snapshot: [\n").unwrap_err().to_string();
        assert!(unreadable.contains("not readable as YAML"), "{unreadable}");
    }
}
