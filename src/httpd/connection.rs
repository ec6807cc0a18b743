//! A client's connection between two requests: what this module keeps with it, writing what is queued, waiting.
//!
//! Runs in: frontend, the thread that has the connection.  Trusts: httpd.  Owns: this module's slot of the connection.
//! Never: touches the slot of an HTTP/2 connection, whose streams run on several threads.

use super::{config, RequestRec};
use crate::apr::AprPool;
use crate::ffi;
use crate::policy::habit::Habit;
use crate::sys::{socket, wait};
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// httpd will read another request from it.
    Stays,
    Closes,
    Lost,
}

/// A client's own connection: not a stream of HTTP/2.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'r> {
    raw: NonNull<ffi::conn_rec>,
    life: PhantomData<&'r ffi::conn_rec>,
}

// SAFETY: as for the request that it carries.
unsafe impl Send for Connection<'_> {}

/// What this module keeps with a connection. Cells, as one thread has the connection at a time.
#[derive(Debug)]
pub struct State {
    /// What `frontend_tls` keeps, in the connection's pool.
    pub(super) tls: Cell<Option<NonNull<super::frontend_tls::Kept>>>,
    /// Whether waiting for the next request paid.
    pub requests: Habit,
    /// The response is written, and the thread is to wait for what the client does.
    pub wanted: Cell<bool>,
    /// What mod_pool as the MPM knows of the connection; null under another MPM.
    pub(super) mpm: Cell<*mut c_void>,
    /// What goes on with the connection's request, which has no thread.
    pub(super) parked: RefCell<Option<super::parking::Left>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            tls: Cell::default(),
            requests: Habit::default(),
            wanted: Cell::default(),
            mpm: Cell::new(ptr::null_mut()),
            parked: RefCell::default(),
        }
    }
}

/// What this module keeps with a connection of any kind; null when there is nothing yet.
///
/// # Safety
/// `c` is live.
pub(super) unsafe fn kept_with<'c>(c: *mut ffi::conn_rec) -> Option<&'c State> {
    // SAFETY: the caller's promise; what is in this module's slot was put there by `keep_with`.
    unsafe { ffi::ap_get_module_config((*c).conn_config, config::module()).cast::<State>().as_ref() }
}

/// The same; made when there is none yet.
///
/// # Safety
/// `c` is live, and only the calling thread uses it.
pub(super) unsafe fn keep_with<'c>(c: *mut ffi::conn_rec) -> &'c State {
    // SAFETY: the caller's promise.
    if let Some(state) = unsafe { kept_with(c) } {
        return state;
    }
    // SAFETY: the connection is live, and its pool lives as long; the slot is this module's.
    unsafe {
        let state = AprPool::from_raw((*c).pool).place(State::default());
        ffi::ap_set_module_config((*c).conn_config, config::module(), ptr::from_ref(state).cast_mut().cast());
        state
    }
}

impl<'r> Connection<'r> {
    /// The connection that the request came by, if that is a client's own one.
    pub fn of(r: RequestRec<'r>) -> Option<Self> {
        // SAFETY: a live request has a live connection.
        unsafe { Self::from_raw(r.connection_ptr()) }
    }

    /// The same for a connection itself.
    ///
    /// # Safety
    /// `raw` is null or lives during `'r`, and only the calling thread uses it.
    pub unsafe fn from_raw(raw: *mut ffi::conn_rec) -> Option<Self> {
        let raw = NonNull::new(raw)?;
        // SAFETY: the caller's promise.
        let own = unsafe { raw.as_ref().master.is_null() };
        own.then_some(Self { raw, life: PhantomData })
    }

    pub(super) fn pool(self) -> AprPool<'r> {
        // SAFETY: the connection is live, and its pool lives as long, which is longer than the request.
        unsafe { AprPool::from_raw(self.raw.as_ref().pool) }
    }

    /// What is kept, if anything.
    pub fn kept(self) -> Option<&'r State> {
        // SAFETY: the connection is live, longer than the request.
        unsafe { kept_with(self.raw.as_ptr()) }
    }

    /// What is kept; made when there is none yet.
    pub fn state(self) -> &'r State {
        // SAFETY: the connection is live, longer than the request, and this thread has it.
        unsafe { keep_with(self.raw.as_ptr()) }
    }

    /// What becomes of it after this request.
    pub fn after(self) -> After {
        // SAFETY: the connection is live.
        let c = unsafe { self.raw.as_ref() };
        if c.aborted != 0 {
            After::Lost
        } else if c.keepalive == ffi::ap_conn_keepalive_e_AP_CONN_KEEPALIVE {
            After::Stays
        } else {
            After::Closes
        }
    }

    /// Nothing is to be said any more when it closes: no TLS.
    pub fn is_plain(self) -> bool {
        // SAFETY: the connection is live.
        unsafe { ffi::ap_ssl_conn_is_ssl(self.raw.as_ptr()) == 0 }
    }

    /// Tells the client that nothing more comes.
    pub fn end_sending(self) {
        if let Some(fd) = self.socket() {
            socket::shutdown_sending(fd);
        }
    }

    /// Writes what httpd has queued, as far as the socket takes it at once; whether that is all.
    pub fn write_queued(self) -> bool {
        // SAFETY: the filters of a live connection that this thread has. The last one writes to the socket, and takes
        // a null brigade as "write what you have, without waiting": that is how MPMs complete a response.
        unsafe {
            let mut last = self.raw.as_ref().output_filters;
            if last.is_null() {
                return false;
            }
            while !(*last).next.is_null() {
                last = (*last).next;
            }
            let Some(write) = (*(*last).frec).filter_func.out_func else { return false };
            write(last, ptr::null_mut()) == 0 && self.raw.as_ref().data_in_output_filters == 0
        }
    }

    /// The socket has taken everything that was passed on to the last filter; tries to write what is left.
    pub fn has_written(self) -> bool {
        // SAFETY: the connection is live.
        unsafe { self.raw.as_ref().data_in_output_filters == 0 || self.write_queued() }
    }

    fn socket(self) -> Option<BorrowedFd<'r>> {
        let mut fd = -1;
        // SAFETY: the connection is live; its socket lives as long.
        let rc = unsafe {
            let socket = ffi::ap_get_conn_socket(self.raw.as_ptr());
            if socket.is_null() {
                return None;
            }
            ffi::apr_os_sock_get(&raw mut fd, socket)
        };
        // SAFETY: the descriptor is the connection's, which lives longer than the request.
        (rc == 0 && fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Waits until the client sends something; false when it has not by then.
    pub fn wait(self, patience: Duration) -> bool {
        let began = Instant::now();
        let came = self.socket().is_some_and(|fd| wait::readable_within(fd, patience));
        self.not_the_requests(began.elapsed());
        came
    }

    /// mod_status measures a request until its thread is free: without this time, in which it was free already.
    fn not_the_requests(self, time: Duration) {
        // SAFETY: variables of httpd's, and this thread's own line of the scoreboard.
        unsafe {
            let line = ffi::ap_get_scoreboard_worker(self.raw.as_ref().sbh.cast());
            if ffi::ap_extended_status != 0 && !line.is_null() {
                (*line).start_time += ffi::apr_time_t::try_from(time.as_micros()).unwrap_or(0);
            }
        }
    }
}
