//! Discards what tenants may have filled: the ends of leases and channels, and what frontends got from workers.
//!
//! Who closes such a socket last frees what lies in it, and may sleep over that for as long as a tenant likes. So a child
//! of its own closes it, see `sys::discard`. What is known to be empty is closed here.
//!
//! Runs in: controller.  Trusts: the kernel.  Owns: what waits to be discarded, the children that do it.
//! Never: closes the last copy of a socket in which something may lie unread, lets a pool that is slow hold up others.

use super::{log, Controller, Source, Watched};
use crate::policy::{Event, Millis, PoolKey};
use crate::sys::process::PidFd;
use crate::sys::{discard, socket};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

/// How long a descriptor waits. Who sent it to us has closed its own copy by then, and was not the last.
const DELAY: Millis = 100;
/// Most children started at a time; what else is due waits for the next time.
const MOST_AT_ONCE: usize = 16;
/// Most children that close for one pool at the same time.
const MOST_OF_POOL: usize = 2;
/// So many descriptors of one pool get another child all the same.
const MANY: usize = 1024;
/// A child that has not ended after this time is held up by what it closes. Lingering holds up none.
const STUCK: Millis = 5_000;
/// At most one line about a pool is logged in this time.
const NOTE_INTERVAL: Millis = 60_000;
/// How soon we try again when no child can be forked.
const RETRY: Millis = 1_000;

/// Stands for the name of a pool that is not known.
const UNKNOWN: &str = "?";
/// For the log, in the reason why a pool is throttled.
const STUCK_TEXT: &str = "descriptors that its processes have sent cannot be closed";

#[derive(Debug)]
struct Doomed {
    fd: OwnedFd,
    /// The name of the pool that may have filled it, or [`UNKNOWN`].
    pool: String,
    due: Millis,
}

/// A child that closes.
#[derive(Debug)]
struct Closer {
    process: Watched<PidFd>,
    pool: String,
    began: Millis,
    stuck: bool,
}

#[derive(Debug, Default)]
pub(super) struct Closers {
    /// In order of time.
    waiting: VecDeque<Doomed>,
    /// By pid.
    running: HashMap<u32, Closer>,
    /// Not before this time is looked again whether something is due.
    next: Millis,
    /// When which pool was last found stuck.
    noted: HashMap<String, Millis>,
    /// When it was last said that no child can be forked.
    failure_noted: Option<Millis>,
}

impl Closers {
    pub(super) fn deadline(&self) -> Option<Millis> {
        let due = self.waiting.front().map(|d| d.due.max(self.next));
        let stuck = self.running.values().filter(|c| !c.stuck).map(|c| c.began + STUCK).min();
        due.into_iter().chain(stuck).min()
    }

    fn is_stuck(&self, pool: &str) -> bool {
        self.running.values().any(|c| c.stuck && c.pool == pool)
    }

    /// Takes out what is due and may be closed now, by pool.
    fn take_due(&mut self, now: Millis) -> BTreeMap<String, Vec<OwnedFd>> {
        let mut due: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
        let mut count: HashMap<String, usize> = HashMap::new();
        for doomed in self.waiting.iter().take_while(|d| d.due <= now) {
            *count.entry(doomed.pool.clone()).or_default() += 1;
        }
        let running = |pool: &str| self.running.values().filter(|c| c.pool == pool).count();
        count.retain(|pool, n| running(pool) < MOST_OF_POOL || *n >= MANY);
        for doomed in std::mem::take(&mut self.waiting) {
            let room = due.contains_key(&doomed.pool) || due.len() < MOST_AT_ONCE;
            if doomed.due <= now && room && count.contains_key(&doomed.pool) {
                due.entry(doomed.pool).or_default().push(doomed.fd);
            } else {
                self.waiting.push_back(doomed);
            }
        }
        due
    }
}

impl Controller {
    /// Ends a connection of ours and closes this end of it, here if it is empty.
    pub(super) fn end(&mut self, key: Option<PoolKey>, fd: OwnedFd) {
        if !socket::end_is_empty(fd.as_fd()) {
            self.discard(key, [fd]);
        }
    }

    /// Has descriptors closed, soon and elsewhere. They are sockets: frontends send no other.
    pub(super) fn discard(&mut self, key: Option<PoolKey>, fds: impl IntoIterator<Item = OwnedFd>) {
        let pool = key.map_or(UNKNOWN, |key| self.pool_name(key)).to_owned();
        let due = self.now() + DELAY;
        self.closers.waiting.extend(fds.into_iter().map(|fd| Doomed { fd, pool: pool.clone(), due }));
    }

    /// Starts children for what is due, and looks whether one is stuck.
    pub(super) fn run_closers(&mut self) {
        let now = self.now();
        if now >= self.closers.next && self.closers.waiting.front().is_some_and(|d| d.due <= now) {
            let due = self.closers.take_due(now);
            // Nothing but what is held back: that has time.
            self.closers.next = now + if due.is_empty() { RETRY } else { DELAY };
            for (pool, fds) in due {
                self.start_closer(pool, fds, now);
            }
        }
        let overdue = |c: &Closer| !c.stuck && now >= c.began + STUCK;
        let stuck: Vec<u32> = self.closers.running.iter().filter(|(_, c)| overdue(c)).map(|(pid, _)| *pid).collect();
        for pid in stuck {
            self.closer_is_stuck(pid, now);
        }
    }

    fn start_closer(&mut self, pool: String, fds: Vec<OwnedFd>, now: Millis) {
        let pid = match discard::close_in_child(fds) {
            Ok(pid) => pid,
            Err((fds, e)) => {
                if self.closers.failure_noted.is_none_or(|at| now >= at + NOTE_INTERVAL) {
                    self.closers.failure_noted = Some(now);
                    log::error(&format!("mod_pool: no process to close descriptors can be forked: {e}"));
                }
                for fd in fds {
                    self.closers.waiting.push_front(Doomed { fd, pool: pool.clone(), due: now });
                }
                self.closers.next = now + RETRY;
                return;
            }
        };
        // One that cannot be watched is found as an orphan: to kill it does no harm.
        if let Ok(process) = self.watch_child(pid, Source::Closer(pid)) {
            self.closers.running.insert(pid, Closer { process, pool, began: now, stuck: false });
        }
    }

    pub(super) fn reap_closer(&mut self, pid: u32) {
        if self.closers.running.get(&pid).is_some_and(|c| c.process.what.reap().is_some()) {
            self.pids.remove(&pid);
            let closer = self.closers.running.remove(&pid);
            self.close(closer.map(|c| c.process));
        }
    }

    /// What it closes waits for somebody, a file system of the tenant's own above all. With the pool's processes its
    /// server ends; until then, the pool gets no other.
    fn closer_is_stuck(&mut self, pid: u32, now: Millis) {
        let Some(closer) = self.closers.running.get_mut(&pid) else {
            return;
        };
        closer.stuck = true;
        let pool = closer.pool.clone();
        self.closers.noted.retain(|_, at| now < *at + NOTE_INTERVAL);
        if !self.closers.noted.contains_key(&pool) {
            self.closers.noted.insert(pool.clone(), now);
            log::error(&format!(
                "mod_pool: POOL118: pool {pool}: descriptors that its processes have sent cannot be closed (a file \
                 system of its own?): its processes are killed, and no other is started while process {pid} closes them"
            ));
        }
        if pool == UNKNOWN {
            return;
        }
        let of_pool = |key: PoolKey| self.pool_name(key) == pool;
        let zygotes: Vec<_> = self.zygotes.iter().filter(|(_, z)| of_pool(z.key)).map(|(id, _)| *id).collect();
        let workers: Vec<_> = self.workers.iter().filter(|(_, w)| of_pool(w.key)).map(|(lease, _)| *lease).collect();
        for zygote in zygotes {
            self.feed(Event::ZygoteFailed { zygote, text: STUCK_TEXT.into() });
        }
        for lease in workers {
            self.kill_worker(lease);
        }
    }

    /// Why the pool may start no process now.
    pub(super) fn held_back(&self, key: PoolKey) -> std::io::Result<()> {
        if self.closers.is_stuck(self.pool_name(key)) {
            return Err(std::io::Error::other(STUCK_TEXT));
        }
        Ok(())
    }

    /// At the end of the controller: one child closes everything, and may outlive it.
    pub(super) fn discard_sockets(&mut self) {
        let leases = self.workers.values_mut().filter_map(|w| w.data.take());
        let channels = self.zygotes.values_mut().filter_map(|z| z.channel.take()).map(|c| c.what);
        let frontends = self.frontends.drain().map(|(_, f)| f.channel.what);
        let connectors = self.children.drain().map(|(_, child)| child.into_connector());
        let waits = self.until_ready.drain().map(|(_, end)| end);
        let all: Vec<OwnedFd> = leases.chain(channels).chain(frontends).chain(waits).collect();
        // The parent has copies that the next controller may need: these are not shut down.
        let mut fds: Vec<OwnedFd> = connectors.collect();
        for fd in all {
            self.end(None, fd);
        }
        fds.extend(std::mem::take(&mut self.closers.waiting).into_iter().map(|d| d.fd));
        if !fds.is_empty() {
            // Where that fails, our own end closes them.
            if let Err((fds, _)) = discard::close_in_child(fds) {
                std::mem::forget(fds);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doomed(pool: &str, due: Millis) -> Doomed {
        let (fd, _) = socket::seqpacket_pair().expect("pair");
        Doomed { fd, pool: pool.into(), due }
    }

    #[test]
    fn what_is_due_is_taken_by_pool() {
        let mut closers = Closers::default();
        assert_eq!(closers.deadline(), None);
        closers.waiting.extend([doomed("a", 1), doomed("b", 1), doomed("a", 2), doomed("a", 9)]);
        assert_eq!(closers.deadline(), Some(1));
        let due = closers.take_due(5);
        assert_eq!(due.iter().map(|(pool, fds)| (pool.as_str(), fds.len())).collect::<Vec<_>>(), [("a", 2), ("b", 1)]);
        assert_eq!((closers.waiting.len(), closers.deadline()), (1, Some(9)));
    }

    #[test]
    fn not_too_many_children_at_a_time() {
        let mut closers = Closers::default();
        closers.waiting.extend((0..2 * MOST_AT_ONCE).map(|i| doomed(&i.to_string(), 1)));
        assert_eq!(closers.take_due(1).len(), MOST_AT_ONCE);
        assert_eq!(closers.take_due(1).len(), MOST_AT_ONCE);
        assert_eq!(closers.waiting.len(), 0);
    }

    #[test]
    fn a_pool_whose_children_do_not_end_waits() {
        let mut closers = Closers::default();
        for token in 0..2 {
            let what = PidFd::open(std::process::id()).expect("pidfd");
            let process = Watched { token, what };
            let pid = u32::try_from(token).expect("small");
            closers.running.insert(pid, Closer { process, pool: "a".into(), began: 0, stuck: true });
        }
        assert!(closers.is_stuck("a") && !closers.is_stuck("b"));
        closers.waiting.extend([doomed("a", 1), doomed("b", 1)]);
        assert_eq!(closers.take_due(1).into_keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(closers.waiting.len(), 1);
        closers.waiting.extend((0..MANY).map(|_| doomed("a", 1)));
        assert_eq!(closers.take_due(1)["a"].len(), MANY + 1);
    }
}
