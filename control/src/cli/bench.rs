//! `penstock bench`: measurements of this machine that need no lab.

use super::{Failure, Output, print};
use bench::fastpath::{self, Report, Size};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use std::fmt::Write;

/// Arguments of `penstock bench`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// The packet path in memory, beside the limit of its own layout
    Fastpath {
        /// A second instead of a minute: whether it works, not how fast it is
        #[arg(long)]
        quick: bool,
        /// How to print it
        #[arg(short, long, default_value = "text")]
        output: Output,
    },
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Benchmark::Fastpath { quick, output } = &arguments.benchmark;
    let size = if *quick { Size::quick() } else { Size::full() };
    let report = fastpath::run(&size, |next| eprintln!("penstock: {next}"));
    match output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?)),
        Output::Text => print(&text(&report)?),
    }
}

fn text(report: &Report) -> Result<String, std::fmt::Error> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "FLOWS",
        "THREADS",
        "BATCH",
        "NS/PACKET",
        "LIMIT",
        "RATIO",
        "",
    ]);
    for row in &report.rows {
        table.add_row([
            row.flows.to_string(),
            row.threads.to_string(),
            row.batch.to_string(),
            format!("{:.1}", row.ns_per_packet),
            format!("{:.1}", row.limit_ns_per_packet),
            format!("{:.2}", row.ratio),
            "#".repeat((row.ratio * 8.0).min(60.0) as usize),
        ]);
    }
    let mut text = format!("Established flows (UDP, IPv4, both directions)\n{table}\n\n");
    for new in &report.new_flows {
        let masqueraded = if new.masquerade { ", masqueraded" } else { "" };
        writeln!(
            text,
            "New flows{masqueraded}: {:.2} million/s among {} ({:.0} ns first packet, {:.0} ns expiry)",
            new.flows_per_second / 1e6,
            new.flows,
            new.ns_per_first_packet,
            new.ns_per_expired_flow
        )?;
    }
    for ports in &report.ports {
        writeln!(
            text,
            "Ports {:.1} % taken: {} of {} found, {:.0} ns each",
            ports.taken * 100.0,
            ports.found,
            ports.tried,
            ports.ns_per_allocation
        )?;
    }
    let memory = &report.memory;
    writeln!(
        text,
        "Memory: {:.0} bytes per flow, {:.0} resident, at {} flows",
        memory.bytes_per_flow, memory.resident_bytes_per_flow, memory.flows
    )?;
    Ok(text)
}
