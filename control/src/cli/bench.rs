//! `penstock bench`: measurements of this machine that need no lab.

use super::{Failure, Output, print};
use bench::attack;
use bench::fastpath::{self, Counted, Family, Report, Traffic, Transport};
use bench::instructions;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use std::fmt::Write;
use std::io;

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
        /// Some seconds instead of some minutes: whether it works, not how fast it is
        #[arg(long)]
        quick: bool,
        /// Numbers of flows in the table
        #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1000..=20_000_000))]
        flows: Option<Vec<u32>>,
        /// How to print it
        #[arg(short, long, default_value = "text")]
        output: Output,
    },
    /// What floods, scans, crafted packets and full tables do to the flows of others
    Attack {
        /// Some seconds instead of a minute: whether it works
        #[arg(long)]
        quick: bool,
        /// How to print it
        #[arg(short, long, default_value = "text")]
        output: Output,
    },
    /// How many instructions packets take, counted by valgrind: the figure to compare two commits by
    Instructions {
        /// How to print it
        #[arg(short, long, default_value = "text")]
        output: Output,
    },
    /// Handles packets of a kind: what `instructions` counts
    #[command(hide = true)]
    Handle {
        /// Kind of packets
        kind: String,
        /// Chunks of 256 of them
        chunks: usize,
    },
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let progress = |next: &str| eprintln!("penstock: {next}");
    match &arguments.benchmark {
        Benchmark::Fastpath {
            quick,
            flows,
            output,
        } => {
            let mut size = if *quick {
                fastpath::Size::quick()
            } else {
                fastpath::Size::full()
            };
            size.flows = flows.clone().unwrap_or(size.flows);
            let report = fastpath::run(&size, progress);
            match output {
                Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?)),
                Output::Text => print(&text(&report)?),
            }
        }
        Benchmark::Attack { quick, output } => {
            let size = if *quick {
                attack::Size::quick()
            } else {
                attack::Size::full()
            };
            let report = attack::run(size, progress);
            match output {
                Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?)),
                Output::Text => print(&attack_text(&report)),
            }
        }
        Benchmark::Instructions { output } => {
            let report = count_instructions(progress)?;
            match output {
                Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?)),
                Output::Text => print(&instructions_text(&report)),
            }
        }
        Benchmark::Handle { kind, chunks } => {
            let counted =
                Counted::from_name(kind).ok_or_else(|| Failure::Usage(unknown_kind(kind)))?;
            print(&format!("{}\n", counted.handle(*chunks)))
        }
    }
}

fn unknown_kind(kind: &str) -> String {
    let known = Counted::NAMES.map(|(name, _)| name).join(", ");
    format!("there are no packets of kind {kind}; there are {known}")
}

fn count_instructions(progress: impl FnMut(&str)) -> Result<instructions::Report, Failure> {
    let child = |kind: &str, chunks: usize| {
        let arguments = ["bench", "handle", kind, &chunks.to_string()];
        arguments.map(str::to_owned).into()
    };
    instructions::run(progress, child).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::Unavailable("valgrind counts the instructions: install its package".to_owned())
        }
        _ => error.into(),
    })
}

fn instructions_text(report: &instructions::Report) -> String {
    let mut table = plain_table(&["KIND", "INSTRUCTIONS", ""]);
    for row in &report.rows {
        table.add_row([
            row.kind.to_owned(),
            format!("{:.1}", row.instructions),
            "#".repeat((row.instructions / 50.0).min(60.0) as usize),
        ]);
    }
    format!("Instructions of one packet, or of the end of one flow\n{table}\n")
}

fn text(report: &Report) -> Result<String, std::fmt::Error> {
    let mut text = format!(
        "Established flows (UDP, IPv4, both directions)\n{}\n\n",
        established(report)
    );
    for kind in &report.kinds {
        writeln!(
            text,
            "{}: {:.1} ns/packet at {} flows, {:.2} times the limit ({:.2} to {:.2}), {:.2} times UDP over IPv4",
            spoken(kind.traffic),
            kind.ns_per_packet,
            kind.flows,
            kind.ratio,
            kind.ratio_spread[0],
            kind.ratio_spread[1],
            kind.ratio_to_udp_ipv4
        )?;
    }
    for churn in &report.churn {
        writeln!(
            text,
            "With {:.0} new flows/s among {}, {}: {:.1} ns/packet, {:.2} times one thread",
            churn.new_flows_per_second,
            churn.flows,
            counted(churn.threads, "thread"),
            churn.ns_per_packet,
            churn.scaling
        )?;
    }
    writeln!(text, "\nThe table alone\n{}\n", tables(report))?;
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
    writeln!(
        text,
        "Waited {:.0} s for other programs to leave the processor; measured beside them: {}",
        report.waited.seconds,
        counted(report.waited.rounds_disturbed, "round")
    )?;
    Ok(text)
}

/// `1 thing`, `2 things`.
fn counted(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// Packets of a kind, for people.
const fn spoken(traffic: Traffic) -> &'static str {
    match (traffic.protocol, traffic.family) {
        (Transport::Udp, Family::Ipv4) => "UDP over IPv4",
        (Transport::Tcp, Family::Ipv4) => "TCP over IPv4",
        (Transport::Udp, Family::Ipv6) => "UDP over IPv6",
        (Transport::Tcp, Family::Ipv6) => "TCP over IPv6",
    }
}

fn plain_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table
}

fn established(report: &Report) -> Table {
    let mut table = plain_table(&[
        "FLOWS",
        "THREADS",
        "BATCH",
        "NS/PACKET",
        "LIMIT",
        "RATIO",
        "SPREAD",
        "SCALING",
        "",
    ]);
    for row in &report.rows {
        let [least, most] = row.ratio_spread;
        table.add_row([
            row.flows.to_string(),
            row.threads.to_string(),
            row.batch.to_string(),
            format!("{:.1}", row.ns_per_packet),
            format!("{:.1}", row.limit_ns_per_packet),
            format!("{:.2}", row.ratio),
            format!("{least:.2}..{most:.2}"),
            format!("{:.2}", row.scaling),
            "#".repeat((row.ratio * 8.0).min(60.0) as usize),
        ]);
    }
    table
}

fn tables(report: &Report) -> Table {
    let mut table = plain_table(&["TABLE", "FLOWS", "THREADS", "NS/LOOKUP", "RATIO", ""]);
    for row in &report.tables {
        table.add_row([
            row.table.to_owned(),
            row.flows.to_string(),
            row.threads.to_string(),
            format!("{:.1}", row.ns_per_lookup),
            format!("{:.2}", row.ratio),
            "#".repeat((row.ratio * 8.0).min(60.0) as usize),
        ]);
    }
    table
}

fn attack_text(report: &attack::Report) -> String {
    let mut table = plain_table(&[
        "ATTACK",
        "PACKETS",
        "ESTABLISHED LOST",
        "NEW FLOWS MADE",
        "NS/PACKET",
        "BEFORE",
        "RATIO",
        "NS/ATTACK PACKET",
    ]);
    for row in &report.rows {
        table.add_row([
            row.attack.to_owned(),
            row.attack_packets.to_string(),
            format!("{} of {}", row.established_lost, row.established_packets),
            format!("{} of {}", row.new_flows_succeeded, row.new_flows),
            format!("{:.1}", row.ns_per_packet),
            format!("{:.1}", row.ns_per_packet_before),
            format!("{:.2}", row.ratio),
            format!("{:.1}", row.ns_per_attack_packet),
        ]);
    }
    format!("What an attack does to the flows of others\n{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_numbers_are_told_in_words() {
        let kind = |protocol, family| spoken(Traffic { protocol, family });
        assert_eq!(kind(Transport::Udp, Family::Ipv4), "UDP over IPv4");
        assert_eq!(kind(Transport::Tcp, Family::Ipv6), "TCP over IPv6");
        assert_eq!(counted(1, "thread"), "1 thread");
        assert_eq!(counted(2, "thread"), "2 threads");
    }
}
