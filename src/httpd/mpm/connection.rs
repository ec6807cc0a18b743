//! A client's connection from accept(2) to its end, in steps that do not wait for the client longer than its modules do.
//!
//! Runs in: frontend, where mod_pool is the MPM.  Trusts: httpd; the caller, that it uses a connection in one thread at
//! a time.  Owns: the connection's pool, and with it everything else of it.
//! Never: decides what comes next (`policy::mpm::connection` does).

use super::score::{self, Seat};
use super::threads::Thread;
use super::transaction::{Accepted, TransactionPool};
use crate::ffi;
use crate::httpd::connection::{keep_with, kept_with};
use crate::httpd::parking::{self, Awaited, Step, Ticket};
use crate::policy::mpm::connection::{Left, Processed};
use crate::sys::events::Interest;
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a client that is being sent away may take to hear of it.
const FLUSH_AT_END: ffi::apr_interval_time_t = 2_000_000;
/// Bytes of a client that nobody reads any more, in one go.
const DRAIN: usize = 32 * 1024;
/// How often in a row that is read before others get their turn.
const DRAINS: usize = 8;

/// What is said when a connection's pool ends, however that comes: the number that it was opened with, and how it was
/// counted last.
pub type Ended = fn(token: u64, lingering: bool, suspended: bool);

/// Kept in the connection's pool.
pub(super) struct State {
    /// What modules see as `c->cs`.
    pub(super) public: ffi::conn_state_t,
    pub(super) c: *mut ffi::conn_rec,
    pub(super) socket: *mut ffi::apr_socket_t,
    pub(super) sbh: *mut ffi::ap_sb_handle_t,
    /// The request that is being handled.
    pub(super) request: *mut ffi::request_rec,
    /// When the parked request began, for mod_status.
    pub(super) began: ffi::apr_time_t,
    /// Whose `Timeout` and `KeepAliveTimeout` hold.
    pub(super) server: *mut ffi::server_rec,
    /// Modules were told that no thread has it.
    pub(super) away: bool,
    /// It waits for the client's end.
    pub(super) lingering: bool,
    /// A module has it.
    pub(super) suspended: bool,
    /// The descriptor is in the thread's set of events.
    pub(super) watched: bool,
    pub(super) token: u64,
    pub(super) ended: Ended,
}

/// An open connection. Whoever has this value is the only one to use the connection.
#[derive(Debug)]
pub struct Connection {
    state: NonNull<State>,
    pool: TransactionPool,
}

// SAFETY: all of it is used by one thread at a time, the one that has the value; httpd's connections wander between
// threads in every MPM of this kind.
unsafe impl Send for Connection {}

/// The state that a connection's modules know as ours.
pub(super) fn state_of(c: *mut ffi::conn_rec) -> *mut State {
    // SAFETY: httpd passes a live connection.
    unsafe { kept_with(c) }.map_or(ptr::null_mut(), |kept| kept.mpm.get().cast())
}

/// What stands for this connection while its request is parked; `None` under another MPM.
///
/// # Safety
/// `c` is live, and only the calling thread uses it.
pub unsafe fn ticket_of(c: *mut ffi::conn_rec) -> Option<Ticket> {
    let state = state_of(c);
    // SAFETY: null, or in the connection's pool.
    (!state.is_null()).then(|| Ticket(unsafe { (*state).token }))
}

/// Runs before any other cleanup of the connection: modules that were told it went away hear that it is back.
unsafe extern "C" fn before_end(data: *mut c_void) -> ffi::apr_status_t {
    ffi::guard::guard(0, || {
        let state = data.cast::<State>();
        // SAFETY: registered with the state, in the same pool, whose contents still live.
        unsafe {
            parking::forget((*state).c);
            if (*state).away {
                (*state).away = false;
                (*(*state).c).sbh = ptr::null_mut();
                ffi::ap_run_resume_connection((*state).c, (*state).request);
            }
        }
        0
    })
}

unsafe extern "C" fn at_end(data: *mut c_void) -> ffi::apr_status_t {
    ffi::guard::guard(0, || {
        // SAFETY: as in before_end.
        let (ended, token, lingering, suspended) = unsafe {
            let state = data.cast::<State>();
            ((*state).ended, (*state).token, (*state).lingering, (*state).suspended)
        };
        ended(token, lingering, suspended);
        0
    })
}

impl Connection {
    /// Makes a connection of a socket, and lets modules prepare it. `Err` when httpd does not want it; it is closed then,
    /// and `ended` will not be told. One that a module does not want is [refused](Self::is_refused).
    pub fn open(
        accepted: Accepted,
        seat: Seat,
        thread: Thread,
        token: u64,
        ended: Ended,
    ) -> Result<Self, TransactionPool> {
        let Accepted { pool, socket } = accepted;
        let p = pool.as_ptr();
        // SAFETY: the pool is fresh and ours, the socket was accepted into it; what is made here lives in the pool.
        unsafe {
            let state = ffi::apr_palloc(p, size_of::<State>()).cast::<State>();
            let alloc = ffi::apr_bucket_alloc_create(p);
            let mut sbh = ptr::null_mut();
            ffi::ap_create_sb_handle(&raw mut sbh, p, seat.slot, seat.thread);
            let main = ffi::ap_server_conf;
            let c = ffi::ap_run_create_connection(p, main, socket, seat.connection_id, sbh.cast(), alloc);
            if c.is_null() {
                // The core says so when the client is gone already.
                ffi::apr_socket_close(socket);
                return Err(pool.clear());
            }
            let mut public: ffi::conn_state_t = std::mem::zeroed();
            public.state = ffi::conn_state_e_CONN_STATE_PROCESSING;
            public.sense = ffi::conn_sense_e_CONN_SENSE_DEFAULT;
            state.write(State {
                public,
                c,
                socket,
                sbh,
                request: ptr::null_mut(),
                began: 0,
                server: main,
                away: false,
                lingering: false,
                suspended: false,
                watched: false,
                token,
                ended,
            });
            ffi::apr_pool_cleanup_register(p, state.cast(), Some(at_end), Some(ffi::apr_pool_cleanup_null));
            ffi::apr_pool_pre_cleanup_register(p, state.cast(), Some(before_end));
            (*c).current_thread = thread.as_ptr();
            (*c).cs = &raw mut (*state).public;
            keep_with(c).mpm.set(state.cast());
            let connection = Self { state: NonNull::new_unchecked(state), pool };
            ffi::ap_update_vhost_given_ip(c);
            let rc = ffi::ap_pre_connection(c, socket.cast());
            if rc != ffi::HOOK_OK && rc != ffi::HOOK_DONE {
                // Modules that have prepared for it hear of its end as of any other.
                (*c).aborted = 1;
            }
            // A module may have put its own there.
            (*state).public.state = ffi::conn_state_e_CONN_STATE_PROCESSING;
            (*state).public.sense = ffi::conn_sense_e_CONN_SENSE_DEFAULT;
            Ok(connection)
        }
    }

    /// What a module does not write while it has the connection.
    fn state(&self) -> &State {
        // SAFETY: lives in the pool that this value owns; written through `at`, and by modules during calls. The callers
        // are with a thread that has the connection; without one, `is_given_back` and `socket` do not come here.
        unsafe { self.state.as_ref() }
    }

    fn at(&mut self) -> *mut State {
        self.state.as_ptr()
    }

    fn c(&self) -> *mut ffi::conn_rec {
        self.state().c
    }

    pub fn token(&self) -> u64 {
        self.state().token
    }

    fn socket(&self) -> *mut ffi::apr_socket_t {
        // SAFETY: lives in the pool that this value owns; the field never changes.
        unsafe { (&raw const (*self.state.as_ptr()).socket).read() }
    }

    /// Its descriptor; `None` when a module has closed it.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        let mut fd = -1;
        // SAFETY: the socket lives in this value's pool; APR forgets its number when it is closed.
        let rc = unsafe { ffi::apr_os_sock_get(&raw mut fd, self.socket()) };
        // SAFETY: open, by APR's word; it stays so until `close` takes this value, or a module is called, for which the
        // value must be borrowed as mutable.
        (rc == 0 && fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// A module does not want it: it is to be ended at once.
    pub fn is_refused(&self) -> bool {
        // SAFETY: a live connection.
        unsafe { (*self.c()).aborted != 0 }
    }

    /// Whether its descriptor was ever watched; it is from now on.
    pub fn watch(&mut self) -> bool {
        let state = self.at();
        // SAFETY: ours alone.
        unsafe { std::mem::replace(&mut (*state).watched, true) }
    }

    /// A thread has it again.
    pub fn resume(&mut self, seat: Seat, thread: Thread) {
        let state = self.at();
        // SAFETY: ours alone; modules are called as httpd's contract of these hooks says.
        unsafe {
            let c = (*state).c;
            ffi::ap_update_sb_handle((*state).sbh, seat.slot, seat.thread);
            (*state).away = false;
            (*state).suspended = false;
            (*c).sbh = (*state).sbh.cast();
            ffi::ap_run_resume_connection(c, (*state).request);
            (*c).current_thread = thread.as_ptr();
            (*c).id = seat.connection_id;
        }
    }

    /// No thread has it.
    pub fn leave(&mut self) {
        let state = self.at();
        // SAFETY: as in resume.
        unsafe {
            let c = (*state).c;
            ffi::ap_run_suspend_connection(c, (*state).request);
            (*c).sbh = ptr::null_mut();
            (*state).away = true;
        }
    }

    /// A module has it; it was not left yet.
    pub fn suspend(&mut self) {
        let state = self.at();
        // SAFETY: ours alone.
        unsafe { (*state).suspended = true };
        self.leave();
    }

    /// Filters read ahead without regard to what is there, so that it must be processed after each event.
    pub fn is_clogging(&self) -> bool {
        // SAFETY: a live connection.
        unsafe { (*self.c()).clogging_input_filters() != 0 }
    }

    /// Lets modules read and answer what there is: a request, usually.
    pub fn process(&mut self) -> Processed {
        let state = self.at();
        // SAFETY: ours alone; process_connection is called on this thread, as each MPM does.
        unsafe {
            (*state).public.state = ffi::conn_state_e_CONN_STATE_PROCESSING;
            let rc = ffi::ap_run_process_connection((*state).c);
            let parked = self.is_parked();
            if parked {
                (*state).began = score::take_back_end((*state).sbh);
            }
            Processed {
                ok: rc == ffi::HOOK_OK || rc == ffi::HOOK_DONE,
                left: if parked { Left::Parked } else { left((*state).public.state) },
                aborted: (*(*state).c).aborted != 0,
            }
        }
    }

    /// Whether its request waits without a thread.
    pub fn is_parked(&self) -> bool {
        // SAFETY: a live connection.
        unsafe { kept_with(self.c()) }.is_some_and(|kept| kept.parked.borrow().is_some())
    }

    /// Asks the parked request; `None` without one.
    fn ask<T>(&self, question: impl FnOnce(&dyn parking::Parked) -> T) -> Option<T> {
        // SAFETY: a live connection.
        let kept = unsafe { kept_with(self.c()) }?;
        kept.parked.borrow().as_ref().map(|left| question(left.parked.as_ref()))
    }

    /// What wakes its request.
    pub fn with_awaited<T>(&self, use_it: impl FnOnce(&Awaited<'_>) -> T) -> Option<T> {
        self.ask(|parked| use_it(&parked.awaited()))
    }

    /// Its request can go on now.
    pub fn is_ready(&self) -> bool {
        self.ask(|parked| parked.is_ready()).unwrap_or(true)
    }

    /// Goes on with its parked request. A request that is over ends as if its hook had answered just now.
    pub fn go_on(&mut self) -> Processed {
        let state = self.at();
        // SAFETY: a live connection.
        let kept = unsafe { kept_with(self.c()) };
        let Some((kept, mut left)) = kept.and_then(|kept| Some((kept, kept.parked.take()?))) else {
            return Processed { ok: false, left: Left::Other, aborted: false };
        };
        let r = left.r;
        // SAFETY: the request lives until its end, which is below. Its mutex is httpd's sign that a thread has it.
        unsafe {
            ffi::apr_thread_mutex_lock((*r).invoke_mtx);
            score::goes_on((*state).sbh, r, (*state).began);
        }
        let step = ffi::guard::guard(None, || Some(left.parked.go_on()));
        // SAFETY: locked above, by this thread.
        unsafe { ffi::apr_thread_mutex_unlock((*r).invoke_mtx) };
        match step {
            None => {
                // A panic: part of the response may be out, and nothing may be taken for the rest of it.
                drop(left);
                // SAFETY: a live connection.
                unsafe { (*self.c()).aborted = 1 };
                Processed { ok: false, left: Left::Other, aborted: true }
            }
            Some(Step::Parks) => {
                kept.parked.replace(Some(left));
                Processed { ok: true, left: Left::Parked, aborted: false }
            }
            Some(Step::Ended(answer)) => {
                drop(left);
                // SAFETY: what ap_process_async_request does after its hooks; the request may be gone after it.
                unsafe {
                    ffi::ap_die(answer, r);
                    ffi::ap_process_request_after_handler(r);
                    Processed { ok: true, left: self::left((*state).public.state), aborted: (*(*state).c).aborted != 0 }
                }
            }
        }
    }

    /// What mod_status shows while the connection waits.
    pub fn show(&self, waits: Waits) {
        let status = match waits {
            Waits::Read => ffi::SERVER_BUSY_READ,
            Waits::Write => ffi::SERVER_BUSY_WRITE,
            Waits::KeepAlive => ffi::SERVER_BUSY_KEEPALIVE,
        };
        // SAFETY: the handle lives as long as the connection.
        unsafe { ffi::ap_update_child_status(self.state().sbh, status.cast_signed(), ptr::null_mut()) };
    }

    /// Asks the output filters to send what they hold. Whether none failed.
    pub fn flush(&mut self) -> bool {
        let state = self.at();
        // SAFETY: ours alone; the last filter is the core's, which takes "no brigade" as this request (core_filters.c).
        unsafe {
            (*state).public.state = ffi::conn_state_e_CONN_STATE_WRITE_COMPLETION;
            let mut filter = (*(*state).c).output_filters;
            while !(*filter).next.is_null() {
                filter = (*filter).next;
            }
            match (*(*filter).frec).filter_func.out_func {
                Some(send) => send(filter, ptr::null_mut()) == 0,
                None => false,
            }
        }
    }

    /// What [`flush`](Self::flush) has left behind, and what else there is to do.
    pub fn outlook(&self) -> Outlook {
        let state = self.state();
        // SAFETY: a live connection.
        let c = unsafe { &*state.c };
        Outlook {
            output_left: c.data_in_output_filters != 0,
            wants_read: state.public.sense == ffi::conn_sense_e_CONN_SENSE_WANT_READ,
            keep_alive: c.keepalive == ffi::ap_conn_keepalive_e_AP_CONN_KEEPALIVE,
            aborted: c.aborted != 0,
            input_waits: c.data_in_input_filters != 0,
        }
    }

    /// What modules want to wait for, or else `default`; they are asked once.
    pub fn take_interest(&mut self, default: Interest) -> Interest {
        let state = self.at();
        // SAFETY: ours alone.
        let sense = unsafe { std::mem::replace(&mut (*state).public.sense, ffi::conn_sense_e_CONN_SENSE_DEFAULT) };
        match sense {
            ffi::conn_sense_e_CONN_SENSE_WANT_READ => Interest::Read,
            ffi::conn_sense_e_CONN_SENSE_WANT_WRITE => Interest::Write,
            _ => default,
        }
    }

    /// The state that modules see while it waits for the next request.
    pub fn mark_keep_alive(&mut self) {
        let state = self.at();
        // SAFETY: ours alone.
        unsafe {
            (*state).public.state = ffi::conn_state_e_CONN_STATE_KEEPALIVE;
            (*state).public.sense = ffi::conn_sense_e_CONN_SENSE_DEFAULT;
        }
    }

    /// A module that had it has finished with it.
    pub fn is_given_back(&self) -> bool {
        let state = self.state.as_ptr();
        // SAFETY: lives in the pool that this value owns. The module's thread may write its last word there at this
        // moment, so that the word is read as an atomic one and no reference to what it is part of is made.
        let (suspended, said) = unsafe {
            let said = AtomicU32::from_ptr((&raw mut (*state).public.state).cast());
            ((&raw const (*state).suspended).read(), said.load(Ordering::Acquire))
        };
        suspended && said != ffi::conn_state_e_CONN_STATE_SUSPENDED
    }

    /// `Timeout` of the server that serves it.
    pub fn timeout(&self) -> Duration {
        // SAFETY: a server of the configuration, which lives as long as this process.
        duration(unsafe { (*self.state().server).timeout })
    }

    /// `KeepAliveTimeout` of the server that serves it.
    pub fn keep_alive_timeout(&self) -> Duration {
        // SAFETY: as above.
        duration(unsafe { (*self.state().server).keep_alive_timeout })
    }

    /// It is to be ended soon, whatever the client still sends.
    pub fn shorten_end(&mut self) {
        // SAFETY: ours alone; both strings are static.
        unsafe { ffi::apr_table_setn((*self.c()).notes, c"short-lingering-close".as_ptr(), c"1".as_ptr()) };
    }

    /// The client takes nothing: what is left is not sent, and its end not waited for.
    pub fn give_up(&mut self) {
        // SAFETY: ours alone.
        unsafe { (*(*self.at()).c).aborted = 1 };
    }

    /// Sends what is left and our end, waiting for the client up to 2 s if `may_wait`. `None` if there is nothing to
    /// wait for any more; else whether the client gets the short time only.
    pub fn start_end(&mut self, may_wait: bool) -> Option<bool> {
        let state = self.at();
        // SAFETY: ours alone; this is what httpd has these functions for.
        unsafe {
            (*state).lingering = true;
            (*state).public.state = ffi::conn_state_e_CONN_STATE_LINGER;
            let c = (*state).c;
            let socket = ffi::ap_get_conn_socket(c);
            if socket.is_null() {
                // It was refused before the core had prepared it, which ap_start_lingering_close takes for granted.
                ffi::ap_prep_lingering_close(c);
                return None;
            }
            ffi::apr_socket_timeout_set(socket, if may_wait { FLUSH_AT_END } else { 0 });
            if ffi::ap_start_lingering_close(c) != 0 {
                return None;
            }
            ffi::apr_socket_timeout_set(socket, 0);
            ffi::apr_socket_opt_set(socket, ffi::APR_INCOMPLETE_READ.cast_signed(), 0);
            let short = !ffi::apr_table_get((*c).notes, c"short-lingering-close".as_ptr()).is_null();
            (*state).public.state = if short {
                ffi::conn_state_e_CONN_STATE_LINGER_SHORT
            } else {
                ffi::conn_state_e_CONN_STATE_LINGER_NORMAL
            };
            (*state).public.sense = ffi::conn_sense_e_CONN_SENSE_DEFAULT;
            Some(short)
        }
    }

    /// It was told its end already.
    pub fn is_ending(&self) -> bool {
        self.state().lingering
    }

    /// Drops what the client still sends, some of it. Whether more may come.
    pub fn drain(&mut self) -> bool {
        let mut buffer = [0u8; DRAIN];
        for _ in 0..DRAINS {
            let mut n = buffer.len();
            // SAFETY: the socket does not wait; at most `n` bytes are written to the buffer.
            let rc = unsafe { ffi::apr_socket_recv(self.socket(), buffer.as_mut_ptr().cast(), &raw mut n) };
            if rc != 0 {
                return rc == libc::EAGAIN;
            }
        }
        true
    }

    /// Closes it, without waiting, and gives its pool back.
    pub fn close(self) -> TransactionPool {
        let Self { state, pool } = self;
        // SAFETY: ours alone; the state lives until the pool is cleared.
        unsafe {
            let socket = (*state.as_ptr()).socket;
            ffi::apr_socket_timeout_set(socket, 0);
            // A module may have closed it.
            let mut fd = -1;
            if ffi::apr_os_sock_get(&raw mut fd, socket) == 0 && fd >= 0 {
                ffi::apr_socket_close(socket);
            }
        }
        pool.clear()
    }
}

/// What mod_status shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    Read,
    Write,
    KeepAlive,
}

/// See [`Connection::outlook`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    pub output_left: bool,
    pub wants_read: bool,
    pub keep_alive: bool,
    pub aborted: bool,
    pub input_waits: bool,
}

fn duration(time: ffi::apr_interval_time_t) -> Duration {
    Duration::from_micros(u64::try_from(time).unwrap_or(0))
}

fn left(state: ffi::conn_state_e) -> Left {
    match state {
        ffi::conn_state_e_CONN_STATE_KEEPALIVE => Left::KeepAlive,
        ffi::conn_state_e_CONN_STATE_PROCESSING => Left::Processing,
        ffi::conn_state_e_CONN_STATE_WRITE_COMPLETION => Left::WriteCompletion,
        ffi::conn_state_e_CONN_STATE_SUSPENDED => Left::Suspended,
        ffi::conn_state_e_CONN_STATE_LINGER => Left::Linger,
        ffi::conn_state_e_CONN_STATE_ASYNC_WAITIO => Left::WaitIo,
        _ => Left::Other,
    }
}
