//! HTTP/1 response heads that do not come through the header filter: `nph-` scripts write theirs, and
//! `ap_send_interim_response` writes 1xx responses.
//!
//! Runs in: worker.  Trusts: nothing; a script wrote it.  Owns: nothing.  Never: does I/O, panics on any input.

use super::codec::Malformed;
use super::response::MAX_FIELDS;
use std::borrow::Cow;

/// No head is longer, in bytes.
pub const MAX_RAW_HEAD: usize = 64 * 1024;

/// A whole head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawHead<'b> {
    /// Bytes of the head, the empty line included.
    pub len: usize,
    pub status: u16,
    /// Without the status; may be empty.
    pub reason: &'b str,
    /// A value that was folded over several lines has single spaces in their place.
    pub fields: Vec<(&'b str, Cow<'b, [u8]>)>,
}

impl RawHead<'_> {
    /// Another head follows this one.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status)
    }
}

/// The head at the front of `bytes`; `None` when it is not complete yet.
pub fn parse(bytes: &[u8]) -> Result<Option<RawHead<'_>>, Malformed> {
    let mut space = vec![httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut space);
    let mut parser = httparse::ParserConfig::default();
    parser.allow_obsolete_multiline_headers_in_responses(true);
    match parser.parse_response(&mut response, bytes) {
        Ok(httparse::Status::Complete(len)) => Ok(Some(RawHead {
            len,
            status: response.code.ok_or(Malformed::Field("status"))?,
            reason: response.reason.unwrap_or(""),
            fields: response.headers.iter().map(|h| (h.name, unfold(h.value))).collect(),
        })),
        Ok(httparse::Status::Partial) if bytes.len() < MAX_RAW_HEAD => Ok(None),
        Ok(httparse::Status::Partial) => Err(Malformed::Field("length of a response head")),
        Err(_) => Err(Malformed::Field("response head")),
    }
}

fn unfold(value: &[u8]) -> Cow<'_, [u8]> {
    if !value.contains(&b'\n') {
        return Cow::Borrowed(value);
    }
    let lines = value.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    Cow::Owned(lines.collect::<Vec<_>>().join(&b' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interim_head_stands_before_the_final_one() {
        let bytes = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.0 200 OK\nX: y\n\nbody";
        let first = parse(bytes).expect("good").expect("whole");
        assert_eq!((first.status, first.reason, first.is_interim()), (103, "Early Hints", true));
        assert_eq!(first.fields, [("Link", Cow::Borrowed(&b"</a.css>; rel=preload"[..]))]);
        let second = parse(&bytes[first.len..]).expect("good").expect("whole");
        assert_eq!((second.status, second.is_interim(), second.fields.len()), (200, false, 1));
        assert_eq!(&bytes[first.len + second.len..], b"body");
    }

    #[test]
    fn folded_values_become_one_line() {
        let bytes = b"HTTP/1.0 200 OK\r\nA:\n b\nC: d\r\n e\n\t f \r\nG:\r\n\r\n";
        let head = parse(bytes).expect("good").expect("whole");
        let fields: Vec<_> = head.fields.iter().map(|(n, v)| (*n, v.as_ref())).collect();
        assert_eq!(fields, [("A", &b"b"[..]), ("C", b"d e f"), ("G", b"")]);
    }

    #[test]
    fn every_prefix_is_incomplete_and_none_panics() {
        let bytes = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n";
        for n in 0..bytes.len() {
            assert_eq!(parse(&bytes[..n]), Ok(None), "cut to {n}");
        }
    }

    #[test]
    fn what_is_no_response_head_is_refused() {
        for bytes in [&b"<html>\r\n\r\n"[..], b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
        let endless = [b"HTTP/1.1 200 OK\r\nA: ".to_vec(), vec![b'x'; MAX_RAW_HEAD]].concat();
        assert!(parse(&endless).is_err());
    }
}
