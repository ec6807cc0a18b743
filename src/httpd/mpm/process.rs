//! Processes of the MPM: what httpd does for a parent that has children, and for a child.
//!
//! Runs in: parent and frontend, where mod_pool is the MPM.  Trusts: httpd.  Owns: nothing.
//! Never: decides when to fork or end.

use crate::apr::AprPool;
use crate::ffi;
use crate::httpd::ServerRec;
use crate::sys::accounts;
use crate::sys::fork::{self, Forked};
use std::ffi::{c_char, c_int};
use std::ptr;
use std::time::Duration;

/// A child that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub pid: u32,
    /// As waitpid(2) writes it, for other_child_ended.
    status: c_int,
    why: ffi::apr_exit_why_e,
    /// By a signal.
    pub killed: bool,
}

/// What a child's exit status asks of the parent (httpd.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Normally,
    /// It lacks something that may come back.
    Sick,
    /// No child would do better.
    Fatal,
}

/// Exit status of a child that lacks something.
pub const SICK: i32 = ffi::APEXIT_CHILDSICK.cast_signed();
/// Exit status of a child that has found that none can work.
pub const FATAL: i32 = ffi::APEXIT_CHILDFATAL.cast_signed();

fn no_process() -> ffi::apr_proc_t {
    // SAFETY: a record of numbers and pointers, for which zeroes are a value.
    unsafe { std::mem::zeroed() }
}

/// Reaps a child, or waits for a second; runs the `monitor` hook now and then.
pub fn wait_for_child(pconf: AprPool<'_>, main: ServerRec<'_>) -> Option<Ended> {
    let (mut why, mut status, mut process) = (0, 0, no_process());
    // SAFETY: httpd's parent; the call writes the three.
    unsafe {
        ffi::ap_wait_or_timeout(&raw mut why, &raw mut status, &raw mut process, pconf.as_ptr(), main.as_ptr());
    }
    let pid = u32::try_from(process.pid).ok()?;
    let killed = why & (ffi::apr_exit_why_e_APR_PROC_SIGNAL | ffi::apr_exit_why_e_APR_PROC_SIGNAL_CORE) != 0;
    Some(Ended { pid, status, why, killed })
}

/// What this end asks of the parent; httpd logs it. Not for a process that nobody has registered: it may be a tenant's.
pub fn look_at_end(ended: &Ended) -> How {
    let mut process = no_process();
    process.pid = ended.pid.cast_signed();
    // SAFETY: httpd's parent; the record is only read.
    match unsafe { ffi::ap_process_child_status(&raw mut process, ended.why, ended.status) } {
        SICK => How::Sick,
        FATAL => How::Fatal,
        _ => How::Normally,
    }
}

/// Tells whoever has registered this child that it has ended. Whether somebody had.
pub fn other_child_ended(ended: &Ended) -> bool {
    let mut process = no_process();
    process.pid = ended.pid.cast_signed();
    let reason = ffi::APR_OC_REASON_DEATH.cast_signed();
    // SAFETY: httpd's parent; the record is only compared with.
    unsafe { ffi::apr_proc_other_child_alert(&raw mut process, reason, ended.status) == 0 }
}

/// httpd calls this for each child of the MPM that is found to have ended: slot (-1 if none), pid, generation.
pub type Stopped = unsafe extern "C" fn(c_int, ffi::pid_t, ffi::ap_generation_t);

/// Ends the children that are left, with more and more force, and waits for them.
pub fn reclaim_children(stopped: Stopped) {
    // SAFETY: httpd's parent; the function stays mapped.
    unsafe { ffi::ap_reclaim_child_processes(1, Some(stopped)) };
}

/// Reaps those that have ended.
pub fn relieve_children(stopped: Stopped) {
    // SAFETY: as above.
    unsafe { ffi::ap_relieve_child_processes(Some(stopped)) };
}

/// Runs the `child_status` hook: a child has started, or has ended.
pub fn tell_child_status(main: ServerRec<'_>, pid: u32, generation: c_int, slot: Option<usize>, started: bool) {
    let state = if started { ffi::mpm_child_status_MPM_CHILD_STARTED } else { ffi::mpm_child_status_MPM_CHILD_EXITED };
    let slot = slot.and_then(|s| c_int::try_from(s).ok()).unwrap_or(-1);
    // SAFETY: httpd's parent; the main server is live.
    unsafe { ffi::ap_run_child_status(main.as_ptr(), pid.cast_signed(), generation, slot, state) };
}

/// Writes the pid file.
pub fn write_pid_file(pconf: AprPool<'_>) {
    // SAFETY: httpd's own variable and function; the pool is live.
    unsafe { ffi::ap_log_pid(pconf.as_ptr(), ffi::ap_pid_fname) };
}

/// Removes the pid file.
pub fn remove_pid_file(pconf: AprPool<'_>) {
    // SAFETY: as above.
    unsafe { ffi::ap_remove_pid(pconf.as_ptr(), ffi::ap_pid_fname) };
}

/// Makes the scoreboard (the `pre_mpm` hook). Whether it could be made.
pub fn make_scoreboard(main: ServerRec<'_>) -> bool {
    // SAFETY: httpd's parent; the process pool lives as long as the process.
    unsafe { ffi::ap_run_pre_mpm(main.process_pool().as_ptr(), ffi::ap_scoreboard_e_SB_SHARED) == ffi::HOOK_OK }
}

/// Sets the parent's signal handlers.
pub fn set_signals(pconf: AprPool<'_>, one_process: bool) {
    // SAFETY: httpd's main thread, which alone sets handlers.
    unsafe { ffi::ap_unixd_mpm_set_signals(pconf.as_ptr(), c_int::from(one_process)) };
}

/// Crash handlers that write to the error log.
pub fn set_crash_handlers(pconf: AprPool<'_>) {
    // SAFETY: as above; the server may be null, which is what this variable holds while httpd starts.
    unsafe { ffi::ap_fatal_signal_setup(ffi::ap_server_conf, pconf.as_ptr()) };
}

/// Leaves the terminal: into the background, or only its session with `foreground`. Whether that was possible.
pub fn detach(foreground: bool) -> bool {
    let how = if foreground { ffi::APR_PROC_DETACH_FOREGROUND } else { ffi::APR_PROC_DETACH_DAEMONIZE };
    // SAFETY: before the first real pass of the configuration, in which modules may start threads (mod_watchdog).
    unsafe { ffi::apr_proc_detach(how.cast_signed()) == 0 }
}

/// What the server calls itself.
pub fn description() -> String {
    // SAFETY: a string that lives as long as the configuration; it is copied.
    String::from_utf8_lossy(unsafe { crate::apr::pool::bytes(ffi::ap_get_server_description().cast::<c_char>()) })
        .into_owned()
}

/// Writes command line and the like to the log.
pub fn log_start(plog: AprPool<'_>, main: ServerRec<'_>) {
    // SAFETY: pool and server are live.
    unsafe {
        ffi::ap_log_command_line(plog.as_ptr(), main.as_ptr());
        ffi::ap_log_mpm_common(main.as_ptr());
    }
}

/// `GracefulShutdownTimeout`; `None` for none.
pub fn graceful_shutdown_timeout() -> Option<Duration> {
    // SAFETY: reads a variable of httpd's, which changes only while the configuration is read.
    let seconds = unsafe { ffi::ap_graceful_shutdown_timeout };
    u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs)
}

/// `MaxConnectionsPerChild`; `None` for any number.
pub fn max_connections_per_child() -> Option<u64> {
    // SAFETY: as above.
    let n = unsafe { ffi::ap_max_requests_per_child };
    u64::try_from(n).ok().filter(|n| *n > 0)
}

/// Forks a frontend. In the child, SIGTERM ends it at once until it has set itself up.
pub fn fork_child() -> std::io::Result<Forked> {
    let forked = fork::fork_child()?;
    if forked == Forked::Child {
        // SAFETY: a process that has only this thread; the default disposition runs no code of ours.
        unsafe {
            ffi::pool_shim_thread_after_fork();
            ffi::apr_signal(libc::SIGTERM, None);
        }
    }
    Ok(forked)
}

/// A child's pool.
pub fn child_pool(pconf: AprPool<'static>) -> AprPool<'static> {
    let mut pool = ptr::null_mut();
    // SAFETY: the parent pool is live; httpd ends a process that has no memory for a pool.
    unsafe {
        ffi::apr_pool_create_ex(&raw mut pool, pconf.as_ptr(), None, ptr::null_mut());
        ffi::apr_pool_tag(pool, c"pchild".as_ptr());
        AprPool::from_raw(pool)
    }
}

/// In a child, before the MPM has started threads: from root to `User`, signals blocked, modules' `child_init`. `Err` with
/// what failed: no child could do better.
pub fn become_child(pchild: AprPool<'_>, main: ServerRec<'_>, one_process: bool) -> Result<(), &'static str> {
    // SAFETY: the main thread of a fresh child, which has no other, or of the only process of `-X`; pool and server live
    // as long as the process. This is the order of every MPM: what needs root comes first, and signals are blocked before
    // a module can start a thread here.
    unsafe {
        ffi::ap_fatal_signal_child_setup(main.as_ptr());
        if !one_process && ffi::pool_shim_thread_main_create(pchild.as_ptr()) != 0 {
            return Err("httpd cannot make a record of the main thread");
        }
        ffi::ap_reopen_scoreboard(pchild.as_ptr(), ptr::null_mut(), 0);
        if ffi::ap_run_drop_privileges(pchild.as_ptr(), main.as_ptr()) != 0 {
            return Err("the privileges of root cannot be given up");
        }
        // A hook that fails with -1 has declined, for httpd: mod_unixd does so where `User #uid` has no passwd entry.
        if accounts::effective_ids().0 == 0 {
            return Err("it is still root; User must name a user that has a passwd entry");
        }
        if ffi::apr_setup_signal_thread() != 0 {
            return Err("signals cannot be blocked");
        }
        ffi::ap_run_child_init(pchild.as_ptr(), main.as_ptr());
    }
    Ok(())
}

/// Runs the `child_stopping` hook.
pub fn tell_child_stopping(pchild: AprPool<'_>, graceful: bool) {
    // SAFETY: the pool is live.
    unsafe { ffi::ap_run_child_stopping(pchild.as_ptr(), c_int::from(graceful)) };
}

/// Ends a child: its pool's cleanups, then exit handlers.
pub fn end_child(pchild: AprPool<'_>, status: i32) -> ! {
    // SAFETY: our threads have ended (`child::run` does not return before); those of modules end in the pool's cleanups.
    unsafe { ffi::apr_pool_destroy(pchild.as_ptr()) };
    fork::exit_with_handlers(status)
}

/// httpd's main server, for callbacks that get none.
pub fn main_server() -> Option<ServerRec<'static>> {
    // SAFETY: null, or the main server of the configuration, which the callers do not outlive.
    unsafe {
        let main = ffi::ap_server_conf;
        (!main.is_null()).then(|| ServerRec::from_raw(main))
    }
}
