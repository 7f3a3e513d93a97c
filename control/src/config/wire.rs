//! The file as it is written, and how it becomes a [`KubeProxyConfig`].

use super::fields::Wrong;
use super::{
    ConntrackConfig, DetectLocal, KubeProxyConfig, NodePortAddresses, ProxyMode, parse_duration,
};
use crate::model::Family;
use crate::snapshot::{parse_cidr, parse_ip};
use dataplane::conntrack;
use dataplane::service::Selection;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Bytes of the longest name of an interface, without its end (`IFNAMSIZ`).
const INTERFACE_NAME: usize = 15;

/// The feature gates that have an effect.
const KNOWN_GATES: [&str; 5] = [
    "AllAlpha",
    "AllBeta",
    "LoadBalancerIPMode",
    "ServiceTrafficDistribution",
    "TopologyAwareHints",
];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Wire {
    #[serde(default)]
    hostname_override: String,
    #[serde(default)]
    bind_address: String,
    #[serde(default)]
    healthz_bind_address: String,
    #[serde(default)]
    metrics_bind_address: String,
    #[serde(default)]
    bind_address_hard_fail: bool,
    #[serde(default)]
    mode: String,
    #[serde(default, rename = "clusterCIDR")]
    cluster_cidr: String,
    /// Only to be refused when it is none.
    #[serde(default, rename = "configSyncPeriod", deserialize_with = "duration")]
    _config_sync_period: Option<Duration>,
    #[serde(default)]
    detect_local_mode: String,
    #[serde(default)]
    detect_local: DetectLocalWire,
    node_port_addresses: Option<Vec<String>>,
    #[serde(default)]
    iptables: RulesWire,
    #[serde(default)]
    nftables: RulesWire,
    #[serde(default)]
    ipvs: IpvsWire,
    #[serde(default)]
    conntrack: ConntrackWire,
    #[serde(default)]
    feature_gates: BTreeMap<String, bool>,
    oom_score_adj: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DetectLocalWire {
    bridge_interface: String,
    interface_name_prefix: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RulesWire {
    masquerade_all: bool,
    masquerade_bit: Option<i32>,
    localhost_node_ports: Option<bool>,
    #[serde(deserialize_with = "duration")]
    sync_period: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    min_sync_period: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct IpvsWire {
    scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    exclude_cidrs: Option<Vec<String>>,
    #[serde(deserialize_with = "duration")]
    sync_period: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    min_sync_period: Option<Duration>,
    /// These three only to be refused when they are none.
    #[serde(rename = "tcpTimeout", deserialize_with = "duration")]
    _tcp_timeout: Option<Duration>,
    #[serde(rename = "tcpFinTimeout", deserialize_with = "duration")]
    _tcp_fin_timeout: Option<Duration>,
    #[serde(rename = "udpTimeout", deserialize_with = "duration")]
    _udp_timeout: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConntrackWire {
    max_per_core: Option<u64>,
    min: Option<u64>,
    #[serde(deserialize_with = "duration")]
    tcp_established_timeout: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    tcp_close_wait_timeout: Option<Duration>,
    tcp_be_liberal: bool,
    #[serde(deserialize_with = "duration")]
    udp_timeout: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    udp_stream_timeout: Option<Duration>,
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    parse_duration(&text).map(Some).ok_or_else(|| {
        serde::de::Error::custom(format!(
            "`{text}` is not a duration; write one like 30s or 1h0m0s"
        ))
    })
}

impl Wire {
    pub(super) fn into_config(self) -> Result<KubeProxyConfig, Wrong> {
        let mut wrong = Wrong::new();
        let mut config = KubeProxyConfig::default();
        let mode = self.mode(&mut wrong);
        let (of_mode, rules) = if mode == ProxyMode::Nftables {
            ("nftables", &self.nftables)
        } else {
            ("iptables", &self.iptables)
        };
        config.mode = mode;
        config.hostname_override =
            (!self.hostname_override.is_empty()).then(|| self.hostname_override.clone());
        config.bind_address = self.bind_address(&mut wrong).unwrap_or(config.bind_address);
        config.bind_address_hard_fail = self.bind_address_hard_fail;
        let (any, loopback) = match config.bind_address {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
        };
        let healthz = SocketAddr::new(any, 10256);
        config.healthz_bind_address = socket_address(
            "healthzBindAddress",
            &self.healthz_bind_address,
            healthz,
            &mut wrong,
        );
        let metrics = SocketAddr::new(loopback, 10249);
        config.metrics_bind_address = socket_address(
            "metricsBindAddress",
            &self.metrics_bind_address,
            metrics,
            &mut wrong,
        );
        config.detect_local = self.detect_local(&mut wrong);
        config.oom_score_adjustment = self.oom_score_adj;
        if self
            .oom_score_adj
            .is_some_and(|score| !(-1000..=1000).contains(&score))
        {
            let message = "is not from -1000 to 1000".to_owned();
            wrong.push(("oomScoreAdj".to_owned(), message));
        }
        config.node_port_addresses = self.node_port_addresses(&mut wrong);
        config.localhost_node_ports = self.iptables.localhost_node_ports.unwrap_or(true);
        config.masquerade_all = rules.masquerade_all;
        config.masquerade_bit = masquerade_bit(of_mode, rules, &mut wrong);
        let periods = periods(
            of_mode,
            rules.sync_period,
            rules.min_sync_period,
            &mut wrong,
        );
        [config.sync_period, config.min_sync_period] = periods;
        match mode {
            ProxyMode::Iptables => {}
            ProxyMode::Ipvs => config.selection = self.ipvs(&mut config.warnings, &mut wrong),
            // kube-proxy minds it in every mode.
            ProxyMode::Nftables => self.unused_iptables(&mut wrong),
        }
        self.feature_gates(&mut config);
        config.conntrack = self.conntrack.into_config(&mut wrong);
        if wrong.is_empty() {
            Ok(config)
        } else {
            Err(wrong)
        }
    }

    /// A gate that is named has precedence over all of its stage, whatever the order.
    ///
    /// Source: `component-base/featuregate/feature_gate.go`, `SetFromMap`; the stages are those of 1.30
    /// (`pkg/features/kube_features.go`).
    fn feature_gates(&self, config: &mut KubeProxyConfig) {
        let named = |gate: &str| self.feature_gates.get(gate).copied();
        let (all_alpha, all_beta) = (named("AllAlpha"), named("AllBeta"));
        let alpha = |gate: &str, default| named(gate).or(all_alpha).unwrap_or(default);
        let beta = |gate: &str, default| named(gate).or(all_beta).unwrap_or(default);
        config.load_balancer_ip_mode = beta("LoadBalancerIPMode", true);
        config.topology_aware_hints = beta("TopologyAwareHints", true);
        config.service_traffic_distribution = alpha("ServiceTrafficDistribution", false);
        let gates = self.feature_gates.keys();
        let unknown = gates.filter(|gate| !KNOWN_GATES.contains(&gate.as_str()));
        config
            .warnings
            .extend(unknown.map(|gate| format!("featureGates.{gate} has no effect here")));
    }

    fn mode(&self, wrong: &mut Wrong) -> ProxyMode {
        match self.mode.as_str() {
            "" | "iptables" => ProxyMode::Iptables,
            "nftables" => ProxyMode::Nftables,
            "ipvs" => ProxyMode::Ipvs,
            other => {
                wrong.push((
                    "mode".to_owned(),
                    format!("`{other}` is none of iptables, nftables and ipvs"),
                ));
                ProxyMode::Iptables
            }
        }
    }

    fn bind_address(&self, wrong: &mut Wrong) -> Option<IpAddr> {
        if self.bind_address.is_empty() {
            return None;
        }
        let address = parse_ip(&self.bind_address);
        if address.is_none() {
            wrong.push((
                "bindAddress".to_owned(),
                format!("`{}` is not an IP address", self.bind_address),
            ));
        }
        address
    }

    fn detect_local(&self, wrong: &mut Wrong) -> DetectLocal {
        let needs = |field: &str, value: &str, longest: usize, wrong: &mut Wrong| {
            let mode = &self.detect_local_mode;
            let message = if value.is_empty() {
                format!("is needed with detectLocalMode {mode}")
            } else if value.len() > longest {
                format!(
                    "`{value}` has more than {longest} bytes, and iptables takes no rule with it"
                )
            } else {
                return value.to_owned();
            };
            wrong.push((format!("detectLocal.{field}"), message));
            String::new()
        };
        // kube-proxy minds it in every mode.
        let cluster_cidrs = self.cluster_cidrs(wrong);
        match self.detect_local_mode.as_str() {
            "" | "ClusterCIDR" => DetectLocal::ClusterCidr(cluster_cidrs),
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => {
                let name = &self.detect_local.bridge_interface;
                DetectLocal::BridgeInterface(needs("bridgeInterface", name, INTERFACE_NAME, wrong))
            }
            // The rules have a `+` behind it.
            "InterfaceNamePrefix" => {
                let prefix = &self.detect_local.interface_name_prefix;
                let longest = INTERFACE_NAME - 1;
                DetectLocal::InterfaceNamePrefix(needs(
                    "interfaceNamePrefix",
                    prefix,
                    longest,
                    wrong,
                ))
            }
            other => {
                wrong.push((
                    "detectLocalMode".to_owned(),
                    format!(
                        "`{other}` is none of ClusterCIDR, NodeCIDR, BridgeInterface and InterfaceNamePrefix"
                    ),
                ));
                DetectLocal::NodeCidr
            }
        }
    }

    /// One range, or two of different families; nothing but a comma between them (`validation.Validate`).
    fn cluster_cidrs(&self, wrong: &mut Wrong) -> Vec<IpNet> {
        let mut ranges = Vec::new();
        if self.cluster_cidr.is_empty() {
            return ranges;
        }
        for text in self.cluster_cidr.split(',') {
            match parse_cidr(text) {
                Some(range) => ranges.push(range),
                None => wrong.push(("clusterCIDR".to_owned(), format!("`{text}` is not a CIDR"))),
            }
        }
        let one_family =
            |ranges: &[IpNet]| Family::of(ranges[0].addr()) == Family::of(ranges[1].addr());
        if ranges.len() > 2 || (ranges.len() == 2 && one_family(&ranges)) {
            let message = "takes one range, or one of IPv4 and one of IPv6 with a comma between";
            wrong.push(("clusterCIDR".to_owned(), message.to_owned()));
        }
        ranges
    }

    fn node_port_addresses(&self, wrong: &mut Wrong) -> NodePortAddresses {
        let list = self.node_port_addresses.as_deref().unwrap_or_default();
        if list.is_empty() {
            return NodePortAddresses::Default;
        }
        if list == ["primary"] {
            return NodePortAddresses::Primary;
        }
        let mut ranges = Vec::new();
        for (index, text) in list.iter().enumerate() {
            match parse_cidr(text) {
                Some(range) => ranges.push(range),
                None => wrong.push((
                    format!("nodePortAddresses[{index}]"),
                    format!("`{text}` is not a CIDR (and `primary` stands alone)"),
                )),
            }
        }
        NodePortAddresses::Ranges(ranges)
    }

    /// Its section where another one is in use.
    fn unused_iptables(&self, wrong: &mut Wrong) {
        let rules = &self.iptables;
        masquerade_bit("iptables", rules, wrong);
        periods("iptables", rules.sync_period, rules.min_sync_period, wrong);
    }

    fn ipvs(&self, warnings: &mut Vec<String>, wrong: &mut Wrong) -> Selection {
        let ipvs = &self.ipvs;
        periods("ipvs", ipvs.sync_period, ipvs.min_sync_period, wrong);
        let excluded = ipvs.exclude_cidrs.iter().flatten().enumerate();
        for (index, text) in excluded.filter(|(_, text)| parse_cidr(text).is_none()) {
            let message = format!("`{text}` is not a CIDR");
            wrong.push((format!("ipvs.excludeCIDRs[{index}]"), message));
        }
        self.scheduler(warnings)
    }

    fn scheduler(&self, warnings: &mut Vec<String>) -> Selection {
        match self.ipvs.scheduler.as_str() {
            "" | "rr" => Selection::RoundRobin,
            "lc" => Selection::LeastConnections,
            "sh" => Selection::SourceHash,
            "mh" => Selection::Maglev,
            other => {
                warnings.push(format!(
                    "ipvs.scheduler {other} is not known here: rr is used instead"
                ));
                Selection::RoundRobin
            }
        }
    }
}

/// `syncPeriod` and `minSyncPeriod` of a section; zero is as good as none.
fn periods(
    of_mode: &str,
    sync: Option<Duration>,
    minimum: Option<Duration>,
    wrong: &mut Wrong,
) -> [Duration; 2] {
    let default = KubeProxyConfig::default();
    let given = |period: Option<Duration>| period.filter(|period| !period.is_zero());
    let sync = given(sync).unwrap_or(default.sync_period);
    let minimum = given(minimum).unwrap_or(default.min_sync_period);
    if minimum > sync {
        let message = "is longer than syncPeriod; make it as long at most".to_owned();
        wrong.push((format!("{of_mode}.minSyncPeriod"), message));
    }
    [sync, minimum]
}

fn masquerade_bit(of_mode: &str, rules: &RulesWire, wrong: &mut Wrong) -> u8 {
    let given = rules.masquerade_bit.unwrap_or(14);
    let bit = u8::try_from(given).ok().filter(|bit| *bit <= 31);
    bit.unwrap_or_else(|| {
        let message = format!("{given} is not from 0 to 31");
        wrong.push((format!("{of_mode}.masqueradeBit"), message));
        0
    })
}

/// `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`; empty means the default, whose port is also that of an address alone.
fn socket_address(
    field: &str,
    text: &str,
    default: SocketAddr,
    wrong: &mut Wrong,
) -> Option<SocketAddr> {
    if text.is_empty() {
        return Some(default);
    }
    let alone = || Some(SocketAddr::new(parse_ip(text)?, default.port()));
    // Leading zeros are as good as none, as in all addresses.
    let sloppy = || {
        let (address, port) = text.rsplit_once(':')?;
        let address = parse_ip(address).filter(IpAddr::is_ipv4)?;
        Some(SocketAddr::new(address, port.parse().ok()?))
    };
    let address = text.parse().ok().or_else(alone).or_else(sloppy);
    if address.is_none_or(|address: SocketAddr| address.port() == 0) {
        let message = format!("`{text}` is not ADDRESS:PORT; write one like {default}");
        wrong.push((field.to_owned(), message));
    }
    address
}

impl ConntrackWire {
    /// A timeout of 0 means: leave it.
    fn into_config(self, wrong: &mut Wrong) -> ConntrackConfig {
        let default = ConntrackConfig::default();
        let mut entries = |field: &str, given: Option<u64>, default: u32| {
            given.map_or(default, |given| entries(field, given, wrong))
        };
        let timeout = |given: Option<Duration>, default: Option<Duration>| match given {
            Some(given) if given.is_zero() => None,
            Some(given) => Some(given),
            None => default,
        };
        ConntrackConfig {
            max_per_core: entries("maxPerCore", self.max_per_core, default.max_per_core),
            min: entries("min", self.min, default.min),
            tcp_established_timeout: timeout(
                self.tcp_established_timeout,
                default.tcp_established_timeout,
            ),
            tcp_close_wait_timeout: timeout(
                self.tcp_close_wait_timeout,
                default.tcp_close_wait_timeout,
            ),
            tcp_be_liberal: self.tcp_be_liberal,
            udp_timeout: timeout(self.udp_timeout, None),
            udp_stream_timeout: timeout(self.udp_stream_timeout, None),
        }
    }
}

/// What a table holds even on a machine with one processor.
fn entries(field: &str, given: u64, wrong: &mut Wrong) -> u32 {
    let most = conntrack::Settings::MOST_ENTRIES;
    if given > u64::from(most) {
        wrong.push((
            format!("conntrack.{field}"),
            format!("{given} entries are more than the {most} that a table holds; make it smaller"),
        ));
    }
    u32::try_from(given).unwrap_or(most)
}
