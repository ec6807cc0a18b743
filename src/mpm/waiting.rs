//! Connections that no thread has: what each waits for, and what wakes it.
//!
//! Runs in: frontend, the threads that serve, and the one that looks after time.  Trusts: httpd.
//! Owns: the counts of those that wait.  Never: handles a connection (`work` does).
#![forbid(unsafe_code)]

use super::child::{Frontend, Held, Task, Waits};
use super::work::millis;
use crate::httpd::log::{self, Level};
use crate::policy::mpm::slots::Token;
use crate::policy::Millis;
use crate::sys::events::Interest;
use std::io;
use std::sync::atomic::Ordering::AcqRel;

impl Frontend {
    /// Lets a connection wait; no thread has it afterwards.
    pub(super) fn park(&self, mut held: Held, waits: Waits) {
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
    pub(super) fn put(
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
    pub(super) fn watch_client(&self, held: &mut Held, token: Token, interest: Interest) -> io::Result<()> {
        let known = held.connection.watch();
        let fd = held.connection.fd().ok_or(io::ErrorKind::NotConnected)?;
        self.events.arm(fd, token, interest, known)
    }

    /// Lets a request wait without a thread.
    pub(super) fn park_request(&self, mut held: Held) {
        held.connection.leave();
        let token = held.connection.token();
        let until = held.connection.with_awaited(|awaited| self.timers.at(awaited.until));
        let parks = self.put(held, Waits::Request, until, |held, token| {
            let client = held.connection.with_awaited(|awaited| {
                if let Some(peer) = &awaited.peer {
                    self.events.arm(peer.fd, token, peer.interest, peer.watched.get())?;
                    peer.watched.set(true);
                }
                Ok::<_, io::Error>(awaited.client)
            });
            match client.transpose()?.flatten() {
                Some(client) => self.watch_client(held, token, client),
                None => Ok(()),
            }
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

    /// Has some thread go on with a request that was taken from where it was parked.
    pub(super) fn wake_parked(&self, held: Held) {
        self.uncount(Waits::Request);
        self.give(Task::GoOn(held));
    }

    pub(super) fn leave_to_module(&self, held: Held) {
        self.put(held, Waits::Module, None, |_, _| Ok(()));
    }

    /// The event of this connection is with the kernel still, until a thread comes for it. That is looked at again after
    /// `Timeout`.
    pub(super) fn park_again(&self, held: Held, now: Millis) {
        let deadline = now.saturating_add(millis(held.connection.timeout()));
        let waits = held.waits;
        self.put(held, waits, Some(deadline), |held, token| self.watch_client(held, token, Interest::Read));
    }

    pub(super) fn counter(&self, waits: Waits) -> Option<&std::sync::atomic::AtomicU32> {
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

    pub(super) fn count(&self, waits: Waits) {
        if let Some(counter) = self.counter(waits) {
            counter.fetch_add(1, AcqRel);
        }
    }

    pub(super) fn uncount(&self, waits: Waits) {
        if let Some(counter) = self.counter(waits) {
            counter.fetch_sub(1, AcqRel);
        }
    }
}
