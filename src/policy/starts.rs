//! How many zygotes start at a time and how many live: who needs one and may not start it yet waits here for its turn.
//!
//! Runs in: controller.  Trusts: the events.  Owns: the order in which pools get their zygotes.
//! Never: orders more zygotes than a seed's channel holds, lets a zygote that is slow to start hold up others for long.

use std::collections::{BTreeSet, HashMap};

use super::state::State;
use super::timer::TimerKey;
use super::zygote::ZygoteState;
use super::{Millis, PoolKey, ZygoteId, MAX_STARTING, RETIRE_GRACE, SLOW_START, STARTS_AT_ONCE};

/// Who waits: pools for which requests wait come before those that lack spare workers only, then first come, first
/// served.
type Turn = (bool, u64);

/// The pools of one generation that wait for their turn to start a zygote.
#[derive(Debug, Default)]
pub(super) struct Starts {
    order: BTreeSet<(Turn, PoolKey)>,
    turns: HashMap<PoolKey, Turn>,
}

impl Starts {
    /// Takes a pool in. One that waits already keeps its place, unless requests wait for it now and did not before.
    fn add(&mut self, key: PoolKey, only_spare: bool, number: u64) {
        match self.turns.get(&key) {
            Some(turn) if turn.0 <= only_spare => return,
            Some(turn) => drop(self.order.remove(&(*turn, key))),
            None => {}
        }
        let turn = (only_spare, number);
        self.turns.insert(key, turn);
        self.order.insert((turn, key));
    }

    fn pop(&mut self) -> Option<PoolKey> {
        let (_, key) = self.order.pop_first()?;
        self.turns.remove(&key);
        Some(key)
    }

    pub(super) fn clear(&mut self) {
        self.order.clear();
        self.turns.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    #[cfg(test)]
    pub(super) fn contains(&self, key: PoolKey) -> bool {
        self.turns.contains_key(&key)
    }
}

/// Whether a zygote may be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Yes,
    /// Others are being started.
    Later(Option<Millis>),
    /// As many live as may.
    Full,
}

impl State {
    /// Most zygotes of a generation that live at a time: one for each worker that the root pool may have, as a pool with a
    /// worker has at most one zygote, and those of pools that wait for a worker to end.
    fn most_zygotes(&self, generation: u64) -> usize {
        let root = PoolKey { generation, pool: 0 };
        self.row(root).map_or(0, |row| self.accounts.cap(&row.name) as usize) + STARTS_AT_ONCE
    }

    pub(super) fn room_for_zygote(&self, generation: u64) -> Room {
        let Some(g) = self.generations.get(&generation) else {
            return Room::Full;
        };
        if g.zygotes >= self.most_zygotes(generation) {
            return Room::Full;
        }
        let mut starting = 0;
        let mut quick = 0;
        let mut next = None;
        for zygote in self.zygotes.values().filter(|z| z.key.generation == generation) {
            let ZygoteState::Starting { since } = zygote.state else {
                continue;
            };
            starting += 1;
            if since + SLOW_START > self.now {
                quick += 1;
                next = Some(next.unwrap_or(Millis::MAX).min(since + SLOW_START));
            }
        }
        if starting >= MAX_STARTING {
            return Room::Later(None);
        }
        if quick >= STARTS_AT_ONCE {
            return Room::Later(next);
        }
        Room::Yes
    }

    /// The pool waits for its turn.
    pub(super) fn queue_start(&mut self, key: PoolKey) {
        let number = self.number();
        let only_spare = self.pools.get(&key).is_none_or(|pool| pool.wants.is_empty());
        if let Some(g) = self.generations.get_mut(&key.generation) {
            g.starts.add(key, only_spare, number);
        }
    }

    /// After each event: starts zygotes for those who wait for their turn, as far as there is room.
    pub(super) fn start_queued(&mut self) {
        if self.stopping {
            return;
        }
        let queued: Vec<u64> = self.generations.iter().filter(|(_, g)| g.starts.len() > 0).map(|(n, _)| *n).collect();
        for generation in queued {
            self.start_queued_of(generation);
        }
    }

    fn start_queued_of(&mut self, generation: u64) {
        self.timers.disarm(TimerKey::Starts(generation));
        if !self.seed_is_ready(generation) {
            return;
        }
        while self.generations.get(&generation).is_some_and(|g| g.starts.len() > 0) {
            match self.room_for_zygote(generation) {
                Room::Yes => {}
                Room::Later(next) => {
                    if let Some(at) = next {
                        self.timers.arm(TimerKey::Starts(generation), at);
                    }
                    return;
                }
                Room::Full => return self.evict_zygotes(generation),
            }
            if let Some(key) = self.generations.get_mut(&generation).and_then(|g| g.starts.pop()) {
                self.grow(key);
            }
        }
    }

    /// Ends zygotes that no worker needs, the least recently used first, for as many pools as wait.
    fn evict_zygotes(&mut self, generation: u64) {
        let Some(g) = self.generations.get(&generation) else {
            return;
        };
        let ending = |z: &&super::zygote::Zygote| z.key.generation == generation && z.state == ZygoteState::Ending;
        let on_their_way = self.zygotes.values().filter(ending).count();
        let needed = g.starts.len().min(STARTS_AT_ONCE).saturating_sub(on_their_way);
        let mut unused: Vec<(bool, Millis, ZygoteId)> =
            self.zygotes.keys().filter_map(|id| self.unused_zygote(*id, generation)).collect();
        unused.sort_unstable();
        for (_, _, id) in unused.into_iter().take(needed) {
            self.end_zygote(id, RETIRE_GRACE);
        }
    }

    /// A zygote that its pool does without: it has no worker, and nobody waits for one, or none can be had now. Those for
    /// which nobody waits come first.
    fn unused_zygote(&self, id: ZygoteId, generation: u64) -> Option<(bool, Millis, ZygoteId)> {
        let zygote = self.zygotes.get(&id)?;
        if zygote.key.generation != generation || zygote.state != ZygoteState::Ready {
            return None;
        }
        let pool = self.pools.get(&zygote.key)?;
        let idle = pool.forking + pool.lent + pool.idle.len() == 0;
        let waits = !pool.wants.is_empty();
        (idle && (!waits || self.accounts.full(&pool.chain).is_some())).then_some((waits, pool.last_active, id))
    }
}
