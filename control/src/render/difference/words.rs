//! What a rule is about, in words.

use crate::render::dump::{ChainName, Rule};

/// The svcport that a rule's comment names: the only word of kube-proxy's comments with a slash in it.
pub(super) fn service_of(rule: &Rule) -> Option<&str> {
    let mut words = rule.comment()?.split(' ');
    words.find(|word| word.contains('/'))
}

/// What a rule of a chain of kube-proxy is for, as a noun: `cluster IP 10.96.0.1:80/tcp`.
pub(super) fn subject(chain: &ChainName, rule: &Rule) -> String {
    let address = || destination(rule);
    match (chain.table.as_str(), chain.chain.as_str()) {
        ("nat", "KUBE-SERVICES") if service_of(rule).is_some() => {
            format!("{} {}", kind_of_address(rule), address())
        }
        ("nat", "KUBE-NODEPORTS") => format!("NodePort {}", address()),
        ("filter", "KUBE-NODEPORTS") => format!("health check port {}", address()),
        ("filter", "KUBE-SERVICES" | "KUBE-EXTERNAL-SERVICES") => {
            format!("the refusal of {} without endpoints", address())
        }
        ("filter", "KUBE-PROXY-FIREWALL") => format!("the source filter of {}", address()),
        ("nat", name) => subject_in_service_chain(name, rule),
        _ => other(rule),
    }
}

fn subject_in_service_chain(chain: &str, rule: &Rule) -> String {
    let target = rule.target().unwrap_or_default();
    let external = "external traffic";
    match (chain.get(..9).unwrap_or(chain), target) {
        ("KUBE-SVC-" | "KUBE-SVL-", "KUBE-MARK-MASQ") => {
            format!(
                "masquerading of traffic to cluster IP {}",
                destination(rule)
            )
        }
        ("KUBE-SEP-", "KUBE-MARK-MASQ") => "masquerading of hairpin traffic".to_owned(),
        ("KUBE-SEP-", "DNAT") => "the endpoint's DNAT".to_owned(),
        ("KUBE-EXT-", "KUBE-MARK-MASQ") => format!("masquerading of {external}"),
        ("KUBE-EXT-", _) => format!("the way of {external} to {target}"),
        (prefix, _) if prefix.starts_with("KUBE-FW-") => {
            format!(
                "source range {}",
                rule.option("-s").unwrap_or("of all others")
            )
        }
        _ => other(rule),
    }
}

fn other(rule: &Rule) -> String {
    match rule.target() {
        Some(target) if target.starts_with("KUBE-") => format!("the jump to {target}"),
        _ => format!("`{}`", rule.text),
    }
}

/// `cluster IP`, `external IP` or `loadbalancer IP`: what the comment says behind the svcport.
fn kind_of_address(rule: &Rule) -> &str {
    let comment = rule.comment().unwrap_or_default();
    comment.split_once(' ').map_or("address", |(_, kind)| kind)
}

/// `address:port/protocol` as far as the rule tells.
pub(super) fn destination(rule: &Rule) -> String {
    let port = rule.option("--dport").unwrap_or("any");
    let protocol = rule.option("-p").unwrap_or("any");
    match rule.option("-d").map(without_length) {
        Some(address) if address.contains(':') => format!("[{address}]:{port}/{protocol}"),
        Some(address) => format!("{address}:{port}/{protocol}"),
        None => format!("{port}/{protocol}"),
    }
}

fn without_length(network: &str) -> &str {
    let single = network.strip_suffix("/32");
    single
        .or_else(|| network.strip_suffix("/128"))
        .unwrap_or(network)
}
