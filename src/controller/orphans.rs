//! What the processes of pools leave behind: adopted, allowed to live with their session, or ended.
//!
//! Runs in: controller (subreaper of all it started).  Trusts: /proc.  Owns: nothing.
//! Never: ends a child that an open order may still be about.

use super::seeds::Seed;
use super::workers::WorkerProcess;
use super::zygotes::ZygoteProcess;
use super::{log, Controller};
use crate::policy::Millis;
use crate::sys::process::{self, PidFd};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often we look.
const INTERVAL: Millis = 5_000;
/// How long after the death of a process we look: what it left is adopted by then.
const SOON: Millis = 100;
/// A child that no answer has named after this time is nobody's: orders are answered or failed by then.
const UNCLAIMED: Millis = 10_000;
/// How long the last look, at the end of the controller, may take.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// When to look next, and since when unknown children are there.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    due: Millis,
    suspects: HashMap<u32, Millis>,
}

impl Sweep {
    pub(super) fn deadline(&self) -> Millis {
        self.due
    }

    pub(super) fn soon(&mut self, now: Millis) {
        self.due = self.due.min(now + SOON);
    }
}

impl Controller {
    pub(super) fn sweep_orphans(&mut self) {
        let now = self.now();
        if now < self.orphans.due {
            return;
        }
        self.orphans.due = now + INTERVAL;
        let Ok(children) = process::children() else {
            return;
        };
        let unknown: Vec<u32> = children.into_iter().filter(|pid| !self.pids.contains(pid)).collect();
        let suspects = std::mem::take(&mut self.orphans.suspects);
        let awaiting = self.awaits_children();
        for pid in unknown {
            let since = suspects.get(&pid).copied().unwrap_or(now);
            let leader = process::session_of(pid);
            let guarded = leader.is_some_and(|leader| leader != pid && self.pids.contains(&leader));
            if awaiting && now < since + UNCLAIMED {
                self.orphans.suspects.insert(pid, since);
                self.orphans.soon(now + SOON);
                continue;
            }
            if guarded {
                // Its zombie is nobody else's to reap.
                process::reap_pid(pid);
                continue;
            }
            self.end_child(pid);
        }
    }

    fn end_child(&mut self, pid: u32) {
        if process::reap_pid(pid) {
            return;
        }
        // A child cannot be replaced under its number before we have reaped it.
        if let Ok(process) = PidFd::open(pid) {
            log::notice(&format!("mod_pool: pid {pid}, left behind by a process of a pool, is killed"));
            process.kill();
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
        end_children();
    }
}

/// Ends and reaps every child, and what becomes a child meanwhile.
pub(super) fn end_children() {
    let began = Instant::now();
    while let Ok(children) = process::children() {
        if children.is_empty() || began.elapsed() > LAST_LOOK {
            return;
        }
        for pid in children {
            if !process::reap_pid(pid) {
                if let Ok(process) = PidFd::open(pid) {
                    process.kill();
                }
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
