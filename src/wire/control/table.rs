//! The pool table: what the controller knows of one generation of the configuration.
//!
//! Runs in: parent, controller, seed, zygote, frontend.  Trusts: nothing it decodes.  Owns: the layout and the rules of the pool table.
//! Never: reads a socket, panics on any input, allocates by a length that a peer sent.

use std::collections::HashSet;

use super::{field, CONTROL_VERSION, MAX_POOLS, MAX_PROCESSES, MAX_SEED_ARG, MAX_SEED_ARGS, MAX_TIMEOUT_MS};
use crate::wire::codec::{Malformed, Put, Reader};

/// The pool table that the parent gives the controller for one generation of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolTable {
    /// httpd's configuration generation, counted by the parent; rises by one with each reload.
    pub generation: u64,
    /// Numeric `User` of the frontends: a hello from another uid is refused.
    pub frontend_uid: u32,
    /// Arguments that start a seed of this generation, `argv[0]` included.
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
    /// A worker whose request took too long has so long for its end, in milliseconds.
    pub kill_grace_ms: u64,
}

/// How the parent of a row is written when there is none.
const NO_PARENT: u32 = u32::MAX;

impl PoolTable {
    /// The table as bytes, for a sealed memfd.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u16(CONTROL_VERSION);
        out.put_u64(self.generation);
        out.put_u32(self.frontend_uid);
        out.put_u32(u32::try_from(self.seed_argv.len()).unwrap_or(u32::MAX));
        for arg in &self.seed_argv {
            out.put_long(arg);
        }
        out.put_u32(u32::try_from(self.pools.len()).unwrap_or(u32::MAX));
        for row in &self.pools {
            row.encode(&mut out);
        }
        out
    }

    /// Reads a table and checks that it is a tree with unique names.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        if r.u16()? != CONTROL_VERSION {
            return Err(Malformed::Field("version"));
        }
        let generation = r.u64()?;
        let frontend_uid = r.u32()?;
        let args = r.u32()? as usize;
        if args == 0 || args > MAX_SEED_ARGS {
            return Err(Malformed::Field("seed_argv"));
        }
        let mut seed_argv = Vec::new();
        for _ in 0..args {
            let arg = r.long()?;
            if arg.len() > MAX_SEED_ARG || arg.contains(&0) {
                return Err(Malformed::Field("seed_argv"));
            }
            seed_argv.push(arg.to_vec());
        }
        let rows = r.u32()? as usize;
        if rows == 0 || rows > MAX_POOLS {
            return Err(Malformed::Field("pools"));
        }
        let mut pools = Vec::new();
        let mut names = HashSet::new();
        for index in 0..rows {
            let row = PoolRow::decode(&mut r, index)?;
            if !names.insert(row.name.clone()) {
                return Err(Malformed::Field("pool name"));
            }
            pools.push(row);
        }
        r.finish()?;
        Ok(Self { generation, frontend_uid, seed_argv, pools })
    }
}

impl PoolRow {
    fn encode(&self, out: &mut Vec<u8>) {
        field::put_name(out, &self.name);
        out.put_u32(self.parent.unwrap_or(NO_PARENT));
        // Uid 0 is never a pool's, so it stands for none.
        out.put_u32(self.uid.unwrap_or(0));
        out.put_u32(self.max_processes);
        out.put_u32(self.min_spare);
        out.put_u64(self.idle_timeout_ms);
        out.put_u64(self.queue_timeout_ms);
        out.put_u32(self.queue_limit);
        out.put_u64(self.kill_grace_ms);
    }

    fn decode(r: &mut Reader<'_>, index: usize) -> Result<Self, Malformed> {
        let name = field::name(r, index == 0)?;
        let parent = match (r.u32()?, index) {
            (NO_PARENT, 0) => None,
            (parent, 1..) if (parent as usize) < index => Some(parent),
            _ => return Err(Malformed::Field("parent")),
        };
        let uid = match r.u32()? {
            0 => None,
            // (uid_t)-1 means "leave it" to setresuid(2): such a process would stay root.
            u32::MAX => return Err(Malformed::Field("uid")),
            uid => Some(uid),
        };
        let max_processes = r.u32()?;
        if max_processes == 0 || max_processes > MAX_PROCESSES {
            return Err(Malformed::Field("max_processes"));
        }
        let min_spare = r.u32()?;
        if min_spare > max_processes {
            return Err(Malformed::Field("min_spare"));
        }
        let idle_timeout_ms = r.u64()?;
        let queue_timeout_ms = r.u64()?;
        if idle_timeout_ms > MAX_TIMEOUT_MS || queue_timeout_ms > MAX_TIMEOUT_MS {
            return Err(Malformed::Field("timeout"));
        }
        let queue_limit = r.u32()?;
        let kill_grace_ms = r.u64()?;
        if kill_grace_ms > MAX_TIMEOUT_MS {
            return Err(Malformed::Field("timeout"));
        }
        Ok(Self {
            name,
            parent,
            uid,
            max_processes,
            min_spare,
            idle_timeout_ms,
            queue_timeout_ms,
            queue_limit,
            kill_grace_ms,
        })
    }
}
