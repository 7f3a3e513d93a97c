//! Which source ports are in use towards a destination, as bitmaps for the few destinations that are nearly full.
//!
//! A pool is of one reply tuple without its port: (server, port, masquerade address, protocol). It is opened when
//! random probing has failed often, and from then on the table keeps it: a bit is set before an entry goes in, and
//! cleared when one has gone.
//!
//! Invariants: the table decides, the bits only guide. A bit may be clear although its port is taken (the caller checks),
//! but it does not stay set for a port that is free: whoever sets it without an entry of its own (a caller that found the
//! port taken) looks once more afterwards, and whoever removes an entry clears the bit after the entry is gone. So a new pool
//! begins with no bit set, and learns as it is asked.

use crate::tuple::{Timestamp, Tuple};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};

/// Destinations that can be nearly full at one time; 8 KiB each.
const POOLS: usize = if cfg!(any(loom, shuttle)) {
    PLACES
} else {
    128
};
/// A pool lies in one of so many places, by the hash of its key.
const PLACES: usize = 4;
/// Ports that one stretch has. See [`Pool::release_expired`].
const STRETCH: u16 = 1024;
/// Stretches that all ports are.
const STRETCHES: u64 = 65_536 / STRETCH as u64;
/// A stretch's turn, in nanoseconds: all ports have theirs within 200 ms, which is how long a port whose flow has expired may be
/// taken for one in use where all are.
const TURN: u64 = 200_000_000 / STRETCHES;

/// The bits of all ports of one address and protocol.
#[derive(Debug)]
pub(crate) struct Bitmap([AtomicU64; 1024]);

impl Bitmap {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 1024])
    }

    /// Ports `64 * index` to `64 * index + 63`.
    #[inline]
    pub(crate) fn word(&self, index: usize) -> u64 {
        self.0[index].load(Relaxed)
    }

    #[inline]
    pub(crate) fn contains(&self, port: u16) -> bool {
        self.word(usize::from(port >> 6)) >> (port & 63) & 1 != 0
    }

    pub(crate) fn insert(&self, port: u16) {
        self.0[usize::from(port >> 6)].fetch_or(1 << (port & 63), SeqCst);
    }

    pub(crate) fn remove(&self, port: u16) {
        self.0[usize::from(port >> 6)].fetch_and(!(1 << (port & 63)), SeqCst);
    }

    pub(crate) fn set_words(&self, words: impl IntoIterator<Item = u64>) {
        for (word, bits) in self.0.iter().zip(words) {
            word.store(bits, Relaxed);
        }
    }
}

pub(super) struct Pools {
    pools: Box<[Pool]>,
    /// Whether any pool was ever opened: most tables never do, and then pay nothing.
    any: AtomicBool,
    opening: AtomicBool,
    hash: ahash::RandomState,
}

struct Pool {
    /// Keyed hash of the reply tuple without its port; zero for none.
    key: AtomicU64,
    /// The last turn whose stretch was looked at for expired entries, counted from time zero.
    turn: AtomicU64,
    taken: Bitmap,
}

/// Which ports to search for a reply tuple: upwards from `start`, around inside `range`.
pub(crate) struct PortSearch<'t> {
    pub(crate) reply: &'t Tuple,
    pub(crate) range: &'t RangeInclusive<u16>,
    pub(crate) start: u16,
}

impl Pools {
    pub(super) fn new(hash: ahash::RandomState) -> Self {
        let pool = || Pool {
            key: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            taken: Bitmap::new(),
        };
        Self {
            pools: (0..POOLS).map(|_| pool()).collect(),
            any: AtomicBool::new(false),
            opening: AtomicBool::new(false),
            hash,
        }
    }

    /// An entry with this reply tuple is about to go in.
    pub(super) fn take(&self, reply: &Tuple) {
        if self.any.load(SeqCst)
            && let Some(pool) = self.pool(self.key(reply))
        {
            pool.taken.insert(*reply.leased_port());
        }
    }

    /// An entry with this reply tuple has gone, or did not go in.
    pub(super) fn give_back(&self, reply: &Tuple) {
        if self.any.load(SeqCst)
            && let Some(pool) = self.pool(self.key(reply))
        {
            pool.taken.remove(*reply.leased_port());
        }
    }

    fn key(&self, reply: &Tuple) -> u64 {
        let mut reply = *reply;
        *reply.leased_port_mut() = 0;
        self.hash.hash_one(reply) | 1
    }

    fn places(&self, key: u64) -> &[Pool] {
        let first = (key >> 32) as usize % (POOLS / PLACES) * PLACES;
        &self.pools[first..first + PLACES]
    }

    fn pool(&self, key: u64) -> Option<&Pool> {
        self.places(key)
            .iter()
            .find(|pool| pool.key.load(SeqCst) == key)
    }

    /// Opens a pool for this reply tuple, in place of another one when there is no room. False when another thread is
    /// opening one.
    pub(super) fn open(&self, reply: &Tuple, now: Timestamp) -> bool {
        if self.opening.swap(true, SeqCst) {
            return false;
        }
        let key = self.key(reply);
        let places = self.places(key);
        let empty = places.iter().find(|pool| pool.key.load(Relaxed) == 0);
        let oldest = || places.iter().min_by_key(|pool| pool.turn.load(Relaxed));
        if let (None, Some(pool)) = (self.pool(key), empty.or_else(oldest)) {
            pool.key.store(0, SeqCst);
            pool.taken.set_words([0; 1024]);
            pool.turn.store(now.0 / TURN, Relaxed);
            pool.key.store(key, SeqCst);
            self.any.store(true, SeqCst);
        }
        self.opening.store(false, SeqCst);
        true
    }

    /// A free port; those in `reserved` are not. `None`: there is no pool for this tuple. `Some(None)`: no port is free.
    pub(super) fn find(
        &self,
        search: &PortSearch<'_>,
        reserved: Option<&Bitmap>,
        now: Timestamp,
        is_free: &impl Fn(&Tuple) -> bool,
    ) -> Option<Option<u16>> {
        let pool = self
            .any
            .load(Relaxed)
            .then(|| self.pool(self.key(search.reply)))??;
        let find = || pool.find(search, reserved, is_free);
        let release = || pool.release_expired(search.reply, search.range, now, is_free);
        let after_release = || std::iter::from_fn(|| release().then(find)).flatten().next();
        let port = find().or_else(after_release);
        Some(port)
    }
}

impl Pool {
    fn find(
        &self,
        search: &PortSearch<'_>,
        reserved: Option<&Bitmap>,
        is_free: &impl Fn(&Tuple) -> bool,
    ) -> Option<u16> {
        let &PortSearch { range, start, .. } = search;
        let mut candidate = *search.reply;
        let above = start..=*range.end();
        let below = *range.start()..=start;
        [above, below].into_iter().find_map(|ports| {
            free_bits(&self.taken, reserved, ports).find(|&port| {
                *candidate.leased_port_mut() = port;
                self.check(&candidate, is_free)
            })
        })
    }

    /// Whether the tuple is free; when it is not, its bit says so from now on.
    fn check(&self, candidate: &Tuple, is_free: &impl Fn(&Tuple) -> bool) -> bool {
        if is_free(candidate) {
            return true;
        }
        let port = *candidate.leased_port();
        self.taken.insert(port);
        fence(SeqCst);
        let is_free_after_all = is_free(candidate);
        if is_free_after_all {
            self.taken.remove(port);
        }
        is_free_after_all
    }

    /// All bits of `range` are set, but some may be of entries that have expired and were not swept yet. Clears such in
    /// the stretches whose turns have come, until a stretch has any: who asks often does not make other flows wait the
    /// milliseconds that looking at all ports takes. Who asks after a pause of 200 ms still does. False when there was none.
    fn release_expired(
        &self,
        reply: &Tuple,
        range: &RangeInclusive<u16>,
        now: Timestamp,
        is_free: &impl Fn(&Tuple) -> bool,
    ) -> bool {
        let newest = now.0 / TURN;
        let last = self.turn.load(Relaxed);
        let due = last.max(newest.saturating_sub(STRETCHES)) + 1..=newest;
        let mut candidate = *reply;
        due.into_iter().any(|turn| {
            let first = (turn % STRETCHES) as u16 * STRETCH;
            let ports = first.max(*range.start())..=(first + (STRETCH - 1)).min(*range.end());
            let released = ports.filter(|&port| {
                *candidate.leased_port_mut() = port;
                let is_free = self.taken.contains(port) && is_free(&candidate);
                if is_free {
                    self.taken.remove(port);
                }
                is_free
            });
            let any = released.count() > 0;
            // Not before: another thread that asks meanwhile would take ports for taken that nobody looked at.
            self.turn.fetch_max(turn, Relaxed);
            any
        })
    }
}

/// Ports in `ports` with neither bit set, in order.
fn free_bits<'b>(
    taken: &'b Bitmap,
    reserved: Option<&'b Bitmap>,
    ports: RangeInclusive<u16>,
) -> impl Iterator<Item = u16> + 'b {
    let (first, last) = (usize::from(*ports.start()), usize::from(*ports.end()));
    (first / 64..=last / 64).flat_map(move |index| {
        let mut free = !(taken.word(index) | reserved.map_or(0, |reserved| reserved.word(index)));
        if index == first / 64 {
            free &= u64::MAX << (first % 64);
        }
        if index == last / 64 {
            free &= u64::MAX >> (63 - last % 64);
        }
        std::iter::from_fn(move || {
            let bit = (free != 0).then(|| free.trailing_zeros())?;
            free &= free - 1;
            Some((index * 64) as u16 + bit as u16)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every range, against the obvious way.
    #[test]
    fn free_bits_are_the_zeros_of_the_range() {
        let mut random = fastrand::Rng::with_seed(1);
        let (taken, reserved) = (Bitmap::new(), Bitmap::new());
        taken.set_words(std::iter::repeat_with(|| random.u64(..) | random.u64(..)).take(1024));
        reserved.set_words(std::iter::repeat_with(|| random.u64(..) & random.u64(..)).take(1024));
        for _ in 0..200 {
            let first = random.u16(..);
            let last = random.u16(first..);
            let found: Vec<u16> = free_bits(&taken, Some(&reserved), first..=last).collect();
            let expected: Vec<u16> = (first..=last)
                .filter(|&p| !taken.contains(p) && !reserved.contains(p))
                .collect();
            assert_eq!(found, expected, "{first}..={last}");
        }
        assert_eq!(
            free_bits(&Bitmap::new(), None, 0..=u16::MAX).count(),
            65_536
        );
    }
}
