//! `penstock node`: the agent on the links of this network namespace.

use super::{Failure, print};
use clap::Args;
use control::agent::{self, LinkPattern, Settings, Waiting, Work};
use control::compile::CompileError;
use control::netlink;
use control::problem::in_words;
use dataplane::sys::tun::Offloads;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

/// Arguments of `penstock node`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Kubernetes objects: a file or a folder, followed while the agent runs
    #[arg(long, value_name = "FILE|DIR")]
    snapshot: PathBuf,
    /// KubeProxyConfiguration [default: kube-proxy's defaults]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the node that this is
    #[arg(long, value_name = "NAME")]
    node: String,
    /// Links to the outside, overlays such as flannel.1 among them: names, or prefixes of names followed by `+`
    #[arg(long, value_name = "IF", required = true, num_args = 1..)]
    uplink: Vec<LinkPattern>,
    /// Links of pods, likewise
    #[arg(long, value_name = "IF", num_args = 1..)]
    pods: Vec<LinkPattern>,
    /// Where other commands reach this agent [default: /run/penstock/nodes/NODE.sock]
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,
    /// Worker threads, each with its own queues on every device [default: 1 on up to three processors, else half as many as processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    workers: Option<u8>,
    /// Take complete checksums and packets no larger than the MTU
    #[arg(long)]
    no_offload: bool,
    /// Refuse every packet, without the kernel's limit on ICMP errors
    #[arg(long)]
    no_reject_limit: bool,
    /// Connections that one source address may have, so that one that scans does not push out others [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    connections_per_source: Option<u32>,
    /// Count packets and bytes of each connection, for `penstock conntrack` (net.netfilter.nf_conntrack_acct)
    #[arg(long)]
    accounting: bool,
    /// Never sleep: a processor for each worker, and no packet waits for one to wake up
    #[arg(long)]
    busy_poll: bool,
    /// Give every packet back as it came, for benchmarks
    #[arg(long, hide = true)]
    copy: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    require_privileges()?;
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(
            io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
        )
        .init();
    let default_socket = || PathBuf::from(format!("/run/penstock/nodes/{}.sock", arguments.node));
    let settings = Settings {
        control_socket: arguments.control_socket.unwrap_or_else(default_socket),
        snapshot: arguments.snapshot,
        config: arguments.config,
        node: arguments.node,
        uplinks: arguments.uplink,
        pods: arguments.pods,
        workers: arguments.workers.map_or_else(default_workers, usize::from),
        offloads: if arguments.no_offload {
            Offloads::Off
        } else {
            Offloads::On
        },
        limit_rejects: !arguments.no_reject_limit,
        connections_per_source: arguments.connections_per_source,
        accounting: arguments.accounting,
        work: match (arguments.copy, arguments.busy_poll) {
            (true, _) => Work::Copy,
            (false, true) => Work::Services(Waiting::Busy),
            (false, false) => Work::Services(Waiting::Asleep),
        },
    };
    let ready = || match print("ready\n") {
        Err(Failure::Failed(error)) => Err(error.context("cannot print that it is ready")),
        _ => Ok(()),
    };
    agent::run(settings, ready).map_err(failure)
}

/// A name that no Node has is wrong usage, as it is to the other commands. Root may lack the privilege, too.
fn failure(error: anyhow::Error) -> Failure {
    match error.downcast_ref::<CompileError>() {
        Some(CompileError::NoSuchNode { .. }) => Failure::Usage(in_words(&error)),
        _ if is_refused_privilege(&error) => Failure::Unavailable(in_words(&error)),
        _ => Failure::Failed(error),
    }
}

fn is_refused_privilege(error: &anyhow::Error) -> bool {
    let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    error.chain().any(|cause| {
        let of_netlink = cause.downcast_ref::<netlink::Error>();
        cause.downcast_ref().is_some_and(is_refused)
            || of_netlink.is_some_and(|error| is_refused(&error.refusal))
    })
}

/// On few processors a second worker takes from the programs that packets are for.
fn default_workers() -> usize {
    match std::thread::available_parallelism().map_or(1, usize::from) {
        0..4 => 1,
        processors => (processors / 2).min(64),
    }
}

fn require_privileges() -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        let message = "penstock node needs root: it makes devices and routing rules";
        return Err(Failure::Unavailable(message.to_owned()));
    }
    if !Path::new("/dev/net/tun").exists() {
        let message = "/dev/net/tun is missing: load the kernel's module tun, or make the device with \
                       `mknod /dev/net/tun c 10 200`";
        return Err(Failure::Unavailable(message.to_owned()));
    }
    Ok(())
}
