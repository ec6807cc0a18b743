//! Lines for httpd's error log, under the name of this module.
//!
//! Runs in: every process httpd is in.  Trusts: nothing; texts are escaped by httpd.  Owns: nothing.
//! Never: formats (a text is never a format string).

use super::errorlog::{self, Writer};
use super::{RequestRec, ServerRec};
use crate::ffi;
use std::ffi::CString;
use std::ptr;

/// httpd's levels, as `LogLevel` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    Emerg = 0,
    Crit = 2,
    Error = 3,
    Warning = 4,
    Notice = 5,
    Info = 6,
    Debug = 7,
    Trace1 = 8,
}

/// A NUL inside would end the line early: it is replaced.
fn text(line: impl Into<Vec<u8>>) -> CString {
    let mut bytes = line.into();
    bytes.iter_mut().filter(|b| **b == 0).for_each(|b| *b = b'?');
    CString::new(bytes).unwrap_or_default()
}

/// Into the server's log.
pub fn server(level: Level, s: ServerRec<'_>, line: impl Into<Vec<u8>>) {
    // SAFETY: the server is live and the text NUL-terminated; C copies what it keeps.
    unsafe { ffi::pool_shim_log_server(level as i32, 0, s.as_ptr(), text(line).as_ptr()) };
}

/// Into the log of the request's virtual host.
pub fn request(level: Level, r: RequestRec<'_>, line: impl Into<Vec<u8>>) {
    // SAFETY: as above.
    unsafe { ffi::pool_shim_log_request(level as i32, 0, r.as_ptr(), text(line).as_ptr()) };
}

/// Into the log of the main server, where no server is at hand: between two configurations, to standard error.
pub fn main_server(level: Level, line: impl Into<Vec<u8>>) {
    // SAFETY: httpd's parent is single-threaded, and null or its live main server is what this variable holds.
    unsafe { ffi::pool_shim_log_server(level as i32, 0, ffi::ap_server_conf, text(line).as_ptr()) };
}

/// To the terminal at start-up and at configtest.
pub fn startup(level: Level, line: impl Into<Vec<u8>>) {
    // SAFETY: the text is NUL-terminated; C copies what it keeps.
    unsafe { ffi::pool_shim_log_startup(level as i32, 0, text(line).as_ptr()) };
}

/// A line that a pool's process wrote, as it tells it.
#[derive(Debug, Clone, Copy)]
pub struct ForeignLine<'l> {
    /// 0 (emerg) to 15 (trace8). It does not get above crit: syslogd writes what is above on every terminal, and a script
    /// may choose.
    pub level: u8,
    /// Looked up here, -1 for none.
    pub module_index: i32,
    /// An APR status; 0 for none.
    pub status: i32,
    /// Source file and line; empty when unknown. httpd does not escape the file's name.
    pub source: &'l [u8],
    pub source_line: u32,
    pub text: &'l [u8],
}

fn capped(level: u8) -> i32 {
    i32::from(level).max(Level::Crit as i32)
}

/// Into the log of the request's virtual host, under the client's address. The process that wrote the line has decided by
/// its `LogLevel` that it is logged: the request here may not have seen the `<Directory>` that says so.
pub fn request_as(writer: &Writer<'_>, r: RequestRec<'_>, line: &ForeignLine<'_>) {
    let everything = ffi::ap_logconf { module_levels: ptr::null_mut(), level: ffi::APLOG_TRACE8.cast_signed() };
    let source = text(line.source);
    let file = if line.source.is_empty() { ptr::null() } else { source.as_ptr() };
    let number = i32::try_from(line.source_line).unwrap_or(0);
    let text = text(line.text);
    errorlog::written_by(writer, || {
        // SAFETY: request and connection are this thread's alone, and have their own values again before this returns; an
        // index of -1 (none) is APLOG_NO_MODULE, any other was looked up here; the strings are NUL-terminated, and C copies
        // what it keeps.
        unsafe {
            let r = r.as_ptr();
            let c = (*r).connection;
            let (own_level, own_handle) = ((*r).log, (*c).sbh);
            (*r).log = &raw const everything;
            // A connection without a handle on the scoreboard is to httpd one that it opened itself: it writes `[remote` for
            // `[client`. A stream of HTTP/2 has none. This handle has no place on the scoreboard.
            if own_handle.is_null() {
                ffi::ap_create_sb_handle((&raw mut (*c).sbh).cast(), (*r).pool, -1, -1);
            }
            let level = capped(line.level);
            ffi::pool_shim_log_request_as(file, number, line.module_index, level, line.status, r, text.as_ptr());
            (*c).sbh = own_handle;
            (*r).log = own_level;
        }
    });
}

/// Into a server's log, if its `LogLevel` lets it.
pub fn server_as(writer: &Writer<'_>, s: ServerRec<'_>, module_index: i32, level: u8, line: impl Into<Vec<u8>>) {
    let line = text(line);
    errorlog::written_by(writer, || {
        // SAFETY: as above.
        unsafe { ffi::pool_shim_log_server_as(module_index, capped(level), s.as_ptr(), line.as_ptr()) };
    });
}
