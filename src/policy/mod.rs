//! Decides when to fork, lend, recall, retire, evict and throttle: a function of state, event and time.
//!
//! Runs in: controller.  Trusts: the events, which the controller has checked against kernel credentials before.
//! Owns: the ledger of generations, pools, zygotes, workers, leases, wants and caps.
//! Never: does I/O, reads a clock, panics on a stale or repeated event.
#![forbid(unsafe_code)]

mod account;
mod generation;
pub mod habit;
mod lending;
pub mod lines;
pub mod mpm;
pub mod near;
pub mod patience;
mod queue;
mod shortage;
mod starts;
mod state;
pub mod threads;
mod timer;
pub mod turns;
mod worker;
mod zygote;

#[cfg(test)]
mod tests;

pub use state::State;

use crate::wire::control::{Arrival, LeaseId, LendCount, PoolTable, Queued, Refusal, Returned, WantId};

/// Milliseconds of a clock that never goes back; in the controller that of [`Arrival`].
pub type Millis = u64;

/// A frontend's connection, numbered by the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendId(pub u64);

/// A start of a zygote; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ZygoteId(pub u64);

/// A pool of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    /// Generation of the pool table.
    pub generation: u64,
    /// Index in that table.
    pub pool: u32,
}

/// How long a worker may take to end after its last request.
pub const LAST_GRACE: Millis = 5_000;
/// How long a script may run on after its client went away.
pub const ABANDONED_GRACE: Millis = 300_000;
/// How long a worker whose socket is at its end may take to be reaped.
pub const DEAD_GRACE: Millis = 1_000;
/// How long a worker may take to see the end of its socket when it is retired.
pub const RETIRE_GRACE: Millis = 2_000;
/// How long workers that a dead frontend held may take to notice.
pub const ORPHANED_GRACE: Millis = 10_000;
/// How long everything may take to end by itself when the server stops.
pub const STOP_GRACE: Millis = 1_000;
/// A zygote that does not answer an order to fork within this time is killed.
pub const FORK_DEADLINE: Millis = 10_000;
/// Orders to fork that a zygote has at a time: what is sent on a Unix socket and not read is bounded (some 270 messages).
pub const MAX_FORKING: usize = 100;
/// Zygotes of one generation that are started at a time: more would only make each of them slower.
pub const STARTS_AT_ONCE: usize = 16;
/// A zygote that has been starting for so long does not count for [`STARTS_AT_ONCE`] any more: others need not wait for one
/// that hangs.
pub const SLOW_START: Millis = 2_000;
/// Zygotes of one generation that are being started, slow ones too: what a seed has not read of its orders is bounded (see
/// [`MAX_FORKING`]).
pub const MAX_STARTING: usize = 200;
/// A zygote that has not started its modules within this time is killed.
pub const ZYGOTE_DEADLINE: Millis = 60_000;
/// A seed that has not read its configuration within this time is killed.
pub const SEED_DEADLINE: Millis = 120_000;
/// First and longest delay after a failed start; each failure doubles it.
pub const FIRST_DELAY: Millis = 1_000;
/// See [`FIRST_DELAY`].
pub const LONGEST_DELAY: Millis = 60_000;
/// So many workers in a row may die unused, where others of the same zygote have served, before that counts as a failed
/// start: all of an ordinary pool's at once.
pub const UNUSED_DEATHS: u32 = 8;
/// A worker that a frontend has held for so long has started well, returned or not.
pub const IN_USE: Millis = 1_000;
/// A pool that failed and was not asked for again is forgotten after this time, its delay with it.
pub const FORGET_AFTER: Millis = 60_000;
/// A seed that was ready for this long starts again with the first delay.
pub const SEED_PROVEN: Millis = 60_000;
/// After so many failed starts of the seed, who needs it is refused at once.
pub const SEED_PATIENCE: u32 = 3;
/// When a client may try again whose frontend's configuration is not known, in seconds: by then it gets another one.
pub const STRANGER_RETRY: u32 = 5;
/// Frontends change over to a new generation after this time, however few of its pools are warm.
pub const WARM_PATIENCE: Millis = 5_000;
/// An idle worker of an older generation is retired after this time.
pub const OLD_IDLE: Millis = 1_000;
/// How long a frontend may take to return the leases that are idle there, before workers are forked in their place.
pub const RETURN_PATIENCE: Millis = 2;
/// A Want that has waited this long takes a slot from other pools under the same cap, busy ones included: half of
/// the 100 ms that nobody may wait past his turn, because the next slot has to come free, too.
pub const PATIENCE: Millis = 50;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A configuration was read; or an older one is told again, for the children that were announced with it.
    Configure { table: PoolTable, older: bool },
    /// httpd's parent has announced a child of this generation: a frontend, perhaps before its hello.
    ChildStarted { pid: u32, generation: u64 },
    /// The child is gone.
    ChildGone { pid: u32 },
    /// A frontend was accepted. One of a generation that is not known is refused whatever it wants.
    FrontendCame { frontend: FrontendId, generation: u64 },
    /// Its process or its channel ended.
    FrontendLeft { frontend: FrontendId },
    /// A request waits.
    Want { frontend: FrontendId, want: WantId, pool: u32, arrived: Arrival },
    /// It waits no more.
    Cancel { frontend: FrontendId, want: WantId },
    /// A lease came back; for [`Returned::Idle`] the controller holds the data socket again.
    Return { frontend: FrontendId, lease: LeaseId, lend: LendCount, how: Returned },
    /// The seed has read its configuration.
    SeedReady { generation: u64 },
    /// The seed's process was reaped, or could not be started.
    SeedGone { generation: u64, text: String },
    /// The zygote has started its modules.
    ZygoteReady { zygote: ZygoteId },
    /// It reported a failure; its process may live.
    ZygoteFailed { zygote: ZygoteId, text: String },
    /// It broke the protocol.
    ZygoteViolated { zygote: ZygoteId, text: String },
    /// Its process was reaped, or never came to be.
    ZygoteGone { zygote: ZygoteId, text: String },
    /// The worker was forked and its process checked.
    Forked { lease: LeaseId, pid: u32 },
    /// The order to fork could not be given; no process exists.
    ForkFailed { lease: LeaseId, text: String },
    /// The order for the zygote could not be given: the controller has no descriptors left for it. No process exists.
    ZygoteLacks { zygote: ZygoteId, text: String },
    /// The same of the order to fork.
    ForkLacks { lease: LeaseId, text: String },
    /// The worker was reaped.
    WorkerGone { lease: LeaseId, wait_status: i32 },
    /// A worker of a controller that has died still serves a request of the named pool.
    ForeignCame { pid: u32, pool: String },
    /// It is gone.
    ForeignGone { pid: u32 },
    /// End everything.
    Stop,
    /// Time has passed.
    Tick,
}

/// What the controller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start the seed of this generation.
    StartSeed { generation: u64 },
    /// Close the seed's channel: it ends by itself.
    EndSeed { generation: u64 },
    /// Kill the seed.
    KillSeed { generation: u64 },
    /// Order a zygote for the pool from the seed of its generation.
    StartZygote { zygote: ZygoteId, key: PoolKey },
    /// Close the zygote's channel: it ends by itself.
    EndZygote { zygote: ZygoteId },
    /// Kill the zygote.
    KillZygote { zygote: ZygoteId },
    /// Order a worker from the zygote.
    Fork { lease: LeaseId, zygote: ZygoteId, key: PoolKey },
    /// Lend the worker: send the data socket and close the own copy.
    Grant {
        frontend: FrontendId,
        want: WantId,
        pool: u32,
        lease: LeaseId,
        lend: LendCount,
        pid: u32,
        cold: bool,
        queued: Queued,
    },
    /// Tell that there will be no lease.
    Refuse { frontend: FrontendId, want: WantId, reason: Refusal, retry_after_s: u32, text: String },
    /// Ask for the lease.
    Recall { frontend: FrontendId, lease: LeaseId, lend: LendCount },
    /// Tell who waits.
    Contended { frontend: FrontendId, pool: u32, queued: Queued },
    /// Tell how the worker ended.
    Obituary { frontend: FrontendId, lease: LeaseId, lend: LendCount, pid: u32, wait_status: i32 },
    /// Close the own copy of the worker's data socket: it ends by itself.
    Retire { lease: LeaseId },
    /// Interrupt what the worker runs: PHP ends its script as one that took too long.
    Interrupt { lease: LeaseId },
    /// Kill the worker.
    Kill { lease: LeaseId },
    /// The worker never came to be: drop what was prepared for it.
    Forget { lease: LeaseId },
    /// A pool's processes die at start: log it.
    Throttled { key: PoolKey, delay_s: u64, text: String },
    /// The seed is ready, and so are the pools that are in use: frontends may change over to this generation.
    Warm { generation: u64 },
    /// The generation has no process left: drop its table.
    GenerationGone { generation: u64 },
    /// Everything has ended after [`Event::Stop`].
    Done,
}

/// How a process ended, from the status of waitpid(2).
pub fn describe_status(wait_status: i32) -> String {
    match wait_status & 0x7f {
        0 => format!("exit status {}", (wait_status >> 8) & 0xff),
        signal => format!("signal {signal}"),
    }
}

/// The delay before the next start after so many failures in a row.
fn delay_after(failures: u32) -> Millis {
    FIRST_DELAY.checked_shl(failures.saturating_sub(1).min(16)).unwrap_or(LONGEST_DELAY).min(LONGEST_DELAY)
}

/// Whole seconds of a remaining time, rounded up, at least one.
fn seconds(left: Millis) -> u32 {
    u32::try_from(left.div_ceil(1000).max(1)).unwrap_or(u32::MAX)
}
