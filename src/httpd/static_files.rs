//! `AssignServerPool none static`: the frontend serves plain files, and nothing in them or beside them tells it what to do.
//!
//! The directory may be a tenant's. So no `.htaccess` is read, no handler but httpd's default one runs, no filter makes
//! content of a file, and no link leads to a file of another owner.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: the server's own configuration.  Owns: nothing.
//! Never: sends the text of what the configuration wants run.

use super::{hooks, log, RequestRec};
use crate::apr::pool::bytes;
use crate::ffi;
use crate::sys::{image, trusted_open};
use once_cell::sync::OnceCell;
use std::cell::RefCell;
use std::ffi::{c_int, c_void, CStr, CString, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The note that marks a request. What translate_name has found holds for all that follows: httpd forgets the section
/// that said so while it looks for the file.
const NOTE: &CStr = c"pool-static";

/// Types by which httpd's modules know what they are to run or to read as their own.
const MEANS_A_HANDLER: [&[u8]; 5] =
    [b"application/x-httpd-", b"httpd/", b"application/x-type-map", b"text/x-server-parsed-html", b"magic"];

/// Whose filters make content of what a file says. By file: filters have names of the administrator's choice.
const MAKES_CONTENT: [&str; 5] = ["mod_include", "mod_ext_filter", "mod_lua", "mod_perl", "libphp"];
const HARNESS: &str = "mod_filter";

/// As if there were none.
pub const NO_HTACCESS: ffi::apr_status_t = 2; // ENOENT

/// The request is to be served so, whatever the file.
pub fn mark(r: RequestRec<'_>) {
    r.note(NOTE, b"1");
}

/// Marked, or a subrequest of one that is.
pub fn is_marked(r: RequestRec<'_>) -> bool {
    let mut at = r;
    loop {
        if at.notes().get(NOTE).is_some() {
            return true;
        }
        // SAFETY: the chain of a live request: each lives longer than its subrequests.
        let above = unsafe { (*at.as_ptr()).main };
        if above.is_null() {
            return false;
        }
        // SAFETY: as before; this thread has them all.
        at = unsafe { RequestRec::from_raw(above) };
    }
}

/// The handler of a marked request.
pub fn serve(r: RequestRec<'_>) -> c_int {
    // What ProxyPass or a rule of the server's maps is no file.
    if r.is_proxied() {
        return ffi::HOOK_DECLINED;
    }
    if let Some(handler) = foreign_handler(r) {
        let handler = String::from_utf8_lossy(handler);
        return refuse(r, &format!("the configuration has a handler for it ({handler}), which does not run here"));
    }
    // SAFETY: the request is live.
    let kind = unsafe { (*r.as_ptr()).finfo.filetype };
    if kind == ffi::apr_filetype_e_APR_DIR {
        return refuse(r, "it is a directory without index, and is not listed here");
    }
    remove_filters(r);
    if kind == ffi::apr_filetype_e_APR_NOFILE {
        return default_handler(r);
    }
    match trusted_open::open_trusted(Path::new(OsStr::from_bytes(r.filename()))) {
        Ok(file) => send(r, &file),
        Err(e) if e.raw_os_error() == Some(1) => refuse(r, "a symbolic link leads to a file of another owner"),
        Err(e) => refuse(r, &format!("it cannot be opened as a plain file: {e}")),
    }
}

fn refuse(r: RequestRec<'_>, why: &str) -> c_int {
    let file = String::from_utf8_lossy(r.filename());
    let text = format!(
        "POOL130: {file}: {why} (AssignServerPool none static): assign the URL to a pool if it is to be served"
    );
    log::request(log::Level::Error, r, text);
    ffi::HTTP_FORBIDDEN.cast_signed()
}

/// httpd's own handler, on the file that was opened: by its path it might be another one by now.
fn send(r: RequestRec<'_>, file: &OwnedFd) -> c_int {
    let Ok(path) = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())) else { return 500 };
    let path = r.pool().copy(path.as_bytes());
    let rec = r.as_ptr();
    // SAFETY: the request is live; the path lives in its pool, and is that of an open file during the call.
    unsafe {
        let named = (*rec).filename;
        if ffi::apr_stat(&raw mut (*rec).finfo, path, ffi::APR_FINFO_MIN.cast_signed(), (*rec).pool) != 0 {
            return ffi::HTTP_FORBIDDEN.cast_signed();
        }
        (*rec).finfo.fname = named;
        (*rec).filename = path;
        let answer = default_handler(r);
        (*rec).filename = named;
        answer
    }
}

fn default_handler(r: RequestRec<'_>) -> c_int {
    type Handler = unsafe extern "C" fn(*mut ffi::request_rec) -> c_int;
    static FUNCTION: OnceCell<Option<Handler>> = OnceCell::new();
    let find = || {
        let function = hooks::handler.function_at("core.c", ffi::APR_HOOK_REALLY_LAST.cast_signed())?;
        // SAFETY: what is registered in this array takes a request and returns an int (http_config.h).
        Some(unsafe { std::mem::transmute::<*const c_void, Handler>(function) })
    };
    match FUNCTION.get_or_init(find) {
        // SAFETY: a live request, where httpd would call this function.
        Some(function) => unsafe { function(r.as_ptr()) },
        None => ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed(),
    }
}

/// The handler that something asks for: by name, or by a type that stands for one. httpd has put the type in the place
/// of a handler that nobody named.
fn foreign_handler(r: RequestRec<'_>) -> Option<&[u8]> {
    // SAFETY: null or a string that lives as long as the request.
    let content_type = unsafe { bytes((*r.as_ptr()).content_type) };
    let content_type = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
    let handler = r.handler();
    let by_type = handler.trim_ascii_end() == content_type;
    let plain = handler.is_empty()
        || handler == b"default-handler"
        // A directory is told of as such.
        || handler == ffi::DIR_MAGIC_TYPE.to_bytes_without_nul()
        || (by_type && !MEANS_A_HANDLER.iter().any(|start| starts_with(content_type, start)));
    (!plain).then_some(handler)
}

fn starts_with(text: &[u8], start: &[u8]) -> bool {
    text.get(..start.len()).is_some_and(|t| t.eq_ignore_ascii_case(start))
}

/// What a C string constant of bindgen's is, without its end.
trait WithoutNul {
    fn to_bytes_without_nul(&self) -> &[u8];
}

impl WithoutNul for [u8] {
    fn to_bytes_without_nul(&self) -> &[u8] {
        self.strip_suffix(b"\0").unwrap_or(self)
    }
}

fn remove_filters(r: RequestRec<'_>) {
    // SAFETY: the request is live, and so is its chain of filters.
    let mut at = unsafe { (*r.as_ptr()).output_filters };
    while !at.is_null() {
        // SAFETY: as before; a filter has a record.
        let (next, record) = unsafe { ((*at).next, &*(*at).frec) };
        if record.ftype < ffi::ap_filter_type_AP_FTYPE_CONNECTION && makes_content(record) {
            // SAFETY: a filter of the request's chain; it stays readable.
            unsafe { ffi::ap_remove_output_filter(at) };
        }
        at = next;
    }
}

fn makes_content(record: &ffi::ap_filter_rec_t) -> bool {
    // SAFETY: an output filter has this function; the name is a string.
    let (function, name) = unsafe { (record.filter_func.out_func, bytes(record.name)) };
    let Some(function) = function else { return false };
    match origin(function as *const () as usize) {
        Origin::Harmless => false,
        Origin::MakesContent => true,
        Origin::Harness => {
            // AddOutputFilterByType; what another harness leads to, is found out later only.
            let Some(provider) = name.get(7..).filter(|_| starts_with(name, b"bytype:")) else { return true };
            let Ok(provider) = CString::new(provider) else { return true };
            // SAFETY: a string; the answer is null or a record that lives as long as the configuration.
            let inner = unsafe { ffi::ap_get_output_filter_handle(provider.as_ptr()).as_ref() };
            // SAFETY: as above.
            let function = inner.and_then(|record| unsafe { record.filter_func.out_func });
            function.is_none_or(|f| !matches!(origin(f as *const () as usize), Origin::Harmless))
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Origin {
    Harmless,
    MakesContent,
    Harness,
}

/// Which module's file a function is in. Kept for each thread: there are some ten filters.
fn origin(function: usize) -> Origin {
    thread_local! {
        static KNOWN: RefCell<Vec<(usize, Origin)>> = const { RefCell::new(Vec::new()) };
    }
    KNOWN.with_borrow_mut(|known| {
        if let Some((_, origin)) = known.iter().find(|(f, _)| *f == function) {
            return *origin;
        }
        let file = image::file_of(function);
        let name = file.as_deref().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
        let begins = |start: &&str| name.as_ref().is_some_and(|n| n.starts_with(*start));
        let origin = if name.is_none() || MAKES_CONTENT.iter().any(begins) {
            Origin::MakesContent
        } else if begins(&HARNESS) {
            Origin::Harness
        } else {
            Origin::Harmless
        };
        known.push((function, origin));
        origin
    })
}
