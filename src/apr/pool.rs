//! A memory pool of httpd's.
//!
//! Runs in: every process httpd is in.  Trusts: the caller of `from_raw`.  Owns: nothing; httpd destroys its pools.
//! Never: outlives the pool (the lifetime says how long that is).

use crate::ffi;
use std::ffi::{c_char, c_void, CStr};
use std::marker::PhantomData;
use std::ptr::NonNull;

/// A pool that somebody else destroys, not before `'p` ends. Out of memory, httpd's pools end the process.
#[derive(Debug, Clone, Copy)]
pub struct AprPool<'p> {
    raw: NonNull<ffi::apr_pool_t>,
    life: PhantomData<&'p ffi::apr_pool_t>,
}

impl<'p> AprPool<'p> {
    /// # Safety
    /// `raw` is a live pool, is not destroyed or cleared during `'p`, and is used by one thread at a time.
    pub unsafe fn from_raw(raw: *mut ffi::apr_pool_t) -> Self {
        // A null pool is httpd's mistake and cannot be answered; it would be dereferenced by C at once.
        let raw = NonNull::new(raw).expect("httpd passes a pool");
        Self { raw, life: PhantomData }
    }

    pub fn as_ptr(self) -> *mut ffi::apr_pool_t {
        self.raw.as_ptr()
    }

    /// A copy of `bytes` with a NUL behind it. A NUL inside ends the string for C.
    pub fn copy(self, bytes: &[u8]) -> *mut c_char {
        // SAFETY: apr_pstrmemdup reads `len` bytes and writes a pool block of len + 1 bytes.
        unsafe { ffi::apr_pstrmemdup(self.as_ptr(), bytes.as_ptr().cast(), bytes.len()) }
    }

    /// As [`copy`](Self::copy), as a C string: cut at the first NUL byte.
    pub fn copy_str(self, bytes: &[u8]) -> &'p CStr {
        let copy = self.copy(bytes);
        // SAFETY: apr_pstrmemdup returned a NUL-terminated string that lives as long as the pool.
        unsafe { CStr::from_ptr(copy) }
    }

    /// Moves `value` into the pool; it is dropped when the pool is cleared or destroyed.
    pub fn place<T>(self, value: T) -> &'p T {
        // apr_palloc aligns to APR_ALIGN_DEFAULT's 8 bytes and no more.
        const { assert!(align_of::<T>() <= 8, "apr_palloc aligns to 8 bytes") };
        // SAFETY: apr_palloc returns at least one byte, aligned to 8, that lives as long as the pool.
        let place = unsafe { ffi::apr_palloc(self.as_ptr(), size_of::<T>().max(1)) }.cast::<T>();
        // SAFETY: `place` is fresh, large enough and aligned (checked above).
        unsafe { place.write(value) };
        // SAFETY: drop_placed::<T> takes exactly this pointer, once, when the pool ends.
        unsafe {
            ffi::apr_pool_cleanup_register(
                self.as_ptr(),
                place.cast_const().cast::<c_void>(),
                Some(drop_placed::<T>),
                Some(ffi::apr_pool_cleanup_null),
            );
        }
        // SAFETY: initialised above, and nothing writes to it before the pool ends.
        unsafe { &*place }
    }
}

/// Pool cleanup of [`AprPool::place`].
unsafe extern "C" fn drop_placed<T>(place: *mut c_void) -> ffi::apr_status_t {
    ffi::guard::guard(0, || {
        // SAFETY: registered by `place` with a pointer to an initialised T; APR runs a cleanup once.
        unsafe { std::ptr::drop_in_place(place.cast::<T>()) };
        0
    })
}

/// The bytes of a C string; empty for a null pointer.
///
/// # Safety
/// `s` is null or a NUL-terminated string that does not change during `'a`.
pub unsafe fn bytes<'a>(s: *const c_char) -> &'a [u8] {
    if s.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(s) }.to_bytes()
}
