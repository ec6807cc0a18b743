//! One request and its response over a lease.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: the client's side as httpd gives it; nothing that the
//! worker sends.  Owns: the state of the exchange.  Never: passes on what the decoders of `wire` have not checked.

use super::desk::Lease;
use super::request::{self, BodyFlags, ServerName};
use crate::httpd::client::{self, BodyLength, BodyRead, Client, ClientGone};
use crate::httpd::{hooks, log, RequestRec};
use crate::settings::LoggedNames;
use crate::sys::socket::{self, Blocking, Received};
use crate::sys::{file, wait};
use crate::wire::codec::Malformed;
use crate::wire::control::Returned;
use crate::wire::frame::{
    frames, put_frame, Exchange, Frame, FrameKind, FLAG_FLUSH, FLAG_LAST, FLAG_MORE, MAX_DATA, MAX_INTERIM,
    MAX_MESSAGE, MAX_RESPONSE_HEAD,
};
use crate::wire::request::{REQUEST_CHUNKED, REQUEST_EXPECT, REQUEST_LENGTH};
use crate::wire::response::{
    decode_trailers, is_hop_by_hop, may_be_trailer, Abort, AbortReason, FileRange, LogLine, Meta, ResponseHead,
};
use std::cell::RefCell;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Room for the request head, body and END frames of one message beside each other.
const PREFETCH: usize = MAX_DATA;
/// How often an HTTP/2 stream, which has no descriptor to poll, looks for more of its body.
const STREAM_POLL: Duration = Duration::from_millis(5);
/// How often it is looked whether a worker has received a request with a large body: it does so at once.
const TAKEN_POLL: Duration = Duration::from_millis(1);
/// Most log lines of one request that reach the error log; the last one says so.
const MAX_LOG_LINES: u32 = 200;
/// Most files of one response that are open here at the same time; the bytes of further ones are read and copied. A
/// worker could use up the descriptors of all clients otherwise.
const MAX_OPEN_FILES: u32 = 8;

/// How an exchange ended.
#[derive(Debug)]
pub enum Outcome {
    /// The client has its response. The worker is idle, or said that this was its `last` request; it may not have read
    /// the whole body, and then the client may still be sending it.
    Done { last: bool, body_left: bool },
    /// The client is gone.
    ClientGone,
    /// Nothing was sent to the client: it gets this status.
    Answer { status: u16, how: Returned, why: String },
    /// The response had begun: the client sees it break off.
    BrokeOff { how: Returned, why: String },
    /// No worker can have read the request: another may.
    Unread,
}

/// Buffers of one thread, kept from request to request.
#[derive(Debug)]
struct Buffers {
    receive: Vec<u8>,
    send: Vec<u8>,
    body: Vec<u8>,
    /// What went with the request head, while another worker may need it again.
    first: Vec<u8>,
}

thread_local! {
    static BUFFERS: RefCell<Option<Buffers>> = const { RefCell::new(None) };
}

/// What the response has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Body,
    Complete { last: bool },
}

/// Why an exchange stops before its end.
#[derive(Debug)]
enum Stop {
    ClientGone,
    /// The worker broke the protocol.
    Violation(String),
    /// It gave up, and said why.
    Aborted(AbortReason, String),
    /// Its socket is at its end.
    Died(Option<io::ErrorKind>),
    Silent,
}

impl From<Malformed> for Stop {
    fn from(e: Malformed) -> Self {
        Self::Violation(e.to_string())
    }
}

impl From<ClientGone> for Stop {
    fn from(_: ClientGone) -> Self {
        Self::ClientGone
    }
}

/// The client's body on its way to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upload {
    /// The worker has not asked for it yet (`Expect: 100-continue`).
    HeldBack,
    Running,
    Complete,
    /// The worker has closed its end; the client may still send.
    Cut,
}

/// How a part of the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartEnd {
    Open,
    Complete,
    Failed(u16),
}

/// The part of the body that went with a request which no worker has read: the next worker gets it.
#[derive(Debug)]
pub struct Replay {
    body: Vec<u8>,
    end: PartEnd,
}

struct Run<'a, 'r> {
    r: RequestRec<'r>,
    lease: &'a mut Lease,
    pool_name: &'a str,
    logged: &'a LoggedNames,
    server: ServerName,
    client: Client<'r>,
    upload: Upload,
    /// The client sends a body that is not the worker's concern.
    kept_body: bool,
    /// The last look for more of the body found none: filters hold nothing back, so its socket can be polled.
    dry: bool,
    /// How often the client's body was looked at, and how the last look ended. What the first one took can be told to
    /// another worker.
    reads: u32,
    part_end: PartEnd,
    /// Messages sent so far: a request that went in one message and was not read can be tried again.
    messages: u32,
    stage: Stage,
    heard: bool,
    head: Vec<u8>,
    /// What the loggers shall know; they are told at the end of the response.
    meta: Vec<u8>,
    meta_complete: bool,
    interim: u32,
    files: u32,
    /// When the worker last brought the exchange nearer to its end; log lines and the like do not.
    progress: Instant,
    progressed: bool,
    log_lines: u32,
    /// Bytes the response may still have.
    remaining: Option<u64>,
    bodiless: bool,
}

/// Runs the exchange. `replay` carries what an earlier try has taken of the client's body. The lease is in order
/// afterwards only with [`Outcome::Done`] and `last: false`.
pub fn run(
    r: RequestRec<'_>,
    server: ServerName,
    lease: &mut Lease,
    pool_name: &str,
    logged: &LoggedNames,
    replay: &mut Option<Replay>,
) -> Outcome {
    let timeout = r.server().timeout();
    if lease.timeout != timeout {
        // A socket that cannot take a timeout would hang with its worker: treat it as one that is dead.
        if socket::receive_timeout(lease.socket.as_fd(), timeout).is_err() {
            return Outcome::Unread;
        }
        let _ = socket::send_timeout(lease.socket.as_fd(), timeout);
        lease.timeout = timeout;
    }
    let mut buffers = BUFFERS.with(|b| b.borrow_mut().take()).unwrap_or_else(|| Buffers {
        receive: vec![0; MAX_MESSAGE],
        send: Vec::with_capacity(MAX_MESSAGE),
        body: Vec::with_capacity(MAX_DATA),
        first: Vec::new(),
    });
    let mut run = Run {
        r,
        lease,
        pool_name,
        logged,
        server,
        client: Client::new(r),
        upload: Upload::Complete,
        kept_body: false,
        dry: false,
        reads: 0,
        part_end: PartEnd::Open,
        messages: 0,
        stage: Stage::Waiting,
        heard: false,
        head: Vec::new(),
        meta: Vec::new(),
        meta_complete: false,
        interim: 0,
        files: 0,
        progress: Instant::now(),
        progressed: false,
        log_lines: 0,
        remaining: None,
        bodiless: false,
    };
    let outcome = run.whole(&mut buffers, replay);
    if matches!(outcome, Outcome::Unread) && run.reads > 0 {
        let mut body = if run.reads > 1 { std::mem::take(&mut buffers.first) } else { Vec::new() };
        body.append(&mut buffers.body);
        *replay = Some(Replay { body, end: run.part_end });
    }
    run.lease.exchange = run.lease.exchange.next();
    BUFFERS.with(|b| *b.borrow_mut() = Some(buffers));
    outcome
}

impl Run<'_, '_> {
    fn whole(&mut self, buffers: &mut Buffers, replay: &mut Option<Replay>) -> Outcome {
        match self.send_request(buffers, replay) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                let why = "was not asked: a header or variable is longer than 65,535 bytes".to_owned();
                return Outcome::Answer { status: 431, how: Returned::Idle, why };
            }
            Err(e) if self.messages == 0 && is_unread(e.kind()) => return Outcome::Unread,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return self.stopped(Stop::Silent),
            Err(e) => return self.stopped(Stop::Died(Some(e.kind()))),
        }
        match self.converse(buffers) {
            Ok(last) => Outcome::Done {
                last,
                body_left: matches!(self.upload, Upload::Running | Upload::Cut) || self.kept_body,
            },
            Err(stop) => self.stopped(stop),
        }
    }

    fn exchange(&self) -> Exchange {
        self.lease.exchange
    }

    // ===== the request =====

    fn send_request(&mut self, buffers: &mut Buffers, replay: &mut Option<Replay>) -> io::Result<()> {
        self.r.export_previous();
        let (flags, length) = match self.client.body_length() {
            BodyLength::None => (0, 0),
            _ if request::is_fragment(self.r) => {
                self.kept_body = !self.r.is_subrequest();
                (0, 0)
            }
            BodyLength::Known(n) => (REQUEST_LENGTH, n),
            BodyLength::Chunked => (REQUEST_CHUNKED, 0),
        };
        let expects = flags != 0 && self.client.expects_continue();
        self.upload = match (flags, expects) {
            (0, _) => Upload::Complete,
            (_, true) => Upload::HeldBack,
            (_, false) => Upload::Running,
        };
        let flags = flags | if expects { REQUEST_EXPECT } else { 0 };
        let out = &mut buffers.send;
        out.clear();
        let body = BodyFlags { flags, content_length: length };
        request::put(out, self.r, self.server, self.lease.exchange, body)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        if let Some(again) = replay.take() {
            buffers.body = again.body;
            self.reads = 1;
            self.put_part(&buffers.body, again.end, &mut buffers.send);
        } else if self.upload == Upload::Running && out.len() < PREFETCH {
            self.read_some(&mut buffers.body, &mut buffers.send);
        }
        self.send_whole(&buffers.send)
    }

    /// Sends frames that may be more than one message.
    fn send_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        let fd = self.lease.socket.as_fd();
        if bytes.len() <= MAX_MESSAGE {
            socket::send(fd, bytes, &[], Blocking::Yes)?;
            self.messages += 1;
            return Ok(());
        }
        for piece in request::messages(bytes) {
            socket::send(fd, piece, &[], Blocking::Yes)?;
            self.messages += 1;
        }
        Ok(())
    }

    /// Takes what the client has sent of its body and appends frames for it.
    fn read_some(&mut self, body: &mut Vec<u8>, out: &mut Vec<u8>) -> bool {
        body.clear();
        self.reads += 1;
        let end = self.collect(body);
        self.put_part(body, end, out);
        end != PartEnd::Open || !body.is_empty()
    }

    /// What has arrived of the body, at most [`PREFETCH`] bytes. A body that is there whole is taken with its end.
    fn collect(&mut self, body: &mut Vec<u8>) -> PartEnd {
        self.dry = false;
        while body.len() < PREFETCH {
            match self.client.read_body(body, PREFETCH - body.len()) {
                BodyRead::Data => {}
                BodyRead::WouldBlock => {
                    self.dry = true;
                    break;
                }
                BodyRead::End => return PartEnd::Complete,
                BodyRead::Failed(status) => return PartEnd::Failed(status),
            }
        }
        PartEnd::Open
    }

    fn put_part(&mut self, body: &[u8], end: PartEnd, out: &mut Vec<u8>) {
        self.put_body(body, out);
        self.part_end = end;
        match end {
            PartEnd::Open => return,
            PartEnd::Complete => request::put_body_end(out, self.client.trailers(), self.exchange()),
            PartEnd::Failed(status) => {
                request::put_body_abort(out, status, self.exchange());
                self.client.close_after();
            }
        }
        self.upload = Upload::Complete;
    }

    fn put_body(&self, body: &[u8], out: &mut Vec<u8>) {
        for piece in body.chunks(MAX_DATA) {
            put_frame(out, FrameKind::Body, 0, self.exchange(), |o| o.extend_from_slice(piece));
        }
    }

    // ===== both directions =====

    /// Until END; returns whether the worker takes no further request.
    fn converse(&mut self, buffers: &mut Buffers) -> Result<bool, Stop> {
        // A body frame that did not fit the worker's socket yet.
        let mut pending = false;
        loop {
            if let Stage::Complete { last } = self.stage {
                return Ok(last);
            }
            if self.upload != Upload::Running && !pending {
                let received = self.receive(&mut buffers.receive, Blocking::Yes)?;
                let message = received.len;
                self.message_in_time(&buffers.receive[..message], received.fds)?;
                continue;
            }
            if !pending {
                buffers.send.clear();
                if self.reads == 1 && !self.heard {
                    buffers.first.clear();
                    std::mem::swap(&mut buffers.first, &mut buffers.body);
                    self.wait_until_taken()?;
                }
                pending = self.read_some(&mut buffers.body, &mut buffers.send);
            }
            if pending {
                match socket::send(self.lease.socket.as_fd(), &buffers.send, &[], Blocking::No) {
                    Ok(()) => {
                        self.messages += 1;
                        pending = false;
                        self.progress = Instant::now();
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    // The kernel tells once that a message was left unread, to whichever call comes first.
                    Err(e) if e.kind() == io::ErrorKind::ConnectionReset && self.messages == 1 && !self.heard => {
                        return Err(Stop::Died(Some(e.kind())));
                    }
                    // It does not read any more; what it has answered is still there, or the news that it read
                    // nothing at all.
                    Err(_) => {
                        pending = false;
                        self.upload = Upload::Cut;
                    }
                }
            }
            match self.receive(&mut buffers.receive, Blocking::No) {
                Ok(received) => {
                    let message = received.len;
                    self.message_in_time(&buffers.receive[..message], received.fds)?;
                }
                Err(Stop::Silent) => {
                    if pending || (self.upload == Upload::Running && self.dry) {
                        self.wait(pending)?;
                    }
                }
                Err(stop) => return Err(stop),
            }
        }
    }

    /// Waits until the worker has received the request, or is gone: as long as only that one message is on its way, it
    /// is known whether a worker that died has read it.
    fn wait_until_taken(&self) -> Result<(), Stop> {
        let since = Instant::now();
        let lease = self.lease.socket.as_fd();
        while socket::unread_by_peer(lease).is_ok_and(|bytes| bytes > 0) && !wait::is_hung_up(lease, false) {
            if since.elapsed() > self.lease.timeout {
                return Err(Stop::Silent);
            }
            wait::readable_or_writable(lease, false, None, TAKEN_POLL).map_err(|e| Stop::Died(Some(e.kind())))?;
        }
        Ok(())
    }

    /// Waits until either side can go on.
    fn wait(&self, pending: bool) -> Result<(), Stop> {
        let left = self.lease.timeout.saturating_sub(self.progress.elapsed());
        if left.is_zero() {
            return Err(Stop::Silent);
        }
        let client = if pending { None } else { self.client.socket() };
        let patience = if pending || client.is_some() { left } else { STREAM_POLL };
        wait::readable_or_writable(self.lease.socket.as_fd(), pending, client, patience)
            .map_err(|e| Stop::Died(Some(e.kind())))
    }

    fn receive(&mut self, buf: &mut [u8], blocking: Blocking) -> Result<Received, Stop> {
        match socket::receive(self.lease.socket.as_fd(), buf, blocking) {
            Ok(received) if received.len == 0 => Err(Stop::Died(None)),
            Ok(received) if received.truncated => Err(Stop::Violation("a message beyond the limit".into())),
            Ok(received) if received.fds_lost => {
                Err(Stop::Violation("more file descriptors than allowed, or none left here".into()))
            }
            Ok(received) => {
                self.heard = true;
                Ok(received)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(Stop::Silent),
            Err(e) => Err(Stop::Died(Some(e.kind()))),
        }
    }

    // ===== the response =====

    /// A message. One that brings the response no further does not make the worker any less silent: otherwise a log
    /// line now and then would hold this thread and its client for ever.
    fn message_in_time(&mut self, message: &[u8], fds: Vec<OwnedFd>) -> Result<(), Stop> {
        self.progressed = false;
        self.message(message, fds)?;
        if self.progressed {
            self.progress = Instant::now();
        } else if !self.lease.timeout.is_zero() && self.progress.elapsed() > self.lease.timeout {
            return Err(Stop::Silent);
        }
        Ok(())
    }

    /// All frames of one message. What is queued for the client points into `message`, so it is passed on before this
    /// returns.
    fn message(&mut self, message: &[u8], fds: Vec<OwnedFd>) -> Result<(), Stop> {
        let mut fds = fds.into_iter();
        let mut flush = false;
        let mut any = false;
        for frame in frames(message) {
            let frame = frame?;
            any = true;
            if frame.exchange != self.exchange() {
                return Err(Stop::Violation("a frame of another exchange".into()));
            }
            if matches!(self.stage, Stage::Complete { .. }) {
                return Err(Stop::Violation("a frame behind the end of the response".into()));
            }
            flush |= frame.has(FLAG_FLUSH);
            self.frame(&frame, &mut fds)?;
        }
        if !any {
            return Err(Stop::Violation("an empty message".into()));
        }
        if fds.next().is_some() {
            return Err(Stop::Violation("a file descriptor that no frame speaks of".into()));
        }
        match self.stage {
            Stage::Complete { .. } => self.client.finish()?,
            Stage::Body => self.client.pass(flush)?,
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
                Err(Stop::Aborted(abort.reason, String::from_utf8_lossy(abort.text).into_owned()))
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
        for (name, value) in head.fields.iter() {
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
            self.client.close_after();
        }
        self.client.set_head(head.status, head.status_line, passable(head));
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
        self.client.queue(payload);
        Ok(())
    }

    fn file(&mut self, payload: &[u8], fd: Option<OwnedFd>) -> Result<(), Stop> {
        let range = FileRange::decode(payload)?;
        let fd = fd.ok_or(Stop::Violation("a file without its descriptor".into()))?;
        self.count(range.length)?;
        let size =
            file::passable_size(fd.as_fd()).ok_or(Stop::Violation("a descriptor that is no plain file".into()))?;
        if range.offset + range.length > size {
            return Err(Stop::Violation("a file that is shorter than its range".into()));
        }
        self.files += 1;
        if self.client.can_send_file() && self.files <= MAX_OPEN_FILES {
            self.client.queue_file(fd, range.offset, range.length);
            return Ok(());
        }
        // Encrypted and multiplexed connections copy the bytes anyway; read at our own place, in pieces.
        let mut piece = Vec::new();
        let (mut at, mut left) = (range.offset, range.length);
        while left > 0 {
            piece.clear();
            let want = usize::try_from(left.min(MAX_DATA as u64)).unwrap_or(MAX_DATA);
            let n =
                file::read_at(fd.as_fd(), at, want, &mut piece).map_err(|e| Stop::Violation(format!("file: {e}")))?;
            if n == 0 {
                return Err(Stop::Violation("a file that became shorter".into()));
            }
            self.client.queue(&piece);
            self.client.pass(false)?;
            at += n as u64;
            left -= n as u64;
        }
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
        self.client.send_interim(head.status, passable(&head));
        Ok(())
    }

    fn need_body(&mut self) -> Result<(), Stop> {
        if self.upload == Upload::HeldBack {
            self.client.send_continue();
            self.upload = Upload::Running;
            self.progressed = true;
        }
        Ok(())
    }

    fn meta(&mut self, frame: &Frame<'_>) -> Result<(), Stop> {
        if self.meta_complete {
            return Err(Stop::Violation("META a second time".into()));
        }
        if self.meta.len() + frame.payload.len() > MAX_RESPONSE_HEAD {
            return Err(Stop::Violation("META beyond the limit".into()));
        }
        self.meta.extend_from_slice(frame.payload);
        if !frame.has(FLAG_MORE) {
            Meta::decode(&self.meta)?;
            self.meta_complete = true;
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
        for (name, value) in decode_trailers(frame.payload)?.iter() {
            if may_be_trailer(name) {
                self.client.set_trailer(name, value);
            }
        }
        if self.meta_complete {
            request::apply_meta(self.r, &Meta::decode(&self.meta)?, self.logged);
        }
        self.progressed = true;
        self.stage = Stage::Complete { last: frame.has(FLAG_LAST) };
        Ok(())
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

    // ===== the other ends =====

    fn stopped(&mut self, stop: Stop) -> Outcome {
        let (status, how, why) = match stop {
            Stop::ClientGone => return Outcome::ClientGone,
            Stop::Died(Some(kind)) if !self.heard && self.messages == 1 && self.reads <= 2 && is_unread(kind) => {
                return Outcome::Unread
            }
            Stop::Died(_) => (502, Returned::Dead, "ended before its response was complete".to_owned()),
            Stop::Silent => {
                (504, Returned::TimedOut, format!("was silent for {} seconds", self.lease.timeout.as_secs()))
            }
            Stop::Violation(what) => (502, Returned::Violation, format!("broke the protocol: it sent {what}")),
            Stop::Aborted(AbortReason::ServerMismatch, text) => {
                (503, Returned::Violation, format!("has read another configuration: {text}"))
            }
            Stop::Aborted(_, text) => (502, Returned::Violation, format!("gave up: {text}")),
        };
        if self.upload != Upload::Complete {
            self.client.close_after();
        }
        if self.stage == Stage::Waiting {
            return Outcome::Answer { status, how, why };
        }
        self.client.break_off();
        Outcome::BrokeOff { how, why }
    }
}

/// The fields that go on to the client: those of one connection are the frontend's own business.
fn passable<'f>(head: &ResponseHead<'f>) -> impl Iterator<Item = (&'f [u8], &'f [u8])> {
    head.fields.iter().filter(|(name, _)| !is_hop_by_hop(name))
}

/// The kernel says so when the other end was closed with the message still in its queue, or before it got there.
fn is_unread(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected)
}

/// For the caller: an error response's header.
pub fn retry_after(r: RequestRec<'_>, seconds: u32) {
    client::set_error_header(r, c"Retry-After", &seconds.max(1).to_string());
}
