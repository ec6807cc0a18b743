//! One set of descriptors that many threads wait for (epoll(7)): each event goes to one of them.
//!
//! Runs in: frontend, its MPM's threads.  Trusts: the kernel.  Owns: the epoll and the bell's descriptor.
//! Never: owns what it watches.
//!
//! Connections are watched with EPOLLONESHOT: who gets the event has the connection until it arms it again. Listeners
//! are watched with EPOLLEXCLUSIVE: a new connection wakes one process of those that have a thread waiting. The kernel
//! wakes the thread that began to wait last, whose stack and caches are warm.

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What is waited for on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Read,
    Write,
    /// Anything: a socket that is new is writable, so this comes at once.
    Any,
    /// That it is closed, for sending at least.
    End,
    /// That it is reset, or closed for good.
    Reset,
}

/// The set.
#[derive(Debug)]
pub struct EventSet {
    epoll: Epoll,
    bell: EventFd,
    bell_token: u64,
}

impl EventSet {
    /// A set with a bell, whose events carry `bell_token`.
    pub fn new(bell_token: u64) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE;
        let bell = EventFd::from_value_and_flags(0, flags)?;
        epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, bell_token))?;
        Ok(Self { epoll, bell, bell_token })
    }

    /// Watches a listener, until [`remove`](Self::remove).
    pub fn listen(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE, token))?)
    }

    /// Watches a connection for one event. `known`: it was watched before.
    pub fn arm(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest, known: bool) -> io::Result<()> {
        let what = match interest {
            Interest::Read => EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP,
            Interest::Write => EpollFlags::EPOLLOUT,
            Interest::Any => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
            Interest::End => EpollFlags::EPOLLRDHUP,
            // These are told in any case.
            Interest::Reset => EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP,
        };
        let mut event = EpollEvent::new(what | EpollFlags::EPOLLONESHOT, token);
        let done = if known { self.epoll.modify(fd, &mut event) } else { self.epoll.add(fd, event) };
        Ok(done?)
    }

    /// Watches it no longer. Whoever has taken an event already goes on with that.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        // It fails only for a descriptor that is not in the set.
        let _ = self.epoll.delete(fd);
    }

    /// Waits for one event, as long as it takes; `None` after a signal.
    pub fn wait(&self) -> io::Result<Option<u64>> {
        let mut events = [EpollEvent::empty()];
        match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(None),
            Ok(_) => Ok(Some(events[0].data())),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether a thread that waited now would get an event at once.
    pub fn any(&self) -> bool {
        has_input(self.epoll.0.as_fd())
    }

    /// Gives one of the waiting threads the bell's token; as often as it is rung.
    pub fn ring(&self) {
        // It fails only after 2^64 rings that nobody heard.
        let _ = self.bell.write(1);
    }

    /// Takes one ring. Whether there was one: another thread may have been faster.
    pub fn take_ring(&self) -> bool {
        self.bell.read().is_ok()
    }

    /// The token that [`wait`](Self::wait) gives when the bell was rung.
    pub fn bell_token(&self) -> u64 {
        self.bell_token
    }
}

/// Tells when the peer of a connected socket has received what was sent to it. Nothing else does: the socket is writable all
/// the while.
#[derive(Debug)]
pub struct Receipt(Epoll);

impl Receipt {
    /// Of a message that was sent before. What was received before this returns is not told.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // The kernel wakes whoever waits to write at each message that is taken from the queue; edge-triggered, that is an
        // event each time.
        let what = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        epoll.add(fd, EpollEvent::new(what, 0))?;
        let receipt = Self(epoll);
        receipt.take();
        Ok(receipt)
    }

    /// Forgets what it has told. Its descriptor is readable when the peer receives something after this, sends something,
    /// or is gone.
    pub fn take(&self) {
        // It fails only where there is nothing.
        let _ = self.0.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO);
    }
}

impl AsFd for Receipt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0 .0.as_fd()
    }
}

/// How a process that takes no connections for now calls another one to the listeners that they share.
#[derive(Debug)]
pub struct Summons(OwnedFd);

impl Summons {
    /// A descriptor for [`of`](Self::of).
    pub fn make() -> io::Result<OwnedFd> {
        Ok(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?.into())
    }

    /// Of what [`make`](Self::make) has made.
    pub fn of(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// One process that has a thread waiting for this is woken, now or when there is one.
    pub fn call(&self) {
        // It fails only where it has been called 2^64 times in vain.
        let _ = nix::unistd::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Whether there was a call that no other thread or process has answered.
    pub fn answer(&self) -> bool {
        nix::unistd::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Summons {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a process's main thread sleeps on while others work: a call from them, SIGTERM, a pipe.
#[derive(Debug)]
pub struct Alarm {
    call: EventFd,
    term: SignalFd,
}

/// Why [`Alarm::wait`] has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The pipe is readable.
    Pipe,
    Called,
    /// SIGTERM, or SIGINT.
    Terminated,
}

impl Alarm {
    /// SIGTERM must be blocked in every thread, so that it is kept for the alarm; with `terminal` SIGINT too.
    pub fn new(terminal: bool) -> io::Result<Self> {
        let call = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        if terminal {
            set.add(Signal::SIGINT);
        }
        let term = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { call, term })
    }

    /// Wakes the thread that waits, or that will.
    pub fn call(&self) {
        let _ = self.call.write(1);
    }

    /// Waits for the first of the three.
    pub fn wait(&self, pipe: Option<BorrowedFd<'_>>) -> Woken {
        loop {
            let mut set = vec![
                PollFd::new(self.call.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.term.as_fd(), PollFlags::POLLIN),
            ];
            set.extend(pipe.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            if nix::poll::poll(&mut set, PollTimeout::NONE).is_err() {
                continue;
            }
            let ready = |at: usize| set.get(at).is_some_and(|p| p.any().unwrap_or(false));
            if ready(0) {
                let _ = self.call.read();
                return Woken::Called;
            }
            if ready(1) {
                let _ = self.term.read_signal();
                return Woken::Terminated;
            }
            if ready(2) {
                return Woken::Pipe;
            }
        }
    }
}

/// Makes reads of this pipe return at once. It holds for every process that has it.
pub fn never_wait_for(pipe: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{fcntl, FcntlArg, OFlag};
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Whether a socket has something to read, or is at its end. Does not wait.
pub fn has_input(fd: BorrowedFd<'_>) -> bool {
    let mut poll = [PollFd::new(fd, PollFlags::POLLIN)];
    matches!(nix::poll::poll(&mut poll, PollTimeout::ZERO), Ok(1..))
}

/// Ends both directions of a connection, by its descriptor's number: a thread that waits on it goes on, with an error.
/// The descriptor stays open; a number that is no socket's is ignored.
pub fn shut_down_number(fd: i32) {
    if fd >= 0 {
        // It fails only when there is no connection.
        let _ = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{self, Blocking};
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_armed_descriptor_gives_one_event() {
        let set = EventSet::new(1).expect("epoll");
        let (mut a, b) = UnixStream::pair().expect("pair");
        set.arm(b.as_fd(), 42, Interest::Read, false).expect("add");
        a.write_all(b"x").expect("write");
        assert_eq!(set.wait().expect("wait"), Some(42));
        set.ring();
        assert_eq!(set.wait().expect("wait"), Some(1), "42 is not armed");
        assert!(set.take_ring());
        assert!(!set.take_ring());
        set.arm(b.as_fd(), 43, Interest::Read, true).expect("modify");
        assert_eq!(set.wait().expect("wait"), Some(43));
    }

    #[test]
    fn a_new_socket_is_ready_for_anything() {
        let set = EventSet::new(1).expect("epoll");
        let (_a, b) = UnixStream::pair().expect("pair");
        set.arm(b.as_fd(), 7, Interest::Any, false).expect("add");
        assert_eq!(set.wait().expect("wait"), Some(7));
        assert!(!has_input(b.as_fd()));
        shut_down_number(b.as_raw_fd());
        assert!(has_input(b.as_fd()));
    }

    #[test]
    fn a_receipt_tells_when_a_message_was_taken_that_the_peer_speaks_and_that_it_is_gone() {
        let (a, b) = socket::seqpacket_pair().expect("pair");
        let mut buf = [0; 8];
        socket::send(a.as_fd(), b"one", &[], Blocking::No).expect("send");
        socket::send(a.as_fd(), b"two", &[], Blocking::No).expect("send");
        let receipt = Receipt::of(a.as_fd()).expect("epoll");
        assert!(!has_input(receipt.as_fd()));
        for _ in 0..2 {
            socket::receive(b.as_fd(), &mut buf, Blocking::No).expect("receive");
            assert!(has_input(receipt.as_fd()));
            receipt.take();
            assert!(!has_input(receipt.as_fd()));
        }
        assert_eq!(socket::unread_by_peer(a.as_fd()).expect("ioctl"), 0);
        socket::send(b.as_fd(), b"three", &[], Blocking::No).expect("send");
        assert!(has_input(receipt.as_fd()));
        receipt.take();
        assert!(!has_input(receipt.as_fd()));
        drop(b);
        assert!(has_input(receipt.as_fd()));
    }

    #[test]
    fn a_call_wakes_now_or_later_and_a_pipe_too() {
        let alarm = Alarm::new(false).expect("eventfd, signalfd");
        alarm.call();
        assert_eq!(alarm.wait(None), Woken::Called);
        let (read, write) = nix::unistd::pipe().expect("pipe");
        nix::unistd::write(&write, b"x").expect("write");
        assert_eq!(alarm.wait(Some(read.as_fd())), Woken::Pipe);
        never_wait_for(read.as_fd()).expect("fcntl");
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&read, &mut byte), Ok(1));
        assert_eq!(nix::unistd::read(&read, &mut byte), Err(nix::errno::Errno::EAGAIN));
    }

    #[test]
    fn a_call_is_answered_by_one_set() {
        let (a, b) = (EventSet::new(1).expect("epoll"), EventSet::new(1).expect("epoll"));
        let summons = Summons::of(Summons::make().expect("eventfd"));
        summons.call();
        summons.call();
        for set in [&a, &b] {
            set.listen(summons.as_fd(), 7).expect("add");
            assert_eq!(set.wait().expect("wait"), Some(7));
        }
        assert!(summons.answer());
        assert!(!summons.answer());
        b.ring();
        assert_eq!(b.wait().expect("wait"), Some(1));
    }

    #[test]
    fn each_ring_is_heard_once() {
        let set = EventSet::new(9).expect("epoll");
        set.ring();
        set.ring();
        for _ in 0..2 {
            assert_eq!(set.wait().expect("wait"), Some(set.bell_token()));
            assert!(set.take_ring());
        }
        assert!(!set.take_ring());
    }
}
