//! What changes most often, endpoints, without compiling everything anew: the slices of one file of the folder with
//! the objects. Where more has to follow than the table, a whole reread is due.

use super::Agent;
use crate::compile::compile;
use crate::metrics::Changes;
use crate::snapshot::objects::Policy;
use crate::snapshot::{self, EndpointSlice, Service, ServiceKey};
use dataplane::service::Generation;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::sync::Arc;

/// What came of looking at one file.
pub(super) enum Exchange {
    /// Nothing in it changed.
    Same,
    /// The table follows it.
    Published,
    /// All files must be looked at. Nothing has changed so far.
    Declined,
}

impl Agent {
    /// Takes the slices of `file`, a name in the folder with the objects, if they are all that changes.
    pub(super) fn exchange_slices(&mut self, file: &OsStr) -> Exchange {
        let Some((name, slices)) = self.slices_in(file) else {
            return Exchange::Declined;
        };
        let Some(old) = self.objects.exchange_slices(&name, slices.clone()) else {
            return Exchange::Declined;
        };
        let changes = Changes::of_slices(&old, &slices);
        if changes.slices == 0 {
            return Exchange::Same;
        }
        if self.republish(&old, &slices, &changes).is_none() {
            // The old ones came from this file and have their names still.
            self.objects.exchange_slices(&name, old);
            return Exchange::Declined;
        }
        self.seen = None;
        Exchange::Published
    }

    /// The slices that a file holds now, with the name that it has in messages; none in one that is gone.
    fn slices_in(&self, file: &OsStr) -> Option<(String, Vec<EndpointSlice>)> {
        if self.refused.is_some() {
            return None;
        }
        let path = self.settings.snapshot.join(file);
        // Anything else might keep us waiting.
        let text = match path.metadata() {
            Ok(metadata) if metadata.is_file() => std::fs::read_to_string(&path).ok()?,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            _ => return None,
        };
        let name = path.display().to_string();
        let slices = snapshot::slices(&name, &text)?;
        Some((name, slices))
    }

    /// Publishes a table that differs from the one before in the Services of these slices. `None`, and nothing has
    /// changed, where more would have to follow.
    fn republish(
        &mut self,
        old: &[EndpointSlice],
        new: &[EndpointSlice],
        changes: &Changes,
    ) -> Option<()> {
        let start = self.telemetry.moment();
        let mut slices = old.iter().chain(new);
        let services: BTreeSet<ServiceKey> = slices.clone().filter_map(service).collect();
        let part = self.objects.only(&services, &self.settings.node);
        // Answers of pods on the node's own network must be led back here: routing follows them.
        let is_on_node = |slice: &EndpointSlice| {
            let mut addresses = slice.endpoints.iter().filter_map(|at| at.address());
            addresses.any(|address| self.surroundings.network.is_own(address))
        };
        if slices.any(is_on_node) || part.services.iter().any(has_policy_local) {
            return None;
        }
        let generation = Generation(self.generation.0 + 1);
        let node = &self.settings.node;
        let compiled = compile(
            &part,
            &self.config,
            &self.surroundings.network,
            node,
            generation,
        )
        .ok()?;
        let table = Arc::new(self.shared.services.load().with_changed(compiled)?);
        self.shared.services.store(Arc::clone(&table));
        self.shared.affinity.follow(&table);
        self.generation = generation;
        self.telemetry.published(start, changes, self.without_local);
        Some(())
    }
}

fn service(slice: &EndpointSlice) -> Option<ServiceKey> {
    let name = slice.service_name()?;
    Some((slice.metadata.namespace.clone(), name.to_owned()))
}

/// Health checks and metrics count the endpoints of such a Service.
fn has_policy_local(service: &Service) -> bool {
    let spec = &service.spec;
    let policies = [spec.internal_traffic_policy, spec.external_traffic_policy];
    policies.contains(&Some(Policy::Local))
}
