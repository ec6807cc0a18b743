//! What children of httpd's parent get, and what they must not get.
//!
//! Modules fork daemons from the parent without an exec (mod_wsgi, mod_cgid, mod_fcgid), so close-on-exec does not keep
//! anything from them, and some of them run a tenant's code. Nobody can tell at the fork whether the MPM or a module
//! forks. So each child gets a connector of its own, which leads nowhere until the parent has given its other end away:
//! who shares a socket with others can shut it down for them, or fill it.
//!
//! Runs in: parent; the handlers around each of its forks.  Trusts: its caller's numbers.
//! Owns: the list of what is hidden, the connector of the child forked last, and those of daemons.
//! Never: allocates or locks in a handler; the caller may hold any lock.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::OnceLock;

const NONE: RawFd = -1;
/// Most children whose connectors the parent keeps: far beyond what an MPM starts.
const MOST_CHILDREN: usize = 8192;
/// The numbers that a child finds /dev/null under.
static HIDDEN: [AtomicI32; 4] = [const { AtomicI32::new(NONE) }; 4];
static DEV_NULL: AtomicI32 = AtomicI32::new(NONE);
/// The numbers that a child finds closed, up to the highest place that was ever taken.
static CLOSED: [AtomicI32; MOST_CHILDREN] = [const { AtomicI32::new(NONE) }; MOST_CHILDREN];
static CLOSED_END: AtomicUsize = AtomicUsize::new(0);
/// Whether forks of this process give connectors to their children.
static GIVES: AtomicBool = AtomicBool::new(false);
/// In the parent: ends of connectors that nobody has asked for. Whoever got the other ends may have filled them.
static STALE: [AtomicI32; 32] = [const { AtomicI32::new(NONE) }; 32];
/// In a child: its end.
static CHILDS: AtomicI32 = AtomicI32::new(NONE);
/// In the parent: the other end of the one that the child forked last has.
static OTHER: AtomicI32 = AtomicI32::new(NONE);

/// From now on children of this process find /dev/null in the place of `fd`. It counts for fork(3), not for clone(2).
pub fn hide(fd: BorrowedFd<'_>) -> io::Result<()> {
    prepare()?;
    let fd = fd.as_raw_fd();
    let take = |place: &AtomicI32| place.compare_exchange(NONE, fd, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if HIDDEN.iter().any(take) {
        Ok(())
    } else {
        Err(io::Error::other("too many hidden descriptors"))
    }
}

/// From now on each child of this process, but none of theirs, gets a connector.
pub fn give_connectors() -> io::Result<()> {
    prepare()?;
    GIVES.store(true, Ordering::Relaxed);
    Ok(())
}

/// In a child: its end of its connector; `None` when it was taken before, or the parent had no descriptor left.
pub fn own_connector() -> Option<OwnedFd> {
    take(&CHILDS)
}

/// In the parent, right after a fork: the other end of the child's connector. The kernel tells there who speaks.
pub fn connector_of_last_child() -> Option<OwnedFd> {
    take(&OTHER)
}

/// In the parent: the other ends of connectors of daemons. Something may lie in them that is slow to close.
pub fn stale_connectors() -> Vec<OwnedFd> {
    STALE.iter().filter_map(take).collect()
}

fn take(place: &AtomicI32) -> Option<OwnedFd> {
    let fd = place.swap(NONE, Ordering::Relaxed);
    // SAFETY: the handlers put only descriptors there that they opened and nobody else owns, and the swap takes it once.
    (fd != NONE).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor that children of this process find closed. In a child it must not be dropped.
#[derive(Debug)]
pub struct Kept {
    // Before the descriptor: a number that is free again must not be closed in a child.
    place: Place,
    fd: OwnedFd,
}

impl Kept {
    /// Children get it from now on.
    pub fn into_fd(self) -> OwnedFd {
        drop(self.place);
        self.fd
    }
}

#[derive(Debug)]
struct Place(&'static AtomicI32);

/// Keeps a descriptor from the children; not a copy of it. When there are too many it comes back.
pub fn keep(fd: OwnedFd) -> Result<Kept, OwnedFd> {
    let number = fd.as_raw_fd();
    let free = |place: &AtomicI32| place.compare_exchange(NONE, number, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    match prepare().ok().and_then(|()| CLOSED.iter().position(free)) {
        Some(at) => {
            CLOSED_END.fetch_max(at + 1, Ordering::Relaxed);
            Ok(Kept { place: Place(&CLOSED[at]), fd })
        }
        None => Err(fd),
    }
}

impl std::os::fd::AsFd for Kept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.store(NONE, Ordering::Relaxed);
    }
}

/// Installs the handlers, once in the life of the process: the module is never unloaded.
fn prepare() -> io::Result<()> {
    static NULL: OnceLock<File> = OnceLock::new();
    if NULL.get().is_none() {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        DEV_NULL.store(null.as_raw_fd(), Ordering::Relaxed);
        // SAFETY: the handlers are functions of this module, which stays mapped (linked nodelete), and call only
        // async-signal-safe functions.
        let rc = unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
        if rc != 0 {
            return Err(io::Error::from_raw_os_error(rc));
        }
        let _ = NULL.set(null);
    }
    Ok(())
}

/// Makes the connector. Where that fails the child has none, and says so.
unsafe extern "C" fn before() {
    if !GIVES.load(Ordering::Relaxed) {
        return;
    }
    // Of a daemon: nobody has asked for it. To close it may take long, and it is of no use any more.
    let old = OTHER.swap(NONE, Ordering::Relaxed);
    if old != NONE {
        // SAFETY: takes integers only.
        unsafe { libc::shutdown(old, libc::SHUT_RDWR) };
        if is_empty(old) {
            // SAFETY: the swap took the descriptor, which this process opened and nobody else owns.
            drop(unsafe { OwnedFd::from_raw_fd(old) });
        } else {
            let free =
                |place: &AtomicI32| place.compare_exchange(NONE, old, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            // Where there is no room it stays open.
            let _ = STALE.iter().any(free);
        }
    }
    let mut pair = [NONE; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: writes two descriptors to a live array.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) } < 0 {
        return;
    }
    let on: libc::c_int = 1;
    // SAFETY: reads one int from a live variable.
    unsafe {
        libc::setsockopt(pair[1], libc::SOL_SOCKET, libc::SO_PASSCRED, (&raw const on).cast(), 4);
    }
    CHILDS.store(pair[0], Ordering::Relaxed);
    OTHER.store(pair[1], Ordering::Relaxed);
}

/// Whether nothing is left to be received on a connector that is shut down: to close it frees nothing then. The sender's
/// credentials come with each message, an empty one too, and there is no room for them here, so that the kernel says that
/// they were cut off.
fn is_empty(fd: RawFd) -> bool {
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut header: libc::msghdr = {
        // SAFETY: msghdr is plain data for which all zeroes is a valid, empty value.
        unsafe { MaybeUninit::zeroed().assume_init() }
    };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    // SAFETY: the kernel writes at most one byte to a live variable; there is no control buffer.
    let n = unsafe { libc::recvmsg(fd, &raw mut header, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    n == 0 && header.msg_flags & libc::MSG_CTRUNC == 0
}

unsafe extern "C" fn in_parent() {
    if GIVES.load(Ordering::Relaxed) {
        drop(take(&CHILDS));
    }
}

/// Hidden numbers stay taken: whoever owned the descriptor in the parent's memory owns /dev/null in the child.
unsafe extern "C" fn in_child() {
    drop(take(&OTHER));
    if !GIVES.swap(false, Ordering::Relaxed) {
        // A child's child: the connector is the child's.
        drop(take(&CHILDS));
    }
    // Copies: the parent has them still.
    for place in &STALE {
        drop(take(place));
    }
    let null = DEV_NULL.load(Ordering::Relaxed);
    for fd in HIDDEN.iter().map(|place| place.load(Ordering::Relaxed)).filter(|fd| *fd != NONE) {
        // SAFETY: takes integers only. It cannot fail: both numbers are open.
        unsafe { libc::dup3(null, fd, libc::O_CLOEXEC) };
    }
    for place in CLOSED.iter().take(CLOSED_END.load(Ordering::Relaxed)) {
        let fd = place.swap(NONE, Ordering::Relaxed);
        if fd != NONE {
            // SAFETY: takes an integer; its owner (`Kept`) is never dropped in a child.
            unsafe { libc::close(fd) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{self, Blocking};
    use std::os::fd::AsFd;

    fn is_socket(fd: RawFd) -> bool {
        let mut kind: libc::c_int = 0;
        let mut len: libc::socklen_t = 4;
        // SAFETY: writes an int to a live variable.
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut len) == 0 }
    }

    /// The exit status of a forked child that runs `f`, which calls async-signal-safe functions only.
    fn in_a_child(f: impl FnOnce() -> bool) -> bool {
        // SAFETY: see above; the child ends by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let ok = f();
            // SAFETY: does not return.
            unsafe { libc::_exit(i32::from(ok)) };
        }
        let mut status = 0;
        // SAFETY: our own child; the status is written to a live variable.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        libc::WEXITSTATUS(status) == 1
    }

    // One test: forks of another one would take part.
    #[test]
    fn a_child_gets_its_own_connector_and_nothing_that_is_hidden_or_kept() {
        let (a, b) = std::os::unix::net::UnixStream::pair().expect("socketpair");
        hide(a.as_fd()).expect("hide");
        assert!(!in_a_child(|| is_socket(a.as_raw_fd())));
        assert!(in_a_child(|| is_socket(b.as_raw_fd())));

        let kept = keep(b.into()).expect("room");
        let number = kept.as_fd().as_raw_fd();
        assert!(!in_a_child(|| is_socket(number)));
        assert!(is_socket(number));
        drop(kept);

        assert!(connector_of_last_child().is_none());
        give_connectors().expect("handlers");
        let said = in_a_child(|| {
            let own = own_connector().expect("one");
            connector_of_last_child().is_none() && socket::send(own.as_fd(), b"hello", &[], Blocking::No).is_ok()
        });
        assert!(said && own_connector().is_none());
        let other = connector_of_last_child().expect("the other end");
        let mut buf = [0; 16];
        let got = socket::receive(other.as_fd(), &mut buf, Blocking::No).expect("a message");
        assert_eq!(&buf[..got.len], b"hello");
        assert_ne!(got.credentials.expect("who it was").pid, std::process::id());
        assert!(stale_connectors().is_empty());
        // What the next child has leads elsewhere, and its own children get nothing.
        assert!(in_a_child(|| !in_a_child(|| own_connector().is_some())));
        assert_eq!(socket::receive(other.as_fd(), &mut buf, Blocking::No).expect("the end").len, 0);
        // A connector that nobody has asked for is of no use to the child. It is kept where something lies in it, an empty
        // message too; else it is closed, however many forks there are.
        let says = |text: &'static [u8]| {
            in_a_child(move || socket::send(own_connector().expect("one").as_fd(), text, &[], Blocking::No).is_ok())
        };
        for _ in 0..3 * STALE.len() {
            assert!(in_a_child(|| true));
        }
        assert!(says(b"x") && says(b""));
        assert!(in_a_child(|| true));
        let asked_for = connector_of_last_child();
        assert!(stale_connectors().len() == 2 && asked_for.is_some());
    }
}
