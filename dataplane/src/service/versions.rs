//! One table after the other: what goes on from the last, what is shared with it, and which UDP flows it ends.

use super::{
    Action, Claim, Entry, Frontend, Generation, Parts, Position, Selection, Service, ServiceTable,
};
use crate::tuple::Tuple;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl ServiceTable {
    /// The next version of a table: turns and counts of connections go on, and it knows since when UDP is served.
    pub fn following(parts: Parts, previous: &Self) -> Self {
        let mut table = Self::new(parts, &previous.index.key);
        table.loads = Arc::clone(&previous.loads);
        table.follow_serving(previous);
        table.follow_turns(previous);
        table
    }

    fn follow_serving(&mut self, previous: &Self) {
        let key = |entry: &Entry| Some((entry.id, entry.service.udp.as_ref()?.is_ipv4));
        let since = |entry: &Entry| Some((key(entry)?, entry.serving_since?));
        let before: HashMap<_, Generation> = previous.services.iter().filter_map(since).collect();
        for entry in self.services.iter_mut() {
            let before = key(entry).and_then(|key| before.get(&key));
            entry.serving_since = entry.serving_since.map(|now| *before.unwrap_or(&now));
        }
    }

    fn follow_turns(&self, previous: &Self) {
        let turns: HashMap<u64, u32> = previous
            .in_turn()
            .map(|(at, id)| (id, previous.turns[at].load(Ordering::Relaxed)))
            .collect();
        for (at, id) in self.in_turn() {
            if let Some(turn) = turns.get(&id) {
                self.turns[at].store(*turn, Ordering::Relaxed);
            }
        }
    }

    /// Places and identifiers of the Services whose endpoints are chosen in turn.
    fn in_turn(&self) -> impl Iterator<Item = (usize, u64)> {
        let places = self.services.iter().enumerate();
        places
            .filter(|(_, entry)| entry.service.selection == Selection::RoundRobin)
            .map(|(at, entry)| (at, entry.id))
    }

    /// The next version of this table, in which `changed` says anew what some of the Services mean; their frontends
    /// are the same, what is behind them is not. Everything else is shared: of the Services and frontends only the
    /// chunks with changed ones are copied. `None` where a whole table is due: `changed` has a frontend that this
    /// table has not.
    pub fn with_changed(&self, changed: Parts) -> Option<Self> {
        let mut next = self.sharing(changed.generation);
        for (key, frontend) in changed.frontends {
            let service = changed.services.get(frontend.service.0 as usize)?;
            let id = super::stable_id(&service.name);
            let first = self.index.find(&key, &self.frontends)?;
            let is_same = |(of, claim): &Claim| {
                *of == key && claim.kind == frontend.kind && self.service_id(claim.service) == id
            };
            let together = next.frontends.change_from(first).iter_mut();
            // An address that a Service lists twice has two.
            let same = together.filter(|claim| is_same(claim));
            let mut position = None;
            for (_, claim) in same {
                let service = *position.insert(claim.service);
                *claim = Frontend {
                    service,
                    ..frontend.clone()
                };
            }
            next.change_service(Position::from_u32(position?.0), service);
        }
        Some(next)
    }

    /// This table as another version, before anything changes.
    fn sharing(&self, generation: Generation) -> Self {
        Self {
            generation,
            services: self.services.clone(),
            frontends: self.frontends.clone(),
            index: Arc::clone(&self.index),
            node: Arc::clone(&self.node),
            turns: Arc::clone(&self.turns),
            counted: Arc::clone(&self.counted),
            loads: Arc::clone(&self.loads),
        }
    }

    fn change_service(&mut self, position: Position, service: &Service) {
        let generation = self.generation;
        let entry = &mut self.services.change_from(position)[0];
        let since = entry.serving_since.unwrap_or(generation);
        entry.serving_since = service.is_serving_udp().then_some(since);
        entry.service = service.clone();
    }

    /// Whether a UDP flow that the table `checked` let live has lost its place since (kube-proxy's
    /// `CleanStaleEntries`): its endpoint is no longer listed, the Service got its first serving endpoint, or the
    /// flow was not translated and its destination has become a Service's, or a NodePort's that turns it away.
    ///
    /// DIFFERS: kube-proxy forgets flows through other addresses than the cluster IP when their Service goes, flows
    /// whose address of the Service goes, and flows whose endpoint stopped serving before it went. They end here too,
    /// and so do answered ones to a server of the node, on a NodePort's number, when that NodePort has no endpoints.
    /// Its `conntrack -D` by address or by nodePort alone takes flows through the Service's other ports, and to that
    /// port anywhere, of both families. They stay here, and so does a flow whose endpoint is listed again by its next packet.
    pub fn is_stale(
        &self,
        original: &Tuple,
        reply: &Tuple,
        service: Option<u64>,
        checked: Generation,
    ) -> bool {
        let mut addressed = self.addressed(original);
        let Some(id) = service else {
            return addressed.next().is_some() || self.is_refused_at_node_port(original);
        };
        let keeps = |frontend: &Frontend| {
            let entry = self.entry(frontend.service);
            let is_newly_served = entry.serving_since.is_some_and(|since| checked < since);
            entry.id == id && !is_newly_served && lists(&entry.service, frontend, reply)
        };
        !addressed.any(keeps)
    }
}

/// Whether the endpoint that answers as `reply` is one of the Service's, whatever its condition.
fn lists(service: &Service, frontend: &Frontend, reply: &Tuple) -> bool {
    let mut used = frontend.actions().into_iter().filter_map(Action::endpoints);
    let is_used = used.any(|endpoints| {
        let mut endpoints = endpoints.of(service).iter();
        endpoints.any(|at| at.address == reply.source && at.port == reply.source_port)
    });
    let udp = service.udp.as_ref();
    is_used || udp.is_some_and(|udp| udp.unused.contains(&(reply.source, reply.source_port)))
}
