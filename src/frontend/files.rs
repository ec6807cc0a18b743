//! Files that workers have sent: read without waiting, or by threads of the pool's own, which also close them.
//!
//! Runs in: frontend; threads with requests, and a few for each pool that has such files.
//! Trusts: nothing of them but that they were accepted.  Owns: the files' descriptors.
//! Never: waits for a file in a thread that serves others, or lets one close it.
//!
//! The description of such a file is shared with the tenant: its flags cannot be relied on, its inode's lock may be held,
//! and its last close may have to free a file of any size.

use super::FRONTEND;
use crate::httpd::parking::{self, Ticket};
use crate::sys::file::{self, Plain, Reads};
use crate::sys::thread;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Threads of one pool that may be in the kernel with its files.
const MOST_THREADS: u32 = 4;
/// How often an idle one of them looks whether there is something to close, and after how many looks in vain it ends.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 100;
/// So many to be closed are closed at once.
const MANY: usize = 64;
/// With so many, no file of the pool is read before some are closed. Where none of them could be for [`CLOSE_PATIENCE`], or
/// with so many more in any case, the pool gets no requests here: a frontend needs its descriptors for clients.
const TOO_MANY: usize = 256;
const MOST: usize = 1024;
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes that are brought into memory when a piece was not there.
const AHEAD: usize = 1024 * 1024;
/// The pauses between two looks whether a piece is in memory now.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// So long a thread that cannot be spared waits for a piece.
const SPARE: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
struct State {
    reads: VecDeque<Arc<Reading>>,
    closes: Vec<OwnedFd>,
    /// How many are being closed, and since when.
    closing: Option<(usize, Instant)>,
    threads: u32,
    idle: u32,
}

/// What one pool has of it in this process.
#[derive(Debug, Default)]
pub struct PoolFiles {
    state: Mutex<State>,
    news: Condvar,
    /// Something was to be closed once.
    any: AtomicBool,
    /// Threads that serve requests and wait for a piece.
    waiting: AtomicU32,
}

/// A file that a worker has sent. Its last share is closed by the pool's own thread.
pub struct TenantFile {
    fd: Option<OwnedFd>,
    reads: Reads,
    pool: &'static PoolFiles,
}

impl fmt::Debug for TenantFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantFile").field("fd", &self.fd).field("reads", &self.reads).finish_non_exhaustive()
    }
}

impl TenantFile {
    pub fn new(pool: &'static PoolFiles, fd: OwnedFd, plain: Plain) -> Arc<Self> {
        Arc::new(Self { fd: Some(fd), reads: plain.reads, pool })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// What is in memory of `len` bytes from `at` on; `None` if a thread of the pool's own has to read it.
    pub fn read_now(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        if self.reads == Reads::Apart || self.pool.is_behind() {
            return None;
        }
        // Whatever is wrong with it, it is the other thread that finds out.
        file::read_now(self.fd()?, at, len, &mut bytes).ok().map(|_| bytes)
    }

    /// Has a thread of the pool's own read `len` bytes from `at` on, and wake who is parked with this ticket.
    pub fn read_later(self: &Arc<Self>, at: u64, len: usize, until: Instant, ticket: Option<Ticket>) -> Arc<Reading> {
        let reading = Arc::new(Reading {
            file: Arc::clone(self),
            at,
            len,
            until,
            ticket,
            done: AtomicBool::new(false),
            result: Mutex::new(None),
            came: Condvar::new(),
        });
        self.pool.read(Arc::clone(&reading));
        reading
    }
}

impl Drop for TenantFile {
    fn drop(&mut self) {
        self.pool.close(self.fd.take());
    }
}

/// A piece of a file on its way into memory.
#[derive(Debug)]
pub struct Reading {
    file: Arc<TenantFile>,
    at: u64,
    len: usize,
    until: Instant,
    /// Who waits for it, if parked.
    ticket: Option<Ticket>,
    done: AtomicBool,
    result: Mutex<Option<io::Result<Vec<u8>>>>,
    came: Condvar,
}

impl Reading {
    /// Until when it has to be there.
    pub fn until(&self) -> Instant {
        self.until
    }

    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// What was read, if it is there; no byte is the end of the file. A piece that comes too late is none.
    pub fn take(&self) -> Option<io::Result<Vec<u8>>> {
        let mut result = self.lock();
        match result.take() {
            None if Instant::now() >= self.until => {
                // Nobody waits for it any more.
                self.done.store(true, Ordering::Release);
                Some(Err(io::ErrorKind::TimedOut.into()))
            }
            result => result,
        }
    }

    /// Waits for it: until its time is over, or for a moment if `limit` threads are with such files of the pool already.
    pub fn wait(&self, limit: Option<u32>) -> io::Result<Vec<u8>> {
        let others = self.file.pool.waiting.fetch_add(1, Ordering::Relaxed);
        let spared = limit.is_none_or(|limit| others < limit);
        let until = if spared { self.until } else { self.until.min(Instant::now() + SPARE) };
        let mut result = self.lock();
        let read = loop {
            let left = until.saturating_duration_since(Instant::now());
            if let Some(read) = result.take() {
                break read;
            }
            if left.is_zero() {
                self.done.store(true, Ordering::Release);
                break Err(io::ErrorKind::TimedOut.into());
            }
            result = self.came.wait_timeout(result, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(result);
        self.file.pool.waiting.fetch_sub(1, Ordering::Relaxed);
        read
    }

    fn lock(&self) -> MutexGuard<'_, Option<io::Result<Vec<u8>>>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On a thread of the pool's own.
    fn run(&self) {
        if self.is_done() {
            return;
        }
        let read = self.read();
        *self.lock() = Some(read);
        self.done.store(true, Ordering::Release);
        match self.ticket {
            Some(ticket) => parking::wake(ticket),
            None => self.came.notify_all(),
        }
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let fd = self.file.fd().ok_or(io::ErrorKind::NotFound)?;
        if self.file.reads == Reads::Quickly {
            file::read_ahead(fd, self.at, AHEAD.max(self.len));
            let mut pause = FIRST_PAUSE;
            // A thread that slept in the kernel until a tenant lets go of a lock would keep this process from ending.
            loop {
                match file::read_now(fd, self.at, self.len, &mut bytes) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock && !self.is_done() => {}
                    Err(e) if e.kind() == io::ErrorKind::Unsupported => break,
                    read => return read.map(|_| bytes),
                }
                if Instant::now() >= self.until {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        file::read_at(fd, self.at, self.len, &mut bytes)?;
        Ok(bytes)
    }
}

/// Has a descriptor closed by a thread of the pool with this index.
pub fn close(pool: u32, fd: OwnedFd) {
    let facts = FRONTEND.get().and_then(|f| f.pools.get(usize::try_from(pool).ok()?));
    if let Some(facts) = facts {
        facts.files.close([fd]);
    }
}

impl State {
    /// Descriptors that are not closed yet.
    fn unclosed(&self) -> usize {
        self.closing.map_or(0, |(count, _)| count) + self.closes.len()
    }
}

impl PoolFiles {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&'static self, reading: Arc<Reading>) {
        let mut state = self.lock();
        state.reads.push_back(reading);
        if state.idle > 0 {
            self.news.notify_one();
        }
        if state.reads.len() > state.idle as usize {
            self.start(state);
        }
    }

    /// Has a thread of the pool's own close descriptors that its processes have, or had, a share in.
    pub fn close(&'static self, fds: impl IntoIterator<Item = OwnedFd>) {
        let mut state = self.lock();
        state.closes.extend(fds);
        self.any.store(true, Ordering::Relaxed);
        if state.threads == 0 {
            self.start(state);
        } else if state.closes.len() >= MANY && state.idle > 0 {
            self.news.notify_one();
        }
    }

    /// So many are left to be closed that no more may come.
    pub fn is_stuck(&self) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let state = self.lock();
        let count = state.unclosed();
        let late = || state.closing.is_some_and(|(_, since)| since.elapsed() >= CLOSE_PATIENCE);
        count >= MOST || (count >= TOO_MANY && late())
    }

    /// Its files wait until more of them are closed.
    fn is_behind(&self) -> bool {
        self.any.load(Ordering::Relaxed) && self.lock().unclosed() >= TOO_MANY
    }

    /// One thread more, if there may be. Where there can be none, what is to be done waits for the next try.
    fn start(&'static self, mut state: MutexGuard<'_, State>) {
        if state.threads >= MOST_THREADS {
            return;
        }
        state.threads += 1;
        drop(state);
        if thread::spawn_quiet("mod_pool", || self.work()).is_err() {
            self.lock().threads -= 1;
        }
    }

    fn work(&self) {
        let mut state = self.lock();
        let mut looks = 0;
        loop {
            let next = if state.unclosed() < TOO_MANY { state.reads.pop_front() } else { None };
            if let Some(reading) = next {
                drop(state);
                reading.run();
                // It may have the last share in its file.
                drop(reading);
                state = self.lock();
            } else if !state.closes.is_empty() && state.closing.is_none() {
                let fds = std::mem::take(&mut state.closes);
                state.closing = Some((fds.len(), Instant::now()));
                drop(state);
                drop(fds);
                state = self.lock();
                state.closing = None;
            } else if looks >= LOOKS {
                state.threads -= 1;
                if state.threads == 0 {
                    self.any.store(false, Ordering::Relaxed);
                }
                return;
            } else {
                looks += 1;
                state.idle += 1;
                state = self.news.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
                state.idle -= 1;
                continue;
            }
            looks = 0;
        }
    }
}
