//! mod_http2's variables, of the client's stream, which is in the frontend.
//!
//! Runs in: worker.  Trusts: the frontend.  Owns: nothing.  Never: looks at a connection of its own.

use super::state::with;
use crate::apr::AprPool;
use crate::httpd::RequestRec;
use crate::wire::request::HTTP2;
use std::ffi::CStr;

fn each(mut body: impl FnMut(&[u8], &[u8])) {
    with(|worker| {
        if !worker.busy.get() {
            return;
        }
        let Ok(current) = worker.exchange.try_borrow() else { return };
        for (name, value) in super::serve::pairs(&current.env).iter() {
            if let Some(name) = name.strip_prefix(HTTP2) {
                body(name, value);
            }
        }
    });
}

/// The fixups hook: as mod_http2's, for each request that is made of the client's.
pub fn export_http2(r: RequestRec<'_>) {
    let (env, pool) = (r.subprocess_env(), r.pool());
    each(|name, value| env.setn(pool.copy_str(name), pool.copy_str(value)));
}

/// The client speaks HTTP/2 to the frontend.
pub fn is_http2() -> bool {
    let mut found = false;
    each(|name, _| found |= name == b"HTTP2");
    found
}

/// A variable by its name, copied into `pool`.
pub fn http2_variable<'p>(pool: AprPool<'p>, wanted: &[u8]) -> Option<&'p CStr> {
    let mut found = None;
    each(|name, value| {
        if name == wanted {
            found = Some(pool.copy_str(value));
        }
    });
    found
}
