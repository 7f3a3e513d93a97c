//! Other objects for a lab that runs: the difference of two plans in hosts.

use super::inputs::Inputs;
use super::{
    Error, Result, inside, io_error, lock, namespaces, running, save, start_servers, wait_all,
};
use crate::dataplane;
use crate::lab_file::{self, LabPod};
use crate::network::Network;
use crate::plan::{Host, Plan};
use crate::process::{self, ProcessId};
use crate::state::{self, Dataplane, State, write_whole};
use control::config::KubeProxyConfig;
use control::snapshot::Snapshot;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// What `apply` did.
#[derive(Debug)]
pub struct Applied {
    /// Hosts that are new, or made anew.
    pub added: Vec<String>,
    /// Hosts that are gone, or made anew.
    pub removed: Vec<String>,
}

/// Changes a running lab's objects: new pods come first, then the agents see the objects, then old pods go.
pub fn apply(lab: &str, file: &Path, prune: bool) -> Result<Applied> {
    // Before the lock, which would make the folder of a lab that is not there.
    running(lab)?;
    let _lock = lock(lab)?;
    let mut state = running(lab)?;
    let folder = state::folder(lab);
    let name = file.display().to_string();
    let change = control::text::read(file).map_err(io_error(name.clone()))?;
    let changed = Snapshot::parse(&name, &change)?;
    let (snapshot, text) = if prune {
        (changed, change)
    } else {
        let path = folder.join("snapshot.yaml");
        let base_name = path.display().to_string();
        let base = fs::read_to_string(&path).map_err(io_error(base_name.clone()))?;
        let text = control::snapshot::merge((&base_name, &base), (&name, &change))?;
        // Lines of what both make together are of no file; who reads them needs to know.
        let together = || format!("{base_name} with {name} applied");
        let parsed = Snapshot::parse(&base_name, &text);
        let mut snapshot = parsed.or_else(|_| Snapshot::parse(&together(), &text))?;
        snapshot.locate_in(&changed);
        (snapshot, text)
    };
    let mut pods = lab_file::pods(&folder.join("lab.yaml"))?;
    // What the lab file says of a pod that no slice has any more goes with the pod.
    pods.retain(|pod| pod.node.is_some() || is_endpoint(&snapshot, pod));
    let inputs = Inputs {
        snapshot,
        config: KubeProxyConfig::read(&folder.join("kube-proxy.yaml"))?,
        pods,
    };
    let old = state.plan.clone().unwrap_or_default();
    let new = inputs.plan(lab, state.options.via.as_deref(), state.options.dataplane)?;
    let change = Change::between(&old, &new)?;
    let applied = Applied {
        added: change.names(&change.added),
        removed: change.names(&change.removed),
    };
    change_hosts(&mut state, &old, &new, &change, &text)?;
    Ok(applied)
}

fn change_hosts(
    state: &mut State,
    old: &Plan,
    new: &Plan,
    change: &Change<'_>,
    objects: &str,
) -> Result<()> {
    let lab = state.lab.clone();
    let folder = state::folder(&lab);
    let mut network = Network::open(old)?;
    // A host that is made anew has the old one's name, so the old one goes first.
    let renewed = || {
        change
            .removed
            .iter()
            .filter(|host| new.host(&host.name).is_some())
            .copied()
    };
    let gone = || {
        change
            .removed
            .iter()
            .filter(|host| new.host(&host.name).is_none())
            .copied()
    };
    stop_hosts(state, &mut network, renewed())?;
    state.namespaces.extend(namespaces(new));
    state.namespaces.sort();
    state.namespaces.dedup();
    save(state)?;
    network.make(change.added.iter().copied())?;
    network.reroute(old, new)?;
    let started = start_servers(state, change.added.iter().copied(), &network)?;
    wait_all(&started, &|| false)?;
    let agents = dataplane::agents(&lab, new);
    write_whole(&folder.join("snapshot.yaml"), objects.as_bytes())
        .map_err(io_error("snapshot.yaml"))?;
    if state.options.dataplane == Dataplane::Penstock {
        dataplane::wait_for_tables(&lab, new, &agents);
    }
    if matches!(
        state.options.dataplane,
        Dataplane::Iptables | Dataplane::Nftables
    ) {
        dataplane::load_rules(&lab, new, &network, state.options.dataplane)?;
    }
    stop_hosts(state, &mut network, gone())?;
    state.namespaces = namespaces(new);
    state.plan = Some(new.clone());
    save(state)?;
    if state.options.dataplane == Dataplane::Penstock {
        dataplane::require_taken(&lab, new)?;
    }
    Ok(())
}

/// Ends what runs in hosts and takes them away.
fn stop_hosts<'a>(
    state: &mut State,
    network: &mut Network,
    hosts: impl Iterator<Item = &'a Host>,
) -> Result<()> {
    let hosts: Vec<&Host> = hosts.collect();
    let names: HashSet<String> = hosts.iter().map(|host| host.name.to_string()).collect();
    let of_hosts = |process: &&state::Process| names.contains(&process.host);
    let mut processes: Vec<ProcessId> = state
        .processes
        .iter()
        .filter(of_hosts)
        .map(|process| process.id)
        .collect();
    let own = hosts.iter().filter(|host| host.has_namespace());
    processes.extend(inside(own.map(|host| host.namespace.as_str()))?);
    process::end(&processes);
    state
        .processes
        .retain(|process| !names.contains(&process.host));
    network.remove(hosts.into_iter())?;
    Ok(())
}

fn is_endpoint(snapshot: &Snapshot, pod: &LabPod) -> bool {
    let endpoints = snapshot
        .endpoint_slices
        .iter()
        .flat_map(|slice| &slice.endpoints);
    let mut targets = endpoints.filter_map(|endpoint| endpoint.target_ref.as_ref());
    targets.any(|target| target.name == pod.name && target.namespace == pod.namespace)
}

/// The difference of two plans in hosts.
struct Change<'a> {
    added: Vec<&'a Host>,
    removed: Vec<&'a Host>,
}

impl<'a> Change<'a> {
    fn between(old: &'a Plan, new: &'a Plan) -> Result<Self> {
        let before: HashMap<_, _> = old.hosts.iter().map(|host| (&host.name, host)).collect();
        let after: HashMap<_, _> = new.hosts.iter().map(|host| (&host.name, host)).collect();
        let same = |host: &Host, others: &HashMap<_, &Host>| {
            others
                .get(&host.name)
                .is_some_and(|other| host.same_but_routes(other))
        };
        let change = Self {
            added: new
                .hosts
                .iter()
                .filter(|host| !same(host, &before))
                .collect(),
            removed: old
                .hosts
                .iter()
                .filter(|host| !same(host, &after))
                .collect(),
        };
        let fixed = |host: &&&Host| {
            use crate::names::HostName::{Client, Fabric, Node};
            matches!(host.name, Node(_) | Client | Fabric)
        };
        match change.added.iter().chain(&change.removed).find(fixed) {
            None => Ok(change),
            Some(host) => Err(Error::Usage(format!(
                "{} would change, and apply changes no nodes of a running lab; ./lab down, then up with these \
                 objects",
                host.name
            ))),
        }
    }

    fn names(&self, hosts: &[&Host]) -> Vec<String> {
        hosts.iter().map(|host| host.name.to_string()).collect()
    }
}
