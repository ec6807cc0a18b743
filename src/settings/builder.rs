//! The pool tree while its directives are read: blocks open and close, values arrive in any order.
//!
//! Runs in: wherever the configuration is read.  Trusts: nothing.  Owns: what was written, before defaults.
//! Never: decides what a request gets.
//!
//! An error is a whole sentence: directive, value, what is wrong, what to do.

use super::check::Findings;
use super::{values, Accounts, Identity, Limits, ModuleRole, Place, PoolTree, ServerPool, ROOT};
use super::{
    DEFAULT_IDLE_TIMEOUT, DEFAULT_KILL_GRACE, DEFAULT_MAX_PARKED, DEFAULT_MAX_REQUESTS, DEFAULT_MIN_SPARE,
    DEFAULT_POOL, DEFAULT_POOL_MAX_PROCESSES, DEFAULT_POOL_OF_ALL_MAX_PROCESSES, DEFAULT_QUEUE_LIMIT,
    DEFAULT_QUEUE_TIMEOUT, DEFAULT_ROOT_MAX_PROCESSES,
};
use std::collections::HashMap;
use std::io;
use std::time::Duration;

/// Blocks in blocks. Deeper than any hoster's resellers, shallow enough for a recursive reader.
pub const MAX_DEPTH: usize = 16;

/// `PoolUser`, looked up.
#[derive(Debug, Clone)]
struct User {
    text: String,
    uid: u32,
    name: Option<String>,
    /// The primary group, where a passwd entry says it.
    gid: Option<u32>,
}

/// `PoolGroup`, looked up.
#[derive(Debug, Clone)]
struct Group {
    text: String,
    gid: u32,
}

/// One block as it was written.
#[derive(Debug, Clone, Default)]
struct Block {
    name: String,
    parent: Option<u32>,
    place: Place,
    user: Option<User>,
    group: Option<Group>,
    identity: Option<Identity>,
    /// Why the pool's user or group cannot be had.
    missing: Option<String>,
    max_processes: Option<u32>,
    min_spare: Option<u32>,
    idle_timeout: Option<Duration>,
    max_requests: Option<u32>,
    queue_timeout: Option<Duration>,
    queue_limit: Option<u32>,
    request_timeout: Option<Duration>,
    kill_grace: Option<Duration>,
    max_parked: Option<u32>,
    max_frontend_threads: Option<u32>,
    env: Vec<(String, String)>,
    umask: Option<u32>,
}

/// Takes the directives in the order of the configuration.
#[derive(Debug)]
pub struct PoolTreeBuilder {
    /// The root block first; a block stands before those in it.
    blocks: Vec<Block>,
    by_name: HashMap<String, usize>,
    /// The open blocks, innermost last, without the root block.
    open: Vec<usize>,
    roles: Vec<(String, ModuleRole)>,
    unassigned: Option<usize>,
    default_borrows_user: bool,
    strict: bool,
}

impl Default for PoolTreeBuilder {
    fn default() -> Self {
        let root = Block { name: "root".into(), ..Block::default() };
        PoolTreeBuilder {
            blocks: vec![root],
            by_name: HashMap::new(),
            open: Vec::new(),
            roles: Vec::new(),
            unassigned: None,
            default_borrows_user: false,
            strict: false,
        }
    }
}

type Set = Result<(), String>;

impl PoolTreeBuilder {
    /// `<ServerPool name>`.
    pub fn open(&mut self, name: &str, place: Place) -> Set {
        let said = |what: String| format!("<ServerPool {name}>: {what}");
        values::pool_name(name).map_err(said)?;
        if let Some(&at) = self.by_name.get(name) {
            return Err(said(format!(
                "a pool of this name is defined already at {}; give this one another name, or merge the two blocks",
                self.blocks[at].place
            )));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(said(format!("blocks are nested more than {MAX_DEPTH} deep; flatten them")));
        }
        let parent = self.open.last().copied().unwrap_or(0);
        let at = self.blocks.len();
        self.blocks.push(Block {
            name: name.to_owned(),
            parent: Some(u32::try_from(parent).map_err(|_| said("too many pools".into()))?),
            place,
            ..Block::default()
        });
        self.by_name.insert(name.to_owned(), at);
        self.open.push(at);
        Ok(())
    }

    /// `</ServerPool>`: now user and group are known to be all that was said.
    pub fn close(&mut self) -> Set {
        let Some(at) = self.open.pop() else {
            return Err("</ServerPool>: no block is open; remove it".into());
        };
        let block = &mut self.blocks[at];
        block.identity = match (&block.user, &block.group) {
            _ if block.missing.is_some() => None,
            (None, None) => None,
            (None, Some(group)) => {
                return Err(format!(
                    "PoolGroup {}: has no effect without PoolUser; add PoolUser to <ServerPool {}>",
                    group.text, block.name
                ))
            }
            (Some(User { uid, gid: None, text, .. }), None) => {
                block.missing = Some(format!(
                    "PoolUser {text}: uid {uid} has no passwd entry that would name its group; create the user, or add \
                     PoolGroup"
                ));
                None
            }
            (Some(user), group) => Some(identity(user, group.as_ref())?),
        };
        Ok(())
    }

    /// The name of the innermost open block.
    pub fn open_pool(&self) -> Option<&str> {
        self.open.last().map(|&at| self.blocks[at].name.as_str())
    }

    fn here(&mut self) -> &mut Block {
        let at = self.open.last().copied().unwrap_or(0);
        &mut self.blocks[at]
    }

    /// `PoolUser`, `PoolGroup`: they belong to one pool, the root pool has no processes of its own.
    fn in_block(&self, directive: &str, text: &str) -> Set {
        if self.open.is_empty() {
            return Err(format!("{directive} {text}: belongs to one pool; write it in a <ServerPool> block"));
        }
        Ok(())
    }

    /// A user that cannot be found takes this one pool out of service, see [`PoolTreeBuilder::finish`].
    pub fn set_user(&mut self, text: &str, accounts: &dyn Accounts) -> Set {
        let said = |what: String| format!("PoolUser {text}: {what}");
        self.in_block("PoolUser", text)?;
        let found = match values::numeric_id(text) {
            Some(uid) => {
                let uid = uid.map_err(said)?;
                accounts.user_by_uid(uid).map(|account| Some((uid, account)))
            }
            None => accounts.user_by_name(text).map(|account| account.map(|account| (account.uid, Some(account)))),
        };
        let missing = match &found {
            Ok(Some(_)) => None,
            Ok(None) => Some(said("there is no such user; create it, or give a numeric id as #1234".into())),
            Err(e) => Some(unread(said, e)),
        };
        self.here().missing = missing;
        let Ok(Some((uid, account))) = found else { return Ok(()) };
        if uid == 0 {
            return Err(said("uid 0 is refused, a pool never runs as root; name an unprivileged user".into()));
        }
        self.here().user = Some(User {
            text: text.to_owned(),
            uid,
            gid: account.as_ref().map(|a| a.gid),
            name: account.map(|a| a.name),
        });
        Ok(())
    }

    pub fn set_group(&mut self, text: &str, accounts: &dyn Accounts) -> Set {
        let said = |what: String| format!("PoolGroup {text}: {what}");
        self.in_block("PoolGroup", text)?;
        let gid = match values::numeric_id(text) {
            Some(gid) => gid.map_err(said)?,
            None => match accounts.group_by_name(text) {
                Ok(Some(gid)) => gid,
                Ok(None) => {
                    let what = "there is no such group; create it, or give a numeric id as #1234";
                    self.here().missing = Some(said(what.into()));
                    return Ok(());
                }
                Err(e) => {
                    self.here().missing = Some(unread(said, &e));
                    return Ok(());
                }
            },
        };
        if gid == 0 {
            return Err(said("gid 0 is refused, it is root's group; name an unprivileged group".into()));
        }
        self.here().group = Some(Group { text: text.to_owned(), gid });
        Ok(())
    }

    pub fn set_max_processes(&mut self, text: &str) -> Set {
        let value = values::number(text, &values::PROCESSES);
        self.here().max_processes = Some(value.map_err(|e| told("PoolMaxProcesses", text, &e))?);
        Ok(())
    }

    pub fn set_min_spare(&mut self, text: &str) -> Set {
        let value = values::number(text, &values::SPARE);
        self.here().min_spare = Some(value.map_err(|e| told("PoolMinSpare", text, &e))?);
        Ok(())
    }

    pub fn set_idle_timeout(&mut self, text: &str) -> Set {
        let value = values::time(text, &values::IDLE);
        self.here().idle_timeout = Some(value.map_err(|e| told("PoolIdleTimeout", text, &e))?);
        Ok(())
    }

    pub fn set_max_requests(&mut self, text: &str) -> Set {
        let value = values::number(text, &values::REQUESTS);
        self.here().max_requests = Some(value.map_err(|e| told("PoolMaxRequestsPerProcess", text, &e))?);
        Ok(())
    }

    pub fn set_queue_timeout(&mut self, text: &str) -> Set {
        let value = values::time(text, &values::WAIT);
        self.here().queue_timeout = Some(value.map_err(|e| told("PoolQueueTimeout", text, &e))?);
        Ok(())
    }

    pub fn set_request_timeout(&mut self, text: &str) -> Set {
        let value = values::time(text, &values::IDLE);
        self.here().request_timeout = Some(value.map_err(|e| told("PoolRequestTimeout", text, &e))?);
        Ok(())
    }

    pub fn set_kill_grace(&mut self, text: &str) -> Set {
        let value = values::time(text, &values::WAIT);
        self.here().kill_grace = Some(value.map_err(|e| told("PoolKillGrace", text, &e))?);
        Ok(())
    }

    pub fn set_queue_limit(&mut self, text: &str) -> Set {
        let value = values::number(text, &values::QUEUE);
        self.here().queue_limit = Some(value.map_err(|e| told("PoolQueueLimit", text, &e))?);
        Ok(())
    }

    pub fn set_max_parked(&mut self, text: &str) -> Set {
        let value = values::number(text, &values::PARKED);
        self.here().max_parked = Some(value.map_err(|e| told("PoolMaxParked", text, &e))?);
        Ok(())
    }

    pub fn set_max_frontend_threads(&mut self, text: &str) -> Set {
        let value = values::number(text, &values::THREADS);
        self.here().max_frontend_threads = Some(value.map_err(|e| told("PoolMaxFrontendThreads", text, &e))?);
        Ok(())
    }

    pub fn set_env(&mut self, name: &str, value: &str) -> Set {
        values::env_name(name).map_err(|e| told("PoolEnv", name, &e))?;
        put(&mut self.here().env, name, value);
        Ok(())
    }

    pub fn set_umask(&mut self, text: &str) -> Set {
        let value = values::umask(text);
        self.here().umask = Some(value.map_err(|e| told("PoolUmask", text, &e))?);
        Ok(())
    }

    /// `PoolStrict`.
    pub fn set_strict(&mut self, on: bool) -> Set {
        if let Some(pool) = self.open_pool() {
            return Err(told(
                "PoolStrict",
                if on { "on" } else { "off" },
                &format!("holds for every pool; move it out of <ServerPool {pool}>"),
            ));
        }
        self.strict = on;
        Ok(())
    }

    /// `PoolModuleRole`; `module` is the module's own file name, `mod_x.c`.
    /// `fixed`: the role that the module has in any case.
    pub fn set_module_role(&mut self, module: &str, role: &str, fixed: Option<ModuleRole>) -> Set {
        let said = |what| format!("PoolModuleRole {module} {role}: {what}");
        if let Some(pool) = self.open_pool() {
            return Err(said(format!("holds for every pool; move it out of <ServerPool {pool}>")));
        }
        let role = values::module_role(role).map_err(said)?;
        match fixed {
            Some(ModuleRole::Frontend) if role != ModuleRole::Frontend => {
                return Err(said("this module works in frontends only; remove the line".into()))
            }
            Some(needed) if role != needed => {
                return Err(said("every process needs this module; remove the line".into()))
            }
            _ => {}
        }
        self.roles.retain(|(name, _)| name != module);
        self.roles.push((module.to_owned(), role));
        Ok(())
    }

    /// After the last directive. The pool `default` has the user of the frontends where it names none; if it is to serve
    /// what nothing is assigned to, it exists also where nobody has declared it.
    pub fn complete_default(&mut self, serves_unassigned: bool, frontends: Identity) -> Set {
        let at = match self.by_name.get(DEFAULT_POOL) {
            Some(&at) => at,
            None if !serves_unassigned => return Ok(()),
            None => {
                let at = self.blocks.len();
                self.blocks.push(Block { name: DEFAULT_POOL.into(), parent: Some(ROOT), ..Block::default() });
                self.by_name.insert(DEFAULT_POOL.into(), at);
                at
            }
        };
        self.unassigned = serves_unassigned.then_some(at);
        let block = &mut self.blocks[at];
        if block.identity.is_some() || block.missing.is_some() {
            return Ok(());
        }
        for (directive, id) in [("User", frontends.uid), ("Group", frontends.gid)] {
            if id == 0 || id == u32::MAX {
                return Err(format!(
                    "{directive} #{id}: the pool default, which serves what is assigned to no pool, would have this id; \
                     name an unprivileged one with {directive}, or declare <ServerPool default> with PoolUser and PoolGroup",
                    id = id.cast_signed()
                ));
            }
        }
        block.identity = Some(frontends);
        self.default_borrows_user = true;
        Ok(())
    }

    /// The tree with defaults and inheritance worked in, and what can be said of it without looking around. A pool whose
    /// user or group is missing is out of service; with `PoolStrict on` that is an error.
    pub fn finish(&self) -> (PoolTree, Findings) {
        let mut findings = Findings::default();
        let mut has_sub_pools = vec![false; self.blocks.len()];
        for parent in self.blocks.iter().filter_map(|block| block.parent) {
            has_sub_pools[index(parent)] = true;
        }
        let mut pools: Vec<ServerPool> = Vec::with_capacity(self.blocks.len());
        for (block, groups) in self.blocks.iter().zip(has_sub_pools) {
            if let Some(why) = &block.missing {
                let pool = format!("<ServerPool {}> at {}", block.name, block.place);
                if self.strict {
                    findings.errors.push(format!("{why} ({pool}; PoolStrict on)"));
                } else {
                    findings.warnings.push(format!(
                        "{why} ({pool}: it is out of service, its requests get 503 until httpd is reloaded after that)"
                    ));
                }
            }
            let pool = match block.parent {
                None => root_pool(block),
                Some(parent) => {
                    let parent = &pools[index(parent)];
                    check_block(block, groups, parent, &mut findings);
                    sub_pool(block, groups, parent, &mut findings)
                }
            };
            pools.push(pool);
        }
        check_spare_sum(&pools, &mut findings);
        let roles = self.roles.clone();
        let unassigned = self.unassigned.and_then(|at| u32::try_from(at).ok());
        (PoolTree { pools, roles, unassigned, default_borrows_user: self.default_borrows_user }, findings)
    }
}

fn index(pool: u32) -> usize {
    usize::try_from(pool).unwrap_or(usize::MAX)
}

fn told(directive: &str, text: &str, what: &str) -> String {
    format!("{directive} {text}: {what}")
}

fn unread(said: impl Fn(String) -> String, error: &io::Error) -> String {
    said(format!("the system's user database cannot be read ({error}); repair it, or give a numeric id as #1234"))
}

fn identity(user: &User, group: Option<&Group>) -> Result<Identity, String> {
    let gid = match (group, user.gid) {
        (Some(group), _) => group.gid,
        (None, Some(0)) => {
            return Err(format!("PoolUser {}: its primary group is gid 0, which is refused; add PoolGroup", user.text))
        }
        (None, Some(gid)) => gid,
        // The caller has looked.
        (None, None) => return Err(format!("PoolUser {}: add PoolGroup", user.text)),
    };
    Ok(Identity { uid: user.uid, gid, user_name: user.name.clone() })
}

fn put(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    env.retain(|(known, _)| known != name);
    env.push((name.to_owned(), value.to_owned()));
}

fn root_pool(block: &Block) -> ServerPool {
    ServerPool {
        name: block.name.clone(),
        parent: None,
        user: None,
        out_of_service: None,
        limits: Limits {
            max_processes: block.max_processes.unwrap_or(DEFAULT_ROOT_MAX_PROCESSES),
            min_spare: block.min_spare.unwrap_or(DEFAULT_MIN_SPARE),
            idle_timeout: block.idle_timeout.unwrap_or(DEFAULT_IDLE_TIMEOUT),
            max_requests: block.max_requests.unwrap_or(DEFAULT_MAX_REQUESTS),
            queue_timeout: block.queue_timeout.unwrap_or(DEFAULT_QUEUE_TIMEOUT),
            queue_limit: block.queue_limit.unwrap_or(DEFAULT_QUEUE_LIMIT),
            request_timeout: block.request_timeout,
            kill_grace: block.kill_grace.unwrap_or(DEFAULT_KILL_GRACE),
            max_parked: block.max_parked.unwrap_or(DEFAULT_MAX_PARKED),
            max_frontend_threads: block.max_frontend_threads,
        },
        env: block.env.clone(),
        umask: block.umask,
        defined_at: block.place.clone(),
    }
}

/// User and group are not inherited: they are what isolates a pool, so each pool names its own.
fn sub_pool(block: &Block, groups: bool, parent: &ServerPool, findings: &mut Findings) -> ServerPool {
    let from = &parent.limits;
    let default_max = match block.name.as_str() {
        _ if groups => from.max_processes,
        DEFAULT_POOL => from.max_processes.min(DEFAULT_POOL_OF_ALL_MAX_PROCESSES),
        _ => from.max_processes.min(DEFAULT_POOL_MAX_PROCESSES),
    };
    let max_processes = block.max_processes.unwrap_or(default_max);
    if let Some(spare) = block.min_spare.filter(|&spare| spare > max_processes) {
        findings.errors.push(format!(
            "PoolMinSpare {spare} of <ServerPool {}> at {}: more than the pool's PoolMaxProcesses, which is \
             {max_processes}; lower the one or raise the other",
            block.name, block.place
        ));
    }
    let mut env = parent.env.clone();
    for (name, value) in &block.env {
        put(&mut env, name, value);
    }
    ServerPool {
        name: block.name.clone(),
        parent: block.parent,
        user: block.identity.clone(),
        out_of_service: block.missing.clone(),
        limits: Limits {
            max_processes,
            min_spare: block.min_spare.unwrap_or(from.min_spare).min(max_processes),
            idle_timeout: block.idle_timeout.unwrap_or(from.idle_timeout),
            max_requests: block.max_requests.unwrap_or(from.max_requests),
            queue_timeout: block.queue_timeout.unwrap_or(from.queue_timeout),
            queue_limit: block.queue_limit.unwrap_or(from.queue_limit),
            request_timeout: block.request_timeout.or(from.request_timeout),
            kill_grace: block.kill_grace.unwrap_or(from.kill_grace),
            max_parked: block.max_parked.unwrap_or(from.max_parked),
            max_frontend_threads: block.max_frontend_threads.or(from.max_frontend_threads),
        },
        env,
        umask: block.umask.or(parent.umask),
        defined_at: block.place.clone(),
    }
}

fn check_block(block: &Block, groups: bool, parent: &ServerPool, findings: &mut Findings) {
    let Block { name, place, .. } = block;
    if block.identity.is_none() && block.missing.is_none() && !groups {
        findings.warnings.push(format!(
            "<ServerPool {name}> at {place}: has neither PoolUser nor sub pools, so nothing can be assigned to it; add \
             PoolUser, or remove the block"
        ));
    }
    let cap = parent.limits.max_processes;
    if let Some(max) = block.max_processes.filter(|&max| max > cap) {
        let who = match block.parent {
            Some(ROOT) => "all pools together".to_owned(),
            _ => format!("its parent {}", parent.name),
        };
        findings.warnings.push(format!(
            "PoolMaxProcesses {max} of <ServerPool {name}> at {place}: {who} may have {cap} only, and this holds; lower \
             the one or raise the other"
        ));
    }
}

/// Spare processes that the caps above do not allow would be started and refused for ever.
fn check_spare_sum(pools: &[ServerPool], findings: &mut Findings) {
    let mut sums = vec![0_u64; pools.len()];
    for (at, pool) in pools.iter().enumerate().rev() {
        if pool.user.is_some() {
            sums[at] += u64::from(pool.limits.min_spare);
        }
        if let Some(parent) = pool.parent {
            sums[index(parent)] += sums[at];
        }
    }
    for (pool, sum) in pools.iter().zip(sums) {
        let max = pool.limits.max_processes;
        if sum > u64::from(max) {
            let what = match pool.parent {
                None => "all pools together".into(),
                Some(_) => format!("<ServerPool {}> at {}", pool.name, pool.defined_at),
            };
            findings.warnings.push(format!(
                "PoolMaxProcesses {max} of {what}: PoolMinSpare of the pools in it adds up to {sum}; lower the spare \
                 processes or raise PoolMaxProcesses"
            ));
        }
    }
}
