//! Zygotes: their start, their answers, their end.
//!
//! Runs in: controller.  Trusts: nothing a zygote says (it runs as the pool's user): only answers to open orders, with
//! pids that the kernel confirms.  Owns: each zygote's process and channel.  Never: waits for a zygote.

use super::{hear_tenant, log, Controller, Heard, Source, Watched};
use crate::policy::{describe_status, Event, Millis, PoolKey, ZygoteId};
use crate::sys::process::PidFd;
use crate::sys::{shortage, socket};
use crate::wire::control::{LeaseId, ZygoteReport};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Most messages read from one zygote before others get their turn.
const BATCH: usize = 16;
/// A seed answers an order within this time: it only forks.
const SEED_ANSWER: Millis = 10_000;

/// A zygote, from the order to fork it until it is reaped.
#[derive(Debug)]
pub(super) struct ZygoteProcess {
    pub key: PoolKey,
    pub channel: Option<Watched<OwnedFd>>,
    /// `None` until the seed has told its pid.
    pub process: Option<Watched<PidFd>>,
    errors: Option<u64>,
    /// Workers ordered and not answered.
    pub open: HashMap<u32, LeaseId>,
    /// It said Ready before the seed said who it is.
    ready_early: bool,
    /// It was told to end.
    ending: bool,
    /// It said Ready, which it does once.
    ready: bool,
    /// To be killed as soon as it is known who it is.
    condemned: bool,
    /// When it was ordered.
    ordered: Millis,
}

impl ZygoteProcess {
    pub(super) fn pidfd(&self) -> Option<&PidFd> {
        self.process.as_ref().map(|p| &p.what)
    }

    pub(super) fn awaits_worker(&self) -> bool {
        !self.open.is_empty()
    }
}

impl Controller {
    pub(super) fn start_zygote(&mut self, id: ZygoteId, key: PoolKey) {
        let Err(e) = self.try_start_zygote(id, key) else {
            return;
        };
        if !shortage::is_of_descriptors(&e) {
            return self.zygote_never_was(id, &format!("the order to the seed failed: {}", shortage::told(&e)));
        }
        if let Some(zygote) = self.zygotes.remove(&id) {
            self.close_zygote(zygote);
        }
        let text = self.lacks_descriptors(&e);
        self.events.push_back(Event::ZygoteLacks { zygote: id, text });
    }

    fn try_start_zygote(&mut self, id: ZygoteId, key: PoolKey) -> io::Result<()> {
        self.zygotes.insert(
            id,
            ZygoteProcess {
                key,
                channel: None,
                process: None,
                errors: None,
                open: HashMap::new(),
                ready_early: false,
                ending: false,
                ready: false,
                condemned: false,
                ordered: self.now(),
            },
        );
        self.held_back(key)?;
        self.has_descriptors()?;
        let (channel, theirs) = socket::seqpacket_pair()?;
        let (errors, errors_write) = self.errors_pair()?;
        let errors = self.add_pool_errors(errors, key)?;
        let token = self.watch(channel.as_fd(), Source::ZygoteChannel(id))?;
        if let Some(zygote) = self.zygotes.get_mut(&id) {
            zygote.errors = Some(errors);
            zygote.channel = Some(Watched { token, what: channel });
        }
        self.order_zygote(key, id, [theirs.as_fd(), errors_write.as_fd()])
    }

    /// The seed has told the pid.
    pub(super) fn zygote_started(&mut self, id: ZygoteId, pid: u32) {
        if !self.is_new_child(pid, None) {
            return self.zygote_never_was(id, "the seed told a pid that is not its zygote's");
        }
        let process = match self.watch_child(pid, Source::ZygoteProcess(id)) {
            Ok(process) => process,
            Err(e) => return self.zygote_never_was(id, &format!("it cannot be watched: {e}")),
        };
        let Some(zygote) = self.zygotes.get_mut(&id) else {
            process.what.kill();
            return;
        };
        if let Some(errors) = zygote.errors {
            self.errors.set_pid(errors, pid);
        }
        let (condemned, ready) = (zygote.condemned, zygote.ready_early);
        zygote.process = Some(process);
        if condemned {
            self.kill_zygote(id);
        } else if ready {
            self.zygote_is_ready(id);
        }
    }

    /// No process has come of the order, as far as we can know.
    pub(super) fn zygote_never_was(&mut self, id: ZygoteId, text: &str) {
        if let Some(zygote) = self.zygotes.remove(&id) {
            self.close_zygote(zygote);
            self.events.push_back(Event::ZygoteGone { zygote: id, text: text.to_owned() });
        }
    }

    fn close_zygote(&mut self, zygote: ZygoteProcess) {
        self.end_channel(zygote.key, zygote.channel);
        if let Some(process) = zygote.process {
            self.pids.remove(&process.what.pid());
            self.orphans.absolve(process.what.pid());
            self.close(Some(process));
        }
        if let Some(errors) = zygote.errors {
            self.finish_pool_errors(errors);
        }
        self.orphans.soon(self.now());
    }

    pub(super) fn read_zygote(&mut self, id: ZygoteId) {
        for _ in 0..BATCH {
            let Some(channel) = self.zygotes.get(&id).and_then(|z| z.channel.as_ref()) else {
                return;
            };
            match hear_tenant(channel.what.as_fd(), ZygoteReport::decode) {
                Heard::Message(ZygoteReport::Ready, _) => self.zygote_is_ready(id),
                Heard::Message(ZygoteReport::Forked { request, pid }, _) => self.zygote_forked(id, request, pid),
                Heard::Message(ZygoteReport::Failed { text }, _) => {
                    self.feed(Event::ZygoteFailed { zygote: id, text });
                }
                Heard::Nothing => return,
                // It ends, or wants us to believe so. What its death means, the reaping tells.
                Heard::End => {
                    self.close_channel(id);
                    return self.kill_process(id);
                }
                Heard::Garbage(why, _) => return self.violated(id, &why),
            }
        }
    }

    fn violated(&mut self, id: ZygoteId, text: &str) {
        self.feed(Event::ZygoteViolated { zygote: id, text: text.to_owned() });
    }

    fn zygote_is_ready(&mut self, id: ZygoteId) {
        let Some(zygote) = self.zygotes.get_mut(&id) else {
            return;
        };
        let Some(process) = &zygote.process else {
            zygote.ready_early = true;
            return;
        };
        let (pid, key) = (process.what.pid(), zygote.key);
        if std::mem::replace(&mut zygote.ready, true) {
            return self.violated(id, "it was ready twice");
        }
        let uid = self.pool_uid(key);
        let dropped = crate::sys::process::uids_of(pid).is_ok_and(|real| uid.is_some_and(|uid| real == [uid; 4]));
        if dropped {
            self.feed(Event::ZygoteReady { zygote: id });
        } else {
            self.violated(id, "it does not run as the pool's user");
        }
    }

    fn zygote_forked(&mut self, id: ZygoteId, request: u32, pid: u32) {
        let Some(zygote) = self.zygotes.get_mut(&id) else {
            return;
        };
        let key = zygote.key;
        let Some(lease) = zygote.open.remove(&request) else {
            return self.violated(id, "it answered what nobody asked");
        };
        let uid = self.pool_uid(key);
        if uid.is_none() || !self.is_new_child(pid, uid) {
            return self.violated(id, "it told a pid that is not its worker's");
        }
        self.worker_forked(lease, pid, key);
    }

    /// Closes the channel: the zygote ends by itself.
    pub(super) fn end_zygote(&mut self, id: ZygoteId) {
        if let Some(zygote) = self.zygotes.get_mut(&id) {
            zygote.ending = true;
        }
        self.close_channel(id);
    }

    fn close_channel(&mut self, id: ZygoteId) {
        if let Some(zygote) = self.zygotes.get_mut(&id) {
            let (key, channel) = (zygote.key, zygote.channel.take());
            self.end_channel(key, channel);
        }
    }

    fn end_channel(&mut self, key: PoolKey, channel: Option<Watched<OwnedFd>>) {
        if let Some(channel) = channel {
            self.unwatch(channel.token, &channel.what);
            self.end(Some(key), channel.what);
        }
    }

    pub(super) fn kill_zygote(&mut self, id: ZygoteId) {
        self.end_zygote(id);
        self.kill_process(id);
    }

    fn kill_process(&mut self, id: ZygoteId) {
        let now = self.now();
        let Some(zygote) = self.zygotes.get_mut(&id) else {
            return;
        };
        let key = zygote.key;
        match &zygote.process {
            Some(process) => {
                process.what.kill();
                self.orphans.condemn(process.what.pid(), key, now);
            }
            None => {
                zygote.condemned = true;
                // A seed that does not answer either is of no use.
                if now.saturating_sub(zygote.ordered) >= SEED_ANSWER {
                    self.kill_seed(key.generation);
                }
            }
        }
    }

    pub(super) fn reap_zygote(&mut self, id: ZygoteId) {
        // Its last words before its end: a reason, or a worker that it forked.
        self.read_zygote(id);
        let Some(status) = self.zygotes.get(&id).and_then(|z| z.process.as_ref()).and_then(|p| p.what.reap()) else {
            // Who traces it has to end first.
            return self.kill_process(id);
        };
        if let Some(zygote) = self.zygotes.remove(&id) {
            let text = describe_status(status);
            if !zygote.ending {
                log::notice(&format!("mod_pool: pool {}: its zygote died: {text}", self.pool_name(zygote.key)));
            }
            self.close_zygote(zygote);
            self.feed(Event::ZygoteGone { zygote: id, text });
        }
    }
}
