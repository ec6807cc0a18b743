//! Workers: the data socket of each, its process, its end.
//!
//! Runs in: controller.  Trusts: wait status.  Owns: the data sockets that no frontend holds.
//! Never: reads from a data socket, keeps a copy of one that is lent.

use super::zygotes::ZygoteProcess;
use super::{log, Controller, Source, Watched};
use crate::policy::{describe_status, Event, Millis, PoolKey, ZygoteId};
use crate::sys::process::PidFd;
use crate::sys::socket::{self, Blocking};
use crate::sys::{descriptor, shortage};
use crate::wire::control::{LeaseId, ZygoteOrder};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};

/// Buffer of a data socket in each direction: a whole small response travels without waiting for its reader.
const DATA_BUFFER: i32 = 256 * 1024;

/// What the controller has for itself (10 or so), and what another process takes at most while it starts, and a frontend's
/// hello.
const SPARE_DESCRIPTORS: usize = 24;

/// The lack of descriptors is logged once in this time.
const LACK_INTERVAL: Millis = 60_000;

/// A worker, from the order to fork it until it is reaped.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    /// The frontend's end of its data socket, while no frontend holds it.
    pub data: Option<OwnedFd>,
    /// Tells that end from any other socket when it comes back.
    pub identity: Option<(u64, u64)>,
    /// `None` until its zygote has told its pid.
    process: Option<Watched<PidFd>>,
    pub key: PoolKey,
    errors: Option<u64>,
}

impl WorkerProcess {
    pub(super) fn pidfd(&self) -> Option<&PidFd> {
        self.process.as_ref().map(|p| &p.what)
    }
}

fn is_end_of_peer(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected)
}

impl Controller {
    pub(super) fn fork_worker(&mut self, lease: LeaseId, zygote: ZygoteId, key: PoolKey) {
        match self.try_fork_worker(lease, zygote, key) {
            Ok(()) => {}
            // The zygote has ended and is not reaped yet: what its death means for the order, the reaping tells.
            Err(e) if is_end_of_peer(e.kind()) => {}
            Err(e) if shortage::is_of_descriptors(&e) => {
                let text = self.lacks_descriptors(&e);
                self.events.push_back(Event::ForkLacks { lease, text });
            }
            Err(e) => {
                let text = format!("the order to fork failed: {}", shortage::told(&e));
                self.events.push_back(Event::ForkFailed { lease, text });
            }
        }
    }

    /// An error, that of a process without a number left, unless another process can be started. Each worker has a number for
    /// its lease set aside: one that is lent and comes back without would be lost.
    pub(super) fn has_descriptors(&self) -> io::Result<()> {
        // Of each process that is being started, its pidfd.
        let starting = |zygote: &ZygoteProcess| zygote.open.len() + usize::from(zygote.process.is_none());
        let starting: usize = self.zygotes.values().map(starting).sum();
        // Of each child that has not said hello, the channel and the pidfd that come with it.
        let silent = 2 * self.children.len().saturating_sub(self.frontends.len());
        descriptor::may_have(self.sources.len() + self.workers.len() + starting + silent + SPARE_DESCRIPTORS)
    }

    /// There is none for another process: what to say of it. The log says so once in a while.
    pub(super) fn lacks_descriptors(&mut self, e: &io::Error) -> String {
        let now = self.now();
        if self.lack_noted.is_none_or(|at| now >= at + LACK_INTERVAL) {
            self.lack_noted = Some(now);
            let limit = descriptor::limit().unwrap_or(0);
            log::error(&format!(
                "mod_pool: POOL153: the controller may have {limit} open files, and has no room for another process: idle \
                 processes of other pools end first; raise the limit of open files (ulimit -n, systemd's LimitNOFILE)"
            ));
        }
        shortage::told(e)
    }

    fn try_fork_worker(&mut self, lease: LeaseId, zygote: ZygoteId, key: PoolKey) -> io::Result<()> {
        self.held_back(key)?;
        self.has_descriptors()?;
        let (data, theirs) = socket::seqpacket_pair()?;
        socket::buffer_size(data.as_fd(), DATA_BUFFER)?;
        socket::buffer_size(theirs.as_fd(), DATA_BUFFER)?;
        let identity = Some(descriptor::identity(&data)?);
        let (errors, errors_write) = self.errors_pair()?;
        let request = u32::try_from(self.number() & u64::from(u32::MAX)).unwrap_or(0);
        let z = self.zygotes.get_mut(&zygote).ok_or(ErrorKind::NotConnected)?;
        let channel = z.channel.as_ref().ok_or(ErrorKind::NotConnected)?;
        let order = ZygoteOrder::Fork { request };
        socket::send(channel.what.as_fd(), &order.encode(), &[theirs.as_fd(), errors_write.as_fd()], Blocking::No)?;
        z.open.insert(request, lease);
        let errors = self.add_pool_errors(errors, key).ok();
        self.workers.insert(lease, WorkerProcess { data: Some(data), identity, process: None, key, errors });
        Ok(())
    }

    /// Its zygote has told a pid, and the kernel has confirmed it.
    pub(super) fn worker_forked(&mut self, lease: LeaseId, pid: u32, key: PoolKey) {
        let process = match self.watch_child(pid, Source::WorkerProcess(lease)) {
            Ok(process) => process,
            Err(e) => {
                return self
                    .feed(Event::ForkFailed { lease, text: format!("it cannot be watched: {}", shortage::told(&e)) })
            }
        };
        let worker = self.workers.entry(lease).or_insert(WorkerProcess {
            // Given up meanwhile: the policy says so next, and it is killed.
            data: None,
            identity: None,
            process: None,
            key,
            errors: None,
        });
        worker.process = Some(process);
        if let Some(errors) = worker.errors {
            self.errors.set_pid(errors, pid);
        }
        self.feed(Event::Forked { lease, pid });
    }

    /// Ends the data socket, if it is here: its worker reads the end.
    pub(super) fn retire(&mut self, lease: LeaseId) {
        if let Some(worker) = self.workers.get_mut(&lease) {
            if let (key, Some(data)) = (worker.key, worker.data.take()) {
                self.end(Some(key), data);
            }
        }
    }

    /// SIGPROF is what PHP's own time limit sends: it ends the script with a fatal error, and runs its shutdown functions.
    /// Without PHP it ends the process.
    pub(super) fn interrupt_worker(&mut self, lease: LeaseId) {
        if let Some(process) = self.workers.get(&lease).and_then(|w| w.process.as_ref()) {
            process.what.signal(libc::SIGPROF);
        }
    }

    pub(super) fn kill_worker(&mut self, lease: LeaseId) {
        if let Some(process) = self.workers.get(&lease).and_then(|w| w.process.as_ref()) {
            process.what.kill();
            self.condemn_worker(lease);
        }
    }

    fn condemn_worker(&mut self, lease: LeaseId) {
        let now = self.now();
        if let Some((key, pid)) = self.workers.get(&lease).and_then(|w| Some((w.key, w.process.as_ref()?.what.pid()))) {
            self.orphans.condemn(pid, key, now);
        }
    }

    /// No process came of the order.
    pub(super) fn forget_worker(&mut self, lease: LeaseId) {
        if let Some(worker) = self.workers.remove(&lease) {
            self.close_worker(worker);
        }
    }

    fn close_worker(&mut self, worker: WorkerProcess) {
        if let Some(data) = worker.data {
            self.end(Some(worker.key), data);
        }
        if let Some(process) = worker.process {
            self.pids.remove(&process.what.pid());
            self.orphans.absolve(process.what.pid());
            self.close(Some(process));
        }
        if let Some(errors) = worker.errors {
            self.finish_pool_errors(errors);
        }
        self.orphans.soon(self.now());
    }

    pub(super) fn reap_worker(&mut self, lease: LeaseId) {
        let Some(status) = self.workers.get(&lease).and_then(|w| w.process.as_ref()).and_then(|p| p.what.reap()) else {
            // Who traces it has to end first.
            return self.condemn_worker(lease);
        };
        // Only an idle worker that nobody has told to end has its data socket here.
        if let Some(worker) = self.workers.get(&lease).filter(|w| w.data.is_some()) {
            let (name, text) = (self.pool_name(worker.key), describe_status(status));
            log::notice(&format!("mod_pool: pool {name}: an idle worker died: {text}"));
        }
        self.forget_worker(lease);
        self.feed(Event::WorkerGone { lease, wait_status: status });
    }
}
