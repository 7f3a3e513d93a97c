//! The tables `mangle`, `filter` and `nat` and their chains, printed as iptables-save prints them.

use super::rule::Rule;
use std::collections::BTreeMap;
use std::fmt;

/// One table: built-in chains in the order of the hooks, then others in the order of their names.
#[derive(Clone, Debug)]
pub(super) struct Table {
    name: &'static str,
    built_in: Vec<(&'static str, Vec<String>)>,
    chains: BTreeMap<String, Vec<String>>,
}

impl Table {
    pub(super) fn new(name: &'static str, built_in: &[&'static str]) -> Self {
        Self {
            name,
            built_in: built_in.iter().map(|chain| (*chain, Vec::new())).collect(),
            chains: BTreeMap::new(),
        }
    }

    /// Makes `chain` exist, be it empty.
    pub(super) fn declare(&mut self, chain: &str) {
        if !self.chains.contains_key(chain) {
            self.chains.insert(chain.to_owned(), Vec::new());
        }
    }

    /// Adds `rule` at the end of `chain`, which it makes exist.
    pub(super) fn append(&mut self, chain: &str, rule: Rule) {
        let line = rule.line(chain);
        if let Some((_, rules)) = self.built_in.iter_mut().find(|(name, _)| *name == chain) {
            rules.push(line);
        } else if let Some(rules) = self.chains.get_mut(chain) {
            rules.push(line);
        } else {
            self.chains.insert(chain.to_owned(), vec![line]);
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "*{}", self.name)?;
        for (chain, _) in &self.built_in {
            writeln!(f, ":{chain} ACCEPT [0:0]")?;
        }
        for chain in self.chains.keys() {
            writeln!(f, ":{chain} - [0:0]")?;
        }
        let built_in = self.built_in.iter().map(|(_, rules)| rules);
        for rule in built_in.chain(self.chains.values()).flatten() {
            writeln!(f, "{rule}")?;
        }
        writeln!(f, "COMMIT")
    }
}
