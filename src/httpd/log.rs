//! Lines for httpd's error log, under the name of this module.
//!
//! Runs in: every process httpd is in.  Trusts: nothing; texts are escaped by httpd.  Owns: nothing.
//! Never: formats (a text is never a format string).

use super::{RequestRec, ServerRec};
use crate::ffi;
use std::ffi::CString;

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

/// Into the log of the request's virtual host, with the level (0 to 15) and module index that a worker named. It does not
/// get above crit: syslogd writes what is above on every terminal, and a script may choose.
pub fn request_as(module_index: i32, level: u8, r: RequestRec<'_>, line: impl Into<Vec<u8>>) {
    let level = i32::from(level).max(Level::Crit as i32);
    // SAFETY: as above; an index of -1 (none) is APLOG_NO_MODULE, any other was looked up here.
    unsafe { ffi::pool_shim_log_request_as(module_index, level, r.as_ptr(), text(line).as_ptr()) };
}

/// Into a server's log; as [`request_as`].
pub fn server_as(module_index: i32, level: u8, s: ServerRec<'_>, line: impl Into<Vec<u8>>) {
    let level = i32::from(level).max(Level::Crit as i32);
    // SAFETY: as above.
    unsafe { ffi::pool_shim_log_server_as(module_index, level, s.as_ptr(), text(line).as_ptr()) };
}
