//! The pools that connections live in, and sockets that are no connections yet.
//!
//! Runs in: frontend, where mod_pool is the MPM.  Trusts: httpd.  Owns: the pool, and with it everything in it.
//! Never: knows what a connection is.

use crate::ffi;
use std::ptr::{self, NonNull};

/// The pool of one connection, with memory of its own; used again for the next one.
#[derive(Debug)]
pub struct TransactionPool {
    raw: NonNull<ffi::apr_pool_t>,
}

// SAFETY: it has an allocator of its own, so that nothing is shared with other pools' threads but its parent's list of
// children, which APR locks (the configuration's allocator has a mutex in threaded processes).
unsafe impl Send for TransactionPool {}

impl TransactionPool {
    /// A new pool; `None` without memory.
    pub fn new() -> Option<Self> {
        let mut allocator = ptr::null_mut();
        let mut pool = ptr::null_mut();
        // SAFETY: both calls write their pointers; the allocator belongs to the pool from apr_allocator_owner_set on.
        unsafe {
            if ffi::apr_allocator_create(&raw mut allocator) != 0 {
                return None;
            }
            ffi::apr_allocator_max_free_set(allocator, ffi::ap_max_mem_free as ffi::apr_size_t);
            let parent = ffi::ap_server_conf;
            let parent = if parent.is_null() { ptr::null_mut() } else { (*(*parent).process).pconf };
            if ffi::apr_pool_create_ex(&raw mut pool, parent, None, allocator) != 0 {
                ffi::apr_allocator_destroy(allocator);
                return None;
            }
            ffi::apr_allocator_owner_set(allocator, pool);
            ffi::apr_pool_tag(pool, c"transaction".as_ptr());
        }
        NonNull::new(pool).map(|raw| Self { raw })
    }

    pub(super) fn as_ptr(&self) -> *mut ffi::apr_pool_t {
        self.raw.as_ptr()
    }

    /// Destroys it.
    pub fn discard(self) {
        // SAFETY: ours alone; nothing of a connection uses it any more.
        unsafe { ffi::apr_pool_destroy(self.raw.as_ptr()) };
    }

    /// Ends everything in it and makes it ready for the next connection.
    pub(super) fn clear(self) -> Self {
        // SAFETY: ours alone; cleanups run now.
        unsafe { ffi::apr_pool_clear(self.raw.as_ptr()) };
        self
    }
}

/// Whether idle pools may be kept without a bound (`MaxMemFree` is not set).
pub fn keeps_all_memory() -> bool {
    // SAFETY: reads a variable of httpd's.
    unsafe { ffi::ap_max_mem_free == ffi::APR_ALLOCATOR_MAX_FREE_UNLIMITED }
}

/// A socket that was accepted just now.
#[derive(Debug)]
pub struct Accepted {
    pub(super) pool: TransactionPool,
    pub(super) socket: *mut ffi::apr_socket_t,
}

impl Accepted {
    pub(super) fn new(pool: TransactionPool, socket: *mut ffi::apr_socket_t) -> Self {
        Self { pool, socket }
    }

    /// Closes it without a word.
    pub fn close(self) -> TransactionPool {
        // SAFETY: ours alone; the socket lives in the pool.
        unsafe { ffi::apr_socket_close(self.socket) };
        self.pool.clear()
    }
}
