//! What a lab is made of: read, checked, and copied to where its agents look.

use super::{Error, Result, io_error};
use crate::lab_file::{LabPod, Source};
use crate::plan::{self, Plan};
use crate::state::{self, Dataplane, write_whole};
use control::config::KubeProxyConfig;
use control::snapshot::Snapshot;
use control::snapshot::objects::Metadata;
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

/// The lab's own copy of its objects.
pub(super) const OBJECTS: &str = "snapshot.yaml";
const CONFIG: &str = "kube-proxy.yaml";
const PODS: &str = "lab.yaml";

/// The lab's own copies of its inputs: agents follow the objects, `apply` changes them.
pub(super) fn write_inputs(lab: &str, source: &Source, config: Option<&Path>) -> Result<()> {
    let folder = state::folder(lab);
    fs::create_dir_all(folder.join("logs")).map_err(io_error("the lab's logs"))?;
    for (name, text) in copies(source, config)? {
        write_whole(&folder.join(name), &text).map_err(io_error(name))?;
    }
    Ok(())
}

/// The inputs as they are now, by the names that the lab's own copies have.
fn copies(source: &Source, config: Option<&Path>) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let read = |from: &Path| fs::read(from).map_err(io_error(from.display().to_string()));
    let config = match config {
        Some(config) => read(config)?,
        None => DEFAULT_CONFIG.into(),
    };
    let objects = if source.snapshot.is_file() {
        read(&source.snapshot)?
    } else {
        let joined = join_folder(&source.snapshot);
        let joined = joined.map_err(io_error(source.snapshot.display().to_string()))?;
        joined.into_bytes()
    };
    let mut copies = vec![(CONFIG, config), (OBJECTS, objects)];
    if !source.pods.is_empty() {
        copies.push((PODS, read(&source.path)?));
    }
    Ok(copies)
}

/// What a lab runs, and which of its inputs are not any more what it runs: edited since, or changed by `apply`.
pub(super) fn running_inputs(
    lab: &str,
    source: &Source,
    config: Option<&Path>,
    now: &Inputs,
) -> Result<(Inputs, Vec<&'static str>)> {
    let folder = state::folder(lab);
    let own = Inputs {
        snapshot: Snapshot::read(&folder.join(OBJECTS))?,
        config: KubeProxyConfig::read(&folder.join(CONFIG))?,
        pods: Vec::new(),
    };
    // Not by their text: `apply` writes the same objects in another form.
    let same_objects = in_order(&own.snapshot) == in_order(&now.snapshot);
    let is_same = |(name, text): &(&str, Vec<u8>)| {
        (*name == OBJECTS && same_objects)
            || fs::read(folder.join(name)).is_ok_and(|own| own == *text)
    };
    let differing = copies(source, config)?.into_iter();
    let differing = differing
        .filter(|copy| !is_same(copy))
        .map(|(name, _)| name);
    Ok((own, differing.collect()))
}

/// The objects by their names, as nothing depends on their order in files.
fn in_order(snapshot: &Snapshot) -> Snapshot {
    fn sort<T>(objects: &mut [T], metadata: impl Fn(&T) -> &Metadata) {
        objects.sort_by(|a, b| {
            let key = |object| {
                let metadata = metadata(object);
                (&metadata.namespace, &metadata.name)
            };
            key(a).cmp(&key(b))
        });
    }
    let mut snapshot = snapshot.clone();
    sort(&mut snapshot.services, |object| &object.metadata);
    sort(&mut snapshot.endpoint_slices, |object| &object.metadata);
    sort(&mut snapshot.nodes, |object| &object.metadata);
    snapshot
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
