//! Parts of rendered rules: those that kube-proxy writes when one Service changes, and portions that nft takes quickly.
//!
//! kube-proxy in iptables mode restores with `--noflush` all of its chains that list Services, and of the chains of
//! Services those of the changed one (`syncProxyRules`). In nftables mode 1.30 writes everything again; later ones, and
//! this bench, only the chains of the changed Service.

use super::objects::VIP;

/// Chains that kube-proxy writes whole each time.
const LISTS: [&str; 7] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-FIREWALL",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
];

/// For `iptables-restore --noflush`, when the probed Service has changed. Its chains are found from its address on, not by
/// comments: in a large cluster kube-proxy leaves them out.
pub(super) fn of_iptables(rules: &str) -> String {
    let address = format!("-d {VIP}/32 ");
    let entries = rules.lines().filter(|line| line.contains(&address));
    let entrances = targets(entries, "KUBE-EXT-");
    let own = |kind: &str| -> Vec<String> {
        let names = entrances.iter();
        names
            .filter_map(|chain| chain.strip_prefix("KUBE-EXT-"))
            .map(|name| format!("{kind}{name}"))
            .collect()
    };
    let services = [own("KUBE-SVC-"), own("KUBE-SVL-")].concat();
    let of_services = rules
        .lines()
        .filter(|line| chain_of(line).is_some_and(|chain| services.iter().any(|own| own == chain)));
    let endpoints = targets(of_services, "KUBE-SEP-");
    let all = [entrances, services, endpoints].concat();
    let is_written =
        |chain: &str| LISTS.contains(&chain) || all.iter().any(|own| own.as_str() == chain);
    let mut text = String::new();
    for line in rules.lines() {
        let is_part = match line.as_bytes().first() {
            Some(b'*') => line == "*nat" || line == "*filter",
            Some(b'C') => text
                .lines()
                .next_back()
                .is_some_and(|line| line != "COMMIT"),
            Some(b':' | b'-') => chain_of(line).is_some_and(is_written),
            _ => false,
        };
        if is_part {
            text += line;
            text.push('\n');
        }
    }
    text
}

/// The chain that a line of iptables-save is about.
fn chain_of(line: &str) -> Option<&str> {
    let rest = line
        .strip_prefix(':')
        .or_else(|| line.strip_prefix("-A "))?;
    rest.split(' ').next()
}

/// The chains of this kind that lines jump to, each once.
fn targets<'a>(lines: impl Iterator<Item = &'a str>, kind: &str) -> Vec<String> {
    let jump = format!("-j {kind}");
    let target = |line: &str| {
        let (_, rest) = line.split_once(&jump)?;
        let name = rest.split(' ').next().unwrap_or(rest);
        Some(format!("{kind}{name}"))
    };
    let mut names: Vec<String> = lines.filter_map(target).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// For `nft -f`, when the probed Service has changed: its chains, made if they are not there, emptied, filled.
pub(super) fn of_nftables(rules: &str) -> String {
    let (mut emptied, mut filled) = (String::new(), String::new());
    for block in blocks(rules) {
        if block.kind == "chain" && block.name.contains("bench/probed/") {
            let (table, name) = (block.table, block.name);
            emptied += &format!("add chain {table} {name}\nflush chain {table} {name}\n");
            filled += &block.text();
        }
    }
    emptied + &filled
}

/// The same rules in portions, each a transaction: the kernel's time for one grows with the square of what is in it
/// (`__nft_set_trans_bind` walks all of it for each set). What the portions leave is the same.
pub(super) fn portions_of_nftables(rules: &str, chains: usize) -> Vec<String> {
    let blocks = blocks(rules);
    let is_of_service = |block: &&Block<'_>| block.kind == "chain" && block.name.contains('/');
    let of_services: Vec<&Block<'_>> = blocks.iter().filter(is_of_service).collect();
    let rest = blocks.iter().filter(|block| !is_of_service(block));
    let old_ones_go = rules
        .lines()
        .filter(|line| line.starts_with("add ") || line.starts_with("delete "));
    let new_ones_come = rules.lines().filter_map(|line| {
        let table = line.strip_prefix("table ")?.strip_suffix(" {")?;
        Some(format!("add table {table}"))
    });
    let head = old_ones_go.map(str::to_owned).chain(new_ones_come);
    let mut portions = vec![head.map(|line| line + "\n").collect::<String>()];
    let regular = blocks.iter().filter(|block| {
        block.kind == "chain" && !block.lines.iter().any(|line| line.contains(" hook "))
    });
    let regular: Vec<&Block<'_>> = regular.collect();
    let texts =
        |blocks: &[&Block<'_>]| -> String { blocks.iter().map(|block| block.text()).collect() };
    let declarations = regular.chunks(chains).map(|blocks| {
        let each = blocks.iter().map(|block| block.declaration());
        each.collect::<String>()
    });
    portions.extend(declarations);
    portions.extend(of_services.chunks(chains).map(texts));
    portions.push(rest.map(Block::text).collect());
    portions.retain(|portion| !portion.is_empty());
    portions
}

/// A chain, set or map.
struct Block<'a> {
    /// Family and name.
    table: &'a str,
    kind: &'a str,
    name: &'a str,
    /// All of it, the first and the last line too.
    lines: Vec<&'a str>,
}

impl Block<'_> {
    fn text(&self) -> String {
        format!("table {} {{\n{}\n}}\n", self.table, self.lines.join("\n"))
    }

    /// Without what is in it.
    fn declaration(&self) -> String {
        format!("add chain {} {}\n", self.table, self.name)
    }
}

fn blocks(rules: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let (mut table, mut is_inside) = ("", false);
    for line in rules.lines() {
        let opened = line
            .strip_suffix(" {")
            .and_then(|rest| rest.trim_start().split_once(' '));
        match opened {
            Some(("table", name)) => table = name,
            Some((kind @ ("chain" | "set" | "map"), name)) if !is_inside => {
                is_inside = true;
                let lines = vec![line];
                blocks.push(Block {
                    table,
                    kind,
                    name,
                    lines,
                });
            }
            _ => {
                if let Some(block) = blocks.last_mut().filter(|_| is_inside) {
                    block.lines.push(line);
                }
                is_inside &= line != "\t}";
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    const IPTABLES: &str = "*filter
:INPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -j KUBE-SERVICES
COMMIT
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-EXT-AAAA - [0:0]
:KUBE-SEP-OTHER - [0:0]
:KUBE-SEP-OWN - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-AAAA - [0:0]
:KUBE-SVC-OTHER - [0:0]
-A KUBE-EXT-AAAA -j KUBE-MARK-MASQ
-A KUBE-EXT-AAAA -j KUBE-SVC-AAAA
-A KUBE-SEP-OTHER -j DNAT --to-destination 10.0.0.2:80
-A KUBE-SEP-OWN -j DNAT --to-destination 10.0.0.1:80
-A KUBE-SERVICES -d 203.0.113.10/32 -p tcp -m tcp --dport 9000 -j KUBE-EXT-AAAA
-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m tcp --dport 9000 -j KUBE-SVC-OTHER
-A KUBE-SVC-AAAA -j KUBE-SEP-OWN
-A KUBE-SVC-OTHER -j KUBE-SEP-OTHER
COMMIT
";

    #[test]
    fn a_change_writes_the_lists_and_the_chains_of_its_service() {
        let expected = "*filter
:KUBE-SERVICES - [0:0]
COMMIT
*nat
:KUBE-EXT-AAAA - [0:0]
:KUBE-SEP-OWN - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-AAAA - [0:0]
-A KUBE-EXT-AAAA -j KUBE-MARK-MASQ
-A KUBE-EXT-AAAA -j KUBE-SVC-AAAA
-A KUBE-SEP-OWN -j DNAT --to-destination 10.0.0.1:80
-A KUBE-SERVICES -d 203.0.113.10/32 -p tcp -m tcp --dport 9000 -j KUBE-EXT-AAAA
-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m tcp --dport 9000 -j KUBE-SVC-OTHER
-A KUBE-SVC-AAAA -j KUBE-SEP-OWN
COMMIT
";
        assert_eq!(of_iptables(IPTABLES), expected);
    }

    const NFTABLES: &str = "add table ip kube-proxy
delete table ip kube-proxy
table ip kube-proxy {
\tcomment \"rules\"
\tmap service-ips {
\t\telements = { 203.0.113.10 : goto service-X-bench/probed/tcp }
\t}

\tchain service-X-bench/probed/tcp {
\t\tnumgen random mod 1 vmap { 0 : goto endpoint-Y-bench/probed/1 }
\t}

\tchain endpoint-Y-bench/probed/1 {
\t\tdnat to 10.0.0.1:80
\t}

\tchain endpoint-Z-bench/other/1 {
\t\tdnat to 10.0.0.2:80
\t}

\tchain services {
\t\tip daddr vmap @service-ips
\t}

\tchain nat-prerouting {
\t\ttype nat hook prerouting priority dstnat;
\t\tjump services
\t}
}
";

    #[test]
    fn a_change_fills_the_chains_of_its_service_anew() {
        let change = of_nftables(NFTABLES);
        let of_others = ["bench/other", "chain services", "hook", "\tmap "];
        assert!(
            of_others.iter().all(|name| !change.contains(name)),
            "{change}"
        );
        assert_eq!(change.matches("flush chain ip kube-proxy ").count(), 2);
        assert_eq!(change.matches("\tdnat to 10.0.0.1:80\n").count(), 1);
    }

    #[test]
    fn portions_declare_before_they_refer_and_lose_nothing() {
        let portions = portions_of_nftables(NFTABLES, 2);
        // The table; four chains and three chains of Services by two; the rest.
        assert_eq!(portions.len(), 1 + 2 + 2 + 1);
        let all = portions.concat();
        for line in NFTABLES.lines().filter(|line| line.starts_with("\t\t")) {
            assert_eq!(all.matches(&format!("{line}\n")).count(), 1, "{line}");
        }
        let at = |text: &str| all.find(text).unwrap();
        assert!(at("add chain ip kube-proxy endpoint-Y") < at("goto endpoint-Y"));
        assert!(at("add chain ip kube-proxy services") < at("jump services"));
        assert!(!all.contains("add chain ip kube-proxy nat-prerouting"));
    }
}
