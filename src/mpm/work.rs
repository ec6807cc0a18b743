//! What the threads of a frontend do: take an event, go on with the connection until it would wait, wait again.
//!
//! Runs in: frontend, all threads but the main one.  Trusts: httpd.  Owns: the connection in its hands.
//! Never: waits for a client, but where a module does.
#![forbid(unsafe_code)]

use super::child::{self, Frontend, Held, Task, Waits, BELL, LISTENER};
use crate::httpd::log::{self, Level};
use crate::httpd::mpm::connection::{self, Outlook};
use crate::httpd::mpm::retained;
use crate::httpd::mpm::score::{self, Connections, Seat, Status};
use crate::httpd::mpm::threads::Thread;
use crate::httpd::parking::{Lot, Ticket};
use crate::policy::mpm::connection::{after_flush, after_processing, AfterFlush, Flushed, Next};
use crate::policy::mpm::polling::{Polling, Seen};
use crate::policy::mpm::slots::{Look, Token};
use crate::policy::Millis;
use crate::sys::{events, thread};
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::PoisonError;
use std::time::Duration;

/// How long a client may take to hear that its connection ends; httpd's MAX_SECS_TO_LINGER.
const LINGER: Duration = Duration::from_secs(30);
/// The same in a hurry.
const LINGER_SHORT: Duration = Duration::from_secs(2);
/// How often a frontend looks after itself.
const ROUND: Duration = Duration::from_millis(250);
/// How often it looks whether threads that waited for events come back, while none waits.
const LOOK: Duration = Duration::from_millis(2);
/// Rounds in which no thread came free before idle connections are sent to other processes.
const STUCK_ROUNDS: u32 = 4;

/// A thread and its place in the scoreboard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hand {
    pub(super) seat: Seat,
    pub(super) number: usize,
    pub(super) thread: Thread,
}

/// Where to go on with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Process,
    /// Its parked request.
    Request,
    Flush,
    End,
}

pub(super) fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}

/// A connection's pool has ended (`connection::Ended`).
pub(super) fn connection_ended(token: Token, lingering: bool, suspended: bool) {
    if let Some(frontend) = child::current() {
        frontend.connection_ended(token, lingering, suspended);
    }
}

impl Lot for Frontend {
    fn wake(&self, ticket: Ticket) {
        if let Some(held) = self.held.take_if(ticket.0, |held| held.waits == Waits::Request) {
            self.wake_parked(held);
        }
    }

    fn unwatch(&self, peer: BorrowedFd<'_>) {
        self.events.remove(peer);
    }
}

impl Frontend {
    /// A serving thread's life.
    pub fn work(&'static self, seat: Seat, number: u32, thread: Thread) {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let hand = Hand { seat, number, thread };
        seat.sign(retained::generation());
        let own = thread::id();
        let is_busy = |thread| {
            if let Some(place) = self.busy.get(number) {
                place.store(thread, Relaxed);
            }
        };
        while !self.may_leave() {
            seat.set(if self.is_ending() { Status::Graceful } else { Status::Ready });
            self.counts.idle.fetch_add(1, AcqRel);
            self.open_gate_if_room();
            is_busy(0);
            self.pollers.enter();
            let event = self.events.wait();
            is_busy(own);
            if self.pollers.leave() {
                self.timers.call_waiting();
            }
            self.counts.idle.fetch_sub(1, AcqRel);
            match event {
                Ok(Some(token)) => {
                    self.counts.handled.fetch_add(1, Relaxed);
                    self.handle(token, hand);
                }
                Ok(None) => {}
                Err(e) => {
                    log::main_server(Level::Crit, format!("POOL206: epoll_wait: {e}; this frontend ends"));
                    self.end_for_shortage();
                    break;
                }
            }
        }
        seat.set(Status::Dead);
    }

    fn handle(&'static self, token: u64, hand: Hand) {
        if token == BELL {
            self.take_task(hand);
        } else if token & LISTENER != 0 {
            self.accept(usize::try_from(token & !LISTENER).unwrap_or(usize::MAX), hand);
        } else if let Some(mut held) = self.held.take(token) {
            self.uncount(held.waits);
            let stage = match held.waits {
                Waits::Io | Waits::KeepAlive => Stage::Process,
                // Filters that read ahead write in their reading, too.
                Waits::Write if held.connection.is_clogging() => Stage::Process,
                Waits::Write => Stage::Flush,
                Waits::Linger => return self.linger(held),
                // It is not watched; whatever this number was for, the module goes on with it.
                Waits::Module => return self.leave_to_module(held),
                Waits::Request => Stage::Request,
            };
            held.connection.resume(hand.seat, hand.thread);
            self.go_on(held, stage, hand);
        }
    }

    fn take_task(&'static self, hand: Hand) {
        if !self.events.take_ring() {
            return;
        }
        let task = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let (mut held, stage) = match task {
            Some(Task::End(held)) => (held, Stage::End),
            Some(Task::Continue(held)) => (held, Stage::Flush),
            Some(Task::GoOn(held)) => (held, Stage::Request),
            Some(Task::Call(callback)) => {
                self.counts.calling.fetch_add(1, AcqRel);
                callback.call();
                self.counts.calling.fetch_sub(1, AcqRel);
                self.take_back(|_| true);
                return;
            }
            // The ring alone: look whether to leave.
            None => return,
        };
        held.connection.resume(hand.seat, hand.thread);
        self.go_on(held, stage, hand);
    }

    /// Connections that modules have finished with outside of a request's thread. A callback that runs may have said so
    /// and still use the connection: the last of them looks.
    pub(super) fn take_back(&self, wanted: impl Fn(&Held) -> bool) {
        if self.counts.suspended.load(Acquire) == 0 || self.counts.calling.load(Acquire) > 0 {
            return;
        }
        let is_back = |held: &Held| held.waits == Waits::Module && held.connection.is_given_back() && wanted(held);
        for held in self.held.take_all(is_back) {
            self.uncount(Waits::Module);
            self.give(Task::Continue(held));
        }
    }

    pub(super) fn connection_ended(&self, token: Token, lingering: bool, suspended: bool) {
        self.held.release(token);
        if lingering {
            self.counts.lingering.fetch_sub(1, AcqRel);
        }
        if suspended {
            self.counts.suspended.fetch_sub(1, AcqRel);
        }
        self.counts.connections.fetch_sub(1, AcqRel);
        if self.is_ending() {
            self.events.ring();
        } else {
            self.open_gate_if_room();
        }
    }

    // ===== A connection's way =====

    pub(super) fn go_on(&self, mut held: Held, mut stage: Stage, hand: Hand) {
        self.serves(hand.number, held.connection.fd());
        let waits = loop {
            if self.ends_now() {
                stage = Stage::End;
            }
            stage = match stage {
                Stage::Process | Stage::Request => match after_processing(if stage == Stage::Request {
                    held.connection.go_on()
                } else {
                    held.connection.process()
                }) {
                    Next::Flush => Stage::Flush,
                    Next::Linger => Stage::End,
                    Next::WaitIo => {
                        held.connection.show(connection::Waits::Read);
                        break Some(Waits::Io);
                    }
                    Next::Suspend => break Some(Waits::Module),
                    Next::Park => break Some(Waits::Request),
                },
                Stage::Flush => {
                    held.connection.show(connection::Waits::Write);
                    let ok = held.connection.flush();
                    match after_flush(self.flushed(ok, held.connection.outlook())) {
                        AfterFlush::Process => Stage::Process,
                        AfterFlush::Linger => Stage::End,
                        AfterFlush::WaitToWrite => break Some(Waits::Write),
                        AfterFlush::KeepAlive => {
                            held.connection.show(connection::Waits::KeepAlive);
                            held.connection.mark_keep_alive();
                            break Some(Waits::KeepAlive);
                        }
                    }
                }
                Stage::End => break self.tell_end(&mut held, !self.ends_now()).then_some(Waits::Linger),
            };
        };
        self.serves(hand.number, None);
        match waits {
            None => self.close(held),
            Some(Waits::Linger) => self.linger(held),
            Some(Waits::Request) => self.park_request(held),
            Some(waits) => self.park(held, waits),
        }
    }

    fn flushed(&self, ok: bool, outlook: Outlook) -> Flushed {
        Flushed {
            ok,
            output_left: outlook.output_left,
            wants_read: outlook.wants_read,
            keep_alive: outlook.keep_alive,
            aborted: outlook.aborted,
            input_waits: outlook.input_waits,
            stopping: self.is_ending(),
        }
    }

    /// Begins to end a connection. Whether the client is to hear of it still.
    pub(super) fn tell_end(&self, held: &mut Held, may_wait: bool) -> bool {
        if held.connection.is_ending() {
            return true;
        }
        self.counts.lingering.fetch_add(1, AcqRel);
        let Some(short) = held.connection.start_end(may_wait) else { return false };
        let patience = if short || self.is_ending() { LINGER_SHORT } else { LINGER };
        held.linger_until = self.timers.now() + millis(patience);
        held.connection.leave();
        true
    }

    /// Drops what the client still sends; closes at its end, or when it had its time.
    pub(super) fn linger(&self, mut held: Held) {
        let has_time = self.timers.now() < held.linger_until && !self.ends_now();
        if held.connection.drain() && has_time {
            self.park(held, Waits::Linger);
        } else {
            self.close(held);
        }
    }

    pub(super) fn close(&self, held: Held) {
        self.keep_pool(held.connection.close());
    }

    // ===== The thread that looks after time =====

    /// Waits for what is due, until the process ends. It serves nobody, so that it is there when all others are busy.
    pub fn watch(&self, thread: Thread) {
        let mut last_round = 0;
        let mut stuck = 0;
        let mut handled = 0;
        let mut polling = Polling::new(self.limits.limits.threads_per_child);
        let mut looks = false;
        loop {
            let due = self.timers.wait(if looks { LOOK } else { ROUND });
            if due.stopped {
                return;
            }
            looks |= due.called;
            if looks {
                looks = self.look_after_pollers(&mut polling);
            }
            for callback in due.callbacks {
                self.give(Task::Call(callback));
            }
            let now = self.timers.now();
            for token in due.tokens {
                self.is_due(token, now);
            }
            if now >= last_round + millis(ROUND) {
                last_round = now;
                polling.counted(self.processors, score::running(self.limits.limits.server_limit));
                let moved = self.counts.handled.load(Relaxed);
                let busy = self.counts.idle.load(Acquire) == 0 && moved == handled;
                stuck = if busy { stuck + 1 } else { 0 };
                handled = moved;
                self.look_around((stuck >= STUCK_ROUNDS).then_some(thread));
            }
        }
    }

    /// Whether to look again soon.
    fn look_after_pollers(&self, polling: &mut Polling) -> bool {
        let attended = self.pollers.is_attended();
        let taken = self.counts.handled.load(Relaxed);
        let spare = attended || self.pollers.has_spare();
        let pending = !attended && spare && self.events.any();
        let runs = pending && polling.is_still(taken) && self.any_runs();
        let called = polling.look(Seen { attended, taken, spare, pending, runs });
        self.pollers.allow(polling.most(), called);
        !(polling.may_rest() && self.pollers.stop_watching())
    }

    /// A thread that is busy runs, or could.
    fn any_runs(&self) -> bool {
        self.busy.iter().map(|busy| busy.load(Relaxed)).any(|id| id != 0 && thread::runs(id))
    }

    fn is_due(&self, token: Token, now: Millis) {
        let held = match self.held.look(token, now) {
            Look::Nothing => return,
            Look::Later(due) => return self.timers.insert(due, token),
            Look::Due(held) => held,
        };
        if held.waits == Waits::Request {
            return self.wake_parked(held);
        }
        self.uncount(held.waits);
        match held.waits {
            Waits::Io => self.give(Task::End(held)),
            // It has taken nothing for the whole time: nobody waits for it any more.
            Waits::Write => {
                let mut held = held;
                held.connection.give_up();
                self.give(Task::End(held));
            }
            // A request has come, but no thread was free for it.
            Waits::KeepAlive if held.connection.fd().is_some_and(events::has_input) && !self.ends_now() => {
                self.park_again(held, now);
            }
            Waits::KeepAlive => {
                let mut held = held;
                held.connection.shorten_end();
                self.give(Task::End(held));
            }
            Waits::Linger => self.close(held),
            Waits::Module | Waits::Request => self.leave_to_module(held),
        }
    }

    /// `stuck`: no thread has come free for a while; this thread's own name.
    fn look_around(&self, stuck: Option<Thread>) {
        score::set_connections(
            self.slot,
            Connections {
                all: self.counts.connections.load(Relaxed),
                wait_io: self.counts.io.load(Relaxed),
                write_completion: self.counts.write.load(Relaxed),
                keep_alive: self.counts.keep_alive.load(Relaxed),
                lingering: self.counts.lingering.load(Relaxed),
                suspended: self.counts.suspended.load(Relaxed) + self.counts.parked.load(Relaxed),
            },
        );
        if self.is_ending() {
            return;
        }
        if let Some(thread) = stuck {
            // Their clients find a process that has time; those who have sent something are answered here. No other
            // thread could do it, as none is free; so this one takes them over as those would, and waits for nobody.
            for mut held in self.take_quiet() {
                held.connection.resume(Seat::none(self.slot), thread);
                if self.tell_end(&mut held, false) {
                    self.linger(held);
                } else {
                    self.close(held);
                }
            }
        }
        // A module's own thread says that it has finished, too, and nobody knows when it does not use the connection any
        // more: soon after.
        self.take_back(|held| held.seen_back.replace(true));
        self.gate().forget(self.timers.now());
        self.open_gate_if_room();
        self.hear_listeners();
    }
}
