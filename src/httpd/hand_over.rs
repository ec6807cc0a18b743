//! What modules of the frontends do to a request between translate_name and its handler, for one that goes to a pool.
//!
//! Runs in: frontend; looked up by the child before it has threads.  Trusts: mod_http2, mod_logio.
//! Owns: the functions that it found.  Never: decides over access.

use super::{hooks, RequestRec};
use crate::apr::Table;
use crate::ffi;
use once_cell::sync::OnceCell;
use std::ffi::{c_int, c_void};

type Fixup = unsafe extern "C" fn(*mut ffi::request_rec) -> c_int;
type InsertFilter = unsafe extern "C" fn(*mut ffi::request_rec);

#[derive(Debug)]
struct Found {
    /// mod_http2's: the variables of a stream, then hints and pushes that the configuration names.
    http2: Vec<Fixup>,
    /// mod_logio's: the time to the first byte (`LogIOTrackTTFB`).
    logio: Vec<InsertFilter>,
}

static FOUND: OnceCell<Found> = OnceCell::new();

/// Looks the functions up. In the child, before it has threads.
pub fn find() {
    FOUND.get_or_init(|| {
        let http2 = hooks::fixups.functions_of("mod_http2.c").into_iter();
        let logio = hooks::insert_filter.functions_of("mod_logio.c").into_iter();
        // SAFETY: fixups take a request and return an int, insert_filter's take a request (http_request.h).
        unsafe {
            Found {
                http2: http2.map(|f| std::mem::transmute::<*const c_void, Fixup>(f)).collect(),
                logio: logio.map(|f| std::mem::transmute::<*const c_void, InsertFilter>(f)).collect(),
            }
        }
    });
}

/// Calls them. `false` if one of mod_http2's has refused the request, which none does today.
pub fn run(r: RequestRec<'_>) -> bool {
    let Some(found) = FOUND.get() else { return true };
    // A stream of HTTP/2 has a connection of its own, with the client's as its master.
    if r.is_stream() {
        for function in &found.http2 {
            // SAFETY: a live request on this thread, before its handler; the functions look at the stream, and at the
            // configuration of virtual host and Location.
            let answer = unsafe { function(r.as_ptr()) };
            if answer != ffi::HOOK_OK && answer != ffi::HOOK_DECLINED {
                return false;
            }
        }
    }
    // A part of a page goes through the filters of that page.
    if !r.is_subrequest() {
        for function in &found.logio {
            // SAFETY: as above; it puts a filter into the request's chain.
            unsafe { function(r.as_ptr()) };
        }
    }
    true
}

/// The variables of mod_http2, which scripts see from their own fixups on.
pub fn is_http2_variable(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 7] =
        [b"HTTP2", b"H2PUSH", b"H2_PUSH", b"H2_PUSHED", b"H2_PUSHED_ON", b"H2_STREAM_ID", b"H2_STREAM_TAG"];
    NAMES.contains(&name)
}

/// Those of this request, as [`run`] has left them.
pub fn http2_variables<'r>(r: RequestRec<'r>, env: Table<'r>) -> impl Iterator<Item = (&'r [u8], &'r [u8])> {
    env.iter().filter(move |(name, _)| r.is_stream() && is_http2_variable(name))
}
