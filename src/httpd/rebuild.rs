//! A connection and a request made by hand, from what the frontend told.
//!
//! The connection has no socket of its own, no scoreboard handle and no state of an MPM; httpd's own code tolerates
//! that (core, scoreboard.c). Of `pre_connection` runs what `PREPARES` names: the rest would add the core's network filters.
//!
//! Runs in: worker.  Trusts: the frontend's description.  Owns: the worker's bucket allocator and its dummy socket.
//! Never: reads from the network.

use super::{hooks, RequestRec, ServerRec};
use crate::apr::{sockaddr, AprPool, Table};
use crate::ffi;
use once_cell::sync::OnceCell;
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::net::IpAddr;
use std::ptr::{self, NonNull};

thread_local! {
    /// The request that [`Connection::process`] runs, while it lives.
    static CURRENT: Cell<Option<NonNull<ffi::request_rec>>> = const { Cell::new(None) };
}

/// Calls `body` with the request that this worker serves; `None` between requests, and from the moment on that its
/// end was passed down ([`request_ends`]).
pub fn with_current<T>(body: impl FnOnce(RequestRec<'_>) -> T) -> Option<T> {
    let raw = CURRENT.get()?;
    // SAFETY: set by `process`, taken back before the request is destroyed; one thread.
    Some(body(unsafe { RequestRec::from_raw(raw.as_ptr()) }))
}

/// The current request is about to be destroyed.
pub fn request_ends() {
    CURRENT.set(None);
}

/// Modules that ask in a request for what they have made in `pre_connection`. For mod_auth_gssapi it is where it keeps a
/// context for the connection; where it finds none it refuses.
const PREPARES: [&str; 1] = ["mod_auth_gssapi.c"];

type PreConnection = unsafe extern "C" fn(*mut ffi::conn_rec, *mut c_void) -> c_int;

/// The functions of httpd's log_transaction hook.
static LOGGERS: OnceCell<Vec<hooks::OfRequest>> = OnceCell::new();

/// In a worker, before its first request: takes the loggers of modules out of their hook. httpd would run them while it
/// destroys the request, behind the end of the response, and what they log would belong to no request.
pub fn take_loggers() {
    LOGGERS.get_or_init(|| {
        // SAFETY: the hook passes a request (http_protocol.h).
        let functions = unsafe { hooks::log_transaction.of_request(|_| true) };
        hooks::log_transaction.retain(|_| false);
        functions
    });
}

/// Runs the loggers of a request whose response is complete.
pub fn run_loggers(r: RequestRec<'_>) {
    if let Some(loggers) = LOGGERS.get() {
        hooks::run_all(loggers, r);
    }
}

/// Whether httpd reads and drops a body that a handler does not want (`ap_discard_request_body`). It does so before the
/// answer, and refuses a body that is too long or broken; once the answer is on its way, what is left of the body is the
/// frontend's. An error's answer does not wait for the body at all.
pub fn unwanted_body(r: RequestRec<'_>, dropped: bool) {
    let keepalive =
        if dropped { ffi::ap_conn_keepalive_e_AP_CONN_UNKNOWN } else { ffi::ap_conn_keepalive_e_AP_CONN_CLOSE };
    // SAFETY: a live request has a live connection, in a worker one that `Workshop::connect` made.
    unsafe { (*r.connection_ptr()).keepalive = keepalive };
}

/// One end of a connection: the address as text, as number, and the port.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    pub text: &'a [u8],
    pub ip: IpAddr,
    pub port: u16,
}

/// How the length of the request's body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    None,
    Known(u64),
    Unknown,
}

/// Everything that the frontend says about a request.
#[derive(Debug, Clone, Copy)]
pub struct Description<'a> {
    pub request_line: &'a [u8],
    /// What the client sent, where the frontend has made another request of it; else empty.
    pub client_line: &'a [u8],
    pub request_time: i64,
    pub connection_id: u64,
    pub keepalives: u32,
    pub local: End<'a>,
    pub client: End<'a>,
    pub useragent: End<'a>,
    /// The user agent's address is the client's, whatever its text.
    pub one_address: bool,
    /// Empty when nobody has asked for it.
    pub remote_host: &'a [u8],
    pub log_id: &'a [u8],
    pub connection_log_id: &'a [u8],
    pub body: BodyLength,
    /// Where it is to describe an error of the frontend's: which one.
    pub error: Option<u16>,
}

/// What all connections of one worker share.
#[derive(Debug)]
pub struct Workshop {
    pool: *mut ffi::apr_pool_t,
    buckets: *mut ffi::apr_bucket_alloc_t,
    /// Never connected; modules ask for the connection's socket and set options on it. Of the Unix kind: a worker has
    /// no socket of the network that its scripts did not open.
    socket: *mut ffi::apr_socket_t,
    /// The functions of [`PREPARES`].
    prepare: Vec<PreConnection>,
}

/// A connection for one request; ends with [`Connection::destroy`].
#[derive(Debug)]
pub struct Connection {
    raw: *mut ffi::conn_rec,
}

impl Workshop {
    /// `pool` lives as long as the worker and has an allocator of its own.
    pub fn new(pool: AprPool<'static>) -> Self {
        // SAFETY: the pool is live; its allocator serves the buckets too, so freed blocks find each other.
        let buckets = unsafe { ffi::apr_bucket_alloc_create(pool.as_ptr()) };
        let mut socket = ptr::null_mut();
        // SAFETY: the result is written on success, and stays null otherwise, which callers of ap_get_conn_socket see.
        unsafe {
            ffi::apr_socket_create(&raw mut socket, libc::AF_UNIX, libc::SOCK_STREAM, 0, pool.as_ptr());
        }
        let functions = PREPARES.iter().filter_map(|module| hooks::pre_connection.function_of(module));
        // SAFETY: what is registered in this array takes a connection and its socket, and returns an int (http_connection.h).
        let prepare = functions.map(|f| unsafe { std::mem::transmute::<*const c_void, PreConnection>(f) }).collect();
        Self { pool: pool.as_ptr(), buckets, socket, prepare }
    }

    /// A new connection, as if `d.client` had connected to `d.local`.
    pub fn connect(&self, main: ServerRec<'_>, d: &Description<'_>) -> Connection {
        let mut raw_pool = ptr::null_mut();
        // SAFETY: the parent pool is live; out of memory ends the process.
        unsafe { ffi::apr_pool_create_ex(&raw mut raw_pool, self.pool, None, ptr::null_mut()) };
        // SAFETY: a pool made just now; it is destroyed by Connection::destroy, after every use of it.
        let pool: AprPool<'static> = unsafe { AprPool::from_raw(raw_pool) };
        // SAFETY: a block of this size, zeroed: null pointers and zero numbers are a valid conn_rec.
        let raw = unsafe { ffi::apr_palloc(pool.as_ptr(), size_of::<ffi::conn_rec>()) }.cast::<ffi::conn_rec>();
        // SAFETY: fresh and large enough.
        unsafe { ptr::write_bytes(raw, 0, 1) };
        // SAFETY: zeroed just now, and nobody else has it yet.
        let c = unsafe { &mut *raw };
        c.pool = pool.as_ptr();
        c.base_server = main.as_ptr();
        c.local_addr = sockaddr::make(pool, d.local.ip, d.local.port);
        c.local_ip = pool.copy(d.local.text);
        c.client_addr = sockaddr::make(pool, d.client.ip, d.client.port);
        c.client_ip = pool.copy(d.client.text);
        c.id = d.connection_id.cast_signed();
        c.notes = Table::new(pool, 5).as_ptr();
        c.bucket_alloc = self.buckets;
        // The connection is the frontend's: nothing here may read ahead on it, or throw a body away to keep it. While a
        // handler looks for its answer that is different, see `unwanted_body`.
        c.keepalive = ffi::ap_conn_keepalive_e_AP_CONN_CLOSE;
        c.keepalives = i32::try_from(d.keepalives).unwrap_or(i32::MAX);
        if !d.connection_log_id.is_empty() {
            c.log_id = pool.copy(d.connection_log_id);
        }
        if !d.remote_host.is_empty() && d.client.text == d.useragent.text {
            c.remote_host = pool.copy(d.remote_host);
        }
        // SAFETY: pool and connection are live; the vhost tables were made when the configuration was read.
        unsafe {
            c.conn_config = ffi::ap_create_conn_config(pool.as_ptr());
            ffi::ap_set_core_module_config(c.conn_config, self.socket.cast());
            c.current_thread = ffi::ap_thread_current();
            // The address decides which server reads the request line, as on a real connection.
            ffi::ap_update_vhost_given_ip(raw);
        }
        for function in &self.prepare {
            // SAFETY: a live connection and the socket that modules find with it, as in httpd's call.
            unsafe { function(raw, self.socket.cast()) };
        }
        Connection { raw }
    }
}

impl Connection {
    pub fn as_ptr(&self) -> *mut ffi::conn_rec {
        self.raw
    }

    /// The client has gone: what PHP's `connection_aborted()` and filters look at.
    pub fn set_aborted(&self) {
        // SAFETY: live until `destroy`.
        unsafe { (*self.raw).aborted = 1 };
    }

    /// A request on this connection, with its line and fields read, up to and with the choice of the server.
    ///
    /// The frontend has chosen `server` already; what this process would choose does not count. Answers the HTTP
    /// status when the request line is not good: the request is to be answered with it.
    pub fn request<'r, 'h>(
        &'r self,
        server: ServerRec<'r>,
        d: &Description<'_>,
        headers: impl Iterator<Item = (&'h [u8], &'h [u8])>,
        env: impl Iterator<Item = (&'h [u8], &'h [u8])>,
    ) -> (RequestRec<'r>, Result<(), i32>) {
        // SAFETY: the connection is live; the request is destroyed with it, at the latest.
        let r = unsafe { RequestRec::from_raw(ffi::ap_create_request(self.raw)) };
        let pool = r.pool();
        for (name, value) in headers {
            r.headers_in().addn(pool.copy_str(name), pool.copy_str(value));
        }
        // SAFETY: the request was made just now and only this thread has it.
        unsafe {
            (*r.as_ptr()).the_request = pool.copy(d.request_line);
            (*r.as_ptr()).request_time = d.request_time;
            if !d.log_id.is_empty() {
                (*r.as_ptr()).log_id = pool.copy(d.log_id);
            }
            ffi::ap_run_pre_read_request(r.as_ptr(), self.raw);
        }
        // SAFETY: as ap_read_request calls it: the_request is a copy in the request's pool.
        let mut good = unsafe { ffi::ap_parse_request_line(r.as_ptr()) } != 0;
        if !d.client_line.is_empty() {
            // As a redirect in one process leaves it: REQUEST_URI and THE_REQUEST are what the client asked for.
            // SAFETY: the request is live; the copy lives in its pool.
            unsafe { (*r.as_ptr()).the_request = pool.copy(d.client_line) };
        }
        // SAFETY: live requests; from here on everything is looked up in the server that the frontend chose.
        unsafe {
            // Sets r->hostname. Without lookup data it does not look for a virtual host again.
            (*self.raw).vhost_lookup_data = ptr::null_mut();
            if good {
                ffi::ap_update_vhost_from_headers_ex(r.as_ptr(), 0);
                good = (*r.as_ptr()).status == ffi::HTTP_OK.cast_signed();
            }
            (*self.raw).base_server = server.as_ptr();
            (*r.as_ptr()).server = server.as_ptr();
            (*r.as_ptr()).per_dir_config = (*server.as_ptr()).lookup_defaults;
        }
        if d.useragent.text != d.client.text {
            // SAFETY: the request is live; both values live in its pool.
            unsafe {
                if !d.one_address {
                    (*r.as_ptr()).useragent_addr = sockaddr::make(pool, d.useragent.ip, d.useragent.port);
                }
                (*r.as_ptr()).useragent_ip = pool.copy(d.useragent.text);
                if !d.remote_host.is_empty() {
                    (*r.as_ptr()).useragent_host = pool.copy(d.remote_host);
                }
            }
        }
        // Modules recognise a body by its fields; HTTP/2 has none when the length is not known. As mod_http2 does it.
        if d.body == BodyLength::Unknown && r.headers_in().get(c"Transfer-Encoding").is_none() {
            r.headers_in().setn(c"Transfer-Encoding", c"chunked");
        }
        for (name, value) in env {
            r.subprocess_env().addn(pool.copy_str(name), pool.copy_str(value));
        }
        // SAFETY: both are live; the input filter is httpd's own, whose function worker_filters::install replaced.
        unsafe {
            ffi::ap_add_input_filter_handle(ffi::ap_http_input_filter_handle, ptr::null_mut(), r.as_ptr(), self.raw);
        }
        if good {
            if let Some(status) = d.error {
                // SAFETY: the request is live.
                unsafe { (*r.as_ptr()).status = i32::from(status) };
            }
            return (r, Ok(()));
        }
        // SAFETY: the request is live. ap_die takes the status as its argument and expects a good one in the request.
        let status = unsafe { std::mem::replace(&mut (*r.as_ptr()).status, ffi::HTTP_OK.cast_signed()) };
        let bad_request = ffi::HTTP_BAD_REQUEST.cast_signed();
        (r, Err(if status == ffi::HTTP_OK.cast_signed() { bad_request } else { status }))
    }

    /// Runs the request to its end: hooks, handler, error documents, and the bucket that ends it, with which its pool
    /// goes. The request must not be used afterwards.
    pub fn process(&self, r: RequestRec<'_>, head: Result<(), i32>) {
        let raw = r.as_ptr();
        CURRENT.set(NonNull::new(raw));
        // SAFETY: a request of this connection, live until the end-of-request bucket is destroyed in here.
        unsafe {
            let status = match head {
                Ok(()) => ffi::ap_post_read_request(raw),
                Err(status) => status,
            };
            if status == 0 {
                ffi::ap_process_async_request(raw);
            } else {
                // As ap_read_request does it after "die:".
                ffi::ap_die(status, raw);
                ffi::ap_process_request_after_handler(raw);
            }
        }
        CURRENT.set(None);
    }

    /// As [`process`](Self::process), for a part of another page, or an error document: what fails is told to `failed`
    /// and has no error document of its own. `failed` answers true where it has ended the response.
    pub fn process_part(&self, r: RequestRec<'_>, head: Result<(), i32>, failed: impl FnOnce(i32) -> bool) {
        let raw = r.as_ptr();
        CURRENT.set(NonNull::new(raw));
        // SAFETY: as in `process`; the hooks run in the order of ap_process_async_request.
        unsafe {
            let mut status = match head {
                Ok(()) => ffi::ap_post_read_request(raw),
                Err(status) => status,
            };
            if status == 0 {
                status = ffi::ap_run_quick_handler(raw, 0);
                if status == ffi::HOOK_DECLINED {
                    status = ffi::ap_process_request_internal(raw);
                    if status == ffi::HOOK_OK {
                        status = ffi::ap_invoke_handler(raw);
                    }
                }
            }
            if status == ffi::HOOK_OK || status == ffi::HOOK_DONE || !failed(status) {
                ffi::ap_finalize_request_protocol(raw);
            }
            ffi::ap_process_request_after_handler(raw);
        }
        CURRENT.set(None);
    }

    /// Frees everything that the connection and a request left on it hold.
    pub fn destroy(self) {
        // SAFETY: made by Workshop::connect, destroyed only here; nothing borrows from it any more.
        unsafe { ffi::apr_pool_destroy((*self.raw).pool) };
    }
}

/// The child_init hooks, in the process they are for, with a pool that lives as long as it does.
pub fn child_init(main: ServerRec<'_>) -> AprPool<'static> {
    let mut allocator = ptr::null_mut();
    let mut raw = ptr::null_mut();
    let mut thread = ptr::null_mut();
    // SAFETY: as prefork's child makes its pool: an allocator of its own, owned by the pool, with MaxMemFree; and tells
    // httpd that this is a thread, for what it keeps per thread (compiled patterns).
    unsafe {
        ffi::apr_allocator_create(&raw mut allocator);
        ffi::apr_allocator_max_free_set(allocator, ffi::ap_max_mem_free as usize);
        ffi::apr_pool_create_ex(&raw mut raw, main.process_pool().as_ptr(), None, allocator);
        ffi::apr_allocator_owner_set(allocator, raw);
        ffi::apr_pool_tag(raw, c"pool_worker".as_ptr());
        if ffi::ap_thread_current().is_null() {
            ffi::ap_thread_main_create(&raw mut thread, raw);
        }
    }
    // SAFETY: made just now; destroyed by child_exit at the end of the process.
    let pool = unsafe { AprPool::from_raw(raw) };
    // SAFETY: as an MPM's child calls it, once, before the first request.
    unsafe { ffi::ap_run_child_init(raw, main.as_ptr()) };
    pool
}

/// Destroys the process's pool, and so runs what the modules registered in `child_init` for the end.
pub fn child_exit(pool: AprPool<'static>) {
    // SAFETY: made by child_init; the process ends right after this.
    unsafe {
        ffi::ap_run_child_stopping(pool.as_ptr(), 0);
        ffi::apr_pool_destroy(pool.as_ptr());
    }
}
