//! A seed: an httpd that has read one configuration and forks a zygote for each pool that the controller names.
//!
//! Runs in: its own process, exec'd by the controller (root, one thread).  Trusts: the controller, its configuration.
//! Owns: its channel to the controller.  Never: runs a tenant's code, reads a tenant's file, holds a TLS key.
#![forbid(unsafe_code)]

use crate::settings::PoolTree;
use crate::sys::fork::{self, Forked};
use crate::sys::socket::{self, Blocking};
use crate::sys::{image, shortage, title};
use crate::wire::control::{SeedOrder, SeedReport, CONTROL_VERSION, MAX_CONTROL_MESSAGE};
use std::os::fd::{AsFd, OwnedFd};

/// What a zygote starts with.
#[derive(Debug)]
pub struct ZygoteStart {
    /// Index in the pool tree.
    pub pool: u32,
    pub channel: OwnedFd,
    pub standard_error: OwnedFd,
}

/// Serves orders until the controller is gone. Returns only in a forked zygote.
pub fn serve(channel: OwnedFd, tree: &PoolTree) -> ZygoteStart {
    title::set("mod_pool: seed");
    report(&channel, &SeedReport::Ready { version: CONTROL_VERSION, build_id: image::build_id() });
    let mut buf = vec![0; MAX_CONTROL_MESSAGE];
    loop {
        let Ok(received) = socket::receive(channel.as_fd(), &mut buf, Blocking::Yes) else { fork::exit_now(1) };
        if received.len == 0 {
            fork::exit_now(0);
        }
        let Ok(SeedOrder::StartZygote { request, pool }) = SeedOrder::decode(&buf[..received.len]) else {
            eprintln!("mod_pool: seed: an order of the controller cannot be understood");
            fork::exit_now(1);
        };
        match zygote_start(tree, &pool, received.fds).map(|start| (start, fork::fork_as_sibling())) {
            Ok((start, Ok(Forked::Child))) => return start,
            Ok((_, Ok(Forked::Parent { child }))) => {
                report(&channel, &SeedReport::ZygoteStarted { request, pid: child });
            }
            Ok((_, Err(e))) => {
                let text = format!("cannot fork: {}", shortage::told_of_fork(&e));
                report(&channel, &SeedReport::Failed { request, text });
            }
            Err(text) => report(&channel, &SeedReport::Failed { request, text }),
        }
    }
}

fn zygote_start(tree: &PoolTree, pool: &str, fds: Vec<OwnedFd>) -> Result<ZygoteStart, String> {
    let [channel, standard_error]: [OwnedFd; 2] =
        fds.try_into().map_err(|_| "file descriptors were lost".to_owned())?;
    let index = tree.find(pool).ok_or_else(|| format!("the configuration has no pool {pool} any more"))?;
    Ok(ZygoteStart { pool: index, channel, standard_error })
}

/// A controller that does not listen any more has ended, and with it the seed's work.
fn report(channel: &OwnedFd, report: &SeedReport) {
    if socket::send(channel.as_fd(), &report.encode(), &[], Blocking::Yes).is_err() {
        fork::exit_now(0);
    }
}
