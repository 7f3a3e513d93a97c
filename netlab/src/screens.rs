//! What commands print.

use crate::bench;
use crate::check::CheckedService;
use crate::everywhere::{Expected, Way};
use crate::lab::{Error, Running, io_error};
use crate::names::HostName;
use crate::plan::{Host, Plan, Protocol, Run};
use crate::state::{Dataplane, State};
use comfy_table::{ContentArrangement, Table, presets};
use control::agent::socket::Status;
use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;

/// Writes to stdout; a reader that has gone away (`lab ls | head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(io_error("stdout")(error)),
        _ => Ok(()),
    }
}

/// Prints one JSON document.
pub(crate) fn print_json(value: &Value) -> Result<(), Error> {
    print(&format!("{value:#}\n"))
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

fn trimmed(table: &Table) -> String {
    table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// A host of a lab.
#[derive(Serialize)]
struct HostRow {
    name: String,
    namespace: String,
    addresses: Vec<String>,
    node: Option<String>,
    runs: String,
}

fn hosts(plan: &Plan, dataplane: Dataplane) -> Vec<HostRow> {
    let row = |host: &Host| HostRow {
        name: host.name.to_string(),
        namespace: host.namespace.clone(),
        addresses: host
            .addresses
            .iter()
            .map(|address| plain(*address))
            .collect(),
        node: host.node.clone(),
        runs: runs(host, dataplane),
    };
    plan.shown().map(row).collect()
}

/// Without the length when it is that of a host.
fn plain(address: IpNet) -> String {
    if address.prefix_len() == address.max_prefix_len() {
        return address.addr().to_string();
    }
    address.to_string()
}

fn runs(host: &Host, dataplane: Dataplane) -> String {
    let Some(server) = &host.server else {
        let is_node = matches!(host.name, HostName::Node(_));
        return if is_node {
            dataplane.to_string()
        } else {
            String::new()
        };
    };
    let program = match &server.run {
        Run::BuiltIn => "server".to_owned(),
        Run::Nginx => "nginx".to_owned(),
        Run::Command(words) => words.join(" "),
    };
    let port = |(protocol, port): &(Protocol, u16)| {
        format!("{port}/{}", format!("{protocol:?}").to_uppercase())
    };
    let ports: Vec<String> = server.ports.iter().map(port).collect();
    let shared = if host.has_namespace() {
        ""
    } else {
        ", host network"
    };
    format!("{program} {}{shared}", ports.join(" "))
        .trim_end()
        .to_owned()
}

fn hosts_table(plan: &Plan, dataplane: Dataplane) -> String {
    let mut table = table(&["HOST", "ADDRESSES", "NODE", "RUNS"]);
    for row in hosts(plan, dataplane) {
        let node = row.node.unwrap_or_default();
        table.add_row([row.name, row.addresses.join("\n"), node, row.runs]);
    }
    trimmed(&table)
}

fn services_table(services: &[CheckedService]) -> String {
    let mut table = table(&["SERVICE", "TYPE", "ADDRESSES", "ENDPOINTS", "ANSWER"]);
    for service in services {
        table.add_row([
            service.service.clone(),
            service.kind.clone(),
            service.addresses.join("\n"),
            endpoints(service),
            answers(service),
        ]);
    }
    trimmed(&table)
}

/// Those that are ready; where none is, those that serve until they end stand in for them.
fn endpoints(service: &CheckedService) -> String {
    if !service.endpoints.is_empty() {
        return service.endpoints.join("\n");
    }
    let terminating = service.terminating.iter();
    let lines: Vec<String> = terminating
        .map(|endpoint| format!("{endpoint} terminating"))
        .collect();
    if lines.is_empty() {
        "none".to_owned()
    } else {
        lines.join("\n")
    }
}

fn answers(service: &CheckedService) -> String {
    let line = |request: &crate::check::Request| {
        let why = request
            .not_required
            .as_ref()
            .map(|why| format!(", which is fine: {why}"))
            .unwrap_or_default();
        let why = if request.outcome.is_fine() {
            String::new()
        } else {
            why
        };
        format!(
            "{} to {}: {}{why}",
            request.from, request.to, request.outcome
        )
    };
    let lines: Vec<String> = service.requests.iter().map(line).collect();
    if lines.is_empty() {
        "not asked".to_owned()
    } else {
        lines.join("\n")
    }
}

/// What `up` ends with. Where other labs run, too, the commands to try name this one.
pub(crate) fn up_table(running: &Running, has_others: bool) -> String {
    let mut text = hosts_table(&running.plan, running.state.options.dataplane);
    let _ = write!(text, "\n{}\nTry next:\n", services_table(&running.services));
    for command in try_next(running, has_others) {
        let _ = writeln!(text, "  {command}");
    }
    text
}

/// The same for programs.
pub(crate) fn up_json(running: &Running) -> Value {
    let dataplane = running.state.options.dataplane;
    json!({
        "schemaVersion": 1,
        "lab": running.state.lab,
        "dataplane": dataplane,
        "hosts": hosts(&running.plan, dataplane),
        "services": running.services,
        "notes": running.plan.notes,
    })
}

/// Three commands that work here.
fn try_next(running: &Running, has_others: bool) -> [String; 3] {
    let lab = &running.state.lab;
    let (option, argument) = if has_others {
        (format!(" --lab {lab}"), format!(" {lab}"))
    } else {
        (String::new(), String::new())
    };
    let answered = |from: &str| {
        let requests = running
            .services
            .iter()
            .flat_map(|service| &service.requests);
        let mut http = requests
            .filter(|request| request.outcome.is_fine() && request.protocol == Protocol::Tcp);
        http.find(|request| request.from.starts_with(from))
    };
    let curl = |request: &crate::check::Request| {
        format!(
            "./lab exec{option} {} -- curl -s http://{}/",
            request.from, request.to
        )
    };
    let node = running.plan.nodes().next().map_or("", |(name, _)| name);
    let node_command = format!("./lab exec{option} node/{node} -- ip route");
    let outside = answered("client").map(curl);
    let inside = answered("pod/").map(curl);
    let [first, second] = match (outside, inside) {
        (Some(outside), Some(inside)) => [outside, inside],
        (Some(one), None) | (None, Some(one)) => [one, node_command],
        (None, None) => [node_command, format!("./lab status{argument}")],
    };
    [first, second, format!("./lab down{argument}")]
}

/// A lab in the list.
#[derive(Serialize)]
pub(crate) struct Lab {
    name: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dataplane: Option<Dataplane>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    /// Whether a benchmark that runs now has made it for itself.
    benchmark: bool,
}

impl Lab {
    pub(crate) fn new(name: &str, state: Option<State>) -> Self {
        let why = state.as_ref().and_then(State::broken);
        Self {
            name: name.to_owned(),
            state: match (&state, &why) {
                (None, _) => "down",
                (Some(_), None) => "up",
                (Some(_), Some(_)) => "broken",
            },
            why,
            dataplane: state.as_ref().map(|state| state.options.dataplane),
            source: state.map(|state| state.options.source.display().to_string()),
            benchmark: bench::is_using(name),
        }
    }
}

pub(crate) fn labs_table(labs: &[Lab]) -> String {
    let mut table = table(&["LAB", "STATE", "DATAPLANE", "FROM"]);
    for lab in labs {
        let why = lab
            .why
            .as_ref()
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        table.add_row([
            lab.name.clone(),
            format!("{}{why}", lab.state),
            lab.dataplane
                .map(|dataplane| dataplane.to_string())
                .unwrap_or_default(),
            if lab.benchmark {
                "a running benchmark".to_owned()
            } else {
                lab.source.clone().unwrap_or_default()
            },
        ]);
    }
    trimmed(&table).trim_end().to_owned()
}

/// A running lab's hosts and processes.
pub(crate) fn status_table(
    state: &State,
    plan: &Plan,
    agents: &[(String, Option<Status>)],
) -> String {
    let mut text = hosts_table(plan, state.options.dataplane);
    let mut table = table(&["PROCESS", "HOST", "PID", "STATE"]);
    for process in &state.processes {
        let alive = if process.id.is_alive() {
            "running"
        } else {
            "ended"
        };
        let pid = process.id.pid.to_string();
        table.add_row([
            process.role.as_str(),
            process.host.as_str(),
            pid.as_str(),
            alive,
        ]);
    }
    let _ = write!(text, "\n{}", trimmed(&table));
    if state.options.dataplane == Dataplane::Penstock {
        let _ = write!(text, "\n{}", agents_table(agents));
    }
    text
}

/// Services and addresses down, hosts that ask across; below it what ended otherwise than it ought to.
pub(crate) fn ways_table(ways: &[Way]) -> String {
    let hosts: BTreeSet<&str> = ways.iter().map(|way| way.from.as_str()).collect();
    let mut rows: BTreeMap<(&str, SocketAddr, Protocol), BTreeMap<&str, String>> = BTreeMap::new();
    for way in ways {
        let row = rows
            .entry((&way.service, way.to, way.protocol))
            .or_default();
        row.insert(&way.from, cell(way));
    }
    let mut table = table(
        &["SERVICE", "ADDRESS"]
            .into_iter()
            .chain(hosts.iter().copied())
            .collect::<Vec<_>>(),
    );
    let has_gaps = rows.values().any(|cells| cells.len() < hosts.len());
    for ((service, to, protocol), cells) in rows {
        let word = format!("{protocol:?}").to_uppercase();
        let mut row = vec![service.to_owned(), format!("{to}/{word}")];
        row.extend(
            hosts
                .iter()
                .map(|host| cells.get(host).cloned().unwrap_or_default()),
        );
        table.add_row(row);
    }
    let mut text = trimmed(&table);
    let (asked, fine) = (
        ways.iter().map(|way| way.asked).sum::<usize>(),
        ways.iter().map(|way| way.as_expected).sum::<usize>(),
    );
    let skipped = skipped(ways);
    let made = ways.len() - skipped.values().sum::<usize>();
    let _ = writeln!(
        text,
        "\n{fine} of {asked} requests ended as explained, by {}",
        counted(made)
    );
    for (why, number) in skipped {
        let _ = writeln!(text, "skipped: {}, {why}", counted(number));
    }
    if has_gaps {
        text += GAPS;
    }
    for way in ways.iter().filter(|way| !way.is_fine()) {
        let ends: Vec<&str> = way.otherwise.iter().map(String::as_str).collect();
        let _ = writeln!(
            text,
            "not so: {} from {} to {}: {}; {}; answers {:?}",
            way.service,
            way.from,
            way.to,
            way.reason,
            ends.join(", "),
            way.answers
        );
    }
    text
}

/// Why there is no request in a cell.
const GAPS: &str = "empty: no Service takes the packet, its answer takes another way, or a pod runs a command of its own\n";

fn counted(ways: usize) -> String {
    let plural = if ways == 1 { "" } else { "s" };
    format!("{ways} way{plural}")
}

/// Why ways were not asked, and how many.
fn skipped(ways: &[Way]) -> BTreeMap<&str, usize> {
    let mut reasons = BTreeMap::new();
    for why in ways.iter().filter_map(|way| way.skipped.as_deref()) {
        *reasons.entry(why).or_default() += 1;
    }
    reasons
}

fn cell(way: &Way) -> String {
    if way.skipped.is_some() {
        return "skipped".to_owned();
    }
    match way.expected {
        Expected::Answered { .. } => format!("{}/{}", way.as_expected, way.asked),
        Expected::Refused => format!("{}/{} refused", way.as_expected, way.asked),
        Expected::Silent => format!("{}/{} silent", way.as_expected, way.asked),
    }
}

/// The same for programs.
pub(crate) fn ways_json(state: &State, requests: usize, ways: &[Way]) -> Value {
    json!({
        "schemaVersion": 1,
        "lab": state.lab,
        "dataplane": state.options.dataplane,
        "requests": requests,
        "ways": ways,
    })
}

/// What the agents count.
fn agents_table(agents: &[(String, Option<Status>)]) -> String {
    let header = [
        "NODE",
        "TABLE",
        "SERVICES",
        "CONNECTIONS",
        "FORWARDED",
        "PASSED",
        "REJECTED",
        "DROPPED",
    ];
    let mut table = table(&header);
    for (node, status) in agents {
        let Some(status) = status else {
            table.add_row([node.as_str(), "no answer"]);
            continue;
        };
        let packets = &status.packets;
        let drops = packets
            .dropped
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"));
        let drops: Vec<String> = drops.collect();
        table.add_row([
            node.clone(),
            format!("generation {}", status.generation),
            status.services.to_string(),
            format!("{} of {}", status.connections, status.capacity),
            packets.forwarded.to_string(),
            packets.passed.to_string(),
            packets.rejected.to_string(),
            if drops.is_empty() {
                "0".to_owned()
            } else {
                drops.join("\n")
            },
        ]);
    }
    trimmed(&table)
}

/// The same for programs.
pub(crate) fn status_json(
    state: &State,
    plan: &Plan,
    agents: &[(String, Option<Status>)],
    unhealthy: Option<&str>,
) -> Value {
    let process = |process: &crate::state::Process| {
        json!({
            "host": process.host,
            "role": process.role,
            "pid": process.id.pid,
            "running": process.id.is_alive(),
            "command": process.command,
        })
    };
    let agent = |(node, status): &(String, Option<Status>)| match status {
        None => json!({ "node": node, "answers": false }),
        Some(status) => {
            let mut value = json!(status);
            value["answers"] = true.into();
            value
        }
    };
    json!({
        "schemaVersion": 1,
        "lab": state.lab,
        "healthy": unhealthy.is_none(),
        "why": unhealthy,
        "dataplane": state.options.dataplane,
        "source": state.options.source,
        "hosts": hosts(plan, state.options.dataplane),
        "processes": state.processes.iter().map(process).collect::<Vec<_>>(),
        "agents": agents.iter().map(agent).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(from: &str, to: &str, skipped: Option<&str>) -> Way {
        let requests = if skipped.is_some() { 0 } else { 5 };
        Way {
            service: "default/web:http".to_owned(),
            from: from.to_owned(),
            to: to.parse().unwrap(),
            protocol: Protocol::Tcp,
            expected: Expected::Answered {
                pods: BTreeSet::new(),
            },
            reason: String::new(),
            asked: requests,
            as_expected: requests,
            answers: BTreeMap::new(),
            otherwise: BTreeSet::new(),
            skipped: skipped.map(str::to_owned),
            namespace: String::new(),
        }
    }

    #[test]
    fn ways_that_were_not_asked_do_not_count_and_are_explained() {
        let [one, other] = ["10.96.0.10:80", "10.96.0.11:80"];
        let mut ways = vec![
            way("client", one, None),
            way("node/a", one, Some("no SCTP")),
        ];
        let text = ways_table(&ways);
        assert!(
            text.ends_with(
                "\n5 of 5 requests ended as explained, by 1 way\nskipped: 1 way, no SCTP\n"
            ),
            "{text}"
        );
        ways.push(way("client", other, None));
        let text = ways_table(&ways);
        assert!(text.contains("10 of 10 requests ended as explained, by 2 ways\n"));
        assert!(text.ends_with(GAPS), "{text}");
    }

    #[test]
    fn endpoints_that_end_are_shown_where_none_is_ready() {
        let mut service = CheckedService {
            service: "default/web".to_owned(),
            kind: "ClusterIP".to_owned(),
            addresses: Vec::new(),
            endpoints: vec!["10.244.1.10:80".to_owned()],
            terminating: vec!["10.244.1.11:80".to_owned()],
            requests: Vec::new(),
        };
        assert_eq!(endpoints(&service), "10.244.1.10:80");
        service.endpoints.clear();
        assert_eq!(endpoints(&service), "10.244.1.11:80 terminating");
        service.terminating.clear();
        assert_eq!(endpoints(&service), "none");
    }
}
