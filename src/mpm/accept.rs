//! Taking new connections, or none for a while.
//!
//! Runs in: frontend, the threads that serve, and the one that looks after time.  Trusts: the kernel.
//! Owns: whether listeners are watched.  Never: takes a connection without room for it.
#![forbid(unsafe_code)]

use super::child::{Frontend, Held, Task, Waits, LISTENER};
use super::work::{connection_ended, Hand, Stage};
use crate::httpd::log::{self, Level};
use crate::httpd::mpm::connection::Connection;
use crate::httpd::mpm::listen::{Listener, NotAccepted};
use crate::httpd::mpm::score;
use crate::policy::mpm::admission::{self, Load};
use crate::policy::mpm::gate::Gate;
use crate::sys::{descriptor, events};
use once_cell::sync::OnceCell;
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::{MutexGuard, PoisonError};

fn log_shortage() {
    log::main_server(
        Level::Crit,
        "POOL207: there is no descriptor or no memory for a new connection: this frontend takes none for a while, and \
         ends idle ones; raise the limit of open files (ulimit -n), or lower ThreadsPerChild and \
         AsyncRequestWorkerFactor",
    );
}

/// In the place of a listener's number: a process calls that takes none of the connections that wait.
const SUMMONS: usize = 0xffff_ffff;

impl Frontend {
    pub(super) fn load(&self) -> Load {
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

    pub(super) fn accept(&'static self, number: usize, hand: Hand) {
        if number == SUMMONS {
            return self.answer_summons();
        }
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
        // seen after it. This thread counts as idle: it takes the next one only when it is.
        let load = self.load();
        if admission::is_full(Load { idle: load.idle + 1, ..load }) {
            self.close_gate();
        } else if self.limits.limits.max_children > 1 && admission::lets_others_go_first(load) {
            self.watch_again(|i, _| i == number);
        }
        match Connection::open(accepted, hand.seat, hand.thread, token, connection_ended) {
            Ok(connection) => {
                let number = connection.fd().and_then(|fd| u64::try_from(fd.as_raw_fd()).ok());
                if number.is_some_and(|number| number >= self.first_spared()) {
                    self.spare_descriptors();
                }
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

    /// See [`admission::first_spared`].
    fn first_spared(&self) -> u64 {
        static LIMIT: OnceCell<u64> = OnceCell::new();
        let limit = *LIMIT.get_or_init(|| descriptor::limit().unwrap_or(u64::MAX));
        admission::first_spared(limit, self.limits.limits.threads_per_child)
    }

    /// What descriptors there are is left to the connections that are here.
    fn spare_descriptors(&self) {
        let closing = {
            let mut gate = self.gate();
            let Some(closing) = gate.spares(self.timers.now()) else { return };
            if closing.was_open {
                self.unwatch_listeners();
            }
            closing
        };
        if closing.first {
            log_shortage();
        }
        self.make_room();
    }

    /// Ends idle connections where others wait outside.
    fn make_room(&self) {
        if self.somebody_waits() {
            for held in self.take_quiet() {
                self.give(Task::End(held));
            }
        }
    }

    /// No descriptor, no memory, or what else went wrong: what there is goes on, and new connections wait outside for a
    /// while.
    pub(super) fn lacks_room(&self, error: Option<&io::Error>) {
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
            None => log_shortage(),
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
    pub(super) fn take_quiet(&self) -> Vec<Held> {
        let has_input = |held: &Held| held.connection.fd().is_some_and(events::has_input);
        let mut quiet = self.held.take_all(|held| held.waits == Waits::KeepAlive && !has_input(held));
        for held in &mut quiet {
            self.uncount(Waits::KeepAlive);
            held.connection.shorten_end();
        }
        quiet
    }

    pub(super) fn gate(&self) -> MutexGuard<'_, Gate> {
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
    pub(super) fn unwatch_listeners(&self) {
        self.closed.store(true, Release);
        for listener in self.listeners.read().unwrap_or_else(PoisonError::into_inner).iter() {
            self.events.remove(listener.fd());
        }
        if let Some(summons) = &self.summons {
            self.events.remove(summons.as_fd());
        }
        score::set_closed(self.slot, true);
        self.call_others();
    }

    /// The kernel wakes one process for a connection. Where that was this one, which does not take it, nobody knows.
    fn call_others(&self) {
        if let Some(summons) = self.summons.as_ref().filter(|_| self.somebody_waits()) {
            summons.call();
        }
    }

    fn somebody_waits(&self) -> bool {
        let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().any(|listener| events::has_input(listener.fd()))
    }

    fn answer_summons(&self) {
        if !self.summons.as_ref().is_some_and(|summons| summons.answer()) {
            return;
        }
        if self.closed.load(Acquire) {
            // Called before that was so.
            return self.call_others();
        }
        self.watch_again(|_, listener| events::has_input(listener.fd()));
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
        if let Some(summons) = &self.summons {
            // Without it others' connections are found a little later.
            let token = LISTENER | u64::try_from(SUMMONS).unwrap_or(0);
            let _ = self.events.listen(summons.as_fd(), token);
        }
        gate.open();
        self.closed.store(false, Release);
        score::set_closed(self.slot, false);
        Ok(())
    }

    pub(super) fn open_gate_if_room(&self) {
        let may_be_opened = self.closed.load(Acquire) && self.complete.load(Acquire);
        if !may_be_opened || self.is_ending() || admission::is_full(self.load()) {
            return;
        }
        if !self.gate().may_open(self.timers.now()) {
            return;
        }
        if descriptor::next_number().is_ok_and(|number| number >= self.first_spared()) {
            return self.spare_descriptors();
        }
        if let Err(e) = self.open_gate() {
            log::main_server(Level::Crit, format!("POOL208: a listener cannot be watched: {e}; this frontend ends"));
            self.end_for_shortage();
        }
    }

    /// A connection that another process was woken for, and did not take, is taken here.
    pub(super) fn hear_listeners(&self) {
        if self.closed.load(Acquire) || self.counts.idle.load(Acquire) == 0 {
            return;
        }
        self.watch_again(|_, listener| events::has_input(listener.fd()));
    }

    /// Watches listeners anew, as the last of all processes; one that has something to accept wakes a thread here now.
    pub(super) fn watch_again(&self, which: impl Fn(usize, &Listener) -> bool) {
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
