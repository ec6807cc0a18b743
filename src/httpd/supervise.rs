//! What the parent asks of httpd: command lines for the other images, watching the controller, other modules' hooks.
//!
//! Runs in: parent; what takes a request in frontends.  Trusts: httpd.
//! Owns: the record of the watched process.  Never: sends a signal.

use super::{config, hooks, image as httpd_image, RequestRec, ServerRec};
use crate::apr::AprPool;
use crate::ffi;
use crate::sys::image;
use once_cell::sync::OnceCell;
use std::ffi::{c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Room in a command line for the title that replaces it.
const TITLE_ROOM: usize = 160;

fn words(list: &[&[u8]]) -> Vec<Vec<u8>> {
    list.iter().map(|w| w.to_vec()).collect()
}

fn title_room() -> [Vec<u8>; 2] {
    [b"-D".to_vec(), [b"POOL_TITLE_".as_slice(), &[b'_'; TITLE_ROOM]].concat()]
}

/// Arguments of a controller: an httpd that loads this module and reads no configuration.
pub fn controller_argv(main: ServerRec<'_>) -> Vec<Vec<u8>> {
    let program = main.process_argv().first().map_or_else(|| b"apache2".to_vec(), |p| p.to_vec());
    let own = image::own_file().unwrap_or_default();
    let load = [b"LoadModule pool_module \"".as_slice(), own.as_os_str().as_bytes(), b"\""].concat();
    let mut argv = vec![program];
    argv.extend(words(&[b"-D", b"POOL_CONTROLLER", b"-f", b"/dev/null", b"-C", &load]));
    if httpd_image::is_one_process() {
        argv.extend(words(&[b"-D", b"POOL_KEEP"]));
    }
    argv.extend(title_room());
    argv
}

/// Arguments of a process that ends as the controller does.
pub fn stand_in_argv(main: ServerRec<'_>) -> Vec<Vec<u8>> {
    [controller_argv(main), words(&[b"-D", b"POOL_STAND_IN"])].concat()
}

/// The name of httpd's program, without its directory.
pub fn program_name(main: ServerRec<'_>) -> &[u8] {
    main.process_argv().first().and_then(|path| path.rsplit(|b| *b == b'/').next()).unwrap_or_default()
}

/// Arguments of a seed: those that this httpd was started with, and what makes it a seed.
pub fn seed_argv(main: ServerRec<'_>) -> Vec<Vec<u8>> {
    let mut argv: Vec<Vec<u8>> = main.process_argv().iter().filter(|w| **w != b"-X").map(|w| w.to_vec()).collect();
    argv.extend(words(&[b"-D", b"POOL_SEED", b"-D", b"FOREGROUND"]));
    argv.extend(words(&[b"-D", &super::image::banner_define()]));
    if config::pool_tree(main).unassigned().is_some() {
        argv.extend(words(&[b"-D", config::DEFAULT_SERVES.to_bytes()]));
    }
    if let Some(path) = cgi_module() {
        let load = [b"LoadModule cgi_module \"".as_slice(), &path, b"\""].concat();
        argv.extend(words(&[b"-C", &load]));
    }
    argv.extend(title_room());
    argv
}

/// Where only mod_cgid is loaded, whose daemon runs as `User`: the file of mod_cgi beside it, which runs scripts in
/// the process that serves the request.
fn cgi_module() -> Option<Vec<u8>> {
    let loaded = hooks::loaded_modules();
    if !loaded.iter().any(|m| m == "mod_cgid.c") || loaded.iter().any(|m| m == "mod_cgi.c") {
        return None;
    }
    // SAFETY: the name is NUL-terminated; the answer is null or a live module record.
    let cgid = unsafe { ffi::ap_find_linked_module(c"mod_cgid.c".as_ptr()) };
    let file = image::file_of(cgid.addr())?.with_file_name("mod_cgi.so");
    file.exists().then(|| file.as_os_str().as_bytes().to_vec())
}

/// What httpd calls when the watched process has ended (apr_thread_proc.h).
pub type Changed = unsafe extern "C" fn(c_int, *mut c_void, c_int);

/// The configuration's pool: where a controller that is started later is watched from.
static POOL: AtomicPtr<ffi::apr_pool_t> = AtomicPtr::new(ptr::null_mut());

/// Has httpd's parent tell when one of these children ends.
///
/// # Safety
/// `changed` stays mapped; httpd's parent calls this on its one thread.
pub unsafe fn watch(pids: Vec<u32>, pconf: AprPool<'_>, changed: Changed) {
    POOL.store(pconf.as_ptr(), Ordering::Relaxed);
    // SAFETY: the caller's promise.
    unsafe { watch_again(pids, changed) };
}

/// As [`watch`], in the same configuration, for children that are new in it.
///
/// # Safety
/// As [`watch`]; the configuration given there is still in force.
pub unsafe fn watch_again(pids: Vec<u32>, changed: Changed) {
    let pool = POOL.load(Ordering::Relaxed);
    if pool.is_null() {
        return;
    }
    for pid in pids.into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
        // SAFETY: the configuration's pool is live; the record lives as long, and httpd drops the registration with it.
        unsafe {
            let process = ffi::apr_palloc(pool, size_of::<ffi::apr_proc_t>()).cast::<ffi::apr_proc_t>();
            process.write_bytes(0, 1);
            (*process).pid = pid;
            ffi::apr_proc_other_child_register(process, Some(changed), process.cast(), ptr::null_mut(), pool);
        }
    }
}

/// The process that a callback is about.
///
/// # Safety
/// `data` is the callback's.
pub unsafe fn watched(data: *mut c_void) -> u32 {
    // SAFETY: `data` is the registered record (watch_again), which lives as long as the registration.
    u32::try_from(unsafe { (*data.cast::<ffi::apr_proc_t>()).pid }).unwrap_or(0)
}

/// Ends the registration that a callback was made for, where httpd leaves that to the callback.
///
/// # Safety
/// `data` and `reason` are the callback's.
pub unsafe fn unwatch(data: *mut c_void, reason: c_int) {
    if reason == ffi::APR_OC_REASON_DEATH.cast_signed() || reason == ffi::APR_OC_REASON_LOST.cast_signed() {
        // SAFETY: `data` is the registered record (watch_again), and unregistering it from its callback is APR's way.
        unsafe { ffi::apr_proc_other_child_unregister(data) };
    }
}

/// Has `stop` called when httpd's process pool ends. Once, however often the configuration is read.
///
/// # Safety
/// `stop` stays mapped.
pub unsafe fn at_exit(pool: AprPool<'static>, stop: unsafe extern "C" fn(*mut c_void) -> ffi::apr_status_t) {
    static ONCE: OnceCell<()> = OnceCell::new();
    ONCE.get_or_init(|| {
        // SAFETY: the pool lives as long as the process.
        unsafe { ffi::apr_pool_pre_cleanup_register(pool.as_ptr(), ptr::null(), Some(stop)) };
    });
}

/// As [`at_exit`], for the MPM.
///
/// # Safety
/// `end` stays mapped.
pub unsafe fn at_end_of_process(pool: AprPool<'static>, end: unsafe extern "C" fn(*mut c_void) -> ffi::apr_status_t) {
    static ONCE: OnceCell<()> = OnceCell::new();
    ONCE.get_or_init(|| {
        // SAFETY: the pool lives as long as the process.
        unsafe { ffi::apr_pool_pre_cleanup_register(pool.as_ptr(), ptr::null(), Some(end)) };
    });
}

type RequestHook = unsafe extern "C" fn(*mut ffi::request_rec) -> c_int;

/// Calls a hook's function on a request.
fn call(function: Option<RequestHook>, r: RequestRec<'_>) -> Option<c_int> {
    // SAFETY: a live request, at a point where httpd would call this function too (the callers say why).
    let answer = unsafe { function?(r.as_ptr()) };
    (answer != ffi::HOOK_DECLINED).then_some(answer)
}

fn as_request_hook(function: *const c_void) -> RequestHook {
    // SAFETY: what is registered in the arrays asked below takes a request and returns an int (http_request.h,
    // http_config.h).
    unsafe { std::mem::transmute::<*const c_void, RequestHook>(function) }
}

/// The core's offer of other protocols (`Upgrade: h2c`) on a connection's first request, and the change to one that
/// the client asks for: its answer, if the request was served with that. httpd does it where handlers run, which a
/// pool's request does not reach in this process.
pub fn upgrade(r: RequestRec<'_>) -> Option<c_int> {
    static FUNCTION: OnceCell<Option<RequestHook>> = OnceCell::new();
    let find = || hooks::handler.function_at("core.c", ffi::APR_HOOK_REALLY_FIRST).map(as_request_hook);
    call(*FUNCTION.get_or_init(find), r)
}
