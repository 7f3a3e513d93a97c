//! What becomes of a new connection: [`ServiceTable::decide`].

use super::{
    Action, Claim, Endpoint, Frontend, FrontendKey, LocalDetector, NodePortAddresses, ServiceIndex,
    ServiceTable,
};
use crate::tuple::{Address, Origin, Tuple};

/// The class of a packet's source (kube-proxy's local detector, then `addrtype --src-type LOCAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceClass {
    /// Taken for a pod by the local detector.
    Pod,
    /// An address of this node.
    Local,
    /// Any other.
    Outside,
}

/// What the table says about a new connection.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'t> {
    /// No Service: routed like any packet.
    NotAService,
    /// To one of `endpoints`.
    Balance {
        /// The Service.
        service: ServiceIndex,
        /// The candidates, at least one.
        endpoints: &'t [Endpoint],
        /// Whether the source is masqueraded whatever the endpoint.
        masquerade: bool,
    },
    /// Refused: the Service has no endpoints.
    Reject(ServiceIndex),
    /// Dropped: the policy is Local and this node has no endpoint.
    NoLocalEndpoint(ServiceIndex),
    /// Dropped: the source is in none of `loadBalancerSourceRanges`.
    SourceNotAllowed(ServiceIndex),
}

impl ServiceTable {
    /// What becomes of a new connection `tuple` that comes from `origin`.
    pub fn decide(&self, tuple: &Tuple, origin: Origin) -> Decision<'_> {
        self.decide_by(tuple, origin).0
    }

    /// [`ServiceTable::decide`] with the frontend that decided, for explanations.
    ///
    /// The order is that of kube-proxy's rules in iptables: whatever the nat table translates is settled, a packet
    /// that falls through the rules of one frontend may still match those of the next, and only what was not
    /// translated meets the filter table's drops and rejects.
    ///
    /// DIFFERS: KUBE-FIREWALL, whose rule keeps packets of others from 127.0.0.0/8, comes before the rejects and drops what
    /// another address of the node sends to a NodePort there that has no endpoints. Here it is refused as anywhere else.
    pub fn decide_by(&self, tuple: &Tuple, origin: Origin) -> (Decision<'_>, Option<&Frontend>) {
        let class = self.class(tuple.source, origin);
        let virtual_ips = self.virtual_ips(tuple);
        if let Some(frontend) = translating(virtual_ips, tuple.source, class) {
            return (self.decision(frontend, class), Some(frontend));
        }
        let to_node = self.is_node_address(tuple.destination);
        let node_ports = if to_node { self.node_ports(tuple) } else { &[] };
        if !node_ports.is_empty()
            && self.serves_node_ports(tuple.destination)
            && let Some(frontend) = translating(node_ports, tuple.source, class)
        {
            return (self.decision(frontend, class), Some(frontend));
        }
        if let Some((decision, frontend)) = firewall(virtual_ips, tuple.source) {
            return (decision, Some(frontend));
        }
        let sees = |frontend: &Frontend| frontend.kind.is_filtered(origin, to_node);
        match refusing(virtual_ips.iter().chain(node_ports), sees) {
            Some(frontend) => (
                self.decision(frontend, SourceClass::Outside),
                Some(frontend),
            ),
            None => (Decision::NotAService, None),
        }
    }

    /// What a frontend does with a connection of this class.
    fn decision<'t>(&'t self, frontend: &'t Frontend, class: SourceClass) -> Decision<'t> {
        let service = frontend.service;
        match frontend.action(class) {
            Action::Balance {
                endpoints,
                masquerade,
            } => Decision::Balance {
                service,
                endpoints: endpoints.of(self.service(service)),
                masquerade,
            },
            Action::Reject => Decision::Reject(service),
            Action::Drop => Decision::NoLocalEndpoint(service),
        }
    }

    /// The frontends that `tuple` is addressed to, in the order in which they are tried.
    pub(super) fn addressed<'t>(
        &'t self,
        tuple: &Tuple,
    ) -> impl Iterator<Item = &'t Frontend> + use<'t> {
        let virtual_ips = self.virtual_ips(tuple);
        let is_node_port =
            self.is_node_address(tuple.destination) && self.serves_node_ports(tuple.destination);
        let node_ports = if is_node_port {
            self.node_ports(tuple)
        } else {
            &[]
        };
        virtual_ips.iter().chain(node_ports).map(|claim| &claim.1)
    }

    /// Whether a packet that is not translated is turned away as one to a NodePort.
    pub(super) fn is_refused_at_node_port(&self, tuple: &Tuple) -> bool {
        self.is_node_address(tuple.destination)
            && refusing(self.node_ports(tuple).iter(), |_| true).is_some()
    }

    /// The addresses of Services that `tuple` is addressed to. NodePorts stand under the unspecified address, which is nobody's.
    fn virtual_ips(&self, tuple: &Tuple) -> &[Claim] {
        if tuple.destination == tuple.destination.unspecified_of_family() {
            return &[];
        }
        self.claims(tuple.destination, tuple)
    }

    /// The NodePorts that `tuple` is addressed to, if its destination is the node's.
    fn node_ports(&self, tuple: &Tuple) -> &[Claim] {
        self.claims(tuple.destination.unspecified_of_family(), tuple)
    }

    /// All frontends with `address` and the port and protocol of `tuple`, in the order of the rules.
    fn claims(&self, address: Address, tuple: &Tuple) -> &[Claim] {
        let key = FrontendKey {
            address,
            port: tuple.destination_port,
            protocol: tuple.protocol,
        };
        let Some(first) = self.index.find(&key, &self.frontends) else {
            return &[];
        };
        let together = self.frontends.from(first);
        let count = together.iter().take_while(|claim| claim.0 == key);
        &together[..count.count()]
    }

    /// Only translation minds `nodePortAddresses`; the filter table's rules match every address of the node.
    fn serves_node_ports(&self, destination: Address) -> bool {
        match self.node_port_addresses(destination.is_ipv4()) {
            NodePortAddresses::All { localhost } => *localhost || !destination.is_loopback(),
            NodePortAddresses::Only(list) => list.contains(&destination),
        }
    }

    /// The class of a source address.
    pub fn class(&self, source: Address, origin: Origin) -> SourceClass {
        let detector = if source.is_ipv4() {
            &self.node.local_detector_v4
        } else {
            &self.node.local_detector_v6
        };
        let is_pod = match detector {
            LocalDetector::None => false,
            LocalDetector::Source(prefixes) => {
                prefixes.iter().any(|prefix| prefix.contains(source))
            }
            LocalDetector::Interface => origin == Origin::Pod,
        };
        if is_pod {
            SourceClass::Pod
        } else if self.is_node_address(source) {
            SourceClass::Local
        } else {
            SourceClass::Outside
        }
    }

    /// Whether `address` is one of the node's (`addrtype LOCAL`), loopback included.
    pub fn is_node_address(&self, address: Address) -> bool {
        address.is_loopback() || self.node.addresses.binary_search(&address).is_ok()
    }
}

/// The first frontend that translates packets of this class from `source` (nat KUBE-SERVICES, KUBE-NODEPORTS).
fn translating(frontends: &[Claim], source: Address, class: SourceClass) -> Option<&Frontend> {
    let mut frontends = frontends.iter().map(|claim| &claim.1);
    frontends.find(|frontend| {
        matches!(frontend.action(class), Action::Balance { .. }) && frontend.admits(source)
    })
}

/// What KUBE-PROXY-FIREWALL drops: all that is addressed to a load balancer IP with source ranges and was not
/// translated. Without endpoints there is no such rule: everyone is rejected.
fn firewall(frontends: &[Claim], source: Address) -> Option<(Decision<'_>, &Frontend)> {
    let guarded = frontends.iter().map(|claim| &claim.1).find(|frontend| {
        !frontend.source_ranges.is_empty() && frontend.from_outside != Action::Reject
    })?;
    let decision = if guarded.admits(source) {
        Decision::NoLocalEndpoint(guarded.service)
    } else {
        Decision::SourceNotAllowed(guarded.service)
    };
    Some((decision, guarded))
}

/// The first reject or drop rule. There is one per frontend, whatever the class of the source: where pods and the
/// node are served all the same, translation has settled it.
fn refusing<'t>(
    frontends: impl Iterator<Item = &'t Claim>,
    sees: impl Fn(&Frontend) -> bool,
) -> Option<&'t Frontend> {
    let mut frontends = frontends.map(|claim| &claim.1);
    frontends.find(|frontend| {
        matches!(frontend.from_outside, Action::Reject | Action::Drop) && sees(frontend)
    })
}
