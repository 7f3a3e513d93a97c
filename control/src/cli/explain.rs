//! `penstock explain`.

use super::inputs::Inputs;
use super::{Failure, Output, print};
use clap::Args;
use control::compile::CompileError;
use control::explain::overview::{self, Overview, Way};
use control::explain::{Candidate, Explainer, Explanation, Packet};
use control::model::{Family, Transport};
use control::snapshot::{Service, Snapshot};
use dataplane::service::SourceClass;
use dataplane::tuple::Origin;
use serde_json::{Value, json};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

/// Say what becomes of a new packet, and which rule of Kubernetes decides it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  penstock explain --snapshot objects.yaml --node node-a --from 10.244.1.5 --iif eth0 --to 10.96.0.10:53/udp
  penstock explain --snapshot objects.yaml --from 203.0.113.7 --iif eth0 --to 192.0.2.80:443/tcp
  penstock explain --snapshot objects.yaml --service default/web")]
pub(crate) struct Arguments {
    #[command(flatten)]
    inputs: Inputs,
    /// The node that the packet meets; every node side by side when absent
    #[arg(long)]
    node: Option<String>,
    /// Where the packet comes from
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = parse_from, required_unless_present = "service")]
    from: Option<(IpAddr, u16)>,
    /// The interface that it comes in by; empty or absent: the node itself sends it
    #[arg(long, value_name = "INTERFACE", default_value = "")]
    iif: String,
    /// Where it is addressed to
    #[arg(long, value_name = "ADDRESS:PORT/PROTOCOL", value_parser = parse_to, required_unless_present = "service")]
    to: Option<(SocketAddr, Transport)>,
    /// Instead of one packet: how every kind of client reaches this Service, and what usually goes wrong
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with_all = ["from", "to", "iif"])]
    service: Option<String>,
    /// How to print it
    #[arg(short, long, default_value = "text")]
    output: Output,
}

fn parse_from(text: &str) -> Result<(IpAddr, u16), String> {
    if let Ok(address) = text.trim_matches(['[', ']']).parse() {
        return Ok((address, 40_000));
    }
    let socket: SocketAddr = text
        .parse()
        .map_err(|_| "write an address, or ADDRESS:PORT ([ADDRESS]:PORT for IPv6)".to_owned())?;
    Ok((socket.ip(), socket.port()))
}

fn parse_to(text: &str) -> Result<(SocketAddr, Transport), String> {
    let (socket, protocol) = text
        .split_once('/')
        .ok_or("write ADDRESS:PORT/PROTOCOL, like 10.96.0.10:53/udp")?;
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        "sctp" => Transport::Sctp,
        other => return Err(format!("`{other}` is none of tcp, udp and sctp")),
    };
    let socket = socket
        .parse()
        .map_err(|_| format!("`{socket}` is not ADDRESS:PORT ([ADDRESS]:PORT for IPv6)"))?;
    Ok((socket, protocol))
}

/// Prints the decision.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (snapshot, config) = arguments.inputs.read()?;
    let names: Vec<&str> = match &arguments.node {
        Some(name) => vec![name],
        None => snapshot
            .nodes
            .iter()
            .map(|node| node.metadata.name.as_str())
            .collect(),
    };
    if names.is_empty() {
        let message = "the snapshot has no Node; add those of `kubectl get nodes -o yaml`";
        return Err(Failure::Usage(message.to_owned()));
    }
    if arguments.inputs.have_no_config() {
        eprintln!(
            "note: without --config kube-proxy's defaults hold, which cannot tell pods from others (detectLocalMode, \
             clusterCIDR)"
        );
    }
    let nodes = names
        .iter()
        .map(|name| Explainer::new(&snapshot, &config, name))
        .collect::<Result<Vec<_>, CompileError>>()
        .map_err(no_such_node)?;
    if let Some(service) = &arguments.service {
        let overview = overview::of(find_service(&snapshot, service)?, &nodes);
        return print(&match arguments.output {
            Output::Json => pretty(&serde_json::to_value(&overview)?),
            Output::Text => overview_text(&overview),
        });
    }
    let (Some((source, source_port)), Some((destination, protocol))) =
        (arguments.from, arguments.to)
    else {
        return Err(Failure::Usage(
            "--from and --to are needed, or --service".to_owned(),
        ));
    };
    if Family::of(source) != Family::of(destination.ip()) {
        return Err(Failure::Usage(
            "--from and --to are of different IP families".to_owned(),
        ));
    }
    let packet = |node: &Explainer<'_>| Packet {
        source,
        source_port,
        origin: node.origin(&arguments.iif),
        destination,
        protocol,
    };
    let answers: Vec<_> = nodes
        .iter()
        .map(|node| (node, node.explain(&packet(node))))
        .collect();
    hint(&nodes, &arguments.iif, source);
    print(&match (arguments.output, &arguments.node) {
        (Output::Json, Some(_)) => pretty(&serde_json::to_value(&answers[0].1)?),
        (Output::Json, None) => pretty(&side_by_side(&answers)?),
        (Output::Text, _) => answers
            .iter()
            .fold(String::new(), |mut text, (node, answer)| {
                write_explanation(&mut text, node.node_name, answer);
                text
            }),
    })
}

fn no_such_node(error: CompileError) -> Failure {
    match error {
        CompileError::NoSuchNode { .. } => Failure::Usage(error.to_string()),
        CompileError::NoPodCidr(_) | CompileError::NoPodCidrOfFamily { .. } => Failure::from(error),
    }
}

fn find_service<'s>(snapshot: &'s Snapshot, name: &str) -> Result<&'s Service, Failure> {
    let full =
        |service: &Service| format!("{}/{}", service.metadata.namespace, service.metadata.name);
    let names: Vec<String> = snapshot.services.iter().map(full).collect();
    let position = names.iter().position(|known| known == name);
    let Some(position) = position else {
        let likely = control::problem::did_you_mean(name, names.iter().map(String::as_str));
        let hint = likely.map_or_else(
            || format!("; it has {}", names.join(", ")),
            |likely| format!("; did you mean {likely}?"),
        );
        return Err(Failure::Usage(format!(
            "there is no Service {name} in the snapshot{hint}"
        )));
    };
    Ok(&snapshot.services[position])
}

/// A source that is not the node's own, without an interface, is most likely a mistake.
fn hint(nodes: &[Explainer<'_>], interface: &str, source: IpAddr) {
    let foreign = |node: &Explainer<'_>| {
        node.table().class(source.into(), Origin::Node) != SourceClass::Local
    };
    if interface.is_empty() && nodes.iter().all(foreign) {
        eprintln!(
            "note: without --iif the packet is one that the node itself sends; {source} is none of its addresses. \
             Name the interface that it comes in by, as in --iif eth0"
        );
    }
}

fn side_by_side(answers: &[(&Explainer<'_>, Explanation)]) -> Result<Value, Failure> {
    let mut list = Vec::new();
    for (node, answer) in answers {
        let mut value = serde_json::to_value(answer)?;
        value["node"] = json!(node.node_name);
        list.push(value);
    }
    Ok(Value::Array(list))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn write_explanation(text: &mut String, node: &str, answer: &Explanation) {
    let service = answer
        .service
        .as_deref()
        .map_or_else(String::new, |name| format!(" {name}"));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{node}: {}{service}", verdict(answer));
    let _ = writeln!(text, "  {}", answer.reason);
    for candidate in &answer.endpoints {
        let _ = writeln!(text, "  {}", candidate_text(candidate));
    }
}

fn verdict(answer: &Explanation) -> String {
    format!("{:?}", answer.verdict).to_lowercase()
}

fn candidate_text(candidate: &Candidate) -> String {
    let socket = SocketAddr::new(candidate.address, candidate.port);
    let source = if candidate.masquerade {
        "source masqueraded"
    } else {
        "source kept"
    };
    format!("{socket}  {:.1} %  {source}", candidate.probability * 100.0)
}

fn overview_text(overview: &Overview) -> String {
    let mut text = format!("{}\n", overview.service);
    for warning in &overview.warnings {
        let _ = writeln!(text, "  warning: {warning}");
    }
    let mut node = "";
    for way in &overview.ways {
        if way.node != node {
            node = &way.node;
            let _ = writeln!(text, "\n{node}");
        }
        let _ = writeln!(text, "  {}", way_text(way));
    }
    let mut candidates = overview
        .ways
        .iter()
        .flat_map(|way| &way.explanation.endpoints);
    if candidates.any(|candidate| candidate.masquerade) {
        text.push_str("\n* the source is masqueraded: the endpoint sees an address of the node\n");
    }
    text
}

fn way_text(way: &Way) -> String {
    let to = format!("{}/{}", way.to, way.protocol);
    let head = format!("{:<8} {:<15} {to:<28}", way.client, way.via);
    let answer = &way.explanation;
    let endpoints: Vec<String> = answer
        .endpoints
        .iter()
        .map(|candidate| {
            let mark = if candidate.masquerade { "*" } else { "" };
            format!(
                "{}{mark}",
                SocketAddr::new(candidate.address, candidate.port)
            )
        })
        .collect();
    if endpoints.is_empty() {
        return format!("{head} {}: {}", verdict(answer), answer.reason);
    }
    format!("{head} {}", endpoints.join(" "))
}
