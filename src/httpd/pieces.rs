//! A large response head on its way to the client, in pieces: httpd passes a head on as a whole, and its core waits for
//! the client where that is more than it keeps.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: httpd.  Owns: what has not been passed on yet.
//! Never: keeps anything where somebody else passes on a response of the same request.

use super::RequestRec;
use crate::ffi;
use std::cell::Cell;
use std::ffi::CStr;
use std::ptr::{self, NonNull};

/// Under this name the entry layer registers the function.
const NAME: &CStr = c"POOL_PIECES";
/// Behind httpd's own filters of the protocol, before those of the connection.
const KIND: u32 = ffi::ap_filter_type_AP_FTYPE_CONNECTION - 1;

/// What the filter has, in the request's pool. Cells, as one thread has the request at a time.
#[derive(Debug)]
struct Kept {
    brigade: Cell<*mut ffi::apr_bucket_brigade>,
    /// Only used while a piece is split off.
    spare: *mut ffi::apr_bucket_brigade,
    /// Bytes that may be passed on before the rest is kept; none outside of the calls of [`Pieces`].
    room: Cell<Option<usize>>,
    /// The head has come.
    began: Cell<bool>,
}

/// The filter of one request.
#[derive(Debug)]
pub struct Pieces<'r> {
    filter: NonNull<ffi::ap_filter_t>,
    kept: &'r Kept,
}

/// Registers the function, which calls [`take`]. Called while modules are loaded.
pub fn register(function: ffi::ap_out_filter_func) {
    // SAFETY: the name is static; the function stays mapped (the module is linked with -z nodelete).
    unsafe { ffi::ap_register_output_filter(NAME.as_ptr(), function, None, KIND) };
}

impl<'r> Pieces<'r> {
    /// Puts the filter behind those that make the head.
    pub fn of(r: RequestRec<'r>) -> Option<Self> {
        // SAFETY: a live request of this thread; brigades and record live in its pool, as the filter does.
        unsafe {
            let rec = r.as_ptr();
            let alloc = (*(*rec).connection).bucket_alloc;
            let kept: &'r Kept = r.pool().place(Kept {
                brigade: Cell::new(ffi::apr_brigade_create((*rec).pool, alloc)),
                spare: ffi::apr_brigade_create((*rec).pool, alloc),
                room: Cell::default(),
                began: Cell::default(),
            });
            let context = ptr::from_ref(kept).cast_mut().cast();
            let filter = ffi::ap_add_output_filter(NAME.as_ptr(), context, rec, (*rec).connection);
            Some(Self { filter: NonNull::new(filter)?, kept })
        }
    }

    /// The head was passed on, or is kept.
    pub fn has_begun(&self) -> bool {
        self.kept.began.get()
    }

    /// The head was passed on, as far as it can be.
    pub fn begin(&self) {
        self.kept.began.set(true);
    }

    /// Something is kept.
    pub fn holds(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Until [`let_through`](Self::let_through) so much is passed on, and the rest kept.
    pub fn limit(&self, room: usize) {
        self.kept.room.set(Some(if self.holds() { 0 } else { room }));
    }

    /// Whatever comes is passed on from now on, with what is kept.
    pub fn let_through(&self) {
        self.kept.room.set(None);
    }

    /// Passes so much of it on.
    pub fn pass(&self, room: usize) -> ffi::apr_status_t {
        // SAFETY: the filter is in the chain of a live request, which this thread has.
        unsafe { self.kept.pass_some(self.filter.as_ptr(), room).1 }
    }

    /// Nothing of it is passed on any more.
    pub fn drop_kept(&self) {
        // SAFETY: the brigade lives in the request's pool.
        unsafe { ffi::apr_brigade_cleanup(self.kept.brigade.get().cast()) };
    }
}

impl Kept {
    fn is_empty(&self) -> bool {
        // SAFETY: the brigade lives in the request's pool, as this does.
        unsafe { ffi::pool_shim_brigade_first(self.brigade.get()).is_null() }
    }

    /// Passes on so much of what is kept: all, with files and marks, where no more is in memory. Says how many bytes of
    /// memory that were, and what the next filter said.
    ///
    /// # Safety
    /// `filter` is the one that this belongs to, in the chain of a live request of this thread.
    unsafe fn pass_some(&self, filter: *mut ffi::ap_filter_t, room: usize) -> (usize, ffi::apr_status_t) {
        let brigade = self.brigade.get();
        // SAFETY: the caller's promise; both brigades live in the request's pool. The point of the split is in `brigade`.
        unsafe {
            let all = bytes_in_memory(brigade);
            if all > room {
                let mut behind = ptr::null_mut();
                let point = ffi::apr_off_t::try_from(room).unwrap_or(ffi::apr_off_t::MAX);
                let rc = ffi::apr_brigade_partition(brigade, point, &raw mut behind);
                if rc != 0 {
                    return (0, rc);
                }
                ffi::apr_brigade_split_ex(brigade, behind, self.spare);
            }
            let rc = ffi::ap_pass_brigade((*filter).next, brigade);
            ffi::apr_brigade_cleanup(brigade.cast());
            ffi::pool_shim_brigade_concat(brigade, self.spare);
            (all.min(room), rc)
        }
    }
}

/// Bytes of a brigade that the core would have in memory, up to the first file.
///
/// # Safety
/// `brigade` is live, and nobody changes it meanwhile.
unsafe fn bytes_in_memory(brigade: *mut ffi::apr_bucket_brigade) -> usize {
    let mut bytes: usize = 0;
    // SAFETY: the caller's promise; null is the end.
    unsafe {
        let mut at = ffi::pool_shim_brigade_first(brigade);
        while !at.is_null() && ffi::pool_shim_bucket_kind(at).cast_unsigned() != ffi::POOL_BUCKET_FILE {
            // The length of a pipe's bucket is not known: the greatest number stands for it.
            bytes = bytes.saturating_add((*at).length);
            at = ffi::pool_shim_bucket_next(brigade, at);
        }
    }
    bytes
}

/// What the filter does with a brigade.
///
/// # Safety
/// As httpd calls an output filter: it is in the chain of a live request of this thread; the brigade is handed over.
pub unsafe fn take(filter: *mut ffi::ap_filter_t, brigade: *mut ffi::apr_bucket_brigade) -> ffi::apr_status_t {
    // SAFETY: the caller's promise; the record is the one that `of` gave the filter, in the request's pool.
    unsafe {
        let kept = &*(*filter).ctx.cast::<Kept>();
        kept.began.set(true);
        let Some(room) = kept.room.get() else {
            if kept.is_empty() {
                return ffi::ap_pass_brigade((*filter).next, brigade);
            }
            ffi::pool_shim_brigade_concat(kept.brigade.get(), brigade);
            return kept.pass_some(filter, usize::MAX).1;
        };
        let bytes = bytes_in_memory(brigade);
        if kept.is_empty() && bytes <= room {
            kept.room.set(Some(room - bytes));
            return ffi::ap_pass_brigade((*filter).next, brigade);
        }
        // What is only lent for the call is copied.
        let (mut before, mut new) = (kept.brigade.get(), brigade);
        let rc = ffi::ap_save_brigade(filter, &raw mut before, &raw mut new, (*(*filter).r).pool);
        kept.brigade.set(before);
        if rc != 0 || room == 0 {
            return rc;
        }
        let (passed, rc) = kept.pass_some(filter, room);
        kept.room.set(Some(room - passed));
        rc
    }
}
