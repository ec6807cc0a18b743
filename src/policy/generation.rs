//! Generations of the configuration, and the seed of each.
//!
//! Runs in: controller.  Trusts: the events.  Owns: pool tables, the state of each seed.
//! Never: ends a generation that a frontend still belongs to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use super::account::Chain;
use super::starts::{Room, Starts};
use super::state::State;
use super::timer::TimerKey;
use super::{delay_after, seconds, Action, Millis, PoolKey, OLD_IDLE, RETIRE_GRACE, WARM_PATIENCE};
use super::{SEED_DEADLINE, SEED_PATIENCE, SEED_PROVEN, STOP_GRACE};
use crate::wire::control::{PoolRow, PoolTable, Refusal};

/// A row of a pool table, with the accounts it is charged to.
#[derive(Debug)]
pub(super) struct Row {
    pub name: Rc<str>,
    pub chain: Chain,
    pub limits: PoolRow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeedState {
    /// It reads its configuration.
    Starting,
    /// It takes orders, since then.
    Ready(Millis),
    /// It has died; it is started again at its deadline.
    Down,
    /// Its channel is closed or it was killed; it has not been reaped.
    Ending,
    /// There is none, and none was needed so far, or is any more.
    Absent,
}

#[derive(Debug)]
pub(super) struct Generation {
    pub rows: Vec<Row>,
    pub frontends: usize,
    pub seed: SeedState,
    /// Failed starts of the seed in a row, and why the last one failed.
    pub failures: u32,
    pub reason: String,
    /// Nobody belongs to it any more, and it is not the newest.
    pub ended: bool,
    /// Pools that are in use in older generations, and how many workers they have there: as many are made ready before
    /// frontends change over. Empty once that is done, or was tried for long enough.
    pub warming: BTreeMap<PoolKey, usize>,
    /// Frontends may change over to it: its pools are warm, or have had time for that.
    pub changed_over: bool,
    /// Pools that wait for their turn to start a zygote.
    pub starts: Starts,
    /// Processes that were forked for it and not reaped.
    pub zygotes: usize,
    pub workers: usize,
}

impl Generation {
    pub(super) fn has_no_seed(&self) -> bool {
        matches!(self.seed, SeedState::Absent | SeedState::Down)
    }
}

/// Rows with their accounts. A parent stands before its sub pools (the decoder has checked that).
fn rows(pools: Vec<PoolRow>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::with_capacity(pools.len());
    for limits in pools {
        let name: Rc<str> = Rc::from(limits.name.as_str());
        let mut chain = vec![Rc::clone(&name)];
        if let Some(parent) = limits.parent.and_then(|p| rows.get(p as usize)) {
            chain.extend(parent.chain.iter().cloned());
        }
        rows.push(Row { name, chain: chain.into(), limits });
    }
    rows
}

impl State {
    /// An older one has a seed only when a frontend needs it: most have nothing left but long downloads.
    pub(super) fn configure(&mut self, table: PoolTable, older: bool) {
        let number = table.generation;
        if self.stopping || self.generations.contains_key(&number) {
            return;
        }
        let generation = Generation {
            rows: rows(table.pools),
            frontends: 0,
            seed: SeedState::Absent,
            failures: 0,
            reason: String::new(),
            ended: false,
            warming: BTreeMap::new(),
            changed_over: older,
            starts: Starts::default(),
            zygotes: 0,
            workers: 0,
        };
        // Nobody changes over to an older one any more.
        for older in self.generations.keys().copied().collect::<Vec<_>>() {
            self.warmed(older);
        }
        self.generations.insert(number, generation);
        self.set_caps();
        if !older {
            self.start_seed(number);
        }
        self.end_old_generations();
        self.relieve();
    }

    /// The newest table that knows a name sets its cap.
    fn set_caps(&mut self) {
        for generation in self.generations.values() {
            for row in &generation.rows {
                self.accounts.set_cap(&row.name, row.limits.max_processes);
            }
        }
    }

    pub(super) fn row(&self, key: PoolKey) -> Option<&Row> {
        self.generations.get(&key.generation)?.rows.get(key.pool as usize)
    }

    fn is_newest(&self, generation: u64) -> bool {
        self.generations.keys().next_back() == Some(&generation)
    }

    /// Whether frontends change over from this generation to a newer one, or have done so. Until they may, requests come
    /// to this one as ever.
    fn is_left(&self, generation: u64) -> bool {
        self.generations.range(generation + 1..).any(|(_, newer)| newer.changed_over)
    }

    /// Spare workers to keep: none in a generation that is left or while the server stops.
    pub(super) fn min_spare(&self, key: PoolKey) -> usize {
        if self.stopping || self.is_left(key.generation) {
            return 0;
        }
        self.row(key).filter(|r| r.limits.uid.is_some()).map_or(0, |r| r.limits.min_spare as usize)
    }

    pub(super) fn idle_timeout(&self, key: PoolKey) -> Millis {
        let own = self.row(key).map_or(0, |r| r.limits.idle_timeout_ms);
        if self.is_left(key.generation) {
            own.min(OLD_IDLE)
        } else {
            own
        }
    }

    /// Frontends change over to this generation. What is idle in older ones has a shorter life from now on, and keeps no
    /// spare.
    fn change_over(&mut self, number: u64) {
        let Some(g) = self.generations.get_mut(&number).filter(|g| !g.changed_over) else {
            return;
        };
        g.changed_over = true;
        let older: Vec<PoolKey> = self.pools.keys().filter(|key| key.generation < number).copied().collect();
        for key in older {
            self.settle(key);
        }
        self.relieve();
    }

    // ===== the seed =====

    /// Somebody needs the seed, which may not have been started.
    pub(super) fn need_seed(&mut self, number: u64) {
        let absent = self.generations.get(&number).is_some_and(|g| g.seed == SeedState::Absent);
        if absent && self.generation_open(number) {
            self.start_seed(number);
        }
    }

    fn start_seed(&mut self, number: u64) {
        let Some(g) = self.generations.get_mut(&number) else {
            return;
        };
        g.seed = SeedState::Starting;
        self.timers.arm(TimerKey::Seed(number), self.now + SEED_DEADLINE);
        self.out.push(Action::StartSeed { generation: number });
    }

    pub(super) fn seed_ready(&mut self, number: u64) {
        let Some(g) = self.generations.get_mut(&number) else {
            return;
        };
        if g.seed != SeedState::Starting {
            return;
        }
        g.seed = SeedState::Ready(self.now);
        self.timers.disarm(TimerKey::Seed(number));
        let mut keys: Vec<PoolKey> = Vec::new();
        for (pool, row) in (0u32..).zip(&g.rows) {
            let key = PoolKey { generation: number, pool };
            if row.limits.min_spare > 0 || self.waiting.contains(&key) {
                keys.push(key);
            }
        }
        for key in keys {
            self.grow(key);
            self.mark(key);
        }
        self.warm_up(number);
    }

    /// Makes the pools ready that are in use in an older generation: their next requests come soon.
    fn warm_up(&mut self, number: u64) {
        let mut in_use: HashMap<Rc<str>, usize> = HashMap::new();
        for (key, pool) in &self.pools {
            let workers = pool.lent + pool.idle.len() + pool.forking;
            if key.generation < number && workers > 0 {
                if let Some(row) = self.row(*key) {
                    *in_use.entry(Rc::clone(&row.name)).or_default() += workers;
                }
            }
        }
        let newest = self.is_newest(number);
        let Some(g) = self.generations.get_mut(&number) else {
            return;
        };
        if newest {
            let rows = (0u32..).zip(&g.rows).filter(|(_, row)| row.limits.uid.is_some());
            let warming =
                rows.filter_map(|(pool, row)| Some((PoolKey { generation: number, pool }, *in_use.get(&row.name)?)));
            g.warming = warming.collect();
        }
        let keys: Vec<PoolKey> = g.warming.keys().copied().collect();
        if keys.is_empty() {
            self.out.push(Action::Warm { generation: number });
            self.change_over(number);
            return;
        }
        self.timers.arm(TimerKey::Warm(number), self.now + WARM_PATIENCE);
        for key in keys {
            self.ensure_pool(key);
            self.grow(key);
            self.settle(key);
        }
    }

    /// Workers that a pool is to have before frontends change over to its generation.
    pub(super) fn warming(&self, key: PoolKey) -> usize {
        self.generations.get(&key.generation).and_then(|g| g.warming.get(&key)).copied().unwrap_or(0)
    }

    /// After each event: tells when the newest generation is warm. A pool that cannot have more workers, or cannot start,
    /// is as warm as it gets.
    pub(super) fn check_warm(&mut self) {
        let Some((&number, g)) = self.generations.iter().next_back().filter(|(_, g)| !g.warming.is_empty()) else {
            return;
        };
        let cold = |key: &PoolKey, wanted: usize| {
            let Some(pool) = self.pools.get(key) else {
                return false;
            };
            if self.throttled(*key).is_some() {
                return false;
            }
            let full = self.accounts.full(&pool.chain).is_some();
            if pool.zygote.is_none() && full && self.room_for_zygote(number) == Room::Full {
                return false;
            }
            let zygote = self.zygote_is_ready(pool.zygote);
            !zygote || pool.forking > 0 || (pool.idle.len() + pool.lent < wanted && !full)
        };
        if !g.warming.iter().any(|(key, wanted)| cold(key, *wanted)) {
            self.warmed(number);
        }
    }

    pub(super) fn warmed(&mut self, number: u64) {
        self.timers.disarm(TimerKey::Warm(number));
        let warming = self.generations.get_mut(&number).map(|g| std::mem::take(&mut g.warming)).unwrap_or_default();
        if !warming.is_empty() {
            self.out.push(Action::Warm { generation: number });
        }
        for key in warming.into_keys() {
            self.settle(key);
        }
        self.change_over(number);
    }

    pub(super) fn seed_gone(&mut self, number: u64, text: String) {
        let Some(g) = self.generations.get_mut(&number) else {
            return;
        };
        let was = std::mem::replace(&mut g.seed, SeedState::Absent);
        // Who needs a zygote asks again when there is a seed.
        g.starts.clear();
        self.timers.disarm(TimerKey::Seed(number));
        if g.ended || self.stopping {
            self.warmed(number);
            self.forget_generation(number);
            return;
        }
        if matches!(was, SeedState::Ready(since) if self.now - since >= SEED_PROVEN) {
            g.failures = 0;
        }
        g.failures = g.failures.saturating_add(1);
        g.reason = text;
        g.seed = SeedState::Down;
        let delay = delay_after(g.failures);
        self.timers.arm(TimerKey::Seed(number), self.now + delay);
        self.warmed(number);
        if self.seed_throttled(number).is_some() {
            let keys: Vec<PoolKey> = self.waiting.iter().filter(|k| k.generation == number).copied().collect();
            for key in keys {
                self.refuse_hopeless(key);
                self.mark(key);
                self.settle(key);
            }
        }
    }

    pub(super) fn seed_expired(&mut self, number: u64) {
        let Some(g) = self.generations.get_mut(&number) else {
            return;
        };
        match g.seed {
            SeedState::Starting | SeedState::Ending => {
                g.seed = SeedState::Ending;
                self.out.push(Action::KillSeed { generation: number });
            }
            SeedState::Down => self.start_seed(number),
            SeedState::Ready(_) | SeedState::Absent => {}
        }
    }

    /// How long, and why, who needs this generation's seed is refused.
    pub(super) fn seed_throttled(&self, number: u64) -> Option<(u32, String)> {
        let g = self.generations.get(&number)?;
        if matches!(g.seed, SeedState::Ready(_)) || g.failures < SEED_PATIENCE {
            return None;
        }
        let left = match g.seed {
            SeedState::Down => self.timers.armed(TimerKey::Seed(number)).map_or(0, |at| at.saturating_sub(self.now)),
            _ => 0,
        };
        Some((seconds(left), format!("the pools' seed process fails: {}", g.reason)))
    }

    pub(super) fn seed_is_ready(&self, number: u64) -> bool {
        self.generations.get(&number).is_some_and(|g| matches!(g.seed, SeedState::Ready(_)))
    }

    /// Closes the seed's channel, and kills it later if that does not suffice.
    fn end_seed(&mut self, number: u64, grace: Millis) {
        let Some(g) = self.generations.get_mut(&number) else {
            return;
        };
        match g.seed {
            SeedState::Starting | SeedState::Ready(_) => {
                g.seed = SeedState::Ending;
                self.timers.arm(TimerKey::Seed(number), self.now + grace);
                self.out.push(Action::EndSeed { generation: number });
            }
            SeedState::Ending => {
                let due = self.timers.armed(TimerKey::Seed(number)).unwrap_or(Millis::MAX);
                self.timers.arm(TimerKey::Seed(number), due.min(self.now + grace));
            }
            SeedState::Down | SeedState::Absent => {
                g.seed = SeedState::Absent;
                self.timers.disarm(TimerKey::Seed(number));
            }
        }
    }

    // ===== the end =====

    /// Ends the generations that are not the newest and have neither a frontend nor a child that may become one.
    pub(super) fn end_old_generations(&mut self) {
        let Some(&newest) = self.generations.keys().next_back() else {
            return;
        };
        let ending: Vec<u64> = self
            .generations
            .iter()
            .filter(|(number, g)| **number != newest && g.frontends == 0 && !g.ended)
            .filter(|(number, _)| !self.children.values().any(|generation| generation == *number))
            .map(|(number, _)| *number)
            .collect();
        for number in ending {
            if let Some(g) = self.generations.get_mut(&number) {
                g.ended = true;
            }
            let keys: Vec<PoolKey> = self.keys_of(number);
            for key in keys {
                while let Some(lease) = self.pools.get(&key).and_then(|p| p.idle.front().copied()) {
                    self.unidle(lease);
                    self.end_worker(lease, RETIRE_GRACE, None);
                }
                self.settle(key);
            }
            self.end_seed(number, RETIRE_GRACE);
            self.forget_generation(number);
        }
    }

    fn keys_of(&self, number: u64) -> Vec<PoolKey> {
        let first = PoolKey { generation: number, pool: 0 };
        let last = PoolKey { generation: number, pool: u32::MAX };
        self.pools.range(first..=last).map(|(key, _)| *key).collect()
    }

    /// Drops an ended generation when its last process is gone.
    pub(super) fn forget_generation(&mut self, number: u64) {
        let Some(g) = self.generations.get(&number) else {
            return;
        };
        if !g.ended || g.seed != SeedState::Absent || g.zygotes > 0 || g.workers > 0 {
            return;
        }
        for key in self.keys_of(number) {
            for timer in [TimerKey::Idle(key), TimerKey::Backoff(key), TimerKey::Pressure(key)] {
                self.timers.disarm(timer);
            }
            self.pools.remove(&key);
            self.hungry.remove(&key);
        }
        self.generations.remove(&number);
        let known: HashSet<&str> =
            self.generations.values().flat_map(|g| g.rows.iter().map(|r| r.limits.name.as_str())).collect();
        self.accounts.retain(|name| known.contains(name));
        self.out.push(Action::GenerationGone { generation: number });
    }

    pub(super) fn stop(&mut self) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        for key in self.waiting.clone() {
            self.refuse_all(key, Refusal::Stopping, 1, "the server is stopping");
        }
        let mut leases: Vec<_> = self.workers.keys().copied().collect();
        leases.sort_unstable();
        for lease in leases {
            self.stop_worker(lease);
        }
        let mut zygotes: Vec<_> = self.zygotes.keys().copied().collect();
        zygotes.sort_unstable();
        for zygote in zygotes {
            self.end_zygote(zygote, STOP_GRACE);
        }
        let numbers: Vec<u64> = self.generations.keys().copied().collect();
        for number in numbers {
            self.end_seed(number, STOP_GRACE);
        }
    }
}
