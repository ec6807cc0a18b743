//! httpd's parent as an MPM: forks frontends, keeps their number right, ends and replaces them.
//!
//! Runs in: parent (one thread).  Trusts: the kernel's word on its children; of the scoreboard only numbers.
//! Owns: their life.  Never: reads from a client.
#![forbid(unsafe_code)]

mod state;
mod upkeep;

use crate::apr::AprPool;
use crate::httpd::log::{self, Level};
use crate::httpd::mpm::listen::{self, Bucket, End, KeptPipe, OpenError};
use crate::httpd::mpm::process::{self, Ended, How, Stopped};
use crate::httpd::mpm::{self, retained, score};
use crate::httpd::{image, ServerRec};
use crate::policy::mpm::maintenance::HOLD_OFF_AFTER_GRACEFUL;
use crate::settings::MpmLimits;
use crate::sys::launch;
use state::{note_stopped, state, tell_leaving};
use std::time::{Duration, Instant};

/// After this many frontends were killed one after the other, the next are replaced at the usual pace only.
const SUCCESSIVE_KILLS: u32 = 3;
/// How long no fork is tried after one has failed.
const FORK_PAUSE: Duration = Duration::from_secs(10);
/// How often it is looked whether all frontends have ended, while they may take their time.
const LOOK: Duration = Duration::from_millis(200);

/// How often the frontends are looked after while processes that nobody knows end without a pause.
const STRANGERS_LOOK: Duration = Duration::from_secs(1);

/// What httpd is to do when its MPM returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Read the configuration anew and run the MPM again.
    Restart,
    Exit,
    Failed,
}

/// A configuration is about to be read. False if httpd cannot go on.
pub fn pre_config(pconf: AprPool<'_>) -> bool {
    retained::starting();
    let loads = retained::count_load();
    let foreground = image::is_defined(c"FOREGROUND") || image::is_defined(c"DEBUG");
    // httpd reads its configuration twice when it starts: what is wrong is told on the terminal the first time.
    if loads == 2 && !mpm::is_one_process() && !foreground {
        process::set_crash_handlers(pconf);
        if !process::detach(image::is_defined(c"NO_DETACH")) {
            log::startup(Level::Crit, "httpd cannot leave the terminal (apr_proc_detach failed)");
            return false;
        }
    }
    mpm::reset_settings();
    state().healthy = false;
    true
}

/// Opens listeners and pipes before the error log is opened, so that a port in use is told on the terminal.
pub fn open_logs(pconf: AprPool<'_>, main: ServerRec<'_>) -> bool {
    let one_process = mpm::is_one_process();
    let keep = match (one_process, retained::was_graceful()) {
        (true, _) => 1,
        (false, true) => retained::buckets(),
        (false, false) => 0,
    };
    // A bucket without a place for its frontend would take connections that nobody accepts.
    let most = usize::try_from(mpm::limits().limits.server_limit).unwrap_or(usize::MAX);
    match listen::open(pconf, main, keep, most, one_process) {
        Ok(buckets) => {
            retained::set_buckets(buckets.len());
            let mut state = state();
            state.pace.set_buckets(buckets.len());
            state.buckets = buckets;
            true
        }
        Err(e) => {
            let text = match e {
                OpenError::NoListener => "no listening sockets available, shutting down".to_owned(),
                OpenError::Duplicate(code) => format!("listeners cannot be made for each bucket (error {code})"),
                OpenError::Pipe(code) => format!("the pipe to the frontends cannot be made (error {code})"),
            };
            if retained::loads() == 1 {
                log::startup(Level::Crit, text);
            } else {
                log::server(Level::Crit, main, format!("POOL211: {text}"));
            }
            false
        }
    }
}

/// A frontend has ended, and was reaped by httpd's own functions. Slot -1: one that lost its slot.
pub fn stopped(main: ServerRec<'_>, slot: i32, pid: i32, generation: i32) {
    match usize::try_from(slot) {
        Ok(slot) => note_stopped(main, slot),
        Err(_) => process::tell_child_status(main, u32::try_from(pid).unwrap_or(0), generation, None, false),
    }
}

/// The parent of one configuration.
#[derive(Debug)]
struct Parent {
    pconf: AprPool<'static>,
    main: ServerRec<'static>,
    limits: MpmLimits,
    buckets: Vec<Bucket>,
    one_process: bool,
    stopped: Stopped,
}

/// httpd's parent ends. There are old frontends still if the configuration could not be read after a graceful restart was
/// asked for: they finish what they have, as it was meant for them, unless somebody has stopped httpd meanwhile.
pub fn at_exit() {
    tell_leaving(if retained::is_ungraceful() { End::Now } else { End::Graceful });
}

/// What [`run`] calls back.
#[derive(Debug, Clone, Copy)]
pub struct Calls {
    /// Leads to [`stopped`].
    pub stopped: Stopped,
    /// Returns when new frontends can serve as the old ones do.
    pub wait_until_ready: fn(),
}

/// The MPM, from one reading of the configuration to the next.
pub fn run(pconf: AprPool<'static>, plog: AprPool<'_>, main: ServerRec<'static>, calls: Calls) -> Verdict {
    let buckets = state().buckets.clone();
    let limits = mpm::limits().for_buckets(u32::try_from(buckets.len()).unwrap_or(1));
    let one_process = mpm::is_one_process();
    let parent = Parent { pconf, main, limits, buckets, one_process, stopped: calls.stopped };
    process::write_pid_file(pconf);
    let graceful = retained::was_graceful();
    if !graceful {
        if !process::make_scoreboard(main) {
            retained::stopping();
            return Verdict::Failed;
        }
        score::set_running_generation(retained::generation());
    }
    process::set_signals(pconf, parent.one_process);
    let mut to_start = limits.start_servers.min(limits.limits.max_children);
    if graceful {
        state().pace.hold_off = HOLD_OFF_AFTER_GRACEFUL;
        (calls.wait_until_ready)();
    }
    to_start -= parent.start_children(to_start);
    if graceful {
        // Those for which the scoreboard had no room take the place of old ones, most of which end at once.
        parent.await_first();
    } else {
        to_start = 0;
    }
    log::server(Level::Notice, main, format!("{} configured -- resuming normal operations", process::description()));
    process::log_start(plog, main);
    retained::running();
    parent.serve(to_start);
    retained::stopping();
    if retained::shutdown_pending() {
        parent.shut_down(retained::is_ungraceful());
        return Verdict::Exit;
    }
    if parent.one_process {
        return Verdict::Exit;
    }
    parent.restart();
    Verdict::Restart
}

/// Processes that nobody knows and that have ended. A tenant decides how many: they are told of together.
#[derive(Debug, Default)]
struct Strangers {
    count: u32,
    last: u32,
}

impl Strangers {
    fn tell(&mut self, main: ServerRec<'_>) {
        let Self { count, last } = std::mem::take(self);
        let text = match count {
            0 => return,
            1 => format!("a process that nobody knows has ended: pid {last}"),
            _ => format!("{count} processes that nobody knows have ended: pid {last} was the last one"),
        };
        log::server(Level::Info, main, text);
    }
}

impl Parent {
    fn serve(&self, mut to_start: u32) {
        let mut kills = 0;
        let mut strangers = Strangers::default();
        let mut looked = Instant::now();
        while !retained::restart_pending() && !retained::shutdown_pending() {
            match process::wait_for_child(self.pconf, self.main) {
                Some(ended) => {
                    let Some(slot) = self.reap(&ended, &mut to_start, &mut strangers) else {
                        // What a pool's script left behind ends here where there is no controller, perhaps all the time.
                        if looked.elapsed() >= STRANGERS_LOOK {
                            looked = Instant::now();
                            self.look_after(&mut to_start, &mut strangers);
                        }
                        continue;
                    };
                    if retained::shutdown_pending() || !ended.killed {
                        continue;
                    }
                    kills += 1;
                    if kills >= SUCCESSIVE_KILLS {
                        if kills % 10 == SUCCESSIVE_KILLS {
                            log::server(
                                Level::Warning,
                                self.main,
                                format!(
                                    "POOL212: frontends are killed one after the other (slot {slot}, the last one)"
                                ),
                            );
                        }
                        continue;
                    }
                    to_start += 1;
                }
                None => kills = 0,
            }
            looked = Instant::now();
            self.look_after(&mut to_start, &mut strangers);
        }
        strangers.tell(self.main);
    }

    fn look_after(&self, to_start: &mut u32, strangers: &mut Strangers) {
        strangers.tell(self.main);
        if !self.has_changed_over() {
            return;
        }
        let missing = std::mem::take(to_start);
        if missing > 0 {
            // Those that are started now are not ready yet: to count them would start more.
            self.start_children(missing);
        } else {
            self.maintain();
        }
    }

    /// A child was reaped; the slot if it was a frontend.
    fn reap(&self, ended: &Ended, to_start: &mut u32, strangers: &mut Strangers) -> Option<usize> {
        let found =
            {
                let state = state();
                state.rows.iter().position(|row| row.is_some_and(|r| r.pid == ended.pid)).zip(Some(&state)).map(
                    |(slot, state)| (slot, state.rows[slot].is_some_and(|r| r.generation == retained::generation())),
                )
            };
        let Some((slot, current)) = found else {
            // Nobody's exit status but a frontend's has a meaning for the server.
            if process::other_child_ended(ended) {
                process::look_at_end(ended);
            } else if retained::was_graceful() {
                strangers.last = ended.pid;
                strangers.count += 1;
            }
            return None;
        };
        let how = process::look_at_end(ended);
        match how {
            How::Normally => {}
            How::Fatal if current => {
                state().fatal = true;
                retained::set_shutdown_pending(true);
            }
            How::Fatal | How::Sick => {
                let mut state = state();
                state.sick = true;
                if !state.leaving.is_empty() {
                    // Those of the configuration before serve: there is time.
                    state.forks_after = Some(Instant::now() + FORK_PAUSE);
                }
            }
        }
        note_stopped(self.main, slot);
        if how == How::Sick {
            let bucket = slot % self.buckets.len().max(1);
            if let Some(rate) = state().pace.spawn_rate.get_mut(bucket) {
                *rate = 1;
            }
        } else if *to_start > 0 && !retained::shutdown_pending() {
            *to_start -= 1;
            self.start_child(slot);
        }
        Some(slot)
    }

    fn tell_all(&self, end: End) {
        // Those of an older generation have got their word; this one has as many as there may be.
        for bucket in &self.buckets {
            bucket.tell_all(self.limits.limits.max_children, end);
        }
    }

    fn shut_down(&self, now: bool) {
        if now {
            // Who waits for the pid file to vanish may start the next httpd, which needs the ports.
            self.end_all();
            self.say_end("caught SIGTERM, shutting down");
        } else {
            listen::close_all();
            tell_leaving(End::Graceful);
            self.tell_all(End::Graceful);
            process::relieve_children(self.stopped);
            self.say_end("caught SIGWINCH, shutting down gracefully");
            self.wait_for_last_connections();
            self.end_all();
        }
    }

    fn end_all(&self) {
        tell_leaving(End::Now);
        self.tell_all(End::Now);
        process::reclaim_children(self.stopped);
    }

    /// This httpd is no longer the one that runs.
    fn say_end(&self, text: &str) {
        if !state().fatal {
            process::remove_pid_file(self.pconf);
            log::server(Level::Notice, self.main, text);
        }
    }

    /// Until all have ended, `GracefulShutdownTimeout` is over, or SIGTERM comes.
    fn wait_for_last_connections(&self) {
        let end = process::graceful_shutdown_timeout().map(|timeout| Instant::now() + timeout);
        retained::set_shutdown_pending(false);
        while state().rows.iter().any(Option::is_some) {
            if retained::shutdown_pending() || end.is_some_and(|end| Instant::now() >= end) {
                break;
            }
            launch::pause(LOOK);
            process::relieve_children(self.stopped);
        }
    }

    fn restart(&self) {
        retained::advance_generation();
        score::set_running_generation(retained::generation());
        if retained::is_ungraceful() {
            log::server(Level::Notice, self.main, "SIGHUP received.  Attempting to restart");
            self.end_all();
        } else {
            log::server(Level::Notice, self.main, "SIGUSR1 received.  Doing graceful restart");
            // They go on until there are others: reading the configuration takes its time.
            let kept: Option<Vec<KeptPipe>> = self.buckets.iter().map(Bucket::keep_pipe).collect();
            match kept {
                Some(pipes) => state().leaving.extend(pipes),
                None => self.tell_all(End::Graceful),
            }
        }
    }
}
