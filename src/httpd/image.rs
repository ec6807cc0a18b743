//! httpd without an MPM: what `main` does between reading the configuration and running the MPM, for a pool's process.
//!
//! Runs in: seed, zygote (one thread).  Trusts: httpd.  Owns: nothing.
//! Never: runs in the server that talks to clients.

use super::{log, ServerRec};
use crate::apr::AprPool;
use crate::ffi;
use std::fs;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::ptr;

/// The configuration counts as the final one while it is read: a seed reads it once, where httpd reads it twice.
pub fn reading_for_good() {
    // SAFETY: httpd's own variable; one thread runs while the configuration is read.
    unsafe { ffi::ap_main_state = ffi::AP_SQ_MS_CREATE_CONFIG as i32 };
}

/// `-D name` was given.
pub fn is_defined(name: &std::ffi::CStr) -> bool {
    // SAFETY: the name is NUL-terminated.
    unsafe { ffi::ap_exists_config_define(name.as_ptr()) != 0 }
}

/// A shared mapping that could be written: two pools would share it. Returns the line of /proc/self/maps.
pub fn writable_shared_mapping() -> io::Result<Option<String>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    Ok(maps
        .lines()
        .find(|l| l.split_whitespace().nth(1).is_some_and(|p| p.starts_with("rw") && p.ends_with('s')))
        .map(str::to_owned))
}

/// What a server writes to its error log goes to `null`; the `error_log` hook carries the lines.
pub fn error_logs_to(null: OwnedFd, main: ServerRec<'_>, pconf: AprPool<'_>) {
    let mut fd = null.into_raw_fd();
    let mut file: *mut ffi::apr_file_t = ptr::null_mut();
    // SAFETY: the descriptor is ours and stays open; the pool lives as long as the configuration.
    unsafe {
        ffi::apr_os_file_put(
            &raw mut file,
            &raw mut fd,
            (ffi::APR_FOPEN_WRITE | ffi::APR_FOPEN_APPEND) as i32,
            pconf.as_ptr(),
        )
    };
    for server in main.iter() {
        // SAFETY: the servers belong to this configuration, which nobody else uses.
        unsafe { (*server.as_ptr()).error_log = file };
    }
}

/// Runs the modules' start-up as httpd does in its two passes. Errors name what failed; the process must end then.
pub fn start_modules(
    main: ServerRec<'_>,
    pconf: AprPool<'_>,
    plog: AprPool<'_>,
    ptemp: AprPool<'_>,
) -> Result<(), &'static str> {
    for state in [ffi::AP_SQ_MS_CREATE_PRE_CONFIG, ffi::AP_SQ_MS_CREATE_CONFIG] {
        // SAFETY: httpd's own variable; one thread.
        unsafe { ffi::ap_main_state = state as i32 };
        // SAFETY: the pools and the server are those of this configuration (the types say so).
        let rc = unsafe { ffi::ap_run_post_config(pconf.as_ptr(), plog.as_ptr(), ptemp.as_ptr(), main.as_ptr()) };
        if rc != ffi::HOOK_OK {
            return Err("a module's start-up failed (post_config)");
        }
    }
    // SAFETY: takes nothing.
    unsafe { ffi::ap_run_optional_fn_retrieve() };
    // SAFETY: the pool lives as long as the process has this configuration.
    if unsafe { ffi::ap_create_scoreboard(pconf.as_ptr(), ffi::ap_scoreboard_e_SB_NOT_SHARED) } != ffi::HOOK_OK {
        return Err("no memory for the scoreboard");
    }
    // SAFETY: httpd's own variable; one thread.
    unsafe { ffi::ap_main_state = ffi::AP_SQ_MS_RUN_MPM as i32 };
    log::server(log::Level::Debug, main, "modules started");
    Ok(())
}
