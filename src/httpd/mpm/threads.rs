//! Threads that httpd knows, and callbacks that modules want at a time.
//!
//! Runs in: frontend, where mod_pool is the MPM.  Trusts: httpd; modules, that their callbacks are right.
//! Owns: nothing.  Never: outlives the child's pool.

use crate::apr::AprPool;
use crate::ffi;
use crate::ffi::guard::guard_or_abort;
use std::ffi::{c_int, c_void};
use std::ptr;

/// A running thread, as modules see it in `c->current_thread`.
#[derive(Debug, Clone, Copy)]
pub struct Thread(*mut ffi::apr_thread_t);

impl Thread {
    pub(super) fn as_ptr(self) -> *mut ffi::apr_thread_t {
        self.0
    }
}

/// How to start threads: stack size (`ThreadStackSize`), joinable.
#[derive(Debug)]
pub struct Attributes<'p> {
    raw: *mut ffi::apr_threadattr_t,
    pool: AprPool<'p>,
}

/// A thread to wait for.
#[derive(Debug)]
pub struct Handle(*mut ffi::apr_thread_t);

/// A status of APR's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed(pub c_int);

type Body = Box<dyn FnOnce(Thread) + Send>;

unsafe extern "C" fn run(thread: *mut ffi::apr_thread_t, data: *mut c_void) -> *mut c_void {
    guard_or_abort(|| {
        // SAFETY: the box that `start` gave to this thread alone.
        let body = unsafe { Box::from_raw(data.cast::<Body>()) };
        body(Thread(thread));
    });
    ptr::null_mut()
}

impl<'p> Attributes<'p> {
    /// `Err` if `ThreadStackSize` is not possible here; the default holds then.
    pub fn new(pool: AprPool<'p>) -> (Self, Option<Failed>) {
        let mut raw = ptr::null_mut();
        // SAFETY: the pool is live; the call writes the pointer. The stack size is httpd's own variable.
        let rc = unsafe {
            ffi::apr_threadattr_create(&raw mut raw, pool.as_ptr());
            ffi::apr_threadattr_detach_set(raw, 0);
            match ffi::ap_thread_stacksize {
                0 => 0,
                size => ffi::apr_threadattr_stacksize_set(raw, size),
            }
        };
        (Self { raw, pool }, (rc != 0).then_some(Failed(rc)))
    }

    /// Starts a thread. A panic in it ends the process.
    pub fn start(&self, body: impl FnOnce(Thread) + Send + 'static) -> Result<Handle, Failed> {
        let body: Body = Box::new(body);
        let data = Box::into_raw(Box::new(body));
        let mut thread = ptr::null_mut();
        // SAFETY: attributes and pool are live; the thread takes the box.
        let rc = unsafe {
            ffi::pool_shim_thread_create(&raw mut thread, self.raw, Some(run), data.cast(), self.pool.as_ptr())
        };
        if rc != 0 {
            // SAFETY: no thread took it.
            drop(unsafe { Box::from_raw(data) });
            return Err(Failed(rc));
        }
        Ok(Handle(thread))
    }
}

impl Handle {
    /// Waits for its end.
    pub fn join(self) {
        let mut answer = 0;
        // SAFETY: joined once, as this takes the value.
        unsafe { ffi::apr_thread_join(&raw mut answer, self.0) };
    }
}

/// A module's function that is to be called at a time (`ap_mpm_register_timed_callback`).
#[derive(Debug, Clone, Copy)]
pub struct Callback {
    function: ffi::ap_mpm_callback_fn_t,
    data: *mut c_void,
}

// SAFETY: modules register them to be called on any thread (ap_mpm.h).
unsafe impl Send for Callback {}

impl Callback {
    /// # Safety
    /// What a module has registered.
    pub unsafe fn from_raw(function: ffi::ap_mpm_callback_fn_t, data: *mut c_void) -> Self {
        Self { function, data }
    }

    pub fn call(self) {
        if let Some(function) = self.function {
            // SAFETY: the module's promise, with from_raw.
            unsafe { function(self.data) };
        }
    }
}
