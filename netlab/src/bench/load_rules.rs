//! Objects into a lab that is up, and how long that takes: the agent reads a file, the kernel takes rendered rules.
//!
//! The peer `iptables` is the legacy one where it is installed: the other one is nftables underneath.

use super::partial_rules::{of_iptables, of_nftables, portions_of_nftables};
use super::{Subject, io_error};
use crate::dataplane::{self, agents, render};
use crate::lab::Error;
use crate::namespace::Namespace;
use crate::plan::Plan;
use crate::servers::in_path;
use crate::state::{self, Dataplane, write_whole};
use control::snapshot::Snapshot;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const NODE_NAME: &str = "node-a";
const LEGACY: &str = "iptables-legacy-restore";
/// Chains in a transaction of nft where none is measured.
const PORTION: usize = 5000;

/// The program that takes rules for iptables.
pub(super) fn iptables_restore() -> &'static str {
    in_path(LEGACY).map_or("iptables-restore", |_| LEGACY)
}

/// Where objects go.
pub(super) struct Target<'a> {
    pub(super) subject: Subject,
    pub(super) lab: &'a str,
    pub(super) plan: &'a Plan,
    pub(super) node: &'a Namespace,
}

impl Target<'_> {
    /// Takes the kernel's rules out that the lab came up with, where others are to be measured.
    pub(super) fn prepare(&self) -> Result<(), Error> {
        if self.subject == Subject::Iptables && in_path(LEGACY).is_some() {
            self.run(&["nft", "flush", "ruleset"], "")?;
        }
        Ok(())
    }

    /// Replaces all objects, and waits until the table is published or the rules are in.
    pub(super) fn load(&self, objects: &str) -> Result<(), Error> {
        let before = agents(self.lab, self.plan);
        let path = state::folder(self.lab).join("snapshot.yaml");
        let is_there = std::fs::read_to_string(&path).is_ok_and(|there| there == objects);
        if is_there && !self.subject.is_kernel() {
            return Ok(());
        }
        if self.subject.is_kernel() {
            return self.load_in_portions(&self.rules(objects)?);
        }
        write_whole(&path, objects.as_bytes()).map_err(io_error(path.display().to_string()))?;
        if self.subject.has_services() {
            dataplane::wait_for_newer_tables(self.lab, self.plan, &before, PATIENCE);
            self.require_loaded(objects)?;
        }
        Ok(())
    }

    /// Whether the agents have tables of these objects, and not those of before.
    fn require_loaded(&self, objects: &str) -> Result<(), Error> {
        let snapshot = Snapshot::parse("snapshot.yaml", objects)?;
        let ports = snapshot
            .services
            .iter()
            .map(|service| service.spec.ports.len());
        let wanted: usize = ports.sum();
        for (node, status) in agents(self.lab, self.plan) {
            let status = status.ok_or_else(|| Error::Failed(format!("{node} does not answer")))?;
            if let Some(why) = status.refused {
                return Err(Error::Failed(format!("{node} refused the objects: {why}")));
            }
            let found = status.services;
            if found != wanted {
                let message = format!("{node} has {found} Services where {wanted} were given");
                return Err(Error::Failed(message));
            }
        }
        Ok(())
    }

    /// The rules for these objects.
    pub(super) fn rules(&self, objects: &str) -> Result<String, Error> {
        let path = state::folder(self.lab).join("snapshot.yaml");
        write_whole(&path, objects.as_bytes()).map_err(io_error(path.display().to_string()))?;
        let dataplane = if self.subject == Subject::Nftables {
            Dataplane::Nftables
        } else {
            Dataplane::Iptables
        };
        render(self.lab, NODE_NAME, dataplane).map_err(Error::Failed)
    }

    /// Of these rules those that kube-proxy writes for a change of the probed Service.
    pub(super) fn changed(&self, rules: &str) -> String {
        if self.subject == Subject::Nftables {
            of_nftables(rules)
        } else {
            of_iptables(rules)
        }
    }

    /// Takes all rules out.
    pub(super) fn clear(&self) -> Result<(), Error> {
        if self.subject == Subject::Nftables {
            return self.run(&["nft", "flush", "ruleset"], "");
        }
        let nothing = "*mangle\nCOMMIT\n*filter\nCOMMIT\n*nat\nCOMMIT\n";
        self.run(&[iptables_restore()], nothing)
    }

    /// All rules at once, as kube-proxy writes them when it starts; how long that took, or nothing when it was given up.
    pub(super) fn load_at_once(
        &self,
        rules: &str,
        patience: Duration,
    ) -> Result<Option<Duration>, Error> {
        let limit = patience.as_secs().to_string();
        let start = Instant::now();
        let loaded = if self.subject == Subject::Nftables {
            self.run(&["timeout", &limit, "nft", "-f", "-"], rules)
        } else {
            self.run(&["timeout", &limit, iptables_restore()], rules)
        };
        match loaded {
            Err(_) if start.elapsed() >= patience => Ok(None),
            other => other.map(|()| Some(start.elapsed())),
        }
    }

    /// All rules as fast as may be.
    pub(super) fn load_in_portions(&self, rules: &str) -> Result<(), Error> {
        if self.subject != Subject::Nftables {
            return self.run(&[iptables_restore()], rules);
        }
        let portions = portions_of_nftables(rules, PORTION);
        let mut loads = portions.iter();
        loads.try_for_each(|portion| self.run(&["nft", "-f", "-"], portion))
    }

    /// Puts the rules of a change into the kernel.
    pub(super) fn change(&self, rules: &str) -> Result<(), Error> {
        if self.subject == Subject::Nftables {
            self.run(&["nft", "-f", "-"], rules)
        } else {
            self.run(&[iptables_restore(), "--noflush", "--counters"], rules)
        }
    }

    fn run(&self, program: &[&str], input: &str) -> Result<(), Error> {
        dataplane::load(self.node, program, input)
            .map_err(|text| Error::Failed(format!("{}: {text}", program.join(" "))))
    }
}
