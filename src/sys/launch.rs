//! Starting the processes of a controller: fork and exec from httpd's parent, which may hold anything.
//!
//! Runs in: parent.  Trusts: its caller's arguments.  Owns: nothing.
//! Never: allocates or locks between fork and exec (another thread of the parent may hold a lock for ever).

use std::ffi::{c_char, CString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The number under which the new image finds its channel, and the next one if it has two.
pub const CHANNEL_FD: RawFd = 3;

/// Runs `/proc/self/exe` with these arguments and this environment; descriptors 0, 1 and 2 are inherited, `channels`
/// become [`CHANNEL_FD`] and those that follow, all others are closed; it gets SIGTERM when this process ends. Returns the
/// child's pid. Errors: those of fork(2) and fcntl(2), or an argument with a NUL byte. A failed exec shows as exit status 127.
pub fn start_image(argv: &[Vec<u8>], environment: &[Vec<u8>], channels: &[BorrowedFd<'_>]) -> io::Result<u32> {
    let strings = |list: &[Vec<u8>]| -> io::Result<Vec<CString>> {
        list.iter().map(|s| CString::new(s.as_slice()).map_err(io::Error::other)).collect()
    };
    let (argv, environment) = (strings(argv)?, strings(environment)?);
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (argv_p, env_p) = (pointers(&argv), pointers(&environment));
    let first_free = CHANNEL_FD + RawFd::try_from(channels.len()).map_err(io::Error::other)?;
    // Copies: the numbers themselves may be hidden from children (heritage). None is one of those that they become.
    let channels = channels.iter().map(|fd| copy_from(*fd, first_free)).collect::<io::Result<Vec<OwnedFd>>>()?;
    let parent = own_pid();
    // SAFETY: the child calls only async-signal-safe functions until it execs or exits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: system calls on integers and on arrays prepared before the fork; a failure leads to _exit.
        unsafe {
            // The image watches whom it finds as its parent; should this process end before that, it ends, too.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM, 0, 0, 0);
            if libc::getppid().cast_unsigned() != parent {
                libc::_exit(127);
            }
            for (number, channel) in (CHANNEL_FD..).zip(&channels) {
                if libc::dup2(channel.as_raw_fd(), number) < 0 {
                    libc::_exit(127);
                }
            }
            libc::syscall(libc::SYS_close_range, first_free, libc::c_uint::MAX, 0);
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            libc::execve(c"/proc/self/exe".as_ptr(), argv_p.as_ptr(), env_p.as_ptr());
            libc::_exit(127);
        }
    }
    u32::try_from(pid).map_err(|_| io::Error::last_os_error())
}

/// A copy with a number that is not below `first`, closed by an exec.
fn copy_from(fd: BorrowedFd<'_>, first: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only and returns a new descriptor or -1.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, first) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Takes the first channel that [`start_image`] left for this image.
pub fn inherited_channel() -> io::Result<OwnedFd> {
    inherited(CHANNEL_FD)
}

/// Takes the second one.
pub fn second_inherited_channel() -> io::Result<OwnedFd> {
    inherited(CHANNEL_FD + 1)
}

fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number was opened for this image by start_image; each image takes each once, at its start.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A sealed memory file with these bytes: the receiver can map or read it and knows that it will not change.
pub fn sealed_memory(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let name = CString::new(name).map_err(io::Error::other)?;
    // SAFETY: reads the name, returns a descriptor or -1.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: takes integers only.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

/// Ends a child that has just been forked and not been reaped: where there is no pidfd for it.
pub fn kill_new_child(pid: u32) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        // SAFETY: takes integers only; pid is an unreaped child of ours, so it cannot be another process.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// Sends a signal to this process: a thread that does not block it takes it.
pub fn signal_self(signal: i32) {
    // SAFETY: takes integers only.
    unsafe { libc::kill(libc::getpid(), signal) };
}

/// Sleeps this long, or until a signal is handled.
pub fn pause(time: std::time::Duration) {
    let millis = libc::c_int::try_from(time.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: with no entries poll reads and writes nothing.
    unsafe { libc::poll(std::ptr::null_mut(), 0, millis) };
}

/// From now on descendants whose parents die become children of this process (prctl(2)).
pub fn become_subreaper() {
    // SAFETY: takes integers only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// The process that started this one.
pub fn parent_pid() -> u32 {
    std::os::unix::process::parent_id()
}

/// Own pid, asked afresh: a fork may have happened.
pub fn own_pid() -> u32 {
    std::process::id()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn sealed_memory_cannot_be_written() {
        let mut file = File::from(sealed_memory("test", b"table").expect("memfd"));
        let mut got = Vec::new();
        file.rewind().expect("seek");
        file.read_to_end(&mut got).expect("read");
        assert_eq!(got, b"table");
        assert!(file.write_all(b"x").is_err());
    }
}
