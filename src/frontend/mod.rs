//! The frontend: hands requests of pools to workers, and passes their answers on.
//!
//! Runs in: httpd's children that talk to clients (`User`); request threads and one helper thread.
//! Trusts: httpd, the controller.  Owns: this process's leases.  Never: believes a worker, runs a tenant's code.
#![forbid(unsafe_code)]

mod channel;
mod desk;
mod exchange;
mod keepalive;
mod request;

use crate::httpd::client;
use crate::httpd::config::{self, Assignment};
use crate::httpd::{conftree, hooks, log, RequestRec, ServerRec};
use crate::settings::{LoggedNames, PoolTree};
use crate::sys::{fork, image, launch};
use crate::wire::control::{ControllerMessage, InFlight, Refusal, Returned, MAX_CONTROL_MESSAGE};
use crate::wire::plain_log::PlainLine;
use channel::{Channel, Identity};
use desk::{Desk, Lease, Leased, NoLease, Unserved};
use exchange::Outcome;
use keepalive::Occupied;
pub use keepalive::{wait_for_close, wait_for_next_request};
use once_cell::sync::OnceCell;
use request::ServerName;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How many workers granted to a request are tried, as long as surely none has read it.
const MAX_TRIES: u32 = 5;
/// How long the helper thread waits before it says hello to a controller again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// How long a frontend whose parent is gone may take to end by itself.
const END_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug)]
struct Frontend {
    desk: Desk,
    pools: Vec<PoolFacts>,
    main: ServerRec<'static>,
    /// Where lines of a pool's standard error go: its first virtual host.
    logs: HashMap<u32, ServerRec<'static>>,
    servers: HashMap<usize, ServerName>,
    /// What a worker may tell the loggers.
    logged: LoggedNames,
}

#[derive(Debug)]
struct PoolFacts {
    name: String,
    queue_timeout: Duration,
}

static FRONTEND: OnceCell<Frontend> = OnceCell::new();

/// What [`start`] needs.
#[derive(Debug)]
pub struct FrontendStart<'a> {
    pub connector: OwnedFd,
    pub generation: u64,
    pub tree: &'a PoolTree,
    pub main: ServerRec<'static>,
    /// httpd's parent; `None` where this process is the parent itself (`-X`).
    pub parent: Option<u32>,
}

/// In a fresh child of httpd's, before it has threads: hello to the controller, and the helper thread.
pub fn start(start: FrontendStart<'_>) -> std::io::Result<()> {
    let identity = Identity { generation: start.generation, build_id: image::build_id() };
    let channel = Channel::new(start.connector, identity);
    channel.connect(Vec::new())?;
    let pools: Vec<PoolFacts> = start
        .tree
        .pools()
        .iter()
        .map(|p| PoolFacts { name: p.name.clone(), queue_timeout: p.limits.queue_timeout })
        .collect();
    let desk = Desk::new(pools.len(), channel);
    let mut logs = HashMap::new();
    let mut servers = HashMap::new();
    for (index, server) in (0..).zip(start.main.iter()) {
        servers.insert(server.key(), ServerName { index, hash: config::vhost_hash(server) });
        if let Some(Assignment::Pool(pool)) = config::default_assignment(server) {
            logs.entry(pool).or_insert(server);
        }
    }
    let mut logged = LoggedNames::default();
    conftree::each_directive(|name, arguments| logged.learn(name, arguments));
    let frontend = Frontend { desk, pools, main: start.main, logs, servers, logged };
    if FRONTEND.set(frontend).is_err() {
        return Err(std::io::ErrorKind::AlreadyExists.into());
    }
    let parent = start.parent;
    crate::sys::thread::spawn_quiet("mod_pool", move || {
        if let Some(frontend) = FRONTEND.get() {
            frontend.listen(parent);
        }
    })
}

impl Frontend {
    /// The helper thread: hears the controller for as long as the process lives.
    fn listen(&self, parent: Option<u32>) {
        let mut buf = vec![0; MAX_CONTROL_MESSAGE];
        let mut looked = Instant::now();
        loop {
            if parent.is_some_and(|pid| launch::parent_pid() != pid) {
                self.end_after_parent();
            }
            match self.desk.channel.receive(&mut buf) {
                Ok(Some(mut received)) => match ControllerMessage::decode(&buf[..received.len]) {
                    Ok(ControllerMessage::Log { pool, pid, line }) => self.log_line(pool, pid, &line),
                    Ok(message) => self.desk.hear(message, received.fds.pop()),
                    Err(e) => {
                        log::server(log::Level::Error, self.main, format!("POOL101: message of the controller: {e}"))
                    }
                },
                Ok(None) => {}
                Err(_) => self.reconnect(),
            }
            if looked.elapsed() >= Duration::from_millis(250) {
                self.desk.return_idle();
                looked = Instant::now();
            }
        }
    }

    /// httpd's parent has died without a word. Stock children would serve on, listening for ever; the pools have ended
    /// with their controller, so this process ends as if it had been stopped.
    fn end_after_parent(&self) -> ! {
        log::server(log::Level::Crit, self.main, "POOL113: httpd's parent process has died: this process ends");
        launch::signal_self(15);
        std::thread::sleep(END_PATIENCE);
        fork::exit_now(1)
    }

    /// The controller has died; httpd's parent starts another one, which listens at the same place.
    fn reconnect(&self) {
        self.desk.channel.disconnect();
        let in_flight = self.desk.controller_lost();
        let name = |pool: u32| usize::try_from(pool).ok().and_then(|i| self.pools.get(i)).map(|p| p.name.clone());
        let in_flight = in_flight.into_iter().filter_map(|(pid, p)| Some(InFlight { pid, pool: name(p)? })).collect();
        std::thread::sleep(RECONNECT_PAUSE);
        if self.desk.channel.connect(in_flight).is_err() {
            return;
        }
        self.desk.want_again();
    }

    fn log_line(&self, pool: u32, pid: u32, line: &[u8]) {
        let name = usize::try_from(pool).ok().and_then(|i| self.pools.get(i)).map_or("?", |p| &p.name);
        let front = format!("[pool {name} pid {pid}] ");
        let server = self.logs.get(&pool).copied().unwrap_or(self.main);
        match PlainLine::decode(line) {
            Some(line) => {
                let module = hooks::module_index_of(line.module);
                log::server_as(module, line.level, server, [front.as_bytes(), line.text].concat());
            }
            None => log::server(log::Level::Error, server, [front.as_bytes(), line].concat()),
        }
    }
}

/// What httpd is to do with the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// The client has its response, or what could be sent of it.
    Done,
    /// httpd makes the response for this status.
    Status(u16),
}

/// Serves a request by a worker of the pool with this index.
pub fn serve(r: RequestRec<'_>, pool: u32) -> Handled {
    let facts = FRONTEND.get().and_then(|f| Some((f, f.pools.get(usize::try_from(pool).ok()?)?)));
    let Some((frontend, facts)) = facts else {
        log::request(log::Level::Error, r, "POOL102: this process has no channel to the controller: restart httpd");
        return Handled::Status(503);
    };
    let desk = &frontend.desk;
    let Some(server) = frontend.servers.get(&r.server().key()).copied() else {
        log::request(log::Level::Error, r, "POOL107: the request's virtual host is not in the configuration");
        return Handled::Status(500);
    };
    let _occupied = Occupied::new();
    r.note(c"pool-name", facts.name.as_bytes());
    let began = Instant::now();
    let mut cold = false;
    let mut replay = None;
    // Idle leases of this process do not count: many of their workers can have died at once, and each is tried once.
    let mut grants = 0;
    while grants < MAX_TRIES {
        let acquired = desk.acquire(pool, facts.queue_timeout, &|half| client::has_left(r, half));
        let Leased { mut lease, cold: forked, granted } = match acquired {
            Ok(leased) => leased,
            Err(Unserved::ClientGone) => {
                note_wait(r, began, cold);
                client::abandon(r);
                return Handled::Done;
            }
            Err(Unserved::Refused(why)) => {
                note_wait(r, began, cold);
                return refused(r, &facts.name, &why);
            }
        };
        cold |= forked;
        grants += u32::from(granted);
        note_wait(r, began, cold);
        r.note(c"pool-pid", lease.pid.to_string().as_bytes());
        desk.begin(&lease);
        let outcome = exchange::run(r, server, &mut lease, &facts.name, &frontend.logged, &mut replay);
        let pid = lease.pid;
        match outcome {
            Outcome::Done { last, body_left } => {
                desk.release(lease, if last { Returned::Last } else { Returned::Idle });
                if body_left {
                    client::discard_body(r);
                } else {
                    keepalive::offer(r);
                }
                return Handled::Done;
            }
            Outcome::ClientGone => {
                desk.release(lease, Returned::Abandoned);
                return Handled::Done;
            }
            Outcome::Unread => desk.release(lease, Returned::Dead),
            Outcome::Answer { status, how, why } => {
                let why = with_obituary(desk, &lease, how, why);
                desk.release(lease, how);
                complain(r, "POOL103", &facts.name, pid, &format!("{why}: {status}"));
                return failed(r, status, 1);
            }
            Outcome::BrokeOff { how, why } => {
                let why = with_obituary(desk, &lease, how, why);
                desk.release(lease, how);
                complain(r, "POOL104", &facts.name, pid, &format!("{why}: the response was broken off"));
                return Handled::Done;
            }
        }
    }
    let why = "no worker took the request, in several tries: 503";
    log::request(log::Level::Error, r, format!("POOL105: [pool {}] {why}", facts.name));
    failed(r, 503, 1)
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
    let text = format!("POOL106: [pool {pool}] 503: {reason}{detail}");
    log::request(log::Level::Error, r, request::naming(r, text));
    failed(r, 503, why.retry_after_s)
}
