//! Deadlines, one for each thing that has one.
//!
//! Runs in: controller.  Trusts: the caller's clock.  Owns: the order of deadlines.  Never: reads a clock.

use std::collections::{BTreeSet, HashMap};

use super::queue::Place;
use super::{Millis, PoolKey, ZygoteId};
use crate::wire::control::LeaseId;

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum TimerKey {
    /// A Want, by its place in the queue: it is refused.
    Want(Place),
    /// The oldest Want of the pool loses its patience with other pools.
    Pressure(PoolKey),
    /// Frontends have had time to return the pool's idle leases.
    Asked(PoolKey),
    /// An idle worker, or the pool's zygote, has been idle for long enough.
    Idle(PoolKey),
    /// The pool may start processes again, or is forgotten.
    Backoff(PoolKey),
    /// A worker must have been forked, or have ended.
    Worker(LeaseId),
    /// A zygote must be ready, or have ended.
    Zygote(ZygoteId),
    /// A seed must be ready, or is started again, or must have ended.
    Seed(u64),
    /// Frontends change over to a generation although not all of its pools are warm.
    Warm(u64),
    /// A zygote that is slow to start holds up others of the generation no longer.
    Starts(u64),
}

/// Deadlines in their order; each key has at most one.
#[derive(Debug, Default)]
pub(super) struct Timers {
    order: BTreeSet<(Millis, TimerKey)>,
    at: HashMap<TimerKey, Millis>,
}

impl Timers {
    /// Sets the deadline of `key`, instead of an earlier one.
    pub(super) fn arm(&mut self, key: TimerKey, at: Millis) {
        if let Some(old) = self.at.insert(key, at) {
            self.order.remove(&(old, key));
        }
        self.order.insert((at, key));
    }

    pub(super) fn disarm(&mut self, key: TimerKey) {
        if let Some(old) = self.at.remove(&key) {
            self.order.remove(&(old, key));
        }
    }

    pub(super) fn armed(&self, key: TimerKey) -> Option<Millis> {
        self.at.get(&key).copied()
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<Millis> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes the first deadline that has come.
    pub(super) fn pop_due(&mut self, now: Millis) -> Option<TimerKey> {
        let &(at, key) = self.order.first()?;
        if at > now {
            return None;
        }
        self.disarm(key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::Arrival;

    #[test]
    fn a_key_has_one_deadline_and_they_come_in_order() {
        let mut timers = Timers::default();
        timers.arm(TimerKey::Seed(1), 50);
        timers.arm(TimerKey::Seed(2), 20);
        timers.arm(TimerKey::Seed(1), 10);
        assert_eq!(timers.next(), Some(10));
        assert_eq!(timers.pop_due(9), None);
        assert_eq!(timers.pop_due(30), Some(TimerKey::Seed(1)));
        assert_eq!(timers.pop_due(30), Some(TimerKey::Seed(2)));
        assert_eq!(timers.pop_due(99), None);
        let want = TimerKey::Want(Place { arrived: Arrival(3), number: 1 });
        timers.arm(want, 5);
        timers.disarm(want);
        assert_eq!(timers.next(), None);
    }
}
