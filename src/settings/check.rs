//! What is wrong with a pool tree in the surroundings it is to run in.
//!
//! Runs in: wherever the configuration is read.  Trusts: nothing.  Owns: nothing.  Never: changes the tree.

use super::{DirectiveAt, Identity, PoolTree, ServerPool, DEFAULT_POOL};
use crate::wire::control::MAX_POOLS;
use std::collections::BTreeMap;
use std::io;

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
        // The root pool is one of them.
        if let Some(surplus) = self.pools().get(MAX_POOLS) {
            findings.errors.push(format!(
                "<ServerPool {}> at {}: more than {} pools are defined; define fewer, or divide them among several servers",
                surplus.name,
                surplus.defined_at,
                MAX_POOLS - 1
            ));
        }
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

    /// What pools gain by supplementary groups. `groups_of` looks them up, the primary group among them; `None` when it
    /// would take too long.
    pub fn check_groups(
        &self,
        frontend_gid: u32,
        mut groups_of: impl FnMut(&str, &Identity) -> Option<io::Result<Vec<u32>>>,
    ) -> Findings {
        let mut findings = Findings::default();
        let mut by_gid: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
        for pool in self.pools() {
            if let Some(user) = &pool.user {
                by_gid.entry(user.gid).or_default().push(&pool.name);
            }
        }
        let (mut of_frontends, mut of_others) = (Vec::new(), BTreeMap::<u32, Vec<&str>>::new());
        let mut not_looked_at = Vec::new();
        for pool in self.pools() {
            let Some((user, name)) = pool.user.as_ref().and_then(|user| Some((user, user.user_name.as_ref()?))) else {
                continue;
            };
            let place = format!("PoolUser {name} of <ServerPool {}> at {}", pool.name, pool.defined_at);
            let groups = match groups_of(name, user) {
                Some(Ok(groups)) => groups,
                Some(Err(e)) => {
                    findings.warnings.push(format!("{place}: its supplementary groups cannot be looked up: {e}"));
                    continue;
                }
                None => {
                    not_looked_at.push(pool.name.as_str());
                    continue;
                }
            };
            if groups.contains(&0) {
                findings.errors.push(format!(
                    "{place}: is a member of group 0, so its pages could read and write what is open to root's group; \
                     take the user out of that group (gpasswd -d {name} root)"
                ));
            }
            for gid in groups.into_iter().filter(|gid| *gid != user.gid && *gid != 0) {
                if gid == frontend_gid {
                    of_frontends.push(pool.name.as_str());
                }
                if by_gid.contains_key(&gid) {
                    of_others.entry(gid).or_default().push(&pool.name);
                }
            }
        }
        if !of_frontends.is_empty() {
            findings.warnings.push(format!(
                "the users of the pools {} are members of group {frontend_gid}, which is that of the frontends (Group): \
                 their pages can read what only the frontends are to read; take these users out of that group",
                listed(of_frontends.into_iter())
            ));
        }
        for (gid, members) in of_others {
            let owners = by_gid.get(&gid).map_or(&[][..], Vec::as_slice);
            findings.warnings.push(format!(
                "the users of the pools {} are members of group {gid}, which is the group of the pools {} (PoolGroup, or \
                 the primary group of PoolUser): these are not isolated from those; take the users out of that group",
                listed(members.into_iter()),
                listed(owners.iter().copied())
            ));
        }
        if let [first, ..] = not_looked_at[..] {
            findings.warnings.push(format!(
                "<ServerPool {first}> and {} more: to look up the supplementary groups of all pools takes too long; of \
                 these, only group 0 is refused, when the pool starts",
                not_looked_at.len() - 1
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
