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
        let instructions = many.instructions.saturating_sub(few.instructions);
        let packets = many.packets.saturating_sub(few.packets);
        Ok(Row {
            kind,
            instructions: instructions as f64 / packets.max(1) as f64,
        })
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
    let both = counted.zip(in_words_of_callgrind(&said));
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
fn in_words_of_callgrind(said: &str) -> Option<u64> {
    let count = said
        .lines()
        .find_map(|line| line.split("Collected :").nth(1))?;
    count.trim().parse().ok().filter(|&count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callgrind_says() {
        let said = "==7== Events    : Ir\n==7== Collected : 41149618\n==7== \n";
        assert_eq!(in_words_of_callgrind(said), Some(41_149_618));
        assert_eq!(in_words_of_callgrind("==7== Collected : 0\n"), None);
        assert_eq!(in_words_of_callgrind("valgrind: not this program\n"), None);
    }
}
