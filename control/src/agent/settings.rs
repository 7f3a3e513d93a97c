//! What the agent's settings and configuration mean to the process and to what its workers share.

use super::Settings;
use crate::config::KubeProxyConfig;
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
pub(super) fn shared(settings: &Settings, config: &KubeProxyConfig) -> Shared {
    let random = RandomState::new();
    let keys = std::array::from_fn(|index| random.hash_one(index));
    let limits = conntrack::Settings {
        per_source: settings.connections_per_source,
        accounting: settings.accounting,
        ..conntrack_settings(config)
    };
    Shared {
        reject_limit: settings.limit_rejects.then(RateLimit::default),
        forward_invalid: config.conntrack.tcp_be_liberal,
        ..Shared::new(Conntrack::new(limits, keys), ServiceTable::empty())
    }
}

/// kube-proxy's limits and timeouts (`cmd/kube-proxy/app/conntrack.go`); what it leaves alone is as in the kernel.
fn conntrack_settings(config: &KubeProxyConfig) -> conntrack::Settings {
    let limits = &config.conntrack;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    // Zero leaves the kernel's limit alone, whatever `min` says (`getConntrackMax`).
    let capacity = match limits.max_per_core as usize {
        0 => KERNEL_CAPACITY,
        per_core => (per_core * processors).max(limits.min as usize),
    };
    let mut settings = conntrack::Settings::kernel(capacity);
    let set = |timeout: &mut Duration, wanted: Option<Duration>| {
        *timeout = wanted
            .filter(|wanted| !wanted.is_zero())
            .unwrap_or(*timeout);
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

/// `nf_conntrack_max` of a machine with more than 4 GiB of memory.
const KERNEL_CAPACITY: usize = 262_144;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_that_of_the_kernel_or_of_the_configuration() {
        let capacity = |max_per_core, min| {
            let mut config = KubeProxyConfig::default();
            (config.conntrack.max_per_core, config.conntrack.min) = (max_per_core, min);
            conntrack_settings(&config).capacity
        };
        assert_eq!(capacity(0, 1_000_000), KERNEL_CAPACITY);
        assert_eq!(capacity(1, 1_000_000), 1_000_000);
        let processors = std::thread::available_parallelism().unwrap().get();
        assert_eq!(capacity(1_000_000, 1), 1_000_000 * processors);
    }
}
