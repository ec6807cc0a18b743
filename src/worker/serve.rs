//! The loop: a request, its response, the next request.
//!
//! Runs in: worker.  Trusts: the frontend.  Owns: the order of things in an exchange.
//! Never: returns; the process ends with its lease.

use super::inbox::{Filled, Incoming};
use super::state::{BodyState, Gone, Worker, WORKER};
use crate::httpd::rebuild::{self, BodyLength, Description, End, Workshop};
use crate::httpd::{checkers, classes, worker_filters, RequestRec, ServerRec};
use crate::policy::near;
use crate::settings::LoggedNames;
use crate::sys::socket::Blocking;
use crate::sys::{fork, thread, title, wait};
use crate::wire::codec::{Put, Reader};
use crate::wire::frame::{Exchange, FrameKind, Pairs, FLAG_LAST, FLAG_MORE, MAX_REQUEST_HEAD};
use crate::wire::request::{
    Address, Request, HTTP2, PART, REQUEST_CHUNKED, REQUEST_EARLY_META, REQUEST_EXPECT, REQUEST_LENGTH,
    REQUEST_ONE_ADDRESS, UPGRADE,
};
use crate::wire::response::{put_response_end, Abort, AbortReason};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

/// The servers of the configuration that the zygote has read, the main server first. With each the hash of its own
/// definition, the same in every process that has read this.
pub type Servers = Vec<(ServerRec<'static>, u64)>;

/// What a forked process needs to be a worker.
#[derive(Debug)]
pub struct WorkerStart {
    /// This end of the data socket.
    pub lease: OwnedFd,
    /// Name of the pool, for the title.
    pub pool: String,
    pub servers: Servers,
    /// The worker ends after so many requests; 0 means never.
    pub max_requests: u32,
    /// `PoolEnv`: variables for the environment of scripts, as if each request had a `SetEnv` for them.
    pub env: Vec<(String, String)>,
    /// What the logs of the configuration ask for by name.
    pub logged: LoggedNames,
}

/// Why the worker ends.
#[derive(Debug)]
enum Stop {
    /// The lease is at its end.
    Lease,
    /// `max_requests` were served.
    Last,
    /// Bytes came that a frontend does not send.
    Protocol(&'static str),
}

/// Serves requests until the lease ends, then ends the process.
pub fn run(start: WorkerStart) -> ! {
    let WorkerStart { lease, pool, servers, max_requests, env, logged } = start;
    let server = servers[0].0;
    // Else each request that a frontend passes on stops its thread in the middle of the next one.
    thread::interrupt_nobody();
    let life = rebuild::child_init(server);
    if !worker_filters::install() {
        eprintln!("mod_pool: the worker's filters are not registered");
        fork::exit_now(1);
    }
    super::tls::adopt_access_checker();
    checkers::ready(life, server);
    classes::silence_what_frontends_did();
    rebuild::take_loggers();
    let workshop = Workshop::new(life);
    let titles = [format!("mod_pool: worker {pool} [idle]"), format!("mod_pool: worker {pool} [busy]")];
    let stop = WORKER.with(|cell| {
        let worker = cell.get_or_init(|| Worker::new(lease, pool.clone(), logged));
        let mut left = max_requests;
        loop {
            title::set(&titles[0]);
            let request = match worker.next_request() {
                Ok(request) => request,
                Err(stop) => break stop,
            };
            title::set(&titles[1]);
            if left == 1 {
                worker.exchange.borrow_mut().last = true;
            }
            left = left.saturating_sub(1);
            worker.serve(&workshop, &servers, &env, request);
            if worker.gone.get() {
                break Stop::Lease;
            }
            if worker.exchange.borrow().last {
                break Stop::Last;
            }
        }
    });
    if let Stop::Protocol(what) = stop {
        eprintln!("mod_pool: worker of pool {pool}: the frontend sent {what}");
    }
    rebuild::child_exit(life);
    checkers::finish();
    fork::exit_now(0)
}

/// Where the payload of a request is: in the inbox, or put together from several frames.
enum Payload {
    Received(Incoming),
    Assembled(Vec<u8>),
}

impl Worker {
    /// Waits for the next request; what is left of an earlier exchange is skipped.
    fn next_request(&self) -> Result<Payload, Stop> {
        let mut parts: Option<(Exchange, Vec<u8>)> = None;
        // A process killed while it sleeps in recvmsg(2) may take the message along and never see it; the frontend
        // could not tell that from a request that was read. Killed in poll(2), it leaves the message unread.
        wait::readable(self.lease()).map_err(|_| Stop::Lease)?;
        loop {
            let frame = self.next_frame()?;
            match frame.kind {
                FrameKind::Request => {}
                // The rest of a body that the last request did not read.
                // Nor does anybody need to know that its client has left.
                FrameKind::Body | FrameKind::BodyEnd | FrameKind::BodyAbort | FrameKind::ClientGone
                    if parts.is_none() && frame.exchange == self.exchange.borrow().number =>
                {
                    continue
                }
                _ => return Err(Stop::Protocol("a frame where a request was due")),
            }
            // The frontend chooses the number: each lending starts with another one.
            if parts.as_ref().is_some_and(|(number, _)| *number != frame.exchange) {
                return Err(Stop::Protocol("parts of two requests"));
            }
            let more = frame.flags & FLAG_MORE != 0;
            let payload = match parts.take() {
                None if !more => Payload::Received(frame.clone()),
                whole => {
                    let mut whole = whole.map(|(_, bytes)| bytes).unwrap_or_default();
                    whole.put(self.inbox.borrow().bytes(frame.payload.clone()));
                    if whole.len() > MAX_REQUEST_HEAD {
                        return Err(Stop::Protocol("too long a request head"));
                    }
                    if more {
                        parts = Some((frame.exchange, whole));
                        continue;
                    }
                    Payload::Assembled(whole)
                }
            };
            self.begin(frame.exchange);
            return Ok(payload);
        }
    }

    /// The next frame, received if need be.
    fn next_frame(&self) -> Result<Incoming, Stop> {
        loop {
            let mut inbox = self.inbox.borrow_mut();
            match inbox.next() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(_) => return Err(Stop::Protocol("bytes that are no frame")),
            }
            match inbox.fill(self.lease(), Blocking::Yes) {
                Ok(Filled::Message) => {}
                Ok(Filled::End) | Err(_) => return Err(Stop::Lease),
            }
        }
    }

    fn begin(&self, number: Exchange) {
        self.outbox.borrow_mut().begin(number);
        self.response.reset();
        self.left.set(false);
        let mut current = self.exchange.borrow_mut();
        current.number = number;
        current.body = BodyState::default();
        current.log_lines = 0;
    }

    fn serve(&self, workshop: &Workshop, servers: &Servers, env: &[(String, String)], payload: Payload) {
        self.busy.set(true);
        let inbox = self.inbox.borrow();
        let bytes = match &payload {
            Payload::Received(frame) => inbox.bytes(frame.payload.clone()),
            Payload::Assembled(bytes) => bytes,
        };
        let Some((request, description)) = decode(bytes) else {
            drop(inbox);
            self.abort(AbortReason::BadRequest, b"the request head cannot be decoded");
            self.busy.set(false);
            return;
        };
        let Some(server) = find(servers, request.head.server_index, request.head.server_hash) else {
            drop(inbox);
            self.abort(AbortReason::ServerMismatch, b"this virtual host is not in the worker's configuration");
            self.busy.set(false);
            return;
        };
        {
            let mut current = self.exchange.borrow_mut();
            current.body.length = description.body;
            current.body.ask = request.head.flags & REQUEST_EXPECT != 0;
            current.early_meta = request.head.flags & REQUEST_EARLY_META != 0;
            current.env.clear();
            put_pairs(&mut current.env, request.env);
            current.tls.set(&request);
        }
        let connection = workshop.connect(servers[0].0, &description);
        worker_filters::add_network(&connection);
        // What the frontend's modules have set for this request counts more than what the pool sets for all.
        let own = env.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        let own = own.filter(|(name, _)| !request.env.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)));
        let all = own.chain(request.env.iter().filter(|(name, _)| !is_told(name)));
        let is_part = request.env.iter().any(|(name, _)| name == PART);
        let (r, head) = connection.request(server, &description, request.headers.iter(), all);
        drop(inbox);
        if is_part {
            connection.process_part(r, head, |status| self.no_part(status));
        } else {
            connection.process(r, head);
        }
        if !self.response.finished.get() {
            // The end of the request did not come through the filters: they stopped when the client had gone.
            if !self.left.get() {
                self.exchange.borrow_mut().last = true;
            }
            self.abort(AbortReason::Failed, b"the request ended without a response");
        }
        connection.destroy();
        self.busy.set(false);
    }

    /// A part of a page, or an error document, failed; says whether nothing of it was sent.
    fn no_part(&self, status: i32) -> bool {
        let nothing_sent = !self.response.head_sent.get();
        if nothing_sent {
            self.abort(AbortReason::NoPart, status.to_string().as_bytes());
        }
        nothing_sent
    }

    /// Gives the exchange up. The frontend answers, or breaks the transfer off.
    pub(super) fn abort(&self, reason: AbortReason, text: &[u8]) {
        self.response.finished.set(true);
        self.outbox.borrow_mut().take_back();
        // When it cannot be sent, the loop finds the lease's end.
        let flags = if self.exchange.borrow().last { FLAG_LAST } else { 0 };
        let _ = self.frame(FrameKind::Abort, flags, |out| Abort { reason, text }.encode(out));
        let _ = self.send(super::outbox::Outbox::send);
    }

    /// What the loggers shall know, with the beginning of a response that does not leave in one piece: its client may
    /// go, or this process die, before its end.
    pub(super) fn tell_early(&self) -> Result<(), Gone> {
        if !self.response.head_sent.get() || !self.exchange.borrow().early_meta || self.response.told.replace(true) {
            return Ok(());
        }
        rebuild::with_current(|r| self.meta(r)).unwrap_or(Ok(()))
    }

    fn meta(&self, r: RequestRec<'_>) -> Result<(), Gone> {
        let current = self.exchange.borrow();
        self.frame(FrameKind::Meta, 0, |out| super::meta::put(out, r, &current.env, &self.logged))
    }

    /// The request is over: what the loggers shall know, and the end.
    pub(super) fn finish(&self, r: RequestRec<'_>) {
        if self.response.finished.replace(true) {
            return;
        }
        if self.left.get() {
            return self.abort(AbortReason::Failed, b"the client has left");
        }
        // What an application has spoilt says nothing of this process. httpd itself gives each request an answer: where
        // there is none, something is broken here, and another worker does better.
        if self.response.broken.get() {
            return self.abort(AbortReason::Failed, b"the response was not completed");
        }
        if !self.response.head_sent.get() || !self.response.complete.get() {
            self.exchange.borrow_mut().last = true;
            return self.abort(AbortReason::Failed, b"there was no response, or only its beginning");
        }
        if self.response.remaining.get().is_some_and(|left| left > 0) {
            return self.abort(AbortReason::Failed, b"the body is shorter than its Content-Length");
        }
        let last = self.exchange.borrow().last;
        let _ = self.meta(r);
        let _ = self.send(|outbox, lease| {
            let flags = if last { FLAG_LAST } else { 0 };
            outbox.frame(lease, FrameKind::End, flags, |out| {
                put_response_end(out, thread::processor().unwrap_or(near::UNKNOWN));
                super::meta::put_table(out, r.trailers_out());
            })?;
            outbox.send(lease)
        });
    }
}

/// The virtual host that the frontend means: the one at its place; or, where a file with others was added or removed
/// between the two readings of the configuration, the only one that is defined alike.
fn find<S: Copy>(servers: &[(S, u64)], index: u32, hash: u64) -> Option<S> {
    let at = usize::try_from(index).ok().and_then(|i| servers.get(i));
    if let Some((server, _)) = at.filter(|(_, h)| *h == hash) {
        return Some(*server);
    }
    let mut alike = servers.iter().filter(|(_, h)| *h == hash);
    match (alike.next(), alike.next()) {
        (Some((server, _)), None) => Some(*server),
        _ => None,
    }
}

/// Not a variable of the environment, or not from the beginning.
fn is_told(name: &[u8]) -> bool {
    super::previous::is_told(name) || name == PART || name == UPGRADE || name.starts_with(HTTP2)
}

fn put_pairs(out: &mut Vec<u8>, pairs: Pairs<'_>) {
    let mut writer = crate::wire::frame::PairsWriter::new(out);
    for (name, value) in pairs.iter() {
        // It came in this form, so it fits.
        let _ = writer.pair(name, value);
    }
    writer.finish();
}

fn decode(bytes: &[u8]) -> Option<(Request<'_>, Description<'_>)> {
    let request = Request::decode(bytes).ok()?;
    let head = &request.head;
    let body = if head.flags & REQUEST_LENGTH != 0 {
        BodyLength::Known(head.content_length)
    } else if head.flags & REQUEST_CHUNKED != 0 {
        BodyLength::Unknown
    } else {
        BodyLength::None
    };
    let description = Description {
        request_line: head.request_line,
        client_line: request.client_line,
        request_time: head.request_time,
        connection_id: head.connection_id,
        keepalives: head.keepalives,
        local: end(head.local)?,
        client: end(head.client)?,
        useragent: end(head.useragent)?,
        one_address: head.flags & REQUEST_ONE_ADDRESS != 0,
        remote_host: head.remote_host,
        log_id: head.log_id,
        connection_log_id: head.connection_log_id,
        body,
        error: super::previous::error(request.env),
    };
    Some((request, description))
}

/// An address as httpd prints it; an IPv6 address may carry a zone.
fn end(address: Address<'_>) -> Option<End<'_>> {
    let text = std::str::from_utf8(address.ip).ok()?;
    let number = text.split_once('%').map_or(text, |(number, _)| number);
    Some(End { text: address.ip, ip: number.parse::<IpAddr>().ok()?, port: address.port })
}

/// Reads the list of pairs that [`put_pairs`] wrote.
pub(super) fn pairs(bytes: &[u8]) -> Pairs<'_> {
    Pairs::decode(&mut Reader::new(bytes)).unwrap_or_default()
}
