//! The configuration in effect, as `/configz` shows it: the fields of v1alpha1, defaults filled in.

use super::{DetectLocal, KubeProxyConfig, NodePortAddresses, ProxyMode};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

impl ProxyMode {
    /// As it is written in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        }
    }
}

impl KubeProxyConfig {
    /// The fields that have an effect, with the values in effect.
    pub fn effective(&self) -> Value {
        let (mode, detect_local, cluster_cidr) = self.detection();
        let mut rules = json!({
            "masqueradeAll": self.masquerade_all,
            "masqueradeBit": self.masquerade_bit,
            "syncPeriod": duration(self.sync_period),
            "minSyncPeriod": duration(self.min_sync_period),
        });
        let localhost = json!(self.localhost_node_ports);
        let (iptables, nftables) = if self.mode == ProxyMode::Nftables {
            (json!({"localhostNodePorts": localhost}), rules)
        } else {
            rules["localhostNodePorts"] = localhost;
            (rules, json!({}))
        };
        let conntrack = &self.conntrack;
        let timeout = |timeout: Option<Duration>| duration(timeout.unwrap_or_default());
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "hostnameOverride": self.hostname_override.as_deref().unwrap_or_default(),
            "bindAddress": self.bind_address,
            "bindAddressHardFail": self.bind_address_hard_fail,
            "healthzBindAddress": address(self.healthz_bind_address),
            "metricsBindAddress": address(self.metrics_bind_address),
            "oomScoreAdj": self.oom_score_adjustment,
            "mode": self.mode.name(),
            "detectLocalMode": mode,
            "detectLocal": detect_local,
            "clusterCIDR": cluster_cidr,
            "nodePortAddresses": self.node_port_address_list(),
            "iptables": iptables,
            "nftables": nftables,
            "conntrack": {
                "maxPerCore": conntrack.max_per_core,
                "min": conntrack.min,
                "tcpBeLiberal": conntrack.tcp_be_liberal,
                "tcpEstablishedTimeout": timeout(conntrack.tcp_established_timeout),
                "tcpCloseWaitTimeout": timeout(conntrack.tcp_close_wait_timeout),
                "udpTimeout": timeout(conntrack.udp_timeout),
                "udpStreamTimeout": timeout(conntrack.udp_stream_timeout),
            },
            "featureGates": {
                "LoadBalancerIPMode": self.load_balancer_ip_mode,
                "ServiceTrafficDistribution": self.service_traffic_distribution,
                "TopologyAwareHints": self.topology_aware_hints,
            },
        })
    }

    fn detection(&self) -> (&'static str, Value, String) {
        match &self.detect_local {
            DetectLocal::ClusterCidr(ranges) => ("ClusterCIDR", json!({}), list(ranges).join(",")),
            DetectLocal::NodeCidr => ("NodeCIDR", json!({}), String::new()),
            DetectLocal::BridgeInterface(name) => {
                let detail = json!({"bridgeInterface": name});
                ("BridgeInterface", detail, String::new())
            }
            DetectLocal::InterfaceNamePrefix(prefix) => {
                let detail = json!({"interfaceNamePrefix": prefix});
                ("InterfaceNamePrefix", detail, String::new())
            }
        }
    }

    fn node_port_address_list(&self) -> Vec<String> {
        match &self.node_port_addresses {
            NodePortAddresses::Default => Vec::new(),
            NodePortAddresses::Primary => vec!["primary".to_owned()],
            NodePortAddresses::Ranges(ranges) => list(ranges),
        }
    }
}

fn list(ranges: &[IpNet]) -> Vec<String> {
    ranges.iter().map(IpNet::to_string).collect()
}

fn address(address: Option<SocketAddr>) -> String {
    address.map_or_else(String::new, |address| address.to_string())
}

/// As Go writes durations in configurations: `1h0m0s`, `1.5s`, `300ms`.
fn duration(duration: Duration) -> String {
    let (total, nanos) = (duration.as_secs(), duration.subsec_nanos());
    if total == 0 && nanos > 0 {
        return format!("{}ms", f64::from(nanos) / 1e6);
    }
    let (hours, minutes) = (total / 3600, total / 60 % 60);
    let seconds = (total % 60) as f64 + f64::from(nanos) / 1e9;
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_duration;

    /// What is shown is a file that gives the same configuration.
    #[test]
    fn the_effective_configuration_reads_back() {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        for text in [
            "",
            "clusterCIDR: 10.244.0.0/16,fd00::/48\nnodePortAddresses: [172.18.0.0/16]\n",
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cbr0}\n",
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: azv}\n",
            "oomScoreAdj: -500\nmode: nftables\nnftables: {masqueradeAll: true, minSyncPeriod: 300ms}\n",
            "detectLocalMode: NodeCIDR\nhealthzBindAddress: \"\"\nnodePortAddresses: [primary]\n",
            "conntrack: {tcpBeLiberal: true, tcpEstablishedTimeout: 0s, udpTimeout: 1h2m3.5s}\n",
        ] {
            let config = KubeProxyConfig::parse("x", &format!("{head}{text}")).unwrap();
            let shown = config.effective().to_string();
            let mut again = KubeProxyConfig::parse("x", &shown).unwrap();
            again.warnings.clone_from(&config.warnings);
            assert_eq!(again, config, "{shown}");
        }
    }

    #[test]
    fn durations_read_back() {
        for text in ["0s", "300ms", "1.5s", "1m0s", "24h0m0s", "1h2m3.5s"] {
            assert_eq!(duration(parse_duration(text).unwrap()), text);
        }
    }
}
