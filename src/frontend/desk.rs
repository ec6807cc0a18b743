//! The leases that this frontend holds, and the requests that wait for one.
//!
//! Runs in: frontend; request threads and the helper thread.  Trusts: the controller.
//! Owns: idle leases, open Wants, obituaries.  Never: holds a lock while it waits for a socket of a worker.

use super::channel::Channel;
use crate::sys::socket::{self, PeerState};
use crate::wire::control::{ControllerMessage, FrontendMessage, LeaseId, LendCount, Refusal, Returned, WantId};
use crate::wire::frame::Exchange;
use once_cell::sync::OnceCell;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An idle lease goes back to the controller after this time: others may need the worker, and only the controller
/// knows when it has been idle for long enough.
const IDLE_BEFORE_RETURN: Duration = Duration::from_secs(1);
/// How long a request waits for the controller's word on how its worker died.
const OBITUARY_PATIENCE: Duration = Duration::from_millis(50);
/// How much longer than `PoolQueueTimeout` a request waits for the controller's own refusal.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(3);
/// How often a request that waits looks whether its client is still there.
const CLIENT_CHECK: Duration = Duration::from_millis(200);
/// A client that only stopped sending may want its answer nevertheless (`nc -N`); one that has waited this long is
/// more likely gone, and would have the pool work for nobody.
const HALF_CLOSED_PATIENCE: Duration = Duration::from_secs(2);
/// While more requests wait than the pool has workers, a lease goes from hand to hand in this process for so long after
/// it was granted; then the controller gives it to whoever's turn it is.
const SLICE: Duration = Duration::from_millis(20);
/// How long a request waits for a lease that this process has before it asks the controller for another.
const LOCAL_PATIENCE: Duration = Duration::from_millis(10);
/// A pool that was contended so recently has no worker to spare.
const STILL_CONTENDED: Duration = Duration::from_millis(100);
/// A request that took longer makes the pool slow for [`SLOW_FOR`]: its leases go back after each request then, as
/// whoever is passed over would wait for long.
const BRISK: Duration = Duration::from_millis(50);
const SLOW_FOR: Duration = Duration::from_millis(500);
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
    /// When the controller granted it.
    granted: Instant,
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoLease {
    pub reason: Refusal,
    pub retry_after_s: u32,
    pub text: String,
}

/// The client did not wait.
#[derive(Debug)]
struct ClientGone;

/// How waiting for a lease ended without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unserved {
    Refused(NoLease),
    /// The client did not wait for it.
    ClientGone,
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
    idle: VecDeque<(Instant, Lease)>,
    contended: bool,
    /// Until when it counts as contended although nobody waits at the controller.
    contended_until: Option<Instant>,
    slow_until: Option<Instant>,
    /// Leases that carry a request.
    busy: usize,
    /// Requests without a lease, the oldest first.
    waiting: VecDeque<Arc<Waiter>>,
    /// Leases to give back when their request is over, and which lending is meant.
    recalled: HashMap<LeaseId, LendCount>,
}

impl PoolDesk {
    /// A lease is likely to come free here before the controller has one to grant.
    fn may_wait_here(&self, now: Instant) -> bool {
        self.busy > 0 && is_ahead(self.contended_until, now) && self.is_brisk(now)
    }

    /// A lease that has come free may go to the next request of this process.
    fn may_hand_over(&self, granted: Instant, now: Instant) -> bool {
        !self.contended || (now.duration_since(granted) < SLICE && self.is_brisk(now))
    }

    fn is_brisk(&self, now: Instant) -> bool {
        !is_ahead(self.slow_until, now)
    }
}

fn is_ahead(time: Option<Instant>, now: Instant) -> bool {
    time.is_some_and(|time| time > now)
}

#[derive(Debug)]
enum Answer {
    Open,
    Granted(Leased),
    Refused(NoLease),
    /// The waiter has given up; a grant that comes still goes back.
    Withdrawn,
}

#[derive(Debug)]
struct Waiter {
    pool: u32,
    /// Its Want, once that is sent.
    want: OnceCell<WantId>,
    answer: Mutex<Answer>,
    answered: Condvar,
}

impl Waiter {
    fn new(pool: u32) -> Arc<Self> {
        Arc::new(Self { pool, want: OnceCell::new(), answer: Mutex::new(Answer::Open), answered: Condvar::new() })
    }

    /// Ends its waiting; gives the answer back when it waits no more.
    fn answer(&self, with: Answer) -> Result<(), Answer> {
        let mut answer = lock(&self.answer);
        if !matches!(*answer, Answer::Open) {
            return Err(with);
        }
        *answer = with;
        self.answered.notify_one();
        Ok(())
    }
}

/// A lease that carries a request.
#[derive(Debug)]
struct Busy {
    socket: Arc<OwnedFd>,
    pid: u32,
    pool: u32,
    lend: LendCount,
    since: Instant,
}

/// All pools of one frontend process.
#[derive(Debug)]
pub struct Desk {
    pools: Vec<Mutex<PoolDesk>>,
    wants: Mutex<HashMap<WantId, Arc<Waiter>>>,
    next_want: AtomicU32,
    obituaries: Mutex<HashMap<LeaseId, i32>>,
    obituary_came: Condvar,
    /// Sockets of leases that carry a request: how the helper thread wakes a request whose worker has died while
    /// somebody else holds a copy of the worker's end.
    busy: Mutex<HashMap<(u32, LeaseId), Busy>>,
    /// Counts controllers. Their messages are about leases of the current one.
    era: AtomicU32,
    pub channel: Channel,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked has failed its request; the maps stay usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    pub fn new(pools: usize, channel: Channel) -> Self {
        Self {
            pools: (0..pools).map(|_| Mutex::default()).collect(),
            wants: Mutex::default(),
            next_want: AtomicU32::new(1),
            obituaries: Mutex::default(),
            obituary_came: Condvar::new(),
            busy: Mutex::default(),
            era: AtomicU32::new(0),
            channel,
        }
    }

    fn pool(&self, index: u32) -> Option<MutexGuard<'_, PoolDesk>> {
        self.pools.get(usize::try_from(index).ok()?).map(lock)
    }

    /// A lease of this pool: one that is idle here, else one that the controller grants within `patience`. `has_left`
    /// says whether the client is gone; its argument, whether one that stopped sending counts as gone.
    pub fn acquire(&self, pool: u32, patience: Duration, has_left: &dyn Fn(bool) -> bool) -> Result<Leased, Unserved> {
        let began = Instant::now();
        let (waiter, here) = loop {
            let Some(mut desk) = self.pool(pool) else { break (Waiter::new(pool), false) };
            let Some((_, lease)) = desk.idle.pop_back() else {
                // Under the same lock: a lease that comes back from now on finds the waiter.
                let waiter = Waiter::new(pool);
                desk.waiting.push_back(Arc::clone(&waiter));
                break (waiter, desk.may_wait_here(began));
            };
            drop(desk);
            // Whoever speaks unasked gets no request: what it said could pass for the answer.
            match socket::peer_state(lease.socket.as_fd()) {
                PeerState::Quiet => return Ok(Leased { lease, cold: false, granted: false }),
                PeerState::Speaks => self.release(lease, Returned::Violation),
                PeerState::Gone => self.release(lease, Returned::Dead),
            }
        };
        let answer = self.wait(&waiter, began, if here { LOCAL_PATIENCE } else { Duration::ZERO }, patience, has_left);
        if let Some(want) = waiter.want.get() {
            lock(&self.wants).remove(want);
        }
        if let Some(mut p) = self.pool(pool) {
            p.waiting.retain(|other| !Arc::ptr_eq(other, &waiter));
        }
        match answer {
            Ok(Answer::Granted(leased)) => {
                if !leased.granted {
                    self.cancel(&waiter);
                }
                Ok(leased)
            }
            Ok(Answer::Refused(why)) => Err(Unserved::Refused(why)),
            Ok(Answer::Open | Answer::Withdrawn) => {
                self.cancel(&waiter);
                let text = "the controller did not answer".to_owned();
                Err(Unserved::Refused(NoLease { reason: Refusal::QueueTimeout, retry_after_s: 5, text }))
            }
            Err(ClientGone) => {
                self.cancel(&waiter);
                Err(Unserved::ClientGone)
            }
        }
    }

    /// Until the waiter has an answer, or is withdrawn. Its Want is sent once it has waited for `here`.
    fn wait(
        &self,
        waiter: &Arc<Waiter>,
        began: Instant,
        here: Duration,
        patience: Duration,
        has_left: &dyn Fn(bool) -> bool,
    ) -> Result<Answer, ClientGone> {
        let deadline = began + patience + REFUSAL_PATIENCE;
        let mut answer = lock(&waiter.answer);
        while matches!(*answer, Answer::Open) {
            let waited = began.elapsed();
            if waiter.want.get().is_none() && waited >= here {
                // The answer may come before the lock is taken again.
                drop(answer);
                self.send_want(waiter);
                answer = lock(&waiter.answer);
                continue;
            }
            let until = if waiter.want.get().is_none() { here - waited } else { CLIENT_CHECK };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let (again, timeout) =
                waiter.answered.wait_timeout(answer, left.min(until)).unwrap_or_else(PoisonError::into_inner);
            answer = again;
            let open = matches!(*answer, Answer::Open);
            if open && timeout.timed_out() && until == CLIENT_CHECK && has_left(began.elapsed() >= HALF_CLOSED_PATIENCE)
            {
                *answer = Answer::Withdrawn;
                return Err(ClientGone);
            }
        }
        Ok(std::mem::replace(&mut *answer, Answer::Withdrawn))
    }

    fn send_want(&self, waiter: &Arc<Waiter>) {
        let want = WantId(self.next_want.fetch_add(1, Ordering::Relaxed));
        if waiter.want.set(want).is_ok() {
            lock(&self.wants).insert(want, Arc::clone(waiter));
            // Not sent: the helper thread sends every open Want again when it has a controller.
            self.channel.send(&FrontendMessage::Want { want, pool: waiter.pool });
        }
    }

    fn cancel(&self, waiter: &Waiter) {
        if let Some(want) = waiter.want.get() {
            self.channel.send(&FrontendMessage::Cancel { want: *want });
        }
    }

    /// The lease carries a request from now on.
    pub fn begin(&self, lease: &Lease) {
        if let Some(mut pool) = self.pool(lease.pool) {
            pool.busy += 1;
        }
        let busy = Busy {
            socket: Arc::clone(&lease.socket),
            pid: lease.pid,
            pool: lease.pool,
            lend: lease.lend,
            since: Instant::now(),
        };
        lock(&self.busy).insert((lease.era, lease.id), busy);
    }

    /// The request is over; the lease goes back, to another request, or stays here for the next one.
    pub fn release(&self, lease: Lease, how: Returned) {
        let now = Instant::now();
        let was_busy = lock(&self.busy).remove(&(lease.era, lease.id));
        if let (Some(busy), Some(mut pool)) = (was_busy, self.pool(lease.pool)) {
            pool.busy = pool.busy.saturating_sub(1);
            if now.duration_since(busy.since) > BRISK {
                pool.slow_until = Some(now + SLOW_FOR);
            }
        }
        if lease.era != self.era.load(Ordering::Relaxed) {
            // Its controller has died, and the next one gives the number to another worker. This one ends.
            return;
        }
        if how != Returned::Idle {
            self.give_up(lease, how);
        } else if let Some(lease) = self.hand_over(lease, now) {
            self.give_back(lease);
        }
    }

    fn give_up(&self, lease: Lease, how: Returned) {
        lock(&self.obituaries).remove(&lease.id);
        if let Some(mut pool) = self.pool(lease.pool) {
            pool.recalled.remove(&lease.id);
        }
        let message = FrontendMessage::Return { lease: lease.id, lend: lease.lend, how };
        drop(lease);
        self.channel.send(&message);
    }

    /// Gives a free lease to the request here that has waited longest; with none, keeps it. Returns it when the
    /// controller is to have it.
    fn hand_over(&self, lease: Lease, now: Instant) -> Option<Lease> {
        let Some(mut pool) = self.pool(lease.pool) else { return Some(lease) };
        if lease.era != self.era.load(Ordering::Relaxed) {
            return None;
        }
        if pool.recalled.remove(&lease.id) == Some(lease.lend) || !pool.may_hand_over(lease.granted, now) {
            return Some(lease);
        }
        if !pool.waiting.is_empty() {
            let how = match socket::peer_state(lease.socket.as_fd()) {
                PeerState::Quiet => None,
                PeerState::Speaks => Some(Returned::Violation),
                PeerState::Gone => Some(Returned::Dead),
            };
            if let Some(how) = how {
                drop(pool);
                self.give_up(lease, how);
                return None;
            }
        }
        let mut leased = Leased { lease, cold: false, granted: false };
        while let Some(waiter) = pool.waiting.pop_front() {
            match waiter.answer(Answer::Granted(leased)) {
                Err(Answer::Granted(back)) => leased = back,
                _ => return None,
            }
        }
        if pool.contended {
            return Some(leased.lease);
        }
        pool.idle.push_back((now, leased.lease));
        None
    }

    fn give_back(&self, lease: Lease) {
        let message = FrontendMessage::Return { lease: lease.id, lend: lease.lend, how: Returned::Idle };
        self.channel.send_with(&message, lease.socket.as_fd());
    }

    /// How the worker of this lease ended (as of waitpid(2)), if the controller says so in time.
    pub fn obituary(&self, lease: &Lease) -> Option<i32> {
        if lease.era != self.era.load(Ordering::Relaxed) {
            return None;
        }
        let lease = lease.id;
        let deadline = Instant::now() + OBITUARY_PATIENCE;
        let mut map = lock(&self.obituaries);
        loop {
            if let Some(status) = map.remove(&lease) {
                return Some(status);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            map = self.obituary_came.wait_timeout(map, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Helper thread: what the controller said. Log lines are the caller's.
    pub fn hear(&self, message: ControllerMessage, fd: Option<OwnedFd>) {
        match message {
            ControllerMessage::Grant { want, lease, lend, pid, cold, contended } => {
                let Some(socket) = fd else {
                    // No descriptor left in this process (pitfall: MSG_CTRUNC). Wanting again would not help.
                    let text = "this frontend process has no file descriptor left".to_owned();
                    self.refuse(want, NoLease { reason: Refusal::QueueFull, retry_after_s: 1, text });
                    return;
                };
                self.grant(want, (lease, lend), pid, (cold, contended), socket);
            }
            ControllerMessage::Refuse { want, reason, retry_after_s, text } => {
                self.refuse(want, NoLease { reason, retry_after_s, text });
            }
            ControllerMessage::Recall { lease, lend } => self.recall(lease, lend),
            ControllerMessage::Contended { pool, on } => self.contended(pool, on),
            ControllerMessage::Obituary { lease, wait_status, .. } => self.bury(lease, wait_status),
            ControllerMessage::Log { .. } => {}
        }
    }

    fn grant(&self, want: WantId, name: (LeaseId, LendCount), pid: u32, how: (bool, bool), socket: OwnedFd) {
        let (id, lend) = name;
        let (cold, contended) = how;
        let socket = Arc::new(socket);
        let era = self.era.load(Ordering::Relaxed);
        let now = Instant::now();
        let waiter = lock(&self.wants).get(&want).cloned();
        // Each lending counts from another number, so that frames of an earlier one are recognised.
        let exchange = Exchange(lend.0.wrapping_shl(16) | 1);
        // Withdrawn, and the Cancel is on its way: back at once. The pool is not needed for that.
        let pool = waiter.as_ref().map_or(u32::MAX, |w| w.pool);
        let lease = Lease { era, id, lend, pool, pid, socket, exchange, timeout: Duration::ZERO, granted: now };
        let Some(waiter) = waiter else { return self.give_back(lease) };
        if contended {
            if let Some(mut pool) = self.pool(pool) {
                pool.contended = true;
                pool.contended_until = Some(now + STILL_CONTENDED);
            }
        }
        if let Err(Answer::Granted(Leased { lease, .. })) =
            waiter.answer(Answer::Granted(Leased { lease, cold, granted: true }))
        {
            if let Some(lease) = self.hand_over(lease, now) {
                self.give_back(lease);
            }
        }
    }

    fn refuse(&self, want: WantId, why: NoLease) {
        if let Some(waiter) = lock(&self.wants).get(&want).cloned() {
            // One that waits no more does not need it.
            let _ = waiter.answer(Answer::Refused(why));
        }
    }

    fn recall(&self, id: LeaseId, lend: LendCount) {
        let busy = lock(&self.busy).get(&(self.era.load(Ordering::Relaxed), id)).map(|b| (b.pool, b.lend));
        if let Some(mut pool) = busy.filter(|(_, l)| *l == lend).and_then(|(p, _)| self.pool(p)) {
            pool.recalled.insert(id, lend);
        }
        // Looked for second: it may have become idle meanwhile.
        for pool in &self.pools {
            let mut pool = lock(pool);
            if let Some(at) = pool.idle.iter().position(|(_, l)| l.id == id && l.lend == lend) {
                pool.recalled.remove(&id);
                if let Some((_, lease)) = pool.idle.remove(at) {
                    drop(pool);
                    self.give_back(lease);
                    return;
                }
            }
        }
    }

    fn contended(&self, index: u32, on: bool) {
        let Some(mut pool) = self.pool(index) else { return };
        pool.contended = on;
        pool.contended_until = Some(Instant::now() + STILL_CONTENDED);
        let back: Vec<_> = if on { pool.idle.drain(..).collect() } else { Vec::new() };
        drop(pool);
        for (_, lease) in back {
            self.give_back(lease);
        }
    }

    fn bury(&self, id: LeaseId, wait_status: i32) {
        for pool in &self.pools {
            let mut pool = lock(pool);
            pool.recalled.remove(&id);
            if let Some(at) = pool.idle.iter().position(|(_, l)| l.id == id) {
                if let Some((_, lease)) = pool.idle.remove(at) {
                    drop(pool);
                    let message = FrontendMessage::Return { lease: id, lend: lease.lend, how: Returned::Dead };
                    self.channel.send(&message);
                    return;
                }
            }
        }
        if let Some(busy) = lock(&self.busy).get(&(self.era.load(Ordering::Relaxed), id)) {
            socket::shutdown(busy.socket.as_fd());
        }
        let mut map = lock(&self.obituaries);
        if map.len() >= MAX_OBITUARIES {
            map.clear();
        }
        map.insert(id, wait_status);
        self.obituary_came.notify_all();
    }

    /// Helper thread, about once a second: leases that were idle for long enough go back.
    pub fn return_idle(&self) {
        let now = Instant::now();
        for pool in &self.pools {
            let mut back = Vec::new();
            let mut pool = lock(pool);
            while pool.idle.front().is_some_and(|(since, _)| now.duration_since(*since) >= IDLE_BEFORE_RETURN) {
                back.extend(pool.idle.pop_front());
            }
            drop(pool);
            for (_, lease) in back {
                self.give_back(lease);
            }
        }
    }

    /// The controller has died: idle leases are closed (their workers end), open Wants will be sent again. Returns pid
    /// and pool of each worker that still carries a request.
    pub fn controller_lost(&self) -> Vec<(u32, u32)> {
        self.era.fetch_add(1, Ordering::Relaxed);
        lock(&self.obituaries).clear();
        for pool in &self.pools {
            let mut pool = lock(pool);
            pool.idle.clear();
            pool.recalled.clear();
            pool.contended = false;
            pool.contended_until = None;
        }
        lock(&self.busy).values().map(|b| (b.pid, b.pool)).collect()
    }

    /// There is a controller again: every Want that has no answer is sent to it.
    pub fn want_again(&self) {
        let open: Vec<_> = lock(&self.wants).iter().map(|(id, w)| (*id, w.pool)).collect();
        for (want, pool) in open {
            self.channel.send(&FrontendMessage::Want { want, pool });
        }
    }
}
