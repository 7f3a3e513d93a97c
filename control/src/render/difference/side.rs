//! [`Side`]: the rules of one side of a comparison, and which svcport each belongs to.

use super::rules::{is_of_kube_proxy, is_of_service};
use super::words;
use crate::render::dump::{ChainName, Rule, Tables};
use std::collections::{BTreeMap, BTreeSet};

/// Rules, and which svcport a chain belongs to.
pub(super) struct Side {
    pub(super) tables: Tables,
    pub(super) owners: BTreeMap<String, String>,
}

impl Side {
    pub(super) fn new(tables: Tables) -> Self {
        let mut owners = BTreeMap::new();
        for (name, rules) in &tables {
            let owner = rules.iter().find_map(words::service_of);
            if let (true, Some(owner)) = (is_of_service(&name.chain), owner) {
                owners.insert(name.chain.clone(), owner.to_owned());
            }
        }
        let mut side = Self { tables, owners };
        side.inherit();
        side
    }

    /// Without comments on endpoint rules a chain belongs to whom the chains that jump to it belong to.
    fn inherit(&mut self) {
        loop {
            let mut learnt = Vec::new();
            for (name, rules) in &self.tables {
                for rule in rules {
                    let target = rule.target().unwrap_or_default();
                    if is_of_service(target)
                        && !self.owners.contains_key(target)
                        && let Some(owner) = self.owner(name, rule)
                    {
                        learnt.push((target.to_owned(), owner.to_owned()));
                    }
                }
            }
            if learnt.is_empty() {
                return;
            }
            self.owners.extend(learnt);
        }
    }

    pub(super) fn owner<'s>(&'s self, chain: &ChainName, rule: &'s Rule) -> Option<&'s str> {
        let by_chain = || self.owners.get(&chain.chain).map(String::as_str);
        words::service_of(rule).or_else(by_chain)
    }

    pub(super) fn services(&self) -> BTreeSet<String> {
        let owned = self.tables.iter().flat_map(|(name, rules)| {
            let is_kube_proxys = is_of_kube_proxy(name);
            rules
                .iter()
                .filter(move |_| is_kube_proxys)
                .filter_map(move |rule| self.owner(name, rule))
        });
        owned.map(str::to_owned).collect()
    }

    /// The rules of a chain that belong to none of `services`.
    pub(super) fn rules_without(&self, name: &ChainName, services: &BTreeSet<String>) -> Vec<Rule> {
        let rules = self.tables.get(name).map_or(&[][..], Vec::as_slice);
        let stays = |rule: &&Rule| {
            self.owner(name, rule)
                .is_none_or(|owner| !services.contains(owner))
        };
        rules.iter().filter(stays).cloned().collect()
    }

    pub(super) fn has_nat_chain(&self, chain: &str) -> bool {
        let name = ChainName {
            table: "nat".to_owned(),
            chain: chain.to_owned(),
        };
        self.tables.contains_key(&name)
    }
}
