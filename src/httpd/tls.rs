//! mod_ssl's part in a process that has no TLS session.
//!
//! Runs in: worker.  Trusts: mod_ssl's access checker for requests without TLS.  Owns: nothing.
//! Never: calls a function of mod_ssl's that needs a session.

use super::{hooks, RequestRec};
use crate::ffi;
use once_cell::sync::OnceCell;
use std::ffi::c_int;

type AccessChecker = unsafe extern "C" fn(*mut ffi::request_rec) -> c_int;

/// mod_ssl's access checker, out of httpd's array.
static ACCESS_CHECKER: OnceCell<AccessChecker> = OnceCell::new();

/// What mod_ssl's access checker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Answer(i32),
    /// mod_ssl is not loaded.
    Absent,
}

/// Takes mod_ssl's access checker out of httpd's array and keeps it for [`mod_ssl_access`]. To be called before the
/// first request, in a process with one thread.
pub fn adopt_access_checker() {
    if let Some(function) = hooks::access_checker.function_of("mod_ssl.c") {
        // SAFETY: what is registered in this array has this type (http_request.h).
        let function = unsafe { std::mem::transmute::<*const std::ffi::c_void, AccessChecker>(function) };
        ACCESS_CHECKER.get_or_init(|| function);
        hooks::access_checker.retain(|module| module != "mod_ssl.c");
    }
}

/// mod_ssl's answer to a request without TLS.
pub fn mod_ssl_access(r: RequestRec<'_>) -> Access {
    match ACCESS_CHECKER.get() {
        // SAFETY: a live request; without TLS the function reads only mod_ssl's configuration (ssl_hook_Access).
        Some(function) => Access::Answer(unsafe { function(r.as_ptr()) }),
        None => Access::Absent,
    }
}
