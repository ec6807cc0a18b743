//! Lines for the error log: with the exchange, so that the frontend writes them into the right file.
//!
//! Runs in: worker.  Trusts: nothing that a script logs.  Owns: how much may be logged.
//! Never: logs through httpd itself.

use super::escape::unescape;
use super::state::with;
use crate::httpd::errorlog::{self, LogEvent};
use crate::sys::launch;
use crate::wire::frame::FrameKind;
use crate::wire::plain_log::PlainLine;
use crate::wire::response::LogLine;
use std::io::Write;

/// Most lines of one request; the frontend drops what is beyond its own limits.
const MAX_LINES: u32 = 1000;

/// httpd's error_log hook.
pub fn error_line(event: LogEvent<'_>) {
    let mut text = unescape(event.text);
    let handled = with(|worker| {
        if !worker.busy.get() || worker.response.finished.get() || worker.gone.get() {
            return false;
        }
        // Borrowed only while the exchange is set up; nothing logs then.
        let Ok(mut current) = worker.exchange.try_borrow_mut() else { return false };
        current.log_lines += 1;
        let lines = current.log_lines;
        drop(current);
        if lines > MAX_LINES {
            return true;
        }
        if lines == MAX_LINES {
            text = b"too many lines in one request; the others are dropped".to_vec();
        }
        let Ok(mut outbox) = worker.outbox.try_borrow_mut() else { return false };
        let line = LogLine {
            level: event.level,
            module: event.module,
            status: event.status,
            source: event.source,
            source_line: event.source_line,
            text: &text,
        };
        // At once, as httpd itself does: what a script says last before it dies or hangs is what one looks for.
        let result = outbox.at_once(worker.lease(), FrameKind::Log, |out| line.encode(out));
        drop(outbox);
        if result.is_err() {
            worker.client_gone();
        }
        true
    });
    if handled != Some(true) && event.has_server {
        // At the start and between requests: standard error is the controller's pipe, which takes whole lines. Nobody is left to
        // tell when it fails. Lines of no server are there already: httpd writes them itself.
        if event.status != 0 {
            text.splice(0..0, format!("{}: ", errorlog::status_text(event.status)).into_bytes());
        }
        text.retain(|b| *b != b'\n');
        text.truncate(1000);
        let mut line = PlainLine { level: event.level, module: event.module, text: &text }.encode();
        line.push(b'\n');
        let _ = std::io::stderr().write_all(&line);
    }
}

/// A line of mod_pool's own about a request: its tag, and which process says it. Lines of other modules are as stock httpd
/// writes them.
pub fn tagged(tag: &str, text: &str) -> String {
    let pool = with(|worker| worker.pool.clone()).unwrap_or_default();
    format!("{tag}: [pool {pool} pid {}] {text}", launch::own_pid())
}
