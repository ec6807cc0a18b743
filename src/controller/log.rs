//! The controller's own log lines, in the form of httpd's error log, on standard error or to syslog.
//!
//! Runs in: controller.  Trusts: nothing in the text.  Owns: nothing.  Never: waits for who reads the log.

use crate::sys::descriptor;
use crate::sys::syslog::{self, Level};

/// Longest line, in bytes: a pipe that can be written to takes `PIPE_BUF` (4096) bytes without waiting.
const MAX_LINE: usize = 4000;
/// Bytes that the time may take of it.
const TIME_LEN: usize = 40;

/// Something the administrator has to do something about.
pub(super) fn error(text: &str) {
    line(Level::Error, text);
}

/// Something worth knowing.
pub(super) fn notice(text: &str) {
    line(Level::Notice, text);
}

fn line(level: Level, text: &str) {
    let word = match level {
        Level::Error => "error",
        Level::Notice => "notice",
    };
    let mut out = format!("[pool:{word}] [pid {}] ", std::process::id()).into_bytes();
    escape_all(text, &mut out);
    out.truncate(MAX_LINE - TIME_LEN);
    // A log that cannot take a line now loses it: the pools go on.
    if !syslog::send(level, &out) {
        let line = [format!("[{}] ", descriptor::local_time()).as_bytes(), &out, b"\n"].concat();
        descriptor::write_standard_error(&line);
    }
}

/// Appends foreign text without any character that a terminal or a log reader acts on. U+0080 to U+009F are such, too:
/// terminals take CSI (U+009B) for ESC [.
fn escape_all(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        let bytes = &mut [0; 4];
        let bytes = c.encode_utf8(bytes).as_bytes();
        if c.is_control() && c != '\t' {
            bytes.iter().for_each(|byte| out.extend(format!("\\x{byte:02x}").bytes()));
        } else {
            out.extend(bytes);
        }
    }
}

/// Appends a line of foreign text without control bytes of ASCII. It goes to a frontend, where httpd escapes all others.
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

    #[test]
    fn no_character_steers_a_terminal() {
        let mut out = Vec::new();
        super::escape_all("a\n\x1b[1m\tb\x7f \u{9b}1m \u{e4}\u{20ac}", &mut out);
        assert_eq!(out, "a\\x0a\\x1b[1m\tb\\x7f \\xc2\\x9b1m \u{e4}\u{20ac}".as_bytes());
    }
}
