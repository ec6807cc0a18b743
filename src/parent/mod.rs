//! httpd's parent: starts the controller, gives it each configuration, tells it which children are frontends.
//!
//! Runs in: the process that reads the configuration (root, one thread).  Trusts: httpd, its own configuration.
//! Owns: both ends of its connector, keepers and stand-ins of controllers, the controller's end of each child's connector.
//! Never: reads what a frontend, a tenant or the controller sent; closes what one of them may have filled.
#![forbid(unsafe_code)]

use crate::policy::lines;
use crate::settings::PoolTree;
use crate::sys::heritage::{self, Kept};
use crate::sys::launch;
use crate::sys::process::{self, PidFd};
use crate::sys::shared::SharedNumbers;
use crate::sys::socket::{self, Blocking};
use crate::sys::{descendants, descriptor, syslog, variables, wait};
use crate::wire::control::{ConnectorMessage, ParentMessage, PoolTable, ANOTHER_CONTROLLER};
use once_cell::sync::Lazy;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Numbers of a pool that all frontends have in common: see `FrontendStart`.
const NUMBERS_OF_POOL: usize = 1 + lines::NUMBERS;

/// How long the parent waits for the controller to end every pool's processes before it kills the controller.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long httpd's start waits for the first seed; a request that comes earlier waits in its frontend.
const SEED_PATIENCE: Duration = Duration::from_secs(10);

/// How long the controller may leave a message unread before it is killed and another one started.
const SILENCE: Duration = Duration::from_secs(10);
/// What was sent a moment ago says nothing: in the end it is given so long to be read, while nothing more is sent.
const LAST_CHANCE: Duration = Duration::from_secs(2);
const LAST_CHANCE_STEP: Duration = Duration::from_millis(10);
/// A controller that ends so soon has not started. httpd looks for ended children once a second.
const STARTED: Duration = Duration::from_millis(2_500);
/// So many controllers in a row may fail to start before the next one has to wait.
const QUICK_STARTS: u32 = 15;
/// Shortest and longest time until the next attempt then; each failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long stop goes on waiting for a controller that was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a controller that was killed may take to end before another one is started beside it.
const DEATH_PATIENCE: Duration = Duration::from_secs(2);
/// How long the parent ends, at stop, what a controller has started that does not end.
const END_PATIENCE: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(5);

/// What lasts from one configuration to the next. The module is linked `nodelete`, so this static does too.
#[derive(Debug, Default)]
struct State {
    connector: Option<Connector>,
    controller: Option<Controller>,
    owner: u32,
    generation: u64,
    /// By generation: the newest one, and older ones that children still belong to. Empty: nothing is served.
    configurations: BTreeMap<u64, Configuration>,
    /// One number for each pool of the newest configuration, which its frontends have in common. Not read here.
    numbers: Option<SharedNumbers>,
    /// The MPM's children. Dropped in the parent only.
    children: BTreeMap<u32, Child>,
    /// Those of which the controller was not told yet.
    unannounced: BTreeSet<u32>,
    /// Keepers of controllers before this one that have something left to keep: what nobody has ended yet, or a controller
    /// that was killed and waits in the kernel for something.
    older_keepers: Vec<PidFd>,
    /// Since when the controller has not read everything, and how often that was seen.
    silent: Option<(Instant, u32)>,
    /// When the controller was started, or was to be.
    started: Option<Instant>,
    /// Controllers in a row that failed to start.
    failures: u32,
    /// When the next attempt is due to start a controller, or to tell it of the newest configuration.
    retry: Option<Instant>,
    /// The controller does not know the newest configuration.
    untold: bool,
    /// Children whose hello lay unread at the last look.
    unheard: BTreeSet<u32>,
    /// Readable when the seed of the newest configuration is ready, or has failed; `None` once that was waited for.
    seed_ready: Option<Kept>,
    /// What the controller was to close and could not be given.
    undiscarded: Vec<Kept>,
    /// Facility and name, if httpd's error log is syslog.
    syslog: Option<(u8, Vec<u8>)>,
}

/// A controller, as httpd's parent has it: by two children of its own.
#[derive(Debug)]
struct Controller {
    /// Ends as the controller has ended.
    stand_in: PidFd,
    /// The controller's parent.
    keeper: PidFd,
    /// The stand-in has a copy, the keeper the other end.
    lifeline: Kept,
}

impl Controller {
    fn start(configuration: &Configuration, listen: BorrowedFd<'_>) -> io::Result<Self> {
        let (kept, ours) = socket::seqpacket_pair()?;
        let lifeline = heritage::keep(ours).map_err(|_| io::Error::other("too many descriptors"))?;
        let environment = own_environment();
        let start = |argv: &[Vec<u8>], channels: &[BorrowedFd<'_>]| {
            let pid = launch::start_image(argv, &environment, channels)?;
            // The image's own, which it does not need.
            drop(heritage::connector_of_last_child());
            // It has not been reaped, so the number is still its own.
            PidFd::open(pid).inspect_err(|_| launch::kill_new_child(pid))
        };
        // Where the second cannot be started, the first one's end of the lifeline tells it.
        let keeper = start(&configuration.controller_argv, &[listen, kept.as_fd()])?;
        let stand_in = start(&configuration.stand_in_argv, &[lifeline.as_fd()])?;
        Ok(Self { stand_in, keeper, lifeline })
    }

    /// By the keeper. One that waits in the kernel does not end, and its stand-in neither.
    fn kill(&self) {
        socket::shutdown_sending(self.lifeline.as_fd());
    }
}

/// The parent keeps `listen` too, so that a new controller can listen where the old did. No child gets either.
#[derive(Debug)]
struct Connector {
    speak: OwnedFd,
    listen: OwnedFd,
}

/// What a new controller has to know of a child.
#[derive(Debug)]
struct Child {
    /// Where it is heard.
    connector: Kept,
    /// Of the configuration that it was forked with.
    generation: u64,
}

#[derive(Debug)]
struct Configuration {
    table: PoolTable,
    controller_argv: Vec<Vec<u8>>,
    stand_in_argv: Vec<Vec<u8>>,
}

static STATE: Lazy<Mutex<State>> = Lazy::new(Mutex::default);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What [`configure`] needs to know of httpd.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    pub tree: &'a PoolTree,
    /// `User` of the frontends.
    pub frontend_uid: u32,
    pub controller_argv: Vec<Vec<u8>>,
    pub stand_in_argv: Vec<Vec<u8>>,
    pub seed_argv: Vec<Vec<u8>>,
    /// The MPM calls [`wait_for_seed`] after a reload.
    pub waits: bool,
    /// `ErrorLog` of the main server, and the name of httpd's program.
    pub error_log: &'a [u8],
    pub program: &'a [u8],
}

/// A configuration has been read: the controller (started if need be) makes a seed of it. An error at httpd's start is
/// the caller's to end it for; where httpd runs already, what serves goes on ([`is_running`]), and
/// [`look_after_controller`] tries again.
pub fn configure(start: &Start<'_>) -> io::Result<()> {
    let mut state = state();
    let told = state.configure(start);
    if told.is_err() && !state.children.is_empty() {
        state.untold = true;
        state.fails();
    }
    let waits = told?;
    let stand_in = state.stand_in();
    drop(state);
    if let Some(here) = waits {
        wait_for(here.as_fd(), stand_in);
    }
    Ok(())
}

/// Whether frontends serve.
pub fn is_running() -> bool {
    !state().children.is_empty()
}

/// After a reload: waits until the new seed can fork and has warmed the pools that are in use, or has failed to get
/// ready, or a signal comes. Frontends of the
/// configuration before serve meanwhile.
pub fn wait_for_seed() {
    let (ready, stand_in) = {
        let mut state = state();
        (state.seed_ready.take(), state.stand_in())
    };
    if let Some(ready) = ready {
        wait_for(ready.as_fd(), stand_in);
    }
}

/// Where that is in vain, the new frontends' requests wait for the seed. A controller that dies does not close what it
/// has not read.
fn wait_for(ready: BorrowedFd<'_>, stand_in: Option<u32>) {
    let Some(Ok(stand_in)) = stand_in.map(PidFd::open) else { return };
    let _ = wait::readable_or_writable(ready, false, Some(stand_in.as_fd()), SEED_PATIENCE);
}

/// What a frontend gets from the parent.
#[derive(Debug)]
pub struct Inherited {
    /// That frontends forked from now on belong to.
    pub generation: u64,
    /// This child's own.
    pub connector: OwnedFd,
    /// `NUMBERS_OF_POOL` for each pool, of all frontends of the generation.
    pub numbers: &'static [AtomicU64],
}

/// Once in each frontend.
pub fn frontend_start() -> Option<Inherited> {
    let mut state = state();
    let connector = state.connector.as_ref()?;
    // With -X the parent itself is the frontend.
    let own =
        if state.owner == launch::own_pid() { connector.speak.try_clone().ok()? } else { heritage::own_connector()? };
    let numbers = state.numbers.take().map_or(&[][..], SharedNumbers::for_good);
    Some(Inherited { generation: state.generation, connector: own, numbers })
}

/// Whether a frontend that could not start has no connector, where there are pools.
pub fn lacks_connector() -> bool {
    let state = state();
    state.connector.is_some() && !state.configurations.is_empty()
}

/// The process that frontends forked from now on belong to; `None` in that process itself.
pub fn parent_of_frontend() -> Option<u32> {
    let owner = state().owner;
    (owner != launch::own_pid()).then_some(owner)
}

/// The controller has died (httpd has reaped its stand-in): another one takes over.
pub fn controller_died() -> io::Result<()> {
    let mut state = state();
    state.leave_controller();
    if state.configurations.is_empty() || state.owner != launch::own_pid() {
        return Ok(());
    }
    let lived = state.started.map_or(STARTED, |at| at.elapsed());
    if lived >= STARTED {
        state.failures = 0;
    } else {
        state.fails();
        if state.failures > QUICK_STARTS {
            let pause = state.retry.map_or(FIRST_PAUSE, |at| at.saturating_duration_since(Instant::now()));
            let text = format!("{} in a row have ended at once; the next one comes in {pause:.0?}", state.failures);
            return Err(io::Error::other(text));
        }
    }
    state.take_over()
}

/// The controller was killed: whether it has ended is for httpd to tell. `Some` where it does not end: it is left. Its pid.
pub fn leave_undying_controller() -> Option<u32> {
    let mut state = state();
    let controller = state.controller.as_ref()?;
    if wait::readable_within(controller.stand_in.as_fd(), DEATH_PATIENCE) {
        return None;
    }
    let pid = child_of(&controller.keeper);
    state.leave_controller();
    Some(pid)
}

/// Another controller takes over from one that is left.
pub fn start_another() -> io::Result<()> {
    controller_died()?;
    // The one before closes no channel.
    for child in state().children.values() {
        let _ = socket::send(child.connector.as_fd(), ANOTHER_CONTROLLER, &[], Blocking::No);
    }
    Ok(())
}

/// Children of httpd's parent whose end httpd has to tell: those of the controller.
pub fn of_controller() -> Vec<u32> {
    let state = state();
    let controller = state.controller.as_ref();
    controller.map_or_else(Vec::new, |controller| vec![controller.stand_in.pid(), controller.keeper.pid()])
}

/// And the keepers of those before it.
pub fn older_keepers() -> Vec<u32> {
    state().older_keepers.iter().map(PidFd::pid).collect()
}

/// httpd has reaped one of them: whether the controller has died with it.
pub fn was_the_controller(pid: u32) -> bool {
    let mut state = state();
    state.older_keepers.retain(|keeper| keeper.pid() != pid);
    state.stand_in() == Some(pid)
}

/// Whether there is a controller.
pub fn has_controller() -> bool {
    state().controller.is_some()
}

/// The controller of a keeper: its first child, while that lives. The keeper's own number where it has none.
fn child_of(keeper: &PidFd) -> u32 {
    process::children_of(keeper.pid()).first().copied().unwrap_or(keeper.pid())
}

/// httpd's `child_status` hook: a child of the MPM started, or is gone. An error when the child will not be served, or
/// not yet.
pub fn child_status(pid: u32, started: bool) -> io::Result<()> {
    let mut state = state();
    // With -X this process is its own child, and nothing was forked for it.
    if state.configurations.is_empty() || pid == state.owner {
        return Ok(());
    }
    // A controller that is gone, or does not read, sees the end of the child's connector all the same.
    if !started {
        let child = state.children.remove(&pid);
        if !state.unannounced.remove(&pid) {
            let _ = state.send(&ParentMessage::ChildGone { pid }, &[], Blocking::No);
        }
        // Where the controller is dead it is the last copy, in which a hello may lie unread.
        if let Some(child) = child {
            state.discard(child.connector);
        }
        state.forget_configurations();
        return Ok(());
    }
    // The MPM says so right after its fork: no other has come between.
    let connector = heritage::connector_of_last_child()
        .ok_or_else(|| io::Error::other("there was no descriptor for its connector; it is never served"))?;
    // Who does not read one message does not read the next: the parent waits once.
    let blocking = if state.unannounced.is_empty() { Blocking::Yes } else { Blocking::No };
    let generation = state.generation;
    let told = state.send(&ParentMessage::ChildStarted { pid, generation }, &[connector.as_fd()], blocking);
    match heritage::keep(connector) {
        Ok(connector) => {
            state.children.insert(pid, Child { connector, generation });
            if told.is_err() {
                state.unannounced.insert(pid);
            }
        }
        Err(connector) => state.discard_unkept(connector),
    }
    told.map_err(|e| io::Error::new(e.kind(), format!("the controller was not told of it, and will be: {e}")))
}

/// What [`look_after_controller`] has done.
#[derive(Debug)]
pub enum Looked {
    /// There was nothing to do, or it is not time.
    Fine,
    /// It has read nothing for so long, and was killed: httpd then tells of its death.
    Killed(Duration),
    /// There was none: it was started.
    Started,
    /// There is none, and none can be started, or it cannot be told of the newest configuration.
    Failed(io::Error),
}

/// Now and then: tells the controller what it does not know yet, and looks whether it still reads: one that has not for
/// `SILENCE` is killed. Where there is none, one is started.
pub fn look_after_controller() -> Looked {
    let mut state = state();
    if state.configurations.is_empty() || state.owner != launch::own_pid() {
        return Looked::Fine;
    }
    let due = state.retry.is_none_or(|at| Instant::now() >= at);
    if state.controller.is_none() {
        return if due { state.take_over().map_or_else(Looked::Failed, |()| Looked::Started) } else { Looked::Fine };
    }
    if state.untold && due {
        if let Err(e) = state.tell_at_last() {
            return Looked::Failed(e);
        }
    }
    state.announce_unheard();
    state.announce(Blocking::No);
    state.discard_stale();
    state.silence().map_or(Looked::Fine, Looked::Killed)
}

/// httpd ends: the controller ends every process of every pool, and is waited for. Returns the controllers that have not
/// ended; what they have started has.
pub fn stop() -> Vec<u32> {
    let mut state = state();
    // Forked children of httpd run the same exit code; only the process that started the controller may end it.
    if state.owner != launch::own_pid() {
        return Vec::new();
    }
    state.configurations.clear();
    if let Some(controller) = state.controller.take() {
        let _ = state.send(&ParentMessage::Stop, &[], Blocking::Yes);
        wait_for_end(&controller);
        controller.stand_in.kill();
        state.older_keepers.push(controller.keeper);
    }
    let until = Instant::now() + END_PATIENCE;
    let keepers = std::mem::take(&mut state.older_keepers);
    let mut left = Vec::new();
    for keeper in keepers.iter().filter(|keeper| !ends(keeper, until)) {
        left.push(child_of(keeper));
        keeper.kill();
    }
    left
}

/// Ends what is below a keeper, which ends with the last of it. Whether it has.
fn ends(keeper: &PidFd, until: Instant) -> bool {
    while keeper.reap().is_none() {
        if !descendants::end_all(keeper.pid(), until) || Instant::now() >= until {
            return false;
        }
        std::thread::sleep(STEP);
    }
    true
}

/// Waits until the controller ends, by itself or killed, for as long as it has time.
fn wait_for_end(controller: &Controller) {
    let patience = Instant::now() + STOP_PATIENCE;
    let mut killed = false;
    while controller.stand_in.reap().is_none() {
        if !killed && Instant::now() >= patience {
            controller.kill();
            killed = true;
        }
        // Even its end may be held up, by the kernel.
        if Instant::now() >= patience + KILL_PATIENCE {
            return;
        }
        std::thread::sleep(STEP);
    }
}

impl State {
    fn stand_in(&self) -> Option<u32> {
        self.controller.as_ref().map(|controller| controller.stand_in.pid())
    }

    /// It has died, or is to: where somebody has killed the stand-in, its keeper kills it. What is said from here on is for
    /// the next one.
    fn leave_controller(&mut self) {
        let Some(controller) = self.controller.take() else { return };
        controller.kill();
        if controller.stand_in.has_ended() {
            wait::readable_within(controller.lifeline.as_fd(), DEATH_PATIENCE);
        }
        controller.stand_in.kill();
        self.older_keepers.push(controller.keeper);
    }

    /// What the caller has to wait for, which is so where the controller was started now.
    fn configure(&mut self, start: &Start<'_>) -> io::Result<Option<Kept>> {
        self.owner = launch::own_pid();
        self.generation += 1;
        self.syslog = syslog::destination(start.error_log, start.program);
        let table = start.tree.to_table(self.generation, start.frontend_uid, start.seed_argv.clone());
        let generation = self.generation;
        let (controller_argv, stand_in_argv) = (start.controller_argv.clone(), start.stand_in_argv.clone());
        // Without the memory each frontend counts for itself.
        self.numbers = SharedNumbers::new(table.pools.len().saturating_mul(NUMBERS_OF_POOL)).ok();
        self.configurations.insert(generation, Configuration { table, controller_argv, stand_in_argv });
        self.forget_configurations();
        let started = self.ensure_controller()?;
        // The seed reads the configuration's files itself. At the start httpd waits for that: who edits them once it runs
        // must not reach a seed that still belongs to the text before. (After a reload, requests wait in the frontends.)
        // No child may have it, a daemon of another module above all: who has one end can fill the controller's.
        let (here, there) = if started || start.waits {
            let (here, there) = socket::seqpacket_pair()?;
            (Some(heritage::keep(here).map_err(|_| io::Error::other("too many frontends"))?), Some(there))
        } else {
            (None, None)
        };
        self.send_configuration(generation, there)?;
        self.untold = false;
        if started {
            return Ok(here);
        }
        self.seed_ready = here;
        Ok(None)
    }

    /// A controller could not be started, or told: the next attempt comes later.
    fn fails(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let pause =
            FIRST_PAUSE.saturating_mul(1 << self.failures.saturating_sub(QUICK_STARTS).min(6)).min(LONGEST_PAUSE);
        self.retry = Some(Instant::now() + pause);
    }

    /// Starts a controller, which takes over.
    fn take_over(&mut self) -> io::Result<()> {
        self.retry = None;
        if let Err(e) = self.ensure_controller() {
            self.fails();
            return Err(e);
        }
        let told = self.send_configuration(self.generation, None);
        self.must_be_heard(&told);
        self.announce(Blocking::Yes);
        self.untold = false;
        Ok(())
    }

    /// Tells the controller of the configuration that it could not be told of before. Its frontends have been refused
    /// meanwhile: they are to say hello again.
    fn tell_at_last(&mut self) -> io::Result<()> {
        self.retry = None;
        if let Err(e) = self.send_configuration(self.generation, None) {
            self.fails();
            return Err(e);
        }
        self.untold = false;
        for child in self.children.values().filter(|child| child.generation == self.generation) {
            let _ = socket::send(child.connector.as_fd(), ANOTHER_CONTROLLER, &[], Blocking::No);
        }
        Ok(())
    }

    /// A child whose hello lies unread was announced in vain: the controller had no descriptor for its connector. It is
    /// announced again.
    fn announce_unheard(&mut self) {
        let unread = |(pid, child): (&u32, &Child)| descriptor::is_readable(child.connector.as_fd()).then_some(*pid);
        let unheard: BTreeSet<u32> = self.children.iter().filter_map(unread).collect();
        let twice = unheard.intersection(&self.unheard).copied();
        self.unannounced.extend(twice);
        self.unheard = unheard;
    }

    /// How long the controller has read nothing, if it was killed for that.
    fn silence(&mut self) -> Option<Duration> {
        let state = self;
        let controller = state.controller.as_ref()?;
        let speak = state.connector.as_ref()?.speak.as_fd();
        let unread = || socket::unread_by_peer(speak).ok();
        let now = Instant::now();
        if let (Some((since, looks)), true) = (state.silent, unread()? > 0) {
            // Seen twice: the whole machine may have stood still.
            let silence = now.duration_since(since);
            if looks < 1 || silence < SILENCE {
                state.silent = Some((since, looks + 1));
                return None;
            }
            while unread()? > 0 {
                if now.elapsed() >= LAST_CHANCE {
                    controller.kill();
                    state.silent = None;
                    return Some(silence);
                }
                std::thread::sleep(LAST_CHANCE_STEP);
            }
        }
        // Read, that is the sign of life.
        let _ = state.send(&ParentMessage::Ping, &[], Blocking::No);
        state.silent = Some((now, 0));
        None
    }

    fn ensure_controller(&mut self) -> io::Result<bool> {
        match &self.controller {
            Some(controller) if controller.stand_in.reap().is_none() => return Ok(false),
            Some(_) | None => self.leave_controller(),
        }
        let Some(configuration) = self.configurations.get(&self.generation) else { return Ok(false) };
        if self.connector.is_none() {
            let (speak, listen) = socket::seqpacket_pair()?;
            socket::pass_credentials(listen.as_fd())?;
            socket::send_timeout(speak.as_fd(), Duration::from_secs(2))?;
            heritage::hide(listen.as_fd())?;
            heritage::hide(speak.as_fd())?;
            heritage::give_connectors()?;
            self.connector = Some(Connector { speak, listen });
        }
        let Some(connector) = &self.connector else { return Ok(false) };
        let controller = Controller::start(configuration, connector.listen.as_fd())?;
        let keeper = controller.keeper.pid();
        self.controller = Some(controller);
        self.silent = None;
        self.started = Some(Instant::now());
        self.unannounced = self.children.keys().copied().collect();
        let began = self.send(&ParentMessage::Begin { keeper }, &[], Blocking::Yes);
        self.must_be_heard(&began);
        self.older_keepers.retain(|keeper| !keeper.has_ended());
        for keeper in &self.older_keepers {
            let _ = self.send(&ParentMessage::OlderKeeper { pid: keeper.pid() }, &[], Blocking::Yes);
        }
        self.introduce_older();
        Ok(true)
    }

    /// A new controller that does not read even what it cannot do without is killed: httpd tells of its death, and another
    /// one is started.
    fn must_be_heard(&self, told: &io::Result<()>) {
        if let (Err(_), Some(controller)) = (told, &self.controller) {
            controller.kill();
        }
    }

    /// Tells a new controller of the configurations before the newest one that have frontends, each with these: it ends
    /// one that has none. Who cannot be told of is refused at once, as one of a configuration that is not known.
    fn introduce_older(&mut self) {
        let older: Vec<u64> = self.configurations.range(..self.generation).map(|(number, _)| *number).collect();
        for generation in older {
            if self.send_configuration(generation, None).is_ok() {
                self.announce_those(Blocking::Yes, |child| child.generation == generation);
            }
        }
    }

    /// Tells the controller of the children that it does not know, as far as it reads.
    fn announce(&mut self, blocking: Blocking) {
        self.announce_those(blocking, |_| true);
    }

    fn announce_those(&mut self, blocking: Blocking, which: impl Fn(&Child) -> bool) {
        for pid in self.unannounced.clone() {
            if let Some(child) = self.children.get(&pid) {
                if !which(child) {
                    continue;
                }
                let message = ParentMessage::ChildStarted { pid, generation: child.generation };
                if self.send(&message, &[child.connector.as_fd()], blocking).is_err() {
                    return;
                }
            }
            self.unannounced.remove(&pid);
        }
    }

    /// Drops what was only kept for frontends that are gone.
    fn forget_configurations(&mut self) {
        let in_use: BTreeSet<u64> = self.children.values().map(|child| child.generation).collect();
        let newest = self.generation;
        self.configurations.retain(|number, _| *number == newest || in_use.contains(number));
    }

    /// The connectors of daemons are of no use.
    fn discard_stale(&mut self) {
        for kept in std::mem::take(&mut self.undiscarded) {
            self.discard(kept);
        }
        for connector in heritage::stale_connectors() {
            // Nobody else receives there.
            if !socket::end_is_empty(connector.as_fd()) {
                match heritage::keep(connector) {
                    Ok(kept) => self.discard(kept),
                    Err(connector) => self.discard_unkept(connector),
                }
            }
        }
    }

    /// The controller has it closed elsewhere. Until it takes it, it stays open.
    fn discard(&mut self, kept: Kept) {
        if !self.hands_over(kept.as_fd()) {
            self.undiscarded.push(kept);
        }
    }

    fn discard_unkept(&self, fd: OwnedFd) {
        if !self.hands_over(fd.as_fd()) {
            // There is no better place for it.
            std::mem::forget(fd);
        }
    }

    fn hands_over(&self, fd: BorrowedFd<'_>) -> bool {
        self.send(&ParentMessage::Discard, &[fd], Blocking::No).is_ok()
    }

    /// The controller closes `until_ready` when the seed has read its configuration, or has died.
    fn send_configuration(&self, generation: u64, until_ready: Option<OwnedFd>) -> io::Result<()> {
        let Some(configuration) = self.configurations.get(&generation) else { return Ok(()) };
        let memory = launch::sealed_memory("mod_pool table", &configuration.table.encode())?;
        // httpd's own standard error is /dev/null then.
        let (facility, ident) = self.syslog.clone().unwrap_or_default();
        self.send(&ParentMessage::Syslog { facility, ident }, &[], Blocking::Yes)?;
        let error_log = io::stderr();
        let message = ParentMessage::Configure { generation, older: generation < self.generation };
        match until_ready {
            Some(end) => self.send(&message, &[memory.as_fd(), error_log.as_fd(), end.as_fd()], Blocking::Yes),
            None => self.send(&message, &[memory.as_fd(), error_log.as_fd()], Blocking::Yes),
        }
    }

    fn send(&self, message: &ParentMessage, fds: &[BorrowedFd<'_>], blocking: Blocking) -> io::Result<()> {
        let Some(connector) = &self.connector else { return Ok(()) };
        let bytes = ConnectorMessage::Parent(message.clone()).encode();
        socket::send(connector.speak.as_fd(), &bytes, fds, blocking)
    }
}

/// httpd's environment for the seeds: apachectl's envvars are in it. What speaks to a service manager is not.
fn own_environment() -> Vec<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    std::env::vars_os()
        .filter(|(name, _)| !variables::is_of_service(name.as_bytes()))
        .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
        .collect()
}
