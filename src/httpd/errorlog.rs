//! What httpd's error_log hook tells of a line.
//!
//! Runs in: worker.  Trusts: httpd.  Owns: nothing.  Never: logs itself.

use crate::apr::pool::bytes;
use crate::ffi;
use std::ffi::c_char;

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
            has_server: !info.s.is_null(),
        }
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
