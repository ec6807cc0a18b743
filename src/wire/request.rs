//! The request head, and the frames that carry its body.
//!
//! Runs in: frontend (encodes), worker (decodes).  Trusts: nothing it decodes.  Owns: the layout of the request head.
//! Never: does I/O, panics on any input.

use super::codec::{Malformed, Put, Reader};
use super::frame::{Pairs, DATA_VERSION};

/// The client spoke TLS to the frontend.
pub const REQUEST_TLS: u8 = 1;
/// A body follows, its length is in `content_length`.
pub const REQUEST_LENGTH: u8 = 2;
/// A body of unknown length follows.
pub const REQUEST_CHUNKED: u8 = 4;
/// The client holds the body back until it is asked for (`Expect: 100-continue`).
pub const REQUEST_EXPECT: u8 = 8;
/// The frontend has checked `SSLRequireSSL`, `SSLRequire` and client certificates of virtual host and Location.
pub const REQUEST_TLS_CHECKED: u8 = 16;
/// The request came of a redirect or is a subrequest: at the end stands the line that the client itself has sent.
pub const REQUEST_DERIVED: u8 = 32;
/// The frontend takes META twice: with the beginning of a response whose end may never come, too.
pub const REQUEST_EARLY_META: u8 = 64;
/// The address of the user agent is the connection's own, whatever its text says: there is one record of both.
pub const REQUEST_ONE_ADDRESS: u8 = 128;

/// In the environment, after a redirect: URL and query string before it. Not names of variables.
pub const PREVIOUS_URL: &[u8] = b"pool-previous-url";
pub const PREVIOUS_ARGS: &[u8] = b"pool-previous-args";
/// In the environment of a subrequest, or of an error document: where it fails, the frontend says what it has to say of
/// that, and no other document takes its place.
pub const PART: &[u8] = b"pool-part";
/// In the environment: what the frontend offers in the field `Upgrade` of the response. Not the name of a variable.
pub const UPGRADE: &[u8] = b"pool-upgrade";
/// In the environment, in front of the names of mod_http2's variables: they are variables only from fixups on.
pub const HTTP2: &[u8] = b"pool-http2-";

/// One end of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Address<'a> {
    /// Numeric, as httpd prints it.
    pub ip: &'a [u8],
    pub port: u16,
}

impl<'a> Address<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_short(self.ip);
        out.put_u16(self.port);
    }

    fn decode(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self { ip: r.short()?, port: r.u16()? })
    }
}

/// A request without its headers; headers, environment and TLS variables follow as three lists of pairs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestHead<'a> {
    pub flags: u8,
    /// Place of the virtual host in the configuration, counted from 0 for the main server.
    pub server_index: u32,
    /// Hash of that virtual host's own definition; both sides must agree.
    pub server_hash: u64,
    /// Microseconds since 1970.
    pub request_time: i64,
    /// Bytes; only with [`REQUEST_LENGTH`].
    pub content_length: u64,
    pub connection_id: u64,
    pub keepalives: u32,
    /// As the client sent it; with [`REQUEST_DERIVED`] as the frontend has made it.
    pub request_line: &'a [u8],
    pub local: Address<'a>,
    pub client: Address<'a>,
    /// Differs from `client` behind a trusted proxy (mod_remoteip).
    pub useragent: Address<'a>,
    /// Host name of the client, when the frontend has looked it up; else empty.
    pub remote_host: &'a [u8],
    /// Log id of the request, or empty.
    pub log_id: &'a [u8],
    /// Log id of the connection, or empty.
    pub connection_log_id: &'a [u8],
}

impl RequestHead<'_> {
    /// Appends version and fields; the three lists come after it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(DATA_VERSION);
        out.put_u8(self.flags);
        out.put_u32(self.server_index);
        out.put_u64(self.server_hash);
        out.put_i64(self.request_time);
        out.put_u64(self.content_length);
        out.put_u64(self.connection_id);
        out.put_u32(self.keepalives);
        out.put_short(self.request_line);
        self.local.encode(out);
        self.client.encode(out);
        self.useragent.encode(out);
        out.put_short(self.remote_host);
        out.put_short(self.log_id);
        out.put_short(self.connection_log_id);
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A whole request as the worker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    pub head: RequestHead<'a>,
    pub headers: Pairs<'a>,
    /// subprocess_env as the frontend's modules left it.
    pub env: Pairs<'a>,
    /// Values of mod_ssl's variables (`HTTPS`, `SSL_*`); empty without TLS.
    pub tls: Pairs<'a>,
    /// The client's own request line, with [`REQUEST_DERIVED`]; else empty.
    pub client_line: &'a [u8],
}

impl<'a> Request<'a> {
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(payload);
        if r.u8()? != DATA_VERSION {
            return Err(Malformed::Field("protocol version"));
        }
        let head = RequestHead {
            flags: r.u8()?,
            server_index: r.u32()?,
            server_hash: r.u64()?,
            request_time: r.i64()?,
            content_length: r.u64()?,
            connection_id: r.u64()?,
            keepalives: r.u32()?,
            request_line: r.short()?,
            local: Address::decode(&mut r)?,
            client: Address::decode(&mut r)?,
            useragent: Address::decode(&mut r)?,
            remote_host: r.short()?,
            log_id: r.short()?,
            connection_log_id: r.short()?,
        };
        let headers = Pairs::decode(&mut r)?;
        let env = Pairs::decode(&mut r)?;
        let tls = Pairs::decode(&mut r)?;
        let client_line = if head.has(REQUEST_DERIVED) { r.short()? } else { &[] };
        r.finish()?;
        Ok(Self { head, headers, env, tls, client_line })
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::PairsWriter;
    use super::*;

    fn sample(out: &mut Vec<u8>) {
        RequestHead {
            flags: REQUEST_TLS | REQUEST_LENGTH,
            server_index: 3,
            server_hash: 0x1122_3344_5566_7788,
            request_time: 1_700_000_000_000_000,
            content_length: 12,
            connection_id: 9,
            keepalives: 2,
            request_line: b"POST /a%20b?c HTTP/1.1",
            local: Address { ip: b"127.0.0.1", port: 8443 },
            client: Address { ip: b"::1", port: 50_000 },
            useragent: Address { ip: b"192.0.2.7", port: 0 },
            remote_host: b"",
            log_id: b"abc",
            connection_log_id: b"def",
        }
        .encode(out);
        let mut w = PairsWriter::new(out);
        w.pair(b"Host", b"a.example").expect("short");
        w.finish();
        let mut w = PairsWriter::new(out);
        w.pair(b"UNIQUE_ID", b"x").expect("short");
        w.finish();
        PairsWriter::new(out).finish();
    }

    #[test]
    fn a_request_survives_the_round_trip() {
        let mut out = Vec::new();
        sample(&mut out);
        let got = Request::decode(&out).expect("well formed");
        assert_eq!(got.head.request_line, b"POST /a%20b?c HTTP/1.1");
        assert_eq!(got.head.useragent, Address { ip: b"192.0.2.7", port: 0 });
        assert_eq!(got.headers.iter().collect::<Vec<_>>(), [(&b"Host"[..], &b"a.example"[..])]);
        assert_eq!((got.env.len(), got.tls.len()), (1, 0));
    }

    #[test]
    fn a_derived_request_ends_with_the_clients_own_line() {
        let mut out = Vec::new();
        sample(&mut out);
        out[1] |= REQUEST_DERIVED;
        assert_eq!(Request::decode(&out), Err(Malformed::Truncated));
        out.put_short(b"GET /first HTTP/1.1");
        assert_eq!(Request::decode(&out).expect("well formed").client_line, b"GET /first HTTP/1.1");
    }

    #[test]
    fn every_truncation_and_any_excess_is_an_error() {
        let mut out = Vec::new();
        sample(&mut out);
        for n in 0..out.len() {
            assert!(Request::decode(&out[..n]).is_err(), "cut to {n}");
        }
        out.push(0);
        assert_eq!(Request::decode(&out), Err(Malformed::Trailing));
    }

    #[test]
    fn another_version_is_refused() {
        let mut out = Vec::new();
        sample(&mut out);
        out[0] = DATA_VERSION + 1;
        assert_eq!(Request::decode(&out), Err(Malformed::Field("protocol version")));
    }
}
