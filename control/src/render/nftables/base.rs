//! The chains that are there whatever the Services are (`setupNFTables` in `pkg/proxy/nftables/proxier.go`), in
//! the order in which kube-proxy creates them.

use super::table::{Block, protocol_word};
use crate::model::Family;
use crate::render::{NodePortAddresses, Proxier};

pub(super) const MARK_MASQUERADE: &str = "mark-for-masquerade";
pub(super) const REJECT: &str = "reject-chain";

/// How the maps are asked, behind the address.
const BY_PORT: &str = "meta l4proto . th dport vmap";

/// A base chain: its name, its hook with the priority as nft prints it, what it jumps to for new connections.
type FilterHook = (&'static str, &'static str, &'static [&'static str]);

const FILTER_HOOKS: [FilterHook; 5] = [
    (
        "filter-prerouting",
        "prerouting priority dstnat - 10",
        &["firewall-check"],
    ),
    (
        "filter-input",
        "input priority -110",
        &["nodeport-endpoints-check", "service-endpoints-check"],
    ),
    (
        "filter-forward",
        "forward priority -110",
        &["service-endpoints-check", "cluster-ips-check"],
    ),
    (
        "filter-output",
        "output priority -110",
        &["service-endpoints-check", "firewall-check"],
    ),
    (
        "filter-output-post-dnat",
        "output priority -90",
        &["cluster-ips-check"],
    ),
];

/// A base chain of NAT: its name, its hook, what it jumps to.
const NAT_HOOKS: [(&str, &str, &str); 3] = [
    ("nat-prerouting", "prerouting priority dstnat", "services"),
    ("nat-output", "output priority -100", "services"),
    (
        "nat-postrouting",
        "postrouting priority srcnat",
        "masquerading",
    ),
];

/// All of them.
pub(super) fn chains(proxier: &Proxier) -> Vec<Block> {
    let mut chains = hooks();
    chains.extend(lookups(proxier));
    chains.extend(verdicts(proxier));
    chains
}

fn hooks() -> Vec<Block> {
    let mut chains = Vec::new();
    for (name, hook, targets) in FILTER_HOOKS {
        let mut chain = chain(name).line(format!("type filter hook {hook}; policy accept;"));
        for target in targets {
            chain = chain.line(format!("ct state new jump {target}"));
        }
        chains.push(chain);
    }
    for (name, hook, target) in NAT_HOOKS {
        let chain = chain(name)
            .line(format!("type nat hook {hook}; policy accept;"))
            .line(format!("jump {target}"));
        chains.push(chain);
    }
    chains
}

/// The chains that ask the maps.
fn lookups(proxier: &Proxier) -> [Block; 4] {
    let ip = protocol_word(proxier.family);
    let by_address = |map: &str| format!("{ip} daddr . {BY_PORT} @{map}");
    let node_port = node_port_destination(proxier);
    let by_node_port = |map: &str| format!("{node_port} {BY_PORT} @{map}");
    [
        chain("nodeport-endpoints-check").line(by_node_port("no-endpoint-nodeports")),
        chain("service-endpoints-check").line(by_address("no-endpoint-services")),
        chain("firewall-check").line(by_address("firewall-ips")),
        chain("services")
            .line(by_address("service-ips"))
            .line(by_node_port("service-nodeports")),
    ]
}

/// What tells traffic to a node's own addresses.
fn node_port_destination(proxier: &Proxier) -> String {
    let ip = protocol_word(proxier.family);
    let local = "fib daddr type local";
    match (&proxier.node_port_addresses, proxier.family) {
        (NodePortAddresses::All, Family::V4) => format!("{local} ip daddr != 127.0.0.0/8"),
        (NodePortAddresses::All, Family::V6) => format!("{local} ip6 daddr != ::1"),
        (NodePortAddresses::Unset | NodePortAddresses::Only(_), _) => {
            format!("{ip} daddr @nodeport-ips")
        }
    }
}

/// The chains that decide.
fn verdicts(proxier: &Proxier) -> [Block; 4] {
    let ip = protocol_word(proxier.family);
    let mark = proxier.masquerade_mark;
    [
        chain("masquerading")
            .line(format!("{} return", without_mark(mark)))
            .line(format!("meta mark set meta mark ^ {mark:#010x}"))
            .line("masquerade fully-random"),
        chain("cluster-ips-check").line(format!(
            "{ip} daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\""
        )),
        chain(MARK_MASQUERADE).line(format!("meta mark set meta mark | {mark:#010x}")),
        chain(REJECT)
            .line("comment \"helper for @no-endpoint-services / @no-endpoint-nodeports\"")
            .line("reject"),
    ]
}

/// Packets that do not bear the mark. A mask of the topmost bit is a prefix to nft, and it prints it as one.
fn without_mark(mark: u32) -> String {
    if mark == 1 << 31 {
        "meta mark 0x00000000/1".to_owned()
    } else {
        format!("meta mark & {mark:#010x} == 0x00000000")
    }
}

pub(super) fn chain(name: &str) -> Block {
    Block::new(format!("chain {name}"))
}
