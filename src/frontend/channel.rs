//! The frontend's channel to the controller, and the helper thread that listens on it.
//!
//! Runs in: frontend; any thread sends, the helper thread receives.  Trusts: the controller.
//! Owns: the channel.  Never: blocks a request thread for long.

use crate::sys::socket::{self, Blocking, Received};
use crate::wire::control::{ConnectorMessage, FrontendMessage, Hello, InFlight, CONTROL_VERSION};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
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
    /// Held while a new channel is made. Messages need no such order: each stands for itself.
    connecting: Mutex<()>,
}

impl Channel {
    pub fn new(connector: OwnedFd, identity: Identity) -> Self {
        Self { connector, identity, current: RwLock::new(None), connecting: Mutex::new(()) }
    }

    /// Says hello to the controller.
    pub fn connect(&self, in_flight: Vec<InFlight>) -> io::Result<()> {
        let _one = self.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        let (ours, theirs) = socket::seqpacket_pair()?;
        socket::receive_timeout(ours.as_fd(), TICK)?;
        socket::send_timeout(ours.as_fd(), Duration::from_secs(5))?;
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

    /// Forgets a channel whose controller is gone.
    pub fn disconnect(&self) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = None;
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
        socket::send(channel.as_fd(), &message.encode(), fds, Blocking::Yes)
    }

    /// Helper thread: the next message. `None` after a tick without one.
    pub fn receive(&self, buf: &mut [u8]) -> io::Result<Option<Received>> {
        let channel = self.current().ok_or(io::ErrorKind::NotConnected)?;
        match socket::receive(channel.as_fd(), buf, Blocking::Yes) {
            Ok(received) if received.len == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(received) => Ok(Some(received)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}
