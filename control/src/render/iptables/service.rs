//! The rules of one svcport (the loop over `svcPortMap` in `syncProxyRules`, `pkg/proxy/iptables/proxier.go`).

use super::base::{EXTERNAL_SERVICES, MARK_MASQUERADE, NODE_PORTS, PROXY_FIREWALL, SERVICES};
use super::rule::{Rule, full_mask, probability_of_one_in, reject};
use super::table::Table;
use crate::endpoints::EndpointSets;
use crate::model::{Endpoint, ServicePort, TrafficPolicy, Transport};
use crate::render::proxier::filters_sources;
use crate::render::{Detector, Proxier, names};
use std::net::IpAddr;

/// Writes one svcport into the tables.
pub(super) struct ServiceWriter<'a> {
    pub(super) proxier: &'a Proxier,
    pub(super) port: &'a ServicePort,
    pub(super) sets: &'a EndpointSets<'a>,
    /// In a large cluster kube-proxy leaves the comments of endpoint rules out.
    pub(super) endpoint_comments: bool,
    pub(super) filter: &'a mut Table,
    pub(super) nat: &'a mut Table,
}

impl ServiceWriter<'_> {
    pub(super) fn write(mut self) {
        self.capture_cluster_ip();
        self.capture_external_ips();
        self.capture_load_balancer_vips();
        self.capture_node_port();
        self.accept_health_checks();
        self.internal_traffic();
        self.external_traffic();
        self.source_ranges();
        self.policy_chains();
        self.endpoint_chains();
    }

    fn capture_cluster_ip(&mut self) {
        let cluster_ip = self.port.cluster_ip;
        if self.sets.has_internal {
            let target = self.internal_chain();
            self.capture(cluster_ip, "cluster IP", &target);
        } else {
            let rule = self.unreachable();
            let rule = self.to_service(rule.destination(cluster_ip));
            self.filter.append(SERVICES, rule);
        }
    }

    fn capture_external_ips(&mut self) {
        let target = names::external_chain(&self.port.name);
        for &address in &self.port.external_ips {
            if self.sets.has {
                self.capture(address, "external IP", &target);
            }
            self.refuse_external(address);
        }
    }

    fn capture_load_balancer_vips(&mut self) {
        let firewall = names::firewall_chain(&self.port.name);
        let target = if self.filters_sources() {
            firewall.clone()
        } else {
            names::external_chain(&self.port.name)
        };
        for &address in &self.port.load_balancer_vips {
            if self.sets.has {
                self.capture(address, "loadbalancer IP", &target);
            }
            if self.filters_sources() {
                let refused = format!("{} traffic not accepted by {firewall}", self.port.name);
                let rule = Rule::new().destination(address).comment(&refused);
                let rule = self.to_service(rule).jump("DROP");
                self.filter.append(PROXY_FIREWALL, rule);
            }
        }
        for &address in &self.port.load_balancer_vips {
            self.refuse_external(address);
        }
    }

    /// Sends what comes for `address` to `target`.
    fn capture(&mut self, address: IpAddr, kind: &str, target: &str) {
        let comment = format!("{} {kind}", self.port.name);
        let rule = Rule::new().destination(address).comment(&comment);
        let rule = self.to_service(rule).jump(target);
        self.nat.append(SERVICES, rule);
    }

    /// Without endpoints for external traffic, refuses what comes for `address`.
    fn refuse_external(&mut self, address: IpAddr) {
        if !self.sets.has_external {
            let rule = self.unreachable();
            let rule = self.to_service(rule.destination(address));
            self.filter.append(EXTERNAL_SERVICES, rule);
        }
    }

    fn capture_node_port(&mut self) {
        let Some(node_port) = self.port.node_port else {
            return;
        };
        let protocol = self.port.name.protocol;
        if self.sets.has {
            let rule = Rule::new()
                .comment(&self.port.name.to_string())
                .destination_port(protocol, node_port)
                .jump(names::external_chain(&self.port.name));
            self.nat.append(NODE_PORTS, rule);
        }
        if !self.sets.has_external {
            let rule = self
                .unreachable()
                .match_text("addrtype --dst-type LOCAL")
                .destination_port(protocol, node_port);
            self.filter.append(EXTERNAL_SERVICES, rule);
        }
    }

    /// REJECT without any endpoint; DROP when it is only the policy that keeps the traffic from one.
    fn unreachable(&self) -> Rule {
        let name = &self.port.name;
        if self.sets.has {
            let comment = format!("{name} has no local endpoints");
            Rule::new().comment(&comment).jump("DROP")
        } else {
            let comment = format!("{name} has no endpoints");
            Rule::new().comment(&comment).jump(reject(self.port.family))
        }
    }

    fn accept_health_checks(&mut self) {
        if let Some(node_port) = self.port.health_check_node_port {
            let comment = format!("{} health check node port", self.port.name);
            let rule = Rule::new()
                .comment(&comment)
                .destination_port(Transport::Tcp, node_port)
                .jump("ACCEPT");
            self.filter.append(NODE_PORTS, rule);
        }
    }

    /// Marks cluster IP traffic that does not come from a pod.
    fn internal_traffic(&mut self) {
        if !self.sets.has_internal {
            return;
        }
        let comment = format!("{} cluster IP", self.port.name);
        let rule = Rule::new()
            .destination(self.port.cluster_ip)
            .comment(&comment);
        let rule = self.to_service(rule).jump(MARK_MASQUERADE);
        let chain = self.internal_chain();
        if self.proxier.masquerade_all {
            self.nat.append(&chain, rule);
        } else if let Some(rule) = not_from_pod(&self.proxier.detector, rule) {
            self.nat.append(&chain, rule);
        }
    }

    fn external_traffic(&mut self) {
        if !self.sets.has || !self.port.is_externally_accessible() {
            return;
        }
        let chain = names::external_chain(&self.port.name);
        let policy = self.port.external_traffic_policy;
        match policy {
            TrafficPolicy::Cluster => {
                let comment = self.external_destinations("masquerade traffic for");
                let rule = Rule::new().comment(&comment).jump(MARK_MASQUERADE);
                self.nat.append(&chain, rule);
            }
            TrafficPolicy::Local => self.short_circuit(&chain),
        }
        if self.sets.has_external {
            let target = self.policy_chain(policy);
            self.nat.append(&chain, Rule::new().jump(target));
        }
    }

    /// Pods and the node itself reach every endpoint, as if by way of the load balancer.
    fn short_circuit(&mut self, chain: &str) {
        let cluster = names::cluster_policy_chain(&self.port.name);
        let pods = Rule::new().comment(&self.external_destinations("pod traffic for"));
        if let Some(rule) = from_pod(&self.proxier.detector, pods.jump(&cluster)) {
            self.nat.append(chain, rule);
        }
        let local = |comment: &str| {
            Rule::new()
                .comment(comment)
                .match_text("addrtype --src-type LOCAL")
        };
        let masquerade = local(&self.external_destinations("masquerade LOCAL traffic for"));
        self.nat.append(chain, masquerade.jump(MARK_MASQUERADE));
        let route = local(&self.external_destinations("route LOCAL traffic for"));
        self.nat.append(chain, route.jump(&cluster));
    }

    fn external_destinations(&self, what: &str) -> String {
        format!("{what} {} external destinations", self.port.name)
    }

    /// Lets the allowed sources through; the filter table drops what comes back from this chain.
    fn source_ranges(&mut self) {
        if !self.filters_sources() {
            return;
        }
        let chain = names::firewall_chain(&self.port.name);
        let target = names::external_chain(&self.port.name);
        let comment = format!("{} loadbalancer IP", self.port.name);
        for source in self.proxier.admitted_sources(self.port) {
            let rule = Rule::new().source(source).comment(&comment).jump(&target);
            self.nat.append(&chain, rule);
        }
        let other = format!(
            "other traffic to {} will be dropped by KUBE-PROXY-FIREWALL",
            self.port.name
        );
        self.nat.append(&chain, Rule::new().comment(&other));
    }

    fn policy_chains(&mut self) {
        let cluster = names::cluster_policy_chain(&self.port.name);
        self.balance(&cluster, &self.sets.cluster);
        let local = names::local_policy_chain(&self.port.name);
        self.balance(&local, &self.sets.local);
    }

    /// Affinity first, then one of `endpoints` with equal probability.
    fn balance(&mut self, chain: &str, endpoints: &[&Endpoint]) {
        if let Some(timeout) = self.port.affinity_timeout {
            let seconds = timeout.as_secs();
            for endpoint in endpoints {
                let target = names::endpoint_chain(&self.port.name, endpoint);
                let recent =
                    self.recent(format_args!("--rcheck --seconds {seconds} --reap"), &target);
                let rule = self.towards(endpoint).match_text(recent).jump(target);
                self.nat.append(chain, rule);
            }
        }
        for (position, endpoint) in endpoints.iter().enumerate() {
            let mut rule = self.towards(endpoint);
            let left = endpoints.len() - position;
            if left > 1 {
                let probability = probability_of_one_in(left);
                rule = rule.match_text(format_args!(
                    "statistic --mode random --probability {probability}"
                ));
            }
            let target = names::endpoint_chain(&self.port.name, endpoint);
            self.nat.append(chain, rule.jump(target));
        }
    }

    fn endpoint_chains(&mut self) {
        for endpoint in &self.sets.reachable {
            let chain = names::endpoint_chain(&self.port.name, endpoint);
            let hairpin = self.on_endpoint().source(endpoint.address.into());
            self.nat.append(&chain, hairpin.jump(MARK_MASQUERADE));

            let protocol = self.port.name.protocol;
            let mut rule = self.on_endpoint().protocol(protocol);
            if self.port.affinity_timeout.is_some() {
                rule = rule.match_text(self.recent("--set", &chain));
            }
            let rule = rule.match_text(protocol);
            let dnat = rule.jump(format_args!("DNAT --to-destination {endpoint}"));
            self.nat.append(&chain, dnat);
        }
    }

    fn recent(&self, what: impl std::fmt::Display, list: &str) -> String {
        let mask = full_mask(self.port.family);
        format!("recent {what} --name {list} --mask {mask} --rsource")
    }

    fn towards(&self, endpoint: &Endpoint) -> Rule {
        self.endpoint_comment(format_args!("{} -> {endpoint}", self.port.name))
    }

    fn on_endpoint(&self) -> Rule {
        self.endpoint_comment(format_args!("{}", self.port.name))
    }

    fn endpoint_comment(&self, comment: std::fmt::Arguments<'_>) -> Rule {
        if self.endpoint_comments {
            Rule::new().comment(&comment.to_string())
        } else {
            Rule::new()
        }
    }

    fn to_service(&self, rule: Rule) -> Rule {
        rule.destination_port(self.port.name.protocol, self.port.port)
    }

    fn filters_sources(&self) -> bool {
        self.sets.has && filters_sources(self.port)
    }

    fn internal_chain(&self) -> String {
        self.policy_chain(self.port.internal_traffic_policy)
    }

    fn policy_chain(&self, policy: TrafficPolicy) -> String {
        match policy {
            TrafficPolicy::Cluster => names::cluster_policy_chain(&self.port.name),
            TrafficPolicy::Local => names::local_policy_chain(&self.port.name),
        }
    }
}

/// `rule` for traffic of pods; nothing without a detector.
fn from_pod(detector: &Detector, rule: Rule) -> Option<Rule> {
    match detector {
        Detector::None => None,
        Detector::Source(network) => Some(rule.source(*network)),
        Detector::Bridge(name) => Some(rule.input_interface(name)),
        Detector::InterfacePrefix(prefix) => Some(rule.input_interface(&format!("{prefix}+"))),
    }
}

/// `rule` for all other traffic; nothing without a detector.
fn not_from_pod(detector: &Detector, rule: Rule) -> Option<Rule> {
    match detector {
        Detector::None => None,
        Detector::Source(network) => Some(rule.not_source(*network)),
        Detector::Bridge(name) => Some(rule.not_input_interface(name)),
        Detector::InterfacePrefix(prefix) => Some(rule.not_input_interface(&format!("{prefix}+"))),
    }
}
