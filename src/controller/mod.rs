//! The controller: lends workers to frontends, and starts and ends the processes of every pool.
//!
//! Runs in: its own process (root, or httpd's user when httpd is not root; one thread).
//! Trusts: kernel credentials, pidfds, wait status; of messages only those it could check against them.
//! Owns: the children of all seeds and zygotes, one end of each control channel, the data sockets of idle workers.
//! Never: waits for a peer, reads a configuration, opens a path that a tenant can write, closes what he has filled.
#![forbid(unsafe_code)]

mod act;
mod closers;
mod connector;
mod frontends;
mod keeper;
mod log;
mod orphans;
mod pool_errors;
mod seeds;
mod stand_in;
mod workers;
mod zygotes;

pub use stand_in::stand_in;

use self::keeper::Keeping;
use crate::policy::{Event, FrontendId, Millis, State, ZygoteId};
use crate::sys::fork::exit_now;
use crate::sys::poller::{self, Poller, SignalDescriptor};
use crate::sys::process::{self, DescriptorLimit, PidFd};
use crate::sys::socket::{Blocking, Received};
use crate::sys::{clock, launch, socket, title};
use crate::wire::codec::Malformed;
use crate::wire::control::{LeaseId, PoolTable, MAX_CONTROL_MESSAGE};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// What httpd's parent gives its controller.
#[derive(Debug)]
pub struct ControllerStart {
    /// Socket (`SOCK_SEQPACKET`) on which the parent speaks; with it come those of the frontends.
    pub connector: OwnedFd,
    /// The keeper's end of a pair of sockets (`SOCK_SEQPACKET`): where it tells how the controller has ended. When the
    /// other end is shut down, the keeper kills the controller. `None` where nobody else restarts a controller that dies:
    /// httpd runs as one process (`-X`), and the keeper does it.
    pub lifeline: Option<OwnedFd>,
    /// Process id of httpd's parent.
    pub parent: u32,
    /// Build of this module, compared with that of frontends and seeds.
    pub build_id: u64,
}

/// What a number in the poller stands for.
#[derive(Debug, Clone, Copy)]
enum Source {
    Connector,
    ChildConnector(u32),
    Signal,
    Parent,
    Keeper,
    FrontendChannel(FrontendId),
    FrontendProcess(FrontendId),
    SeedChannel(u64),
    SeedProcess(u64),
    SeedErrors(u64),
    ZygoteChannel(ZygoteId),
    ZygoteProcess(ZygoteId),
    WorkerProcess(LeaseId),
    PoolErrors(u64),
    Foreign(u32),
    Closer(u32),
    LogWriter(u32),
}

/// What one look at a channel brings.
#[derive(Debug)]
enum Heard<M> {
    Message(M, Received),
    /// Nothing now.
    Nothing,
    /// The other end is closed.
    End,
    /// What cannot be understood, with what came along; or a channel that fails.
    Garbage(String, Vec<OwnedFd>),
}

/// Takes one message from a channel, without waiting.
fn hear<M>(channel: BorrowedFd<'_>, decode: fn(&[u8]) -> Result<M, Malformed>) -> Heard<M> {
    let mut buf = [0; MAX_CONTROL_MESSAGE];
    let received = socket::receive(channel, &mut buf, Blocking::No);
    understand(received, &buf, decode)
}

/// As [`hear`], from a process that a tenant may have in hand: a descriptor of his is not received.
fn hear_tenant<M>(channel: BorrowedFd<'_>, decode: fn(&[u8]) -> Result<M, Malformed>) -> Heard<M> {
    let mut buf = [0; MAX_CONTROL_MESSAGE];
    let received = socket::receive_bare(channel, &mut buf);
    understand(received, &buf, decode)
}

fn understand<M>(received: io::Result<Received>, buf: &[u8], decode: fn(&[u8]) -> Result<M, Malformed>) -> Heard<M> {
    match received {
        Ok(received) if received.len == 0 && received.fds.is_empty() => Heard::End,
        Ok(received) if received.truncated => Heard::Garbage("it said too much at a time".into(), received.fds),
        Ok(received) => match decode(buf.get(..received.len).unwrap_or_default()) {
            Ok(message) => Heard::Message(message, received),
            Err(e) => Heard::Garbage(format!("it broke the protocol: {e}"), received.fds),
        },
        Err(e) if e.kind() == ErrorKind::WouldBlock => Heard::Nothing,
        // The same end, with something that the other side left unread (unix(7)).
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Heard::End,
        Err(e) if e.kind() == ErrorKind::InvalidData => Heard::Garbage("it sent a descriptor".into(), Vec::new()),
        Err(e) => Heard::Garbage(format!("its channel fails: {e}"), Vec::new()),
    }
}

/// A descriptor in the poller.
#[derive(Debug)]
struct Watched<T> {
    token: u64,
    what: T,
}

#[derive(Debug)]
struct Controller {
    start: ControllerStart,
    parent: PidFd,
    keeper: PidFd,
    /// Keepers of controllers before this one. What those have started is ours to end.
    older_keepers: Vec<PidFd>,
    /// One process (`-X`): the keeper has had other controllers, and is not ended with.
    one_process: bool,
    root: bool,
    descriptors: Option<DescriptorLimit>,
    signal: SignalDescriptor,
    poller: Poller,
    sources: HashMap<u64, Source>,
    numbers: u64,
    policy: State,
    events: VecDeque<Event>,
    tables: HashMap<u64, PoolTable>,
    /// The MPM's children, by pid.
    children: HashMap<u32, connector::Child>,
    frontends: HashMap<FrontendId, frontends::Frontend>,
    seeds: HashMap<u64, seeds::Seed>,
    /// Closed when the seed of the generation is ready, or has failed: httpd's start waits for that.
    until_ready: HashMap<u64, OwnedFd>,
    zygotes: HashMap<ZygoteId, zygotes::ZygoteProcess>,
    workers: HashMap<LeaseId, workers::WorkerProcess>,
    /// Own children that are a seed, zygote or worker.
    pids: HashSet<u32>,
    foreign: HashMap<u32, Watched<PidFd>>,
    errors: pool_errors::PoolErrors,
    orphans: orphans::Sweep,
    closers: closers::Closers,
    log_writers: log::LogWriters,
    connector_token: u64,
    /// The parent speaks to this controller by now.
    begun: bool,
    replaced_noted: bool,
    refusal_noted: Option<Millis>,
    lack_noted: Option<Millis>,
    /// Given up while the parent is heard: what it sends finds room.
    reserve: Vec<OwnedFd>,
    done: bool,
}

/// Runs a keeper, and the controller as its child, until the parent says stop, SIGTERM comes, or the parent dies.
pub fn run(mut start: ControllerStart) -> ! {
    poller::ignore_group_signals();
    title::init();
    let status = match keeper::keep(&mut start).and_then(|keeping| Controller::begin(start, keeping)) {
        Ok(mut controller) => {
            let status = controller.serve();
            controller.end_all();
            status
        }
        Err(e) => {
            log::error_by_child(&format!("mod_pool: the controller cannot start: {e}"));
            1
        }
    };
    exit_now(status)
}

impl Controller {
    fn begin(start: ControllerStart, keeping: Keeping) -> io::Result<Self> {
        launch::become_subreaper();
        title::set("mod_pool: controller");
        // With -X the keeper has heard the parent's one word.
        let mut controller = Self::new(start, keeping.keeper, keeping.kept.is_some())?;
        if let Some(kept) = keeping.kept {
            controller.resume(kept);
        }
        Ok(controller)
    }

    fn new(start: ControllerStart, keeper: PidFd, one_process: bool) -> io::Result<Self> {
        let parent = PidFd::open(start.parent)?;
        socket::pass_credentials(start.connector.as_fd())?;
        let signal = SignalDescriptor::of_term()?;
        let descriptors = process::raise_descriptor_limit().ok();
        let mut controller = Self {
            start,
            parent,
            keeper,
            older_keepers: Vec::new(),
            one_process,
            root: process::is_root(),
            descriptors,
            signal,
            poller: Poller::new()?,
            sources: HashMap::new(),
            numbers: 0,
            policy: State::new(),
            events: VecDeque::new(),
            tables: HashMap::new(),
            children: HashMap::new(),
            frontends: HashMap::new(),
            seeds: HashMap::new(),
            until_ready: HashMap::new(),
            zygotes: HashMap::new(),
            workers: HashMap::new(),
            pids: HashSet::new(),
            foreign: HashMap::new(),
            errors: pool_errors::PoolErrors::default(),
            orphans: orphans::Sweep::new(clock::micros() / 1000),
            closers: closers::Closers::default(),
            log_writers: log::LogWriters::default(),
            connector_token: 0,
            begun: one_process,
            replaced_noted: false,
            refusal_noted: None,
            lack_noted: None,
            reserve: Vec::new(),
            done: false,
        };
        for source in [Source::Connector, Source::Signal, Source::Parent, Source::Keeper] {
            let token = controller.number();
            let fd = match source {
                Source::Connector => {
                    controller.connector_token = token;
                    controller.start.connector.as_fd()
                }
                Source::Signal => controller.signal.as_fd(),
                Source::Keeper if one_process => continue,
                Source::Keeper => controller.keeper.as_fd(),
                _ => controller.parent.as_fd(),
            };
            controller.poller.add(fd, token)?;
            controller.sources.insert(token, source);
        }
        controller.begin_logging()?;
        Ok(controller)
    }

    /// The loop. Returns the exit status.
    fn serve(&mut self) -> i32 {
        let mut ready = Vec::new();
        loop {
            ready.clear();
            if let Err(e) = self.poller.wait(self.timeout(), &mut ready) {
                log::error(&format!("mod_pool: the controller cannot wait for events: {e}"));
                return 1;
            }
            // Who has died is known before anything is lent: the death of an idle worker costs no request.
            for deaths in [true, false] {
                for token in &ready {
                    match self.sources.get(token).copied() {
                        // What a controller without a keeper leaves falls to others, who end without it, or do not.
                        Some(Source::Parent | Source::Keeper) => return 0,
                        Some(source) if deaths == matches!(source, Source::WorkerProcess(_)) => self.readable(source),
                        // Closed by an event before this one, or of the other pass.
                        Some(_) | None => {}
                    }
                }
            }
            self.feed(Event::Tick);
            self.report_dropped_lines();
            self.sweep_orphans();
            self.run_closers();
            self.look_after_log();
            if self.done {
                return 0;
            }
        }
    }

    fn readable(&mut self, source: Source) {
        match source {
            Source::Connector => self.read_connector(),
            Source::ChildConnector(pid) => self.read_child(pid),
            Source::Signal => {
                if self.signal.came() {
                    self.feed(Event::Stop);
                }
            }
            Source::Parent | Source::Keeper => {}
            Source::FrontendChannel(id) => self.read_frontend(id),
            Source::FrontendProcess(id) => {
                // What it said before it ended comes first: leases may be on their way back.
                self.read_frontend(id);
                self.close_frontend(id);
            }
            Source::SeedChannel(generation) => self.read_seed(generation),
            Source::SeedProcess(generation) => self.reap_seed(generation),
            Source::SeedErrors(generation) => self.read_seed_errors(generation),
            Source::ZygoteChannel(id) => self.read_zygote(id),
            Source::ZygoteProcess(id) => self.reap_zygote(id),
            Source::WorkerProcess(lease) => self.reap_worker(lease),
            Source::PoolErrors(token) => self.look_at_pool_errors(token),
            Source::Closer(pid) => self.reap_closer(pid),
            Source::LogWriter(pid) => self.reap_log_writer(pid),
            Source::Foreign(pid) => {
                if let Some(process) = self.foreign.remove(&pid) {
                    self.unwatch(process.token, &process.what);
                    self.feed(Event::ForeignGone { pid });
                }
            }
        }
    }

    /// Gives an event to the policy and does what it says, and what follows from that.
    fn feed(&mut self, event: Event) {
        self.events.push_back(event);
        let mut actions = Vec::new();
        while let Some(event) = self.events.pop_front() {
            let now = self.now();
            self.policy.handle(event, now, &mut actions);
            for action in actions.drain(..) {
                self.act(action);
            }
        }
    }

    fn now(&self) -> Millis {
        // Frontends tell by the same clock when requests came.
        clock::micros() / 1000
    }

    fn timeout(&self) -> Option<Duration> {
        let now = self.now();
        let parts = [self.errors.deadline(), self.closers.deadline(), self.log_writers.deadline(now)];
        [self.policy.next_deadline(), Some(self.orphans.deadline())]
            .into_iter()
            .chain(parts)
            .flatten()
            .min()
            .map(|at| Duration::from_millis(at.saturating_sub(now)))
    }

    /// A number that was never used before.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Puts a descriptor into the poller.
    fn watch(&mut self, fd: BorrowedFd<'_>, source: Source) -> io::Result<u64> {
        let token = self.number();
        self.poller.add(fd, token)?;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// Takes a descriptor out of the poller, before it is closed.
    fn unwatch(&mut self, token: u64, fd: impl AsFd) {
        self.sources.remove(&token);
        self.poller.remove(fd);
    }

    /// As [`unwatch`](Self::unwatch), of what is closed with it; nothing to do where there is nothing.
    fn close<T: AsFd>(&mut self, watched: Option<Watched<T>>) {
        if let Some(watched) = watched {
            self.unwatch(watched.token, &watched.what);
        }
    }

    /// Watches a child that is ours. `None` when that cannot be.
    fn watch_child(&mut self, pid: u32, source: Source) -> io::Result<Watched<PidFd>> {
        let what = PidFd::open(pid)?;
        let token = self.number();
        self.poller.add_once(&what, token)?;
        self.sources.insert(token, source);
        self.pids.insert(pid);
        Ok(Watched { token, what })
    }

    /// A pool's name for a log line.
    fn pool_name(&self, key: crate::policy::PoolKey) -> &str {
        self.tables
            .get(&key.generation)
            .and_then(|table| table.pools.get(key.pool as usize))
            .map_or("?", |row| row.name.as_str())
    }

    /// The uid that a pool's processes must have.
    fn pool_uid(&self, key: crate::policy::PoolKey) -> Option<u32> {
        self.tables.get(&key.generation)?.pools.get(key.pool as usize)?.uid
    }
}
