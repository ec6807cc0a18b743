//! What the frontend sent and this worker has not used yet: one message at a time.
//!
//! Runs in: worker.  Trusts: the kernel, for message boundaries.  Owns: the receive buffer.
//! Never: looks into a payload.

use crate::sys::socket::{self, Blocking};
use crate::wire::codec::Malformed;
use crate::wire::frame::{frames, Exchange, FrameKind, FRAME_HEAD_LEN, MAX_MESSAGE};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

/// A frame of the current message; the payload is a range of [`Inbox::bytes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    pub kind: FrameKind,
    pub flags: u8,
    pub exchange: Exchange,
    pub payload: Range<usize>,
}

/// What a receive brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    Message,
    /// Nobody holds the lease any more.
    End,
}

#[derive(Debug)]
pub struct Inbox {
    buffer: Vec<u8>,
    len: usize,
    at: usize,
}

impl Inbox {
    pub fn new() -> Self {
        Self { buffer: vec![0; MAX_MESSAGE], len: 0, at: 0 }
    }

    /// The next frame of the current message; `None` when the message is used up.
    pub fn next(&mut self) -> Result<Option<Incoming>, Malformed> {
        let Some(frame) = frames(&self.buffer[self.at..self.len]).next() else { return Ok(None) };
        let frame = frame?;
        let start = self.at + FRAME_HEAD_LEN;
        let end = start + frame.payload.len();
        self.at = end;
        Ok(Some(Incoming { kind: frame.kind, flags: frame.flags, exchange: frame.exchange, payload: start..end }))
    }

    /// The current message has no further frame.
    pub fn is_used_up(&self) -> bool {
        self.at >= self.len
    }

    /// The next frame of the current message is one of these.
    pub fn begins_with(&self, kind: FrameKind) -> bool {
        matches!(frames(&self.buffer[self.at..self.len]).next(), Some(Ok(frame)) if frame.kind == kind)
    }

    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Receives the next message over the current one.
    pub fn fill(&mut self, lease: BorrowedFd<'_>, blocking: Blocking) -> io::Result<Filled> {
        (self.len, self.at) = (0, 0);
        let received = socket::receive(lease, &mut self.buffer, blocking)?;
        if received.truncated {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.len = received.len;
        Ok(if received.len == 0 { Filled::End } else { Filled::Message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::put_frame;
    use std::os::fd::AsFd;

    #[test]
    fn frames_of_one_message_come_one_by_one() {
        let (a, b) = socket::seqpacket_pair().expect("socketpair");
        let mut out = Vec::new();
        put_frame(&mut out, FrameKind::Body, 0, Exchange(1), |o| o.extend_from_slice(b"abc"));
        put_frame(&mut out, FrameKind::BodyEnd, 0, Exchange(1), |o| o.extend_from_slice(&[0, 0]));
        socket::send(a.as_fd(), &out, &[], Blocking::Yes).expect("send");
        let mut inbox = Inbox::new();
        assert_eq!(inbox.next(), Ok(None));
        assert_eq!(inbox.fill(b.as_fd(), Blocking::Yes).expect("receive"), Filled::Message);
        let first = inbox.next().expect("good").expect("frame");
        assert_eq!((first.kind, inbox.bytes(first.payload)), (FrameKind::Body, &b"abc"[..]));
        assert_eq!(inbox.next().expect("good").map(|f| f.kind), Some(FrameKind::BodyEnd));
        assert_eq!(inbox.next(), Ok(None));
        let again = inbox.fill(b.as_fd(), Blocking::No).expect_err("nothing there");
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(inbox.fill(b.as_fd(), Blocking::Yes).expect("receive"), Filled::End);
    }
}
