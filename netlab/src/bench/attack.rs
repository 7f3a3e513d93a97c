//! `./lab bench attack`: what strangers can do to others through a node. While an attack goes on, clients with established
//! connections ask on them, and other clients open new ones; what of both succeeds is counted.
//!
//! All tables have the room of the kernel's, `nf_conntrack_max`, which is one number for all network namespaces and is
//! left as it is. Every attack stays in its lab, has a fixed number of packets, and ends after a minute.

mod bystanders;
mod forged;

use super::bed::Bed;
use super::fill_ports::{SECOND_CLIENT, fill_ports};
use super::load::{Figures, PATIENCE};
use super::machine::kernel_table;
use super::objects::{FLOODED_PORT, MASQUERADED_PORT, PORT, Position, SILENT, VIP};
use super::report::{Key, Row};
use super::server::WHO;
use super::{Benchmark, Run, Subject, turns};
use crate::lab::Error;
use crate::plan::UPLINK;
use bystanders::Bystanders;
use forged::Forger;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// First packets of TCP connections from addresses without end, to a Service whose endpoint does not answer.
    SynFlood,
    /// Datagrams from one address to all ports of an address behind the node.
    Scan,
    /// Datagrams through a Service that masquerades, until 0.1 % of the ports towards its endpoint are left.
    PortsTaken,
    /// More flows that are answered and go on than the table has room for.
    FullTable,
}

impl Attack {
    const ALL: [Self; 4] = [
        Self::SynFlood,
        Self::Scan,
        Self::PortsTaken,
        Self::FullTable,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::SynFlood => "syn-flood",
            Self::Scan => "scan",
            Self::PortsTaken => "ports-taken",
            Self::FullTable => "full-table",
        }
    }

    /// Packets, or flows of a full table.
    fn size(self, run: Run<'_>) -> u32 {
        let table = kernel_table();
        let whole = match self {
            Self::SynFlood => table.saturating_mul(2),
            Self::Scan => table.saturating_mul(10),
            Self::PortsTaken => 0,
            Self::FullTable => table / 10 * 11,
        };
        let asked = run.arguments.thousands;
        asked.map_or(whole, |thousands| whole.min(thousands * 1000))
    }
}

pub(super) fn rows(run: Run<'_>, services: u32) -> Result<Vec<Row>, Error> {
    let mut all = Vec::new();
    for attack in Attack::ALL {
        for subject in run.arguments.subjects() {
            let key = Key::of(services, subject, "any").under(attack.name());
            all.push((key, (subject, attack)));
        }
    }
    turns::take(run, all, |(subject, attack), round| {
        let name = subject.name();
        eprintln!("bench: {name}, {}, round {}", attack.name(), round + 1);
        once(run, services, *subject, *attack)
    })
}

/// One attack, through a lab of its own.
fn once(run: Run<'_>, services: u32, subject: Subject, attack: Attack) -> Result<Figures, Error> {
    let bed = Bed::make(subject, services, Benchmark::Attack, run.interrupted)?;
    prepare(&bed)?;
    let size = attack.size(run);
    let (seen, packets_per_second, delivered) = bed.inside(Position::End, |address| {
        let bystanders = Bystanders::begin(address, (VIP, MASQUERADED_PORT).into())?;
        let start = Instant::now();
        let delivered = make(attack, size)?;
        let took = start.elapsed().as_secs_f64();
        let seen = if attack == Attack::FullTable {
            bystanders.forget_new_flows();
            std::thread::sleep(PATIENCE * 2);
            bystanders.end()?
        } else {
            bystanders.end()?
        };
        Ok((seen, f64::from(size) / took, delivered))
    })?;
    let mut figures = vec![
        ("established_kept", "%", seen.established_kept * 100.0),
        ("established_p99", "us", seen.established_p99),
        ("new_flows_succeeded", "%", seen.new_flows_succeeded * 100.0),
        ("new_flow_p99", "us", seen.new_flow_p99),
        ("table_entries", "entries", bed.table_entries()? as f64),
    ];
    match delivered {
        Some(share) => figures.push(("last_ports_found", "%", share * 100.0)),
        None => figures.push(("attack_packets_per_second", "1/s", packets_per_second)),
    }
    Ok(figures)
}

/// Ways for addresses that nobody has: what is sent to them goes into the void.
fn prepare(bed: &Bed) -> Result<(), Error> {
    let silent = SILENT.to_string();
    bed.add_client_address()?;
    bed.route_to(SILENT)?;
    bed.in_node(&["ip", "route", "add", &silent, "dev", UPLINK])?;
    for nobody in [silent.as_str(), NOBODY] {
        let nowhere = "02:00:00:00:00:99";
        let neighbour = [
            "ip",
            "neigh",
            "replace",
            nobody,
            "lladdr",
            nowhere,
            "dev",
            UPLINK,
            "nud",
            "permanent",
        ];
        bed.in_node(&neighbour)?;
    }
    let strangers = format!("{}/15", forged::STRANGERS);
    bed.in_node(&[
        "ip", "route", "add", &strangers, "via", NOBODY, "dev", UPLINK, "onlink",
    ])
}

/// Where answers to strangers go.
const NOBODY: &str = "198.51.100.99";

/// Ends when all packets are sent, or the minute is over. The share of the last ports that were found, where ports are
/// taken.
fn make(attack: Attack, size: u32) -> io::Result<Option<f64>> {
    const LONGEST: Duration = Duration::from_secs(60);
    let mut forger = Forger::new(Instant::now() + LONGEST)?;
    match attack {
        Attack::SynFlood => forger.syns(size, SocketAddrV4::new(VIP, FLOODED_PORT))?,
        Attack::Scan => forger.scan(size, SECOND_CLIENT, SILENT)?,
        Attack::PortsTaken => {
            let target = SocketAddr::from((VIP, MASQUERADED_PORT));
            let filled = fill_ports(target, &[0.999])?;
            return Ok(filled.first().map(|filled| filled.delivered));
        }
        Attack::FullTable => {
            // A flow is assured when it goes on two seconds after it began (`nf_conntrack_udp_packet`).
            let again = Instant::now() + Duration::from_millis(2500);
            forger.datagrams(size, SocketAddrV4::new(VIP, PORT), WHO)?;
            std::thread::sleep(again.saturating_duration_since(Instant::now()));
            forger.datagrams(size, SocketAddrV4::new(VIP, PORT), WHO)?;
        }
    }
    Ok(None)
}
