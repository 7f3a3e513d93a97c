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

mod reader;

use crate::plan::Run;
use control::problem::{Location, Problems, did_you_mean};
use reader::Reader;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
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
    control::text::read(path).map_err(unreadable(path))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_labs_are_plain() {
        assert_eq!(name_of("My Cluster_1".as_ref()), "my-cluster-1");
        assert_eq!(name_of("..".as_ref()), "lab");
    }
}
