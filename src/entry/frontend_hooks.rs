//! What httpd calls in the server proper: its parent and the children that are frontends.
//!
//! Runs in: parent (configuration, supervision), frontend (requests).  Trusts: httpd.  Owns: nothing.
//! Never: decides anything itself.

use crate::apr::AprPool;
use crate::ffi::{
    self,
    guard::{guard, guard_or_abort},
    HOOK_DECLINED, HOOK_DONE, HOOK_OK,
};
use crate::frontend::{self, FrontendStart, Handled};
use crate::httpd::config::{self, Assignment};
use crate::httpd::mapping::{self, Mapped};
use crate::httpd::{
    classes, frontend_tls, hand_over, hooks, image, log, parking, pieces, static_files, supervise, Connection,
    RequestRec, ServerRec,
};
use crate::parent;
use crate::sys::{fork, privileges};
use std::os::raw::{c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Handler and note of subrequests that a pool serves. The note decides: mod_mime names another handler by the suffix,
/// and a script would run as `User`.
const HANDLER: &std::ffi::CStr = c"pool-request";

/// While the modules get ready for a configuration, the MPM counts as one without threads: stock PHP asks then, and
/// would not load. It never runs in a threaded frontend, see `classes::silence_php`.
static HIDES_THREADS: AtomicBool = AtomicBool::new(false);

pub fn register() {
    HIDES_THREADS.store(true, Ordering::Relaxed);
    pieces::register(Some(pieces_filter));
    let first = ffi::APR_HOOK_REALLY_FIRST;
    let last = ffi::APR_HOOK_REALLY_LAST.cast_signed();
    let none = ptr::null();
    // SAFETY: httpd is single-threaded while it loads modules; the functions have the types of these hooks and stay
    // mapped (nodelete).
    unsafe {
        ffi::ap_hook_mpm_query(Some(mpm_query), none, none, first);
        ffi::ap_hook_pre_config(Some(pre_config), none, none, last);
        ffi::ap_hook_check_config(Some(check_config), none, none, last);
        ffi::ap_hook_post_config(Some(post_config), none, none, last);
        ffi::ap_hook_monitor(Some(monitor), none, none, last);
        ffi::ap_hook_child_status(Some(child_status), none, none, first);
        ffi::ap_hook_child_init(Some(child_init), none, none, first);
        ffi::ap_hook_translate_name(Some(translate_name), none, none, first);
        ffi::ap_hook_map_to_storage(Some(map_to_storage), none, none, first);
        ffi::ap_hook_access_checker_ex(Some(access_checker_ex), none, none, first);
        ffi::ap_hook_open_htaccess(Some(open_htaccess), none, none, first);
        ffi::ap_hook_handler(Some(handler), none, none, first);
        ffi::ap_hook_log_transaction(Some(before_loggers), none, none, first);
        ffi::ap_hook_log_transaction(Some(log_transaction), none, none, last);
        ffi::ap_hook_pre_close_connection(Some(pre_close_connection), none, none, last);
    }
}

unsafe extern "C" fn pieces_filter(f: *mut ffi::ap_filter_t, bb: *mut ffi::apr_bucket_brigade) -> ffi::apr_status_t {
    // SAFETY: httpd calls the filter of a live chain, and hands the brigade over for the call.
    guard(ffi::APR_EGENERAL.cast_signed(), || unsafe { pieces::take(f, bb) })
}

unsafe extern "C" fn mpm_query(code: c_int, result: *mut c_int, status: *mut ffi::apr_status_t) -> c_int {
    if code != ffi::AP_MPMQ_IS_THREADED.cast_signed() || !HIDES_THREADS.load(Ordering::Relaxed) {
        return HOOK_DECLINED;
    }
    // SAFETY: httpd passes two places for the answer.
    unsafe {
        *result = ffi::AP_MPMQ_NOT_SUPPORTED.cast_signed();
        *status = 0;
    }
    HOOK_OK
}

unsafe extern "C" fn pre_config(
    _pconf: *mut ffi::apr_pool_t,
    _plog: *mut ffi::apr_pool_t,
    _ptemp: *mut ffi::apr_pool_t,
) -> c_int {
    HIDES_THREADS.store(false, Ordering::Relaxed);
    HOOK_OK
}

unsafe extern "C" fn check_config(
    _pconf: *mut ffi::apr_pool_t,
    _plog: *mut ffi::apr_pool_t,
    _ptemp: *mut ffi::apr_pool_t,
    _main: *mut ffi::server_rec,
) -> c_int {
    guard(ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed(), || {
        if image::is_threaded() {
            classes::silence_php();
        }
        // mod_perl asks for a place before the first one there is. What it maps, the frontend would serve as `User`.
        for hook in [hooks::translate_name, hooks::log_transaction] {
            hook.lead("mod_pool.c");
        }
        HOOK_OK
    })
}

unsafe extern "C" fn post_config(
    pconf: *mut ffi::apr_pool_t,
    _plog: *mut ffi::apr_pool_t,
    _ptemp: *mut ffi::apr_pool_t,
    main: *mut ffi::server_rec,
) -> c_int {
    guard(ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed(), || {
        // SAFETY: httpd calls the hook with its main server and the configuration's pool.
        let (main, pconf) = unsafe { (ServerRec::from_raw(main), AprPool::from_raw(pconf)) };
        if image::is_dry_pass() {
            return HOOK_OK;
        }
        let tree = config::pool_tree(main);
        if tree.is_empty() && !parent::has_controller() {
            return HOOK_OK;
        }
        let started = parent::configure(&parent::Start {
            tree,
            frontend_uid: config::frontend_uid(),
            controller_argv: supervise::controller_argv(main),
            stand_in_argv: supervise::stand_in_argv(main),
            seed_argv: supervise::seed_argv(main),
            waits: crate::httpd::mpm::is_ours(),
            error_log: main.error_log_name(),
            program: supervise::program_name(main),
        });
        if let Err(e) = started {
            if !parent::is_running() {
                log::server(log::Level::Emerg, main, format!("POOL108: the controller cannot be started: {e}"));
                return ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed();
            }
            let text = format!(
                "POOL155: the controller does not know the new configuration: {e}: the older frontends serve on, it is \
                 tried again"
            );
            log::server(log::Level::Emerg, main, text);
        }
        // SAFETY: both functions stay mapped; the pools live as long as what is registered in them.
        unsafe {
            supervise::watch([parent::of_controller(), parent::older_keepers()].concat(), pconf, controller_changed)
        };
        // SAFETY: as before.
        unsafe { supervise::at_exit(main.process_pool(), stop) };
        HOOK_OK
    })
}

/// httpd's parent has reaped a process of a controller, or forgets it because the configuration ends.
unsafe extern "C" fn controller_changed(reason: c_int, data: *mut c_void, _status: c_int) {
    guard((), || {
        // SAFETY: `data` is what `watch` registered.
        unsafe { supervise::unwatch(data, reason) };
        if reason != ffi::APR_OC_REASON_DEATH.cast_signed() && reason != ffi::APR_OC_REASON_LOST.cast_signed() {
            return;
        }
        // SAFETY: as before; the record is in the configuration's pool.
        if !parent::was_the_controller(unsafe { supervise::watched(data) }) {
            return;
        }
        log::main_server(log::Level::Error, "POOL109: the controller has died; another one is started");
        match parent::controller_died() {
            // SAFETY: as in post_config: the configuration's pool lives until httpd unregisters what is in it.
            Ok(()) => unsafe { supervise::watch_again(parent::of_controller(), controller_changed) },
            Err(e) => log::main_server(
                log::Level::Emerg,
                format!("POOL110: the controller cannot be started, it is tried again: {e}"),
            ),
        }
    });
}

unsafe extern "C" fn stop(_data: *mut c_void) -> ffi::apr_status_t {
    guard(0, || {
        for pid in parent::stop() {
            let text = format!(
                "POOL135: the controller {pid} does not end, though it was killed: it is left; what it has started is ended"
            );
            log::main_server(log::Level::Error, text);
        }
        0
    })
}

unsafe extern "C" fn child_status(
    _s: *mut ffi::server_rec,
    pid: ffi::pid_t,
    _generation: ffi::ap_generation_t,
    _slot: c_int,
    state: ffi::mpm_child_status,
) {
    guard((), || {
        let Ok(pid) = u32::try_from(pid) else { return };
        let started = state == ffi::mpm_child_status_MPM_CHILD_STARTED;
        if started || state == ffi::mpm_child_status_MPM_CHILD_EXITED {
            if let Err(e) = parent::child_status(pid, started) {
                log::main_server(log::Level::Error, format!("POOL119: frontend {pid}: {e}"));
            }
        }
    });
}

unsafe extern "C" fn monitor(_p: *mut ffi::apr_pool_t, _s: *mut ffi::server_rec) -> c_int {
    guard(HOOK_DECLINED, || {
        match parent::look_after_controller() {
            parent::Looked::Fine => {}
            parent::Looked::Killed(silence) => {
                let text =
                    format!("POOL120: the controller has read nothing for {} s: it is killed", silence.as_secs());
                log::main_server(log::Level::Error, text);
                replace_undying();
            }
            parent::Looked::Started => {
                log::main_server(log::Level::Notice, "the controller has been started at last");
                // SAFETY: as in post_config: the configuration's pool lives until httpd unregisters what is in it.
                unsafe { supervise::watch_again(parent::of_controller(), controller_changed) };
            }
            parent::Looked::Failed(e) => {
                log::main_server(log::Level::Emerg, format!("the controller cannot be started, or told: {e}"));
            }
        }
        HOOK_DECLINED
    })
}

/// The controller was killed. Where it does not end, httpd will not tell of its death.
fn replace_undying() {
    let Some(old) = parent::leave_undying_controller() else { return };
    let text = format!(
        "POOL132: the controller {old} does not end, though it was killed: it waits in the kernel; another one is started"
    );
    log::main_server(log::Level::Error, text);
    match parent::start_another() {
        // SAFETY: as in post_config: the configuration's pool lives until httpd unregisters what is in it.
        Ok(()) => unsafe { supervise::watch_again(parent::of_controller(), controller_changed) },
        Err(e) => log::main_server(log::Level::Emerg, format!("no other controller can be started: {e}")),
    }
}

/// Dropped with the child's pool.
struct ChildEnd;

impl Drop for ChildEnd {
    fn drop(&mut self) {
        frontend::end();
    }
}

unsafe extern "C" fn child_init(pchild: *mut ffi::apr_pool_t, main: *mut ffi::server_rec) {
    guard_or_abort(|| {
        // SAFETY: httpd calls the hook with its main server and the child's pool; both live as long as the child.
        let (main, pchild) = unsafe { (ServerRec::from_raw(main), AprPool::from_raw(pchild)) };
        frontend_tls::prepare(main, pchild);
        hand_over::find();
        if let Some(parent::Inherited { generation, connector, numbers }) = parent::frontend_start() {
            let tree = config::pool_tree(main);
            // A pool of the frontends' own user must not read the TLS keys in their memory, which httpd allows it where
            // CoreDumpDirectory is set or httpd never was root.
            if tree.uses_uid(config::frontend_uid()) {
                if let Err(e) = privileges::not_dumpable() {
                    log::server(log::Level::Emerg, main, format!("POOL115: PR_SET_DUMPABLE: {e}: this process ends"));
                    fork::exit_now(1);
                }
            }
            let start =
                FrontendStart { connector, generation, numbers, tree, main, parent: parent::parent_of_frontend() };
            if let Err(e) = frontend::start(start) {
                log::server(log::Level::Error, main, format!("POOL111: no channel to the controller: {e}"));
            }
            pchild.place(ChildEnd);
        } else if parent::lacks_connector() {
            // It would refuse every request of a pool for its whole life. Another one may find what was lacking.
            let text = "there was no descriptor for this frontend's connector: this process ends";
            log::server(log::Level::Error, main, text);
            fork::exit_now(ffi::APEXIT_CHILDSICK.cast_signed());
        }
    });
}

/// The pool that is to serve the request; `None` when the frontend is.
fn pool_of(r: RequestRec<'_>) -> Option<u32> {
    match config::assigned_pool(r) {
        Some(Assignment::Pool(pool)) => Some(pool),
        Some(Assignment::None | Assignment::Files) => None,
        None => config::unassigned_pool(r),
    }
}

unsafe extern "C" fn translate_name(raw: *mut ffi::request_rec) -> c_int {
    guard(ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed(), || {
        // SAFETY: httpd calls the hook with a live request on this thread.
        let r = unsafe { RequestRec::from_raw(raw) };
        let Some(pool) = pool_of(r).filter(|_| !r.is_proxied()) else {
            if config::assigned_pool(r) == Some(Assignment::Files) {
                static_files::mark(r);
            }
            return HOOK_DECLINED;
        };
        if r.is_subrequest() && mapping::refuses_look_ahead(r) {
            return ffi::HTTP_FORBIDDEN.cast_signed();
        }
        // ProxyPass stays in the frontend: if mod_proxy maps this request, httpd goes on with that.
        if let Mapped::Frontend(answer) = mapping::ask(r) {
            return answer;
        }
        if r.is_redirected() {
            // An ErrorDocument of this server for an error of the pool itself: asking the pool again would not help,
            // and serving its files here would be done as the wrong user.
            return if frontend::has_failed(r) {
                ffi::HTTP_SERVICE_UNAVAILABLE.cast_signed()
            } else {
                answer(serve(r, pool))
            };
        }
        if r.is_subrequest() {
            r.set_handler(HANDLER);
            r.note(HANDLER, b"1");
            r.set_filename(r.uri());
            return HOOK_OK;
        }
        supervise::upgrade(r).unwrap_or_else(|| answer(serve(r, pool)))
    })
}

fn serve(r: RequestRec<'_>, pool: u32) -> Handled {
    match frontend_tls::check_access(r) {
        Ok(()) if !hand_over::run(r) => Handled::Status(500),
        Ok(()) => frontend::serve(r, pool),
        Err(status) => Handled::Status(u16::try_from(status).unwrap_or(403)),
    }
}

fn answer(handled: Handled) -> c_int {
    match handled {
        Handled::Done => HOOK_DONE,
        Handled::Status(status) => c_int::from(status),
        Handled::Parked => parking::SUSPENDED,
    }
}

/// A subrequest that [`translate_name`] has marked for a pool; httpd must not look for a file.
fn is_marked(r: RequestRec<'_>) -> bool {
    r.is_subrequest() && r.notes().get(HANDLER).is_some()
}

unsafe extern "C" fn map_to_storage(raw: *mut ffi::request_rec) -> c_int {
    guard(ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed(), || {
        // SAFETY: httpd calls the hook with a live request on this thread.
        let r = unsafe { RequestRec::from_raw(raw) };
        if is_marked(r) {
            HOOK_OK
        } else if r.is_subrequest() && mapping::refuses_look_ahead(r) {
            ffi::HTTP_FORBIDDEN.cast_signed()
        } else {
            HOOK_DECLINED
        }
    })
}

unsafe extern "C" fn open_htaccess(
    raw: *mut ffi::request_rec,
    _directory: *const c_char,
    _name: *const c_char,
    _file: *mut *mut ffi::ap_configfile_t,
    _path: *mut *const c_char,
) -> ffi::apr_status_t {
    guard(ffi::APR_EGENERAL.cast_signed(), || {
        // SAFETY: httpd calls the hook with a live request on this thread.
        if static_files::is_marked(unsafe { RequestRec::from_raw(raw) }) {
            static_files::NO_HTACCESS
        } else {
            ffi::AP_DECLINED.cast_signed()
        }
    })
}

/// The worker asks for itself whether the user may.
unsafe extern "C" fn access_checker_ex(raw: *mut ffi::request_rec) -> c_int {
    // SAFETY: the same contract.
    unsafe { map_to_storage(raw) }
}

unsafe extern "C" fn handler(raw: *mut ffi::request_rec) -> c_int {
    guard(ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed(), || {
        // SAFETY: httpd calls the hook with a live request on this thread.
        let r = unsafe { RequestRec::from_raw(raw) };
        if is_marked(r) {
            return match pool_of(r).map(|pool| serve(r, pool)) {
                Some(Handled::Done) => HOOK_OK,
                Some(handled) => answer(handled),
                None => ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed(),
            };
        }
        if static_files::is_marked(r) {
            return static_files::serve(r);
        }
        if classes::is_php_handler(r.handler())
            && hooks::handler.function_of("mod_php.c").is_none()
            && classes::php_is_loaded()
        {
            log::request(
                log::Level::Error,
                r,
                "POOL112: PHP does not run in the frontend, which has threads: assign this URL to a pool (AssignServerPool)",
            );
            return ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed();
        }
        HOOK_DECLINED
    })
}

/// The response has been sent; no logger has run. Those of modules that work in pools have run in the worker, if it has
/// answered: then the others are called here, and httpd goes on to none.
unsafe extern "C" fn before_loggers(raw: *mut ffi::request_rec) -> c_int {
    guard(HOOK_DECLINED, || {
        // SAFETY: httpd calls the hook with a live request on this thread.
        let r = unsafe { RequestRec::from_raw(raw) };
        if !frontend::complete_for_loggers(r) {
            return HOOK_DECLINED;
        }
        classes::run_loggers_of_frontends(r);
        frontend::wait_for_next_request(r);
        HOOK_DONE
    })
}

/// Every logger has run; what the client sends next is not this request's any more.
unsafe extern "C" fn log_transaction(raw: *mut ffi::request_rec) -> c_int {
    guard(HOOK_DECLINED, || {
        // SAFETY: httpd calls the hook with a live request on this thread.
        frontend::wait_for_next_request(unsafe { RequestRec::from_raw(raw) });
        HOOK_DECLINED
    })
}

unsafe extern "C" fn pre_close_connection(raw: *mut ffi::conn_rec) -> c_int {
    guard(HOOK_OK, || {
        // SAFETY: httpd calls the hook with a live connection on this thread.
        if let Some(connection) = unsafe { Connection::from_raw(raw) } {
            frontend::wait_for_close(connection);
        }
        HOOK_OK
    })
}
