//! The names that kube-proxy gives to chains and sets.
//!
//! iptables: 16 characters of a hash behind a prefix (`servicePortChainName` and its kin in
//! `pkg/proxy/iptables/proxier.go`). nftables: 8 characters of a hash, then the thing itself
//! (`hashAndTruncate` in `pkg/proxy/nftables/proxier.go`). Neither has the family in it, so both families of a
//! Service share their names.

use crate::model::{Endpoint, ServicePortName};
use data_encoding::BASE32;
use sha2::{Digest, Sha256};
use std::net::IpAddr;

/// Longest name base that nftables mode writes: the kernel's 256 less room for a prefix.
const NFT_BASE_LENGTH_MAX: usize = 240;

/// iptables: the chain of the endpoints that `trafficPolicy: Cluster` uses, `KUBE-SVC-…`.
pub fn cluster_policy_chain(name: &ServicePortName) -> String {
    format!("KUBE-SVC-{}", service_hash(name))
}

/// iptables: the chain of the endpoints that `trafficPolicy: Local` uses, `KUBE-SVL-…`.
pub fn local_policy_chain(name: &ServicePortName) -> String {
    format!("KUBE-SVL-{}", service_hash(name))
}

/// iptables: the chain of all traffic to external destinations, `KUBE-EXT-…`.
pub fn external_chain(name: &ServicePortName) -> String {
    format!("KUBE-EXT-{}", service_hash(name))
}

/// iptables: the chain of `loadBalancerSourceRanges`, `KUBE-FW-…`.
pub fn firewall_chain(name: &ServicePortName) -> String {
    format!("KUBE-FW-{}", service_hash(name))
}

/// iptables: the chain of one endpoint, `KUBE-SEP-…`.
pub fn endpoint_chain(name: &ServicePortName, endpoint: &Endpoint) -> String {
    let protocol = name.protocol;
    format!(
        "KUBE-SEP-{}",
        hash(&format!("{name}{protocol}{endpoint}"), 16)
    )
}

/// nftables: what follows `service-`, `local-`, `external-` and `firewall-`.
pub fn nft_service_base(name: &ServicePortName) -> String {
    hash_and_truncate(nft_service(name))
}

/// nftables: what follows `endpoint-` and `affinity-`. Colons of IPv6 become dots.
pub fn nft_endpoint_base(name: &ServicePortName, endpoint: &Endpoint) -> String {
    let address = match endpoint.address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => address.to_string().replace(':', "."),
    };
    let service = nft_service(name);
    hash_and_truncate(format!("{service}__{address}/{}", endpoint.port))
}

fn service_hash(name: &ServicePortName) -> String {
    let protocol = name.protocol;
    hash(&format!("{name}{protocol}"), 16)
}

fn nft_service(name: &ServicePortName) -> String {
    let ServicePortName {
        namespace,
        service,
        port,
        protocol,
    } = name;
    format!("{namespace}/{service}/{protocol}/{port}")
}

fn hash_and_truncate(text: String) -> String {
    let mut name = format!("{}-{text}", hash(&text, 8));
    if name.len() > NFT_BASE_LENGTH_MAX {
        name.truncate(name.floor_char_boundary(NFT_BASE_LENGTH_MAX - 3));
        name.push_str("...");
    }
    name
}

/// The first `length` characters of the base32 of the SHA-256 of `text`.
fn hash(text: &str, length: usize) -> String {
    let mut encoded = BASE32.encode(&Sha256::digest(text.as_bytes()));
    encoded.truncate(length);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Transport;
    use std::collections::BTreeSet;

    fn service_port(namespace: &str, service: &str, port: &str) -> ServicePortName {
        ServicePortName {
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            port: port.to_owned(),
            protocol: Transport::Tcp,
        }
    }

    fn endpoint(address: &str, port: u16) -> Endpoint {
        Endpoint {
            address: address.parse().unwrap(),
            port,
            is_local: false,
            ready: true,
            serving: true,
            terminating: false,
            zone_hints: BTreeSet::new(),
        }
    }

    #[test]
    fn iptables_names_are_those_of_a_real_kube_proxy() {
        let named = service_port("matrix", "cluster-ip", "http");
        assert_eq!(cluster_policy_chain(&named), "KUBE-SVC-6O7CPDCPFEWSTBLM");
        let unnamed = service_port("hello-web-app-routing", "aks-helloworld", "");
        assert_eq!(external_chain(&unnamed), "KUBE-EXT-R3ACLILMJNOIM65B");
        let six = service_port("dual", "only-six", "http");
        assert_eq!(
            endpoint_chain(&six, &endpoint("fd00:10:244:1::10", 8080)),
            "KUBE-SEP-5RLU3CNCUD42AJJI"
        );
    }

    #[test]
    fn nftables_names_are_those_of_a_real_kube_proxy() {
        let both = service_port("dual", "both", "http");
        assert_eq!(nft_service_base(&both), "HYQADZLJ-dual/both/tcp/http");
        let affinity = service_port("dual", "affinity-six", "http");
        assert_eq!(
            nft_endpoint_base(&affinity, &endpoint("fd00:10:244:1::10", 8080)),
            "O2UWVC73-dual/affinity-six/tcp/http__fd00.10.244.1..10/8080"
        );
    }

    #[test]
    fn nftables_names_end_before_the_kernels_limit() {
        let long = service_port(&"n".repeat(120), &"s".repeat(120), "p");
        let name = nft_service_base(&long);
        assert_eq!(name.len(), 240);
        assert!(name.ends_with("ss..."));
    }
}
