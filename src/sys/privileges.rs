//! Giving up what a pool's process must not have: user and group ids, privileges, inherited descriptors.
//!
//! Runs in: zygote, before any module starts.  Trusts: the kernel's answers only.  Owns: nothing.
//! Never: goes on after a step that failed (callers end the process).

use std::io;
use std::os::fd::{AsRawFd, RawFd};

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The effective uid of this process.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Real, effective and saved ids become `uid` and `gid`, the supplementary groups exactly `groups`.
///
/// Afterwards it looks whether that is so, and whether root is out of reach. An error means the process must end.
pub fn change_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    if uid == 0 || gid == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a pool never runs as uid 0 or gid 0"));
    }
    if effective_uid() != 0 {
        // Without root no id can change: the pool's must be what we have (configtest has said so).
        return if ids() == ([uid; 3], [gid; 3]) {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "httpd was not started as root"))
        };
    }
    // SAFETY: setgroups reads groups.len() ids from the slice.
    check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
    // SAFETY: takes integers only.
    check(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: takes integers only.
    check(unsafe { libc::setresuid(uid, uid, uid) })?;
    if ids() != ([uid; 3], [gid; 3]) {
        return Err(io::Error::other("the ids are not what was asked for"));
    }
    // SAFETY: takes an integer only; it must fail.
    if unsafe { libc::setuid(0) } == 0 {
        return Err(io::Error::other("root can still be had"));
    }
    Ok(())
}

/// Real, effective and saved uid, then gid.
fn ids() -> ([u32; 3], [u32; 3]) {
    let mut u = [u32::MAX; 3];
    let mut g = [u32::MAX; 3];
    let [ur, ue, us] = &mut u;
    let [gr, ge, gs] = &mut g;
    // SAFETY: each call writes three ids to live variables.
    unsafe {
        libc::getresuid(ur, ue, us);
        libc::getresgid(gr, ge, gs);
    }
    (u, g)
}

/// Supplementary groups of a user with a passwd entry, `gid` among them (getgrouplist(3)).
pub fn groups_of(user: &str, gid: u32) -> io::Result<Vec<u32>> {
    let name = std::ffi::CString::new(user).map_err(io::Error::other)?;
    let mut groups = vec![0; 64];
    loop {
        let mut n = libc::c_int::try_from(groups.len()).map_err(io::Error::other)?;
        // SAFETY: writes at most n ids into the vector, which has that many.
        let rc = unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut n) };
        let count = usize::try_from(n).unwrap_or(0);
        if rc >= 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        if count <= groups.len() || count > 65_536 {
            return Err(io::Error::other("getgrouplist gives no answer"));
        }
        groups.resize(count, 0);
    }
}

/// No exec gains privileges any more (prctl(2), `PR_SET_NO_NEW_PRIVS`); set-user-ID programs lose theirs.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// Nobody but root may trace this process or read its memory, those with the same uid included.
pub fn not_dumpable() -> io::Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
}

/// Starts a session of its own: signals to httpd's process group do not come here.
pub fn new_session() {
    // SAFETY: takes nothing. It fails only for a group leader, which a fresh fork is not.
    unsafe { libc::setsid() };
}

/// The file mode mask of the pool.
pub fn file_mode_mask(mask: u32) {
    // SAFETY: takes an integer only and cannot fail.
    unsafe { libc::umask(mask) };
}

/// Puts /dev/null in the place of every open descriptor but `keep`: a module that still writes to a number it opened
/// earlier writes nowhere, and new descriptors get numbers that no module knows.
pub fn silence_descriptors(keep: &[RawFd]) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        if let Some(fd) = entry?.file_name().to_str().and_then(|n| n.parse::<RawFd>().ok()) {
            open.push(fd);
        }
    }
    for fd in open {
        if fd == null.as_raw_fd() || keep.contains(&fd) || !is_open(fd) {
            continue;
        }
        let flags = if fd > 2 { libc::O_CLOEXEC } else { 0 };
        // SAFETY: takes integers only. The number stays open; whoever owns it now owns /dev/null.
        if unsafe { libc::dup3(null.as_raw_fd(), fd, flags) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: takes integers only.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Makes `from` also available as `to` (dup2), not closed on exec: for standard input, output and error.
pub fn duplicate_to(from: impl AsRawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: takes integers only; `to` is a standard stream, which no owner type in this process holds.
    if unsafe { libc::dup2(from.as_raw_fd(), to) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Default action for every signal and none blocked: what the controller ignores and blocks came over the exec.
pub fn reset_signals() {
    for signal in 1..=31 {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            // SAFETY: SIG_DFL is a valid action for each of these signals.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    // SAFETY: an all-zero sigset_t is filled by sigemptyset before it is used.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}
