//! The log writer: a child of the controller that writes the controller's lines, to the error log or to syslogd, and may
//! wait for either.
//!
//! Others hold the error log too: a piped logger's pipe, for one, is standard error of mod_cgid's scripts and mod_wsgi's
//! daemons, who can keep the pipe's mutex (splice(2)). Whoever writes to the pipe then waits in the kernel, and
//! `O_NONBLOCK`, poll(2) and SIGKILL change nothing. This process does, and the controller does not.
//!
//! Runs in: controller (one thread), its log writer.  Trusts: the controller's lines.  Owns: the controller's standard
//! error.  Never: closes the error log in the controller, waits in the controller.

use super::socket::{self, Blocking};
use super::{discard, fork, syslog, title};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// First byte of a line that is for syslogd. No line of text begins with it.
const FOR_SYSLOG: u8 = 1;
/// Longest line, in bytes.
const MAX_RECORD: usize = 8192;
/// How much may wait for the log writer, in bytes, the kernel's bookkeeping included: some hundred lines.
const QUEUE: libc::c_int = 256 * 1024;

/// Makes standard error the way to a log writer, and returns the end that it reads. Lines wait there until one is started.
/// Who has read the way of before finds its end behind what was said until now.
pub fn open_queue() -> io::Result<OwnedFd> {
    let (say, queue) = socket::seqpacket_pair()?;
    socket::buffer_size(say.as_fd(), QUEUE)?;
    // What is not said by `say`, as a panic is, does not wait either.
    nix::fcntl::fcntl(&say, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    super::privileges::duplicate_to(say.as_fd(), 2)?;
    Ok(queue)
}

/// A line as `say` and `write` take it: to syslogd.
pub fn for_syslog(message: &[u8]) -> Vec<u8> {
    [&[FOR_SYSLOG], message].concat()
}

/// Whether a line was taken. It does not wait; after [`open_queue`] only.
pub fn say(line: &[u8]) -> bool {
    socket::send(io::stderr().as_fd(), line, &[], Blocking::No).is_ok()
}

/// Starts a process that writes what comes from `queue` to `log`, and ends behind the last of it. Returns its pid.
pub fn start(queue: BorrowedFd<'_>, log: BorrowedFd<'_>) -> io::Result<u32> {
    match title::during("mod_pool: log writer", fork::fork_child)? {
        fork::Forked::Parent { child } => Ok(child),
        fork::Forked::Child => {
            title::set("mod_pool: log writer");
            let mut kept = [queue.as_raw_fd(), log.as_raw_fd()];
            kept.sort_unstable();
            discard::close_others(&kept);
            ignore_broken_pipe();
            let mut syslogd = syslog::Socket::default();
            let mut buf = [0; MAX_RECORD];
            loop {
                match socket::receive(queue, &mut buf, Blocking::Yes) {
                    Ok(got) if got.len > 0 => write(buf.get(..got.len).unwrap_or_default(), log, &mut syslogd),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    _ => fork::exit_now(0),
                }
            }
        }
    }
}

/// Writes a line to `log`, or to syslogd, and waits as long as that takes.
pub fn write(line: &[u8], log: BorrowedFd<'_>, syslogd: &mut syslog::Socket) {
    match line.split_first() {
        Some((&FOR_SYSLOG, message)) => syslogd.send(message),
        _ => write_all(line, log),
    }
}

fn write_all(mut bytes: &[u8], log: BorrowedFd<'_>) {
    while !bytes.is_empty() {
        match nix::unistd::write(log, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(nix::errno::Errno::EINTR) => {}
            // Whoever has the log, too, can set that.
            Err(nix::errno::Errno::EAGAIN) => {
                let mut poll = [nix::poll::PollFd::new(log, nix::poll::PollFlags::POLLOUT)];
                let _ = nix::poll::poll(&mut poll, nix::poll::PollTimeout::NONE);
            }
            // A full disk, or nobody who reads: as with a line of httpd's.
            Err(_) => return,
        }
    }
}

fn ignore_broken_pipe() {
    // SAFETY: SIG_IGN is a valid action; this process has one thread and no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn lines_are_written_whole_where_the_log_is_full_and_never_waits() {
        let (mut read, write_end) = std::io::pipe().expect("pipe");
        nix::fcntl::fcntl(&write_end, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .expect("O_NONBLOCK");
        let long = vec![b'x'; 300_000];
        let sent = long.clone();
        let writer = std::thread::spawn(move || write(&sent, write_end.as_fd(), &mut syslog::Socket::default()));
        let mut got = Vec::new();
        read.read_to_end(&mut got).expect("read");
        writer.join().expect("written");
        assert!(got == long, "{} bytes", got.len());
    }
}
