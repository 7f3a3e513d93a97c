//! Other objects for a lab that runs: the difference of two plans in hosts.

use super::inputs::Inputs;
use super::{
    Error, Result, inside, io_error, lock, namespaces, running, save, start_servers, wait_all,
};
use crate::dataplane;
use crate::lab_file::{self, LabPod};
use crate::network::Network;
use crate::plan::{Host, Plan};
use crate::privilege;
use crate::process::{self, ProcessId};
use crate::state::{self, Dataplane, State, write_whole};
use control::config::KubeProxyConfig;
use control::snapshot::Snapshot;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;

/// What `apply` did.
#[derive(Debug)]
pub struct Applied {
    /// Hosts that are new, or made anew.
    pub added: Vec<String>,
    /// Hosts that are gone, or made anew.
    pub removed: Vec<String>,
}

/// Changes a running lab's objects: new pods come first, then the agents see the objects, then old pods go. Where that
/// fails, or is interrupted, the lab is again what it was.
pub fn apply(
    lab: &str,
    file: &Path,
    prune: bool,
    interrupted: &(dyn Fn() -> bool + Sync),
) -> Result<Applied> {
    // Before the lock, which would make the folder of a lab that is not there.
    running(lab)?;
    privilege::require("a lab is made of network namespaces, which only root may change")?;
    // Before the lock as well: what comes by a pipe may be long in coming.
    let change = read_objects(file).map_err(io_error(name_of_objects(file)))?;
    let _lock = lock(lab)?;
    let mut state = running(lab)?;
    // An apply before this one may have been killed.
    settle(&mut state)?;
    let former = read_own(lab, "snapshot.yaml")?;
    let (snapshot, objects) = wanted(lab, (&name_of_objects(file), change), prune, &former)?;
    let mut pods = lab_file::pods(&state::folder(lab).join("lab.yaml"))?;
    // What the lab file says of a pod that no slice has any more goes with the pod.
    pods.retain(|pod| pod.node.is_some() || is_endpoint(&snapshot, pod));
    let inputs = Inputs {
        snapshot,
        config: KubeProxyConfig::read(&state::folder(lab).join("kube-proxy.yaml"))?,
        pods,
    };
    let old = state.plan.clone().unwrap_or_default();
    let new = inputs.plan(lab, state.options.via.as_deref(), state.options.dataplane)?;
    let change = Change::between(&old, &new)?;
    let applied = Applied {
        added: change.names(&change.added),
        removed: change.names(&change.removed),
    };
    begin(&mut state, &new)?;
    let made = prepare(&mut state, &change, interrupted).and_then(|network| {
        publish(&mut state, &change, &objects, &network)?;
        Ok(network)
    });
    match made {
        Ok(mut network) => finish(&mut state, &change, &mut network)?,
        Err(error) => return Err(go_back(&mut state, &change, &former, error)),
    }
    if state.options.dataplane == Dataplane::Penstock {
        dataplane::require_taken(lab, &new)?;
    }
    Ok(applied)
}

/// How messages call a file of objects.
pub fn name_of_objects(file: &Path) -> String {
    if is_standard_input(file) {
        return "standard input".to_owned();
    }
    file.display().to_string()
}

fn read_objects(file: &Path) -> io::Result<String> {
    if is_standard_input(file) {
        return io::read_to_string(io::stdin());
    }
    control::text::read(file)
}

/// As kubectl has it.
fn is_standard_input(file: &Path) -> bool {
    file == Path::new("-")
}

/// The lab's own copy of one of its inputs.
fn read_own(lab: &str, name: &str) -> Result<String> {
    let path = state::folder(lab).join(name);
    fs::read_to_string(&path).map_err(io_error(path.display().to_string()))
}

/// The objects that the lab is to have, and their text; `change` is the name and the text of what is applied.
fn wanted(
    lab: &str,
    (name, change): (&str, String),
    prune: bool,
    former: &str,
) -> Result<(Snapshot, String)> {
    let changed = Snapshot::parse(name, &change)?;
    if prune {
        return Ok((changed, change));
    }
    let path = state::folder(lab).join("snapshot.yaml");
    let base_name = path.display().to_string();
    let text = control::snapshot::merge((&base_name, former), (name, &change))?;
    // Lines of what both make together are of no file; who reads them needs to know.
    let together = || format!("{base_name} with {name} applied");
    let parsed = Snapshot::parse(&base_name, &text);
    let mut snapshot = parsed.or_else(|_| Snapshot::parse(&together(), &text))?;
    snapshot.locate_in(&changed);
    Ok((snapshot, text))
}

/// Writes down what is about to be made, so that whatever ends this command, [`settle`] and `down` find all of it.
fn begin(state: &mut State, new: &Plan) -> Result<()> {
    state.take_over().map_err(io_error("/proc"))?;
    state.namespaces.extend(namespaces(new));
    state.namespaces.sort();
    state.namespaces.dedup();
    state.unsettled = Some(new.clone());
    save(state)
}

/// Makes what is new, beside what goes.
fn prepare(
    state: &mut State,
    change: &Change<'_>,
    interrupted: &(dyn Fn() -> bool + Sync),
) -> Result<Network> {
    let mut network = Network::open(change.from.hosts.iter())?;
    stop_hosts(state, &mut network, change.giving_way())?;
    network.make(change.added.iter().copied())?;
    network.reroute(change.from, change.to)?;
    if interrupted() {
        return Err(Error::Interrupted);
    }
    let started = start_servers(state, change.added.iter().copied(), &network)?;
    wait_all(&started, interrupted)?;
    Ok(network)
}

/// Shows the objects to what makes Services work. From here on what went before is what is left over.
fn publish(state: &mut State, change: &Change<'_>, objects: &str, network: &Network) -> Result<()> {
    let lab = state.lab.clone();
    let agents = dataplane::agents(&lab, change.to);
    write_objects(&lab, objects)?;
    if state.options.dataplane == Dataplane::Penstock {
        dataplane::wait_for_tables(&lab, change.to, &agents);
    }
    load_rules(state, change.to, network)?;
    state.plan = Some(change.to.clone());
    state.unsettled = Some(change.from.clone());
    save(state)
}

/// Makes the lab what it was before `error`. Returns what to tell the user.
fn go_back(state: &mut State, change: &Change<'_>, former: &str, error: Error) -> Error {
    state.plan = Some(change.from.clone());
    state.unsettled = Some(change.to.clone());
    let lab = state.lab.clone();
    // Rules first: as long as they are not the former ones the lab is not settled, and `status` says so.
    let undone = hide_objects(state, change.from, former).and_then(|()| settle(state));
    match undone {
        Ok(()) => error,
        Err(left) => Error::NotUndone {
            error: Box::new(error),
            left: Box::new(left),
            remedy: format!("./lab apply tries it again, ./lab down {lab} removes all"),
        },
    }
}

/// Undoes what [`publish`] has shown.
fn hide_objects(state: &State, from: &Plan, former: &str) -> Result<()> {
    if read_own(&state.lab, "snapshot.yaml").is_ok_and(|objects| objects == former) {
        return Ok(());
    }
    write_objects(&state.lab, former)?;
    let nodes = Network::open(from.nodes().map(|(_, host)| host))?;
    load_rules(state, from, &nodes)
}

fn write_objects(lab: &str, objects: &str) -> Result<()> {
    let path = state::folder(lab).join("snapshot.yaml");
    write_whole(&path, objects.as_bytes()).map_err(io_error("snapshot.yaml"))
}

/// Where the kernel is the dataplane it gets the rules of the lab's objects.
fn load_rules(state: &State, plan: &Plan, network: &Network) -> Result<()> {
    let dataplane = state.options.dataplane;
    if matches!(dataplane, Dataplane::Iptables | Dataplane::Nftables) {
        dataplane::load_rules(&state.lab, plan, network, dataplane)?;
    }
    Ok(())
}

/// Takes away what is no more.
fn finish(state: &mut State, change: &Change<'_>, network: &mut Network) -> Result<()> {
    stop_hosts(state, network, change.gone())?;
    settled(state, change.to)
}

/// Ends an `apply` that failed or was killed: takes away what there is of the other plan, and makes anew what had to
/// give way to that.
fn settle(state: &mut State) -> Result<()> {
    let Some(other) = state.unsettled.clone() else {
        return Ok(());
    };
    let plan = state.plan.clone().unwrap_or_default();
    let change = Change::between(&other, &plan)?;
    let anew: Vec<&Host> = change.taking_over().collect();
    let stays = |host: &&Host| !anew.contains(host);
    let mut network = Network::open(plan.hosts.iter().filter(stays))?;
    let goes = change.removed.iter().chain(&anew).copied();
    stop_hosts(state, &mut network, goes)?;
    network.make(anew.iter().copied())?;
    network.reroute(&other, &plan)?;
    let started = start_servers(state, anew.iter().copied(), &network)?;
    wait_all(&started, &|| false)?;
    settled(state, &plan)
}

/// There is nothing but hosts of `plan` any more.
fn settled(state: &mut State, plan: &Plan) -> Result<()> {
    state.namespaces = namespaces(plan);
    state.unsettled = None;
    save(state)
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
    from: &'a Plan,
    to: &'a Plan,
    added: Vec<&'a Host>,
    removed: Vec<&'a Host>,
}

impl<'a> Change<'a> {
    fn between(from: &'a Plan, to: &'a Plan) -> Result<Self> {
        let before: HashMap<_, _> = from.hosts.iter().map(|host| (&host.name, host)).collect();
        let after: HashMap<_, _> = to.hosts.iter().map(|host| (&host.name, host)).collect();
        let same = |host: &Host, others: &HashMap<_, &Host>| {
            others
                .get(&host.name)
                .is_some_and(|other| host.same_but_routes(other))
        };
        let change = Self {
            from,
            to,
            added: to
                .hosts
                .iter()
                .filter(|host| !same(host, &before))
                .collect(),
            removed: from
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

    /// What is made anew, or leaves its namespace to another, and so goes first.
    fn giving_way(&self) -> impl Iterator<Item = &'a Host> {
        let removed = self.removed.iter().copied();
        removed.filter(|host| excludes_any(host, &self.added))
    }

    /// What goes last.
    fn gone(&self) -> impl Iterator<Item = &'a Host> {
        let removed = self.removed.iter().copied();
        removed.filter(|host| !excludes_any(host, &self.added))
    }

    /// What others give way to.
    fn taking_over(&self) -> impl Iterator<Item = &'a Host> {
        let added = self.added.iter().copied();
        added.filter(|host| excludes_any(host, &self.removed))
    }

    fn names(&self, hosts: &[&Host]) -> Vec<String> {
        hosts.iter().map(|host| host.name.to_string()).collect()
    }
}

/// Whether a host cannot be there beside one of `others`.
fn excludes_any(host: &Host, others: &[&Host]) -> bool {
    let is_same_namespace = |other: &Host| {
        host.has_namespace() && other.has_namespace() && other.namespace == host.namespace
    };
    let mut others = others.iter();
    others.any(|other| other.name == host.name || is_same_namespace(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::HostName;
    use crate::plan::Link;

    fn pod(namespace: &str, name: &str, address: &str) -> Host {
        let of_node = Link::ToNode {
            namespace: "lab.node-a".to_owned(),
            interface: "pod1".to_owned(),
            bridge: None,
        };
        Host {
            name: HostName::Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
            namespace: format!("lab.{namespace}-{name}"),
            link: of_node,
            addresses: vec![address.parse().unwrap()],
            bridge: None,
            routes: Vec::new(),
            neighbours: Vec::new(),
            forwards: false,
            server: None,
            node: None,
        }
    }

    fn plan(hosts: [Host; 3]) -> Plan {
        Plan {
            hosts: hosts.into(),
            ..Plan::default()
        }
    }

    /// Two pods whose namespaces have one name cannot be there at once, no more than a pod and its new self.
    #[test]
    fn only_what_is_in_the_way_goes_first() {
        let old = plan([
            pod("shop", "moves", "10.244.1.1/32"),
            pod("a-b", "c", "10.244.1.2/32"),
            pod("shop", "goes", "10.244.1.3/32"),
        ]);
        let new = plan([
            pod("shop", "moves", "10.244.1.11/32"),
            pod("a", "b-c", "10.244.1.2/32"),
            pod("shop", "comes", "10.244.1.4/32"),
        ]);
        let names = |hosts: &mut dyn Iterator<Item = &Host>| {
            hosts.map(|host| host.name.to_string()).collect::<Vec<_>>()
        };
        let change = Change::between(&old, &new).unwrap();
        let first = names(&mut change.giving_way());
        assert_eq!(first, ["pod/shop/moves", "pod/a-b/c"]);
        assert_eq!(names(&mut change.gone()), ["pod/shop/goes"]);
        let instead = names(&mut change.taking_over());
        assert_eq!(instead, ["pod/shop/moves", "pod/a/b-c"]);
    }
}
