//! The frontend's channel to the controller, and the helper thread that listens on it.
//!
//! Runs in: frontend; any thread sends, the helper thread receives.  Trusts: the controller.
//! Owns: the channel, and what the controller has not taken yet.  Never: waits for the controller on a request's thread.

use crate::sys::socket::{self, Blocking, Received};
use crate::sys::wait;
use crate::wire::control::{ConnectorMessage, FrontendMessage, Hello, InFlight, ANOTHER_CONTROLLER, CONTROL_VERSION};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

/// How often the helper thread looks after idle leases.
const TICK: Duration = Duration::from_millis(250);

/// Who this frontend is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    pub generation: u64,
    pub build_id: u64,
}

/// Our end of the channel; empty between the death of one controller and the hello to the next.
#[derive(Debug)]
pub struct Channel {
    connector: OwnedFd,
    identity: Identity,
    current: RwLock<Option<Arc<OwnedFd>>>,
    /// Messages that the channel did not take, in their order. While there are some, every other one goes behind them.
    outgoing: Mutex<VecDeque<Outgoing>>,
    /// There are some. Changes under that lock; read without, as there are none nearly always.
    is_behind: AtomicBool,
    /// Held while a new channel is made. Messages need no such order: each stands for itself.
    connecting: Mutex<()>,
}

/// A message that the helper thread sends when the controller reads again.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    fd: Option<OwnedFd>,
}

impl Channel {
    pub fn new(connector: OwnedFd, identity: Identity) -> Self {
        Self {
            connector,
            identity,
            current: RwLock::new(None),
            outgoing: Mutex::default(),
            is_behind: AtomicBool::new(false),
            connecting: Mutex::new(()),
        }
    }

    /// Says hello to the controller.
    pub fn connect(&self, in_flight: Vec<InFlight>) -> io::Result<()> {
        let _one = self.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        let (ours, theirs) = socket::seqpacket_pair()?;
        socket::receive_timeout(ours.as_fd(), TICK)?;
        let hello = Hello {
            version: CONTROL_VERSION,
            build_id: self.identity.build_id,
            generation: self.identity.generation,
            in_flight,
        };
        let bytes = ConnectorMessage::Hello(hello).encode();
        socket::send(self.connector.as_fd(), &bytes, &[theirs.as_fd()], Blocking::Yes)?;
        drop(theirs);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(ours));
        Ok(())
    }

    /// A share in the channel, so that no lock is held while somebody sends or receives. No copy of the descriptor: where
    /// there is none left, the controller would seem to be gone.
    fn current(&self) -> Option<Arc<OwnedFd>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets a channel whose controller is gone. Returns the sockets that it did not take: what a worker has sent may lie
    /// in them.
    pub fn disconnect(&self) -> Vec<OwnedFd> {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = None;
        let mut outgoing = self.outgoing();
        self.is_behind.store(false, Ordering::Relaxed);
        outgoing.drain(..).filter_map(|message| message.fd).collect()
    }

    fn outgoing(&self) -> MutexGuard<'_, VecDeque<Outgoing>> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message; false when there is no controller now.
    pub fn send(&self, message: &FrontendMessage) -> bool {
        self.send_fds(message, &[]).is_ok()
    }

    /// As [`send`](Self::send), with a descriptor.
    pub fn send_with(&self, message: &FrontendMessage, fd: BorrowedFd<'_>) -> bool {
        self.send_fds(message, &[fd]).is_ok()
    }

    /// As [`send_with`](Self::send_with); false when the kernel takes no more descriptors of this process's user before
    /// the controller has read some of those on their way, so that a later attempt may succeed. True when it was sent,
    /// and when no attempt will succeed.
    pub fn send_unless_crowded(&self, message: &FrontendMessage, fd: BorrowedFd<'_>) -> bool {
        !matches!(self.send_fds(message, &[fd]), Err(e) if socket::is_crowded(&e))
    }

    /// Gives the controller what a worker of the pool with this index may have filled, or has sent. The own copies are
    /// closed here, which frees nothing. They come back when there is no controller now.
    pub fn discard(&self, pool: u32, fds: Vec<OwnedFd>) -> Result<(), Vec<OwnedFd>> {
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let sent = socket::parcel(&borrowed)
            .is_ok_and(|parcel| self.send_with(&FrontendMessage::Discard { pool }, parcel.as_fd()));
        if sent {
            Ok(())
        } else {
            Err(fds)
        }
    }

    fn send_fds(&self, message: &FrontendMessage, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let channel = self.current().ok_or(io::ErrorKind::NotConnected)?;
        let bytes = message.encode();
        if !self.is_behind.load(Ordering::Relaxed) {
            match socket::send(channel.as_fd(), &bytes, fds, Blocking::No) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                sent => return sent,
            }
        }
        let fd = fds.first().map(|fd| fd.try_clone_to_owned()).transpose()?;
        let mut outgoing = self.outgoing();
        self.is_behind.store(true, Ordering::Relaxed);
        outgoing.push_back(Outgoing { bytes, fd });
        Ok(())
    }

    /// Helper thread: sends what waits, as far as the channel takes it; says whether that was all that can be sent now.
    fn flush(&self, channel: &OwnedFd) -> bool {
        let mut crowded = 0;
        loop {
            let mut outgoing = self.outgoing();
            let Some(next) = outgoing.get(crowded) else {
                self.is_behind.store(crowded > 0, Ordering::Relaxed);
                return true;
            };
            let fds: Vec<BorrowedFd<'_>> = next.fd.iter().map(AsFd::as_fd).collect();
            match socket::send(channel.as_fd(), &next.bytes, &fds, Blocking::No) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                // Too many descriptors are on their way. What brings none does not wait for that.
                Err(e) if socket::is_crowded(&e) => {
                    crowded += 1;
                    continue;
                }
                // The channel is at its end, which the next look finds.
                Err(_) => return true,
                Ok(()) => {}
            }
            drop(fds);
            // The message has a copy of the descriptor: to close this one frees nothing.
            outgoing.remove(crowded);
        }
    }

    /// Whether the parent has said since that another controller has taken over. One that cannot be killed closes no channel.
    fn is_replaced(&self) -> bool {
        let mut buf = [0; ANOTHER_CONTROLLER.len()];
        let received = socket::receive(self.connector.as_fd(), &mut buf, Blocking::No);
        received.is_ok_and(|received| buf.get(..received.len) == Some(ANOTHER_CONTROLLER))
    }

    /// Helper thread: the next message. `None` after a tick without one; an error when the controller is gone.
    pub fn receive(&self, buf: &mut [u8]) -> io::Result<Option<Received>> {
        let channel = self.current().ok_or(io::ErrorKind::NotConnected)?;
        let blocking = if !self.is_behind.load(Ordering::Relaxed) || self.flush(&channel) {
            Blocking::Yes
        } else {
            wait::readable_or_writable(channel.as_fd(), true, None, TICK)?;
            Blocking::No
        };
        match socket::receive(channel.as_fd(), buf, blocking) {
            Ok(received) if received.len == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(received) => Ok(Some(received)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && self.is_replaced() => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}
