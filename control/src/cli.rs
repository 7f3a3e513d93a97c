//! The command line. A subcommand is a module with `Arguments` and `run`, and a variant of [`Command`].

mod bench;
mod conntrack;
mod explain;
mod inputs;
mod manual;
mod node;
mod render;

use clap::{Parser, Subcommand, ValueEnum};
use control::problem::in_words;
use std::fmt;
use std::process::ExitCode;

/// Kubernetes Services in userspace: explain, render and run what kube-proxy decides.
#[derive(Debug, Parser)]
#[command(name = "penstock", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the dataplane on this machine
    Bench(bench::Arguments),
    /// Print a script that completes commands in a shell
    Completions(manual::Completions),
    /// Show or end a node's connections, as conntrack-tools do
    Conntrack(Box<conntrack::Arguments>),
    /// Say what becomes of a new packet, and which rule of Kubernetes decides it
    Explain(explain::Arguments),
    /// Write the manual pages, one of each command
    Manual(manual::Pages),
    /// Run a node in this network namespace, on links that are already there
    Node(node::Arguments),
    /// Print the rules that kube-proxy would program on a node, or compare them with a node's own
    Render(render::Arguments),
}

/// Runs the chosen subcommand.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Completions(arguments) => arguments.print(),
        Command::Conntrack(arguments) => conntrack::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Manual(arguments) => arguments.write(),
        Command::Node(arguments) => node::run(arguments),
        Command::Render(arguments) => render::run(&arguments),
    }
}

/// Why a command did not do what it was asked to; each kind has its exit code.
#[derive(Debug)]
pub(crate) enum Failure {
    /// 1: it failed, or what was checked is not so.
    Failed(anyhow::Error),
    /// 1: there was nothing to do it to, which has been said.
    Nothing,
    /// 2: wrong usage, such as a name that does not exist.
    Usage(String),
    /// 3: a privilege or a feature of the kernel is missing.
    Unavailable(String),
}

impl Failure {
    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) | Self::Nothing => 1,
            Self::Usage(_) => 2,
            Self::Unavailable(_) => 3,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => f.write_str(&in_words(error)),
            Self::Nothing => Ok(()),
            Self::Usage(message) | Self::Unavailable(message) => f.write_str(message),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Writes to stdout; a reader that has gone away is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
