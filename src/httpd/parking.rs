//! Requests that wait without a thread: the seam between whoever serves a request and the MPM.
//!
//! Runs in: frontend, where mod_pool is the MPM.  Trusts: both sides.  Owns: what goes on with a parked request.
//! Never: knows what a request waits for, or who watches for it.
//!
//! A hook that cannot go on takes a [`Ticket`], leaves what goes on with the request ([`leave`]), and answers
//! [`SUSPENDED`]. The MPM looks for what was left once `process_connection` has returned; not before, as the connection
//! would have two threads.

use super::connection::{kept_with, Connection};
use super::mpm::connection::ticket_of;
use super::RequestRec;
use crate::ffi;
use crate::sys::events::Interest;
use once_cell::sync::OnceCell;
use std::cell::Cell;
use std::ffi::c_int;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// What a hook answers whose request is parked (httpd.h).
pub const SUSPENDED: c_int = ffi::SUSPENDED;
/// What it would have answered when the response is complete.
pub const DONE: c_int = ffi::HOOK_DONE;

/// What wakes a parked request; the first of these that comes.
#[derive(Debug)]
pub struct Awaited<'p> {
    /// Something other than the client: readable, or ready for anything.
    pub peer: Option<Peer<'p>>,
    /// `None`: what the client does does not matter yet.
    pub client: Option<Interest>,
    pub until: Instant,
}

/// What is waited for besides the client. Once watched, it is so until [`unwatch`].
#[derive(Debug)]
pub struct Peer<'p> {
    pub fd: BorrowedFd<'p>,
    pub interest: Interest,
    /// It was watched before.
    pub watched: &'p Cell<bool>,
}

/// What has become of a parked request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It waits again.
    Parks,
    /// It is over, with what its hook would have answered.
    Ended(c_int),
}

/// A request without a thread. It is dropped where its connection ends first; the request is gone by then.
pub trait Parked: Send + fmt::Debug {
    fn awaited(&self) -> Awaited<'_>;

    /// What it waits for has come, and no descriptor tells. Called under a lock of the lot's: whoever calls [`wake`] holds
    /// no lock that this takes.
    fn is_ready(&self) -> bool;

    /// Goes on, on the calling thread, until it is over or waits again. It may find that nothing has come; but when its
    /// client has closed its end, it does not wait for that again.
    fn go_on(&mut self) -> Step;
}

/// Which connection is meant, also after it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// Who watches over parked requests: the MPM.
pub trait Lot: Sync + fmt::Debug {
    /// Has the request with this ticket go on, if it is parked; from any thread.
    fn wake(&self, ticket: Ticket);

    /// Watches a peer no longer. It must be called before its descriptor is closed, as other processes may hold a copy.
    fn unwatch(&self, peer: BorrowedFd<'_>);
}

static LOT: OnceCell<&'static dyn Lot> = OnceCell::new();

/// Requests of this process may be parked from now on.
pub fn open(lot: &'static dyn Lot) {
    // A process has one MPM.
    let _ = LOT.set(lot);
}

/// A ticket, if this request can be parked: its connection must be one that the MPM can watch, and nothing may wait on
/// the stack for the request's end, as it does for a subrequest's and for that of an error document.
pub fn ticket(r: RequestRec<'_>) -> Option<Ticket> {
    LOT.get()?;
    // SAFETY: the request and its connection are live, and this thread's.
    unsafe {
        let rec = r.as_ptr();
        let c = (*rec).connection;
        let alone = (*rec).prev.is_null() && (*rec).main.is_null() && (*c).master.is_null();
        (alone && (*c).clogging_input_filters() == 0).then(|| ticket_of(c)).flatten()
    }
}

/// Whether requests of this process can be parked.
pub fn is_possible() -> bool {
    LOT.get().is_some()
}

/// See [`Lot::wake`].
pub fn wake(ticket: Ticket) {
    if let Some(lot) = LOT.get() {
        lot.wake(ticket);
    }
}

/// See [`Lot::unwatch`].
pub fn unwatch(peer: BorrowedFd<'_>) {
    if let Some(lot) = LOT.get() {
        lot.unwatch(peer);
    }
}

/// What goes on with a request, in its connection's keeping.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) r: *mut ffi::request_rec,
    pub(super) parked: Box<dyn Parked>,
}

/// Leaves what goes on with this request, whose hook must answer [`SUSPENDED`] now. Gives it back where there is no
/// place for it; never for a request that had a ticket.
pub fn leave<'r>(r: RequestRec<'r>, parked: Box<dyn Parked + 'r>) -> Result<(), Box<dyn Parked + 'r>> {
    let kept = Connection::of(r).and_then(Connection::kept);
    let Some(mut place) = kept.and_then(|kept| kept.parked.try_borrow_mut().ok()) else { return Err(parked) };
    // SAFETY: only the lifetime changes. It is used while the request lives, as the request ends by its last step or
    // with its connection; `forget` drops it before the connection's pool takes the request with it.
    let parked = unsafe { std::mem::transmute::<Box<dyn Parked + 'r>, Box<dyn Parked + 'static>>(parked) };
    *place = Some(Left { r: r.as_ptr(), parked });
    Ok(())
}

/// The connection ends: nothing goes on with its request.
///
/// # Safety
/// `c` is live, and only the calling thread uses it.
pub(super) unsafe fn forget(c: *mut ffi::conn_rec) {
    // SAFETY: the caller's promise.
    let left = unsafe { kept_with(c) }.and_then(|kept| kept.parked.take());
    drop(left);
}
