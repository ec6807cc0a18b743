//! One request and its response over a lease.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: the client's side as httpd gives it; nothing that the
//! worker sends.  Owns: the state of the exchange.  Never: passes on what the decoders of `wire` have not checked.

mod answer;
mod delivery;
mod outcome;
mod upload;

use super::desk::Lease;
use super::files::PoolFiles;
use super::request::{self, ServerName};
use crate::httpd::parking::{self, Awaited, Peer, Ticket};
use crate::httpd::{client, RequestRec};
use crate::settings::LoggedNames;
use crate::sys::events::{self, Interest, Receipt};
use crate::sys::socket::{self, Blocking, Received};
use crate::sys::{thread, wait};
use crate::wire::control::Returned;
use crate::wire::exchange::{ResponseChecker, Stage};
use crate::wire::frame::{Exchange, MAX_DATA, MAX_MESSAGE};
pub use delivery::{Delivery, Undelivered};
pub use outcome::Outcome;
use outcome::{is_unread, Stop};
use std::cell::{Cell, RefCell};
use std::io;
use std::mem::take;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
pub use upload::Replay;
use upload::{PartEnd, Unsent, Upload};

/// How often an HTTP/2 stream looks for more of its body where an old httpd has no descriptor for that.
const STREAM_POLL: Duration = Duration::from_millis(5);
/// How often a client that sends nothing is looked at: mod_reqtimeout says only then that its time is over.
const CLIENT_LOOK: Duration = Duration::from_secs(1);
/// How long a thread waits for the worker at a time: between, it looks whether the client has left.
const WORKER_LOOK: Duration = Duration::from_millis(250);
/// A parked request whose worker computes has no deadline; this is how far ahead of it its entry among the timers is.
const NO_DEADLINE: Duration = Duration::from_secs(3600);
/// How long a thread waits until the worker has received a request with a large body, where that can be parked: it does so
/// at once.
const BRIEF: Duration = Duration::from_millis(10);
/// Messages that are heard in a row before others get their turn: a worker may send them as fast as they are read.
const MOST_TURNS: u64 = 64;
/// How often a parked request looks for what no descriptor tells.
pub const PARKED_LOOK: Duration = Duration::from_millis(100);

/// Buffers of one thread, kept from request to request.
#[derive(Debug)]
struct Buffers {
    receive: Vec<u8>,
    send: Vec<u8>,
    body: Vec<u8>,
    /// What went with the request head, while another worker may need it again.
    first: Vec<u8>,
}

impl Buffers {
    /// For the calling thread, which has this request now.
    fn of(r: RequestRec<'_>) -> Self {
        if r.is_stream() {
            // A thread of mod_http2's, which serves streams and nothing else. It hands on what others bring: they would be
            // stopped for each piece, where several are handed on together with no more trouble.
            thread::interrupt_nobody();
        }
        Self {
            receive: vec![0; MAX_MESSAGE],
            send: Vec::with_capacity(MAX_MESSAGE),
            body: Vec::with_capacity(MAX_DATA),
            first: Vec::new(),
        }
    }
}

thread_local! {
    static BUFFERS: RefCell<Option<Buffers>> = const { RefCell::new(None) };
}

/// What of the thread's buffers a parked request needs again.
#[derive(Debug, Default)]
struct Kept {
    send: Vec<u8>,
    body: Vec<u8>,
    first: Vec<u8>,
}

/// Whose exchange it is.
#[derive(Debug, Clone, Copy)]
pub struct Parties<'r> {
    pub r: RequestRec<'r>,
    pub pool: u32,
    pub server: ServerName,
    pub pool_name: &'static str,
    pub logged: &'static LoggedNames,
    /// It may be parked.
    pub ticket: Option<Ticket>,
    /// The pool's files, and how many threads may be with them.
    pub files: &'static PoolFiles,
    pub max_threads: Option<u32>,
    /// How long it may take (`PoolRequestTimeout`).
    pub time_limit: Option<Duration>,
}

/// What is left of an exchange.
#[derive(Debug)]
pub struct Parts<'r> {
    pub lease: Lease,
    /// What the client has not taken yet.
    pub rest: Delivery<'r>,
    /// Descriptors to be closed.
    pub doomed: Vec<OwnedFd>,
    /// The worker has the whole request: its answer can be read on without a client, and this has seen the part so far.
    pub checker: Option<ResponseChecker>,
    /// When the request has taken too long.
    pub expires: Option<Instant>,
}

/// An exchange. The lease is in order after it only where the outcome says [`Returned::Idle`], or is
/// [`Outcome::Done`] without `last`.
#[derive(Debug)]
pub struct Run<'r> {
    r: RequestRec<'r>,
    pool: u32,
    lease: Lease,
    pool_name: &'static str,
    logged: &'static LoggedNames,
    server: ServerName,
    out: Delivery<'r>,
    upload: Upload,
    parks: bool,
    /// The request is on its way to the worker.
    sent: bool,
    /// Frames in the send buffer that did not fit the worker's socket yet, and how much of them did.
    pending: bool,
    sent_bytes: usize,
    kept: Kept,
    /// How long the client may take for its next step, and the worker until it receives the request. Once it has, a page
    /// may be silent for as long as it computes.
    patience: Duration,
    /// The client sends a body that is not the worker's concern.
    kept_body: bool,
    /// The last look for more of the body found none: filters hold nothing back, so its socket can be polled.
    dry: bool,
    /// How often the client's body was looked at, and how the last look ended. What the first one took can be told to
    /// another worker.
    reads: u32,
    first_kept: bool,
    part_end: PartEnd,
    /// While it is waited for that the worker has received the request.
    taken: Option<Taken>,
    /// Messages sent so far: a request that went in one message and was not read can be tried again.
    messages: u32,
    checker: ResponseChecker,
    heard: bool,
    /// The worker has ended, and left something unread.
    reset: bool,
    files: &'static PoolFiles,
    began: Instant,
    time_limit: Option<Duration>,
    /// Since when the next piece of the body has been the client's turn.
    awaits_client_since: Instant,
    /// The message in hand brought the exchange nearer to its end; log lines and the like do not.
    progressed: bool,
    /// When it was last looked whether the client has left; for requests that cannot be parked.
    looked: Instant,
    /// Descriptors that the worker has sent and nobody wants.
    doomed: Vec<OwnedFd>,
}

/// What tells when the worker has received the request, while that is waited for.
#[derive(Debug)]
struct Taken {
    receipt: Receipt,
    /// The MPM watches it, or has.
    watched: Cell<bool>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.watched.get() {
            parking::unwatch(self.receipt.as_fd());
        }
    }
}

fn set_timeout(lease: &mut Lease) -> io::Result<()> {
    if lease.timeout != WORKER_LOOK {
        socket::receive_timeout(lease.socket.as_fd(), WORKER_LOOK)?;
        lease.timeout = WORKER_LOOK;
    }
    Ok(())
}

impl<'r> Run<'r> {
    pub fn new(parties: Parties<'r>, lease: Lease) -> Self {
        let Parties { r, pool, server, pool_name, logged, ticket, files, max_threads, time_limit } = parties;
        let parks = ticket.is_some();
        let checker = ResponseChecker::new(lease.exchange, r.method() == b"HEAD");
        Self {
            r,
            pool,
            lease,
            pool_name,
            logged,
            server,
            out: Delivery::new(r, ticket, max_threads),
            upload: Upload::Complete,
            parks,
            sent: false,
            pending: false,
            sent_bytes: 0,
            kept: Kept::default(),
            patience: r.server().timeout(),
            kept_body: false,
            dry: false,
            reads: 0,
            first_kept: false,
            part_end: PartEnd::Open,
            taken: None,
            messages: 0,
            checker,
            heard: false,
            reset: false,
            files,
            began: Instant::now(),
            time_limit,
            awaits_client_since: Instant::now(),
            progressed: false,
            looked: Instant::now(),
            doomed: Vec::new(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.lease.pid
    }

    /// The exchange is over, or its client has left.
    pub fn into_parts(self) -> Parts<'r> {
        // With only a part of the request on its way, the worker would take whatever comes next for another.
        let goes_on = self.sent && (!self.pending || self.reads > 1) && self.upload != Upload::Cut;
        let expires = self.expires();
        let checker = goes_on.then_some(self.checker);
        Parts { lease: self.lease, rest: self.out, doomed: self.doomed, checker, expires }
    }

    /// Goes on, from the beginning or from where it was parked. `replay` carries what an earlier try has taken of the
    /// client's body, and what this one leaves to the next.
    pub fn go_on(&mut self, replay: &mut Option<Replay>) -> Outcome {
        // A socket that cannot take a timeout would hang with its worker: treat it as one that is dead.
        if set_timeout(&mut self.lease).is_err() {
            return if self.sent { self.stopped(Stop::Died(None)) } else { Outcome::Unread };
        }
        let mut buffers = BUFFERS.with(|b| b.borrow_mut().take()).unwrap_or_else(|| Buffers::of(self.r));
        self.put_back(&mut buffers);
        let outcome = self.whole(&mut buffers, replay);
        match outcome {
            Outcome::Parked => self.keep(&buffers),
            Outcome::Unread if self.reads > 0 => {
                let mut body = if self.first_kept { take(&mut buffers.first) } else { Vec::new() };
                body.append(&mut buffers.body);
                *replay = Some(Replay { body, end: self.part_end });
            }
            _ => {}
        }
        if !matches!(outcome, Outcome::Parked) {
            self.lease.exchange = self.lease.exchange.next();
        }
        BUFFERS.with(|b| *b.borrow_mut() = Some(buffers));
        outcome
    }

    fn keep(&mut self, buffers: &Buffers) {
        let copy = |bytes: &[u8], wanted: bool| if wanted { bytes.to_vec() } else { Vec::new() };
        let may_replay = !self.heard && self.reads > 0;
        self.kept = Kept {
            send: copy(&buffers.send, self.pending),
            body: copy(&buffers.body, may_replay),
            first: copy(&buffers.first, may_replay && self.first_kept),
        };
    }

    fn put_back(&mut self, buffers: &mut Buffers) {
        let kept = take(&mut self.kept);
        for (buffer, bytes) in
            [(&mut buffers.send, kept.send), (&mut buffers.body, kept.body), (&mut buffers.first, kept.first)]
        {
            buffer.clear();
            buffer.extend_from_slice(&bytes);
        }
    }

    fn whole(&mut self, buffers: &mut Buffers, replay: &mut Option<Replay>) -> Outcome {
        if !self.sent {
            match self.send_request(buffers, replay) {
                Ok(()) => {}
                Err(Unsent::TooLarge(what)) => {
                    let why = format!("was not asked: {}", what.text());
                    return Outcome::Answer { status: what.status(), how: Returned::Idle, why };
                }
                Err(Unsent::Failed(kind)) if self.messages == 0 && is_unread(kind) => return Outcome::Unread,
                Err(Unsent::Failed(kind)) => return self.stopped(Stop::Died(Some(kind))),
            }
            self.sent = true;
            if self.parks && (self.pending || self.waits()) {
                // No worker is as fast as that.
                return Outcome::Parked;
            }
        }
        match self.converse(buffers) {
            Ok(last) => Outcome::Done {
                last,
                body_left: matches!(self.upload, Upload::Running | Upload::Cut) || self.kept_body,
            },
            Err(Stop::Parks) => Outcome::Parked,
            Err(stop) => self.stopped(stop),
        }
    }

    fn exchange(&self) -> Exchange {
        self.lease.exchange
    }

    /// Until END; returns whether the worker takes no further request.
    fn converse(&mut self, buffers: &mut Buffers) -> Result<bool, Stop> {
        if !self.out.is_through() {
            if !matches!(self.checker.stage(), Stage::Complete { .. }) {
                self.check_time()?;
            }
            if !self.out.go_on()? {
                return Err(Stop::Parks);
            }
            // The client was busy with the response.
            self.awaits_client_since = Instant::now();
        }
        let mut turns = 0_u64;
        loop {
            turns += 1;
            if let Stage::Complete { last } = self.checker.stage() {
                return Ok(last);
            }
            if !self.out.is_through() || (self.parks && turns > MOST_TURNS && self.waits()) {
                return Err(Stop::Parks);
            }
            self.check_time()?;
            self.look_at_client()?;
            if self.upload != Upload::Running && !self.pending {
                match self.hear(&mut buffers.receive, if self.parks { Blocking::No } else { Blocking::Yes }) {
                    Err(Stop::Silent) => {
                        self.check_taken()?;
                        if self.parks {
                            return Err(Stop::Parks);
                        }
                    }
                    heard => heard?,
                }
                continue;
            }
            if !self.pending {
                self.pending = self.read_on(buffers)?;
            }
            if self.pending {
                self.pending = self.send_some(&buffers.send)?;
            }
            let stuck = self.pending || (self.upload == Upload::Running && self.dry);
            // Before it parks, a request hears what has come: a worker's socket is watched for what comes after.
            if stuck && !self.parks && !self.wait_for_either(&mut buffers.send)? {
                continue;
            }
            match self.hear(&mut buffers.receive, Blocking::No) {
                Err(Stop::Silent) if stuck && self.parks => {
                    self.wait_for_either(&mut buffers.send)?;
                }
                Err(Stop::Silent) => {}
                heard => heard?,
            }
        }
    }

    /// Nothing can be done before the worker takes or says something, or the client sends more. Says whether the worker
    /// has spoken.
    fn wait_for_either(&mut self, out: &mut Vec<u8>) -> Result<bool, Stop> {
        self.check_taken()?;
        if self.pending || (self.awaits_client_since.elapsed() >= WORKER_LOOK && self.holds_unread()) {
            // It is the worker's turn.
            self.awaits_client_since = Instant::now();
        }
        let left = self.client_left_time();
        if left.is_zero() {
            self.give_up_client(out);
            self.pending = true;
            return Ok(false);
        }
        self.wait(left)
    }

    /// Receives a message and does what it says.
    fn hear(&mut self, buf: &mut [u8], blocking: Blocking) -> Result<(), Stop> {
        let received = self.receive(buf, blocking)?;
        self.progressed = false;
        self.message(&buf[..received.len], received.fds)?;
        if self.progressed {
            self.awaits_client_since = Instant::now();
        }
        Ok(())
    }

    /// Nobody has a thread wait for a client that has left. One that only stopped sending wants its answer, as far as
    /// anybody can tell. A parked request is told by its client's socket.
    fn look_at_client(&mut self) -> Result<(), Stop> {
        if self.parks || self.looked.elapsed() < WORKER_LOOK {
            return Ok(());
        }
        self.looked = Instant::now();
        if client::has_left(self.r, false) {
            return Err(Stop::ClientGone);
        }
        Ok(())
    }

    /// Waits until the worker has received the request, or is gone: as long as only that one message is on its way, it
    /// is known whether a worker that died has read it. One that speaks first is heard first.
    fn wait_until_taken(&mut self) -> Result<(), Stop> {
        while self.is_untaken() {
            let Some(taken) = &self.taken else {
                // Without a descriptor for that, another worker cannot be asked from now on.
                let Ok(receipt) = Receipt::of(self.lease.socket.as_fd()) else { break };
                self.taken = Some(Taken { receipt, watched: Cell::new(false) });
                continue;
            };
            self.check_taken()?;
            self.check_time()?;
            let patience = match BRIEF.checked_sub(self.began.elapsed()) {
                _ if !self.parks => WORKER_LOOK,
                Some(left) => left,
                None => return Err(Stop::Parks),
            };
            wait::readable_or_writable(taken.receipt.as_fd(), false, None, patience)
                .map_err(|e| Stop::Died(Some(e.kind())))?;
            taken.receipt.take();
            self.look_at_client()?;
        }
        self.taken = None;
        Ok(())
    }

    fn is_untaken(&self) -> bool {
        self.holds_unread() && !events::has_input(self.lease.socket.as_fd())
    }

    fn expires(&self) -> Option<Instant> {
        self.time_limit.map(|limit| self.began + limit)
    }

    fn check_time(&self) -> Result<(), Stop> {
        match self.expires() {
            Some(at) if Instant::now() >= at => Err(Stop::Expired),
            _ => Ok(()),
        }
    }

    /// A worker waits in poll(2) for its next request. One that has not received it in `Timeout` runs no script that takes
    /// its time: it does not serve.
    fn check_taken(&self) -> Result<(), Stop> {
        let untaken = self.messages <= 1 && !self.heard && self.began.elapsed() >= self.patience;
        if untaken && !self.patience.is_zero() && self.holds_unread() {
            return Err(Stop::Untaken);
        }
        Ok(())
    }

    /// When it is to be looked again, if no descriptor tells anything.
    fn next_look(&self) -> Duration {
        let left = self.patience.saturating_sub(self.began.elapsed());
        if self.messages > 1 || self.heard || left.is_zero() {
            return NO_DEADLINE;
        }
        left
    }

    /// The worker has not received everything that was sent to it.
    fn holds_unread(&self) -> bool {
        socket::unread_by_peer(self.lease.socket.as_fd()).is_ok_and(|bytes| bytes > 0)
    }

    /// What is left of the client's time for the next piece of its body.
    fn client_left_time(&self) -> Duration {
        self.patience.saturating_sub(self.awaits_client_since.elapsed())
    }

    /// Waits until either side can go on, `left` at most; says whether the worker has spoken.
    fn wait(&self, left: Duration) -> Result<bool, Stop> {
        let client = if self.pending { None } else { self.out.client.input() };
        let patience = match client {
            _ if self.parks => return Err(Stop::Parks),
            _ if self.pending => left.min(WORKER_LOOK),
            Some(_) => left.min(CLIENT_LOOK),
            None => STREAM_POLL,
        };
        wait::readable_or_writable(self.lease.socket.as_fd(), self.pending, client, patience)
            .map_err(|e| Stop::Died(Some(e.kind())))
    }

    /// Nothing can be done before the worker, or the client, says something.
    fn waits(&self) -> bool {
        self.upload != Upload::Running || self.dry
    }

    /// It is the worker's turn.
    pub fn waits_for_worker(&self) -> bool {
        self.out.is_through() && (self.upload != Upload::Running || self.pending)
    }

    /// It was sent so lately that nobody looks after its client yet.
    pub fn is_fresh(&self) -> bool {
        self.waits_for_worker() && !self.pending && self.began.elapsed() < PARKED_LOOK
    }

    /// What a parked exchange waits for.
    pub fn awaited(&self) -> Awaited<'_> {
        let mut awaited = self.awaited_without_limit();
        if let Some(at) = self.expires().filter(|_| !matches!(self.checker.stage(), Stage::Complete { .. })) {
            awaited.until = awaited.until.min(at);
        }
        awaited
    }

    fn awaited_without_limit(&self) -> Awaited<'_> {
        let now = Instant::now();
        if !self.out.is_through() {
            return self.out.awaited();
        }
        if let Some(Taken { receipt, watched }) = &self.taken {
            let peer = Peer { fd: receipt.as_fd(), interest: Interest::Read, watched };
            return Awaited { peer: Some(peer), client: Some(Interest::End), until: now + self.next_look() };
        }
        let (interest, client, patience) = match () {
            () if self.pending => (Interest::Any, Some(Interest::End), self.next_look()),
            () if self.upload == Upload::Running => {
                (Interest::Read, Some(Interest::Read), self.client_left_time().min(CLIENT_LOOK))
            }
            () if self.is_fresh() => (Interest::Read, None, PARKED_LOOK),
            () => (Interest::Read, Some(Interest::End), self.next_look()),
        };
        let peer = Peer { fd: self.lease.socket.as_fd(), interest, watched: &self.lease.watched };
        Awaited { peer: Some(peer), client, until: now + patience }
    }

    /// What it waits for has come, and no descriptor tells.
    pub fn is_ready(&self) -> bool {
        self.out.is_ready()
    }

    fn receive(&mut self, buf: &mut [u8], blocking: Blocking) -> Result<Received, Stop> {
        match socket::receive_few(self.lease.socket.as_fd(), buf, blocking) {
            // Also what a message without a byte looks like.
            Ok(received) if received.len == 0 && !wait::is_hung_up(self.lease.socket.as_fd(), false) => {
                self.doomed.extend(received.fds);
                Err(Stop::Violation("an empty message".into()))
            }
            Ok(received) if received.len == 0 => {
                self.doomed.extend(received.fds);
                Err(Stop::Died(None))
            }
            Ok(received) if received.truncated => {
                self.doomed.extend(received.fds);
                Err(Stop::Violation("a message beyond the limit".into()))
            }
            Ok(received) if received.fds_lost => {
                self.doomed.extend(received.fds);
                Err(Stop::Violation("more file descriptors than allowed, or none left here".into()))
            }
            Ok(received) => {
                self.heard = true;
                Ok(received)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(Stop::Silent),
            // The kernel tells once that a message was left unread, before it gives what the worker has answered.
            Err(e)
                if e.kind() == io::ErrorKind::ConnectionReset && (self.messages > 1 || self.heard) && !self.reset =>
            {
                self.reset = true;
                self.receive(buf, blocking)
            }
            Err(e) => Err(Stop::Died(Some(e.kind()))),
        }
    }
}
