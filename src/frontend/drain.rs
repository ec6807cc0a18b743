//! Workers whose client has left: what they still answer is read and dropped, until they are free again.
//!
//! Runs in: frontend; one thread of its own.  Trusts: nothing that a worker sends.  Owns: the leases of such requests.
//! Never: has a thread of the MPM wait; has a worker serve again whose answer broke the protocol.
//!
//! The worker is told by CLIENT_GONE. Its script sees it as under stock httpd, and may go on to its end, which has no limit.

use super::desk::Lease;
use super::{closer, errors, Frontend, FRONTEND};
use crate::httpd::log;
use crate::sys::events::{EventSet, Interest};
use crate::sys::socket::{self, Blocking, Received};
use crate::sys::{thread, wait};
use crate::wire::control::Returned;
use crate::wire::exchange::{ResponseChecker, Step};
use crate::wire::frame::{frames, put_frame, FrameKind, MAX_MESSAGE};
use crate::wire::plain_log::PlainLine;
use once_cell::sync::OnceCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Most of them in one frontend, and of one pool.
const MOST: usize = 256;
const MOST_OF_POOL: usize = 64;
/// Messages of one worker that are read in a row: the others get their turn then.
const MOST_TURNS: u32 = 16;
/// The set needs one; nobody rings.
const BELL: u64 = 0;

/// A request without a client.
#[derive(Debug)]
struct Drain {
    lease: Lease,
    checker: ResponseChecker,
    /// The kernel has told that a message was left unread.
    reset: bool,
    /// When the request has taken too long.
    expires: Option<Instant>,
}

#[derive(Debug, Default)]
struct Inner {
    last_token: u64,
    drains: HashMap<u64, Drain>,
    /// Of these, by pool, and one that the thread has in hand.
    of_pool: HashMap<u32, usize>,
    /// Those that are not watched for a moment: their pool has sent more than could be closed so far.
    paused: Vec<u64>,
}

/// All of this process.
#[derive(Debug, Default)]
pub struct Drains {
    set: OnceCell<EventSet>,
    inner: Mutex<Inner>,
}

impl Drains {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's set, started with the first of them.
    fn set(&self) -> io::Result<&EventSet> {
        self.set.get_or_try_init(|| {
            let set = EventSet::new(BELL)?;
            thread::spawn_quiet("mod_pool", || {
                if let Some(frontend) = FRONTEND.get() {
                    frontend.drain();
                }
            })?;
            Ok(set)
        })
    }

    /// Takes the lease of a request whose client has left. `checker` has seen what its worker has sent so far. Gives the
    /// lease back where there are too many, or the worker cannot be told.
    pub fn take(&self, mut lease: Lease, checker: ResponseChecker, expires: Option<Instant>) -> Result<(), Lease> {
        let Ok(set) = self.set() else { return Err(lease) };
        let mut inner = self.lock();
        let of_pool = inner.of_pool.get(&lease.pool).copied().unwrap_or_default();
        if inner.drains.len() >= MOST || of_pool >= MOST_OF_POOL {
            return Err(lease);
        }
        let mut message = Vec::new();
        put_frame(&mut message, FrameKind::ClientGone, 0, checker.exchange(), |_| {});
        if socket::send(lease.socket.as_fd(), &message, &[], Blocking::No).is_err() {
            return Err(lease);
        }
        lease.exchange = checker.exchange().next();
        let token = inner.last_token + 1;
        if set.arm(lease.socket.as_fd(), token, Interest::Read, false).is_err() {
            return Err(lease);
        }
        inner.last_token = token;
        inner.of_pool.insert(lease.pool, of_pool + 1);
        inner.drains.insert(token, Drain { lease, checker, reset: false, expires });
        Ok(())
    }

    /// Helper thread, several times a second.
    pub(super) fn resume(&self) {
        let Some(set) = self.set.get() else { return };
        let mut inner = self.lock();
        for token in std::mem::take(&mut inner.paused) {
            let armed = |drain: &Drain| set.arm(drain.lease.socket.as_fd(), token, Interest::Read, true).is_ok();
            // Without memory it is tried again.
            if inner.drains.get(&token).is_some_and(|drain| !armed(drain)) {
                inner.paused.push(token);
            }
        }
    }

    fn forget(&self, pool: u32) {
        let mut inner = self.lock();
        if let Some(count) = inner.of_pool.get_mut(&pool) {
            *count -= 1;
            if *count == 0 {
                inner.of_pool.remove(&pool);
            }
        }
    }
}

impl Frontend {
    /// The thread's work, for as long as the process lives.
    fn drain(&self) {
        let mut buffer = vec![0; MAX_MESSAGE];
        // Whoever has started the thread is about to put it there.
        let set = self.drains.set.wait();
        loop {
            let Ok(Some(token)) = set.wait() else { continue };
            let Some(mut drain) = self.drains.lock().drains.remove(&token) else { continue };
            let mut came = Vec::new();
            let pause = self.closer.is_stuck(drain.lease.pool);
            let how = if pause { None } else { self.read(&mut drain, &mut buffer, &mut came) };
            closer::discard(drain.lease.pool, came);
            let how = match how {
                Some(how) => how,
                None => {
                    let mut inner = self.drains.lock();
                    let goes_on = if pause {
                        inner.paused.push(token);
                        true
                    } else {
                        set.arm(drain.lease.socket.as_fd(), token, Interest::Read, true).is_ok()
                    };
                    if goes_on {
                        inner.drains.insert(token, drain);
                        continue;
                    }
                    Returned::Abandoned
                }
            };
            set.remove(drain.lease.socket.as_fd());
            self.drains.forget(drain.lease.pool);
            self.desk.release(drain.lease, how);
        }
    }

    /// Reads what there is, with descriptors to be closed; `None` where the answer is not over.
    fn read(&self, drain: &mut Drain, buffer: &mut [u8], all: &mut Vec<OwnedFd>) -> Option<Returned> {
        for _ in 0..MOST_TURNS {
            let received = match socket::receive_few(drain.lease.socket.as_fd(), buffer, Blocking::No) {
                Ok(received) => received,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                // It tells once that a message was left unread, before it gives what the worker has answered.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset && !drain.reset => {
                    drain.reset = true;
                    continue;
                }
                Err(_) => return Some(Returned::Dead),
            };
            let Received { len, fds, truncated, fds_lost, .. } = received;
            let came = fds.len();
            all.extend(fds);
            if len == 0 {
                let is_end = wait::is_hung_up(drain.lease.socket.as_fd(), false);
                return Some(if is_end { Returned::Dead } else { Returned::Violation });
            }
            if truncated || fds_lost {
                return Some(Returned::Violation);
            }
            match self.message(drain, &buffer[..len], came) {
                Ok(None) => {}
                Ok(Some(how)) => return Some(how),
                Err(()) => return Some(Returned::Violation),
            }
        }
        None
    }

    /// All frames of one message, by the rules that hold where there is a client.
    fn message(&self, drain: &mut Drain, message: &[u8], came: usize) -> Result<Option<Returned>, ()> {
        let (mut files, mut how) = (0, None);
        for frame in frames(message) {
            match drain.checker.take(&frame.map_err(drop)?).map_err(drop)? {
                Step::File(_) => files += 1,
                Step::Log(line) if errors::takes_line(drain.lease.pool, line.text.len(), None) => {
                    let text = PlainLine { level: line.level, module: line.module, text: line.text }.encode();
                    self.error_line(drain.lease.pool, drain.lease.pid, text);
                }
                Step::End(end) => {
                    drain.lease.processor = end.processor;
                    how = Some(if frame_is_last(&drain.checker) { Returned::Last } else { Returned::Idle });
                }
                Step::Abort { last, .. } => how = Some(if last { Returned::Last } else { Returned::Idle }),
                _ => {}
            }
        }
        if files == came {
            Ok(how)
        } else {
            Err(())
        }
    }

    /// Helper thread: those whose request took longer than `PoolRequestTimeout` end. One that is being read at this moment
    /// is found by the next look.
    pub(super) fn expire_drains(&self) {
        let Some(set) = self.drains.set.get() else { return };
        let now = Instant::now();
        let due: Vec<u64> = {
            let inner = self.drains.lock();
            let is_due = |drain: &Drain| drain.expires.is_some_and(|at| at <= now);
            inner.drains.iter().filter(|(_, drain)| is_due(drain)).map(|(token, _)| *token).collect()
        };
        for token in due {
            let Some(drain) = self.drains.lock().drains.remove(&token) else { continue };
            set.remove(drain.lease.socket.as_fd());
            self.drains.forget(drain.lease.pool);
            let name = usize::try_from(drain.lease.pool).ok().and_then(|i| self.pools.get(i)).map_or("?", |p| &p.name);
            let text = format!(
                "POOL147: [pool {name} pid {}] the worker, whose client has left, was ended by PoolRequestTimeout",
                drain.lease.pid
            );
            log::server(log::Level::Error, self.main, text);
            self.desk.release(drain.lease, Returned::Expired);
        }
    }

    /// This process ends: the controller looks after the workers whose scripts still run.
    pub(super) fn abandon_drains(&self) {
        let drains = std::mem::take(&mut self.drains.lock().drains);
        for drain in drains.into_values() {
            self.desk.release(drain.lease, Returned::Abandoned);
        }
    }
}

fn frame_is_last(checker: &ResponseChecker) -> bool {
    matches!(checker.stage(), crate::wire::exchange::Stage::Complete { last: true })
}
