//! The leases that this frontend holds, and the requests that wait for one.
//!
//! Runs in: frontend; request threads and the helper thread.  Trusts: the controller.
//! Owns: idle leases, open Wants, obituaries.  Never: holds a lock while it waits for a socket of a worker.

mod queue;

use super::channel::Channel;
use super::closer;
use super::files;
use crate::httpd::parking;
use crate::policy::near::{self, Processor};
use crate::policy::patience::Patience;
use crate::policy::turns::{Micros, Turns};
use crate::sys::socket::{self, PeerState};
use crate::sys::{clock, thread};
use crate::wire::control::{
    Arrival, ControllerMessage, FrontendMessage, LeaseId, LendCount, Queued, Refusal, Returned, WantId,
};
use crate::wire::frame::Exchange;
use queue::{Answer, Turn, Waiter};
pub use queue::{Unserved, Waiting};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An idle lease goes back to the controller after this time: others may need the worker, and only the controller
/// knows when it has been idle for long enough.
const IDLE_BEFORE_RETURN: Micros = 1_000_000;
/// Obituaries kept for requests that have not asked yet.
const MAX_OBITUARIES: usize = 1024;

/// The right to use one worker: our end of its data socket.
#[derive(Debug)]
pub struct Lease {
    /// Which controller it is of: each counts its leases from one.
    era: u32,
    pub id: LeaseId,
    pub lend: LendCount,
    pub pool: u32,
    pub pid: u32,
    /// Shared with the list of busy leases: whoever drops the last share closes it.
    pub socket: Arc<OwnedFd>,
    /// Number of the exchange that comes next.
    pub exchange: Exchange,
    /// Receive timeout that the socket has, to set it only when it changes.
    pub timeout: Duration,
    /// Where its worker says that it ran last.
    pub processor: Processor,
    /// The MPM watches it, or has.
    pub watched: Cell<bool>,
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoLease {
    pub reason: Refusal,
    pub retry_after_s: u32,
    pub text: String,
}

/// A lease and how it came.
#[derive(Debug)]
pub struct Leased {
    pub lease: Lease,
    /// It had to wait for a worker to be forked.
    pub cold: bool,
    /// The controller granted it for this request; it was not idle here.
    pub granted: bool,
}

#[derive(Debug, Default)]
struct PoolDesk {
    /// The one used last is at the back.
    idle: VecDeque<(Micros, Lease)>,
    /// Those that requests have, from the moment that one is taken from here or comes from the controller.
    out: HashMap<(u32, LeaseId), Out>,
    turns: Turns,
    /// Requests without a lease, the oldest first.
    waiting: BTreeMap<Turn, Arc<Waiter>>,
    /// Those of them for which no Want was sent yet.
    unasked: BTreeMap<Turn, Arc<Waiter>>,
    /// Requests that have waited so far.
    numbers: u64,
}

/// A lease that a request has.
#[derive(Debug)]
struct Out {
    /// How the helper thread wakes a request whose worker has died while somebody else holds a copy of its end.
    socket: Arc<OwnedFd>,
    pid: u32,
    lend: LendCount,
    since: Micros,
    /// It goes back when the request is over.
    recalled: bool,
}

impl PoolDesk {
    /// A request that came then waits from now on, behind all that came before.
    fn enqueue(&mut self, pool: u32, arrived: Arrival, now: Micros) -> Arc<Waiter> {
        let asks_at = self.turns.asks_at(arrived, self.out.values().map(|out| out.since).max(), now);
        self.numbers += 1;
        let waiter = Waiter::new(pool, Turn { arrived, number: self.numbers }, asks_at);
        self.waiting.insert(waiter.turn, Arc::clone(&waiter));
        self.unasked.insert(waiter.turn, Arc::clone(&waiter));
        waiter
    }

    /// It waits no more.
    fn dequeue(&mut self, waiter: &Waiter) {
        self.waiting.remove(&waiter.turn);
        self.unasked.remove(&waiter.turn);
    }

    /// The controller's word on who waits. Gives out what is not to stay here.
    fn hear(&mut self, queued: Queued, now: Micros) -> Vec<Lease> {
        self.turns.hear(queued, now);
        if self.turns.may_keep() {
            return Vec::new();
        }
        self.idle.drain(..).map(|(_, lease)| lease).collect()
    }

    /// The one whose worker ran last on the caller's processor, or the one used last.
    fn take_idle(&mut self, own: Option<Processor>) -> Option<Lease> {
        let processors = self.idle.iter().rev().map(|(_, lease)| lease.processor);
        let back = own.map_or(0, |own| near::choose(processors, own));
        let at = self.idle.len().checked_sub(back + 1)?;
        self.idle.remove(at).map(|(_, lease)| lease)
    }

    /// A request has it from now on.
    fn give_out(&mut self, lease: &Lease, now: Micros) {
        let out =
            Out { socket: Arc::clone(&lease.socket), pid: lease.pid, lend: lease.lend, since: now, recalled: false };
        self.out.insert((lease.era, lease.id), out);
    }

    /// No request has it any more; whether it was recalled.
    fn take_in(&mut self, lease: &Lease, now: Micros) -> bool {
        let Some(out) = self.out.remove(&(lease.era, lease.id)) else { return false };
        self.turns.took(now - out.since.min(now), now);
        out.recalled
    }
}

/// All pools of one frontend process.
#[derive(Debug)]
pub struct Desk {
    pools: Vec<Mutex<PoolDesk>>,
    wants: Mutex<HashMap<WantId, Arc<Waiter>>>,
    next_want: AtomicU32,
    obituaries: Mutex<HashMap<LeaseId, i32>>,
    obituary_came: Condvar,
    obituary_patience: Patience,
    /// Counts controllers. Their messages are about leases of the current one.
    era: AtomicU32,
    pub channel: Channel,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked has failed its request; the maps stay usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a worker whose lease nobody used shows that it cannot be used.
fn unfit(lease: &Lease) -> Option<Returned> {
    match socket::peer_state(lease.socket.as_fd()) {
        PeerState::Quiet => None,
        // Whoever speaks unasked gets no request: what it said could pass for the answer.
        PeerState::Speaks => Some(Returned::Violation),
        PeerState::Gone => Some(Returned::Dead),
    }
}

fn returned_idle(lease: &Lease) -> FrontendMessage {
    FrontendMessage::Return { lease: lease.id, lend: lease.lend, how: Returned::Idle }
}

/// It leaves this process.
pub(super) fn unwatch(lease: &Lease) {
    if lease.watched.replace(false) {
        parking::unwatch(lease.socket.as_fd());
    }
}

/// Ends a worker of which the controller knows nothing, or which it cannot be told of.
fn close(lease: Lease) {
    unwatch(&lease);
    // What the worker has left in its queue is closed with the last copy.
    if !socket::end_is_empty(lease.socket.as_fd()) {
        if let Some(socket) = Arc::into_inner(lease.socket) {
            closer::discard(lease.pool, vec![socket]);
        }
    }
}

/// Closes the own copy of a socket in whose queue there may be anything.
fn part_with(lease: Lease) {
    if let Some(socket) = Arc::into_inner(lease.socket) {
        files::close(lease.pool, socket);
    }
}

impl Desk {
    pub fn new(pools: usize, channel: Channel) -> Self {
        Self {
            pools: (0..pools).map(|_| Mutex::default()).collect(),
            wants: Mutex::default(),
            next_want: AtomicU32::new(1),
            obituaries: Mutex::default(),
            obituary_came: Condvar::new(),
            obituary_patience: Patience::default(),
            era: AtomicU32::new(0),
            channel,
        }
    }

    fn pool(&self, index: u32) -> Option<MutexGuard<'_, PoolDesk>> {
        self.pools.get(usize::try_from(index).ok()?).map(lock)
    }

    /// A lease of this pool that is idle here; else a place in the queue, for `patience` at most, by the time at which
    /// the request came.
    pub fn ask(&'static self, pool: u32, arrived: Arrival, patience: Duration) -> Result<Leased, Waiting> {
        loop {
            let now = clock::micros();
            let Some(mut desk) = self.pool(pool) else {
                let waiter = Waiter::new(pool, Turn { arrived, number: 0 }, now);
                return Err(Waiting::new(self, waiter, patience));
            };
            let Some(lease) = desk.take_idle(thread::processor()) else {
                // Under the same lock: a lease that comes back from now on finds the waiter.
                let waiter = desk.enqueue(pool, arrived, now);
                drop(desk);
                return Err(Waiting::new(self, waiter, patience));
            };
            desk.give_out(&lease, now);
            drop(desk);
            match unfit(&lease) {
                None => return Ok(Leased { lease, cold: false, granted: false }),
                Some(how) => self.release(lease, how),
            }
        }
    }

    /// The request is over; the lease goes back, to another request, or stays here for the next one.
    pub fn release(&self, lease: Lease, how: Returned) {
        let now = clock::micros();
        if how == Returned::Idle {
            self.hand_over(lease, now);
        } else {
            if let Some(mut pool) = self.pool(lease.pool) {
                pool.take_in(&lease, now);
            }
            self.give_up(lease, how);
        }
    }

    /// The worker is not to be used any more.
    fn give_up(&self, lease: Lease, how: Returned) {
        unwatch(&lease);
        // After its controller has died the next one gives the number to another worker. This one ends.
        if lease.era == self.era.load(Ordering::Relaxed) {
            lock(&self.obituaries).remove(&lease.id);
            let message = FrontendMessage::Return { lease: lease.id, lend: lease.lend, how };
            if self.channel.send_with(&message, lease.socket.as_fd()) {
                // The controller has a copy, and may have closed it by now: the last one is this one then.
                return part_with(lease);
            }
        }
        close(lease);
    }

    /// Gives a free lease to the request here that has waited longest; with none, keeps it. Gives it back where the
    /// controller is to have it.
    fn hand_over(&self, lease: Lease, now: Micros) {
        let Some(mut pool) = self.pool(lease.pool) else { return self.give_back(lease) };
        let recalled = pool.take_in(&lease, now);
        if lease.era != self.era.load(Ordering::Relaxed) {
            drop(pool);
            return close(lease);
        }
        if recalled {
            drop(pool);
            return self.give_back(lease);
        }
        if !pool.waiting.is_empty() {
            if let Some(how) = unfit(&lease) {
                drop(pool);
                return self.give_up(lease, how);
            }
        }
        let mut leased = Leased { lease, cold: false, granted: false };
        while let Some(waiter) = pool.waiting.first_key_value().map(|(_, waiter)| Arc::clone(waiter)) {
            if !pool.turns.is_next(waiter.turn.arrived) {
                drop(pool);
                // It may have counted on this lease.
                self.send_wants(&waiter);
                return self.give_back(leased.lease);
            }
            pool.dequeue(&waiter);
            pool.give_out(&leased.lease, now);
            match waiter.answer(Answer::Granted(leased)) {
                Err(Answer::Granted(back)) => leased = back,
                Ok(()) => {
                    drop(pool);
                    return waiter.wake();
                }
                Err(_) => return,
            }
            pool.take_in(&leased.lease, now);
        }
        if pool.turns.may_keep() {
            pool.idle.push_back((now, leased.lease));
        } else {
            drop(pool);
            self.give_back(leased.lease);
        }
    }

    /// Sends the Want of a request, and before it those of all requests of this process that came earlier.
    fn send_wants(&self, last: &Arc<Waiter>) {
        let Some(mut pool) = self.pool(last.pool) else { return };
        let mut new = Vec::new();
        // Under this lock all of them wait still. One that gives up later finds its Want, and withdraws it.
        while let Some(entry) = pool.unasked.first_entry().filter(|entry| *entry.key() <= last.turn) {
            let waiter = entry.remove();
            let want = WantId(self.next_want.fetch_add(1, Ordering::Relaxed));
            if waiter.want.set(want).is_ok() {
                lock(&self.wants).insert(want, Arc::clone(&waiter));
                new.push((want, waiter));
            }
        }
        drop(pool);
        for (want, waiter) in new {
            // Not sent: the helper thread sends every open Want again when it has a controller.
            self.channel.send(&FrontendMessage::Want { want, pool: last.pool, arrived: waiter.turn.arrived });
            // Its Cancel may have been sent before its Want, and would find nothing.
            if waiter.is_withdrawn() {
                self.channel.send(&FrontendMessage::Cancel { want });
            }
        }
    }

    /// Where it cannot be sent, its worker ends with the last copy of the socket: the controller, which may need the
    /// place at once, learns it from that.
    fn give_back(&self, lease: Lease) {
        unwatch(&lease);
        self.channel.send_with(&returned_idle(&lease), lease.socket.as_fd());
        part_with(lease);
    }

    /// How the worker of this lease ended (as of waitpid(2)), if the controller says so in time.
    pub fn obituary(&self, lease: &Lease) -> Option<i32> {
        if lease.era != self.era.load(Ordering::Relaxed) {
            return None;
        }
        let lease = lease.id;
        let deadline = Instant::now() + self.obituary_patience.now(clock::micros());
        let mut map = lock(&self.obituaries);
        loop {
            if let Some(status) = map.remove(&lease) {
                return Some(status);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.obituary_patience.lost(clock::micros());
                return None;
            }
            map = self.obituary_came.wait_timeout(map, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Helper thread: what the controller said. Log lines are the caller's.
    pub fn hear(&self, message: ControllerMessage, fd: Option<OwnedFd>) {
        match message {
            ControllerMessage::Grant { want, pool, lease, lend, pid, cold, queued } => {
                self.contended(pool, queued);
                let Some(socket) = fd else {
                    // No descriptor left in this process (pitfall: MSG_CTRUNC). Wanting again would not help.
                    let text = "this frontend process has no file descriptor left".to_owned();
                    self.refuse(want, NoLease { reason: Refusal::QueueFull, retry_after_s: 1, text });
                    return;
                };
                self.grant(want, pool, (lease, lend), pid, cold, socket);
            }
            ControllerMessage::Refuse { want, reason, retry_after_s, text } => {
                self.refuse(want, NoLease { reason, retry_after_s, text });
            }
            ControllerMessage::Recall { lease, lend } => self.recall(lease, lend),
            ControllerMessage::Contended { pool, queued } => self.contended(pool, queued),
            ControllerMessage::Obituary { lease, wait_status, .. } => self.bury(lease, wait_status),
            ControllerMessage::Log { .. } => {}
        }
    }

    fn grant(&self, want: WantId, pool: u32, name: (LeaseId, LendCount), pid: u32, cold: bool, socket: OwnedFd) {
        let (id, lend) = name;
        let socket = Arc::new(socket);
        let era = self.era.load(Ordering::Relaxed);
        let now = clock::micros();
        let waiter = lock(&self.wants).remove(&want);
        // Each lending counts from another number, so that frames of an earlier one are recognised.
        let exchange = Exchange(lend.0.wrapping_shl(16) | 1);
        let lease = Lease {
            era,
            id,
            lend,
            pool,
            pid,
            socket,
            exchange,
            timeout: Duration::ZERO,
            processor: near::UNKNOWN,
            watched: Cell::new(false),
        };
        // Withdrawn, and the Cancel is on its way: back at once.
        let Some(waiter) = waiter else { return self.give_back(lease) };
        if let Some(mut pool) = self.pool(pool) {
            pool.give_out(&lease, now);
        }
        match waiter.answer(Answer::Granted(Leased { lease, cold, granted: true })) {
            Ok(()) => waiter.wake(),
            Err(Answer::Granted(Leased { lease, .. })) => self.hand_over(lease, now),
            Err(_) => {}
        }
    }

    fn refuse(&self, want: WantId, why: NoLease) {
        let waiter = lock(&self.wants).remove(&want);
        if let Some(waiter) = waiter {
            // One that waits no more does not need it.
            if waiter.answer(Answer::Refused(why)).is_ok() {
                waiter.wake();
            }
        }
    }

    /// The controller wants a lease back: at once if it is idle, else after its request.
    fn recall(&self, id: LeaseId, lend: LendCount) {
        let era = self.era.load(Ordering::Relaxed);
        for pool in &self.pools {
            let mut pool = lock(pool);
            if let Some(out) = pool.out.get_mut(&(era, id)).filter(|out| out.lend == lend) {
                out.recalled = true;
                return;
            }
            if let Some(at) = pool.idle.iter().position(|(_, l)| l.id == id && l.lend == lend) {
                if let Some((_, lease)) = pool.idle.remove(at) {
                    drop(pool);
                    self.give_back(lease);
                }
                return;
            }
        }
    }

    fn contended(&self, index: u32, queued: Queued) {
        let Some(mut pool) = self.pool(index) else { return };
        let back = pool.hear(queued, clock::micros());
        drop(pool);
        for lease in back {
            self.give_back(lease);
        }
    }

    /// A worker has ended.
    fn bury(&self, id: LeaseId, wait_status: i32) {
        let era = self.era.load(Ordering::Relaxed);
        for pool in &self.pools {
            let mut pool = lock(pool);
            if let Some(at) = pool.idle.iter().position(|(_, l)| l.id == id) {
                if let Some((_, lease)) = pool.idle.remove(at) {
                    drop(pool);
                    self.give_up(lease, Returned::Dead);
                    return;
                }
            }
            if let Some(out) = pool.out.get(&(era, id)) {
                socket::shutdown(out.socket.as_fd());
                break;
            }
        }
        let mut map = lock(&self.obituaries);
        if map.len() >= MAX_OBITUARIES {
            map.clear();
        }
        map.insert(id, wait_status);
        self.obituary_came.notify_all();
    }

    /// Helper thread, about once a second: leases that were idle for long enough go back. One that the kernel does not
    /// take now stays: nobody waits for it.
    pub fn return_idle(&self) {
        let now = clock::micros();
        for pool in &self.pools {
            let mut back = Vec::new();
            let mut pool = lock(pool);
            while pool.idle.front().is_some_and(|(since, _)| now - (*since).min(now) >= IDLE_BEFORE_RETURN) {
                back.extend(pool.idle.pop_front());
            }
            drop(pool);
            for (_, lease) in back {
                unwatch(&lease);
                if self.channel.send_unless_crowded(&returned_idle(&lease), lease.socket.as_fd()) {
                    part_with(lease);
                } else {
                    self.hand_over(lease, now);
                }
            }
        }
    }

    /// The controller has died: idle leases are closed (their workers end), open Wants will be sent again. Returns pid
    /// and pool of each worker that still carries a request.
    pub fn controller_lost(&self) -> Vec<(u32, u32)> {
        self.era.fetch_add(1, Ordering::Relaxed);
        lock(&self.obituaries).clear();
        let mut in_flight = Vec::new();
        for (index, pool) in (0..).zip(&self.pools) {
            let mut pool = lock(pool);
            let idle = std::mem::take(&mut pool.idle);
            pool.turns.forget();
            in_flight.extend(pool.out.values().map(|out| (out.pid, index)));
            drop(pool);
            idle.into_iter().for_each(|(_, lease)| close(lease));
        }
        in_flight
    }

    /// There is a controller again: every Want that has no answer is sent to it.
    pub fn want_again(&self) {
        let mut open: Vec<_> = lock(&self.wants).iter().map(|(id, w)| (w.turn.arrived, *id, w.pool)).collect();
        open.sort_unstable_by_key(|(arrived, ..)| *arrived);
        for (arrived, want, pool) in open {
            self.channel.send(&FrontendMessage::Want { want, pool, arrived });
        }
    }
}
