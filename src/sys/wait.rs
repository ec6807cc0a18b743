//! Waiting for one or two descriptors.
//!
//! Runs in: frontend, request threads; worker; parent.  Trusts: the kernel.  Owns: nothing.  Never: reads or writes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Waits until there is something to read, or the end.
pub fn readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut set = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: poll reads and writes the one entry.
        if unsafe { libc::poll(&raw mut set, 1, -1) } >= 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
}

/// Whether the peer of a connected socket has reset it or closed it for good (`half` false), or has at least stopped
/// sending (`half` true). Does not wait.
pub fn is_hung_up(fd: BorrowedFd<'_>, half: bool) -> bool {
    let events = if half { libc::POLLRDHUP } else { 0 };
    let mut set = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: poll reads and writes the one entry.
    let n = unsafe { libc::poll(&raw mut set, 1, 0) };
    n > 0 && set.revents & (libc::POLLHUP | libc::POLLERR | events) != 0
}

/// Waits until `first` is readable (or writable, if that is wanted too), or `second` is readable, or the time is over.
/// `Ok(true)` where `first` is readable, or at its end. A signal ends the wait early, and is no error.
pub fn readable_or_writable(
    first: BorrowedFd<'_>,
    write: bool,
    second: Option<BorrowedFd<'_>>,
    patience: Duration,
) -> io::Result<bool> {
    let events = libc::POLLIN | if write { libc::POLLOUT } else { 0 };
    let mut set = [
        libc::pollfd { fd: first.as_raw_fd(), events, revents: 0 },
        // A negative number is skipped (poll(2)).
        libc::pollfd { fd: second.map_or(-1, |fd| fd.as_raw_fd()), events: libc::POLLIN, revents: 0 },
    ];
    let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: poll reads and writes the two entries of the array.
    let n = unsafe { libc::poll(set.as_mut_ptr(), 2, millis) };
    if n < 0 {
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
        return Ok(false);
    }
    Ok(set[0].revents & !libc::POLLOUT != 0)
}

/// Whether something can be written. Does not wait.
pub fn is_writable(fd: BorrowedFd<'_>) -> bool {
    let mut set = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: poll reads and writes the one entry.
    unsafe { libc::poll(&raw mut set, 1, 0) > 0 }
}

/// Waits until there is something to read, or the end; false when neither has come within `patience` (milliseconds).
pub fn readable_within(fd: BorrowedFd<'_>, patience: Duration) -> bool {
    let mut set = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: poll reads and writes the one entry.
    unsafe { libc::poll(&raw mut set, 1, millis) > 0 }
}
