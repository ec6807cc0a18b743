//! What the threads of a frontend do: take an event, go on with the connection until it would wait, wait again.
//!
//! Runs in: frontend, all threads but the main one.  Trusts: httpd.  Owns: the connection in its hands.
//! Never: waits for a client, but where a module does.
#![forbid(unsafe_code)]

use super::child::{self, Frontend, Held, Task, Waits, BELL, LISTENER};
use crate::httpd::log::{self, Level};
use crate::httpd::mpm::connection::{self, Connection, Outlook};
use crate::httpd::mpm::listen::{Listener, NotAccepted};
use crate::httpd::mpm::retained;
use crate::httpd::mpm::score::{self, Connections, Seat, Status};
use crate::httpd::mpm::threads::Thread;
use crate::httpd::parking::{Lot, Ticket};
use crate::policy::mpm::admission::{self, Load};
use crate::policy::mpm::connection::{after_flush, after_processing, AfterFlush, Flushed, Next};
use crate::policy::mpm::slots::{Look, Token};
use crate::policy::Millis;
use crate::sys::events::{self, Interest};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::PoisonError;
use std::time::Duration;

/// How long a client may take to hear that its connection ends; httpd's MAX_SECS_TO_LINGER.
const LINGER: Duration = Duration::from_secs(30);
/// The same in a hurry.
const LINGER_SHORT: Duration = Duration::from_secs(2);
/// How often a frontend looks after itself.
const ROUND: Duration = Duration::from_millis(250);
/// Rounds in which no thread came free before idle connections are sent to other processes.
const STUCK_ROUNDS: u32 = 4;
/// The first pause after no descriptor or memory was left for a connection, and the longest.
const SHORTAGE_PAUSE: Millis = 100;
const SHORTAGE_PAUSE_MOST: Millis = 10_000;

/// A thread and its place in the scoreboard.
#[derive(Debug, Clone, Copy)]
struct Hand {
    seat: Seat,
    number: usize,
    thread: Thread,
}

/// Where to go on with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Process,
    /// Its parked request.
    Request,
    Flush,
    End,
}

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}

/// A connection's pool has ended (`connection::Ended`).
fn connection_ended(token: Token, lingering: bool, suspended: bool) {
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
}

impl Frontend {
    /// A serving thread's life.
    pub fn work(&'static self, seat: Seat, number: u32, thread: Thread) {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let hand = Hand { seat, number, thread };
        seat.sign(retained::generation());
        while !self.may_leave() {
            seat.set(if self.is_ending() { Status::Graceful } else { Status::Ready });
            self.counts.idle.fetch_add(1, AcqRel);
            self.open_gate_if_room();
            let event = self.events.wait();
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
                    return;
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
            if held.waits == Waits::Request {
                self.unwatch_peer(&held);
            }
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
                callback.call();
                self.take_back();
                return;
            }
            // The ring alone: look whether to leave.
            None => return,
        };
        held.connection.resume(hand.seat, hand.thread);
        self.go_on(held, stage, hand);
    }

    /// Connections that modules have finished with outside of a request's thread.
    fn take_back(&self) {
        if self.counts.suspended.load(Acquire) == 0 {
            return;
        }
        for held in self.held.take_all(|held| held.waits == Waits::Module && held.connection.is_given_back()) {
            self.uncount(Waits::Module);
            self.give(Task::Continue(held));
        }
    }

    // ===== Accepting =====

    fn load(&self) -> Load {
        Load {
            threads: self.limits.limits.threads_per_child,
            idle: self.counts.idle.load(Acquire),
            // A parked request waits for a pool, not for this process: it may not keep other clients out.
            connections: self.counts.connections.load(Acquire).saturating_sub(self.counts.parked.load(Acquire)),
            lingering: self.counts.lingering.load(Acquire),
            factor: self.limits.factor,
            closed: self.closed.load(Acquire),
        }
    }

    fn accept(&'static self, number: usize, hand: Hand) {
        let Some(pool) = self.take_pool() else { return self.shortage() };
        let accepted = {
            let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner);
            match listeners.get(number) {
                Some(listener) => listener.accept(pool),
                None => Err((NotAccepted::Nobody, pool)),
            }
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err((why, pool)) => {
                self.keep_pool(pool);
                if why == NotAccepted::Shortage && !self.is_ending() {
                    self.shortage();
                }
                return;
            }
        };
        if self.may_accept.fetch_sub(1, AcqRel) == 1 {
            log::main_server(Level::Debug, "MaxConnectionsPerChild is reached: this frontend ends");
            self.begin_end();
        }
        let Some(token) = self.held.reserve() else {
            self.keep_pool(accepted.close());
            return self.shortage();
        };
        self.counts.connections.fetch_add(1, AcqRel);
        // Who was woken takes one connection, for nobody else was woken for it; whether there is room for more is
        // seen after it.
        let load = self.load();
        if load.idle > 0 && admission::is_full(load) {
            self.close_gate(0);
        } else if self.limits.limits.max_children > 1 && admission::lets_others_go_first(load) {
            self.watch_again(|i, _| i == number);
        }
        match Connection::open(accepted, hand.seat, hand.thread, token, connection_ended) {
            Ok(connection) => {
                let held = Held { connection, waits: Waits::Io, linger_until: 0 };
                self.go_on(held, Stage::Process, hand);
            }
            Err((pool, told)) => {
                if !told {
                    self.connection_ended(token, false, false);
                }
                self.keep_pool(pool);
            }
        }
    }

    /// No descriptor, no memory: what there is goes on, and new connections wait outside for a while.
    fn shortage(&self) {
        let pause = {
            let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            gate.pause = (gate.pause * 2).clamp(SHORTAGE_PAUSE, SHORTAGE_PAUSE_MOST);
            gate.pause
        };
        if pause == SHORTAGE_PAUSE {
            log::main_server(
                Level::Crit,
                "POOL207: there is no descriptor or no memory for a new connection: this frontend takes none for a \
                 while; raise the limit of open files (ulimit -n), or lower ThreadsPerChild and AsyncRequestWorkerFactor",
            );
        }
        self.close_gate(pause);
    }

    /// Takes no new connections, for `pause` milliseconds at least.
    pub fn close_gate(&self, pause: Millis) {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if pause > 0 {
            gate.not_before = self.timers.now() + pause;
        }
        if gate.closed {
            return;
        }
        gate.closed = true;
        self.closed.store(true, Release);
        for listener in self.listeners.read().unwrap_or_else(PoisonError::into_inner).iter() {
            self.events.remove(listener.fd());
        }
        score::set_closed(self.slot, true);
    }

    /// Takes new connections.
    pub fn open_gate(&self) -> std::io::Result<()> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if !gate.closed || self.is_ending() {
            return Ok(());
        }
        for (i, listener) in (0..).zip(self.listeners.read().unwrap_or_else(PoisonError::into_inner).iter()) {
            self.events.listen(listener.fd(), LISTENER | i)?;
        }
        gate.closed = false;
        self.closed.store(false, Release);
        score::set_closed(self.slot, false);
        Ok(())
    }

    fn open_gate_if_room(&self) {
        if !self.closed.load(Acquire) || self.is_ending() || admission::is_full(self.load()) {
            return;
        }
        let not_before = self.gate.lock().unwrap_or_else(PoisonError::into_inner).not_before;
        if self.timers.now() < not_before {
            return;
        }
        if let Err(e) = self.open_gate() {
            log::main_server(Level::Crit, format!("POOL208: a listener cannot be watched: {e}; this frontend ends"));
            self.end_for_shortage();
        }
    }

    fn connection_ended(&self, token: Token, lingering: bool, suspended: bool) {
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

    fn go_on(&self, mut held: Held, mut stage: Stage, hand: Hand) {
        let socket = self.serving.get(hand.number);
        if let Some(socket) = socket {
            socket.store(held.connection.fd().as_raw_fd(), Release);
        }
        loop {
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
                        self.park(held, Waits::Io);
                        break;
                    }
                    Next::Suspend => {
                        self.park(held, Waits::Module);
                        break;
                    }
                    Next::Park => {
                        self.park_request(held);
                        break;
                    }
                },
                Stage::Flush => {
                    held.connection.show(connection::Waits::Write);
                    let ok = held.connection.flush();
                    match after_flush(self.flushed(ok, held.connection.outlook())) {
                        AfterFlush::Process => Stage::Process,
                        AfterFlush::Linger => Stage::End,
                        AfterFlush::WaitToWrite => {
                            self.park(held, Waits::Write);
                            break;
                        }
                        AfterFlush::KeepAlive => {
                            held.connection.show(connection::Waits::KeepAlive);
                            held.connection.mark_keep_alive();
                            self.park(held, Waits::KeepAlive);
                            break;
                        }
                    }
                }
                Stage::End => {
                    self.end(held, !self.ends_now());
                    break;
                }
            };
            if self.ends_now() {
                stage = Stage::End;
            }
        }
        if let Some(socket) = socket {
            socket.store(-1, Release);
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

    /// Lets a connection wait; no thread has it afterwards.
    fn park(&self, mut held: Held, waits: Waits) {
        let connection = &mut held.connection;
        let now = self.timers.now();
        let (deadline, interest) = match waits {
            Waits::Io => {
                (Some(now.saturating_add(millis(connection.timeout()))), Some(connection.take_interest(Interest::Read)))
            }
            Waits::Write => (
                Some(now.saturating_add(millis(connection.timeout()))),
                Some(connection.take_interest(Interest::Write)),
            ),
            Waits::KeepAlive => {
                (Some(now.saturating_add(millis(connection.keep_alive_timeout()))), Some(Interest::Read))
            }
            Waits::Linger => (Some(held.linger_until), Some(Interest::Read)),
            Waits::Module | Waits::Request => (None, None),
        };
        match waits {
            Waits::Linger | Waits::Request => {}
            Waits::Module => connection.suspend(),
            Waits::Io | Waits::Write | Waits::KeepAlive => connection.leave(),
        }
        held.waits = waits;
        self.count(waits);
        let token = held.connection.token();
        let parked = self.held.park(token, held, deadline, |held, token| match interest {
            Some(interest) => {
                let known = held.connection.watch();
                self.events.arm(held.connection.fd(), token, interest, known)
            }
            None => Ok(()),
        });
        match parked {
            Ok(Some(due)) => self.timers.insert(due, token),
            Ok(None) => {}
            Err((held, e)) => {
                self.uncount(waits);
                if let Some(e) = e {
                    log::main_server(
                        Level::Error,
                        format!("POOL209: a connection cannot be watched: {e}; it is closed"),
                    );
                }
                self.keep_pool(held.connection.close());
            }
        }
        // The process may have begun to end after it was looked at last.
        if waits == Waits::KeepAlive && self.is_ending() {
            self.end_keep_alive();
        }
    }

    /// Lets a request wait without a thread.
    fn park_request(&self, mut held: Held) {
        held.connection.leave();
        held.waits = Waits::Request;
        self.count(Waits::Request);
        let token = held.connection.token();
        let until = held.connection.with_awaited(|awaited| self.timers.at(awaited.until));
        let parked = self.held.park(token, held, until, |held, token| {
            let known = held.connection.watch();
            let armed = held.connection.with_awaited(|awaited| {
                if let Some((peer, interest)) = awaited.peer {
                    self.events.arm(peer, token, interest, false)?;
                }
                self.events.arm(held.connection.fd(), token, awaited.client, known)
            });
            armed.unwrap_or(Ok(()))
        });
        match parked {
            Ok(Some(due)) => self.timers.insert(due, token),
            Ok(None) => {}
            Err((held, e)) => {
                self.uncount(Waits::Request);
                self.unwatch_peer(&held);
                if let Some(e) = e {
                    log::main_server(Level::Error, format!("POOL218: a request cannot be parked: {e}; it is ended"));
                }
                return self.keep_pool(held.connection.close());
            }
        }
        // Whoever had it go on before it was parked found nothing.
        if let Some(held) = self.held.take_if(token, |held| held.waits == Waits::Request && held.connection.is_ready())
        {
            self.wake_parked(held);
        }
    }

    /// What a parked request waits for besides its client is not watched any more: it may serve another one next.
    fn unwatch_peer(&self, held: &Held) {
        held.connection.with_awaited(|awaited| {
            if let Some((peer, _)) = awaited.peer {
                self.events.remove(peer);
            }
        });
    }

    /// Has some thread go on with a request that was taken from where it was parked.
    fn wake_parked(&self, held: Held) {
        self.uncount(Waits::Request);
        self.unwatch_peer(&held);
        self.give(Task::GoOn(held));
    }

    fn leave_to_module(&self, held: Held) {
        let token = held.connection.token();
        self.count(Waits::Module);
        if let Err((held, _)) = self.held.park(token, held, None, |_, _| Ok::<(), ()>(())) {
            self.uncount(Waits::Module);
            self.keep_pool(held.connection.close());
        }
    }

    /// Begins to end a connection, and lets the client hear of it.
    fn end(&self, mut held: Held, may_wait: bool) {
        if !held.connection.is_ending() {
            self.counts.lingering.fetch_add(1, AcqRel);
            match held.connection.start_end(may_wait) {
                None => return self.keep_pool(held.connection.close()),
                Some(short) => {
                    let patience = if short || self.is_ending() { LINGER_SHORT } else { LINGER };
                    held.linger_until = self.timers.now() + millis(patience);
                    held.connection.leave();
                }
            }
        }
        self.linger(held);
    }

    /// Drops what the client still sends; closes at its end.
    fn linger(&self, mut held: Held) {
        if held.connection.drain() && !self.ends_now() {
            self.park(held, Waits::Linger);
        } else {
            self.keep_pool(held.connection.close());
        }
    }

    fn counter(&self, waits: Waits) -> Option<&std::sync::atomic::AtomicU32> {
        match waits {
            Waits::Io => Some(&self.counts.io),
            Waits::Write => Some(&self.counts.write),
            Waits::KeepAlive => Some(&self.counts.keep_alive),
            Waits::Module => Some(&self.counts.suspended),
            Waits::Request => Some(&self.counts.parked),
            // Counted from the beginning of its end until it is closed.
            Waits::Linger => None,
        }
    }

    fn count(&self, waits: Waits) {
        if let Some(counter) = self.counter(waits) {
            counter.fetch_add(1, AcqRel);
        }
    }

    fn uncount(&self, waits: Waits) {
        if let Some(counter) = self.counter(waits) {
            counter.fetch_sub(1, AcqRel);
        }
    }

    // ===== The thread that looks after time =====

    /// Waits for what is due, until the process ends. It serves nobody, so that it is there when all others are busy.
    pub fn watch(&self) {
        let mut last_round = 0;
        let mut stuck = 0;
        let mut handled = 0;
        loop {
            let due = self.timers.wait(ROUND);
            if due.stopped {
                return;
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
                let moved = self.counts.handled.load(Relaxed);
                let busy = self.counts.idle.load(Acquire) == 0 && moved == handled;
                stuck = if busy { stuck + 1 } else { 0 };
                handled = moved;
                self.look_around(stuck >= STUCK_ROUNDS);
            }
        }
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
            Waits::Io | Waits::Write => self.give(Task::End(held)),
            // A request has come, but no thread was free for it.
            Waits::KeepAlive if events::has_input(held.connection.fd()) && !self.is_ending() => {
                self.park_again(held, now);
            }
            Waits::KeepAlive => {
                let mut held = held;
                held.connection.shorten_end();
                self.give(Task::End(held));
            }
            Waits::Linger => self.keep_pool(held.connection.close()),
            Waits::Module | Waits::Request => self.leave_to_module(held),
        }
    }

    /// The event of this connection is with the kernel still; it gets `Timeout` to be seen.
    fn park_again(&self, held: Held, now: Millis) {
        let waits = held.waits;
        let token = held.connection.token();
        let deadline = now.saturating_add(millis(held.connection.timeout()));
        self.count(waits);
        let again = |held: &mut Held, token| self.events.arm(held.connection.fd(), token, Interest::Read, true);
        match self.held.park(token, held, Some(deadline), again) {
            Ok(Some(due)) => self.timers.insert(due, token),
            Ok(None) => {}
            Err((held, _)) => {
                self.uncount(waits);
                self.give(Task::End(held));
            }
        }
    }

    fn look_around(&self, stuck: bool) {
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
        if stuck {
            // Their clients find a process that has time; those who have sent something are answered here.
            let quiet = |held: &Held| held.waits == Waits::KeepAlive && !events::has_input(held.connection.fd());
            for mut held in self.held.take_all(quiet) {
                self.uncount(Waits::KeepAlive);
                held.connection.shorten_end();
                self.end(held, false);
            }
        }
        self.forget_shortage();
        self.open_gate_if_room();
        self.hear_listeners();
    }

    fn forget_shortage(&self) {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if gate.pause > 0 && self.timers.now() > gate.not_before + SHORTAGE_PAUSE_MOST {
            gate.pause = 0;
        }
    }

    /// A connection that another process was woken for, and did not take, is taken here.
    fn hear_listeners(&self) {
        if self.closed.load(Acquire) || self.counts.idle.load(Acquire) == 0 {
            return;
        }
        self.watch_again(|_, listener| events::has_input(listener.fd()));
    }

    /// Watches listeners anew, as the last of all processes; one that has something to accept wakes a thread here now.
    fn watch_again(&self, which: impl Fn(usize, &Listener) -> bool) {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if gate.closed {
            return;
        }
        let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner);
        for ((i, listener), token) in listeners.iter().enumerate().zip(LISTENER..) {
            if !which(i, listener) {
                continue;
            }
            self.events.remove(listener.fd());
            if let Err(e) = self.events.listen(listener.fd(), token) {
                log::main_server(
                    Level::Crit,
                    format!("POOL210: a listener cannot be watched: {e}; this frontend ends"),
                );
                self.end_for_shortage();
            }
        }
    }
}
