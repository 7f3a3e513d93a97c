//! Which lab and which host a command is about.

use crate::bench;
use crate::lab::Error;
use crate::lab_file;
use crate::plan::{Host, Plan};
use crate::state::{self, State};
use std::io;
use std::path::PathBuf;

/// The folder of labs that `up NAME` knows; the script `lab` says where the project is.
pub(super) fn labs_folder() -> PathBuf {
    std::env::var_os("PENSTOCK_LABS").map_or_else(|| PathBuf::from("labs"), PathBuf::from)
}

pub(super) fn check_name(name: &str) -> Result<(), Error> {
    state::check_name(name).map_err(|why| Error::Usage(format!("--name {name}: {why}")))
}

/// What `up` was given also names the lab.
pub(super) fn lab_name(given: &str) -> String {
    if state::is_lab(given) {
        return given.to_owned();
    }
    lab_file::find(&labs_folder(), given)
        .map_or_else(|_| given.replace('/', "-"), |source| source.name)
}

pub(super) fn folder_error(source: io::Error) -> Error {
    Error::Io {
        what: state::FOLDER.to_owned(),
        source,
    }
}

/// The labs that are up, or were when somebody killed them.
pub(super) struct Labs {
    /// What a command is about that names none.
    pub(super) to_choose: Vec<String>,
    /// Those of benchmarks that run now. Nobody means them who does not name them.
    pub(super) of_benchmarks: Vec<String>,
}

impl Labs {
    pub(super) fn running() -> Result<Self, Error> {
        let labs = state::labs().map_err(folder_error)?;
        let (of_benchmarks, to_choose) = labs.into_iter().partition(|lab| bench::is_using(lab));
        Ok(Self {
            to_choose,
            of_benchmarks,
        })
    }

    /// What there is to say where nothing is left to choose.
    pub(super) fn none_is_up(&self) -> String {
        if self.of_benchmarks.is_empty() {
            return "no lab is up".to_owned();
        }
        "no lab is up but those of a running benchmark, which ./lab ls names".to_owned()
    }
}

/// The lab that is meant: the one named, else the only one.
pub(super) fn the_lab(named: Option<String>) -> Result<String, Error> {
    let labs = Labs::running()?;
    match (named, labs.to_choose.as_slice()) {
        (Some(lab), _) => Ok(lab_name(&lab)),
        (None, [lab]) => Ok(lab.clone()),
        (None, []) => Err(Error::NotUp(format!("{}; ./lab up", labs.none_is_up()))),
        (None, many) => Err(Error::Usage(format!(
            "more than one lab is up ({}); say which, by its name or with --lab (--help says how)",
            many.join(", ")
        ))),
    }
}

/// What there is to do about a lab that is not up.
pub(super) fn not_up(given: &str) -> Error {
    let is_known = lab_file::find(&labs_folder(), given).is_ok();
    let advice = if is_known {
        format!("./lab up {given}")
    } else {
        "./lab ls names the labs that there are".to_owned()
    };
    Error::NotUp(format!("{given} is not up; {advice}"))
}

/// The state and plan of a lab, whatever its health.
pub(super) fn state_of(named: Option<String>) -> Result<(State, Plan), Error> {
    let lab = the_lab(named.clone())?;
    let state = State::read(&lab).map_err(folder_error)?;
    let state = state.ok_or_else(|| not_up(named.as_deref().unwrap_or(&lab)))?;
    let plan = state.plan.clone().unwrap_or_default();
    Ok((state, plan))
}

/// The host that is meant: by its name, by the rest of its name, or by a prefix that only one has.
pub(super) fn find_host<'a>(plan: &'a Plan, wanted: &str) -> Result<&'a Host, Error> {
    let full = |host: &Host| vec![host.name.to_string()];
    let short = |host: &Host| host.name.short_names();
    let same = |name: &str| name == wanted;
    let begins = |name: &str| name.starts_with(wanted);
    type Names<'a> = &'a dyn Fn(&Host) -> Vec<String>;
    type Fits<'a> = &'a dyn Fn(&str) -> bool;
    let tries: [(Names<'_>, Fits<'_>); 4] = [
        (&full, &same),
        (&short, &same),
        (&full, &begins),
        (&short, &begins),
    ];
    for (names, fits) in tries {
        let found: Vec<&Host> = plan
            .hosts
            .iter()
            .filter(|host| names(host).iter().any(|name| fits(name)))
            .collect();
        match found.as_slice() {
            [] => {}
            [host] => return Ok(host),
            many => {
                let names: Vec<_> = many.iter().map(|host| host.name.to_string()).collect();
                let text = format!(
                    "{wanted}: more than one host has this prefix; name one of: {}",
                    names.join(", ")
                );
                return Err(Error::Usage(text));
            }
        }
    }
    let names: Vec<_> = plan.shown().map(|host| host.name.to_string()).collect();
    Err(Error::Usage(format!(
        "{wanted}: there is no such host; the hosts are: {}",
        names.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::HostName;
    use crate::plan::Link;

    fn plan() -> Plan {
        let pod = |name: &str| HostName::Pod {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        };
        let names = [
            HostName::Fabric,
            HostName::Client,
            HostName::Node("node-a".to_owned()),
            pod("web-1"),
            pod("client"),
        ];
        let host = |name| Host {
            name,
            namespace: String::new(),
            link: Link::Shared,
            addresses: Vec::new(),
            bridge: None,
            routes: Vec::new(),
            neighbours: Vec::new(),
            forwards: false,
            server: None,
            node: None,
        };
        Plan {
            hosts: names.into_iter().map(host).collect(),
            ..Plan::default()
        }
    }

    #[test]
    fn only_labs_that_there_are_are_to_be_brought_up() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../labs/quickstart");
        assert_eq!(
            not_up(path).to_string(),
            format!("{path} is not up; ./lab up {path}")
        );
        let unknown = not_up("nope").to_string();
        assert_eq!(
            unknown,
            "nope is not up; ./lab ls names the labs that there are"
        );
    }

    #[test]
    fn hosts_are_found_by_any_prefix_that_one_has() {
        let plan = plan();
        let found = |wanted: &str| {
            find_host(&plan, wanted)
                .map(|host| host.name.to_string())
                .ok()
        };
        let cases = [
            ("client", "client"),
            ("cl", "client"),
            ("node/node-a", "node/node-a"),
            ("n", "node/node-a"),
            ("pod/default/client", "pod/default/client"),
            ("pod/default/w", "pod/default/web-1"),
            ("web-1", "pod/default/web-1"),
            ("default/c", "pod/default/client"),
        ];
        for (wanted, expected) in cases {
            assert_eq!(found(wanted).as_deref(), Some(expected), "{wanted}");
        }
        let unknown = find_host(&plan, "x").err().map(|error| error.to_string());
        let list = "client, node/node-a, pod/default/web-1, pod/default/client";
        assert_eq!(
            unknown,
            Some(format!("x: there is no such host; the hosts are: {list}"))
        );
        for wanted in ["pod/", "default", "x"] {
            assert!(
                matches!(find_host(&plan, wanted), Err(Error::Usage(_))),
                "{wanted}"
            );
        }
    }
}
