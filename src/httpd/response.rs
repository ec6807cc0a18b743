//! The response head, made ready as `ap_http_header_filter` makes it (http_filters.c), but for what belongs to the
//! connection: keep-alive, chunking, `Date` and `Server` are the frontend's.
//!
//! Runs in: worker.  Trusts: nothing that a handler put into its fields.  Owns: nothing.
//! Never: sends anything.

use super::RequestRec;
use crate::apr::{pool::bytes, Table};
use crate::ffi;
use std::ptr;

/// Longest value that the wire takes.
const MAX_VALUE: usize = 65_535;

/// A field that must not reach a client, in words for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadField(pub String);

/// Whether the response has no body, by its status or because of HEAD.
pub fn is_header_only(r: RequestRec<'_>) -> bool {
    // SAFETY: the request is live.
    unsafe { (*r.as_ptr()).header_only != 0 || status_is_header_only((*r.as_ptr()).status) }
}

/// The handler writes head and body of HTTP/1 itself (mod_uwsgi). httpd has the same mark for a client that wants no head,
/// as with HTTP/0.9: that is the frontend's.
pub fn writes_own_head(r: RequestRec<'_>) -> bool {
    const HTTP_1_0: i32 = 1000;
    // SAFETY: the request is live.
    unsafe { (*r.as_ptr()).assbackwards != 0 && (*r.as_ptr()).proto_num >= HTTP_1_0 }
}

/// AP_STATUS_IS_HEADER_ONLY (httpd.h).
fn status_is_header_only(status: i32) -> bool {
    matches!(status, 204 | 304)
}

/// Merges the two tables of fields and adds what the request says about its body.
pub fn merge_fields(r: RequestRec<'_>) {
    let raw = r.as_ptr();
    if !r.err_headers_out().is_empty() {
        // SAFETY: both tables are live; the new one lives in the request's pool.
        unsafe {
            (*raw).headers_out = ffi::apr_table_overlay((*raw).pool, (*raw).err_headers_out, (*raw).headers_out);
        }
        r.err_headers_out().clear();
    }
    let out = r.headers_out();
    if r.subprocess_env().get(c"force-no-vary").is_some() {
        out.unset(c"Vary");
    } else {
        merge_vary(r);
    }
    status_line(r);
    // SAFETY: the request is live.
    if unsafe { (*raw).no_cache } != 0 && out.get(c"Expires").is_none() {
        let mut date = [0 as std::ffi::c_char; ffi::APR_RFC822_DATE_LEN as usize];
        // SAFETY: the buffer has the length that the function documents; the table copies the text.
        unsafe {
            ffi::ap_recent_rfc822_date(date.as_mut_ptr(), (*raw).request_time);
            ffi::apr_table_add(out.as_ptr(), c"Expires".as_ptr(), date.as_ptr());
        }
    }
    if r.notes().get(c"no-etag").is_some() {
        out.unset(c"ETag");
    }
    if status_is_header_only(r.status()) {
        out.unset(c"Content-Length");
        // SAFETY: the request is live; these fields are plain data.
        unsafe {
            (*raw).content_type = ptr::null();
            (*raw).content_encoding = ptr::null();
            (*raw).content_languages = ptr::null_mut();
            (*raw).clength = 0;
        }
    }
    // SAFETY: the request is live; what ap_make_content_type returns lives in its pool.
    unsafe {
        let content_type = ffi::ap_make_content_type(raw, (*raw).content_type);
        if !content_type.is_null() {
            ffi::apr_table_setn(out.as_ptr(), c"Content-Type".as_ptr(), content_type);
        }
        if !(*raw).content_encoding.is_null() {
            ffi::apr_table_setn(out.as_ptr(), c"Content-Encoding".as_ptr(), (*raw).content_encoding);
        }
    }
    merge_languages(r);
    // A handler that sends nothing for HEAD did not mean that its answer is empty.
    // SAFETY: the request is live.
    if unsafe { (*raw).header_only } != 0 && out.get(c"Content-Length") == Some(b"0") {
        out.unset(c"Content-Length");
    }
    out.unset(c"Transfer-Encoding");
    // SAFETY: the request is live.
    if unsafe { (*raw).proxyreq } == 0 {
        out.unset(c"Date");
        out.unset(c"Server");
    }
}

/// One Vary field with each name once (`fixup_vary`).
fn merge_vary(r: RequestRec<'_>) {
    let all: Vec<&[u8]> =
        r.headers_out().iter().filter(|(n, _)| n.eq_ignore_ascii_case(b"Vary")).map(|(_, v)| v).collect();
    if all.is_empty() {
        return;
    }
    let mut names: Vec<&[u8]> = Vec::new();
    for name in all.iter().flat_map(|v| v.split(|b| *b == b',' || b.is_ascii_whitespace())) {
        if !name.is_empty() && !names.iter().any(|n| n.eq_ignore_ascii_case(name)) {
            names.push(name);
        }
    }
    if !names.is_empty() {
        r.headers_out().setn(c"Vary", r.pool().copy_str(&names.join(&b","[..])));
    }
}

/// Content-Language: what the field says already, then the request's languages that it does not name.
fn merge_languages(r: RequestRec<'_>) {
    // SAFETY: the request is live; the array is null or live.
    let array = unsafe { (*r.as_ptr()).content_languages };
    if array.is_null() {
        return;
    }
    // SAFETY: not null; an array of strings (httpd.h).
    let own: Vec<&[u8]> = unsafe {
        let n = usize::try_from((*array).nelts).unwrap_or(0);
        (0..n).map(|i| bytes(*(*array).elts.cast::<*const std::ffi::c_char>().add(i))).collect()
    };
    if own.is_empty() {
        return;
    }
    let mut languages = own;
    if let Some(field) = r.headers_out().get(c"Content-Language") {
        for token in field.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if !token.is_empty() && !languages.iter().any(|l| l.eq_ignore_ascii_case(token)) {
                languages.push(token);
            }
        }
    }
    r.headers_out().setn(c"Content-Language", r.pool().copy_str(&languages.join(&b","[..])));
}

/// Sets `r->status_line` as `basic_http_header_check` does: a line with another number gives way to httpd's own, which for
/// a status without a name is that of 500; so does a number alone, if httpd has words for it.
fn status_line(r: RequestRec<'_>) {
    let (line, usual) = (line_of(r), usual_line(r));
    let number = r.status().to_string();
    let fits = line.len() >= 3
        && line[..3] == *number.as_bytes()
        && line.get(3).is_none_or(|b| *b == b' ')
        && line[3..].iter().all(|b| *b == b'\t' || (*b >= b' ' && *b != 0x7f));
    if !fits || (line.len() == 3 && usual.starts_with(line)) {
        // SAFETY: the request is live, the text is static.
        unsafe { (*r.as_ptr()).status_line = ffi::ap_get_status_line((*r.as_ptr()).status) };
    }
}

/// httpd's own line for the status.
fn usual_line(r: RequestRec<'_>) -> &'static [u8] {
    // SAFETY: a static text.
    unsafe { bytes(ffi::ap_get_status_line(r.status())) }
}

fn line_of(r: RequestRec<'_>) -> &[u8] {
    // SAFETY: null or a string that lives as long as the request.
    unsafe { bytes((*r.as_ptr()).status_line) }
}

/// The status line, or nothing when it is the one that httpd itself has for this status.
pub fn own_status_line(r: RequestRec<'_>) -> &[u8] {
    let line = line_of(r);
    if line == usual_line(r) || line.contains(&b'\t') {
        &[]
    } else {
        line
    }
}

/// Checks all fields as `check_headers` does; folded lines become one.
pub fn check_fields(r: RequestRec<'_>, most: usize) -> Result<(), BadField> {
    let out = r.headers_out();
    if out.len() > most {
        return Err(BadField(format!("more than {most} response header fields, aborting request")));
    }
    let mut folded = Vec::new();
    for (name, value) in out.iter() {
        if name.is_empty() || !name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b)) {
            return Err(BadField(format!(
                "Response header name '{}' contains invalid characters, aborting request",
                String::from_utf8_lossy(name)
            )));
        }
        if value.iter().all(|b| is_content(*b)) && value.len() <= MAX_VALUE && name.len() <= MAX_VALUE {
            continue;
        }
        match unfold(value) {
            Some(one) if one.len() <= MAX_VALUE => folded.push((name, one)),
            _ => {
                return Err(BadField(format!(
                    "Response header '{}' value of '{}' contains invalid characters, aborting request",
                    String::from_utf8_lossy(name),
                    String::from_utf8_lossy(&value[..value.len().min(200)])
                )))
            }
        }
    }
    if !folded.is_empty() {
        rebuild_with(out, r, &folded);
    }
    Ok(())
}

fn is_content(b: u8) -> bool {
    b == b'\t' || (b >= b' ' && b != 0x7f)
}

/// A value whose folds (CR LF and blanks) are single spaces; `None` if a control byte is left.
fn unfold(value: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&first, behind)) = rest.split_first() {
        if let [b'\r', b'\n', b' ' | b'\t', ..] = rest {
            let blanks = rest[2..].iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
            out.push(b' ');
            rest = &rest[2 + blanks..];
        } else if is_content(first) {
            out.push(first);
            rest = behind;
        } else {
            return None;
        }
    }
    Some(out)
}

/// Replaces the values of those entries whose unfolded form is given, in order.
fn rebuild_with(table: Table<'_>, r: RequestRec<'_>, folded: &[(&[u8], Vec<u8>)]) {
    let pool = r.pool();
    let old: Vec<(&[u8], &[u8])> = table.iter().collect();
    let mut new = folded.iter().peekable();
    table.clear();
    for (name, value) in old {
        let replaced = new.next_if(|(n, v)| *n == name && unfold(value).as_deref() == Some(v.as_slice()));
        let value = replaced.map_or(value, |(_, v)| v.as_slice());
        // SAFETY: both copies live in the request's pool, as the table does.
        unsafe { ffi::apr_table_addn(table.as_ptr(), pool.copy(name), pool.copy(value)) };
    }
}

/// What the Content-Length fields say. Fields that say nothing sensible, or do not agree, are removed: a client could
/// not tell where the response ends.
pub fn content_length(r: RequestRec<'_>) -> Option<u64> {
    let mut length = None;
    let mut good = true;
    for (_, value) in r.headers_out().iter().filter(|(n, _)| n.eq_ignore_ascii_case(b"Content-Length")) {
        match parse_length(value) {
            Some(n) if length.is_none() => length = Some(n),
            _ => good = false,
        }
    }
    if good {
        return length;
    }
    r.headers_out().unset(c"Content-Length");
    None
}

/// Digits only, as RFC 9110 has it, and no more than an `apr_off_t` holds: a frontend takes no other.
pub fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok().filter(|n| i64::try_from(*n).is_ok())
}

/// Throws a bad response away. The first time the caller is to answer 500 by `ap_die`; the second time, when the
/// answer to that is bad too, an empty 500 is all that is left.
pub fn discard(r: RequestRec<'_>) -> bool {
    r.headers_out().clear();
    r.err_headers_out().clear();
    let raw = r.as_ptr();
    // SAFETY: the request is live; these fields are plain data.
    unsafe {
        (*raw).content_type = ptr::null();
        (*raw).content_encoding = ptr::null();
        (*raw).content_languages = ptr::null_mut();
        (*raw).clength = 0;
    }
    let mut seen = ptr::null_mut();
    let key = c"pool_bad_response";
    // SAFETY: key and value are static.
    unsafe { ffi::apr_pool_userdata_get(&raw mut seen, key.as_ptr(), (*raw).pool) };
    if !seen.is_null() {
        // SAFETY: the request is live.
        unsafe {
            (*raw).status = ffi::HTTP_INTERNAL_SERVER_ERROR.cast_signed();
            (*raw).status_line = ptr::null();
            ffi::ap_set_content_length(raw, 0);
        }
        return false;
    }
    // SAFETY: key and value are static; the pool is live.
    unsafe { ffi::apr_pool_userdata_setn(key.as_ptr().cast(), key.as_ptr(), None, (*raw).pool) };
    true
}

/// Answers the request with an error, with the error document that the configuration has for it.
pub fn die(r: RequestRec<'_>, status: i32) {
    // SAFETY: the request is live.
    unsafe {
        // The length filter has counted the bytes of the answer that is thrown away.
        (*r.as_ptr()).bytes_sent = 0;
        ffi::ap_die(status, r.as_ptr());
    }
}

/// Body bytes follow: what `ap_http_header_filter` tells the loggers.
pub fn body_follows(r: RequestRec<'_>) {
    // SAFETY: the request is live.
    unsafe { (*r.as_ptr()).sent_bodyct = 1 };
}
