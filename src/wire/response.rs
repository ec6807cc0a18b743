//! What a worker answers. The worker is hostile: nothing gets past these decoders that httpd could not have sent.
//!
//! Runs in: worker (encodes), frontend (decodes).  Trusts: nothing it decodes.  Owns: the layout of the answers.
//! Never: does I/O, panics on any input.

use super::codec::{Malformed, Put, Reader};
use super::frame::{Pairs, MAX_LOG_SOURCE, MAX_LOG_TEXT};

/// Most fields in a response head, or in an interim response.
pub const MAX_FIELDS: usize = 500;
/// Most entries in each of META's lists.
pub const MAX_META_PAIRS: usize = 500;

/// Status, reason and fields of a final (200 to 999) or interim (100 to 199) response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead<'a> {
    pub status: u16,
    /// Whole status line after the protocol (`404 Not Found`), or empty for httpd's own text.
    pub status_line: &'a [u8],
    pub fields: Pairs<'a>,
}

/// Starts the payload of a HEAD or INTERIM frame; the fields follow as a list of pairs.
pub fn put_response_head(out: &mut Vec<u8>, status: u16, status_line: &[u8]) {
    out.put_u16(status);
    out.put_short(status_line);
}

impl<'a> ResponseHead<'a> {
    /// A final response: status 200 to 999.
    pub fn decode_final(payload: &'a [u8]) -> Result<Self, Malformed> {
        Self::decode(payload, 200..=999)
    }

    /// An interim response: status 100 to 199, but never 101, which would take the client's connection over.
    pub fn decode_interim(payload: &'a [u8]) -> Result<Self, Malformed> {
        let head = Self::decode(payload, 100..=199)?;
        if head.status == 101 {
            return Err(Malformed::Field("status"));
        }
        Ok(head)
    }

    /// The same once more: `payload` is one that was decoded before.
    pub(super) fn checked_before(payload: &'a [u8]) -> Self {
        let mut r = Reader::new(payload);
        let (status, status_line) = (r.u16().unwrap_or(0), r.short().unwrap_or_default());
        Self { status, status_line, fields: Pairs::checked_before(&mut r) }
    }

    fn decode(payload: &'a [u8], allowed: std::ops::RangeInclusive<u16>) -> Result<Self, Malformed> {
        let mut r = Reader::new(payload);
        let status = r.u16()?;
        if !allowed.contains(&status) {
            return Err(Malformed::Field("status"));
        }
        let status_line = r.short()?;
        if !status_line.is_empty() && !status_line_fits(status_line, status) {
            return Err(Malformed::Field("status line"));
        }
        let fields = Pairs::decode(&mut r)?;
        r.finish()?;
        check_fields(fields)?;
        Ok(Self { status, status_line, fields })
    }
}

/// "NNN text" with the same number and no control byte.
fn status_line_fits(line: &[u8], status: u16) -> bool {
    let (digits, rest) = line.split_at(line.len().min(3));
    digits == status.to_string().as_bytes()
        && rest.first().is_none_or(|b| *b == b' ')
        && rest.iter().all(|b| *b >= b' ' && *b != 0x7f)
}

/// Field names are tokens and values hold no control byte but TAB (RFC 9110, 5.5 and 5.6.2).
fn check_fields(fields: Pairs<'_>) -> Result<(), Malformed> {
    if fields.len() > MAX_FIELDS {
        return Err(Malformed::Field("number of fields"));
    }
    for (name, value) in fields.iter() {
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
            return Err(Malformed::Field("field name"));
        }
        if value.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
            return Err(Malformed::Field("field value"));
        }
    }
    Ok(())
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Fields of one connection only (RFC 9110, 7.6.1): the frontend's own business, whatever a worker says.
pub fn is_hop_by_hop(name: &[u8]) -> bool {
    const NAMES: [&str; 9] = [
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "Proxy-Authenticate-Info",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "HTTP2-Settings",
    ];
    NAMES.iter().any(|n| name.eq_ignore_ascii_case(n.as_bytes()))
}

/// Fields that may stand behind a body: none that says where a message ends, who is asking, or how the body is to be
/// read (RFC 9110, 6.5.1).
pub fn may_be_trailer(name: &[u8]) -> bool {
    const NOT: [&str; 10] = [
        "Content-Length",
        "Content-Encoding",
        "Content-Type",
        "Content-Range",
        "Host",
        "Authorization",
        "Set-Cookie",
        "Location",
        "Cache-Control",
        "Date",
    ];
    !is_hop_by_hop(name) && !NOT.iter().any(|n| name.eq_ignore_ascii_case(n.as_bytes()))
}

/// A piece of body in the descriptor that travels with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange {
    pub offset: u64,
    pub length: u64,
}

impl FileRange {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.offset);
        out.put_u64(self.length);
    }

    /// Not empty; offset and end fit a signed 64-bit file offset.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(payload);
        let range = Self { offset: r.u64()?, length: r.u64()? };
        r.finish()?;
        match range.offset.checked_add(range.length).map(i64::try_from) {
            Some(Ok(_)) if range.length > 0 => Ok(range),
            _ => Err(Malformed::Field("file range")),
        }
    }
}

/// What the frontend's loggers show of a request. Nothing here changes what the client gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta<'a> {
    pub user: &'a [u8],
    pub auth_type: &'a [u8],
    pub handler: &'a [u8],
    pub filename: &'a [u8],
    pub notes: Pairs<'a>,
    pub env: Pairs<'a>,
}

impl<'a> Meta<'a> {
    /// Starts the payload; the two lists (notes, env) follow.
    pub fn encode_strings(&self, out: &mut Vec<u8>) {
        for s in [self.user, self.auth_type, self.handler, self.filename] {
            out.put_short(s);
        }
    }

    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(payload);
        let meta = Self {
            user: c_string(&mut r)?,
            auth_type: c_string(&mut r)?,
            handler: c_string(&mut r)?,
            filename: c_string(&mut r)?,
            notes: Pairs::decode(&mut r)?,
            env: Pairs::decode(&mut r)?,
        };
        r.finish()?;
        if meta.notes.len() > MAX_META_PAIRS || meta.env.len() > MAX_META_PAIRS {
            return Err(Malformed::Field("number of notes"));
        }
        Ok(meta)
    }
}

/// A short string without a NUL byte.
fn c_string<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let s = r.short()?;
    if memchr::memchr(0, s).is_some() {
        return Err(Malformed::Field("NUL byte in a string"));
    }
    Ok(s)
}

/// The beginning of END's payload. The trailers follow, as pairs.
pub fn put_response_end(out: &mut Vec<u8>, processor: u16) {
    out.put_u16(processor);
}

/// The payload of END.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseEnd<'a> {
    /// The processor that the worker runs on.
    pub processor: u16,
    pub trailers: Pairs<'a>,
}

impl<'a> ResponseEnd<'a> {
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(payload);
        let processor = r.u16()?;
        Ok(Self { processor, trailers: read_trailers(r)? })
    }
}

/// Trailers of a request: the payload of BODY_END.
pub fn decode_trailers(payload: &[u8]) -> Result<Pairs<'_>, Malformed> {
    read_trailers(Reader::new(payload))
}

fn read_trailers(mut r: Reader<'_>) -> Result<Pairs<'_>, Malformed> {
    let trailers = Pairs::decode(&mut r)?;
    r.finish()?;
    check_fields(trailers)?;
    Ok(trailers)
}

/// A line for the error log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// httpd's level, 0 (emerg) to 15 (trace8).
    pub level: u8,
    /// Source file name of the module that speaks (`mod_php.c`), or empty.
    pub module: &'a [u8],
    /// The APR status that it is about; 0 for none.
    pub status: i32,
    /// Source file that the line comes from, or empty. httpd prints it as it is: no byte of it needs an escape.
    pub source: &'a [u8],
    /// Line of that file.
    pub source_line: u32,
    pub text: &'a [u8],
}

impl<'a> LogLine<'a> {
    /// Text beyond [`MAX_LOG_TEXT`] bytes is cut off, an unusual name of a source file is left out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(self.level);
        out.put_short(self.module);
        out.put_i32(self.status);
        out.put_short(if is_source(self.source) { self.source } else { b"" });
        out.put_u32(self.source_line);
        out.put_short(&self.text[..self.text.len().min(MAX_LOG_TEXT)]);
    }

    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(payload);
        let line = Self {
            level: r.u8()?,
            module: c_string(&mut r)?,
            status: r.i32()?,
            source: c_string(&mut r)?,
            source_line: r.u32()?,
            text: c_string(&mut r)?,
        };
        r.finish()?;
        if line.level > 15 || line.text.len() > MAX_LOG_TEXT || !is_source(line.source) {
            return Err(Malformed::Field("log line"));
        }
        Ok(line)
    }
}

/// Whether it may stand in a log line as the name of a source file.
fn is_source(name: &[u8]) -> bool {
    name.len() <= MAX_LOG_SOURCE && name.iter().all(|b| b.is_ascii_alphanumeric() || b"_.-+/".contains(b))
}

/// Why a worker gives an exchange up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AbortReason {
    /// The virtual host is not the one that the frontend means: their configurations differ.
    ServerMismatch = 1,
    /// The request head could not be understood.
    BadRequest = 2,
    /// The response cannot be completed.
    Failed = 3,
    /// The part of a page, or the error document, that was asked for cannot be had: the text is the HTTP status.
    NoPart = 4,
}

/// The payload of ABORT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort<'a> {
    pub reason: AbortReason,
    pub text: &'a [u8],
}

impl<'a> Abort<'a> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(self.reason as u8);
        out.put_short(&self.text[..self.text.len().min(MAX_LOG_TEXT)]);
    }

    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(payload);
        let reason = match r.u8()? {
            1 => AbortReason::ServerMismatch,
            2 => AbortReason::BadRequest,
            3 => AbortReason::Failed,
            4 => AbortReason::NoPart,
            _ => return Err(Malformed::Field("abort reason")),
        };
        let text = c_string(&mut r)?;
        r.finish()?;
        if text.len() > MAX_LOG_TEXT {
            return Err(Malformed::Field("abort text"));
        }
        Ok(Self { reason, text })
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::PairsWriter;
    use super::*;

    fn head(status: u16, line: &[u8], fields: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        put_response_head(&mut out, status, line);
        let mut w = PairsWriter::new(&mut out);
        for (n, v) in fields {
            w.pair(n, v).expect("short");
        }
        w.finish();
        out
    }

    #[test]
    fn final_statuses_are_200_to_999() {
        for status in [0, 1, 99, 100, 101, 103, 199, 1000, u16::MAX] {
            assert!(ResponseHead::decode_final(&head(status, b"", &[])).is_err(), "{status}");
        }
        for status in [200, 204, 304, 404, 599, 600, 999] {
            assert_eq!(ResponseHead::decode_final(&head(status, b"", &[])).map(|h| h.status), Ok(status));
        }
    }

    #[test]
    fn interim_statuses_are_1xx_without_101() {
        assert!(ResponseHead::decode_interim(&head(103, b"", &[(b"Link", b"</a>")])).is_ok());
        for status in [0, 99, 101, 200] {
            assert!(ResponseHead::decode_interim(&head(status, b"", &[])).is_err(), "{status}");
        }
    }

    #[test]
    fn field_names_and_values_that_could_split_a_response_are_refused() {
        let bad: [(&[u8], &[u8]); 8] = [
            (b"A\r\nB", b"x"),
            (b"A B", b"x"),
            (b"", b"x"),
            (b"A:", b"x"),
            (b"A", b"x\r\ny"),
            (b"A", b"x\ny"),
            (b"A", b"\x01"),
            (b"A", b"\x7f"),
        ];
        for (n, v) in bad {
            assert!(ResponseHead::decode_final(&head(200, b"", &[(n, v)])).is_err(), "{n:?}: {v:?}");
        }
        assert!(ResponseHead::decode_final(&head(200, b"", &[(b"A", b"tab\there, \xc3\xa4")])).is_ok());
    }

    #[test]
    fn a_status_line_must_fit_its_status() {
        for line in [&b"200 OK"[..], b"200", b"200 "] {
            assert!(ResponseHead::decode_final(&head(200, line, &[])).is_ok(), "{line:?}");
        }
        for line in [&b"404 OK"[..], b"20", b"200OK", b"200 O\r\nX: y"] {
            assert!(ResponseHead::decode_final(&head(200, line, &[])).is_err(), "{line:?}");
        }
    }

    #[test]
    fn hop_by_hop_fields_are_known_in_any_case() {
        assert!(is_hop_by_hop(b"transfer-ENCODING"));
        assert!(!is_hop_by_hop(b"Content-Length"));
    }

    #[test]
    fn trailers_do_not_frame_a_message() {
        for name in [&b"content-length"[..], b"Transfer-Encoding", b"Trailer", b"SET-COOKIE"] {
            assert!(!may_be_trailer(name), "{name:?}");
        }
        assert!(may_be_trailer(b"X-Checksum") && may_be_trailer(b"Server-Timing"));
    }

    #[test]
    fn a_file_range_fits_a_file_offset() {
        let encode = |offset, length| {
            let mut out = Vec::new();
            FileRange { offset, length }.encode(&mut out);
            out
        };
        assert!(FileRange::decode(&encode(5, 10)).is_ok());
        assert!(FileRange::decode(&encode(5, 0)).is_err());
        assert!(FileRange::decode(&encode(u64::MAX, 1)).is_err());
        assert!(FileRange::decode(&encode(i64::MAX as u64, 1)).is_err());
    }

    #[test]
    fn a_log_line_keeps_to_its_limits() {
        let line =
            LogLine { level: 3, module: b"mod_php.c", status: 13, source: b"a/x.cc", source_line: 7, text: b"t" };
        let encoded = |line: LogLine<'_>| {
            let mut out: Vec<u8> = Vec::new();
            line.encode(&mut out);
            out
        };
        let out = encoded(line);
        assert_eq!(LogLine::decode(&out), Ok(line));
        let out = encoded(LogLine { text: &[b'x'; MAX_LOG_TEXT + 9], ..line });
        assert_eq!(LogLine::decode(&out).map(|l| l.text.len()), Ok(MAX_LOG_TEXT));
        assert!(LogLine::decode(&encoded(LogLine { level: 16, ..line })).is_err());
    }

    #[test]
    fn the_name_of_a_source_file_forges_nothing() {
        let mut good: Vec<u8> = Vec::new();
        let line = LogLine { level: 3, module: b"", status: 0, source: b"abc.c", source_line: 7, text: b"" };
        line.encode(&mut good);
        let at = good.windows(5).position(|w| w == b"abc.c").expect("encoded");
        for byte in 0..=255u8 {
            let mut bytes = good.clone();
            bytes[at] = byte;
            let fits = byte.is_ascii_alphanumeric() || b"_.-+/".contains(&byte);
            assert_eq!(LogLine::decode(&bytes).is_ok(), fits, "{byte}");
        }
        for unusual in [&b"] [client 9.9.9.9:1"[..], &[b'x'; MAX_LOG_SOURCE + 1]] {
            let mut out = Vec::new();
            LogLine { source: unusual, ..line }.encode(&mut out);
            assert_eq!(LogLine::decode(&out).map(|l| l.source), Ok(&b""[..]));
        }
    }
}
