//! A request, as httpd holds it.
//!
//! Runs in: frontend, worker; the thread that has the request.  Trusts: the caller of `from_raw`.  Owns: nothing.
//! Never: outlives the request.

use super::ServerRec;
use crate::apr::{pool::bytes, AprPool, Table};
use crate::ffi;
use std::ffi::{c_char, CStr};
use std::marker::PhantomData;
use std::ptr::NonNull;

/// A `request_rec` that this thread handles during `'r`.
#[derive(Debug, Clone, Copy)]
pub struct RequestRec<'r> {
    raw: NonNull<ffi::request_rec>,
    life: PhantomData<&'r ffi::request_rec>,
}

// SAFETY: httpd's requests wander between threads with their connection. What moves one (`parking`) takes it from a hook
// that has answered SUSPENDED: no copy of this value is used by that thread any more.
unsafe impl Send for RequestRec<'_> {}

macro_rules! strings {
    ($($(#[$doc:meta])* $name:ident = $field:ident;)*) => {
        $($(#[$doc])*
        pub fn $name(self) -> &'r [u8] {
            // SAFETY: null or a NUL-terminated string in a pool that lives at least as long as the request.
            unsafe { bytes((*self.as_ptr()).$field) }
        })*
    };
}

macro_rules! tables {
    ($($name:ident;)*) => {
        $(pub fn $name(self) -> Table<'r> {
            // SAFETY: httpd makes this table together with the request.
            unsafe { Table::from_raw((*self.as_ptr()).$name) }
        })*
    };
}

impl<'r> RequestRec<'r> {
    /// # Safety
    /// `raw` is a request that lives during `'r` and that only the calling thread uses.
    pub unsafe fn from_raw(raw: *mut ffi::request_rec) -> Self {
        Self { raw: NonNull::new(raw).expect("httpd passes a request"), life: PhantomData }
    }

    pub fn as_ptr(self) -> *mut ffi::request_rec {
        self.raw.as_ptr()
    }

    pub fn pool(self) -> AprPool<'r> {
        // SAFETY: a request's pool lives as long as the request.
        unsafe { AprPool::from_raw((*self.as_ptr()).pool) }
    }

    pub fn server(self) -> ServerRec<'r> {
        // SAFETY: the server belongs to the configuration that the request is served under.
        unsafe { ServerRec::from_raw((*self.as_ptr()).server) }
    }

    tables! { headers_in; headers_out; err_headers_out; subprocess_env; notes; }

    strings! {
        /// The request line.
        the_request = the_request;
        /// Path and query as the client sent them.
        unparsed_uri = unparsed_uri;
        /// The normalised path.
        uri = uri;
        method = method;
        protocol = protocol;
        log_id = log_id;
        useragent_ip = useragent_ip;
        user = user;
        auth_type = ap_auth_type;
        handler = handler;
        filename = filename;
    }

    /// Path and query of this very request, fit for a request line.
    pub fn escaped_uri(self) -> Vec<u8> {
        let unparsed = self.unparsed_uri();
        if unparsed.starts_with(b"/") && unparsed.iter().all(|b| b.is_ascii_graphic() && *b != b'#') {
            return unparsed.to_vec();
        }
        // SAFETY: the request is live; null or a string, and a copy in its pool.
        let (path, query) = unsafe {
            let rec = &*self.as_ptr();
            (bytes(ffi::ap_os_escape_path(rec.pool, rec.uri, 1)), bytes(rec.args))
        };
        if query.is_empty() || !query.iter().all(|b| b.is_ascii_graphic() && *b != b'#') {
            return path.to_vec();
        }
        [path, b"?", query].concat()
    }

    /// Fields behind a request's body, and those behind the response's.
    pub fn trailers_in(self) -> Table<'r> {
        // SAFETY: httpd makes this table together with the request.
        unsafe { Table::from_raw((*self.as_ptr()).trailers_in) }
    }

    pub fn trailers_out(self) -> Table<'r> {
        // SAFETY: as above.
        unsafe { Table::from_raw((*self.as_ptr()).trailers_out) }
    }

    /// The request that internal redirects have led to; itself when there were none.
    pub fn last(self) -> RequestRec<'r> {
        let mut at = self;
        // SAFETY: a redirect's request lives in the pool of the one it came from.
        while let Some(next) = NonNull::new(unsafe { (*at.as_ptr()).next }) {
            at = Self { raw: next, life: PhantomData };
        }
        at
    }

    /// `LimitRequestBody` where the request has led to; `None` without a limit.
    pub fn body_limit(self) -> Option<u64> {
        // SAFETY: the request is live.
        let limit = unsafe { ffi::ap_get_limit_req_body(self.as_ptr()) };
        u64::try_from(limit).ok().filter(|limit| *limit > 0)
    }

    /// What `SetHandler` says for the request, by the sections merged so far.
    pub fn forced_handler(self) -> Option<&'r [u8]> {
        // SAFETY: a request has a vector of directory records, in which the core's is of the type of http_core.h.
        let expression = unsafe {
            let core = ffi::ap_get_core_module_config((*self.as_ptr()).per_dir_config).cast::<ffi::core_dir_config>();
            core.as_ref()?.expr_handler
        };
        if expression.is_null() {
            return None;
        }
        let mut error: *const c_char = std::ptr::null();
        // SAFETY: the request is live, the expression lives as long as the configuration; the answer is NULL or a string
        // in the request's pool.
        let name = unsafe { bytes(ffi::ap_expr_str_exec(self.as_ptr(), expression, &raw mut error)) };
        error.is_null().then_some(name)
    }

    /// Trailers join the request's fields where `MergeTrailers` says so.
    pub fn merge_trailers(self) {
        // SAFETY: the request is live; the core's server configuration is of the type that http_core.h declares.
        unsafe {
            let core = ffi::ap_get_core_module_config((*(*self.as_ptr()).server).module_config)
                .cast::<ffi::core_server_config>();
            if (*core).merge_trailers.cast_unsigned() == ffi::AP_MERGE_TRAILERS_ENABLE {
                (*self.as_ptr()).headers_in = ffi::apr_table_overlay(
                    (*self.as_ptr()).pool,
                    (*self.as_ptr()).headers_in,
                    (*self.as_ptr()).trailers_in,
                );
            }
        }
    }

    /// The user is known, and how.
    pub fn set_user(self, name: &'r CStr, auth_type: &'static CStr) {
        // SAFETY: the request is live; httpd does not write to these strings.
        unsafe {
            (*self.as_ptr()).user = name.as_ptr().cast_mut();
            (*self.as_ptr()).ap_auth_type = auth_type.as_ptr().cast_mut();
        }
    }

    /// The client has gone.
    pub fn set_aborted(self) {
        // SAFETY: a live request has a live connection.
        unsafe { (*(*self.as_ptr()).connection).aborted = 1 };
    }

    /// The query string.
    pub fn args(self) -> &'r [u8] {
        // SAFETY: null or a string that lives as long as the request.
        unsafe { bytes((*self.as_ptr()).args) }
    }

    /// For the loggers: what scripts are told of the request that this one was redirected from (`ap_add_common_vars`).
    pub fn export_previous(self) {
        let Some(previous) = self.previous() else { return };
        let env = self.subprocess_env();
        for (name, value) in [(c"REDIRECT_QUERY_STRING", previous.args()), (c"REDIRECT_URL", previous.uri())] {
            if !value.is_empty() {
                env.setn(name, self.pool().copy_str(value));
            }
        }
    }

    pub fn status(self) -> i32 {
        // SAFETY: the request is live (from_raw).
        unsafe { (*self.as_ptr()).status }
    }

    /// A subrequest, made by another request (SSI, `ap_sub_req_lookup_uri`).
    pub fn is_subrequest(self) -> bool {
        // SAFETY: the request is live (from_raw).
        unsafe { !(*self.as_ptr()).main.is_null() }
    }

    /// A stream of an HTTP/2 connection: it has a secondary connection of its own, and a thread of mod_http2's.
    pub fn is_stream(self) -> bool {
        // SAFETY: the request is live (from_raw), and so is its connection.
        unsafe { !(*(*self.as_ptr()).connection).master.is_null() }
    }

    /// The result of an internal redirect.
    pub fn is_redirected(self) -> bool {
        // SAFETY: the request is live (from_raw).
        unsafe { !(*self.as_ptr()).prev.is_null() }
    }

    pub fn request_time(self) -> i64 {
        // SAFETY: the request is live (from_raw).
        unsafe { (*self.as_ptr()).request_time }
    }

    fn conn(self) -> *mut ffi::conn_rec {
        // SAFETY: the request is live, and its connection with it.
        unsafe { (*self.as_ptr()).connection }
    }

    /// The connection, to tell it from others.
    pub fn connection_ptr(self) -> *mut ffi::conn_rec {
        self.conn()
    }

    pub fn connection_id(self) -> u64 {
        // SAFETY: a live request has a live connection.
        unsafe { (*self.conn()).id }.cast_unsigned()
    }

    pub fn keepalives(self) -> u32 {
        // SAFETY: a live request has a live connection.
        u32::try_from(unsafe { (*self.conn()).keepalives }).unwrap_or(0)
    }

    pub fn connection_log_id(self) -> &'r [u8] {
        // SAFETY: null or a string of the connection's.
        unsafe { bytes((*self.conn()).log_id) }
    }

    /// The two ends of the connection, and the user agent behind it.
    pub fn addresses(self) -> Addresses<'r> {
        // SAFETY: a live request has a live connection; addresses and strings live in pools of theirs.
        unsafe {
            let (rec, c) = (&*self.as_ptr(), &*self.conn());
            Addresses {
                local: (bytes(c.local_ip), port_of(c.local_addr)),
                client: (bytes(c.client_ip), port_of(c.client_addr)),
                useragent: (bytes(rec.useragent_ip), port_of(rec.useragent_addr)),
                one: rec.useragent_addr == c.client_addr,
                remote_host: bytes(c.remote_host),
            }
        }
    }

    /// mod_proxy has taken the request already.
    pub fn is_proxied(self) -> bool {
        // SAFETY: the request is live (from_raw).
        unsafe { (*self.as_ptr()).proxyreq != 0 }
    }

    /// Names the handler.
    pub fn set_handler(self, name: &'static CStr) {
        // SAFETY: the request is live; the name lives for ever.
        unsafe { (*self.as_ptr()).handler = name.as_ptr() };
    }

    /// Names a file for the code that wants one; none is opened.
    pub fn set_filename(self, name: &[u8]) {
        let copy = self.pool().copy(name);
        // SAFETY: the request is live; the copy lives in its pool.
        unsafe { (*self.as_ptr()).filename = copy };
    }

    /// The request that this one was redirected from.
    pub fn previous(self) -> Option<RequestRec<'r>> {
        // SAFETY: a redirect's request and the one it came from live equally long.
        NonNull::new(unsafe { (*self.as_ptr()).prev }).map(|raw| Self { raw, life: PhantomData })
    }

    /// Sets a note for the loggers.
    pub fn note(self, name: &'static CStr, value: &[u8]) {
        self.notes().setn(name, self.pool().copy_str(value));
    }
}

/// Numeric addresses with their ports, as httpd prints them.
#[derive(Debug, Clone, Copy)]
pub struct Addresses<'r> {
    pub local: (&'r [u8], u16),
    pub client: (&'r [u8], u16),
    pub useragent: (&'r [u8], u16),
    /// One record is the address of client and user agent. Modules (mod_rpaf) write into it, and not into its text.
    pub one: bool,
    /// Empty unless httpd has looked it up.
    pub remote_host: &'r [u8],
}

/// # Safety
/// `address` is null or live.
unsafe fn port_of(address: *const ffi::apr_sockaddr_t) -> u16 {
    // SAFETY: the caller's promise.
    unsafe { address.as_ref() }.map_or(0, |a| a.port)
}
