//! Commands of `penstock-lab`, which people call `./lab`.

mod diff;

use crate::lab::{self, Error};
use crate::lab_file::{self, SourceError};
use crate::names::HostName;
use crate::namespace::Namespace;
use crate::plan::{Host, Plan};
use crate::state::{self, AgentOptions, Dataplane, State};
use crate::{bench, everywhere, screens, serve, servers};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use control::config::KubeProxyConfig;
use control::snapshot::Snapshot;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const EXAMPLES: &str = "Examples:
  ./lab up                                       the lab quickstart: two nodes, two nginx, a client
  ./lab up tests/fixtures/dual-stack             a folder with snapshot.yaml and kube-proxy.yaml
  ./lab up cluster.yaml --config kube-proxy.yaml from kubectl get svc,endpointslices,nodes -A -o yaml
  ./lab exec client -- curl -s http://203.0.113.10/
  ./lab test                                     the project's tests
  ./lab down

Exit codes: 0 done, 1 failed or unhealthy, 2 wrong usage, 3 a privilege or a kernel feature is missing,
4 no such lab, 130 interrupted; exec passes the command's own.";

/// A Kubernetes cluster's Service networking in network namespaces, on this machine
#[derive(Parser)]
#[command(name = "lab", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring a lab up, wait until it works, and ask each Service once
    Up(Up),
    /// Remove a lab, whatever is left of it
    Down {
        /// The lab; the running one when absent
        lab: Option<String>,
        /// All labs
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
    #[command(after_help = "Examples:
  ./lab conntrack node-a -L -p tcp
  ./lab conntrack node-a -E
  ./lab conntrack node-a --top snat --watch
  ./lab conntrack node-a --help              all that can be asked")]
    Conntrack {
        #[command(flatten)]
        which: Which,
        /// The node, or a prefix that only one has
        node: String,
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
        /// Objects; those of the same kind and name are replaced, others stay
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
struct Up {
    /// A name under labs/, a lab file, Kubernetes objects, or a folder of them
    #[arg(default_value = "quickstart")]
    lab: String,
    /// KubeProxyConfiguration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What makes Services work
    #[arg(long, default_value = "penstock")]
    dataplane: Dataplane,
    /// Node that the client reaches load balancer and external IPs by
    #[arg(long, value_name = "NODE")]
    via: Option<String>,
    #[command(flatten)]
    agent: AgentOptions,
    /// Name of the lab, when it is not to be that of its file
    #[arg(long)]
    name: Option<String>,
    /// Leave what was made when it does not come up, to look at it
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
struct Which {
    /// The lab, where more than one runs
    #[arg(long)]
    lab: Option<String>,
}

#[derive(clap::Args)]
struct Output {
    /// How to print
    #[arg(short, long, default_value = "table")]
    output: Form,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Table,
    /// One JSON document
    Json,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(code(&error))
        }
    }
}

fn code(error: &Error) -> u8 {
    match error {
        Error::Source(SourceError::NotFound(_)) | Error::NotUp(_) => 4,
        Error::Unable(_) | Error::Server(servers::Error::Missing { .. }) => 3,
        Error::Dataplane(crate::dataplane::Error::Agent(servers::Error::Missing { .. })) => 3,
        Error::Usage(_) => 2,
        Error::Interrupted => 130,
        Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => 3,
        _ => 1,
    }
}

fn run(command: Verb) -> Result<ExitCode, Error> {
    match command {
        Verb::Up(arguments) => up(&arguments),
        Verb::Down { lab, all } => down(lab, all),
        Verb::Ls { output } => ls(output.output),
        Verb::Status { lab, output } => status(lab, output.output),
        Verb::Check {
            lab,
            requests,
            output,
        } => check(lab, requests.into(), output.output),
        Verb::Logs {
            follow,
            which,
            host,
        } => logs(which.lab, &host, follow),
        Verb::Exec {
            which,
            host,
            command,
        } => exec(which.lab, &host, &command),
        Verb::Conntrack {
            which,
            node,
            arguments,
        } => conntrack(which.lab, &node, &arguments),
        Verb::Apply {
            filename,
            prune,
            which,
        } => apply(which.lab, &filename, prune),
        Verb::Diff(arguments) => diff::run(&arguments),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lab", &mut script);
            screens::print(&String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Bench(arguments) => {
            let interrupted = interrupts()?;
            bench::run(&arguments, &|| interrupted.load(Ordering::Relaxed))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Serve(arguments) => served(serve::run(arguments)),
        Verb::BenchServe { port } => served(bench::serve(port)),
    }
}

fn served(served: io::Result<()>) -> Result<ExitCode, Error> {
    served.map_err(|source| Error::Io {
        what: "serve".to_owned(),
        source,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The folder of labs that `up NAME` knows; the script `lab` says where the project is.
fn labs_folder() -> PathBuf {
    std::env::var_os("PENSTOCK_LABS").map_or_else(|| PathBuf::from("labs"), PathBuf::from)
}

fn up(arguments: &Up) -> Result<ExitCode, Error> {
    let source = lab_file::find(&labs_folder(), &arguments.lab)?;
    let name = arguments.name.as_deref().unwrap_or(&source.name);
    check_name(name)?;
    let interrupted = interrupts()?;
    let config = match &arguments.config {
        None => None,
        Some(path) => Some(std::fs::canonicalize(path).map_err(|source| Error::Io {
            what: path.display().to_string(),
            source,
        })?),
    };
    let running = lab::up(&lab::Request {
        source: &source,
        name,
        config,
        dataplane: arguments.dataplane,
        via: arguments.via.clone(),
        agent: arguments.agent,
        keep: arguments.keep,
        progress: &progress,
        interrupted: &|| interrupted.load(Ordering::Relaxed),
    })?;
    for note in &running.plan.notes {
        eprintln!("note: {note}");
    }
    match arguments.output.output {
        Form::Json => screens::print_json(&screens::up_json(&running)),
        Form::Table => screens::print(&screens::up_table(&running)),
    }?;
    let healthy = lab::unanswered(&running.services).is_empty();
    Ok(ExitCode::from(u8::from(!healthy)))
}

fn check_name(name: &str) -> Result<(), Error> {
    const LENGTH: usize = 40;
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let fits = (1..=LENGTH).contains(&name.len())
        && name.bytes().all(|byte| letter(byte) || byte == b'-')
        && name.bytes().next().is_some_and(letter);
    if fits {
        return Ok(());
    }
    let text = format!(
        "--name {name}: a lab's name is made of up to {LENGTH} lower-case letters, digits and dashes"
    );
    Err(Error::Usage(text))
}

/// True once somebody pressed Ctrl-C, or asked this process to end.
fn interrupts() -> Result<Arc<AtomicBool>, Error> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        let registered = signal_hook::flag::register(signal, interrupted.clone());
        registered.map_err(|source| Error::Io {
            what: "signals".to_owned(),
            source,
        })?;
    }
    Ok(interrupted)
}

fn progress(step: &str, what: &str, took: Duration) {
    eprintln!(" ok  {step:<10} {what:<50} {:>5} ms", took.as_millis());
}

fn down(lab: Option<String>, all: bool) -> Result<ExitCode, Error> {
    let running = state::labs().map_err(folder_error)?;
    let labs = match (lab, all, running.as_slice()) {
        (_, true, _) => running,
        (Some(lab), ..) => vec![lab_name(&lab)],
        (None, false, []) => {
            eprintln!("no lab is up");
            return Ok(ExitCode::SUCCESS);
        }
        (None, false, _) => vec![the_lab(None)?],
    };
    for lab in labs {
        let was = lab::down(&lab)?;
        eprintln!("{lab}: {}", if was { "removed" } else { "is not up" });
    }
    Ok(ExitCode::SUCCESS)
}

/// What `up` was given also names the lab.
fn lab_name(given: &str) -> String {
    if state::folder(given).is_dir() && check_name(given).is_ok() {
        return given.to_owned();
    }
    lab_file::find(&labs_folder(), given)
        .map_or_else(|_| given.replace('/', "-"), |source| source.name)
}

fn folder_error(source: io::Error) -> Error {
    Error::Io {
        what: state::FOLDER.to_owned(),
        source,
    }
}

/// The lab that is meant: the one named, else the only one.
fn the_lab(named: Option<String>) -> Result<String, Error> {
    let labs = state::labs().map_err(folder_error)?;
    match (named, labs.as_slice()) {
        (Some(lab), _) => Ok(lab_name(&lab)),
        (None, [lab]) => Ok(lab.clone()),
        (None, []) => Err(Error::NotUp("no lab is up; ./lab up".to_owned())),
        (None, many) => Err(Error::Usage(format!(
            "more than one lab is up ({}); say which: --lab NAME",
            many.join(", ")
        ))),
    }
}

fn ls(form: Form) -> Result<ExitCode, Error> {
    let running = state::labs().map_err(folder_error)?;
    let known = lab_file::known(&labs_folder());
    let names: BTreeSet<String> = running.into_iter().chain(known).collect();
    let rows: Vec<screens::Lab> = names
        .into_iter()
        .map(|name| screens::Lab::new(&name, State::read(&name).unwrap_or_default()))
        .collect();
    match form {
        Form::Json => screens::print_json(&serde_json::json!({ "schemaVersion": 1, "labs": rows })),
        Form::Table => screens::print(&format!("{}\n", screens::labs_table(&rows))),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The state and plan of a lab, whatever its health.
fn state_of(lab: Option<String>) -> Result<(State, Plan), Error> {
    let lab = the_lab(lab)?;
    let state = State::read(&lab).map_err(folder_error)?;
    let state = state.ok_or_else(|| Error::NotUp(format!("{lab} is not up; ./lab up {lab}")))?;
    let plan = state.plan.clone().unwrap_or_default();
    Ok((state, plan))
}

fn status(lab: Option<String>, form: Form) -> Result<ExitCode, Error> {
    let (state, plan) = state_of(lab)?;
    let broken = state.broken();
    match form {
        Form::Json => screens::print_json(&screens::status_json(&state, &plan)),
        Form::Table => screens::print(&screens::status_table(&state, &plan)),
    }?;
    if let Some(why) = &broken {
        eprintln!(
            "unhealthy: {why}; ./lab up {} makes it anew",
            state.options.source.display()
        );
    }
    Ok(ExitCode::from(u8::from(broken.is_some())))
}

fn check(lab: Option<String>, requests: usize, form: Form) -> Result<ExitCode, Error> {
    let interrupted = interrupts()?;
    let (state, plan) = state_of(lab)?;
    let folder = state::folder(&state.lab);
    let snapshot = Snapshot::read(&folder.join("snapshot.yaml"))?;
    let config = KubeProxyConfig::read(&folder.join("kube-proxy.yaml"))?;
    let mut ways = everywhere::ways(&plan, &snapshot, &config, state.options.dataplane)?;
    everywhere::make_all(&mut ways, requests, &|| interrupted.load(Ordering::Relaxed));
    if interrupted.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    match form {
        Form::Json => screens::print_json(&screens::ways_json(&state, requests, &ways)),
        Form::Table => screens::print(&screens::ways_table(&ways)),
    }?;
    Ok(ExitCode::from(u8::from(
        !ways.iter().all(|way| way.is_fine()),
    )))
}

fn logs(lab: Option<String>, host: &str, follow: bool) -> Result<ExitCode, Error> {
    let (state, plan) = state_of(lab)?;
    let host = find_host(&plan, host)?;
    let path = servers::log(&state.lab, &host.name);
    let unreadable = |source| Error::Io {
        what: path.display().to_string(),
        source,
    };
    if !path.exists() {
        eprintln!("{} has no log: nothing runs in it", host.name);
        return Ok(ExitCode::SUCCESS);
    }
    if follow {
        return Err(unreadable(
            Command::new("tail")
                .args(["-n", "+1", "-f"])
                .arg(&path)
                .exec(),
        ));
    }
    let log = std::fs::read(&path).map_err(unreadable)?;
    screens::print(&String::from_utf8_lossy(&log))?;
    Ok(ExitCode::SUCCESS)
}

/// Replaces this process by the command, in the host's namespace: signals, terminal and exit code are its own.
fn exec(lab: Option<String>, host: &str, command: &[String]) -> Result<ExitCode, Error> {
    let (_, plan) = state_of(lab)?;
    let host = find_host(&plan, host)?;
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
    let (program, arguments) = command
        .split_first()
        .map_or((&shell, &[][..]), |split| split);
    let entered = Namespace::open(&host.namespace).and_then(|namespace| namespace.enter());
    entered.map_err(|source| Error::Io {
        what: host.name.to_string(),
        source,
    })?;
    let failed = Command::new(program).args(arguments).exec();
    let found = failed.kind() != io::ErrorKind::NotFound;
    eprintln!("error: {program}: {failed}");
    // As shells say it.
    Ok(ExitCode::from(if found { 126 } else { 127 }))
}

/// Replaces this process by `penstock conntrack`; where the kernel is the dataplane, by its own `conntrack`.
fn conntrack(lab: Option<String>, node: &str, arguments: &[String]) -> Result<ExitCode, Error> {
    let (state, plan) = state_of(lab)?;
    let host = find_host(&plan, node)?;
    let HostName::Node(name) = &host.name else {
        return Err(Error::Usage(format!("{} is no node", host.name)));
    };
    if state.options.dataplane != Dataplane::Penstock {
        let command = ["conntrack".to_owned()]
            .into_iter()
            .chain(arguments.iter().cloned());
        return exec(
            Some(state.lab),
            &host.name.to_string(),
            &command.collect::<Vec<_>>(),
        );
    }
    let failed = Command::new(servers::beside_us("penstock")?)
        .arg("conntrack")
        .args(["--node", name, "--control-socket"])
        .arg(servers::control_socket(&state.lab, name))
        .args(arguments)
        .exec();
    Err(Error::Io {
        what: "penstock conntrack".to_owned(),
        source: failed,
    })
}

fn apply(lab: Option<String>, file: &Path, prune: bool) -> Result<ExitCode, Error> {
    let lab = the_lab(lab)?;
    let applied = lab::apply(&lab, file, prune)?;
    for (sign, hosts) in [("-", &applied.removed), ("+", &applied.added)] {
        for host in hosts {
            eprintln!("{sign} {host}");
        }
    }
    eprintln!("{lab}: applied {}", file.display());
    Ok(ExitCode::SUCCESS)
}

/// The host that is meant: by its name, by the rest of its name, or by a prefix that only one has.
fn find_host<'a>(plan: &'a Plan, wanted: &str) -> Result<&'a Host, Error> {
    let full = |host: &Host| vec![host.name.to_string()];
    let short = |host: &Host| host.name.short_names();
    let same = |name: &str| name == wanted;
    let begins = |name: &str| name.starts_with(wanted);
    type Names<'a> = &'a dyn Fn(&Host) -> Vec<String>;
    type Fits<'a> = &'a dyn Fn(&str) -> bool;
    let tries: [(Names<'_>, Fits<'_>); 4] = [
        (&full, &same),
        (&short, &same),
        (&full, &begins),
        (&short, &begins),
    ];
    for (names, fits) in tries {
        let found: Vec<&Host> = plan
            .hosts
            .iter()
            .filter(|host| names(host).iter().any(|name| fits(name)))
            .collect();
        match found.as_slice() {
            [] => {}
            [host] => return Ok(host),
            many => {
                let names: Vec<_> = many.iter().map(|host| host.name.to_string()).collect();
                let text = format!(
                    "{wanted}: more than one host begins so: {}",
                    names.join(", ")
                );
                return Err(Error::Usage(text));
            }
        }
    }
    let names: Vec<_> = plan
        .hosts
        .iter()
        .map(|host| host.name.to_string())
        .collect();
    Err(Error::Usage(format!(
        "{wanted}: there is no such host; the hosts are: {}",
        names.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::HostName;
    use crate::plan::Link;

    fn plan() -> Plan {
        let pod = |name: &str| HostName::Pod {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        };
        let names = [
            HostName::Client,
            HostName::Node("node-a".to_owned()),
            pod("web-1"),
            pod("client"),
        ];
        let host = |name| Host {
            name,
            namespace: String::new(),
            link: Link::Shared,
            addresses: Vec::new(),
            bridge: None,
            routes: Vec::new(),
            neighbours: Vec::new(),
            forwards: false,
            server: None,
            node: None,
        };
        Plan {
            hosts: names.into_iter().map(host).collect(),
            ..Plan::default()
        }
    }

    #[test]
    fn hosts_are_found_by_any_prefix_that_one_has() {
        let plan = plan();
        let found = |wanted: &str| {
            find_host(&plan, wanted)
                .map(|host| host.name.to_string())
                .ok()
        };
        let cases = [
            ("client", "client"),
            ("cl", "client"),
            ("node/node-a", "node/node-a"),
            ("n", "node/node-a"),
            ("pod/default/client", "pod/default/client"),
            ("pod/default/w", "pod/default/web-1"),
            ("web-1", "pod/default/web-1"),
            ("default/c", "pod/default/client"),
        ];
        for (wanted, expected) in cases {
            assert_eq!(found(wanted).as_deref(), Some(expected), "{wanted}");
        }
        for wanted in ["pod/", "default", "x"] {
            assert!(
                matches!(find_host(&plan, wanted), Err(Error::Usage(_))),
                "{wanted}"
            );
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
