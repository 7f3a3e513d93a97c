//! [`KubeProxyConfig`]: the fields of a KubeProxyConfiguration file that concern us.
//!
//! Read strictly: a field that kube-proxy does not have is refused with the name that was probably meant. The
//! table [`fields::FIELDS`] says of each field whether it is honoured, mapped to our own tables, warned about or
//! refused. Source: Kubernetes 1.30 `pkg/proxy/apis/config/v1alpha1/{types,defaults}.go`.

mod duration;
mod effective;
mod fields;
mod wire;

use crate::model::Family;
use crate::problem::{Location, Problem, Problems};
use crate::strict::{self, Strict};
use dataplane::service::Selection;
use ipnet::IpNet;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use duration::parse_duration;

/// A kube-proxy's configuration. See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct KubeProxyConfig {
    /// The node's name, when it is not the host's.
    pub hostname_override: Option<String>,
    /// The node's address, when it is not the first that its Node tells; unspecified: not given.
    pub bind_address: IpAddr,
    /// Where `/healthz` and `/livez` are served; `None`, which no file says: nowhere.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where `/metrics` and others are served; `None`, which no file says: nowhere.
    pub metrics_bind_address: Option<SocketAddr>,
    /// `oomScoreAdj`: what the agent asks of the kernel's killer when memory runs out; left alone when absent.
    pub oom_score_adjustment: Option<i32>,
    /// Whether failing to bind these is fatal.
    pub bind_address_hard_fail: bool,
    /// Where packets would be processed in kube-proxy; here it only sets defaults.
    pub mode: ProxyMode,
    /// How traffic of pods is told from other traffic.
    pub detect_local: DetectLocal,
    /// Which of the node's addresses serve NodePorts.
    pub node_port_addresses: NodePortAddresses,
    /// Whether 127.0.0.1 serves NodePorts.
    pub localhost_node_ports: bool,
    /// Whether all traffic to cluster IPs is masqueraded.
    pub masquerade_all: bool,
    /// The bit of the packet mark that means masquerade; only rendered rules use it.
    pub masquerade_bit: u8,
    /// The period of health and canary checks.
    pub sync_period: Duration,
    /// The least time between two syncs.
    pub min_sync_period: Duration,
    /// How endpoints are chosen where a Service does not say: `ipvs.scheduler` in mode ipvs.
    pub selection: Selection,
    /// Feature LoadBalancerIPMode: load balancer addresses of `ipMode: Proxy` are not served.
    pub load_balancer_ip_mode: bool,
    /// Feature TopologyAwareHints.
    pub topology_aware_hints: bool,
    /// Feature ServiceTrafficDistribution: hints need no annotation.
    pub service_traffic_distribution: bool,
    /// Limits of connection tracking.
    pub conntrack: ConntrackConfig,
    /// What was read but has no effect here, for people to read.
    pub warnings: Vec<String>,
}

/// `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyMode {
    /// iptables, also when absent.
    #[default]
    Iptables,
    /// nftables.
    Nftables,
    /// ipvs.
    Ipvs,
}

/// `detectLocalMode` and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By `clusterCIDR`: the first range of each family. Empty: there is no detector.
    ClusterCidr(Vec<IpNet>),
    /// By the node's own pod CIDRs.
    NodeCidr,
    /// By the bridge that pods hang on.
    BridgeInterface(String),
    /// By the prefix of the names of the pods' interfaces.
    InterfaceNamePrefix(String),
}

/// `nodePortAddresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Not given: all addresses (in nftables mode the primary one, which only its rendered rules follow).
    Default,
    /// The primary address of each family; of a family that has none, all addresses.
    Primary,
    /// Addresses inside these ranges.
    Ranges(Vec<IpNet>),
}

/// `conntrack`: `None` leaves our own default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackConfig {
    /// Entries per processor; 0: no limit of this kind.
    pub max_per_core: u32,
    /// Least number of entries.
    pub min: u32,
    /// Timeout of established TCP connections.
    pub tcp_established_timeout: Option<Duration>,
    /// Timeout of half-closed TCP connections.
    pub tcp_close_wait_timeout: Option<Duration>,
    /// Whether packets outside the TCP window are let through.
    pub tcp_be_liberal: bool,
    /// Timeout of UDP without an answer.
    pub udp_timeout: Option<Duration>,
    /// Timeout of UDP with answers.
    pub udp_stream_timeout: Option<Duration>,
}

impl Default for KubeProxyConfig {
    /// What kube-proxy fills in for an empty file.
    fn default() -> Self {
        Self {
            hostname_override: None,
            bind_address: Ipv4Addr::UNSPECIFIED.into(),
            healthz_bind_address: Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 10256)),
            metrics_bind_address: Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10249)),
            oom_score_adjustment: None,
            bind_address_hard_fail: false,
            mode: ProxyMode::Iptables,
            detect_local: DetectLocal::ClusterCidr(Vec::new()),
            node_port_addresses: NodePortAddresses::Default,
            localhost_node_ports: true,
            masquerade_all: false,
            masquerade_bit: 14,
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::from_secs(1),
            selection: Selection::Random,
            load_balancer_ip_mode: true,
            topology_aware_hints: true,
            service_traffic_distribution: false,
            conntrack: ConntrackConfig::default(),
            warnings: Vec::new(),
        }
    }
}

impl Default for ConntrackConfig {
    fn default() -> Self {
        Self {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established_timeout: Some(Duration::from_secs(86_400)),
            tcp_close_wait_timeout: Some(Duration::from_secs(3_600)),
            tcp_be_liberal: false,
            udp_timeout: None,
            udp_stream_timeout: None,
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Fields are wrong.
    #[error(transparent)]
    Invalid(#[from] Problems),
}

impl KubeProxyConfig {
    /// Reads a KubeProxyConfiguration file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = crate::text::read(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Reads `text`; `name` stands for it in messages.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        let location = |line| Location {
            file: Arc::from(name),
            document: 1,
            line,
        };
        let problem = |line, field: &str, message: String| Problem {
            location: location(line),
            object: None,
            field: field.to_owned(),
            message,
        };
        let value: Value = serde_saphyr::from_str_with_options(text, crate::yaml::options())
            .map_err(|error| {
                let line = error.location().map_or(1, |at| at.line() as usize);
                let message = format!(
                    "this is not readable as YAML: {}",
                    crate::yaml::reason(&error)
                );
                Problems(vec![problem(line, "", message)])
            })?;
        let at =
            |(field, message): (String, String)| problem(line_of(text, &field), &field, message);
        let warnings =
            fields::check(&value).map_err(|wrong| Problems(wrong.into_iter().map(at).collect()))?;
        let wire: wire::Wire =
            serde_path_to_error::deserialize(Strict(&value)).map_err(|error| {
                Problems(vec![at((
                    error.path().to_string(),
                    strict::reason(error.inner()),
                ))])
            })?;
        let mut config = wire
            .into_config()
            .map_err(|wrong| Problems(wrong.into_iter().map(at).collect()))?;
        config.warnings.splice(0..0, warnings);
        Ok(config)
    }

    /// The range of pods of one family, in mode ClusterCIDR.
    pub fn cluster_cidr(&self, family: Family) -> Option<IpNet> {
        let DetectLocal::ClusterCidr(ranges) = &self.detect_local else {
            return None;
        };
        ranges
            .iter()
            .copied()
            .find(|range| Family::of(range.addr()) == family)
    }
}

/// The first line that sets the last name of `path`; the first of the file when there is none.
fn line_of(text: &str, path: &str) -> usize {
    let name = path.rsplit('.').next().unwrap_or(path);
    let name = name.split('[').next().unwrap_or(name);
    // `a: {name: 1}` sets it too, `rename: 1` does not.
    let is_set_at = |line: &str, at: usize| {
        let is_start = line[..at].ends_with([' ', '{', ',', '"']) || at == 0;
        let rest = line[at + name.len()..].trim_start_matches('"');
        is_start && rest.trim_start().starts_with(':')
    };
    let sets = |line: &str| {
        let mut places = line.match_indices(name);
        !name.is_empty() && places.any(|(at, _)| is_set_at(line, at))
    };
    text.lines().position(sets).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests;
