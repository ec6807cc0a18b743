//! What the worker sends: its frames, checked, and passed on to the client.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: nothing that the worker sends.
//! Owns: how far the response is.  Never: passes on what the decoders of `wire` have not checked.

use super::outcome::Stop;
use super::upload::Upload;
use super::{request, Run};
use crate::frontend::files::TenantFile;
use crate::httpd::{hooks, log};
use crate::sys::file;
use crate::wire::frame::{frames, Frame, FrameKind, FLAG_FLUSH, FLAG_LAST, FLAG_MORE, MAX_INTERIM, MAX_RESPONSE_HEAD};
use crate::wire::response::{
    is_hop_by_hop, may_be_trailer, Abort, FileRange, LogLine, Meta, ResponseEnd, ResponseHead,
};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;
use std::vec;

/// Most log lines of one request that reach the error log; the last one says so.
const MAX_LOG_LINES: u32 = 200;
/// With the beginning of a response, and at its end.
const MAX_METAS: u32 = 2;

/// What the response has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Waiting,
    Body,
    Complete { last: bool },
}

impl Run<'_> {
    /// A message. One that brings the response no further does not make the worker any less silent: otherwise a log
    /// line now and then would hold this thread and its client for ever.
    pub(super) fn message_in_time(&mut self, message: &[u8], fds: Vec<OwnedFd>) -> Result<(), Stop> {
        self.progressed = false;
        self.message(message, fds)?;
        if self.progressed {
            self.progress = Instant::now();
        } else if !self.patience.is_zero() && self.progress.elapsed() > self.patience {
            return Err(Stop::Silent);
        }
        Ok(())
    }

    /// All frames of one message. What is queued for the client points into `message`, so it is passed on before this
    /// returns.
    fn message(&mut self, message: &[u8], fds: Vec<OwnedFd>) -> Result<(), Stop> {
        let mut fds = fds.into_iter();
        let done = self.frames(message, &mut fds);
        self.doomed.extend(fds);
        done
    }

    fn frames(&mut self, message: &[u8], fds: &mut vec::IntoIter<OwnedFd>) -> Result<(), Stop> {
        let mut flush = false;
        let mut any = false;
        let mut all = frames(message);
        while let Some(frame) = all.next() {
            let frame = frame?;
            any = true;
            if frame.exchange != self.exchange() {
                return Err(Stop::Violation("a frame of another exchange".into()));
            }
            if matches!(self.stage, Stage::Complete { .. }) {
                return Err(Stop::Violation("a frame behind the end of the response".into()));
            }
            flush |= frame.has(FLAG_FLUSH);
            match self.frame(&frame, fds) {
                // The lease is used on after an honest abort: nothing else may have come with it.
                Err(Stop::Aborted { .. }) if all.next().is_some() || fds.len() > 0 => {
                    return Err(Stop::Violation("a frame behind the end of the response".into()));
                }
                done => done?,
            }
        }
        if !any {
            return Err(Stop::Violation("an empty message".into()));
        }
        if fds.len() > 0 {
            return Err(Stop::Violation("a file descriptor that no frame speaks of".into()));
        }
        match self.stage {
            Stage::Complete { .. } => self.out.finish()?,
            Stage::Body => self.out.pass(flush)?,
            Stage::Waiting => {}
        }
        Ok(())
    }

    fn frame(&mut self, frame: &Frame<'_>, fds: &mut impl Iterator<Item = OwnedFd>) -> Result<(), Stop> {
        match frame.kind {
            FrameKind::Head => self.head(frame),
            FrameKind::Data => self.data(frame.payload),
            FrameKind::File => self.file(frame.payload, fds.next()),
            FrameKind::Interim => self.interim(frame.payload),
            FrameKind::NeedBody => self.need_body(),
            FrameKind::Meta => self.meta(frame),
            FrameKind::End => self.end(frame),
            FrameKind::Log => self.log(frame.payload),
            FrameKind::Abort => {
                let abort = Abort::decode(frame.payload)?;
                let text = String::from_utf8_lossy(abort.text).into_owned();
                Err(Stop::Aborted { reason: abort.reason, text, last: frame.has(FLAG_LAST) })
            }
            FrameKind::Request | FrameKind::Body | FrameKind::BodyEnd | FrameKind::BodyAbort => {
                Err(Stop::Violation("a frame that only a frontend sends".into()))
            }
        }
    }

    fn head(&mut self, frame: &Frame<'_>) -> Result<(), Stop> {
        if self.stage != Stage::Waiting {
            return Err(Stop::Violation("a second response head".into()));
        }
        if frame.has(FLAG_MORE) || !self.head.is_empty() {
            if self.head.len() + frame.payload.len() > MAX_RESPONSE_HEAD {
                return Err(Stop::Violation("a response head beyond the limit".into()));
            }
            self.head.extend_from_slice(frame.payload);
            if frame.has(FLAG_MORE) {
                return Ok(());
            }
            let head = std::mem::take(&mut self.head);
            return self.apply_head(&ResponseHead::decode_final(&head)?);
        }
        self.apply_head(&ResponseHead::decode_final(frame.payload)?)
    }

    fn apply_head(&mut self, head: &ResponseHead<'_>) -> Result<(), Stop> {
        let mut length = None;
        let mut bytes = head.status_line.len();
        for (name, value) in head.fields.iter() {
            bytes += name.len() + value.len() + ": \r\n".len();
            if name.eq_ignore_ascii_case(b"Content-Length") {
                let text = std::str::from_utf8(value).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
                let n = text.and_then(|t| t.parse::<u64>().ok());
                let Some(n) = n.filter(|_| length.is_none()) else {
                    return Err(Stop::Violation("a Content-Length that is no number, or two of them".into()));
                };
                length = Some(n);
            }
        }
        self.bodiless = self.r.method() == b"HEAD" || matches!(head.status, 204 | 304);
        self.remaining = if self.bodiless { None } else { length };
        if self.upload == Upload::Cut || (self.upload != Upload::Complete && head.status >= 400) {
            // The client may still send for long; after this answer nobody reads it.
            self.out.client.close_after();
        }
        self.out.client.set_head(head.status, head.status_line, passable(head));
        self.out.head(bytes);
        self.stage = Stage::Body;
        self.progressed = true;
        Ok(())
    }

    /// Counts bytes of the body against what the head announced.
    fn count(&mut self, n: u64) -> Result<(), Stop> {
        if self.stage != Stage::Body {
            return Err(Stop::Violation("a body without a head".into()));
        }
        if n > 0 && self.bodiless {
            return Err(Stop::Violation("a body where there is none".into()));
        }
        if let Some(left) = &mut self.remaining {
            *left = left.checked_sub(n).ok_or(Stop::Violation("more body than its Content-Length".into()))?;
        }
        self.progressed |= n > 0;
        Ok(())
    }

    fn data(&mut self, payload: &[u8]) -> Result<(), Stop> {
        self.count(payload.len() as u64)?;
        self.out.data(payload)?;
        Ok(())
    }

    fn file(&mut self, payload: &[u8], fd: Option<OwnedFd>) -> Result<(), Stop> {
        let fd = fd.ok_or(Stop::Violation("a file without its descriptor".into()))?;
        let counted = FileRange::decode(payload).map_err(Stop::from).and_then(|range| {
            self.count(range.length)?;
            Ok(range)
        });
        let range = match counted {
            Ok(range) => range,
            Err(stop) => {
                self.doomed.push(fd);
                return Err(stop);
            }
        };
        let Some(plain) = file::plain(fd.as_fd()) else {
            self.doomed.push(fd);
            return Err(Stop::Violation("a descriptor that is no plain file of a local file system".into()));
        };
        let file = TenantFile::new(self.files, fd, plain);
        if range.offset.checked_add(range.length).is_none_or(|end| end > plain.size) {
            return Err(Stop::Violation("a file that is shorter than its range".into()));
        }
        self.out.file(file, range.offset, range.length);
        Ok(())
    }

    fn interim(&mut self, payload: &[u8]) -> Result<(), Stop> {
        self.interim += 1;
        if self.stage != Stage::Waiting || self.interim > MAX_INTERIM {
            return Err(Stop::Violation("an interim response too late, or too many".into()));
        }
        let head = ResponseHead::decode_interim(payload)?;
        if head.status == 100 {
            return self.need_body();
        }
        self.progressed = true;
        // What a part of a page says stands in the middle of the page's own body. And no thread waits for a client to take
        // what it can do without.
        if !self.r.is_subrequest() && self.out.takes_at_once(payload.len()) {
            let fields = passable(&head).filter(|(name, _)| !name.eq_ignore_ascii_case(b"Content-Length"));
            self.out.client.send_interim(head.status, fields);
        }
        Ok(())
    }

    fn need_body(&mut self) -> Result<(), Stop> {
        if self.upload == Upload::HeldBack {
            if self.stage == Stage::Waiting {
                self.out.client.send_continue();
            }
            self.upload = Upload::Running;
            self.progressed = true;
        }
        Ok(())
    }

    fn meta(&mut self, frame: &Frame<'_>) -> Result<(), Stop> {
        if self.meta_complete {
            if self.metas == MAX_METAS {
                return Err(Stop::Violation("META too often".into()));
            }
            self.meta.clear();
            self.meta_complete = false;
        }
        if self.meta.len() + frame.payload.len() > MAX_RESPONSE_HEAD {
            return Err(Stop::Violation("META beyond the limit".into()));
        }
        self.meta.extend_from_slice(frame.payload);
        if !frame.has(FLAG_MORE) {
            Meta::decode(&self.meta)?;
            self.meta_complete = true;
            self.metas += 1;
        }
        Ok(())
    }

    fn end(&mut self, frame: &Frame<'_>) -> Result<(), Stop> {
        if self.stage != Stage::Body {
            return Err(Stop::Violation("an end without a head".into()));
        }
        if self.remaining.is_some_and(|left| left > 0) {
            return Err(Stop::Violation("less body than its Content-Length".into()));
        }
        let end = ResponseEnd::decode(frame.payload)?;
        for (name, value) in end.trailers.iter() {
            if may_be_trailer(name) {
                self.out.client.set_trailer(name, value);
            }
        }
        self.tell_loggers();
        self.progressed = true;
        self.lease.processor = end.processor;
        self.stage = Stage::Complete { last: frame.has(FLAG_LAST) };
        Ok(())
    }

    /// What the worker said for the loggers gets into the request.
    pub(super) fn tell_loggers(&self) {
        if let (true, Ok(meta)) = (self.meta_complete, Meta::decode(&self.meta)) {
            request::apply_meta(self.r, &meta, self.logged);
        }
    }

    fn log(&mut self, payload: &[u8]) -> Result<(), Stop> {
        let line = LogLine::decode(payload)?;
        self.log_lines += 1;
        if self.log_lines > MAX_LOG_LINES {
            if self.log_lines == MAX_LOG_LINES + 1 {
                self.note("further log lines of this request are dropped");
            }
            return Ok(());
        }
        let module = CString::new(line.module).map_or(-1, |name| hooks::module_index(&name));
        let mut text = format!("[pool {} pid {}] ", self.pool_name, self.lease.pid).into_bytes();
        text.extend_from_slice(line.text);
        log::request_as(module, line.level, self.r, text);
        Ok(())
    }

    fn note(&self, text: &str) {
        log::request(log::Level::Warning, self.r, format!("[pool {} pid {}] {text}", self.pool_name, self.lease.pid));
    }
}

/// The fields that go on to the client: those of one connection are the frontend's own business.
fn passable<'f>(head: &ResponseHead<'f>) -> impl Iterator<Item = (&'f [u8], &'f [u8])> {
    head.fields.iter().filter(|(name, _)| !is_hop_by_hop(name))
}
