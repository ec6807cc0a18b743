//! What the frontend's loggers shall know of a request that was served here.
//!
//! Runs in: worker.  Trusts: nothing; lengths are cut to what the wire takes.  Owns: which notes are not told.
//! Never: tells what came from the frontend itself.

use super::known::is_known;
use crate::apr::Table;
use crate::httpd::RequestRec;
use crate::settings::LoggedNames;
use crate::wire::frame::PairsWriter;
use crate::wire::response::{Meta, MAX_META_PAIRS};

/// Longest value of a note or variable that is told, in bytes.
const MAX_VALUE: usize = 4096;
/// Most bytes of notes and variables together: META and END stay within one message beside MAX_DATA of body.
const MAX_BYTES: usize = 16 * 1024;

/// Notes by which httpd's modules talk to each other.
const PRIVATE_NOTES: [&[u8]; 3] = [b"error-notes", b"no-etag", b"verbose-error-to"];
/// As above, by the beginning of the name. Some of these are no strings but pointers (mod_mime, mod_session).
const PRIVATE_PREFIXES: [&[u8]; 3] = [b"ap-", b"mod_session", b"ssl-"];

/// Whether a note is text, and meant for loggers.
fn is_public(name: &[u8], value: &[u8]) -> bool {
    !PRIVATE_NOTES.contains(&name)
        && !PRIVATE_PREFIXES.iter().any(|p| name.starts_with(p))
        && !value.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f)
}

/// The payload of META for a request, with all that its redirects have led to; `env` is the list that came with it.
/// The handler is the first one's, as for httpd's `%R`. Of what each script is told goes only what a log asks for.
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
    put_some(out, limit, r.notes(), is_public);
    put_some(out, limit, r.subprocess_env(), |name, value| {
        (!is_known(name) || logged.has_env(name)) && !came.iter().any(|(n, v)| n == name && v == value)
    });
}

fn put_some(out: &mut Vec<u8>, limit: usize, table: Table<'_>, wanted: impl Fn(&[u8], &[u8]) -> bool) {
    let mut left = limit.saturating_sub(out.len());
    let mut writer = PairsWriter::new(out);
    for (name, value) in table.iter().filter(|(n, v)| wanted(n, v)).take(MAX_META_PAIRS) {
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
