//! The TUN devices of a node, and who receives from which queue.

use super::steering::DEVICES;
use super::workers::Source;
use super::{Settings, facts, links};
use crate::netlink::Netlink;
use anyhow::{Context as _, Result};
use dataplane::sys::node_errors::NodeErrors;
use dataplane::sys::queue_choice::{Keys, QueueChoice};
use dataplane::sys::tun::{self, Queue};
use dataplane::tuple::Origin;

/// What each worker receives from.
pub(super) type Queues = Vec<Vec<(Origin, Source)>>;

/// Makes the three devices. Their indexes, and what worker `i` receives from as element `i`.
pub(super) fn create(netlink: &mut Netlink, settings: &Settings) -> Result<([u32; 3], Queues)> {
    let origins = [Origin::Pod, Origin::Outside, Origin::Node];
    let mut indexes = [0; 3];
    let mut workers = Queues::new();
    workers.resize_with(settings.workers, Vec::new);
    let choice = queue_choice(settings);
    let each = choice.as_ref().map_or(1, QueueChoice::queues_per_worker);
    for (position, (name, origin)) in DEVICES.iter().zip(origins).enumerate() {
        let queues = tun::create(name, settings.workers * each, settings.offloads);
        let queues = queues.map_err(|error| facts::cannot_create(name, error))?;
        if let (Some(choice), Some(first)) = (&choice, queues.first()) {
            let chosen = choice.attach_to(first);
            chosen.with_context(|| format!("cannot let a program choose the queues of {name}"))?;
        }
        if let (Origin::Outside, Some(first)) = (origin, workers.first_mut()) {
            let errors = queues.first().and_then(node_errors);
            first.extend(errors.map(|errors| (origin, errors)));
        }
        for (number, queue) in queues.into_iter().enumerate() {
            workers[number / each].push((origin, Source::Tun(queue)));
        }
        indexes[position] = netlink.link_index(name)?;
        let mtu = links::device_mtu(netlink, settings, origin)?;
        netlink.set_mtu(indexes[position], mtu)?;
        facts::prepare_device(name)?;
        // A TUN device queues packets itself. The kernel would make 256 queues more, as many as such a device may ever have.
        if let Err(error) = netlink.set_no_queue(indexes[position]) {
            tracing::debug!("{name} has queues that it does not need: {error}");
        }
        netlink.set_up(indexes[position], true)?;
    }
    Ok((indexes, workers))
}

/// Deletes the devices, while workers end. They would go with their last queues, but the kernel waits a grace period for
/// each queue that is closed of a device that is still there.
pub(super) fn delete(netlink: &mut Netlink, indexes: [u32; 3]) {
    for index in indexes {
        if let Err(error) = netlink.delete_link(index) {
            tracing::debug!("a device goes when its queues are closed: {error}");
        }
    }
}

/// Who floods a device gets queues of his own, where the kernel lets a program choose.
fn queue_choice(settings: &Settings) -> Option<QueueChoice> {
    let (random, mut number) = (ahash::RandomState::new(), 0);
    let keys = Keys::from_numbers(|| {
        number += 1;
        random.hash_one(number)
    });
    QueueChoice::load(settings.workers, &keys)
        .inspect_err(|error| {
            tracing::warn!(
                "one queue for all, so that floods take the room of others: no eBPF: {error}"
            );
        })
        .ok()
}

/// What the kernel keeps of ICMPv6; none on a machine without IPv6.
fn node_errors(device: &Queue) -> Option<Source> {
    let opened = device.duplicate().and_then(NodeErrors::open);
    opened
        .inspect_err(|error| tracing::warn!("no ICMPv6 errors to the node itself: {error}"))
        .ok()
        .map(Source::Errors)
}
