//! The client's side of a request in a frontend: its body, and the response that goes back.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: httpd; checks what stems from a worker.
//! Owns: the brigade of the response.  Never: keeps a slice longer than the call that passes it on.

use super::pieces::Pieces;
use super::RequestRec;
use crate::apr::AprPool;
use crate::ffi;
use crate::sys::wait;
use once_cell::sync::OnceCell;
use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;
use std::ptr;
use std::time::Duration;

/// APR_TIMEUP, which has too many parentheses for bindgen.
const TIMED_OUT: i32 = 70_007;
/// Most bytes of a body that are passed on in one go.
const MOST: usize = 60_000;
/// Fewest: a socket that has taken all before takes so much. httpd's core may wait for it where `FlushMaxThreshold` is lower.
const LEAST: usize = 1024;
/// What httpd adds to them: a head, and what frames a chunk.
const ADDED: usize = 5535;

/// Bytes of a body that httpd's core takes without waiting: with a head they stay below `FlushMaxThreshold`, of which the
/// core knows one, the main server's; its default is 65,535.
pub fn piece() -> usize {
    static PIECE: OnceCell<usize> = OnceCell::new();
    *PIECE.get_or_init(|| {
        // SAFETY: httpd's main server of the running configuration; the core's record is of the type of http_core.h.
        let threshold = unsafe {
            let core = ffi::ap_get_core_module_config((*ffi::ap_server_conf).module_config);
            (*core.cast::<ffi::core_server_config>()).flush_max_threshold
        };
        piece_below(threshold)
    })
}

fn piece_below(threshold: usize) -> usize {
    threshold.saturating_sub(ADDED).clamp(LEAST, MOST)
}
/// Bytes of a body that are dropped in one go.
const DISCARD: usize = 64 * 1024;

/// The client is gone, or its connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientGone;

/// Name and value of a header field.
pub type Field<'f> = (&'f [u8], &'f [u8]);

/// What reading the body gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyRead {
    /// Bytes were appended.
    Data,
    /// The body is complete; trailers are in the request.
    End,
    /// Nothing there yet.
    WouldBlock,
    /// It will not be completed, for this HTTP status.
    Failed(u16),
}

/// How a request announces its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    None,
    Known(u64),
    Chunked,
}

/// One request's client.
#[derive(Debug)]
pub struct Client<'r> {
    r: RequestRec<'r>,
    out: *mut ffi::apr_bucket_brigade,
    /// Where the head is passed on in pieces.
    pieces: Option<Pieces<'r>>,
    /// What an output filter said when it failed.
    failed: Option<ffi::apr_status_t>,
    input: *mut ffi::apr_bucket_brigade,
    /// How long the fields behind a chunked body may take; `None` for as long as `Timeout` says.
    trailer_patience: Option<Duration>,
}

// SAFETY: as for the request; the brigades are the request's.
unsafe impl Send for Client<'_> {}

impl<'r> Client<'r> {
    pub fn new(r: RequestRec<'r>) -> Self {
        // SAFETY: request, connection and their allocator are live while the request is handled.
        unsafe {
            let rec = r.as_ptr();
            let alloc = (*(*rec).connection).bucket_alloc;
            let out = ffi::apr_brigade_create((*rec).pool, alloc);
            let input = ffi::apr_brigade_create((*rec).pool, alloc);
            Self { r, out, pieces: None, failed: None, input, trailer_patience: None }
        }
    }

    fn conn(&self) -> *mut ffi::conn_rec {
        // SAFETY: the request is live.
        unsafe { (*self.r.as_ptr()).connection }
    }

    pub fn body_length(&self) -> BodyLength {
        let headers = self.r.headers_in();
        if headers.get(c"Transfer-Encoding").is_some() {
            return BodyLength::Chunked;
        }
        match headers.get(c"Content-Length") {
            None => BodyLength::None,
            Some(text) => match super::response::parse_length(text.trim_ascii()) {
                // httpd's own input filter answers a length it does not like; it is asked as for an unknown one.
                None => BodyLength::Chunked,
                Some(0) => BodyLength::None,
                Some(n) => BodyLength::Known(n),
            },
        }
    }

    /// The client waits for "100 Continue".
    pub fn expects_continue(&self) -> bool {
        // SAFETY: the request is live.
        unsafe { (*self.r.as_ptr()).expecting_100 != 0 }
    }

    /// Sends "100 Continue", if the client waits for it.
    pub fn send_continue(&self) {
        let rec = self.r.as_ptr();
        // SAFETY: the request is live; its status is put back.
        unsafe {
            let (status, line) = ((*rec).status, (*rec).status_line);
            (*rec).status = 100;
            (*rec).status_line = ptr::null();
            ffi::ap_send_interim_response(rec, 0);
            (*rec).status = status;
            (*rec).status_line = line;
        }
    }

    /// The thread that reads the body is not this request's: where httpd waits for the client in spite of being told not
    /// to, which it does for the fields behind a chunked body, it shall do so no longer than this.
    pub fn bound_trailers(&mut self, patience: Duration) {
        self.trailer_patience = (self.body_length() == BodyLength::Chunked).then_some(patience);
    }

    /// Sets the timeout of the client's socket; returns the one before. `None` for an HTTP/2 stream.
    fn socket_timeout(&self, timeout: ffi::apr_interval_time_t) -> Option<ffi::apr_interval_time_t> {
        let c = self.conn();
        let mut before = 0;
        // SAFETY: the connection is live, and its socket lives as long.
        unsafe {
            if !(*c).master.is_null() {
                return None;
            }
            let socket = ffi::ap_get_conn_socket(c);
            if socket.is_null() || ffi::apr_socket_timeout_get(socket, &raw mut before) != 0 {
                return None;
            }
            ffi::apr_socket_timeout_set(socket, timeout);
        }
        Some(before)
    }

    /// Appends what has arrived of the body to `into`, at most about `limit` bytes. Does not wait, but for the fields
    /// behind a chunked body.
    pub fn read_body(&mut self, into: &mut Vec<u8>, limit: usize) -> BodyRead {
        let rec = self.r.as_ptr();
        let mut refused = 0;
        let limit = limit.min(1 << 30).cast_signed() as ffi::apr_off_t;
        let bound = self.trailer_patience.map(|patience| i64::try_from(patience.as_micros()).unwrap_or(i64::MAX));
        let before = bound.and_then(|bound| self.socket_timeout(bound));
        // SAFETY: a live request, of this thread; the brigade is ours and empty, the number ours to be written.
        let rc = unsafe { ffi::pool_shim_read_body(rec, self.input, limit, &raw mut refused) };
        if let Some(before) = before {
            self.socket_timeout(before);
        }
        let result = if refused == 0 { self.take_input(rc, into) } else { BodyRead::Failed(error_status(refused)) };
        // SAFETY: the brigade is ours.
        unsafe { ffi::apr_brigade_cleanup(self.input.cast()) };
        result
    }

    fn take_input(&mut self, rc: ffi::apr_status_t, into: &mut Vec<u8>) -> BodyRead {
        const EAGAIN: i32 = libc::EAGAIN;
        // APR_OS_START_EAIERR etc. do not matter here: only "again" is told apart from failure.
        if rc == EAGAIN {
            return BodyRead::WouldBlock;
        }
        if rc != 0 {
            // SAFETY: maps a status to an HTTP status, touches nothing.
            let status = unsafe { ffi::ap_map_http_request_error(rc, 400) };
            return BodyRead::Failed(error_status(status));
        }
        let mut got = false;
        // SAFETY: the brigade is ours and live; the buckets belong to it.
        let mut at = unsafe { ffi::pool_shim_brigade_first(self.input) };
        while !at.is_null() {
            // SAFETY: not null, a bucket of the brigade.
            match unsafe { ffi::pool_shim_bucket_kind(at) }.cast_unsigned() {
                ffi::POOL_BUCKET_EOS => return BodyRead::End,
                ffi::POOL_BUCKET_ERROR => {
                    // SAFETY: the bucket is an ERROR bucket.
                    let status = unsafe { ffi::pool_shim_bucket_error_status(at) };
                    return BodyRead::Failed(error_status(status));
                }
                ffi::POOL_BUCKET_DATA | ffi::POOL_BUCKET_FILE => {
                    let mut data = ptr::null();
                    let mut len = 0;
                    // SAFETY: the bucket is live; data and len are ours to be written.
                    let rc = unsafe {
                        ffi::pool_shim_bucket_read(at, &raw mut data, &raw mut len, ffi::apr_read_type_e_APR_BLOCK_READ)
                    };
                    if rc != 0 {
                        return BodyRead::Failed(400);
                    }
                    if len > 0 {
                        // SAFETY: a successful read gives `len` bytes that live as long as the bucket.
                        into.extend_from_slice(unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) });
                        got = true;
                    }
                }
                _ => {}
            }
            // SAFETY: the bucket is in the brigade still.
            at = unsafe { ffi::pool_shim_bucket_next(self.input, at) };
        }
        if got {
            BodyRead::Data
        } else {
            BodyRead::WouldBlock
        }
    }

    /// The request's trailers; there are some only after the body's end.
    pub fn trailers(&self) -> crate::apr::Table<'r> {
        // SAFETY: httpd makes this table together with the request.
        unsafe { crate::apr::Table::from_raw((*self.r.as_ptr()).trailers_in) }
    }

    /// The descriptor that becomes readable when more of the body arrives, or will not. It tells nothing before a look has
    /// found nothing. `None` for an HTTP/2 stream before httpd 2.4.58, or without pipes.
    pub fn input(&self) -> Option<BorrowedFd<'r>> {
        if !self.r.is_stream() {
            return self.socket();
        }
        // SAFETY: the connection is live, and this thread's.
        let fd = unsafe { ffi::pool_shim_stream_input(self.conn()) };
        // SAFETY: the descriptor is the stream's connection's, which lives longer than the request.
        (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// The descriptor of the client's connection; `None` for an HTTP/2 stream.
    pub fn socket(&self) -> Option<BorrowedFd<'r>> {
        let c = self.conn();
        // SAFETY: the connection is live.
        if unsafe { !(*c).master.is_null() } {
            return None;
        }
        let mut fd = -1;
        // SAFETY: the connection is live; its socket lives as long.
        let rc = unsafe {
            let socket = ffi::ap_get_conn_socket(c);
            if socket.is_null() {
                return None;
            }
            ffi::apr_os_sock_get(&raw mut fd, socket)
        };
        // SAFETY: the descriptor is the connection's, which lives longer than the request.
        (rc == 0 && fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// The client's socket takes something at once.
    pub fn is_writable(&self) -> bool {
        self.socket().is_some_and(wait::is_writable)
    }

    /// Passing on has failed: nothing more can be passed on.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Why passing on has failed, where that was not the client's leaving (or its slowness, which is httpd's to log).
    pub fn failure(&self) -> Option<String> {
        const LEFT: [i32; 6] = [0, libc::EPIPE, libc::ECONNRESET, libc::ECONNABORTED, libc::ENOTCONN, TIMED_OUT];
        self.failed.filter(|rc| !LEFT.contains(rc)).map(super::errorlog::status_text)
    }

    /// Whether the client's connection is known to be gone.
    pub fn is_gone(&self) -> bool {
        // SAFETY: the connection is live.
        unsafe { (*self.conn()).aborted != 0 }
    }

    /// The client's connection ends after this response.
    pub fn close_after(&self) {
        // SAFETY: the connection is live and this thread's.
        unsafe { (*self.conn()).keepalive = ffi::ap_conn_keepalive_e_AP_CONN_CLOSE };
    }

    /// Takes the final head over into the request: status, status line (empty for httpd's own text) and fields.
    pub fn set_head<'f>(&self, status: u16, line: &[u8], fields: impl Iterator<Item = Field<'f>>) {
        let rec = self.r.as_ptr();
        let pool = self.r.pool();
        // SAFETY: the request is live; the strings live in its pool.
        unsafe {
            // The text of an error document is no error, but what it stands for is.
            if status != 200 || (*rec).prev.is_null() {
                (*rec).status = i32::from(status);
            }
            (*rec).status_line = if line.is_empty() { ptr::null() } else { pool.copy(line) };
            (*rec).content_type = ptr::null();
            ffi::ap_remove_output_filter_byhandle((*rec).output_filters, c"BYTERANGE".as_ptr());
        }
        self.add_fields(fields, pool);
    }

    /// What the response says of its connection, for httpd's header filter to follow: its own `Connection: close`, and
    /// variables that can only end the connection earlier.
    pub fn set_connection(&self, close: bool, steering: impl Iterator<Item = &'static CStr>) {
        if close {
            // In the place of the offer of an upgrade: the filter looks at the first field only.
            self.r.headers_out().setn(c"Connection", c"close");
        }
        for name in steering {
            self.r.subprocess_env().setn(name, c"1");
        }
    }

    fn add_fields<'f>(&self, fields: impl Iterator<Item = Field<'f>>, pool: AprPool<'r>) {
        let table = self.r.headers_out();
        for (name, value) in fields {
            table.addn(pool.copy_str(name), pool.copy_str(value));
        }
    }

    /// Sends an interim response with its fields.
    pub fn send_interim<'f>(&self, status: u16, fields: impl Iterator<Item = Field<'f>>) {
        let rec = self.r.as_ptr();
        // SAFETY: the request is live; status and fields are put back. ap_send_interim_response clears the table.
        unsafe {
            let (before, line, table) = ((*rec).status, (*rec).status_line, (*rec).headers_out);
            (*rec).status = i32::from(status);
            (*rec).status_line = ptr::null();
            (*rec).headers_out = ffi::apr_table_make((*rec).pool, 8);
            self.add_fields(fields, self.r.pool());
            ffi::ap_send_interim_response(rec, 1);
            (*rec).status = before;
            (*rec).status_line = line;
            (*rec).headers_out = table;
        }
    }

    /// Queues bytes of the response. They must stay where they are until [`pass`](Self::pass) or
    /// [`finish`](Self::finish) has returned.
    pub fn queue(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // SAFETY: a transient bucket may point to foreign bytes until its brigade is passed on; filters that keep it
        // copy them (apr_buckets.h). The caller passes the brigade on before the bytes change.
        unsafe {
            let alloc = (*self.conn()).bucket_alloc;
            let bucket = ffi::apr_bucket_transient_create(bytes.as_ptr().cast(), bytes.len(), alloc);
            ffi::pool_shim_brigade_insert_tail(self.out, bucket);
        }
    }

    /// The head is large: from now on each call passes on [`piece`] bytes at most, and what is beyond waits for
    /// [`pass_piece`](Self::pass_piece).
    pub fn pass_in_pieces(&mut self) {
        self.pieces = Pieces::of(self.r);
    }

    /// See [`pass_in_pieces`](Self::pass_in_pieces).
    pub fn passes_in_pieces(&self) -> bool {
        self.pieces.is_some()
    }

    /// Something of what was passed on waits.
    pub fn holds(&self) -> bool {
        self.pieces.as_ref().is_some_and(Pieces::holds)
    }

    /// The large head was not passed on yet.
    pub fn has_head_left(&self) -> bool {
        self.pieces.as_ref().is_some_and(|pieces| !pieces.has_begun())
    }

    /// Passes on the head alone.
    pub fn pass_head(&mut self) -> Result<(), ClientGone> {
        // SAFETY: no byte, in a static string; the brigade is ours.
        unsafe {
            let bucket = ffi::apr_bucket_immortal_create(c"".as_ptr(), 0, (*self.conn()).bucket_alloc);
            ffi::pool_shim_brigade_insert_tail(self.out, bucket);
        }
        let passed = self.pass_out(true);
        if let Some(pieces) = &self.pieces {
            // A filter before it may have taken the bucket, and will pass the head on with what follows.
            pieces.begin();
        }
        passed
    }

    /// Passes on the next piece of what waits. The client must have taken all before.
    pub fn pass_piece(&mut self) -> Result<(), ClientGone> {
        let rc = self.pieces.as_ref().map_or(0, |pieces| pieces.pass(piece()));
        self.passed(rc)
    }

    /// Passes what is queued on to the client; with `flush` it is on the way when this returns.
    pub fn pass(&mut self, flush: bool) -> Result<(), ClientGone> {
        // SAFETY: the brigade is ours, the filter chain that of a live request.
        unsafe {
            if flush {
                let bucket = ffi::apr_bucket_flush_create((*self.conn()).bucket_alloc);
                ffi::pool_shim_brigade_insert_tail(self.out, bucket);
            }
            if ffi::pool_shim_brigade_first(self.out).is_null() {
                return Ok(());
            }
        }
        self.pass_out(!flush)
    }

    fn pass_out(&mut self, in_pieces: bool) -> Result<(), ClientGone> {
        if let Some(pieces) = self.pieces.as_ref().filter(|_| in_pieces) {
            pieces.limit(piece());
        }
        // SAFETY: as above; the brigade is empty or done with afterwards, and cleaned for the next use.
        let rc = unsafe {
            let rc = ffi::ap_pass_brigade((*self.r.as_ptr()).output_filters, self.out);
            ffi::apr_brigade_cleanup(self.out.cast());
            rc
        };
        if let Some(pieces) = &self.pieces {
            pieces.let_through();
        }
        self.passed(rc)
    }

    fn passed(&mut self, rc: ffi::apr_status_t) -> Result<(), ClientGone> {
        if rc != 0 || self.is_gone() {
            self.failed = Some(rc);
            Err(ClientGone)
        } else {
            Ok(())
        }
    }

    /// The response is complete: passes on what is queued and its end.
    pub fn finish(&mut self) -> Result<(), ClientGone> {
        // SAFETY: the brigade is ours.
        unsafe {
            let bucket = ffi::apr_bucket_eos_create((*self.conn()).bucket_alloc);
            ffi::pool_shim_brigade_insert_tail(self.out, bucket);
        }
        self.pass_out(true)
    }

    /// The response cannot be completed: the client sees a transfer that broke off (no last chunk, or fewer bytes than
    /// announced, then the connection's end; HTTP/2: a reset stream), never one that looks whole.
    pub fn break_off(&mut self) {
        self.close_after();
        if let Some(pieces) = &self.pieces {
            pieces.drop_kept();
        }
        // SAFETY: the brigade is ours; an error bucket of 502 is what mod_proxy too tells the HTTP filters with.
        unsafe {
            let rec = self.r.as_ptr();
            let alloc = (*self.conn()).bucket_alloc;
            let error = ffi::ap_bucket_error_create(502, ptr::null(), (*rec).pool, alloc);
            ffi::pool_shim_brigade_insert_tail(self.out, error);
            let eos = ffi::apr_bucket_eos_create(alloc);
            ffi::pool_shim_brigade_insert_tail(self.out, eos);
        }
        let _ = self.pass_out(false);
    }

    /// Trailers of the response.
    pub fn set_trailer(&self, name: &[u8], value: &[u8]) {
        let pool = self.r.pool();
        // SAFETY: httpd makes this table together with the request.
        let table = unsafe { crate::apr::Table::from_raw((*self.r.as_ptr()).trailers_out) };
        table.addn(pool.copy_str(name), pool.copy_str(value));
    }
}

/// The answer to a body that a filter has refused.
fn error_status(status: i32) -> u16 {
    u16::try_from(status).ok().filter(|s| (400..600).contains(s)).unwrap_or(400)
}

/// Reads and drops the rest of a body that nobody wants, so that the next request on this connection is found. Without
/// `waiting` only what is there, and the connection ends behind the response if that is not all.
pub fn discard_body(r: RequestRec<'_>, waiting: bool) {
    if !waiting {
        let mut client = Client::new(r);
        let mut dropped = Vec::new();
        loop {
            dropped.clear();
            match client.read_body(&mut dropped, DISCARD) {
                BodyRead::Data => {}
                BodyRead::End => return,
                BodyRead::WouldBlock | BodyRead::Failed(_) => return client.close_after(),
            }
        }
    }
    // SAFETY: the request is live.
    unsafe { ffi::ap_discard_request_body(r.as_ptr()) };
}

/// Whether the client has gone away while its request waits: its connection is reset or closed, or, with `half`, it
/// sends no more, which a client that was closed looks like too. For an HTTP/2 stream: the whole connection.
pub fn has_left(r: RequestRec<'_>, half: bool) -> bool {
    let mut fd = -1;
    // SAFETY: request and connection are live, its main connection lives longer, and so does that one's socket.
    let rc = unsafe {
        let c = (*r.as_ptr()).connection;
        if (*c).aborted != 0 {
            return true;
        }
        let socket = ffi::ap_get_conn_socket(if (*c).master.is_null() { c } else { (*c).master });
        if socket.is_null() {
            return false;
        }
        ffi::apr_os_sock_get(&raw mut fd, socket)
    };
    // SAFETY: the descriptor is the connection's, which lives longer than the request.
    rc == 0 && fd >= 0 && wait::is_hung_up(unsafe { BorrowedFd::borrow_raw(fd) }, half)
}

/// The client is gone: nothing more is sent to it, not even a status.
pub fn abandon(r: RequestRec<'_>) {
    // SAFETY: the request and its connection are live, and this thread's.
    unsafe {
        let c = (*r.as_ptr()).connection;
        (*c).keepalive = ffi::ap_conn_keepalive_e_AP_CONN_CLOSE;
        (*c).aborted = 1;
    }
}

/// A header for an error response that httpd makes itself.
pub fn set_error_header(r: RequestRec<'_>, name: &'static CStr, value: &str) {
    let value = CString::new(value).unwrap_or_default();
    r.err_headers_out().set(name, &value);
}

/// Loggers look for the response's type in the request itself: `%{Content-Type}o` is it without parameters, and
/// `CONTENT_TYPE` of expressions. While a response is sent it is among the fields only, so that httpd adds no charset.
pub fn set_logged_type(r: RequestRec<'_>) {
    let Some(value) = r.headers_out().get(c"Content-Type") else { return };
    // SAFETY: the request is live; the string lives in its pool.
    unsafe {
        let rec = r.as_ptr();
        if (*rec).content_type.is_null() {
            (*rec).content_type = r.pool().copy(value);
        }
    }
}

/// What the loggers show of a request: user, authentication type, handler, file.
pub fn set_logged(r: RequestRec<'_>, user: &[u8], auth_type: &[u8], handler: &[u8], filename: &[u8]) {
    let pool = r.pool();
    let copy = |s: &[u8]| if s.is_empty() { ptr::null_mut() } else { pool.copy(s) };
    // SAFETY: the request is live; the strings live in its pool.
    unsafe {
        let rec = r.as_ptr();
        (*rec).user = copy(user);
        (*rec).ap_auth_type = copy(auth_type);
        (*rec).handler = copy(handler);
        (*rec).filename = copy(filename);
    }
}
