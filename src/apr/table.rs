//! httpd's tables of strings: headers, environment, notes.
//!
//! Runs in: every process httpd is in.  Trusts: the caller of `from_raw`.  Owns: nothing.
//! Never: keeps an entry's bytes longer than the table's pool.

use super::pool::{bytes, AprPool};
use crate::ffi;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// A table, as long as its pool lives. Names compare without case.
#[derive(Debug, Clone, Copy)]
pub struct Table<'p> {
    raw: NonNull<ffi::apr_table_t>,
    life: PhantomData<&'p ffi::apr_table_t>,
}

impl<'p> Table<'p> {
    /// # Safety
    /// `raw` is a live table whose pool lives during `'p`, used by one thread at a time.
    pub unsafe fn from_raw(raw: *mut ffi::apr_table_t) -> Self {
        let raw = NonNull::new(raw).expect("httpd makes the tables of a request when it makes the request");
        Self { raw, life: PhantomData }
    }

    /// A new, empty table.
    pub fn new(pool: AprPool<'p>, entries: i32) -> Self {
        // SAFETY: the pool is live; apr_table_make does not return null (out of memory ends the process).
        unsafe { Self::from_raw(ffi::apr_table_make(pool.as_ptr(), entries)) }
    }

    pub fn as_ptr(self) -> *mut ffi::apr_table_t {
        self.raw.as_ptr()
    }

    /// The first value under this name.
    pub fn get(self, name: &CStr) -> Option<&'p [u8]> {
        // SAFETY: both pointers are live C data.
        let value = unsafe { ffi::apr_table_get(self.as_ptr(), name.as_ptr()) };
        if value.is_null() {
            return None;
        }
        // SAFETY: a table's values are NUL-terminated and live as long as its pool.
        Some(unsafe { bytes(value) })
    }

    /// Replaces every value under this name; copies both into the table's pool.
    pub fn set(self, name: &CStr, value: &CStr) {
        // SAFETY: apr_table_set copies both strings.
        unsafe { ffi::apr_table_set(self.as_ptr(), name.as_ptr(), value.as_ptr()) };
    }

    /// As [`set`](Self::set), with strings that live in the table's own pool already.
    pub fn setn(self, name: &'p CStr, value: &'p CStr) {
        // SAFETY: both strings live as long as the table's pool.
        unsafe { ffi::apr_table_setn(self.as_ptr(), name.as_ptr(), value.as_ptr()) };
    }

    /// Adds a value, beside others under the same name; strings as in [`setn`](Self::setn).
    pub fn addn(self, name: &'p CStr, value: &'p CStr) {
        // SAFETY: both strings live as long as the table's pool.
        unsafe { ffi::apr_table_addn(self.as_ptr(), name.as_ptr(), value.as_ptr()) };
    }

    pub fn unset(self, name: &CStr) {
        // SAFETY: both pointers are live C data.
        unsafe { ffi::apr_table_unset(self.as_ptr(), name.as_ptr()) };
    }

    pub fn clear(self) {
        // SAFETY: the table is live.
        unsafe { ffi::apr_table_clear(self.as_ptr()) };
    }

    /// A copy in this pool, with the same strings.
    pub fn copy_to<'q>(self, pool: AprPool<'q>) -> Table<'q>
    where
        'p: 'q,
    {
        // SAFETY: pool and table are live; the strings live as long as this table's pool, which is longer.
        unsafe { Table::from_raw(ffi::apr_table_copy(pool.as_ptr(), self.as_ptr())) }
    }

    /// Replaces all entries by those of another table of the same pool.
    pub fn become_copy_of(self, other: Table<'p>) {
        self.clear();
        for entry in other.entries() {
            // SAFETY: both strings live as long as the pool of both tables.
            unsafe { ffi::apr_table_addn(self.as_ptr(), entry.key, entry.val) };
        }
    }

    pub fn len(self) -> usize {
        self.entries().len()
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    fn entries(self) -> &'p [ffi::apr_table_entry_t] {
        // SAFETY: the table is live; its elements are an array header that lives as long.
        let array = unsafe { &*ffi::apr_table_elts(self.as_ptr()) };
        let Ok(n) = usize::try_from(array.nelts) else { return &[] };
        if n == 0 {
            return &[];
        }
        // SAFETY: `elts` holds `nelts` entries. A caller that changes the table while it iterates may see old ones,
        // which the pool keeps.
        unsafe { std::slice::from_raw_parts(array.elts.cast(), n) }
    }

    /// Name and value of each entry, in order. Entries without a value are left out, as httpd leaves them out.
    pub fn iter(self) -> impl Iterator<Item = (&'p [u8], &'p [u8])> {
        self.entries().iter().filter(|e| !e.key.is_null() && !e.val.is_null()).map(|e| {
            // SAFETY: keys and values of a table are NUL-terminated and live as long as its pool.
            unsafe { (bytes(e.key), bytes(e.val)) }
        })
    }
}
