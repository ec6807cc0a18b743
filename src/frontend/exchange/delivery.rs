//! The response on its way to the client.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: httpd; what it gets is checked already.
//! Owns: what the client has not taken yet.  Never: where the request can be parked, waits for the client.
//!
//! httpd's core writes without waiting, and keeps what the socket did not take, up to `FlushMaxThreshold` bytes; with
//! more, or with a FLUSH bucket behind it, it waits. So a request that can be parked passes on less than that, and the
//! rest when the socket has taken all of it.

use crate::frontend::files::{Reading, TenantFile};
use crate::httpd::client::{piece, Client, ClientGone};
use crate::httpd::parking::{Awaited, Ticket};
use crate::httpd::{Connection, RequestRec};
use crate::sys::events::Interest;
use crate::wire::frame::MAX_DATA;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a head that the core takes beside [`piece`] of the body.
const SMALL_HEAD: usize = 4 * 1024;
/// Bytes that fit into a socket that says it is writable (a third of the smallest send buffer).
const FITS: usize = 16 * 1024;
/// Pieces of the body that are smaller are put together, until there is so much, or the client is to see it: each that httpd
/// keeps costs it hundreds of bytes. Its core does not write less by itself either.
const SMALL: usize = 4 * 1024;
/// So long a piece of a file may take at least to be read.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// What comes after what was passed on.
#[derive(Debug)]
enum Piece {
    Bytes { bytes: Vec<u8>, at: usize },
    File { file: Arc<TenantFile>, at: u64, left: u64 },
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
    /// Small pieces that are not queued yet.
    small: Vec<u8>,
    /// Bytes that are queued, and not passed on yet.
    queued: usize,
    rest: VecDeque<Piece>,
    /// The rest is to be on its way when it is passed on; it is the last.
    flush: bool,
    finish: bool,
    /// Something has come since the last FLUSH. Without that another one tells the client nothing, and a worker may ask for
    /// one as often as it likes.
    unflushed: bool,
    /// How long the client may take nothing, and since when it has not, while it must.
    patience: Duration,
    stuck_since: Option<Instant>,
    ticket: Option<Ticket>,
    /// How many threads may wait for files of the pool; for whoever cannot be parked.
    max_threads: Option<u32>,
    /// The next piece of the file in front of `rest`, which was not in memory.
    reading: Option<Arc<Reading>>,
}

impl<'r> Delivery<'r> {
    /// With a ticket it never waits.
    pub fn new(r: RequestRec<'r>, ticket: Option<Ticket>, max_threads: Option<u32>) -> Self {
        Self {
            client: Client::new(r),
            connection: ticket.and_then(|_| Connection::of(r)),
            small: Vec::new(),
            queued: 0,
            rest: VecDeque::new(),
            flush: false,
            finish: false,
            unflushed: true,
            patience: r.server().timeout(),
            stuck_since: None,
            ticket,
            max_threads,
            reading: None,
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
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), ClientGone> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.unflushed = true;
        if self.small.len() + bytes.len() < SMALL {
            self.small.extend_from_slice(bytes);
            return Ok(());
        }
        self.pass_small()?;
        self.take(bytes)
    }

    /// What was put together goes before what comes next.
    fn pass_small(&mut self) -> Result<(), ClientGone> {
        if self.small.is_empty() {
            return Ok(());
        }
        let mut small = std::mem::take(&mut self.small);
        self.take(&small)?;
        self.pass_queued(false)?;
        small.clear();
        self.small = small;
        Ok(())
    }

    /// As [`data`](Self::data), without putting anything together.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), ClientGone> {
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
            let (now, later) = bytes.split_at(bytes.len().min(piece() - self.queued));
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

    /// Takes a piece of a file. httpd never gets the descriptor: it would wait for the file, with sendfile(2) too.
    pub fn file(&mut self, file: Arc<TenantFile>, at: u64, left: u64) -> Result<(), ClientGone> {
        self.unflushed = true;
        self.pass_small()?;
        self.rest.push_back(Piece::File { file, at, left });
        Ok(())
    }

    fn pass_queued(&mut self, flush: bool) -> Result<(), ClientGone> {
        self.queued = 0;
        self.client.pass(flush)
    }

    /// Passes on what was taken, as far as the client takes it; with `flush` it is on its way then.
    pub fn pass(&mut self, flush: bool) -> Result<(), Undelivered> {
        let flush = flush && std::mem::take(&mut self.unflushed);
        let small = if flush { std::mem::take(&mut self.small) } else { Vec::new() };
        self.take(&small)?;
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
        let small = std::mem::take(&mut self.small);
        self.take(&small)?;
        // With its last bytes, so that httpd can tell the length; if there are any, the client has taken all before.
        let at_once = !self.client.passes_in_pieces() || (self.queued > 0 && !self.client.holds());
        if self.rest.is_empty() && at_once {
            self.queued = 0;
            return Ok(self.client.finish()?);
        }
        self.finish = true;
        self.pass_queued(false)?;
        if self.connection.is_none() {
            // Whoever calls goes on with the rest when the worker is free.
            return Ok(());
        }
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

    /// What it waits for where it does not go on: that the client takes more, or a piece of a file, whose thread wakes it.
    pub fn awaited(&self) -> Awaited<'_> {
        match &self.reading {
            Some(reading) => Awaited { peer: None, client: None, until: reading.until() },
            None => Awaited { peer: None, client: Some(Interest::Write), until: self.until() },
        }
    }

    /// The piece of a file that it waits for is there.
    pub fn is_ready(&self) -> bool {
        self.reading.as_ref().is_some_and(|reading| reading.is_done())
    }

    /// The next bytes of the file in front of the rest; `None` if they are not there yet.
    fn next_of_file(&mut self) -> Result<Option<Vec<u8>>, Undelivered> {
        let Some(Piece::File { file, at, left }) = self.rest.front_mut() else { return Ok(None) };
        let read = if let Some(reading) = &self.reading {
            let read = if self.ticket.is_some() { reading.take() } else { Some(reading.wait(self.max_threads)) };
            let Some(read) = read else { return Ok(None) };
            self.reading = None;
            read
        } else {
            let most = if self.connection.is_some() { piece() } else { MAX_DATA };
            let want = usize::try_from(*left).unwrap_or(most).min(most);
            if let Some(bytes) = file.read_now(*at, want) {
                Ok(bytes)
            } else {
                let until = Instant::now() + self.patience.max(LEAST_PATIENCE);
                self.reading = Some(file.read_later(*at, want, until, self.ticket));
                return self.next_of_file();
            }
        };
        let bytes = read.map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => Undelivered::File("a file that could not be read in time".into()),
            _ => Undelivered::File(format!("a file that cannot be read: {e}")),
        })?;
        if bytes.is_empty() {
            return Err(Undelivered::File("a file that became shorter".into()));
        }
        *at += bytes.len() as u64;
        *left = left.saturating_sub(bytes.len() as u64);
        if *left == 0 {
            self.rest.pop_front();
        }
        Ok(Some(bytes))
    }

    /// Goes on with the rest; says whether that was all. What [`awaited`](Self::awaited) says must come first, otherwise.
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
                    let end = bytes.len().min(*at + piece());
                    self.client.queue(bytes.get(*at..end).unwrap_or_default());
                    *at = end;
                    let over = end == bytes.len();
                    // The bytes are passed on before their piece is dropped.
                    self.pass_queued(false)?;
                    if over {
                        self.rest.pop_front();
                    }
                }
                Some(Piece::File { .. }) => {
                    let Some(piece) = self.next_of_file()? else { return Ok(false) };
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
        self.small.clear();
        self.rest.clear();
        self.reading = None;
        (self.flush, self.finish) = (false, false);
        self.client.break_off();
    }
}
