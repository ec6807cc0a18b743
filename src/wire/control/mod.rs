//! Control messages: between the parent, frontends, seeds and zygotes on one side and the controller on the other.
//!
//! Each message is one datagram of a `SOCK_SEQPACKET` or `SOCK_DGRAM` socket; file descriptors travel beside it in
//! `SCM_RIGHTS`. The controller never learns who speaks from the bytes: identity is the channel, or `SCM_CREDENTIALS`.
//! A message is one byte that says its kind, then its fields, big-endian; nothing may follow.
//!
//! Runs in: every role but the worker.  Trusts: nothing it decodes.  Owns: version and limits of the control messages.
//! Never: reads a socket, panics on any input, allocates by a length that a peer sent.

mod connector;
mod field;
mod frontend;
mod seed;
mod table;

pub use connector::{ConnectorMessage, Hello, InFlight, ParentMessage, ANOTHER_CONTROLLER};
pub use frontend::{
    Arrival, ControllerMessage, FrontendMessage, LeaseId, LendCount, Queued, Refusal, Returned, WantId,
};
pub use seed::{SeedOrder, SeedReport, ZygoteOrder, ZygoteReport};
pub use table::{PoolRow, PoolTable};

/// Version of the control messages; a peer with another one is refused.
pub const CONTROL_VERSION: u16 = 4;
/// No control message is larger, in bytes. The pool table travels in a memfd instead.
pub const MAX_CONTROL_MESSAGE: usize = 8192;
/// Longest name of a pool, in bytes: it has to fit a process title and a log prefix.
pub const MAX_POOL_NAME: usize = 255;
/// Longest reason in a refusal or a failure, in bytes: one log line.
pub const MAX_TEXT: usize = 500;
/// Longest line of a pool's standard error that is forwarded, in bytes.
pub const MAX_LOG_LINE: usize = 2048;
/// Most pools in one table: each live one costs the controller four file descriptors.
pub const MAX_POOLS: usize = 65_536;
/// Most arguments of a seed, and the longest of them in bytes: far beyond what httpd is started with.
pub const MAX_SEED_ARGS: usize = 1024;
pub const MAX_SEED_ARG: usize = 32_768;
/// Largest process limit of one pool: the kernel's largest `pid_max`.
pub const MAX_PROCESSES: u32 = 4_194_304;
/// Longest timeout, ten years in milliseconds: sums of it and the clock cannot overflow.
pub const MAX_TIMEOUT_MS: u64 = 10 * 365 * 86_400 * 1000;
/// Largest pool table, in bytes: bounds what the controller reads from the memfd.
pub const MAX_POOL_TABLE: usize = 64 << 20;

#[cfg(test)]
mod tests;
