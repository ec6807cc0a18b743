//! The ledger itself: what exists, who waits, and the dispatch of events.
//!
//! Runs in: controller.  Trusts: the events.  Owns: all state of the policy.
//! Never: does I/O, reads a clock, panics on a stale or repeated event.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use super::account::{Accounts, Chain};
use super::generation::Generation;
use super::queue::{Place, Queue};
use super::timer::{TimerKey, Timers};
use super::worker::WorkerSlot;
use super::zygote::Zygote;
use super::{Action, Event, FrontendId, Millis, PoolKey, ZygoteId, ORPHANED_GRACE};
use crate::wire::control::{LeaseId, LendCount, Queued, WantId};

/// A request that waits for a worker.
#[derive(Debug)]
pub(super) struct Waiting {
    pub frontend: FrontendId,
    pub want: WantId,
    pub key: PoolKey,
    /// When its request came.
    pub since: Millis,
}

#[derive(Debug)]
pub(super) struct FrontendState {
    pub generation: u64,
    pub leases: BTreeSet<LeaseId>,
    pub wants: BTreeSet<Place>,
}

/// A pool that has a process, a Want or a failure to remember. Others have no state at all.
#[derive(Debug)]
pub(super) struct PoolState {
    pub chain: Chain,
    pub zygote: Option<ZygoteId>,
    pub wants: Queue,
    /// Idle workers, the longest-idle first.
    pub idle: VecDeque<LeaseId>,
    /// Workers ordered and not yet forked.
    pub forking: usize,
    /// Workers lent.
    pub lent: usize,
    /// Workers of other pools that are ending to make room for this one.
    pub incoming: usize,
    /// How many leases each frontend holds.
    pub holders: BTreeMap<FrontendId, usize>,
    /// What frontends believe of the queue, where that is not that nobody waits.
    pub told: BTreeMap<FrontendId, Queued>,
    /// Frontends that were told of others' requests so recently that idle leases may be on their way, and until when.
    pub asked: BTreeMap<FrontendId, Millis>,
    /// When it was last used.
    pub last_active: Millis,
    /// Failed starts in a row, the number that the last of them was given, until when none is tried, and why.
    pub failures: u32,
    pub failed_at: u64,
    pub blocked_until: Millis,
    pub reason: String,
}

impl PoolState {
    /// Whether a worker that is lent or being forked may come free for a Want.
    pub(super) fn is_alive(&self) -> bool {
        self.lent + self.forking > 0
    }

    /// How many leases may be on their way back, at most. Who was told of others' requests before has no idle ones.
    pub(super) fn awaited(&self, now: Millis) -> usize {
        let recent = self.asked.iter().filter(|(_, until)| **until > now);
        recent.filter_map(|(frontend, _)| self.holders.get(frontend)).sum()
    }

    /// The frontend learns it now.
    pub(super) fn tell(&mut self, frontend: FrontendId, queued: Queued) {
        if queued == Queued::Nobody {
            self.told.remove(&frontend);
        } else {
            self.told.insert(frontend, queued);
        }
    }

    /// Whether what the frontend believes could make it pass somebody over.
    pub(super) fn has_to_tell(&self, frontend: FrontendId, queued: Queued) -> bool {
        match (queued, self.told.get(&frontend)) {
            (Queued::Nobody, _) => false,
            (Queued::Here, told) => told.is_none(),
            (Queued::Elsewhere(oldest), Some(Queued::Elsewhere(told))) => oldest < *told,
            (Queued::Elsewhere(_), _) => true,
        }
    }
}

/// The whole state of the controller's policy.
#[derive(Debug, Default)]
pub struct State {
    pub(super) now: Millis,
    pub(super) out: Vec<Action>,
    pub(super) generations: BTreeMap<u64, Generation>,
    pub(super) pools: BTreeMap<PoolKey, PoolState>,
    pub(super) accounts: Accounts,
    pub(super) frontends: HashMap<FrontendId, FrontendState>,
    /// Frontends of a generation that is not known, or has ended.
    pub(super) strangers: HashSet<FrontendId>,
    /// Announced children of httpd's parent by pid, with their generations.
    pub(super) children: HashMap<u32, u64>,
    pub(super) wants: BTreeMap<Place, Waiting>,
    pub(super) want_index: HashMap<(FrontendId, WantId), Place>,
    pub(super) workers: HashMap<LeaseId, WorkerSlot>,
    pub(super) zygotes: HashMap<ZygoteId, Zygote>,
    pub(super) foreign: HashMap<u32, Chain>,
    pub(super) timers: Timers,
    /// Pools with a Want.
    pub(super) waiting: BTreeSet<PoolKey>,
    /// Pools that may lack spare workers only because a cap is reached.
    pub(super) hungry: HashSet<PoolKey>,
    /// Pools for which the controller had no descriptor left, and which have not tried again.
    pub(super) lacking: BTreeSet<PoolKey>,
    /// The pool that gets the next room, where those that wait keep one another out, and until when the others leave it.
    pub(super) precedence: Option<(PoolKey, Millis)>,
    pub(super) numbers: u64,
    pub(super) stopping: bool,
    pub(super) done: bool,
}

impl State {
    /// Nothing exists yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what happened and appends what has to be done to `actions`.
    pub fn handle(&mut self, event: Event, now: Millis, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        match event {
            Event::Configure { table, older } => self.configure(table, older),
            Event::ChildStarted { pid, generation } => {
                self.children.insert(pid, generation);
                // The number may have been that of an older child.
                self.end_old_generations();
            }
            Event::ChildGone { pid } => {
                self.children.remove(&pid);
                self.end_old_generations();
            }
            Event::FrontendCame { frontend, generation } => self.frontend_came(frontend, generation),
            Event::FrontendLeft { frontend } => self.frontend_left(frontend),
            Event::Want { frontend, want, pool, arrived } => self.want(frontend, want, pool, arrived),
            Event::Cancel { frontend, want } => self.cancel(frontend, want),
            Event::Return { frontend, lease, lend, how } => {
                if self.is_lent(frontend, lease, lend) {
                    self.returned(lease, how);
                }
            }
            Event::SeedReady { generation } => self.seed_ready(generation),
            Event::SeedGone { generation, text } => self.seed_gone(generation, text),
            Event::ZygoteReady { zygote } => self.zygote_ready(zygote),
            Event::ZygoteFailed { zygote, text } => self.zygote_failed(zygote, &text),
            Event::ZygoteViolated { zygote, text } => self.zygote_violated(zygote, &text),
            Event::ZygoteGone { zygote, text } => self.zygote_gone(zygote, &text),
            Event::Forked { lease, pid } => self.forked(lease, pid),
            Event::ForkFailed { lease, text } => self.fork_failed(lease, &text),
            Event::ZygoteLacks { zygote, text } => self.zygote_lacks(zygote, &text),
            Event::ForkLacks { lease, text } => self.fork_lacks(lease, &text),
            Event::WorkerGone { lease, wait_status } => self.worker_gone(lease, wait_status),
            Event::ForeignCame { pid, pool } => self.foreign_came(pid, &pool),
            Event::ForeignGone { pid } => self.foreign_gone(pid),
            Event::Stop => self.stop(),
            Event::Tick => {}
        }
        self.expire();
        self.start_queued();
        self.check_warm();
        self.check_done();
        actions.append(&mut self.out);
    }

    /// When the next [`Event::Tick`] is needed.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.timers.next()
    }

    /// Whether frontends of this generation are served.
    pub fn generation_open(&self, generation: u64) -> bool {
        self.generations.get(&generation).is_some_and(|g| !g.ended && !self.stopping)
    }

    /// Whether this frontend holds the lease under this count. What says otherwise is stale.
    pub fn is_lent(&self, frontend: FrontendId, lease: LeaseId, lend: LendCount) -> bool {
        self.workers.get(&lease).is_some_and(|w| w.lend == lend.0 && w.holder() == Some(frontend))
    }

    /// A number that was never used before.
    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn frontend_came(&mut self, frontend: FrontendId, generation: u64) {
        if self.frontends.contains_key(&frontend) {
            return;
        }
        let Some(g) = self.generations.get_mut(&generation).filter(|g| !g.ended) else {
            self.strangers.insert(frontend);
            return;
        };
        g.frontends += 1;
        self.frontends.insert(frontend, FrontendState { generation, leases: BTreeSet::new(), wants: BTreeSet::new() });
    }

    fn frontend_left(&mut self, frontend: FrontendId) {
        self.strangers.remove(&frontend);
        let Some(f) = self.frontends.remove(&frontend) else {
            return;
        };
        let mut touched = BTreeSet::new();
        for place in f.wants {
            if let Some(w) = self.remove_want(place) {
                touched.insert(w.key);
            }
        }
        for lease in f.leases {
            let Some(key) = self.workers.get(&lease).map(|w| w.key) else {
                continue;
            };
            self.take_back(lease);
            self.end_worker(lease, ORPHANED_GRACE, None);
            touched.insert(key);
        }
        for pool in self.pools.values_mut() {
            pool.told.remove(&frontend);
            pool.asked.remove(&frontend);
        }
        for key in touched {
            self.serve(key);
        }
        if let Some(g) = self.generations.get_mut(&f.generation) {
            g.frontends -= 1;
        }
        self.end_old_generations();
    }

    /// Takes a Want out of every index.
    pub(super) fn remove_want(&mut self, place: Place) -> Option<Waiting> {
        let w = self.wants.remove(&place)?;
        self.timers.disarm(TimerKey::Want(place));
        self.want_index.remove(&(w.frontend, w.want));
        if let Some(f) = self.frontends.get_mut(&w.frontend) {
            f.wants.remove(&place);
        }
        if let Some(pool) = self.pools.get_mut(&w.key) {
            pool.wants.remove(w.frontend, place);
            if pool.wants.is_empty() {
                self.waiting.remove(&w.key);
                self.end_precedence(w.key);
                self.timers.disarm(TimerKey::Pressure(w.key));
                if self.min_spare(w.key) > 0 {
                    // It may still lack spare workers, and nobody waits any more who would say so.
                    self.hungry.insert(w.key);
                } else {
                    self.lacking.remove(&w.key);
                }
            }
        }
        Some(w)
    }

    /// A worker of a dead controller: charged, never lent.
    fn foreign_came(&mut self, pid: u32, pool: &str) {
        if self.foreign.contains_key(&pid) {
            return;
        }
        let chain = self
            .generations
            .values()
            .rev()
            .find_map(|g| g.rows.iter().find(|r| &*r.name == pool))
            .map(|r| r.chain.clone());
        if let Some(chain) = chain {
            self.accounts.charge(&chain);
            self.foreign.insert(pid, chain);
        }
    }

    fn foreign_gone(&mut self, pid: u32) {
        if let Some(chain) = self.foreign.remove(&pid) {
            self.accounts.release(&chain);
            self.relieve();
        }
    }

    fn expire(&mut self) {
        while let Some(key) = self.timers.pop_due(self.now) {
            match key {
                TimerKey::Want(place) => self.want_expired(place),
                TimerKey::Pressure(key) => {
                    self.grow(key);
                    self.mark(key);
                }
                TimerKey::Asked(key) => {
                    if let Some(pool) = self.pools.get_mut(&key) {
                        pool.asked.clear();
                    }
                    self.grow(key);
                }
                TimerKey::Idle(key) => self.expire_idle(key),
                TimerKey::Backoff(key) => self.serve(key),
                TimerKey::Worker(lease) => self.worker_expired(lease),
                TimerKey::Zygote(zygote) => self.zygote_expired(zygote),
                TimerKey::Seed(generation) => self.seed_expired(generation),
                TimerKey::Warm(generation) => self.warmed(generation),
                // What is due is done after each event.
                TimerKey::Starts(_) => {}
            }
        }
    }

    fn check_done(&mut self) {
        if self.stopping
            && !self.done
            && self.workers.is_empty()
            && self.zygotes.is_empty()
            && self.generations.values().all(Generation::has_no_seed)
        {
            self.done = true;
            self.out.push(Action::Done);
        }
    }
}
