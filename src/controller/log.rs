//! The controller's own log lines, in the form of httpd's error log, for standard error or for syslog.
//!
//! A child writes them, the log writer (`sys::logger`): a tenant may hold the log, by a daemon of another module that has it
//! open. What it does not take is counted, and told when it takes something again.
//!
//! Runs in: controller, keeper.  Trusts: nothing in the text.  Owns: the log writers, the error log.
//! Never: waits for who reads the log, or for who else writes it.

use super::{Controller, Source, Watched};
use crate::policy::Millis;
use crate::sys::fork::{self, Forked};
use crate::sys::process::PidFd;
use crate::sys::syslog::{self, Level};
use crate::sys::{descriptor, logger, wait};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest line, in bytes.
const MAX_LINE: usize = 4000;
/// Bytes that the time may take of it.
const TIME_LEN: usize = 40;
/// How soon another log writer is started where one has died, and how soon it is tried again to tell what was lost.
const RETRY: Millis = 1_000;
/// How long log writers may go on when the controller ends.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Lines that no log writer has taken, and that nobody was told of.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Those who write what we say.
#[derive(Debug, Default)]
pub(super) struct LogWriters {
    /// By pid. All but the current one have only the rest of an error log of before to write.
    running: HashMap<u32, Watched<PidFd>>,
    current: u32,
    started: Millis,
    /// What the current one reads and writes; the next one takes both over, should it die.
    queue: Option<OwnedFd>,
    log: Option<OwnedFd>,
}

impl LogWriters {
    fn writes(&self) -> bool {
        self.running.get(&self.current).is_some_and(|process| !process.what.has_ended())
    }

    pub(super) fn deadline(&self, now: Millis) -> Option<Millis> {
        (!self.running.contains_key(&self.current) || LOST.load(Ordering::Relaxed) > 0).then_some(now + RETRY)
    }

    pub(super) fn is_one(&self, pid: u32) -> bool {
        self.running.contains_key(&pid)
    }
}

/// Something the administrator has to do something about.
pub(super) fn error(text: &str) {
    say(&line(Level::Error, text));
}

/// Something worth knowing.
pub(super) fn notice(text: &str) {
    say(&line(Level::Notice, text));
}

/// As [`error`], in a process that has no log writer: a child of it writes this one line, and is reaped by somebody.
pub(super) fn error_by_child(text: &str) {
    if let Ok(Forked::Child) = fork::fork_child() {
        logger::write(&line(Level::Error, text), io::stderr().as_fd(), &mut syslog::Socket::default());
        fork::exit_now(0);
    }
}

fn line(level: Level, text: &str) -> Vec<u8> {
    let word = match level {
        Level::Error => "error",
        Level::Notice => "notice",
    };
    let mut out = format!("[pool:{word}] [pid {}] ", std::process::id()).into_bytes();
    escape_all(text, &mut out);
    out.truncate(MAX_LINE - TIME_LEN);
    match syslog::message(level, &out) {
        Some(message) => logger::for_syslog(&message),
        None => [format!("[{}] ", descriptor::local_time()).as_bytes(), &out, b"\n"].concat(),
    }
}

/// A log that cannot take a line now loses it: the pools go on.
fn say(line: &[u8]) {
    tell_lost();
    if LOST.load(Ordering::Relaxed) > 0 || !logger::say(line) {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// Says how many lines were lost, as soon as one is taken again, and before the next one.
fn tell_lost() {
    let lost = LOST.load(Ordering::Relaxed);
    if lost > 0 {
        let lines = if lost == 1 { "line" } else { "lines" };
        let text = format!("mod_pool: POOL134: {lost} {lines} of the controller were lost: the log did not take them");
        if logger::say(&line(Level::Error, &text)) {
            LOST.fetch_sub(lost, Ordering::Relaxed);
        }
    }
}

impl Controller {
    /// From now on our standard error is the way to a log writer.
    pub(super) fn begin_logging(&mut self) -> io::Result<()> {
        self.log_writers.log = Some(io::stderr().as_fd().try_clone_to_owned()?);
        self.log_writers.queue = Some(logger::open_queue()?);
        self.start_log_writer();
        Ok(())
    }

    /// Where that fails, lines wait, and it is tried again.
    fn start_log_writer(&mut self) {
        self.log_writers.started = self.now();
        let (Some(queue), Some(log)) = (&self.log_writers.queue, &self.log_writers.log) else { return };
        let Ok(pid) = logger::start(queue.as_fd(), log.as_fd()) else { return };
        // One that cannot be watched is found as an orphan.
        if let Ok(process) = self.watch_child(pid, Source::LogWriter(pid)) {
            self.log_writers.running.insert(pid, process);
            self.log_writers.current = pid;
        }
    }

    /// The error log of another configuration. What was said before gets into the one before, where there is a log writer.
    pub(super) fn use_error_log(&mut self, log: OwnedFd) {
        let old = self.log_writers.log.replace(log);
        if self.log_writers.writes() {
            // Whoever closes the last copy of a pipe takes its mutex: the log writer does, which has one until its queue ends.
            drop(old);
            match logger::open_queue() {
                Ok(queue) => self.log_writers.queue = Some(queue),
                Err(e) => return error(&format!("mod_pool: lines go to the error log of before: {e}")),
            }
        } else {
            self.discard(None, old);
        }
        self.start_log_writer();
    }

    pub(super) fn reap_log_writer(&mut self, pid: u32) {
        if self.log_writers.running.get(&pid).is_some_and(|process| process.what.reap().is_some()) {
            self.pids.remove(&pid);
            let process = self.log_writers.running.remove(&pid);
            self.close(process);
        }
    }

    /// Starts a log writer where there is none, and tells what was lost.
    pub(super) fn look_after_log(&mut self) {
        let gone = !self.log_writers.running.contains_key(&self.log_writers.current);
        if gone && self.now() >= self.log_writers.started + RETRY {
            self.start_log_writer();
        }
        tell_lost();
    }

    /// At the end: what was said is written, if that goes at once.
    pub(super) fn end_logging(&mut self) {
        tell_lost();
        // A queue of which the end is never read: nothing is said from now on.
        drop(logger::open_queue());
        let began = Instant::now();
        for process in self.log_writers.running.values() {
            wait::readable_within(process.what.as_fd(), LAST_LINES.saturating_sub(began.elapsed()));
            process.what.kill();
            process.what.reap();
        }
    }
}

/// Appends foreign text without any character that a terminal or a log reader acts on. U+0080 to U+009F are such, too:
/// terminals take CSI (U+009B) for ESC [.
fn escape_all(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        let bytes = &mut [0; 4];
        let bytes = c.encode_utf8(bytes).as_bytes();
        if c.is_control() && c != '\t' {
            bytes.iter().for_each(|byte| out.extend(format!("\\x{byte:02x}").bytes()));
        } else {
            out.extend(bytes);
        }
    }
}

/// Appends a line of foreign text without control bytes of ASCII. It goes to a frontend, where httpd escapes all others.
pub(super) fn escape(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        if byte == b'\t' || (byte >= 0x20 && byte != 0x7f) {
            out.push(byte);
        } else {
            out.extend(format!("\\x{byte:02x}").bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn control_bytes_are_escaped_and_others_stay() {
        let mut out = Vec::new();
        super::escape(b"a\n\x1b[1m\tb\x7f\xc3\xa4", &mut out);
        assert_eq!(out, b"a\\x0a\\x1b[1m\tb\\x7f\xc3\xa4");
    }

    #[test]
    fn no_character_steers_a_terminal() {
        let mut out = Vec::new();
        super::escape_all("a\n\x1b[1m\tb\x7f \u{9b}1m \u{e4}\u{20ac}", &mut out);
        assert_eq!(out, "a\\x0a\\x1b[1m\tb\\x7f \\xc2\\x9b1m \u{e4}\u{20ac}".as_bytes());
    }
}
