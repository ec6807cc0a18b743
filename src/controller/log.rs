//! The controller's own log lines, in the form of httpd's error log, on standard error.
//!
//! Runs in: controller.  Trusts: nothing in the text.  Owns: nothing.  Never: waits for who reads the log.

use crate::sys::descriptor;

/// Longest line, in bytes: a pipe that can be written to takes `PIPE_BUF` (4096) bytes without waiting.
const MAX_LINE: usize = 4000;

/// Something the administrator has to do something about.
pub(super) fn error(text: &str) {
    line("error", text);
}

/// Something worth knowing.
pub(super) fn notice(text: &str) {
    line("notice", text);
}

fn line(level: &str, text: &str) {
    let mut out = format!("[{}] [pool:{level}] [pid {}] ", descriptor::local_time(), std::process::id()).into_bytes();
    escape(text.as_bytes(), &mut out);
    out.truncate(MAX_LINE);
    out.push(b'\n');
    // A log that cannot take a line now loses it: the pools go on.
    descriptor::write_standard_error(&out);
}

/// Appends a line of foreign text without any byte that a terminal or a log reader acts on.
pub(super) fn escape(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        if byte == b'\t' || (byte >= 0x20 && byte != 0x7f) {
            out.push(byte);
        } else {
            out.extend(format!("\\x{byte:02x}").bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn control_bytes_are_escaped_and_others_stay() {
        let mut out = Vec::new();
        super::escape(b"a\n\x1b[1m\tb\x7f\xc3\xa4", &mut out);
        assert_eq!(out, b"a\\x0a\\x1b[1m\tb\\x7f\xc3\xa4");
    }
}
