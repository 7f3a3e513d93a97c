//! The atomics of the table: of the standard library, or of the model checker that explores it.

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(shuttle)]
pub(super) use shuttle::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(any(loom, shuttle)))]
pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Lets another thread go on, where one has to wait for what it does.
pub(super) fn pause(round: u32) {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
    // The other side holds an entry for nanoseconds, unless the scheduler took its CPU away.
    #[cfg(not(any(loom, shuttle)))]
    if round < 64 {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
    let _ = round;
}
