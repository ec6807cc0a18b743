//! What the processes of pools leave behind: adopted, allowed to live with their session, or ended. Also what those of a
//! controller before this one left: its keeper has adopted it.
//!
//! Runs in: controller (subreaper of all it started).  Trusts: /proc.  Owns: the keepers' pidfds.
//! Never: ends a child that an open order may still be about.

use super::seeds::Seed;
use super::workers::WorkerProcess;
use super::zygotes::ZygoteProcess;
use super::{log, Controller};
use crate::policy::{Millis, PoolKey};
use crate::sys::launch;
use crate::sys::process::{self, PidFd};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

/// How often we look.
const INTERVAL: Millis = 5_000;
/// How long after the death of a process we look: what it left is adopted by then.
const SOON: Millis = 100;
/// A child that no answer has named after this time is nobody's: orders are answered or failed by then.
const UNCLAIMED: Millis = 10_000;
/// How long the last look, at the end of the controller, may take.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// Most children looked at in one go; the others come next.
const MOST_AT_ONCE: usize = 256;
/// Of each pool, one line is logged in this time.
const NOTE_INTERVAL: Millis = 1_000;

/// When to look next, and what is known of the children that are nobody's.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    due: Millis,
    /// Since when.
    suspects: HashMap<u32, Millis>,
    /// Killed, and not reaped yet.
    killed: HashSet<u32>,
    /// The same of zygotes and workers, and those that have ended and cannot be reaped.
    condemned: HashMap<u32, PoolKey>,
    /// Where the last look stopped; 0 after a whole round.
    last: u32,
    /// Killed and not told yet, by pool: how many, and one of them.
    untold: BTreeMap<String, (usize, u32)>,
    told: Option<Millis>,
    /// When what older keepers have adopted is first looked at: frontends have said by then which workers they still need.
    adopted_due: Millis,
    /// Below older keepers: killed at the last look, and not ended then.
    struck: HashSet<u32>,
}

/// What a look below older keepers has found to kill.
#[derive(Debug, Clone, Copy)]
struct Struck {
    any: bool,
    /// Some of it was not there at the last look.
    new: bool,
}

impl Sweep {
    pub(super) fn new(now: Millis) -> Self {
        Self { adopted_due: now + UNCLAIMED, ..Self::default() }
    }

    /// Among what older keepers have adopted may be workers that a frontend needs, and has not named.
    pub(super) fn spare_adopted(&mut self) {
        self.adopted_due = Millis::MAX;
    }

    pub(super) fn deadline(&self) -> Millis {
        let tell = self.told.filter(|_| !self.untold.is_empty()).map(|at| at + NOTE_INTERVAL);
        tell.map_or(self.due, |at| at.min(self.due))
    }

    pub(super) fn soon(&mut self, now: Millis) {
        self.due = self.due.min(now + SOON);
    }

    /// This zygote or worker has to be gone soon.
    pub(super) fn condemn(&mut self, pid: u32, key: PoolKey, now: Millis) {
        self.condemned.insert(pid, key);
        self.soon(now);
    }

    /// It is reaped.
    pub(super) fn absolve(&mut self, pid: u32) {
        self.condemned.remove(&pid);
    }

    fn note(&mut self, pid: u32, pool: String) {
        let untold = self.untold.entry(pool).or_insert((0, pid));
        untold.0 += 1;
    }

    /// Those of these children that it is the turn of. What is kept about others is forgotten.
    fn turn(&mut self, mut unknown: Vec<u32>, now: Millis) -> Vec<u32> {
        unknown.sort_unstable();
        self.suspects.retain(|pid, _| unknown.binary_search(pid).is_ok());
        self.killed.retain(|pid| unknown.binary_search(pid).is_ok());
        let from = unknown.partition_point(|pid| *pid <= self.last);
        unknown.drain(..from);
        self.last = 0;
        if unknown.len() > MOST_AT_ONCE {
            unknown.truncate(MOST_AT_ONCE);
            self.last = unknown.last().copied().unwrap_or(0);
            self.soon(now);
        }
        unknown
    }
}

impl Controller {
    pub(super) fn sweep_orphans(&mut self) {
        let now = self.now();
        if now >= self.orphans.due {
            self.orphans.due = now + INTERVAL;
            self.end_tracers(now);
            self.look_for_orphans(now);
            if now >= self.orphans.adopted_due && self.end_left_behind().new {
                // Each that ends may have had children, which come to the keeper in turn.
                self.orphans.soon(now);
            }
        }
        if self.orphans.told.is_none_or(|at| now >= at + NOTE_INTERVAL) {
            for (pool, (n, pid)) in std::mem::take(&mut self.orphans.untold) {
                self.orphans.told = Some(now);
                let who = if n == 1 { format!("pid {pid}") } else { format!("pid {pid} and {} others", n - 1) };
                let verb = if n == 1 { "is" } else { "are" };
                log::notice(&format!("mod_pool: {who}, left behind by a process of {pool}, {verb} killed"));
            }
        }
    }

    fn look_for_orphans(&mut self, now: Millis) {
        let Ok(children) = process::children() else {
            return;
        };
        let unknown: Vec<u32> = children.into_iter().filter(|pid| !self.pids.contains(pid)).collect();
        let awaiting = self.awaits_children();
        let mut pools = None;
        for pid in self.orphans.turn(unknown, now) {
            if awaiting && !self.orphans.killed.contains(&pid) {
                let since = *self.orphans.suspects.entry(pid).or_insert(now);
                if now < since + UNCLAIMED {
                    self.orphans.soon(now);
                    continue;
                }
            }
            // Also the zombie of one that is left alone is nobody else's to reap.
            if process::reap_pid(pid) {
                self.orphans.killed.remove(&pid);
                self.orphans.suspects.remove(&pid);
                continue;
            }
            if self.orphans.killed.contains(&pid) {
                continue;
            }
            let leader = process::session_of(pid);
            // Who traces a process that has ended keeps it from being reaped.
            let lives = |leader| leader != pid && self.pids.contains(&leader) && !process::is_zombie(leader);
            if leader.is_some_and(lives) {
                continue;
            }
            let pool = pool_of(pid, pools.get_or_insert_with(|| self.pools_by_uid()));
            self.end_child(pid, pool);
        }
    }

    /// Of what was killed and is there still.
    fn end_tracers(&mut self, now: Millis) {
        let condemned: Vec<(u32, PoolKey)> = self.orphans.condemned.iter().map(|(pid, key)| (*pid, *key)).collect();
        for (pid, key) in condemned {
            for tracer in kill_tracers(pid) {
                // Once it is our child it is known, and not told of again.
                self.orphans.killed.insert(tracer);
                self.orphans.note(tracer, format!("pool {}", self.pool_name(key)));
                self.orphans.soon(now);
            }
        }
    }

    /// Whether what a controller before this one has started is a child of this process.
    pub(super) fn is_of_an_older_controller(&self, parent: u32) -> bool {
        let keeps = |pid| self.keepers().any(|keeper| keeper.pid() == pid && !keeper.has_ended());
        // One that does not end has its children still.
        let of_one_that_stays = || {
            process::uids_of(parent).is_ok_and(|uids| uids[0] == process::own_uid())
                && process::parent_of(parent).is_some_and(keeps)
        };
        parent != launch::own_pid() && (keeps(parent) || of_one_that_stays())
    }

    /// With `-X` our own one has had others before us.
    fn keepers(&self) -> impl Iterator<Item = &PidFd> {
        self.older_keepers.iter().chain(self.one_process.then_some(&self.keeper))
    }

    /// Ends what controllers before this one have started and nobody needs: seeds, zygotes, closers, workers, what these
    /// have left behind, and a controller that was killed before.
    fn end_left_behind(&mut self) -> Struck {
        self.older_keepers.retain(|keeper| !keeper.has_ended());
        let mut struck = HashMap::new();
        for keeper in self.keepers() {
            self.strike_below(keeper, &mut struck);
        }
        let pools = self.pools_by_uid();
        let known = std::mem::replace(&mut self.orphans.struck, struck.keys().copied().collect());
        let any = !struck.is_empty();
        struck.retain(|pid, _| !known.contains(pid));
        for (pid, uid) in &struck {
            if uid.is_some_and(|uid| pools.contains_key(&uid)) {
                self.orphans.note(*pid, name_of(*uid, &pools));
            }
        }
        Struck { any, new: !struck.is_empty() }
    }

    /// Kills what is below `parent` and runs, but for what frontends need and its session. Adds pid and uid of each.
    fn strike_below(&self, parent: &PidFd, struck: &mut HashMap<u32, Option<u32>>) {
        let needed = |pid: u32| self.foreign.contains_key(&pid);
        for pid in process::children_of(parent.pid()) {
            // First the pidfd, then the look: the number cannot change hands between them and the signal.
            let Ok(process) = PidFd::open(pid) else {
                continue;
            };
            let is_below = process::parent_of(pid) == Some(parent.pid()) && !parent.has_ended();
            let is_needed = pid == launch::own_pid() || needed(pid) || process::session_of(pid).is_some_and(needed);
            if !is_below || is_needed || process.has_ended() {
                continue;
            }
            let uid = process::uids_of(pid).ok().map(|uids| uids[0]);
            process.kill();
            kill_tracers(pid);
            struck.insert(pid, uid);
            // One that does not end keeps its children.
            self.strike_below(&process, struck);
        }
    }

    /// The names of pools that have their uid for themselves.
    fn pools_by_uid(&self) -> HashMap<u32, Option<String>> {
        let mut pools: HashMap<u32, Option<String>> = HashMap::new();
        for row in self.tables.values().flat_map(|table| &table.pools) {
            if let Some(uid) = row.uid {
                let of_uid = pools.entry(uid).or_insert_with(|| Some(row.name.clone()));
                if of_uid.as_ref() != Some(&row.name) {
                    *of_uid = None;
                }
            }
        }
        pools
    }

    fn end_child(&mut self, pid: u32, pool: String) {
        // A child cannot be replaced under its number before we have reaped it.
        if let Ok(process) = PidFd::open(pid) {
            process.kill();
            kill_tracers(pid);
            self.orphans.killed.insert(pid);
            self.orphans.note(pid, pool);
            self.orphans.soon(self.now());
        }
    }

    /// Ends and reaps whatever is left: known processes, and their descendants as they become ours.
    pub(super) fn end_all(&mut self) {
        let known = self.foreign.values().map(|p| &p.what);
        let known = known.chain(self.workers.values().filter_map(WorkerProcess::pidfd));
        let known = known.chain(self.zygotes.values().filter_map(ZygoteProcess::pidfd));
        for process in known.chain(self.seeds.values().map(Seed::pidfd)) {
            process.kill();
        }
        self.discard_sockets();
        let writers = &self.log_writers;
        end_children(|pid| writers.is_one(pid));
        self.foreign.clear();
        // Each that ends may have had children, which come to the keeper in turn.
        let began = Instant::now();
        while self.end_left_behind().any && began.elapsed() < LAST_LOOK {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.end_logging();
    }
}

/// Who traces a process keeps its end from others, and may keep it from ending at all (`PTRACE_O_TRACEEXIT`). So who traces one
/// that was killed is killed, too. Somebody's debugger is left alone. Returns their pids.
fn kill_tracers(pid: u32) -> Vec<u32> {
    let uid = process::uids_of(pid).map(|uids| uids[0]);
    let of_its_user = |tracer| {
        uid.as_ref().is_ok_and(|uid| runs_as(tracer, *uid)) && process::gains_no_privileges(tracer) == Some(true)
    };
    let mut killed = Vec::new();
    for tracer in process::tracers_of(pid) {
        let Ok(process) = PidFd::open(tracer) else {
            continue;
        };
        // The pidfd stands for it if it traces still.
        if of_its_user(tracer) && process::tracers_of(pid).contains(&tracer) {
            process.kill();
            killed.push(tracer);
        }
    }
    killed
}

fn runs_as(pid: u32, uid: u32) -> bool {
    process::uids_of(pid).is_ok_and(|uids| uids[0] == uid)
}

fn pool_of(pid: u32, pools: &HashMap<u32, Option<String>>) -> String {
    name_of(process::uids_of(pid).ok().map(|uids| uids[0]), pools)
}

fn name_of(uid: Option<u32>, pools: &HashMap<u32, Option<String>>) -> String {
    let name = uid.and_then(|uid| pools.get(&uid)).and_then(Option::as_ref);
    name.map_or_else(|| "a pool".into(), |name| format!("pool {name}"))
}

/// Ends and reaps every child, and what becomes a child meanwhile, but for those that are spared.
pub(super) fn end_children(spared: impl Fn(u32) -> bool) {
    let began = Instant::now();
    while let Ok(mut children) = process::children() {
        children.retain(|pid| !spared(*pid));
        if children.is_empty() || began.elapsed() > LAST_LOOK {
            return;
        }
        for pid in children {
            if !process::reap_pid(pid) {
                if let Ok(process) = PidFd::open(pid) {
                    process.kill();
                    kill_tracers(pid);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_children_each_has_its_turn() {
        let mut sweep = Sweep { due: 1_000_000, ..Sweep::default() };
        let many: Vec<u32> = (1..=600).rev().collect();
        assert_eq!(sweep.turn(many.clone(), 0), (1..=256).collect::<Vec<_>>());
        assert_eq!(sweep.due, SOON);
        assert_eq!(sweep.turn(many.clone(), 0), (257..=512).collect::<Vec<_>>());
        sweep.due = 1_000_000;
        assert_eq!(sweep.turn(many.clone(), 0), (513..=600).collect::<Vec<_>>());
        assert_eq!(sweep.due, 1_000_000, "the round is over");
        assert_eq!(sweep.turn(many, 0)[0], 1);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut sweep = Sweep { due: 1_000_000, ..Sweep::default() };
        sweep.killed.extend([1, 2]);
        sweep.suspects.extend([(2, 0), (3, 0)]);
        assert_eq!(sweep.turn(vec![2], 0), [2]);
        assert_eq!((sweep.killed.len(), sweep.suspects.len(), sweep.due), (1, 1, 1_000_000));
    }
}
