//! A helper thread that no signal reaches.
//!
//! Runs in: frontend, any thread.  Trusts: its caller.  Owns: nothing.
//! Never: leaves the calling thread's signal mask changed.

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
