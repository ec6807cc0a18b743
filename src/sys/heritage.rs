//! Descriptors that children of httpd's parent must not get.
//!
//! Modules fork daemons from the parent without an exec (mod_wsgi, mod_cgid, mod_fcgid), so close-on-exec does not keep
//! anything from them, and some of them run a tenant's code.
//!
//! Runs in: parent; the handler in each of its children, right after the fork.  Trusts: its caller's numbers.
//! Owns: the list of hidden descriptors.  Never: allocates or locks in the child.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::OnceLock;

const NONE: i32 = -1;
/// The numbers that a child finds /dev/null under.
static HIDDEN: [AtomicI32; 4] = [const { AtomicI32::new(NONE) }; 4];
static DEV_NULL: AtomicI32 = AtomicI32::new(NONE);

/// From now on children of this process find /dev/null in the place of `fd`. It counts for fork(3), not for clone(2).
pub fn hide(fd: BorrowedFd<'_>) -> io::Result<()> {
    prepare()?;
    let fd = fd.as_raw_fd();
    if HIDDEN.iter().any(|place| place.load(Ordering::Relaxed) == fd) {
        return Ok(());
    }
    let take = |place: &AtomicI32| place.compare_exchange(NONE, fd, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if HIDDEN.iter().any(take) {
        Ok(())
    } else {
        Err(io::Error::other("too many hidden descriptors"))
    }
}

/// From now on children of this process inherit `fd`.
pub fn show(fd: BorrowedFd<'_>) {
    for place in &HIDDEN {
        let _ = place.compare_exchange(fd.as_raw_fd(), NONE, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Installs the handler, once in the life of the process: the module is never unloaded.
fn prepare() -> io::Result<()> {
    static NULL: OnceLock<File> = OnceLock::new();
    if NULL.get().is_none() {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        DEV_NULL.store(null.as_raw_fd(), Ordering::Relaxed);
        // SAFETY: the handler is a function of this module, which stays mapped (linked nodelete), and calls only
        // async-signal-safe functions.
        let rc = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        if rc != 0 {
            return Err(io::Error::from_raw_os_error(rc));
        }
        let _ = NULL.set(null);
    }
    Ok(())
}

/// Keeps each number taken: whoever owned the descriptor in the parent's memory owns /dev/null in the child.
unsafe extern "C" fn in_child() {
    let null = DEV_NULL.load(Ordering::Relaxed);
    for place in &HIDDEN {
        let fd = place.load(Ordering::Relaxed);
        if fd != NONE {
            // SAFETY: takes integers only. It cannot fail: both numbers are open.
            unsafe { libc::dup3(null, fd, libc::O_CLOEXEC) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// What a forked child finds under this number: whether it is a socket still.
    fn child_has_socket(fd: i32) -> bool {
        // SAFETY: the child calls async-signal-safe functions only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let mut kind: libc::c_int = 0;
            let mut len: libc::socklen_t = 4;
            // SAFETY: writes an int to a live variable; ends by _exit.
            unsafe {
                let rc = libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut len);
                libc::_exit(i32::from(rc == 0));
            }
        }
        let mut status = 0;
        // SAFETY: our own child; the status is written to a live variable.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        libc::WEXITSTATUS(status) == 1
    }

    #[test]
    fn a_child_finds_hidden_descriptors_replaced_and_shown_ones_as_they_are() {
        let (a, b) = std::os::unix::net::UnixStream::pair().expect("socketpair");
        hide(a.as_fd()).expect("hide");
        assert!(!child_has_socket(a.as_raw_fd()));
        assert!(child_has_socket(b.as_raw_fd()));
        show(a.as_fd());
        assert!(child_has_socket(a.as_raw_fd()));
    }
}
