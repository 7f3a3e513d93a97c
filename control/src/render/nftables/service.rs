//! The elements and chains of one svcport (the loop over `svcPortMap` in `syncProxyRules`,
//! `pkg/proxy/nftables/proxier.go`).

use super::Ruleset;
use super::base::{MARK_MASQUERADE, REJECT, chain};
use super::sources;
use super::table::{Block, Element, Key, VerdictMap, address_type, duration, protocol_word};
use crate::endpoints::EndpointSets;
use crate::model::{Endpoint, ServicePort, TrafficPolicy};
use crate::render::proxier::filters_sources;
use crate::render::{Detector, Proxier, RenderError, names};
use std::net::IpAddr;
use std::time::Duration;

/// The longest comment that nft takes (`NFTNL_UDATA_COMMENT_MAXLEN`).
const COMMENT_LENGTH_MAX: usize = 128;

/// Writes one svcport into the ruleset.
pub(super) struct ServiceWriter<'a> {
    pub(super) proxier: &'a Proxier,
    pub(super) port: &'a ServicePort,
    pub(super) sets: &'a EndpointSets<'a>,
    pub(super) ruleset: &'a mut Ruleset,
}

impl ServiceWriter<'_> {
    pub(super) fn write(mut self) -> Result<(), RenderError> {
        self.capture_cluster_ip()?;
        self.capture_external_addresses()?;
        self.firewall_elements()?;
        self.capture_node_port()?;
        self.affinity_sets();
        self.endpoint_chains();
        self.policy_chain(TrafficPolicy::Cluster)?;
        self.policy_chain(TrafficPolicy::Local)?;
        self.external_chain()?;
        self.firewall_chain();
        Ok(())
    }

    fn capture_cluster_ip(&mut self) -> Result<(), RenderError> {
        let address = self.port.cluster_ip;
        self.ruleset.cluster_ips.push(address);
        if self.sets.has_internal {
            let target = self.policy_chain_name(self.port.internal_traffic_policy);
            self.capture(Some(address), self.port.port, target)
        } else {
            self.refuse(Some(address), self.port.port)
        }
    }

    fn capture_external_addresses(&mut self) -> Result<(), RenderError> {
        let external_ips = self.port.external_ips.iter();
        for &address in external_ips.chain(&self.port.load_balancer_vips) {
            self.capture_external(Some(address), self.port.port)?;
        }
        Ok(())
    }

    fn capture_node_port(&mut self) -> Result<(), RenderError> {
        match self.port.node_port {
            Some(node_port) => self.capture_external(None, node_port),
            None => Ok(()),
        }
    }

    fn capture_external(&mut self, address: Option<IpAddr>, port: u16) -> Result<(), RenderError> {
        if self.sets.has {
            self.capture(address, port, self.chain_name("external"))?;
        }
        if !self.sets.has_external {
            self.refuse(address, port)?;
        }
        Ok(())
    }

    /// Sends what comes for `address` (for NodePorts: a node's address) to chain `target`.
    fn capture(
        &mut self,
        address: Option<IpAddr>,
        port: u16,
        target: String,
    ) -> Result<(), RenderError> {
        let element = self.element(address, port, format!("goto {target}"), false);
        insert(self.ruleset.service_map(address), element)
    }

    /// REJECT without any endpoint; DROP when it is only the policy that keeps the traffic from one.
    fn refuse(&mut self, address: Option<IpAddr>, port: u16) -> Result<(), RenderError> {
        let verdict = if self.sets.has {
            "drop".to_owned()
        } else {
            format!("goto {REJECT}")
        };
        let element = self.element(address, port, verdict, true);
        insert(self.ruleset.no_endpoint_map(address), element)
    }

    /// Unlike in iptables mode the source ranges are there without endpoints as well.
    fn firewall_elements(&mut self) -> Result<(), RenderError> {
        if !filters_sources(self.port) {
            return Ok(());
        }
        let verdict = format!("goto {}", self.chain_name("firewall"));
        for &address in &self.port.load_balancer_vips {
            let element = self.element(Some(address), self.port.port, verdict.clone(), true);
            insert(&mut self.ruleset.firewall_ips, element)?;
        }
        Ok(())
    }

    fn element(
        &self,
        address: Option<IpAddr>,
        port: u16,
        verdict: String,
        prints_service: bool,
    ) -> Element {
        let key = Key {
            address,
            protocol: self.port.name.protocol,
            port,
        };
        Element {
            key,
            verdict,
            service: self.port.name.to_string(),
            prints_service,
        }
    }

    fn affinity_sets(&mut self) {
        let Some(timeout) = self.port.affinity_timeout else {
            return;
        };
        for endpoint in &self.sets.reachable {
            let name = self.affinity_set_name(endpoint);
            let block = affinity_set(&name, address_type(self.port.family), timeout);
            self.ruleset.affinity_sets.push(block);
        }
    }

    fn endpoint_chains(&mut self) {
        let ip = self.ip();
        for endpoint in &self.sets.reachable {
            let mut block = chain(&self.endpoint_chain_name(endpoint)).line(format!(
                "{ip} saddr {} jump {MARK_MASQUERADE}",
                endpoint.address
            ));
            if self.port.affinity_timeout.is_some() {
                let set = self.affinity_set_name(endpoint);
                block = block.line(format!("update @{set} {{ {ip} saddr }}"));
            }
            let protocol = self.port.name.protocol;
            let block = block.line(format!("meta l4proto {protocol} dnat to {endpoint}"));
            self.ruleset.chains.push(block);
        }
    }

    /// `service-…` or `local-…`: affinity first, then one of the endpoints with equal probability.
    fn policy_chain(&mut self, policy: TrafficPolicy) -> Result<(), RenderError> {
        let endpoints = match policy {
            TrafficPolicy::Cluster => &self.sets.cluster,
            TrafficPolicy::Local => &self.sets.local,
        };
        if endpoints.is_empty() {
            return Ok(());
        }
        let mut block = chain(&self.policy_chain_name(policy));
        if self.port.internal_traffic_policy == policy && self.sets.has_internal {
            block.lines.extend(self.masquerade_rule()?);
        }
        if self.port.affinity_timeout.is_some() {
            let rules = endpoints
                .iter()
                .map(|endpoint| self.affinity_rule(endpoint));
            block.lines.extend(rules);
        }
        let block = block.line(self.balance_rule(endpoints));
        self.ruleset.chains.push(block);
        Ok(())
    }

    /// Marks cluster IP traffic that does not come from a pod.
    fn masquerade_rule(&self) -> Result<Option<String>, RenderError> {
        let not_from_pod = if self.proxier.masquerade_all {
            Some(String::new())
        } else {
            self.source_test(" != ")?.map(|test| test + " ")
        };
        let to_service = format!(
            "{} daddr {} {} dport {}",
            self.ip(),
            self.port.cluster_ip,
            self.port.name.protocol,
            self.port.port
        );
        Ok(not_from_pod.map(|test| format!("{to_service} {test}jump {MARK_MASQUERADE}")))
    }

    /// What tells pods (`comparison` is a blank) or all others (` != `); nothing without a detector.
    fn source_test(&self, comparison: &str) -> Result<Option<String>, RenderError> {
        match &self.proxier.detector {
            Detector::None => Ok(None),
            Detector::Source(network) => {
                let network = sources::prefix(*network);
                Ok(Some(format!("{} saddr{comparison}{network}", self.ip())))
            }
            Detector::Bridge(name) => Ok(Some(format!("iif{comparison}\"{name}\""))),
            Detector::InterfacePrefix(prefix) => Err(RenderError::InterfacePrefix(prefix.clone())),
        }
    }

    fn affinity_rule(&self, endpoint: &Endpoint) -> String {
        let set = self.affinity_set_name(endpoint);
        let target = self.endpoint_chain_name(endpoint);
        format!("{} saddr @{set} goto {target}", self.ip())
    }

    fn balance_rule(&self, endpoints: &[&Endpoint]) -> String {
        let elements: Vec<String> = endpoints
            .iter()
            .enumerate()
            .map(|(position, endpoint)| {
                format!("{position} : goto {}", self.endpoint_chain_name(endpoint))
            })
            .collect();
        let count = endpoints.len();
        format!(
            "numgen random mod {count} vmap {{ {} }}",
            elements.join(", ")
        )
    }

    fn external_chain(&mut self) -> Result<(), RenderError> {
        if !self.sets.has || !self.port.is_externally_accessible() {
            return Ok(());
        }
        let policy = self.port.external_traffic_policy;
        let mut block = chain(&self.chain_name("external"));
        match policy {
            TrafficPolicy::Cluster => block = block.line(format!("jump {MARK_MASQUERADE}")),
            TrafficPolicy::Local => block.lines.extend(self.short_circuit()?),
        }
        if self.sets.has_external {
            block = block.line(format!("goto {}", self.policy_chain_name(policy)));
        }
        self.ruleset.chains.push(block);
        Ok(())
    }

    /// Pods and the node itself reach every endpoint, as if by way of the load balancer.
    fn short_circuit(&self) -> Result<Vec<String>, RenderError> {
        let cluster = self.chain_name("service");
        let local = "fib saddr type local";
        let pods = self.source_test(" ")?;
        let pods =
            pods.map(|test| format!("{test} goto {cluster} comment \"short-circuit pod traffic\""));
        let mut rules = Vec::from_iter(pods);
        rules.extend([
            format!("{local} jump {MARK_MASQUERADE} comment \"masquerade local traffic\""),
            format!("{local} goto {cluster} comment \"short-circuit local traffic\""),
        ]);
        Ok(rules)
    }

    fn firewall_chain(&mut self) {
        if filters_sources(self.port) {
            let admitted = sources::not_in(&self.proxier.admitted_sources(self.port));
            let rule = format!("{} saddr != {admitted} drop", self.ip());
            let block = chain(&self.chain_name("firewall")).line(rule);
            self.ruleset.chains.push(block);
        }
    }

    fn policy_chain_name(&self, policy: TrafficPolicy) -> String {
        self.chain_name(match policy {
            TrafficPolicy::Cluster => "service",
            TrafficPolicy::Local => "local",
        })
    }

    fn chain_name(&self, kind: &str) -> String {
        format!("{kind}-{}", names::nft_service_base(&self.port.name))
    }

    fn endpoint_chain_name(&self, endpoint: &Endpoint) -> String {
        let base = names::nft_endpoint_base(&self.port.name, endpoint);
        format!("endpoint-{base}")
    }

    fn affinity_set_name(&self, endpoint: &Endpoint) -> String {
        let base = names::nft_endpoint_base(&self.port.name, endpoint);
        format!("affinity-{base}")
    }

    const fn ip(&self) -> &'static str {
        protocol_word(self.port.family)
    }
}

fn insert(map: &mut VerdictMap, element: Element) -> Result<(), RenderError> {
    let length = element.service.len();
    if element.prints_service && length > COMMENT_LENGTH_MAX {
        let service = element.service;
        return Err(RenderError::LongName { service, length });
    }
    let key = element.key.to_string();
    let second = element.service.clone();
    map.insert(element)
        .map_err(|first| RenderError::SharedAddress {
            key,
            first,
            second,
            map: map.name(),
        })
}

fn affinity_set(name: &str, address_type: &str, timeout: Duration) -> Block {
    Block::new(format!("set {name}"))
        .line(format!("type {address_type}"))
        .line("size 65535")
        .line("flags dynamic,timeout")
        .line(format!("timeout {}", duration(timeout.as_secs())))
}
