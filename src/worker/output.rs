//! The output filters: the response head, its body, its end.
//!
//! Runs in: worker.  Trusts: httpd's order of filters.  Owns: nothing.
//! Never: sends a head twice, or a body before its head.

use super::state::{with, Gone, Worker};
use crate::apr::brigade::{Brigade, Bucket, FilePiece, Kind, Status};
use crate::httpd::response;
use crate::httpd::worker_filters::Filter;
use crate::httpd::{log, rebuild, RequestRec};
use crate::sys::file;
use crate::wire::chunked::Chunked;
use crate::wire::frame::{FrameKind, PairsWriter, FLAG_CLOSE, MAX_DATA, MAX_INTERIM, STEERING};
use crate::wire::interim;
use crate::wire::request::UPGRADE;
use crate::wire::response::{is_hop_by_hop, put_response_head, FileRange, MAX_FIELDS};

/// A piece of a file from this size on travels as a descriptor; a smaller one is read.
const PASS_FROM: u64 = 16 * 1024;
const BAD_GATEWAY: i32 = 502;
const INTERNAL_SERVER_ERROR: i32 = 500;

impl From<Gone> for Status {
    fn from(_: Gone) -> Self {
        Self::ABORTED
    }
}

/// In the place of httpd's header filter: `ap_http_header_filter` with frames for bytes.
pub fn header(filter: Filter<'_>, brigade: Brigade<'_>) -> Result<(), Status> {
    with(|worker| worker.header(filter, brigade)).unwrap_or(Err(Status::GENERAL))
}

/// In the place of httpd's network filter.
pub fn network(mut brigade: Brigade<'_>) -> Result<(), Status> {
    with(|worker| {
        let result = worker.network(&mut brigade);
        if result.is_err() {
            if brigade.kinds().any(|kind| kind == Kind::EndOfRequest) {
                rebuild::with_current(rebuild::run_loggers);
                rebuild::request_ends();
            }
            brigade.clear();
        }
        result
    })
    .unwrap_or(Err(Status::GENERAL))
}

impl Worker {
    fn header(&self, filter: Filter<'_>, mut brigade: Brigade<'_>) -> Result<(), Status> {
        let r = filter.request();
        if self.response.head_sent.get() {
            // The filter stayed only to eat a body that must not be there.
            return end_only(filter, brigade);
        }
        if brigade.kinds().any(|kind| kind == Kind::EndOfConnection) {
            // A signal to get out of the way.
            filter.remove();
            return filter.pass(brigade);
        }
        let error = brigade.kinds().find_map(|kind| if let Kind::Error(status) = kind { Some(status) } else { None });
        response::merge_fields(r);
        let mut recursive = false;
        match check(r) {
            Err(bad) => {
                log::request(log::Level::Error, r, bad.0);
                brigade.clear();
                if response::discard(r) {
                    response::die(r, INTERNAL_SERVER_ERROR);
                    return Err(Status::FILTER_ERROR);
                }
                brigade.push_end();
                recursive = true;
            }
            Ok(()) => {
                if let Some(status) = error {
                    brigade.clear();
                    response::die(r, status);
                    return Err(Status::FILTER_ERROR);
                }
            }
        }
        if response::writes_own_head(r) {
            response::body_follows(r);
            filter.remove();
            return filter.pass(brigade);
        }
        self.send_head(r)?;
        let result = if response::is_header_only(r) {
            end_only(filter, brigade)
        } else {
            response::body_follows(r);
            filter.remove();
            filter.pass(brigade)
        };
        if recursive {
            return Err(Status::FILTER_ERROR);
        }
        result
    }

    /// The frontend's offer of another protocol, in the response as httpd's core puts it there: filters may take it out.
    pub(super) fn offer_upgrade(&self, r: RequestRec<'_>) {
        let current = self.exchange.borrow();
        let mut told = super::serve::pairs(&current.env).iter();
        let Some((_, offer)) = told.find(|(name, _)| *name == UPGRADE) else { return };
        r.headers_out().setn(c"Upgrade", r.pool().copy_str(offer));
        r.headers_out().setn(c"Connection", c"Upgrade");
        self.response.offered.set(true);
    }

    /// What was taken out of the offer goes to the frontend as a field without a value.
    fn withdraw_upgrade(&self, r: RequestRec<'_>) {
        if self.response.offered.get() {
            for name in [c"Upgrade", c"Connection"] {
                if r.headers_out().get(name).is_none() {
                    r.headers_out().setn(name, c"");
                }
            }
        }
    }

    fn send_head(&self, r: RequestRec<'_>) -> Result<(), Status> {
        self.response.head_sent.set(true);
        rebuild::unwanted_body(r, false);
        self.withdraw_upgrade(r);
        let bodiless = response::is_header_only(r);
        self.response.bodiless.set(bodiless);
        let length = response::content_length(r);
        self.response.remaining.set(if bodiless { None } else { length });
        // httpd's words for a number that is no status are those for 500.
        let (status, line) = match u16::try_from(r.status()) {
            Ok(status @ 200..=999) => (status, response::own_status_line(r)),
            _ => (500, &b""[..]),
        };
        self.frame(FrameKind::Head, connection_flags(r), |out| {
            put_response_head(out, status, line);
            super::meta::put_table(out, r.headers_out());
        })?;
        Ok(())
    }

    fn network(&self, brigade: &mut Brigade<'_>) -> Result<(), Status> {
        while let Some(bucket) = brigade.first() {
            match bucket.kind() {
                // A handler that does not know that its response was replaced by an error's goes on writing.
                Kind::Data | Kind::File | Kind::Flush if self.response.complete.get() => {}
                Kind::File if self.response.head_sent.get() => self.file(bucket)?,
                Kind::Data | Kind::File => self.data(bucket)?,
                Kind::Flush => self.flush()?,
                Kind::EndOfStream => {
                    let cut = self.response.chunked.get().is_some_and(|chunked| !chunked.is_complete());
                    self.response.broken.set(self.response.broken.get() || cut);
                    self.response.complete.set(true);
                }
                Kind::EndOfConnection => {
                    if !self.response.complete.get() {
                        self.response.broken.set(true);
                    }
                }
                // Behind the head the client can be told of an error in one way only: the response does not end.
                Kind::Error(status) => {
                    if status == BAD_GATEWAY || (self.response.head_sent.get() && !self.response.complete.get()) {
                        self.response.broken.set(true);
                    }
                }
                Kind::Other => {}
                Kind::EndOfRequest => {
                    rebuild::with_current(|r| {
                        rebuild::run_loggers(r);
                        self.finish(r);
                    });
                    rebuild::request_ends();
                }
            }
            brigade.delete_first();
        }
        if self.gone.get() || self.left.get() {
            Err(Status::ABORTED)
        } else {
            Ok(())
        }
    }

    fn data(&self, bucket: Bucket<'_>) -> Result<(), Status> {
        let bytes = match bucket.read(false) {
            Err(Status::AGAIN) => {
                // As the core's network filter: what there is goes out before the wait.
                self.flush()?;
                bucket.read(true)?
            }
            read => read?,
        };
        if !self.response.head_sent.get() {
            return self.raw_bytes(bytes);
        }
        if self.response.chunked.get().is_some() {
            return self.chunks(bytes);
        }
        self.body_bytes(bytes)
    }

    /// Body of a response that came in chunks of its own: the chunks of HTTP/1 are the frontend's to make.
    fn chunks(&self, mut bytes: &[u8]) -> Result<(), Status> {
        let Some(mut chunked) = self.response.chunked.get() else { return self.body_bytes(bytes) };
        while !bytes.is_empty() {
            let Ok((taken, data)) = chunked.take(bytes) else {
                self.response.broken.set(true);
                return Err(Status::GENERAL);
            };
            self.body_bytes(data)?;
            bytes = &bytes[taken..];
        }
        self.response.chunked.set(Some(chunked));
        Ok(())
    }

    fn body_bytes(&self, bytes: &[u8]) -> Result<(), Status> {
        let n = usize::try_from(self.promised(bytes.len() as u64)).unwrap_or(usize::MAX);
        if n > 0 {
            self.before_it_leaves(n)?;
            self.send(|outbox, lease| outbox.data(lease, &bytes[..n]))?;
        }
        Ok(())
    }

    /// Sends what waits, and has the client see it.
    fn flush(&self) -> Result<(), Gone> {
        self.look_for_client()?;
        self.tell_early()?;
        self.send(|outbox, lease| outbox.flush(lease))
    }

    /// If so many bytes more make a part of the response leave before its end, the loggers' share goes with it.
    fn before_it_leaves(&self, len: usize) -> Result<(), Gone> {
        if self.left.get() {
            return Err(Gone);
        }
        if self.outbox.borrow().has_room(len) {
            return Ok(());
        }
        self.look_for_client()?;
        self.tell_early()
    }

    /// How many of `len` bytes of body the head has promised: what an application writes beyond its own
    /// Content-Length no client would read, and the frontend must not pass it on.
    fn promised(&self, len: u64) -> u64 {
        if self.response.bodiless.get() {
            return 0;
        }
        let Some(left) = self.response.remaining.get() else { return len };
        if len > left && !self.response.excess.replace(true) {
            rebuild::with_current(|r| {
                log::request(log::Level::Warning, r, "the body is longer than its Content-Length; the rest is dropped");
            });
        }
        let n = len.min(left);
        self.response.remaining.set(Some(left - n));
        n
    }

    /// Bytes of HTTP/1 that did not come through the header filter: interim responses, and what nph- scripts say.
    fn raw_bytes(&self, bytes: &[u8]) -> Result<(), Status> {
        let mut head = std::mem::take(&mut *self.response.raw_head.borrow_mut());
        head.extend_from_slice(bytes);
        let mut at = 0;
        while !self.response.head_sent.get() {
            match interim::parse(&head[at..]) {
                Ok(Some(parsed)) if (100..1000).contains(&parsed.status) => {
                    self.raw_head(&parsed)?;
                    at += parsed.len;
                }
                Ok(None) => {
                    head.drain(..at);
                    self.response.raw_head.replace(head);
                    return Ok(());
                }
                Ok(Some(_)) | Err(_) => {
                    self.response.broken.set(true);
                    rebuild::with_current(|r| {
                        log::request(log::Level::Error, r, "the response is not HTTP: its head cannot be parsed");
                    });
                    return Err(Status::GENERAL);
                }
            }
        }
        self.chunks(&head[at..])
    }

    fn raw_head(&self, head: &interim::RawHead<'_>) -> Result<(), Status> {
        let mut fields = head.fields.iter();
        let chunked = !head.is_interim()
            && fields.any(|(name, value)| {
                name.eq_ignore_ascii_case("Transfer-Encoding") && value.eq_ignore_ascii_case(b"chunked")
            });
        let mut lengths = head.fields.iter().filter(|(name, _)| is_length(name));
        // Of several, none is believed.
        let length = match (lengths.next(), lengths.next()) {
            (Some((_, value)), None) if !chunked => response::parse_length(value),
            _ => None,
        };
        let kind = if head.is_interim() {
            let count = self.response.interims.get() + 1;
            self.response.interims.set(count);
            // The frontend asks the client itself; 101 would take the connection over.
            if matches!(head.status, 100 | 101) || count > MAX_INTERIM {
                return Ok(());
            }
            FrameKind::Interim
        } else {
            self.response.head_sent.set(true);
            self.response.chunked.set(chunked.then(Chunked::default));
            rebuild::with_current(|r| rebuild::unwanted_body(r, false));
            let no_body = rebuild::with_current(response::is_header_only).unwrap_or(false);
            self.response.bodiless.set(no_body || matches!(head.status, 204 | 304));
            if !self.response.bodiless.get() {
                self.response.remaining.set(length);
            }
            FrameKind::Head
        };
        let closes = !head.is_interim() && head.fields.iter().any(|(name, value)| closes(name.as_bytes(), value));
        self.frame(kind, if closes { FLAG_CLOSE } else { 0 }, |out| {
            let plain = !head.reason.is_empty() && !head.reason.contains(char::is_control);
            let line = if plain { format!("{} {}", head.status, head.reason) } else { String::new() };
            put_response_head(out, head.status, line.as_bytes());
            let mut fields = PairsWriter::new(out);
            for (name, value) in &head.fields {
                if !is_hop_by_hop(name.as_bytes()) && (length.is_some() || !is_length(name)) {
                    // Shorter than the head that they were in, whose length is limited.
                    let _ = fields.pair(name.as_bytes(), value);
                }
            }
            fields.finish();
        })?;
        if head.is_interim() {
            self.send(super::outbox::Outbox::send)?;
        }
        Ok(())
    }

    fn file(&self, bucket: Bucket<'_>) -> Result<(), Status> {
        let Some(piece) = bucket.file() else { return self.data(bucket) };
        let piece = FilePiece { length: self.promised(piece.length), ..piece };
        if piece.length >= PASS_FROM {
            let inside = |size: u64| piece.offset.checked_add(piece.length).is_some_and(|end| end <= size);
            if file::plain(piece.fd).is_some_and(|plain| inside(plain.size)) {
                if let Ok(fd) = piece.fd.try_clone_to_owned() {
                    let range = FileRange { offset: piece.offset, length: piece.length };
                    self.before_it_leaves(0)?;
                    self.send(|outbox, lease| outbox.file(lease, fd, range))?;
                    return Ok(());
                }
            }
        }
        self.read_file(piece)
    }

    /// Reads a piece of a file without touching its offset, which others may share.
    fn read_file(&self, piece: FilePiece<'_>) -> Result<(), Status> {
        let (mut offset, mut left) = (piece.offset, piece.length);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(MAX_DATA / 2);
            let mut read = Ok(0);
            self.before_it_leaves(most)?;
            self.send(|outbox, lease| {
                read = outbox.data_with(lease, most, |out| file::read_at(piece.fd, offset, most, out))?;
                Ok(())
            })?;
            match read {
                Ok(n) if n > 0 => {
                    offset += n as u64;
                    left -= n as u64;
                }
                // The file has become shorter, or cannot be read: the length that was promised is not kept.
                _ => {
                    self.response.broken.set(true);
                    return Err(Status::GENERAL);
                }
            }
        }
        Ok(())
    }
}

/// What the response and its variables say of the client's connection, which is the frontend's.
fn connection_flags(r: RequestRec<'_>) -> u8 {
    let own = r.headers_out().iter().any(|(name, value)| closes(name, value));
    let env = r.subprocess_env();
    let steering = STEERING.iter().filter(|(name, _)| env.get(name).is_some());
    steering.fold(if own { FLAG_CLOSE } else { 0 }, |flags, (_, flag)| flags | flag)
}

/// `Connection: close`, also in a list.
fn closes(name: &[u8], value: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"Connection")
        && value.split(|b| *b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"close"))
}

fn is_length(name: &str) -> bool {
    name.eq_ignore_ascii_case("Content-Length")
}

/// Passes the end of the stream on alone, if the brigade has it.
fn end_only(filter: Filter<'_>, mut brigade: Brigade<'_>) -> Result<(), Status> {
    let end = brigade.kinds().any(|kind| kind == Kind::EndOfStream);
    brigade.clear();
    if !end {
        return Ok(());
    }
    brigade.push_end();
    filter.remove();
    filter.pass(brigade)
}

/// Status and fields are such that a frontend takes them.
fn check(r: RequestRec<'_>) -> Result<(), response::BadField> {
    if (100..200).contains(&r.status()) {
        return Err(response::BadField(format!("Response status {} is not final, aborting request", r.status())));
    }
    response::check_fields(r, MAX_FIELDS)
}
