//! Errors of the kernel that say something is lacking, with what an administrator can do about it.
//!
//! Runs in: controller, seed, zygote.  Trusts: the kernel.  Owns: nothing.  Never: guesses at other errors.

use std::io;

/// The error, and the remedy if it is a lack of descriptors or memory.
pub fn told(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::EMFILE) => format!("{e}; raise the limit of open files (ulimit -n)"),
        Some(libc::ENFILE) => format!("{e}; raise the machine's limit of open files (fs.file-max)"),
        Some(libc::ENOMEM) => format!("{e}; the machine, or httpd's control group, needs more memory"),
        _ => e.to_string(),
    }
}

/// Whether this process has no number left for a descriptor.
pub fn is_of_descriptors(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EMFILE)
}

/// The same for fork(2), where EAGAIN is a limit of processes.
pub fn told_of_fork(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::EAGAIN) => format!("{e}; raise the limit of processes (ulimit -u, systemd's TasksMax, pids.max)"),
        _ => told(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_told_with_its_remedy() {
        let e = io::Error::from_raw_os_error;
        assert!(told(&e(libc::EMFILE)).contains("(ulimit -n)"));
        assert!(told_of_fork(&e(libc::EMFILE)).contains("(ulimit -n)"));
        assert!(told_of_fork(&e(libc::EAGAIN)).contains("TasksMax"));
        assert_eq!(told(&e(libc::EAGAIN)), e(libc::EAGAIN).to_string());
    }
}
