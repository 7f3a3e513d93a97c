//! `--top`: who uses the table and the ports.

use super::arguments::Arguments;
use super::line::Style;
use super::{connect, next};
use crate::cli::{Failure, print};
use comfy_table::{CellAlignment, Table, presets};
use control::conntrack::{Answer, Question, Usage, UsageBy, UsageRow};
use std::io::IsTerminal as _;
use std::thread::sleep;
use std::time::Duration;

pub(super) fn run(arguments: &Arguments, by: UsageBy, style: Style) -> Result<(), Failure> {
    let Some(seconds) = arguments.watch else {
        return show(arguments, by, style);
    };
    let is_terminal = std::io::stdout().is_terminal() && !style.json;
    loop {
        if is_terminal {
            // Clear the screen, go to its corner.
            print("\x1b[2J\x1b[H")?;
        }
        show(arguments, by, style)?;
        sleep(Duration::from_secs(seconds.into()));
    }
}

fn show(arguments: &Arguments, by: UsageBy, style: Style) -> Result<(), Failure> {
    let mut answers = connect(arguments, &Question::Usage(by))?;
    while let Some(answer) = next(arguments, &mut answers)? {
        if let Answer::Usage(mut usage) = answer {
            let more = usage.rows.len().saturating_sub(arguments.rows);
            usage.rows.truncate(arguments.rows);
            print(&if style.json {
                format!("{}\n", json(&usage)?)
            } else {
                text(&usage, more)
            })?;
        }
    }
    Ok(())
}

fn json(usage: &Usage) -> Result<String, Failure> {
    let mut json = serde_json::to_value(usage)?;
    json["schemaVersion"] = 1.into();
    Ok(json.to_string())
}

fn text(usage: &Usage, more: usize) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let titles: &[&str] = match usage.by {
        UsageBy::Snat => &[
            "TRANSLATED TO",
            "TOWARDS",
            "PROTOCOL",
            "CONNECTIONS",
            "UNREPLIED",
            "PORTS LEFT",
        ],
        UsageBy::Src => &["CLIENT", "CONNECTIONS", "UNREPLIED", "LEFT"],
        UsageBy::Dst => &["DESTINATION", "PROTOCOL", "CONNECTIONS", "UNREPLIED"],
        UsageBy::Service => &["SERVICE", "CONNECTIONS", "UNREPLIED"],
    };
    table.set_header(titles);
    for row in &usage.rows {
        table.add_row(cells(usage.by, row));
    }
    let first_number = titles.iter().position(|title| *title == "CONNECTIONS");
    for column in table
        .column_iter_mut()
        .skip(first_number.unwrap_or_default())
    {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!(
        "{} of {} entries in use\n{table}\n",
        usage.connections, usage.capacity
    );
    if more > 0 {
        text += &format!("and {more} more; --rows N shows them\n");
    }
    text
}

fn cells(by: UsageBy, row: &UsageRow) -> Vec<String> {
    let optional = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut cells = vec![row.name.clone()];
    if by == UsageBy::Snat {
        cells.push(optional(&row.towards));
    }
    if matches!(by, UsageBy::Snat | UsageBy::Dst) {
        cells.push(optional(&row.protocol));
    }
    cells.extend([row.connections.to_string(), row.unreplied.to_string()]);
    if matches!(by, UsageBy::Snat | UsageBy::Src) {
        cells.push(
            row.free
                .map_or_else(|| "no limit".to_owned(), |free| free.to_string()),
        );
    }
    cells
}
