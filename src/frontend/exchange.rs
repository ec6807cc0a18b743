//! One request and its response over a lease.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: the client's side as httpd gives it; nothing that the
//! worker sends.  Owns: the state of the exchange.  Never: passes on what the decoders of `wire` have not checked.

mod answer;
mod outcome;
mod upload;

use super::desk::Lease;
use super::request::{self, ServerName};
use crate::httpd::client::{self, Client};
use crate::httpd::RequestRec;
use crate::settings::LoggedNames;
use crate::sys::socket::{self, Blocking, Received};
use crate::sys::wait;
use crate::wire::control::Returned;
use crate::wire::frame::{Exchange, MAX_DATA, MAX_MESSAGE};
use answer::Stage;
pub use outcome::Outcome;
use outcome::{is_unread, Stop};
use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
pub use upload::Replay;
use upload::{PartEnd, Upload};

/// How often an HTTP/2 stream, which has no descriptor to poll, looks for more of its body.
const STREAM_POLL: Duration = Duration::from_millis(5);
/// How often a client that sends nothing is looked at: mod_reqtimeout says only then that its time is over.
const CLIENT_LOOK: Duration = Duration::from_secs(1);
/// How often it is looked whether a worker has received a request with a large body: it does so at once.
const TAKEN_POLL: Duration = Duration::from_millis(1);

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
/// afterwards only where the outcome says [`Returned::Idle`], or is [`Outcome::Done`] without `last`.
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
                Err(Stop::Silent) if pending || (self.upload == Upload::Running && self.dry) => {
                    let left = self.lease.timeout.saturating_sub(self.progress.elapsed());
                    if !left.is_zero() {
                        self.wait(pending, left)?;
                    } else if pending || self.holds_unread() {
                        return Err(Stop::Silent);
                    } else {
                        self.give_up_client(&mut buffers.send);
                        pending = true;
                    }
                }
                Err(Stop::Silent) => {}
                Err(stop) => return Err(stop),
            }
        }
    }

    /// Waits until the worker has received the request, or is gone: as long as only that one message is on its way, it
    /// is known whether a worker that died has read it.
    fn wait_until_taken(&self) -> Result<(), Stop> {
        let since = Instant::now();
        let lease = self.lease.socket.as_fd();
        while self.holds_unread() && !wait::is_hung_up(lease, false) {
            if since.elapsed() > self.lease.timeout {
                return Err(Stop::Silent);
            }
            wait::readable_or_writable(lease, false, None, TAKEN_POLL).map_err(|e| Stop::Died(Some(e.kind())))?;
        }
        Ok(())
    }

    /// The worker has not received everything that was sent to it.
    fn holds_unread(&self) -> bool {
        socket::unread_by_peer(self.lease.socket.as_fd()).is_ok_and(|bytes| bytes > 0)
    }

    /// Waits until either side can go on.
    fn wait(&self, pending: bool, left: Duration) -> Result<(), Stop> {
        let client = if pending { None } else { self.client.socket() };
        let patience = match client {
            _ if pending => left,
            Some(_) => left.min(CLIENT_LOOK),
            None => STREAM_POLL,
        };
        wait::readable_or_writable(self.lease.socket.as_fd(), pending, client, patience)
            .map_err(|e| Stop::Died(Some(e.kind())))
    }

    fn receive(&mut self, buf: &mut [u8], blocking: Blocking) -> Result<Received, Stop> {
        match socket::receive(self.lease.socket.as_fd(), buf, blocking) {
            // Also what a message without a byte looks like.
            Ok(received) if received.len == 0 && !wait::is_hung_up(self.lease.socket.as_fd(), false) => {
                Err(Stop::Violation("an empty message".into()))
            }
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
}

/// For the caller: an error response's header.
pub fn retry_after(r: RequestRec<'_>, seconds: u32) {
    client::set_error_header(r, c"Retry-After", &seconds.max(1).to_string());
}
