//! What a worker may send in one exchange, in which order, and how much: the rules that no single frame can break.
//!
//! Runs in: frontend.  Trusts: nothing it is given.  Owns: how far the response is, and its sums.
//! Never: does I/O, passes on a frame that no rule allows, adds what a peer has sent without looking at the sum.

use super::codec::Malformed;
use super::frame::{
    Exchange, Frame, FrameKind, FLAG_LAST, FLAG_MORE, MAX_INTERIM, MAX_LOG_LINES, MAX_METAS, MAX_RESPONSE_HEAD,
    MAX_RESPONSE_LENGTH,
};
use super::response::{Abort, FileRange, LogLine, Meta, ResponseEnd, ResponseHead};
use std::borrow::Cow;
use std::fmt;

const RESET_CONTENT: u16 = 205;

/// What the response has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// No head has come.
    Waiting,
    /// The head has come, and the end has not.
    Body,
    /// The end has come; with `last` the worker takes no further request.
    Complete { last: bool },
}

/// What is wrong with a frame, in the log's words behind "it sent".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// Its payload cannot be decoded.
    Malformed(Malformed),
    /// It must not come here.
    Rule(&'static str),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => what.fmt(f),
            Self::Rule(what) => f.write_str(what),
        }
    }
}

impl From<Malformed> for Violation {
    fn from(what: Malformed) -> Self {
        Self::Malformed(what)
    }
}

/// A final head, whole and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalHead<'f> {
    bytes: Cow<'f, [u8]>,
    length: Option<u64>,
    ends_connection: bool,
    flags: u8,
}

impl FinalHead<'_> {
    pub fn get(&self) -> ResponseHead<'_> {
        ResponseHead::checked_before(&self.bytes)
    }

    /// What its `Content-Length` says: at most [`MAX_RESPONSE_LENGTH`].
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// Recipients do not agree whether this response has a body (205): none of them may find a further response behind it.
    pub fn ends_connection(&self) -> bool {
        self.ends_connection
    }

    /// It asks for the end of its connection, or for an older protocol, in this way: `FLAG_CLOSE` or one of `STEERING`.
    pub fn asks(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// What a frame that is right means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<'f> {
    /// More of it is to come, or it is dropped by a documented limit.
    Nothing,
    Head(FinalHead<'f>),
    Data(&'f [u8]),
    File(FileRange),
    Interim(ResponseHead<'f>),
    NeedBody,
    /// A whole META has come: [`ResponseChecker::meta`] has it.
    Meta,
    Log(LogLine<'f>),
    /// The first line beyond [`MAX_LOG_LINES`].
    LogLimit,
    End(ResponseEnd<'f>),
    /// The exchange is over without a response, or in the middle of one; with `last` the worker takes no further request.
    Abort {
        abort: Abort<'f>,
        last: bool,
    },
}

/// Takes the frames of one exchange, in the order in which they come.
#[derive(Debug, Clone)]
pub struct ResponseChecker {
    exchange: Exchange,
    stage: Stage,
    /// Nothing more may come: END, ABORT or a violation was there.
    over: bool,
    answers_head: bool,
    bodiless: bool,
    announced: Option<u64>,
    total: u64,
    /// Parts of a HEAD that is not whole yet.
    head: Vec<u8>,
    /// Of the META that came last.
    meta: Vec<u8>,
    meta_complete: bool,
    metas: u32,
    interims: u32,
    log_lines: u32,
}

impl ResponseChecker {
    /// `answers_head`: the request is one of HEAD, whose answer has no body.
    pub fn new(exchange: Exchange, answers_head: bool) -> Self {
        Self {
            exchange,
            stage: Stage::Waiting,
            over: false,
            answers_head,
            bodiless: false,
            announced: None,
            total: 0,
            head: Vec::new(),
            meta: Vec::new(),
            meta_complete: false,
            metas: 0,
            interims: 0,
            log_lines: 0,
        }
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Bytes of body so far: at most [`MAX_RESPONSE_LENGTH`].
    pub fn total(&self) -> u64 {
        self.total
    }

    /// What the loggers shall know: the META that came last, if it is whole.
    pub fn meta(&self) -> Option<Meta<'_>> {
        if self.meta_complete {
            Meta::decode(&self.meta).ok()
        } else {
            None
        }
    }

    /// Says what the frame means. After an error, END or ABORT every further frame is an error.
    pub fn take<'f>(&mut self, frame: &Frame<'f>) -> Result<Step<'f>, Violation> {
        if frame.exchange != self.exchange {
            self.over = true;
            return Err(Violation::Rule("a frame of another exchange"));
        }
        if self.over {
            return Err(Violation::Rule("a frame behind the end of the response"));
        }
        let step = self.step(frame);
        self.over = matches!(step, Err(_) | Ok(Step::End(_) | Step::Abort { .. }));
        step
    }

    fn step<'f>(&mut self, frame: &Frame<'f>) -> Result<Step<'f>, Violation> {
        match frame.kind {
            FrameKind::Head => self.head(frame),
            FrameKind::Data => {
                self.count(frame.payload.len() as u64)?;
                Ok(Step::Data(frame.payload))
            }
            FrameKind::File => {
                let range = FileRange::decode(frame.payload)?;
                self.count(range.length)?;
                Ok(Step::File(range))
            }
            FrameKind::Interim => self.interim(frame.payload),
            FrameKind::NeedBody => Ok(Step::NeedBody),
            FrameKind::Meta => self.take_meta(frame),
            FrameKind::Log => self.log(frame.payload),
            FrameKind::End => self.end(frame),
            FrameKind::Abort => Ok(Step::Abort { abort: Abort::decode(frame.payload)?, last: frame.has(FLAG_LAST) }),
            FrameKind::Request | FrameKind::Body | FrameKind::BodyEnd | FrameKind::BodyAbort => {
                Err(Violation::Rule("a frame that only a frontend sends"))
            }
        }
    }

    fn head<'f>(&mut self, frame: &Frame<'f>) -> Result<Step<'f>, Violation> {
        if self.stage != Stage::Waiting {
            return Err(Violation::Rule("a second response head"));
        }
        let bytes = if frame.has(FLAG_MORE) || !self.head.is_empty() {
            if self.head.len() + frame.payload.len() > MAX_RESPONSE_HEAD {
                return Err(Violation::Rule("a response head beyond the limit"));
            }
            self.head.extend_from_slice(frame.payload);
            if frame.has(FLAG_MORE) {
                return Ok(Step::Nothing);
            }
            Cow::Owned(std::mem::take(&mut self.head))
        } else {
            Cow::Borrowed(frame.payload)
        };
        let head = ResponseHead::decode_final(&bytes)?;
        let length = announced(&head)?;
        self.bodiless = self.answers_head || matches!(head.status, 204 | 304);
        self.announced = if self.bodiless { None } else { length };
        let ends_connection = head.status == RESET_CONTENT && length != Some(0);
        self.stage = Stage::Body;
        Ok(Step::Head(FinalHead { bytes, length, ends_connection, flags: frame.flags }))
    }

    /// Counts bytes of the body against what the head announced, and what httpd can count.
    fn count(&mut self, n: u64) -> Result<(), Violation> {
        if self.stage != Stage::Body {
            return Err(Violation::Rule("a body without a head"));
        }
        if n > 0 && self.bodiless {
            return Err(Violation::Rule("a body where there is none"));
        }
        let total = self.total.checked_add(n).filter(|total| *total <= MAX_RESPONSE_LENGTH);
        let total = total.ok_or(Violation::Rule("more body than a length can say"))?;
        if self.announced.is_some_and(|announced| total > announced) {
            return Err(Violation::Rule("more body than its Content-Length"));
        }
        self.total = total;
        Ok(())
    }

    fn interim<'f>(&mut self, payload: &'f [u8]) -> Result<Step<'f>, Violation> {
        if self.stage != Stage::Waiting || self.interims == MAX_INTERIM {
            return Err(Violation::Rule("an interim response too late, or too many"));
        }
        self.interims += 1;
        let head = ResponseHead::decode_interim(payload)?;
        Ok(if head.status == 100 { Step::NeedBody } else { Step::Interim(head) })
    }

    fn take_meta<'f>(&mut self, frame: &Frame<'f>) -> Result<Step<'f>, Violation> {
        if self.meta_complete {
            if self.metas == MAX_METAS {
                return Err(Violation::Rule("META too often"));
            }
            self.meta.clear();
            self.meta_complete = false;
        }
        if self.meta.len() + frame.payload.len() > MAX_RESPONSE_HEAD {
            return Err(Violation::Rule("META beyond the limit"));
        }
        self.meta.extend_from_slice(frame.payload);
        if frame.has(FLAG_MORE) {
            return Ok(Step::Nothing);
        }
        Meta::decode(&self.meta)?;
        self.meta_complete = true;
        self.metas += 1;
        Ok(Step::Meta)
    }

    fn log<'f>(&mut self, payload: &'f [u8]) -> Result<Step<'f>, Violation> {
        let line = LogLine::decode(payload)?;
        self.log_lines = self.log_lines.saturating_add(1);
        Ok(match self.log_lines.checked_sub(MAX_LOG_LINES) {
            None | Some(0) => Step::Log(line),
            Some(1) => Step::LogLimit,
            Some(_) => Step::Nothing,
        })
    }

    fn end<'f>(&mut self, frame: &Frame<'f>) -> Result<Step<'f>, Violation> {
        if self.stage != Stage::Body {
            return Err(Violation::Rule("an end without a head"));
        }
        if self.announced.is_some_and(|announced| self.total < announced) {
            return Err(Violation::Rule("less body than its Content-Length"));
        }
        let end = ResponseEnd::decode(frame.payload)?;
        self.stage = Stage::Complete { last: frame.has(FLAG_LAST) };
        Ok(Step::End(end))
    }
}

/// What the head's only `Content-Length` says.
fn announced(head: &ResponseHead<'_>) -> Result<Option<u64>, Violation> {
    let mut length = None;
    for (name, value) in head.fields.iter() {
        if name.eq_ignore_ascii_case(b"Content-Length") {
            let n = parse_length(value);
            let n = n.filter(|_| length.is_none());
            length = Some(n.ok_or(Violation::Rule("a Content-Length that is no number, or two of them"))?);
        }
    }
    Ok(length)
}

/// Digits and nothing else, of a number that httpd can count to.
fn parse_length(value: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok().filter(|n| *n <= MAX_RESPONSE_LENGTH)
}

/// The digits of a `Content-Length` that was taken, without zeros in front: what everybody reads as the same number.
pub fn canonical_length(value: &[u8]) -> &[u8] {
    let zeros = value.iter().take_while(|b| **b == b'0').count();
    value.get(zeros.min(value.len().saturating_sub(1))..).unwrap_or(value)
}

#[cfg(test)]
mod tests;
