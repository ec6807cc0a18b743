//! What is wrong with a pool tree in the surroundings it is to run in.
//!
//! Runs in: wherever the configuration is read.  Trusts: nothing.  Owns: nothing.  Never: changes the tree.

use super::{DirectiveAt, PoolTree, ServerPool, DEFAULT_POOL};
use std::collections::BTreeMap;

/// How many pool names an error lists.
const LISTED: usize = 20;

/// Whole sentences for the administrator.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Findings {
    /// The server must not start.
    pub errors: Vec<String>,
    pub warnings: Vec<String>,
}

impl Findings {
    pub fn append(&mut self, mut other: Findings) {
        self.errors.append(&mut other.errors);
        self.warnings.append(&mut other.warnings);
    }
}

/// What the process that reads the configuration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Effective uid and gid where they are not root's: then no pool can have others.
    pub unprivileged: Option<(u32, u32)>,
    /// The uid of the frontends: `User`, or one's own where that cannot be had.
    pub frontend_uid: u32,
    /// What gives the frontends another root directory.
    pub chroot: Option<DirectiveAt>,
    /// `CoreDumpDirectory` is set.
    pub core_dumps: bool,
    /// A request can come to a server to which neither a pool nor `none` is assigned.
    pub something_unassigned: bool,
}

impl PoolTree {
    /// Whose uids are shared, and which cannot be had.
    pub fn check(&self, around: &Surroundings) -> Findings {
        let mut findings = Findings::default();
        if let Some(own) = around.unprivileged {
            findings.errors.extend(self.pools().iter().filter_map(|pool| unattainable(pool, own)));
        }
        if let (Some(at), false) = (&around.chroot, self.is_empty()) {
            findings.errors.push(format!(
                "{} {} at {}: pools' processes do not change their root directory, so a pool would see more than the \
                 frontends, and other files under the same names; remove it, and give httpd as a whole another root \
                 (RootDirectory= of its systemd unit, or a container), or define no <ServerPool>",
                at.name, at.value, at.place
            ));
        }
        // Without root no pool can have another user.
        let root_first = if around.unprivileged.is_some() { "start httpd as root, and " } else { "" };
        let mut by_uid: BTreeMap<u32, Vec<&ServerPool>> = BTreeMap::new();
        let borrows = |pool: &ServerPool| self.default_borrows_user && pool.name == DEFAULT_POOL;
        for pool in self.pools() {
            if let (Some(user), false) = (&pool.user, borrows(pool)) {
                by_uid.entry(user.uid).or_default().push(pool);
            }
        }
        for (uid, sharers) in by_uid {
            let names = listed(sharers.iter().map(|pool| pool.name.as_str()));
            if uid == around.frontend_uid {
                let no_cores = if around.core_dumps {
                    "; while it has none, frontends leave no core in CoreDumpDirectory: who may write one may read \
                     the memory"
                } else {
                    ""
                };
                findings.warnings.push(format!(
                    "PoolUser of <ServerPool {}> at {}: uid {uid} is that of the frontends (User), so whoever breaks \
                     into {names} can disturb every connection; {root_first}give the pool a user of its own{no_cores}",
                    sharers[0].name, sharers[0].defined_at
                ));
            }
            if let [first, second, ..] = sharers[..] {
                findings.warnings.push(format!(
                    "PoolUser of <ServerPool {}> at {}: uid {uid} is that of <ServerPool {}> too; the pools {names} are \
                     not isolated from one another; {root_first}give each a user of its own",
                    second.name, second.defined_at, first.name
                ));
            }
        }
        if self.default_borrows_user && (around.something_unassigned || self.unassigned.is_none()) {
            findings.warnings.push(format!(
                "<ServerPool default>: {} and runs as the frontends' own user (User, uid {}): a script could reach the \
                 frontends' files and sockets and disturb every connection; {root_first}give it a user of its own: \
                 <ServerPool default> with PoolUser",
                if self.unassigned.is_some() {
                    "serves what is assigned to no pool, because PHP cannot run in frontends with threads,"
                } else {
                    "has no PoolUser"
                },
                around.frontend_uid
            ));
        }
        findings
    }

    /// Whether processes of some pool run as this user.
    pub fn uses_uid(&self, uid: u32) -> bool {
        self.pools().iter().any(|pool| pool.user.as_ref().is_some_and(|user| user.uid == uid))
    }

    /// The index of the pool that `AssignServerPool name` means.
    pub fn assignable(&self, name: &str) -> Result<u32, String> {
        let said = |what: String| format!("AssignServerPool {name}: {what}");
        let Some(index) = self.find(name) else {
            if self.is_empty() {
                return Err(said("no pool is defined; define it with <ServerPool>, or assign none".into()));
            }
            let known = listed(self.pools().iter().skip(1).map(|pool| pool.name.as_str()));
            return Err(said(format!(
                "there is no such pool; known are {known}; correct the name, or define the pool with <ServerPool {name}>"
            )));
        };
        match self.get(index) {
            Some(pool) if pool.user.is_none() && pool.out_of_service.is_none() => Err(said(format!(
                "the pool has no PoolUser (a pool does not inherit its parent's); add PoolUser to <ServerPool {name}> \
                 at {}",
                pool.defined_at
            ))),
            _ => Ok(index),
        }
    }
}

fn unattainable(pool: &ServerPool, (uid, gid): (u32, u32)) -> Option<String> {
    let user = pool.user.as_ref()?;
    let (directive, wanted, own) = if user.uid != uid {
        ("PoolUser", user.uid, uid)
    } else if user.gid != gid {
        ("PoolGroup", user.gid, gid)
    } else {
        return None;
    };
    let named = match &user.user_name {
        Some(name) if directive == "PoolUser" => format!(" ({name})"),
        _ => String::new(),
    };
    Some(format!(
        "{directive} #{wanted}{named} of <ServerPool {}> at {}: httpd is not started by root, so its pools can have its \
         own id only, which is #{own}; start httpd as root, or give #{own}",
        pool.name, pool.defined_at
    ))
}

fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(LISTED);
    let mut text = names.take(LISTED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
