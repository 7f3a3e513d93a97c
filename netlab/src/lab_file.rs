//! Lab files, and what else can be brought up: plain objects, or a folder of them.
//!
//! A lab file names a snapshot, a kube-proxy configuration, and what pods run:
//!
//! ```yaml
//! snapshot: snapshot.yaml        # beside the lab file
//! config: kube-proxy.yaml
//! pods:
//! - name: default/web-1          # a pod of an EndpointSlice: only what it runs
//!   run: nginx                   # or a command: [python3, -m, http.server, "80"]; absent: the built-in server
//!   files: {html/index.html: hello}
//! - name: default/client         # in no slice: it needs a node
//!   node: node-a
//!   addresses: [10.244.1.100]    # absent: a free one of the node's podCIDRs
//! ```

use crate::plan::Run;
use control::problem::{Location, ObjectName, Problem, Problems, did_you_mean};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// What a lab is made of, on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Name for the lab, unless the user gives another.
    pub name: String,
    /// What was given, in full.
    pub path: PathBuf,
    /// The objects: a file or a folder.
    pub snapshot: PathBuf,
    /// KubeProxyConfiguration file.
    pub config: Option<PathBuf>,
    /// What the lab file says of pods.
    pub pods: Vec<LabPod>,
}

/// A pod of a lab file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it runs; needed for pods that no slice has.
    pub node: Option<String>,
    /// Its addresses; chosen when absent.
    pub addresses: Vec<IpAddr>,
    /// What it runs.
    pub run: Run,
    /// Files for its folder: path and contents.
    pub files: BTreeMap<String, String>,
    /// Where it is written.
    pub location: Location,
}

/// Why there is no lab of that description.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is neither a lab nor a file of that name.
    #[error("{0}")]
    NotFound(String),
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The lab file is wrong.
    #[error(transparent)]
    Invalid(#[from] Problems),
}

/// The labs under `folder`: those that `up NAME` knows.
pub fn known(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let has_file = entries.filter(|entry| entry.path().join("lab.yaml").is_file());
    let mut names: Vec<String> = has_file
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Finds a lab by its name under `labs`, or by the path of a lab file, of objects, or of a folder of either.
pub fn find(labs: &Path, wanted: &str) -> Result<Source, SourceError> {
    let by_name = labs.join(wanted).join("lab.yaml");
    if !wanted.contains('/') && by_name.is_file() {
        return lab_file(&by_name, wanted);
    }
    let path = Path::new(wanted);
    if path.is_dir() {
        return folder(path);
    }
    if !path.exists() {
        let names = known(labs);
        let near = did_you_mean(wanted, names.iter().map(String::as_str));
        let hint = match (near, names.is_empty()) {
            (Some(near), _) => format!("did you mean {near}?"),
            (None, false) => format!("the labs are: {}", names.join(", ")),
            (None, true) => format!("there are no labs in {}", labs.display()),
        };
        let message = format!("{wanted}: there is no lab and no file of that name; {hint}");
        return Err(SourceError::NotFound(message));
    }
    let name = name_of(path.file_stem().unwrap_or(path.as_os_str()));
    if looks_like_lab_file(&read(path)?) {
        lab_file(path, &name)
    } else {
        objects(path, &name, None)
    }
}

/// The pods of a lab file; none when there is no such file.
pub fn pods(path: &Path) -> Result<Vec<LabPod>, SourceError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = read(path)?;
    let reader = Reader {
        file: Arc::from(path.display().to_string()),
        text: &text,
    };
    let (_, _, pods) = reader.lab().map_err(|problem| Problems(vec![problem]))?;
    Ok(pods)
}

/// `lab.yaml`, else `snapshot.yaml` with `kube-proxy.yaml`, else all objects of a folder.
fn folder(path: &Path) -> Result<Source, SourceError> {
    let full = fs::canonicalize(path).map_err(unreadable(path))?;
    let name = name_of(full.file_name().unwrap_or(path.as_os_str()));
    let file = path.join("lab.yaml");
    if file.is_file() {
        return lab_file(&file, &name);
    }
    let config = Some(path.join("kube-proxy.yaml")).filter(|config| config.is_file());
    let snapshot = path.join("snapshot.yaml");
    if snapshot.is_file() {
        objects(&snapshot, &name, config)
    } else {
        objects(path, &name, config)
    }
}

fn objects(path: &Path, name: &str, config: Option<PathBuf>) -> Result<Source, SourceError> {
    let full = |path: &Path| fs::canonicalize(path).map_err(unreadable(path));
    Ok(Source {
        name: name.to_owned(),
        path: full(path)?,
        snapshot: full(path)?,
        config: config.map(|config| full(&config)).transpose()?,
        pods: Vec::new(),
    })
}

/// What Kubernetes objects are not: a mapping without `kind` and `apiVersion`.
fn looks_like_lab_file(text: &str) -> bool {
    let first = |key: &str| text.lines().any(|line| line.starts_with(key));
    !text.trim_start().starts_with('{')
        && !first("kind:")
        && !first("apiVersion:")
        && (first("snapshot:") || first("pods:"))
}

/// Lower-case letters, digits and dashes: what namespaces and folders can be called.
fn name_of(text: &std::ffi::OsStr) -> String {
    const LENGTH: usize = 40;
    let text = text.to_string_lossy().to_lowercase();
    let keep = |letter: char| {
        if letter.is_ascii_alphanumeric() {
            letter
        } else {
            '-'
        }
    };
    let name: String = text.chars().map(keep).take(LENGTH).collect();
    let name = name.trim_matches('-').to_owned();
    if name.is_empty() {
        "lab".to_owned()
    } else {
        name
    }
}

fn read(path: &Path) -> Result<String, SourceError> {
    fs::read_to_string(path).map_err(unreadable(path))
}

fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> SourceError {
    let path = path.to_owned();
    move |source| SourceError::Unreadable { path, source }
}

fn lab_file(path: &Path, name: &str) -> Result<Source, SourceError> {
    let text = read(path)?;
    let reader = Reader {
        file: Arc::from(path.display().to_string()),
        text: &text,
    };
    let (snapshot, config, pods) = reader.lab().map_err(|problem| Problems(vec![problem]))?;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let full = |field: &str, relative: &str| {
        fs::canonicalize(folder.join(relative)).map_err(|error| {
            let message =
                format!("{relative} cannot be read: {error}; name a file beside the lab file");
            Problems(vec![reader.problem(
                reader.line(field, ""),
                None,
                field,
                message,
            )])
        })
    };
    Ok(Source {
        name: name.to_owned(),
        path: fs::canonicalize(path).map_err(unreadable(path))?,
        snapshot: full("snapshot", &snapshot)?,
        config: config.map(|config| full("config", &config)).transpose()?,
        pods,
    })
}

const LAB_FIELDS: [&str; 3] = ["snapshot", "config", "pods"];
const POD_FIELDS: [&str; 5] = ["name", "node", "addresses", "run", "files"];

struct Reader<'a> {
    file: Arc<str>,
    text: &'a str,
}

type Read<T> = Result<T, Problem>;

impl Reader<'_> {
    fn lab(&self) -> Read<(String, Option<String>, Vec<LabPod>)> {
        let value: Value = serde_saphyr::from_str(self.text).map_err(|error| {
            let line = error.location().map_or(1, |at| at.line() as usize);
            self.problem(
                line,
                None,
                "",
                format!("this is not readable as YAML: {}", error.without_snippet()),
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
    fn line(&self, field: &str, value: &str) -> usize {
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

    fn problem(&self, line: usize, object: Option<&str>, field: &str, message: String) -> Problem {
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

    #[test]
    fn names_of_labs_are_plain() {
        assert_eq!(name_of("My Cluster_1".as_ref()), "my-cluster-1");
        assert_eq!(name_of("..".as_ref()), "lab");
    }
}
