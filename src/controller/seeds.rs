//! Seeds: started with the arguments of their configuration, ordered to fork zygotes, reaped.
//!
//! Runs in: controller.  Trusts: a seed as far as its configuration; its pids are checked all the same.
//! Owns: each seed's process, its channel, the last of what it wrote to standard error.  Never: waits for a seed.

use super::{hear, log, Controller, Heard, Source, Watched};
use crate::policy::{describe_status, Event, PoolKey, ZygoteId, MAX_STARTING};
use crate::sys::process::{self, PidFd};
use crate::sys::socket::{self, Blocking};
use crate::sys::{descriptor, shortage, spawn};
use crate::wire::control::{SeedOrder, SeedReport};
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};

/// How much of a failed seed's standard error is logged, in bytes: httpd's reason is in its last lines.
const TAIL: usize = 4096;
/// Most reads or messages before others get their turn.
const BATCH: usize = 16;

/// A running seed.
#[derive(Debug)]
pub(super) struct Seed {
    process: Watched<PidFd>,
    channel: Option<Watched<OwnedFd>>,
    errors: Option<Watched<OwnedFd>>,
    tail: Vec<u8>,
    /// Zygotes ordered and not answered.
    open: HashMap<u32, ZygoteId>,
    /// It was told to end.
    ending: bool,
}

impl Seed {
    pub(super) fn pidfd(&self) -> &PidFd {
        &self.process.what
    }
}

impl Controller {
    pub(super) fn start_seed(&mut self, generation: u64) {
        if let Err(e) = self.try_start_seed(generation) {
            let text = format!("it cannot be started: {}", shortage::told_of_fork(&e));
            log::error(&format!("mod_pool: seed of configuration {generation}: {text}"));
            self.end_wait(generation);
            self.events.push_back(Event::SeedGone { generation, text });
        }
    }

    fn try_start_seed(&mut self, generation: u64) -> io::Result<()> {
        let argv = self.tables.get(&generation).map(|t| t.seed_argv.clone()).unwrap_or_default();
        let (channel, theirs) = socket::seqpacket_pair()?;
        let (errors, errors_write) = descriptor::pipe()?;
        let pid = spawn::spawn_image(&spawn::Image {
            argv: &argv,
            channel: theirs.as_fd(),
            standard_error: errors_write.as_fd(),
            descriptors: self.descriptors,
        })?;
        let process = self.watch_child(pid, Source::SeedProcess(generation))?;
        // Should one of these fail, the seed sees the end of its channel and is reaped.
        let channel_token = self.watch(channel.as_fd(), Source::SeedChannel(generation));
        let errors_token = self.watch(errors.as_fd(), Source::SeedErrors(generation));
        let seed = Seed {
            process,
            channel: channel_token.ok().map(|token| Watched { token, what: channel }),
            errors: errors_token.ok().map(|token| Watched { token, what: errors }),
            tail: Vec::new(),
            open: HashMap::new(),
            ending: false,
        };
        self.seeds.insert(generation, seed);
        Ok(())
    }

    /// The parent need not wait for this seed any more.
    pub(super) fn end_wait(&mut self, generation: u64) {
        if let Some(end) = self.until_ready.remove(&generation) {
            self.end(None, end);
        }
    }

    pub(super) fn end_seed(&mut self, generation: u64) {
        let Some(seed) = self.seeds.get_mut(&generation) else {
            return;
        };
        seed.ending = true;
        // It carries out the orders that it has. Their answers say which processes are zygotes; else they would be taken for
        // what a pool's process left behind.
        if let Some(channel) = seed.channel.as_ref().filter(|_| !seed.open.is_empty()) {
            return socket::shutdown_sending(channel.what.as_fd());
        }
        let channel = seed.channel.take();
        self.close(channel);
    }

    pub(super) fn kill_seed(&mut self, generation: u64) {
        if let Some(seed) = self.seeds.get(&generation) {
            seed.process.what.kill();
        }
    }

    pub(super) fn read_seed(&mut self, generation: u64) {
        for _ in 0..BATCH {
            let Some(channel) = self.seeds.get(&generation).and_then(|s| s.channel.as_ref()) else {
                return;
            };
            let report = match hear(channel.what.as_fd(), SeedReport::decode) {
                Heard::Message(report, _) => report,
                Heard::Nothing => return,
                Heard::End => return self.drop_seed(generation),
                Heard::Garbage(why, fds) => {
                    self.discard(None, fds);
                    log::error(&format!(
                        "mod_pool: POOL154: seed of configuration {generation}: {why}: it is ended; if the module was \
                         upgraded, restart httpd"
                    ));
                    return self.drop_seed(generation);
                }
            };
            match report {
                SeedReport::Ready { build_id, .. } => {
                    if build_id != self.start.build_id {
                        self.note_replaced();
                    }
                    self.feed(Event::SeedReady { generation });
                }
                SeedReport::ZygoteStarted { request, pid } => {
                    if let Some(zygote) = self.answered(generation, request) {
                        self.zygote_started(zygote, pid);
                    }
                }
                SeedReport::Failed { request, text } => {
                    if let Some(zygote) = self.answered(generation, request) {
                        self.zygote_never_was(zygote, &text);
                    }
                }
            }
        }
    }

    fn answered(&mut self, generation: u64, request: u32) -> Option<ZygoteId> {
        self.seeds.get_mut(&generation)?.open.remove(&request)
    }

    /// The seed closed its channel or sent garbage: it is of no use any more, its end is reaped soon.
    fn drop_seed(&mut self, generation: u64) {
        let Some(seed) = self.seeds.get_mut(&generation) else {
            return;
        };
        seed.process.what.kill();
        let channel = seed.channel.take();
        self.close(channel);
    }

    /// Orders a zygote. The descriptors are its end of its channel and its standard error.
    pub(super) fn order_zygote(
        &mut self,
        key: PoolKey,
        zygote: ZygoteId,
        fds: [std::os::fd::BorrowedFd<'_>; 2],
    ) -> io::Result<()> {
        let request = u32::try_from(self.number() & u64::from(u32::MAX)).unwrap_or(0);
        let pool = self.pool_name(key).to_owned();
        let seed = self.seeds.get_mut(&key.generation).ok_or(ErrorKind::NotConnected)?;
        let channel = seed.channel.as_ref().ok_or(ErrorKind::NotConnected)?;
        let order = SeedOrder::StartZygote { request, pool };
        socket::send(channel.what.as_fd(), &order.encode(), &fds, Blocking::No)?;
        seed.open.insert(request, zygote);
        Ok(())
    }

    pub(super) fn read_seed_errors(&mut self, generation: u64) {
        let mut buf = [0; TAIL];
        for _ in 0..BATCH {
            let Some(seed) = self.seeds.get_mut(&generation) else {
                return;
            };
            let Some(errors) = seed.errors.as_ref() else {
                return;
            };
            match descriptor::read(&errors.what, &mut buf) {
                Ok(n @ 1..) => {
                    seed.tail.extend(buf.iter().take(n));
                    let surplus = seed.tail.len().saturating_sub(TAIL);
                    seed.tail.drain(..surplus);
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
                Ok(_) | Err(_) => {
                    let errors = seed.errors.take();
                    return self.close(errors);
                }
            }
        }
    }

    pub(super) fn reap_seed(&mut self, generation: u64) {
        let Some(seed) = self.seeds.get(&generation) else {
            return;
        };
        let Some(status) = seed.process.what.reap() else {
            return;
        };
        // Its last words, and its last answers: one for each order at most.
        for _ in 0..=MAX_STARTING / BATCH {
            self.read_seed(generation);
        }
        self.read_seed_errors(generation);
        let Some(seed) = self.seeds.remove(&generation) else {
            return;
        };
        self.pids.remove(&seed.process.what.pid());
        self.close(Some(seed.process));
        self.close(seed.channel);
        self.close(seed.errors);
        self.end_wait(generation);
        let text = describe_status(status);
        if !seed.ending {
            log::error(&format!("mod_pool: the seed of configuration {generation} died: {text}"));
            for line in seed.tail.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                log::error(&format!("mod_pool: seed: {}", String::from_utf8_lossy(line)));
            }
        }
        self.orphans.soon(self.now());
        for zygote in seed.open.into_values() {
            self.zygote_never_was(zygote, &format!("the seed died: {text}"));
        }
        self.feed(Event::SeedGone { generation, text });
    }

    /// Whether a pid that a seed or zygote told can be what it says: a child of ours, alive or not reaped, that is
    /// nothing else in our books. With `uid`, all four of its uids must be that one.
    pub(super) fn is_new_child(&self, pid: u32, uid: Option<u32>) -> bool {
        process::is_own_child(pid)
            && !self.pids.contains(&pid)
            && uid.is_none_or(|uid| process::uids_of(pid).is_ok_and(|real| real == [uid; 4]))
    }

    /// Whether an answer is awaited that would make an unknown child a known one.
    pub(super) fn awaits_children(&self) -> bool {
        self.seeds.values().any(|seed| !seed.open.is_empty())
            || self.zygotes.values().any(super::zygotes::ZygoteProcess::awaits_worker)
    }
}
