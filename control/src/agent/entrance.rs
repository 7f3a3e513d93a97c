//! By what packets come to the agent, made while the first table is compiled.

use super::Settings;
use super::devices::{self, Queues};
use super::facts;
use super::steering::{Plan, Steering};
use crate::netlink::Netlink;
use crate::node_network::NodeNetwork;
use crate::snapshot::Snapshot;
use anyhow::{Context as _, Result};

/// By what packets come here: devices, and the routes of which it is known before there is a table that they are needed.
/// They go when this is dropped.
pub(super) struct Entrance {
    pub(super) devices: [u32; 3],
    pub(super) queues: Queues,
    pub(super) steering: Steering,
}

impl Entrance {
    pub(super) fn make(
        settings: &Settings,
        snapshot: &Snapshot,
        network: &NodeNetwork,
    ) -> Result<Self> {
        let mut netlink = Netlink::open().context("cannot open rtnetlink")?;
        // Fails where another agent has them; what it has set is left alone then.
        let (devices, queues) = devices::create(&mut netlink, settings)?;
        let [_, _, node_device] = devices;
        let mut steering = Steering::start(netlink, node_device)?;
        steering.lay(&Plan {
            devices,
            sources: facts::sources(network, snapshot, &settings.node),
            virtual_addresses: facts::cluster_ips(snapshot),
            ..Plan::default()
        })?;
        Ok(Self {
            devices,
            queues,
            steering,
        })
    }
}
