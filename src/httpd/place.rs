//! Values that live as long as an APR pool; the one cleanup function that httpd calls.
//!
//! Runs in: every process httpd is in.  Trusts: APR.  Owns: nothing itself.  Never: outlives the pool.

use crate::ffi;
use std::os::raw::{c_char, c_int, c_void};

/// Moves `value` to where it stays until `pool` is cleared, which drops it.
///
/// # Safety
/// `pool` is a live APR pool, and only this thread uses it now.
pub unsafe fn place<T>(pool: *mut ffi::apr_pool_t, value: T) -> *mut T {
    let placed = Box::into_raw(Box::new(value));
    // SAFETY: the pool is live by this function's contract; `drop_placed::<T>` takes back exactly this allocation, once.
    unsafe {
        ffi::apr_pool_cleanup_register(
            pool,
            placed.cast::<c_void>(),
            Some(drop_placed::<T>),
            Some(ffi::apr_pool_cleanup_null),
        );
    }
    placed
}

unsafe extern "C" fn drop_placed<T>(placed: *mut c_void) -> c_int {
    let drop_it = || {
        // SAFETY: `place` registered this pointer, made by Box::into_raw from a T; APR runs a cleanup once.
        drop(unsafe { Box::from_raw(placed.cast::<T>()) });
        0
    };
    ffi::guard::guard(0, drop_it)
}

/// Copies a plain value into the pool's own memory: nothing runs when the pool is cleared.
///
/// # Safety
/// As of [`place`].
pub unsafe fn place_plain<T: Copy>(pool: *mut ffi::apr_pool_t, value: T) -> *mut T {
    const { assert!(align_of::<T>() <= 8, "APR aligns to 8") };
    // SAFETY: the pool is live; httpd's pools end the process when memory is short, so the answer is not NULL.
    let placed = unsafe { ffi::apr_palloc(pool, size_of::<T>()) }.cast::<T>();
    // SAFETY: size_of::<T>() bytes, aligned to 8, that nobody else has.
    unsafe { placed.write(value) };
    placed
}

/// Copies `text` into the pool, as C wants it. It is cut at a NUL byte.
///
/// # Safety
/// As of [`place`].
pub unsafe fn place_text(pool: *mut ffi::apr_pool_t, text: &str) -> *const c_char {
    // SAFETY: the pool is live, and `text` has `len` readable bytes; APR adds the NUL.
    unsafe { ffi::apr_pstrmemdup(pool, text.as_ptr().cast::<c_char>(), text.len()) }
}
