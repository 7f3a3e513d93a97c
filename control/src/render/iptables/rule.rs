//! The text of one rule, in the order in which iptables-save prints its elements:
//! `-A chain`, `[!] -s`, `[!] -d`, `[!] -i`, `-p`, the matches as given, the target.

use crate::model::{Family, Transport};
use ipnet::IpNet;
use std::fmt::Write;
use std::net::IpAddr;

/// A rule in the making. Addresses and interface find their place by themselves; matches keep their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    source: String,
    destination: String,
    input_interface: String,
    protocol: String,
    matches: String,
    target: String,
}

impl Rule {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// `-s network`. What matches every address is not printed, as iptables does not.
    pub(super) fn source(mut self, network: IpNet) -> Self {
        if network.prefix_len() > 0 {
            self.source = format!(" -s {network}");
        }
        self
    }

    /// `! -s network`, printed even when the network is everything.
    pub(super) fn not_source(mut self, network: IpNet) -> Self {
        self.source = format!(" ! -s {network}");
        self
    }

    /// `-d address/32`, `/128` for IPv6.
    pub(super) fn destination(mut self, address: IpAddr) -> Self {
        self.destination = format!(" -d {}", IpNet::from(address));
        self
    }

    /// `-d network`.
    pub(super) fn destination_network(mut self, network: IpNet) -> Self {
        self.destination = format!(" -d {network}");
        self
    }

    /// `! -d network`.
    pub(super) fn not_destination(mut self, network: IpNet) -> Self {
        self.destination = format!(" ! -d {network}");
        self
    }

    /// `-i interface`; a trailing `+` stands for any ending.
    pub(super) fn input_interface(mut self, interface: &str) -> Self {
        self.input_interface = format!(" -i {interface}");
        self
    }

    /// `! -i interface`.
    pub(super) fn not_input_interface(mut self, interface: &str) -> Self {
        self.input_interface = format!(" ! -i {interface}");
        self
    }

    /// `-p protocol`, without the match of the same name.
    pub(super) fn protocol(mut self, protocol: Transport) -> Self {
        self.protocol = format!(" -p {protocol}");
        self
    }

    /// `-m comment --comment "text"`.
    pub(super) fn comment(self, text: &str) -> Self {
        self.match_text(format_args!("comment --comment \"{text}\""))
    }

    /// `-p protocol`, and where the matches are `-m protocol --dport port`.
    pub(super) fn destination_port(self, protocol: Transport, port: u16) -> Self {
        self.protocol(protocol)
            .match_text(format_args!("{protocol} --dport {port}"))
    }

    /// `-m text`.
    pub(super) fn match_text(mut self, text: impl std::fmt::Display) -> Self {
        self.matches.push_str(" -m ");
        self.matches.push_str(&text.to_string());
        self
    }

    /// `-j target`, with the target's options behind it.
    pub(super) fn jump(mut self, target: impl std::fmt::Display) -> Self {
        self.target.clear();
        // Writing to a String cannot fail.
        let _ = write!(self.target, " -j {target}");
        self
    }

    /// The line that iptables-save prints for it in `chain`.
    pub(super) fn line(&self, chain: &str) -> String {
        let Self {
            source,
            destination,
            input_interface,
            protocol,
            matches,
            target,
        } = self;
        format!("-A {chain}{source}{destination}{input_interface}{protocol}{matches}{target}")
    }
}

/// A probability as iptables-save prints it.
///
/// kube-proxy writes `1/n` with ten decimals, iptables stores it in units of 2^-31 and prints eleven decimals of
/// that (`extensions/libxt_statistic.c`).
pub(super) fn probability_of_one_in(n: usize) -> String {
    const UNITS_PER_ONE: f64 = 2_147_483_648.0;
    const DECIMALS: f64 = 1e10;
    let written = (DECIMALS / n as f64).round() / DECIMALS;
    let stored = (written * UNITS_PER_ONE).round();
    format!("{:.11}", stored / UNITS_PER_ONE)
}

/// The `--mask` of the recent match that keeps the whole address.
pub(super) const fn full_mask(family: Family) -> &'static str {
    match family {
        Family::V4 => "255.255.255.255",
        Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    }
}

/// The answer to traffic that has no endpoint.
pub(super) const fn reject(family: Family) -> &'static str {
    match family {
        Family::V4 => "REJECT --reject-with icmp-port-unreachable",
        Family::V6 => "REJECT --reject-with icmp6-port-unreachable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_that_iptables_prints() {
        let printed: Vec<String> = (2..=8).map(probability_of_one_in).collect();
        let expected = [
            "0.50000000000",
            "0.33333333349",
            "0.25000000000",
            "0.20000000019",
            "0.16666666651",
            "0.14285714272",
            "0.12500000000",
        ];
        assert_eq!(printed, expected);
    }

    #[test]
    fn elements_stand_where_iptables_prints_them() {
        let rule = Rule::new()
            .comment("a b")
            .destination_port(Transport::Udp, 53)
            .jump("X")
            .input_interface("azv+")
            .destination("10.0.0.1".parse().unwrap())
            .source("10.2.0.0/16".parse().unwrap());
        assert_eq!(
            rule.line("C"),
            "-A C -s 10.2.0.0/16 -d 10.0.0.1/32 -i azv+ -p udp -m comment --comment \"a b\" -m udp --dport 53 -j X"
        );
    }

    #[test]
    fn a_source_of_everything_is_not_printed() {
        let everything: IpNet = "0.0.0.0/0".parse().unwrap();
        assert_eq!(
            Rule::new().source(everything).jump("X").line("C"),
            "-A C -j X"
        );
        assert_eq!(
            Rule::new().not_source(everything).jump("X").line("C"),
            "-A C ! -s 0.0.0.0/0 -j X"
        );
    }
}
