//! What the client's TLS session looks like to httpd's modules here, where there is none: the frontend told it.
//!
//! Runs in: worker.  Trusts: the frontend.  Owns: nothing.
//! Never: grants what only a TLS session of its own could check.

use super::state::with;
use crate::apr::AprPool;
use crate::httpd::config::{ssl_options, ssl_user_name};
use crate::httpd::tls::{self, Access};
use crate::httpd::{log, RequestRec};
use crate::wire::frame::PairsWriter;
use crate::wire::request::{Request, REQUEST_TLS, REQUEST_TLS_CHECKED};
use std::ffi::CStr;

const FORBIDDEN: i32 = 403;
const DECLINED: i32 = -1;

/// TLS of the request in hand.
#[derive(Debug, Default)]
pub(super) struct Tls {
    on: bool,
    /// The frontend has checked what virtual host and Location demand of the session.
    checked: bool,
    /// Which demands on the session the sections for the Location of the client's own URL have ([`SslOptions::demands`]).
    ///
    /// [`SslOptions::demands`]: crate::settings::SslOptions::demands
    location_demands: u64,
    /// mod_ssl's variables: a list of pairs.
    variables: Vec<u8>,
}

impl Tls {
    pub(super) fn set(&mut self, request: &Request<'_>) {
        self.on = request.head.flags & REQUEST_TLS != 0;
        self.checked = request.head.flags & REQUEST_TLS_CHECKED != 0;
        self.location_demands = 0;
        self.variables.clear();
        let mut writer = PairsWriter::new(&mut self.variables);
        if self.on {
            for (name, value) in request.tls.iter() {
                // It came in this form, so it fits.
                let _ = writer.pair(name, value);
            }
        }
        writer.finish();
    }
}

/// Takes mod_ssl's own access checker over.
pub(super) fn adopt_access_checker() {
    tls::adopt_access_checker();
}

/// The client speaks TLS to the frontend.
pub fn is_tls() -> bool {
    with(|worker| worker.busy.get() && worker.exchange.try_borrow().is_ok_and(|c| c.tls.on)).unwrap_or(false)
}

/// A variable of mod_ssl's, copied into `pool`.
pub fn tls_variable<'p>(pool: AprPool<'p>, name: &[u8]) -> Option<&'p CStr> {
    if !is_tls() {
        return None;
    }
    with(|worker| {
        let current = worker.exchange.try_borrow().ok()?;
        let find = |name: &[u8]| {
            super::serve::pairs(&current.tls.variables).iter().find(|(n, _)| *n == name).map(|(_, value)| value)
        };
        // Told only where it is not the same as without `_RAW`; and the first of several has two names.
        let plain = name.strip_suffix(b"_RAW").unwrap_or(name);
        let value = find(name).or_else(|| find(plain)).or_else(|| find(plain.strip_suffix(b"_0")?))?;
        Some(pool.copy_str(value))
    })
    .flatten()
}

/// `https` for TLS, or nothing.
pub fn scheme() -> Option<&'static CStr> {
    is_tls().then_some(c"https")
}

/// 443 for TLS, or nothing.
pub fn default_port() -> Option<u16> {
    is_tls().then_some(443)
}

/// The client's certificate was verified.
pub fn verified_client(r: RequestRec<'_>) -> bool {
    tls_variable(r.pool(), b"SSL_CLIENT_VERIFY").is_some_and(|v| v == c"SUCCESS")
}

/// Certificates are exported with `ExportCertData` only.
fn is_certificate(name: &[u8]) -> bool {
    name == b"SSL_SERVER_CERT" || name == b"SSL_CLIENT_CERT" || name.starts_with(b"SSL_CLIENT_CERT_CHAIN_")
}

/// The fixups hook: the environment of scripts, as `ssl_hook_Fixup` makes it.
pub fn export_variables(r: RequestRec<'_>) {
    if !is_tls() {
        return;
    }
    let options = ssl_options(r);
    let env = r.subprocess_env();
    env.setn(c"HTTPS", c"on");
    with(|worker| {
        let current = worker.exchange.borrow();
        for (name, value) in super::serve::pairs(&current.tls.variables).iter() {
            let wanted = if name == b"SSL_TLS_SNI" {
                !value.is_empty()
            } else if is_certificate(name) {
                options.export_cert_data
            } else {
                options.std_env_vars && name.starts_with(b"SSL_") && !value.is_empty()
            };
            if wanted {
                env.setn(r.pool().copy_str(name), r.pool().copy_str(value));
            }
        }
    });
}

/// The post_read_request hook: an internal redirect keeps the request's unique id, which the frontend has made
/// (mod_unique_id copies it the same way).
pub fn keep_unique_id(r: RequestRec<'_>) {
    let env = r.subprocess_env();
    if r.is_redirected() && env.get(c"UNIQUE_ID").is_none() {
        if let Some(id) = env.get(c"REDIRECT_UNIQUE_ID") {
            env.setn(c"UNIQUE_ID", r.pool().copy_str(id));
        }
    }
}

/// A section asks for what only the TLS session could answer.
fn demands_session(r: RequestRec<'_>) -> bool {
    let options = ssl_options(r);
    options.ssl_expression || options.ssl_verify_in_dir
}

/// The translate_name hook, before any directory counts: sees what `<Location>` demands, which the frontend sees too. It
/// does not see where a redirect or a part of a page leads.
pub fn see_location(r: RequestRec<'_>) {
    if is_tls() && !r.is_redirected() && !r.is_subrequest() {
        let demands = ssl_options(r).demands;
        with(|worker| worker.exchange.borrow_mut().tls.location_demands = demands);
    }
}

/// The access_checker hook, in the place of mod_ssl's.
pub fn access_checker(r: RequestRec<'_>) -> i32 {
    if !is_tls() {
        // mod_ssl's own answer is right without TLS: it denies where SSLRequireSSL holds.
        return match tls::mod_ssl_access(r) {
            Access::Answer(status) => status,
            Access::Absent => DECLINED,
        };
    }
    let settled = with(|worker| {
        let current = worker.exchange.borrow();
        current.tls.checked && current.tls.location_demands == ssl_options(r).demands
    });
    if demands_session(r) && settled != Some(true) {
        log::request(
            log::Level::Error,
            r,
            "access denied: SSLRequire, SSLVerifyClient and SSLCipherSuite in <Directory> or .htaccess, or in a \
             <Location> that a redirect or a part of a page leads into, cannot be checked in a server pool; use them \
             in <VirtualHost>, or in the <Location> of the client's own URL",
        );
        r.note(c"ssl-access-forbidden", b"1");
        return FORBIDDEN;
    }
    name_user(r);
    DECLINED
}

/// `SSLUserName`, as `ssl_hook_Access` does it. With `FakeBasicAuth` the user comes from the Authorization field.
fn name_user(r: RequestRec<'_>) {
    let Some(variable) = ssl_user_name(r).filter(|_| !ssl_options(r).fake_basic_auth) else { return };
    match tls_variable(r.pool(), variable.to_bytes()).filter(|value| !value.is_empty()) {
        Some(value) => r.set_user(value, c"ClientCert"),
        None => {
            let name = variable.to_string_lossy();
            log::request(log::Level::Warning, r, format!("Failed to set r->user to '{name}'"));
        }
    }
}
