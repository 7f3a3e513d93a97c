//! One order of Services for two texts that have them in different orders, and a comparison that shows where they
//! differ. Nothing of the project's own reading or writing of rules is used here, so the two cannot be wrong alike.

use std::path::Path;

/// The chains that all Services share.
const SHARED: [&str; 4] = [
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-PROXY-FIREWALL",
];

/// iptables-save's lines, the rules of shared chains stably sorted by the Service in their comment. A rule without
/// one (the jump to NodePorts) goes behind, but only past rules of its own chain.
pub(super) fn iptables(text: &str) -> Vec<String> {
    sorted_runs(text.lines().map(str::to_owned), |line| {
        let chain = line.strip_prefix("-A ")?.split(' ').next()?;
        let is_last = line.contains("this must be the last rule");
        (SHARED.contains(&chain) && !is_last).then(|| chain.to_owned())
    })
}

/// nft's listing as blocks, the chains and sets of Services (their names have a slash) sorted by name.
pub(super) fn nftables(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    for line in text.lines() {
        let begins = line.starts_with("table")
            || (line.starts_with('\t') && line.ends_with(" {") && !line.starts_with("\t\t"));
        match blocks.last_mut() {
            Some(block) if !begins => *block += &format!("\n{line}"),
            _ => blocks.push(line.to_owned()),
        }
    }
    // The last block of a table ends with the table's brace: that brace stays where it is.
    let blocks = blocks
        .into_iter()
        .flat_map(|block| match block.strip_suffix("\n}") {
            Some(rest) => vec![format!("{rest}\n"), "}".to_owned()],
            None => vec![block],
        });
    sorted_runs(blocks, |block| {
        let title = block.lines().next()?;
        let kind = title.trim_start().split(' ').next()?;
        title.contains('/').then(|| kind.to_owned())
    })
}

/// Sorts each run of neighbours of one group by [`service`], stably.
fn sorted_runs(
    pieces: impl Iterator<Item = String>,
    group: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut sorted: Vec<String> = Vec::new();
    let mut run: Vec<String> = Vec::new();
    let mut run_group = None;
    for piece in pieces {
        let piece_group = group(&piece);
        if piece_group != run_group {
            run.sort_by_cached_key(|piece| service(piece));
            sorted.append(&mut run);
            run_group = piece_group;
        }
        if run_group.is_some() {
            run.push(piece);
        } else {
            sorted.push(piece);
        }
    }
    run.sort_by_cached_key(|piece| service(piece));
    sorted.extend(run);
    sorted
}

/// The Service of a rule's comment, or the name of a block.
fn service(piece: &str) -> String {
    let in_comment = piece
        .split_once("--comment \"")
        .and_then(|(_, rest)| rest.split(['"', ' ']).find(|word| word.contains('/')));
    let title = piece.lines().next().unwrap_or_default();
    in_comment.unwrap_or(title).to_owned()
}

/// Fails with the first differences, in order.
pub(super) fn assert_same(path: &Path, golden: &[String], rendered: &[String]) {
    assert!(golden.len() > 20, "{} has rules", path.display());
    let pairs = golden.iter().zip(rendered);
    let differing = pairs.filter(|(golden, rendered)| golden != rendered);
    let shown: Vec<String> = differing
        .take(3)
        .map(|(golden, rendered)| format!("golden:   {golden}\nrendered: {rendered}"))
        .collect();
    assert!(
        shown.is_empty() && golden.len() == rendered.len(),
        "{}: {} lines against {} rendered\n{}",
        path.display(),
        golden.len(),
        rendered.len(),
        shown.join("\n")
    );
}

/// Without any single line a golden file is another; so is it with any line twice.
#[test]
fn every_line_counts() {
    let iptables_text = super::goldens("iptables")[7].text();
    let nftables_text = super::goldens("nftables")[0].text();
    type Form = fn(&str) -> Vec<String>;
    let forms: [(&str, Form); 2] = [(&iptables_text, iptables), (&nftables_text, nftables)];
    for (text, form) in forms {
        let lines: Vec<&str> = text.lines().collect();
        let whole = form(text);
        for index in 0..lines.len() {
            let mut without = lines.clone();
            without.remove(index);
            assert_ne!(form(&without.join("\n")), whole, "without {}", lines[index]);
            let mut twice = lines.clone();
            twice.insert(index, lines[index]);
            assert_ne!(form(&twice.join("\n")), whole, "twice {}", lines[index]);
        }
    }
}

/// Only what kube-proxy leaves open may be exchanged.
#[test]
fn only_whole_services_may_change_places() {
    let rules = |order: [&str; 3]| {
        let rule = |what: &str| format!("-A KUBE-SERVICES -m comment --comment \"{what}\" -j X");
        let lines: Vec<String> = order.iter().map(|what| rule(what)).collect();
        iptables(&lines.join("\n"))
    };
    let (a_cluster, a_external, b) = ("n/a cluster IP", "n/a external IP", "n/b cluster IP");
    assert_eq!(
        rules([a_cluster, a_external, b]),
        rules([b, a_cluster, a_external])
    );
    assert_ne!(
        rules([a_cluster, a_external, b]),
        rules([b, a_external, a_cluster])
    );
    let last = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
    assert_ne!(rules([a_cluster, b, last]), rules([a_cluster, last, b]));
    assert_ne!(
        iptables("-A KUBE-SVC-X -j KUBE-SEP-A\n-A KUBE-SVC-X -j KUBE-SEP-B"),
        iptables("-A KUBE-SVC-X -j KUBE-SEP-B\n-A KUBE-SVC-X -j KUBE-SEP-A"),
    );
}
