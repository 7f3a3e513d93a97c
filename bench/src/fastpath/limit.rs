//! The limit: what no table of this layout can do without. Hash, lookup, write to the entry, checksum, over the same
//! packets; nothing is checked, no state is kept, nothing but the counters of an entry is written.
//!
//! The layout is that of `dataplane/src/conntrack/slots.rs`: buckets of eight slots with 16 bits of the hash each, two
//! buckets per tuple, two tuples per entry of 64 bytes, an index filled to 70 %. Huge pages and staged batches too.

use super::flows::{Flow, Stage, Traffic};
use dataplane::checksum::Change;
use dataplane::frame::Frame;
use dataplane::sys::memory::{self, Zeroed};
use dataplane::tuple::Direction;
use std::hash::{BuildHasher, Hasher};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use zerocopy::FromZeros;

#[derive(FromZeros)]
#[repr(C, align(64))]
struct Line([AtomicU64; 8]);

/// Words of an entry. Of each direction: addresses; ports of both directions in one; then counters.
const ADDRESSES: [usize; 2] = [0, 1];
const PORTS: usize = 2;
const PACKETS: usize = 3;
const LAST_SEEN: usize = 4;

/// The table of the bare loop.
pub(super) struct Limit {
    buckets: Zeroed<Line>,
    entries: Zeroed<Line>,
    hash: ahash::RandomState,
}

#[derive(Clone, Copy, Default)]
struct Probe {
    hash: u64,
    addresses: u64,
    ports: u32,
}

impl Limit {
    /// A table that holds the flows `0..count`.
    pub(super) fn new(count: u32, seed: u64) -> Self {
        let buckets = (count as usize * 2 * 10 / 7).div_ceil(8).max(2);
        let table = Self {
            buckets: Zeroed::new(buckets),
            entries: Zeroed::new(count as usize),
            hash: ahash::RandomState::with_seeds(seed, 1, 2, 3),
        };
        for number in 0..count {
            table.insert(Flow(number));
        }
        table
    }

    fn insert(&self, flow: Flow) {
        let entry = &self.entries[flow.0 as usize].0;
        let mut both = 0;
        for direction in [Direction::Original, Direction::Reply] {
            let [(source, source_port), (destination, destination_port)] = flow.ends(direction).0;
            let addresses = u64::from(source) << 32 | u64::from(destination);
            let ports = u32::from(source_port) << 16 | u32::from(destination_port);
            entry[ADDRESSES[direction as usize]].store(addresses, Relaxed);
            both = both << 32 | u64::from(ports);
            self.link(self.hash(addresses, ports), flow.0);
        }
        entry[PORTS].store(both, Relaxed);
    }

    fn link(&self, hash: u64, number: u32) {
        let empty = |bucket: usize| {
            self.buckets[bucket]
                .0
                .iter()
                .filter(|slot| slot.load(Relaxed) == 0)
                .count()
        };
        let [first, second] = self.places(hash);
        let bucket = if empty(first) > 4 || empty(first) >= empty(second) {
            first
        } else {
            second
        };
        let free = self.buckets[bucket]
            .0
            .iter()
            .find(|slot| slot.load(Relaxed) == 0);
        // Both buckets full is rare enough at 70 %; the lookup then finds nothing, which costs no less.
        if let Some(slot) = free {
            slot.store((hash << 48) | (u64::from(number) + 1), Relaxed);
        }
    }

    #[inline]
    fn hash(&self, addresses: u64, ports: u32) -> u64 {
        let mut hasher = self.hash.build_hasher();
        hasher.write_u64(addresses);
        hasher.write_u64(u64::from(ports) << 16 | 17);
        hasher.finish()
    }

    #[inline]
    fn places(&self, hash: u64) -> [usize; 2] {
        let reduce = |hash: u64| ((u128::from(hash) * self.buckets.len() as u128) >> 64) as usize;
        [
            reduce(hash),
            reduce(hash.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        ]
    }

    /// The entry in a slot with the tag of `hash`.
    #[inline]
    fn candidate(&self, hash: u64) -> Option<&Line> {
        self.places(hash).into_iter().find_map(|bucket| {
            let slots = &self.buckets[bucket].0;
            let slot = slots
                .iter()
                .map(|slot| slot.load(Relaxed))
                .find(|slot| slot >> 48 == hash & 0xffff && *slot != 0)?;
            self.entries.get(slot as u32 as usize - 1)
        })
    }

    /// Handles prepared frames in batches; the time that it took.
    pub(super) fn handle(
        &self,
        packets: impl Iterator<Item = (Flow, Direction)>,
        frames: &mut [Frame],
        batch: usize,
        now: u64,
    ) -> Duration {
        for (frame, (flow, direction)) in frames.iter_mut().zip(packets) {
            let ends = flow.ends(direction);
            ends.write(Traffic::UDP_V4, (direction, Stage::Open), frame);
        }
        let mut probes = vec![Probe::default(); batch];
        let start = Instant::now();
        for frames in frames.chunks_mut(batch) {
            self.batch(frames, &mut probes, now);
        }
        let elapsed = start.elapsed();
        black_box(frames);
        elapsed
    }

    fn batch(&self, frames: &mut [Frame], probes: &mut [Probe], now: u64) {
        for (probe, frame) in probes.iter_mut().zip(&*frames) {
            *probe = self.probe(frame.packet());
            for bucket in self.places(probe.hash) {
                memory::prefetch(&self.buckets[bucket]);
            }
        }
        if frames.len() > 1 {
            for probe in &probes[..frames.len()] {
                if let Some(entry) = self.candidate(probe.hash) {
                    memory::prefetch(entry);
                }
            }
        }
        for (probe, frame) in probes.iter().zip(frames) {
            if let Some(entry) = self.candidate(probe.hash) {
                rewrite(entry, probe, frame.packet_mut(), now);
            }
        }
    }

    #[inline]
    fn probe(&self, packet: &[u8]) -> Probe {
        let addresses = u64::from_be_bytes(field(packet, 12));
        let ports = u32::from_be_bytes(field(packet, 20));
        Probe {
            hash: self.hash(addresses, ports),
            addresses,
            ports,
        }
    }
}

/// Counts the packet in its entry and gives it the addresses and ports of the other direction, turned around.
#[inline]
fn rewrite(entry: &Line, probe: &Probe, packet: &mut [u8], now: u64) {
    let entry = &entry.0;
    let is_reply = entry[ADDRESSES[1]].load(Relaxed) == probe.addresses;
    let other = entry[ADDRESSES[usize::from(!is_reply)]]
        .load(Relaxed)
        .rotate_left(32);
    let both = entry[PORTS].load(Relaxed);
    let ports = (if is_reply { both >> 32 } else { both } as u32).rotate_left(16);
    entry[PACKETS].store(entry[PACKETS].load(Relaxed) + 1, Relaxed);
    entry[LAST_SEEN].store(now, Relaxed);
    let addresses = difference(probe.addresses, other);
    let transport = addresses.and(difference(u64::from(probe.ports), u64::from(ports)));
    packet[12..20].copy_from_slice(&other.to_be_bytes());
    packet[20..24].copy_from_slice(&ports.to_be_bytes());
    mend(packet, 10, addresses);
    mend(packet, 26, transport);
}

#[inline]
fn difference(old: u64, new: u64) -> Change {
    Change::word(fold(old), fold(new))
}

#[inline]
const fn fold(words: u64) -> u16 {
    let half = (words >> 32) + (words & 0xffff_ffff);
    let quarter = (half >> 16) + (half & 0xffff);
    let eighth = (quarter >> 16) + (quarter & 0xffff);
    ((eighth >> 16) + (eighth & 0xffff)) as u16
}

#[inline]
fn mend(packet: &mut [u8], at: usize, change: Change) {
    let old = u16::from_be_bytes(field(packet, at));
    packet[at..at + 2].copy_from_slice(&change.apply(old).to_be_bytes());
}

#[inline]
fn field<const N: usize>(packet: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&packet[at..at + N]);
    bytes
}
