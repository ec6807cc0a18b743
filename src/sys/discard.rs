//! Closing what others have filled, in a child that may wait for it.
//!
//! Who closes a socket last frees what lies unread in it, and so may close descriptors that a stranger has sent there:
//! a TCP socket that lingers for hours, a file of a FUSE that never answers. A process that is ending does not linger,
//! and if it waits all the same, it waits alone.
//!
//! Runs in: controller (one thread).  Trusts: the kernel.  Owns: nothing.
//! Never: allocates between fork and the child's end.

use super::{fork, title};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// Closes sockets by a child of this process; returns its pid. The own copies are closed at once, which frees nothing,
/// as the child keeps its copies until then. When there can be no child they come back with the reason.
///
/// For sockets only: close(2) of a file may wait although other copies of it stay open.
pub fn close_in_child(fds: Vec<OwnedFd>) -> Result<u32, (Vec<OwnedFd>, io::Error)> {
    let (read, write) = match super::descriptor::pipe() {
        Ok(pipe) => pipe,
        Err(e) => return Err((fds, e)),
    };
    let mut kept: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).chain([read.as_raw_fd()]).collect();
    kept.sort_unstable();
    match fork::fork_child() {
        Ok(fork::Forked::Child) => {
            title::set("mod_pool: closer");
            close_others(&kept);
            // Its end is the word that the parent has closed its copies. If it cannot be waited for, the parent may be
            // the last.
            let _ = super::wait::readable(read.as_fd());
            fork::exit_now(0)
        }
        Ok(fork::Forked::Parent { child }) => {
            drop(fds);
            drop(write);
            Ok(child)
        }
        Err(e) => Err((fds, e)),
    }
}

/// Closes all descriptors but these, which are in order, in a child that was just forked and never drops what owns them.
pub(super) fn close_others(kept: &[RawFd]) {
    let mut first: RawFd = 0;
    for last in kept.iter().map(|fd| fd - 1).chain([RawFd::MAX]) {
        if first <= last {
            // SAFETY: takes integers only; whoever owned these numbers is never dropped in this process.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
        first = last.saturating_add(2);
    }
}
