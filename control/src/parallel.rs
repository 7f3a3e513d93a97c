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
    let turns = items.len().div_ceil(turn);
    let part = |part: &'i [I]| part.iter().map(&work).collect::<Vec<R>>();
    let done = in_turns(items.chunks(turn), turns, part);
    done.into_iter().flatten().collect()
}

/// What `work` makes of each of `turns`, in their order. Turns are made one at a time, by whoever takes the next one, and worked
/// on at the same time. No more than `most` processors take part.
pub(crate) fn in_turns<T, R: Send>(
    turns: impl Iterator<Item = T> + Send,
    most: usize,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    if most <= 1 {
        return turns.map(work).collect();
    }
    let turns = Mutex::new(turns.enumerate());
    let worker = || {
        let mut done = Vec::new();
        while let Some((number, turn)) = turns.lock().ok().and_then(|mut turns| turns.next()) {
            done.push((number, work(turn)));
        }
        done
    };
    let mut done = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..processors().min(most))
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
    done.into_iter().map(|(_, result)| result).collect()
}

/// Threads that are at work beside what is done on all processors.
static BESIDE: AtomicUsize = AtomicUsize::new(0);

/// One of [`BESIDE`], until it is dropped.
struct AtWork;

impl AtWork {
    fn begin() -> Self {
        BESIDE.fetch_add(1, Relaxed);
        Self
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        BESIDE.fetch_sub(1, Relaxed);
    }
}

/// Runs `first` on a thread of its own while `second` runs here. What `second` does on all processors leaves one to `first`,
/// for it takes as long as the longer of the two.
pub(crate) fn beside<A: Send, B>(
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B,
) -> (A, B) {
    let at_work = AtWork::begin();
    let first = || {
        let _until_it_ends = at_work;
        first()
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
    fn both_are_run_and_a_panic_of_either_is_told() {
        assert_eq!(
            beside(|| 1, || on_all_processors(&[2, 3], 1, |item| *item)),
            (1, vec![2, 3])
        );
        let of_first = std::panic::catch_unwind(|| beside(|| panic!("first"), || 2));
        let of_second = std::panic::catch_unwind(|| beside(|| 1, || panic!("second")));
        for (ended, expected) in [
            (of_first.map(|_: ((), _)| ()), "first"),
            (of_second.map(|_: (_, ())| ()), "second"),
        ] {
            assert_eq!(ended.unwrap_err().downcast_ref::<&str>(), Some(&expected));
        }
    }

    #[test]
    fn results_are_in_the_order_of_the_items() {
        for count in [0, 1, 7, 8, 9, 1000] {
            let items: Vec<usize> = (0..count).collect();
            let doubled = on_all_processors(&items, 8, |item| 2 * item);
            assert!(doubled.into_iter().eq((0..count).map(|item| 2 * item)));
        }
    }
}
