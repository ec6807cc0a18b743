//! The frontend: hands requests of pools to workers, and passes their answers on.
//!
//! Runs in: httpd's children that talk to clients (`User`); request threads and one helper thread.
//! Trusts: httpd, the controller.  Owns: this process's leases.  Never: believes a worker, runs a tenant's code.
#![forbid(unsafe_code)]

mod channel;
mod closer;
mod desk;
mod drain;
mod errors;
mod exchange;
mod files;
mod keepalive;
mod request;
mod service;

use crate::httpd::config::{self, Assignment};
use crate::httpd::{self, conftree, log, ServerRec};
use crate::policy::lines::{self, PoolLines};
use crate::policy::threads::Threads;
use crate::settings::{LoggedNames, PoolTree};
use crate::sys::{fork, image, launch};
use crate::wire::control::{ControllerMessage, InFlight, MAX_CONTROL_MESSAGE};
use channel::{Channel, Identity};
use closer::Closer;
use desk::Desk;
use drain::Drains;
use errors::ErrorLines;
use files::PoolFiles;
pub use keepalive::{wait_for_close, wait_for_next_request};
use once_cell::sync::OnceCell;
use request::ServerName;
pub use service::{complete_for_loggers, has_failed, serve, Handled};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

/// How long the helper thread waits before it says hello to a controller again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// How long a frontend whose parent is gone may take to end by itself.
const END_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug)]
struct Frontend {
    desk: Desk,
    pools: Vec<PoolFacts>,
    threads: Threads,
    closer: Closer,
    drains: Drains,
    errors: ErrorLines,
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
    /// Why its requests get 503, whatever they are.
    out_of_service: Option<String>,
    queue_timeout: Duration,
    request_timeout: Option<Duration>,
    max_parked: u32,
    /// `None`: threads are not shared between requests here.
    max_threads: Option<u32>,
    /// Its requests that are parked now.
    parked: AtomicU32,
    /// What its workers have sent.
    files: PoolFiles,
    /// What its requests may write into the error log.
    lines: PoolLines,
}

/// For the closer: the root pool has no processes, so descriptors of several pools may be closed in its name.
const OF_ANY_POOL: u32 = 0;

static FRONTEND: OnceCell<Frontend> = OnceCell::new();

/// What [`start`] needs.
#[derive(Debug)]
pub struct FrontendStart<'a> {
    pub connector: OwnedFd,
    pub generation: u64,
    /// Numbers of each pool, which all frontends of the generation have in common: one for [`Threads`], and behind those of
    /// all pools [`lines::NUMBERS`] for [`PoolLines`].
    pub numbers: &'static [AtomicU64],
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
    // A process of one thread has nothing to share out.
    let half_of_threads = Some(httpd::image::threads_per_child() / 2).filter(|&half| half > 0);
    let count = start.tree.pools().len();
    let (moves, lines) = start.numbers.split_at_checked(count).unwrap_or_default();
    let mut lines = lines.chunks_exact(lines::NUMBERS);
    let pools: Vec<PoolFacts> = start
        .tree
        .pools()
        .iter()
        .map(|p| PoolFacts {
            name: p.name.clone(),
            out_of_service: p.out_of_service.clone(),
            queue_timeout: p.limits.queue_timeout,
            request_timeout: p.limits.request_timeout,
            max_parked: p.limits.max_parked,
            max_threads: p.limits.max_frontend_threads.or(half_of_threads),
            parked: AtomicU32::new(0),
            files: PoolFiles::default(),
            lines: PoolLines::new(lines.next().unwrap_or_default()),
        })
        .collect();
    let threads = Threads::new(pools.len(), moves);
    let desk = Desk::new(pools.len(), channel);
    let mut logs = HashMap::new();
    let mut servers = HashMap::new();
    for (index, server) in (0..).zip(start.main.iter()) {
        servers.insert(server.key(), ServerName { index, hash: config::vhost_hash(server) });
        if let Some(Assignment::Pool(pool)) = config::default_assignment(server) {
            // httpd's list begins with the one that is defined last.
            logs.insert(pool, server);
        }
    }
    let mut logged = LoggedNames::default();
    conftree::each_directive(|name, arguments| logged.learn(name, arguments));
    let (closer, errors) = (Closer::default(), ErrorLines::default());
    let drains = Drains::default();
    let frontend = Frontend { desk, pools, threads, closer, drains, errors, main: start.main, logs, servers, logged };
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

/// This process ends, as one of httpd's children does.
pub fn end() {
    if let Some(frontend) = FRONTEND.get() {
        frontend.abandon_drains();
    }
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
                    Ok(ControllerMessage::Log { pool, pid, line }) => self.error_line(pool, pid, line),
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
                self.expire_drains();
                self.drains.resume();
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
        let unsent = self.desk.channel.disconnect();
        closer::discard(OF_ANY_POOL, unsent);
        let in_flight = self.desk.controller_lost();
        let name = |pool: u32| usize::try_from(pool).ok().and_then(|i| self.pools.get(i)).map(|p| p.name.clone());
        let in_flight = in_flight.into_iter().filter_map(|(pid, p)| Some(InFlight { pid, pool: name(p)? })).collect();
        std::thread::sleep(RECONNECT_PAUSE);
        if self.desk.channel.connect(in_flight).is_err() {
            return;
        }
        self.desk.want_again();
    }
}
