//! Who never sleeps runs in its own turn only: it would take the processor from others in theirs, and is stopped meanwhile.

use crate::process::ProcessId;
use rustix::process::{Pid, Signal, kill_process};
use std::io;

/// Stops processes until [`go_on`].
pub(super) fn stop(processes: &[ProcessId]) -> io::Result<()> {
    tell(processes, Signal::STOP)
}

/// Lets them go on.
pub(super) fn go_on(processes: &[ProcessId]) -> io::Result<()> {
    tell(processes, Signal::CONT)
}

/// Lets stopped processes go on while `turn` lasts, however it ends.
pub(super) fn for_a_turn<T>(
    processes: &[ProcessId],
    turn: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    go_on(processes)?;
    let taken = turn();
    let stopped = stop(processes);
    let taken = taken?;
    stopped.map(|()| taken)
}

fn tell(processes: &[ProcessId], signal: Signal) -> io::Result<()> {
    for process in processes {
        let number = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
        let Some(number) = number.filter(|_| process.is_alive()) else {
            return Err(io::Error::other(format!(
                "process {} has ended",
                process.pid
            )));
        };
        kill_process(number, signal)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> (Self, [ProcessId; 1]) {
            let child = Command::new("sleep").arg("60").spawn().unwrap();
            let process = ProcessId::of(child.id()).unwrap();
            (Self(child), [process])
        }

        fn is_stopped(&self) -> bool {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
            stat.contains(") T ")
        }

        /// It takes a moment until a signal has arrived.
        fn becomes_stopped(&self, wanted: bool) -> bool {
            let deadline = Instant::now() + Duration::from_secs(10);
            while self.is_stopped() != wanted && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.is_stopped() == wanted
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn they_go_on_in_a_turn_and_no_longer_also_when_it_fails() {
        let (sleeper, processes) = Sleeper::start();
        stop(&processes).unwrap();
        assert!(sleeper.becomes_stopped(true));
        let goes_on = for_a_turn(&processes, || Ok(sleeper.becomes_stopped(false)));
        assert!(goes_on.unwrap() && sleeper.becomes_stopped(true));
        let failed = for_a_turn(&processes, || {
            assert!(sleeper.becomes_stopped(false));
            Err::<(), _>(io::Error::other("no answer"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no answer");
        assert!(sleeper.becomes_stopped(true));
    }

    #[test]
    fn one_that_has_ended_has_no_turn() {
        let (sleeper, processes) = Sleeper::start();
        drop(sleeper);
        let mut is_asked = false;
        for_a_turn(&processes, || {
            is_asked = true;
            Ok(())
        })
        .unwrap_err();
        assert!(!is_asked);
    }
}
