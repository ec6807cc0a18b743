//! The request as it is told to a worker, and what the loggers take over from the worker.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: httpd's request; nothing of META.
//! Owns: the list of names that a worker may not set.  Never: lets META change what the client gets.

use crate::apr::Table;
use crate::httpd::{client, frontend_tls, hand_over, RequestRec};
use crate::settings::{Claim, LoggedNames};
use crate::wire::codec::Put;
use crate::wire::frame::{
    put_frame, put_long_frame, Exchange, FrameKind, PairsWriter, TooLong, FRAME_HEAD_LEN, MAX_DATA, MAX_REQUEST_HEAD,
};
use crate::wire::request::{
    Address, RequestHead, HTTP2, PART, PREVIOUS_ARGS, PREVIOUS_URL, REQUEST_DERIVED, REQUEST_EARLY_META,
    REQUEST_ONE_ADDRESS, REQUEST_TLS, REQUEST_TLS_CHECKED, UPGRADE,
};
use crate::wire::response::Meta;
use std::borrow::Cow;

/// A virtual host, as both sides name it: place in the configuration, and hash of its definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerName {
    pub index: u32,
    pub hash: u64,
}

/// How the request announces its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyFlags {
    pub flags: u8,
    pub content_length: u64,
}

/// Why a request cannot be sent to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooLarge {
    Line,
    Field,
    Whole,
}

impl TooLarge {
    /// What httpd answers where its own limits are passed.
    pub fn status(self) -> u16 {
        match self {
            Self::Line => 414,
            Self::Field | Self::Whole => 431,
        }
    }

    pub fn text(self) -> String {
        match self {
            Self::Line => format!("its request line has more than {MAX_SHORT} bytes"),
            Self::Field => format!("a header field or variable has more than {MAX_SHORT} bytes"),
            Self::Whole => format!("its header fields and variables have more than {MAX_REQUEST_HEAD} bytes together"),
        }
    }
}

impl From<TooLong> for TooLarge {
    fn from(_: TooLong) -> Self {
        Self::Field
    }
}

/// Most bytes that the wire's short takes.
const MAX_SHORT: usize = u16::MAX as usize;

/// Appends the REQUEST frame, or frames.
pub fn put(
    out: &mut Vec<u8>,
    r: RequestRec<'_>,
    server: ServerName,
    exchange: Exchange,
    body: BodyFlags,
) -> Result<(), TooLarge> {
    let tls = frontend_tls::variables(r, |table| {
        let mut list = Vec::new();
        // What is longer than the wire takes (no variable of mod_ssl's is) is left out.
        let _ = put_table(&mut list, table);
        list
    });
    let tls_flags = if tls.is_some() { REQUEST_TLS | REQUEST_TLS_CHECKED } else { 0 };
    let line = request_line(r);
    let derived = if is_derived(r) { REQUEST_DERIVED } else { 0 };
    // Cut off it would ask for something else.
    if line.len().max(r.the_request().len()) > MAX_SHORT {
        return Err(TooLarge::Line);
    }
    let fragment = is_fragment(r);
    let mut result = Ok(());
    let start = out.len();
    put_frame(out, FrameKind::Request, 0, exchange, |out| {
        let flags = body.flags | tls_flags | derived | REQUEST_EARLY_META;
        head(r, server, BodyFlags { flags, ..body }, &line).encode(out);
        // An error's text has no body of its own, but its script is told how long the client's is.
        let told = |name: &[u8]| !r.is_subrequest() && name.eq_ignore_ascii_case(b"Content-Length");
        result = put_some(out, r.headers_in(), |name| !fragment || !is_of_the_whole(name) || told(name))
            .and_then(|()| put_env(out, r));
        match tls {
            Some(list) => out.put(list),
            None => PairsWriter::new(out).finish(),
        }
        if derived != 0 {
            out.put_short(r.the_request());
        }
    });
    result?;
    if out.len() - start > FRAME_HEAD_LEN + MAX_REQUEST_HEAD {
        return Err(TooLarge::Whole);
    }
    if out.len() - start > FRAME_HEAD_LEN + MAX_DATA {
        let payload = out.split_off(start + FRAME_HEAD_LEN);
        out.truncate(start);
        put_long_frame(out, FrameKind::Request, 0, exchange, &payload);
    }
    Ok(())
}

fn head<'a>(r: RequestRec<'a>, server: ServerName, body: BodyFlags, request_line: &'a [u8]) -> RequestHead<'a> {
    let peer = r.addresses();
    let one_address = if peer.one { REQUEST_ONE_ADDRESS } else { 0 };
    RequestHead {
        flags: body.flags | one_address,
        server_index: server.index,
        server_hash: server.hash,
        request_time: r.request_time(),
        content_length: body.content_length,
        connection_id: r.connection_id(),
        keepalives: r.keepalives(),
        request_line,
        local: Address { ip: peer.local.0, port: peer.local.1 },
        client: Address { ip: peer.client.0, port: peer.client.1 },
        useragent: Address { ip: peer.useragent.0, port: peer.useragent.1 },
        remote_host: peer.remote_host,
        log_id: r.log_id(),
        connection_log_id: r.connection_log_id(),
    }
}

/// A line for the log, with the request that it is about.
pub fn naming(r: RequestRec<'_>, text: String) -> Vec<u8> {
    [text.as_bytes(), b", for ", r.method(), b" ", r.unparsed_uri()].concat()
}

/// Not the request that the client has sent, but one that this server has made of it.
fn is_derived(r: RequestRec<'_>) -> bool {
    r.is_subrequest() || r.is_redirected()
}

/// What the worker is asked for. After a redirect, and in a subrequest, that is not what the client asked for: its line
/// would lead the worker to a place that this process has not checked.
fn request_line(r: RequestRec<'_>) -> Cow<'_, [u8]> {
    if !is_derived(r) {
        return Cow::Borrowed(r.the_request());
    }
    let protocol = if r.protocol().starts_with(b"HTTP/") { r.protocol() } else { b"HTTP/1.1" };
    Cow::Owned([r.method(), b" ", &r.escaped_uri(), b" ", protocol].concat())
}

/// A part of a response (SSI), or the text of an error: never answered by 304 or 206, and without a body of its own.
pub fn is_fragment(r: RequestRec<'_>) -> bool {
    r.is_subrequest() || (r.is_redirected() && r.status() != OK)
}

const OK: i32 = 200;

/// Fields that speak of the response as a whole, or of the client's body.
fn is_of_the_whole(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 10] = [
        b"Accept-Encoding",
        b"Content-Length",
        b"Expect",
        b"If-Match",
        b"If-Modified-Since",
        b"If-None-Match",
        b"If-Range",
        b"If-Unmodified-Since",
        b"Range",
        b"Transfer-Encoding",
    ];
    NAMES.iter().any(|n| name.eq_ignore_ascii_case(n))
}

fn put_table(out: &mut Vec<u8>, table: Table<'_>) -> Result<(), TooLong> {
    put_some(out, table, |_| true)
}

fn put_env(out: &mut Vec<u8>, r: RequestRec<'_>) -> Result<(), TooLong> {
    let mut writer = PairsWriter::new(out);
    let mut result = Ok(());
    let (url, args) = r.previous().map(|p| (p.uri(), p.args())).unwrap_or_default();
    let part: &[u8] = if is_fragment(r) { b"1" } else { b"" };
    // A filter of the pool's may take the offer back.
    let offer = if r.is_subrequest() { None } else { r.headers_out().get(c"Upgrade") };
    let own = [(PREVIOUS_URL, url), (PREVIOUS_ARGS, args), (PART, part), (UPGRADE, offer.unwrap_or_default())];
    let own = own.into_iter().filter(|(_, value)| !value.is_empty());
    let env = r.subprocess_env();
    let own_of_stream = |name: &[u8]| r.is_stream() && hand_over::is_http2_variable(name);
    for (name, value) in env.iter().filter(|(name, _)| !own_of_stream(name)).chain(own) {
        result = result.and(writer.pair(name, value));
    }
    for (name, value) in hand_over::http2_variables(r, env) {
        result = result.and(writer.pair(&[HTTP2, name].concat(), value));
    }
    writer.finish();
    result
}

fn put_some(out: &mut Vec<u8>, table: Table<'_>, wanted: impl Fn(&[u8]) -> bool) -> Result<(), TooLong> {
    let mut writer = PairsWriter::new(out);
    let mut result = Ok(());
    for (name, value) in table.iter().filter(|(name, _)| wanted(name)) {
        result = result.and(writer.pair(name, value));
    }
    writer.finish();
    result
}

/// The frames in `bytes`, each for a message of its own.
pub fn messages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = rest.get(8..FRAME_HEAD_LEN)?.try_into().map(u32::from_be_bytes).ok()?;
        let (frame, after) = rest.split_at_checked(FRAME_HEAD_LEN + usize::try_from(length).ok()?)?;
        rest = after;
        Some(frame)
    })
}

/// Most bytes of a request's trailers: with body before them they fit one message.
const MAX_TRAILERS: usize = 16 * 1024;

/// Appends BODY_END with the request's trailers, or with none where they are too long.
pub fn put_body_end(out: &mut Vec<u8>, trailers: Table<'_>, exchange: Exchange) {
    let start = out.len();
    put_frame(out, FrameKind::BodyEnd, 0, exchange, |out| {
        let _ = put_table(out, trailers);
    });
    if out.len() - start > MAX_TRAILERS {
        out.truncate(start);
        put_frame(out, FrameKind::BodyEnd, 0, exchange, |out| PairsWriter::new(out).finish());
    }
}

/// Appends BODY_ABORT.
pub fn put_body_abort(out: &mut Vec<u8>, status: u16, exchange: Exchange) {
    put_frame(out, FrameKind::BodyAbort, 0, exchange, |out| out.put_u16(status));
}

/// Names by which httpd's protocol filters and this module are told what to do: not for a worker to set, even where an
/// administrator logs them.
const RESERVED: [&[u8]; 12] = [
    b"nokeepalive",
    b"downgrade-1.0",
    b"force-response-1.0",
    b"force-no-vary",
    b"error-notes",
    b"proxy-initial-not-pooled",
    b"short-lingering-close",
    b"suppress-error-charset",
    b"ssl-unclean-shutdown",
    b"verbose-error-to",
    b"no-cache",
    b"unique_id",
];
/// As above, by the beginning of the name.
const RESERVED_PREFIXES: [&[u8]; 3] = [b"pool-", b"http2-", b"ssl-"];

fn may_set(name: &[u8]) -> bool {
    let begins = |prefix: &&[u8]| name.get(..prefix.len()).is_some_and(|n| n.eq_ignore_ascii_case(prefix));
    !RESERVED.iter().any(|n| name.eq_ignore_ascii_case(n)) && !RESERVED_PREFIXES.iter().any(begins)
}

/// Shows the loggers what the worker tells of the request: of notes and variables those that the logs ask for. A note
/// that a module of the frontend has made stays as it is, and nothing is taken that a log asks whether to log the request.
pub fn apply_meta(r: RequestRec<'_>, meta: &Meta<'_>, logged: &LoggedNames) {
    let told = |claim, said| if logged.takes(claim) { said } else { &[][..] };
    client::set_logged(
        r,
        told(Claim::User, meta.user),
        told(Claim::AuthType, meta.auth_type),
        told(Claim::Handler, meta.handler),
        told(Claim::FileName, meta.filename),
    );
    r.export_previous();
    let pool = r.pool();
    let (notes, env) = (r.notes(), r.subprocess_env());
    for (name, value) in meta.notes.iter().filter(|(name, _)| logged.takes_note(name) && may_set(name)) {
        let name = pool.copy_str(name);
        if notes.get(name).is_none() {
            notes.setn(name, pool.copy_str(value));
        }
    }
    for (name, value) in meta.env.iter().filter(|(name, _)| logged.takes_env(name) && may_set(name)) {
        env.setn(pool.copy_str(name), pool.copy_str(value));
    }
}
