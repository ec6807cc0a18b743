//! The system's databases of users and groups, and who this process is.
//!
//! Runs in: parent and seed, while httpd reads its configuration.  Trusts: nsswitch.  Owns: nothing.
//! Never: keeps an entry.

use nix::unistd::{Gid, Group, Uid, User};
use std::io;

/// An entry of the passwd database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasswdEntry {
    pub name: String,
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
}

pub fn user_by_name(name: &str) -> io::Result<Option<PasswdEntry>> {
    Ok(User::from_name(name)?.map(entry))
}

pub fn user_by_uid(uid: u32) -> io::Result<Option<PasswdEntry>> {
    Ok(User::from_uid(Uid::from_raw(uid))?.map(entry))
}

/// The gid of the group with this name, of any size.
pub fn group_by_name(name: &str) -> io::Result<Option<u32>> {
    Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
}

fn entry(user: User) -> PasswdEntry {
    PasswdEntry { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }
}

/// The effective uid and gid of this process.
pub fn effective_ids() -> (u32, u32) {
    (Uid::effective().as_raw(), Gid::effective().as_raw())
}
