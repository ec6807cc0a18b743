//! What filters and hooks share while a request is served.
//!
//! Runs in: worker.  Trusts: nothing.  Owns: the lease, both message buffers, the state of the exchange.
//! Never: calls httpd while one of its cells is borrowed.

use super::inbox::Inbox;
use super::outbox::Outbox;
use super::tls::Tls;
use crate::apr::brigade::Status;
use crate::httpd::rebuild::{self, BodyLength};
use crate::settings::LoggedNames;
use crate::wire::chunked::Chunked;
use crate::wire::frame::{Exchange, FrameKind};
use once_cell::unsync::OnceCell;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

thread_local! {
    /// This process's worker. httpd's hooks have no argument that could carry it.
    pub(super) static WORKER: OnceCell<Worker> = const { OnceCell::new() };
}

/// Calls `body` with the worker; `None` in a process that is none.
pub(super) fn with<T>(body: impl FnOnce(&Worker) -> T) -> Option<T> {
    WORKER.with(|w| w.get().map(body))
}

/// The state that filters and hooks share. Each `RefCell` is borrowed only while no httpd function runs: any of them
/// may log, and so come back here.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) lease: OwnedFd,
    pub(super) logged: LoggedNames,
    pub(super) inbox: RefCell<Inbox>,
    pub(super) outbox: RefCell<Outbox>,
    pub(super) exchange: RefCell<Current>,
    /// Fits `exchange`; read by the filters for every brigade.
    pub(super) response: Response,
    /// The frontend has let go of the lease, or broke the protocol.
    pub(super) gone: Cell<bool>,
    /// A request is being served.
    pub(super) busy: Cell<bool>,
}

/// How far the response is.
#[derive(Debug, Default)]
pub(super) struct Response {
    pub(super) head_sent: Cell<bool>,
    /// The response has no body, whatever comes.
    pub(super) bodiless: Cell<bool>,
    pub(super) complete: Cell<bool>,
    /// A filter said that the response cannot be completed.
    pub(super) broken: Cell<bool>,
    pub(super) finished: Cell<bool>,
    /// What the loggers shall know has gone with the beginning of the response.
    pub(super) told: Cell<bool>,
    /// Bytes of body that the head has promised and that are still to come.
    pub(super) remaining: Cell<Option<u64>>,
    /// More body came than the head has promised.
    pub(super) excess: Cell<bool>,
    pub(super) interims: Cell<u32>,
    /// The response has the frontend's offer of an upgrade, unless somebody has taken it out.
    pub(super) offered: Cell<bool>,
    /// Bytes of a head that did not come through the header filter.
    pub(super) raw_head: RefCell<Vec<u8>>,
    /// The body comes in the chunks of such a response.
    pub(super) chunked: Cell<Option<Chunked>>,
}

impl Response {
    pub(super) fn reset(&self) {
        let flags = [&self.head_sent, &self.bodiless, &self.complete, &self.broken, &self.finished, &self.told];
        for flag in flags {
            flag.set(false);
        }
        self.excess.set(false);
        self.interims.set(0);
        self.offered.set(false);
        self.remaining.set(None);
        self.raw_head.borrow_mut().clear();
        self.chunked.set(None);
    }
}

/// What is to be known of the request in hand.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) number: Exchange,
    pub(super) body: BodyState,
    pub(super) log_lines: u32,
    /// The frontend's environment, as it came: a list of pairs.
    pub(super) env: Vec<u8>,
    pub(super) tls: Tls,
    pub(super) last: bool,
    pub(super) early_meta: bool,
}

/// How far the request's body was read.
#[derive(Debug)]
pub(super) struct BodyState {
    pub(super) length: BodyLength,
    /// The client waits for "100 Continue".
    pub(super) ask: bool,
    pub(super) started: bool,
    pub(super) ended: bool,
    /// The body will not be completed: what every further read is told.
    pub(super) failed: Option<Status>,
    pub(super) limit: Option<u64>,
    pub(super) read: u64,
    /// Unread bytes of the inbox's current message.
    pub(super) piece: std::ops::Range<usize>,
}

impl Default for BodyState {
    fn default() -> Self {
        Self {
            length: BodyLength::None,
            ask: false,
            started: false,
            ended: false,
            failed: None,
            limit: None,
            read: 0,
            piece: 0..0,
        }
    }
}

impl Worker {
    pub(super) fn new(lease: OwnedFd, logged: LoggedNames) -> Self {
        Self {
            lease,
            logged,
            inbox: RefCell::new(Inbox::new()),
            outbox: RefCell::new(Outbox::new()),
            exchange: RefCell::new(Current {
                number: Exchange(0),
                body: BodyState::default(),
                log_lines: 0,
                env: Vec::new(),
                tls: Tls::default(),
                last: false,
                early_meta: false,
            }),
            response: Response::default(),
            gone: Cell::new(false),
            busy: Cell::new(false),
        }
    }

    pub(super) fn lease(&self) -> BorrowedFd<'_> {
        self.lease.as_fd()
    }

    /// Does something with the outbox. When the frontend is gone, the request learns that its client is.
    pub(super) fn send(&self, what: impl FnOnce(&mut Outbox, BorrowedFd<'_>) -> io::Result<()>) -> Result<(), Gone> {
        if self.gone.get() {
            return Err(Gone);
        }
        let result = what(&mut self.outbox.borrow_mut(), self.lease());
        result.map_err(|_| self.client_gone())
    }

    pub(super) fn frame(&self, kind: FrameKind, flags: u8, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Gone> {
        self.send(|outbox, lease| outbox.frame(lease, kind, flags, write))
    }

    pub(super) fn client_gone(&self) -> Gone {
        self.gone.set(true);
        rebuild::with_current(|r| r.set_aborted());
        Gone
    }
}

/// Nobody is there any more who could read the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;
