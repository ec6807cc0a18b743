//! Other processes: pidfds, wait status, and what /proc tells of them.
//!
//! Runs in: controller.  Trusts: the kernel.  Owns: the pidfds it opens.
//! Never: signals by pid number, which may belong to somebody else by then.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

/// A process that stays this one, whatever becomes of its number (pidfd_open(2)).
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: u32,
}

impl PidFd {
    /// `ESRCH` when there is no such process.
    pub fn open(pid: u32) -> io::Result<Self> {
        let number = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        // SAFETY: takes two integers and returns a descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just opened this descriptor for us; it is close-on-exec.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, pid })
    }

    /// Its number, while it has not been reaped.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it, now. A process that is gone already is no error.
    pub fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    /// As [`kill`](Self::kill), with this signal.
    pub fn signal(&self, signal: libc::c_int) {
        let nothing = std::ptr::null_mut::<libc::siginfo_t>();
        // SAFETY: a null siginfo means the same as kill(2); the rest are integers.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), signal, nothing, 0) };
    }

    /// Whether it has ended, as a child of ours or anybody's.
    pub fn has_ended(&self) -> bool {
        super::descriptor::is_readable(&self.fd)
    }

    /// Reaps it if it has ended and is our child: its status as waitpid(2) writes it.
    pub fn reap(&self) -> Option<i32> {
        status_of(wait(libc::P_PIDFD, self.fd.as_raw_fd().cast_unsigned(), 0).map(status_only))
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Asks for the end of a child without waiting for it, whatever signal it was cloned to send at its end: its number, and
/// its status as waitpid(2) writes it, also for signals that have no name (of real time).
fn wait(kind: libc::idtype_t, id: u32, flags: libc::c_int) -> io::Result<Option<(u32, i32)>> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::__WALL | flags;
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel fills the structure, or leaves it zeroed.
    if unsafe { libc::waitid(kind, id, info.as_mut_ptr(), flags) } != 0 {
        let e = io::Error::last_os_error();
        return if e.kind() == io::ErrorKind::Interrupted { Ok(None) } else { Err(e) };
    }
    // SAFETY: all zeroes are valid, and so is what the kernel has written.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid fills these two; they are zero where no child has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let status = match info.si_code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => status | 0x80,
        _ => status,
    };
    Ok((pid != 0).then_some((pid.cast_unsigned(), status)))
}

fn status_only(ended: Option<(u32, i32)>) -> Option<i32> {
    ended.map(|(_, status)| status)
}

/// For a process that is not there to reap any more, the status of SIGKILL.
fn status_of(ended: io::Result<Option<i32>>) -> Option<i32> {
    ended.unwrap_or(Some(libc::SIGKILL))
}

/// Whether this is a child of ours that was not reaped.
pub fn is_own_child(pid: u32) -> bool {
    pid != 0 && wait(libc::P_PID, pid, libc::WNOWAIT).is_ok()
}

/// Reaps a child by number, if it has ended.
pub fn reap_pid(pid: u32) -> bool {
    pid != 0 && status_of(wait(libc::P_PID, pid, 0).map(status_only)).is_some()
}

/// Reaps any child that has ended: its number, and its status as waitpid(2) writes it. `ECHILD` when there is no child.
pub fn reap_any() -> io::Result<Option<(u32, i32)>> {
    wait(libc::P_ALL, 0, 0)
}

/// Real, effective, saved and file system uid of a process.
pub fn uids_of(pid: u32) -> io::Result<[u32; 4]> {
    parse_uids(&fs::read(format!("/proc/{pid}/status"))?)
        .ok_or_else(|| io::Error::other("no Uid line in /proc/PID/status"))
}

/// What /proc/PID/status says behind `name`, which ends with a colon. The first line has the process's name, which the
/// process itself chooses: any bytes, that need not be UTF-8. The kernel escapes a line feed in it. Should one come
/// through all the same, the kernel's own field is the last one of its name.
fn status_field<'a>(status: &'a [u8], name: &str) -> Option<&'a str> {
    let lines = status.split(|b| *b == b'\n').skip(1);
    let value = lines.filter_map(|line| line.strip_prefix(name.as_bytes())).last()?;
    std::str::from_utf8(value).ok().map(str::trim)
}

fn parse_uids(status: &[u8]) -> Option<[u32; 4]> {
    let mut fields = status_field(status, "Uid:")?.split_whitespace().map(str::parse::<u32>);
    let mut uids = [0; 4];
    for uid in &mut uids {
        *uid = fields.next()?.ok()?;
    }
    Some(uids)
}

/// Session that a process belongs to (proc(5), field 6 of /proc/PID/stat).
pub fn session_of(pid: u32) -> Option<u32> {
    number_in_stat(pid, 3)
}

/// The process that it is a child of (field 4).
pub fn parent_of(pid: u32) -> Option<u32> {
    number_in_stat(pid, 1)
}

/// Whether it has ended and is not reaped, or only its first thread has ended (field 3).
pub fn is_zombie(pid: u32) -> bool {
    field_of_stat(pid, 0).is_some_and(|state| state == "Z")
}

/// A field of /proc/PID/stat, counted from behind the name, which may contain anything.
fn field_of_stat(pid: u32, at: usize) -> Option<String> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = stat.iter().rposition(|b| *b == b')')?;
    std::str::from_utf8(&stat[end + 1..]).ok()?.split_whitespace().nth(at).map(str::to_owned)
}

fn number_in_stat(pid: u32, at: usize) -> Option<u32> {
    field_of_stat(pid, at)?.parse().ok()
}

/// Every child of this process, zombies included. It has one thread, so its list is the list.
pub fn children() -> io::Result<Vec<u32>> {
    let me = std::process::id();
    let list = fs::read_to_string(format!("/proc/self/task/{me}/children"))?;
    Ok(list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// The directories of a process's threads.
fn threads_of(parent: u32) -> impl Iterator<Item = PathBuf> {
    let threads = fs::read_dir(format!("/proc/{parent}/task"));
    threads.into_iter().flatten().flatten().map(|thread| thread.path())
}

/// Every child of another process, zombies included, of all its threads. Empty once it is gone.
pub fn children_of(parent: u32) -> Vec<u32> {
    let lists = threads_of(parent).filter_map(|thread| fs::read_to_string(thread.join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Most threads of a process that are looked at for [`tracers_of`]: of one that was killed no others are left for long.
const THREADS_LOOKED_AT: usize = 256;

/// Who traces a thread of this process (ptrace(2)).
pub fn tracers_of(pid: u32) -> BTreeSet<u32> {
    let statuses = threads_of(pid).take(THREADS_LOOKED_AT).filter_map(|thread| fs::read(thread.join("status")).ok());
    let tracers = statuses.filter_map(|status| status_field(&status, "TracerPid:")?.parse().ok());
    tracers.filter(|tracer| *tracer != 0).collect()
}

/// Whether a process, and with it whatever it starts, can gain no privileges; `None` for one that is gone or a zombie.
pub fn gains_no_privileges(pid: u32) -> Option<bool> {
    parse_no_new_privs(&fs::read(format!("/proc/{pid}/status")).ok()?)
}

fn parse_no_new_privs(status: &[u8]) -> Option<bool> {
    if status_field(status, "State:")?.starts_with('Z') {
        return None;
    }
    Some(status_field(status, "NoNewPrivs:")? == "1")
}

/// Whether a uid could be another than our own: only root's children can be given away.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The effective uid.
pub fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// A limit of open descriptors: soft, hard.
pub type DescriptorLimit = (u64, u64);

/// Raises the limit of open descriptors to what the machine allows one process (fs.nr_open), or to the hard limit where
/// that may not be raised; returns what it was, for those we start.
pub fn raise_descriptor_limit() -> io::Result<DescriptorLimit> {
    use nix::sys::resource::{getrlimit, setrlimit, Resource};
    let before = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse::<u64>().ok());
    if most.is_none_or(|most| setrlimit(Resource::RLIMIT_NOFILE, most, most).is_err()) {
        setrlimit(Resource::RLIMIT_NOFILE, before.1, before.1)?;
    }
    Ok(before)
}

/// "was killed by signal 9", "exited with status 1": what a wait status (waitpid(2)) says.
pub fn describe_wait_status(status: i32) -> String {
    if libc::WIFSIGNALED(status) {
        let core = if libc::WCOREDUMP(status) { " (core dumped)" } else { "" };
        format!("was killed by signal {}{core}", libc::WTERMSIG(status))
    } else {
        format!("exited with status {}", libc::WEXITSTATUS(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_watched_and_reaped_by_its_pidfd() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("sleep");
        let pidfd = PidFd::open(child.id()).expect("pidfd");
        assert!(is_own_child(child.id()));
        assert_eq!(pidfd.reap(), None);
        assert!(children_of(std::process::id()).contains(&child.id()) && !is_zombie(child.id()));
        pidfd.kill();
        let status = loop {
            if let Some(status) = pidfd.reap() {
                break status;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        assert_eq!(status, libc::SIGKILL);
        assert!(!is_own_child(child.id()));
        let _ = child.wait();
    }

    #[test]
    fn a_death_by_a_real_time_signal_is_told_as_it_was() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("sleep");
        let pidfd = PidFd::open(child.id()).expect("pidfd");
        // SAFETY: takes integers only; the child has not been reaped.
        unsafe { libc::kill(child.id().cast_signed(), libc::SIGRTMIN()) };
        while !pidfd.has_ended() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(is_own_child(child.id()) && is_zombie(child.id()), "it was not reaped");
        assert_eq!(pidfd.reap(), Some(libc::SIGRTMIN()));
        assert!(!is_own_child(child.id()));
        let _ = child.wait();
    }

    #[test]
    fn init_is_not_our_child() {
        assert!(!is_own_child(1));
        assert!(!is_own_child(0));
    }

    #[test]
    fn uids_are_the_four_numbers_of_the_uid_line() {
        let text = b"Name:\tx\\nUid:\t0\nUmask:\t0022\nUid:\t1\t2\t3\t4\nGid:\t9\t9\t9\t9\n";
        assert_eq!(parse_uids(text), Some([1, 2, 3, 4]));
        assert_eq!(parse_uids(b"Name:\tx\nUid:\t1\t2\n"), None);
        assert_eq!(parse_uids(b""), None);
        assert_eq!(uids_of(std::process::id()).expect("proc")[1], own_uid());
    }

    #[test]
    fn a_name_forges_no_field() {
        for name in [&b"Uid:\t0\t0\t0\t0"[..], b"x\nUid:\t0\t0\t0\t0", b"x\rUid:\t0", b"\xff\xfe", b"\x85Uid:\t0"] {
            let status = [b"Name:\t", name, b"\nState:\tS (sleeping)\nUid:\t1\t2\t3\t4\nNoNewPrivs:\t1\n"].concat();
            assert_eq!(parse_uids(&status), Some([1, 2, 3, 4]), "{name:?}");
        }
        assert_eq!(parse_uids(b"Uid:\t0\t0\t0\t0"), None, "the first line is the name's");
    }

    #[test]
    fn a_process_of_any_name_is_read() {
        for name in [c"\xff\xfe", c"a\nUid:\t0", c") S 1 1 1", c"\\", c""] {
            let (read, write) = nix::unistd::pipe().expect("pipe");
            // SAFETY: the child makes system calls, and ends by _exit.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: a NUL-terminated name, descriptors of ours, and a buffer of one byte; it does not return.
                unsafe {
                    libc::prctl(libc::PR_SET_NAME, name.as_ptr());
                    libc::write(write.as_raw_fd(), c"x".as_ptr().cast(), 1);
                    libc::pause();
                    libc::_exit(0);
                }
            }
            nix::unistd::read(&read, &mut [0]).expect("its word");
            let pid = pid.cast_unsigned();
            assert_eq!(uids_of(pid).expect("uids")[0], own_uid(), "{name:?}");
            assert_eq!(parent_of(pid), Some(std::process::id()), "{name:?}");
            assert_eq!(session_of(pid), session_of(std::process::id()), "{name:?}");
            let process = PidFd::open(pid).expect("pidfd");
            process.kill();
            while process.reap().is_none() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn the_children_of_another_process_are_those_of_its_threads() {
        assert!(children_of(std::os::unix::process::parent_id()).contains(&std::process::id()));
        assert_eq!(children_of(0), Vec::<u32>::new());
    }

    #[test]
    fn session_and_parent_are_read_behind_any_name() {
        let own = nix::unistd::getsid(None).expect("getsid").as_raw();
        assert_eq!(session_of(std::process::id()), u32::try_from(own).ok());
        assert_eq!(parent_of(std::process::id()), Some(std::os::unix::process::parent_id()));
    }
}
