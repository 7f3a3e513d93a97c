//! Waiting until nobody else uses the processor. A virtual processor is often half of a core, whose other half is
//! somebody else's: what they do there slows down a program by up to a half, the more the better it uses the core. That is
//! seen in no load average, but in a loop that keeps the core busy.
//!
//! Invariant: what is measured is never thrown away or measured again. A round that does not find the processor calm in
//! time is measured all the same, and counted.

use serde::Serialize;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How calm it was.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Waited {
    /// Time spent on waiting.
    pub seconds: f64,
    /// Rounds that began although others used the processor.
    pub rounds_disturbed: usize,
}

/// Waits, and keeps account of it.
pub(super) struct Calm {
    /// What the loop takes at least.
    undisturbed: Duration,
    patience: Duration,
    waited: Duration,
    rounds_disturbed: usize,
}

impl Calm {
    /// Waits for at most `patience` in all.
    pub(super) fn new(patience: Duration) -> Self {
        const TRIES: usize = 200;
        let undisturbed = (0..TRIES).map(|_| busy_loop()).min();
        Self {
            undisturbed: undisturbed.unwrap_or_default(),
            patience,
            waited: Duration::ZERO,
            rounds_disturbed: 0,
        }
    }

    /// Before each round.
    pub(super) fn wait(&mut self) {
        const PAUSE: Duration = Duration::from_millis(20);
        while !self.is_calm() {
            if self.waited >= self.patience {
                self.rounds_disturbed += 1;
                return;
            }
            std::thread::sleep(PAUSE);
            self.waited += PAUSE;
        }
    }

    /// Of three loops the fastest counts: one may be interrupted.
    fn is_calm(&mut self) -> bool {
        let took = busy_loop().min(busy_loop()).min(busy_loop());
        self.undisturbed = self.undisturbed.min(took);
        took < self.undisturbed + self.undisturbed / 8
    }

    pub(super) fn waited(&self) -> Waited {
        Waited {
            seconds: self.waited.as_secs_f64(),
            rounds_disturbed: self.rounds_disturbed,
        }
    }
}

/// Some 50 us in which a core has as much to do at once as it can.
fn busy_loop() -> Duration {
    let mut lanes = black_box([1_u64, 2, 3, 4, 5, 6]);
    let start = Instant::now();
    for turn in 0..20_000 {
        for lane in &mut lanes {
            *lane = lane.rotate_left(5).wrapping_add(turn);
        }
    }
    let took = start.elapsed();
    black_box(lanes);
    took
}
