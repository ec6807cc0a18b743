//! Keeps a controller running where httpd's parent cannot: with `httpd -X` it is the one frontend too, has given up
//! root, and waits for no child.
//!
//! Runs in: its own process, parent of the controller (root, or httpd's user when httpd is not root; one thread).
//! Trusts: wait status; the first message of httpd's parent, by its credentials.
//! Owns: the one configuration that `httpd -X` has, the process of the controller.
//! Never: reads what anybody but httpd's parent sent, starts a controller for a parent that is gone.

use super::{log, orphans, ControllerStart};
use crate::policy::describe_status;
use crate::sys::fork::{self, exit_now, Forked};
use crate::sys::poller::{Poller, TermSignal};
use crate::sys::process::{self, PidFd};
use crate::sys::socket::{self, Blocking};
use crate::sys::{discard, syslog, title};
use crate::wire::control::{ConnectorMessage, ParentMessage, MAX_CONTROL_MESSAGE};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long after the death of a controller the next one starts: as long as httpd's parent takes at most to notice.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it looks for what has ended of a dead controller's processes.
const SWEEP: Duration = Duration::from_secs(1);
/// Descriptors of a Configure that each controller gets: the pool table and the error log. What httpd's start waits
/// at is the first one's alone.
const LASTING: usize = 2;

/// What every controller starts with.
#[derive(Debug)]
pub(super) struct Kept {
    pub message: ParentMessage,
    pub fds: Vec<OwnedFd>,
}

/// Starts controllers, one after the other, until one ends as it should. Returns in each of them.
pub(super) fn keep(start: &ControllerStart) -> io::Result<Kept> {
    title::set("mod_pool: keeper");
    let parent = PidFd::open(start.parent)?;
    let mut kept = first_message(start)?;
    let signal = TermSignal::new()?;
    loop {
        let controller = match fork::fork_child()? {
            Forked::Child => return Ok(kept),
            Forked::Parent { child } => PidFd::open(child)?,
        };
        kept.fds.truncate(LASTING);
        let status = wait_for(&controller, &signal)?;
        if status == 0 || parent.has_ended() {
            orphans::end_children(|_| false);
            exit_now(0);
        }
        let died = describe_status(status);
        log::error_by_child(&format!("mod_pool: the controller died: {died}; another one is started"));
        std::thread::sleep(PAUSE);
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

/// Waits for the end of the controller and passes SIGTERM on to it. Returns its wait status.
fn wait_for(controller: &PidFd, signal: &TermSignal) -> io::Result<i32> {
    let mut poller = Poller::new()?;
    poller.add(controller.as_fd(), 0)?;
    poller.add(signal.as_fd(), 1)?;
    loop {
        let others = process::children()?.into_iter().filter(|pid| *pid != controller.pid()).collect::<Vec<_>>();
        for pid in &others {
            process::reap_pid(*pid);
        }
        poller.wait((!others.is_empty()).then_some(SWEEP), &mut Vec::new())?;
        if signal.came() {
            controller.signal(15);
        }
        if let Some(status) = controller.reap() {
            return Ok(status);
        }
    }
}
