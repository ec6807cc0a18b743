//! A timer wheel: many timeouts, of which nearly all are put off before they are due.
//!
//! Runs in: frontend.  Trusts: nothing.  Owns: its entries.  Never: reads a clock.
//!
//! An entry is a hint: whoever takes it out looks at what it stands for, and puts it in again when that was put off
//! meanwhile. So a kept-alive connection costs the wheel nothing for each request.

use super::super::Millis;

/// Milliseconds in one slot: how much later than asked an entry may come out.
pub const TICK: Millis = 50;
/// Slots of the wheel. What lies further ahead than all of them goes round more than once.
const SLOTS: usize = 1024;
const WORDS: usize = SLOTS / 64;

/// Entries of type `T` by the time they are due.
#[derive(Debug)]
pub struct Wheel<T> {
    slots: Vec<Vec<Entry<T>>>,
    /// One bit for each slot that has entries.
    filled: [u64; WORDS],
    /// The first tick that was not taken out yet.
    next: u64,
}

#[derive(Debug)]
struct Entry<T> {
    tick: u64,
    what: T,
}

impl<T> Wheel<T> {
    /// An empty wheel whose time starts at `now`.
    pub fn new(now: Millis) -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), filled: [0; WORDS], next: now / TICK }
    }

    /// Puts an entry in that comes out at `due` or up to [`TICK`] later; what is due already comes out next.
    pub fn insert(&mut self, due: Millis, what: T) {
        let tick = due.div_ceil(TICK).max(self.next);
        let slot = slot_of(tick);
        self.slots[slot].push(Entry { tick, what });
        self.filled[slot / 64] |= 1 << (slot % 64);
    }

    /// When to look again: no entry comes out before. `None` for an empty wheel.
    pub fn next_due(&self) -> Option<Millis> {
        (self.next..self.next + SLOTS as u64)
            .step_by(1)
            .find(|tick| {
                let slot = slot_of(*tick);
                self.filled[slot / 64] & 1 << (slot % 64) != 0
            })
            .map(|tick| tick * TICK)
    }

    /// Takes out what is due at `now`.
    pub fn take_due(&mut self, now: Millis, due: &mut Vec<T>) {
        let last = now / TICK;
        // Each slot once is enough, however long nobody looked.
        let ticks = (last + 1).saturating_sub(self.next).min(SLOTS as u64);
        for tick in self.next..self.next + ticks {
            let slot = slot_of(tick);
            if self.filled[slot / 64] & 1 << (slot % 64) == 0 {
                continue;
            }
            let entries = &mut self.slots[slot];
            let mut at = 0;
            while at < entries.len() {
                if entries[at].tick <= last {
                    due.push(entries.swap_remove(at).what);
                } else {
                    at += 1;
                }
            }
            if entries.is_empty() {
                self.filled[slot / 64] &= !(1 << (slot % 64));
            }
        }
        self.next = self.next.max(last + 1);
    }
}

fn slot_of(tick: u64) -> usize {
    usize::try_from(tick % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due_at(wheel: &mut Wheel<u32>, now: Millis) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.take_due(now, &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn entries_come_out_when_due_and_no_more_than_a_tick_late() {
        let mut wheel = Wheel::new(1_000);
        wheel.insert(2_010, 1);
        wheel.insert(1_500, 2);
        assert_eq!(wheel.next_due(), Some(1_500));
        assert_eq!(due_at(&mut wheel, 1_499), []);
        assert_eq!(due_at(&mut wheel, 1_500), [2]);
        assert_eq!(wheel.next_due(), Some(2_050));
        assert_eq!(due_at(&mut wheel, 2_010 + TICK), [1]);
        assert_eq!(wheel.next_due(), None);
    }

    #[test]
    fn what_is_due_already_comes_out_next() {
        let mut wheel = Wheel::new(10_000);
        assert_eq!(due_at(&mut wheel, 20_000), []);
        wheel.insert(5_000, 7);
        assert_eq!(due_at(&mut wheel, 20_000 + TICK), [7]);
    }

    #[test]
    fn far_entries_go_round() {
        let round = TICK * SLOTS as u64;
        let mut wheel = Wheel::new(0);
        wheel.insert(3 * round + 100, 1);
        wheel.insert(100, 2);
        assert_eq!(due_at(&mut wheel, 100), [2]);
        for turn in 1..=3 {
            assert_eq!(due_at(&mut wheel, turn * round + 50), [], "turn {turn}");
            assert!(wheel.next_due().is_some());
        }
        assert_eq!(due_at(&mut wheel, 3 * round + 100), [1]);
    }

    #[test]
    fn a_long_pause_loses_nothing() {
        let mut wheel = Wheel::new(0);
        for i in 0..200 {
            wheel.insert(Millis::from(i) * 997, i);
        }
        assert_eq!(due_at(&mut wheel, 1_000_000), (0..200).collect::<Vec<_>>());
        assert_eq!(wheel.next_due(), None);
    }

    #[test]
    fn each_entry_comes_out_once_at_its_time() {
        let mut wheel = Wheel::new(0);
        let mut seed = 12_345u64;
        let mut expected = std::collections::BTreeMap::new();
        for now in (0..400_000).step_by(37) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let due = now + (seed >> 33) % 120_000;
            wheel.insert(due, now);
            expected.insert(now, due);
            let mut out = Vec::new();
            wheel.take_due(now, &mut out);
            for what in out {
                let due = expected.remove(&what).expect("comes out once");
                assert!(due <= now && now < due + 2 * TICK, "{due} came at {now}");
            }
        }
    }
}
