//! `penstock conntrack`: a node's connections, as conntrack-tools print them.
//!
//! Data goes to stdout, the summary to stderr, as theirs do.

mod arguments;
mod line;
mod usage;

pub(crate) use arguments::Arguments;

use super::{Failure, print};
use anyhow::anyhow;
use arguments::Action;
use control::conntrack::{Answer, Answers, Question, WorkerStatistics, ask};
use line::{Form, Style};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{self, BufWriter, ErrorKind, Write};

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let action = arguments.action()?;
    let style = arguments.style();
    match action {
        Action::List(filter) => {
            let shown = show(arguments, &Question::List(filter), style)?;
            summary(&format!("{shown} flow entries have been shown."));
        }
        Action::Get(filter) => {
            if show(arguments, &Question::Get(filter), style)? == 0 {
                summary("Operation failed: such conntrack doesn't exist");
                return Err(Failure::Nothing);
            }
            summary("1 flow entries have been shown.");
        }
        Action::Delete(filter) => {
            let shown = show(arguments, &Question::Delete(filter), style)?;
            summary(&format!("{shown} flow entries have been deleted."));
            if shown == 0 {
                return Err(Failure::Nothing);
            }
        }
        Action::Flush => {
            let mut answers = connect(arguments, &Question::Flush)?;
            while next(arguments, &mut answers)?.is_some() {}
            summary("connection tracking table has been emptied.");
        }
        Action::Events(filter, kinds) => {
            let question = Question::Events(filter, kinds);
            let shown = follow(arguments, &question, style)?;
            summary(&format!("{shown} flow events have been shown."));
        }
        Action::Count => count(arguments)?,
        Action::Statistics => statistics(arguments, style)?,
        Action::Top(by) => usage::run(arguments, by, style)?,
    }
    Ok(())
}

/// As conntrack-tools begin what they say on stderr.
fn summary(text: &str) {
    eprintln!(
        "conntrack (penstock v{}): {text}",
        env!("CARGO_PKG_VERSION")
    );
}

fn connect(arguments: &Arguments, question: &Question) -> Result<Answers, Failure> {
    let path = arguments.control_socket()?;
    ask(&path, question).map_err(|error| {
        let path = path.display();
        if error.kind() == ErrorKind::PermissionDenied {
            return Failure::Unavailable(format!("{path}: {error}; ask as root"));
        }
        let question = "is `penstock node` running for this node?";
        Failure::Failed(anyhow!(error).context(format!("no agent answers on {path}; {question}")))
    })
}

fn next(arguments: &Arguments, answers: &mut Answers) -> Result<Option<Answer>, Failure> {
    let node = &arguments.node;
    answers.next().transpose().map_err(|error| {
        let what = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => "does not answer",
            _ => "ended before all was said",
        };
        Failure::Failed(anyhow!(error).context(format!("the agent of {node} {what}")))
    })
}

/// Prints the connections of an answer; says how many.
fn show(arguments: &Arguments, question: &Question, style: Style) -> Result<usize, Failure> {
    let mut answers = connect(arguments, question)?;
    let form = if matches!(question, Question::Get(_)) {
        Form::Got
    } else {
        Form::Listed
    };
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut shown = 0;
    if style.json {
        out.write_all(b"[")?;
    }
    while let Some(answer) = next(arguments, &mut answers)? {
        let Answer::Entry(entry) = answer else {
            continue;
        };
        let written = if style.json {
            let separator: &[u8] = if shown == 0 { b"\n" } else { b",\n" };
            out.write_all(separator)
                .and_then(|()| Ok(serde_json::to_writer(&mut out, &entry)?))
        } else {
            line::write(&mut out, &entry, form, style).and_then(|()| out.write_all(b"\n"))
        };
        shown += 1;
        if !goes_on(written)? {
            return Ok(shown);
        }
    }
    if style.json {
        goes_on(out.write_all(b"\n]\n"))?;
    }
    goes_on(out.flush())?;
    Ok(shown)
}

/// Prints events until somebody ends it; says how many.
fn follow(arguments: &Arguments, question: &Question, style: Style) -> Result<usize, Failure> {
    let mut answers = connect(arguments, question)?;
    let hang_up = answers.hang_up()?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || signals.forever().take(1).for_each(|_| hang_up()));
    let mut out = io::stdout().lock();
    let mut shown = 0;
    loop {
        let event = match answers.next().transpose() {
            Ok(Some(Answer::Event(event))) => event,
            Ok(Some(Answer::Lost(lost))) => {
                summary(&format!(
                    "WARNING: {lost} events were lost, because they were not read in time."
                ));
                continue;
            }
            Ok(Some(_)) => continue,
            // Ended by us, or the agent stopped: there are no more events.
            Ok(None) => return Ok(shown),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(shown),
            Err(error) => return Err(error.into()),
        };
        shown += 1;
        let mut text = Vec::new();
        if style.json {
            serde_json::to_writer(&mut text, &event)?;
        } else {
            line::write_event(&mut text, &event, style)?;
        }
        text.push(b'\n');
        if !goes_on(out.write_all(&text).and_then(|()| out.flush()))? {
            return Ok(shown);
        }
    }
}

/// Whether anybody still reads what is printed.
fn goes_on(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn count(arguments: &Arguments) -> Result<(), Failure> {
    let mut answers = connect(arguments, &Question::Count)?;
    while let Some(answer) = next(arguments, &mut answers)? {
        if let Answer::Count(count) = answer {
            print(&format!("{count}\n"))?;
        }
    }
    Ok(())
}

fn statistics(arguments: &Arguments, style: Style) -> Result<(), Failure> {
    let mut answers = connect(arguments, &Question::Statistics)?;
    while let Some(answer) = next(arguments, &mut answers)? {
        let Answer::Statistics(workers) = answer else {
            continue;
        };
        if style.json {
            let json = serde_json::json!({ "schemaVersion": 1, "workers": workers });
            print(&format!("{json:#}\n"))?;
        } else {
            let lines = workers.iter().enumerate().map(statistics_line);
            print(&lines.collect::<String>())?;
        }
    }
    Ok(())
}

/// A worker's line, with the fields, the tab and the trailing space of conntrack-tools. `insert` counts entries made by
/// hand, which cannot be made here; lookups never start again.
fn statistics_line((worker, counts): (usize, &WorkerStatistics)) -> String {
    format!(
        "cpu={worker:<4}\tfound={} invalid={} insert=0 insert_failed={} drop={} early_drop={} error={} \
         search_restart=0 clash_resolve={} chaintoolong={} \n",
        counts.found,
        counts.invalid,
        counts.insert_failed,
        counts.drop,
        counts.early_drop,
        counts.error,
        counts.clash_resolve,
        counts.chaintoolong,
    )
}
