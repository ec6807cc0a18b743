//! A request of a pool, from the queue to the end of its answer.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: httpd, the controller.  Owns: the request's lease.
//! Never: believes a worker; keeps a thread for long where the request can be parked.

use super::closer;
use super::desk::{self, Desk, Lease, Leased, NoLease, Unserved, Waiting};
use super::exchange::{Delivery, Outcome, Parties, Parts, Replay, Run, Undelivered, PARKED_LOOK};
use super::keepalive::{self, Occupied};
use super::request::{self, ServerName};
use super::{Frontend, PoolFacts, FRONTEND};
use crate::httpd::parking::{self, Awaited, Parked, Step, Ticket};
use crate::httpd::{client, log, RequestRec};
use crate::policy::threads::{Entry, Serving};
use crate::policy::Millis;
use crate::sys::clock;
use crate::sys::events::Interest;
use crate::wire::control::{Arrival, Refusal, Returned};
use crate::wire::exchange::ResponseChecker;
use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many workers granted to a request are tried, as long as surely none has read it.
const MAX_TRIES: u32 = 5;
/// A client that only stopped sending may want its answer nevertheless (`nc -N`); one whose request has waited this long
/// for a worker is more likely gone, and would have the pool work for nobody. Once a worker has the request, it gets its
/// answer, as under stock httpd.
const HALF_CLOSED_PATIENCE: Duration = Duration::from_secs(2);
/// How long a request for which there is no place among the parked ones waits all the same: the controller needs less
/// to grant a worker that is idle. Without a thread too, or a crowd of them would keep all threads from others.
const GRANT_PATIENCE: Duration = Duration::from_millis(10);
/// A request that waits for a worker on a thread of the MPM keeps it from others for so long at least, whatever there is
/// to wait for: a pool that starts, or a new configuration's seed.
const CROWD_PATIENCE: Duration = Duration::from_secs(2);
/// `Retry-After` of a pool that is out of service until somebody repairs it, in seconds.
const OUT_OF_SERVICE_RETRY: u32 = 300;

thread_local! {
    /// What this thread does.
    static ENTRY: RefCell<Option<Entry>> = const { RefCell::new(None) };
}

/// What httpd is to do with the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// The client has its response, or what could be sent of it.
    Done,
    /// httpd makes the response for this status.
    Status(u16),
    /// It goes on later, on another thread.
    Parked,
}

/// How far it is.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one for each request, on the stack of its thread")]
enum Stage<'r> {
    Begins,
    Queue(Waiting),
    Exchange(Run<'r>),
    /// The worker is free again; the client takes the rest.
    Delivery {
        rest: Delivery<'r>,
        pid: u32,
        body_left: bool,
    },
    Over,
}

#[derive(Debug)]
struct Service<'r> {
    r: RequestRec<'r>,
    frontend: &'static Frontend,
    facts: &'static PoolFacts,
    pool: u32,
    server: ServerName,
    ticket: Option<Ticket>,
    stage: Stage<'r>,
    began: Instant,
    /// The same by the clock of all processes.
    arrived: Arrival,
    cold: bool,
    replay: Option<Replay>,
    /// Idle leases of this process do not count: many of their workers can have died at once, and each is tried once.
    grants: u32,
    /// A worker was there for it, once at least.
    has_had_process: bool,
    /// It is counted among the pool's parked requests.
    is_parked: bool,
    /// In the queue without a place among those: so long it waits.
    guest_until: Option<Instant>,
    /// While it is parked: its client sends nothing any more.
    half_closed: bool,
}

/// What only a sent response may show. `r` is the client's request: redirects may have led from it to a pool.
/// Answers whether a worker has had the request, and with it the loggers of modules that work in pools.
pub fn complete_for_loggers(r: RequestRec<'_>) -> bool {
    let r = r.last();
    if r.notes().get(c"pool-name").is_some() {
        client::set_logged_type(r);
    }
    r.notes().get(c"pool-pid").is_some()
}

/// Serves a request by a worker of the pool with this index.
pub fn serve(r: RequestRec<'_>, pool: u32) -> Handled {
    let facts = FRONTEND.get().and_then(|f| Some((f, f.pools.get(usize::try_from(pool).ok()?)?)));
    let Some((frontend, facts)) = facts else {
        log::request(log::Level::Error, r, "POOL102: this process has no channel to the controller: restart httpd");
        return Handled::Status(503);
    };
    let Some(server) = frontend.servers.get(&r.server().key()).copied() else {
        let text = "POOL107: the request's virtual host is not in the configuration";
        log::request(log::Level::Error, r, format!("{text} [pool {}]", facts.name));
        return Handled::Status(500);
    };
    r.note(c"pool-name", facts.name.as_bytes());
    if let Some(why) = &facts.out_of_service {
        let why = format!("the pool is out of service: {why}, and reload httpd");
        return unavailable(r, "POOL140", &facts.name, &why, OUT_OF_SERVICE_RETRY);
    }
    if let Some(most) = facts.max_threads.filter(|&most| frontend.threads.are_held(pool, most, Frontend::now())) {
        return too_many_threads(r, &facts.name, most);
    }
    if frontend.closer.is_stuck(pool) || facts.files.is_stuck() {
        let why = "its processes have sent this one descriptors that cannot be closed";
        return unavailable(r, "POOL124", &facts.name, why, 5);
    }
    let mut service = Service {
        r,
        frontend,
        facts,
        pool,
        server,
        ticket: parking::ticket(r),
        stage: Stage::Begins,
        began: Instant::now(),
        arrived: Arrival(clock::micros()),
        cold: false,
        replay: None,
        grants: 0,
        has_had_process: false,
        is_parked: false,
        guest_until: None,
        half_closed: false,
    };
    let handled = service.go_on();
    if handled != Handled::Parked {
        return handled;
    }
    match parking::leave(r, Box::new(service)) {
        Ok(()) => Handled::Parked,
        Err(_) => Handled::Status(500),
    }
}

impl Frontend {
    /// The clock of `threads`, which all frontends have in common.
    pub(super) fn now() -> Millis {
        clock::micros() / 1000
    }

    /// The client has left; its worker gets free when the script is through, or has to end.
    fn let_go(&self, lease: Lease, checker: Option<ResponseChecker>, expires: Option<Instant>) {
        desk::unwatch(&lease);
        let left = match checker {
            Some(checker) => self.drains.take(lease, checker, expires),
            None => Err(lease),
        };
        if let Err(lease) = left {
            self.desk.release(lease, Returned::Abandoned);
        }
    }
}

impl<'r> Service<'r> {
    fn desk(&self) -> &'static Desk {
        &self.frontend.desk
    }

    /// Until the request is over, or parks.
    fn go_on(&mut self) -> Handled {
        // mod_http2 has threads of its own.
        let occupied = (!self.r.is_stream()).then(Occupied::new);
        let frontend = self.frontend;
        let entry = ENTRY.with(|mine| Arc::clone(mine.borrow_mut().get_or_insert_with(|| frontend.threads.enter())));
        let serving = frontend.threads.serve(entry, self.pool, self.r.is_stream(), Frontend::now());
        self.leave_the_lot();
        loop {
            let done = match self.stage {
                Stage::Begins => self.ask(&serving),
                Stage::Queue(_) => self.queue(&serving, occupied.as_ref()),
                Stage::Exchange(_) => self.converse(),
                Stage::Delivery { .. } => self.deliver(),
                Stage::Over => Some(Handled::Done),
            };
            if let Some(handled) = done {
                return handled;
            }
        }
    }

    fn leave_the_lot(&mut self) {
        if std::mem::take(&mut self.is_parked) {
            self.facts.parked.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// It waits for so short a time that nobody looks after its client yet.
    fn is_fresh(&self) -> bool {
        match &self.stage {
            Stage::Queue(_) => self.began.elapsed() < PARKED_LOOK,
            Stage::Exchange(run) => run.is_fresh(),
            Stage::Begins | Stage::Delivery { .. } | Stage::Over => false,
        }
    }

    /// It gives up its thread. One that only waits for a worker may not for long if too many do already.
    fn park(&mut self) -> Option<Handled> {
        let in_queue = matches!(self.stage, Stage::Queue(_));
        let place = |parked| (!in_queue || parked < self.facts.max_parked).then(|| parked + 1);
        let placed = self.facts.parked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, place);
        self.is_parked = placed.is_ok();
        self.half_closed = !self.is_fresh() && client::has_left(self.r, true);
        if let Err(others) = placed {
            let now = Instant::now();
            if now >= *self.guest_until.get_or_insert(now + GRANT_PATIENCE) {
                self.stage = Stage::Over;
                note_wait(self.r, self.began, self.cold);
                let why =
                    format!("PoolMaxParked: {others} requests of this process wait for the pool without a thread");
                return Some(unavailable(self.r, "POOL122", &self.facts.name, &why, 1));
            }
        }
        Some(Handled::Parked)
    }

    fn ask(&mut self, serving: &Serving<'_>) -> Option<Handled> {
        if self.grants >= MAX_TRIES {
            let why = "no worker took the request, in several tries: 503";
            let text = format!("POOL105: [pool {}] {why}", self.facts.name);
            log::request(log::Level::Error, self.r, request::naming(self.r, text));
            return Some(failed(self.r, 503, 1));
        }
        match self.desk().ask(self.pool, self.arrived, self.facts.queue_timeout) {
            Ok(leased) => {
                serving.has_process();
                self.has_had_process = true;
                self.begin(leased);
            }
            Err(waiting) => {
                self.guest_until = None;
                self.stage = Stage::Queue(waiting);
            }
        }
        None
    }

    fn queue(&mut self, serving: &Serving<'_>, occupied: Option<&Occupied>) -> Option<Handled> {
        let r = self.r;
        let parks = self.ticket.is_some();
        let most = parks.then_some(Duration::ZERO);
        let Stage::Queue(waiting) = &mut self.stage else { return None };
        let began = self.began;
        let has_left = || client::has_left(r, began.elapsed() >= HALF_CLOSED_PATIENCE);
        let (threads, limit) = (&self.frontend.threads, self.facts.max_threads);
        // A crowd that came within a second has all threads, and none of them was refused.
        let of_a_crowd = || {
            let needed = || occupied.is_some_and(Occupied::is_one_too_many);
            began.elapsed() >= CROWD_PATIENCE
                && limit.is_some_and(|limit| threads.is_one_too_many(serving, limit, Frontend::now(), needed))
        };
        let answer = waiting.wait(most, &|| {
            if has_left() {
                return Some(Unserved::ClientGone);
            }
            of_a_crowd().then_some(Unserved::Crowd)
        });
        // Many clients may leave at once, and some get their turn meanwhile: no worker is to work for them.
        let has_left = parks && began.elapsed() >= PARKED_LOOK && has_left();
        match answer {
            None if !has_left => {
                if let Some(ticket) = self.ticket {
                    waiting.park(ticket);
                }
                return self.park();
            }
            Some(Ok(leased)) if !has_left => {
                let first = !std::mem::replace(&mut self.has_had_process, true);
                serving.gets_process(first, Frontend::now());
                self.begin(leased);
                return None;
            }
            Some(Ok(leased)) => self.desk().release(leased.lease, Returned::Idle),
            Some(Err(Unserved::Refused(why))) => {
                self.stage = Stage::Over;
                note_wait(r, self.began, self.cold);
                return Some(refused(r, &self.facts.name, &why));
            }
            Some(Err(Unserved::Crowd)) => {
                self.stage = Stage::Over;
                note_wait(r, self.began, self.cold);
                return Some(too_many_threads(r, &self.facts.name, limit.unwrap_or_default()));
            }
            Some(Err(Unserved::ClientGone)) | None => {}
        }
        self.stage = Stage::Over;
        note_wait(r, self.began, self.cold);
        client::abandon(r);
        Some(Handled::Done)
    }

    fn begin(&mut self, leased: Leased) {
        let Leased { lease, cold, granted } = leased;
        self.cold |= cold;
        self.grants += u32::from(granted);
        note_wait(self.r, self.began, self.cold);
        self.r.note(c"pool-pid", lease.pid.to_string().as_bytes());
        let parties = Parties {
            r: self.r,
            pool: self.pool,
            server: self.server,
            pool_name: &self.facts.name,
            logged: &self.frontend.logged,
            ticket: self.ticket,
            files: &self.facts.files,
            max_threads: self.facts.max_threads,
            time_limit: self.facts.request_timeout,
        };
        self.stage = Stage::Exchange(Run::new(parties, lease));
    }

    fn converse(&mut self) -> Option<Handled> {
        // It stays in its place meanwhile: whatever happens, its lease is released.
        let Stage::Exchange(run) = &mut self.stage else { return None };
        let mut outcome = run.go_on(&mut self.replay);
        if matches!(outcome, Outcome::Parked) {
            if !run.waits_for_worker() || run.is_fresh() || !client::has_left(self.r, false) {
                return self.park();
            }
            outcome = run.client_left();
        }
        let Stage::Exchange(run) = std::mem::replace(&mut self.stage, Stage::Over) else { return None };
        let (desk, pid) = (self.desk(), run.pid());
        let Parts { lease, rest, doomed, checker, expires } = run.into_parts();
        closer::discard(self.pool, doomed);
        match outcome {
            Outcome::Parked => None,
            Outcome::Done { last, body_left } => {
                desk.release(lease, if last { Returned::Last } else { Returned::Idle });
                self.stage = Stage::Delivery { rest, pid, body_left };
                None
            }
            Outcome::NoPart { status, last } => {
                desk.release(lease, if last { Returned::Last } else { Returned::Idle });
                Some(Handled::Status(status))
            }
            Outcome::ClientGone => {
                self.frontend.let_go(lease, checker, expires);
                Some(self.undelivered(&rest, pid))
            }
            Outcome::Unread => {
                desk.release(lease, Returned::Dead);
                self.stage = Stage::Begins;
                None
            }
            Outcome::Answer { status, how, why } => {
                let why = with_obituary(desk, &lease, how, why);
                desk.release(lease, how);
                complain(self.r, "POOL103", &self.facts.name, pid, &format!("{why}: {status}"));
                Some(failed(self.r, status, 1))
            }
            Outcome::BrokeOff { how, why, instead } => {
                let why = with_obituary(desk, &lease, how, why);
                desk.release(lease, how);
                self.broke_off(pid, &why, instead);
                Some(Handled::Done)
            }
        }
    }

    fn broke_off(&self, pid: u32, why: &str, instead: bool) {
        let seen = if instead { "502, as nothing of the response had left" } else { "the response was broken off" };
        complain(self.r, "POOL104", &self.facts.name, pid, &format!("{why}: {seen}"));
    }

    /// The client is gone, or a filter between it and the pool has failed: nothing more is sent.
    fn undelivered(&self, rest: &Delivery<'_>, pid: u32) -> Handled {
        if let Some(why) = rest.client.failure() {
            let text = format!("POOL123: [pool {} pid {pid}] the response cannot be passed on: {why}", self.facts.name);
            log::request(log::Level::Error, self.r, request::naming(self.r, text));
        }
        client::abandon(self.r);
        Handled::Done
    }

    fn deliver(&mut self) -> Option<Handled> {
        let Stage::Delivery { rest, pid, body_left } = &mut self.stage else { return None };
        let (pid, body_left) = (*pid, *body_left);
        match if rest.is_through() { Ok(true) } else { rest.go_on() } {
            Ok(false) => return self.park(),
            Ok(true) if !rest.client.has_failed() => {
                if body_left {
                    client::discard_body(self.r, self.ticket.is_none());
                } else {
                    keepalive::offer(self.r);
                }
                return Some(Handled::Done);
            }
            Err(Undelivered::File(what)) => {
                rest.break_off();
                self.broke_off(pid, &format!("broke the protocol: it sent {what}"), false);
                return Some(Handled::Done);
            }
            Ok(true) | Err(Undelivered::ClientGone) => {}
        }
        match &self.stage {
            Stage::Delivery { rest, .. } => Some(self.undelivered(rest, pid)),
            _ => None,
        }
    }
}

impl Parked for Service<'_> {
    fn awaited(&self) -> Awaited<'_> {
        let mut awaited = match &self.stage {
            Stage::Queue(waiting) if self.is_fresh() => {
                Awaited { peer: None, client: None, until: waiting.goes_on_at().min(self.began + PARKED_LOOK) }
            }
            Stage::Queue(waiting) => Awaited { peer: None, client: Some(Interest::End), until: waiting.goes_on_at() },
            Stage::Exchange(run) => run.awaited(),
            Stage::Delivery { rest, .. } => rest.awaited(),
            Stage::Begins | Stage::Over => {
                let until = Instant::now() + self.r.server().timeout();
                Awaited { peer: None, client: Some(Interest::Write), until }
            }
        };
        if let Some(until) = self.guest_until.filter(|_| !self.is_parked) {
            awaited.until = awaited.until.min(until);
        }
        if awaited.client == Some(Interest::End) && self.half_closed {
            awaited.client = Some(Interest::Reset);
            if matches!(self.stage, Stage::Queue(_)) {
                awaited.until = awaited.until.min(self.began + HALF_CLOSED_PATIENCE);
            }
        }
        awaited
    }

    fn is_ready(&self) -> bool {
        match &self.stage {
            Stage::Queue(waiting) => waiting.is_answered(),
            Stage::Exchange(run) => run.is_ready(),
            Stage::Delivery { rest, .. } => rest.is_ready(),
            Stage::Begins | Stage::Over => false,
        }
    }

    fn go_on(&mut self) -> Step {
        match Service::go_on(self) {
            Handled::Parked => Step::Parks,
            Handled::Done => Step::Ended(parking::DONE),
            Handled::Status(status) => Step::Ended(i32::from(status)),
        }
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        self.leave_the_lot();
        // The connection has ended under it, or a panic.
        if let Stage::Exchange(run) = std::mem::replace(&mut self.stage, Stage::Over) {
            let Parts { lease, doomed, checker, expires, .. } = run.into_parts();
            closer::discard(self.pool, doomed);
            if std::thread::panicking() {
                self.desk().release(lease, Returned::Violation);
            } else {
                self.frontend.let_go(lease, checker, expires);
            }
        }
    }
}

/// This module's own answer, not a worker's; a client that got 503 may come again after some seconds.
fn failed(r: RequestRec<'_>, status: u16, retry_after_s: u32) -> Handled {
    r.note(FAILED, b"1");
    if status == 503 {
        client::set_error_header(r, c"Retry-After", &retry_after_s.max(1).to_string());
    }
    Handled::Status(status)
}

/// The request that this one was redirected from got its error status from this module, not from a worker.
pub fn has_failed(r: RequestRec<'_>) -> bool {
    r.previous().is_some_and(|p| p.notes().get(FAILED).is_some())
}

const FAILED: &std::ffi::CStr = c"pool-failed";

fn note_wait(r: RequestRec<'_>, began: Instant, cold: bool) {
    r.note(c"pool-wait", began.elapsed().as_micros().to_string().as_bytes());
    r.note(c"pool-cold", if cold { b"1" } else { b"0" });
}

/// When the worker died: how, as the controller saw it.
fn with_obituary(desk: &Desk, lease: &Lease, how: Returned, why: String) -> String {
    if how != Returned::Dead {
        return why;
    }
    match desk.obituary(lease).map(crate::sys::process::describe_wait_status) {
        Some(end) => format!("{end} before its response was complete"),
        None => why,
    }
}

fn complain(r: RequestRec<'_>, tag: &str, pool: &str, pid: u32, why: &str) {
    let text = format!("{tag}: [pool {pool} pid {pid}] the worker {why}");
    log::request(log::Level::Error, r, request::naming(r, text));
}

fn refused(r: RequestRec<'_>, pool: &str, why: &NoLease) -> Handled {
    let reason = match why.reason {
        Refusal::QueueFull => "PoolQueueLimit: too many requests wait for a worker already",
        Refusal::QueueTimeout => "PoolQueueTimeout: no worker became free in time",
        Refusal::Throttled => {
            "the pool's processes die when they start (the server's error log says why); the next attempt comes later"
        }
        Refusal::NoPool => "the running configuration has no such pool",
        Refusal::Stopping => "the server is stopping",
    };
    // Why processes fail to start is logged once for each attempt, by the controller.
    let told = why.text.is_empty() || why.reason == Refusal::Throttled;
    let detail = if told { String::new() } else { format!(" ({})", why.text) };
    unavailable(r, "POOL106", pool, &format!("{reason}{detail}"), why.retry_after_s)
}

fn too_many_threads(r: RequestRec<'_>, pool: &str, most: u32) -> Handled {
    let why = format!(
        "PoolMaxFrontendThreads: {most} threads of this process have been with requests of this pool for more than a \
         second"
    );
    unavailable(r, "POOL121", pool, &why, 1)
}

fn unavailable(r: RequestRec<'_>, tag: &str, pool: &str, reason: &str, retry_after_s: u32) -> Handled {
    log::request(log::Level::Error, r, request::naming(r, format!("{tag}: [pool {pool}] 503: {reason}")));
    failed(r, 503, retry_after_s)
}
