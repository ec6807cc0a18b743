//! Keeps the processes of a controller that dies away from httpd's parent: the controller is its child, and what the
//! controller has started becomes its own. An MPM takes the exit status of any child of httpd's parent for a frontend's.
//!
//! With `httpd -X` it starts the next controller, too: httpd's one process is the frontend then, has given up root, and
//! waits for no child.
//!
//! Runs in: its own process, parent of the controller (root, or httpd's user when httpd is not root; one thread).
//! Trusts: wait status; with `-X` the first message of httpd's parent, by its credentials.
//! Owns: the process of the controller, its end of the lifeline; with `-X` the one configuration.
//! Never: reads what anybody but httpd's parent sent, starts a controller for a parent that is gone, ends what a dead
//! controller has started while httpd runs: frontends may need it, and the next controller knows that.

use super::{log, orphans, ControllerStart};
use crate::policy::describe_status;
use crate::sys::fork::{self, exit_now, Forked};
use crate::sys::poller::{self, Poller, SignalDescriptor};
use crate::sys::process::{self, PidFd};
use crate::sys::socket::{self, Blocking};
use crate::sys::{descriptor, discard, launch, syslog, title};
use crate::wire::control::{ConnectorMessage, ParentMessage, MAX_CONTROL_MESSAGE};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long after the death of a controller the next one starts: as long as httpd's parent takes at most to notice.
const PAUSE: Duration = Duration::from_secs(1);
/// Descriptors of a Configure that each controller gets: the pool table and the error log. What httpd's start waits
/// at is the first one's alone.
const LASTING: usize = 2;
/// Children that are reaped before signals and the lifeline get their turn.
const BATCH: usize = 256;

/// What every controller starts with where nobody speaks to the next one: with `-X`.
#[derive(Debug)]
pub(super) struct Kept {
    pub message: ParentMessage,
    pub fds: Vec<OwnedFd>,
}

/// What a controller gets from its keeper.
#[derive(Debug)]
pub(super) struct Keeping {
    /// The keeper itself.
    pub keeper: PidFd,
    pub kept: Option<Kept>,
}

/// Starts a controller; with `-X` one after the other, until one ends as it should. Returns in each of them.
pub(super) fn keep(start: &mut ControllerStart) -> io::Result<Keeping> {
    title::set("mod_pool: keeper");
    launch::become_subreaper();
    let lifeline = start.lifeline.take();
    let mut kept = if lifeline.is_none() { Some(first_message(start)?) } else { None };
    let mut keeper = Keeper::new(start.parent, lifeline)?;
    loop {
        let own = PidFd::open(launch::own_pid())?;
        let child = match fork::fork_child()? {
            Forked::Child => {
                drop(keeper);
                poller::unblock_all()?;
                return Ok(Keeping { keeper: own, kept });
            }
            Forked::Parent { child } => child,
        };
        match &mut kept {
            Some(kept) => kept.fds.truncate(LASTING),
            // Of the error log, which may be renamed, or be a program that ends with it: there is nothing more to write.
            None => descriptor::let_go_of_standard_ones()?,
        }
        let status = keeper.wait_for(child)?;
        if status == 0 || keeper.parent.has_ended() {
            orphans::end_children(|_| false);
            exit_now(0);
        }
        match keeper.lifeline.take() {
            Some(lifeline) => {
                // The one message: httpd's log has the status from whoever receives it.
                let _ = socket::send(lifeline.as_fd(), &status.to_be_bytes(), &[], Blocking::No);
                drop(lifeline);
                keeper.outlive()?;
            }
            None => {
                let died = describe_status(status);
                log::error_by_child(&format!("mod_pool: the controller died: {died}; another one is started"));
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// httpd's parent says Configure before anything else but where its lines go, and with `-X` it does so once.
fn first_message(start: &ControllerStart) -> io::Result<Kept> {
    let mut buf = [0; MAX_CONTROL_MESSAGE];
    loop {
        let received = socket::receive(start.connector.as_fd(), &mut buf, Blocking::Yes)?;
        if received.len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let from_parent = received.credentials.is_some_and(|sender| sender.pid == start.parent);
        let message = ConnectorMessage::decode(buf.get(..received.len).unwrap_or_default());
        match message {
            Ok(ConnectorMessage::Parent(message @ ParentMessage::Configure { .. })) if from_parent => {
                return Ok(Kept { message, fds: received.fds });
            }
            // Each controller that is forked here has it, too.
            Ok(ConnectorMessage::Parent(ParentMessage::Syslog { facility, ident })) if from_parent => {
                syslog::use_from_now_on(facility, &ident);
            }
            // Of a stranger, who may have sent what is slow to close.
            _ if !received.fds.is_empty() => {
                if let Err((fds, _)) = discard::close_in_child(received.fds) {
                    std::mem::forget(fds);
                }
            }
            _ => {}
        }
    }
}

#[derive(Debug)]
struct Keeper {
    parent: PidFd,
    /// Its other end is the parent's and the stand-in's. At the end the controller is to be killed. `None` with `-X`.
    lifeline: Option<OwnedFd>,
    term: SignalDescriptor,
    children: SignalDescriptor,
    poller: Poller,
}

/// What a [`Keeper`] waits for.
const TERM: u64 = 0;
const CHILDREN: u64 = 1;
const LIFELINE: u64 = 2;
const PARENT: u64 = 3;

impl Keeper {
    fn new(parent: u32, lifeline: Option<OwnedFd>) -> io::Result<Self> {
        let keeper = Self {
            parent: PidFd::open(parent)?,
            lifeline,
            term: SignalDescriptor::of_term()?,
            children: SignalDescriptor::of_children()?,
            poller: Poller::new()?,
        };
        keeper.poller.add(&keeper.term, TERM)?;
        keeper.poller.add(&keeper.children, CHILDREN)?;
        if let Some(lifeline) = &keeper.lifeline {
            keeper.poller.add(lifeline, LIFELINE)?;
        }
        Ok(keeper)
    }

    /// Waits for the end of the controller, and passes SIGTERM on to it. Returns its wait status.
    fn wait_for(&mut self, controller: u32) -> io::Result<i32> {
        // It is not reaped before this returns, so the number stays its own.
        let process = PidFd::open(controller);
        if process.is_err() {
            launch::kill_new_child(controller);
        }
        let process = process?;
        let mut ready = Vec::new();
        loop {
            ready.clear();
            self.poller.wait(None, &mut ready)?;
            for what in &ready {
                match *what {
                    TERM if self.term.came() => process.signal(libc::SIGTERM),
                    LIFELINE => {
                        process.kill();
                        if let Some(lifeline) = &self.lifeline {
                            self.poller.remove(lifeline);
                        }
                    }
                    _ => {}
                }
            }
            let mut ended = None;
            self.reap(|pid, status| {
                if pid == controller {
                    ended = Some(status);
                }
            });
            if let Some(status) = ended {
                return Ok(status);
            }
        }
    }

    /// Reaps some of those that have ended, and calls `on` for each. Whether there are children.
    fn reap(&mut self, mut on: impl FnMut(u32, i32)) -> bool {
        // Before the look: what ends after it is told again.
        while self.children.came() {}
        for _ in 0..BATCH {
            match process::reap_any() {
                Ok(Some((pid, status))) => on(pid, status),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
        // More may have ended than were reaped.
        launch::signal_self(libc::SIGCHLD);
        true
    }

    /// The controller has died. Reaps what it has left until nothing is: the next controller, and in the end httpd's
    /// parent, knows what is to be ended.
    fn outlive(&mut self) -> io::Result<()> {
        self.poller.add(self.parent.as_fd(), PARENT)?;
        let mut ready = Vec::new();
        while self.reap(|_, _| {}) {
            ready.clear();
            self.poller.wait(None, &mut ready)?;
            if ready.iter().any(|what| *what == TERM || *what == PARENT) {
                orphans::end_children(|_| false);
                break;
            }
        }
        exit_now(0)
    }
}
