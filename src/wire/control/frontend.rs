//! What a frontend and the controller say to each other on the frontend's own channel.
//!
//! Runs in: parent, controller, seed, zygote, frontend.  Trusts: nothing it decodes.  Owns: the layout of these messages, and the numbers of leases and wants.
//! Never: reads a socket, panics on any input, allocates by a length that a peer sent.

use super::{field, MAX_LOG_LINE};
use crate::wire::codec::{Malformed, Put};

/// Number of a lease; never used twice by one controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// How many times a lease was lent; a message about an earlier lending is stale and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LendCount(pub u32);

/// Number of a Want, chosen by the frontend, unique among its open ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WantId(pub u32);

/// When a request came, in microseconds of the clock that all processes of a machine share (`CLOCK_MONOTONIC`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arrival(pub u64);

/// Whose requests wait for a pool, as one frontend is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    Nobody,
    /// Only that frontend's own.
    Here,
    /// Those of other frontends, too; the oldest of them came then.
    Elsewhere(Arrival),
}

/// On a frontend's channel, to the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrontendMessage {
    /// A request waits for a worker of the pool with this index in the pool table of the frontend's generation.
    Want { want: WantId, pool: u32, arrived: Arrival },
    /// Nobody waits for it any more.
    Cancel { want: WantId },
    /// The lease is given back. With [`Returned::Idle`] the data socket travels with it; otherwise it may, to be closed
    /// by the controller instead of the frontend.
    Return { lease: LeaseId, lend: LendCount, how: Returned },
    /// Sockets that travel with it may be full of what a worker of the pool with this index sent: the controller has them closed
    /// where nobody waits for that.
    Discard { pool: u32 },
}

/// In which state a lease comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Returned {
    /// The worker waits for its next request; the data socket is attached.
    Idle,
    /// The worker said that this was its last request; it ends by itself.
    Last,
    /// The client went away; the worker may finish its script, then ends by itself.
    Abandoned,
    /// The worker's socket is at its end: it has died, or is about to.
    Dead,
    /// The worker broke the protocol: kill it.
    Violation,
    /// The worker did not take its request within httpd's Timeout: kill it.
    TimedOut,
    /// Its request took longer than PoolRequestTimeout: interrupt it, and kill it after the pool's grace.
    Expired,
}

/// On a frontend's channel, from the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControllerMessage {
    /// The wanted lease; its data socket is attached.
    Grant {
        want: WantId,
        /// The Want's. Who has withdrawn that must still know what `queued` is about.
        pool: u32,
        lease: LeaseId,
        lend: LendCount,
        /// The worker's process id, as the kernel knows it.
        pid: u32,
        /// The worker was forked for this Want.
        cold: bool,
        /// As with [`Contended`](Self::Contended).
        queued: Queued,
    },
    /// There will be no lease for this Want.
    Refuse { want: WantId, reason: Refusal, retry_after_s: u32, text: String },
    /// Return this lease as soon as it is idle.
    Recall { lease: LeaseId, lend: LendCount },
    /// Whose requests wait for this pool: while there is an older one elsewhere, no lease goes to another request here.
    Contended { pool: u32, queued: Queued },
    /// The worker of a lease that this frontend holds has ended. `wait_status` as of waitpid(2).
    Obituary { lease: LeaseId, lend: LendCount, pid: u32, wait_status: i32 },
    /// A line that a process of the pool wrote to its standard error.
    Log { pool: u32, pid: u32, line: Vec<u8> },
}

/// Why a Want is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// `PoolQueueLimit` requests wait already.
    QueueFull,
    /// It waited for `PoolQueueTimeout`.
    QueueTimeout,
    /// The pool's processes die when they start; the next attempt comes later.
    Throttled,
    /// No such pool in this generation, or it cannot be assigned.
    NoPool,
    /// The server is stopping.
    Stopping,
}

const WANT: u8 = 1;
const CANCEL: u8 = 2;
const RETURN: u8 = 3;
const DISCARD: u8 = 4;

const GRANT: u8 = 1;
const REFUSE: u8 = 2;
const RECALL: u8 = 3;
const CONTENDED: u8 = 4;
const OBITUARY: u8 = 5;
const LOG: u8 = 6;

impl Queued {
    const NOBODY: u64 = 0;
    const HERE: u64 = u64::MAX;

    /// The later it is, the more of a frontend's own requests come before it.
    fn number(self) -> u64 {
        match self {
            Self::Nobody => Self::NOBODY,
            Self::Here => Self::HERE,
            Self::Elsewhere(arrival) => arrival.0.clamp(Self::NOBODY + 1, Self::HERE - 1),
        }
    }

    fn of(number: u64) -> Self {
        match number {
            Self::NOBODY => Self::Nobody,
            Self::HERE => Self::Here,
            time => Self::Elsewhere(Arrival(time)),
        }
    }
}

impl Returned {
    /// Each at the place that is its number.
    const ALL: [Self; 7] =
        [Self::Idle, Self::Last, Self::Abandoned, Self::Dead, Self::Violation, Self::TimedOut, Self::Expired];
}

impl Refusal {
    /// Each at the place that is its number.
    const ALL: [Self; 5] = [Self::QueueFull, Self::QueueTimeout, Self::Throttled, Self::NoPool, Self::Stopping];
}

impl FrontendMessage {
    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Want { want, pool, arrived } => {
                out.put_u8(WANT);
                out.put_u32(want.0);
                out.put_u32(*pool);
                out.put_u64(arrived.0);
            }
            Self::Cancel { want } => {
                out.put_u8(CANCEL);
                out.put_u32(want.0);
            }
            Self::Return { lease, lend, how } => {
                out.put_u8(RETURN);
                out.put_u64(lease.0);
                out.put_u32(lend.0);
                out.put_u8(*how as u8);
            }
            Self::Discard { pool } => {
                out.put_u8(DISCARD);
                out.put_u32(*pool);
            }
        }
        out
    }

    /// Reads one message.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        field::message(bytes, |kind, r| {
            Ok(match kind {
                WANT => Self::Want { want: WantId(r.u32()?), pool: r.u32()?, arrived: Arrival(r.u64()?) },
                CANCEL => Self::Cancel { want: WantId(r.u32()?) },
                RETURN => Self::Return {
                    lease: LeaseId(r.u64()?),
                    lend: LendCount(r.u32()?),
                    how: field::one_of(r, &Returned::ALL, "how")?,
                },
                DISCARD => Self::Discard { pool: r.u32()? },
                _ => return Err(Malformed::Field("kind")),
            })
        })
    }
}

impl ControllerMessage {
    /// The message as bytes. A log line beyond [`MAX_LOG_LINE`] is cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Grant { want, pool, lease, lend, pid, cold, queued } => {
                out.put_u8(GRANT);
                out.put_u32(want.0);
                out.put_u32(*pool);
                out.put_u64(lease.0);
                out.put_u32(lend.0);
                out.put_u32(*pid);
                out.put_u8(u8::from(*cold));
                out.put_u64(queued.number());
            }
            Self::Refuse { want, reason, retry_after_s, text } => {
                out.put_u8(REFUSE);
                out.put_u32(want.0);
                out.put_u8(*reason as u8);
                out.put_u32(*retry_after_s);
                field::put_text(&mut out, text);
            }
            Self::Recall { lease, lend } => {
                out.put_u8(RECALL);
                out.put_u64(lease.0);
                out.put_u32(lend.0);
            }
            Self::Contended { pool, queued } => {
                out.put_u8(CONTENDED);
                out.put_u32(*pool);
                out.put_u64(queued.number());
            }
            Self::Obituary { lease, lend, pid, wait_status } => {
                out.put_u8(OBITUARY);
                out.put_u64(lease.0);
                out.put_u32(lend.0);
                out.put_u32(*pid);
                out.put_i32(*wait_status);
            }
            Self::Log { pool, pid, line } => {
                out.put_u8(LOG);
                out.put_u32(*pool);
                out.put_u32(*pid);
                out.put_short(&line[..line.len().min(MAX_LOG_LINE)]);
            }
        }
        out
    }

    /// Reads one message.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        field::message(bytes, |kind, r| {
            Ok(match kind {
                GRANT => Self::Grant {
                    want: WantId(r.u32()?),
                    pool: r.u32()?,
                    lease: LeaseId(r.u64()?),
                    lend: LendCount(r.u32()?),
                    pid: field::pid(r)?,
                    cold: field::boolean(r, "cold")?,
                    queued: Queued::of(r.u64()?),
                },
                REFUSE => Self::Refuse {
                    want: WantId(r.u32()?),
                    reason: field::one_of(r, &Refusal::ALL, "reason")?,
                    retry_after_s: r.u32()?,
                    text: field::text(r)?,
                },
                RECALL => Self::Recall { lease: LeaseId(r.u64()?), lend: LendCount(r.u32()?) },
                CONTENDED => Self::Contended { pool: r.u32()?, queued: Queued::of(r.u64()?) },
                OBITUARY => Self::Obituary {
                    lease: LeaseId(r.u64()?),
                    lend: LendCount(r.u32()?),
                    pid: field::pid(r)?,
                    wait_status: r.i32()?,
                },
                LOG => {
                    let pool = r.u32()?;
                    let pid = field::pid(r)?;
                    let line = r.short()?;
                    if line.len() > MAX_LOG_LINE {
                        return Err(Malformed::Field("line"));
                    }
                    Self::Log { pool, pid, line: line.to_vec() }
                }
                _ => return Err(Malformed::Field("kind")),
            })
        })
    }
}
