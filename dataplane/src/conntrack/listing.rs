//! Entries as `conntrack -L` shows them.

use super::events::Farewell;
use super::slots::Snapshot;
use super::{Conntrack, Count, EntryId, ServiceTag, Status, remaining, sctp, state, tcp};
use crate::tuple::{Direction, Protocol, Timestamp, Tuple};
use std::fmt;
use std::time::Duration;

/// A connection's state, for TCP and SCTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Of TCP.
    Tcp(tcp::State),
    /// Of SCTP.
    Sctp(sctp::State),
}

impl ConnectionState {
    /// Name in `conntrack -L`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp(state) => state.name(),
            Self::Sctp(state) => state.name(),
        }
    }
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An entry as it is listed.
#[derive(Clone, Copy, Debug)]
pub struct EntryView {
    /// Tuple of the first packet.
    pub original: Tuple,
    /// Tuple of the answer.
    pub reply: Tuple,
    /// State, for TCP and SCTP.
    pub state: Option<ConnectionState>,
    /// Time left; zero in the event of an entry that has expired.
    pub timeout: Duration,
    /// Status bits.
    pub status: Status,
    /// What passed in the original and in the reply direction; nothing without [`super::Settings::accounting`], and in
    /// events but the last.
    pub counts: Option<[Count; 2]>,
    /// For whom the connection was made.
    pub service: Option<ServiceTag>,
    /// Identifies the entry while it lives (`-o id`): no other one has it then.
    pub id: u32,
}

impl Conntrack {
    /// Shows every live entry, in no order. Packets pass meanwhile.
    pub fn for_each(&self, now: Timestamp, mut visit: impl FnMut(&EntryView)) {
        for entry in self.live(now) {
            visit(&self.view(&entry, now));
        }
    }

    /// The connection with this original tuple (`conntrack -G`).
    pub fn get(&self, original: &Tuple, now: Timestamp) -> Option<EntryView> {
        let seen = self.slots.find(original, self.hash(original))?;
        let entry = self.slots.snapshot(seen.id)?;
        let is_it = seen.direction == Direction::Original && !entry.meta.is_expired(now);
        is_it.then(|| self.view(&entry, now))
    }

    /// Ends, because somebody asks for it, every connection that `must_go` (`conntrack -D`, `-F`); shows those that it
    /// ended to `removed`. Packets pass meanwhile, and may open others.
    pub fn remove_each(
        &self,
        now: Timestamp,
        must_go: impl Fn(&EntryView) -> bool,
        mut removed: impl FnMut(&EntryView),
    ) {
        let farewell = Farewell { now, by_user: true };
        for entry in self.live(now) {
            let view = self.view(&entry, now);
            if must_go(&view) && self.slots.remove_if(entry.id, farewell, |_| true) {
                removed(&view);
            }
        }
    }

    fn live(&self, now: Timestamp) -> impl Iterator<Item = Snapshot> + '_ {
        let entries = (0..self.slots.used() as u32).filter_map(|index| self.slots.at(index));
        entries.filter(move |entry| !entry.meta.is_expired(now))
    }

    pub(super) fn view(&self, entry: &Snapshot, now: Timestamp) -> EntryView {
        EntryView {
            original: entry.original,
            reply: entry.reply,
            state: connection_state(entry),
            timeout: remaining(entry.meta.deadline, now),
            status: Status(entry.meta.status),
            counts: entry.counts,
            service: state::load_service([entry.hot[state::SERVICE], entry.hot[state::FLAGS]]),
            id: self.number(entry.id),
        }
    }

    /// The place of an entry in the table, and above it as many bits of the number of its life as there is room for.
    fn number(&self, id: EntryId) -> u32 {
        let places = self.capacity().next_power_of_two().trailing_zeros();
        id.generation.checked_shl(places).unwrap_or(0) | id.index
    }
}

pub(super) fn connection_state(entry: &Snapshot) -> Option<ConnectionState> {
    let detail = entry.hot[state::DETAIL];
    match entry.meta.protocol {
        Protocol::TCP => Some(ConnectionState::Tcp(state::tcp_state(detail))),
        Protocol::SCTP => Some(ConnectionState::Sctp(state::sctp_state(detail))),
        _ => None,
    }
}
