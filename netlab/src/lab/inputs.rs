//! What a lab is made of: read, checked, and copied to where its agents look.

use super::{Error, Result, io_error};
use crate::lab_file::{LabPod, Source};
use crate::plan::{self, Plan};
use crate::state::{self, Dataplane, write_whole};
use control::config::KubeProxyConfig;
use control::snapshot::Snapshot;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a lab is made of, read and checked.
pub(super) struct Inputs {
    pub(super) snapshot: Snapshot,
    pub(super) config: KubeProxyConfig,
    pub(super) pods: Vec<LabPod>,
}

impl Inputs {
    pub(super) fn plan(&self, lab: &str, via: Option<&str>, dataplane: Dataplane) -> Result<Plan> {
        if let Some(via) = via
            && self.snapshot.node(via).is_none()
        {
            let names: Vec<_> = self
                .snapshot
                .nodes
                .iter()
                .map(|node| node.metadata.name.as_str())
                .collect();
            let text = format!(
                "--via {via}: there is no such node; the nodes are: {}",
                names.join(", ")
            );
            return Err(Error::Usage(text));
        }
        if self.snapshot.nodes.is_empty() {
            let text = "there is no Node among the objects, and a lab is made of nodes; add them \
                        (kubectl get nodes -o yaml)";
            return Err(Error::Usage(text.to_owned()));
        }
        let in_kernel = matches!(dataplane, Dataplane::Iptables | Dataplane::Nftables);
        Ok(Plan::new(plan::Input {
            lab,
            snapshot: &self.snapshot,
            config: &self.config,
            pods: &self.pods,
            via,
            routes_to_services: in_kernel,
        })?)
    }
}

/// The lab's own copies of its inputs: agents follow the objects, `apply` changes them.
pub(super) fn write_inputs(lab: &str, source: &Source, config: Option<&Path>) -> Result<()> {
    let folder = state::folder(lab);
    let copy = |from: &Path, to: &str| {
        let text = fs::read(from).map_err(io_error(from.display().to_string()))?;
        write_whole(&folder.join(to), &text).map_err(io_error(to))
    };
    fs::create_dir_all(folder.join("logs")).map_err(io_error("the lab's logs"))?;
    match config {
        Some(config) => copy(config, "kube-proxy.yaml")?,
        None => write_whole(&folder.join("kube-proxy.yaml"), DEFAULT_CONFIG.as_bytes())
            .map_err(io_error("kube-proxy.yaml"))?,
    }
    if !source.pods.is_empty() {
        copy(&source.path, "lab.yaml")?;
    }
    if source.snapshot.is_file() {
        return copy(&source.snapshot, "snapshot.yaml");
    }
    let text =
        join_folder(&source.snapshot).map_err(io_error(source.snapshot.display().to_string()))?;
    write_whole(&folder.join("snapshot.yaml"), text.as_bytes()).map_err(io_error("snapshot.yaml"))
}

const DEFAULT_CONFIG: &str =
    "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// All objects of a folder as one stream.
fn join_folder(folder: &Path) -> io::Result<String> {
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let is_objects = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("yaml" | "yml" | "json"))
    };
    let mut files: Vec<PathBuf> = entries
        .into_iter()
        .map(|entry| entry.path())
        .filter(is_objects)
        .collect();
    files.sort();
    let texts = files
        .iter()
        .map(|file| control::text::read(file))
        .collect::<io::Result<Vec<_>>>()?;
    let joined = texts
        .iter()
        .map(|text| text.trim_end_matches("...\n"))
        .collect::<Vec<_>>();
    Ok(joined.join("\n---\n"))
}
