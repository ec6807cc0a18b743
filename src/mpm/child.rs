//! A frontend's life: set up, threads, its end.
//!
//! Runs in: frontend, main thread.  Trusts: httpd, the parent's pipe.  Owns: the process's connections and threads.
//! Never: handles a connection (`work` does).
#![forbid(unsafe_code)]

use super::timers::Timers;
use crate::apr::AprPool;
use crate::httpd::log::{self, Level};
use crate::httpd::mpm::connection::Connection;
use crate::httpd::mpm::listen::{Bucket, End, Listener};
use crate::httpd::mpm::score::{self, Seat, Status};
use crate::httpd::mpm::threads::{Attributes, Callback, Failed, Handle};
use crate::httpd::mpm::transaction::{self, TransactionPool};
use crate::httpd::mpm::{process, retained};
use crate::httpd::{parking, ServerRec};
use crate::policy::mpm::gate::Gate;
use crate::policy::mpm::polling::Polling;
use crate::policy::mpm::slots::{Slots, FREE_BITS};
use crate::policy::Millis;
use crate::settings::MpmLimits;
use crate::sys::events::{self, Alarm, EventSet, Summons, Woken};
use crate::sys::pollers::Pollers;
use crate::sys::{fork, launch};
use once_cell::sync::OnceCell;
use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// Tokens of the set of events with this bit are the bell's; with the other one a listener's.
pub const BELL: u64 = 0x8000_0000_0000_0000;
pub const LISTENER: u64 = 0x4000_0000_0000_0000;
const _: () = assert!(BELL | LISTENER == FREE_BITS);

/// A connection in this frontend's hands.
#[derive(Debug)]
pub struct Held {
    pub connection: Connection,
    pub waits: Waits,
    /// Until when the client may take to end.
    pub linger_until: Millis,
    /// The module that has it was found to have finished with it.
    pub seen_back: Cell<bool>,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// A module wants to be called when the socket is ready.
    Io,
    /// The client takes what is left.
    Write,
    /// The client sends its next request.
    KeepAlive,
    /// The client hears that the connection ends.
    Linger,
    /// A module has it.
    Module,
    /// Its request can go on.
    Request,
}

/// What some thread is to do.
#[derive(Debug)]
pub enum Task {
    /// End a connection that was taken from where it waited.
    End(Held),
    /// A module's connection that it gave back: send what is left, then as ever.
    Continue(Held),
    /// A parked request can go on.
    GoOn(Held),
    Call(Callback),
}

/// How long an immediate end waits for threads: they are woken, but one that waits for no client may hang. mpm_event waits
/// for them until the parent kills the process, after 9 s. The parent looks for the second time after 0.34 s.
const GRACE: Duration = Duration::from_millis(300);
/// How long it then waits for modules to tidy up.
const TIDYING: Duration = Duration::from_secs(2);

/// How far the end of the process has come.
const RUNS: u8 = 0;
const ENDS: u8 = 1;
const ENDS_NOW: u8 = 2;

#[derive(Debug)]
pub struct Frontend {
    pub slot: usize,
    pub limits: MpmLimits,
    pub events: EventSet,
    pub pollers: Pollers,
    pub timers: Timers,
    pub held: Slots<Held>,
    pub tasks: Mutex<VecDeque<Task>>,
    pub idle_pools: Mutex<Vec<TransactionPool>>,
    /// Empty once the process does not accept any more.
    pub listeners: RwLock<Vec<Listener>>,
    /// Calls one of the processes that wait for the same listeners, from earlier configurations on.
    pub summons: Option<Arc<Summons>>,
    /// Guards whether the listeners are watched; `closed` is the same for a quick look.
    pub gate: Mutex<Gate>,
    /// All its threads run.
    pub complete: AtomicBool,
    pub closed: AtomicBool,
    pub counts: Counts,
    /// Connections that may still be accepted (`MaxConnectionsPerChild`).
    pub may_accept: AtomicU64,
    /// Sockets of the connections that threads are busy with. A number stands here while its socket is open.
    serving: Box<[Mutex<Option<RawFd>>]>,
    /// That this process may use.
    pub processors: u32,
    /// The kernel's number of each thread that is busy; 0 while it is not.
    pub busy: Box<[AtomicU32]>,
    /// With `-X`: the process is the whole server.
    one_process: bool,
    alarm: Alarm,
    ending: AtomicU8,
    leaving_threads: AtomicU32,
    ended_threads: AtomicU32,
    short_of: AtomicBool,
}

#[derive(Debug, Default)]
pub struct Counts {
    pub connections: AtomicU32,
    pub lingering: AtomicU32,
    pub suspended: AtomicU32,
    /// Connections with a parked request.
    pub parked: AtomicU32,
    pub io: AtomicU32,
    pub write: AtomicU32,
    pub keep_alive: AtomicU32,
    pub idle: AtomicU32,
    /// Callbacks of modules that run now.
    pub calling: AtomicU32,
    /// Events handled; it wraps.
    pub handled: AtomicU32,
}

static FRONTEND: OnceCell<Frontend> = OnceCell::new();

/// This process's frontend, once it has been set up.
pub fn current() -> Option<&'static Frontend> {
    FRONTEND.get()
}

/// What [`run`] needs.
#[derive(Debug)]
pub struct Start<'b> {
    pub slot: usize,
    /// Of the running generation, all of them.
    pub buckets: &'b [Bucket],
    /// This process's own.
    pub bucket: usize,
    pub summons: Option<Arc<Summons>>,
    pub limits: MpmLimits,
    pub main: ServerRec<'static>,
    pub pconf: AprPool<'static>,
    pub one_process: bool,
}

/// In a fresh child: the rest of its life. Returns the pool to be destroyed and the exit status.
pub fn run(start: &Start<'_>) -> (AprPool<'static>, i32) {
    retained::starting();
    let pchild = process::child_pool(start.pconf);
    for (i, bucket) in start.buckets.iter().enumerate() {
        if i != start.bucket {
            bucket.close();
        }
    }
    let Some(bucket) = start.buckets.get(start.bucket) else { return (pchild, process::FATAL) };
    // Modules may want to be called at a time from their child_init on.
    let frontend = match Frontend::new(start, bucket) {
        Ok(new) => FRONTEND.get_or_init(|| new),
        Err(e) => return (pchild, cannot_start(start, &e)),
    };
    if let Err(what) = process::become_child(pchild, start.main, start.one_process) {
        log::server(Level::Emerg, start.main, format!("POOL202: a frontend cannot start: {what}"));
        return (pchild, process::FATAL);
    }
    parking::open(frontend);
    let (threads, watcher) = match frontend.start_threads(start.pconf, start.main) {
        Ok(threads) => threads,
        Err(Failed(code)) => {
            log::server(
                Level::Emerg,
                start.main,
                format!(
                    "POOL204: a thread cannot be started (error {code}): lower ThreadsPerChild or ThreadStackSize, or \
                     raise the limits of memory and processes"
                ),
            );
            // Other threads run already: no tidying up.
            fork::exit_now(process::SICK);
        }
    };
    // A process that lacks a thread takes no connection with it when it ends.
    frontend.complete.store(true, Ordering::Release);
    if let Err(e) = frontend.open_gate() {
        fork::exit_now(cannot_start(start, &e));
    }
    retained::running();
    frontend.wait_for_end(bucket, start, pchild);
    threads.into_iter().for_each(Handle::join);
    if !frontend.insists() {
        watcher.join();
    }
    (pchild, frontend.exit_status())
}

fn cannot_start(start: &Start<'_>, e: &std::io::Error) -> i32 {
    log::server(Level::Emerg, start.main, format!("POOL203: a frontend cannot start: {e}"));
    process::SICK
}

impl Frontend {
    fn new(start: &Start<'_>, bucket: &Bucket) -> std::io::Result<Self> {
        if let Some(pipe) = bucket.pipe() {
            events::never_wait_for(pipe)?;
        }
        Ok(Self {
            slot: start.slot,
            limits: start.limits,
            events: EventSet::new(BELL)?,
            pollers: Pollers::new(Polling::new(start.limits.limits.threads_per_child).most()),
            timers: Timers::new(),
            held: Slots::default(),
            tasks: Mutex::default(),
            idle_pools: Mutex::default(),
            listeners: RwLock::new(bucket.listeners()),
            summons: start.summons.clone(),
            gate: Mutex::new(Gate::closed()),
            closed: AtomicBool::new(true),
            complete: AtomicBool::new(false),
            counts: Counts::default(),
            may_accept: AtomicU64::new(process::max_connections_per_child().unwrap_or(u64::MAX)),
            serving: (0..start.limits.limits.threads_per_child).map(|_| Mutex::default()).collect(),
            processors: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            busy: (0..start.limits.limits.threads_per_child).map(|_| AtomicU32::default()).collect(),
            one_process: start.one_process,
            alarm: Alarm::new(start.one_process)?,
            ending: AtomicU8::new(RUNS),
            leaving_threads: AtomicU32::new(0),
            ended_threads: AtomicU32::new(0),
            short_of: AtomicBool::new(false),
        })
    }

    /// Starts the threads that serve, and the one that looks after timeouts. They live in a pool of the configuration,
    /// which outlives every connection.
    fn start_threads(
        &'static self,
        pconf: AprPool<'static>,
        main: ServerRec<'static>,
    ) -> Result<(Vec<Handle>, Handle), Failed> {
        let (attributes, wrong_size) = Attributes::new(pconf);
        if let Some(Failed(code)) = wrong_size {
            log::server(
                Level::Warning,
                main,
                format!("POOL205: ThreadStackSize: this size is not possible (error {code}); the default is used"),
            );
        }
        // The first: a process whose threads all serve is taken for complete.
        let watcher = attributes.start(move |thread| {
            self.watch(thread);
            if self.insists() {
                self.insist();
            }
        })?;
        let mut handles = Vec::new();
        for number in 0..self.limits.limits.threads_per_child {
            let seat = Seat::new(self.slot, number);
            seat.set(Status::Starting);
            handles.push(attributes.start(move |thread| {
                self.work(seat, number, thread);
                self.ended_threads.fetch_add(1, Ordering::AcqRel);
                self.alarm.call();
            })?);
        }
        Ok((handles, watcher))
    }

    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire) != RUNS
    }

    /// Without regard to connections.
    pub fn ends_now(&self) -> bool {
        self.ending.load(Ordering::Acquire) == ENDS_NOW
    }

    /// From any thread: this process is to end when its connections do.
    pub fn begin_end(&self) {
        self.ending.fetch_max(ENDS, Ordering::AcqRel);
        self.alarm.call();
    }

    /// As [`begin_end`](Self::begin_end), because something is lacking: the parent is told by the exit status.
    pub fn end_for_shortage(&self) {
        self.short_of.store(true, Ordering::Relaxed);
        self.begin_end();
    }

    /// It ends without regard to its own threads, either. A process that is the whole server has more to tidy up.
    fn insists(&self) -> bool {
        self.ends_now() && !self.one_process
    }

    /// Ends the process if it has not ended by itself after a while.
    fn insist(&self) -> ! {
        launch::pause(GRACE);
        if self.all_threads_ended() {
            launch::pause(TIDYING);
        }
        fork::exit_now(self.exit_status())
    }

    fn exit_status(&self) -> i32 {
        if self.short_of.load(Ordering::Relaxed) {
            process::SICK
        } else {
            0
        }
    }

    fn all_threads_ended(&self) -> bool {
        self.ended_threads.load(Ordering::Acquire) == self.limits.limits.threads_per_child
    }

    /// One thread too many for the connections that are left ends; whether the caller is it.
    pub fn may_leave(&self) -> bool {
        if self.ends_now() {
            return true;
        }
        if !self.is_ending() {
            return false;
        }
        let connections = self.counts.connections.load(Ordering::Acquire);
        let threads = self.limits.limits.threads_per_child;
        let leave = |left: u32| (connections < threads.saturating_sub(left)).then_some(left + 1);
        self.leaving_threads.fetch_update(Ordering::AcqRel, Ordering::Acquire, leave).is_ok()
    }

    /// The main thread: waits for the word to end, then until all threads have ended.
    fn wait_for_end(&self, bucket: &Bucket, start: &Start<'_>, pchild: AprPool<'_>) {
        let mut began = RUNS;
        loop {
            // A process that ends must not take what its siblings are told.
            let pipe = bucket.pipe().filter(|_| began == RUNS);
            let word = match self.alarm.wait(pipe) {
                Woken::Terminated => Some(End::Now),
                Woken::Pipe => bucket.told(),
                Woken::Called => None,
            };
            match word {
                Some(End::Now) => drop(self.ending.fetch_max(ENDS_NOW, Ordering::AcqRel)),
                Some(End::Graceful) => drop(self.ending.fetch_max(ENDS, Ordering::AcqRel)),
                None => {}
            }
            let ending = self.ending.load(Ordering::Acquire);
            if self.insists() {
                // The time of grace begins.
                self.timers.stop();
            }
            if ending != RUNS && began == RUNS {
                self.stop_accepting(bucket, pchild, ending);
            }
            if ending == ENDS_NOW && began != ENDS_NOW {
                self.end_all_now();
            }
            began = ending;
            if self.all_threads_ended() {
                self.timers.stop();
                log::server(Level::Debug, start.main, "all threads of this frontend have ended");
                return;
            }
        }
    }

    fn stop_accepting(&self, bucket: &Bucket, pchild: AprPool<'_>, ending: u8) {
        retained::stopping();
        score::set_quiescing(self.slot);
        self.close_gate();
        {
            // Nobody is in accept() while this is held.
            let mut listeners = self.listeners.write().unwrap_or_else(PoisonError::into_inner);
            listeners.clear();
            bucket.close_listeners();
        }
        for number in 0..self.limits.limits.threads_per_child {
            Seat::new(self.slot, number).set(Status::Graceful);
        }
        process::tell_child_stopping(pchild, ending == ENDS);
        self.end_keep_alive();
        self.ring_all();
    }

    /// Ends connections that only wait for a next request. One that has come is answered, with `Connection: close`, by the
    /// thread that hears of it next.
    pub fn end_keep_alive(&self) {
        let has_come = |held: &Held| !self.ends_now() && held.connection.fd().is_some_and(events::has_input);
        for held in self.held.take_all(|held| held.waits == Waits::KeepAlive && !has_come(held)) {
            self.counts.keep_alive.fetch_sub(1, Ordering::Relaxed);
            self.give(Task::End(held));
        }
    }

    fn ring_all(&self) {
        self.pollers.end();
        for _ in 0..self.limits.limits.threads_per_child {
            self.events.ring();
        }
    }

    /// Notes which socket a thread is busy with, before it looks whether to end at once: an immediate end is seen there,
    /// or finds the socket here. `None` before the socket can be closed.
    pub fn serves(&self, thread: usize, socket: Option<BorrowedFd<'_>>) {
        if let Some(place) = self.serving.get(thread) {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = socket.map(|fd| fd.as_raw_fd());
        }
    }

    fn end_all_now(&self) {
        for place in &self.serving {
            let socket = place.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(number) = *socket {
                events::shut_down_number(number);
            }
        }
        self.ring_all();
    }

    /// Has some thread do this.
    pub fn give(&self, task: Task) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push_back(task);
        self.events.ring();
    }

    /// See [`super::call_later`].
    pub fn call_later(&self, after: Duration, callback: Callback) {
        self.timers.call(after, callback);
    }

    /// A pool for a new connection.
    pub fn take_pool(&self) -> Option<TransactionPool> {
        let pool = self.idle_pools.lock().unwrap_or_else(PoisonError::into_inner).pop();
        pool.or_else(TransactionPool::new)
    }

    /// A pool that its connection does not need any more.
    pub fn keep_pool(&self, pool: TransactionPool) {
        let mut pools = self.idle_pools.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = usize::try_from(self.limits.limits.threads_per_child).unwrap_or(usize::MAX);
        if transaction::keeps_all_memory() || pools.len() < threads * 3 / 4 {
            pools.push(pool);
        } else {
            drop(pools);
            pool.discard();
        }
    }
}
