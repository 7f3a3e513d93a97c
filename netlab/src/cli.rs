//! Commands of `penstock-lab`, which people call `./lab`.

mod arguments;
mod diff;
mod hosts;
mod which;

use crate::lab::{self, Error};
use crate::lab_file::{self, SourceError};
use crate::plan::Plan;
use crate::state::{self, Dataplane, State};
use crate::{bench, dataplane, everywhere, privilege, screens, serve, servers};
use arguments::{Cli, Form, Up, Verb};
use clap::{CommandFactory, Parser};
use control::agent::socket::Status;
use control::config::KubeProxyConfig;
use control::snapshot::Snapshot;
use hosts::{conntrack, exec, logs};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use which::{Labs, check_name, folder_error, lab_name, labs_folder, state_of, the_lab};

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
        Error::Dataplane(dataplane::Error::Agent(servers::Error::Missing { .. })) => 3,
        Error::Usage(_) => 2,
        Error::Interrupted => 130,
        Error::NotUndone { error, .. } => code(error),
        Error::Network(error) if error.source.kind() == io::ErrorKind::PermissionDenied => 3,
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
            help,
            node: Some(node),
            mut arguments,
        } => {
            // It stands before what conntrack itself is told, or the command line would hold it already.
            arguments.splice(..0, help.then(|| "--help".to_owned()));
            conntrack(which.lab, &node, &arguments)
        }
        Verb::Conntrack { node: None, .. } => help_of("conntrack"),
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
        Verb::Test { .. } => Err(Error::Usage(
            "the tests are built as they run: call the script ./lab of the checkout".to_owned(),
        )),
        Verb::Serve(arguments) => served(serve::run(arguments)),
        Verb::BenchServe { port } => served(bench::serve(port)),
    }
}

/// The help of one of our commands.
fn help_of(command: &str) -> Result<ExitCode, Error> {
    let mut cli = Cli::command();
    cli.build();
    if let Some(command) = cli.find_subcommand_mut(command) {
        screens::print(&command.render_long_help().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn served(served: io::Result<()>) -> Result<ExitCode, Error> {
    served.map_err(|source| Error::Io {
        what: "serve".to_owned(),
        source,
    })?;
    Ok(ExitCode::SUCCESS)
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
        Form::Table => {
            let has_others = Labs::running().is_ok_and(|labs| labs.to_choose.len() > 1);
            screens::print(&screens::up_table(&running, has_others))
        }
    }?;
    let healthy = lab::unanswered(&running.services).is_empty();
    Ok(ExitCode::from(u8::from(!healthy)))
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
    let running = Labs::running()?;
    let labs = match (lab, all, running.to_choose.as_slice()) {
        (Some(lab), ..) => vec![lab_name(&lab)],
        (None, false, []) => {
            eprintln!("{}", running.none_is_up());
            return Ok(ExitCode::SUCCESS);
        }
        (None, false, _) => vec![the_lab(None)?],
        (None, true, _) => {
            if let Some(lab) = running.of_benchmarks.first() {
                let number = running.of_benchmarks.len();
                eprintln!(
                    "left to a running benchmark: {number} of its labs (./lab down {lab} removes one)"
                );
            }
            running.to_choose
        }
    };
    for lab in labs {
        let was = lab::down(&lab)?;
        eprintln!("{lab}: {}", if was { "removed" } else { "is not up" });
    }
    Ok(ExitCode::SUCCESS)
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

fn status(lab: Option<String>, form: Form) -> Result<ExitCode, Error> {
    let (state, plan) = state_of(lab)?;
    let agents = agents(&state, &plan)?;
    let health = Health::of(&state, &agents);
    match form {
        Form::Json => {
            let why = health.why.as_deref();
            screens::print_json(&screens::status_json(&state, &plan, &agents, why))
        }
        Form::Table => screens::print(&screens::status_table(&state, &plan, &agents)),
    }?;
    health.say();
    Ok(ExitCode::from(u8::from(health.why.is_some())))
}

/// What the agents say of themselves, by node; none where the kernel is the dataplane, or nothing.
fn agents(state: &State, plan: &Plan) -> Result<Vec<(String, Option<Status>)>, Error> {
    if state.options.dataplane != Dataplane::Penstock {
        return Ok(Vec::new());
    }
    if !rustix::process::geteuid().is_root() {
        let text = "agents answer only root; run it with sudo";
        return Err(Error::Unable(text.to_owned()));
    }
    Ok(dataplane::agents(&state.lab, plan))
}

/// Whether a lab works.
struct Health {
    /// Why it does not.
    why: Option<String>,
    /// What makes it work again.
    remedy: String,
}

impl Health {
    fn of(state: &State, agents: &[(String, Option<Status>)]) -> Self {
        let anew = format!("{} makes it anew", state.options.command(&state.lab));
        let broken = state.broken();
        // An agent that is there and does not answer is nothing that `up` would mend.
        let remedy = match &broken {
            Some(_) if state.is_in_hand() => "wait for the command that does so".to_owned(),
            Some(_) => anew,
            None => format!("./lab down {}, then {anew}", state.lab),
        };
        Self {
            why: broken.or_else(|| dataplane::not_taken(agents)),
            remedy,
        }
    }

    fn say(&self) {
        if let Some(why) = &self.why {
            eprintln!("unhealthy: {why}; {}", self.remedy);
        }
    }
}

fn check(lab: Option<String>, requests: usize, form: Form) -> Result<ExitCode, Error> {
    let interrupted = interrupts()?;
    let (state, plan) = state_of(lab)?;
    privilege::require("requests are made inside network namespaces, which only root may enter")?;
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
    let health = Health::of(&state, &agents(&state, &plan)?);
    health.say();
    let fine = health.why.is_none() && ways.iter().all(|way| way.is_fine());
    Ok(ExitCode::from(u8::from(!fine)))
}

fn apply(lab: Option<String>, file: &Path, prune: bool) -> Result<ExitCode, Error> {
    let (State { lab, .. }, _) = state_of(lab)?;
    let interrupted = interrupts()?;
    let applied = lab::apply(&lab, file, prune, &|| interrupted.load(Ordering::Relaxed))?;
    for (sign, hosts) in [("-", &applied.removed), ("+", &applied.added)] {
        for host in hosts {
            eprintln!("{sign} {host}");
        }
    }
    eprintln!("{lab}: applied {}", lab::name_of_objects(file));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn conntrack_is_asked_for_its_own_help_after_a_node() {
        let parsed = |line: &str| {
            let words = ["lab", "conntrack"].into_iter().chain(line.split(' '));
            match Cli::try_parse_from(words).map(|cli| cli.command) {
                Ok(Verb::Conntrack {
                    help,
                    node,
                    arguments,
                    ..
                }) => Some((help, node, arguments)),
                _ => None,
            }
        };
        let node = || Some("node-a".to_owned());
        assert_eq!(parsed("node-a --help"), Some((true, node(), Vec::new())));
        assert_eq!(parsed("--help"), Some((true, None, Vec::new())));
        let listed = ["-L", "--help"].map(str::to_owned).to_vec();
        assert_eq!(parsed("node-a -L --help"), Some((false, node(), listed)));
        assert_eq!(parsed("--lab x"), None);
    }
}
