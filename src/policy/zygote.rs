//! Zygotes: started on demand, stopped when unused, and the delays of pools whose processes die at start.
//!
//! Runs in: controller.  Trusts: the events.  Owns: the state of each zygote, the throttle of each pool.
//! Never: starts a zygote for a throttled pool, or two at a time for one pool.

use super::starts::Room;
use super::state::State;
use super::timer::TimerKey;
use super::worker::WorkerState;
use super::{delay_after, Action, Millis, PoolKey, ZygoteId, ZYGOTE_DEADLINE};
use crate::wire::control::LeaseId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ZygoteState {
    /// Ordered from the seed at that time, or starting its modules.
    Starting { since: Millis },
    /// It takes orders.
    Ready,
    /// Its channel is closed or it was killed; it has not been reaped.
    Ending,
}

#[derive(Debug)]
pub(super) struct Zygote {
    pub key: PoolKey,
    pub state: ZygoteState,
    /// A worker of it has served a request: its later death is an accident, not a failed start.
    pub proven: bool,
    /// Workers of it that died without having served, since one did.
    pub unused_deaths: u32,
}

impl State {
    /// The pool's zygote if it takes orders; starts one if there is none.
    pub(super) fn ready_zygote(&mut self, key: PoolKey) -> Option<ZygoteId> {
        if let Some(id) = self.pools.get(&key)?.zygote {
            let ready = self.zygotes.get(&id)?.state == ZygoteState::Ready;
            return ready.then_some(id);
        }
        if !self.seed_is_ready(key.generation) {
            self.need_seed(key.generation);
            return None;
        }
        match self.room_for_zygote(key.generation) {
            Room::Yes => {}
            Room::Later(_) => {
                self.queue_start(key);
                return None;
            }
            // A pool that could have no worker waits for a slot first: a zygote that is ended for it would be of no use.
            Room::Full => {
                if self.pools.get(&key).is_some_and(|pool| self.accounts.full(&pool.chain).is_none()) {
                    self.queue_start(key);
                }
                return None;
            }
        }
        let id = ZygoteId(self.number());
        let state = ZygoteState::Starting { since: self.now };
        self.zygotes.insert(id, Zygote { key, state, proven: false, unused_deaths: 0 });
        if let Some(g) = self.generations.get_mut(&key.generation) {
            g.zygotes += 1;
        }
        if let Some(pool) = self.pools.get_mut(&key) {
            pool.zygote = Some(id);
            pool.last_active = self.now;
        }
        self.timers.arm(TimerKey::Zygote(id), self.now + ZYGOTE_DEADLINE);
        self.out.push(Action::StartZygote { zygote: id, key });
        None
    }

    pub(super) fn zygote_is_ready(&self, id: Option<ZygoteId>) -> bool {
        id.and_then(|id| self.zygotes.get(&id)).is_some_and(|z| z.state == ZygoteState::Ready)
    }

    pub(super) fn zygote_ready(&mut self, id: ZygoteId) {
        let Some(zygote) = self.zygotes.get_mut(&id) else {
            return;
        };
        if !matches!(zygote.state, ZygoteState::Starting { .. }) {
            return;
        }
        zygote.state = ZygoteState::Ready;
        let key = zygote.key;
        self.timers.disarm(TimerKey::Zygote(id));
        self.serve(key);
    }

    pub(super) fn zygote_failed(&mut self, id: ZygoteId, text: &str) {
        let Some(zygote) = self.zygotes.get_mut(&id) else {
            return;
        };
        let was = std::mem::replace(&mut zygote.state, ZygoteState::Ending);
        let (key, proven) = (zygote.key, zygote.proven);
        self.timers.disarm(TimerKey::Zygote(id));
        self.out.push(Action::KillZygote { zygote: id });
        if was != ZygoteState::Ending {
            self.detach(id, key, proven, text);
        }
    }

    /// What it has served before is no excuse.
    pub(super) fn zygote_violated(&mut self, id: ZygoteId, text: &str) {
        if let Some(zygote) = self.zygotes.get_mut(&id) {
            zygote.proven = false;
        }
        self.zygote_failed(id, text);
    }

    pub(super) fn zygote_gone(&mut self, id: ZygoteId, text: &str) {
        let Some(zygote) = self.zygotes.remove(&id) else {
            return;
        };
        self.timers.disarm(TimerKey::Zygote(id));
        if let Some(g) = self.generations.get_mut(&zygote.key.generation) {
            g.zygotes -= 1;
        }
        if zygote.state == ZygoteState::Ending {
            // Orders that it got before its channel was closed are answered by nobody.
            self.drop_forking(id);
            self.serve(zygote.key);
            // Their slots are free, and its descriptors.
            self.relieve();
        } else {
            let ready = zygote.state == ZygoteState::Ready;
            let proven = zygote.proven || (ready && (!self.has_forking(id) || self.has_forked(id)));
            self.detach(id, zygote.key, proven, text);
        }
        self.forget_generation(zygote.key.generation);
    }

    pub(super) fn zygote_expired(&mut self, id: ZygoteId) {
        let Some(zygote) = self.zygotes.get(&id) else {
            return;
        };
        match zygote.state {
            ZygoteState::Starting { .. } => {
                let text = format!("its modules did not start within {} s", ZYGOTE_DEADLINE / 1000);
                self.zygote_failed(id, &text);
            }
            ZygoteState::Ending => self.out.push(Action::KillZygote { zygote: id }),
            ZygoteState::Ready => {}
        }
    }

    /// Closes the zygote's channel; it is killed if it has not ended after the grace.
    pub(super) fn end_zygote(&mut self, id: ZygoteId, grace: Millis) {
        let Some(zygote) = self.zygotes.get_mut(&id) else {
            return;
        };
        let due = self.now + grace;
        let due = self.timers.armed(TimerKey::Zygote(id)).map_or(due, |at| at.min(due));
        if zygote.state != ZygoteState::Ending {
            zygote.state = ZygoteState::Ending;
            if let Some(pool) = self.pools.get_mut(&zygote.key) {
                pool.zygote = None;
            }
            self.out.push(Action::EndZygote { zygote: id });
        }
        self.timers.arm(TimerKey::Zygote(id), due);
    }

    /// A zygote is lost: the pool has none, its open orders fail, and the pool is throttled unless it was proven.
    fn detach(&mut self, id: ZygoteId, key: PoolKey, proven: bool, text: &str) {
        if let Some(pool) = self.pools.get_mut(&key) {
            if pool.zygote == Some(id) {
                pool.zygote = None;
            }
        }
        self.drop_forking(id);
        if proven {
            // Without its zygote the pool needs the seed, which may be throttled itself.
            self.serve(key);
            self.relieve();
        } else {
            self.fail_pool(key, text);
        }
    }

    fn forking_of(&self, id: ZygoteId) -> Vec<LeaseId> {
        let of = |state: &WorkerState| matches!(state, WorkerState::Forking { zygote } if *zygote == id);
        let mut leases: Vec<LeaseId> =
            self.workers.iter().filter(|(_, w)| of(&w.state)).map(|(lease, _)| *lease).collect();
        leases.sort_unstable();
        leases
    }

    fn has_forking(&self, id: ZygoteId) -> bool {
        !self.forking_of(id).is_empty()
    }

    /// A worker of it lives: forking is not what it dies of.
    fn has_forked(&self, id: ZygoteId) -> bool {
        self.workers.values().any(|w| w.zygote == id && !matches!(w.state, WorkerState::Forking { .. }))
    }

    fn drop_forking(&mut self, id: ZygoteId) {
        for lease in self.forking_of(id) {
            self.remove_worker(lease);
            self.out.push(Action::Forget { lease });
        }
    }

    /// A start failed: no other for a while. Who waits is refused with the reason, unless a worker may come free.
    pub(super) fn fail_pool(&mut self, key: PoolKey, text: &str) {
        self.end_precedence(key);
        let number = self.number();
        let Some(pool) = self.pools.get_mut(&key) else {
            return;
        };
        // Several workers of one burst die of one cause: that is one failure.
        if pool.blocked_until <= self.now {
            pool.failures = pool.failures.saturating_add(1);
            pool.failed_at = number;
            let delay = delay_after(pool.failures);
            pool.blocked_until = self.now + delay;
            pool.reason = text.to_owned();
            self.timers.arm(TimerKey::Backoff(key), pool.blocked_until);
            self.out.push(Action::Throttled { key, delay_s: delay / 1000, text: text.to_owned() });
        }
        self.refuse_hopeless(key);
        self.mark(key);
        self.settle(key);
        self.relieve();
    }
}
