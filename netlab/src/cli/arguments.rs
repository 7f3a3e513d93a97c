//! The command line.

use super::diff;
use crate::state::{AgentOptions, Dataplane};
use crate::{bench, serve};
use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  ./lab up                            the lab quickstart
  ./lab exec client -- curl -s http://203.0.113.10/
  ./lab down
  ./lab up tests/fixtures/dual-stack  a folder of objects
  kubectl get svc,endpointslices,nodes -A -o yaml >cluster.yaml
  ./lab up cluster.yaml               a cluster of yours

Exit codes: 0 done, 1 failed or unhealthy, 2 wrong usage,
3 a privilege or a kernel feature is missing, 4 no such lab, 130 interrupted;
exec passes the command's own.";

/// A Kubernetes cluster's Service networking in network namespaces, on this machine
#[derive(Parser)]
#[command(name = "lab", bin_name = "./lab", version, after_help = EXAMPLES)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Verb,
}

#[derive(Subcommand)]
/// What is to be done.
pub(super) enum Verb {
    /// Bring a lab up, wait until it works, and ask each Service once
    Up(Up),
    /// Remove a lab, whatever is left of it
    Down {
        /// The lab; the running one when absent
        lab: Option<String>,
        /// All labs of this machine, also those that other checkouts made; those of running benchmarks stay
        #[arg(long, conflicts_with = "lab")]
        all: bool,
    },
    /// List labs, known and running
    Ls {
        #[command(flatten)]
        output: Output,
    },
    /// Show the hosts, addresses and processes of a running lab
    Status {
        /// The lab; the running one when absent
        lab: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Ask every address of every Service from everywhere, and hold the answers against `penstock explain`
    Check {
        /// The lab; the running one when absent
        lab: Option<String>,
        /// How often each way is asked
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
        requests: u16,
        #[command(flatten)]
        output: Output,
    },
    /// Print what a host's processes wrote
    Logs {
        /// Go on printing
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        which: Which,
        /// client, node/NAME, pod/NAMESPACE/NAME, or any prefix that only one has
        host: String,
    },
    /// Run a command in a host
    #[command(after_help = "Examples:
  ./lab exec client -- curl -s http://203.0.113.10/
  ./lab exec node/node-a -- ip rule
  ./lab exec pod/default/client              a shell")]
    Exec {
        #[command(flatten)]
        which: Which,
        /// client, node/NAME, pod/NAMESPACE/NAME, or any prefix that only one has
        host: String,
        /// The command; a shell when absent
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Show or end a node's connections, as conntrack-tools do
    #[command(
        disable_help_flag = true,
        after_help = "Examples:
  ./lab conntrack node-a -L -p tcp
  ./lab conntrack node-a -E
  ./lab conntrack node-a --top snat --watch
  ./lab conntrack node-a --help              all that can be asked"
    )]
    Conntrack {
        #[command(flatten)]
        which: Which,
        /// Print help; after a node all that can be asked of its connections
        #[arg(short, long)]
        help: bool,
        /// The node, or a prefix that only one has
        #[arg(required_unless_present = "help")]
        node: Option<String>,
        /// What conntrack is to do
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGUMENTS"
        )]
        arguments: Vec<String>,
    },
    /// Change the objects of a running lab: pods come and go, established connections stay
    Apply {
        /// Objects, `-` for standard input; those of the same kind and name are replaced, others stay
        #[arg(short, long, value_name = "FILE")]
        filename: PathBuf,
        /// Remove the objects that are not in the file
        #[arg(long)]
        prune: bool,
        #[command(flatten)]
        which: Which,
    },
    /// Send the same packets through the kernel and through us, and compare
    Diff(diff::Arguments),
    /// Check format and lints, and run all tests; what follows goes to `cargo test`
    Test {
        /// For `cargo test`
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGUMENTS"
        )]
        arguments: Vec<String>,
    },
    /// Print a script that completes commands in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Measure dataplanes side by side, in labs of equal make
    #[command(after_help = "Examples:
  ./lab bench connections
  ./lab bench latency --services 1 --against plain,tun-copy --rounds 9
  ./lab bench packets -o json --report packets.html")]
    Bench(bench::Arguments),
    /// Serve HTTP and UDP echo: what pods run when nothing is said
    #[command(hide = true)]
    Serve(serve::Arguments),
    /// What pods of a benchmark run
    #[command(hide = true)]
    BenchServe {
        /// TCP and UDP
        port: u16,
    },
}

#[derive(clap::Args)]
pub(super) struct Up {
    /// A name under labs/, a lab file, Kubernetes objects, or a folder of them
    #[arg(default_value = "quickstart")]
    pub(super) lab: String,
    /// KubeProxyConfiguration file
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// What makes Services work
    #[arg(long, default_value = "penstock")]
    pub(super) dataplane: Dataplane,
    /// Node through which the client reaches load balancer and external IPs
    #[arg(long, value_name = "NODE")]
    pub(super) via: Option<String>,
    #[command(flatten)]
    pub(super) agent: AgentOptions,
    /// Name of the lab, when it is not to be that of its file
    #[arg(long)]
    pub(super) name: Option<String>,
    /// If the lab does not come up, leave in place what was made, so that one can look at it
    #[arg(long)]
    pub(super) keep: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

#[derive(clap::Args)]
pub(super) struct Which {
    /// The lab, where more than one runs
    #[arg(long)]
    pub(super) lab: Option<String>,
}

#[derive(clap::Args)]
pub(super) struct Output {
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub(super) output: Form,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// For people
    Table,
    /// One JSON document
    Json,
}
