//! Processes of a lab: known by number and start time, so that a number that was used again is not mistaken.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// How long processes get to end by themselves.
const GRACE: Duration = Duration::from_secs(2);

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it began, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
}

impl ProcessId {
    /// The process of that number, if there is one that is not just waiting to be reaped.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, field 2, is in parentheses and may hold spaces and parentheses.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        (state != "Z").then_some(Self { pid, start_time })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// A handle that means this process and no later one of its number.
    fn open(self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        self.is_alive().then_some(handle)
    }
}

/// All processes that are in one of these network namespaces (device and inode of `/proc/PID/ns/net`), the
/// caller excepted.
pub fn inside(namespaces: &HashSet<(u64, u64)>) -> io::Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(metadata) = fs::metadata(format!("/proc/{pid}/ns/net")) else {
            continue;
        };
        if pid != std::process::id() && namespaces.contains(&(metadata.dev(), metadata.ino())) {
            found.extend(ProcessId::of(pid));
        }
    }
    Ok(found)
}

/// Ends processes: SIGTERM to all, time to obey, SIGKILL to the rest. Returns those that are still there.
pub fn end(processes: &[ProcessId]) -> Vec<ProcessId> {
    let open = |process: &ProcessId| process.open().map(|handle| (*process, handle));
    let mut left: Vec<_> = processes.iter().filter_map(open).collect();
    for signal in [Signal::TERM, Signal::KILL] {
        for (_, handle) in &left {
            // ESRCH: it went by itself.
            let _ = pidfd_send_signal(handle, signal);
        }
        let deadline = Instant::now() + GRACE;
        left.retain(|(_, handle)| !ends_before(handle, deadline));
    }
    left.into_iter().map(|(process, _)| process).collect()
}

/// A handle of a process becomes readable when it ends.
fn ends_before(handle: &OwnedFd, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: left.subsec_nanos().into(),
    };
    let mut polled = [PollFd::new(handle, PollFlags::IN)];
    matches!(poll(&mut polled, Some(&timeout)), Ok(1..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_number_used_again_is_another_process() {
        let own = ProcessId::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        let later = ProcessId {
            start_time: own.start_time + 1,
            ..own
        };
        assert!(!later.is_alive());
        assert!(later.open().is_none());
    }

    #[test]
    fn processes_end_also_those_that_do_not_obey() {
        let mut obeys = Command::new("sleep").arg("60").spawn().unwrap();
        let script = "trap '' TERM; while :; do sleep 0.05; done";
        let mut refuses = Command::new("sh").args(["-c", script]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let processes = [obeys.id(), refuses.id()].map(|pid| ProcessId::of(pid).unwrap());
        assert_eq!(end(&processes), []);
        assert!(processes.iter().all(|process| !process.is_alive()));
        obeys.wait().unwrap();
        refuses.wait().unwrap();
    }
}
