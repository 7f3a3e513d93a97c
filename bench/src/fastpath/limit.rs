//! The limit: what no table of this layout can do without. Hash, lookup, write to the entry, checksum, over the same
//! packets; nothing is checked, no state is kept, nothing but the counters of an entry is written.
//!
//! The layout is that of `dataplane/src/conntrack/slots.rs`: buckets of eight slots with 16 bits of the hash each, two
//! buckets per tuple, two tuples per entry of 64 bytes, addresses of IPv6 in a line of their own, an index filled to
//! 70 %. Huge pages and staged batches too.

use super::flows::{Family, Flow, Stage, Traffic, Transport};
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

/// Words of an entry. Of each direction: addresses of IPv4; ports of both directions in one; then counters.
const ADDRESSES: [usize; 2] = [0, 1];
const PORTS: usize = 2;
const PACKETS: usize = 3;
const LAST_SEEN: usize = 4;

/// Both addresses of a packet, as words: one for IPv4, four for IPv6.
type Addresses<const WORDS: usize> = [u64; WORDS];
/// [`Limit`] for IPv4.
pub(super) const V4: usize = 1;
/// [`Limit`] for IPv6.
pub(super) const V6: usize = 4;

/// The table of the bare loop.
pub(super) struct Limit<const WORDS: usize> {
    buckets: Zeroed<Line>,
    entries: Zeroed<Line>,
    /// Of IPv6: addresses of the original, then of the reply direction.
    addresses: Zeroed<Line>,
    hash: ahash::RandomState,
    traffic: Traffic,
    fields: Fields,
}

/// Where the fields begin that are read and rewritten.
struct Fields {
    addresses: usize,
    ports: usize,
    header_checksum: Option<usize>,
    checksum: usize,
}

impl Fields {
    const fn of(traffic: Traffic) -> Self {
        let (addresses, ports, header_checksum) = match traffic.family {
            Family::Ipv4 => (12, 20, Some(10)),
            Family::Ipv6 => (8, 40, None),
        };
        let checksum = match traffic.protocol {
            Transport::Udp => ports + 6,
            Transport::Tcp => ports + 16,
        };
        Self {
            addresses,
            ports,
            header_checksum,
            checksum,
        }
    }
}

impl Line {
    /// A bit for each slot that has the tag, in the upper 16 bits.
    #[inline(always)]
    fn matching(&self, tag: u64) -> u32 {
        let mut matching = 0;
        for (nth, slot) in self.0.iter().enumerate() {
            let has_tag = (slot.load(Relaxed) ^ tag) >> 48 == 0;
            matching |= u32::from(has_tag) << nth;
        }
        matching
    }
}

#[derive(Clone, Copy)]
struct Probe<const WORDS: usize> {
    hash: u64,
    addresses: Addresses<WORDS>,
    ports: u32,
    entry: Option<usize>,
}

impl<const WORDS: usize> Limit<WORDS> {
    /// A table that holds the flows `0..count`. `WORDS` is [`V4`] or [`V6`], as `traffic` is.
    pub(super) fn new(traffic: Traffic, count: u32, seed: u64) -> Self {
        let buckets = (count as usize * 2 * 10 / 7).div_ceil(8).max(2);
        let table = Self {
            buckets: Zeroed::new(buckets),
            entries: Zeroed::new(count as usize),
            addresses: Zeroed::new(if WORDS == V6 { count as usize } else { 0 }),
            hash: ahash::RandomState::with_seeds(seed, 1, 2, 3),
            traffic,
            fields: Fields::of(traffic),
        };
        let mut frame = Frame::new();
        for number in 0..count {
            table.insert(Flow(number), &mut frame);
        }
        table
    }

    fn insert(&self, flow: Flow, frame: &mut Frame) {
        let entry = flow.0 as usize;
        let mut both = 0;
        for direction in [Direction::Original, Direction::Reply] {
            let ends = flow.ends(direction);
            ends.write(self.traffic, direction, Stage::Open, frame);
            let probe = self.probe(frame.packet());
            for (word, &value) in self.words(entry, direction).iter().zip(&probe.addresses) {
                word.store(value, Relaxed);
            }
            both = both << 32 | u64::from(probe.ports);
            self.link(probe.hash, flow.0);
        }
        self.entries[entry].0[PORTS].store(both, Relaxed);
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
    fn hash(&self, addresses: &Addresses<WORDS>, ports: u32) -> u64 {
        let mut hasher = self.hash.build_hasher();
        if WORDS == V6 {
            for pair in addresses.chunks_exact(2) {
                hasher.write_u128(u128::from(pair[0]) << 64 | u128::from(pair[1]));
            }
        } else {
            hasher.write_u64(addresses[0]);
        }
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

    /// The entry in the first slot with the tag of `hash`. Which slot it is nobody can foretell, so all are looked at, as
    /// the path does (`slots/index.rs`); the two must change together.
    #[inline(always)]
    fn candidate(&self, hash: u64) -> Option<usize> {
        let [first, second] = self.places(hash).map(|bucket| &self.buckets[bucket]);
        let matching = first.matching(hash << 48) | second.matching(hash << 48) << 8;
        if matching == 0 {
            return None;
        }
        let nth = matching.trailing_zeros() as usize;
        let bucket = if nth < 8 { first } else { second };
        // A tag of zero is that of empty slots, too.
        (bucket.0[nth % 8].load(Relaxed) as u32 as usize).checked_sub(1)
    }

    /// Where an entry keeps the addresses of packets of a direction.
    #[inline]
    fn words(&self, entry: usize, direction: Direction) -> &[AtomicU64] {
        let nth = direction as usize;
        if WORDS == V6 {
            &self.addresses[entry].0[nth * V6..][..V6]
        } else {
            &self.entries[entry].0[ADDRESSES[nth]..][..V4]
        }
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
            ends.write(self.traffic, direction, Stage::Open, frame);
        }
        let empty = Probe {
            hash: 0,
            addresses: [0; WORDS],
            ports: 0,
            entry: None,
        };
        let mut probes = vec![empty; batch];
        let start = Instant::now();
        for frames in frames.chunks_mut(batch) {
            self.batch(frames, &mut probes, now);
        }
        let elapsed = start.elapsed();
        black_box(frames);
        elapsed
    }

    fn batch(&self, frames: &mut [Frame], probes: &mut [Probe<WORDS>], now: u64) {
        let probes = &mut probes[..frames.len()];
        for (probe, frame) in probes.iter_mut().zip(&*frames) {
            *probe = self.probe(frame.packet());
            for bucket in self.places(probe.hash) {
                memory::prefetch(&self.buckets[bucket]);
            }
        }
        for probe in &mut *probes {
            probe.entry = self.candidate(probe.hash);
            if let Some(entry) = probe.entry {
                memory::prefetch(&self.entries[entry]);
                if WORDS == V6 {
                    memory::prefetch(&self.addresses[entry]);
                }
            }
        }
        for (probe, frame) in probes.iter().zip(frames) {
            if let Some(entry) = probe.entry {
                self.rewrite(entry, probe, frame.packet_mut(), now);
            }
        }
    }

    #[inline]
    fn probe(&self, packet: &[u8]) -> Probe<WORDS> {
        let word = |nth| u64::from_be_bytes(field(packet, self.fields.addresses + 8 * nth));
        let addresses = std::array::from_fn(word);
        let ports = u32::from_be_bytes(field(packet, self.fields.ports));
        Probe {
            hash: self.hash(&addresses, ports),
            addresses,
            ports,
            entry: None,
        }
    }

    /// Counts the packet in its entry and gives it the addresses and ports of the other direction, turned around.
    #[inline]
    fn rewrite(&self, number: usize, probe: &Probe<WORDS>, packet: &mut [u8], now: u64) {
        let words = |direction| {
            let words = self.words(number, direction);
            std::array::from_fn(|nth| words[nth].load(Relaxed))
        };
        let is_reply = words(Direction::Reply) == probe.addresses;
        let other: Addresses<WORDS> = turned(words(if is_reply {
            Direction::Original
        } else {
            Direction::Reply
        }));
        let entry = &self.entries[number].0;
        let both = entry[PORTS].load(Relaxed);
        let ports = (if is_reply { both >> 32 } else { both } as u32).rotate_left(16);
        entry[PACKETS].store(entry[PACKETS].load(Relaxed) + 1, Relaxed);
        entry[LAST_SEEN].store(now, Relaxed);
        let changes = probe.addresses.into_iter().zip(other);
        let addresses = changes.fold(Change::default(), |all, (old, new)| {
            all.and(difference(old, new))
        });
        let transport = addresses.and(difference(u64::from(probe.ports), u64::from(ports)));
        for (nth, word) in other.into_iter().enumerate() {
            packet[self.fields.addresses + 8 * nth..][..8].copy_from_slice(&word.to_be_bytes());
        }
        packet[self.fields.ports..][..4].copy_from_slice(&ports.to_be_bytes());
        if let Some(at) = self.fields.header_checksum {
            mend(packet, at, addresses);
        }
        mend(packet, self.fields.checksum, transport);
    }
}

/// Source and destination exchanged.
#[inline]
fn turned<const WORDS: usize>(mut addresses: Addresses<WORDS>) -> Addresses<WORDS> {
    if WORDS == V6 {
        addresses.rotate_left(WORDS / 2);
    } else {
        addresses[0] = addresses[0].rotate_left(32);
    }
    addresses
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
