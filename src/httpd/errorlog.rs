//! What httpd's error_log hook tells of a line, and mod_pool's own item of `ErrorLogFormat`, `%w`: which pool's process
//! wrote the line that is being logged.
//!
//! Runs in: worker (hook), every process httpd is in (item).  Trusts: httpd.  Owns: the item's letter.
//! Never: logs itself.

use super::ServerRec;
use crate::apr::{pool::bytes, AprPool};
use crate::ffi;
use std::cell::Cell;
use std::ffi::{c_char, c_int, CStr};
use std::ptr;
use std::sync::OnceLock;

/// As `ErrorLogFormat` has it behind the `%`. httpd's own letters are aAeEFiklLmMnPtTvV.
const LETTER: &CStr = c"w";

/// A pool's process that writes a line.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'w> {
    pub pool: &'w str,
    pub pid: u32,
}

thread_local! {
    /// Of the line that this thread logs now; null for httpd's own lines.
    static WRITER: Cell<*const Writer<'static>> = const { Cell::new(ptr::null()) };
}

/// The function that stands for the item in httpd's formats.
pub type Item = unsafe extern "C" fn(*const ffi::ap_errorlog_info, *const c_char, *mut c_char, c_int) -> c_int;
static ITEM: OnceLock<Item> = OnceLock::new();

/// What an item shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// `%w`: `pool NAME pid N`.
    Both,
    /// `%{name}w`.
    Name,
    /// `%{pid}w`.
    Pid,
}

impl Shown {
    fn of(argument: &[u8]) -> Option<Self> {
        match argument {
            b"" => Some(Self::Both),
            b"name" => Some(Self::Name),
            b"pid" => Some(Self::Pid),
            _ => None,
        }
    }
}

/// Makes the item known to `ErrorLogFormat`.
///
/// # Safety
/// httpd asks for the hooks of the configuration whose pool this is.
pub unsafe fn register_item(pconf: AprPool<'_>, item: Item) {
    let item = *ITEM.get_or_init(|| item);
    // SAFETY: the caller's promise; httpd writes to no tag, and keeps it as long as the process: it is static data.
    unsafe { ffi::ap_register_errorlog_handler(pconf.as_ptr(), LETTER.as_ptr().cast_mut(), Some(item), 0) };
}

/// Runs `log`, which logs a line of `writer`.
pub fn written_by<T>(writer: &Writer<'_>, log: impl FnOnce() -> T) -> T {
    /// Also where `log` panics, nothing refers to `writer` any more.
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            WRITER.set(ptr::null());
        }
    }
    WRITER.set(ptr::from_ref(writer).cast());
    let _reset = Reset;
    log()
}

/// What the item shows in the line that this thread logs now. `None` where no pool's process wrote it.
pub fn item_text(argument: &[u8]) -> Option<String> {
    // SAFETY: null, or what `written_by` borrows until it returns, on this thread.
    let writer = unsafe { WRITER.get().as_ref() }?;
    Some(match Shown::of(argument)? {
        Shown::Both => format!("pool {} pid {}", writer.pool, writer.pid),
        Shown::Name => writer.pool.to_owned(),
        Shown::Pid => writer.pid.to_string(),
    })
}

/// Puts a text where httpd wants an item's. The length, without the NUL; what does not fit is cut off.
///
/// # Safety
/// `buf` has `len` bytes.
pub unsafe fn put_item(item: &str, buf: *mut c_char, len: c_int) -> c_int {
    let Some(room) = usize::try_from(len).ok().and_then(|n| n.checked_sub(1)) else { return 0 };
    let count = room.min(item.len());
    // SAFETY: the caller's promise; `count` and a NUL fit.
    unsafe {
        ptr::copy_nonoverlapping(item.as_ptr().cast(), buf, count);
        *buf.add(count) = 0;
    }
    c_int::try_from(count).unwrap_or(0)
}

/// Whether lines of this server tell by an item which pool they are from.
pub fn format_names_pool(server: ServerRec<'_>) -> bool {
    let [format, _, _] = formats(server);
    own_items(format).any(|argument| matches!(Shown::of(argument), Some(Shown::Both | Shown::Name)))
}

/// Looks through the formats of all servers: what is wrong with an item, and the remedy.
pub fn check_items(main: ServerRec<'_>) -> Result<(), String> {
    for server in main.iter() {
        let [format, connection, request] = formats(server);
        let lines = [connection, request].into_iter().flat_map(|lines| elements::<*mut ffi::apr_array_header_t>(lines));
        // SAFETY: null, or a format that httpd has read.
        let lines = lines.map(|line| unsafe { line.as_ref() });
        for argument in lines.chain([format]).flat_map(own_items) {
            if Shown::of(argument).is_none() {
                return Err(format!(
                    "ErrorLogFormat: %{{{}}}w: mod_pool knows %w, %{{name}}w and %{{pid}}w; write one of these",
                    String::from_utf8_lossy(argument)
                ));
            }
        }
    }
    Ok(())
}

/// `ErrorLogFormat`, and the lists of its additional lines for connections and for requests.
fn formats(server: ServerRec<'_>) -> [Option<&ffi::apr_array_header_t>; 3] {
    // SAFETY: a live server; what stands here for core is its own record, or null before it has one.
    let core = unsafe { ffi::ap_get_core_module_config((*server.as_ptr()).module_config) };
    // SAFETY: as above.
    let Some(core) = (unsafe { core.cast::<ffi::core_server_config>().as_ref() }) else { return [None; 3] };
    // SAFETY: null, or arrays of the configuration.
    [core.error_log_format, core.error_log_conn, core.error_log_req].map(|array| unsafe { array.as_ref() })
}

/// The elements of an array whose elements are of this type.
fn elements<T: Copy>(array: Option<&ffi::apr_array_header_t>) -> &[T] {
    let filled = array.filter(|a| !a.elts.is_null() && a.elt_size as usize == size_of::<T>());
    let Some((array, count)) = filled.and_then(|a| Some((a, usize::try_from(a.nelts).ok()?))) else { return &[] };
    // SAFETY: an array of the configuration, which does not change any more, has so many elements of this size.
    unsafe { std::slice::from_raw_parts(array.elts.cast(), count) }
}

/// The arguments of the own items in a format.
fn own_items(format: Option<&ffi::apr_array_header_t>) -> impl Iterator<Item = &[u8]> {
    let own = ITEM.get().copied();
    let is_own = move |item: &&ffi::ap_errorlog_format_item| match (item.func, own) {
        (Some(func), Some(own)) => ptr::fn_addr_eq(func, own),
        _ => false,
    };
    // SAFETY: null, or a string of the configuration.
    elements::<ffi::ap_errorlog_format_item>(format).iter().filter(is_own).map(|item| unsafe { bytes(item.arg) })
}

/// One line that httpd or a module logged.
#[derive(Debug, Clone, Copy)]
pub struct LogEvent<'e> {
    /// 0 (emerg) to 15 (trace8).
    pub level: u8,
    /// Source file name of the module that speaks; empty when unknown.
    pub module: &'e [u8],
    /// Without time, level, pid and client, escaped for a log file.
    pub text: &'e [u8],
    /// The APR status that it is about; 0 for none.
    pub status: i32,
    /// Source file that it comes from, as httpd prints it, and line there; empty and 0 when unknown.
    pub source: &'e [u8],
    pub source_line: u32,
    /// It is about a server, and so in that server's log; otherwise httpd writes it to standard error.
    pub has_server: bool,
}

impl<'e> LogEvent<'e> {
    /// # Safety
    /// Both are what httpd passed to the hook that is being called.
    pub unsafe fn from_raw(info: *const ffi::ap_errorlog_info, text: *const c_char) -> Self {
        // SAFETY: the caller's promise.
        let info = unsafe { &*info };
        Self {
            level: u8::try_from(info.level.clamp(0, 15)).unwrap_or(0),
            module: module_file_name(info.module_index),
            // SAFETY: the caller's promise.
            text: unsafe { bytes(text) },
            status: info.status,
            // SAFETY: null, or the name that the compiler put where the line is logged.
            source: base_name(unsafe { bytes(info.file) }),
            source_line: u32::try_from(info.line).unwrap_or(0),
            has_server: !info.s.is_null(),
        }
    }
}

/// httpd shows of an absolute path the file's name only.
fn base_name(file: &[u8]) -> &[u8] {
    match file.iter().rposition(|b| *b == b'/') {
        Some(slash) if file.starts_with(b"/") => &file[slash + 1..],
        _ => file,
    }
}

/// Name of the module with this index, as in its record.
fn module_file_name(index: i32) -> &'static [u8] {
    // SAFETY: httpd's list of modules, terminated by null, unchanged after the configuration was read.
    let mut at = unsafe { ffi::ap_top_module };
    while !at.is_null() {
        // SAFETY: not null, so a live module record; its name is static data of a loaded module.
        let (record, name) = unsafe { (&*at, bytes((*at).name)) };
        if record.module_index == index {
            return name;
        }
        at = record.next;
    }
    b""
}

/// "(13)Permission denied", as the error log shows a status.
pub fn status_text(status: i32) -> String {
    let mut buffer = [0 as c_char; 200];
    // SAFETY: writes at most the buffer's length, and ends the text with a NUL.
    unsafe { ffi::apr_strerror(status, buffer.as_mut_ptr(), buffer.len()) };
    // SAFETY: NUL-terminated by the call above.
    let text = unsafe { bytes(buffer.as_ptr()) };
    format!("({status}){}", String::from_utf8_lossy(text))
}
