//! What a pool's processes write to their standard error, on its way into the log of their virtual host; and how much its
//! requests may write there.
//!
//! Runs in: frontend; one thread for each pool while there are such lines.  Trusts: nothing in the lines.
//! Owns: lines that are not written yet.  Never: writes one in a thread that serves others.
//!
//! An error log may be a pipe to a slow program, or a file on a slow file system: who writes to it waits.

use super::{Frontend, FRONTEND};
use crate::httpd::errorlog::{self, Writer};
use crate::httpd::{hooks, log};
use crate::policy::lines::Fate;
use crate::sys::thread;
use crate::wire::plain_log::PlainLine;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// So many lines of a pool may wait; the others are counted. Each has `MAX_LOG_LINE` bytes at most.
const MOST: usize = 500;

#[derive(Debug)]
struct Line {
    pid: u32,
    text: Vec<u8>,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Line>,
    dropped: u64,
}

/// Lines that wait, by pool. A pool that is in it has a thread.
#[derive(Debug, Default)]
pub struct ErrorLines {
    pools: Mutex<HashMap<u32, Queue>>,
}

impl ErrorLines {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Queue>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line in. Whether the pool needs a thread for it.
    fn push(&self, pool: u32, line: Line) -> bool {
        let mut pools = self.lock();
        let is_new = !pools.contains_key(&pool);
        let queue = pools.entry(pool).or_default();
        if queue.lines.len() < MOST {
            queue.lines.push_back(line);
        } else {
            queue.dropped += 1;
        }
        is_new
    }

    /// What to write next, and how many lines were dropped before it. `None` ends the pool's thread.
    fn next(&self, pool: u32) -> Option<(Line, u64)> {
        let mut pools = self.lock();
        let queue = pools.get_mut(&pool)?;
        let Some(line) = queue.lines.pop_front() else {
            pools.remove(&pool);
            return None;
        };
        Some((line, std::mem::take(&mut queue.dropped)))
    }
}

/// How long what was dropped is gathered before a line tells of it.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// A request of the pool writes a line of `len` bytes into the error log, about a client with this address. Whether it may:
/// what the pool's requests have written in this second, in all frontends, leaves room for it. If not, it is counted, and a line will say so.
pub fn takes_line(pool: u32, len: usize, client: Option<&[u8]>) -> bool {
    let facts = FRONTEND.get().and_then(|f| Some((f, f.pools.get(usize::try_from(pool).ok()?)?)));
    let Some((frontend, facts)) = facts else { return true };
    match facts.lines.line(Frontend::now(), len, client) {
        Fate::Written => true,
        Fate::Dropped { tell } => {
            let told = move || {
                std::thread::sleep(TELL_AFTER);
                frontend.tell_dropped(pool);
            };
            if tell && thread::spawn_quiet("mod_pool", told).is_err() {
                frontend.tell_dropped(pool);
            }
            false
        }
    }
}

impl Frontend {
    fn tell_dropped(&self, pool: u32) {
        let Some(facts) = usize::try_from(pool).ok().and_then(|i| self.pools.get(i)) else { return };
        let dropped = facts.lines.dropped();
        if dropped > 0 {
            let server = self.logs.get(&pool).copied().unwrap_or(self.main);
            let name = &facts.name;
            let text =
                format!("[pool {name}] {dropped} lines dropped: its requests log more than a pool may in a second");
            log::server(log::Level::Error, server, text);
        }
    }

    /// A line of a pool's standard error, as the controller sent it.
    pub(super) fn error_line(&self, pool: u32, pid: u32, text: Vec<u8>) {
        if !self.errors.push(pool, Line { pid, text }) {
            return;
        }
        let work = move || {
            if let Some(frontend) = FRONTEND.get() {
                frontend.write_error_lines(pool);
            }
        };
        if thread::spawn_quiet("mod_pool", work).is_err() {
            self.errors.lock().remove(&pool);
        }
    }

    fn write_error_lines(&self, pool: u32) {
        let name = usize::try_from(pool).ok().and_then(|i| self.pools.get(i)).map_or("?", |p| &p.name);
        let server = self.logs.get(&pool).copied().unwrap_or(self.main);
        // Such a line has no client of its own: with nothing in front of it, `[client 192.0.2.1:1] user x: password mismatch`
        // would be what httpd writes about that client.
        let is_named = errorlog::format_names_pool(server);
        while let Some((line, dropped)) = self.errors.next(pool) {
            let writer = Writer { pool: name, pid: line.pid };
            let front = if is_named { "stderr: ".into() } else { format!("[pool {name} pid {}] ", line.pid) };
            let (module, level, text) = match PlainLine::decode(&line.text) {
                Some(told) => (hooks::module_index_of(told.module), told.level, told.text),
                None => (hooks::module_index(c"mod_pool.c"), log::Level::Error as u8, line.text.as_slice()),
            };
            log::server_as(&writer, server, module, level, [front.as_bytes(), text].concat());
            if dropped > 0 {
                let told = format!("[pool {name}] {dropped} lines dropped: the log is written too slowly");
                log::server(log::Level::Error, server, told);
            }
        }
    }
}
