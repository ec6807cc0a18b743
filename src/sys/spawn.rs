//! Starting a seed: fork and exec of the running program's own image.
//!
//! Runs in: controller (one thread).  Trusts: its caller's arguments.  Owns: nothing.
//! Never: allocates between fork and exec.

use super::launch::CHANNEL_FD;
use super::process::DescriptorLimit;
use std::ffi::{c_char, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;

/// How an image is started.
#[derive(Debug)]
pub struct Image<'a> {
    /// Its arguments, `argv[0]` included.
    pub argv: &'a [Vec<u8>],
    /// Becomes descriptor 3.
    pub channel: BorrowedFd<'a>,
    /// Becomes standard error.
    pub standard_error: BorrowedFd<'a>,
    /// Its limit of open descriptors, if ours differs.
    pub descriptors: Option<DescriptorLimit>,
}

/// Variables that are not for a seed: with them it would speak to the service manager in httpd's place.
const PRIVATE_VARIABLES: [&str; 2] = ["NOTIFY_SOCKET", "WATCHDOG_USEC"];

fn environment() -> Vec<CString> {
    std::env::vars_os()
        .filter(|(name, _)| !PRIVATE_VARIABLES.iter().any(|private| name == private))
        .filter_map(|(name, value)| {
            let mut pair = name.into_vec();
            pair.push(b'=');
            pair.extend(value.into_vec());
            CString::new(pair).ok()
        })
        .collect()
}

/// Runs `/proc/self/exe`; standard input and output are inherited, all descriptors but those of `image` are closed, no
/// signal is blocked. Signals that we ignore the image ignores too: a Ctrl-C for httpd's process group is not for it.
/// Returns the child's pid. Errors: those of fork(2), or an argument with a NUL byte. A failed exec shows as exit
/// status 127.
pub fn spawn_image(image: &Image<'_>) -> io::Result<u32> {
    let argv: Vec<CString> =
        image.argv.iter().map(|a| CString::new(a.as_slice()).map_err(io::Error::other)).collect::<Result<_, _>>()?;
    let environment = environment();
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (argv_p, environment_p) = (pointers(&argv), pointers(&environment));
    let limit = image.descriptors.map(|(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard });
    let (channel, standard_error) = (image.channel.as_raw_fd(), image.standard_error.as_raw_fd());
    // SAFETY: the child calls only async-signal-safe functions until it execs or exits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: system calls on integers and on arrays prepared before the fork. Both descriptors are moved above
        // their targets first, so that neither overwrites the other. A failure leads to _exit.
        unsafe {
            let channel = libc::fcntl(channel, libc::F_DUPFD, CHANNEL_FD + 1);
            let errors = libc::fcntl(standard_error, libc::F_DUPFD, CHANNEL_FD + 1);
            if channel < 0
                || errors < 0
                || libc::dup2(channel, CHANNEL_FD) < 0
                || libc::dup2(errors, libc::STDERR_FILENO) < 0
            {
                libc::_exit(127);
            }
            let first = libc::c_uint::try_from(CHANNEL_FD + 1).unwrap_or(4);
            libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0);
            if let Some(limit) = &limit {
                libc::setrlimit(libc::RLIMIT_NOFILE, limit);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            libc::execve(c"/proc/self/exe".as_ptr(), argv_p.as_ptr(), environment_p.as_ptr());
            libc::_exit(127);
        }
    }
    u32::try_from(pid).map_err(|_| io::Error::last_os_error())
}
