//! First packets: may it open a connection, and does the connection get into the table?

use super::events::EventKind;
use super::slots::{InsertError, Meta, NewEntry, Sighting, Snapshot, StateWords};
use super::statistics::Counter;
use super::{
    Conntrack, EntryId, Found, Headers, HeadersView, Invalid, ServiceTag, Status, Transport,
    TupleHash,
};
use super::{deadline, icmp, sctp, state, tcp, tick};
use crate::tuple::{Direction, Timestamp, Tuple};
use std::time::Duration;

/// How often a connection is tried for which the table had no room.
const TRIES: usize = 8;

/// A connection that nobody can find yet.
#[derive(Clone, Debug)]
pub struct Tentative {
    /// Tuple of the first packet.
    pub original: Tuple,
    /// Tuple of the answer; NAT replaces it.
    pub reply: Tuple,
    state: StateWords,
    timeout: Duration,
    length: u32,
}

/// A confirmed first packet; it is counted.
#[must_use]
#[derive(Clone, Copy, Debug)]
pub enum Confirmed {
    /// The connection is in the table.
    Inserted(Found),
    /// Another packet of the same tuple was faster: this one goes the winner's way, as any packet of its connection.
    Adopted(Found),
}

/// Why a connection could not be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfirmError {
    /// Full, and nothing may be dropped early.
    #[error("nf_conntrack: table full, dropping packet")]
    TableFull,
    /// Another connection owns the reply tuple: choose another port.
    #[error("the reply tuple is taken")]
    ReplyTaken,
    /// The source has as many entries as [`Settings::per_source`](super::Settings::per_source) allows.
    #[error("the source has reached its limit of connections")]
    SourceLimit,
}

impl Conntrack {
    /// What a first packet opens. The reply tuple is the inverse of the original: not translated.
    ///
    /// # Errors
    /// The packet can open no connection: it is INVALID.
    #[inline]
    pub fn open(&self, headers: &Headers, now: Timestamp) -> Result<Tentative, Invalid> {
        self.open_viewed(headers.view(), now)
    }

    /// [`Self::open`] without a copy of the headers.
    #[inline]
    pub(crate) fn open_viewed(
        &self,
        headers: HeadersView<'_>,
        now: Timestamp,
    ) -> Result<Tentative, Invalid> {
        let opened = self.try_open(headers, now);
        if opened.is_err() {
            self.statistics.add(Counter::Invalid, 1);
        }
        opened
    }

    #[inline(always)]
    fn try_open(&self, headers: HeadersView<'_>, now: Timestamp) -> Result<Tentative, Invalid> {
        let mut state = StateWords::default();
        let timeout = match headers.transport {
            Transport::Tcp(segment) => {
                let (connection, timeout) = tcp::Connection::open(segment, &self.settings.tcp)?;
                state::store_tcp(&mut state, &connection, Direction::Original);
                timeout
            }
            Transport::Sctp(packet) => {
                let (association, timeout) =
                    sctp::Association::open(packet, &self.settings.timeouts.sctp)?;
                state::store_sctp(&mut state, &association);
                timeout
            }
            Transport::Icmp => {
                icmp::open(headers.tuple)?;
                self.stateless_timeout(headers.tuple.protocol)
            }
            Transport::Udp => {
                state[state::DETAIL] = state::opened(tick(now));
                self.settings.timeouts.udp.unreplied
            }
            Transport::Other => self.stateless_timeout(headers.tuple.protocol),
        };
        let (original, reply) = (*headers.tuple, headers.tuple.inverse());
        Ok(Tentative {
            original,
            reply,
            state,
            timeout,
            length: headers.length,
        })
    }

    /// Puts a connection into the table. Its timeout begins now.
    ///
    /// # Errors
    /// As [`Self::confirm_near`].
    pub fn confirm(
        &self,
        tentative: &Tentative,
        now: Timestamp,
    ) -> Result<Confirmed, ConfirmError> {
        let hashes = [&tentative.original, &tentative.reply].map(|tuple| self.hash(tuple));
        self.confirm_near(tentative, &hashes, now)
    }

    /// [`Self::confirm`] with the hashes of both tuples at hand, whose index lines should be near.
    ///
    /// DIFFERS: of two racing first packets with one tuple the loser goes the winner's way, whatever the protocol. The
    /// kernel drops it for TCP, SCTP and ICMP, and for UDP when the two chose different endpoints (the "DNS five
    /// seconds").
    ///
    /// # Errors
    /// [`ConfirmError`]; the connection is not in the table then, and holds nothing.
    pub fn confirm_near(
        &self,
        tentative: &Tentative,
        hashes: &[TupleHash; 2],
        now: Timestamp,
    ) -> Result<Confirmed, ConfirmError> {
        let new = tentative.entry(now);
        let mut tries = 0;
        loop {
            match self.slots.insert(&new, hashes, now) {
                Ok(id) => return Ok(Confirmed::Inserted(self.inserted(id, &new, now))),
                Err(error) => {
                    tries += 1;
                    if let Some(known) = self.not_inserted(error, tentative, tries, now) {
                        return known;
                    }
                }
            }
        }
    }

    #[inline]
    fn inserted(&self, id: EntryId, new: &NewEntry<'_>, now: Timestamp) -> Found {
        self.statistics.add(Counter::Inserted, 1);
        if self.slots.events().is_heard() {
            let entry = Snapshot::of_new(id, new);
            self.slots.events().tell(EventKind::New, now, entry);
        }
        Found(Sighting {
            id,
            direction: Direction::Original,
            other: *new.reply,
            meta: Meta::unpack(new.meta),
            service: [new.state[state::SERVICE], new.state[state::FLAGS]],
        })
    }

    /// What becomes of a connection that the table did not take, after so many tries; `None`: it has room now.
    #[cold]
    fn not_inserted(
        &self,
        error: InsertError,
        tentative: &Tentative,
        tries: usize,
        now: Timestamp,
    ) -> Option<Result<Confirmed, ConfirmError>> {
        match error {
            InsertError::OriginalTaken => {
                // When the winner has gone again meanwhile, there is room for us.
                let found = self.find(&tentative.original, now)?;
                self.statistics.add(Counter::ClashResolve, 1);
                // As `nf_ct_acct_merge` does.
                if let Some(entry) = self.slots.lock(found.entry()) {
                    entry.count(found.direction(), tentative.length);
                }
                Some(Ok(Confirmed::Adopted(found)))
            }
            InsertError::ReplyTaken => {
                self.statistics.add(Counter::Found, 1);
                Some(Err(ConfirmError::ReplyTaken))
            }
            InsertError::SourceLimit => {
                self.statistics.add(Counter::SourceLimit, 1);
                self.statistics.add(Counter::Drop, 1);
                Some(Err(ConfirmError::SourceLimit))
            }
            InsertError::Full | InsertError::BucketFull => {
                // Others may take what became free, or be about to free what they took out of the table: nobody waits for them.
                let has_room = tries < TRIES && self.early_drop(tentative, error, now);
                (!has_room).then(|| Err(self.full(error)))
            }
        }
    }

    /// Counts a first packet for which there was no port, as the kernel counts it when it fails to confirm.
    pub(crate) fn count_no_port(&self) {
        self.statistics.add(Counter::InsertFailed, 1);
        self.statistics.add(Counter::Drop, 1);
    }
}

impl Tentative {
    /// Says for whom the connection is made.
    #[inline]
    pub fn set_service(&mut self, tag: ServiceTag) {
        state::store_service(&mut self.state, tag);
    }

    fn entry(&self, now: Timestamp) -> NewEntry<'_> {
        NewEntry {
            original: &self.original,
            reply: &self.reply,
            meta: Meta {
                deadline: deadline(now, self.timeout),
                status: Status::of_new(&self.original, &self.reply).0,
                protocol: self.original.protocol,
            }
            .pack(),
            state: &self.state,
            length: self.length,
        }
    }
}
