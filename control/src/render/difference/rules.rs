//! Which rules and chains are kube-proxy's, and which two rules are the same or versions of one.

use super::words;
use crate::render::dump::{ChainName, Rule};
use std::collections::{BTreeMap, BTreeSet};

/// The rules of each side that the other has not, as often as it has them.
pub(super) fn unmatched(
    name: &ChainName,
    expected: &[Rule],
    found: &[Rule],
) -> (Vec<Rule>, Vec<Rule>) {
    let mut balance: BTreeMap<Vec<String>, (Vec<&Rule>, Vec<&Rule>)> = BTreeMap::new();
    for rule in expected {
        balance
            .entry(comparable(name, rule))
            .or_default()
            .0
            .push(rule);
    }
    for rule in found {
        balance
            .entry(comparable(name, rule))
            .or_default()
            .1
            .push(rule);
    }
    let mut unmatched = (Vec::new(), Vec::new());
    for (expected, found) in balance.into_values() {
        let common = expected.len().min(found.len());
        unmatched
            .0
            .extend(expected[common..].iter().copied().cloned());
        unmatched.1.extend(found[common..].iter().copied().cloned());
    }
    unmatched
}

/// The words of a rule that count.
pub(super) fn comparable(name: &ChainName, rule: &Rule) -> Vec<String> {
    let mut words = rule.words.clone();
    if name.chain.starts_with("KUBE-SEP-") || is_balancing(rule) {
        let comment = words.windows(3).position(|window| {
            window[0] == "-m" && window[1] == "comment" && window[2] == "--comment"
        });
        if let Some(position) = comment {
            words.drain(position..(position + 4).min(words.len()));
        }
    }
    words
}

/// Whether two rules are versions of one: same target, and same comment where they have any.
///
/// A rule that led to an endpoint and leads elsewhere is known by the endpoint that its comment names; of two that
/// lead to endpoints the targets tell.
pub(super) fn is_twin(a: &Rule, b: &Rule) -> bool {
    let same_target = a.target() == b.target();
    if is_balancing(a) || is_balancing(b) {
        let is_lookup = |rule: &Rule| rule.words.iter().any(|word| word == "--rcheck");
        let both = is_balancing(a) && is_balancing(b);
        let same_comment = a.comment().is_some() && a.comment() == b.comment();
        return is_lookup(a) == is_lookup(b) && (same_target || (!both && same_comment));
    }
    let told = |rule: &Rule| {
        (
            rule.option("--dport").map(str::to_owned),
            rule.option("-d").map(str::to_owned),
        )
    };
    match (a.comment(), b.comment()) {
        (Some(a_comment), Some(b_comment)) => {
            a_comment == b_comment && (same_target || told(a) == told(b))
        }
        (None, None) => same_target,
        _ => false,
    }
}

pub(super) fn is_balancing(rule: &Rule) -> bool {
    let target = rule.target().unwrap_or_default();
    target.starts_with("KUBE-SEP-")
}

/// The endpoints' chains that `rules` lead to.
pub(super) fn endpoint_chains(rules: &[Rule]) -> BTreeSet<&str> {
    let balancing = rules.iter().filter(|rule| is_balancing(rule));
    balancing.filter_map(Rule::target).collect()
}

/// The address that a KUBE-SEP chain leads to.
pub(super) fn endpoint_of(rules: &[Rule]) -> Option<&str> {
    let mut rules = rules.iter();
    rules.find_map(|rule| rule.option("--to-destination"))
}

pub(super) fn is_of_service(chain: &str) -> bool {
    let prefixes = [
        "KUBE-SVC-",
        "KUBE-SVL-",
        "KUBE-EXT-",
        "KUBE-FW-",
        "KUBE-SEP-",
        "KUBE-XLB-",
    ];
    prefixes.iter().any(|prefix| chain.starts_with(prefix))
}

pub(super) fn is_built_in(chain: &str) -> bool {
    matches!(
        chain,
        "PREROUTING" | "INPUT" | "FORWARD" | "OUTPUT" | "POSTROUTING"
    )
}

/// Whether the rules of all Services stand in it, Service by Service in any order.
pub(super) fn is_shared(chain: &str) -> bool {
    matches!(
        chain,
        "KUBE-SERVICES" | "KUBE-NODEPORTS" | "KUBE-EXTERNAL-SERVICES" | "KUBE-PROXY-FIREWALL"
    )
}

/// The words of each svcport's rules, in their order. Two svcports of one Service may have the same name, of other
/// protocols. What is of none are jumps to NodePorts, one for each address, in any order.
pub(super) fn by_service(rules: &[Rule]) -> BTreeMap<(&str, Option<&str>), Vec<&[String]>> {
    let mut by_service: BTreeMap<_, Vec<&[String]>> = BTreeMap::new();
    for rule in rules {
        if let Some(service) = words::service_of(rule) {
            let key = (service, rule.option("-p"));
            by_service.entry(key).or_default().push(&rule.words);
        }
    }
    by_service
}

pub(super) fn is_of_kube_proxy(name: &ChainName) -> bool {
    is_kube_proxy_chain(&name.table, &name.chain)
}

pub(super) fn is_kube_proxy_chain(table: &str, chain: &str) -> bool {
    match (table, chain) {
        ("mangle" | "filter" | "nat", "KUBE-PROXY-CANARY") => true,
        ("filter" | "nat", "KUBE-SERVICES" | "KUBE-NODEPORTS") => true,
        (
            "filter",
            "KUBE-EXTERNAL-SERVICES" | "KUBE-PROXY-FIREWALL" | "KUBE-FORWARD" | "KUBE-FIREWALL",
        ) => true,
        ("nat", "KUBE-POSTROUTING" | "KUBE-MARK-MASQ") => true,
        ("nat", other) => is_of_service(other),
        _ => false,
    }
}
