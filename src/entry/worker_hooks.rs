//! What httpd calls in a worker: filters and hooks.
//!
//! Runs in: seed (registered there), worker (called).  Trusts: httpd.  Owns: nothing.  Never: decides anything itself.

use crate::apr::brigade::{code, Brigade};
use crate::apr::pool::bytes;
use crate::apr::AprPool;
use crate::ffi::{self, guard::guard, HOOK_DECLINED, HOOK_OK};
use crate::httpd::errorlog::LogEvent;
use crate::httpd::worker_filters::{self, Filter, ReadMode};
use crate::httpd::{classes, hooks, log, RequestRec};
use crate::sys::socket::Blocking;
use crate::worker;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

/// Registers filters and hooks. For the images only that worker processes are forked from.
pub fn register() {
    worker_filters::register(Some(network_filter), Some(header_filter), Some(body_filter));
    let first = ffi::APR_HOOK_REALLY_FIRST;
    let last = ffi::APR_HOOK_REALLY_LAST.cast_signed();
    let none = ptr::null();
    // SAFETY: register_hooks time; the functions have the types that httpd declares for these hooks.
    unsafe {
        ffi::ap_hook_pre_config(Some(pre_config), none, none, last);
        ffi::ap_hook_error_log(Some(error_log), none, none, first);
        ffi::ap_hook_ssl_conn_is_ssl(Some(ssl_conn_is_ssl), none, none, first);
        ffi::ap_hook_ssl_var_lookup(Some(ssl_var_lookup), none, none, first);
        ffi::ap_hook_expr_lookup(Some(expr_lookup), none, none, first);
        ffi::ap_hook_http_scheme(Some(http_scheme), none, none, first);
        ffi::ap_hook_default_port(Some(default_port), none, none, first);
        ffi::ap_hook_post_read_request(Some(post_read_request), none, none, ffi::APR_HOOK_MIDDLE.cast_signed());
        ffi::ap_hook_translate_name(Some(translate_name), none, none, first);
        ffi::ap_hook_handler(Some(handler), none, none, first);
        ffi::ap_hook_fixups(Some(fixups), none, none, ffi::APR_HOOK_MIDDLE.cast_signed());
        ffi::ap_hook_check_access(
            Some(access_checker),
            none,
            none,
            ffi::APR_HOOK_MIDDLE.cast_signed(),
            ffi::AP_AUTH_INTERNAL_PER_CONF.cast_signed(),
        );
    }
}

unsafe extern "C" fn network_filter(f: *mut ffi::ap_filter_t, bb: *mut ffi::apr_bucket_brigade) -> ffi::apr_status_t {
    let _ = f;
    guard(ffi::APR_EGENERAL.cast_signed(), || {
        // SAFETY: httpd hands the brigade to the filter for the call.
        code(worker::network(unsafe { Brigade::from_raw(bb) }))
    })
}

unsafe extern "C" fn header_filter(f: *mut ffi::ap_filter_t, bb: *mut ffi::apr_bucket_brigade) -> ffi::apr_status_t {
    guard(ffi::APR_EGENERAL.cast_signed(), || {
        // SAFETY: httpd calls the filter of a live chain, and hands the brigade over for the call.
        code(worker::header(unsafe { Filter::from_raw(f) }, unsafe { Brigade::from_raw(bb) }))
    })
}

unsafe extern "C" fn body_filter(
    f: *mut ffi::ap_filter_t,
    bb: *mut ffi::apr_bucket_brigade,
    mode: ffi::ap_input_mode_t,
    block: ffi::apr_read_type_e,
    readbytes: ffi::apr_off_t,
) -> ffi::apr_status_t {
    guard(ffi::APR_EGENERAL.cast_signed(), || {
        // SAFETY: httpd calls the filter of a live chain.
        if let Some(own) = unsafe { Filter::from_raw(f) }.foreign_input() {
            // SAFETY: the call that httpd made, at the function that would have got it.
            return unsafe { own(f, bb, mode, block, readbytes) };
        }
        let mode = ReadMode::from_raw(mode, readbytes);
        let block = if block == ffi::apr_read_type_e_APR_BLOCK_READ { Blocking::Yes } else { Blocking::No };
        // SAFETY: httpd calls the filter of a live chain, and hands the brigade over for the call.
        code(worker::body(unsafe { Filter::from_raw(f) }, unsafe { Brigade::from_raw(bb) }, mode, block))
    })
}

unsafe extern "C" fn error_log(info: *const ffi::ap_errorlog_info, text: *const c_char) {
    // SAFETY: what httpd passes to this hook.
    guard((), || worker::error_line(unsafe { LogEvent::from_raw(info, text) }));
}

unsafe extern "C" fn ssl_conn_is_ssl(c: *mut ffi::conn_rec) -> c_int {
    guard(HOOK_DECLINED, || {
        // SAFETY: httpd passes a live connection.
        let outgoing = unsafe { (*c).outgoing } != 0;
        if !outgoing && worker::is_tls() {
            HOOK_OK
        } else {
            HOOK_DECLINED
        }
    })
}

unsafe extern "C" fn ssl_var_lookup(
    p: *mut ffi::apr_pool_t,
    _s: *mut ffi::server_rec,
    c: *mut ffi::conn_rec,
    _r: *mut ffi::request_rec,
    name: *const c_char,
) -> *const c_char {
    guard(ptr::null(), || {
        // SAFETY: null or a live connection.
        if p.is_null() || (!c.is_null() && unsafe { (*c).outgoing } != 0) {
            return ptr::null();
        }
        // SAFETY: httpd passes a live pool and a string.
        let (pool, name) = unsafe { (AprPool::from_raw(p), bytes(name)) };
        worker::tls_variable(pool, name).map_or(ptr::null(), |v| v.as_ptr())
    })
}

/// `%{SSL_...}`, `SSL(...)` and `PeerExtList(...)` of expressions: mod_ssl's own would look into a session.
unsafe extern "C" fn expr_lookup(parms: *mut ffi::ap_expr_lookup_parms) -> c_int {
    guard(HOOK_DECLINED, || {
        // SAFETY: httpd passes the parameters for the call; name is a string.
        let (parms, name) = unsafe { (&mut *parms, bytes((*parms).name)) };
        let function: *const c_void = match parms.type_.cast_unsigned() {
            ffi::AP_EXPR_FUNC_VAR if name.starts_with(b"SSL_") => expr_variable as *const c_void,
            ffi::AP_EXPR_FUNC_STRING if name == b"SSL" => expr_function as *const c_void,
            ffi::AP_EXPR_FUNC_LIST if name == b"PeerExtList" => expr_list as *const c_void,
            _ => return HOOK_DECLINED,
        };
        // SAFETY: both point at places for the results; the name lives as long as the expression, as mod_ssl relies on.
        unsafe {
            *parms.func = function;
            *parms.data = parms.name.cast();
        }
        HOOK_OK
    })
}

unsafe extern "C" fn expr_variable(ctx: *mut ffi::ap_expr_eval_ctx_t, data: *const c_void) -> *const c_char {
    guard(ptr::null(), || {
        // SAFETY: httpd passes a live context; `data` is the name that expr_lookup stored.
        let (pool, name) = unsafe { (AprPool::from_raw((*ctx).p), bytes(data.cast())) };
        worker::tls_variable(pool, name).map_or(ptr::null(), |v| v.as_ptr())
    })
}

unsafe extern "C" fn expr_function(
    ctx: *mut ffi::ap_expr_eval_ctx_t,
    _data: *const c_void,
    arg: *const c_char,
) -> *const c_char {
    guard(ptr::null(), || {
        // SAFETY: httpd passes a live context, and a string or null.
        let (pool, name) = unsafe { (AprPool::from_raw((*ctx).p), bytes(arg)) };
        worker::tls_variable(pool, name).map_or(ptr::null(), |v| v.as_ptr())
    })
}

unsafe extern "C" fn expr_list(
    ctx: *mut ffi::ap_expr_eval_ctx_t,
    _data: *const c_void,
    _arg: *const c_char,
) -> *mut ffi::apr_array_header_t {
    let size = size_of::<*const c_char>();
    // SAFETY: a live context's pool. No certificate is here to have extensions: the list is empty.
    unsafe { ffi::apr_array_make((*ctx).p, 1, c_int::try_from(size).unwrap_or(8)) }
}

unsafe extern "C" fn http_scheme(_r: *const ffi::request_rec) -> *const c_char {
    guard(ptr::null(), || worker::scheme().map_or(ptr::null(), |s| s.as_ptr()))
}

unsafe extern "C" fn default_port(_r: *const ffi::request_rec) -> ffi::apr_port_t {
    guard(0, || worker::default_port().unwrap_or(0))
}

unsafe extern "C" fn post_read_request(r: *mut ffi::request_rec) -> c_int {
    guard(HOOK_DECLINED, || {
        // SAFETY: httpd passes a live request.
        let r = unsafe { RequestRec::from_raw(r) };
        worker::keep_unique_id(r);
        worker::forget_previous(r);
        HOOK_DECLINED
    })
}

unsafe extern "C" fn translate_name(r: *mut ffi::request_rec) -> c_int {
    guard(ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed(), || {
        // SAFETY: httpd passes a live request.
        worker::see_location(unsafe { RequestRec::from_raw(r) });
        HOOK_DECLINED
    })
}

unsafe extern "C" fn fixups(r: *mut ffi::request_rec) -> c_int {
    guard(ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed(), || {
        // SAFETY: httpd passes a live request.
        let r = unsafe { RequestRec::from_raw(r) };
        worker::export_variables(r);
        worker::export_http2(r);
        HOOK_DECLINED
    })
}

/// What only a frontend can do: mod_proxy would say no more than that there is no handler, and in the place of a handler
/// whose module works in the frontends the default handler would send the script's own text.
unsafe extern "C" fn handler(raw: *mut ffi::request_rec) -> c_int {
    guard(ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed(), || {
        // SAFETY: httpd passes a live request.
        let r = unsafe { RequestRec::from_raw(raw) };
        worker::handler_begins(r);
        worker::tell_previous(r);
        if let Some(scheme) = classes::unreachable_backend(r) {
            log::request(
                log::Level::Error,
                r,
                worker::tagged(
                    "POOL116",
                    &format!(
                        "a server pool cannot send a request on to {scheme}:// (RewriteRule with [P] in .htaccess, \
                         <Directory> or <Location>, a look-ahead, or a part of a page that ProxyPass leads there): for what \
                         a client asks for, use ProxyPass or a rule of the virtual host, which the frontend follows, or \
                         AssignServerPool none in a <Location> for this URL; a part of a page needs a backend at http://"
                    ),
                ),
            );
            return ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed();
        }
        let Some(module) = classes::left_to_frontends(r.handler()) else { return HOOK_DECLINED };
        log::request(
            log::Level::Error,
            r,
            worker::tagged(
                "POOL114",
                &format!(
                    "the handler {} belongs to {module}, which works in the frontends only: keep this URL out of \
                     pools (AssignServerPool none), or have the module work in the pool's processes (PoolModuleRole \
                     {module} worker)",
                    String::from_utf8_lossy(r.handler())
                ),
            ),
        );
        ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed()
    })
}

unsafe extern "C" fn access_checker(r: *mut ffi::request_rec) -> c_int {
    guard(ffi::HTTP_FORBIDDEN.cast_signed(), || {
        // SAFETY: httpd passes a live request.
        worker::access_checker(unsafe { RequestRec::from_raw(r) })
    })
}

/// A value that C reads and nobody writes.
#[repr(transparent)]
struct Shared<T>(T);
// SAFETY: the records hold function pointers only, and are never written.
unsafe impl<T> Sync for Shared<T> {}

static REQUIRE_SSL: Shared<ffi::authz_provider> =
    Shared(ffi::authz_provider { check_authorization: Some(require_ssl), parse_require_line: Some(no_arguments) });
static REQUIRE_VERIFIED: Shared<ffi::authz_provider> =
    Shared(ffi::authz_provider { check_authorization: Some(require_verified), parse_require_line: Some(no_arguments) });

/// `Require ssl` and `Require ssl-verify-client` in the place of mod_ssl's, which look into a session.
unsafe extern "C" fn pre_config(
    pconf: *mut ffi::apr_pool_t,
    _plog: *mut ffi::apr_pool_t,
    _ptemp: *mut ffi::apr_pool_t,
) -> c_int {
    guard(ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed(), || {
        if hooks::module_index(c"mod_ssl.c") < 0 {
            return HOOK_OK;
        }
        for (name, provider) in [(c"ssl", &REQUIRE_SSL), (c"ssl-verify-client", &REQUIRE_VERIFIED)] {
            // By ap_register_auth_provider the core would count it twice, and make up for another module's provider whose
            // answer hangs on the URL (ap_setup_auth_internal).
            // SAFETY: names and records are static; a provider registered again replaces the first.
            unsafe {
                ffi::ap_register_provider(
                    pconf,
                    ffi::AUTHZ_PROVIDER_GROUP.as_ptr().cast(),
                    name.as_ptr(),
                    ffi::AUTHZ_PROVIDER_VERSION.as_ptr().cast(),
                    ptr::from_ref(provider).cast(),
                );
            }
        }
        HOOK_OK
    })
}

unsafe extern "C" fn require_ssl(
    _r: *mut ffi::request_rec,
    _line: *const c_char,
    _parsed: *const c_void,
) -> ffi::authz_status {
    guard(ffi::authz_status_AUTHZ_DENIED, || {
        if worker::is_tls() {
            ffi::authz_status_AUTHZ_GRANTED
        } else {
            ffi::authz_status_AUTHZ_DENIED
        }
    })
}

unsafe extern "C" fn require_verified(
    r: *mut ffi::request_rec,
    _line: *const c_char,
    _parsed: *const c_void,
) -> ffi::authz_status {
    guard(ffi::authz_status_AUTHZ_DENIED, || {
        // SAFETY: httpd passes a live request.
        if worker::verified_client(unsafe { RequestRec::from_raw(r) }) {
            ffi::authz_status_AUTHZ_GRANTED
        } else {
            ffi::authz_status_AUTHZ_DENIED
        }
    })
}

unsafe extern "C" fn no_arguments(
    _cmd: *mut ffi::cmd_parms,
    line: *const c_char,
    _parsed: *mut *const c_void,
) -> *const c_char {
    // SAFETY: null or a string.
    if unsafe { bytes(line) }.is_empty() {
        ptr::null()
    } else {
        c"'Require ssl' and 'Require ssl-verify-client' do not take arguments".as_ptr()
    }
}
