//! How many connections the endpoints of Services with least-connections have.
//!
//! Counted anew from the table of connections at intervals, off the packet's path; in between, choices are added. So
//! nothing is lost for good whichever way a connection ends, and Services that do not ask for it cost nothing.

use crate::conntrack::{ConnectionState, Conntrack, EntryView, tcp};
use crate::service::{Endpoint, ServiceTable};
use crate::tuple::{Address, Timestamp};
use fastrand::Rng;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// What a connection weighs that is not established or over: IPVS counts `active * 256 + inactive`
/// (`ip_vs_dest_conn_overhead`).
const INACTIVE: u64 = 1;
const ACTIVE: u64 = 256;

/// Service, address and port of an endpoint.
type Key = (u64, Address, u16);

/// The load of each endpoint that has any.
#[derive(Debug, Default)]
pub struct Loads {
    of: Mutex<HashMap<Key, u64>>,
}

impl Loads {
    /// The position of the endpoint with the least load; among equals any, so that nodes do not all begin with the
    /// first. The connection that it is chosen for counts from now on.
    pub(super) fn least(&self, service: u64, endpoints: &[Endpoint], rng: &mut Rng) -> usize {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let key = |endpoint: &Endpoint| (service, endpoint.address, endpoint.port);
        let load = |endpoint: &Endpoint| of.get(&key(endpoint)).copied().unwrap_or(0);
        let start = rng.usize(..endpoints.len());
        let positions = (start..endpoints.len()).chain(0..start);
        let position = positions
            .min_by_key(|position| load(&endpoints[*position]))
            .unwrap_or(start);
        *of.entry(key(&endpoints[position])).or_default() += ACTIVE;
        position
    }

    /// Counts the connections of all Services that ask for it. What is opened meanwhile may be missed until the next
    /// time.
    pub fn recount(&self, services: &ServiceTable, conntrack: &Conntrack, now: Timestamp) {
        if !services.counts_connections() {
            return;
        }
        let mut counted = HashMap::new();
        conntrack.for_each(now, |entry| {
            let service = entry.service.and_then(|tag| tag.service());
            if let Some(id) = service.filter(|id| services.counts_connections_of(*id)) {
                let key = (id, entry.reply.source, entry.reply.source_port);
                *counted.entry(key).or_default() += weight(entry);
            }
        });
        *self.of.lock().unwrap_or_else(PoisonError::into_inner) = counted;
    }
}

fn weight(entry: &EntryView) -> u64 {
    match entry.state {
        Some(ConnectionState::Tcp(state)) if state != tcp::State::Established => INACTIVE,
        _ => ACTIVE,
    }
}
