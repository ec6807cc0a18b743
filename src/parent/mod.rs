//! httpd's parent: starts the controller, gives it each configuration, tells it which children are frontends.
//!
//! Runs in: the process that reads the configuration (root, one thread).  Trusts: httpd, its own configuration.
//! Owns: both ends of its connector, the controller's process, the controller's end of each child's connector.
//! Never: reads what a frontend, a tenant or the controller sent; closes what one of them may have filled.
#![forbid(unsafe_code)]

use crate::settings::PoolTree;
use crate::sys::heritage::{self, Kept};
use crate::sys::launch::{self, ChildState};
use crate::sys::socket::{self, Blocking};
use crate::sys::wait;
use crate::wire::control::{ConnectorMessage, ParentMessage, PoolTable};
use once_cell::sync::Lazy;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the parent waits for the controller to end every pool's processes before it kills the controller.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long httpd's start waits for the first seed; a request that comes earlier waits in its frontend.
const SEED_PATIENCE: Duration = Duration::from_secs(10);

/// How long the controller may leave a message unread before it is killed and another one started.
const SILENCE: Duration = Duration::from_secs(10);
/// What was sent a moment ago says nothing: in the end it is given so long to be read, while nothing more is sent.
const LAST_CHANCE: Duration = Duration::from_secs(2);
const LAST_CHANCE_STEP: Duration = Duration::from_millis(10);
/// How long stop goes on waiting for a controller that was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// What lasts from one configuration to the next. The module is linked `nodelete`, so this static does too.
#[derive(Debug, Default)]
struct State {
    connector: Option<Connector>,
    controller: Option<u32>,
    owner: u32,
    generation: u64,
    configuration: Option<Configuration>,
    /// The MPM's children, and where a new controller hears them. Dropped in the parent only.
    children: BTreeMap<u32, Kept>,
    /// Those of which the controller was not told yet.
    unannounced: BTreeSet<u32>,
    /// Since when the controller has not read everything, and how often that was seen.
    silent: Option<(Instant, u32)>,
    /// Readable when the seed of the newest configuration is ready, or has failed; `None` once that was waited for.
    seed_ready: Option<OwnedFd>,
}

/// The parent keeps `listen` too, so that a new controller can listen where the old did. No child gets either.
#[derive(Debug)]
struct Connector {
    speak: OwnedFd,
    listen: OwnedFd,
}

#[derive(Debug, Clone)]
struct Configuration {
    table: PoolTable,
    controller_argv: Vec<Vec<u8>>,
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
    pub seed_argv: Vec<Vec<u8>>,
}

/// A configuration has been read: the controller (started if need be) makes a seed of it. Returns the controller's pid
/// when it was started now, so that httpd can watch it.
pub fn configure(start: &Start<'_>) -> io::Result<Option<u32>> {
    let mut state = state();
    state.owner = launch::own_pid();
    state.generation += 1;
    let table = start.tree.to_table(state.generation, start.frontend_uid, start.seed_argv.clone());
    state.configuration = Some(Configuration { table, controller_argv: start.controller_argv.clone() });
    let started = state.ensure_controller()?;
    // The seed reads the configuration's files itself. At the start httpd waits for that: who edits them once it runs
    // must not reach a seed that still belongs to the text before. (After a reload, requests wait in the frontends.)
    let (here, there) = socket::seqpacket_pair()?;
    state.send_configuration(Some(there))?;
    if started {
        wait::readable_or_writable(here.as_fd(), false, None, SEED_PATIENCE)?;
    } else {
        state.seed_ready = Some(here);
    }
    Ok(started.then_some(state.controller).flatten())
}

/// After a reload: waits until the new seed can fork and has warmed the pools that are in use, or has failed to get
/// ready, or a signal comes. Frontends of the
/// configuration before serve meanwhile.
pub fn wait_for_seed() {
    let ready = state().seed_ready.take();
    if let Some(ready) = ready {
        // Without it the new frontends' requests wait for the seed.
        let _ = wait::readable_or_writable(ready.as_fd(), false, None, SEED_PATIENCE);
    }
}

/// The generation that frontends forked from now on belong to, and this child's connector.
pub fn frontend_start() -> Option<(u64, OwnedFd)> {
    let state = state();
    let connector = state.connector.as_ref()?;
    // With -X the parent itself is the frontend.
    let own =
        if state.owner == launch::own_pid() { connector.speak.try_clone().ok()? } else { heritage::own_connector()? };
    Some((state.generation, own))
}

/// The process that frontends forked from now on belong to; `None` in that process itself.
pub fn parent_of_frontend() -> Option<u32> {
    let owner = state().owner;
    (owner != launch::own_pid()).then_some(owner)
}

/// The controller has died (httpd reaped it): another one takes over. Returns its pid.
pub fn controller_died() -> io::Result<Option<u32>> {
    let mut state = state();
    state.controller = None;
    if state.configuration.is_none() || state.owner != launch::own_pid() {
        return Ok(None);
    }
    state.ensure_controller()?;
    state.send_configuration(None)?;
    state.unannounced = state.children.keys().copied().collect();
    state.announce(Blocking::Yes);
    Ok(state.controller)
}

/// The pid of the running controller.
pub fn controller() -> Option<u32> {
    state().controller
}

/// httpd's `child_status` hook: a child of the MPM started, or is gone. An error when the child will not be served, or
/// not yet.
pub fn child_status(pid: u32, started: bool) -> io::Result<()> {
    let mut state = state();
    // With -X this process is its own child, and nothing was forked for it.
    if state.configuration.is_none() || pid == state.owner {
        return Ok(());
    }
    // A controller that is gone, or does not read, sees the end of the child's connector all the same.
    if !started {
        state.children.remove(&pid);
        if !state.unannounced.remove(&pid) {
            let _ = state.send(&ParentMessage::ChildGone { pid }, &[], Blocking::No);
        }
        return Ok(());
    }
    // The MPM says so right after its fork: no other has come between.
    let connector = heritage::connector_of_last_child()
        .ok_or_else(|| io::Error::other("there was no descriptor for its connector; it is never served"))?;
    // Who does not read one message does not read the next: the parent waits once.
    let blocking = if state.unannounced.is_empty() { Blocking::Yes } else { Blocking::No };
    let told = state.send(&ParentMessage::ChildStarted { pid }, &[connector.as_fd()], blocking);
    if let Some(kept) = heritage::keep(connector) {
        state.children.insert(pid, kept);
        if told.is_err() {
            state.unannounced.insert(pid);
        }
    }
    told.map_err(|e| io::Error::new(e.kind(), format!("the controller was not told of it, and will be: {e}")))
}

/// Now and then: tells the controller what it does not know yet, and looks whether it still reads. One that has not
/// for `SILENCE` is killed: `Some`. httpd then tells of its death.
pub fn look_after_controller() -> Option<Duration> {
    let mut state = state();
    if state.configuration.is_none() || state.owner != launch::own_pid() {
        return None;
    }
    state.announce(Blocking::No);
    state.discard_stale();
    let pid = state.controller?;
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
                state.silent = None;
                launch::signal_child(pid, 9);
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

/// httpd ends: the controller ends every process of every pool, and is waited for.
pub fn stop() {
    let mut state = state();
    // Forked children of httpd run the same exit code; only the process that started the controller may end it.
    if state.owner != launch::own_pid() {
        return;
    }
    state.configuration = None;
    let Some(pid) = state.controller.take() else { return };
    let _ = state.send(&ParentMessage::Stop, &[], Blocking::Yes);
    let patience = Instant::now() + STOP_PATIENCE;
    while launch::child_state(pid) == ChildState::Running {
        if Instant::now() >= patience {
            launch::signal_child(pid, 9);
        }
        // Even its end may be held up, by the kernel.
        if Instant::now() >= patience + KILL_PATIENCE {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl State {
    fn ensure_controller(&mut self) -> io::Result<bool> {
        if let Some(pid) = self.controller {
            if launch::child_state(pid) == ChildState::Running {
                return Ok(false);
            }
            self.controller = None;
        }
        let Some(configuration) = &self.configuration else { return Ok(false) };
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
        launch::become_subreaper();
        let argv = &configuration.controller_argv;
        self.controller = Some(launch::start_image(argv, &own_environment(), connector.listen.as_fd())?);
        // The controller's own, which it does not need.
        drop(heritage::connector_of_last_child());
        self.silent = None;
        Ok(true)
    }

    /// Tells the controller of the children that it does not know, as far as it reads.
    fn announce(&mut self, blocking: Blocking) {
        while let Some(pid) = self.unannounced.first().copied() {
            let told = self
                .children
                .get(&pid)
                .map(|connector| self.send(&ParentMessage::ChildStarted { pid }, &[connector.as_fd()], blocking));
            if told.is_some_and(|told| told.is_err()) {
                return;
            }
            self.unannounced.remove(&pid);
        }
    }

    /// The connectors of daemons are of no use. What is not empty the controller has closed elsewhere.
    fn discard_stale(&self) {
        for connector in heritage::stale_connectors() {
            if !socket::end_is_empty(connector.as_fd())
                && self.send(&ParentMessage::Discard, &[connector.as_fd()], Blocking::No).is_err()
            {
                // Kept open: there is no better place for it.
                std::mem::forget(connector);
            }
        }
    }

    /// The controller closes `until_ready` when the seed has read its configuration, or has died.
    fn send_configuration(&self, until_ready: Option<OwnedFd>) -> io::Result<()> {
        let Some(configuration) = &self.configuration else { return Ok(()) };
        let memory = launch::sealed_memory("mod_pool table", &configuration.table.encode())?;
        let error_log = io::stderr();
        let message = ParentMessage::Configure { generation: configuration.table.generation };
        match until_ready {
            Some(end) => self.send(&message, &[memory.as_fd(), error_log.as_fd(), end.as_fd()], Blocking::Yes),
            None => self.send(&message, &[memory.as_fd(), error_log.as_fd()], Blocking::Yes),
        }
    }

    fn send(&self, message: &ParentMessage, fds: &[std::os::fd::BorrowedFd<'_>], blocking: Blocking) -> io::Result<()> {
        let Some(connector) = &self.connector else { return Ok(()) };
        let bytes = ConnectorMessage::Parent(message.clone()).encode();
        socket::send(connector.speak.as_fd(), &bytes, fds, blocking)
    }
}

/// httpd's environment for the seeds: apachectl's envvars are in it. What speaks to a service manager is not.
fn own_environment() -> Vec<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    const NOT: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];
    std::env::vars_os()
        .filter(|(name, _)| !NOT.iter().any(|n| name == n))
        .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
        .collect()
}
