//! docs/protocol.md against the code: its example, its limits, its list of common names.

use mod_pool::policy::{ABANDONED_GRACE, DEAD_GRACE};
use mod_pool::sys::socket::MAX_FDS;
use mod_pool::wire::codec::Put;
use mod_pool::wire::frame::{self, frames, put_frame, Exchange, FrameKind, PairsWriter};
use mod_pool::wire::request::{Address, Request, RequestHead};
use mod_pool::wire::response::{self, put_response_end, put_response_head, Meta, ResponseEnd, ResponseHead};
use mod_pool::wire::{control, interim};
use std::collections::BTreeSet;

const DOCUMENT: &str = include_str!("../docs/protocol.md");

/// The lend count of a first lending, and the first request of it.
const FIRST: Exchange = Exchange(1 << 16 | 1);

/// Lines of the fenced block with this label.
fn block(label: &str) -> Vec<&'static str> {
    let start = format!("```{label}");
    let lines: Vec<_> = DOCUMENT.lines().skip_while(|l| *l != start).skip(1).take_while(|l| *l != "```").collect();
    assert!(!lines.is_empty(), "the document has no block {label}");
    lines
}

/// Bytes of a block of hexadecimal lines; what is behind a semicolon explains.
fn bytes(label: &str) -> Vec<u8> {
    let hex = |line: &'static str| line.split(';').next().unwrap_or("").split_whitespace();
    block(label).into_iter().flat_map(hex).map(|b| u8::from_str_radix(b, 16).expect("two hexadecimal digits")).collect()
}

fn pairs(out: &mut Vec<u8>, list: &[(&str, &str)]) {
    let mut writer = PairsWriter::new(out);
    for (name, value) in list {
        writer.pair(name.as_bytes(), value.as_bytes()).expect("short");
    }
    writer.finish();
}

fn request_head() -> RequestHead<'static> {
    let client = Address { ip: b"198.51.100.7", port: 50_000 };
    RequestHead {
        server_index: 1,
        server_hash: 0x1122_3344_5566_7788,
        request_time: 1_700_000_000_000_000,
        connection_id: 7,
        request_line: b"GET / HTTP/1.1",
        local: Address { ip: b"192.0.2.1", port: 80 },
        client,
        useragent: client,
        ..RequestHead::default()
    }
}

#[test]
fn the_request_of_the_example_is_what_the_encoder_makes() {
    let mut out = Vec::new();
    put_frame(&mut out, FrameKind::Request, 0, FIRST, |out| {
        request_head().encode(out);
        pairs(out, &[("Host", "alice.example")]);
        pairs(out, &[]);
        pairs(out, &[]);
    });
    assert_eq!(bytes("hex request"), out);
    let frame = frames(&out).next().expect("a frame").expect("well formed");
    let request = Request::decode(frame.payload).expect("well formed");
    assert_eq!(request.head, request_head());
    assert_eq!(request.headers.iter().next(), Some((&b"Host"[..], &b"alice.example"[..])));
}

#[test]
fn the_response_of_the_example_is_what_the_encoder_makes() {
    let mut out = Vec::new();
    put_frame(&mut out, FrameKind::Head, 0, FIRST, |out| {
        put_response_head(out, 200, b"");
        pairs(out, &[("Content-Type", "text/plain"), ("Content-Length", "6")]);
    });
    put_frame(&mut out, FrameKind::Data, 0, FIRST, |out| out.put(b"hello\n"));
    put_frame(&mut out, FrameKind::Meta, 0, FIRST, |out| {
        Meta { handler: b"text/plain", filename: b"/home/alice/www/hi.txt", ..Meta::default() }.encode_strings(out);
        pairs(out, &[("colour", "blue")]);
        pairs(out, &[]);
    });
    put_frame(&mut out, FrameKind::End, 0, FIRST, |out| {
        put_response_end(out, 1);
        pairs(out, &[]);
    });
    assert_eq!(bytes("hex response"), out);
    let got: Vec<_> = frames(&out).collect::<Result<_, _>>().expect("well formed");
    assert_eq!(ResponseHead::decode_final(got[0].payload).expect("well formed").status, 200);
    assert_eq!(Meta::decode(got[2].payload).expect("well formed").filename, b"/home/alice/www/hi.txt");
    assert_eq!(ResponseEnd::decode(got[3].payload).expect("well formed").processor, 1);
}

#[test]
fn each_limit_in_the_document_has_the_value_of_its_constant() {
    let constants: [(&str, u64); 44] = [
        ("FLAG_MORE", frame::FLAG_MORE.into()),
        ("FLAG_FLUSH", frame::FLAG_FLUSH.into()),
        ("FLAG_LAST", frame::FLAG_LAST.into()),
        ("FLAG_CLOSE", frame::FLAG_CLOSE.into()),
        ("FLAG_NO_KEEPALIVE", frame::FLAG_NO_KEEPALIVE.into()),
        ("FLAG_DOWNGRADE", frame::FLAG_DOWNGRADE.into()),
        ("FLAG_FORCE_1_0", frame::FLAG_FORCE_1_0.into()),
        ("REQUEST_TLS", mod_pool::wire::request::REQUEST_TLS.into()),
        ("REQUEST_LENGTH", mod_pool::wire::request::REQUEST_LENGTH.into()),
        ("REQUEST_CHUNKED", mod_pool::wire::request::REQUEST_CHUNKED.into()),
        ("REQUEST_EXPECT", mod_pool::wire::request::REQUEST_EXPECT.into()),
        ("REQUEST_TLS_CHECKED", mod_pool::wire::request::REQUEST_TLS_CHECKED.into()),
        ("REQUEST_DERIVED", mod_pool::wire::request::REQUEST_DERIVED.into()),
        ("REQUEST_EARLY_META", mod_pool::wire::request::REQUEST_EARLY_META.into()),
        ("REQUEST_ONE_ADDRESS", mod_pool::wire::request::REQUEST_ONE_ADDRESS.into()),
        ("DATA_VERSION", frame::DATA_VERSION.into()),
        ("FRAME_HEAD_LEN", frame::FRAME_HEAD_LEN as u64),
        ("MAX_MESSAGE", frame::MAX_MESSAGE as u64),
        ("MAX_DATA", frame::MAX_DATA as u64),
        ("MAX_REQUEST_HEAD", frame::MAX_REQUEST_HEAD as u64),
        ("MAX_RESPONSE_HEAD", frame::MAX_RESPONSE_HEAD as u64),
        ("MAX_INTERIM", frame::MAX_INTERIM.into()),
        ("MAX_METAS", frame::MAX_METAS.into()),
        ("MAX_LOG_LINES", frame::MAX_LOG_LINES.into()),
        ("MAX_RESPONSE_LENGTH", frame::MAX_RESPONSE_LENGTH),
        ("MAX_LOG_TEXT", frame::MAX_LOG_TEXT as u64),
        ("MAX_LOG_SOURCE", frame::MAX_LOG_SOURCE as u64),
        ("MAX_FIELDS", response::MAX_FIELDS as u64),
        ("MAX_META_PAIRS", response::MAX_META_PAIRS as u64),
        ("MAX_FDS", MAX_FDS as u64),
        ("MAX_RAW_HEAD", interim::MAX_RAW_HEAD as u64),
        ("DEAD_GRACE", DEAD_GRACE),
        ("ABANDONED_GRACE", ABANDONED_GRACE),
        ("CONTROL_VERSION", control::CONTROL_VERSION.into()),
        ("MAX_CONTROL_MESSAGE", control::MAX_CONTROL_MESSAGE as u64),
        ("MAX_POOL_NAME", control::MAX_POOL_NAME as u64),
        ("MAX_TEXT", control::MAX_TEXT as u64),
        ("MAX_LOG_LINE", control::MAX_LOG_LINE as u64),
        ("MAX_POOLS", control::MAX_POOLS as u64),
        ("MAX_POOL_TABLE", control::MAX_POOL_TABLE as u64),
        ("MAX_SEED_ARGS", control::MAX_SEED_ARGS as u64),
        ("MAX_SEED_ARG", control::MAX_SEED_ARG as u64),
        ("MAX_PROCESSES", control::MAX_PROCESSES.into()),
        ("MAX_TIMEOUT_MS", control::MAX_TIMEOUT_MS),
    ];
    let mut seen = BTreeSet::new();
    for line in DOCUMENT.lines().filter(|l| l.starts_with("| `")) {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let (name, value) = (cells.next().unwrap_or("").trim_matches('`'), cells.next().unwrap_or(""));
        let known = constants.iter().find(|(known, _)| *known == name);
        let (name, expected) = known.unwrap_or_else(|| panic!("the document names {name}, this test does not"));
        assert_eq!(value.replace(',', "").parse(), Ok(*expected), "{name}");
        seen.insert(*name);
    }
    let missing: Vec<_> = constants.iter().filter(|(name, _)| !seen.contains(name)).collect();
    assert!(missing.is_empty(), "not in a table of the document: {missing:?}");
}

#[test]
fn each_kind_of_frame_has_the_number_of_the_document() {
    let kinds = [
        ("REQUEST", FrameKind::Request),
        ("BODY", FrameKind::Body),
        ("BODY_END", FrameKind::BodyEnd),
        ("BODY_ABORT", FrameKind::BodyAbort),
        ("CLIENT_GONE", FrameKind::ClientGone),
        ("HEAD", FrameKind::Head),
        ("DATA", FrameKind::Data),
        ("FILE", FrameKind::File),
        ("META", FrameKind::Meta),
        ("END", FrameKind::End),
        ("INTERIM", FrameKind::Interim),
        ("NEED_BODY", FrameKind::NeedBody),
        ("LOG", FrameKind::Log),
        ("ABORT", FrameKind::Abort),
    ];
    for (name, kind) in kinds {
        let row = format!("| {name} | {} |", kind as u8);
        assert!(DOCUMENT.lines().any(|l| l.starts_with(&row)), "no row begins with {row}");
    }
}

#[test]
fn the_common_names_are_those_of_the_document() {
    let names: Vec<&str> = block("names").into_iter().flat_map(str::split_whitespace).collect();
    assert_eq!(names, frame::COMMON_NAMES);
}
