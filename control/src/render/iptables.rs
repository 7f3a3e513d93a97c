//! iptables mode: what iptables-save or ip6tables-save shows after kube-proxy has synced.
//!
//! Read first: [`base`] (the chains that are always there), then [`service`] (what one svcport adds).

mod base;
mod rule;
mod service;
mod table;

use super::Proxier;
use service::ServiceWriter;

/// Above this many endpoints kube-proxy leaves out the comments of endpoint rules (`largeClusterEndpointsThreshold`).
const LARGE_CLUSTER_ENDPOINTS: usize = 1000;

/// The tables of one family, as iptables-save prints them, without comments of its own.
///
/// `iptables-restore` (`ip6tables-restore`) loads the text as it is.
pub(super) fn tables(proxier: &Proxier) -> String {
    let mut filter = base::filter(proxier);
    let mut nat = base::nat(proxier);
    let all_endpoints: usize = proxier
        .services
        .iter()
        .map(|port| port.endpoints.len())
        .sum();
    for port in &proxier.services {
        let writer = ServiceWriter {
            proxier,
            port,
            sets: &proxier.endpoint_sets(port),
            endpoint_comments: all_endpoints <= LARGE_CLUSTER_ENDPOINTS,
            filter: &mut filter,
            nat: &mut nat,
        };
        writer.write();
    }
    base::node_port_jumps(&mut nat, proxier);
    format!("{}{filter}{nat}", base::mangle())
}
