//! Frames on their way to the frontend: gathered, so that a small response is one message.
//!
//! Runs in: worker.  Trusts: nothing.  Owns: frames that are not sent yet, and the descriptor that goes with them.
//! Never: sends a message larger than the protocol allows, knows what a frame means.

use crate::sys::socket::{self, Blocking};
use crate::wire::frame::{
    put_frame, put_frame_head, Exchange, FrameKind, FLAG_FLUSH, FLAG_MORE, FRAME_HEAD_LEN, MAX_DATA, MAX_MESSAGE,
};
use crate::wire::response::FileRange;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Data up to this size is copied beside what waits; longer data is sent from where it is.
const COPY_UP_TO: usize = 16 * 1024;
/// As much may wait.
const MAX_PENDING: usize = MAX_DATA;

#[derive(Debug)]
pub struct Outbox {
    pending: Vec<u8>,
    descriptor: Option<OwnedFd>,
    exchange: Exchange,
    /// Where the last Head, Data or File frame in `pending` starts: it takes the flush flag.
    last_part: Option<usize>,
    /// Where the Data frame starts that ends `pending`, so that it can grow.
    open_data: Option<usize>,
    /// Something was sent that the client has not been told to see at once.
    unseen: bool,
    /// Part of the response has left.
    begun: bool,
    /// Room for the payload of a frame whose size is not known before.
    scratch: Vec<u8>,
}

impl Outbox {
    pub fn new() -> Self {
        Self {
            pending: Vec::with_capacity(MAX_MESSAGE),
            descriptor: None,
            exchange: Exchange(0),
            last_part: None,
            open_data: None,
            unseen: false,
            begun: false,
            scratch: Vec::new(),
        }
    }

    /// Starts an exchange; what is left of the one before is dropped.
    pub fn begin(&mut self, exchange: Exchange) {
        self.clear();
        self.exchange = exchange;
        self.unseen = false;
        self.begun = false;
    }

    /// Whether so many bytes of body, or a descriptor, can wait beside what does.
    pub fn has_room(&self, len: usize) -> bool {
        self.descriptor.is_none() && len <= COPY_UP_TO && self.pending.len() + len <= MAX_PENDING
    }

    /// Takes the response back as long as nothing of it has left.
    pub fn take_back(&mut self) {
        if !self.begun {
            self.clear();
        }
    }

    /// Sends one frame, which is no part of the response, before what waits.
    pub fn at_once(
        &mut self,
        lease: BorrowedFd<'_>,
        kind: FrameKind,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<()> {
        let mut message = std::mem::take(&mut self.scratch);
        message.clear();
        put_frame(&mut message, kind, 0, self.exchange, write);
        let result = socket::send(lease, &message, &[], Blocking::Yes);
        self.scratch = message;
        result
    }

    fn clear(&mut self) {
        self.pending.clear();
        self.descriptor = None;
        self.last_part = None;
        self.open_data = None;
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Sends what waits, as one message.
    pub fn send(&mut self, lease: BorrowedFd<'_>) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let fds: Vec<BorrowedFd<'_>> = self.descriptor.iter().map(AsFd::as_fd).collect();
        self.begun |= self.last_part.is_some();
        let result = socket::send(lease, &self.pending, &fds, Blocking::Yes);
        drop(fds);
        self.clear();
        result
    }

    /// Makes room for a frame with so many bytes of payload.
    fn reserve(&mut self, lease: BorrowedFd<'_>, payload: usize) -> io::Result<()> {
        if self.pending.len() + FRAME_HEAD_LEN + payload > MAX_MESSAGE {
            return self.send(lease);
        }
        Ok(())
    }

    /// Appends a frame whose payload `write` makes; one that is too long for a frame goes out in several.
    pub fn frame(
        &mut self,
        lease: BorrowedFd<'_>,
        kind: FrameKind,
        flags: u8,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<()> {
        let mut payload = std::mem::take(&mut self.scratch);
        payload.clear();
        write(&mut payload);
        let result = self.frame_of(lease, kind, flags, &payload);
        self.scratch = payload;
        result
    }

    fn frame_of(&mut self, lease: BorrowedFd<'_>, kind: FrameKind, flags: u8, payload: &[u8]) -> io::Result<()> {
        let mut rest = payload;
        loop {
            let (piece, behind) = rest.split_at(rest.len().min(MAX_DATA));
            self.reserve(lease, piece.len())?;
            self.open_data = None;
            if is_part(kind) {
                self.last_part = Some(self.pending.len());
                self.unseen = true;
            }
            let more = if behind.is_empty() { 0 } else { FLAG_MORE };
            put_frame(&mut self.pending, kind, flags | more, self.exchange, |o| o.extend_from_slice(piece));
            rest = behind;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Appends bytes of the body, and sends when enough have come together.
    pub fn data(&mut self, lease: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if rest.len() <= COPY_UP_TO && self.pending.len() + rest.len() <= MAX_PENDING {
                self.append(rest);
                return Ok(());
            }
            // Sent with what waits, from where it is: as much as one message holds, in frames of at most MAX_DATA.
            self.open_data = None;
            let mut heads = [[0u8; FRAME_HEAD_LEN]; 2];
            let mut pieces: [&[u8]; 2] = [&[], &[]];
            let mut room = MAX_MESSAGE - self.pending.len();
            for (head, piece) in heads.iter_mut().zip(&mut pieces) {
                if rest.is_empty() || room <= FRAME_HEAD_LEN {
                    break;
                }
                let (now, behind) = rest.split_at(rest.len().min(MAX_DATA).min(room - FRAME_HEAD_LEN));
                head.copy_from_slice(&data_head(self.exchange, now.len()));
                *piece = now;
                room -= FRAME_HEAD_LEN + now.len();
                rest = behind;
            }
            let fds: Vec<BorrowedFd<'_>> = self.descriptor.iter().map(AsFd::as_fd).collect();
            let parts = [
                IoSlice::new(&self.pending),
                IoSlice::new(&heads[0]),
                IoSlice::new(pieces[0]),
                IoSlice::new(&heads[1]),
                IoSlice::new(pieces[1]),
            ];
            let used = 1 + 2 * pieces.iter().filter(|p| !p.is_empty()).count();
            let result = socket::send_parts(lease, &parts[..used], &fds, Blocking::Yes);
            drop(fds);
            self.clear();
            self.unseen = true;
            self.begun = true;
            result?;
        }
        Ok(())
    }

    /// Appends `write`'s bytes, at most `most`, to the body.
    pub fn data_with<E>(
        &mut self,
        lease: BorrowedFd<'_>,
        most: usize,
        write: impl FnOnce(&mut Vec<u8>) -> Result<usize, E>,
    ) -> io::Result<Result<usize, E>> {
        if self.pending.len() + FRAME_HEAD_LEN + most > MAX_MESSAGE {
            self.send(lease)?;
        }
        let start = self.open();
        let before = self.pending.len();
        let result = write(&mut self.pending);
        if result.is_err() {
            self.pending.truncate(before);
        }
        self.close(start);
        Ok(result)
    }

    fn append(&mut self, bytes: &[u8]) {
        let start = self.open();
        self.pending.extend_from_slice(bytes);
        self.close(start);
    }

    /// The Data frame that ends `pending`, a new one if there is none.
    fn open(&mut self) -> usize {
        let start = self.open_data.unwrap_or_else(|| {
            let start = self.pending.len();
            put_frame_head(&mut self.pending, FrameKind::Data, 0, self.exchange, 0);
            start
        });
        self.open_data = Some(start);
        self.last_part = Some(start);
        self.unseen = true;
        start
    }

    /// Writes the length of the open frame, and begins a new one next time if it is full.
    fn close(&mut self, start: usize) {
        let len = self.pending.len() - start - FRAME_HEAD_LEN;
        let field = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
        self.pending[start + 8..start + FRAME_HEAD_LEN].copy_from_slice(&field);
        if len + COPY_UP_TO > MAX_DATA {
            self.open_data = None;
        }
    }

    /// Appends a piece of a file, whose descriptor travels with the message; one message carries one descriptor.
    pub fn file(&mut self, lease: BorrowedFd<'_>, fd: OwnedFd, range: FileRange) -> io::Result<()> {
        if self.descriptor.is_some() {
            self.send(lease)?;
        }
        self.frame(lease, FrameKind::File, 0, |o| range.encode(o))?;
        self.descriptor = Some(fd);
        Ok(())
    }

    /// Sends what waits and has the client see all of the response so far.
    pub fn flush(&mut self, lease: BorrowedFd<'_>) -> io::Result<()> {
        match self.last_part {
            Some(at) => self.pending[at + 1] |= FLAG_FLUSH,
            None if self.unseen => {
                put_frame_head(&mut self.pending, FrameKind::Data, FLAG_FLUSH, self.exchange, 0);
            }
            None => {}
        }
        self.unseen = false;
        self.send(lease)
    }
}

/// Parts of the response, which a flush pushes to the client.
fn is_part(kind: FrameKind) -> bool {
    matches!(kind, FrameKind::Head | FrameKind::Data | FrameKind::File)
}

fn data_head(exchange: Exchange, len: usize) -> [u8; FRAME_HEAD_LEN] {
    let mut head = Vec::with_capacity(FRAME_HEAD_LEN);
    put_frame_head(&mut head, FrameKind::Data, 0, exchange, u32::try_from(len).unwrap_or(u32::MAX));
    head.try_into().unwrap_or([0; FRAME_HEAD_LEN])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::frames;

    /// What arrives at the other end: for each message its frames as (kind, flags, length of payload).
    fn received(fd: &OwnedFd) -> Vec<Vec<(FrameKind, u8, usize)>> {
        let mut messages = Vec::new();
        let mut buffer = vec![0; MAX_MESSAGE + 1];
        while let Ok(got) = socket::receive(fd.as_fd(), &mut buffer, Blocking::No) {
            assert!(got.len <= MAX_MESSAGE && !got.truncated);
            messages.push(
                frames(&buffer[..got.len])
                    .map(|f| f.expect("good"))
                    .map(|f| (f.kind, f.flags, f.payload.len()))
                    .collect(),
            );
        }
        messages
    }

    fn fixture() -> (OwnedFd, OwnedFd, Outbox) {
        let (a, b) = socket::seqpacket_pair().expect("socketpair");
        let mut outbox = Outbox::new();
        outbox.begin(Exchange(7));
        (a, b, outbox)
    }

    #[test]
    fn a_small_response_is_one_message_and_its_data_one_frame() {
        let (a, b, mut outbox) = fixture();
        outbox.frame(a.as_fd(), FrameKind::Head, 0, |o| o.extend_from_slice(b"head")).expect("sent");
        outbox.data(a.as_fd(), b"hello ").expect("sent");
        outbox.data(a.as_fd(), b"world").expect("sent");
        outbox.frame(a.as_fd(), FrameKind::End, 0, |_| {}).expect("sent");
        assert_eq!(received(&b), Vec::<Vec<_>>::new());
        outbox.send(a.as_fd()).expect("sent");
        let expected = vec![vec![(FrameKind::Head, 0, 4), (FrameKind::Data, 0, 11), (FrameKind::End, 0, 0)]];
        assert_eq!(received(&b), expected);
    }

    #[test]
    fn long_data_keeps_the_limits_and_loses_nothing() {
        for len in [COPY_UP_TO, COPY_UP_TO + 1, MAX_DATA, MAX_DATA + 1, MAX_MESSAGE, 100_000, 150_000] {
            let (a, b, mut outbox) = fixture();
            socket::buffer_size(a.as_fd(), 1 << 20).expect("buffer");
            outbox.frame(a.as_fd(), FrameKind::Head, 0, |o| o.extend_from_slice(b"head")).expect("sent");
            outbox.data(a.as_fd(), &vec![b'x'; len]).expect("sent");
            outbox.data(a.as_fd(), b"tail").expect("sent");
            outbox.send(a.as_fd()).expect("sent");
            let got: Vec<_> = received(&b).concat();
            let sum: usize = got.iter().filter(|f| f.0 == FrameKind::Data).map(|f| f.2).sum();
            assert_eq!(sum, len + 4, "{len}");
            assert!(got.iter().all(|f| f.2 <= MAX_DATA), "{len}");
        }
    }

    #[test]
    fn many_small_pieces_are_bounded() {
        let (a, b, mut outbox) = fixture();
        socket::buffer_size(a.as_fd(), 1 << 20).expect("buffer");
        for _ in 0..100 {
            outbox.data(a.as_fd(), &[b'x'; 1000]).expect("sent");
        }
        assert!(outbox.pending.len() <= MAX_PENDING + FRAME_HEAD_LEN);
        outbox.send(a.as_fd()).expect("sent");
        let sum: usize = received(&b).concat().iter().map(|f| f.2).sum();
        assert_eq!(sum, 100_000);
    }

    #[test]
    fn a_flush_marks_the_last_part_or_goes_by_itself() {
        let (a, b, mut outbox) = fixture();
        outbox.frame(a.as_fd(), FrameKind::Head, 0, |_| {}).expect("sent");
        outbox.data(a.as_fd(), b"x").expect("sent");
        outbox.flush(a.as_fd()).expect("sent");
        outbox.flush(a.as_fd()).expect("nothing to send");
        outbox.data(a.as_fd(), b"y").expect("sent");
        outbox.send(a.as_fd()).expect("sent");
        outbox.flush(a.as_fd()).expect("sent");
        let expected = vec![
            vec![(FrameKind::Head, 0, 0), (FrameKind::Data, FLAG_FLUSH, 1)],
            vec![(FrameKind::Data, 0, 1)],
            vec![(FrameKind::Data, FLAG_FLUSH, 0)],
        ];
        assert_eq!(received(&b), expected);
    }

    #[test]
    fn a_response_is_taken_back_only_before_any_of_it_has_left() {
        let (a, b, mut outbox) = fixture();
        outbox.frame(a.as_fd(), FrameKind::Head, 0, |_| {}).expect("sent");
        outbox.data(a.as_fd(), b"body").expect("sent");
        outbox.take_back();
        outbox.send(a.as_fd()).expect("sent");
        assert_eq!(received(&b), Vec::<Vec<_>>::new());
        outbox.frame(a.as_fd(), FrameKind::Head, 0, |_| {}).expect("sent");
        outbox.send(a.as_fd()).expect("sent");
        outbox.data(a.as_fd(), b"body").expect("sent");
        outbox.take_back();
        outbox.send(a.as_fd()).expect("sent");
        assert_eq!(received(&b).concat().len(), 2);
    }

    #[test]
    fn a_line_for_the_log_goes_before_a_response_that_waits() {
        let (a, b, mut outbox) = fixture();
        outbox.frame(a.as_fd(), FrameKind::Head, 0, |_| {}).expect("sent");
        outbox.data(a.as_fd(), b"body").expect("sent");
        outbox.at_once(a.as_fd(), FrameKind::Log, |o| o.extend_from_slice(b"line")).expect("sent");
        assert_eq!(received(&b), vec![vec![(FrameKind::Log, 0, 4)]]);
        outbox.take_back();
        outbox.data(a.as_fd(), b"x").expect("sent");
        outbox.send(a.as_fd()).expect("sent");
        assert_eq!(received(&b), vec![vec![(FrameKind::Data, 0, 1)]]);
    }

    #[test]
    fn a_head_too_long_for_a_frame_goes_in_several() {
        let (a, b, mut outbox) = fixture();
        outbox.frame(a.as_fd(), FrameKind::Head, 0, |o| o.resize(MAX_DATA * 2 + 1, b'h')).expect("sent");
        outbox.send(a.as_fd()).expect("sent");
        let flags: Vec<_> = received(&b).concat().iter().map(|f| (f.1, f.2)).collect();
        assert_eq!(flags, [(FLAG_MORE, MAX_DATA), (FLAG_MORE, MAX_DATA), (0, 1)]);
    }
}
