//! Giving up what a pool's process must not have: user and group ids, privileges, inherited descriptors.
//!
//! Runs in: zygote, before any module starts.  Trusts: the kernel's answers only.  Owns: nothing.
//! Never: goes on after a step that failed (callers end the process).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

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

/// Real, effective and saved ids become `uid` and `gid`, the supplementary groups exactly `groups`; no capability stays.
///
/// Afterwards it looks whether that is so, and whether root is out of reach. An error means the process must end.
pub fn change_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    if uid == 0 || gid == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a pool never runs as uid 0 or gid 0"));
    }
    if groups.contains(&0) {
        let text = "a pool never runs with group 0 among its groups: take PoolUser out of that group";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    if effective_uid() != 0 {
        // Without root no id can change: the pool's must be what we have (configtest has said so).
        return if ids() == ([uid; 3], [gid; 3]) {
            no_capabilities()
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
    if !has_just_these_groups(groups)? {
        return Err(io::Error::other("the supplementary groups are not what was asked for"));
    }
    no_capabilities()?;
    // SAFETY: takes an integer only; it must fail.
    if unsafe { libc::setuid(0) } == 0 {
        return Err(io::Error::other("root can still be had"));
    }
    Ok(())
}

fn has_just_these_groups(groups: &[u32]) -> io::Result<bool> {
    // SAFETY: with room for none the kernel only tells how many there are.
    let count = unsafe { libc::getgroups(0, std::ptr::null_mut()) };
    let mut own = vec![u32::MAX; usize::try_from(count).map_err(|_| io::Error::last_os_error())?];
    // SAFETY: writes at most `count` ids into the vector, which has that many.
    if unsafe { libc::getgroups(count, own.as_mut_ptr()) } != count {
        return Err(io::Error::last_os_error());
    }
    let mut asked = groups.to_vec();
    own.sort_unstable();
    asked.sort_unstable();
    Ok(own == asked)
}

/// Gives up what the kernel leaves to a process that is not root: where somebody has asked for that (prctl(2),
/// `PR_SET_KEEPCAPS`), or where httpd has capabilities without being root (`AmbientCapabilities=` of its systemd unit).
fn no_capabilities() -> io::Result<()> {
    // capset(2): version 3, this process; two words each of effective, permitted and inheritable ones. What is not
    // permitted and inheritable is not ambient either.
    let header: [u32; 2] = [0x2008_0522, 0];
    let none = [0u32; 6];
    // SAFETY: the kernel reads two and six words.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut left = [u32::MAX; 6];
    // SAFETY: the kernel reads two words and writes six.
    let rc = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), left.as_mut_ptr()) };
    if rc != 0 || left != none {
        return Err(io::Error::other("capabilities are left"));
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
pub fn duplicate_to(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: takes integers only; `to` is a standard stream, which no owner type in this process holds.
    if unsafe { libc::dup2(from.as_raw_fd(), to) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Default action for every signal, those of real time too, and none blocked: what the controller ignores and blocks
/// came over the exec. Ignored are the two that prefork's children ignore: a write to nobody, or beyond the largest size of a
/// file, is an error of that write and does not end the process, nor a program that it starts.
pub fn reset_signals() {
    for signal in 1..=64 {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            // The C library refuses the two that it uses itself (32 and 33), which somebody who started httpd may ignore
            // all the same. The kernel takes its own structure: action, flags, restorer and mask, all zero here.
            let default = [0u64; 4];
            // SAFETY: the kernel reads 32 bytes; SIG_DFL is a valid action for each of these signals.
            unsafe {
                libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8usize)
            };
        }
    }
    // SAFETY: an all-zero sigset_t is filled by sigemptyset before it is used.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: u32 = 65_534;
    const CAP_SETUID: u32 = 7;

    /// Whether a forked child in which `f` runs ends well.
    fn in_a_child(f: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child makes system calls and ends by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let status = i32::from(!f());
            // SAFETY: does not return.
            unsafe { libc::_exit(status) };
        }
        let mut status = -1;
        // SAFETY: our own child; the status is written to a live variable.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        status == 0
    }

    fn set_capabilities(low: u32, inheritable: u32) -> bool {
        let header: [u32; 2] = [0x2008_0522, 0];
        let sets: [u32; 6] = [low, low, inheritable, 0, 0, 0];
        // SAFETY: the kernel reads two and six words.
        unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) == 0 }
    }

    fn has_none() -> bool {
        let header: [u32; 2] = [0x2008_0522, 0];
        let mut sets = [u32::MAX; 6];
        // SAFETY: the kernel reads two words and writes six.
        unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) == 0 && sets == [0; 6] }
    }

    fn root_is_out_of_reach() -> bool {
        set_capabilities(1 << CAP_SETUID, 0);
        // SAFETY: takes an integer only.
        unsafe { libc::setuid(0) != 0 }
    }

    #[test]
    fn no_capability_outlives_the_change_of_user() {
        if effective_uid() != 0 {
            return;
        }
        assert!(in_a_child(|| change_user(NOBODY, NOBODY, &[NOBODY]).is_ok() && has_none()));
        // A module of the seed may have asked for that (prctl(2), PR_SET_KEEPCAPS).
        assert!(in_a_child(|| {
            // SAFETY: takes integers only.
            unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) };
            change_user(NOBODY, NOBODY, &[NOBODY]).is_ok() && has_none() && root_is_out_of_reach()
        }));
        // A service manager may have given httpd some without making it root (AmbientCapabilities=).
        assert!(in_a_child(|| {
            // SAFETY: takes integers only.
            unsafe {
                libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0);
                libc::setresgid(NOBODY, NOBODY, NOBODY);
                libc::setresuid(NOBODY, NOBODY, NOBODY);
            }
            let raised = set_capabilities(1 << CAP_SETUID, 1 << CAP_SETUID);
            // SAFETY: takes integers only.
            let raised = raised
                && unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, CAP_SETUID, 0, 0) } == 0;
            raised && change_user(NOBODY, NOBODY, &[NOBODY]).is_ok() && has_none() && root_is_out_of_reach()
        }));
    }

    #[test]
    fn the_groups_are_just_those_asked_for_and_never_roots() {
        if effective_uid() != 0 {
            return;
        }
        assert!(in_a_child(|| change_user(NOBODY, NOBODY, &[NOBODY, 7, 7, 3]).is_ok()));
        assert!(in_a_child(|| change_user(NOBODY, NOBODY, &[NOBODY, 0]).is_err() && effective_uid() == 0));
        assert!(in_a_child(|| {
            // SAFETY: reads two ids.
            unsafe { libc::setgroups(2, [3, 7].as_ptr()) };
            has_just_these_groups(&[7, 3]).is_ok_and(|just| just)
                && [&[3][..], &[3, 7, 8], &[]].iter().all(|g| has_just_these_groups(g).is_ok_and(|just| !just))
        }));
    }

    #[test]
    fn no_signal_stays_ignored_or_blocked() {
        let in_status = |name: &str| {
            let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let value = text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
            u64::from_str_radix(&value.unwrap_or_default(), 16).unwrap_or(u64::MAX)
        };
        assert!(in_a_child(|| {
            for signal in [libc::SIGTERM, 32, 33, 34, 64] {
                let ignore: [usize; 4] = [libc::SIG_IGN, 0, 0, 0];
                // SAFETY: the kernel reads 32 bytes.
                unsafe {
                    libc::syscall(libc::SYS_rt_sigaction, signal, ignore.as_ptr(), std::ptr::null_mut::<u64>(), 8usize)
                };
            }
            let all = u64::MAX;
            // SAFETY: the kernel reads 8 bytes.
            unsafe {
                libc::syscall(
                    libc::SYS_rt_sigprocmask,
                    libc::SIG_BLOCK,
                    &raw const all,
                    std::ptr::null_mut::<u64>(),
                    8usize,
                )
            };
            let before = in_status("SigIgn:") & 1 << 63 != 0 && in_status("SigBlk:") & 1 << 63 != 0;
            reset_signals();
            let ignored = 1 << (libc::SIGPIPE - 1) | 1 << (libc::SIGXFSZ - 1);
            before && in_status("SigIgn:") == ignored && in_status("SigBlk:") == 0
        }));
    }
}
