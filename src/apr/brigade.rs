//! Brigades and buckets: what httpd's filters pass to each other.
//!
//! Runs in: worker; the one thread that runs the filters.  Trusts: the caller of `from_raw`.
//! Owns: nothing; the filter that was called owns the brigade.  Never: maps a file into memory, keeps a bucket.

use crate::ffi;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

/// A status of APR's or of a filter that is not success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub i32);

impl Status {
    pub const AGAIN: Self = Self(ffi::APR_EAGAIN.cast_signed());
    pub const INCOMPLETE: Self = Self(ffi::APR_INCOMPLETE.cast_signed());
    pub const TIMED_OUT: Self = Self(ffi::APR_TIMEUP.cast_signed());
    pub const NOT_IMPLEMENTED: Self = Self(ffi::APR_ENOTIMPL.cast_signed());
    pub const GENERAL: Self = Self(ffi::APR_EGENERAL.cast_signed());
    /// The client has gone away (what the core filter says after a failed write).
    pub const ABORTED: Self = Self(ffi::APR_ECONNABORTED.cast_signed());
    /// The error has been answered already by the filter that found it.
    pub const FILTER_ERROR: Self = Self(ffi::AP_FILTER_ERROR);
}

/// 0 for success, as C wants it.
pub fn code(result: Result<(), Status>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(Status(code)) => code,
    }
}

fn check(code: i32) -> Result<(), Status> {
    if code == 0 {
        Ok(())
    } else {
        Err(Status(code))
    }
}

/// What a bucket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Data,
    File,
    EndOfStream,
    EndOfRequest,
    EndOfConnection,
    Flush,
    /// A filter found an error; the HTTP status.
    Error(i32),
    Other,
}

/// A piece of an open file.
#[derive(Debug, Clone, Copy)]
pub struct FilePiece<'b> {
    pub fd: BorrowedFd<'b>,
    pub offset: u64,
    pub length: u64,
}

/// A brigade that the caller may take apart during `'b`.
#[derive(Debug)]
pub struct Brigade<'b> {
    raw: NonNull<ffi::apr_bucket_brigade>,
    life: PhantomData<&'b mut ffi::apr_bucket_brigade>,
}

/// A bucket of a brigade that is not changed meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Bucket<'a> {
    raw: NonNull<ffi::apr_bucket>,
    life: PhantomData<&'a ffi::apr_bucket>,
}

impl<'b> Brigade<'b> {
    /// # Safety
    /// `raw` is a live brigade that only the caller uses during `'b`.
    pub unsafe fn from_raw(raw: *mut ffi::apr_bucket_brigade) -> Self {
        Self { raw: NonNull::new(raw).expect("httpd passes a brigade"), life: PhantomData }
    }

    pub fn as_ptr(&self) -> *mut ffi::apr_bucket_brigade {
        self.raw.as_ptr()
    }

    fn allocator(&self) -> *mut ffi::apr_bucket_alloc_t {
        // SAFETY: the brigade is live (from_raw).
        unsafe { (*self.as_ptr()).bucket_alloc }
    }

    pub fn first(&self) -> Option<Bucket<'_>> {
        // SAFETY: the brigade is live; the shim answers null when it is empty.
        let raw = unsafe { ffi::pool_shim_brigade_first(self.as_ptr()) };
        Some(Bucket { raw: NonNull::new(raw)?, life: PhantomData })
    }

    /// Destroys the first bucket. The end of a request takes the request and its pool with it.
    pub fn delete_first(&mut self) {
        if let Some(bucket) = self.first() {
            // SAFETY: the first bucket of this brigade; `&mut self` says that nobody borrows from it.
            unsafe { ffi::pool_shim_bucket_delete(bucket.raw.as_ptr()) };
        }
    }

    /// The kinds of all buckets, in order.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        let mut at = self.first();
        std::iter::from_fn(move || {
            let this = at?;
            // SAFETY: `this` is a bucket of this brigade, which nobody changes while it is borrowed.
            let next = unsafe { ffi::pool_shim_bucket_next(self.as_ptr(), this.raw.as_ptr()) };
            at = NonNull::new(next).map(|raw| Bucket { raw, life: PhantomData });
            Some(this.kind())
        })
    }

    /// Destroys all buckets.
    pub fn clear(&mut self) {
        // SAFETY: the brigade is live; apr_brigade_cleanup takes it as its argument.
        unsafe { ffi::apr_brigade_cleanup(self.as_ptr().cast()) };
    }

    /// Appends a copy of `bytes`.
    pub fn push_copy(&mut self, bytes: &[u8]) {
        // SAFETY: without a free function the bucket copies the bytes into memory of the allocator.
        let bucket = unsafe { ffi::apr_bucket_heap_create(bytes.as_ptr().cast(), bytes.len(), None, self.allocator()) };
        // SAFETY: a new bucket, in no brigade yet.
        unsafe { ffi::pool_shim_brigade_insert_tail(self.as_ptr(), bucket) };
    }

    /// Appends the end of the stream.
    pub fn push_end(&mut self) {
        // SAFETY: the allocator of a live brigade is live.
        let bucket = unsafe { ffi::apr_bucket_eos_create(self.allocator()) };
        // SAFETY: a new bucket, in no brigade yet.
        unsafe { ffi::pool_shim_brigade_insert_tail(self.as_ptr(), bucket) };
    }

    /// Appends an error for the header filter to answer with this HTTP status.
    pub fn push_error(&mut self, status: i32, pool: crate::apr::AprPool<'_>) {
        // SAFETY: no text is given; the pool outlives the bucket, it is the request's.
        let bucket = unsafe { ffi::ap_bucket_error_create(status, std::ptr::null(), pool.as_ptr(), self.allocator()) };
        // SAFETY: a new bucket, in no brigade yet.
        unsafe { ffi::pool_shim_brigade_insert_tail(self.as_ptr(), bucket) };
    }

    /// Passes the brigade to the next filter, or to the first of a chain.
    ///
    /// # Safety
    /// `next` is null or a live filter of an output chain.
    pub unsafe fn pass(self, next: *mut ffi::ap_filter_t) -> Result<(), Status> {
        // SAFETY: the caller's promise; the brigade is live.
        check(unsafe { ffi::ap_pass_brigade(next, self.as_ptr()) })
    }
}

impl<'a> Bucket<'a> {
    pub fn kind(self) -> Kind {
        // SAFETY: a live bucket (type's contract).
        let kind = unsafe { ffi::pool_shim_bucket_kind(self.raw.as_ptr()) };
        match kind.cast_unsigned() {
            ffi::POOL_BUCKET_DATA => Kind::Data,
            ffi::POOL_BUCKET_FILE => Kind::File,
            ffi::POOL_BUCKET_EOS => Kind::EndOfStream,
            ffi::POOL_BUCKET_EOR => Kind::EndOfRequest,
            ffi::POOL_BUCKET_EOC => Kind::EndOfConnection,
            ffi::POOL_BUCKET_FLUSH => Kind::Flush,
            // SAFETY: the shim said that it is an ERROR bucket.
            ffi::POOL_BUCKET_ERROR => Kind::Error(unsafe { ffi::pool_shim_bucket_error_status(self.raw.as_ptr()) }),
            _ => Kind::Other,
        }
    }

    /// The bucket's bytes; a bucket of unknown length turns into one that holds them, with the rest behind it.
    /// With `wait` false, [`Status::AGAIN`] says that nothing is there yet.
    pub fn read(self, wait: bool) -> Result<&'a [u8], Status> {
        let mut data = std::ptr::null();
        let mut len = 0;
        let how = if wait { ffi::apr_read_type_e_APR_BLOCK_READ } else { ffi::apr_read_type_e_APR_NONBLOCK_READ };
        // SAFETY: a live bucket; both results are written on success.
        check(unsafe { ffi::pool_shim_bucket_read(self.raw.as_ptr(), &raw mut data, &raw mut len, how) })?;
        if len == 0 || data.is_null() {
            return Ok(&[]);
        }
        // SAFETY: the bytes live as long as the bucket, which nobody destroys during 'a.
        Ok(unsafe { std::slice::from_raw_parts(data.cast(), len) })
    }

    /// Descriptor, place and length of a file bucket.
    pub fn file(self) -> Option<FilePiece<'a>> {
        if self.kind() != Kind::File {
            return None;
        }
        // SAFETY: the kind was checked above.
        let file = unsafe { ffi::pool_shim_bucket_file(self.raw.as_ptr()) };
        let mut fd: ffi::apr_os_file_t = -1;
        // SAFETY: the file of a live bucket is open.
        if unsafe { ffi::apr_os_file_get(&raw mut fd, file) } != 0 || fd < 0 {
            return None;
        }
        // SAFETY: start and length are plain fields of a live bucket.
        let (start, length) = unsafe { ((*self.raw.as_ptr()).start, (*self.raw.as_ptr()).length) };
        Some(FilePiece {
            // SAFETY: the bucket keeps its file open during 'a.
            fd: unsafe { BorrowedFd::borrow_raw(fd) },
            offset: u64::try_from(start).ok()?,
            length: u64::try_from(length).ok()?,
        })
    }
}
