//! Workers: forked, lent, returned, ended.
//!
//! Runs in: controller.  Trusts: the events.  Owns: the state of each worker and its lease.
//! Never: lends a worker that is ending, forgets one that was not reaped.

use super::account::Chain;
use super::state::State;
use super::timer::TimerKey;
use super::{describe_status, Action, FrontendId, Millis, PoolKey, ZygoteId};
use super::{ABANDONED_GRACE, DEAD_GRACE, FORK_DEADLINE, IN_USE, LAST_GRACE, RETIRE_GRACE, STOP_GRACE, UNUSED_DEATHS};
use crate::wire::control::{LeaseId, LendCount, Returned};

#[derive(Debug)]
pub(super) enum WorkerState {
    /// Ordered from the zygote; there may be no process yet.
    Forking { zygote: ZygoteId },
    /// The controller holds its data socket.
    Idle { since: Millis },
    /// A frontend holds it.
    Lent { frontend: FrontendId, since: Millis },
    /// It ends, by itself or killed at its deadline.
    Ending {
        /// The pool that gets the slot.
        room_for: Option<PoolKey>,
        /// The frontend that wants to hear how it ended.
        mourner: Option<FrontendId>,
    },
}

/// A worker, from the order to fork it until it is reaped.
#[derive(Debug)]
pub(super) struct WorkerSlot {
    pub key: PoolKey,
    pub chain: Chain,
    pub zygote: ZygoteId,
    pub pid: u32,
    pub lend: u32,
    pub ever_lent: bool,
    /// When it was forked, its zygote had workers that served.
    pub proven: bool,
    pub state: WorkerState,
}

impl WorkerSlot {
    pub(super) fn holder(&self) -> Option<FrontendId> {
        match self.state {
            WorkerState::Lent { frontend, .. } => Some(frontend),
            _ => None,
        }
    }
}

impl State {
    // ===== birth =====

    pub(super) fn fork(&mut self, key: PoolKey, zygote: ZygoteId) {
        let lease = LeaseId(self.number());
        let Some(pool) = self.pools.get_mut(&key) else {
            return;
        };
        pool.forking += 1;
        let chain = pool.chain.clone();
        self.accounts.charge(&chain);
        if let Some(g) = self.generations.get_mut(&key.generation) {
            g.workers += 1;
        }
        let state = WorkerState::Forking { zygote };
        let proven = self.zygotes.get(&zygote).is_some_and(|z| z.proven);
        self.workers.insert(lease, WorkerSlot { key, chain, zygote, pid: 0, lend: 0, ever_lent: false, proven, state });
        self.timers.arm(TimerKey::Worker(lease), self.now + FORK_DEADLINE);
        self.out.push(Action::Fork { lease, zygote, key });
    }

    pub(super) fn forked(&mut self, lease: LeaseId, pid: u32) {
        let Some(worker) = self.workers.get_mut(&lease) else {
            // Given up meanwhile.
            self.out.push(Action::Kill { lease });
            return;
        };
        if !matches!(worker.state, WorkerState::Forking { .. }) {
            return;
        }
        worker.pid = pid;
        worker.state = WorkerState::Ending { room_for: None, mourner: None };
        let key = worker.key;
        self.timers.disarm(TimerKey::Worker(lease));
        self.end_precedence(key);
        if let Some(pool) = self.pools.get_mut(&key) {
            pool.forking -= 1;
        }
        self.idle_or_grant(lease, true);
    }

    pub(super) fn fork_failed(&mut self, lease: LeaseId, text: &str) {
        let Some(worker) = self.workers.get(&lease) else {
            return;
        };
        if matches!(worker.state, WorkerState::Forking { .. }) {
            let key = worker.key;
            self.remove_worker(lease);
            self.out.push(Action::Forget { lease });
            self.fail_pool(key, text);
        }
    }

    // ===== idle =====

    pub(super) fn make_idle(&mut self, lease: LeaseId) {
        let Some(worker) = self.workers.get_mut(&lease) else {
            return;
        };
        worker.state = WorkerState::Idle { since: self.now };
        self.accounts.add_idle(&worker.chain, self.now, lease);
        if let Some(pool) = self.pools.get_mut(&worker.key) {
            pool.idle.push_back(lease);
            pool.last_active = self.now;
        }
    }

    /// Takes a worker out of the idle ones, if it is one.
    pub(super) fn unidle(&mut self, lease: LeaseId) {
        let Some(worker) = self.workers.get(&lease) else {
            return;
        };
        if let WorkerState::Idle { since } = worker.state {
            self.accounts.remove_idle(&worker.chain, since, lease);
            if let Some(pool) = self.pools.get_mut(&worker.key) {
                pool.idle.retain(|other| *other != lease);
            }
        }
    }

    pub(super) fn idle_since(&self, lease: LeaseId) -> Millis {
        match self.workers.get(&lease).map(|w| &w.state) {
            Some(WorkerState::Idle { since }) => *since,
            _ => self.now,
        }
    }

    // ===== back from a frontend =====

    /// Takes a lent worker out of the books of its frontend.
    pub(super) fn take_back(&mut self, lease: LeaseId) -> Option<FrontendId> {
        let worker = self.workers.get_mut(&lease)?;
        let WorkerState::Lent { frontend, since } = worker.state else {
            return None;
        };
        worker.state = WorkerState::Ending { room_for: None, mourner: None };
        self.accounts.remove_lent(&worker.chain, since, lease);
        if let Some(pool) = self.pools.get_mut(&worker.key) {
            pool.lent -= 1;
            pool.last_active = self.now;
            if let Some(count) = pool.holders.get_mut(&frontend) {
                *count -= 1;
                if *count == 0 {
                    pool.holders.remove(&frontend);
                }
            }
        }
        if let Some(f) = self.frontends.get_mut(&frontend) {
            f.leases.remove(&lease);
        }
        Some(frontend)
    }

    pub(super) fn returned(&mut self, lease: LeaseId, how: Returned) {
        let Some(frontend) = self.take_back(lease) else {
            return;
        };
        let Some(worker) = self.workers.get_mut(&lease) else {
            return;
        };
        let key = worker.key;
        if !matches!(how, Returned::Dead | Returned::Violation) {
            let zygote = worker.zygote;
            if let Some(z) = self.zygotes.get_mut(&zygote) {
                z.proven = true;
                z.unused_deaths = 0;
            }
            // One that is older than the last failure says nothing of whether others can start.
            if let Some(pool) = self.pools.get_mut(&key).filter(|pool| lease.0 > pool.failed_at) {
                pool.failures = 0;
            }
        }
        match how {
            Returned::Idle => return self.idle_or_grant(lease, false),
            Returned::Last => self.end_worker(lease, LAST_GRACE, None),
            Returned::Abandoned => self.end_worker(lease, ABANDONED_GRACE, None),
            Returned::Dead => {
                self.end_worker(lease, DEAD_GRACE, None);
                self.mourn(lease, frontend);
            }
            Returned::Expired => {
                let grace = self.row(key).map_or(0, |row| row.limits.kill_grace_ms);
                self.out.push(Action::Interrupt { lease });
                self.end_worker(lease, grace, None);
            }
            Returned::Violation | Returned::TimedOut => self.end_worker(lease, 0, None),
        }
        self.serve(key);
    }

    pub(super) fn recall(&mut self, lease: LeaseId) {
        let Some(worker) = self.workers.get(&lease) else {
            return;
        };
        if let WorkerState::Lent { frontend, since } = worker.state {
            self.accounts.remove_lent(&worker.chain, since, lease);
            self.out.push(Action::Recall { frontend, lease, lend: LendCount(worker.lend) });
        }
    }

    // ===== end =====

    /// Lets a worker that nobody holds end: the controller's copy of its socket is closed, if there is one, and it is
    /// killed after the grace. `room_for` names the pool that the slot was freed for.
    pub(super) fn end_worker(&mut self, lease: LeaseId, grace: Millis, room_for: Option<PoolKey>) {
        let grace = if self.stopping { grace.min(STOP_GRACE) } else { grace };
        let Some(worker) = self.workers.get_mut(&lease) else {
            return;
        };
        worker.state = WorkerState::Ending { room_for, mourner: None };
        if let Some(pool) = room_for.and_then(|key| self.pools.get_mut(&key)) {
            pool.incoming += 1;
        }
        self.out.push(Action::Retire { lease });
        if grace == 0 {
            self.out.push(Action::Kill { lease });
        } else {
            self.timers.arm(TimerKey::Worker(lease), self.now + grace);
        }
    }

    fn mourn(&mut self, lease: LeaseId, frontend: FrontendId) {
        if let Some(WorkerState::Ending { mourner, .. }) = self.workers.get_mut(&lease).map(|w| &mut w.state) {
            *mourner = Some(frontend);
        }
    }

    /// The server stops: whatever the worker does, it has [`STOP_GRACE`] left.
    pub(super) fn stop_worker(&mut self, lease: LeaseId) {
        let Some(worker) = self.workers.get(&lease) else {
            return;
        };
        match worker.state {
            WorkerState::Idle { .. } => {
                self.unidle(lease);
                self.end_worker(lease, STOP_GRACE, None);
            }
            WorkerState::Lent { .. } => {
                if let Some(frontend) = self.take_back(lease) {
                    self.end_worker(lease, STOP_GRACE, None);
                    self.mourn(lease, frontend);
                }
            }
            WorkerState::Ending { .. } => {
                let due = self.now + STOP_GRACE;
                if self.timers.armed(TimerKey::Worker(lease)).is_some_and(|at| at > due) {
                    self.timers.arm(TimerKey::Worker(lease), due);
                }
            }
            // Its zygote ends now, and with it the order.
            WorkerState::Forking { .. } => {}
        }
    }

    pub(super) fn worker_expired(&mut self, lease: LeaseId) {
        let Some(worker) = self.workers.get(&lease) else {
            return;
        };
        match worker.state {
            WorkerState::Forking { zygote } => {
                let text = format!("no worker was forked within {} s", FORK_DEADLINE / 1000);
                self.zygote_failed(zygote, &text);
            }
            WorkerState::Ending { .. } => self.out.push(Action::Kill { lease }),
            WorkerState::Idle { .. } | WorkerState::Lent { .. } => {}
        }
    }

    /// Takes a worker out of every book.
    pub(super) fn remove_worker(&mut self, lease: LeaseId) -> Option<WorkerSlot> {
        self.unidle(lease);
        let worker = self.workers.remove(&lease)?;
        self.timers.disarm(TimerKey::Worker(lease));
        self.accounts.release(&worker.chain);
        if let Some(g) = self.generations.get_mut(&worker.key.generation) {
            g.workers -= 1;
        }
        if let WorkerState::Forking { .. } = worker.state {
            if let Some(pool) = self.pools.get_mut(&worker.key) {
                pool.forking -= 1;
            }
        }
        if let WorkerState::Ending { room_for: Some(key), .. } = worker.state {
            if let Some(pool) = self.pools.get_mut(&key) {
                pool.incoming = pool.incoming.saturating_sub(1);
            }
        }
        Some(worker)
    }

    /// Whether the death of a worker that has served nothing tells nothing of how the next one will start: somebody
    /// killed it. A few times in a row, lest a pool whose database is down forks without end.
    fn is_accident(&mut self, worker: &WorkerSlot) -> bool {
        let Some(zygote) = self.zygotes.get_mut(&worker.zygote) else {
            // The next one starts from another zygote, which has to prove itself.
            return worker.proven;
        };
        zygote.unused_deaths = zygote.unused_deaths.saturating_add(1);
        let few = zygote.unused_deaths <= UNUSED_DEATHS;
        few && (zygote.proven || self.workers.values().any(|w| w.zygote == worker.zygote && self.is_in_use(w)))
    }

    /// Whether a frontend has had it for so long that it surely serves: a busy one is not given back for hours.
    fn is_in_use(&self, worker: &WorkerSlot) -> bool {
        matches!(worker.state, WorkerState::Lent { since, .. } if self.now - since >= IN_USE)
    }

    /// What is in use, or dies in use, started well, and so did its zygote.
    fn prove_by_use(&mut self, lease: LeaseId) {
        let Some(worker) = self.workers.get(&lease).filter(|w| self.is_in_use(w)) else {
            return;
        };
        if let Some(zygote) = self.zygotes.get_mut(&worker.zygote) {
            zygote.proven = true;
        }
    }

    pub(super) fn worker_gone(&mut self, lease: LeaseId, wait_status: i32) {
        self.prove_by_use(lease);
        let holder = self.take_back(lease);
        if let Some(frontend) = holder {
            self.mourn(lease, frontend);
        }
        let Some(worker) = self.remove_worker(lease) else {
            return;
        };
        let key = worker.key;
        match worker.state {
            WorkerState::Ending { mourner: Some(frontend), .. } if self.frontends.contains_key(&frontend) => {
                self.out.push(Action::Obituary {
                    frontend,
                    lease,
                    lend: LendCount(worker.lend),
                    pid: worker.pid,
                    wait_status,
                });
            }
            WorkerState::Idle { .. } | WorkerState::Forking { .. }
                if !worker.ever_lent && !self.stopping && !self.is_accident(&worker) =>
            {
                let text = format!("a worker died before its first request: {}", describe_status(wait_status));
                self.fail_pool(key, &text);
            }
            _ => {}
        }
        self.relieve();
        self.serve(key);
        if let WorkerState::Ending { room_for: Some(other), .. } = worker.state {
            self.settle(other);
        }
        self.forget_generation(key.generation);
    }
}

/// The grace of a retired worker must not outlast the patience of who waits for its slot by orders of magnitude.
const _: () = assert!(RETIRE_GRACE <= 5_000);
