//! The chains that are there whatever the Services are, and the jumps into them.
//!
//! kube-proxy prepends its jumps one after the other, so they stand in the reverse of its source's order
//! (`iptablesJumpChains` in `pkg/proxy/iptables/proxier.go`).

use super::rule::Rule;
use super::table::Table;
use crate::model::Family;
use crate::render::{NodePortAddresses, Proxier};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) const SERVICES: &str = "KUBE-SERVICES";
pub(super) const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
pub(super) const NODE_PORTS: &str = "KUBE-NODEPORTS";
pub(super) const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
pub(super) const MARK_MASQUERADE: &str = "KUBE-MARK-MASQ";
const POSTROUTING: &str = "KUBE-POSTROUTING";
const FORWARD: &str = "KUBE-FORWARD";
const FIREWALL: &str = "KUBE-FIREWALL";
const CANARY: &str = "KUBE-PROXY-CANARY";

const NEW: &str = "conntrack --ctstate NEW";
const SERVICE_PORTALS: &str = "kubernetes service portals";
const EXTERNAL_PORTALS: &str = "kubernetes externally-visible service portals";
const LOAD_BALANCER_FIREWALL: &str = "kubernetes load balancer firewall";
const FORWARDING_RULES: &str = "kubernetes forwarding rules";

/// kube-proxy only watches whether its canary is still there.
pub(super) fn mangle() -> Table {
    let hooks = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let mut table = Table::new("mangle", &hooks);
    table.declare(CANARY);
    table
}

/// The filter table before the Services are in it.
pub(super) fn filter(proxier: &Proxier) -> Table {
    let mut table = Table::new("filter", &["INPUT", "FORWARD", "OUTPUT"]);
    for chain in [
        EXTERNAL_SERVICES,
        NODE_PORTS,
        CANARY,
        PROXY_FIREWALL,
        SERVICES,
    ] {
        table.declare(chain);
    }
    filter_jumps(&mut table);
    localnet_firewall(&mut table, proxier);
    forward(&mut table, proxier);
    table
}

fn filter_jumps(table: &mut Table) {
    let unconditional = |target: &str| Rule::new().jump(target);
    let commented = |comment: &str, target: &str| Rule::new().comment(comment).jump(target);
    let new = |comment: &str, target: &str| {
        let rule = Rule::new().match_text(NEW);
        rule.comment(comment).jump(target)
    };
    let health_ports = "kubernetes health check service ports";

    table.append("INPUT", unconditional(FIREWALL));
    table.append("INPUT", new(LOAD_BALANCER_FIREWALL, PROXY_FIREWALL));
    table.append("INPUT", commented(health_ports, NODE_PORTS));
    table.append("INPUT", new(EXTERNAL_PORTALS, EXTERNAL_SERVICES));

    table.append("FORWARD", new(LOAD_BALANCER_FIREWALL, PROXY_FIREWALL));
    table.append("FORWARD", commented(FORWARDING_RULES, FORWARD));
    table.append("FORWARD", new(SERVICE_PORTALS, SERVICES));
    table.append("FORWARD", new(EXTERNAL_PORTALS, EXTERNAL_SERVICES));

    table.append("OUTPUT", unconditional(FIREWALL));
    table.append("OUTPUT", new(LOAD_BALANCER_FIREWALL, PROXY_FIREWALL));
    table.append("OUTPUT", new(SERVICE_PORTALS, SERVICES));
}

/// With NodePorts on 127.0.0.1, `route_localnet` is on, and martians must be kept out by a rule.
fn localnet_firewall(table: &mut Table, proxier: &Proxier) {
    table.declare(FIREWALL);
    if !proxier.localhost_node_ports {
        return;
    }
    let rule = Rule::new()
        .not_source(loopback(Family::V4))
        .destination_network(loopback(Family::V4))
        .comment("block incoming localnet connections")
        .match_text("conntrack ! --ctstate RELATED,ESTABLISHED,DNAT")
        .jump("DROP");
    table.append(FIREWALL, rule);
}

fn forward(table: &mut Table, proxier: &Proxier) {
    let mark = proxier.masquerade_mark;
    if proxier.drop_invalid {
        let invalid = Rule::new().match_text("conntrack --ctstate INVALID");
        table.append(FORWARD, invalid.jump("DROP"));
    }
    let marked = Rule::new()
        .comment(FORWARDING_RULES)
        .match_text(format_args!("mark --mark {mark:#x}/{mark:#x}"))
        .jump("ACCEPT");
    table.append(FORWARD, marked);
    let established = Rule::new()
        .comment("kubernetes forwarding conntrack rule")
        .match_text("conntrack --ctstate RELATED,ESTABLISHED")
        .jump("ACCEPT");
    table.append(FORWARD, established);
}

/// The nat table before the Services are in it.
pub(super) fn nat(proxier: &Proxier) -> Table {
    let hooks = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"];
    let mut table = Table::new("nat", &hooks);
    for chain in [NODE_PORTS, CANARY, SERVICES] {
        table.declare(chain);
    }
    for hook in ["PREROUTING", "OUTPUT"] {
        table.append(hook, Rule::new().comment(SERVICE_PORTALS).jump(SERVICES));
    }
    let postrouting = Rule::new().comment("kubernetes postrouting rules");
    table.append("POSTROUTING", postrouting.jump(POSTROUTING));
    masquerade(&mut table, proxier.masquerade_mark);
    table
}

/// Marking where the decision falls, and SNAT of what is marked.
fn masquerade(table: &mut Table, mark: u32) {
    let set = format!("MARK --set-xmark {mark:#x}/{mark:#x}");
    table.append(MARK_MASQUERADE, Rule::new().jump(set));
    let unmarked = Rule::new().match_text(format_args!("mark ! --mark {mark:#x}/{mark:#x}"));
    table.append(POSTROUTING, unmarked.jump("RETURN"));
    let clear = format!("MARK --set-xmark {mark:#x}/0x0");
    table.append(POSTROUTING, Rule::new().jump(clear));
    let masquerade = Rule::new()
        .comment("kubernetes service traffic requiring SNAT")
        .jump("MASQUERADE --random-fully");
    table.append(POSTROUTING, masquerade);
}

/// The end of KUBE-SERVICES: what no Service's address caught may still be for a NodePort.
pub(super) fn node_port_jumps(nat: &mut Table, proxier: &Proxier) {
    let rule = || {
        Rule::new()
            .comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
    };
    match &proxier.node_port_addresses {
        NodePortAddresses::Unset | NodePortAddresses::All => {
            let any = rule()
                .match_text("addrtype --dst-type LOCAL")
                .jump(NODE_PORTS);
            let loopback = loopback(proxier.family);
            nat.append(
                SERVICES,
                if proxier.localhost_node_ports {
                    any
                } else {
                    any.not_destination(loopback)
                },
            );
        }
        NodePortAddresses::Only(addresses) => {
            for address in addresses {
                nat.append(SERVICES, rule().destination(*address).jump(NODE_PORTS));
            }
        }
    }
}

/// 127.0.0.0/8 or `::1/128`.
fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
        Family::V6 => IpNet::new_assert(IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
    }
}
