//! Threads of this process: helpers that no signal reaches, and what the kernel says of others.
//!
//! Runs in: frontend, any thread.  Trusts: the kernel.  Owns: nothing.
//! Never: leaves the calling thread's signal mask changed.

use std::fs;
use std::io;
use std::mem::MaybeUninit;

/// Starts a detached thread with every signal blocked: httpd's handlers (prefork's `just_die` above all) run on httpd's
/// own threads only.
pub fn spawn_quiet(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset fills the set that pthread_sigmask then reads; the old mask is written to `before`.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let started = std::thread::Builder::new().name(name.to_owned()).stack_size(256 * 1024).spawn(body);
    // SAFETY: `before` was written above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    started.map(drop)
}

/// The calling thread's number (gettid(2)).
pub fn id() -> u32 {
    u32::try_from(nix::unistd::gettid().as_raw()).unwrap_or(0)
}

/// The number of the processor that the calling thread runs on (sched_getcpu(3)), if the kernel says so.
pub fn processor() -> Option<u16> {
    // SAFETY: it takes nothing, and writes nothing.
    u16::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// The calling thread, and what it forks, does not interrupt others when it is woken (`SCHED_BATCH`, sched(7)). Its share
/// of the processors stays the same. Where an administrator has chosen another policy for the server, that one stays.
pub fn interrupt_nobody() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: sched_getscheduler takes an integer; sched_setscheduler reads the structure.
    unsafe {
        if libc::sched_getscheduler(0) == libc::SCHED_OTHER {
            // Where it is forbidden, a wake-up costs a little more.
            libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters);
        }
    }
}

/// Whether this thread of ours runs, or would if a processor were free (state R in proc(5)).
pub fn runs(id: u32) -> bool {
    let Ok(stat) = fs::read(format!("/proc/self/task/{id}/stat")) else { return false };
    // The name in parentheses may have any byte in it.
    stat.iter().rposition(|&byte| byte == b')').and_then(|end| stat.get(end + 2)) == Some(&b'R')
}

/// The names (pthread_setname_np(3)) of this process's threads but the calling one. Errors: those of reading /proc.
pub fn names_of_others() -> io::Result<Vec<String>> {
    let own = id().to_string();
    let mut names = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        if entry.file_name() != own.as_str() {
            // One that ends meanwhile has no name.
            if let Ok(name) = fs::read(entry.path().join("comm")) {
                names.push(String::from_utf8_lossy(name.trim_ascii_end()).into_owned());
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    /// The policy of a thread that had `before` and calls [`interrupt_nobody`].
    fn policy_after(before: libc::c_int) -> libc::c_int {
        let body = move || {
            let parameters = libc::sched_param { sched_priority: 0 };
            // SAFETY: as in the function under test.
            unsafe {
                assert_eq!(libc::sched_setscheduler(0, before, &raw const parameters), 0);
                interrupt_nobody();
                libc::sched_getscheduler(0)
            }
        };
        std::thread::spawn(body).join().expect("no panic")
    }

    #[test]
    fn an_ordinary_thread_interrupts_nobody() {
        assert_eq!(policy_after(libc::SCHED_OTHER), libc::SCHED_BATCH);
    }

    #[test]
    fn a_policy_that_somebody_has_chosen_stays() {
        assert_eq!(policy_after(libc::SCHED_IDLE), libc::SCHED_IDLE);
    }

    #[test]
    fn who_waits_does_not_run() {
        let (said, heard) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            said.send(id()).expect("heard");
            wait.recv()
        });
        let other = heard.recv().expect("its number");
        assert_ne!(other, id());
        assert!(runs(id()));
        let end = Instant::now() + Duration::from_secs(10);
        while runs(other) {
            assert!(Instant::now() < end, "it waits");
        }
        go.send(()).expect("it is there");
        thread.join().expect("no panic").expect("a word");
        assert!(!runs(other), "it is gone");
    }
}
