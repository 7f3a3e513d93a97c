//! The kernel's side: a node with kube-proxy's rules as we render them.

use super::case::Case;
use super::cleanup;
use super::host::STARTING;
use super::side::{self, Choice, Entry, Side, Tuple};
use super::wire::UDP;
use super::world::World;
use crate::namespace::Namespace;
use crate::servers::in_path;
use anyhow::{Context as _, Result, bail};
use control::agent::node_network;
use control::config::KubeProxyConfig;
use control::model::{Family, ServicePort};
use control::netlink::write_sysctl;
use control::render::{self, Proxiers};
use control::snapshot::Snapshot;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::PoisonError;

/// Which rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Rules {
    /// kube-proxy's of mode iptables.
    Iptables,
    /// kube-proxy's of mode nftables.
    Nftables,
}

/// The kernel with rules.
pub(super) struct Kernel {
    world: World,
    rules: Rules,
    config: KubeProxyConfig,
    node: String,
    services: Vec<ServicePort>,
    /// The node's addresses.
    own: Vec<IpAddr>,
}

impl Kernel {
    pub(super) fn start(case: &Case, rules: Rules) -> Result<Self> {
        let mut kernel = Self {
            world: World::create(case)?,
            rules,
            config: side::config(case)?,
            node: case.node.clone(),
            services: Vec::new(),
            own: case.own_addresses().collect(),
        };
        kernel.load(&side::snapshot(&case.objects)?)?;
        // kube-proxy's timeouts; the files appear with the first rule that needs connection tracking.
        let settings = conntrack_settings(&kernel.config);
        kernel.world.namespace().run(|| {
            for (name, value) in settings {
                write_sysctl(name, &value).map_err(io::Error::other)?;
            }
            Ok(())
        })?;
        Ok(kernel)
    }

    fn load(&mut self, snapshot: &Snapshot) -> Result<()> {
        let mut netlink = self.world.namespace().netlink()?;
        let network = node_network(&mut netlink)?;
        let proxiers = Proxiers::new(snapshot, &self.config, &network, &self.node)?;
        let namespace = self.world.namespace();
        match self.rules {
            Rules::Iptables => {
                for (family, program) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
                    let rules = render::iptables_tables(proxiers.of(family));
                    restore(namespace, program, &rules)?;
                }
            }
            Rules::Nftables => {
                let rules = format!("flush ruleset\n{}", render::nftables(&proxiers)?);
                pipe(namespace, "nft", &["-f", "-"], &rules)?;
            }
        }
        self.services = [proxiers.v4.services, proxiers.v6.services].concat();
        Ok(())
    }
}

impl Kernel {
    fn list(&self) -> Result<Vec<Entry>> {
        let read = || fs::read_to_string("/proc/thread-self/net/nf_conntrack");
        let text = self.world.namespace().run(read)?;
        Ok(text.lines().filter_map(entry).collect())
    }
}

fn conntrack_settings(config: &KubeProxyConfig) -> Vec<(&'static str, String)> {
    let limits = &config.conntrack;
    let timeouts = [
        ("tcp_timeout_established", limits.tcp_established_timeout),
        ("tcp_timeout_close_wait", limits.tcp_close_wait_timeout),
        ("udp_timeout", limits.udp_timeout),
        ("udp_timeout_stream", limits.udp_stream_timeout),
    ];
    let names = [
        "netfilter/nf_conntrack_tcp_timeout_established",
        "netfilter/nf_conntrack_tcp_timeout_close_wait",
        "netfilter/nf_conntrack_udp_timeout",
        "netfilter/nf_conntrack_udp_timeout_stream",
    ];
    let set = names
        .into_iter()
        .zip(timeouts)
        .filter_map(|(name, (_, timeout))| {
            let timeout = timeout.filter(|timeout| !timeout.is_zero())?;
            Some((name, timeout.as_secs().to_string()))
        });
    let mut settings = vec![("ipv4/conf/all/route_localnet", "1".to_owned())];
    settings.extend(set);
    if limits.tcp_be_liberal {
        settings.push(("netfilter/nf_conntrack_tcp_be_liberal", "1".to_owned()));
    }
    settings
}

/// The legacy program loads a hundred times faster than the one over nftables; the rules are the same.
fn restore(namespace: &Namespace, program: &str, rules: &str) -> Result<()> {
    let legacy = format!("{program}-legacy-restore");
    let name = if in_path(&legacy).is_some() {
        legacy
    } else {
        format!("{program}-restore")
    };
    pipe(namespace, &name, &["-w"], rules)
}

fn spawn(namespace: &Namespace, command: &mut Command) -> io::Result<Child> {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    namespace.spawn(command)
}

fn pipe(namespace: &Namespace, program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let path = in_path(program).with_context(|| format!("{program} is missing; install it"))?;
    let mut command = Command::new(path);
    // iptables locks one file for all namespaces. A lock on its own input makes none wait for another.
    command
        .env("XTABLES_LOCKFILE", "/proc/self/fd/0")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = spawn(namespace, &mut command)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

impl Side for Kernel {
    fn world(&mut self) -> &mut World {
        &mut self.world
    }

    fn work(&mut self) -> Result<()> {
        Ok(())
    }

    fn follow(&mut self, _: &Choice) {}

    /// As kube-proxy does: rules first, then the entries of UDP that are stale.
    fn change(&mut self, snapshot: &Snapshot) -> Result<Vec<Entry>> {
        let old = std::mem::take(&mut self.services);
        self.load(snapshot)?;
        let before = self.entries()?;
        let deletions = cleanup::deletions(&old, &self.services);
        for deletion in &deletions {
            let mut command = Command::new("conntrack");
            command.arg("-D").args(deletion.arguments());
            command.stdout(Stdio::null()).stderr(Stdio::null());
            // Exit code 1: there was none.
            spawn(self.world.namespace(), &mut command)?.wait()?;
        }
        let kept: HashSet<Tuple> = self.entries()?.iter().map(|entry| entry.original).collect();
        let is_meant = |entry: &Entry| {
            let mut deletions = deletions.iter();
            deletions.any(|deletion| deletion.is_about(entry, &self.own))
        };
        let is_bystander = |entry: &Entry| {
            entry.protocol == UDP && !kept.contains(&entry.original) && !is_meant(entry)
        };
        Ok(before.into_iter().filter(is_bystander).collect())
    }

    /// The kernel lists its one table page by page, and finds its place in it again by counting: what other namespaces
    /// do in between may hide an entry. So what either of two listings has is there.
    fn entries(&mut self) -> Result<Vec<Entry>> {
        let key = |entry: &Entry| (entry.protocol, entry.original);
        let (mut entries, again) = (self.list()?, self.list()?);
        let listed: HashSet<_> = entries.iter().map(key).collect();
        let hidden = again
            .into_iter()
            .filter(|entry| !listed.contains(&key(entry)));
        entries.extend(hidden);
        Ok(entries)
    }
}

/// A line of `/proc/net/nf_conntrack`; nothing for those that are over and not yet swept.
fn entry(line: &str) -> Option<Entry> {
    let mut words = line.split_ascii_whitespace().skip(3);
    let protocol: u8 = words.next()?.parse().ok()?;
    let timeout = words.next()?.parse().ok()?;
    let mut entry = Entry {
        protocol,
        original: tuple(line, 0)?,
        reply: tuple(line, 1)?,
        state: String::new(),
        is_replied: !line.contains("[UNREPLIED]"),
        is_assured: line.contains("[ASSURED]"),
        timeout,
        is_stale: false,
    };
    entry.state = words
        .next()
        .filter(|word| !word.contains('='))
        .unwrap_or_default()
        .to_owned();
    (timeout > 0).then_some(entry)
}

/// The first or second tuple of a line.
fn tuple(line: &str, nth: usize) -> Option<Tuple> {
    let value = |key: &str| {
        let mut values = line
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        values.nth(nth)
    };
    let port = |key| value(key).and_then(|port| port.parse().ok());
    Some(Tuple {
        source: value("src")?.parse().ok()?,
        destination: value("dst")?.parse().ok()?,
        source_port: port("sport").or_else(|| port("id")).unwrap_or(0),
        destination_port: port("dport").unwrap_or(0),
    })
}
