//! Frontends: their messages, and what they are told.
//!
//! Runs in: controller.  Trusts: a frontend that the parent announced, for its own leases only.
//! Owns: the controller's end of each frontend's channel.  Never: waits for a frontend that does not read.

use super::{hear, log, Controller, Heard, Watched};
use crate::policy::{Event, FrontendId, PoolKey};
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
            let generation = frontend.generation;
            let (message, fds) = match hear(frontend.channel.what.as_fd(), FrontendMessage::decode) {
                Heard::Message(message, received) => (message, received.fds),
                Heard::Nothing => return,
                Heard::End => return self.close_frontend(id),
                Heard::Garbage(why, fds) => {
                    log::error(&format!("mod_pool: the channel of frontend {}: {why}", frontend.pid));
                    self.discard(None, fds);
                    return self.close_frontend(id);
                }
            };
            let rest = match message {
                FrontendMessage::Want { want, pool, arrived } => {
                    self.feed(Event::Want { frontend: id, want, pool, arrived });
                    fds
                }
                FrontendMessage::Cancel { want } => {
                    self.feed(Event::Cancel { frontend: id, want });
                    fds
                }
                FrontendMessage::Return { lease, lend, how } => self.take_back(id, lease, lend, how, fds),
                FrontendMessage::Discard { pool } => {
                    self.discard(Some(PoolKey { generation, pool }), fds);
                    Vec::new()
                }
            };
            self.discard(None, rest);
        }
    }

    /// Gives out the descriptors that are of no use.
    fn take_back(
        &mut self,
        id: FrontendId,
        lease: LeaseId,
        lend: LendCount,
        how: Returned,
        mut fds: Vec<OwnedFd>,
    ) -> Vec<OwnedFd> {
        if !self.policy.is_lent(id, lease, lend) {
            return fds;
        }
        let mut how = how;
        let worker = self.workers.get_mut(&lease);
        // Another socket in its place would let one frontend play the worker of the next.
        let is_lease = |socket: &OwnedFd, identity| descriptor::identity(socket).ok() == identity;
        let ours = worker.filter(|w| w.data.is_none() && fds.first().is_some_and(|fd| is_lease(fd, w.identity)));
        match (how, ours) {
            (Returned::Idle, Some(worker)) => {
                let socket = fds.remove(0);
                // An idle worker has nothing to say: it has died, or it breaks the protocol.
                if descriptor::is_readable(&socket) {
                    how = Returned::Violation;
                }
                worker.data = Some(socket);
            }
            // The descriptor was lost on the way (our limit): its last copy is closed, so the worker ends.
            (Returned::Idle, None) => how = Returned::Last,
            (_, Some(worker)) => {
                let (key, socket) = (worker.key, fds.remove(0));
                self.end(Some(key), socket);
            }
            (_, None) => {}
        }
        self.feed(Event::Return { frontend: id, lease, lend, how });
        fds
    }

    /// Sends a lease and closes the own copy of its data socket.
    pub(super) fn grant(&mut self, id: FrontendId, lease: LeaseId, message: &ControllerMessage) {
        let Some(worker) = self.workers.get_mut(&lease) else {
            return;
        };
        let (key, Some(socket)) = (worker.key, worker.data.take()) else {
            return;
        };
        // Once it is sent, a copy lies in the channel or is the frontend's: ours is not the last one.
        if !self.send_to(id, message, &[socket.as_fd()]) {
            self.end(Some(key), socket);
        }
    }

    pub(super) fn tell(&mut self, id: FrontendId, message: &ControllerMessage) {
        self.send_to(id, message, &[]);
    }

    /// Whether it was sent.
    fn send_to(&mut self, id: FrontendId, message: &ControllerMessage, fds: &[BorrowedFd<'_>]) -> bool {
        let Some(frontend) = self.frontends.get(&id) else {
            return false;
        };
        let sent = socket::send(frontend.channel.what.as_fd(), &message.encode(), fds, Blocking::No);
        if sent.is_err() {
            self.close_frontend(id);
        }
        sent.is_ok()
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
        // Leases may lie in it.
        self.end(None, frontend.channel.what);
        self.unwatch(frontend.process.token, &frontend.process.what);
        // The policy may be at work just now: the event waits in the queue until it is done.
        self.events.push_back(Event::FrontendLeft { frontend: id });
    }
}
