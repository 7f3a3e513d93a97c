//! A node without threads of its own: whoever holds it moves its packets and its clock.
//!
//! Everything else is as in the agent: the devices, the routing, the tables.

use super::{Agent, Settings, Source, facts};
use crate::config::KubeProxyConfig;
use crate::snapshot::Snapshot;
use anyhow::Result;
use dataplane::tuple::Origin;
use dataplane::worker::Shared;
use std::sync::Arc;

/// A node that stands still until it is moved. Invariant: all calls come from threads in its network namespace.
pub struct Stepped {
    agent: Agent,
}

impl Stepped {
    /// Starts the node of `settings`, whose files are not read. Returns what one worker receives from, over
    /// [`Stepped::shared`].
    ///
    /// # Errors
    /// What kept it from starting; nothing is left behind then.
    pub fn start(
        settings: Settings,
        snapshot: Snapshot,
        config: KubeProxyConfig,
    ) -> Result<(Self, Vec<(Origin, Source)>)> {
        let mut agent = Agent::prepare(settings, snapshot, config)?;
        match agent
            .begin()
            .and_then(|queues| agent.steer().map(|()| queues))
        {
            Ok(queues) => Ok((Self { agent }, queues.into_iter().flatten().collect())),
            Err(error) => {
                agent.stop()?;
                Err(error)
            }
        }
    }

    /// What its worker works with.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.agent.shared
    }

    /// Takes other objects.
    ///
    /// # Errors
    /// When they do not compile; then everything stays as it was.
    pub fn change(&mut self, snapshot: Snapshot) -> Result<()> {
        // Nobody else looks at them.
        facts::follow_listening_ports(&self.agent.reserved_ports)?;
        self.agent.take(snapshot)
    }

    /// Takes its routing down; the devices go with their queues.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn stop(mut self) -> Result<()> {
        self.agent.stop()
    }
}
