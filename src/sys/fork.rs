//! fork(2) for seeds and zygotes, whose children belong to the controller, for its keeper, and for httpd's parent.
//!
//! Runs in: seed, zygote, keeper, parent (each has one thread; where a module has started others in a zygote, that is
//! told).  Trusts: the kernel.  Owns: nothing.  Never: copies another thread than the calling one.

use std::io;
use std::ptr;

/// In which of the two processes the call has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    Child,
    Parent { child: u32 },
}

/// Forks a child whose parent is the caller's own parent (clone(2), `CLONE_PARENT`): the controller then gets its wait
/// status, and its pid stays taken until the controller has reaped it.
///
/// libc's fork() is not used, so its atfork handlers do not run; what libc itself keeps per thread (thread id, robust
/// futexes) is set right here. Errors: those of clone(2), `EAGAIN` and `ENOMEM` above all.
pub fn fork_as_sibling() -> io::Result<Forked> {
    // glibc keeps the thread's id in memory and puts it into mutexes; the kernel updates it where we say.
    let mut tid_address: *mut libc::c_int = ptr::null_mut();
    // SAFETY: the kernel writes one pointer to the address we pass, or fails and writes nothing.
    unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut tid_address) };
    let mut robust_list: *mut libc::c_void = ptr::null_mut();
    let mut robust_len: usize = 0;
    // SAFETY: the kernel writes one pointer and one size to the addresses we pass.
    unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust_list, &raw mut robust_len) };

    let mut flags = libc::CLONE_PARENT | libc::SIGCHLD;
    if !tid_address.is_null() {
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    }
    let no_stack = ptr::null_mut::<libc::c_void>();
    let no_tid = ptr::null_mut::<libc::c_int>();
    // SAFETY: without CLONE_VM the child goes on with a copy of this very stack, as after fork(2). The order of the
    // last two arguments differs between architectures; the tls argument is unused without CLONE_SETTLS.
    #[cfg(target_arch = "x86_64")]
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, no_stack, no_tid, tid_address, 0) };
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: as above.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, no_stack, no_tid, 0, tid_address) };
    match pid {
        0 => {
            if !robust_list.is_null() {
                // SAFETY: the address is this thread's own list head, as libc registered it in the parent.
                unsafe { libc::syscall(libc::SYS_set_robust_list, robust_list, robust_len) };
            }
            Ok(Forked::Child)
        }
        pid => match u32::try_from(pid) {
            Ok(child) => Ok(Forked::Parent { child }),
            Err(_) => Err(io::Error::last_os_error()),
        },
    }
}

/// fork(2) as httpd's MPMs do it, with libc's atfork handlers.
///
/// For a process with one thread only. Errors: `EAGAIN`, `ENOMEM`.
pub fn fork_child() -> io::Result<Forked> {
    // SAFETY: the caller's process has one thread, so that no lock is held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child),
        pid => u32::try_from(pid).map(|child| Forked::Parent { child }).map_err(|_| io::Error::last_os_error()),
    }
}

/// Leaves as C programs do, with the exit handlers that libraries have registered.
pub fn exit_with_handlers(status: i32) -> ! {
    // SAFETY: exit does not return; handlers were registered to be run here.
    unsafe { libc::exit(status) }
}

/// Leaves at once, without exit handlers: what they would tidy up belongs to the parent process.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit does not return and runs no code of ours.
    unsafe { libc::_exit(status) }
}

/// Ends as a process has ended that left this wait status (waitpid(2)), without a core.
pub fn end_as(status: i32) -> ! {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: reads the two structures, which live; no handler of ours is replaced that anything relies on, as the
        // process ends here.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            libc::signal(signal, libc::SIG_DFL);
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, signal);
            libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
            libc::kill(libc::getpid(), signal);
        }
    }
    exit_now(libc::WEXITSTATUS(status).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_ends_as_another_one_has() {
        for status in [libc::SIGKILL, libc::SIGSEGV, libc::SIGTERM, 1 << 8, 101 << 8] {
            let Forked::Parent { child } = fork_child().expect("fork") else { end_as(status) };
            let mut found = 0;
            // SAFETY: waits for our own child and writes one int.
            unsafe { libc::waitpid(child.cast_signed(), &raw mut found, 0) };
            assert_eq!(found, status);
        }
    }

    #[test]
    fn a_sibling_runs_with_its_own_thread_id() {
        // The test process is the seed here; its child is our sibling, and our parent reaps it. What it found is told
        // through a pipe.
        let mut fds = [-1; 2];
        // SAFETY: pipe writes two ints.
        assert_eq!(unsafe { libc::pipe(fds.as_mut_ptr()) }, 0);
        match fork_as_sibling().expect("clone") {
            Forked::Child => {
                // SAFETY: gettid and getppid take nothing.
                let (tid, pid) = unsafe { (libc::gettid(), libc::getpid()) };
                let ok: u8 = u8::from(tid == pid);
                // SAFETY: writes one byte from a live variable.
                unsafe { libc::write(fds[1], (&raw const ok).cast(), 1) };
                exit_now(0)
            }
            Forked::Parent { child } => {
                let mut got = 0u8;
                // SAFETY: reads one byte into a live variable.
                let n = unsafe { libc::read(fds[0], (&raw mut got).cast(), 1) };
                assert_eq!((n, got), (1, 1));
                // SAFETY: waitpid with a null status only asks; the child is not ours.
                let rc = unsafe { libc::waitpid(child.cast_signed(), std::ptr::null_mut(), libc::WNOHANG) };
                assert_eq!(rc, -1, "the child belongs to our parent");
            }
        }
    }
}
