//! What httpd's parent knows of its frontends, from one configuration to the next.
//!
//! Runs in: parent (one thread).  Trusts: its caller.  Owns: the list of frontends and the pipes to those that leave.
//! Never: decides how many there are to be.
#![forbid(unsafe_code)]

use crate::httpd::log::{self, Level};
use crate::httpd::mpm::listen::{Bucket, End, KeptPipe};
use crate::httpd::mpm::{self, process, retained, score};
use crate::httpd::ServerRec;
use crate::policy::mpm::maintenance::Pace;
use crate::sys::events::Summons;
use crate::sys::heritage::{self, Kept};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What lasts from one configuration to the next. The module is linked `nodelete`, so this static does too.
#[derive(Debug)]
pub(super) struct State {
    /// By slot of the scoreboard.
    pub(super) rows: Vec<Option<Row>>,
    pub(super) buckets: Vec<Bucket>,
    pub(super) pace: Pace,
    /// A frontend has ended for lack of something.
    pub(super) sick: bool,
    /// A frontend of this configuration has had all its threads running.
    pub(super) healthy: bool,
    /// No frontend can work.
    pub(super) fatal: bool,
    pub(super) forks_after: Option<Instant>,
    /// For each bucket of listeners: see [`Summons`]. Daemons of modules do not get it.
    pub(super) summons: Vec<Kept>,
    /// To frontends of the configuration before, which serve until this one's are there.
    pub(super) leaving: Vec<KeptPipe>,
}

/// A running frontend, as the parent knows it: nothing of this is in memory that frontends can write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) pid: u32,
    pub(super) generation: i32,
    pub(super) quiescing: bool,
}

static STATE: Mutex<State> = Mutex::new(State {
    rows: Vec::new(),
    buckets: Vec::new(),
    pace: Pace { spawn_rate: Vec::new(), hold_off: 0, said_reached: false, said_near: false },
    sick: false,
    healthy: false,
    fatal: false,
    forks_after: None,
    summons: Vec::new(),
    leaving: Vec::new(),
});

/// Never held while httpd is called: it may call back (`stopped`, `ap_mpm_query`), or fork.
pub(super) fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn note_stopped(main: ServerRec<'_>, slot: usize) {
    let row = state().rows.get_mut(slot).and_then(Option::take);
    score::child_stopped(slot, mpm::limits().thread_limit);
    if let Some(row) = row {
        process::tell_child_status(main, row.pid, row.generation, Some(slot), false);
        log::server(Level::Debug, main, format!("frontend {slot} has ended: pid {}", row.pid));
    }
}

pub(super) fn note_started(main: ServerRec<'_>, slot: usize, pid: u32) {
    let generation = retained::generation();
    {
        let mut state = state();
        if state.rows.len() <= slot {
            state.rows.resize(slot + 1, None);
        }
        state.rows[slot] = Some(Row { pid, generation, quiescing: false });
    }
    score::raise_used_slots(slot + 1);
    score::child_started(slot, pid, generation);
    process::tell_child_status(main, pid, generation, Some(slot), true);
    log::server(Level::Debug, main, format!("frontend {slot} has started: pid {pid}, generation {generation}"));
}

/// A copy of the bucket's summons. `None` where there is no descriptor for it: frontends do without.
pub(super) fn summons_of(bucket: usize) -> Option<OwnedFd> {
    let mut state = state();
    while state.summons.len() <= bucket {
        let kept = heritage::keep(Summons::make().ok()?).ok()?;
        state.summons.push(kept);
    }
    state.summons.get(bucket)?.as_fd().try_clone_to_owned().ok()
}

/// Tells the frontends that a graceful restart has left serving.
pub(super) fn tell_leaving(end: End) {
    let leaving = std::mem::take(&mut state().leaving);
    let most = mpm::limits().limits.server_limit;
    leaving.into_iter().for_each(|pipe| pipe.tell_all(most, end));
}
