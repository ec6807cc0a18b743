//! What httpd calls in a worker before access checks of modules that start on demand, and in the place of mod_http2's
//! optional functions.
//!
//! Runs in: seed (registered there), worker (called).  Trusts: httpd.  Owns: nothing.  Never: decides anything itself.

use crate::apr::pool::bytes;
use crate::apr::AprPool;
use crate::ffi::{self, guard::guard, HOOK_DECLINED, HOOK_OK};
use crate::httpd::{checkers, hooks, RequestRec};
use crate::worker;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

/// Registers the hooks. For the images only that worker processes are forked from.
pub fn register() {
    let first = ffi::APR_HOOK_REALLY_FIRST;
    let none = ptr::null();
    // SAFETY: register_hooks time; the functions have the types that httpd declares for these hooks.
    unsafe {
        ffi::ap_hook_pre_config(Some(pre_config), none, none, ffi::APR_HOOK_REALLY_LAST.cast_signed());
        let internal = ffi::AP_AUTH_INTERNAL_PER_CONF.cast_signed();
        ffi::ap_hook_check_access(Some(access_checker), none, none, first, internal);
    }
}

/// A value that C reads and nobody writes.
#[repr(transparent)]
struct Shared<T>(T);
// SAFETY: the records hold function pointers only, and are never written.
unsafe impl<T> Sync for Shared<T> {}

static AUTHN: Shared<ffi::authn_provider> =
    Shared(ffi::authn_provider { check_password: Some(check_password), get_realm_hash: Some(get_realm_hash) });
static AUTHZ: Shared<ffi::authz_provider> =
    Shared(ffi::authz_provider { check_authorization: Some(check_group), parse_require_line: Some(parse_group) });

/// All modules are loaded, and no directive is handled yet.
unsafe extern "C" fn pre_config(
    pconf: *mut ffi::apr_pool_t,
    _plog: *mut ffi::apr_pool_t,
    _ptemp: *mut ffi::apr_pool_t,
) -> c_int {
    guard(ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed(), || {
        // SAFETY: httpd calls the hook with the configuration's pool.
        checkers::stand_in(unsafe { AprPool::from_raw(pconf) }, &AUTHN.0, &AUTHZ.0);
        if hooks::module_index(c"mod_http2.c") >= 0 {
            type Function = unsafe extern "C" fn();
            let is_h2: unsafe extern "C" fn(*mut ffi::conn_rec) -> c_int = is_http2;
            // SAFETY: the names are static; who retrieves them knows the functions' types (mod_http2.h), and APR keeps
            // functions of all types as one.
            unsafe {
                let is_h2 = std::mem::transmute::<*const c_void, Function>(is_h2 as *const c_void);
                ffi::apr_dynamic_fn_register(c"http2_is_h2".as_ptr(), Some(is_h2));
                let lookup = std::mem::transmute::<*const c_void, Function>(http2_variable as *const c_void);
                ffi::apr_dynamic_fn_register(c"http2_var_lookup".as_ptr(), Some(lookup));
            }
        }
        HOOK_OK
    })
}

/// `%{HTTP2}` of expressions.
unsafe extern "C" fn is_http2(c: *mut ffi::conn_rec) -> c_int {
    guard(0, || {
        // SAFETY: null or a live connection.
        let outgoing = !c.is_null() && unsafe { (*c).outgoing } != 0;
        c_int::from(!outgoing && worker::is_http2())
    })
}

unsafe extern "C" fn http2_variable(
    p: *mut ffi::apr_pool_t,
    _s: *mut ffi::server_rec,
    _c: *mut ffi::conn_rec,
    _r: *mut ffi::request_rec,
    name: *const c_char,
) -> *const c_char {
    guard(c"".as_ptr(), || {
        // SAFETY: a live pool and a string, as mod_http2's own wants them.
        let (pool, name) = unsafe { (AprPool::from_raw(p), bytes(name)) };
        worker::http2_variable(pool, name).map_or(c"".as_ptr(), |v| v.as_ptr())
    })
}

unsafe extern "C" fn access_checker(r: *mut ffi::request_rec) -> c_int {
    let failed = ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed();
    guard(failed, || {
        // SAFETY: httpd passes a live request.
        if worker::start_checkers(unsafe { RequestRec::from_raw(r) }) {
            HOOK_DECLINED
        } else {
            failed
        }
    })
}

/// `AuthBasicProvider wsgi`.
unsafe extern "C" fn check_password(
    r: *mut ffi::request_rec,
    user: *const c_char,
    password: *const c_char,
) -> ffi::authn_status {
    guard(ffi::authn_status_AUTH_GENERAL_ERROR, || {
        let own = checkers::providers().authn.and_then(|p| p.check_password);
        // SAFETY: httpd passes a live request.
        if !worker::start_wsgi(unsafe { RequestRec::from_raw(r) }) {
            return ffi::authn_status_AUTH_GENERAL_ERROR;
        }
        // SAFETY: the call that httpd made, at the function that would have got it.
        own.map_or(ffi::authn_status_AUTH_GENERAL_ERROR, |check| unsafe { check(r, user, password) })
    })
}

/// `AuthDigestProvider wsgi`.
unsafe extern "C" fn get_realm_hash(
    r: *mut ffi::request_rec,
    user: *const c_char,
    realm: *const c_char,
    hash: *mut *mut c_char,
) -> ffi::authn_status {
    guard(ffi::authn_status_AUTH_GENERAL_ERROR, || {
        let own = checkers::providers().authn.and_then(|p| p.get_realm_hash);
        // SAFETY: httpd passes a live request.
        if !worker::start_wsgi(unsafe { RequestRec::from_raw(r) }) {
            return ffi::authn_status_AUTH_GENERAL_ERROR;
        }
        // SAFETY: the call that httpd made, at the function that would have got it.
        own.map_or(ffi::authn_status_AUTH_GENERAL_ERROR, |get| unsafe { get(r, user, realm, hash) })
    })
}

/// `Require wsgi-group`.
unsafe extern "C" fn check_group(
    r: *mut ffi::request_rec,
    line: *const c_char,
    parsed: *const c_void,
) -> ffi::authz_status {
    guard(ffi::authz_status_AUTHZ_GENERAL_ERROR, || {
        let own = checkers::providers().authz.and_then(|p| p.check_authorization);
        // SAFETY: httpd passes a live request. Without a user the module asks for one, and for nothing else.
        let (request, named) = unsafe { (RequestRec::from_raw(r), !(*r).user.is_null()) };
        if named && !worker::start_wsgi(request) {
            return ffi::authz_status_AUTHZ_GENERAL_ERROR;
        }
        // SAFETY: the call that httpd made, at the function that would have got it.
        own.map_or(ffi::authz_status_AUTHZ_GENERAL_ERROR, |check| unsafe { check(r, line, parsed) })
    })
}

unsafe extern "C" fn parse_group(
    cmd: *mut ffi::cmd_parms,
    line: *const c_char,
    parsed: *mut *const c_void,
) -> *const c_char {
    match checkers::providers().authz.and_then(|p| p.parse_require_line) {
        // SAFETY: the call that httpd made, at the function that would have got it.
        Some(parse) => unsafe { parse(cmd, line, parsed) },
        None => ptr::null(),
    }
}
