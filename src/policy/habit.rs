//! Whether it pays to wait a moment for somebody.
//!
//! Runs in: frontend, request threads.  Trusts: its caller.  Owns: two small numbers, for one peer or for all.
//! Never: gives up for good.

use std::sync::atomic::{AtomicU8, Ordering};

/// Whether it pays to wait for somebody: each time in vain doubles the number of times that nobody waits.
#[derive(Debug, Default)]
pub struct Habit {
    missed: AtomicU8,
    skip: AtomicU8,
}

impl Habit {
    /// The most times without another try.
    const MOST_SKIPPED: u8 = 64;

    pub const fn new() -> Self {
        Self { missed: AtomicU8::new(0), skip: AtomicU8::new(0) }
    }

    pub fn worth_a_wait(&self) -> bool {
        let skip = self.skip.load(Ordering::Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Ordering::Relaxed);
        }
        skip == 0
    }

    pub fn learn(&self, came: bool) {
        let missed = if came { 0 } else { self.missed.load(Ordering::Relaxed).saturating_add(1) };
        self.missed.store(missed, Ordering::Relaxed);
        let skip = 1_u8.checked_shl(u32::from(missed)).map_or(Self::MOST_SKIPPED, |n| n - 1);
        self.skip.store(skip.min(Self::MOST_SKIPPED), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_come_is_waited_for_ever_less_often() {
        let habit = Habit::new();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let mut pause = 0;
            while !habit.worth_a_wait() {
                pause += 1;
            }
            pauses.push(pause);
            habit.learn(false);
        }
        assert_eq!(pauses, [0, 1, 3, 7, 15, 31, 63, 64, 64]);
        assert!(!habit.worth_a_wait());
        habit.learn(true);
        assert!(habit.worth_a_wait());
        habit.learn(true);
        assert!(habit.worth_a_wait());
    }
}
