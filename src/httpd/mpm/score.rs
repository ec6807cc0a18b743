//! The scoreboard: what the parent and its frontends tell one another, and mod_status.
//!
//! Runs in: parent and frontend, where mod_pool is the MPM.  Trusts: the size that httpd made it with; what stands in
//! it can be written by any frontend, so that the parent takes numbers from it and never an index or a pid.
//! Owns: nothing.  Never: keeps a reference into it.

use crate::ffi;
use std::ffi::{c_int, c_long};
use std::sync::atomic::{AtomicI32, Ordering};

/// One more than the last slot that was ever used since the start; httpd looks no further.
static USED: AtomicI32 = AtomicI32::new(0);

/// Slots that httpd looks at when it reaps children.
pub fn used_slots() -> c_int {
    USED.load(Ordering::Relaxed)
}

/// There are processes in slots below this number.
pub fn set_used_slots(n: usize) {
    USED.store(c_int::try_from(n).unwrap_or(c_int::MAX), Ordering::Relaxed);
}

/// At least this many.
pub fn raise_used_slots(n: usize) {
    USED.fetch_max(c_int::try_from(n).unwrap_or(c_int::MAX), Ordering::Relaxed);
}

fn row(slot: usize) -> Option<*mut ffi::process_score> {
    let index = c_int::try_from(slot).ok()?;
    // SAFETY: httpd checks the index against the scoreboard's size, and answers null where there is none.
    let row = unsafe { ffi::ap_get_scoreboard_process(index) };
    (!row.is_null()).then_some(row)
}

macro_rules! write_row {
    ($slot:expr, $($field:ident = $value:expr),* $(,)?) => {
        if let Some(row) = row($slot) {
            $({
                let value = $value;
                // SAFETY: a row of the scoreboard, which lives as long as the process; others write to it, too.
                unsafe { (&raw mut (*row).$field).write_volatile(value) };
            })*
        }
    };
}

/// What a frontend says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Said {
    pub quiescing: bool,
    pub closed: bool,
    /// Threads that wait, or have not started yet.
    pub idle: u32,
    /// Threads that run and are not ending.
    pub active: u32,
}

/// In the parent: what the frontend in this slot says of itself.
pub fn said(slot: usize, threads: u32) -> Said {
    let Some(row) = row(slot) else { return Said::default() };
    // SAFETY: as in write_row.
    let (quiescing, closed) = unsafe {
        ((&raw const (*row).quiescing).read_volatile() != 0, (&raw const (*row).not_accepting).read_volatile() != 0)
    };
    let mut said = Said { quiescing, closed, idle: 0, active: 0 };
    let index = c_int::try_from(slot).unwrap_or(-1);
    for thread in 0..threads {
        // SAFETY: httpd checks both numbers, and answers null for what is not there.
        let worker = unsafe { ffi::ap_get_scoreboard_worker_from_indexes(index, thread.cast_signed()) };
        if worker.is_null() {
            continue;
        }
        // SAFETY: as in write_row.
        let status = u32::from(unsafe { (&raw const (*worker).status).read_volatile() });
        said.idle += u32::from(status <= ffi::SERVER_READY);
        said.active += u32::from((ffi::SERVER_READY..ffi::SERVER_GRACEFUL).contains(&status));
    }
    said
}

/// How many frontends there are in the first so many slots that are not ending.
pub fn running(slots: u32) -> u32 {
    let runs = |slot: &u32| {
        usize::try_from(*slot).ok().and_then(row).is_some_and(|row| {
            // SAFETY: as in write_row.
            unsafe {
                (&raw const (*row).pid).read_volatile() != 0 && (&raw const (*row).quiescing).read_volatile() == 0
            }
        })
    };
    (0..slots).filter(runs).count().try_into().unwrap_or(slots)
}

/// In the parent: a frontend was forked.
pub fn child_started(slot: usize, pid: u32, generation: c_int) {
    write_row!(slot, pid = pid.cast_signed(), generation = generation);
}

/// In the parent: it is known that the frontend is ending.
pub fn child_quiescing(slot: usize) {
    write_row!(slot, quiescing = 2);
}

/// In the parent: the frontend is gone, and its threads with it.
pub fn child_stopped(slot: usize, threads: u32) {
    for thread in 0..threads {
        Seat::new(slot, thread).set(Status::Dead);
    }
    write_row!(slot, not_accepting = 0, quiescing = 0, pid = 0);
}

/// In the parent, with a new scoreboard, and when the generation changes.
pub fn set_running_generation(generation: c_int) {
    // SAFETY: httpd's own variable, null or the scoreboard, whose global part lives as long.
    unsafe {
        if !ffi::ap_scoreboard_image.is_null() {
            let global = (*ffi::ap_scoreboard_image).global;
            (&raw mut (*global).running_generation).write_volatile(generation);
        }
    }
}

/// In a frontend: whether it accepts.
pub fn set_closed(slot: usize, closed: bool) {
    write_row!(slot, not_accepting = i8::from(closed) as _);
}

/// In a frontend: it ends when its connections do.
pub fn set_quiescing(slot: usize) {
    write_row!(slot, quiescing = 1);
}

/// Connections of a frontend by what they wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Connections {
    pub all: u32,
    pub wait_io: u32,
    pub write_completion: u32,
    pub keep_alive: u32,
    pub lingering: u32,
    pub suspended: u32,
}

/// In a frontend: for mod_status.
pub fn set_connections(slot: usize, n: Connections) {
    write_row!(
        slot,
        connections = n.all,
        wait_io = n.wait_io,
        write_completion = n.write_completion,
        keep_alive = n.keep_alive,
        lingering_close = n.lingering,
        suspended = n.suspended,
    );
}

/// A request that is parked has not ended yet, although httpd says so to mod_status when its hook answers `SUSPENDED`.
/// When it began; 0 if nobody asks (`ExtendedStatus`).
///
/// # Safety
/// The handle is live, and the calling thread's.
pub(super) unsafe fn take_back_end(sbh: *mut ffi::ap_sb_handle_t) -> ffi::apr_time_t {
    // SAFETY: the caller's promise; httpd's own variable, and null or a record of the scoreboard that is this thread's.
    unsafe {
        let worker = ffi::ap_get_scoreboard_worker(sbh);
        if ffi::ap_extended_status == 0 || worker.is_null() {
            return 0;
        }
        let began = (&raw const (*worker).start_time).read_volatile();
        let ended = (&raw const (*worker).stop_time).read_volatile();
        let duration = (&raw const (*worker).duration).read_volatile();
        (&raw mut (*worker).duration).write_volatile(duration.wrapping_sub(ended.wrapping_sub(began)));
        began
    }
}

/// A thread goes on with a request that was parked, and that another thread may have begun.
///
/// # Safety
/// The handle and the request are live, and the calling thread's.
pub(super) unsafe fn goes_on(sbh: *mut ffi::ap_sb_handle_t, r: *mut ffi::request_rec, began: ffi::apr_time_t) {
    // SAFETY: as in take_back_end.
    unsafe {
        ffi::ap_update_child_status(sbh, ffi::SERVER_BUSY_WRITE.cast_signed(), r);
        let worker = ffi::ap_get_scoreboard_worker(sbh);
        if began != 0 && !worker.is_null() {
            (&raw mut (*worker).start_time).write_volatile(began);
            (&raw mut (*worker).last_used).write_volatile(began);
        }
    }
}

/// What a thread does (scoreboard.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Dead,
    Starting,
    Ready,
    Graceful,
}

/// A thread's place in the scoreboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    pub(super) slot: c_int,
    pub(super) thread: c_int,
    /// Number of the connections that it serves, as the log shows it.
    pub(super) connection_id: c_long,
}

impl Seat {
    pub fn new(slot: usize, thread: u32) -> Self {
        let slot = c_int::try_from(slot).unwrap_or(-1);
        let connection_id = c_long::from(slot) * c_long::from(super::limits().thread_limit) + c_long::from(thread);
        Self { slot, thread: thread.cast_signed(), connection_id }
    }

    /// No place, for a thread that serves nobody: httpd writes nothing for it. `slot` is the process's.
    pub fn none(slot: usize) -> Self {
        Self { slot: -1, thread: -1, connection_id: c_long::try_from(slot).map_or(-1, |slot| -1 - slot) }
    }

    pub fn set(self, status: Status) {
        let status = match status {
            Status::Dead => ffi::SERVER_DEAD,
            Status::Starting => ffi::SERVER_STARTING,
            Status::Ready => ffi::SERVER_READY,
            Status::Graceful => ffi::SERVER_GRACEFUL,
        };
        // SAFETY: slot and thread are below the scoreboard's size: they count what it was made for.
        unsafe {
            ffi::ap_update_child_status_from_indexes(self.slot, self.thread, status.cast_signed(), std::ptr::null_mut())
        };
    }

    /// In the thread itself: who it is.
    pub fn sign(self, generation: c_int) {
        // SAFETY: httpd checks both numbers, and answers null for what is not there.
        let worker = unsafe { ffi::ap_get_scoreboard_worker_from_indexes(self.slot, self.thread) };
        if worker.is_null() {
            return;
        }
        // SAFETY: a record of the scoreboard that is this thread's; others read it.
        unsafe {
            (&raw mut (*worker).pid).write_volatile(libc::getpid());
            (&raw mut (*worker).tid).write_volatile(ffi::apr_os_thread_current());
            (&raw mut (*worker).generation).write_volatile(generation);
        }
    }
}
