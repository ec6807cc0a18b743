//! What httpd calls in its MPM: hooks, and the handlers of the MPM's directives.
//!
//! Runs in: parent and frontend where mod_pool is the MPM; in any of httpd's processes that reads the configuration.
//! Trusts: httpd.  Owns: nothing.  Never: decides anything itself.

use crate::apr::AprPool;
use crate::ffi::{
    self,
    guard::{guard, guard_or_abort},
    HOOK_DECLINED, HOOK_DONE, HOOK_OK,
};
use crate::httpd::command::{Command, Handled, PANICKED};
use crate::httpd::mpm::{self as host, modules, process, threads::Callback};
use crate::httpd::{supervise, ServerRec};
use crate::mpm::{self, parent};
use std::ffi::{c_char, c_int, c_void, CStr};
use std::ptr;
use std::time::Duration;

const FAILED: c_int = ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed();

/// Registers the MPM. `serves`: this image runs it; a seed only needs httpd to see one.
pub fn register(serves: bool) {
    /// The core replaces standard error by the error log: what is wrong with a listener is told before.
    struct Successors([*const c_char; 2]);
    // SAFETY: strings that nobody writes.
    unsafe impl Sync for Successors {}
    static CORE: Successors = Successors([c"core.c".as_ptr(), ptr::null()]);
    let (first, middle) = (ffi::APR_HOOK_REALLY_FIRST, ffi::APR_HOOK_MIDDLE.cast_signed());
    let none = ptr::null();
    // SAFETY: httpd is single-threaded while it loads modules; the functions have the types of these hooks and stay
    // mapped (nodelete).
    unsafe {
        ffi::ap_hook_mpm(Some(run), none, none, middle);
        ffi::ap_hook_mpm_get_name(Some(get_name), none, none, middle);
        ffi::ap_hook_mpm_query(Some(query), none, none, middle);
        ffi::ap_hook_check_config(Some(check_config), none, none, middle);
        if !serves {
            ffi::ap_hook_pre_config(Some(pre_config_of_seed), none, none, first);
            return;
        }
        ffi::ap_hook_pre_config(Some(pre_config), none, none, first);
        ffi::ap_hook_open_logs(Some(open_logs), none, CORE.0.as_ptr(), first);
        ffi::ap_hook_mpm_register_timed_callback(Some(register_timed_callback), none, none, middle);
        ffi::ap_hook_pre_connection(Some(pre_connection), none, none, first);
        ffi::ap_hook_pre_read_request(Some(pre_read_request), none, none, middle);
        ffi::ap_hook_post_read_request(Some(post_read_request), none, none, middle);
        ffi::ap_hook_protocol_switch(Some(protocol_switch), none, none, first);
    }
}

unsafe extern "C" fn get_name() -> *const c_char {
    host::NAME.as_ptr()
}

unsafe extern "C" fn query(code: c_int, result: *mut c_int, status: *mut ffi::apr_status_t) -> c_int {
    let answer = guard(None, || host::answer(code));
    // SAFETY: httpd passes two places for the answer.
    unsafe {
        match answer {
            Some(answer) => (*result, *status) = (answer, 0),
            None => *status = ffi::APR_ENOTIMPL.cast_signed(),
        }
    }
    HOOK_OK
}

unsafe extern "C" fn pre_config(
    pconf: *mut ffi::apr_pool_t,
    _plog: *mut ffi::apr_pool_t,
    _ptemp: *mut ffi::apr_pool_t,
) -> c_int {
    // SAFETY: httpd calls the hook with the configuration's pool.
    let ready = guard(false, || parent::pre_config(unsafe { AprPool::from_raw(pconf) }));
    if ready {
        HOOK_OK
    } else {
        FAILED
    }
}

unsafe extern "C" fn pre_config_of_seed(
    _pconf: *mut ffi::apr_pool_t,
    _plog: *mut ffi::apr_pool_t,
    _ptemp: *mut ffi::apr_pool_t,
) -> c_int {
    guard(FAILED, || {
        host::reset_settings();
        HOOK_OK
    })
}

unsafe extern "C" fn check_config(
    _pconf: *mut ffi::apr_pool_t,
    _plog: *mut ffi::apr_pool_t,
    _ptemp: *mut ffi::apr_pool_t,
    _main: *mut ffi::server_rec,
) -> c_int {
    guard(FAILED, || {
        host::fit_settings();
        HOOK_OK
    })
}

unsafe extern "C" fn open_logs(
    pconf: *mut ffi::apr_pool_t,
    _plog: *mut ffi::apr_pool_t,
    _ptemp: *mut ffi::apr_pool_t,
    main: *mut ffi::server_rec,
) -> c_int {
    // SAFETY: httpd calls the hook with its main server and the configuration's pool.
    let opened = guard(false, || unsafe { parent::open_logs(AprPool::from_raw(pconf), ServerRec::from_raw(main)) });
    if opened {
        HOOK_OK
    } else {
        FAILED
    }
}

unsafe extern "C" fn run(pconf: *mut ffi::apr_pool_t, plog: *mut ffi::apr_pool_t, main: *mut ffi::server_rec) -> c_int {
    guard_or_abort(|| {
        // SAFETY: httpd calls the hook with its main server and pools, which live until it returns; in a frontend it
        // does not return.
        let (pconf, plog, main) =
            unsafe { (AprPool::from_raw(pconf), AprPool::from_raw(plog), ServerRec::from_raw(main)) };
        // SAFETY: the function stays mapped.
        unsafe { supervise::at_end_of_process(main.process_pool(), at_exit) };
        let calls = parent::Calls { stopped, wait_until_ready: crate::parent::wait_for_seed };
        match parent::run(pconf, plog, main, calls) {
            parent::Verdict::Restart => HOOK_OK,
            parent::Verdict::Exit => HOOK_DONE,
            parent::Verdict::Failed => FAILED,
        }
    })
}

unsafe extern "C" fn stopped(slot: c_int, pid: ffi::pid_t, generation: ffi::ap_generation_t) {
    guard((), || {
        if let Some(main) = process::main_server() {
            parent::stopped(main, slot, pid, generation);
        }
    });
}

unsafe extern "C" fn at_exit(_data: *mut c_void) -> ffi::apr_status_t {
    guard(0, || {
        parent::at_exit();
        0
    })
}

unsafe extern "C" fn register_timed_callback(
    after: ffi::apr_time_t,
    function: ffi::ap_mpm_callback_fn_t,
    data: *mut c_void,
) -> ffi::apr_status_t {
    guard(ffi::APR_EGENERAL.cast_signed(), || {
        let after = Duration::from_micros(u64::try_from(after).unwrap_or(0));
        // SAFETY: what the module has registered.
        if mpm::call_later(after, unsafe { Callback::from_raw(function, data) }) {
            0
        } else {
            ffi::APR_ENOTIMPL.cast_signed()
        }
    })
}

unsafe extern "C" fn pre_connection(c: *mut ffi::conn_rec, _socket: *mut c_void) -> c_int {
    guard(FAILED, || {
        // SAFETY: as httpd calls this hook.
        unsafe { modules::pre_connection(c) };
        HOOK_OK
    })
}

unsafe extern "C" fn pre_read_request(r: *mut ffi::request_rec, c: *mut ffi::conn_rec) {
    // SAFETY: as httpd calls this hook.
    guard((), || unsafe { modules::request_begins(r, c) });
}

unsafe extern "C" fn post_read_request(r: *mut ffi::request_rec) -> c_int {
    guard(FAILED, || {
        // SAFETY: as httpd calls this hook.
        unsafe { modules::request_is_read(r) };
        HOOK_OK
    })
}

unsafe extern "C" fn protocol_switch(
    c: *mut ffi::conn_rec,
    r: *mut ffi::request_rec,
    s: *mut ffi::server_rec,
    _protocol: *const c_char,
) -> c_int {
    guard(FAILED, || {
        // SAFETY: as httpd calls this hook.
        unsafe { modules::protocol_changes(c, r, s) };
        HOOK_DECLINED
    })
}

// ===== Directives =====

/// # Safety
/// `cmd` is what httpd gave the directive's handler that calls this.
unsafe fn handle(cmd: *mut ffi::cmd_parms, body: impl FnOnce(&Command<'_>) -> Handled) -> *const c_char {
    guard(PANICKED.as_ptr(), || {
        // SAFETY: by contract; the handler's call bounds the command.
        let command = unsafe { Command::from_raw(cmd) };
        let handled = body(&command);
        command.answer(handled)
    })
}

#[no_mangle]
unsafe extern "C" fn pool_entry_pool_mpm(cmd: *mut ffi::cmd_parms, _dir: *mut c_void, on: c_int) -> *const c_char {
    // SAFETY: httpd calls this as the handler of a FLAG directive.
    unsafe { handle(cmd, |command| host::pool_mpm_directive(command, on != 0)) }
}

#[no_mangle]
unsafe extern "C" fn pool_entry_mpm_number(
    cmd: *mut ffi::cmd_parms,
    _dir: *mut c_void,
    value: *const c_char,
) -> *const c_char {
    // SAFETY: httpd calls this as the handler of a TAKE1 directive, with a string.
    unsafe { handle(cmd, |command| host::number_directive(command, CStr::from_ptr(value))) }
}

#[no_mangle]
unsafe extern "C" fn pool_entry_mpm_httpd(
    cmd: *mut ffi::cmd_parms,
    _dir: *mut c_void,
    value: *const c_char,
) -> *const c_char {
    // SAFETY: httpd calls this as the handler of a TAKE1 directive, with a string.
    unsafe { handle(cmd, |command| host::httpd_directive(command, CStr::from_ptr(value))) }
}

#[no_mangle]
unsafe extern "C" fn pool_entry_mpm_listen(
    cmd: *mut ffi::cmd_parms,
    _dir: *mut c_void,
    argc: c_int,
    argv: *const *mut c_char,
) -> *const c_char {
    // SAFETY: httpd calls this as the handler of a TAKE_ARGV directive.
    unsafe { handle(cmd, |command| host::listen_directive(command, argc, argv)) }
}
