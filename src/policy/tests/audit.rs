//! The books looked through as a whole: each count is what it counts, each thing that can wait has a deadline, and what
//! can be done has been done.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::policy::generation::SeedState;
use crate::policy::starts::Room;
use crate::policy::state::State;
use crate::policy::timer::TimerKey;
use crate::policy::worker::WorkerState;
use crate::policy::zygote::ZygoteState;
use crate::policy::{FrontendId, PoolKey, ZygoteId, MAX_FORKING};
use crate::wire::control::LeaseId;

/// What was ordered to be killed: nothing more can be done about it, so it needs no deadline.
pub(super) struct Killed<'a> {
    pub workers: &'a BTreeSet<LeaseId>,
    pub zygotes: &'a BTreeSet<ZygoteId>,
    pub seeds: &'a BTreeSet<u64>,
}

/// What the workers say about one pool.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    forking: usize,
    lent: usize,
    incoming: usize,
    idle: BTreeSet<LeaseId>,
    holders: BTreeMap<FrontendId, usize>,
}

impl State {
    /// Panics where the books are wrong.
    pub(super) fn audit(&self, killed: &Killed<'_>) {
        self.audit_wants();
        self.audit_workers(killed);
        self.audit_zygotes(killed);
        self.audit_generations(killed);
        for key in self.pools.keys() {
            self.audit_progress(*key);
        }
        if let Some(next) = self.timers.next() {
            assert!(next > self.now, "a deadline has passed and nothing was done");
        }
    }

    fn audit_wants(&self) {
        assert_eq!(self.wants.len(), self.want_index.len());
        for (place, w) in &self.wants {
            assert_eq!(self.want_index.get(&(w.frontend, w.want)), Some(place));
            let f = self.frontends.get(&w.frontend).expect("a Want of a frontend that is there");
            assert!(f.wants.contains(place) && f.generation == w.key.generation);
            assert!(self.pools[&w.key].wants.contains(*place));
            let timeout = self.row(w.key).expect("a row").limits.queue_timeout_ms;
            assert_eq!(self.timers.armed(TimerKey::Want(*place)), Some(w.since + timeout));
        }
        assert_eq!(self.frontends.values().map(|f| f.wants.len()).sum::<usize>(), self.wants.len());
        assert_eq!(self.pools.values().map(|p| p.wants.len()).sum::<usize>(), self.wants.len());
        let waiting: BTreeSet<PoolKey> =
            self.pools.iter().filter(|(_, p)| !p.wants.is_empty()).map(|(key, _)| *key).collect();
        assert_eq!(waiting, self.waiting);
    }

    fn audit_workers(&self, killed: &Killed<'_>) {
        let mut counts: BTreeMap<PoolKey, Counts> = self.pools.keys().map(|key| (*key, Counts::default())).collect();
        let mut held: HashMap<FrontendId, BTreeSet<LeaseId>> =
            self.frontends.keys().map(|id| (*id, BTreeSet::new())).collect();
        for (lease, worker) in &self.workers {
            let armed = self.timers.armed(TimerKey::Worker(*lease)).is_some();
            match worker.state {
                WorkerState::Forking { zygote } => {
                    assert!(armed && self.zygotes.contains_key(&zygote), "a fork that nobody may answer");
                    counts.get_mut(&worker.key).expect("its pool").forking += 1;
                }
                WorkerState::Idle { .. } => {
                    assert!(!armed);
                    counts.get_mut(&worker.key).expect("its pool").idle.insert(*lease);
                }
                WorkerState::Lent { frontend, .. } => {
                    assert!(!armed);
                    let pool = counts.get_mut(&worker.key).expect("its pool");
                    pool.lent += 1;
                    *pool.holders.entry(frontend).or_default() += 1;
                    held.get_mut(&frontend).expect("its frontend").insert(*lease);
                }
                WorkerState::Ending { room_for, .. } => {
                    assert!(armed || killed.workers.contains(lease), "a worker may end when it likes");
                    // A pool that was forgotten and came back knows nothing of the room made for it before.
                    if let Some(pool) = room_for.and_then(|key| counts.get_mut(&key)) {
                        pool.incoming += 1;
                    }
                }
            }
        }
        for (key, pool) in &self.pools {
            let seen = Counts {
                forking: pool.forking,
                lent: pool.lent,
                incoming: pool.incoming,
                idle: pool.idle.iter().copied().collect(),
                holders: pool.holders.clone(),
            };
            assert_eq!(counts[key], seen, "{key:?}");
            assert_eq!(pool.idle.len(), seen.idle.len(), "an idle worker is listed twice");
            assert!(pool.told.keys().all(|f| self.frontends.contains_key(f)), "told a frontend that is gone");
        }
        for (id, f) in &self.frontends {
            assert_eq!(held[id], f.leases, "leases of {id:?}");
        }
        self.audit_accounts();
    }

    fn audit_accounts(&self) {
        let mut used: BTreeMap<String, u32> = BTreeMap::new();
        for chain in self.workers.values().map(|w| &w.chain).chain(self.foreign.values()) {
            for name in chain.iter() {
                *used.entry(name.to_string()).or_default() += 1;
            }
        }
        for name in self.accounts.names() {
            assert_eq!(self.accounts.used_and_cap(name).0, used.remove(&**name).unwrap_or(0), "charged to {name:?}");
        }
        assert!(used.is_empty(), "charged to no account: {used:?}");
        for name in self.accounts.names() {
            for (_, lease) in self.accounts.idle_of(name) {
                assert!(matches!(self.workers[&lease].state, WorkerState::Idle { .. }), "{lease:?} is not idle");
            }
            for lease in self.accounts.lent(name) {
                assert!(matches!(self.workers[&lease].state, WorkerState::Lent { .. }), "{lease:?} is not lent");
            }
        }
        for (lease, worker) in &self.workers {
            if let WorkerState::Idle { since } = worker.state {
                for name in worker.chain.iter() {
                    assert!(self.accounts.idle_of(name).contains(&(since, *lease)), "{lease:?} cannot be had back");
                }
            }
        }
    }

    fn audit_zygotes(&self, killed: &Killed<'_>) {
        for (id, zygote) in &self.zygotes {
            let armed = self.timers.armed(TimerKey::Zygote(*id)).is_some();
            let owned = self.pools.get(&zygote.key).is_some_and(|p| p.zygote == Some(*id));
            match zygote.state {
                ZygoteState::Starting { .. } => assert!(armed && owned),
                ZygoteState::Ready => assert!(!armed && owned),
                ZygoteState::Ending => {
                    assert!(!owned, "a pool relies on a zygote that is ending");
                    assert!(armed || killed.zygotes.contains(id), "a zygote may end when it likes");
                }
            }
        }
        for pool in self.pools.values() {
            assert!(pool.zygote.is_none_or(|id| self.zygotes.contains_key(&id)), "a zygote that is not there");
        }
    }

    fn audit_generations(&self, killed: &Killed<'_>) {
        for (number, g) in &self.generations {
            let count = |keys: &mut dyn Iterator<Item = PoolKey>| keys.filter(|k| k.generation == *number).count();
            assert_eq!(g.workers, count(&mut self.workers.values().map(|w| w.key)));
            assert_eq!(g.zygotes, count(&mut self.zygotes.values().map(|z| z.key)));
            assert_eq!(g.frontends, self.frontends.values().filter(|f| f.generation == *number).count());
            let armed = self.timers.armed(TimerKey::Seed(*number)).is_some();
            match g.seed {
                SeedState::Starting | SeedState::Down => assert!(armed, "{number}: {:?}", g.seed),
                SeedState::Ending => assert!(armed || killed.seeds.contains(number), "a seed may end when it likes"),
                SeedState::Ready(_) | SeedState::Absent => assert!(!armed, "{number}: {:?}", g.seed),
            }
            assert!(g.frontends == 0 || !g.ended, "ended with frontends");
            let announced = self.children.values().any(|generation| generation == number);
            let newest = self.generations.keys().next_back() == Some(number);
            assert!(!newest || !g.ended || self.stopping, "the newest has ended");
            assert!(g.ended || newest || announced || g.frontends > 0, "{number} is kept for nobody");
        }
    }

    /// Nothing that could be done now waits for later, and nothing is kept without a reason.
    fn audit_progress(&self, key: PoolKey) {
        let pool = &self.pools[&key];
        let armed = |timer| self.timers.armed(timer).is_some();
        if pool.wants.is_empty() {
            assert!(!armed(TimerKey::Pressure(key)));
        }
        if self.stopping || !self.generation_open(key.generation) {
            assert!(pool.wants.is_empty() && pool.idle.is_empty(), "{key:?} has an end and does not come to it");
            return;
        }
        let keep = self.min_spare(key);
        assert!(pool.wants.is_empty() || pool.idle.is_empty(), "{key:?} has a worker for who waits");
        let seed = self.generations[&key.generation].seed;
        assert!(pool.wants.is_empty() || seed != SeedState::Absent, "{key:?} lacks a seed");
        if self.throttled(key).is_some() {
            let hope = pool.lent + pool.forking > 0;
            assert!(pool.wants.is_empty() || hope, "{key:?} is throttled without a worker, and requests wait");
        } else if self.lacking.contains(&key) {
            let again = armed(TimerKey::Pressure(key)) || self.hungry.contains(&key);
            assert!(again, "{key:?} had no descriptor, and does not try again");
        } else if pool.wants.len().saturating_sub(pool.awaited(self.now)) + keep > pool.forking + pool.idle.len() {
            // Spare workers that were given up for other pools come back when there is room again.
            let room = self.accounts.headroom(&pool.chain) > 0 || !pool.wants.is_empty();
            let full = self.accounts.headroom(&pool.chain) == 0;
            let turn = match self.room_for_zygote(key.generation) {
                Room::Yes => false,
                Room::Later(_) => self.generations[&key.generation].starts.contains(key),
                Room::Full => full || self.generations[&key.generation].starts.contains(key),
            };
            let started = pool.zygote.is_some() || !self.seed_is_ready(key.generation) || turn;
            assert!(started || !room, "{key:?} lacks a zygote");
            if self.zygote_is_ready(pool.zygote) && pool.forking < MAX_FORKING {
                assert_eq!(self.accounts.headroom(&pool.chain), 0, "{key:?} could have a worker more");
            }
        }
        if pool.idle.len() > keep {
            let since = self.idle_since(pool.idle[0]);
            assert!(
                self.timers.armed(TimerKey::Idle(key)).is_some_and(|at| at <= since + self.idle_timeout(key)),
                "idle workers of {key:?} would stay"
            );
        }
        let used = pool.forking + pool.lent + pool.idle.len() + pool.wants.len() + pool.incoming + keep > 0;
        assert!(
            used || armed(TimerKey::Idle(key)) || armed(TimerKey::Backoff(key)),
            "{key:?} would be kept for ever: {pool:?}"
        );
    }
}
