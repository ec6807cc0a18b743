//! Wants and what is done for them: grant, fork, evict, recall, refuse.
//!
//! Runs in: controller.  Trusts: the events.  Owns: the order in which Wants are served.
//! Never: forks beyond a cap, grants a lease twice, leaves a Want without an answer past its timeout.

use std::collections::{BTreeMap, VecDeque};

use super::queue::{Place, Queue};
use super::starts::Room;
use super::state::{PoolState, State, Waiting};
use super::timer::TimerKey;
use super::worker::WorkerState;
use super::{
    seconds, Action, FrontendId, PoolKey, FORGET_AFTER, MAX_FORKING, PATIENCE, RETIRE_GRACE, RETURN_PATIENCE,
    STRANGER_RETRY,
};
use crate::wire::control::{Arrival, LeaseId, LendCount, Queued, Refusal, WantId};

impl State {
    pub(super) fn want(&mut self, frontend: FrontendId, want: WantId, pool: u32, arrived: Arrival) {
        let Some(f) = self.frontends.get(&frontend) else {
            if self.strangers.contains(&frontend) {
                let text =
                    "the controller does not know the configuration of this frontend process, which is an older one";
                self.refuse(frontend, want, Refusal::NoPool, STRANGER_RETRY, text.into());
            }
            return;
        };
        if self.want_index.contains_key(&(frontend, want)) {
            return;
        }
        let key = PoolKey { generation: f.generation, pool };
        let Some((queue_limit, queue_timeout)) =
            self.row(key).filter(|r| r.limits.uid.is_some()).map(|r| (r.limits.queue_limit, r.limits.queue_timeout_ms))
        else {
            self.refuse(frontend, want, Refusal::NoPool, 0, "no such pool".into());
            return;
        };
        if self.stopping {
            let text = "the server is stopping".into();
            self.refuse(frontend, want, Refusal::Stopping, 1, text);
            return;
        }
        self.ensure_pool(key);
        let Some(pool) = self.pools.get(&key) else {
            return;
        };
        if pool.idle.is_empty() {
            let throttle = self.throttled(key);
            // Who only waits for a process that may be forked is not in the queue.
            let may_fork = if throttle.is_some() { 0 } else { self.accounts.headroom(&pool.chain) as usize };
            let room = may_fork + pool.forking;
            if let Some((left, text)) = throttle.filter(|_| !pool.is_alive()) {
                self.refuse(frontend, want, Refusal::Throttled, left, text);
                self.settle(key);
                return;
            }
            if pool.wants.len() >= room.saturating_add(queue_limit as usize) {
                let text = format!("{} requests wait already", pool.wants.len());
                let left = seconds(queue_timeout.min(10_000));
                self.refuse(frontend, want, Refusal::QueueFull, left, text);
                self.settle(key);
                return;
            }
        }
        // Nobody comes from the future, or has waited for longer than anybody may.
        let since = (arrived.0 / 1000).clamp(self.now.saturating_sub(queue_timeout), self.now);
        let arrived = Arrival(arrived.0.clamp(since * 1000, since * 1000 + 999));
        let place = Place { arrived, number: self.number() };
        self.wants.insert(place, Waiting { frontend, want, key, since });
        self.want_index.insert((frontend, want), place);
        if let Some(f) = self.frontends.get_mut(&frontend) {
            f.wants.insert(place);
        }
        if let Some(pool) = self.pools.get_mut(&key) {
            pool.wants.insert(frontend, place);
            pool.last_active = self.now;
        }
        self.waiting.insert(key);
        self.timers.arm(TimerKey::Want(place), since + queue_timeout);
        self.serve(key);
    }

    pub(super) fn cancel(&mut self, frontend: FrontendId, want: WantId) {
        let Some(&place) = self.want_index.get(&(frontend, want)) else {
            return;
        };
        if let Some(w) = self.remove_want(place) {
            self.mark(w.key);
            self.settle(w.key);
        }
    }

    pub(super) fn want_expired(&mut self, place: Place) {
        let Some(w) = self.remove_want(place) else {
            return;
        };
        let waited = self.now - w.since;
        let why = self.throttled(w.key).map(|(_, why)| format!(", and no process can be started: {why}"));
        let text = format!("no process became free within {waited} ms{}", why.unwrap_or_default());
        let left = seconds(waited.min(10_000));
        self.refuse(w.frontend, w.want, Refusal::QueueTimeout, left, text);
        self.mark(w.key);
        self.settle(w.key);
    }

    pub(super) fn refuse(
        &mut self,
        frontend: FrontendId,
        want: WantId,
        reason: Refusal,
        retry_after_s: u32,
        text: String,
    ) {
        self.out.push(Action::Refuse { frontend, want, reason, retry_after_s, text });
    }

    /// Refuses every Want of a pool that can start no process and has none that could come free.
    pub(super) fn refuse_hopeless(&mut self, key: PoolKey) {
        let hopeless = self.pools.get(&key).is_some_and(|p| !p.wants.is_empty() && !p.is_alive());
        if let Some((left, reason)) = self.throttled(key).filter(|_| hopeless) {
            self.refuse_all(key, Refusal::Throttled, left, &reason);
        }
    }

    /// Refuses every Want of a pool.
    pub(super) fn refuse_all(&mut self, key: PoolKey, reason: Refusal, left: u32, text: &str) {
        let Some(pool) = self.pools.get(&key) else {
            return;
        };
        for place in pool.wants.iter().collect::<Vec<_>>() {
            if let Some(w) = self.remove_want(place) {
                self.refuse(w.frontend, w.want, reason, left, text.to_owned());
            }
        }
    }

    /// How long, and why, the pool cannot start a process.
    pub(super) fn throttled(&self, key: PoolKey) -> Option<(u32, String)> {
        let pool = self.pools.get(&key)?;
        if pool.blocked_until > self.now {
            return Some((seconds(pool.blocked_until - self.now), pool.reason.clone()));
        }
        if pool.zygote.is_some() {
            return None;
        }
        self.seed_throttled(key.generation)
    }

    /// Makes the state of a pool that had none.
    pub(super) fn ensure_pool(&mut self, key: PoolKey) {
        if self.pools.contains_key(&key) {
            return;
        }
        let Some(chain) = self.row(key).map(|r| r.chain.clone()) else {
            return;
        };
        self.pools.insert(
            key,
            PoolState {
                chain,
                zygote: None,
                wants: Queue::default(),
                idle: VecDeque::new(),
                forking: 0,
                lent: 0,
                incoming: 0,
                holders: BTreeMap::new(),
                told: BTreeMap::new(),
                asked: BTreeMap::new(),
                last_active: self.now,
                failures: 0,
                failed_at: 0,
                blocked_until: 0,
                reason: String::new(),
            },
        );
    }

    /// Does for a pool what can be done now.
    pub(super) fn serve(&mut self, key: PoolKey) {
        while let Some(pool) = self.pools.get_mut(&key) {
            let Some(place) = pool.wants.first() else {
                break;
            };
            let Some(&lease) = pool.idle.back() else {
                break;
            };
            self.grant(place, lease, false);
        }
        self.refuse_hopeless(key);
        // Idle leases of other frontends come back before anything is forked.
        self.mark(key);
        self.grow(key);
        self.settle(key);
    }

    /// Lends a worker that the controller holds to the frontend of a Want.
    pub(super) fn grant(&mut self, place: Place, lease: LeaseId, cold: bool) {
        self.unidle(lease);
        let Some(w) = self.remove_want(place) else {
            return;
        };
        let Some(worker) = self.workers.get_mut(&lease) else {
            return;
        };
        worker.lend += 1;
        worker.ever_lent = true;
        worker.state = WorkerState::Lent { frontend: w.frontend, since: self.now };
        let (lend, pid) = (LendCount(worker.lend), worker.pid);
        self.accounts.add_lent(&worker.chain, self.now, lease);
        if let Some(f) = self.frontends.get_mut(&w.frontend) {
            f.leases.insert(lease);
        }
        let mut queued = Queued::Nobody;
        if let Some(pool) = self.pools.get_mut(&w.key) {
            pool.lent += 1;
            pool.last_active = self.now;
            *pool.holders.entry(w.frontend).or_default() += 1;
            queued = pool.wants.seen_by(w.frontend);
            pool.tell(w.frontend, queued);
        }
        let (frontend, want, pool) = (w.frontend, w.want, w.key.pool);
        self.out.push(Action::Grant { frontend, want, pool, lease, lend, pid, cold, queued });
    }

    /// A worker that nobody holds: to the next Want, to another pool's turn, or idle.
    pub(super) fn idle_or_grant(&mut self, lease: LeaseId, cold: bool) {
        let Some(worker) = self.workers.get(&lease) else {
            return;
        };
        let key = worker.key;
        if self.stopping || !self.generation_open(key.generation) {
            self.end_worker(lease, RETIRE_GRACE, None);
            self.settle(key);
            return;
        }
        let own = self.pools.get(&key).and_then(|p| p.wants.first());
        if let Some(place) = own {
            match self.rival(key, place) {
                Some(rival) => {
                    self.end_worker(lease, RETIRE_GRACE, Some(rival));
                    self.serve(key);
                }
                None => {
                    self.grant(place, lease, cold);
                    self.serve(key);
                }
            }
            return;
        }
        self.make_idle(lease);
        self.relieve();
        self.grow(key);
        self.mark(key);
        self.settle(key);
    }

    /// Another pool whose turn came before this pool's oldest Want, that has lost its patience, and that a worker of
    /// this pool makes room for.
    fn rival(&self, key: PoolKey, own: Place) -> Option<PoolKey> {
        let chain = &self.pools.get(&key)?.chain;
        self.waiting
            .iter()
            .filter(|other| **other != key)
            .filter_map(|other| {
                let pool = self.pools.get(other)?;
                let oldest = pool.wants.first()?;
                let since = self.wants.get(&oldest)?.since;
                let full = self.accounts.full(&pool.chain)?;
                (oldest < own
                    && self.zygote_is_ready(pool.zygote)
                    && self.throttled(*other).is_none()
                    && self.now - since >= PATIENCE
                    && pool.wants.len() > pool.forking + pool.incoming
                    && chain.contains(&full))
                .then_some((oldest, *other))
            })
            .min()
            .map(|(_, other)| other)
    }

    /// A slot came free, or a worker became idle: the pools that wait, in the order of their oldest Want, then those
    /// that lack spare workers.
    pub(super) fn relieve(&mut self) {
        let mut order: Vec<(Place, PoolKey)> =
            self.waiting.iter().filter_map(|key| Some((self.pools.get(key)?.wants.first()?, *key))).collect();
        order.sort_unstable();
        for (_, key) in order {
            self.grow(key);
        }
        for key in std::mem::take(&mut self.hungry) {
            self.grow(key);
        }
    }

    /// Forks what the pool's Wants and spare workers need, as far as the caps allow, and makes room where they do not.
    pub(super) fn grow(&mut self, key: PoolKey) {
        if self.stopping || !self.generation_open(key.generation) {
            self.lacking.remove(&key);
            return;
        }
        if self.is_preceded(key) {
            return;
        }
        self.lacking.remove(&key);
        let spare = self.min_spare(key).max(self.warming(key));
        if spare > 0 {
            self.ensure_pool(key);
        }
        loop {
            let Some(pool) = self.pools.get(&key) else {
                return;
            };
            let alone = pool.wants.len().saturating_sub(pool.awaited(self.now));
            let target = (alone + spare).saturating_sub(pool.idle.len());
            if pool.forking >= target.min(MAX_FORKING) {
                return;
            }
            if self.throttled(key).is_some() {
                return;
            }
            let ready = self.ready_zygote(key);
            let Some(pool) = self.pools.get(&key) else {
                return;
            };
            if self.accounts.full(&pool.chain).is_some() {
                let no_zygote = pool.zygote.is_none() && self.seed_is_ready(key.generation);
                if pool.wants.is_empty() {
                    self.hungry.insert(key);
                } else if ready.is_some() || (no_zygote && self.room_for_zygote(key.generation) == Room::Full) {
                    // Room made earlier would be taken by others before this pool can use it.
                    self.make_room(key);
                }
                return;
            }
            let Some(zygote) = ready else {
                return;
            };
            self.fork(key, zygote);
        }
    }

    /// Retires idle workers of other pools under the cap that stops this one; where there are none, asks frontends
    /// for theirs.
    fn make_room(&mut self, key: PoolKey) {
        loop {
            let Some(pool) = self.pools.get(&key) else {
                return;
            };
            let needed = pool.wants.len().saturating_sub(pool.forking + pool.incoming);
            let Some(full) = self.accounts.full(&pool.chain) else {
                return;
            };
            if needed == 0 {
                return;
            }
            if let Some(lease) = self.accounts.longest_idle(&full) {
                let owner = self.workers.get(&lease).map(|w| w.key);
                self.unidle(lease);
                self.end_worker(lease, RETIRE_GRACE, Some(key));
                if let Some(owner) = owner {
                    if self.min_spare(owner) > 0 {
                        self.hungry.insert(owner);
                    }
                }
                continue;
            }
            let since = pool.wants.first().and_then(|place| self.wants.get(&place)).map_or(self.now, |w| w.since);
            let limit = if self.now - since >= PATIENCE { usize::MAX } else { needed };
            let leases: Vec<LeaseId> = self
                .accounts
                .lent(&full)
                .filter(|lease| self.workers.get(lease).is_some_and(|w| w.key != key))
                .take(limit)
                .collect();
            for lease in leases {
                self.recall(lease);
            }
            self.timers.arm(TimerKey::Pressure(key), self.now + PATIENCE);
            return;
        }
    }

    /// Tells the frontends that hold leases of the pool who waits for it, where they would do wrong without. Where
    /// they only think that somebody waits for longer than is true, the next Grant tells them.
    pub(super) fn mark(&mut self, key: PoolKey) {
        let Some(pool) = self.pools.get_mut(&key) else {
            return;
        };
        let news: Vec<(FrontendId, Queued)> = if pool.wants.is_empty() {
            std::mem::take(&mut pool.told).into_keys().map(|frontend| (frontend, Queued::Nobody)).collect()
        } else {
            let holders = pool.holders.keys().map(|frontend| (*frontend, pool.wants.seen_by(*frontend)));
            holders.filter(|(frontend, queued)| pool.has_to_tell(*frontend, *queued)).collect()
        };
        let until = self.now + RETURN_PATIENCE;
        for (frontend, queued) in news {
            let knew = matches!(pool.told.get(&frontend), Some(Queued::Elsewhere(_)));
            if !knew && matches!(queued, Queued::Elsewhere(_)) {
                pool.asked.insert(frontend, until);
                self.timers.arm(TimerKey::Asked(key), until);
            }
            pool.tell(frontend, queued);
            if self.frontends.contains_key(&frontend) {
                self.out.push(Action::Contended { frontend, pool: key.pool, queued });
            }
        }
    }

    /// Retires workers that were idle for long enough, the longest-idle first.
    pub(super) fn expire_idle(&mut self, key: PoolKey) {
        let keep = self.min_spare(key);
        let timeout = self.idle_timeout(key);
        while let Some(pool) = self.pools.get(&key) {
            let Some(&lease) = pool.idle.front() else {
                break;
            };
            if pool.idle.len() <= keep || self.idle_since(lease) + timeout > self.now {
                break;
            }
            self.unidle(lease);
            self.end_worker(lease, RETIRE_GRACE, None);
        }
        self.settle(key);
    }

    /// Sets the pool's next idle deadline; stops the zygote of a pool that nobody uses; forgets a pool without state.
    pub(super) fn settle(&mut self, key: PoolKey) {
        let keep = self.min_spare(key);
        let timeout = self.idle_timeout(key);
        let Some(pool) = self.pools.get(&key) else {
            return;
        };
        if pool.idle.len() > keep {
            let since = pool.idle.front().map_or(self.now, |l| self.idle_since(*l));
            self.timers.arm(TimerKey::Idle(key), since + timeout);
            return;
        }
        self.timers.disarm(TimerKey::Idle(key));
        let used = pool.forking + pool.lent + pool.idle.len() + pool.wants.len() > 0;
        if used || (keep > 0 && self.generation_open(key.generation)) {
            return;
        }
        if let Some(zygote) = pool.zygote {
            let until = pool.last_active + timeout;
            if until > self.now && self.generation_open(key.generation) {
                self.timers.arm(TimerKey::Idle(key), until);
                return;
            }
            self.end_zygote(zygote, RETIRE_GRACE);
        }
        let Some(pool) = self.pools.get(&key) else {
            return;
        };
        let remembered = pool.blocked_until + FORGET_AFTER;
        if pool.failures > 0 && remembered > self.now && self.generation_open(key.generation) {
            self.timers.arm(TimerKey::Backoff(key), remembered);
        } else if pool.incoming == 0 {
            self.timers.disarm(TimerKey::Backoff(key));
            self.timers.disarm(TimerKey::Pressure(key));
            self.timers.disarm(TimerKey::Asked(key));
            self.hungry.remove(&key);
            self.lacking.remove(&key);
            self.pools.remove(&key);
        }
    }
}
