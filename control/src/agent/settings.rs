//! What the agent's settings and configuration mean to the process and to what its workers share.

use super::Settings;
use crate::config::{ConntrackConfig, KubeProxyConfig};
use anyhow::{Result, anyhow};
use dataplane::conntrack::{self, Conntrack};
use dataplane::reject::RateLimit;
use dataplane::service::ServiceTable;
use dataplane::worker::Shared;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// What the configuration says of the process and its host.
pub(super) fn follow_host(settings: &Settings, config: &KubeProxyConfig) {
    if let Some(score) = config.oom_score_adjustment
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        tracing::warn!("oomScoreAdj {score}: {error}");
    }
    if let Some(name) = config
        .hostname_override
        .as_ref()
        .filter(|name| **name != settings.node)
    {
        tracing::warn!(
            "hostnameOverride is {name}, but --node {} counts",
            settings.node
        );
    }
}

/// What all workers share, before there is a table.
///
/// # Errors
/// When connections take more than a table or this machine has.
pub(super) fn shared(settings: &Settings, config: &KubeProxyConfig) -> Result<Shared> {
    let random = RandomState::new();
    let keys = std::array::from_fn(|index| random.hash_one(index));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let limits = conntrack::Settings {
        per_source: settings.connections_per_source,
        accounting: settings.accounting,
        ..conntrack_settings(config, processors)
    };
    let conntrack = Conntrack::try_new(limits, keys).map_err(|refusal| {
        let asked_for = asked_for(&config.conntrack, processors);
        let file = settings.config.as_ref();
        let file = file.map_or_else(String::new, |file| format!("{}: ", file.display()));
        anyhow!("{file}{asked_for}: {refusal}; make it smaller")
    })?;
    Ok(Shared {
        reject_limit: settings.limit_rejects.then(RateLimit::default),
        forward_invalid: config.conntrack.tcp_be_liberal,
        ..Shared::new(conntrack, ServiceTable::empty())
    })
}

/// The field that says how many connections there may be, and what it says.
fn asked_for(limits: &ConntrackConfig, processors: usize) -> String {
    let (per_core, min) = (limits.max_per_core, limits.min);
    if per_core > 0 && capacity(limits, processors) == min as usize {
        format!("conntrack.min: {min}")
    } else {
        format!("conntrack.maxPerCore: {per_core} for each of {processors} processors")
    }
}

/// kube-proxy's limits and timeouts (`cmd/kube-proxy/app/conntrack.go`); what it leaves alone is as in the kernel.
fn conntrack_settings(config: &KubeProxyConfig, processors: usize) -> conntrack::Settings {
    let limits = &config.conntrack;
    let mut settings = conntrack::Settings::kernel(capacity(limits, processors));
    let set = |timeout: &mut Duration, wanted: Option<Duration>| {
        // Whole seconds: the sysctls have no others.
        *timeout = wanted
            .filter(|wanted| !wanted.is_zero())
            .map_or(*timeout, |wanted| Duration::from_secs(wanted.as_secs()));
    };
    set(
        &mut settings.tcp.timeouts.established,
        limits.tcp_established_timeout,
    );
    set(
        &mut settings.tcp.timeouts.close_wait,
        limits.tcp_close_wait_timeout,
    );
    set(&mut settings.timeouts.udp.unreplied, limits.udp_timeout);
    set(&mut settings.timeouts.udp.stream, limits.udp_stream_timeout);
    settings.tcp.be_liberal = limits.tcp_be_liberal;
    settings
}

/// Zero leaves the kernel's limit alone, whatever `min` says (`getConntrackMax`).
fn capacity(limits: &ConntrackConfig, processors: usize) -> usize {
    match limits.max_per_core as usize {
        0 => KERNEL_CAPACITY,
        per_core => per_core.saturating_mul(processors).max(limits.min as usize),
    }
}

/// `nf_conntrack_max` of a machine with more than 4 GiB of memory.
const KERNEL_CAPACITY: usize = 262_144;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_whole_seconds_and_zero_leaves_the_kernels() {
        let established = |milliseconds| {
            let mut config = KubeProxyConfig::default();
            config.conntrack.tcp_established_timeout = Some(Duration::from_millis(milliseconds));
            conntrack_settings(&config, 1).tcp.timeouts.established
        };
        let kernel = conntrack::Settings::kernel(1).tcp.timeouts.established;
        assert_eq!(established(0), kernel);
        assert_eq!(established(1500), Duration::from_secs(1));
    }

    #[test]
    fn room_is_that_of_the_kernel_or_of_the_configuration() {
        let capacity = |max_per_core, min| {
            let mut config = KubeProxyConfig::default();
            (config.conntrack.max_per_core, config.conntrack.min) = (max_per_core, min);
            conntrack_settings(&config, 3).capacity
        };
        assert_eq!(capacity(0, 1_000_000), KERNEL_CAPACITY);
        assert_eq!(capacity(1, 1_000_000), 1_000_000);
        assert_eq!(capacity(1_000_000, 1), 3_000_000);
    }

    #[test]
    fn who_asks_for_too_much_room_is_told_by_which_field() {
        let asked_for = |max_per_core, min| {
            let default = ConntrackConfig::default();
            let limits = ConntrackConfig {
                max_per_core,
                min,
                ..default
            };
            asked_for(&limits, 3)
        };
        assert_eq!(asked_for(1, 1_000_000), "conntrack.min: 1000000");
        let per_core = "conntrack.maxPerCore: 1000000 for each of 3 processors";
        assert_eq!(asked_for(1_000_000, 1), per_core);
        let kernel = "conntrack.maxPerCore: 0 for each of 3 processors";
        assert_eq!(asked_for(0, KERNEL_CAPACITY as u32), kernel);
    }
}
