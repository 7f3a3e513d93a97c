//! Work on many items on all processors.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

/// What `work` makes of each item, in their order. Items differ in size, so processors take turns at so many of them;
/// what is no more than one turn is done here and now.
pub(crate) fn on_all_processors<'i, I: Sync, R: Send>(
    items: &'i [I],
    turn: usize,
    work: impl Fn(&'i I) -> R + Sync,
) -> Vec<R> {
    if items.len() <= turn {
        return items.iter().map(work).collect();
    }
    let turns = Mutex::new(items.chunks(turn).enumerate());
    let worker = || {
        let mut done = Vec::new();
        while let Some((number, part)) = turns.lock().ok().and_then(|mut turns| turns.next()) {
            done.push((number, part.iter().map(&work).collect::<Vec<R>>()));
        }
        done
    };
    let mut done = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..processors().min(items.len().div_ceil(turn)))
            .map(|_| scope.spawn(worker))
            .collect();
        let mut done = worker();
        for worker in workers {
            match worker.join() {
                Ok(results) => done.extend(results),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().flat_map(|(_, results)| results).collect()
}

/// Threads that are at work beside what is done on all processors.
static BESIDE: AtomicUsize = AtomicUsize::new(0);

/// Runs `first` on a thread of its own while `second` runs here. What `second` does on all processors leaves one to `first`,
/// for it takes as long as the longer of the two.
pub(crate) fn beside<A: Send, B>(
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B,
) -> (A, B) {
    BESIDE.fetch_add(1, Relaxed);
    let first = || {
        let result = first();
        BESIDE.fetch_sub(1, Relaxed);
        result
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = second();
        match first.join() {
            Ok(first) => (first, second),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// How many are left to who asks; finding out takes some thirty system calls, where the system limits them.
fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let all =
        *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    all.saturating_sub(BESIDE.load(Relaxed)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_items() {
        for count in [0, 1, 7, 8, 9, 1000] {
            let items: Vec<usize> = (0..count).collect();
            let doubled = on_all_processors(&items, 8, |item| 2 * item);
            assert!(doubled.into_iter().eq((0..count).map(|item| 2 * item)));
        }
    }
}
