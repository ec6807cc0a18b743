//! The connectors: the parent's messages, and the hellos of frontends.
//!
//! Runs in: controller.  Trusts: `SCM_CREDENTIALS`; the parent's messages once they prove to be its own.
//! Owns: the controller's ends of all connectors.  Never: believes what a message says about its sender.

use super::frontends::Frontend;
use super::keeper::Kept;
use super::{hear, log, Controller, Heard, Source, Watched};
use crate::policy::{Event, FrontendId, Millis};
use crate::sys::process::{self, PidFd};
use crate::sys::socket::{self, Credentials};
use crate::sys::{descriptor, shortage, syslog};
use crate::wire::control::{ConnectorMessage, Hello, ParentMessage, PoolTable, MAX_POOL_TABLE};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most messages read from one connector before others get their turn.
const BATCH: usize = 64;
/// Descriptors that come with one message, and one to read it with.
const RESERVE: usize = 4;
/// At most one refusal is logged in this time.
const REFUSAL_INTERVAL: Millis = 1_000;
/// Buffer of a frontend's channel: some thousand grants and obituaries between two looks of a busy frontend.
const CHANNEL_BUFFER: i32 = 1 << 20;
/// What the kernel drops when this process has no number left for it.
const WITHOUT_CHANNEL: &str =
    "its channel is not with it: raise the limit of open files (ulimit -n), if that is reached";

/// A child of the MPM, as the parent has announced it.
#[derive(Debug)]
pub(super) struct Child {
    connector: Watched<OwnedFd>,
    /// Of the configuration that it was forked with.
    generation: u64,
}

impl Child {
    pub(super) fn into_connector(self) -> OwnedFd {
        self.connector.what
    }
}

impl Controller {
    /// The parent's own connector: nobody else has its other end.
    pub(super) fn read_connector(&mut self) {
        for _ in 0..BATCH {
            self.reserve.clear();
            let Some((message, fds, sender)) = self.next_message(None) else {
                return self.refill_reserve();
            };
            match message {
                _ if sender.pid != self.start.parent => self.note_refusal(sender, "not of httpd's parent"),
                ConnectorMessage::Parent(ParentMessage::Begin { keeper }) => self.begun |= keeper == self.keeper.pid(),
                // For a controller that died before it has read it.
                ConnectorMessage::Parent(_) if !self.begun => self.discard(None, fds),
                ConnectorMessage::Parent(message) => self.parent_says(&message, fds),
                // With -X.
                ConnectorMessage::Hello(hello) => self.hello(hello, fds, sender),
            }
        }
        self.refill_reserve();
    }

    /// As many as come with one message of the parent: a configuration that does not arrive is lost.
    fn refill_reserve(&mut self) {
        while self.reserve.len() < RESERVE {
            let Ok(spare) = descriptor::spare() else {
                return;
            };
            self.reserve.push(spare);
        }
    }

    /// The connector of one child of the MPM.
    pub(super) fn read_child(&mut self, pid: u32) {
        for _ in 0..BATCH {
            let Some((message, fds, sender)) = self.next_message(Some(pid)) else {
                return;
            };
            match message {
                ConnectorMessage::Hello(hello) if sender.pid == pid => self.hello(hello, fds, sender),
                _ => {
                    self.discard(None, fds);
                    self.note_refusal(sender, "not the hello of the child that has this connector");
                }
            }
        }
    }

    /// The next message of the parent's connector, or of a child's. `None` when there is none now.
    fn next_message(&mut self, child: Option<u32>) -> Option<(ConnectorMessage, Vec<OwnedFd>, Credentials)> {
        let connector = match child {
            None => self.start.connector.as_fd(),
            Some(pid) => self.children.get(&pid)?.connector.what.as_fd(),
        };
        match hear(connector, ConnectorMessage::decode) {
            Heard::Message(message, received) => {
                let Some(sender) = received.credentials else {
                    self.discard(None, received.fds);
                    return None;
                };
                Some((message, received.fds, sender))
            }
            Heard::Nothing => None,
            Heard::Garbage(why, fds) => {
                self.discard(None, fds);
                let pid = child.unwrap_or(self.start.parent);
                log::error(&format!("mod_pool: the connector of pid {pid}: {why}"));
                // There is no other way to the parent.
                if child.is_some() {
                    self.close_connector(child);
                }
                None
            }
            // Nobody holds the other end. Of the parent, its pidfd says when to end.
            Heard::End => {
                self.close_connector(child);
                None
            }
        }
    }

    fn close_connector(&mut self, child: Option<u32>) {
        let Some(pid) = child else {
            self.sources.remove(&self.connector_token);
            self.poller.remove(self.start.connector.as_fd());
            return;
        };
        if self.forget_child(pid) {
            self.feed(Event::ChildGone { pid });
        }
    }

    /// Whether it was known.
    fn forget_child(&mut self, pid: u32) -> bool {
        let Some(Child { connector, .. }) = self.children.remove(&pid) else {
            return false;
        };
        self.unwatch(connector.token, &connector.what);
        // The parent has a copy that the next controller may need: it is not shut down.
        self.discard(None, [connector.what]);
        true
    }

    /// What a keeper has heard of httpd's parent.
    pub(super) fn resume(&mut self, kept: Kept) {
        self.parent_says(&kept.message, kept.fds);
    }

    /// Whoever holds the other end can have us refuse messages as fast as he sends them: one line a second is enough.
    fn tells_refusal(&mut self) -> bool {
        let now = self.now();
        let tells = self.refusal_noted.is_none_or(|at| now >= at + REFUSAL_INTERVAL);
        if tells {
            self.refusal_noted = Some(now);
        }
        tells
    }

    fn note_refusal(&mut self, sender: Credentials, why: &str) {
        if !self.tells_refusal() {
            return;
        }
        log::notice(&format!("mod_pool: a message of pid {} (uid {}) was refused: {why}", sender.pid, sender.uid));
    }

    fn parent_says(&mut self, message: &ParentMessage, fds: Vec<OwnedFd>) {
        match *message {
            ParentMessage::Configure { generation, older } => match read_configuration(generation, fds) {
                Ok((table, log, until_ready)) => {
                    self.use_error_log(log);
                    if let Some(end) = until_ready {
                        self.end_wait(generation);
                        self.until_ready.insert(generation, end);
                    }
                    self.tables.entry(generation).or_insert_with(|| table.clone());
                    self.feed(Event::Configure { table, older });
                }
                Err(e) => log::error(&format!("mod_pool: the configuration did not arrive: {e}")),
            },
            ParentMessage::ChildStarted { pid, generation } => {
                // An older child may have had the same number.
                let known = self.forget_child(pid);
                let added = self.child_started(pid, generation, fds);
                if added.is_ok() {
                    self.feed(Event::ChildStarted { pid, generation });
                } else if known {
                    self.feed(Event::ChildGone { pid });
                }
                if let Err(e) = added {
                    log::error(&format!("mod_pool: frontend {pid} cannot be heard: {}", shortage::told(&e)));
                }
            }
            ParentMessage::ChildGone { pid } => self.close_connector(Some(pid)),
            ParentMessage::Stop => self.feed(Event::Stop),
            ParentMessage::Ping | ParentMessage::Begin { .. } => {}
            ParentMessage::Discard => fds.into_iter().for_each(|fd| self.end(None, fd)),
            ParentMessage::Syslog { facility, ref ident } => syslog::use_from_now_on(facility, ident),
            // The parent has not reaped it, or it is gone and has left nothing.
            ParentMessage::OlderKeeper { pid } => self.older_keepers.extend(PidFd::open(pid)),
        }
    }

    fn child_started(&mut self, pid: u32, generation: u64, fds: Vec<OwnedFd>) -> io::Result<()> {
        let what = fds.into_iter().next().ok_or_else(|| io::Error::other(WITHOUT_CHANNEL))?;
        let token = match self.watch(what.as_fd(), Source::ChildConnector(pid)) {
            Ok(token) => token,
            Err(e) => {
                self.discard(None, [what]);
                return Err(e);
            }
        };
        self.children.insert(pid, Child { connector: Watched { token, what }, generation });
        Ok(())
    }

    /// A child of the MPM, or with -X the parent, wants to be served.
    fn hello(&mut self, hello: Hello, fds: Vec<OwnedFd>, sender: Credentials) {
        let channel = match <[OwnedFd; 1]>::try_from(fds) {
            Ok([channel]) => channel,
            Err(fds) => {
                self.discard(None, fds);
                return self.note_refusal(sender, WITHOUT_CHANNEL);
            }
        };
        if hello.build_id != self.start.build_id {
            self.note_replaced();
        }
        // With -X the parent itself is the frontend: nobody has announced it, and it may not have changed its user.
        if sender.pid != self.start.parent {
            if self.children.get(&sender.pid).map(|child| child.generation) != Some(hello.generation) {
                self.discard(None, [channel]);
                return self.note_refusal(sender, "a frontend that names another configuration than its parent does");
            }
            let table = self.tables.get(&hello.generation);
            let fits = |table: &PoolTable| table.frontend_uid == sender.uid;
            let uid_fits = match (self.root, table) {
                (true, Some(table)) => fits(table),
                (true, None) => self.tables.values().any(fits),
                (false, _) => sender.uid == process::own_uid(),
            };
            if !uid_fits {
                self.discard(None, [channel]);
                return self.note_refusal(sender, "a frontend of another user");
            }
        }
        if !self.policy.generation_open(hello.generation) {
            // Heard all the same, to be refused at once: else its requests would wait for their timeout.
            self.note_refusal(
                sender,
                "a frontend of a configuration that this controller does not know, or that has ended",
            );
        }
        if let Err(e) = self.accept(hello, channel, sender.pid) {
            if self.tells_refusal() {
                log::error(&format!("mod_pool: frontend {} cannot be served: {}", sender.pid, shortage::told(&e)));
            }
        }
    }

    /// The module's file was replaced while httpd runs: frontends have mapped the old one.
    pub(super) fn note_replaced(&mut self) {
        if !self.replaced_noted {
            self.replaced_noted = true;
            log::notice("mod_pool: the module file was replaced: restart httpd to use the new one");
        }
    }

    fn accept(&mut self, hello: Hello, channel: OwnedFd, pid: u32) -> io::Result<()> {
        let id = FrontendId(self.number());
        let (channel_token, process) = match self.watch_frontend(id, channel.as_fd(), pid) {
            Ok(watched) => watched,
            Err(e) => {
                // What the frontend has sent may lie in it.
                self.end(None, channel);
                return Err(e);
            }
        };
        let generation = hello.generation;
        let channel = Watched { token: channel_token, what: channel };
        self.frontends.insert(id, Frontend { pid, generation, channel, process });
        self.feed(Event::FrontendCame { frontend: id, generation });
        if hello.may_lack_some() {
            self.orphans.spare_adopted();
        }
        for entry in hello.in_flight {
            self.foreign_worker(entry.pid, entry.pool);
        }
        Ok(())
    }

    /// Puts channel and process of a frontend into the poller, or neither. Its channel of before is closed.
    fn watch_frontend(
        &mut self,
        id: FrontendId,
        channel: BorrowedFd<'_>,
        pid: u32,
    ) -> io::Result<(u64, Watched<PidFd>)> {
        let what = PidFd::open(pid)?;
        let again: Vec<FrontendId> = self.frontends.iter().filter(|(_, f)| f.pid == pid).map(|(id, _)| *id).collect();
        for id in again {
            self.close_frontend(id);
        }
        socket::buffer_size(channel, CHANNEL_BUFFER)?;
        let channel_token = self.watch(channel, Source::FrontendChannel(id))?;
        match self.watch(what.as_fd(), Source::FrontendProcess(id)) {
            Ok(token) => Ok((channel_token, Watched { token, what })),
            Err(e) => {
                self.unwatch(channel_token, channel);
                Err(e)
            }
        }
    }

    /// A worker of a controller that has died. It counts if it is of the pool's user, and has fallen to that controller's
    /// keeper, or is still the child of a controller that does not end: others of that user are not ours to end.
    fn foreign_worker(&mut self, pid: u32, pool: String) {
        if self.pids.contains(&pid) || self.foreign.contains_key(&pid) || process::is_own_child(pid) {
            return;
        }
        let uids: Vec<u32> = self
            .tables
            .values()
            .flat_map(|t| t.pools.iter().filter(|r| r.name == pool).filter_map(|r| r.uid))
            .collect();
        // First the pidfd, then the look: the number cannot change hands between them and what we watch.
        let Ok(process) = PidFd::open(pid) else {
            return;
        };
        let fits = process::uids_of(pid).is_ok_and(|real| uids.iter().any(|uid| real == [*uid; 4]));
        if !fits || !process::parent_of(pid).is_some_and(|parent| self.is_of_an_older_controller(parent)) {
            return;
        }
        if let Ok(token) = self.watch(process.as_fd(), Source::Foreign(pid)) {
            self.foreign.insert(pid, Watched { token, what: process });
            self.feed(Event::ForeignCame { pid, pool });
        }
    }
}

/// Takes the pool table and the new error log from what came with a Configure, and what the parent waits at.
fn read_configuration(generation: u64, fds: Vec<OwnedFd>) -> io::Result<(PoolTable, OwnedFd, Option<OwnedFd>)> {
    let mut fds = fds.into_iter();
    let (Some(memory), Some(log), until_ready, None) = (fds.next(), fds.next(), fds.next(), fds.next()) else {
        return Err(io::Error::other("two or three descriptors belong to it"));
    };
    let mut memory = File::from(memory);
    memory.rewind()?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_POOL_TABLE).unwrap_or(u64::MAX);
    memory.take(limit).read_to_end(&mut bytes)?;
    let table = PoolTable::decode(&bytes).map_err(io::Error::other)?;
    if table.generation != generation {
        return Err(io::Error::other("the table is of another generation"));
    }
    Ok((table, log, until_ready))
}
