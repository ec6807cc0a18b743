//! What the worker sends: its frames, checked by `wire::exchange`, and passed on to the client.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: nothing that the worker sends.
//! Owns: what each frame does.  Never: passes on what the checker of `wire` has not seen.

use super::outcome::Stop;
use super::upload::Upload;
use super::{request, Run};
use crate::frontend::errors;
use crate::frontend::files::TenantFile;
use crate::httpd::errorlog::Writer;
use crate::httpd::hooks;
use crate::httpd::log::{self, ForeignLine};
use crate::sys::file;
use crate::wire::exchange::{canonical_length, FinalHead, Stage, Step};
use crate::wire::frame::{frames, Frame, FLAG_CLOSE, FLAG_FLUSH, STEERING};
use crate::wire::response::{is_hop_by_hop, may_be_trailer, FileRange, LogLine, ResponseEnd, ResponseHead};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::vec;

impl Run<'_> {
    /// All frames of one message. What is queued for the client points into `message`, so it is passed on before this
    /// returns.
    pub(super) fn message(&mut self, message: &[u8], fds: Vec<OwnedFd>) -> Result<(), Stop> {
        let mut fds = fds.into_iter();
        let done = self.frames(message, &mut fds);
        self.doomed.extend(fds);
        done
    }

    fn frames(&mut self, message: &[u8], fds: &mut vec::IntoIter<OwnedFd>) -> Result<(), Stop> {
        let mut flush = false;
        let mut any = false;
        let mut aborted = None;
        for frame in frames(message) {
            let frame = frame?;
            any = true;
            flush |= frame.has(FLAG_FLUSH);
            match self.frame(&frame, fds) {
                // The lease is used on after an honest abort: nothing else may have come with it.
                Err(stop @ Stop::Aborted { .. }) => aborted = Some(stop),
                done => done?,
            }
        }
        if !any {
            return Err(Stop::Violation("an empty message".into()));
        }
        if fds.len() > 0 {
            return Err(Stop::Violation("a file descriptor that no frame speaks of".into()));
        }
        if let Some(stop) = aborted {
            return Err(stop);
        }
        match self.checker.stage() {
            Stage::Complete { .. } => self.out.finish()?,
            Stage::Body => self.out.pass(flush)?,
            Stage::Waiting => {}
        }
        Ok(())
    }

    fn frame(&mut self, frame: &Frame<'_>, fds: &mut impl Iterator<Item = OwnedFd>) -> Result<(), Stop> {
        match self.checker.take(frame)? {
            Step::Nothing | Step::Meta => Ok(()),
            Step::Head(head) => {
                self.head(&head);
                Ok(())
            }
            Step::Data(bytes) => self.data(bytes),
            Step::File(range) => self.file(range, fds.next()),
            Step::Interim(head) => {
                self.interim(&head, frame.payload.len());
                Ok(())
            }
            Step::NeedBody => {
                self.need_body();
                Ok(())
            }
            Step::Log(line) => {
                self.log(&line);
                Ok(())
            }
            Step::LogLimit => {
                self.note("further log lines of this request are dropped");
                Ok(())
            }
            Step::End(end) => {
                self.end(&end);
                Ok(())
            }
            Step::Abort { abort, last } => {
                let text = String::from_utf8_lossy(abort.text).into_owned();
                Err(Stop::Aborted { reason: abort.reason, text, last })
            }
        }
    }

    fn head(&mut self, checked: &FinalHead<'_>) {
        let head = checked.get();
        let bytes = head.fields.iter().map(|(name, value)| name.len() + value.len() + ": \r\n".len());
        let bytes = head.status_line.len() + bytes.sum::<usize>();
        let unread = self.upload == Upload::Cut || (self.upload != Upload::Complete && head.status >= 400);
        // The client may still send for long; after this answer nobody reads it.
        if unread || checked.ends_connection() {
            self.out.client.close_after();
        }
        self.out.client.set_head(head.status, head.status_line, passable(&head));
        if !self.r.is_subrequest() {
            let steering = STEERING.iter().filter(|(_, flag)| checked.asks(*flag)).map(|(name, _)| *name);
            for name in [c"Upgrade", c"Connection"] {
                let is_it = |(n, v): (&[u8], &[u8])| v.is_empty() && n.eq_ignore_ascii_case(name.to_bytes());
                if head.fields.iter().any(is_it) {
                    self.r.headers_out().unset(name);
                }
            }
            self.out.client.set_connection(checked.asks(FLAG_CLOSE), steering);
        }
        self.out.head(bytes);
        self.progressed = true;
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.progressed |= !bytes.is_empty();
        self.out.data(bytes)?;
        Ok(())
    }

    fn file(&mut self, range: FileRange, fd: Option<OwnedFd>) -> Result<(), Stop> {
        let fd = fd.ok_or(Stop::Violation("a file without its descriptor".into()))?;
        self.progressed = true;
        let Some(plain) = file::plain(fd.as_fd()) else {
            self.doomed.push(fd);
            return Err(Stop::Violation("a descriptor that is no plain file of a local file system".into()));
        };
        let file = TenantFile::new(self.files, fd, plain);
        if range.offset.checked_add(range.length).is_none_or(|end| end > plain.size) {
            return Err(Stop::Violation("a file that is shorter than its range".into()));
        }
        Ok(self.out.file(file, range.offset, range.length)?)
    }

    fn interim(&mut self, head: &ResponseHead<'_>, len: usize) {
        self.progressed = true;
        // What a part of a page says stands in the middle of the page's own body. And no thread waits for a client to take
        // what it can do without.
        if !self.r.is_subrequest() && self.out.takes_at_once(len) {
            let fields = passable(head).filter(|(name, _)| !name.eq_ignore_ascii_case(b"Content-Length"));
            self.out.client.send_interim(head.status, fields);
        }
    }

    fn need_body(&mut self) {
        if self.upload == Upload::HeldBack {
            if self.checker.stage() == Stage::Waiting {
                self.out.client.send_continue();
            }
            self.upload = Upload::Running;
            self.progressed = true;
        }
    }

    fn end(&mut self, end: &ResponseEnd<'_>) {
        for (name, value) in end.trailers.iter() {
            if may_be_trailer(name) {
                self.out.client.set_trailer(name, value);
            }
        }
        self.tell_loggers();
        self.progressed = true;
        self.lease.processor = end.processor;
    }

    /// What the worker said for the loggers gets into the request.
    pub(super) fn tell_loggers(&self) {
        if let Some(meta) = self.checker.meta() {
            request::apply_meta(self.r, &meta, self.logged);
        }
    }

    fn log(&mut self, line: &LogLine<'_>) {
        if !errors::takes_line(self.pool, line.text.len(), Some(self.r.useragent_ip())) {
            return;
        }
        let module = CString::new(line.module).map_or(-1, |name| hooks::module_index(&name));
        let writer = Writer { pool: self.pool_name, pid: self.lease.pid };
        let line = ForeignLine {
            level: line.level,
            module_index: module,
            status: line.status,
            source: line.source,
            source_line: line.source_line,
            text: line.text,
        };
        log::request_as(&writer, self.r, &line);
    }

    fn note(&self, text: &str) {
        log::request(log::Level::Warning, self.r, format!("[pool {} pid {}] {text}", self.pool_name, self.lease.pid));
    }
}

/// The fields that go on to the client: those of one connection are the frontend's own business, and of a length
/// everybody reads the same.
fn passable<'f>(head: &ResponseHead<'f>) -> impl Iterator<Item = (&'f [u8], &'f [u8])> {
    let canonical = |(name, value): (&'f [u8], &'f [u8])| {
        let is_length = name.eq_ignore_ascii_case(b"Content-Length");
        (name, if is_length { canonical_length(value) } else { value })
    };
    head.fields.iter().filter(|(name, _)| !is_hop_by_hop(name)).map(canonical)
}
