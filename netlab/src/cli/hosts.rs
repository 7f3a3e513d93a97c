//! Commands about one host of a lab.

use super::which::{find_host, state_of};
use crate::lab::Error;
use crate::names::HostName;
use crate::namespace::Namespace;
use crate::state::Dataplane;
use crate::{screens, servers};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Prints what a host's processes wrote.
pub(super) fn logs(lab: Option<String>, host: &str, follow: bool) -> Result<ExitCode, Error> {
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
pub(super) fn exec(lab: Option<String>, host: &str, command: &[String]) -> Result<ExitCode, Error> {
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
pub(super) fn conntrack(
    lab: Option<String>,
    node: &str,
    arguments: &[String],
) -> Result<ExitCode, Error> {
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
