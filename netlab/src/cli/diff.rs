//! `lab diff`: what to run, and what to print of it.

use super::arguments::{Form, Output};
use crate::diff::generate::Cluster;
use crate::diff::report::Found;
use crate::diff::{self, Request, Rules, Subject};
use crate::lab::Error;
use crate::screens;
use crate::servers::in_path;
use control::config::KubeProxyConfig;
use control::snapshot::Snapshot;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "Examples:
  ./lab diff --against iptables                          50 random cases
  ./lab diff --against nftables --seconds 60
  ./lab diff --against iptables --snapshot cluster.yaml --config kube-proxy.yaml
  ./lab diff --against iptables --replay penstock-diff-7.json

Exit codes: 0 the same, 1 there is a difference, 2 wrong usage, 3 a privilege or a program is missing.";

/// Arguments of `lab diff`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The rules in the kernel
    #[arg(long)]
    against: Rules,
    /// What is held against them
    #[arg(long, default_value = "penstock")]
    subject: Subject,
    /// Cases to run [default: 50, without --seconds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    cases: Option<u64>,
    /// Run for so long instead
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Seed of the first case; the same seed makes the same cases
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Kubernetes objects instead of random ones: a file or a folder
    #[arg(long, value_name = "FILE|DIR")]
    snapshot: Option<PathBuf>,
    /// KubeProxyConfiguration for these objects
    #[arg(long, value_name = "FILE", requires = "snapshot")]
    config: Option<PathBuf>,
    /// A node of these objects [default: all in turn]
    #[arg(long, value_name = "NAME", requires = "snapshot")]
    node: Option<String>,
    /// Run a saved case again
    #[arg(long, value_name = "FILE", conflicts_with_all = ["snapshot", "cases", "seconds", "seed"])]
    replay: Option<PathBuf>,
    /// Folder to save differences in
    #[arg(long, value_name = "DIR", default_value = ".")]
    save: PathBuf,
    /// Tell differences as they were found, without making them smaller
    #[arg(long)]
    no_shrink: bool,
    /// End at the first difference
    #[arg(long)]
    until_different: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    require(arguments.against)?;
    let request = request(arguments)?;
    let is_table = arguments.output.output == Form::Table;
    let told = |found: &Found| {
        eprintln!(
            "seed {}: {}, saved as {}",
            found.seed,
            found.kind,
            found.file.display()
        );
    };
    let report = match &arguments.replay {
        Some(file) => {
            let case = diff::read_case(file);
            let case = case.map_err(|error| Error::Failed(format!("{error:#}")))?;
            diff::replay(file, &case, &request)
        }
        None => diff::run(&request, &told),
    };
    let report = report.map_err(|error| Error::Failed(format!("{error:#}")))?;
    if is_table {
        for found in &report.differences {
            screens::print(&format!(
                "difference of seed {}: {}\n{}\n",
                found.seed, found.kind, found.story
            ))?;
        }
        screens::print(&report.summary())?;
    } else {
        screens::print_json(&json!(report))?;
    }
    Ok(ExitCode::from(u8::from(!report.is_same())))
}

fn require(rules: Rules) -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        let text = "lab diff needs root: it makes network namespaces; run it with sudo";
        return Err(Error::Unable(text.to_owned()));
    }
    let programs: &[&str] = match rules {
        Rules::Iptables => &["iptables-restore", "ip6tables-restore", "conntrack"],
        Rules::Nftables => &["nft", "conntrack"],
    };
    match programs.iter().find(|program| in_path(program).is_none()) {
        Some(missing) => {
            let text = format!(
                "{missing} is missing; install it: apt-get install iptables nftables conntrack"
            );
            Err(Error::Unable(text))
        }
        None => Ok(()),
    }
}

fn request(arguments: &Arguments) -> Result<Request, Error> {
    const CASES: u64 = 50;
    const ENOUGH: usize = 20;
    let clusters = match &arguments.snapshot {
        Some(path) => clusters(path, arguments)?,
        None => Vec::new(),
    };
    if !arguments.save.is_dir() {
        let text = format!("--save {}: no such folder", arguments.save.display());
        return Err(Error::Usage(text));
    }
    let default_cases = arguments.seconds.is_none().then_some(CASES);
    Ok(Request {
        against: arguments.against,
        subject: arguments.subject,
        seed: arguments.seed,
        cases: arguments.cases.or(default_cases),
        time: arguments.seconds.map(Duration::from_secs),
        clusters,
        save: arguments.save.clone(),
        shrink: !arguments.no_shrink,
        enough: if arguments.until_different { 1 } else { ENOUGH },
    })
}

/// The given objects, seen from the node that was named, or from each.
fn clusters(path: &Path, arguments: &Arguments) -> Result<Vec<Cluster>, Error> {
    let wrong = |error: &dyn std::fmt::Display| Error::Failed(error.to_string());
    let snapshot = Snapshot::read(path).map_err(|error| wrong(&error))?;
    let objects = diff::generate::objects(path).map_err(|error| wrong(&format!("{error:#}")))?;
    let config: Value = match &arguments.config {
        None => {
            json!({ "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration" })
        }
        Some(file) => {
            let text = std::fs::read_to_string(file);
            let text = text.map_err(|error| wrong(&format!("{}: {error}", file.display())))?;
            KubeProxyConfig::parse(&file.display().to_string(), &text)
                .map_err(|error| wrong(&error))?;
            serde_saphyr::from_str(&text)
                .map_err(|error| wrong(&format!("{}: {error}", file.display())))?
        }
    };
    let names: Vec<String> = snapshot
        .nodes
        .iter()
        .map(|node| node.metadata.name.clone())
        .collect();
    let named = |name: &String| arguments.node.as_ref().is_none_or(|wanted| wanted == name);
    let clusters: Vec<Cluster> = names
        .into_iter()
        .filter(named)
        .map(|node| Cluster {
            config: config.clone(),
            objects: objects.clone(),
            node,
        })
        .collect();
    if clusters.is_empty() {
        return Err(Error::Usage(format!(
            "{}: no such Node in it",
            path.display()
        )));
    }
    Ok(clusters)
}
