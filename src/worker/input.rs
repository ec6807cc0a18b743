//! The input filter: the request's body from BODY frames, as `ap_http_filter` would have read it from the client.
//!
//! Runs in: worker.  Trusts: the frontend.  Owns: nothing.
//! Never: waits when its reader does not want to, reads past the end of the body.

use super::inbox::{Filled, Incoming};
use super::state::{with, Gone, Worker};
use crate::apr::brigade::{Brigade, Status};
use crate::httpd::rebuild::{self, BodyLength};
use crate::httpd::worker_filters::{answer_bad_body, Filter, ReadMode};
use crate::httpd::{log, RequestRec};
use crate::sys::socket::Blocking;
use crate::wire::codec::Reader;
use crate::wire::frame::FrameKind;
use crate::wire::response::decode_trailers;
use std::io;

/// Bytes that a reader who names no number gets at a time.
const USUAL: usize = 8 * 1024;
const REQUEST_TIMEOUT: i32 = 408;
const TOO_LARGE: i32 = 413;

/// In the place of httpd's body filter.
pub fn body(filter: Filter<'_>, mut brigade: Brigade<'_>, mode: ReadMode, blocking: Blocking) -> Result<(), Status> {
    with(|worker| worker.read_body(filter.request(), &mut brigade, mode, blocking)).unwrap_or(Err(Status::GENERAL))
}

/// A handler is about to run. One that wants no body has it dropped first, unless it is to describe an error.
pub fn handler_begins(r: RequestRec<'_>) {
    let sent = with(|worker| worker.response.head_sent.get()) == Some(true);
    if !r.is_subrequest() && !sent && (200..300).contains(&r.status()) {
        rebuild::unwanted_body(r, true);
    }
    if !r.is_subrequest() && !sent {
        with(|worker| worker.offer_upgrade(r));
    }
}

/// What the next frame meant for a reader.
enum Step {
    /// Bytes are there.
    Bytes,
    End,
    /// The body is not what it should be; the HTTP status says why.
    Bad(i32),
}

impl Worker {
    fn read_body(
        &self,
        r: RequestRec<'_>,
        brigade: &mut Brigade<'_>,
        mode: ReadMode,
        blocking: Blocking,
    ) -> Result<(), Status> {
        if mode == ReadMode::Other {
            return Err(Status::NOT_IMPLEMENTED);
        }
        if !self.exchange.borrow().body.started {
            if let Some(status) = self.start_body(r) {
                return self.bad_body(r, status);
            }
        }
        if let Some(status) = self.exchange.borrow().body.failed {
            return Err(status);
        }
        if self.exchange.borrow().body.ended {
            brigade.push_end();
            return Ok(());
        }
        if blocking == Blocking::Yes && self.exchange.borrow().body.ask {
            self.exchange.borrow_mut().body.ask = false;
            if !(200..300).contains(&r.status()) {
                // An error document: the client is not asked for what will not be used.
                self.exchange.borrow_mut().body.ended = true;
                brigade.push_end();
                return Ok(());
            }
            self.frame(FrameKind::NeedBody, 0, |_| {})?;
        }
        match self.next_piece(r, blocking)? {
            Step::Bytes => {}
            Step::End => {
                self.exchange.borrow_mut().body.ended = true;
                brigade.push_end();
                return Ok(());
            }
            Step::Bad(REQUEST_TIMEOUT) => return Err(self.fail_body(Status::TIMED_OUT)),
            Step::Bad(status) => return self.bad_body(r, status),
        }
        self.take_bytes(r, brigade, mode)
    }

    /// Sets the limit up; answers the HTTP status when the announced length is beyond it.
    fn start_body(&self, r: RequestRec<'_>) -> Option<i32> {
        let limit = r.body_limit();
        let mut current = self.exchange.borrow_mut();
        let body = &mut current.body;
        body.started = true;
        body.limit = limit;
        match (body.length, limit) {
            (BodyLength::None | BodyLength::Known(0), _) => body.ended = true,
            (BodyLength::Known(n), Some(limit)) if n > limit => {
                drop(current);
                let text = format!("Requested content-length of {n} is larger than the configured limit of {limit}");
                log::request(log::Level::Info, r, text);
                return Some(TOO_LARGE);
            }
            _ => {}
        }
        None
    }

    fn fail_body(&self, status: Status) -> Status {
        self.exchange.borrow_mut().body.failed = Some(status);
        status
    }

    fn bad_body(&self, r: RequestRec<'_>, status: i32) -> Result<(), Status> {
        self.exchange.borrow_mut().body.ended = true;
        Err(answer_bad_body(r, status))
    }

    /// Moves what the reader asked for into the brigade.
    fn take_bytes(&self, r: RequestRec<'_>, brigade: &mut Brigade<'_>, mode: ReadMode) -> Result<(), Status> {
        let over = {
            let mut current = self.exchange.borrow_mut();
            let inbox = self.inbox.borrow();
            let body = &mut current.body;
            let bytes = inbox.bytes(body.piece.clone());
            let n = match mode {
                ReadMode::Bytes(n) | ReadMode::Speculative(n) => n.min(bytes.len()),
                ReadMode::Line => memchr::memchr(b'\n', bytes).map_or(bytes.len().min(USUAL), |at| at + 1),
                ReadMode::Exhaustive | ReadMode::Other => bytes.len(),
            };
            brigade.push_copy(&bytes[..n]);
            if let ReadMode::Speculative(_) = mode {
                return Ok(());
            }
            body.piece.start += n;
            body.read += n as u64;
            if body.length == BodyLength::Known(body.read) {
                // Saves the reader a second call, and the wait for a frame that says nothing new.
                body.ended = true;
                brigade.push_end();
            }
            body.limit.filter(|limit| body.read > *limit).map(|limit| (body.read, limit))
        };
        if let Some((read, limit)) = over {
            brigade.clear();
            let text = format!("Read content length of {read} is larger than the configured limit of {limit}");
            log::request(log::Level::Info, r, text);
            return self.bad_body(r, TOO_LARGE);
        }
        Ok(())
    }

    /// Makes sure that there are unread bytes, or says why there are none.
    fn next_piece(&self, r: RequestRec<'_>, blocking: Blocking) -> Result<Step, Status> {
        loop {
            if !self.exchange.borrow().body.piece.is_empty() {
                return Ok(Step::Bytes);
            }
            let frame = self.next_body_frame(blocking)?;
            let mut current = self.exchange.borrow_mut();
            if frame.exchange != current.number {
                // The rest of a body that an earlier request did not read.
                continue;
            }
            match frame.kind {
                FrameKind::Body => current.body.piece = frame.payload,
                FrameKind::BodyEnd => {
                    let short = matches!(current.body.length, BodyLength::Known(n) if n > current.body.read);
                    drop(current);
                    if short {
                        return Err(self.fail_body(Status::INCOMPLETE));
                    }
                    self.take_trailers(r, &frame);
                    return Ok(Step::End);
                }
                FrameKind::BodyAbort => {
                    drop(current);
                    let status = Reader::new(self.inbox.borrow().bytes(frame.payload)).u16().unwrap_or(400);
                    return Ok(Step::Bad(i32::from(status)));
                }
                FrameKind::ClientGone => {
                    drop(current);
                    self.client_left();
                    return Err(self.fail_body(Status::INCOMPLETE));
                }
                _ => {
                    drop(current);
                    return Err(self.client_gone().into());
                }
            }
        }
    }

    fn take_trailers(&self, r: RequestRec<'_>, frame: &Incoming) {
        let inbox = self.inbox.borrow();
        let Ok(trailers) = decode_trailers(inbox.bytes(frame.payload.clone())) else { return };
        let table = r.trailers_in();
        for (name, value) in trailers.iter() {
            table.addn(r.pool().copy_str(name), r.pool().copy_str(value));
        }
        if !trailers.is_empty() {
            r.merge_trailers();
        }
    }

    fn next_body_frame(&self, blocking: Blocking) -> Result<Incoming, Status> {
        loop {
            if self.gone.get() || self.left.get() {
                return Err(Status::INCOMPLETE);
            }
            let next = self.inbox.borrow_mut().next();
            match next {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(_) => return Err(self.client_gone().into()),
            }
            let only_waits = blocking == Blocking::Yes && self.outbox.borrow().is_empty();
            let how = if only_waits { Blocking::Yes } else { Blocking::No };
            // Not within the match: its arms borrow the inbox again.
            let at_once = self.inbox.borrow_mut().fill(self.lease(), how);
            let filled = match at_once {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if blocking == Blocking::No {
                        return Err(Status::AGAIN);
                    }
                    // The frontend may wait for what is here before it sends more.
                    self.send(super::outbox::Outbox::send)?;
                    self.inbox.borrow_mut().fill(self.lease(), Blocking::Yes)
                }
                filled => filled,
            };
            match filled {
                Ok(Filled::Message) => {}
                Ok(Filled::End) | Err(_) => {
                    let Gone = self.client_gone();
                    return Err(Status::INCOMPLETE);
                }
            }
        }
    }
}
