//! The end of a lab, whatever is left of it.

use super::{Error, Result, io_error, lock, save};
use crate::namespace::{self, Namespace};
use crate::privilege;
use crate::process::{self, ProcessId};
use crate::state::{self, Phase, State};
use control::agent::forget_former_sysctls;
use std::collections::HashSet;
use std::fs;

/// The state of a lab that runs.
pub fn running(lab: &str) -> Result<State> {
    let state = State::read(lab).map_err(io_error("the lab's state"))?;
    let state = state.ok_or_else(|| Error::NotUp(format!("{lab} is not up")))?;
    match state.broken() {
        Some(why) if state.is_in_hand() => Err(Error::Busy(format!(
            "{lab}: {why}; wait for the command that does so"
        ))),
        Some(why) if state.phase != Phase::Up || state.is_of_earlier_boot() => Err(Error::Busy(
            format!("{lab} is not whole: {why}; ./lab up makes it anew"),
        )),
        _ => Ok(state),
    }
}

/// Removes all of a lab. Returns whether there was something.
pub fn down(lab: &str) -> Result<bool> {
    if !state::is_lab(lab) {
        if state::check_name(lab).is_ok() {
            // An `up` that was killed at once has made an empty folder.
            let _ = fs::remove_dir(state::folder(lab));
        }
        return Ok(false);
    }
    privilege::require("a lab is made of network namespaces, which only root may remove")?;
    let _lock = lock(lab)?;
    clear(lab)?;
    Ok(true)
}

/// Removes all that the state of a lab names; the caller holds its lock.
pub(super) fn clear(lab: &str) -> Result<()> {
    let folder = state::folder(lab);
    let state = match State::read(lab) {
        Ok(state) => state,
        Err(error) => {
            let what =
                format!("{error}; what the lab made cannot be known. ip netns list shows it");
            return Err(Error::Busy(what));
        }
    };
    if let Some(mut state) = state {
        state.phase = Phase::Stopping;
        state.take_over().map_err(io_error("/proc"))?;
        // Only a second `down` would want to know, and a full disk must not keep this one from going on.
        let _ = save(&state);
        if !state.is_of_earlier_boot() {
            end_all(&state)?;
        }
        remove_namespaces(&state)?;
    }
    fs::remove_dir_all(&folder).map_err(io_error(folder.display().to_string()))?;
    namespace::tidy().map_err(io_error(state::FOLDER))
}

/// Removes all that can be removed, then says what could not.
fn remove_namespaces(state: &State) -> Result<()> {
    let mut all = Ok(());
    for name in &state.namespaces {
        // It may be gone already.
        let _ = Namespace::open(name).and_then(|open| open.run(forget_former_sysctls));
        let path = namespace::path(name).display().to_string();
        let removed = namespace::remove(name).map_err(io_error(path));
        all = all.and(removed);
    }
    all
}

/// Ends the lab's processes, and whatever else runs in its namespaces: a process that was started and not yet
/// written down, or what a user left running there.
fn end_all(state: &State) -> Result<()> {
    const TRIES: usize = 5;
    let mut processes: Vec<ProcessId> = state.processes.iter().map(|process| process.id).collect();
    for _ in 0..TRIES {
        processes.extend(inside(state.namespaces.iter().map(String::as_str))?);
        if processes.is_empty() {
            return Ok(());
        }
        let left = process::end(&processes);
        if !left.is_empty() {
            let text = format!("process {} does not end, not even by SIGKILL", left[0].pid);
            return Err(Error::Busy(text));
        }
        processes.clear();
    }
    Err(Error::Busy(
        "processes keep coming up in the lab's namespaces".to_owned(),
    ))
}

/// Processes in namespaces of these names.
pub(super) fn inside<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<ProcessId>> {
    let open = names.filter_map(|name| Namespace::open(name).ok());
    let identities: HashSet<_> = open
        .filter_map(|namespace| namespace.identity().ok())
        .collect();
    if identities.is_empty() {
        return Ok(Vec::new());
    }
    process::inside(&identities).map_err(io_error("/proc"))
}
