//! The response on its way to the client.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: httpd; what it gets is checked already.
//! Owns: what the client has not taken yet.  Never: where the request can be parked, waits for the client.
//!
//! httpd's core writes without waiting, and keeps what the socket did not take, up to `FlushMaxThreshold` bytes; with
//! more, or with a FLUSH bucket behind it, it waits. So a request that can be parked passes on less than that, and the
//! rest when the socket has taken all of it.

use crate::httpd::client::{Client, ClientGone, PIECE};
use crate::httpd::{Connection, RequestRec};
use crate::sys::file;
use crate::wire::frame::MAX_DATA;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes of a head that the core takes beside [`PIECE`] of the body.
const SMALL_HEAD: usize = 4 * 1024;
/// Bytes that fit into a socket that says it is writable (a third of the smallest send buffer).
const FITS: usize = 16 * 1024;

/// What comes after what was passed on.
#[derive(Debug)]
enum Piece {
    Bytes { bytes: Vec<u8>, at: usize },
    File { file: OwnedFd, at: u64, left: u64 },
}

/// Why the rest is not sent.
#[derive(Debug)]
pub enum Undelivered {
    ClientGone,
    /// A file that is not what it was.
    File(String),
}

impl From<ClientGone> for Undelivered {
    fn from(_: ClientGone) -> Self {
        Self::ClientGone
    }
}

/// The way of one response.
#[derive(Debug)]
pub struct Delivery<'r> {
    pub client: Client<'r>,
    connection: Option<Connection<'r>>,
    /// Bytes that are queued, and not passed on yet.
    queued: usize,
    rest: VecDeque<Piece>,
    /// The rest is to be on its way when it is passed on; it is the last.
    flush: bool,
    finish: bool,
    /// How long the client may take nothing, and since when it has not, while it must.
    patience: Duration,
    stuck_since: Option<Instant>,
}

impl<'r> Delivery<'r> {
    /// With `parks` it never waits.
    pub fn new(r: RequestRec<'r>, parks: bool) -> Self {
        Self {
            client: Client::new(r),
            connection: if parks { Connection::of(r) } else { None },
            queued: 0,
            rest: VecDeque::new(),
            flush: false,
            finish: false,
            patience: r.server().timeout(),
            stuck_since: None,
        }
    }

    /// The client's socket takes so many bytes now, so that nobody waits for it; always, where a request may wait. It must
    /// have taken all that came before: with more than its limit the core waits, and with a FLUSH for everything.
    pub fn takes_at_once(&self, len: usize) -> bool {
        self.connection.is_none_or(|c| len <= FITS && c.has_written() && self.client.is_writable())
    }

    /// The head of the response has so many bytes.
    pub fn head(&mut self, len: usize) {
        if len > SMALL_HEAD && self.connection.is_some() {
            self.client.pass_in_pieces();
        }
    }

    /// Takes bytes of the response. They must stay where they are until `pass` or `finish` has returned.
    pub fn data(&mut self, mut bytes: &[u8]) -> Result<(), ClientGone> {
        if bytes.is_empty() {
            return Ok(());
        }
        let has_room = |c: Connection<'_>| self.queued > 0 || (c.has_written() && !self.client.holds());
        if !self.rest.is_empty() || !self.connection.is_none_or(has_room) {
            self.rest.push_back(Piece::Bytes { bytes: bytes.to_vec(), at: 0 });
            return Ok(());
        }
        let Some(connection) = self.connection else {
            self.client.queue(bytes);
            return Ok(());
        };
        loop {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.queued));
            self.client.queue(now);
            self.queued += now.len();
            if later.is_empty() {
                return Ok(());
            }
            bytes = later;
            self.pass_queued(false)?;
            if !connection.has_written() || self.client.holds() {
                self.rest.push_back(Piece::Bytes { bytes: bytes.to_vec(), at: 0 });
                return Ok(());
            }
        }
    }

    /// Takes a piece of a file: by its descriptor, if `whole` and nothing reads its bytes on the way. Behind a large head it
    /// is read: what is in memory on both sides of a file counts for the core.
    pub fn file(&mut self, file: OwnedFd, at: u64, left: u64, whole: bool) {
        if whole && self.rest.is_empty() && !self.client.passes_in_pieces() && self.client.can_send_file() {
            self.client.queue_file(file, at, left);
        } else {
            self.rest.push_back(Piece::File { file, at, left });
        }
    }

    fn pass_queued(&mut self, flush: bool) -> Result<(), ClientGone> {
        self.queued = 0;
        self.client.pass(flush)
    }

    /// Passes on what was taken, as far as the client takes it; with `flush` it is on its way then.
    pub fn pass(&mut self, flush: bool) -> Result<(), Undelivered> {
        let at_once = || !self.client.passes_in_pieces() && self.takes_at_once(self.queued);
        if self.rest.is_empty() && (!flush || at_once()) {
            return Ok(self.pass_queued(flush)?);
        }
        self.flush |= flush;
        self.pass_queued(false)?;
        self.go_on().map(|_| ())
    }

    /// As `pass`, for the end of the response.
    pub fn finish(&mut self) -> Result<(), Undelivered> {
        // With its last bytes, so that httpd can tell the length; if there are any, the client has taken all before.
        let at_once = !self.client.passes_in_pieces() || (self.queued > 0 && !self.client.holds());
        if self.rest.is_empty() && at_once {
            self.queued = 0;
            return Ok(self.client.finish()?);
        }
        self.finish = true;
        self.pass_queued(false)?;
        self.go_on().map(|_| ())
    }

    /// Everything has been passed on, and the client has taken what must be taken first.
    pub fn is_through(&self) -> bool {
        self.rest.is_empty() && !self.flush && !self.finish && !self.client.holds()
    }

    /// Until when the client must have taken something.
    pub fn until(&self) -> Instant {
        self.stuck_since.unwrap_or_else(Instant::now) + self.patience
    }

    /// Goes on with the rest; says whether that was all. The client must take more first, otherwise.
    pub fn go_on(&mut self) -> Result<bool, Undelivered> {
        loop {
            let takes = self.stuck_since.is_some() && self.client.is_writable();
            if self.connection.is_some_and(|connection| !connection.has_written()) {
                if takes || self.stuck_since.is_none() {
                    self.stuck_since = Some(Instant::now());
                }
                let gone = self.client.is_gone() || self.until() <= Instant::now();
                return if gone { Err(Undelivered::ClientGone) } else { Ok(false) };
            }
            self.stuck_since = None;
            if self.client.holds() {
                self.client.pass_piece()?;
                continue;
            }
            match self.rest.front_mut() {
                Some(Piece::Bytes { bytes, at }) => {
                    let end = bytes.len().min(*at + PIECE);
                    self.client.queue(bytes.get(*at..end).unwrap_or_default());
                    *at = end;
                    let over = end == bytes.len();
                    // The bytes are passed on before their piece is dropped.
                    self.pass_queued(false)?;
                    if over {
                        self.rest.pop_front();
                    }
                }
                Some(Piece::File { file, at, left }) => {
                    let mut piece = Vec::new();
                    let most = if self.connection.is_some() { PIECE } else { MAX_DATA };
                    let want = usize::try_from(*left).unwrap_or(most).min(most);
                    let n = file::read_at(file.as_fd(), *at, want, &mut piece)
                        .map_err(|e| Undelivered::File(format!("file: {e}")))?;
                    if n == 0 {
                        return Err(Undelivered::File("a file that became shorter".into()));
                    }
                    *at += n as u64;
                    *left = left.saturating_sub(n as u64);
                    if *left == 0 {
                        self.rest.pop_front();
                    }
                    self.client.queue(&piece);
                    self.pass_queued(false)?;
                }
                None if self.flush && !self.finish && self.client.has_head_left() => self.client.pass_head()?,
                None => {
                    let flush = std::mem::take(&mut self.flush);
                    if std::mem::take(&mut self.finish) {
                        self.client.finish()?;
                    } else if flush {
                        self.client.pass(true)?;
                    }
                    if !self.client.holds() {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// The client sees the response break off. See [`Client::break_off`].
    pub fn break_off(&mut self) {
        self.rest.clear();
        (self.flush, self.finish) = (false, false);
        self.client.break_off();
    }
}
