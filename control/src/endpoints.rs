//! [`EndpointSets`]: which endpoints of a svcport traffic may go to, under each policy.
//!
//! Source: Kubernetes 1.30 `pkg/proxy/topology.go`, `CategorizeEndpoints`.

use crate::model::{Endpoint, ServicePort, TrafficPolicy};

/// The endpoint sets of one svcport on one node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EndpointSets<'s> {
    /// For policy Cluster; exists only if [`ServicePort::uses_cluster_endpoints`].
    pub cluster: Vec<&'s Endpoint>,
    /// For policy Local; exists only if [`ServicePort::uses_local_endpoints`].
    pub local: Vec<&'s Endpoint>,
    /// Cluster and local set together, in the order of the svcport: each gets a KUBE-SEP chain.
    pub reachable: Vec<&'s Endpoint>,
    /// Whether there is any usable endpoint anywhere.
    pub has: bool,
    /// Whether cluster IP traffic has somewhere to go on this node.
    pub has_internal: bool,
    /// Whether NodePort, external and load balancer IP traffic from outside has somewhere to go on this node.
    pub has_external: bool,
}

impl ServicePort {
    /// Whether it is reached by anything but its cluster IP (`ExternallyAccessible`).
    pub fn is_externally_accessible(&self) -> bool {
        self.node_port.is_some()
            || !self.load_balancer_vips.is_empty()
            || !self.external_ips.is_empty()
    }

    /// Whether any traffic has policy Cluster; external traffic of pods and of the node always has.
    pub fn uses_cluster_endpoints(&self) -> bool {
        self.internal_traffic_policy == TrafficPolicy::Cluster || self.is_externally_accessible()
    }

    /// Whether any traffic has policy Local.
    pub fn uses_local_endpoints(&self) -> bool {
        self.internal_traffic_policy == TrafficPolicy::Local
            || (self.external_traffic_policy == TrafficPolicy::Local
                && self.is_externally_accessible())
    }
}

impl<'s> EndpointSets<'s> {
    /// The sets of `service` on a node in `zone` (its label `topology.kubernetes.io/zone`).
    pub fn of(service: &'s ServicePort, zone: Option<&str>) -> Self {
        let mut sets = Self::default();
        if service.uses_cluster_endpoints() {
            sets.cluster = cluster_set(service, zone);
            sets.has = !sets.cluster.is_empty();
        }
        if service.uses_local_endpoints() {
            sets.local = ready_else_draining(&service.endpoints, |endpoint| endpoint.is_local);
            sets.has |= service
                .endpoints
                .iter()
                .any(|endpoint| endpoint.ready || endpoint.is_draining());
        }
        sets.reachable = union(&service.endpoints, &sets.cluster, &sets.local);
        let has_for =
            |policy| sets.has && (policy != TrafficPolicy::Local || !sets.local.is_empty());
        sets.has_internal = has_for(service.internal_traffic_policy);
        sets.has_external = has_for(service.external_traffic_policy);
        sets
    }
}

impl Endpoint {
    /// Shutting down but still answering: used when there is nothing better.
    pub fn is_draining(&self) -> bool {
        self.serving && self.terminating
    }
}

/// The members of either set, both of which are in the order of `endpoints`.
fn union<'s>(
    endpoints: &'s [Endpoint],
    cluster: &[&'s Endpoint],
    local: &[&'s Endpoint],
) -> Vec<&'s Endpoint> {
    let (mut cluster, mut local) = (cluster.iter().peekable(), local.iter().peekable());
    let mut is_member = |endpoint: &&Endpoint| {
        let is_next = |member: &&&Endpoint| std::ptr::eq(**member, *endpoint);
        let in_cluster = cluster.next_if(|member| is_next(member)).is_some();
        local.next_if(|member| is_next(member)).is_some() || in_cluster
    };
    endpoints
        .iter()
        .filter(|endpoint| is_member(endpoint))
        .collect()
}

fn cluster_set<'s>(service: &'s ServicePort, zone: Option<&str>) -> Vec<&'s Endpoint> {
    let zone = zone.filter(|zone| uses_hints(service, zone));
    let in_zone = |endpoint: &Endpoint| zone.is_none_or(|zone| endpoint.zone_hints.contains(zone));
    let ready = |endpoint: &&Endpoint| endpoint.ready && in_zone(endpoint);
    let set: Vec<_> = service.endpoints.iter().filter(ready).collect();
    if !set.is_empty() {
        return set;
    }
    let draining = |endpoint: &&Endpoint| endpoint.is_draining();
    service.endpoints.iter().filter(draining).collect()
}

fn ready_else_draining(
    endpoints: &[Endpoint],
    admit: impl Fn(&Endpoint) -> bool,
) -> Vec<&Endpoint> {
    let admitted = || endpoints.iter().filter(|endpoint| admit(endpoint));
    let ready: Vec<_> = admitted().filter(|endpoint| endpoint.ready).collect();
    if ready.is_empty() {
        return admitted()
            .filter(|endpoint| endpoint.is_draining())
            .collect();
    }
    ready
}

/// `canUseTopology`: every ready endpoint has a hint, and one of them is for this zone.
fn uses_hints(service: &ServicePort, zone: &str) -> bool {
    if matches!(
        service.hints_annotation.as_str(),
        "" | "disabled" | "Disabled"
    ) {
        return false;
    }
    let mut for_this_zone = false;
    for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.ready) {
        if endpoint.zone_hints.is_empty() {
            return false;
        }
        for_this_zone |= endpoint.zone_hints.contains(zone);
    }
    for_this_zone
}
