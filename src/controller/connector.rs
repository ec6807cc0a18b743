//! The connector: the parent's messages, and the hellos of frontends.
//!
//! Runs in: controller.  Trusts: `SCM_CREDENTIALS`; the parent's messages once they prove to be its own.
//! Owns: the list of announced children.  Never: believes what a message says about its sender.

use super::frontends::Frontend;
use super::keeper::Kept;
use super::{log, Controller, Source, Watched};
use crate::policy::{Event, FrontendId, Millis};
use crate::sys::privileges::duplicate_to;
use crate::sys::process::{self, PidFd};
use crate::sys::socket::{self, Blocking, Credentials};
use crate::wire::control::{ConnectorMessage, Hello, ParentMessage, PoolTable, MAX_CONTROL_MESSAGE, MAX_POOL_TABLE};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};

/// Most messages read before others get their turn.
const BATCH: usize = 64;
/// Hellos kept that came before the parent's word about their sender, and for how long: a child may speak before the
/// parent's fork has returned.
const MAX_EARLY: usize = 1024;
const EARLY_LIFE: Millis = 5_000;
/// At most one refusal is logged in this time.
const REFUSAL_INTERVAL: Millis = 1_000;
/// Buffer of a frontend's channel: some thousand grants and obituaries between two looks of a busy frontend.
const CHANNEL_BUFFER: i32 = 1 << 20;

/// A hello that waits for the parent to announce its sender.
#[derive(Debug)]
pub(super) struct EarlyHello {
    hello: Hello,
    channel: OwnedFd,
    sender: Credentials,
    came: Millis,
}

impl Controller {
    pub(super) fn read_connector(&mut self) {
        let mut buf = [0; MAX_CONTROL_MESSAGE];
        for _ in 0..BATCH {
            let received = match socket::receive(self.start.connector.as_fd(), &mut buf, Blocking::No) {
                Ok(received) => received,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) => {
                    log::error(&format!("mod_pool: reading the connector: {e}"));
                    return;
                }
            };
            let Some(sender) = received.credentials else {
                if received.len == 0 {
                    // Nobody holds the other end. The parent's pidfd says when to end.
                    self.sources.remove(&self.connector_token);
                    self.poller.remove(self.start.connector.as_fd());
                }
                return;
            };
            let bytes = buf.get(..received.len).unwrap_or_default();
            if received.truncated {
                continue;
            }
            match ConnectorMessage::decode(bytes) {
                Ok(ConnectorMessage::Parent(message)) if sender.pid == self.start.parent => {
                    self.parent_says(&message, received.fds);
                }
                Ok(ConnectorMessage::Hello(hello)) => {
                    let mut fds = received.fds.into_iter();
                    match (fds.next(), fds.next()) {
                        (Some(channel), None) => self.hello(hello, channel, sender),
                        _ => self.note_refusal(sender, "without its channel"),
                    }
                }
                Ok(ConnectorMessage::Parent(_)) => self.note_refusal(sender, "speaks as the parent"),
                Err(e) => self.note_refusal(sender, &e.to_string()),
            }
        }
    }

    /// What a keeper has heard of httpd's parent: its configuration, and that it is the one frontend.
    pub(super) fn resume(&mut self, kept: Kept) {
        self.announced.insert(self.start.parent);
        self.parent_says(&kept.message, kept.fds);
    }

    /// Whoever holds the other end can have us refuse messages as fast as he sends them: one line a second is enough.
    fn note_refusal(&mut self, sender: Credentials, why: &str) {
        let now = self.now();
        if self.refusal_noted.is_some_and(|at| now < at + REFUSAL_INTERVAL) {
            return;
        }
        self.refusal_noted = Some(now);
        log::notice(&format!("mod_pool: a message of pid {} (uid {}) was refused: {why}", sender.pid, sender.uid));
    }

    fn parent_says(&mut self, message: &ParentMessage, fds: Vec<OwnedFd>) {
        match *message {
            ParentMessage::Configure { generation } => match read_configuration(generation, fds) {
                Ok((table, until_ready)) => {
                    if let Some(end) = until_ready {
                        self.until_ready.insert(generation, end);
                    }
                    self.tables.entry(generation).or_insert_with(|| table.clone());
                    self.feed(Event::Configure { table });
                }
                Err(e) => log::error(&format!("mod_pool: the configuration did not arrive: {e}")),
            },
            ParentMessage::ChildStarted { pid } => {
                self.announced.insert(pid);
            }
            ParentMessage::ChildGone { pid } => {
                self.announced.remove(&pid);
                return;
            }
            ParentMessage::Stop => return self.feed(Event::Stop),
        }
        for early in std::mem::take(&mut self.early) {
            self.hello_or_keep(early);
        }
    }

    fn hello(&mut self, hello: Hello, channel: OwnedFd, sender: Credentials) {
        let build_differs = hello.build_id != self.start.build_id;
        self.hello_or_keep(EarlyHello { hello, channel, sender, came: self.now() });
        if build_differs {
            self.note_replaced();
        }
    }

    /// The module's file was replaced while httpd runs: frontends have mapped the old one.
    pub(super) fn note_replaced(&mut self) {
        if !self.replaced_noted {
            self.replaced_noted = true;
            log::notice("mod_pool: the module file was replaced: restart httpd to use the new one");
        }
    }

    fn hello_or_keep(&mut self, early: EarlyHello) {
        let pid = early.sender.pid;
        let generation = early.hello.generation;
        if !self.announced.contains(&pid) || !self.tables.contains_key(&generation) {
            // One for each sender: nobody can push the others out by repeating himself.
            self.early.retain(|other| other.sender.pid != pid);
            if self.early.len() >= MAX_EARLY {
                self.early.pop_front();
            }
            self.early.push_back(early);
            return;
        }
        let allowed = self.tables.get(&generation).map(|table| table.frontend_uid);
        let uid_fits =
            if self.root { allowed == Some(early.sender.uid) } else { early.sender.uid == process::own_uid() };
        // With -X the parent itself is the frontend, and may not have changed its user.
        if !uid_fits && pid != self.start.parent {
            return self.note_refusal(early.sender, "a frontend of another user");
        }
        if !self.policy.generation_open(generation) {
            return self.note_refusal(early.sender, "a frontend of a configuration that has ended");
        }
        if let Err(e) = self.accept(early) {
            log::error(&format!("mod_pool: frontend {pid} cannot be served: {e}"));
        }
    }

    fn accept(&mut self, early: EarlyHello) -> io::Result<()> {
        let pid = early.sender.pid;
        let process = PidFd::open(pid)?;
        let again: Vec<FrontendId> = self.frontends.iter().filter(|(_, f)| f.pid == pid).map(|(id, _)| *id).collect();
        for id in again {
            self.close_frontend(id);
        }
        socket::buffer_size(early.channel.as_fd(), CHANNEL_BUFFER)?;
        let id = FrontendId(self.number());
        let channel_token = self.watch(early.channel.as_fd(), Source::FrontendChannel(id))?;
        let process_token = match self.watch(process.as_fd(), Source::FrontendProcess(id)) {
            Ok(token) => token,
            Err(e) => {
                self.unwatch(channel_token, &early.channel);
                return Err(e);
            }
        };
        let generation = early.hello.generation;
        self.frontends.insert(
            id,
            Frontend {
                pid,
                generation,
                channel: Watched { token: channel_token, what: early.channel },
                process: Watched { token: process_token, what: process },
            },
        );
        self.feed(Event::FrontendCame { frontend: id, generation });
        for entry in early.hello.in_flight {
            self.foreign_worker(entry.pid, entry.pool);
        }
        Ok(())
    }

    /// A worker of a controller that has died. It counts if it is of the pool's user and not one of ours.
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
        if !fits {
            return;
        }
        if let Ok(token) = self.watch(process.as_fd(), Source::Foreign(pid)) {
            self.foreign.insert(pid, Watched { token, what: process });
            self.feed(Event::ForeignCame { pid, pool });
        }
    }

    pub(super) fn early_deadline(&self) -> Option<Millis> {
        self.early.front().map(|early| early.came + EARLY_LIFE)
    }

    pub(super) fn forget_early_hellos(&mut self) {
        let now = self.now();
        while self.early.front().is_some_and(|early| early.came + EARLY_LIFE <= now) {
            if let Some(early) = self.early.pop_front() {
                self.note_refusal(early.sender, "the parent announced neither this frontend nor its configuration");
            }
        }
    }
}

/// Takes the pool table and the new standard error from what came with a Configure, and what the parent waits at.
fn read_configuration(generation: u64, fds: Vec<OwnedFd>) -> io::Result<(PoolTable, Option<OwnedFd>)> {
    let mut fds = fds.into_iter();
    let (Some(memory), Some(standard_error), until_ready, None) = (fds.next(), fds.next(), fds.next(), fds.next())
    else {
        return Err(io::Error::other("two or three descriptors belong to it"));
    };
    duplicate_to(standard_error.as_fd(), 2)?;
    let mut memory = File::from(memory);
    memory.rewind()?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_POOL_TABLE).unwrap_or(u64::MAX);
    memory.take(limit).read_to_end(&mut bytes)?;
    let table = PoolTable::decode(&bytes).map_err(io::Error::other)?;
    if table.generation != generation {
        return Err(io::Error::other("the table is of another generation"));
    }
    Ok((table, until_ready))
}
