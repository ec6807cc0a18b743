//! Sequences of frames made of bytes, and what must hold whatever a worker sends. The test of this name feeds random bytes,
//! the fuzzer those that it finds.

use mod_pool::wire::codec::Put;
use mod_pool::wire::exchange::{canonical_length, ResponseChecker, Stage, Step};
use mod_pool::wire::frame::{frames, put_frame, Exchange, FrameKind, PairsWriter, FLAG_FLUSH, FLAG_LAST, FLAG_MORE};
use mod_pool::wire::response::{put_response_end, put_response_head, FileRange, LogLine, Meta};

const EXCHANGE: Exchange = Exchange(0x0001_0001);
/// Most frames of one sequence.
const MOST: usize = 300;
const OFF_T_MAX: u128 = i64::MAX as u128;

const LENGTHS: [u64; 14] = [
    0,
    1,
    5,
    7,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 62,
    (1 << 63) - 8,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 6,
    u64::MAX - 1,
    u64::MAX,
];
const STATUSES: [u16; 16] = [200, 200, 200, 206, 404, 204, 304, 205, 599, 99, 100, 101, 199, 600, 0, 65_535];
const CONTENT_LENGTHS: [&str; 22] = [
    "0",
    "5",
    "7",
    "12",
    "007",
    "00000000000000000000000000000005",
    "+5",
    "-5",
    " 5",
    "5 ",
    "0x5",
    "5,5",
    "5, 5",
    "",
    "5\u{661}",
    "4294967296",
    "9223372036854775806",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551621",
    "99999999999999999999999999",
];

/// What the bytes of one sequence were good for.
#[derive(Debug, Default, Clone, Copy)]
pub struct Reached {
    pub heads: u32,
    pub ends: u32,
    pub aborts: u32,
    pub violations: u32,
    /// Sequences in which the lengths of frames, refused ones too, were more than an `apr_off_t` holds.
    pub beyond: u32,
}

/// A reckoning of its own, in numbers that cannot overflow here.
#[derive(Debug, Default)]
struct Model {
    heads: u32,
    open_head: bool,
    bodiless: bool,
    announced: Option<u128>,
    sum: u128,
    offered: u128,
    interims: u32,
    metas: u32,
    log_lines: u32,
    over: bool,
}

struct Bytes<'b, I: Iterator<Item = u8>>(&'b mut I);

impl<I: Iterator<Item = u8>> Bytes<'_, I> {
    fn byte(&mut self) -> u8 {
        self.0.next().unwrap_or(0)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }
}

/// Makes one sequence of `bytes` and checks each step of it.
pub fn check(bytes: &mut impl Iterator<Item = u8>) -> Reached {
    let mut bytes = Bytes(bytes);
    let answers_head = bytes.byte() < 32;
    let mut checker = ResponseChecker::new(EXCHANGE, answers_head);
    let mut model = Model::default();
    let mut reached = Reached::default();
    let mut behind_the_end = 0;
    for _ in 0..MOST {
        let mut message = Vec::new();
        put(&mut message, &mut bytes, checker.stage());
        let frame = frames(&message).next().expect("one frame").expect("well formed");
        if let (FrameKind::File, Ok(range)) = (frame.kind, FileRange::decode(frame.payload)) {
            model.offered += u128::from(range.length);
        }
        let was_over = model.over;
        let before = (checker.stage(), checker.total());
        match checker.take(&frame) {
            Err(_) => {
                reached.violations += u32::from(!was_over);
                model.over = true;
                assert_eq!((checker.stage(), checker.total()), before, "a frame that was refused changed something");
            }
            Ok(step) => {
                assert!(!was_over, "{frame:?} was taken behind the end");
                assert_eq!(frame.exchange, EXCHANGE);
                model.follow(&step, answers_head);
                if matches!(frame.kind, FrameKind::Head) {
                    model.open_head = frame.has(FLAG_MORE);
                }
            }
        }
        assert!(model.sum <= OFF_T_MAX);
        assert_eq!(u128::from(checker.total()), model.sum);
        assert_eq!(checker.stage() == Stage::Waiting, model.heads == 0);
        if model.over {
            behind_the_end += 1;
            if behind_the_end > 3 {
                break;
            }
        } else {
            completes(checker.clone(), &model);
        }
    }
    reached.heads = model.heads;
    reached.ends = u32::from(matches!(checker.stage(), Stage::Complete { .. }));
    reached.aborts = u32::from(model.over && reached.ends == 0 && reached.violations == 0);
    reached.beyond = u32::from(model.offered > OFF_T_MAX);
    reached
}

impl Model {
    fn follow(&mut self, step: &Step<'_>, answers_head: bool) {
        match step {
            Step::Head(head) => {
                self.heads += 1;
                assert_eq!(self.heads, 1, "a second head");
                let seen = head.get();
                assert!((200..1000).contains(&seen.status));
                let lengths = seen.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case(b"Content-Length"));
                let lengths: Vec<_> = lengths.map(|(_, value)| canonical_length(value)).collect();
                assert!(lengths.len() <= 1);
                self.bodiless = answers_head || seen.status == 204 || seen.status == 304;
                if let Some(digits) = lengths.first() {
                    let text = std::str::from_utf8(digits).expect("digits");
                    let n: u128 = text.parse().expect("digits");
                    assert_eq!(n.to_string(), text, "not as everybody writes it");
                    assert!(n <= OFF_T_MAX);
                    assert_eq!(head.length().map(u128::from), Some(n));
                    self.announced = Some(n).filter(|_| !self.bodiless);
                }
            }
            Step::Data(bytes) => self.body(bytes.len() as u128),
            Step::File(range) => self.body(u128::from(range.length)),
            Step::Interim(head) => {
                self.interims += 1;
                assert!(self.heads == 0 && self.interims <= 32);
                assert!((102..200).contains(&head.status));
            }
            Step::Meta => {
                self.metas += 1;
                assert!(self.metas <= 2);
            }
            Step::Log(_) => {
                self.log_lines += 1;
                assert!(self.log_lines <= 200);
            }
            Step::LogLimit => assert_eq!(self.log_lines, 200),
            Step::End(_) => {
                assert_eq!(self.heads, 1);
                assert!(self.announced.is_none_or(|n| n == self.sum), "an end after another length");
                self.over = true;
            }
            Step::Abort { .. } => self.over = true,
            Step::Nothing | Step::NeedBody => {}
        }
    }

    fn body(&mut self, n: u128) {
        assert_eq!(self.heads, 1, "a body before its head");
        assert!(!self.bodiless || n == 0, "a body where there is none");
        self.sum += n;
        assert!(self.announced.is_none_or(|announced| self.sum <= announced), "more than was announced");
    }
}

/// Whatever came before: an honest rest of the response is taken.
fn completes(mut checker: ResponseChecker, model: &Model) {
    if model.open_head {
        return;
    }
    let mut message = Vec::new();
    if model.heads == 0 {
        put_frame(&mut message, FrameKind::Head, 0, EXCHANGE, |out| {
            put_response_head(out, 200, b"");
            PairsWriter::new(out).finish();
        });
    }
    let left = model.announced.map_or(0, |announced| announced - model.sum);
    let length = u64::try_from(left).expect("no more than was announced");
    if length > 0 {
        put_frame(&mut message, FrameKind::File, 0, EXCHANGE, |out| FileRange { offset: 0, length }.encode(out));
    }
    put_frame(&mut message, FrameKind::End, FLAG_LAST, EXCHANGE, |out| {
        put_response_end(out, 0);
        PairsWriter::new(out).finish();
    });
    for frame in frames(&message) {
        let frame = frame.expect("well formed");
        assert!(checker.take(&frame).is_ok(), "{frame:?} is refused after {model:?}");
    }
    assert_eq!(checker.stage(), Stage::Complete { last: true });
}

/// Appends one frame: more often than not one that may stand here.
fn put<I: Iterator<Item = u8>>(out: &mut Vec<u8>, bytes: &mut Bytes<'_, I>, stage: Stage) {
    let choice = bytes.byte();
    let kind = match (choice >= 32, stage) {
        (true, Stage::Waiting) => bytes.pick(&[
            FrameKind::Head,
            FrameKind::Head,
            FrameKind::Interim,
            FrameKind::Log,
            FrameKind::Meta,
            FrameKind::NeedBody,
        ]),
        (true, Stage::Body) => bytes.pick(&[
            FrameKind::Data,
            FrameKind::Data,
            FrameKind::File,
            FrameKind::File,
            FrameKind::File,
            FrameKind::Log,
            FrameKind::Meta,
            FrameKind::End,
        ]),
        _ => bytes.pick(&[
            FrameKind::Request,
            FrameKind::Body,
            FrameKind::BodyEnd,
            FrameKind::BodyAbort,
            FrameKind::ClientGone,
            FrameKind::Head,
            FrameKind::Data,
            FrameKind::File,
            FrameKind::Meta,
            FrameKind::End,
            FrameKind::Interim,
            FrameKind::NeedBody,
            FrameKind::Log,
            FrameKind::Abort,
        ]),
    };
    let wild = bytes.byte();
    let flags = if wild % 16 == 1 { bytes.byte() & (FLAG_MORE | FLAG_FLUSH | FLAG_LAST) } else { 0 };
    let exchange = if wild % 64 == 2 { Exchange(u32::from(bytes.byte())) } else { EXCHANGE };
    put_frame(out, kind, flags, exchange, |out| {
        if wild % 64 == 4 {
            let len = bytes.byte() % 32;
            out.extend((0..len).map(|_| bytes.byte()));
        } else {
            payload(out, kind, bytes);
        }
    });
}

fn payload<I: Iterator<Item = u8>>(out: &mut Vec<u8>, kind: FrameKind, bytes: &mut Bytes<'_, I>) {
    match kind {
        FrameKind::Head | FrameKind::Interim => {
            let status = match (kind, bytes.byte() % 8) {
                (_, 0) => bytes.pick(&STATUSES),
                (FrameKind::Head, _) => 200,
                _ => 103,
            };
            let line: &[u8] = if bytes.byte() < 16 { bytes.pick(&[b"200 OK", b"200 O\rX", b"404 No"]) } else { b"" };
            put_response_head(out, status, line);
            let mut fields = PairsWriter::new(out);
            let mut field = |name: &[u8], value: &[u8]| assert!(fields.pair(name, value).is_ok());
            for _ in 0..(bytes.byte() % 8).saturating_sub(4) {
                match bytes.byte() % 8 {
                    0..4 => {
                        let name = bytes.pick(&[&b"Content-Length"[..], b"content-length", b"CONTENT-LENGTH"]);
                        let value = match bytes.byte() % 2 {
                            0 => bytes.pick(&LENGTHS).to_string(),
                            _ => bytes.pick(&CONTENT_LENGTHS).to_owned(),
                        };
                        field(name, value.as_bytes());
                    }
                    4 => field(b"Transfer-Encoding", b"chunked"),
                    5 => field(b"X", b"a"),
                    6 => field(b"X", &[bytes.byte().max(1)]),
                    _ => field(&[bytes.byte().max(b'!') & 0x7f], b"x"),
                }
            }
            fields.finish();
        }
        FrameKind::Data | FrameKind::Body => out.extend((0..bytes.byte() % 9).map(|_| b'd')),
        FrameKind::File => {
            let length = if bytes.byte() < 128 { bytes.pick(&LENGTHS) } else { 5 };
            let offset = if bytes.byte() < 32 { bytes.pick(&LENGTHS) } else { 0 };
            FileRange { offset, length }.encode(out);
        }
        FrameKind::Meta => {
            Meta { user: b"u", ..Meta::default() }.encode_strings(out);
            PairsWriter::new(out).finish();
            PairsWriter::new(out).finish();
        }
        FrameKind::End => {
            put_response_end(out, 0);
            PairsWriter::new(out).finish();
        }
        FrameKind::Log => LogLine {
            level: bytes.byte() % 18,
            module: b"mod_php.c",
            source: b"mod_php.c",
            source_line: 7,
            status: 0,
            text: b"text",
        }
        .encode(out),
        FrameKind::Abort => {
            out.put_u8(bytes.byte() % 6);
            out.put_short(b"why");
        }
        FrameKind::Request
        | FrameKind::BodyEnd
        | FrameKind::BodyAbort
        | FrameKind::ClientGone
        | FrameKind::NeedBody => {}
    }
}
