//! Where httpd calls in: the module record and every `extern "C"` function, a few lines each.
//!
//! Runs in: every process httpd is in.  Trusts: httpd.  Owns: the module record.  Never: decides anything itself.

pub mod worker_hooks;

use crate::ffi::{self, guard::guard};
use std::os::raw::c_char;
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
    create_dir_config: None,
    merge_dir_config: None,
    create_server_config: None,
    merge_server_config: None,
    cmds: (&raw const ffi::pool_shim_commands).cast::<ffi::command_rec>(),
    register_hooks: Some(register_hooks),
    flags: 0,
};

unsafe extern "C" fn register_hooks(_pconf: *mut ffi::apr_pool_t) {
    guard((), || {});
}
