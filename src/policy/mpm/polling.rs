//! How many threads of a process wait for events.
//!
//! Runs in: frontend, the thread that looks after time.  Trusts: nothing.  Owns: the number.
//! Never: does I/O, reads a clock.
//!
//! The kernel wakes a waiting thread for each event, though a busy one may come for it a moment later, and a wake-up
//! costs as much as a fifth of a small request. So few threads wait, and the others rest. A thread may stay away for
//! long, with a module that waits for a backend, say: then others take its place, after two looks at the latest.

/// Threads that wait while there is time.
const QUIET: u32 = 2;
/// Looks in a row at which nobody waited, and events came and went: the process is busy.
const BUSY_LOOKS: u32 = 2;
/// Looks in a row at which somebody waited: it has time again.
const QUIET_LOOKS: u32 = 25;
/// The same, after which no look is needed until nobody waits.
const REST_LOOKS: u32 = 3;
/// Looks in a row at a thread that runs, after which it is not waited for any more.
const RUN_LOOKS: u32 = 10;
/// Looks without a standstill after which half of the threads added for standstills are spared.
const CALM_LOOKS: u32 = 128;

/// What a look finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// A thread waits for events.
    pub attended: bool,
    /// Number of events taken so far; it wraps.
    pub taken: u32,
    /// A thread rests, and could be called. While none does, the others need not be looked at.
    pub spare: bool,
    /// An event could be taken.
    pub pending: bool,
    /// A thread that is busy runs, or would if it had a processor: it comes back when it has done its work, and others
    /// would only take the processor from it.
    pub runs: bool,
}

/// The number, and what it was found from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Polling {
    /// `ThreadsPerChild`.
    threads: u32,
    /// This process's share of the processors.
    share: u32,
    busy: bool,
    /// Threads beyond the usual number, since others stayed away.
    added: u32,
    taken: u32,
    running: u32,
    /// Looks in a row of the one kind and the other.
    unattended: u32,
    attended: u32,
    calm: u32,
}

impl Polling {
    pub fn new(threads: u32) -> Self {
        Self { threads, share: QUIET, busy: false, added: 0, taken: 0, running: 0, unattended: 0, attended: 0, calm: 0 }
    }

    /// Processors and processes of the server have been counted.
    pub fn counted(&mut self, processors: u32, processes: u32) {
        self.share = processors.div_ceil(processes.max(1)).max(1);
    }

    /// So many may wait.
    pub fn most(&self) -> u32 {
        let usual = if self.busy { self.share } else { QUIET };
        usual.saturating_add(self.added).clamp(1, self.threads.max(1))
    }

    /// Whether no event was taken since the last look.
    pub fn is_still(&self, taken: u32) -> bool {
        self.taken == taken
    }

    /// Takes a look. Answers how many threads that rest are to wait now.
    pub fn look(&mut self, seen: Seen) -> u32 {
        let before = self.most();
        let still = !seen.attended && seen.spare && seen.pending && self.is_still(seen.taken);
        self.running = if still && seen.runs { self.running + 1 } else { 0 };
        let stands_still = still && (!seen.runs || self.running >= RUN_LOOKS);
        self.taken = seen.taken;
        if seen.attended {
            (self.attended, self.unattended) = (self.attended.saturating_add(1), 0);
        } else {
            (self.attended, self.unattended) = (0, self.unattended.saturating_add(1));
        }
        if stands_still {
            self.calm = 0;
            self.added += before.min(self.threads.saturating_sub(before));
            // Also where that is the number already: all of them are away.
            return self.most().saturating_sub(before).max(1);
        }
        // While all are away it cannot be seen how many are needed.
        self.calm += u32::from(seen.attended || seen.spare);
        if self.calm >= CALM_LOOKS {
            self.calm = 0;
            self.added /= 2;
        }
        if self.unattended >= BUSY_LOOKS {
            self.busy = true;
        } else if self.attended >= QUIET_LOOKS {
            self.busy = false;
        }
        self.most().saturating_sub(before)
    }

    /// Somebody has waited for a while: no look is needed until nobody does. While more wait than usual, that may never
    /// be, and only looks bring their number down.
    pub fn may_rest(&self) -> bool {
        self.attended >= REST_LOOKS && !self.busy && self.added == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn polling() -> Polling {
        let mut polling = Polling::new(25);
        polling.counted(2, 2);
        polling
    }

    /// Looks at a process whose threads take events, and never wait.
    fn keep_busy(polling: &mut Polling, looks: u32) -> u32 {
        let seen = |taken| Seen { attended: false, taken, spare: true, pending: true, runs: true };
        (0..looks).map(|_| polling.look(seen(polling.taken + 1))).sum()
    }

    fn keep_quiet(polling: &mut Polling, looks: u32) -> u32 {
        let seen = |taken| Seen { attended: true, taken, spare: true, pending: false, runs: false };
        (0..looks).map(|_| polling.look(seen(polling.taken + 1))).sum()
    }

    fn stand_still(polling: &mut Polling) -> u32 {
        polling.look(Seen { attended: false, taken: polling.taken, spare: true, pending: true, runs: false })
    }

    #[test]
    fn a_busy_process_waits_with_its_share_of_the_processors() {
        for (processors, processes, share) in [(2, 2, 1_u32), (8, 2, 4), (8, 3, 3), (1, 5, 1), (4, 0, 4)] {
            let mut polling = Polling::new(25);
            polling.counted(processors, processes);
            assert_eq!(polling.most(), QUIET);
            let called = keep_busy(&mut polling, BUSY_LOOKS);
            assert_eq!((polling.most(), called), (share, share.saturating_sub(QUIET)), "{processors}/{processes}");
        }
    }

    #[test]
    fn when_it_is_quiet_again_one_more_waits() {
        let mut polling = polling();
        keep_busy(&mut polling, BUSY_LOOKS);
        assert_eq!(polling.most(), 1);
        assert_eq!(keep_quiet(&mut polling, QUIET_LOOKS - 1), 0);
        assert!(!polling.may_rest(), "the other one is to be called in time");
        assert_eq!(keep_quiet(&mut polling, 1), 1);
        assert_eq!(polling.most(), QUIET);
        assert!(polling.may_rest());
        keep_busy(&mut polling, 1);
        keep_quiet(&mut polling, REST_LOOKS - 1);
        assert!(!polling.may_rest());
    }

    #[test]
    fn a_short_rush_changes_nothing() {
        let mut polling = polling();
        for _ in 0..100 {
            keep_busy(&mut polling, BUSY_LOOKS - 1);
            keep_quiet(&mut polling, 1);
        }
        assert_eq!(polling.most(), QUIET);
    }

    #[test]
    fn at_a_standstill_others_come_each_time_twice_as_many() {
        let mut polling = polling();
        let called: Vec<u32> = (0..6).map(|_| stand_still(&mut polling)).collect();
        assert_eq!(called, [2, 4, 8, 9, 1, 1]);
        assert_eq!(polling.most(), 25);
    }

    #[test]
    fn who_has_work_is_waited_for_but_not_for_ever() {
        let mut polling = Polling::new(25);
        polling.counted(2, 1);
        let mut look = |runs| polling.look(Seen { attended: false, taken: 0, spare: true, pending: true, runs });
        assert!((1..RUN_LOOKS).all(|_| look(true) == 0));
        assert_eq!(look(false), 2, "it has begun to wait");
        assert!((1..RUN_LOOKS).all(|_| look(true) == 0));
        assert_eq!(look(true), 4);
    }

    #[test]
    fn what_is_idle_does_not_stand_still() {
        let mut polling = polling();
        for _ in 0..50 {
            let taken = polling.taken;
            assert_eq!(polling.look(Seen { attended: false, taken, spare: true, pending: false, runs: false }), 0);
            let on_its_way = Seen { attended: true, taken, spare: true, pending: true, runs: false };
            assert_eq!(polling.look(on_its_way), 0);
        }
        assert_eq!(polling.most(), QUIET);
    }

    #[test]
    fn while_all_are_away_the_number_stays() {
        let mut polling = polling();
        for _ in 0..4 {
            stand_still(&mut polling);
        }
        for _ in 0..8 * CALM_LOOKS {
            let away = Seen { attended: false, taken: polling.taken, spare: false, pending: true, runs: false };
            assert_eq!(polling.look(away), 0);
        }
        assert_eq!(polling.most(), 24, "its share of the processors, and all that were added");
    }

    #[test]
    fn after_a_standstill_the_number_comes_down_by_halves() {
        let mut polling = polling();
        for _ in 0..4 {
            stand_still(&mut polling);
        }
        let mut seen = vec![polling.most()];
        for _ in 0..8 * CALM_LOOKS {
            keep_quiet(&mut polling, 1);
            if seen.last() != Some(&polling.most()) {
                seen.push(polling.most());
            }
        }
        assert_eq!(seen, [25, 13, 7, 4, 3, 2]);
    }

    /// Whoever looks only while it is asked to.
    #[test]
    fn looking_goes_on_until_the_number_has_come_down() {
        let mut polling = polling();
        for _ in 0..4 {
            stand_still(&mut polling);
        }
        while !polling.may_rest() {
            keep_quiet(&mut polling, 1);
        }
        assert_eq!(polling.most(), QUIET);
    }

    #[test]
    fn there_is_always_one_and_never_more_than_there_are() {
        for threads in [0, 1, 2, 3] {
            let mut polling = Polling::new(threads);
            polling.counted(64, 1);
            keep_busy(&mut polling, 10);
            for _ in 0..10 {
                stand_still(&mut polling);
            }
            assert_eq!(polling.most(), threads.max(1));
        }
    }
}
