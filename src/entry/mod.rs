//! Where httpd calls in: the module record and every `extern "C"` function, a few lines each.
//!
//! Runs in: every process httpd is in.  Trusts: httpd.  Owns: the module record.  Never: decides anything itself.

mod directives;
mod frontend_hooks;
mod mpm_hooks;
mod seed_hooks;
mod worker_checks;
pub mod worker_hooks;

use crate::apr::{pool::bytes, AprPool};
use crate::controller::{self, ControllerStart};
use crate::ffi::{
    self,
    guard::{guard, guard_or_abort},
};
use crate::httpd::{config, errorlog, image, log, mpm, ServerRec};
use crate::sys::{fork, launch};
use std::io;
use std::os::fd::OwnedFd;
use std::os::raw::{c_char, c_int, c_void};
use std::ptr;

/// What `LoadModule pool_module` looks up.
///
/// httpd writes `module_index` and the loader's fields while it is single-threaded; nothing here writes to it.
#[no_mangle]
pub static mut pool_module: ffi::module = ffi::module {
    version: ffi::MODULE_MAGIC_NUMBER_MAJOR as i32,
    minor_version: ffi::MODULE_MAGIC_NUMBER_MINOR as i32,
    module_index: -1,
    name: c"mod_pool.c".as_ptr().cast::<c_char>(),
    dynamic_load_handle: ptr::null_mut(),
    next: ptr::null_mut(),
    magic: ffi::MODULE_MAGIC_COOKIE as u64,
    rewrite_args: None,
    create_dir_config: Some(create_dir_config),
    merge_dir_config: Some(merge_dir_config),
    create_server_config: Some(create_server_config),
    merge_server_config: Some(merge_server_config),
    cmds: (&raw const ffi::pool_shim_commands).cast::<ffi::command_rec>(),
    register_hooks: Some(register_hooks),
    flags: 0,
};

/// What an image of httpd is for, as its command line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Image {
    Server,
    Controller,
    Seed,
}

fn own_image() -> Image {
    if image::is_defined(c"POOL_CONTROLLER") {
        Image::Controller
    } else if image::is_defined(c"POOL_SEED") {
        Image::Seed
    } else {
        Image::Server
    }
}

unsafe extern "C" fn register_hooks(pconf: *mut ffi::apr_pool_t) {
    let middle = ffi::APR_HOOK_MIDDLE as c_int;
    guard_or_abort(|| {
        let image = own_image();
        if image == Image::Controller {
            control();
        }
        // SAFETY: httpd passes the pool of the configuration that it is about to read; the function stays mapped (nodelete).
        unsafe { errorlog::register_item(AprPool::from_raw(pconf), errorlog_item) };
        // SAFETY: httpd is single-threaded while it loads modules; the hook stays mapped (nodelete).
        unsafe { ffi::ap_hook_check_config(Some(check_config), ptr::null(), ptr::null(), middle) };
        if mpm::adopt() {
            mpm_hooks::register(image == Image::Server);
        }
        match image {
            Image::Seed => seed_hooks::register(),
            Image::Server | Image::Controller => frontend_hooks::register(),
        }
    });
}

/// The item of `ErrorLogFormat`.
unsafe extern "C" fn errorlog_item(
    _info: *const ffi::ap_errorlog_info,
    argument: *const c_char,
    buf: *mut c_char,
    len: c_int,
) -> c_int {
    guard(0, || {
        // SAFETY: null or a string of the configuration.
        let item = errorlog::item_text(unsafe { bytes(argument) });
        // SAFETY: httpd passes a buffer of this length.
        item.map_or(0, |item| unsafe { errorlog::put_item(&item, buf, len) })
    })
}

/// This image is a controller's keeper, or stands in for it: httpd has loaded this one module, and gets no further.
fn control() -> ! {
    let taken = |channel: io::Result<OwnedFd>| {
        channel.unwrap_or_else(|e| {
            eprintln!(
                "mod_pool: the controller lacks a channel (restart httpd if the module's file was replaced): {e}"
            );
            fork::exit_now(1);
        })
    };
    let channel = taken(launch::inherited_channel());
    if image::is_defined(c"POOL_STAND_IN") {
        controller::stand_in(channel);
    }
    let one_process = image::is_defined(c"POOL_KEEP");
    controller::run(ControllerStart {
        connector: channel,
        lifeline: (!one_process).then(|| taken(launch::second_inherited_channel())),
        parent: launch::parent_pid(),
        build_id: crate::sys::image::build_id(),
    })
}

unsafe extern "C" fn create_dir_config(pool: *mut ffi::apr_pool_t, _dir: *mut c_char) -> *mut c_void {
    // SAFETY: called by httpd, with a live pool.
    guard_or_abort(|| unsafe { config::create_dir_config(pool) })
}

unsafe extern "C" fn merge_dir_config(
    pool: *mut ffi::apr_pool_t,
    base: *mut c_void,
    inner: *mut c_void,
) -> *mut c_void {
    // SAFETY: called by httpd, with a live pool and two records of this module.
    guard_or_abort(|| unsafe { config::merge_dir_config(pool, base, inner) })
}

unsafe extern "C" fn create_server_config(pool: *mut ffi::apr_pool_t, _server: *mut ffi::server_rec) -> *mut c_void {
    // SAFETY: called by httpd, with a live pool.
    guard_or_abort(|| unsafe { config::create_server_config(pool) })
}

unsafe extern "C" fn merge_server_config(
    _pool: *mut ffi::apr_pool_t,
    base: *mut c_void,
    virtual_host: *mut c_void,
) -> *mut c_void {
    // SAFETY: called by httpd, with two records of this module.
    guard_or_abort(|| unsafe { config::merge_server_config(base, virtual_host) })
}

unsafe extern "C" fn check_config(
    pconf: *mut ffi::apr_pool_t,
    _plog: *mut ffi::apr_pool_t,
    _ptemp: *mut ffi::apr_pool_t,
    main: *mut ffi::server_rec,
) -> c_int {
    let checked = guard(false, || {
        // SAFETY: httpd calls the hook with its main server and the configuration's pool.
        let (main, pconf) = unsafe { (ServerRec::from_raw(main), AprPool::from_raw(pconf)) };
        let items = errorlog::check_items(main).map_err(|what| log::startup(log::Level::Emerg, what));
        config::check_config(main, pconf) && items.is_ok()
    });
    if checked {
        ffi::HOOK_OK
    } else {
        ffi::HTTP_INTERNAL_SERVER_ERROR as c_int
    }
}
