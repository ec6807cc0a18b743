//! What the frontend's loggers shall know of a request that was served here.
//!
//! Runs in: worker.  Trusts: nothing; lengths are cut to what the wire takes.  Owns: which notes are not told.
//! Never: tells what came from the frontend itself.

use crate::apr::Table;
use crate::httpd::RequestRec;
use crate::settings::LoggedNames;
use crate::wire::frame::PairsWriter;
use crate::wire::response::{Meta, MAX_META_PAIRS};
use std::ffi::CStr;

/// Longest value of a note or variable that is told, in bytes.
const MAX_VALUE: usize = 4096;
/// Most bytes of notes and variables together: META and END stay within one message beside MAX_DATA of body.
const MAX_BYTES: usize = 16 * 1024;

/// Notes by which httpd's modules talk to each other.
const PRIVATE_NOTES: [&[u8]; 3] = [b"error-notes", b"no-etag", b"verbose-error-to"];
/// As above, by the beginning of the name. Some of these are no strings but pointers (mod_mime, mod_session).
const PRIVATE_PREFIXES: [&[u8]; 3] = [b"ap-", b"mod_session", b"ssl-"];

/// Whether a note is meant for loggers.
fn is_public(name: &CStr) -> bool {
    let name = name.to_bytes();
    let begins = |prefix: &&[u8]| name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix));
    !PRIVATE_NOTES.iter().any(|private| name.eq_ignore_ascii_case(private)) && !PRIVATE_PREFIXES.iter().any(begins)
}

fn is_text(value: &[u8]) -> bool {
    !value.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f)
}

/// The payload of META for a request, with all that its redirects have led to; `env` is the list that came with it.
/// The handler is the first one's, as for httpd's `%R`. Of notes and variables goes only what a log asks for.
pub fn put(out: &mut Vec<u8>, r: RequestRec<'_>, env: &[u8], logged: &LoggedNames) {
    let mut first = r;
    while let Some(previous) = first.previous() {
        first = previous;
    }
    let r = r.last();
    let none = Meta {
        user: r.user(),
        auth_type: r.auth_type(),
        handler: first.handler(),
        filename: r.filename(),
        ..Meta::default()
    };
    none.encode_strings(out);
    let came = super::serve::pairs(env);
    let limit = out.len() + MAX_BYTES;
    put_some(out, limit, r.notes(), logged.notes().filter(|name| is_public(name)), |_, value| is_text(value));
    put_some(out, limit, r.subprocess_env(), logged.env(), |name, value| {
        !came.iter().any(|(n, v)| n.eq_ignore_ascii_case(name) && v == value)
    });
}

fn put_some<'n>(
    out: &mut Vec<u8>,
    limit: usize,
    table: Table<'_>,
    names: impl Iterator<Item = &'n CStr>,
    wanted: impl Fn(&[u8], &[u8]) -> bool,
) {
    let mut left = limit.saturating_sub(out.len());
    let mut writer = PairsWriter::new(out);
    let found = names.filter_map(|name| Some((name.to_bytes(), table.get(name)?)));
    for (name, value) in found.filter(|(n, v)| wanted(n, v)).take(MAX_META_PAIRS) {
        let value = &value[..value.len().min(MAX_VALUE)];
        let size = name.len() + value.len() + 5;
        if size > left {
            break;
        }
        left -= size;
        // Both are shorter than MAX_BYTES.
        let _ = writer.pair(name, value);
    }
    writer.finish();
}

/// A whole table; entries that do not fit the wire are left out.
pub fn put_table(out: &mut Vec<u8>, table: Table<'_>) {
    let mut writer = PairsWriter::new(out);
    for (name, value) in table.iter() {
        let _ = writer.pair(name, value);
    }
    writer.finish();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_modules_are_private_in_any_case() {
        for name in [c"ap-x", c"AP-x", c"mod_session-y", c"SSL-z", c"Error-Notes", c"no-etag"] {
            assert!(!is_public(name), "{name:?}");
        }
        assert!(is_public(c"map-x") && is_public(c"a") && is_public(c"user_id"));
    }

    #[test]
    fn control_characters_are_no_text() {
        assert!(is_text(b"a\tb \xc3\xa9") && !is_text(b"a\x01") && !is_text(b"\x7f"));
    }
}
