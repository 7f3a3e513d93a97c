//! `./lab bench snat`: one client outside sends datagrams from all of its ports to a Service that masquerades, until
//! nearly every port of the node towards the one endpoint is taken; how many of the next flows arrive.

use super::bed::Bed;
use super::fill_ports::fill_ports;
use super::load::Figures;
use super::objects::Position;
use super::report::{Key, Row};
use super::{Benchmark, Run, turns};
use crate::lab::Error;

/// Shares of the 64,512 ports from 1024 on that are taken when the flows that are counted begin.
const SHARES: [(f64, &str, &str); 3] = [
    (
        0.50,
        "delivered_from_50_percent",
        "delivered_per_second_from_50_percent",
    ),
    (
        0.99,
        "delivered_from_99_percent",
        "delivered_per_second_from_99_percent",
    ),
    (
        0.999,
        "delivered_from_99.9_percent",
        "delivered_per_second_from_99.9_percent",
    ),
];

pub(super) fn rows(run: Run<'_>, services: u32) -> Result<Vec<Row>, Error> {
    let subjects = run.arguments.subjects().into_iter();
    let all = subjects.map(|subject| (Key::of(services, subject, "any"), subject));
    turns::take(run, all.collect(), |subject, round| {
        eprintln!("bench: {}, round {}", subject.name(), round + 1);
        // A new lab each time: what is in a table stays there for half a minute.
        let bed = Bed::make(*subject, services, Benchmark::Snat, run.interrupted)?;
        bed.add_client_address()?;
        let shares = SHARES.map(|(share, ..)| share);
        let found = bed.inside(Position::End, |address| fill_ports(address, &shares))?;
        let mut figures = Figures::new();
        for (filled, (_, delivered, rate)) in found.iter().zip(SHARES) {
            figures.push((delivered, "%", filled.delivered * 100.0));
            figures.push((rate, "1/s", filled.per_second));
        }
        Ok(figures)
    })
}
