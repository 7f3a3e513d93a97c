//! `penstock render`: the rules of a node as text, or against a dump of a real one.

use super::inputs::Inputs;
use super::{Failure, Output, print};
use anyhow::anyhow;
use clap::{Args, ValueEnum};
use control::model::Family;
use control::node_network::NodeNetwork;
use control::render::difference::{Difference, differences};
use control::render::dump::Dump;
use control::render::{self, Proxiers};
use serde_json::json;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Print the rules that kube-proxy 1.30 would program on a node, or compare them with a node's own.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  penstock render iptables --snapshot objects.yaml --config kube-proxy.yaml --node node-a
  penstock render iptables --snapshot objects.yaml --node node-a --family ipv4 | iptables-restore --test
  ssh node-a 'iptables-save; ip6tables-save' |
    penstock render --diff - --snapshot objects.yaml --config kube-proxy.yaml --node node-a")]
pub(crate) struct Arguments {
    /// Which rules to print: in the format of `iptables-save` (then `ip6tables-save`), or of `nft list ruleset`
    #[arg(value_enum, required_unless_present = "diff")]
    mode: Option<Mode>,
    #[command(flatten)]
    inputs: Inputs,
    /// The node, by its name in the snapshot
    #[arg(long)]
    node: String,
    /// Only one family, without the line that names the tool
    #[arg(long, value_enum)]
    family: Option<FamilyArgument>,
    /// Compare with the output of `iptables-save` and `ip6tables-save` of the node (`-`: standard input), and tell
    /// what is missing, changed, stale or foreign there; exit code 1 if anything is
    #[arg(long, value_name = "DUMP", conflicts_with = "family")]
    diff: Option<PathBuf>,
    /// How to print the differences
    #[arg(short, long, default_value = "text", requires = "diff")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Iptables,
    Nftables,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FamilyArgument {
    Ipv4,
    Ipv6,
}

/// Prints the rules or the differences.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match (&arguments.diff, arguments.mode) {
        (None, Some(Mode::Nftables)) => print_nftables(arguments),
        (None, Some(Mode::Iptables) | None) => print_iptables(arguments),
        (Some(dump), Some(Mode::Iptables) | None) => compare(arguments, dump),
        (Some(_), Some(Mode::Nftables)) => Err(Failure::Usage(
            "--diff reads the output of iptables-save; leave `nftables` out".to_owned(),
        )),
    }
}

fn print_iptables(arguments: &Arguments) -> Result<(), Failure> {
    let proxiers = proxiers(arguments)?;
    print(&match arguments.family {
        None => render::iptables(&proxiers),
        Some(family) => render::iptables_tables(proxiers.of(family.into())),
    })
}

fn print_nftables(arguments: &Arguments) -> Result<(), Failure> {
    let proxiers = proxiers(arguments)?;
    print(&match arguments.family {
        None => render::nftables(&proxiers)?,
        Some(family) => render::nftables_table(proxiers.of(family.into()))?,
    })
}

fn compare(arguments: &Arguments, path: &Path) -> Result<(), Failure> {
    let proxiers = proxiers(arguments)?;
    let dump = read_dump(path).map_err(Failure::Usage)?;
    note_missing_families(&proxiers, &dump, path);
    let differences = differences(&proxiers, &dump);
    print(&match arguments.output {
        Output::Text => as_text(&differences),
        Output::Json => as_json(&differences),
    })?;
    match differences.len() {
        0 => {
            eprintln!("{} has the rules of the snapshot", arguments.node);
            Ok(())
        }
        count => Err(Failure::Failed(anyhow!(
            "{} differs from the snapshot in {count} {}",
            arguments.node,
            if count == 1 { "point" } else { "points" }
        ))),
    }
}

fn note_missing_families(proxiers: &Proxiers, dump: &Dump, path: &Path) {
    for (family, tool, is_wanted) in [
        (Family::V4, "iptables-save", true),
        (Family::V6, "ip6tables-save", proxiers.has_ipv6),
    ] {
        if is_wanted && dump.of(family).is_none() {
            let path = path.display();
            eprintln!("note: {path} has no output of {tool}, so that family is not compared");
        }
    }
}

fn as_text(differences: &[Difference]) -> String {
    let lines = differences.iter();
    lines.map(|difference| format!("{difference}\n")).collect()
}

fn as_json(differences: &[Difference]) -> String {
    let document = json!({
        "schemaVersion": 1,
        "same": differences.is_empty(),
        "differences": differences,
    });
    format!("{document:#}\n")
}

fn proxiers(arguments: &Arguments) -> Result<Proxiers, Failure> {
    let (snapshot, config) = arguments.inputs.read()?;
    let node = control::compile::find_node(&snapshot, &arguments.node);
    let node = node.map_err(|error| Failure::Usage(error.to_string()))?;
    let network = NodeNetwork::from_snapshot(node);
    Ok(Proxiers::new(
        &snapshot,
        &config,
        &network,
        &arguments.node,
    )?)
}

/// Reads a dump that has at least one table in it.
fn read_dump(path: &Path) -> Result<Dump, String> {
    let name = path.display();
    let text = read(path).map_err(|error| format!("{name}: {error}"))?;
    let dump = Dump::parse(&text).map_err(|error| format!("{name}: {error}"))?;
    if dump == Dump::default() {
        return Err(format!(
            "{name}: there is no table in it; save one with `iptables-save`"
        ));
    }
    Ok(dump)
}

fn read(path: &Path) -> io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(path)
}

impl From<FamilyArgument> for Family {
    fn from(family: FamilyArgument) -> Self {
        match family {
            FamilyArgument::Ipv4 => Self::V4,
            FamilyArgument::Ipv6 => Self::V6,
        }
    }
}
