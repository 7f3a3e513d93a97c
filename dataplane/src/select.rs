//! The choice of an endpoint for a new connection: affinity first, then the Service's way of selection.

mod load;
pub mod maglev;

pub use load::Loads;

use crate::service::{Endpoint, Selection, ServiceIndex, ServiceTable};
use crate::tuple::{Address, Timestamp, Tuple};
use fastrand::Rng;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Which endpoints each client of a Service with ClientIP affinity was given.
///
/// As kube-proxy's `recent` lists, one per endpoint: an assignment is refreshed by each new connection, not by packets;
/// a client that was given several, as by policy Local at one address and Cluster at another, goes to the first of them;
/// and who leaves the table forgets its clients.
///
/// DIFFERS: the kernel's lists hold 100 clients per endpoint and forget the oldest; this table holds all of them until
/// their timeout. That limit is a default of the `recent` module, not something that a user of affinity asks for. Of
/// all Services together [`MAXIMUM_CLIENTS`] are remembered, of one [`MAXIMUM_OF_ONE`], so that who floods one does not take
/// the others' room: who comes when there are so many goes anywhere each time.
#[derive(Debug, Default)]
pub struct Affinity {
    clients: Mutex<Clients>,
}

/// Clients remembered at most, in some 80 MB: strangers can be many.
const MAXIMUM_CLIENTS: usize = 262_144;
/// Those of one Service.
const MAXIMUM_OF_ONE: usize = MAXIMUM_CLIENTS / 4;

#[derive(Debug, Default)]
struct Clients {
    /// By Service and client.
    assignments: HashMap<(u64, Address), Vec<Assignment>>,
    /// How many of them a Service has.
    of_service: HashMap<u64, usize>,
}

impl Clients {
    fn have_room(&self, service: u64) -> bool {
        let of_service = self.of_service.get(&service).copied().unwrap_or(0);
        self.assignments.len() < MAXIMUM_CLIENTS && of_service < MAXIMUM_OF_ONE
    }
}

#[derive(Clone, Copy, Debug)]
struct Assignment {
    address: Address,
    port: u16,
    last_connection: Timestamp,
    timeout: Duration,
}

impl Affinity {
    /// The first candidate that the client was given within the timeout (an age equal to it still counts).
    fn recall<'t>(
        &self,
        key: (u64, Address),
        endpoints: &'t [Endpoint],
        now: Timestamp,
    ) -> Option<&'t Endpoint> {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let assignments = clients.assignments.get(&key)?;
        let is_live = |endpoint: &&Endpoint| {
            let mut assignments = assignments.iter();
            assignments.any(|assignment| assignment.is_to(endpoint) && assignment.is_live(now))
        };
        endpoints.iter().find(is_live)
    }

    fn remember(
        &self,
        key: (u64, Address),
        endpoint: &Endpoint,
        timeout: Duration,
        now: Timestamp,
    ) {
        let assignment = Assignment {
            address: endpoint.address,
            port: endpoint.port,
            last_connection: now,
            timeout,
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if !clients.assignments.contains_key(&key) {
            if !clients.have_room(key.0) {
                return;
            }
            *clients.of_service.entry(key.0).or_default() += 1;
        }
        let assignments = clients.assignments.entry(key).or_default();
        assignments.retain(|former| !former.is_to(endpoint));
        assignments.push(assignment);
    }

    /// Forgets the clients of endpoints that `services` no longer uses. Off the packet's path.
    pub fn follow(&self, services: &ServiceTable) {
        if self.is_empty() {
            return;
        }
        let used: HashSet<(u64, Address, u16)> = services
            .endpoints_with_affinity()
            .map(|(service, endpoint)| (service, endpoint.address, endpoint.port))
            .collect();
        self.retain(|service, assignment| {
            used.contains(&(service, assignment.address, assignment.port))
        });
    }

    /// Forgets the clients whose timeout has passed. Nobody goes where such a one went in any case, and first packets wait
    /// meanwhile: this is for now and then.
    pub fn expire(&self, now: Timestamp) {
        self.retain(|_, assignment| assignment.is_live(now));
    }

    fn retain(&self, keep: impl Fn(u64, &Assignment) -> bool) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let Clients {
            assignments,
            of_service,
        } = &mut *clients;
        of_service.clear();
        assignments.retain(|(service, _), assignments| {
            assignments.retain(|assignment| keep(*service, assignment));
            let is_kept = !assignments.is_empty();
            *of_service.entry(*service).or_default() += usize::from(is_kept);
            is_kept
        });
    }

    /// How many clients are remembered.
    pub fn len(&self) -> usize {
        self.clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .assignments
            .len()
    }

    /// Whether no client is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Assignment {
    fn is_to(&self, endpoint: &Endpoint) -> bool {
        (self.address, self.port) == (endpoint.address, endpoint.port)
    }

    fn is_live(&self, now: Timestamp) -> bool {
        now.since(self.last_connection) <= self.timeout
    }
}

/// Chooses one of `endpoints` (at least one) of `service` for the new connection `original`.
pub fn endpoint<'t>(
    services: &'t ServiceTable,
    service: ServiceIndex,
    endpoints: &'t [Endpoint],
    original: &Tuple,
    turn: &mut Turn<'_>,
) -> &'t Endpoint {
    let Some(timeout) = services.service(service).affinity_timeout else {
        return balance(services, service, endpoints, original, turn.rng);
    };
    let key = (services.service_id(service), original.source);
    let endpoint = turn
        .affinity
        .recall(key, endpoints, turn.now)
        .unwrap_or_else(|| balance(services, service, endpoints, original, turn.rng));
    turn.affinity.remember(key, endpoint, timeout, turn.now);
    endpoint
}

/// What a choice depends on besides the packet.
#[derive(Debug)]
pub struct Turn<'a> {
    /// Earlier choices.
    pub affinity: &'a Affinity,
    /// Randomness.
    pub rng: &'a mut Rng,
    /// Time.
    pub now: Timestamp,
}

fn balance<'t>(
    services: &'t ServiceTable,
    service: ServiceIndex,
    endpoints: &'t [Endpoint],
    original: &Tuple,
    rng: &mut Rng,
) -> &'t Endpoint {
    let count = endpoints.len();
    let position = match services.service(service).selection {
        Selection::Random => rng.usize(..count),
        Selection::RoundRobin => services.next_turn(service) as usize % count,
        Selection::LeastConnections => {
            let id = services.service_id(service);
            services.loads().least(id, endpoints, rng)
        }
        Selection::SourceHash => source_hash(original.source, count),
        Selection::Maglev => maglev::position(original, endpoints),
    };
    &endpoints[position]
}

fn source_hash(source: Address, count: usize) -> usize {
    (mix(source.to_bits() as u64 ^ (source.to_bits() >> 64) as u64) % count as u64) as usize
}

/// SplitMix64's finaliser: the same on every node and in every version.
const fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_clients_are_remembered_than_there_is_room_for() {
        let (affinity, timeout) = (Affinity::default(), Duration::from_secs(10));
        let client = |service, nth: usize| (service, Address::from_v4((nth as u32).to_be_bytes()));
        let endpoint = |last| Endpoint {
            address: Address::from_v4([10, 244, 3, last]),
            port: 8080,
            masquerade_address: None,
            on_node: false,
        };
        let (endpoints, then) = ([endpoint(1), endpoint(2)], Timestamp::from_seconds(1));
        for service in 1..=5 {
            for nth in 0..=MAXIMUM_OF_ONE {
                affinity.remember(client(service, nth), &endpoints[0], timeout, then);
            }
            let expected = MAXIMUM_CLIENTS.min(service as usize * MAXIMUM_OF_ONE);
            assert_eq!(affinity.len(), expected, "{service}");
        }
        let (now, later) = (Timestamp::from_seconds(9), Timestamp::from_seconds(12));
        affinity.remember(client(1, 0), &endpoints[1], timeout, now);
        affinity.expire(later);
        assert_eq!(affinity.len(), 1, "who is known is remembered anew");
        let goes_to = affinity.recall(client(1, 0), &endpoints, later);
        assert_eq!(goes_to, Some(&endpoints[1]));
        affinity.remember(client(1, 1), &endpoints[0], timeout, later);
        assert_eq!(affinity.len(), 2, "there is room again");
    }
}
