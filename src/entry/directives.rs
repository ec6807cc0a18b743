//! The handlers of the command table in `c_shim/pool_commands.c`.
//!
//! Runs in: parent and seed while the configuration is read; workers, for `.htaccess`.  Trusts: httpd.
//! Owns: nothing.  Never: decides anything itself.

use crate::ffi::{self, guard::guard};
use crate::httpd::command::{Command, Handled, PANICKED};
use crate::httpd::config::{self, DirConfig};
use crate::settings::PoolTreeBuilder;
use std::ffi::CStr;
use std::os::raw::{c_char, c_int, c_void};

/// # Safety
/// `cmd` is what httpd gave the directive's handler that calls this.
unsafe fn handle(cmd: *mut ffi::cmd_parms, body: impl FnOnce(&mut Command<'_>) -> Handled) -> *const c_char {
    guard(PANICKED.as_ptr(), || {
        // SAFETY: by contract; the handler's call bounds the command.
        let mut command = unsafe { Command::from_raw(cmd) };
        let handled = body(&mut command);
        command.answer(handled)
    })
}

/// # Safety
/// As httpd calls the handler of a RAW_ARGS or TAKE1 directive.
unsafe fn text<'h>(arg: *const c_char) -> &'h CStr {
    // SAFETY: httpd gives such a handler a NUL-terminated string that outlives the call.
    unsafe { CStr::from_ptr(arg) }
}

/// # Safety
/// As httpd calls a directive's handler: the second argument is this module's directory record.
unsafe fn record<'h>(dir: *mut c_void) -> &'h mut DirConfig {
    // SAFETY: made by create_dir_config; only the handler touches it during its call.
    unsafe { &mut *dir.cast::<DirConfig>() }
}

/// A handler that httpd calls with one text, and what it does with it.
macro_rules! takes_text {
    ($($(#[$doc:meta])* $entry:ident => |$command:ident, $dir:ident, $text:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        #[no_mangle]
        unsafe extern "C" fn $entry(
            cmd: *mut ffi::cmd_parms,
            $dir: *mut c_void,
            arg: *const c_char,
        ) -> *const c_char {
            let body = |$command: &mut Command<'_>| {
                // SAFETY: httpd calls this as the handler of a directive with one text.
                let $text = unsafe { text(arg) };
                $body
            };
            // SAFETY: httpd calls this as a directive's handler.
            unsafe { handle(cmd, body) }
        }
    )*};
}

takes_text! {
    pool_entry_server_pool => |command, _dir, name| config::server_pool(command, name);
    pool_entry_pool_user => |command, _dir, value| config::pool_user(command, value);
    pool_entry_pool_group => |command, _dir, value| config::pool_group(command, value);
    pool_entry_pool_max_processes => |command, _dir, value|
        config::setting(command, value, PoolTreeBuilder::set_max_processes);
    pool_entry_pool_min_spare => |command, _dir, value|
        config::setting(command, value, PoolTreeBuilder::set_min_spare);
    pool_entry_pool_idle_timeout => |command, _dir, value|
        config::setting(command, value, PoolTreeBuilder::set_idle_timeout);
    pool_entry_pool_max_requests => |command, _dir, value|
        config::setting(command, value, PoolTreeBuilder::set_max_requests);
    pool_entry_pool_queue_timeout => |command, _dir, value|
        config::setting(command, value, PoolTreeBuilder::set_queue_timeout);
    pool_entry_pool_request_timeout => |command, _dir, value|
        config::setting(command, value, PoolTreeBuilder::set_request_timeout);
    pool_entry_pool_kill_grace => |command, _dir, value|
        config::setting(command, value, PoolTreeBuilder::set_kill_grace);
    pool_entry_pool_queue_limit => |command, _dir, value|
        config::setting(command, value, PoolTreeBuilder::set_queue_limit);
    pool_entry_pool_max_parked => |command, _dir, value|
        config::setting(command, value, PoolTreeBuilder::set_max_parked);
    pool_entry_pool_max_frontend_threads => |command, _dir, value|
        config::setting(command, value, PoolTreeBuilder::set_max_frontend_threads);
    pool_entry_pool_umask => |command, _dir, value|
        config::setting(command, value, PoolTreeBuilder::set_umask);
    pool_entry_ssl_options => |command, dir, args| {
        // SAFETY: httpd calls this as a directive's handler.
        config::ssl_options_directive(command, unsafe { record(dir) }, args)
    };
    pool_entry_ssl_require => |command, dir, args| {
        // SAFETY: httpd calls this as a directive's handler.
        config::ssl_require_directive(command, unsafe { record(dir) }, args)
    };
    pool_entry_ssl_verify => |command, dir, args| {
        // SAFETY: httpd calls this as a directive's handler.
        config::ssl_verify_directive(command, unsafe { record(dir) }, args)
    };
    pool_entry_ssl_user_name => |command, dir, args| {
        // SAFETY: httpd calls this as a directive's handler.
        config::ssl_user_name_directive(command, unsafe { record(dir) }, args)
    };
    pool_entry_fcgid_check => |command, dir, _args| {
        // SAFETY: httpd calls this as a directive's handler.
        config::fcgid_check_directive(command, unsafe { record(dir) })
    };
    pool_entry_wsgi_check => |command, dir, _args| {
        // SAFETY: httpd calls this as a directive's handler.
        config::wsgi_check_directive(command, unsafe { record(dir) })
    };
    pool_entry_php_ini_dir => |command, _dir, args| config::php_ini_dir_directive(command, args);
}

#[no_mangle]
unsafe extern "C" fn pool_entry_pool_env(
    cmd: *mut ffi::cmd_parms,
    _dir: *mut c_void,
    name: *const c_char,
    value: *const c_char,
) -> *const c_char {
    // SAFETY: httpd calls this as the handler of a TAKE12 directive.
    let name = unsafe { text(name) };
    // SAFETY: as before; httpd gives NULL for a value that is absent or empty.
    let value = if value.is_null() { c"" } else { unsafe { text(value) } };
    // SAFETY: as before.
    unsafe { handle(cmd, |command| config::pool_env(command, name, value)) }
}

#[no_mangle]
unsafe extern "C" fn pool_entry_pool_strict(cmd: *mut ffi::cmd_parms, _dir: *mut c_void, on: c_int) -> *const c_char {
    // SAFETY: httpd calls this as the handler of a FLAG directive.
    unsafe { handle(cmd, |command| config::pool_strict(command, on != 0)) }
}

#[no_mangle]
unsafe extern "C" fn pool_entry_assign_server_pool(
    cmd: *mut ffi::cmd_parms,
    dir: *mut c_void,
    name: *const c_char,
    how: *const c_char,
) -> *const c_char {
    // SAFETY: httpd calls this as the handler of a TAKE12 directive.
    let name = unsafe { text(name) };
    // SAFETY: as before; httpd gives NULL for an argument that is absent.
    let how = (!how.is_null()).then(|| unsafe { text(how) });
    let body = |command: &mut Command<'_>| {
        // SAFETY: httpd calls this as a directive's handler.
        config::assign_server_pool(command, unsafe { record(dir) }, name, how)
    };
    // SAFETY: as before.
    unsafe { handle(cmd, body) }
}

#[no_mangle]
unsafe extern "C" fn pool_entry_pool_module_role(
    cmd: *mut ffi::cmd_parms,
    _dir: *mut c_void,
    module: *const c_char,
    role: *const c_char,
) -> *const c_char {
    // SAFETY: httpd calls this as the handler of a TAKE2 directive.
    let module = unsafe { text(module) };
    // SAFETY: as before.
    let role = unsafe { text(role) };
    // SAFETY: as before.
    unsafe { handle(cmd, |command| config::pool_module_role(command, module, role)) }
}
