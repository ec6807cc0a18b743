//! Frames: the unit of the data protocol between a frontend and a worker.
//!
//! A message is one datagram of a `SOCK_SEQPACKET` socket and holds one or more whole frames. A frame is a head of
//! [`FRAME_HEAD_LEN`] bytes and its payload. See docs/protocol.md.
//!
//! Runs in: frontend, worker.  Trusts: nothing it decodes.  Owns: the limits of the data protocol.
//! Never: does I/O, panics on any input.

use super::codec::{Malformed, Put, Reader};

/// Version of the data protocol; the first byte of every request.
pub const DATA_VERSION: u8 = 3;
/// Bytes of a frame's head: kind, flags, two bytes of zero, exchange, length.
pub const FRAME_HEAD_LEN: usize = 12;
/// No message is larger, in bytes; a larger one is a violation. It fits the kernel's default socket buffer (212,992
/// bytes, bookkeeping included), which is what an httpd without root has.
pub const MAX_MESSAGE: usize = 160 * 1024;
/// Most bytes of body in one frame: head, meta and end fit beside it into one message.
pub const MAX_DATA: usize = 128 * 1024;
/// A request head or response head that does not fit a message travels in several frames, up to this many bytes
/// together: httpd's default limits allow 100 fields of 8,190 bytes.
pub const MAX_REQUEST_HEAD: usize = 1024 * 1024;
/// As above, for what a worker sends.
pub const MAX_RESPONSE_HEAD: usize = 256 * 1024;
/// Most interim (1xx) responses in one exchange.
pub const MAX_INTERIM: u32 = 32;
/// META in one exchange: with the beginning of a response, and at its end.
pub const MAX_METAS: u32 = 2;
/// Most log lines of one exchange that reach the error log; the last one says so.
pub const MAX_LOG_LINES: u32 = 200;
/// Most bytes of body of one response, and the highest `Content-Length`: what httpd's `apr_off_t` can say.
pub const MAX_RESPONSE_LENGTH: u64 = i64::MAX as u64;
/// Most bytes of one log text.
pub const MAX_LOG_TEXT: usize = 8 * 1024;
/// Most bytes of the name of a source file that a log line comes from.
pub const MAX_LOG_SOURCE: usize = 128;

/// What a frame is. Numbers below 16 go to the worker, the others to the frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// The request head.
    Request = 1,
    /// A piece of the request body.
    Body = 2,
    /// The request body is complete; the payload holds its trailers.
    BodyEnd = 3,
    /// The request body will not be completed; the payload is a u16 HTTP status that says why.
    BodyAbort = 4,
    /// The response head.
    Head = 16,
    /// A piece of the response body.
    Data = 17,
    /// A piece of the response body that is to be read from an attached descriptor.
    File = 18,
    /// What the loggers shall know.
    Meta = 19,
    /// The response is complete.
    End = 20,
    /// An interim (1xx) response.
    Interim = 21,
    /// The worker wants the body that the client holds back (`Expect: 100-continue`).
    NeedBody = 22,
    /// A line for the error log.
    Log = 23,
    /// The worker gives this exchange up.
    Abort = 24,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Request,
            2 => Self::Body,
            3 => Self::BodyEnd,
            4 => Self::BodyAbort,
            16 => Self::Head,
            17 => Self::Data,
            18 => Self::File,
            19 => Self::Meta,
            20 => Self::End,
            21 => Self::Interim,
            22 => Self::NeedBody,
            23 => Self::Log,
            24 => Self::Abort,
            _ => return None,
        })
    }
}

/// The payload goes on in the next frame, which is of the same kind (Request, Head and Meta only).
pub const FLAG_MORE: u8 = 1;
/// The client shall see what was sent so far at once (Head, Data, File).
pub const FLAG_FLUSH: u8 = 2;
/// The worker takes no further request (End, Abort).
pub const FLAG_LAST: u8 = 4;
/// The response has said `Connection: close` (Head).
pub const FLAG_CLOSE: u8 = 8;
/// The request has the variable `nokeepalive` (Head).
pub const FLAG_NO_KEEPALIVE: u8 = 16;
/// The request has the variable `downgrade-1.0` (Head).
pub const FLAG_DOWNGRADE: u8 = 32;
/// The request has the variable `force-response-1.0` (Head).
pub const FLAG_FORCE_1_0: u8 = 64;
const KNOWN_FLAGS: u8 =
    FLAG_MORE | FLAG_FLUSH | FLAG_LAST | FLAG_CLOSE | FLAG_NO_KEEPALIVE | FLAG_DOWNGRADE | FLAG_FORCE_1_0;

/// Variables by which httpd's header filter is told to end the connection, or to speak as HTTP/1.0, and their flags.
pub const STEERING: [(&std::ffi::CStr, u8); 3] =
    [(c"nokeepalive", FLAG_NO_KEEPALIVE), (c"downgrade-1.0", FLAG_DOWNGRADE), (c"force-response-1.0", FLAG_FORCE_1_0)];

/// Number of an exchange on one lease. The frontend chooses the first one of each lending; it then rises by one with
/// each request. A worker answers with the number it was asked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Exchange(pub u32);

impl Exchange {
    /// The number of the request after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// One decoded frame; the payload is still raw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: FrameKind,
    pub flags: u8,
    pub exchange: Exchange,
    pub payload: &'a [u8],
}

impl Frame<'_> {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Walks over the frames of one message.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    rest: Reader<'a>,
}

/// The frames of `message`.
pub fn frames(message: &[u8]) -> Frames<'_> {
    Frames { rest: Reader::new(message) }
}

impl<'a> Frames<'a> {
    fn decode(&mut self) -> Result<Frame<'a>, Malformed> {
        let r = &mut self.rest;
        let kind = FrameKind::from_byte(r.u8()?).ok_or(Malformed::Field("frame kind"))?;
        let flags = r.u8()?;
        if flags & !KNOWN_FLAGS != 0 {
            return Err(Malformed::Field("frame flags"));
        }
        if r.u16()? != 0 {
            return Err(Malformed::Field("reserved bytes"));
        }
        let exchange = Exchange(r.u32()?);
        let payload = r.long()?;
        Ok(Frame { kind, flags, exchange, payload })
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Malformed>;

    /// After an error the walk is over.
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let frame = self.decode();
        if frame.is_err() {
            self.rest = Reader::new(&[]);
        }
        Some(frame)
    }
}

/// Appends one frame to `out`; `payload` writes the payload.
pub fn put_frame(
    out: &mut Vec<u8>,
    kind: FrameKind,
    flags: u8,
    exchange: Exchange,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    put_frame_head(out, kind, flags, exchange, 0);
    payload(out);
    let len = u32::try_from(out.len() - start - FRAME_HEAD_LEN).unwrap_or(u32::MAX);
    out[start + 8..start + FRAME_HEAD_LEN].copy_from_slice(&len.to_be_bytes());
}

/// Appends the head of a frame whose payload of `len` bytes is sent from elsewhere.
pub fn put_frame_head(out: &mut Vec<u8>, kind: FrameKind, flags: u8, exchange: Exchange, len: u32) {
    out.put_u8(kind as u8);
    out.put_u8(flags);
    out.put_u16(0);
    out.put_u32(exchange.0);
    out.put_u32(len);
}

/// Appends a payload that may be larger than a message allows: as many frames as needed, all but the last with
/// [`FLAG_MORE`], none with more than [`MAX_DATA`] bytes. The caller sends whole frames, in order.
pub fn put_long_frame(out: &mut Vec<u8>, kind: FrameKind, flags: u8, exchange: Exchange, payload: &[u8]) {
    let mut pieces = payload.chunks(MAX_DATA).peekable();
    if pieces.peek().is_none() {
        put_frame_head(out, kind, flags, exchange, 0);
    }
    while let Some(piece) = pieces.next() {
        let more = if pieces.peek().is_some() { FLAG_MORE } else { 0 };
        put_frame(out, kind, flags | more, exchange, |out| out.put(piece));
    }
}

/// Name and value pairs as they stand in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pairs<'a> {
    count: u16,
    bytes: &'a [u8],
}

impl<'a> Pairs<'a> {
    /// Takes a list from `r`, and checks that it is whole and holds no NUL byte (C would cut it there).
    pub fn decode(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        let count = r.u16()?;
        let start = r.rest();
        for _ in 0..count {
            let name = read_name(r)?;
            let value = r.short()?;
            if memchr::memchr(0, name).is_some() || memchr::memchr(0, value).is_some() {
                return Err(Malformed::Field("NUL byte in a name or value"));
            }
        }
        let used = start.len() - r.rest().len();
        Ok(Self { count, bytes: &start[..used] })
    }

    /// The list at the front of `r`, which [`decode`](Self::decode) has taken before, and which is its rest.
    pub(super) fn checked_before(r: &mut Reader<'a>) -> Self {
        let count = r.u16().unwrap_or(0);
        Self { count, bytes: r.rest() }
    }

    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Name and value, in the order sent.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let mut r = Reader::new(self.bytes);
        // decode() has walked the whole list, so none of these reads can fail.
        std::iter::from_fn(move || Some((read_name(&mut r).ok()?, r.short().ok()?)))
    }
}

fn read_name<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    match r.u8()? {
        0 => r.short(),
        code => COMMON_NAMES.get(usize::from(code) - 1).map(|n| n.as_bytes()).ok_or(Malformed::Field("name code")),
    }
}

/// Appends a list of pairs; the count before it is filled in by [`PairsWriter::finish`].
#[derive(Debug)]
pub struct PairsWriter<'o> {
    out: &'o mut Vec<u8>,
    at: usize,
    count: u16,
}

/// A name or a value longer than 65,535 bytes, or more than 65,535 pairs: not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl<'o> PairsWriter<'o> {
    pub fn new(out: &'o mut Vec<u8>) -> Self {
        let at = out.len();
        out.put_u16(0);
        Self { out, at, count: 0 }
    }

    pub fn pair(&mut self, name: &[u8], value: &[u8]) -> Result<(), TooLong> {
        if name.len() > usize::from(u16::MAX) || value.len() > usize::from(u16::MAX) || self.count == u16::MAX {
            return Err(TooLong);
        }
        match common_code(name) {
            Some(code) => self.out.put_u8(code),
            None => {
                self.out.put_u8(0);
                self.out.put_short(name);
            }
        }
        self.out.put_short(value);
        self.count += 1;
        Ok(())
    }

    pub fn finish(self) {
        self.out[self.at..self.at + 2].copy_from_slice(&self.count.to_be_bytes());
    }
}

/// Names that travel as one byte: their place in this list, counted from 1. Only ever appended to.
pub const COMMON_NAMES: [&str; 48] = [
    "Host",
    "User-Agent",
    "Accept",
    "Accept-Language",
    "Accept-Encoding",
    "Connection",
    "Cookie",
    "Referer",
    "Content-Type",
    "Content-Length",
    "Cache-Control",
    "Pragma",
    "If-Modified-Since",
    "If-None-Match",
    "Authorization",
    "Origin",
    "Range",
    "Upgrade-Insecure-Requests",
    "Sec-Fetch-Dest",
    "Sec-Fetch-Mode",
    "Sec-Fetch-Site",
    "Sec-Fetch-User",
    "Sec-CH-UA",
    "Sec-CH-UA-Mobile",
    "Sec-CH-UA-Platform",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Requested-With",
    "DNT",
    "TE",
    "Transfer-Encoding",
    "Last-Modified",
    "ETag",
    "Expires",
    "Set-Cookie",
    "Location",
    "Vary",
    "X-Powered-By",
    "Content-Encoding",
    "Accept-Ranges",
    "Content-Range",
    "Content-Disposition",
    "Link",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "Strict-Transport-Security",
    "Date",
];

/// The code of a name that is spelled exactly as in [`COMMON_NAMES`].
fn common_code(name: &[u8]) -> Option<u8> {
    // Length and first byte rule out nearly every entry before the comparison.
    let at = COMMON_NAMES
        .iter()
        .position(|n| n.len() == name.len() && n.as_bytes().first() == name.first() && n.as_bytes() == name)?;
    u8::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_in_order() {
        let mut out = Vec::new();
        put_frame(&mut out, FrameKind::Head, FLAG_FLUSH, Exchange(7), |o| o.put(b"abc"));
        put_frame(&mut out, FrameKind::End, FLAG_LAST, Exchange(7), |_| {});
        let got: Vec<_> = frames(&out).collect::<Result<_, _>>().expect("well formed");
        assert_eq!(got.len(), 2);
        assert_eq!((got[0].kind, got[0].payload, got[0].has(FLAG_FLUSH)), (FrameKind::Head, &b"abc"[..], true));
        assert_eq!((got[1].kind, got[1].exchange, got[1].has(FLAG_LAST)), (FrameKind::End, Exchange(7), true));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let mut out = Vec::new();
        put_frame(&mut out, FrameKind::Data, 0, Exchange(1), |o| o.put(b"xyz"));
        for n in 1..out.len() {
            assert_eq!(frames(&out[..n]).next(), Some(Err(Malformed::Truncated)), "cut to {n}");
        }
    }

    #[test]
    fn unknown_kinds_flags_and_reserved_bytes_are_refused() {
        for (at, value) in [(0, 9), (0, 200), (1, 0x80), (2, 1), (3, 1)] {
            let mut out = Vec::new();
            put_frame(&mut out, FrameKind::Data, 0, Exchange(1), |_| {});
            out[at] = value;
            assert!(matches!(frames(&out).next(), Some(Err(Malformed::Field(_)))), "byte {at}");
        }
    }

    #[test]
    fn a_long_payload_is_cut_into_frames_that_say_more() {
        let payload = vec![b'h'; MAX_DATA * 2 + 5];
        let mut out = Vec::new();
        put_long_frame(&mut out, FrameKind::Request, 0, Exchange(1), &payload);
        let got: Vec<_> = frames(&out).collect::<Result<_, _>>().expect("well formed");
        assert_eq!(got.iter().map(|f| f.has(FLAG_MORE)).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(got.iter().map(|f| f.payload.len()).sum::<usize>(), payload.len());
    }

    #[test]
    fn pairs_keep_order_and_spelling_and_common_names_are_short() {
        let mut out = Vec::new();
        let mut w = PairsWriter::new(&mut out);
        w.pair(b"Host", b"a.example").expect("short");
        w.pair(b"X-Own", b"").expect("short");
        w.pair(b"host", b"b").expect("short");
        w.finish();
        assert_eq!(out[2], 1);
        let mut r = Reader::new(&out);
        let pairs = Pairs::decode(&mut r).expect("well formed");
        assert!(r.is_empty());
        let got: Vec<_> = pairs.iter().collect();
        assert_eq!(got, [(&b"Host"[..], &b"a.example"[..]), (b"X-Own", b""), (b"host", b"b")]);
    }

    #[test]
    fn a_pair_with_a_nul_byte_or_an_unknown_code_is_refused() {
        let mut out = Vec::new();
        let mut w = PairsWriter::new(&mut out);
        w.pair(b"X", b"a\0b").expect("short");
        w.finish();
        assert!(Pairs::decode(&mut Reader::new(&out)).is_err());
        assert!(Pairs::decode(&mut Reader::new(&[0, 1, 200, 0, 0])).is_err());
    }

    #[test]
    fn a_value_beyond_two_bytes_of_length_is_not_sent() {
        let mut out = Vec::new();
        let mut w = PairsWriter::new(&mut out);
        assert_eq!(w.pair(b"X", &vec![b'v'; 65_536]), Err(TooLong));
    }
}
