//! Control messages: between the parent, frontends, seeds and zygotes on one side and the controller on the other.
//!
//! Each message is one datagram of a `SOCK_SEQPACKET` or `SOCK_DGRAM` socket; file descriptors travel beside it in
//! `SCM_RIGHTS`. The controller never learns who speaks from the bytes: identity is the channel, or `SCM_CREDENTIALS`.

/// Version of the control messages; a peer with another one is refused.
pub const CONTROL_VERSION: u16 = 1;
/// No control message is larger, in bytes. The pool table travels in a memfd instead.
pub const MAX_CONTROL_MESSAGE: usize = 8192;

/// The pool table that the parent gives the controller for one generation of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolTable {
    /// httpd's configuration generation, counted by the parent; rises by one with each reload.
    pub generation: u64,
    /// Numeric `User` of the frontends: a hello from another uid is refused.
    pub frontend_uid: u32,
    /// Arguments that start a seed of this generation, argv[0] included.
    pub seed_argv: Vec<Vec<u8>>,
    /// Index 0 is the root pool. A parent stands before its sub pools.
    pub pools: Vec<PoolRow>,
}

/// One server pool as far as the controller must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRow {
    /// Unique within the table.
    pub name: String,
    /// Index of the parent pool in the table; `None` for the root pool only.
    pub parent: Option<u32>,
    /// The uid its processes have; `None` when nothing can be assigned to it (it only groups its sub pools).
    pub uid: Option<u32>,
    /// At most this many workers at a time, those of its sub pools included.
    pub max_processes: u32,
    /// Idle workers kept ready; above zero the pool never goes to zero.
    pub min_spare: u32,
    /// An idle worker ends after this time, in milliseconds.
    pub idle_timeout_ms: u64,
    /// Longest wait for a worker, in milliseconds.
    pub queue_timeout_ms: u64,
    /// At most this many requests wait for a worker at a time.
    pub queue_limit: u32,
}

/// On the connector, from httpd's parent (proven by `SCM_CREDENTIALS`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParentMessage {
    /// A configuration was read. With it: fd of a sealed memfd with the encoded [`PoolTable`], then the fd of the
    /// error log (the controller's new standard error).
    Configure { generation: u64 },
    /// httpd's `child_status` hook said that this child of the parent started: it may say hello.
    ChildStarted { pid: u32 },
    /// The child is gone.
    ChildGone { pid: u32 },
    /// End every process of every pool, then exit.
    Stop,
}

/// On the connector, from a frontend. With it: the controller's end of the frontend's own channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub version: u16,
    /// Identifies the build of the module (see `entry::build_id`).
    pub build_id: u64,
    /// Generation of the configuration that this frontend has read.
    pub generation: u64,
    /// Leases it got from a controller that has died since and that still carry a request.
    pub in_flight: Vec<InFlight>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    pub pid: u32,
    pub pool: String,
}

/// Number of a lease; never used twice by one controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// How many times a lease was lent; a message about an earlier lending is stale and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LendCount(pub u32);

/// Number of a Want, chosen by the frontend, unique among its open ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WantId(pub u32);

/// On a frontend's channel, to the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrontendMessage {
    /// A request waits for a worker of the pool with this index in the pool table of the frontend's generation.
    Want { want: WantId, pool: u32 },
    /// Nobody waits for it any more.
    Cancel { want: WantId },
    /// The lease is given back. Only with [`Returned::Idle`] the data socket travels with it.
    Return { lease: LeaseId, lend: LendCount, how: Returned },
}

/// In which state a lease comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// The worker was silent for longer than httpd's Timeout: kill it.
    TimedOut,
}

/// On a frontend's channel, from the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControllerMessage {
    /// The wanted lease; its data socket is attached.
    Grant {
        want: WantId,
        lease: LeaseId,
        lend: LendCount,
        /// The worker's process id, as the kernel knows it.
        pid: u32,
        /// The worker was forked for this Want.
        cold: bool,
        /// Others wait for this pool: return the lease after one request.
        contended: bool,
    },
    /// There will be no lease for this Want.
    Refuse { want: WantId, reason: Refusal, retry_after_s: u32, text: String },
    /// Return this lease as soon as it is idle.
    Recall { lease: LeaseId, lend: LendCount },
    /// Whether requests of other frontends wait for this pool: while they do, each lease goes back after one request.
    Contended { pool: u32, on: bool },
    /// The worker of a lease that this frontend holds has ended. `wait_status` as of waitpid(2).
    Obituary { lease: LeaseId, lend: LendCount, pid: u32, wait_status: i32 },
    /// A line that a process of the pool wrote to its standard error.
    Log { pool: u32, pid: u32, line: Vec<u8> },
}

/// Why a Want is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
