//! The request on its way to the worker: its head, and the client's body.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: the client's side as httpd gives it.
//! Owns: how far the body is.  Never: waits for the client.

use super::outcome::{is_unread, Stop};
use super::{request, Buffers, Run};
use crate::frontend::request::BodyFlags;
use crate::httpd::client::{BodyLength, BodyRead};
use crate::httpd::log;
use crate::sys::socket::{self, Blocking};
use crate::wire::frame::{put_frame, FrameKind, FRAME_HEAD_LEN, MAX_DATA, MAX_MESSAGE};
use crate::wire::request::{REQUEST_CHUNKED, REQUEST_EXPECT, REQUEST_LENGTH};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Room for the request head, body and END frames of one message beside each other.
const PREFETCH: usize = MAX_DATA;
/// How many parts of the body can be told to another worker: what went with the request, and the next, which is read while
/// nobody has received that.
pub(super) const MOST_REPLAYED: u32 = 2;
const REQUEST_TIMEOUT: u16 = 408;
/// How long a client may take for the fields behind its chunked body, where that holds up a thread of many connections.
const TRAILER_PATIENCE: Duration = Duration::from_secs(1);

/// The client's body on its way to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upload {
    /// The worker has not asked for it yet (`Expect: 100-continue`).
    HeldBack,
    Running,
    Complete,
    /// The worker has closed its end; the client may still send.
    Cut,
}

/// How a part of the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PartEnd {
    Open,
    Complete,
    Failed(u16),
}

/// The part of the body that went with a request which no worker has read: the next worker gets it.
#[derive(Debug)]
pub struct Replay {
    pub(super) body: Vec<u8>,
    pub(super) end: PartEnd,
}

/// Why a request was not sent, or not as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsent {
    TooLarge(request::TooLarge),
    Failed(io::ErrorKind),
}

impl Run<'_> {
    pub(super) fn send_request(&mut self, buffers: &mut Buffers, replay: &mut Option<Replay>) -> Result<(), Unsent> {
        let (flags, length) = match self.out.client.body_length() {
            BodyLength::None => (0, 0),
            _ if request::is_fragment(self.r) => {
                self.kept_body = !self.r.is_subrequest();
                (0, 0)
            }
            BodyLength::Known(n) => (REQUEST_LENGTH, n),
            BodyLength::Chunked => (REQUEST_CHUNKED, 0),
        };
        if self.parks {
            self.out.client.bound_trailers(TRAILER_PATIENCE);
        }
        let expects = flags != 0 && self.out.client.expects_continue();
        self.upload = match (flags, expects) {
            (0, _) => Upload::Complete,
            (_, true) => Upload::HeldBack,
            (_, false) => Upload::Running,
        };
        let flags = flags | if expects { REQUEST_EXPECT } else { 0 };
        let out = &mut buffers.send;
        out.clear();
        let body = BodyFlags { flags, content_length: length };
        request::put(out, self.r, self.server, self.lease.exchange, body).map_err(Unsent::TooLarge)?;
        if let Some(again) = replay.take() {
            buffers.body = again.body;
            self.reads = 1;
            self.put_part(&buffers.body, again.end, &mut buffers.send);
        } else if self.upload == Upload::Running && out.len() < PREFETCH {
            self.read_some(&mut buffers.body, &mut buffers.send);
        }
        // A worker that does not read what it has got already is no reason to wait here.
        self.pending = self.send_frames(&buffers.send).map_err(|e| Unsent::Failed(e.kind()))?;
        Ok(())
    }

    /// Sends frames that may be more than one message, from where it has stopped; says whether some still are to be sent.
    fn send_frames(&mut self, frames: &[u8]) -> io::Result<bool> {
        loop {
            let rest = frames.get(self.sent_bytes..).unwrap_or_default();
            let one = if rest.len() <= MAX_MESSAGE { rest } else { request::messages(rest).next().unwrap_or(rest) };
            match socket::send(self.lease.socket.as_fd(), one, &[], Blocking::No) {
                Ok(()) => self.messages = self.messages.saturating_add(1),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e),
            }
            self.sent_bytes += one.len();
            if self.sent_bytes >= frames.len() {
                self.sent_bytes = 0;
                return Ok(false);
            }
        }
    }

    /// Takes more of the client's body; says whether there are frames to send. What went with the request is kept until
    /// the worker has taken it: another one may need it.
    pub(super) fn read_on(&mut self, buffers: &mut Buffers) -> Result<bool, Stop> {
        buffers.send.clear();
        if self.reads == 1 && !self.heard {
            if !self.first_kept {
                buffers.first.clear();
                std::mem::swap(&mut buffers.first, &mut buffers.body);
                self.first_kept = true;
            }
            // Until that is so, it does not matter whether the client has sent more.
            self.dry = false;
            self.wait_until_taken()?;
        }
        Ok(self.read_some(&mut buffers.body, &mut buffers.send))
    }

    /// Sends frames of the body, or the rest of the request, if the worker's socket takes them; says whether they still
    /// are to be sent.
    pub(super) fn send_some(&mut self, frames: &[u8]) -> Result<bool, Stop> {
        match self.send_frames(frames) {
            Ok(left) => {
                if !left {
                    self.awaits_client_since = Instant::now();
                }
                Ok(left)
            }
            Err(e) if self.messages == 0 && is_unread(e.kind()) => Err(Stop::Died(Some(e.kind()))),
            // The kernel tells once that a message was left unread, to whichever call comes first.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset && self.messages == 1 && !self.heard => {
                Err(Stop::Died(Some(e.kind())))
            }
            // It does not read any more; what it has answered is still there, or the news that it read nothing at all.
            Err(_) => {
                self.sent_bytes = 0;
                self.upload = Upload::Cut;
                Ok(false)
            }
        }
    }

    /// Takes what the client has sent of its body and appends frames for it. `body` gets a copy, where another worker may
    /// need it again.
    fn read_some(&mut self, body: &mut Vec<u8>, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let mut end = PartEnd::Open;
        put_frame(out, FrameKind::Body, 0, self.exchange(), |out| end = self.collect(out));
        let piece = out.get(start + FRAME_HEAD_LEN..).unwrap_or_default();
        self.reads = self.reads.saturating_add(1);
        body.clear();
        if self.reads <= MOST_REPLAYED {
            body.extend_from_slice(piece);
        }
        let found = !piece.is_empty();
        if !found {
            out.truncate(start);
        }
        self.put_end(end, out);
        end != PartEnd::Open || found
    }

    /// Appends what has arrived of the body, at most [`PREFETCH`] bytes. A body that is there whole is taken with its end.
    fn collect(&mut self, out: &mut Vec<u8>) -> PartEnd {
        self.dry = false;
        let most = out.len() + PREFETCH;
        while out.len() < most {
            match self.out.client.read_body(out, most - out.len()) {
                BodyRead::Data => {}
                BodyRead::WouldBlock => {
                    self.dry = true;
                    break;
                }
                BodyRead::End => return PartEnd::Complete,
                BodyRead::Failed(status) => {
                    if status == REQUEST_TIMEOUT {
                        self.blame_client("was too slow with its request body");
                    }
                    return PartEnd::Failed(status);
                }
            }
        }
        PartEnd::Open
    }

    /// A part of the body that another worker was sent before.
    fn put_part(&mut self, body: &[u8], end: PartEnd, out: &mut Vec<u8>) {
        for piece in body.chunks(MAX_DATA) {
            put_frame(out, FrameKind::Body, 0, self.exchange(), |o| o.extend_from_slice(piece));
        }
        self.put_end(end, out);
    }

    fn put_end(&mut self, end: PartEnd, out: &mut Vec<u8>) {
        self.part_end = end;
        match end {
            PartEnd::Open => return,
            PartEnd::Complete => request::put_body_end(out, self.out.client.trailers(), self.exchange()),
            PartEnd::Failed(status) => {
                request::put_body_abort(out, status, self.exchange());
                self.out.client.close_after();
            }
        }
        self.upload = Upload::Complete;
    }

    /// The client has sent nothing for as long as `Timeout` gives it, and the worker waits for more: it is told that
    /// no more comes, and may take its time for the answer.
    pub(super) fn give_up_client(&mut self, out: &mut Vec<u8>) {
        self.blame_client(&format!("sent nothing more of its request body for {} seconds", self.patience.as_secs()));
        out.clear();
        self.put_end(PartEnd::Failed(REQUEST_TIMEOUT), out);
    }

    fn blame_client(&self, what: &str) {
        let text = format!("POOL117: [pool {} pid {}] the client {what}: 408", self.pool_name, self.lease.pid);
        log::request(log::Level::Warning, self.r, request::naming(self.r, text));
    }
}
