//! A request's place in the queue for a lease.
//!
//! Runs in: frontend; the thread that has the request, and whoever has an answer for it.  Trusts: the controller.
//! Owns: the answer until it is taken.  Never: loses a lease that nobody takes.

use super::{lock, Desk, Leased, NoLease};
use crate::httpd::parking::{self, Ticket};
use crate::policy::turns::Micros;
use crate::sys::clock;
use crate::wire::control::{Arrival, FrontendMessage, Refusal, Returned, WantId};
use once_cell::sync::OnceCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much longer than `PoolQueueTimeout` a request waits for the controller's own refusal.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(3);
/// How often a request that waits looks whether its client is still there.
const CLIENT_CHECK: Duration = Duration::from_millis(200);

/// How waiting for a lease ended without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unserved {
    Refused(NoLease),
    /// The client did not wait for it.
    ClientGone,
    /// It had a thread that others need.
    Crowd,
}

#[derive(Debug)]
pub(super) enum Answer {
    Open,
    Granted(Leased),
    Refused(NoLease),
    /// The waiter has given up; a grant that comes still goes back.
    Withdrawn,
}

/// Whose turn comes first: who came first, and of those who came at the same time who got here first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub arrived: Arrival,
    pub number: u64,
}

#[derive(Debug)]
pub(super) struct Waiter {
    pub pool: u32,
    pub turn: Turn,
    /// When its Want is sent, if no lease has come free here by then.
    asks_at: Micros,
    /// Its Want, once that is sent.
    pub want: OnceCell<WantId>,
    /// It has withdrawn its Want before that was answered.
    withdrawn: AtomicBool,
    answer: Mutex<Answer>,
    answered: Condvar,
    /// Its request is parked.
    ticket: OnceCell<Ticket>,
}

impl Waiter {
    pub fn new(pool: u32, turn: Turn, asks_at: Micros) -> Arc<Self> {
        Arc::new(Self {
            pool,
            turn,
            asks_at,
            want: OnceCell::new(),
            withdrawn: AtomicBool::new(false),
            answer: Mutex::new(Answer::Open),
            answered: Condvar::new(),
            ticket: OnceCell::new(),
        })
    }

    /// Ends its waiting; gives the answer back when it waits no more. Whoever has answered calls [`wake`](Self::wake).
    pub fn answer(&self, with: Answer) -> Result<(), Answer> {
        let mut answer = lock(&self.answer);
        if !matches!(*answer, Answer::Open) {
            return Err(with);
        }
        *answer = with;
        self.answered.notify_one();
        Ok(())
    }

    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Acquire)
    }

    /// It has its answer: its request goes on, if it is parked. Not under a lock of the desk's.
    pub fn wake(&self) {
        if let Some(ticket) = self.ticket.get() {
            parking::wake(*ticket);
        }
    }
}

/// A place in the queue. It is given up when this is dropped.
#[derive(Debug)]
pub struct Waiting {
    desk: &'static Desk,
    waiter: Arc<Waiter>,
    deadline: Instant,
}

impl Waiting {
    pub(super) fn new(desk: &'static Desk, waiter: Arc<Waiter>, patience: Duration) -> Self {
        Self { desk, waiter, deadline: Instant::now() + patience + REFUSAL_PATIENCE }
    }

    /// Waits until there is an answer; `None` where it takes longer than `most`. `gives_up` says why it is not to wait any
    /// more, as its client is gone or others need its thread.
    pub fn wait(
        &mut self,
        most: Option<Duration>,
        gives_up: &dyn Fn() -> Option<Unserved>,
    ) -> Option<Result<Leased, Unserved>> {
        let give_up = most.map(|most| Instant::now() + most);
        let waiter = Arc::clone(&self.waiter);
        let mut answer = lock(&waiter.answer);
        while matches!(*answer, Answer::Open) {
            let now = Instant::now();
            let asks_in = waiter.asks_at.saturating_sub(clock::micros());
            let mut looks = waiter.want.get().is_some();
            if !looks && asks_in == 0 {
                // The answer may come before the lock is taken again.
                drop(answer);
                self.desk.send_wants(&waiter);
                answer = lock(&waiter.answer);
                looks = true;
                if !matches!(*answer, Answer::Open) {
                    break;
                }
            }
            if now >= self.deadline {
                *answer = Answer::Withdrawn;
                drop(answer);
                let text = "the controller did not answer".to_owned();
                return Some(Err(Unserved::Refused(NoLease { reason: Refusal::QueueTimeout, retry_after_s: 5, text })));
            }
            if give_up.is_some_and(|time| now >= time) {
                return None;
            }
            let next = now + if looks { CLIENT_CHECK } else { Duration::from_micros(asks_in) };
            let until = next.min(self.deadline).min(give_up.unwrap_or(next));
            let (again, timeout) = waiter
                .answered
                .wait_timeout(answer, until.saturating_duration_since(now))
                .unwrap_or_else(PoisonError::into_inner);
            answer = again;
            let open = matches!(*answer, Answer::Open);
            if let Some(why) = (open && timeout.timed_out() && looks).then(gives_up).flatten() {
                *answer = Answer::Withdrawn;
                return Some(Err(why));
            }
        }
        match std::mem::replace(&mut *answer, Answer::Withdrawn) {
            Answer::Granted(leased) => Some(Ok(leased)),
            Answer::Refused(why) => Some(Err(Unserved::Refused(why))),
            Answer::Open | Answer::Withdrawn => Some(Err(Unserved::ClientGone)),
        }
    }

    /// The request gives up its thread: the answer wakes it by its ticket.
    pub fn park(&self, ticket: Ticket) {
        // It has one ticket in its life.
        let _ = self.waiter.ticket.set(ticket);
    }

    pub fn is_answered(&self) -> bool {
        !matches!(*lock(&self.waiter.answer), Answer::Open)
    }

    /// When it goes on without an answer: to ask the controller, or to give up.
    pub fn goes_on_at(&self) -> Instant {
        if self.waiter.want.get().is_some() {
            return self.deadline;
        }
        let asks_in = Duration::from_micros(self.waiter.asks_at.saturating_sub(clock::micros()));
        self.deadline.min(Instant::now() + asks_in)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let answer = std::mem::replace(&mut *lock(&self.waiter.answer), Answer::Withdrawn);
        if let Some(mut pool) = self.desk.pool(self.waiter.pool) {
            pool.dequeue(&self.waiter);
        }
        if let Some(want) = self.waiter.want.get() {
            // Still there: the controller has not answered it.
            let open = lock(&self.desk.wants).remove(want).is_some();
            if open {
                self.waiter.withdrawn.store(true, Ordering::Release);
                self.desk.channel.send(&FrontendMessage::Cancel { want: *want });
            }
        }
        if let Answer::Granted(leased) = answer {
            self.desk.release(leased.lease, Returned::Idle);
        }
    }
}
