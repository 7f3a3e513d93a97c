//! A node's connections as operators ask for them: `penstock conntrack` asks, the agent answers.
//!
//! A [`Question`] goes to the agent as one JSON line; [`Answer`]s come back, one on each line, until [`Answer::End`].
//! Filters are applied by the agent, so that what nobody wants to see is not sent, and what is deleted is what matched.
//!
//! Measure: conntrack-tools 1.4.7.

mod answer;
mod client;
mod entry;
mod filter;
mod usage;

pub use answer::{Responder, WorkerStatistics};
pub use client::{Answers, ask};
pub use entry::{Entry, Icmp, Side};
pub use filter::{
    Family, Filter, SideFilter, StatusFilter, Translated, Translation, parse_protocol,
};
pub use usage::{Usage, UsageBy, UsageRow};

use serde::{Deserialize, Serialize};

/// What can be asked about connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// Those that match (`-L`).
    List(Filter),
    /// The one with exactly this original tuple (`-G`).
    Get(Filter),
    /// End those that match, and show them (`-D`).
    Delete(Filter),
    /// End all (`-F`).
    Flush,
    /// How many there are (`-C`).
    Count,
    /// Counters of each worker (`-S`).
    Statistics,
    /// What becomes of those that match from now on (`-E`).
    Events(Filter, Vec<EventKind>),
    /// Who uses the table and the ports.
    Usage(UsageBy),
}

/// What happened to a connection (`-e`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// Confirmed.
    New,
    /// Changed its status or state.
    Update,
    /// Gone.
    Destroy,
}

/// One change of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// What happened.
    pub event: EventKind,
    /// When, in microseconds since 1970.
    pub timestamp_microseconds: u64,
    /// Somebody asked for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_user: bool,
    /// The connection after it.
    #[serde(flatten)]
    pub entry: Entry,
}

/// A part of the answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// A connection.
    Entry(Entry),
    /// A change of a connection.
    Event(Event),
    /// So many events were lost, because they were not read in time.
    Lost(u64),
    /// How many connections there are.
    Count(usize),
    /// Counters of each worker.
    Statistics(Vec<WorkerStatistics>),
    /// Who uses what.
    Usage(Usage),
    /// That was all.
    End,
}
