//! Fields that several control messages have in common, with their limits.
//!
//! Runs in: every role but the worker.  Trusts: nothing it decodes.  Owns: what a pool name, a reason and a pid may be.
//! Never: reads a socket, panics on any input, allocates by a length that a peer sent.

use super::{MAX_POOL_NAME, MAX_TEXT};
use crate::wire::codec::{Malformed, Put, Reader};

/// Reads one message: the byte that says its kind, what `read` makes of the rest, and nothing behind it.
pub(super) fn message<T>(
    bytes: &[u8],
    read: impl FnOnce(u8, &mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<T, Malformed> {
    let mut r = Reader::new(bytes);
    let kind = r.u8()?;
    let message = read(kind, &mut r)?;
    r.finish()?;
    Ok(message)
}

/// A byte that is a place in a list.
pub(super) fn one_of<T: Copy>(r: &mut Reader<'_>, all: &[T], name: &'static str) -> Result<T, Malformed> {
    all.get(usize::from(r.u8()?)).copied().ok_or(Malformed::Field(name))
}

/// A truth value: 0 or 1, nothing else.
pub(super) fn boolean(r: &mut Reader<'_>, name: &'static str) -> Result<bool, Malformed> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed::Field(name)),
    }
}

/// A process id: above 0 and not beyond what `pid_t` holds.
pub(super) fn pid(r: &mut Reader<'_>) -> Result<u32, Malformed> {
    let pid = r.u32()?;
    if pid == 0 || i32::try_from(pid).is_err() {
        return Err(Malformed::Field("pid"));
    }
    Ok(pid)
}

/// Appends a pool's name. The settings layer refuses a longer one, so cutting only bounds the message.
pub(super) fn put_name(out: &mut Vec<u8>, name: &str) {
    out.put_short(cut(name, MAX_POOL_NAME).as_bytes());
}

/// A pool's name: UTF-8 without control characters. `may_be_empty` for the root pool.
pub(super) fn name(r: &mut Reader<'_>, may_be_empty: bool) -> Result<String, Malformed> {
    const FIELD: Malformed = Malformed::Field("pool name");
    let bytes = r.short()?;
    if bytes.len() > MAX_POOL_NAME || (bytes.is_empty() && !may_be_empty) {
        return Err(FIELD);
    }
    let name = std::str::from_utf8(bytes).map_err(|_| FIELD)?;
    if name.chars().any(char::is_control) {
        return Err(FIELD);
    }
    Ok(name.to_owned())
}

/// Appends a reason, cut to [`MAX_TEXT`] bytes.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_short(cut(text, MAX_TEXT).as_bytes());
}

/// A reason: UTF-8 of at most [`MAX_TEXT`] bytes, control characters allowed (who logs it escapes it).
pub(super) fn text(r: &mut Reader<'_>) -> Result<String, Malformed> {
    let bytes = r.short()?;
    if bytes.len() > MAX_TEXT {
        return Err(Malformed::Field("text"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::Field("text"))?;
    Ok(text.to_owned())
}

/// The longest prefix of at most `limit` bytes that ends between two characters.
fn cut(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
