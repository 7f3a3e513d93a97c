//! First packets: may it open a connection, and does the connection get into the table?

use super::events::EventKind;
use super::slots::{InsertError, Meta, NewEntry, Sighting, Snapshot, StateWords};
use super::statistics::Counter;
use super::{Conntrack, Found, Headers, Invalid, ServiceTag, Status, Transport, deadline, tick};
use super::{icmp, sctp, state, tcp};
use crate::tuple::{Direction, Timestamp, Tuple};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A connection that nobody can find yet.
#[derive(Clone, Debug)]
pub struct Tentative {
    /// Tuple of the first packet.
    pub original: Tuple,
    /// Tuple of the answer; NAT replaces it.
    pub reply: Tuple,
    /// For whom the connection is made.
    pub service: Option<ServiceTag>,
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
        let opened = self.try_open(headers, now);
        if opened.is_err() {
            self.statistics.add(Counter::Invalid, 1);
        }
        opened
    }

    #[inline(always)]
    fn try_open(&self, headers: &Headers, now: Timestamp) -> Result<Tentative, Invalid> {
        let mut state = StateWords::default();
        let timeout = match &headers.transport {
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
                icmp::open(&headers.tuple)?;
                self.stateless_timeout(headers.tuple.protocol)
            }
            Transport::Udp => {
                state[state::DETAIL] = state::opened(tick(now));
                self.settings.timeouts.udp.unreplied
            }
            Transport::Other => self.stateless_timeout(headers.tuple.protocol),
        };
        let (original, reply) = (headers.tuple, headers.tuple.inverse());
        Ok(Tentative {
            original,
            reply,
            service: None,
            state,
            timeout,
            length: headers.length,
        })
    }

    /// Puts a connection into the table. Its timeout begins now.
    ///
    /// DIFFERS: of two racing first packets with one tuple the loser goes the winner's way, whatever the protocol. The
    /// kernel drops it for TCP, SCTP and ICMP, and for UDP when the two chose different endpoints (the "DNS five
    /// seconds").
    ///
    /// # Errors
    /// [`ConfirmError`]; the connection is not in the table then, and holds nothing.
    pub fn confirm(
        &self,
        tentative: &Tentative,
        now: Timestamp,
    ) -> Result<Confirmed, ConfirmError> {
        // Its index is far away: it comes near while the entry is made.
        let reply = self.hash(&tentative.reply);
        self.prefetch_buckets(reply);
        let new = new_entry(tentative, now);
        let hashes = [self.hash(&tentative.original), reply];
        loop {
            match self.slots.insert(&new, hashes, now) {
                Ok(id) => {
                    self.statistics.add(Counter::Inserted, 1);
                    self.open_account(id.index, tentative.length);
                    if self.slots.events().is_heard() {
                        let entry = Snapshot::of_new(id, &new);
                        self.slots.events().tell(EventKind::New, now, entry);
                    }
                    let sighting = Sighting {
                        id,
                        direction: Direction::Original,
                        other: new.reply,
                        meta: new.meta,
                        service: [new.state[state::SERVICE], new.state[state::FLAGS]],
                    };
                    return Ok(Confirmed::Inserted(Found(sighting)));
                }
                Err(InsertError::OriginalTaken) => {
                    // When the winner has gone again meanwhile, there is room for us.
                    if let Some(found) = self.find(&tentative.original, now) {
                        self.statistics.add(Counter::ClashResolve, 1);
                        // As `nf_ct_acct_merge` does.
                        self.account(found.0.id.index, found.0.direction, tentative.length);
                        return Ok(Confirmed::Adopted(found));
                    }
                }
                Err(InsertError::ReplyTaken) => {
                    self.statistics.add(Counter::Found, 1);
                    return Err(ConfirmError::ReplyTaken);
                }
                Err(InsertError::SourceLimit) => {
                    self.statistics.add(Counter::SourceLimit, 1);
                    self.statistics.add(Counter::Drop, 1);
                    return Err(ConfirmError::SourceLimit);
                }
                Err(error @ (InsertError::Full | InsertError::BucketFull)) => {
                    if !self.early_drop(tentative, error, now) {
                        return Err(self.full(error));
                    }
                }
            }
        }
    }

    /// Counts a first packet for which there was no port, as the kernel counts it when it fails to confirm.
    pub(crate) fn count_no_port(&self) {
        self.statistics.add(Counter::InsertFailed, 1);
        self.statistics.add(Counter::Drop, 1);
    }

    fn open_account(&self, index: u32, length: u32) {
        if let Some(account) = self.accounts.get(index as usize) {
            for (word, value) in account.iter().zip([1, u64::from(length), 0, 0]) {
                word.store(value, Relaxed);
            }
        }
    }
}

fn new_entry(tentative: &Tentative, now: Timestamp) -> NewEntry {
    let mut state = tentative.state;
    state::store_service(&mut state, tentative.service);
    NewEntry {
        original: tentative.original,
        reply: tentative.reply,
        meta: Meta {
            deadline: deadline(now, tentative.timeout),
            status: Status::of_new(&tentative.original, &tentative.reply).0,
            protocol: tentative.original.protocol,
        },
        state,
    }
}
