//! httpd without an MPM: what `main` does between reading the configuration and running the MPM, for a pool's process.
//!
//! Runs in: seed, zygote (one thread).  Trusts: httpd.  Owns: nothing.
//! Never: runs in the server that talks to clients.

use super::{hooks, log, ServerRec};
use crate::apr::pool::bytes;
use crate::apr::AprPool;
use crate::ffi;
use std::ffi::{c_char, c_int, c_void};
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

/// This httpd has no children: `-X`, or what the MPMs take for the same.
pub fn is_one_process() -> bool {
    is_defined(c"DEBUG") || is_defined(c"ONE_PROCESS")
}

/// What a server writes to its error log goes nowhere; the `error_log` hook carries the lines.
pub fn error_logs_to_null(main: ServerRec<'_>, pconf: AprPool<'_>) -> io::Result<()> {
    let null: OwnedFd = fs::OpenOptions::new().append(true).open("/dev/null")?.into();
    let mut fd = null.into_raw_fd();
    let mut file: *mut ffi::apr_file_t = ptr::null_mut();
    let flags = (ffi::APR_FOPEN_WRITE | ffi::APR_FOPEN_APPEND).cast_signed();
    // SAFETY: the descriptor is ours and stays open; the pool lives as long as the configuration.
    unsafe { ffi::apr_os_file_put(&raw mut file, &raw mut fd, flags, pconf.as_ptr()) };
    for server in main.iter() {
        // SAFETY: the servers belong to this configuration, which nobody else uses.
        unsafe { (*server.as_ptr()).error_log = file };
    }
    Ok(())
}

/// What a worker says to `ap_mpm_query`; `None` for what it does not know.
pub fn worker_answer(code: i32) -> Option<i32> {
    let answers: [(u32, u32); 13] = [
        (ffi::AP_MPMQ_MAX_DAEMON_USED, 1),
        (ffi::AP_MPMQ_IS_THREADED, ffi::AP_MPMQ_NOT_SUPPORTED),
        (ffi::AP_MPMQ_IS_FORKED, ffi::AP_MPMQ_DYNAMIC),
        (ffi::AP_MPMQ_HARD_LIMIT_DAEMONS, 1),
        (ffi::AP_MPMQ_HARD_LIMIT_THREADS, 1),
        (ffi::AP_MPMQ_MAX_THREADS, 1),
        (ffi::AP_MPMQ_MIN_SPARE_THREADS, 0),
        (ffi::AP_MPMQ_MAX_SPARE_THREADS, 0),
        (ffi::AP_MPMQ_MAX_DAEMONS, 1),
        (ffi::AP_MPMQ_MPM_STATE, ffi::AP_MPMQ_RUNNING),
        (ffi::AP_MPMQ_IS_ASYNC, 0),
        (ffi::AP_MPMQ_GENERATION, 0),
        (AP_MPMQ_CAN_WAITIO, 0),
    ];
    answers.iter().find(|(c, _)| i32::try_from(*c) == Ok(code)).and_then(|(_, a)| i32::try_from(*a).ok())
}

/// Newer than the headers of some releases (ap_mpm.h).
const AP_MPMQ_CAN_WAITIO: u32 = 19;

/// What these open in `open_logs` is the server's: error logs and their programs, listening sockets.
const LOGS_OF_THE_SERVER: [&str; 3] = ["core.c", "mod_pool.c", "mod_log_config.c"];

/// Between httpd's passes everything is unloaded; here it stays, and this one refuses to start twice.
const STARTS_ONCE: &str = "mod_shib.cpp";

type Start = unsafe extern "C" fn(
    *mut ffi::apr_pool_t,
    *mut ffi::apr_pool_t,
    *mut ffi::apr_pool_t,
    *mut ffi::server_rec,
) -> c_int;

/// Calls every function of a hook of the start-up, as httpd does. An error names the module that refuses.
fn start_each(hook: hooks::Hook, main: ServerRec<'_>, [pconf, plog, ptemp]: [AprPool<'_>; 3]) -> Result<(), String> {
    for (module, function) in hook.in_order() {
        // SAFETY: what is registered in these two arrays has this type (http_config.h); the pools and the server are those
        // of this configuration (the types say so).
        let rc = unsafe {
            let function = std::mem::transmute::<*const c_void, Start>(function);
            function(pconf.as_ptr(), plog.as_ptr(), ptemp.as_ptr(), main.as_ptr())
        };
        if rc != ffi::HOOK_OK && rc != ffi::HOOK_DECLINED {
            let hook = hook.name;
            return Err(format!(
                "{module} does not start as the pool's user ({hook}): lines of this pool before this one may say why; \
                 if it works for the whole server, write PoolModuleRole {module} frontend"
            ));
        }
    }
    Ok(())
}

/// Runs the modules' start-up as httpd does in its two passes. Some start in `open_logs` (mod_perl makes its interpreter
/// there). Errors name what failed; the process must end then.
pub fn start_modules(
    main: ServerRec<'_>,
    pconf: AprPool<'_>,
    plog: AprPool<'_>,
    ptemp: AprPool<'_>,
) -> Result<(), String> {
    hooks::open_logs.retain(|m| !LOGS_OF_THE_SERVER.contains(&m));
    for state in [ffi::AP_SQ_MS_CREATE_PRE_CONFIG, ffi::AP_SQ_MS_CREATE_CONFIG] {
        // SAFETY: httpd's own variable; one thread.
        unsafe { ffi::ap_main_state = state as i32 };
        for hook in [hooks::open_logs, hooks::post_config] {
            start_each(hook, main, [pconf, plog, ptemp])?;
        }
        // Between httpd's passes everything is unloaded; here the core would take its own optional functions of TLS
        // for those of an older mod_ssl (ap_setup_ssl_optional_fns), and call itself for ever.
        hooks::post_config.retain(|m| m != "core.c" && m != STARTS_ONCE);
    }
    complete_banner(pconf);
    // SAFETY: takes nothing.
    unsafe { ffi::ap_run_optional_fn_retrieve() };
    // SAFETY: the pool lives as long as the process has this configuration.
    if unsafe { ffi::ap_create_scoreboard(pconf.as_ptr(), ffi::ap_scoreboard_e_SB_NOT_SHARED) } != ffi::HOOK_OK {
        return Err("no memory for the scoreboard".to_owned());
    }
    // SAFETY: httpd's own variable; one thread.
    unsafe { ffi::ap_main_state = ffi::AP_SQ_MS_RUN_MPM as i32 };
    log::server(log::Level::Debug, main, "modules started");
    Ok(())
}

/// With this begins the define that tells a seed how the server calls itself.
const BANNER: &[u8] = b"POOL_BANNER_";

/// What the server calls itself (`SERVER_SOFTWARE`), for a seed's command line.
pub fn banner_define() -> Vec<u8> {
    [BANNER, own_banner()].concat()
}

fn own_banner<'a>() -> &'a [u8] {
    // SAFETY: a string that changes only while modules start; the callers copy it before that goes on.
    unsafe { bytes(ffi::ap_get_server_banner()) }
}

/// Modules of the frontends do not start here, but scripts see them in the server's name: with `ServerTokens Full`,
/// else httpd takes no component.
fn complete_banner(pconf: AprPool<'_>) {
    // SAFETY: httpd's array of `-D` names, live; nobody changes it now.
    let defines: Vec<&[u8]> = unsafe {
        let array = &*ffi::ap_server_config_defines;
        let n = usize::try_from(array.nelts).unwrap_or(0);
        (0..n).map(|i| bytes(array.elts.cast::<*const c_char>().add(i).read())).collect()
    };
    let Some(server) = defines.iter().find_map(|d| d.strip_prefix(BANNER)) else { return };
    let own: Vec<Vec<u8>> = own_banner().split(|b| *b == b' ').map(<[u8]>::to_vec).collect();
    for component in server.split(|b| *b == b' ').filter(|c| !own.iter().any(|o| o == c)) {
        // SAFETY: the pool and the text in it live as long as the configuration.
        unsafe { ffi::ap_add_version_component(pconf.as_ptr(), pconf.copy(component)) };
    }
}

/// The first of the two times that httpd reads its configuration when it starts.
pub fn is_dry_pass() -> bool {
    // SAFETY: reads a variable of httpd's.
    unsafe { ffi::ap_state_query(ffi::AP_SQ_MAIN_STATE.cast_signed()) == ffi::AP_SQ_MS_CREATE_PRE_CONFIG.cast_signed() }
}

/// The MPM that runs has threads.
pub fn is_threaded() -> bool {
    query(ffi::AP_MPMQ_IS_THREADED) != ffi::AP_MPMQ_NOT_SUPPORTED
}

/// The MPM that runs lets connections wait without a thread.
pub fn is_async() -> bool {
    query(ffi::AP_MPMQ_IS_ASYNC) > 0
}

/// Threads that one child of the MPM that runs has for requests.
pub fn threads_per_child() -> u32 {
    query(ffi::AP_MPMQ_MAX_THREADS)
}

fn query(code: u32) -> u32 {
    let mut answer = 0;
    // SAFETY: httpd writes the answer to the place given.
    let rc = unsafe { ffi::ap_mpm_query(code.cast_signed(), &raw mut answer) };
    if rc == 0 {
        u32::try_from(answer).unwrap_or(0)
    } else {
        0
    }
}
