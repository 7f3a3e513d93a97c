//! Maglev's consistent hash: all nodes send a flow to the same endpoint, and flows keep theirs when others go.
//!
//! A flow's hash names one of [`ENTRIES`] entries, and each entry belongs to an endpoint. Each endpoint wants the
//! entries in an order of its own, a permutation that follows from its address and port; an entry belongs to whoever
//! wants it soonest, of equals to the first in the list. So an endpoint that goes loses its own entries and no others
//! change hands. In the original (Eisenbud et al., NSDI 2016, section 3.4) endpoints take turns, each its next *free*
//! entry, which evens out the shares, but moves 1.6 times as many flows as must with 100 endpoints and 7 times with
//! 1,000; see `docs/decisions/2026-11-21-maglev.md`.
//!
//! The entries are not stored: any of them can be told from the permutations, so a Service costs nothing until it is
//! used.

use super::mix;
use crate::service::Endpoint;
use crate::tuple::Tuple;

/// Entries of the table: a prime, and far more than endpoints.
pub const ENTRIES: u32 = 65_537;

/// The position of the endpoint that the flow belongs to. `endpoints` is not empty.
pub(super) fn position(flow: &Tuple, endpoints: &[Endpoint]) -> usize {
    owner((flow_hash(flow) % u64::from(ENTRIES)) as u32, endpoints)
}

/// The position of the endpoint that owns `entry`.
fn owner(entry: u32, endpoints: &[Endpoint]) -> usize {
    let ranks = endpoints.iter().map(|endpoint| rank(entry, endpoint));
    let soonest = ranks.enumerate().min_by_key(|(_, rank)| *rank);
    soonest.map_or(0, |(position, _)| position)
}

/// When `endpoint` wants `entry`: its place in the endpoint's permutation, from 0.
fn rank(entry: u32, endpoint: &Endpoint) -> u64 {
    const PRIME: u64 = ENTRIES as u64;
    let hash = mix(fold(endpoint.address.to_bits()) ^ mix(u64::from(endpoint.port)));
    let offset = hash % PRIME;
    let step = (hash >> 32) % (PRIME - 1) + 1;
    (u64::from(entry) + offset) % PRIME * step % PRIME
}

/// The same on every node and in every version, so not keyed.
fn flow_hash(flow: &Tuple) -> u64 {
    let ports = u64::from(flow.source_port) << 32
        | u64::from(flow.destination_port) << 16
        | u64::from(flow.protocol.0);
    let addresses = mix(fold(flow.source.to_bits())) ^ fold(flow.destination.to_bits());
    mix(mix(addresses) ^ ports)
}

const fn fold(bits: u128) -> u64 {
    (bits >> 64) as u64 ^ bits as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::{Address, Protocol};

    fn endpoints(count: u16) -> Vec<Endpoint> {
        (0..count)
            .map(|number| Endpoint {
                address: Address::from_v4([10, 244, (number >> 8) as u8, number as u8]),
                port: 8080,
                masquerade_address: None,
                on_node: false,
            })
            .collect()
    }

    fn owners(endpoints: &[Endpoint]) -> Vec<Address> {
        (0..ENTRIES)
            .map(|entry| endpoints[owner(entry, endpoints)].address)
            .collect()
    }

    #[test]
    fn removing_one_of_n_moves_its_own_entries_and_no_others() {
        for count in [2, 3, 5, 10, 50, 100, 300] {
            let all = endpoints(count);
            let before = owners(&all);
            for gone in [0, count / 2, count - 1] {
                let mut left = all.clone();
                let gone = left.remove(usize::from(gone)).address;
                let mut moved = 0;
                for (before, after) in before.iter().zip(owners(&left)) {
                    assert!(*before == gone || *before == after);
                    moved += usize::from(*before == gone);
                }
                let bound = 1.5 / f64::from(count) * f64::from(ENTRIES);
                assert!(moved as f64 <= bound, "{moved} of {count}");
            }
        }
    }

    #[test]
    fn every_endpoint_has_its_share() {
        let all = endpoints(100);
        let owners = owners(&all);
        for endpoint in &all {
            let share = owners.iter().filter(|owner| **owner == endpoint.address);
            let share = share.count() * all.len();
            let fair = ENTRIES as usize;
            assert!((fair * 3 / 4..fair * 5 / 4).contains(&share), "{share}");
        }
    }

    #[test]
    fn the_order_of_endpoints_matters_to_few_entries_only() {
        let all = endpoints(20);
        let mut reversed = all.clone();
        reversed.reverse();
        let changed = owners(&all)
            .iter()
            .zip(owners(&reversed))
            .filter(|(a, b)| **a != *b)
            .count();
        assert!(changed < ENTRIES as usize / 1000, "{changed}");
    }

    #[test]
    fn every_part_of_the_five_tuple_counts() {
        let flow = Tuple {
            source: Address::from_v4([192, 0, 2, 1]),
            destination: Address::from_v4([10, 96, 0, 1]),
            source_port: 40_000,
            destination_port: 80,
            protocol: Protocol::TCP,
        };
        let others = [
            Tuple {
                source: Address::from_v4([192, 0, 2, 2]),
                ..flow
            },
            Tuple {
                destination: Address::from_v4([10, 96, 0, 2]),
                ..flow
            },
            Tuple {
                source_port: 40_001,
                ..flow
            },
            Tuple {
                destination_port: 81,
                ..flow
            },
            Tuple {
                protocol: Protocol::UDP,
                ..flow
            },
        ];
        assert!(
            others
                .iter()
                .all(|other| flow_hash(other) != flow_hash(&flow))
        );
        assert_eq!(
            position(&flow, &endpoints(10)),
            position(&flow, &endpoints(10))
        );
    }
}
