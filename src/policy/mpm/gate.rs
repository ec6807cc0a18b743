//! When a process takes no new connections, and for how long after there was no room for one.
//!
//! Runs in: frontend, any thread, under the caller's lock.  Trusts: nothing.  Owns: the state of the gate.
//! Never: does I/O, reads a clock.

use super::super::Millis;

/// The first pause after there was no descriptor or memory for a connection, and the longest.
const PAUSE: Millis = 100;
const PAUSE_MOST: Millis = 10_000;

/// Whether new connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    closed: bool,
    /// After a shortage: not before this time.
    not_before: Millis,
    /// How long it was waited after the last shortage; 0 if there was none lately.
    pause: Millis,
}

/// What follows from a shortage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closing {
    /// Listeners are still watched.
    pub was_open: bool,
    /// There was none lately: worth a line in the log.
    pub first: bool,
}

impl Gate {
    pub const fn closed() -> Self {
        Self { closed: true, not_before: 0, pause: 0 }
    }

    pub fn is_closed(self) -> bool {
        self.closed
    }

    /// Closes it; whether it was open.
    pub fn close(&mut self) -> bool {
        !std::mem::replace(&mut self.closed, true)
    }

    /// Opens it.
    pub fn open(&mut self) {
        self.closed = false;
    }

    /// There was no room for a connection: none is taken for a while, each time for twice as long. Several threads find
    /// that at once, and it is one shortage: `None` for all but the first of them.
    pub fn lacks(&mut self, now: Millis) -> Option<Closing> {
        if self.closed && now < self.not_before {
            return None;
        }
        let first = self.pause == 0;
        self.pause = (self.pause * 2).clamp(PAUSE, PAUSE_MOST);
        self.not_before = now.saturating_add(self.pause);
        Some(Closing { was_open: self.close(), first })
    }

    /// What is left is for the connections that are there: no other is taken before some of it comes back. That is looked
    /// for after a while. `None` as for [`lacks`](Self::lacks).
    pub fn spares(&mut self, now: Millis) -> Option<Closing> {
        if self.closed && now < self.not_before {
            return None;
        }
        let first = self.pause == 0;
        self.pause = self.pause.max(PAUSE);
        self.not_before = now.saturating_add(PAUSE);
        Some(Closing { was_open: self.close(), first })
    }

    /// The pause after a shortage is over.
    pub fn may_open(self, now: Millis) -> bool {
        now >= self.not_before
    }

    /// Forgets a shortage that was long ago.
    pub fn forget(&mut self, now: Millis) {
        if now > self.not_before.saturating_add(PAUSE_MOST) {
            self.pause = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Gate {
        let mut gate = Gate::closed();
        gate.open();
        gate
    }

    #[test]
    fn what_many_threads_find_at_once_is_one_shortage() {
        let mut gate = open();
        assert_eq!(gate.lacks(1_000), Some(Closing { was_open: true, first: true }));
        for _ in 0..20 {
            assert_eq!(gate.lacks(1_050), None);
        }
        assert!(!gate.may_open(1_099));
        assert!(gate.may_open(1_100));
    }

    #[test]
    fn each_shortage_lasts_twice_as_long() {
        let mut gate = open();
        let mut now = 1_000;
        for (i, pause) in [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000].into_iter().enumerate() {
            assert_eq!(gate.lacks(now), Some(Closing { was_open: true, first: i == 0 }));
            assert!(!gate.may_open(now + pause - 1));
            now += pause;
            assert!(gate.may_open(now));
            gate.open();
        }
    }

    #[test]
    fn what_is_spared_for_others_is_looked_for_again_soon() {
        let mut gate = open();
        let mut now = 1_000;
        for i in 0..20 {
            assert_eq!(gate.spares(now), Some(Closing { was_open: i % 2 == 0, first: i == 0 }));
            assert_eq!(gate.spares(now + PAUSE - 1), None);
            assert!(!gate.may_open(now + PAUSE - 1) && gate.may_open(now + PAUSE));
            now += PAUSE;
            if i % 2 == 1 {
                gate.open();
            }
        }
        // The pause after a real shortage does not get shorter by that.
        gate.lacks(now);
        gate.open();
        gate.lacks(now + 1_000);
        gate.open();
        assert!(gate.spares(now + 2_000).is_some());
        gate.open();
        gate.lacks(now + 3_000);
        assert!(!gate.may_open(now + 3_000 + 4 * PAUSE - 1));
    }

    #[test]
    fn a_full_process_can_lack_something_too() {
        let mut gate = open();
        assert!(gate.close());
        assert!(!gate.close());
        assert!(gate.may_open(0));
        assert_eq!(gate.lacks(50), Some(Closing { was_open: false, first: true }));
        assert!(gate.is_closed() && !gate.may_open(149));
    }

    #[test]
    fn a_shortage_is_forgotten() {
        let mut gate = open();
        gate.lacks(0);
        gate.open();
        gate.forget(10_100);
        assert_eq!(gate.lacks(10_100), Some(Closing { was_open: true, first: false }));
        gate.open();
        gate.forget(20_301);
        assert_eq!(gate.lacks(20_301), Some(Closing { was_open: true, first: true }));
        assert!(gate.may_open(20_401));
    }
}
