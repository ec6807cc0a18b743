//! Frontends: their messages, and what they are told.
//!
//! Runs in: controller.  Trusts: a frontend that the parent announced, for its own leases only.
//! Owns: the controller's end of each frontend's channel.  Never: waits for a frontend that does not read.

use super::{hear, Controller, Heard, Watched};
use crate::policy::{Event, FrontendId};
use crate::sys::descriptor;
use crate::sys::process::PidFd;
use crate::sys::socket::{self, Blocking};
use crate::wire::control::{ControllerMessage, FrontendMessage, LeaseId, LendCount, Returned};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most messages read from one frontend before others get their turn.
const BATCH: usize = 64;
/// Log lines are left out when more than this waits in a frontend's channel: grants need the room.
const LOG_ROOM: usize = 256 * 1024;

/// A process of httpd's MPM.
#[derive(Debug)]
pub(super) struct Frontend {
    pub pid: u32,
    pub generation: u64,
    pub channel: Watched<OwnedFd>,
    pub process: Watched<PidFd>,
}

impl Controller {
    pub(super) fn read_frontend(&mut self, id: FrontendId) {
        for _ in 0..BATCH {
            let Some(frontend) = self.frontends.get(&id) else {
                return;
            };
            let (message, received) = match hear(frontend.channel.what.as_fd(), FrontendMessage::decode) {
                Heard::Message(message, received) => (message, received),
                Heard::Nothing => return,
                Heard::End | Heard::Garbage(_) => return self.close_frontend(id),
            };
            match message {
                FrontendMessage::Want { want, pool } => self.feed(Event::Want { frontend: id, want, pool }),
                FrontendMessage::Cancel { want } => self.feed(Event::Cancel { frontend: id, want }),
                FrontendMessage::Return { lease, lend, how } => self.take_back(id, lease, lend, how, received.fds),
            }
        }
    }

    fn take_back(&mut self, id: FrontendId, lease: LeaseId, lend: LendCount, how: Returned, fds: Vec<OwnedFd>) {
        if !self.policy.is_lent(id, lease, lend) {
            return;
        }
        let mut how = how;
        if how == Returned::Idle {
            let socket = fds.into_iter().next();
            let worker = self.workers.get_mut(&lease);
            match (socket, worker) {
                // Another socket in its place would let one frontend play the worker of the next.
                (Some(socket), Some(worker)) if descriptor::identity(&socket).ok() == worker.identity => {
                    // An idle worker has nothing to say: it has died, or it breaks the protocol.
                    if descriptor::is_readable(&socket) {
                        how = Returned::Violation;
                    }
                    worker.data = Some(socket);
                }
                // The descriptor was lost on the way (our limit): its last copy is closed, so the worker ends.
                _ => how = Returned::Last,
            }
        }
        self.feed(Event::Return { frontend: id, lease, lend, how });
    }

    /// Sends a lease and closes the own copy of its data socket.
    pub(super) fn grant(&mut self, id: FrontendId, lease: LeaseId, message: &ControllerMessage) {
        let Some(socket) = self.workers.get_mut(&lease).and_then(|w| w.data.take()) else {
            return;
        };
        self.send_to(id, message, &[socket.as_fd()]);
    }

    pub(super) fn tell(&mut self, id: FrontendId, message: &ControllerMessage) {
        self.send_to(id, message, &[]);
    }

    fn send_to(&mut self, id: FrontendId, message: &ControllerMessage, fds: &[BorrowedFd<'_>]) {
        let Some(frontend) = self.frontends.get(&id) else {
            return;
        };
        let sent = socket::send(frontend.channel.what.as_fd(), &message.encode(), fds, Blocking::No);
        if sent.is_err() {
            self.close_frontend(id);
        }
    }

    /// Sends a log line to a frontend of a generation, one whose channel is not rather full.
    /// `None` when there is no frontend of it; otherwise whether the line was sent.
    pub(super) fn log_to_frontend(&mut self, generation: u64, message: &ControllerMessage) -> Option<bool> {
        let mut any = None;
        for frontend in self.frontends.values().filter(|f| f.generation == generation) {
            let channel = frontend.channel.what.as_fd();
            if descriptor::unsent(channel) < LOG_ROOM
                && socket::send(channel, &message.encode(), &[], Blocking::No).is_ok()
            {
                return Some(true);
            }
            any = Some(false);
        }
        any
    }

    pub(super) fn close_frontend(&mut self, id: FrontendId) {
        let Some(frontend) = self.frontends.remove(&id) else {
            return;
        };
        self.unwatch(frontend.channel.token, &frontend.channel.what);
        self.unwatch(frontend.process.token, &frontend.process.what);
        // The policy may be at work just now: the event waits in the queue until it is done.
        self.events.push_back(Event::FrontendLeft { frontend: id });
    }
}
