//! What scripts are told of the request that the frontend has redirected to this one.
//!
//! httpd adds `REDIRECT_URL` and `REDIRECT_QUERY_STRING` where a handler asks for the variables of CGI
//! (`ap_add_common_vars`), from the request before. That one is in the frontend: here they are added when the handler
//! begins, and taken back where it redirects once more without having asked.
//!
//! Runs in: worker.  Trusts: the frontend.  Owns: nothing.  Never: changes what another module has set.

use super::state::with;
use crate::apr::Table;
use crate::httpd::RequestRec;
use crate::wire::frame::Pairs;
use crate::wire::request::{PREVIOUS_ARGS, PREVIOUS_URL};
use std::ffi::CStr;

/// One variable that `ap_add_common_vars` sets always.
const ASKED: &CStr = c"SERVER_SOFTWARE";

/// The names by which the frontend tells, and by which scripts are told; also behind one more redirect.
const NAMES: [(&[u8], &CStr, &CStr); 2] = [
    (PREVIOUS_URL, c"REDIRECT_URL", c"REDIRECT_REDIRECT_URL"),
    (PREVIOUS_ARGS, c"REDIRECT_QUERY_STRING", c"REDIRECT_REDIRECT_QUERY_STRING"),
];

/// The variable is none of the environment.
pub(super) fn is_told(name: &[u8]) -> bool {
    NAMES.iter().any(|(told, ..)| *told == name)
}

/// The status that the frontend has made this request for, if that is an error's.
pub(super) fn error(env: Pairs<'_>) -> Option<u16> {
    let find = |name: &[u8]| env.iter().find(|(n, _)| *n == name).map(|(_, value)| value);
    find(PREVIOUS_URL)?;
    let status = std::str::from_utf8(find(b"REDIRECT_STATUS")?).ok()?.parse().ok()?;
    (400..600).contains(&status).then_some(status)
}

fn is_first(r: RequestRec<'_>) -> bool {
    !r.is_subrequest() && !r.is_redirected()
}

fn each(mut body: impl FnMut(&'static CStr, &'static CStr, &[u8])) {
    with(|worker| {
        let current = worker.exchange.borrow();
        for (name, value) in super::serve::pairs(&current.env).iter() {
            if let Some((_, once, twice)) = NAMES.iter().find(|(told, ..)| *told == name) {
                body(once, twice, value);
            }
        }
    });
}

/// The handler hook.
pub fn tell_previous(r: RequestRec<'_>) {
    if is_first(r) {
        let env = r.subprocess_env();
        each(|name, _, value| env.setn(name, r.pool().copy_str(value)));
    }
}

/// The post_read_request hook, of a request that this one was redirected to.
pub fn forget_previous(r: RequestRec<'_>) {
    let asked = |env: Table<'_>| env.get(ASKED).is_some();
    let Some(before) = r.previous().filter(|p| is_first(*p) && !asked(p.subprocess_env())) else { return };
    let (was, is) = (before.subprocess_env(), r.subprocess_env());
    each(|once, twice, value| {
        if was.get(once) == Some(value) {
            is.unset(twice);
        }
    });
}
