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
use crate::policy::mpm::gate::Gate;
use crate::policy::mpm::slots::{Look, Token};
use crate::policy::Millis;
use crate::sys::events::{self, Interest};
use std::cell::Cell;
use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

/// How long a client may take to hear that its connection ends; httpd's MAX_SECS_TO_LINGER.
const LINGER: Duration = Duration::from_secs(30);
/// The same in a hurry.
const LINGER_SHORT: Duration = Duration::from_secs(2);
/// How often a frontend looks after itself.
const ROUND: Duration = Duration::from_millis(250);
/// Rounds in which no thread came free before idle connections are sent to other processes.
const STUCK_ROUNDS: u32 = 4;

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
    fn take_back(&self, wanted: impl Fn(&Held) -> bool) {
        if self.counts.suspended.load(Acquire) == 0 || self.counts.calling.load(Acquire) > 0 {
            return;
        }
        let is_back = |held: &Held| held.waits == Waits::Module && held.connection.is_given_back() && wanted(held);
        for held in self.held.take_all(is_back) {
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
        let Some(pool) = self.take_pool() else { return self.lacks_room(None) };
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
                match why {
                    // A listener that was closed fails, too.
                    _ if self.is_ending() => {}
                    NotAccepted::Nobody => {}
                    NotAccepted::Shortage => self.lacks_room(None),
                    NotAccepted::Failed(e) => self.lacks_room(Some(&e)),
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
            return self.lacks_room(None);
        };
        self.counts.connections.fetch_add(1, AcqRel);
        // Who was woken takes one connection, for nobody else was woken for it; whether there is room for more is
        // seen after it.
        let load = self.load();
        if load.idle > 0 && admission::is_full(load) {
            self.close_gate();
        } else if self.limits.limits.max_children > 1 && admission::lets_others_go_first(load) {
            self.watch_again(|i, _| i == number);
        }
        match Connection::open(accepted, hand.seat, hand.thread, token, connection_ended) {
            Ok(connection) => {
                let stage = if connection.is_refused() { Stage::End } else { Stage::Process };
                let held = Held { connection, waits: Waits::Io, linger_until: 0, seen_back: Cell::new(false) };
                self.go_on(held, stage, hand);
            }
            Err(pool) => {
                self.connection_ended(token, false, false);
                self.keep_pool(pool);
            }
        }
    }

    /// No descriptor, no memory, or what else went wrong: what there is goes on, and new connections wait outside for a
    /// while.
    fn lacks_room(&self, error: Option<&io::Error>) {
        let closing = {
            let mut gate = self.gate();
            let Some(closing) = gate.lacks(self.timers.now()) else { return };
            if closing.was_open {
                self.unwatch_listeners();
            }
            closing
        };
        match error {
            _ if !closing.first => {}
            None => log::main_server(
                Level::Crit,
                "POOL207: there is no descriptor or no memory for a new connection: this frontend takes none for a \
                 while, and ends idle ones; raise the limit of open files (ulimit -n), or lower ThreadsPerChild and \
                 AsyncRequestWorkerFactor",
            ),
            Some(e) => log::main_server(
                Level::Crit,
                format!("POOL219: no connection can be accepted: {e}; this frontend tries again in a while"),
            ),
        }
        if error.is_none() {
            for held in self.take_quiet() {
                self.give(Task::End(held));
            }
        }
    }

    /// Connections that wait for a next request of which nothing has come; they are to end soon.
    fn take_quiet(&self) -> Vec<Held> {
        let has_input = |held: &Held| held.connection.fd().is_some_and(events::has_input);
        let mut quiet = self.held.take_all(|held| held.waits == Waits::KeepAlive && !has_input(held));
        for held in &mut quiet {
            self.uncount(Waits::KeepAlive);
            held.connection.shorten_end();
        }
        quiet
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes no new connections.
    pub fn close_gate(&self) {
        let mut gate = self.gate();
        if gate.close() {
            self.unwatch_listeners();
        }
    }

    /// Under the gate's lock.
    fn unwatch_listeners(&self) {
        self.closed.store(true, Release);
        for listener in self.listeners.read().unwrap_or_else(PoisonError::into_inner).iter() {
            self.events.remove(listener.fd());
        }
        score::set_closed(self.slot, true);
    }

    /// Takes new connections.
    pub fn open_gate(&self) -> io::Result<()> {
        let mut gate = self.gate();
        if !gate.is_closed() || self.is_ending() {
            return Ok(());
        }
        let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner);
        for (at, (listener, token)) in listeners.iter().zip(LISTENER..).enumerate() {
            if let Err(e) = self.events.listen(listener.fd(), token) {
                listeners.iter().take(at).for_each(|watched| self.events.remove(watched.fd()));
                return Err(e);
            }
        }
        gate.open();
        self.closed.store(false, Release);
        score::set_closed(self.slot, false);
        Ok(())
    }

    fn open_gate_if_room(&self) {
        if !self.closed.load(Acquire) || self.is_ending() || admission::is_full(self.load()) {
            return;
        }
        if !self.gate().may_open(self.timers.now()) {
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
            Waits::Module => {
                held.seen_back.set(false);
                connection.suspend();
            }
            Waits::Io | Waits::Write | Waits::KeepAlive => connection.leave(),
        }
        let parks = self.put(held, waits, deadline, |held, token| match interest {
            Some(interest) => self.watch_client(held, token, interest),
            None => Ok(()),
        });
        if parks && waits == Waits::KeepAlive && self.is_ending() {
            // The process may have begun to end after it was looked at last.
            self.end_keep_alive();
        } else if parks && waits == Waits::Module {
            // The module may have finished with it before it was there to be found.
            self.take_back(|_| true);
        }
    }

    /// Puts a connection where it waits, with what wakes it. One that nothing would wake is closed; whether it waits.
    fn put(
        &self,
        mut held: Held,
        waits: Waits,
        deadline: Option<Millis>,
        arm: impl FnOnce(&mut Held, Token) -> io::Result<()>,
    ) -> bool {
        held.waits = waits;
        self.count(waits);
        let token = held.connection.token();
        let (held, error) = match self.held.park(token, held, deadline, arm) {
            Ok(due) => {
                if let Some(due) = due {
                    self.timers.insert(due, token);
                }
                return true;
            }
            Err(back) => back,
        };
        self.uncount(waits);
        if waits == Waits::Request {
            self.unwatch_peer(&held);
        }
        match error {
            Some(e) if e.kind() == io::ErrorKind::NotConnected => {}
            Some(e) if waits == Waits::Request => {
                log::main_server(Level::Error, format!("POOL218: a request cannot be parked: {e}; it is ended"));
            }
            Some(e) => {
                log::main_server(Level::Error, format!("POOL209: a connection cannot be watched: {e}; it is closed"));
            }
            None => {}
        }
        self.close(held);
        false
    }

    /// Watches a connection's client. A module may have closed the socket: nothing comes of it any more.
    fn watch_client(&self, held: &mut Held, token: Token, interest: Interest) -> io::Result<()> {
        let known = held.connection.watch();
        let fd = held.connection.fd().ok_or(io::ErrorKind::NotConnected)?;
        self.events.arm(fd, token, interest, known)
    }

    /// Lets a request wait without a thread.
    fn park_request(&self, mut held: Held) {
        held.connection.leave();
        let token = held.connection.token();
        let until = held.connection.with_awaited(|awaited| self.timers.at(awaited.until));
        let parks = self.put(held, Waits::Request, until, |held, token| {
            let client = held.connection.with_awaited(|awaited| {
                if let Some((peer, interest)) = awaited.peer {
                    self.events.arm(peer, token, interest, false)?;
                }
                Ok::<_, io::Error>(awaited.client)
            });
            client.map_or(Ok(()), |client| self.watch_client(held, token, client?))
        });
        if !parks {
            return;
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
        self.put(held, Waits::Module, None, |_, _| Ok(()));
    }

    /// Begins to end a connection. Whether the client is to hear of it still.
    fn tell_end(&self, held: &mut Held, may_wait: bool) -> bool {
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
    fn linger(&self, mut held: Held) {
        let has_time = self.timers.now() < held.linger_until && !self.ends_now();
        if held.connection.drain() && has_time {
            self.park(held, Waits::Linger);
        } else {
            self.close(held);
        }
    }

    fn close(&self, held: Held) {
        self.keep_pool(held.connection.close());
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
    pub fn watch(&self, thread: Thread) {
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
                self.look_around((stuck >= STUCK_ROUNDS).then_some(thread));
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
            Waits::KeepAlive if held.connection.fd().is_some_and(events::has_input) && !self.is_ending() => {
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

    /// The event of this connection is with the kernel still; it gets `Timeout` to be seen.
    fn park_again(&self, held: Held, now: Millis) {
        let deadline = now.saturating_add(millis(held.connection.timeout()));
        let waits = held.waits;
        self.put(held, waits, Some(deadline), |held, token| self.watch_client(held, token, Interest::Read));
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

    /// A connection that another process was woken for, and did not take, is taken here.
    fn hear_listeners(&self) {
        if self.closed.load(Acquire) || self.counts.idle.load(Acquire) == 0 {
            return;
        }
        self.watch_again(|_, listener| events::has_input(listener.fd()));
    }

    /// Watches listeners anew, as the last of all processes; one that has something to accept wakes a thread here now.
    fn watch_again(&self, which: impl Fn(usize, &Listener) -> bool) {
        let gate = self.gate();
        if gate.is_closed() {
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
