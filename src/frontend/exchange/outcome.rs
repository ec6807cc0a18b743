//! How an exchange ends: what stops it, and what that means for client, worker and log.
//!
//! Runs in: frontend, the thread that has the request.  Trusts: nothing that the worker sends.
//! Owns: the words for the log.  Never: calls an exchange unread that a worker can have read.

use super::delivery::Undelivered;
use super::request;
use super::upload::{Upload, MOST_REPLAYED};
use super::Run;
use crate::frontend::errors;
use crate::httpd::client::ClientGone;
use crate::wire::codec::Malformed;
use crate::wire::control::Returned;
use crate::wire::exchange::{Stage, Violation};
use crate::wire::response::AbortReason;
use std::io;

/// Both sides belong to one generation, and neither changes in its life: waiting would not help.
const REMEDY: &str =
    "its files were changed since httpd has read them: 'apachectl graceful' has every process read them again";

/// How an exchange ended.
#[derive(Debug)]
pub enum Outcome {
    /// The client has its response. The worker is idle, or said that this was its `last` request; it may not have read
    /// the whole body, and then the client may still be sending it.
    Done { last: bool, body_left: bool },
    /// The client is gone.
    ClientGone,
    /// The worker cannot make this part of a page, or this error's text, for this status.
    NoPart { status: u16, last: bool },
    /// Nothing was sent to the client: it gets this status.
    Answer { status: u16, how: Returned, why: String },
    /// The response had begun: the client sees it break off, or, where nothing of it had left, `instead` of it a whole
    /// 502 of httpd's.
    BrokeOff { how: Returned, why: String, instead: bool },
    /// No worker can have read the request: another may.
    Unread,
    /// It is not over: it waits for what [`Run::awaited`] says.
    Parked,
}

/// Why an exchange stops before its end.
#[derive(Debug)]
pub(super) enum Stop {
    ClientGone,
    /// The worker broke the protocol.
    Violation(String),
    /// It gave this exchange up, said why, and whether it takes no further request.
    Aborted {
        reason: AbortReason,
        text: String,
        last: bool,
    },
    /// Its socket is at its end.
    Died(Option<io::ErrorKind>),
    /// Nothing is there yet: a worker may take its time.
    Silent,
    /// The worker has not received the request in time.
    Untaken,
    /// The request took longer than `PoolRequestTimeout`.
    Expired,
    /// Not at all: it needs no thread for now.
    Parks,
}

impl From<Malformed> for Stop {
    fn from(e: Malformed) -> Self {
        Self::Violation(e.to_string())
    }
}

impl From<Violation> for Stop {
    fn from(e: Violation) -> Self {
        Self::Violation(e.to_string())
    }
}

impl From<ClientGone> for Stop {
    fn from(_: ClientGone) -> Self {
        Self::ClientGone
    }
}

impl From<Undelivered> for Stop {
    fn from(why: Undelivered) -> Self {
        match why {
            Undelivered::ClientGone => Self::ClientGone,
            Undelivered::File(what) => Self::Violation(what),
        }
    }
}

impl Run<'_> {
    /// It was found out elsewhere that the client is gone.
    pub fn client_left(&mut self) -> Outcome {
        self.stopped(Stop::ClientGone)
    }

    pub(super) fn stopped(&mut self, stop: Stop) -> Outcome {
        if self.checker.stage() == Stage::Body && !matches!(stop, Stop::Parks) {
            self.tell_loggers();
        }
        let (status, how, why) = match stop {
            // The worker has done everything; what it did is not lost on others.
            Stop::ClientGone => match self.checker.stage() {
                Stage::Complete { last } => return Outcome::Done { last, body_left: false },
                _ => return Outcome::ClientGone,
            },
            Stop::Parks | Stop::Silent => return Outcome::Parked,
            Stop::Died(Some(kind))
                if !self.heard && self.messages <= 1 && self.reads <= MOST_REPLAYED && is_unread(kind) =>
            {
                return Outcome::Unread
            }
            Stop::Died(_) => (502, Returned::Dead, "ended before its response was complete".to_owned()),
            Stop::Expired => {
                let limit = self.time_limit.unwrap_or_default();
                (504, Returned::Expired, format!("was ended by PoolRequestTimeout after {} s", limit.as_secs_f32()))
            }
            Stop::Untaken => {
                let why = format!("did not take the request for {} seconds", self.patience.as_secs());
                (504, Returned::TimedOut, why)
            }
            Stop::Violation(what) => (502, Returned::Violation, format!("broke the protocol: it sent {what}")),
            Stop::Aborted { reason: AbortReason::NoPart, text, last }
                if request::is_fragment(self.r) && self.checker.stage() == Stage::Waiting =>
            {
                let status = text.parse().ok().filter(|status| (300..600).contains(status)).unwrap_or(500);
                return Outcome::NoPart { status, last };
            }
            Stop::Aborted { reason, text, last } => {
                let how = if last { Returned::Last } else { Returned::Idle };
                // What failed is told in any case, and the worker's words as far as its pool may write.
                let written = errors::takes_line(self.pool, text.len(), Some(self.r.useragent_ip()));
                let text = if written { text } else { "(too much is logged)".to_owned() };
                match reason {
                    AbortReason::ServerMismatch => {
                        (503, how, format!("has read another configuration: {text}; {REMEDY}"))
                    }
                    _ => (502, how, format!("gave up: {text}")),
                }
            }
        };
        if self.upload != Upload::Complete {
            self.out.client.close_after();
        }
        if self.checker.stage() == Stage::Waiting {
            return Outcome::Answer { status, how, why };
        }
        let told = self.r.status();
        self.out.break_off();
        Outcome::BrokeOff { how, why, instead: self.r.status() != told }
    }
}

/// The kernel says so when the other end was closed with the message still in its queue, or before it got there.
pub(super) fn is_unread(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected)
}
