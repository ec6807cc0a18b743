//! What a process gets from its parent besides ids and descriptors, and what of it a pool's process must not have:
//! keyrings, protection from the OOM killer, precedence, the working directory.
//!
//! Runs in: zygote, before its user changes.  Trusts: the kernel's answers only.  Owns: nothing.
//! Never: goes on after a step that failed (callers end the process).

use std::fs;
use std::io::{self, Error, ErrorKind};

const KEYCTL_GET_KEYRING_ID: libc::c_long = 0;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
const KEYCTL_SET_REQKEY_KEYRING: libc::c_long = 14;
const KEY_SPEC_SESSION_KEYRING: libc::c_long = -3;
const KEY_REQKEY_DEFL_DEFAULT: libc::c_long = 0;
/// ioprio_set(2): this process; the class is in the bits from 13 on.
const IOPRIO_WHO_PROCESS: libc::c_long = 1;
const IOPRIO_CLASS_SHIFT: libc::c_long = 13;
const IOPRIO_CLASS_REALTIME: libc::c_long = 1;
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// Whether the kernel has no such call, or a filter of system calls forbids it (seccomp(2)).
fn is_missing(e: &Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

fn keyctl(operation: libc::c_long, argument: libc::c_long) -> io::Result<libc::c_long> {
    // SAFETY: takes integers only; the one pointer that some operations take is null.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, operation, argument, 0, 0, 0) };
    if answer < 0 {
        return Err(Error::last_os_error());
    }
    Ok(answer)
}

/// A session keyring of this process's own, which it and what it starts have in common with nobody else (keyrings(7)).
/// Without that they would possess what root, and every other pool, has in the keyring that httpd was started with. A
/// fork has left the keyrings of process and thread behind, and those of the user are the new user's.
///
/// Where keyctl(2) is missing or forbidden, the processes of the pool cannot reach a key either. Errors: all others.
pub fn own_session_keyring() -> io::Result<()> {
    match keyctl(KEYCTL_JOIN_SESSION_KEYRING, 0) {
        // Where keys go that a request of the kernel brings: it could have been anywhere.
        Ok(_) => keyctl(KEYCTL_SET_REQKEY_KEYRING, KEY_REQKEY_DEFL_DEFAULT).map(drop),
        Err(e) if is_missing(&e) => match keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING) {
            Err(e) if is_missing(&e) => Ok(()),
            _ => Err(e),
        },
        Err(e) => Err(e),
    }
}

/// Protection from the OOM killer (`OOMScoreAdjust=` of httpd's unit) is httpd's own. Root says it, so that nobody else
/// can take it back (proc(5), `oom_score_adj`).
pub fn no_oom_protection() -> io::Result<()> {
    let text = match fs::read(OOM_SCORE_ADJ) {
        Ok(text) => text,
        // Without such a file there is no protection.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let (number, protected) = unprotected(&text).ok_or_else(|| Error::other("no number"))?;
    match fs::write(OOM_SCORE_ADJ, number.to_string()) {
        // It cannot be written: what is not there need not be taken away.
        Err(e) if protected => Err(e),
        _ => Ok(()),
    }
}

/// What is to stand there instead, and whether there was protection.
fn unprotected(text: &[u8]) -> Option<(i32, bool)> {
    let number: i32 = std::str::from_utf8(text).ok()?.trim().parse().ok()?;
    Some((number.max(0), number < 0))
}

/// Precedence over other processes is httpd's own, too: a policy of real time, a nice value below 0 (`Nice=` of httpd's
/// unit), real time for disks, and the limits up to which a process may take such itself. What puts it behind others
/// stays.
pub fn no_precedence() -> io::Result<()> {
    for limit in [libc::RLIMIT_NICE, libc::RLIMIT_RTPRIO] {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: reads a live structure.
        if unsafe { libc::setrlimit(limit, &raw const none) } != 0 {
            return Err(Error::last_os_error());
        }
    }
    // SAFETY: takes an integer.
    let policy = unsafe { libc::sched_getscheduler(0) };
    let behind = [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE];
    if policy >= 0 && !behind.contains(&(policy & !libc::SCHED_RESET_ON_FORK)) {
        let parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: reads a live structure.
        if unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameters) } != 0 {
            return Err(Error::last_os_error());
        }
    }
    // SAFETY: take integers. A nice value of -1 cannot be told from an error, which the call with these never is.
    if unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) < 0 && libc::setpriority(libc::PRIO_PROCESS, 0, 0) != 0 } {
        return Err(Error::last_os_error());
    }
    // SAFETY: take integers.
    unsafe {
        let class = libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) >> IOPRIO_CLASS_SHIFT;
        if class == IOPRIO_CLASS_REALTIME && libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, 0) != 0 {
            return Err(Error::last_os_error());
        }
    }
    Ok(())
}

/// httpd's parent goes there when it leaves its terminal; the controller was started before. It may stand below a
/// directory that the pool's user cannot enter.
pub fn leave_working_directory() -> io::Result<()> {
    std::env::set_current_dir("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a forked child in which `f` runs ends well.
    fn in_a_child(f: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child makes system calls, reads and writes files of /proc, and ends by _exit.
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

    fn is_root() -> bool {
        // SAFETY: takes nothing and cannot fail.
        unsafe { libc::geteuid() == 0 }
    }

    fn add_key(name: &std::ffi::CStr) -> bool {
        let data = b"secret";
        // SAFETY: two NUL-terminated strings and six bytes, live.
        let id = unsafe {
            let (kind, payload) = (c"user".as_ptr(), data.as_ptr());
            libc::syscall(libc::SYS_add_key, kind, name.as_ptr(), payload, data.len(), KEY_SPEC_SESSION_KEYRING)
        };
        id > 0
    }

    fn finds_key(name: &std::ffi::CStr) -> bool {
        const KEYCTL_SEARCH: libc::c_long = 10;
        // SAFETY: two NUL-terminated strings, live.
        let id = unsafe {
            let kind = c"user".as_ptr();
            libc::syscall(libc::SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, kind, name.as_ptr(), 0)
        };
        id > 0
    }

    #[test]
    fn keys_of_before_are_out_of_reach_and_new_ones_are_ones_own() {
        assert!(in_a_child(|| {
            if own_session_keyring().is_err() {
                return false;
            }
            // A container may forbid it all.
            if !add_key(c"mod_pool-before") {
                return true;
            }
            let child =
                || own_session_keyring().is_ok() && !finds_key(c"mod_pool-before") && add_key(c"mod_pool-after");
            finds_key(c"mod_pool-before") && in_a_child(child) && !finds_key(c"mod_pool-after")
        }));
    }

    #[test]
    fn protection_from_the_oom_killer_is_lost_for_good() {
        assert_eq!(unprotected(b"-500\n"), Some((0, true)));
        assert_eq!(unprotected(b"0\n"), Some((0, false)));
        assert_eq!(unprotected(b"300\n"), Some((300, false)));
        assert_eq!(unprotected(b""), None);
        if !is_root() || !in_a_child(|| fs::write(OOM_SCORE_ADJ, "-700").is_ok()) {
            return;
        }
        let adjusted = |to: &str, expected: &str| {
            in_a_child(|| {
                // First below: what root has once allowed, others could go back to.
                let set = fs::write(OOM_SCORE_ADJ, "-700").is_ok() && fs::write(OOM_SCORE_ADJ, to).is_ok();
                let lost = set && no_oom_protection().is_ok();
                let is_as_expected = fs::read_to_string(OOM_SCORE_ADJ).is_ok_and(|text| text.trim() == expected);
                // SAFETY: takes integers only.
                let left = unsafe { libc::setresuid(65_534, 65_534, 65_534) == 0 };
                lost && is_as_expected && left && fs::write(OOM_SCORE_ADJ, "-1").is_err()
            })
        };
        assert!(adjusted("-700", "0") && adjusted("0", "0") && adjusted("300", "300"));
    }

    #[test]
    fn precedence_is_lost_and_what_is_behind_others_stays() {
        // SAFETY: takes integers.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        // SAFETY: takes integers.
        let set_nice = |to| unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, to) == 0 };
        // SAFETY: takes an integer.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let set_policy = |policy, priority| {
            let parameters = libc::sched_param { sched_priority: priority };
            // SAFETY: reads a live structure.
            unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) == 0 }
        };
        assert!(in_a_child(|| set_nice(5) && no_precedence().is_ok() && nice() == 5));
        assert!(in_a_child(|| set_policy(libc::SCHED_BATCH, 0)
            && no_precedence().is_ok()
            && policy() == libc::SCHED_BATCH));
        if is_root() && in_a_child(|| set_nice(-5)) {
            assert!(in_a_child(|| set_nice(-5) && no_precedence().is_ok() && nice() == 0));
        }
        if is_root() && in_a_child(|| set_policy(libc::SCHED_RR, 1)) {
            assert!(in_a_child(|| set_policy(libc::SCHED_RR, 1)
                && no_precedence().is_ok()
                && policy() == libc::SCHED_OTHER));
        }
    }
}
