//! The worker's own filters in place of httpd's protocol and network filters.
//!
//! Runs in: worker.  Trusts: httpd.  Owns: nothing.
//! Never: touches a filter's function outside a worker process, where httpd's own would be needed.

use super::RequestRec;
use crate::apr::brigade::{Brigade, Status};
use crate::ffi;
use once_cell::sync::OnceCell;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

/// Under these names the entry layer registers the functions.
pub const NETWORK: &std::ffi::CStr = c"POOL_NET";
pub const HEADER: &std::ffi::CStr = c"POOL_HDR";
pub const INPUT: &std::ffi::CStr = c"POOL_IN";

/// A filter in a chain, during its call.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'f> {
    raw: NonNull<ffi::ap_filter_t>,
    life: PhantomData<&'f ffi::ap_filter_t>,
}

impl<'f> Filter<'f> {
    /// # Safety
    /// `raw` is a filter that is being called, and stays in its chain during `'f` unless [`remove`](Self::remove) is
    /// called.
    pub unsafe fn from_raw(raw: *mut ffi::ap_filter_t) -> Self {
        Self { raw: NonNull::new(raw).expect("httpd passes a filter"), life: PhantomData }
    }

    /// The request whose filter it is; only for filters of a request.
    pub fn request(self) -> RequestRec<'f> {
        // SAFETY: a protocol filter has a request, which lives while its filters run.
        unsafe { RequestRec::from_raw((*self.raw.as_ptr()).r) }
    }

    /// Hands what is left to the next filter.
    pub fn pass(self, brigade: Brigade<'_>) -> Result<(), Status> {
        // SAFETY: the next filter of a live chain, or null, for which ap_pass_brigade has an answer.
        unsafe { brigade.pass((*self.raw.as_ptr()).next) }
    }

    /// Takes itself out of the chain of output filters.
    pub fn remove(self) {
        // SAFETY: a live output filter; its memory stays, it is the request's pool's.
        unsafe { ffi::ap_remove_output_filter(self.raw.as_ptr()) };
    }
}

/// Registers the three functions, so that [`install`] finds them. Called while the configuration is read.
pub fn register(network: ffi::ap_out_filter_func, header: ffi::ap_out_filter_func, input: ffi::ap_in_filter_func) {
    // SAFETY: names are static; the functions stay mapped (the module is linked with -z nodelete).
    unsafe {
        ffi::ap_register_output_filter(NETWORK.as_ptr(), network, None, ffi::ap_filter_type_AP_FTYPE_NETWORK);
        ffi::ap_register_output_filter(HEADER.as_ptr(), header, None, ffi::ap_filter_type_AP_FTYPE_PROTOCOL);
        ffi::ap_register_input_filter(INPUT.as_ptr(), input, None, ffi::ap_filter_type_AP_FTYPE_PROTOCOL);
    }
}

/// Puts the worker's functions behind httpd's own `HTTP_HEADER` and `HTTP_IN`, so that whoever looks for those by
/// their handle (`ap_die`, mod_proxy) finds them where they were. Answers false when a filter is missing.
pub fn install() -> bool {
    // SAFETY: lookups by static names answer null or a filter record that lives as long as the process.
    let (header, input) =
        unsafe { (ffi::ap_get_output_filter_handle(HEADER.as_ptr()), ffi::ap_get_input_filter_handle(INPUT.as_ptr())) };
    // SAFETY: httpd's own records, registered by the core before any configuration is read.
    let (http_header, http_in) = unsafe { (ffi::ap_http_header_filter_handle, ffi::ap_http_input_filter_handle) };
    if header.is_null() || input.is_null() || http_header.is_null() || http_in.is_null() || network().is_null() {
        return false;
    }
    // SAFETY: all four are live records (checked above), and this process has one thread.
    unsafe {
        if let Some(own) = (*http_in).filter_func.in_func {
            HTTP_INPUT.get_or_init(|| own);
        }
        (*http_header).filter_func = (*header).filter_func;
        (*http_in).filter_func = (*input).filter_func;
    }
    true
}

type InputFilter = unsafe extern "C" fn(
    *mut ffi::ap_filter_t,
    *mut ffi::apr_bucket_brigade,
    ffi::ap_input_mode_t,
    ffi::apr_read_type_e,
    ffi::apr_off_t,
) -> ffi::apr_status_t;

/// httpd's own function behind `HTTP_IN`.
static HTTP_INPUT: OnceCell<InputFilter> = OnceCell::new();

impl Filter<'_> {
    /// httpd's own body filter, where this one is in the chain of another connection than the client's: mod_proxy
    /// reads the answers of its backends through it.
    pub fn foreign_input(self) -> Option<InputFilter> {
        let own = super::rebuild::with_current(|r| r.connection_ptr());
        // SAFETY: a filter that is being called has a live connection.
        let here = unsafe { (*self.raw.as_ptr()).c };
        HTTP_INPUT.get().copied().filter(|_| own != Some(here))
    }
}

fn network() -> *mut ffi::ap_filter_rec_t {
    // SAFETY: a lookup by a static name; null when it is not registered.
    unsafe { ffi::ap_get_output_filter_handle(NETWORK.as_ptr()) }
}

/// Puts the network filter at the end of a connection's output.
pub fn add_network(connection: &super::rebuild::Connection) {
    // SAFETY: a live connection; the record was found by `install` before the first request.
    unsafe {
        ffi::ap_add_output_filter_handle(network(), ptr::null_mut(), ptr::null_mut(), connection.as_ptr());
    }
}

/// What a reader asks the input filter for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMode {
    /// At most so many bytes.
    Bytes(usize),
    /// As `Bytes`, but they stay unread.
    Speculative(usize),
    /// Up to and with the next line feed.
    Line,
    /// All there is.
    Exhaustive,
    /// Nothing that concerns a body.
    Other,
}

impl ReadMode {
    pub fn from_raw(mode: ffi::ap_input_mode_t, bytes: ffi::apr_off_t) -> Self {
        let bytes = usize::try_from(bytes).unwrap_or(0);
        match mode {
            ffi::ap_input_mode_t_AP_MODE_READBYTES => Self::Bytes(bytes),
            ffi::ap_input_mode_t_AP_MODE_SPECULATIVE => Self::Speculative(bytes),
            ffi::ap_input_mode_t_AP_MODE_GETLINE => Self::Line,
            ffi::ap_input_mode_t_AP_MODE_EXHAUSTIVE => Self::Exhaustive,
            _ => Self::Other,
        }
    }
}

/// Sends an error down the request's output filters, as `ap_http_filter` does when the body is bad; the header filter
/// answers the client, and the reader gets the status back.
pub fn answer_bad_body(r: RequestRec<'_>, status: i32) -> Status {
    // SAFETY: a live request's pool and allocator.
    let raw = unsafe { ffi::apr_brigade_create((*r.as_ptr()).pool, (*(*r.as_ptr()).connection).bucket_alloc) };
    // SAFETY: made just now, only ours.
    let mut brigade = unsafe { Brigade::from_raw(raw) };
    brigade.push_error(status, r.pool());
    brigade.push_end();
    // SAFETY: the request's own chain of output filters.
    match unsafe { brigade.pass((*r.as_ptr()).output_filters) } {
        Ok(()) => Status::GENERAL,
        Err(status) => status,
    }
}
