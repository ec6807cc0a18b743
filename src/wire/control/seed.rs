//! What the controller says to a seed and to a zygote, and what they answer.
//!
//! Runs in: parent, controller, seed, zygote, frontend.  Trusts: nothing it decodes.  Owns: the layout of these orders and reports.
//! Never: reads a socket, panics on any input, allocates by a length that a peer sent.

use super::{field, CONTROL_VERSION};
use crate::wire::codec::{Malformed, Put};

/// To a seed, from the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeedOrder {
    /// Fork a zygote for the named pool. With it: the zygote's end of its control channel, then the write end of its
    /// standard error.
    StartZygote { request: u32, pool: String },
}

/// From a seed, to the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeedReport {
    /// The configuration is read and the seed waits for orders.
    Ready { version: u16, build_id: u64 },
    /// The zygote was forked, as a child of the controller (`CLONE_PARENT`).
    ZygoteStarted { request: u32, pid: u32 },
    /// The order could not be carried out.
    Failed { request: u32, text: String },
}

/// To a zygote, from the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ZygoteOrder {
    /// Fork a worker. With it: the worker's end of its data socket, then the write end of its standard error.
    Fork { request: u32 },
}

/// From a zygote (the pool's user: hostile), to the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ZygoteReport {
    /// The modules are started; it waits for orders.
    Ready,
    /// The worker was forked, as a child of the controller.
    Forked { request: u32, pid: u32 },
    /// The pool cannot start, and why: one line, at most 500 bytes are looked at.
    Failed { text: String },
}

const START_ZYGOTE: u8 = 1;

const SEED_READY: u8 = 1;
const ZYGOTE_STARTED: u8 = 2;
const SEED_FAILED: u8 = 3;

const FORK: u8 = 1;

const ZYGOTE_READY: u8 = 1;
const FORKED: u8 = 2;
const ZYGOTE_FAILED: u8 = 3;

impl SeedOrder {
    /// The order as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::StartZygote { request, pool } => {
                out.put_u8(START_ZYGOTE);
                out.put_u32(*request);
                field::put_name(&mut out, pool);
            }
        }
        out
    }

    /// Reads one order.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        field::message(bytes, |kind, r| {
            Ok(match kind {
                START_ZYGOTE => Self::StartZygote { request: r.u32()?, pool: field::name(r, true)? },
                _ => return Err(Malformed::Field("kind")),
            })
        })
    }
}

impl SeedReport {
    /// The report as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Ready { version, build_id } => {
                out.put_u8(SEED_READY);
                out.put_u16(*version);
                out.put_u64(*build_id);
            }
            Self::ZygoteStarted { request, pid } => {
                out.put_u8(ZYGOTE_STARTED);
                out.put_u32(*request);
                out.put_u32(*pid);
            }
            Self::Failed { request, text } => {
                out.put_u8(SEED_FAILED);
                out.put_u32(*request);
                field::put_text(&mut out, text);
            }
        }
        out
    }

    /// Reads one report; a seed with another version than [`CONTROL_VERSION`] is an error.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        field::message(bytes, |kind, r| {
            Ok(match kind {
                SEED_READY => {
                    let version = r.u16()?;
                    if version != CONTROL_VERSION {
                        return Err(Malformed::Field("version"));
                    }
                    Self::Ready { version, build_id: r.u64()? }
                }
                ZYGOTE_STARTED => Self::ZygoteStarted { request: r.u32()?, pid: field::pid(r)? },
                SEED_FAILED => Self::Failed { request: r.u32()?, text: field::text(r)? },
                _ => return Err(Malformed::Field("kind")),
            })
        })
    }
}

impl ZygoteOrder {
    /// The order as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Fork { request } => {
                out.put_u8(FORK);
                out.put_u32(*request);
            }
        }
        out
    }

    /// Reads one order.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        field::message(bytes, |kind, r| {
            Ok(match kind {
                FORK => Self::Fork { request: r.u32()? },
                _ => return Err(Malformed::Field("kind")),
            })
        })
    }
}

impl ZygoteReport {
    /// The report as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Ready => out.put_u8(ZYGOTE_READY),
            Self::Forked { request, pid } => {
                out.put_u8(FORKED);
                out.put_u32(*request);
                out.put_u32(*pid);
            }
            Self::Failed { text } => {
                out.put_u8(ZYGOTE_FAILED);
                field::put_text(&mut out, text);
            }
        }
        out
    }

    /// Reads one report.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        field::message(bytes, |kind, r| {
            Ok(match kind {
                ZYGOTE_READY => Self::Ready,
                FORKED => Self::Forked { request: r.u32()?, pid: field::pid(r)? },
                ZYGOTE_FAILED => Self::Failed { text: field::text(r)? },
                _ => return Err(Malformed::Field("kind")),
            })
        })
    }
}
