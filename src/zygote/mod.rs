//! A zygote: a pool's own parent process. It becomes the pool's user, starts the modules, and forks workers.
//!
//! Runs in: its own process, forked from a seed (root for the first few calls, then the pool's user; one thread of ours).
//! Trusts: the controller's end of its channel, the configuration.  Owns: its channel.
//! Never: runs application code before the privileges are gone, goes on after a step of that failed.
#![forbid(unsafe_code)]

use crate::settings::ServerPool;
use crate::sys::fork::{self, Forked};
use crate::sys::place::{self, Owner};
use crate::sys::socket::{self, Blocking};
use crate::sys::{inherited, privileges, shortage, thread, title, variables};
use crate::wire::control::{ZygoteOrder, ZygoteReport, MAX_CONTROL_MESSAGE};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// What a worker starts with.
#[derive(Debug)]
pub struct ForkedWorker {
    pub lease: OwnedFd,
}

/// Directories that root makes for a pool: below which one, and their names.
#[derive(Debug, Clone, Copy)]
pub struct OwnPlaces<'a> {
    pub base: &'a Path,
    pub leaves: &'a [&'a str],
}

/// Steps before any module starts: descriptors, session, user, environment, places. Any error has ended the process.
pub fn become_pool(pool: &ServerPool, channel: &OwnedFd, standard_error: OwnedFd, places: OwnPlaces<'_>) {
    title::set(&format!("mod_pool: zygote {} [starting]", pool.name));
    if let Err((step, e)) = try_become_pool(pool, channel, standard_error, places) {
        give_up(channel, &format!("{step}: {e}"));
    }
}

/// Tells the controller why this pool cannot start, and ends.
pub fn give_up(channel: &OwnedFd, text: &str) -> ! {
    let _ = socket::send(channel.as_fd(), &ZygoteReport::Failed { text: text.to_owned() }.encode(), &[], Blocking::No);
    fork::exit_now(1)
}

fn try_become_pool(
    pool: &ServerPool,
    channel: &OwnedFd,
    standard_error: OwnedFd,
    places: OwnPlaces<'_>,
) -> Result<(), (&'static str, io::Error)> {
    let user = pool.user.as_ref().ok_or(("PoolUser", io::Error::other("the pool has none")))?;
    privileges::reset_signals();
    privileges::new_session();
    let keep = [channel.as_raw_fd(), standard_error.as_raw_fd()];
    privileges::silence_descriptors(&keep).map_err(|e| ("closing inherited files", e))?;
    privileges::duplicate_to(standard_error.as_fd(), 2).map_err(|e| ("standard error", e))?;
    inherited::leave_working_directory().map_err(|e| ("changing to /", e))?;
    inherited::own_session_keyring().map_err(|e| ("a session keyring", e))?;
    inherited::no_oom_protection().map_err(|e| ("oom_score_adj", e))?;
    inherited::no_precedence().map_err(|e| ("scheduling", e))?;
    if !places.leaves.is_empty() {
        let owner = Owner { uid: user.uid, gid: user.gid };
        place::make(places.base, &pool.name, owner, places.leaves).map_err(|e| ("POOL126: a place of its own", e))?;
    }
    let groups = match &user.user_name {
        Some(name) => privileges::groups_of(name, user.gid).map_err(|e| ("supplementary groups", e))?,
        None => vec![user.gid],
    };
    variables::become_users(user.uid, user.user_name.as_deref()).map_err(|e| ("HOME and the like", e))?;
    privileges::change_user(user.uid, user.gid, &groups).map_err(|e| ("changing to PoolUser and PoolGroup", e))?;
    privileges::no_new_privileges().map_err(|e| ("no_new_privs", e))?;
    privileges::not_dumpable().map_err(|e| ("PR_SET_DUMPABLE", e))?;
    if let Some(mask) = pool.umask {
        privileges::file_mode_mask(mask);
    }
    for (name, value) in &pool.env {
        std::env::set_var(name, value);
    }
    Ok(())
}

/// Workers are copies of this thread alone. What another one holds when they are made, a lock of malloc's for example,
/// they wait for without end; glibc's own fork(2), which makes no siblings, would see to its own locks only.
fn warn_of_threads() {
    let Ok(names) = thread::names_of_others() else { return };
    if !names.is_empty() {
        eprintln!(
            "mod_pool: POOL127: a module or PHP extension has started threads ({}) before the pool's workers are forked: they \
             do not have them, and may hang; configure it to start none, or keep it out of pools (PoolModuleRole, \
             PHP_INI_SCAN_DIR)",
            names.join(", ")
        );
    }
}

/// Serves orders until the controller closes the channel. Returns only in a forked worker.
pub fn serve(pool: &ServerPool, channel: OwnedFd) -> ForkedWorker {
    warn_of_threads();
    title::set(&format!("mod_pool: zygote {}", pool.name));
    report(&channel, &ZygoteReport::Ready);
    let mut buf = vec![0; MAX_CONTROL_MESSAGE];
    loop {
        let Ok(received) = socket::receive(channel.as_fd(), &mut buf, Blocking::Yes) else { fork::exit_now(1) };
        if received.len == 0 {
            fork::exit_now(0);
        }
        let Ok(ZygoteOrder::Fork { request }) = ZygoteOrder::decode(&buf[..received.len]) else { fork::exit_now(1) };
        let Ok([lease, standard_error]) = <[OwnedFd; 2]>::try_from(received.fds) else {
            give_up(&channel, "file descriptors were lost");
        };
        match fork::fork_as_sibling() {
            Ok(Forked::Child) => {
                title::set(&format!("mod_pool: worker {} [starting]", pool.name));
                privileges::new_session();
                if privileges::duplicate_to(standard_error.as_fd(), 2).is_err() {
                    fork::exit_now(1);
                }
                return ForkedWorker { lease };
            }
            Ok(Forked::Parent { child }) => report(&channel, &ZygoteReport::Forked { request, pid: child }),
            Err(e) => give_up(&channel, &format!("cannot fork: {}", shortage::told_of_fork(&e))),
        }
    }
}

fn report(channel: &OwnedFd, report: &ZygoteReport) {
    if socket::send(channel.as_fd(), &report.encode(), &[], Blocking::Yes).is_err() {
        fork::exit_now(0);
    }
}
