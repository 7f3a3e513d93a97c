//! Objects into a lab that is up, and how long that takes: the agent reads a file, the kernel takes rendered rules.
//!
//! The peer `iptables` is the legacy one where it is installed: the other one is nftables underneath.

use super::objects::VIP;
use super::{Subject, io_error};
use crate::dataplane::{self, agents, render};
use crate::lab::Error;
use crate::namespace::Namespace;
use crate::plan::Plan;
use crate::servers::in_path;
use crate::state::{self, Dataplane, write_whole};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const NODE_NAME: &str = "node-a";
const LEGACY: &str = "iptables-legacy-restore";

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

    /// Replaces all objects; until the table is published or the rules are in. Rendering of rules does not count.
    pub(super) fn load(&self, objects: &str) -> Result<Duration, Error> {
        let before = agents(self.lab, self.plan);
        let path = state::folder(self.lab).join("snapshot.yaml");
        let is_there = std::fs::read_to_string(&path).is_ok_and(|there| there == objects);
        if is_there && self.in_kernel().is_none() {
            return Ok(Duration::ZERO);
        }
        let start = Instant::now();
        write_whole(&path, objects.as_bytes()).map_err(io_error(path.display().to_string()))?;
        if self.subject == Subject::Penstock {
            dataplane::wait_for_newer_tables((self.lab, self.plan), &before, PATIENCE);
            return Ok(start.elapsed());
        }
        let Some(dataplane) = self.in_kernel() else {
            return Ok(Duration::ZERO);
        };
        let rules = self.rendered(dataplane)?;
        let start = Instant::now();
        self.restore(&rules, false)?;
        Ok(start.elapsed())
    }

    /// The rules that a change of the probed Service's endpoint makes, as kube-proxy would write them: its chains.
    pub(super) fn changed_rules(&self, objects: &str) -> Result<String, Error> {
        let Some(dataplane) = self.in_kernel() else {
            return Ok(String::new());
        };
        let path = state::folder(self.lab).join("snapshot.yaml");
        write_whole(&path, objects.as_bytes()).map_err(io_error(path.display().to_string()))?;
        let rules = self.rendered(dataplane)?;
        Ok(if dataplane == Dataplane::Nftables {
            chains_of_nftables(&rules)
        } else {
            chains_of_iptables(&rules)
        })
    }

    /// Puts rules into the kernel.
    pub(super) fn restore(&self, rules: &str, is_part: bool) -> Result<(), Error> {
        if self.subject == Subject::Nftables {
            return self.run(&["nft", "-f", "-"], rules);
        }
        let program = in_path(LEGACY).map_or("iptables-restore", |_| LEGACY);
        let arguments: &[&str] = if is_part {
            &[program, "--noflush"]
        } else {
            &[program]
        };
        self.run(arguments, rules)
    }

    const fn in_kernel(&self) -> Option<Dataplane> {
        match self.subject {
            Subject::Iptables => Some(Dataplane::Iptables),
            Subject::Nftables => Some(Dataplane::Nftables),
            Subject::Penstock | Subject::Plain | Subject::TunCopy => None,
        }
    }

    fn rendered(&self, dataplane: Dataplane) -> Result<String, Error> {
        render(self.lab, NODE_NAME, dataplane).map_err(Error::Failed)
    }

    fn run(&self, program: &[&str], input: &str) -> Result<(), Error> {
        dataplane::load(self.node, program, input)
            .map_err(|text| Error::Failed(format!("{}: {text}", program.join(" "))))
    }
}

/// The chains of the nat table that lead from the probed Service's address to its endpoint. Not by their comments: in a
/// large cluster kube-proxy leaves them out.
fn chains_of_iptables(rules: &str) -> String {
    let of = |chains: &[String]| -> Vec<&str> {
        let is_of = |line: &&str| {
            let chain = line
                .strip_prefix("-A ")
                .and_then(|rest| rest.split(' ').next());
            chain.is_some_and(|chain| chains.iter().any(|own| own == chain))
        };
        rules.lines().filter(is_of).collect()
    };
    let targets = |lines: &[&str], prefix: &str| -> Vec<String> {
        let target = |line: &&str| {
            line.rsplit_once(&format!("-j {prefix}"))
                .map(|(_, name)| name.to_owned())
        };
        let mut names: Vec<String> = lines.iter().filter_map(target).collect();
        names.sort_unstable();
        names.dedup();
        names
    };
    let address = format!("-d {VIP}/32 ");
    let entries: Vec<&str> = rules
        .lines()
        .filter(|line| line.contains(&address))
        .collect();
    let chains = |kind: &str, names: Vec<String>| -> Vec<String> {
        names
            .into_iter()
            .map(|name| format!("{kind}{name}"))
            .collect()
    };
    let services = chains("KUBE-SVC-", targets(&entries, "KUBE-EXT-"));
    let endpoints = chains("KUBE-SEP-", targets(&of(&services), "KUBE-SEP-"));
    let all = [services, endpoints].concat();
    let declared: String = all
        .iter()
        .map(|chain| format!(":{chain} - [0:0]\n"))
        .collect();
    let lines: String = of(&all).iter().map(|line| format!("{line}\n")).collect();
    format!("*nat\n{declared}{lines}COMMIT\n")
}

/// All chains that are named after the probed Service: made if they are not there, emptied, filled.
fn chains_of_nftables(rules: &str) -> String {
    const TABLE: &str = "ip kube-proxy";
    let (mut emptied, mut filled) = (String::new(), String::new());
    let mut is_own = false;
    for line in rules.lines() {
        if let Some(name) = line
            .strip_prefix("\tchain ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            is_own = name.contains("bench/probed/");
            if is_own {
                emptied += &format!("add chain {TABLE} {name}\nflush chain {TABLE} {name}\n");
            }
        }
        if is_own {
            filled += line;
            filled.push('\n');
        }
        is_own &= line != "\t}";
    }
    format!("{emptied}table {TABLE} {{\n{filled}}}\n")
}
