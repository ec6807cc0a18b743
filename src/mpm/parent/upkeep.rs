//! Keeps the number of frontends right: forks new ones, ends those that are too many.
//!
//! Runs in: parent (one thread).  Trusts: of the scoreboard only numbers.  Owns: nothing.
//! Never: decides without `policy`.
#![forbid(unsafe_code)]

use super::state::{note_started, note_stopped, state, summons_of, tell_leaving};
use super::{Parent, FORK_PAUSE};
use crate::httpd::log::{self, Level};
use crate::httpd::mpm::listen::End;
use crate::httpd::mpm::{process, retained, score};
use crate::mpm::child;
use crate::policy::mpm::maintenance::{self, ChangeOver, Child, Report, Totals};
use crate::sys::events::Summons;
use crate::sys::fork::Forked;
use crate::sys::launch;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long it is looked, and how often, whether a new frontend serves, before the parent turns to other things too.
const START_PATIENCE: Duration = Duration::from_secs(1);
const START_LOOK: Duration = Duration::from_millis(5);

impl Parent {
    /// Waits a moment until a new frontend serves.
    pub(super) fn await_first(&self) {
        let end = Instant::now() + START_PATIENCE;
        while !self.has_changed_over() && Instant::now() < end {
            if retained::restart_pending() || retained::shutdown_pending() {
                break;
            }
            launch::pause(START_LOOK);
        }
    }

    /// Frontends that a graceful restart has left serving are told to end once those of this configuration serve. Until
    /// then one is started where there is none; false.
    pub(super) fn has_changed_over(&self) -> bool {
        if state().leaving.is_empty() {
            return true;
        }
        match maintenance::change_over(
            &self.look_at_children(),
            self.buckets.len(),
            self.limits.limits.threads_per_child,
        ) {
            ChangeOver::Tell => {
                tell_leaving(End::Graceful);
                return true;
            }
            ChangeOver::Start => {
                let each = u32::try_from(self.buckets.len()).unwrap_or(1);
                self.start_children(each);
            }
            ChangeOver::Wait => {}
        }
        false
    }

    /// Returns how many were started.
    pub(super) fn start_children(&self, count: u32) -> u32 {
        let slots = maintenance::slots_to_start(&self.look_at_children(), self.buckets.len(), count);
        let mut started = 0;
        for slot in slots {
            if !self.start_child(slot) {
                break;
            }
            started += 1;
        }
        started
    }

    /// Whether a frontend was forked.
    pub(super) fn start_child(&self, slot: usize) -> bool {
        if self.one_process {
            note_started(self.main, slot, launch::own_pid());
            self.be_child(slot, None);
        }
        if state().forks_after.is_some_and(|after| Instant::now() < after) {
            return false;
        }
        // This copy alone is the child's, too.
        let summons = summons_of(slot % self.buckets.len().max(1));
        match process::fork_child() {
            Ok(Forked::Child) => self.be_child(slot, summons),
            Ok(Forked::Parent { child }) => {
                state().forks_after = None;
                note_started(self.main, slot, child);
                true
            }
            Err(e) => {
                let older = {
                    let mut state = state();
                    state.forks_after = Some(Instant::now() + FORK_PAUSE);
                    !state.leaving.is_empty()
                };
                let older = if older { "; those of the configuration before go on" } else { "" };
                log::server(
                    Level::Error,
                    self.main,
                    format!(
                        "POOL213: a frontend cannot be forked: {e}; the next attempt comes in {} s{older}",
                        FORK_PAUSE.as_secs()
                    ),
                );
                false
            }
        }
    }

    fn be_child(&self, slot: usize, summons: Option<OwnedFd>) -> ! {
        // What older frontends are told is the parent's word alone.
        state().leaving.clear();
        let (pchild, status) = child::run(&child::Start {
            slot,
            buckets: &self.buckets,
            bucket: slot % self.buckets.len().max(1),
            summons: summons.map(|fd| Arc::new(Summons::of(fd))),
            limits: self.limits,
            main: self.main,
            pconf: self.pconf,
            one_process: self.one_process,
        });
        if self.one_process {
            note_stopped(self.main, slot);
        }
        process::end_child(pchild, status)
    }

    pub(super) fn maintain(&self) {
        let mut used = 0;
        for bucket in 0..self.buckets.len() {
            let plan = {
                let children = self.look_at_children();
                let mut state = state();
                let rows = || state.rows.iter().flatten();
                let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                let totals =
                    Totals { active: count(rows().filter(|r| !r.quiescing).count()), total: count(rows().count()) };
                maintenance::maintain(bucket, &children, &self.limits.limits, totals, &mut state.pace)
            };
            used = used.max(plan.used);
            if !self.is_well(plan.healthy, bucket + 1 == self.buckets.len()) {
                continue;
            }
            if plan.retire_one {
                self.buckets[bucket].tell_one(End::Graceful);
            }
            if let Some(report) = plan.report {
                self.report(report);
            }
            for slot in plan.spawn {
                if !self.start_child(slot) {
                    break;
                }
                used = used.max(slot + 1);
            }
        }
        score::set_used_slots(used);
    }

    /// After a frontend ended for lack of something: if none ever had all its threads, none will. False while that is
    /// not known.
    fn is_well(&self, healthy: bool, last_bucket: bool) -> bool {
        let mut state = state();
        state.healthy |= healthy;
        if !state.sick {
            return true;
        }
        if state.healthy {
            state.sick = false;
            return true;
        }
        if last_bucket {
            state.fatal = true;
            drop(state);
            retained::set_shutdown_pending(true);
            log::server(
                Level::Emerg,
                self.main,
                "POOL214: no frontend could be set up completely; httpd ends. The lines before say what was lacking",
            );
        }
        false
    }

    fn look_at_children(&self) -> Vec<Child> {
        let rows = state().rows.clone();
        let generation = retained::generation();
        let threads = self.limits.limits.threads_per_child;
        let mut children = Vec::new();
        for slot in 0..usize::try_from(self.limits.limits.server_limit).unwrap_or(0) {
            let Some(row) = rows.get(slot).copied().flatten() else {
                children.push(Child::default());
                continue;
            };
            let said = score::said(slot, threads);
            if said.quiescing && !row.quiescing {
                score::child_quiescing(slot);
                if let Some(Some(row)) = state().rows.get_mut(slot) {
                    row.quiescing = true;
                }
            }
            children.push(Child {
                alive: true,
                current: row.generation == generation,
                quiescing: said.quiescing || row.quiescing,
                closed: said.closed,
                idle: said.idle,
                active: said.active,
            });
        }
        children
    }

    fn report(&self, report: Report) {
        let (level, text) = match report {
            Report::MaxRequestWorkersReached => (
                Level::Error,
                format!(
                    "POOL215: server reached MaxRequestWorkers {}: no frontend takes new connections, as its threads are \
                     busy or it has as many as AsyncRequestWorkerFactor allows; raise it, and ServerLimit with it, if the \
                     machine bears more",
                    self.limits.limits.max_request_workers
                ),
            ),
            Report::NearMaxRequestWorkers => (
                Level::Error,
                format!(
                    "POOL216: server is within MinSpareThreads of MaxRequestWorkers {}; raise it, if the machine bears more",
                    self.limits.limits.max_request_workers
                ),
            ),
            Report::ScoreboardFull => (
                Level::Error,
                format!(
                    "POOL217: the scoreboard is full, while MaxRequestWorkers is not reached: frontends that are ending \
                     take the rest of ServerLimit {}; raise it (it needs a stop and a start)",
                    self.limits.limits.server_limit
                ),
            ),
            Report::Busy { spawning, idle_threads } => (
                Level::Info,
                format!(
                    "the server is getting busy: {spawning} more frontends are started, there were {idle_threads} idle \
                     threads; raise StartServers or MinSpareThreads if this comes often"
                ),
            ),
        };
        log::server(level, self.main, text);
    }
}
