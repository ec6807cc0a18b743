//! The pool tree: what the directives said, with defaults and inheritance worked in, and what is wrong with it.
//!
//! Runs in: the parent and the seed, while httpd reads its configuration.  Trusts: nothing an administrator typed.
//! Owns: names, limits and defaults of server pools.  Never: does I/O; accounts are looked up through [`Accounts`].
#![forbid(unsafe_code)]

mod builder;
mod check;
mod logged;
mod mpm;
mod ssl;
mod values;

pub use builder::PoolTreeBuilder;
pub use check::{Findings, Surroundings};
pub use logged::{words, Claim, LoggedNames};
pub use mpm::{MpmLimits, MpmSettings, ScoreboardSize};
pub use ssl::{SslDirRecord, SslOptions};

use crate::wire::control::{PoolRow, PoolTable};
use std::fmt;
use std::io;
use std::time::Duration;

/// All pools together, unless `PoolMaxProcesses` stands outside of any block. mpm_event's own default is 400 threads;
/// a PHP process takes 20 to 60 MB, so 256 is what a machine of 16 GB bears.
pub const DEFAULT_ROOT_MAX_PROCESSES: u32 = 256;
/// One pool. A browser opens six connections; eight serve a busy site and keep one tenant from taking the machine.
pub const DEFAULT_POOL_MAX_PROCESSES: u32 = 8;
/// None: a pool that nobody asks for has no process.
pub const DEFAULT_MIN_SPARE: u32 = 0;
/// Longer than a reader takes from page to page, short enough that a thousand quiet sites cost nothing.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Interpreters leak. A fork for every ten thousand requests cannot be measured; a leak over a month can.
pub const DEFAULT_MAX_REQUESTS: u32 = 10_000;
/// A browser's user has gone by then.
pub const DEFAULT_QUEUE_TIMEOUT: Duration = Duration::from_secs(30);
pub const DEFAULT_KILL_GRACE: Duration = Duration::from_secs(5);
/// Requests that wait for one pool.
pub const DEFAULT_QUEUE_LIMIT: u32 = 100;

/// Requests of one pool that wait without a thread, in one frontend process; each costs 20 to 30 KB.
pub const DEFAULT_MAX_PARKED: u32 = 5_000;

/// The pool that serves what nothing is assigned to, where frontends cannot.
pub const DEFAULT_POOL: &str = "default";
/// It serves a whole server, static files included. PHP processes of 20 to 60 MB: what a machine of 2 GB bears.
pub const DEFAULT_POOL_OF_ALL_MAX_PROCESSES: u32 = 32;

/// What may stand in a `<ServerPool>` block; any other directive in it would act on the main server unnoticed.
pub const BLOCK_DIRECTIVES: [&str; 15] = [
    "<ServerPool",
    "PoolUser",
    "PoolGroup",
    "PoolMaxProcesses",
    "PoolMinSpare",
    "PoolIdleTimeout",
    "PoolMaxRequestsPerProcess",
    "PoolQueueTimeout",
    "PoolRequestTimeout",
    "PoolKillGrace",
    "PoolQueueLimit",
    "PoolMaxParked",
    "PoolMaxFrontendThreads",
    "PoolEnv",
    "PoolUmask",
];

/// Index of the implicit pool that holds all others.
pub const ROOT: u32 = 0;

/// Where a directive stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    pub file: String,
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A directive of any module, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectiveAt {
    pub name: String,
    pub value: String,
    pub place: Place,
}

/// A user as the system's databases know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
}

/// The databases of users and groups.
pub trait Accounts {
    fn user_by_name(&self, name: &str) -> io::Result<Option<Account>>;
    fn user_by_uid(&self, uid: u32) -> io::Result<Option<Account>>;
    fn group_by_name(&self, name: &str) -> io::Result<Option<u32>>;
}

/// As whom a pool's processes run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// For the supplementary groups; `None` for a number without a passwd entry, which has none.
    pub user_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Workers at a time, those of the sub pools included.
    pub max_processes: u32,
    /// Idle workers kept ready.
    pub min_spare: u32,
    pub idle_timeout: Duration,
    /// A worker ends after so many requests; 0 for never.
    pub max_requests: u32,
    pub queue_timeout: Duration,
    pub queue_limit: u32,
    /// A request may take so long once a worker has it; `None` for any time.
    pub request_timeout: Option<Duration>,
    /// So long the worker of one that took longer has for its end.
    pub kill_grace: Duration,
    /// Requests that wait without a thread, in each frontend process.
    pub max_parked: u32,
    /// Threads of each frontend process that may be with its requests for long; `None` for half of them.
    pub max_frontend_threads: Option<u32>,
}

/// A node of the pool tree, with everything it inherits worked in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPool {
    /// Unique in the tree.
    pub name: String,
    /// `None` for the root pool only.
    pub parent: Option<u32>,
    /// `None`: it only groups its sub pools.
    pub user: Option<Identity>,
    /// Why no process of it can be had: its user or group is missing. It has no `user` then.
    pub out_of_service: Option<String>,
    pub limits: Limits,
    /// The pool's environment, its parents' first; each name once.
    pub env: Vec<(String, String)>,
    /// `None`: the one httpd has.
    pub umask: Option<u32>,
    pub defined_at: Place,
}

/// In which processes a module's hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleRole {
    Frontend,
    Worker,
    Both,
}

/// Every server pool of one configuration. Index 0 is the root pool; a parent stands before its sub pools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolTree {
    pools: Vec<ServerPool>,
    roles: Vec<(String, ModuleRole)>,
    /// See [`PoolTreeBuilder::complete_default`].
    unassigned: Option<u32>,
    /// The pool `default` has no `PoolUser` and so the frontends' user.
    default_borrows_user: bool,
}

impl PoolTree {
    /// The pool `default`, where it serves requests that nothing is assigned to.
    pub fn unassigned(&self) -> Option<u32> {
        self.unassigned
    }

    pub fn pools(&self) -> &[ServerPool] {
        &self.pools
    }

    pub fn get(&self, index: u32) -> Option<&ServerPool> {
        self.pools.get(usize::try_from(index).ok()?)
    }

    /// The pool of that name. The root pool is not found: nothing can be assigned to it.
    pub fn find(&self, name: &str) -> Option<u32> {
        let at = self.pools.iter().skip(1).position(|p| p.name == name)? + 1;
        u32::try_from(at).ok()
    }

    /// What `PoolModuleRole` said about the module with this file name (`mod_x.c`).
    pub fn module_role(&self, module: &str) -> Option<ModuleRole> {
        self.roles.iter().find(|(name, _)| name == module).map(|&(_, role)| role)
    }

    /// All of `PoolModuleRole`, by module file name.
    pub fn module_roles(&self) -> &[(String, ModuleRole)] {
        &self.roles
    }

    /// Does this configuration have any pool besides the root pool?
    pub fn is_empty(&self) -> bool {
        self.pools.len() < 2
    }

    /// What the controller must know of it.
    pub fn to_table(&self, generation: u64, frontend_uid: u32, seed_argv: Vec<Vec<u8>>) -> PoolTable {
        PoolTable { generation, frontend_uid, seed_argv, pools: self.pools.iter().map(row).collect() }
    }
}

impl Default for PoolTree {
    fn default() -> Self {
        PoolTreeBuilder::default().finish().0
    }
}

fn row(pool: &ServerPool) -> PoolRow {
    let limits = &pool.limits;
    PoolRow {
        name: pool.name.clone(),
        parent: pool.parent,
        uid: pool.user.as_ref().map(|user| user.uid),
        max_processes: limits.max_processes,
        // For a pool that only groups, this is the default of its sub pools.
        min_spare: pool.user.as_ref().map_or(0, |_| limits.min_spare),
        idle_timeout_ms: millis(limits.idle_timeout),
        queue_timeout_ms: millis(limits.queue_timeout),
        queue_limit: limits.queue_limit,
        kill_grace_ms: millis(limits.kill_grace),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
