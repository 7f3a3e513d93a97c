//! What both sides of a comparison are: a node that packets go into and come out of, and its connections.

use super::case::Case;
use super::coverage::Coverage;
use super::world::World;
use anyhow::{Context as _, Result};
use control::config::KubeProxyConfig;
use control::snapshot::Snapshot;
use dataplane::tuple::Origin;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A side.
pub(super) trait Side {
    /// Its node.
    fn world(&mut self) -> &mut World;

    /// Says what time it is from now on. Whether the side can be told: the kernel has a clock of its own.
    fn set_time(&mut self, _: Instant) -> bool {
        false
    }

    /// Lets everything that was sent come out.
    fn work(&mut self) -> Result<()>;

    /// Is told what the other side, which went first, made of a first packet.
    fn follow(&mut self, choice: &Choice);

    /// Takes other objects. Returns the flows that it forgot although nothing changed for them.
    fn change(&mut self, snapshot: &Snapshot) -> Result<Vec<Entry>>;

    /// The connections that it tracks.
    fn entries(&mut self) -> Result<Vec<Entry>>;

    /// Those that it would still track after so long, if its clock can be moved.
    fn entries_after(&mut self, _: Duration) -> Result<Option<Vec<Entry>>> {
        Ok(None)
    }

    /// What of it was reached so far, if that can be known.
    fn coverage(&self) -> Coverage {
        Coverage::default()
    }

    /// Where it led the first packet of a connection that went to the node itself, if it still knows.
    fn endpoint(&mut self, choice: &Choice) -> Result<Option<(IpAddr, u16)>> {
        let is_it = |entry: &Entry| {
            let Tuple {
                source,
                source_port,
                destination,
                destination_port,
            } = entry.original;
            entry.protocol == choice.protocol
                && (source, source_port) == choice.source
                && (destination, destination_port) == choice.destination
        };
        let entry = self.entries()?.into_iter().find(is_it);
        Ok(entry.map(|entry| (entry.reply.source, entry.reply.source_port)))
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    /// Else of the server.
    pub(super) from_client: bool,
    /// Of who sent it.
    pub(super) origin: Origin,
    pub(super) protocol: u8,
    pub(super) source: (IpAddr, u16),
    pub(super) destination: (IpAddr, u16),
    /// Where it went; to the node itself when that cannot be seen.
    pub(super) endpoint: Option<(IpAddr, u16)>,
}

/// Addresses and ports of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Tuple {
    pub(super) source: IpAddr,
    pub(super) source_port: u16,
    pub(super) destination: IpAddr,
    pub(super) destination_port: u16,
}

/// A tracked connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub(super) protocol: u8,
    pub(super) original: Tuple,
    pub(super) reply: Tuple,
    /// Of TCP and SCTP.
    pub(super) state: String,
    pub(super) is_replied: bool,
    pub(super) is_assured: bool,
    /// Whole seconds left.
    pub(super) timeout: u64,
    /// It ends at its next packet, because the objects changed.
    pub(super) is_stale: bool,
}

/// Objects as the agent reads them.
pub(super) fn snapshot(objects: &[Value]) -> Result<Snapshot> {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    Snapshot::parse("case", &list.to_string()).context("the objects of the case")
}

/// The configuration of a case.
pub(super) fn config(case: &Case) -> Result<KubeProxyConfig> {
    KubeProxyConfig::parse("case", &case.config.to_string())
        .context("the configuration of the case")
}
