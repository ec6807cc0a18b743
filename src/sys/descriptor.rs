//! Single descriptors: pipes, reading and writing without waiting, telling sockets apart, how many are left.
//!
//! Runs in: controller, frontend.  Trusts: the kernel.  Owns: what it opens.  Never: waits.

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A pipe: read end (never waits), write end (as a program expects it); both close-on-exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// Reads what is there. `Ok(0)` is the end, `ErrorKind::WouldBlock` nothing.
pub fn read(fd: impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    Ok(nix::unistd::read(fd, buf)?)
}

/// How many this process may have open (`RLIMIT_NOFILE`).
pub fn limit() -> io::Result<u64> {
    Ok(nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.0)
}

/// The number that the next descriptor gets: the lowest that is free.
pub fn next_number() -> io::Result<u64> {
    let copy = io::stdin().as_fd().try_clone_to_owned()?;
    u64::try_from(copy.as_raw_fd()).map_err(io::Error::other)
}

/// One of no other use than to be closed where its number is needed.
pub fn spare() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/dev/null")?.into())
}

/// Puts /dev/null in the place of standard input, output and error: what these were is not held any longer.
pub fn let_go_of_standard_ones() -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    for number in 0..=2 {
        // SAFETY: takes integers only. The number stays open; whoever owns it now owns /dev/null.
        if unsafe { libc::dup2(null.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// An error, that of a process without a number left, unless this one may have so many open.
pub fn may_have(count: usize) -> io::Result<()> {
    if u64::try_from(count).is_ok_and(|count| limit().is_ok_and(|limit| count <= limit)) {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EMFILE))
}

/// Whether there is something to read, or the peer is gone.
pub fn is_readable(fd: impl AsFd) -> bool {
    let mut poll = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    matches!(nix::poll::poll(&mut poll, PollTimeout::ZERO), Ok(1..))
}

/// Number of the kernel's object behind a socket, the same for each copy of the descriptor.
pub fn identity(fd: impl AsFd) -> io::Result<(u64, u64)> {
    let stat = nix::sys::stat::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Bytes that were sent on a Unix socket and not yet received (unix(7), `SIOCOUTQ`), bookkeeping included.
pub fn unsent(fd: BorrowedFd<'_>) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which SIOCOUTQ is another name of, writes one int to the address we pass.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if rc == 0 {
        usize::try_from(bytes).unwrap_or(0)
    } else {
        0
    }
}

/// Seconds and microseconds since the epoch, as local time in the form of httpd's error log.
pub fn local_time() -> String {
    const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or(0);
    let mut parts = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: localtime_r reads one number and fills one structure, both alive.
    unsafe { libc::localtime_r(&raw const seconds, parts.as_mut_ptr()) };
    // SAFETY: filled by localtime_r; all zeroes are valid too.
    let t = unsafe { parts.assume_init() };
    let name = |names: &[&'static str], i: i32| usize::try_from(i).ok().and_then(|i| names.get(i)).copied();
    format!(
        "{} {} {:02} {:02}:{:02}:{:02}.{:06} {}",
        name(&DAYS, t.tm_wday).unwrap_or("???"),
        name(&MONTHS, t.tm_mon).unwrap_or("???"),
        t.tm_mday,
        t.tm_hour,
        t.tm_min,
        t.tm_sec,
        since.subsec_micros(),
        i64::from(t.tm_year) + 1900
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket;

    #[test]
    fn a_pipe_is_read_without_waiting() {
        let (read_end, write_end) = pipe().expect("pipe");
        let mut buf = [0; 8];
        let e = read(&read_end, &mut buf).expect_err("empty");
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        nix::unistd::write(&write_end, b"abc").expect("write");
        assert_eq!(read(&read_end, &mut buf).expect("data"), 3);
        drop(write_end);
        assert_eq!(read(&read_end, &mut buf).expect("end"), 0);
    }

    #[test]
    fn copies_of_a_socket_are_the_same_and_others_are_not() {
        let (a, b) = socket::seqpacket_pair().expect("pair");
        let copy = a.try_clone().expect("dup");
        assert_eq!(identity(&a).expect("stat"), identity(&copy).expect("stat"));
        assert_ne!(identity(&a).expect("stat"), identity(&b).expect("stat"));
    }

    #[test]
    fn unread_messages_are_counted() {
        let (a, b) = socket::seqpacket_pair().expect("pair");
        assert_eq!(unsent(a.as_fd()), 0);
        assert!(!is_readable(&b));
        socket::send(a.as_fd(), b"x", &[], socket::Blocking::No).expect("send");
        assert!(unsent(a.as_fd()) > 0);
        assert!(is_readable(&b));
        drop(b);
        assert!(is_readable(&a), "the end counts");
    }

    #[test]
    fn local_time_has_the_form_of_the_error_log() {
        let text = local_time();
        let fields: Vec<&str> = text.split(' ').collect();
        assert_eq!(fields.len(), 5, "{text}");
        assert_eq!((fields[0].len(), fields[1].len(), fields[2].len(), fields[3].len()), (3, 3, 2, 15), "{text}");
    }
}
