//! The controller has no descriptor left for another process: those of pools that do without them end first.
//!
//! Runs in: controller.  Trusts: the events.  Owns: nothing of its own.
//! Never: ends a worker that serves, takes what is idle from one pool for the spare workers of another.

use super::state::State;
use super::timer::TimerKey;
use super::worker::WorkerState;
use super::zygote::ZygoteState;
use super::{Action, Millis, PoolKey, ZygoteId, PATIENCE, RETIRE_GRACE, STARTS_AT_ONCE};
use crate::wire::control::LeaseId;

/// Most that pools leave the room to another one for: its zygote starts within, and is asked for a worker.
const PRECEDENCE: Millis = 1_000;

impl State {
    pub(super) fn zygote_lacks(&mut self, id: ZygoteId, text: &str) {
        let Some(zygote) = self.zygotes.remove(&id) else {
            return;
        };
        self.timers.disarm(TimerKey::Zygote(id));
        if let Some(g) = self.generations.get_mut(&zygote.key.generation) {
            g.zygotes -= 1;
        }
        if let Some(pool) = self.pools.get_mut(&zygote.key).filter(|pool| pool.zygote == Some(id)) {
            pool.zygote = None;
        }
        self.lacks(zygote.key, text);
        self.forget_generation(zygote.key.generation);
    }

    pub(super) fn fork_lacks(&mut self, lease: LeaseId, text: &str) {
        let Some(worker) = self.workers.get(&lease) else {
            return;
        };
        if matches!(worker.state, WorkerState::Forking { .. }) {
            let key = worker.key;
            self.remove_worker(lease);
            self.out.push(Action::Forget { lease });
            self.lacks(key, text);
        }
    }

    /// A pool with requests that wait gets the room of others that are idle: it tries again when they have ended, and
    /// fails only where there are none. One that lacks spare workers only waits until somebody ends.
    fn lacks(&mut self, key: PoolKey, text: &str) {
        let waits = self.pools.get(&key).is_some_and(|pool| !pool.wants.is_empty());
        if !waits {
            self.gave_up_spare(key);
            self.settle(key);
            return self.relieve_others();
        }
        if self.throttled(key).is_some() {
            self.refuse_hopeless(key);
            self.mark(key);
            self.settle(key);
            return self.relieve_others();
        }
        self.lacking.insert(key);
        let others = self.lacking.intersection(&self.waiting).count();
        let may_come = self.room_comes() >= others
            || self.end_unused(key)
            || self.recall_of_others(key)
            || self.others_change(key)
            || self.yields(key);
        if may_come {
            self.timers.arm(TimerKey::Pressure(key), self.now + PATIENCE);
        } else {
            self.fail_pool(key, text);
        }
        self.relieve_others();
    }

    /// The order that came to nothing had a slot, which is free for pools that have not been told of the lack: those that
    /// have try again later.
    fn relieve_others(&mut self) {
        let waiting: Vec<PoolKey> = self.waiting.difference(&self.lacking).copied().collect();
        let hungry: Vec<PoolKey> = self.hungry.iter().filter(|key| !self.lacking.contains(*key)).copied().collect();
        for key in waiting {
            self.grow(key);
        }
        for key in hungry {
            self.hungry.remove(&key);
            self.grow(key);
        }
    }

    /// Processes that are ending for pools that wait.
    fn room_comes(&self) -> usize {
        let zygotes = self.zygotes.values().filter(|z| z.state == ZygoteState::Ending).count();
        let freed = |state: &WorkerState| matches!(state, WorkerState::Ending { room_for: Some(_), .. });
        zygotes + self.workers.values().filter(|w| freed(&w.state)).count()
    }

    /// Ends a zygote without a worker or, where there is none, an idle worker of another pool: the least recently used.
    /// Whether there was one.
    fn end_unused(&mut self, key: PoolKey) -> bool {
        if let Some(id) = self.longest_unused_zygote(key) {
            if let Some(owner) = self.zygotes.get(&id).map(|zygote| zygote.key) {
                self.gave_up_spare(owner);
            }
            self.end_zygote(id, RETIRE_GRACE);
            return true;
        }
        let Some(lease) = self.longest_idle_of_others(key) else {
            return false;
        };
        let owner = self.workers.get(&lease).map(|w| w.key);
        self.unidle(lease);
        self.end_worker(lease, RETIRE_GRACE, Some(key));
        if let Some(owner) = owner {
            self.gave_up_spare(owner);
            self.settle(owner);
        }
        true
    }

    /// Whether processes of other pools start or end: what comes of them is idle some time, or gone.
    fn others_change(&self, key: PoolKey) -> bool {
        let changes = |state: &WorkerState| matches!(state, WorkerState::Forking { .. } | WorkerState::Ending { .. });
        self.zygotes.values().any(|z| z.key != key && z.state != ZygoteState::Ready)
            || self.workers.values().any(|w| w.key != key && changes(&w.state))
    }

    /// Pools that wait keep one another out: each has a zygote, and none has room for a worker. The zygote of the one
    /// whose request came last ends, and nobody starts another, until the one whose request came first has a worker.
    /// Whether `key` may hope.
    fn yields(&mut self, key: PoolKey) -> bool {
        let age = |key: &PoolKey| {
            let place = self.pools.get(key)?.wants.first()?;
            Some((self.wants.get(&place)?.since, *key))
        };
        let first = self.lacking.intersection(&self.waiting).filter_map(age).min().map(|(_, key)| key);
        let alone = |id: &ZygoteId| {
            let zygote = self.zygotes.get(id).filter(|z| z.state == ZygoteState::Ready && Some(z.key) != first)?;
            let pool = self.pools.get(&zygote.key)?;
            (pool.forking + pool.lent + pool.idle.len() == 0).then_some((age(&zygote.key)?, *id))
        };
        let last = self.zygotes.keys().filter_map(alone).max().map(|(_, id)| id);
        if let (Some(id), Some(first)) = (last, first) {
            self.precedence = Some((first, self.now + PRECEDENCE));
            self.end_zygote(id, RETIRE_GRACE);
        }
        last.is_some() || first != Some(key)
    }

    /// Whether the pool has to leave the room that there is to another one. It tries again later.
    pub(super) fn is_preceded(&mut self, key: PoolKey) -> bool {
        match self.precedence {
            Some((first, until)) if first != key && until > self.now => {}
            _ => return false,
        }
        if self.waiting.contains(&key) {
            self.timers.arm(TimerKey::Pressure(key), self.now + PATIENCE);
        } else if self.min_spare(key).max(self.warming(key)) > 0 {
            self.hungry.insert(key);
        } else {
            return false;
        }
        self.lacking.insert(key);
        true
    }

    /// The pool has a worker, or needs none any more.
    pub(super) fn end_precedence(&mut self, key: PoolKey) {
        if self.precedence.is_some_and(|(first, _)| first == key) {
            self.precedence = None;
        }
    }

    /// What it lacks by that comes back when somebody ends and nobody waits.
    fn gave_up_spare(&mut self, key: PoolKey) {
        if self.min_spare(key) > 0 && self.generation_open(key.generation) {
            self.hungry.insert(key);
            self.lacking.insert(key);
        }
    }

    fn longest_unused_zygote(&self, key: PoolKey) -> Option<ZygoteId> {
        let unused = |id: &ZygoteId| {
            let zygote = self.zygotes.get(id).filter(|z| z.key != key && z.state == ZygoteState::Ready)?;
            let pool = self.pools.get(&zygote.key)?;
            let needed = pool.forking + pool.lent + pool.idle.len() + pool.wants.len() > 0;
            (!needed).then_some((pool.last_active, *id))
        };
        self.zygotes.keys().filter_map(unused).min().map(|(_, id)| id)
    }

    fn longest_idle_of_others(&self, key: PoolKey) -> Option<LeaseId> {
        let idle = |(lease, worker): (&LeaseId, &super::worker::WorkerSlot)| match worker.state {
            WorkerState::Idle { since } if worker.key != key => Some((since, *lease)),
            _ => None,
        };
        self.workers.iter().filter_map(idle).min().map(|(_, lease)| lease)
    }

    /// Asks frontends for leases that they may not use. Whether other pools have any, which come back some time.
    fn recall_of_others(&mut self, key: PoolKey) -> bool {
        let root = PoolKey { generation: key.generation, pool: 0 };
        let Some(root) = self.row(root).map(|row| row.name.clone()) else {
            return false;
        };
        let of_others = |lease: &LeaseId| self.workers.get(lease).is_some_and(|worker| worker.key != key);
        let lent: Vec<LeaseId> = self.accounts.lent(&root).filter(of_others).take(STARTS_AT_ONCE).collect();
        for lease in lent {
            self.recall(lease);
        }
        self.workers.values().any(|worker| worker.key != key && worker.holder().is_some())
    }
}
