//! Waiting for many descriptors at once (epoll(7)), and signals as a descriptor (signalfd(2)).
//!
//! Runs in: controller.  Trusts: the kernel.  Owns: the epoll descriptor.  Never: owns what it watches.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// Most events taken at a time: a loop that does more between two looks at the clock misses deadlines.
const BATCH: usize = 64;

/// A set of descriptors, each with a number that its events carry.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, events: vec![EpollEvent::empty(); BATCH] })
    }

    /// Reports when `fd` can be read, or its peer is gone. `EPERM` for what cannot be waited for (a regular file).
    pub fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Reports that `fd` has become readable, once for each time that it does. For a pidfd: one whose end its tracer alone may
    /// see (ptrace(2)) stays readable, and cannot be reaped. When the tracer lets go it is reported again.
    pub fn add_once(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, token))?)
    }

    /// Forgets a descriptor; to be called before it is closed.
    pub fn remove(&self, fd: impl AsFd) {
        // It fails only for a descriptor that is not in the set.
        let _ = self.epoll.delete(fd);
    }

    /// Waits and appends the numbers of what is ready to `ready`. `None` waits for ever.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<u64>) -> io::Result<()> {
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            // Rounded up: a deadline that is not reached yet must not make the loop spin.
            Some(t) => {
                let ms = u32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
                EpollTimeout::try_from(ms).unwrap_or(EpollTimeout::MAX)
            }
        };
        match self.epoll.wait(&mut self.events, timeout) {
            Ok(n) => ready.extend(self.events.iter().take(n).map(EpollEvent::data)),
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }
}

/// A signal as a descriptor.
#[derive(Debug)]
pub struct SignalDescriptor(SignalFd);

impl SignalDescriptor {
    /// SIGTERM. Errors: those of signalfd(2).
    pub fn of_term() -> io::Result<Self> {
        Self::new(Signal::SIGTERM)
    }

    /// SIGCHLD: some child has ended.
    pub fn of_children() -> io::Result<Self> {
        Self::new(Signal::SIGCHLD)
    }

    /// Blocks the signal and opens the descriptor that reports it.
    fn new(signal: Signal) -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(signal);
        nix::sys::signal::sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// Whether the signal has come since the last call.
    pub fn came(&self) -> bool {
        matches!(self.0.read_signal(), Ok(Some(_)))
    }
}

/// Lets all signals through again: of what a process has blocked before a fork.
pub fn unblock_all() -> io::Result<()> {
    Ok(nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

impl AsFd for SignalDescriptor {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Ignores the signals that httpd's process group or an administrator may send to everything called httpd: only the
/// parent and SIGTERM end the controller.
pub fn ignore_group_signals() {
    for signal in [
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
        Signal::SIGPIPE,
    ] {
        // SAFETY: SIG_IGN runs no code of ours, and no handler is replaced that anything here relies on.
        let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_is_ready_is_reported_with_its_number_until_it_is_removed() {
        let (mut a, b) = UnixStream::pair().expect("pair");
        let mut poller = Poller::new().expect("epoll");
        poller.add(&b, 42).expect("add");
        let mut ready = Vec::new();
        poller.wait(Some(Duration::ZERO), &mut ready).expect("wait");
        assert_eq!(ready, vec![]);
        a.write_all(b"x").expect("write");
        poller.wait(Some(Duration::from_secs(5)), &mut ready).expect("wait");
        assert_eq!(ready, vec![42]);
        poller.remove(&b);
        ready.clear();
        poller.wait(Some(Duration::ZERO), &mut ready).expect("wait");
        assert_eq!(ready, vec![]);
    }
}
