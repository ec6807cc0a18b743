//! What httpd keeps of its MPM over restarts: state, generation, and what its signal handlers have been told.
//!
//! Runs in: parent and frontend, where mod_pool is the MPM.  Trusts: httpd, whose signal handlers write it.
//! Owns: nothing.  Never: keeps a reference to it (a handler may write at any moment).

use crate::ffi;
use std::ffi::c_int;

type Data = ffi::ap_unixd_mpm_retained_data;

fn data() -> *mut Data {
    // SAFETY: returns the record, which httpd allocates once for the life of the process.
    unsafe { ffi::ap_unixd_mpm_get_retained_data() }
}

macro_rules! field {
    ($name:ident) => {{
        // SAFETY: the record is live; signal handlers write it, so it is read as volatile.
        unsafe { (&raw const (*data()).$name).read_volatile() }
    }};
    ($name:ident = $value:expr) => {{
        let value = $value;
        // SAFETY: as for reading.
        unsafe { (&raw mut (*data()).$name).write_volatile(value) }
    }};
}

/// AP_MPMQ_STARTING, AP_MPMQ_RUNNING or AP_MPMQ_STOPPING.
pub fn state() -> c_int {
    field!(mpm_state)
}

/// The server starts, or is read anew.
pub fn starting() {
    field!(mpm_state = ffi::AP_MPMQ_STARTING.cast_signed());
}

pub fn running() {
    field!(mpm_state = ffi::AP_MPMQ_RUNNING.cast_signed());
}

pub fn stopping() {
    field!(mpm_state = ffi::AP_MPMQ_STOPPING.cast_signed());
}

/// A configuration is about to be read; returns how many were before, plus one. Another MPM's children are none of
/// ours, so that after a change of MPM nothing is graceful.
pub fn count_load() -> c_int {
    // Any address that is this module's own says whose the record is.
    let own = (&raw const BATON).cast_mut().cast();
    if field!(baton) != own {
        field!(was_graceful = 0);
        field!(baton = own);
    }
    field!(module_loads = field!(module_loads) + 1);
    loads()
}

static BATON: u8 = 0;

/// How often a configuration was read, by [`count_load`].
pub fn loads() -> c_int {
    field!(module_loads)
}

pub fn generation() -> c_int {
    field!(my_generation)
}

pub fn advance_generation() {
    field!(my_generation = generation() + 1);
}

pub fn shutdown_pending() -> bool {
    field!(shutdown_pending) != 0
}

pub fn set_shutdown_pending(pending: bool) {
    field!(shutdown_pending = c_int::from(pending));
}

pub fn restart_pending() -> bool {
    field!(restart_pending) != 0
}

/// The pending shutdown or restart does not wait for requests.
pub fn is_ungraceful() -> bool {
    field!(is_ungraceful) != 0
}

/// The last restart was a graceful one: children of earlier generations may still be there.
pub fn was_graceful() -> bool {
    field!(was_graceful) != 0
}

/// Buckets of listeners that are kept over a graceful restart.
pub fn buckets() -> usize {
    usize::try_from(field!(num_buckets)).unwrap_or(0)
}

pub fn set_buckets(n: usize) {
    let n = c_int::try_from(n).unwrap_or(c_int::MAX);
    field!(num_buckets = n);
    field!(max_buckets = n.max(field!(max_buckets)));
}
