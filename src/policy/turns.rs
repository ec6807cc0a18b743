//! Which request of a frontend may have a lease that has come free there, and when a request asks the controller.
//!
//! Runs in: frontend; request threads and the helper thread.  Trusts: the controller's word on who waits elsewhere.
//! Owns: that word for one pool.  Never: lets a request pass one that it knows to be older.
//!
//! What it is for: requests that come within [`PATIENCE`] of one another are served in any order, whichever is cheapest,
//! and all others in the order in which they came, over all frontends. A frontend serves its own in their order. A
//! request asks the controller within PATIENCE, with the time at which it came, and the controller tells the others; from
//! then on nobody serves a younger one. Nothing depends on how long a page takes. It cannot be had closer without a word
//! to others for each request: who hands a lease on alone has decided before it knows of everybody, and if just that
//! page takes long, and those on all other workers, then whoever came a moment before it waits like one who came after.

use crate::wire::control::{Arrival, Queued};

/// Microseconds, as in [`Arrival`].
pub type Micros = u64;

/// How long a request waits for a lease that this process has before it asks the controller for another. One that is
/// parked asks up to 52 ms later: the MPM's timers are no finer than that.
pub const PATIENCE: Micros = 10_000;
/// A pool that was contended so recently has no worker to spare.
const STILL_CONTENDED: Micros = 100_000;
/// A request that took longer makes the pool slow for [`SLOW_FOR`]: who waits for its lease waits for long, and asks at
/// once. A pool of quick pages has none for that long.
const BRISK: Micros = 50_000;
const SLOW_FOR: Micros = 60_000_000;

/// What a frontend knows of a pool's queue.
#[derive(Debug)]
pub struct Turns {
    queued: Queued,
    contended_until: Micros,
    slow_until: Micros,
}

impl Default for Turns {
    fn default() -> Self {
        Self { queued: Queued::Nobody, contended_until: 0, slow_until: 0 }
    }
}

impl Turns {
    /// The controller's word.
    pub fn hear(&mut self, queued: Queued, now: Micros) {
        let before = std::mem::replace(&mut self.queued, queued);
        if (before, queued) != (Queued::Nobody, Queued::Nobody) {
            self.contended_until = now + STILL_CONTENDED;
        }
    }

    /// There is another controller, which has not said anything yet.
    pub fn forget(&mut self) {
        self.queued = Queued::Nobody;
        self.contended_until = 0;
    }

    /// Idle leases stay here: nobody elsewhere waits for one.
    pub fn may_keep(&self) -> bool {
        !matches!(self.queued, Queued::Elsewhere(_))
    }

    /// A lease may go to the request of this frontend that came then, its oldest.
    pub fn is_next(&self, arrived: Arrival) -> bool {
        match self.queued {
            Queued::Elsewhere(oldest) => arrived <= oldest,
            Queued::Nobody | Queued::Here => true,
        }
    }

    /// A request has had a lease for so long.
    pub fn took(&mut self, time: Micros, now: Micros) {
        if time > BRISK {
            self.slow_until = now + SLOW_FOR;
        }
    }

    /// When a request that waits from now on asks the controller. Later than at once only where a lease is likely to
    /// come free here before the controller has one to grant; `last_given` says when a request here last got one that
    /// it still has.
    pub fn asks_at(&self, arrived: Arrival, last_given: Option<Micros>, now: Micros) -> Micros {
        let is_brisk = self.slow_until <= now && last_given.is_some_and(|at| at + PATIENCE > now);
        if is_brisk && self.contended_until > now {
            now.max(arrived.0 + PATIENCE)
        } else {
            now
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_passes_an_older_request_that_is_known_of() {
        let mut turns = Turns::default();
        assert!(turns.may_keep() && turns.is_next(Arrival(u64::MAX)));
        turns.hear(Queued::Elsewhere(Arrival(500)), 900);
        assert!(!turns.may_keep());
        assert!(turns.is_next(Arrival(499)) && turns.is_next(Arrival(500)) && !turns.is_next(Arrival(501)));
        turns.hear(Queued::Here, 1000);
        assert!(turns.may_keep() && turns.is_next(Arrival(501)));
        turns.hear(Queued::Elsewhere(Arrival(500)), 1000);
        turns.forget();
        assert!(turns.may_keep() && turns.is_next(Arrival(501)));
    }

    #[test]
    fn only_where_a_lease_will_soon_be_free_here_a_request_does_not_ask_at_once() {
        let mut turns = Turns::default();
        let t = 1_000_000;
        assert_eq!(turns.asks_at(Arrival(t), Some(t), t), t, "others may have workers to spare");
        turns.hear(Queued::Nobody, t);
        assert_eq!(turns.asks_at(Arrival(t), Some(t), t), t, "they still may");
        turns.hear(Queued::Here, t);
        assert_eq!(turns.asks_at(Arrival(t), Some(t), t), t + PATIENCE);
        turns.hear(Queued::Nobody, t + 1);
        assert_eq!(turns.asks_at(Arrival(t - 7_000), Some(t), t + 1), t + 3_000, "counted from when it came");
        assert_eq!(turns.asks_at(Arrival(t - 70_000), Some(t), t + 1), t + 1);
        assert_eq!(turns.asks_at(Arrival(t), None, t), t, "no lease is here");
        assert_eq!(turns.asks_at(Arrival(t), Some(t - PATIENCE), t), t, "all are in use for long");
        turns.took(BRISK, t);
        assert_eq!(turns.asks_at(Arrival(t), Some(t), t), t + PATIENCE);
        turns.took(BRISK + 1, t);
        assert_eq!(turns.asks_at(Arrival(t), Some(t), t), t, "a page was slow");
        let later = t + SLOW_FOR;
        turns.hear(Queued::Here, later);
        assert_eq!(turns.asks_at(Arrival(later), Some(later), later), later + PATIENCE);
        let later = later + STILL_CONTENDED;
        assert_eq!(turns.asks_at(Arrival(later), Some(later), later), later, "it was contended, but not lately");
    }
}
