//! What the processes of pools write to their standard error: split into lines, limited, sent on to a frontend.
//!
//! It is a stream socket, not a pipe: a tenant can hold a pipe's mutex (splice(2)), and who reads or closes the pipe waits
//! for him. What comes as a descriptor is left in it, and closed elsewhere.
//!
//! Runs in: controller.  Trusts: nothing in the lines.  Owns: the read ends of these sockets.
//! Never: waits for a reader or a writer, lets one pool use more than its share, passes a control byte on.

use super::{log, Controller, Source, Watched};
use crate::policy::{Millis, PoolKey};
use crate::sys::{descriptor, launch, socket};
use crate::wire::control::{ControllerMessage, MAX_LOG_LINE};
use crate::wire::plain_log::PlainLine;
use std::collections::{hash_map::Entry, HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};

/// Bytes of one pool that are logged in each [`PERIOD`].
const ALLOWANCE: usize = 64 * 1024;
/// Bytes that a line costs beside its own: what httpd writes in front of it, and the work of everybody on its way.
const LINE_COST: usize = 128;
const PERIOD: Millis = 1_000;
/// Bytes of one pool that are read in each period, most of them dropped: who writes more waits, instead of keeping the
/// controller busy.
const READ_ALLOWANCE: usize = 4 << 20;
/// Bytes read from one socket before others get their turn: what the socket itself holds by default, and a write more.
const READ: usize = 4096;
const READS: usize = 24;
/// Looks at the sockets of one pool in each period, whenever there is something: a look costs more than the write of one byte
/// that calls for it. What comes then is looked at in turns, [`TURN_LOOKS`] of the sockets after each [`TURN`].
const LOOKS: usize = 500;
const TURN: Millis = 10;
const TURN_LOOKS: usize = 2;
/// Of each pool, one line about a descriptor is logged in this time.
const NOTE_INTERVAL: Millis = 60_000;

/// The standard error of one process.
#[derive(Debug)]
struct Errors {
    fd: Watched<OwnedFd>,
    key: PoolKey,
    /// 0 until the process is known.
    pid: u32,
    line: Vec<u8>,
    /// The rest of a line that was too long is skipped.
    skipping: bool,
}

#[derive(Debug, Default)]
struct Budget {
    since: Millis,
    bytes: usize,
    read: usize,
    dropped: u64,
    /// Those that are not watched until the period ends.
    paused: Vec<u64>,
    looks: usize,
    /// Those that are not watched until their turn comes, and when the next turn is.
    waiting: VecDeque<u64>,
    turn: Option<Millis>,
}

impl Budget {
    fn new(since: Millis) -> Self {
        Self { since, ..Self::default() }
    }

    /// Counts a look at this socket. Whether it waits for its turn from now on.
    fn looked(&mut self, number: u64, now: Millis) -> bool {
        self.looks += 1;
        if self.looks <= LOOKS {
            return false;
        }
        self.waiting.push_back(number);
        self.turn.get_or_insert(now + TURN);
        true
    }

    /// Those whose turn it is.
    fn take_turn(&mut self, now: Millis) -> Vec<u64> {
        if self.turn.is_none_or(|at| now < at) {
            return Vec::new();
        }
        let count = self.waiting.len().min(TURN_LOOKS);
        let turn = self.waiting.drain(..count).collect();
        self.turn = (!self.waiting.is_empty()).then_some(now + TURN);
        turn
    }

    /// Counts a line. Whether it is to be logged.
    fn takes(&mut self, len: usize) -> bool {
        let cost = len + LINE_COST;
        let fits = self.bytes + cost <= ALLOWANCE;
        if fits {
            self.bytes += cost;
        } else {
            self.dropped += 1;
        }
        fits
    }
}

/// All of them, and what each pool has written in this period.
#[derive(Debug, Default)]
pub(super) struct PoolErrors {
    open: HashMap<u64, Errors>,
    budgets: HashMap<PoolKey, Budget>,
    /// When it was last said of which pool that a descriptor came.
    noted: HashMap<PoolKey, Millis>,
}

impl PoolErrors {
    pub(super) fn set_pid(&mut self, number: u64, pid: u32) {
        if let Some(errors) = self.open.get_mut(&number) {
            errors.pid = pid;
        }
    }

    /// When the next period of a pool ends, or the next turn of a pool's sockets comes.
    pub(super) fn deadline(&self) -> Option<Millis> {
        let next = |b: &Budget| b.turn.map_or(b.since + PERIOD, |turn| turn.min(b.since + PERIOD));
        self.budgets.values().map(next).min()
    }
}

impl Errors {
    /// Takes bytes in and gives out whole lines, of at most [`MAX_LOG_LINE`] bytes each after escaping.
    fn take(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                if !self.skipping && !self.line.is_empty() {
                    lines.push(self.escaped());
                }
                self.line.clear();
                self.skipping = false;
            } else if !self.skipping {
                self.line.push(byte);
                if self.line.len() >= MAX_LOG_LINE {
                    lines.push(self.escaped());
                    self.line.clear();
                    self.skipping = true;
                }
            }
        }
        lines
    }

    fn escaped(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.line.len());
        log::escape(&self.line, &mut out);
        out.truncate(MAX_LOG_LINE);
        out
    }
}

impl Controller {
    /// The standard error of a process to be: our end, and its own. Where we are not root the process is of our own user,
    /// who may end us anyway: it is a pipe there, which may be opened by its path (`/dev/stderr`), as under stock httpd.
    pub(super) fn errors_pair(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        if self.root {
            socket::one_way()
        } else {
            descriptor::pipe()
        }
    }

    /// Watches the standard error of a process of a pool. Returns its number.
    pub(super) fn add_pool_errors(&mut self, fd: OwnedFd, key: PoolKey) -> io::Result<u64> {
        let number = self.number();
        let token = self.watch(fd.as_fd(), Source::PoolErrors(number))?;
        let fd = Watched { token, what: fd };
        self.errors.open.insert(number, Errors { fd, key, pid: 0, line: Vec::new(), skipping: false });
        Ok(number)
    }

    /// Something is there, or seems to be.
    pub(super) fn look_at_pool_errors(&mut self, number: u64) {
        self.read_pool_errors(number, false);
        let now = self.now();
        let Some(errors) = self.errors.open.get(&number) else {
            return;
        };
        let budget = self.errors.budgets.entry(errors.key).or_insert_with(|| Budget::new(now));
        if !budget.paused.contains(&number) && budget.looked(number, now) {
            self.poller.remove(&errors.fd.what);
        }
    }

    /// All that there is, as far as it is allowed; or, where it is not the last look, until a read brings less than it asks
    /// for: either that was all, or the process marks each byte as urgent, and a read ends at each mark.
    fn read_pool_errors(&mut self, number: u64, last: bool) {
        let mut buf = [0; READ];
        for _ in 0..READS {
            let Some(errors) = self.errors.open.get_mut(&number) else {
                return;
            };
            let read = if self.root {
                socket::receive_stream(errors.fd.what.as_fd(), &mut buf)
            } else {
                descriptor::read(&errors.fd.what, &mut buf)
            };
            match read {
                Ok(n @ 1..) => {
                    let lines = errors.take(buf.get(..n).unwrap_or_default());
                    let (key, pid) = (errors.key, errors.pid);
                    let too_much = self.note_read(key, n);
                    for line in lines {
                        self.pool_line(key, pid, line);
                    }
                    if too_much {
                        return self.pause_pool_errors(number);
                    }
                    if n < READ && !last {
                        return;
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
                Err(e) if e.kind() == ErrorKind::InvalidData => {
                    let (key, pid) = (errors.key, errors.pid);
                    self.note_descriptor(key, pid);
                    return self.close_pool_errors(number);
                }
                Ok(_) | Err(_) => return self.close_pool_errors(number),
            }
        }
    }

    fn note_descriptor(&mut self, key: PoolKey, pid: u32) {
        let now = self.now();
        self.errors.noted.retain(|_, at| now < *at + NOTE_INTERVAL);
        if let Entry::Vacant(place) = self.errors.noted.entry(key) {
            place.insert(now);
            let pool = self.pool_name(key);
            log::error(&format!(
                "mod_pool: POOL131: pool {pool}: process {pid} has sent a descriptor by its standard error, of which no \
                 more is read"
            ));
        }
    }

    /// Counts what was read. Whether it is too much for this period.
    fn note_read(&mut self, key: PoolKey, n: usize) -> bool {
        let now = self.now();
        let budget = self.errors.budgets.entry(key).or_insert_with(|| Budget::new(now));
        budget.read += n;
        budget.read > READ_ALLOWANCE
    }

    fn pause_pool_errors(&mut self, number: u64) {
        let Some(errors) = self.errors.open.get(&number) else {
            return;
        };
        if let Some(budget) = self.errors.budgets.get_mut(&errors.key) {
            self.poller.remove(&errors.fd.what);
            budget.paused.push(number);
        }
    }

    fn resume_pool_errors(&mut self, number: u64) {
        if let Some(errors) = self.errors.open.get(&number) {
            let failed = self.poller.add(&errors.fd.what, errors.fd.token);
            // Without memory it is tried again; else its process would wait for ever. It is watched already if it was never
            // paused.
            if failed.is_err_and(|e| e.kind() != ErrorKind::AlreadyExists) {
                let (key, since) = (errors.key, self.now());
                self.errors.budgets.entry(key).or_insert_with(|| Budget::new(since)).paused.push(number);
            }
        }
    }

    /// The process is gone: what it wrote last is read, then this end is closed, whoever else may hold the other.
    pub(super) fn finish_pool_errors(&mut self, number: u64) {
        self.read_pool_errors(number, true);
        self.close_pool_errors(number);
    }

    fn close_pool_errors(&mut self, number: u64) {
        let Some(errors) = self.errors.open.remove(&number) else {
            return;
        };
        self.unwatch(errors.fd.token, &errors.fd.what);
        if !errors.line.is_empty() && !errors.skipping {
            self.pool_line(errors.key, errors.pid, errors.escaped());
        }
        if self.root {
            self.end(Some(errors.key), errors.fd.what);
        }
    }

    fn pool_line(&mut self, key: PoolKey, pid: u32, line: Vec<u8>) {
        let now = self.now();
        let budget = self.errors.budgets.entry(key).or_insert_with(|| Budget::new(now));
        if !budget.takes(line.len()) {
            return;
        }
        if !self.send_pool_line(key, pid, line) {
            if let Some(budget) = self.errors.budgets.get_mut(&key) {
                budget.dropped += 1;
            }
        }
    }

    /// To a frontend of the generation, or to the own log where there is none. Whether it went out.
    fn send_pool_line(&mut self, key: PoolKey, pid: u32, line: Vec<u8>) -> bool {
        let message = ControllerMessage::Log { pool: key.pool, pid: pid.max(1), line };
        if let Some(sent) = self.log_to_frontend(key.generation, &message) {
            return sent;
        }
        if let ControllerMessage::Log { line, .. } = &message {
            let line = PlainLine::decode(line).map_or(line.as_slice(), |line| line.text);
            let text = String::from_utf8_lossy(line);
            log::notice(&format!("mod_pool: pool {} pid {pid}: {text}", self.pool_name(key)));
        }
        true
    }

    /// Ends the periods and turns that are over, and says how many lines were lost in each period.
    pub(super) fn report_dropped_lines(&mut self) {
        let now = self.now();
        let mut dropped = Vec::new();
        let mut paused = Vec::new();
        self.errors.budgets.retain(|key, budget| {
            if budget.since + PERIOD > now {
                paused.extend(budget.take_turn(now));
                return true;
            }
            paused.append(&mut budget.paused);
            paused.extend(budget.waiting.drain(..));
            if budget.dropped > 0 {
                dropped.push((*key, budget.dropped));
            }
            false
        });
        for number in paused {
            self.resume_pool_errors(number);
        }
        for (key, count) in dropped {
            let text = format!("{count} lines dropped");
            if !self.send_pool_line(key, launch::own_pid(), text.clone().into_bytes()) {
                log::notice(&format!("mod_pool: pool {}: {text}", self.pool_name(key)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors() -> Errors {
        let (what, _) = socket::one_way().expect("any descriptor");
        let key = PoolKey { generation: 1, pool: 1 };
        Errors { fd: Watched { token: 0, what }, key, pid: 1, line: Vec::new(), skipping: false }
    }

    #[test]
    fn bytes_become_lines_whatever_the_pieces() {
        let mut errors = errors();
        assert_eq!(errors.take(b"one\ntw"), vec![b"one".to_vec()]);
        assert_eq!(errors.take(b"o\n\n\x1b\n"), vec![b"two".to_vec(), b"\\x1b".to_vec()]);
    }

    #[test]
    fn short_lines_use_up_the_allowance_too() {
        let mut budget = Budget::default();
        let taken = (0..100_000).filter(|_| budget.takes(1)).count();
        assert_eq!((taken, budget.dropped), (508, 100_000 - 508));
        let mut budget = Budget::default();
        assert_eq!((0..100).filter(|_| budget.takes(MAX_LOG_LINE)).count(), 30);
    }

    #[test]
    fn who_calls_too_often_is_looked_at_in_turns() {
        let mut budget = Budget::new(0);
        assert_eq!((1..=LOOKS).filter(|_| budget.looked(7, 1)).count(), 0);
        assert_eq!(budget.take_turn(5000), []);
        for number in [7, 8, 9] {
            assert!(budget.looked(number, 1));
        }
        assert_eq!(budget.take_turn(TURN), []);
        assert_eq!(budget.take_turn(1 + TURN), [7, 8]);
        assert!(budget.looked(7, 1 + TURN), "and again");
        assert_eq!(budget.take_turn(1 + TURN), []);
        assert_eq!(budget.take_turn(1 + 2 * TURN), [9, 7], "each in its order");
        assert_eq!((budget.take_turn(9000), budget.turn), (vec![], None));
    }

    #[test]
    fn a_line_without_end_is_cut_once() {
        let mut errors = errors();
        let lines = errors.take(&[b'x'; 3 * MAX_LOG_LINE]);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].len(), MAX_LOG_LINE);
        assert_eq!(errors.take(b"rest\nnext\n"), vec![b"next".to_vec()]);
    }
}
