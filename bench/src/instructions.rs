//! `penstock bench instructions`: how many instructions packets take, counted by callgrind (valgrind). No other program on the
//! machine changes them: they are what two commits are compared by.
//!
//! Each kind is handled in a process of its own, twice, with fewer and with more packets: the difference is of the packets
//! alone, whatever it takes to make their flows.

use crate::fastpath::Counted;
use serde::Serialize;
use std::io;
use std::process::Command;

const FEW: usize = 50;
const MANY: usize = 250;

/// All counts.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this shape.
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    /// `instructions`.
    pub benchmark: &'static str,
    /// One of each kind.
    pub rows: Vec<Row>,
}

/// What one packet takes, or the end of one flow.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// See [`Counted::NAMES`].
    pub kind: &'static str,
    /// Of one, on the mean.
    pub instructions: f64,
}

/// Counts all. `progress` hears what comes next; `child` makes the arguments with which this program handles chunks
/// of a kind.
///
/// # Errors
/// When there is no valgrind, or it says nothing that is understood.
pub fn run(
    mut progress: impl FnMut(&str),
    child: impl Fn(&str, usize) -> Vec<String>,
) -> io::Result<Report> {
    let row = |(kind, counted): (&'static str, Counted)| {
        progress(kind);
        let count = |chunks| collected(counted.function(), &child(kind, chunks));
        let (few, many) = (count(FEW)?, count(MANY)?);
        let instructions = many.per_packet_beyond(&few).ok_or_else(|| {
            io::Error::other(format!(
                "more packets of {kind} did not take more instructions; run it again"
            ))
        })?;
        Ok(Row { kind, instructions })
    };
    let rows: io::Result<Vec<Row>> = Counted::NAMES.into_iter().map(row).collect();
    Ok(Report {
        schema_version: 1,
        benchmark: "instructions",
        rows: rows?,
    })
}

/// What a process handled, and the instructions that it took.
struct Collected {
    packets: u64,
    instructions: u64,
}

impl Collected {
    /// What the packets take that `fewer` lacks.
    fn per_packet_beyond(&self, fewer: &Self) -> Option<f64> {
        let packets = self.packets.checked_sub(fewer.packets)?;
        let instructions = self.instructions.checked_sub(fewer.instructions)?;
        (packets > 0 && instructions > 0).then(|| instructions as f64 / packets as f64)
    }
}

/// Instructions inside of a function while this program runs with these arguments; it prints how many packets it handled.
fn collected(function: &str, arguments: &[String]) -> io::Result<Collected> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect={function}"))
        .arg(std::env::current_exe()?)
        .args(arguments)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    let counted = printed.trim().parse().ok();
    let both = counted.zip(collected_count(&said));
    let (packets, instructions) = both.ok_or_else(|| {
        let last = said.lines().last().unwrap_or_default();
        io::Error::other(format!(
            "valgrind --tool=callgrind does not count penstock {}; it ends with: {last}",
            arguments.join(" ")
        ))
    })?;
    Ok(Collected {
        packets,
        instructions,
    })
}

/// `==123== Collected : 456`; nothing where nothing was collected.
fn collected_count(said: &str) -> Option<u64> {
    let count = said
        .lines()
        .find_map(|line| line.split("Collected :").nth(1))?;
    count.trim().parse().ok().filter(|&count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_of_both_is_a_measurement() {
        let of = |(packets, instructions)| Collected {
            packets,
            instructions,
        };
        let beyond = |many, few| of(many).per_packet_beyond(&of(few));
        assert_eq!(beyond((30, 500), (10, 100)), Some(20.0));
        for odd in [(10, 500), (30, 100), (5, 500), (30, 50)] {
            assert_eq!(beyond(odd, (10, 100)), None);
        }
    }

    #[test]
    fn what_callgrind_says() {
        let said = "==7== Events    : Ir\n==7== Collected : 41149618\n==7== \n";
        assert_eq!(collected_count(said), Some(41_149_618));
        assert_eq!(collected_count("==7== Collected : 0\n"), None);
        assert_eq!(collected_count("valgrind: not this program\n"), None);
    }
}
