//! What makes Services work at the nodes: our agents, or the kernel with our rules.

use crate::namespace::Namespace;
use crate::network::Network;
use crate::plan::{Host, Plan};
use crate::servers::{self, Started, beside_us, in_path};
use crate::state::{self, AgentOptions, Dataplane};
use control::agent::socket::{Status, ask};
use control::netlink::write_sysctl;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An agent did not come up.
    #[error(transparent)]
    Agent(#[from] servers::Error),
    /// A program failed.
    #[error("node/{node}: {program}: {message}")]
    Program {
        /// The node.
        node: String,
        /// The command line.
        program: String,
        /// What it said.
        message: String,
    },
    /// Agents have other objects than they were given.
    #[error("{0}; `./lab status` says more, `./lab down` and `up` begin anew")]
    NotTaken(String),
}

/// What is needed and missing before anything is made: `Ok`, or the program with the remedy.
pub fn check(dataplane: Dataplane) -> Result<(), servers::Error> {
    let installed = |program: &str| {
        let remedy = format!(
            "install it: apt-get install {}",
            program.trim_end_matches("-restore")
        );
        let missing = || servers::Error::Missing {
            program: program.to_owned(),
            remedy,
        };
        in_path(program).map(|_| ()).ok_or_else(missing)
    };
    match dataplane {
        Dataplane::Penstock => beside_us("penstock").map(|_| ()),
        Dataplane::Iptables => beside_us("penstock").and_then(|_| installed("iptables-restore")),
        Dataplane::Nftables => beside_us("penstock").and_then(|_| installed("nft")),
        Dataplane::None => Ok(()),
    }
}

/// Starts the agents of all nodes.
pub fn start_agents(
    lab: &str,
    plan: &Plan,
    network: &Network,
    options: AgentOptions,
) -> Result<Vec<Started>, Error> {
    let start = |(name, host): (&str, &Host)| -> Result<Started, Error> {
        let namespace = network
            .namespace(&host.namespace)
            .map_err(|error| Error::Program {
                node: name.to_owned(),
                program: "penstock node".to_owned(),
                message: error.to_string(),
            })?;
        Ok(servers::start_agent(lab, plan, host, namespace, options)?)
    };
    plan.nodes().map(start).collect()
}

/// What the agents say of themselves, by node; `None` where none answers.
pub fn agents(lab: &str, plan: &Plan) -> Vec<(String, Option<Status>)> {
    let ask = |node: &str| ask(&servers::control_socket(lab, node)).ok();
    plan.nodes()
        .map(|(node, _)| (node.to_owned(), ask(node)))
        .collect()
}

/// Waits until every agent has a newer table than `before`; objects that change no table make none, so not long.
pub fn wait_for_tables(lab: &str, plan: &Plan, before: &[(String, Option<Status>)]) {
    wait_for_newer_tables(lab, plan, before, Duration::from_secs(1));
}

/// Why the agents' tables are not of the objects that they were given, as far as they say so.
pub fn require_taken(lab: &str, plan: &Plan) -> Result<(), Error> {
    not_taken(&agents(lab, plan)).map_or(Ok(()), |why| Err(Error::NotTaken(why)))
}

/// What is wrong with agents that say so of themselves; `None` when nothing is.
pub fn not_taken(agents: &[(String, Option<Status>)]) -> Option<String> {
    let wrong = agents.iter().filter_map(|(node, status)| match status {
        None => Some(format!("the agent of node/{node} does not answer")),
        Some(status) => {
            let why = status.refused.as_ref()?;
            Some(format!("node/{node} stays with its former objects: {why}"))
        }
    });
    let wrong: Vec<String> = wrong.collect();
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

/// The same for as long as the caller says.
pub(crate) fn wait_for_newer_tables(
    lab: &str,
    plan: &Plan,
    before: &[(String, Option<Status>)],
    within: Duration,
) {
    let generation = |status: &Option<Status>| status.as_ref().map(|status| status.generation);
    let deadline = Instant::now() + within;
    while Instant::now() < deadline {
        let now = agents(lab, plan);
        let mut pairs = now.iter().zip(before);
        if pairs.all(|((_, new), (_, old))| generation(new) != generation(old)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Programs the kernel of every node with our rules.
pub fn load_rules(
    lab: &str,
    plan: &Plan,
    network: &Network,
    dataplane: Dataplane,
) -> Result<(), Error> {
    for (node, host) in plan.nodes() {
        let failed = |program: &str, message: String| Error::Program {
            node: node.to_owned(),
            program: program.to_owned(),
            message,
        };
        let namespace = network
            .namespace(&host.namespace)
            .map_err(|error| failed("setns", error.to_string()))?;
        let rules = render(lab, node, dataplane).map_err(|text| failed("penstock render", text))?;
        // As kube-proxy does for NodePorts on 127.0.0.1.
        let localhost = namespace
            .run(|| write_sysctl("ipv4/conf/all/route_localnet", "1").map_err(io::Error::other));
        localhost.map_err(|error| failed("sysctl", error.to_string()))?;
        for (program, rules) in programs(dataplane, &rules) {
            load(namespace, program, rules).map_err(|text| failed(&program.join(" "), text))?;
        }
    }
    Ok(())
}

pub(crate) fn render(lab: &str, node: &str, dataplane: Dataplane) -> Result<String, String> {
    let folder = state::folder(lab);
    let program = beside_us("penstock").map_err(|error| error.to_string())?;
    let output = Command::new(program)
        .args(["render", &dataplane.to_string(), "--node", node])
        .arg("--snapshot")
        .arg(folder.join("snapshot.yaml"))
        .arg("--config")
        .arg(folder.join("kube-proxy.yaml"))
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let rules = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(if dataplane == Dataplane::Nftables {
        instead_of_old_tables(&rules)
    } else {
        rules
    })
}

/// nft adds to the tables that are there, where iptables-restore replaces: so they go first, in the same transaction.
fn instead_of_old_tables(rules: &str) -> String {
    let tables = rules
        .lines()
        .filter_map(|line| line.strip_prefix("table ")?.strip_suffix(" {"));
    let mut text: String = tables
        .map(|table| format!("add table {table}\ndelete table {table}\n"))
        .collect();
    text.push_str(rules);
    text
}

/// Which program takes which part of the rendered rules.
fn programs(dataplane: Dataplane, rules: &str) -> Vec<(&'static [&'static str], &str)> {
    if dataplane == Dataplane::Nftables {
        return vec![(&["nft", "-f", "-"], rules)];
    }
    let (v4, v6) = rules.split_at(rules.find("# ip6tables-save").unwrap_or(rules.len()));
    let mut programs: Vec<(&'static [&'static str], &str)> = vec![(&["iptables-restore"], v4)];
    if !v6.is_empty() {
        programs.push((&["ip6tables-restore"], v6));
    }
    programs
}

pub(crate) fn load(namespace: &Namespace, program: &[&str], rules: &str) -> Result<(), String> {
    let path = in_path(program[0]).ok_or_else(|| format!("{} is missing", program[0]))?;
    let mut command = Command::new(path);
    command
        .args(&program[1..])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = namespace
        .spawn(&mut command)
        .map_err(|error| error.to_string())?;
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(rules.as_bytes()));
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if output.status.success() && written.is_ok() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}
