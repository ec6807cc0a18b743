//! Which mount a descriptor's file is on, asked of nobody but the kernel's own tables.
//!
//! Runs in: worker, frontend.  Trusts: the kernel, the mounts of the process's own mount namespace.
//! Owns: a view of the mount table.  Never: makes a call that a file system answers.
//!
//! A tenant can mount file systems of his own in a user namespace, where overlayfs has the name of a local one and asks a
//! FUSE daemon. fstat(2) and fstatfs(2) ask the file system, so they come too late to tell. Each mount has a number,
//! which is its own as long as somebody has a file of it open. So the descriptor's mount is looked up in the table of
//! this process's mount namespace, while the descriptor is open: a mount of another namespace is not in it.

use super::file::Reads;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// As much of /proc/self/fdinfo/N as is read: what belongs to no kind of file has much less.
const MOST_FDINFO: usize = 1024;

/// The mounts of one mount namespace whose files may be read here, by number.
#[derive(Debug)]
struct Table {
    /// /proc/self/mountinfo: poll(2) tells a change of the table since the last poll.
    file: std::fs::File,
    mounts: Vec<(u64, Reads)>,
}

static TABLE: Mutex<Option<(u32, Table)>> = Mutex::new(None);

/// How the file of this descriptor is read: it is regular (or a directory or link), opened for reading only, without
/// `O_PATH` and `O_DIRECT`, and on a mount of the own namespace with a local file system. `None` for all others.
pub fn reads(fd: BorrowedFd<'_>) -> Option<Reads> {
    // SAFETY: F_GETFL takes no argument and touches no memory.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 || flags & (libc::O_PATH | libc::O_DIRECT) != 0 || flags & libc::O_ACCMODE != libc::O_RDONLY {
        return None;
    }
    // Before its fdinfo is looked at: that of an epoll, for example, waits for a lock that its owner can hold.
    if !is_file(fd) {
        return None;
    }
    let mount = mount_of(fd)?;
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    // A forked child shares the descriptor with its parent, and each change is told once.
    let me = std::process::id();
    if table.as_ref().is_none_or(|(pid, _)| *pid != me) {
        *table = Some((me, Table::read().ok()?));
    }
    let (_, table) = table.as_mut()?;
    if table.has_changed() && table.read_again().is_err() {
        return None;
    }
    table.mounts.iter().find(|(id, _)| *id == mount).map(|(_, reads)| *reads)
}

/// It is a regular file, a directory or a link. The kernel answers FIOQSIZE itself, by what its inode is.
fn is_file(fd: BorrowedFd<'_>) -> bool {
    const FIOQSIZE: libc::c_ulong = 0x5460;
    let mut size = MaybeUninit::<u64>::uninit();
    // SAFETY: FIOQSIZE writes one loff_t, which has 64 bits.
    unsafe { libc::ioctl(fd.as_raw_fd(), FIOQSIZE as _, size.as_mut_ptr()) == 0 }
}

/// The number of its mount. That is asked of another description of the same file: the kernel lists the locks of the one
/// that was sent, and writes the whole list, of any length, before the first byte is read. `O_PATH` opens without asking
/// the file system.
fn mount_of(fd: BorrowedFd<'_>) -> Option<u64> {
    let path = of_descriptor("fd", fd, libc::O_PATH)?;
    let info = of_descriptor("fdinfo", path.as_fd(), libc::O_RDONLY)?;
    let mut text = [0u8; MOST_FDINFO];
    let len = nix::unistd::read(info.as_fd(), &mut text).ok()?;
    // A read that fills it has not told everything.
    let text = text.get(..len).filter(|text| text.len() < MOST_FDINFO)?;
    let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"mnt_id:"))?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

/// What /proc/self has of a descriptor in this directory.
fn of_descriptor(directory: &str, fd: BorrowedFd<'_>, flags: libc::c_int) -> Option<OwnedFd> {
    use std::io::Write;
    let mut path = [0u8; 40];
    write!(&mut path[..], "/proc/self/{directory}/{}\0", fd.as_raw_fd()).ok()?;
    // SAFETY: the path ends with a NUL byte; open gives a new descriptor, or -1.
    unsafe {
        let raw = libc::open(path.as_ptr().cast(), flags | libc::O_CLOEXEC);
        (raw >= 0).then(|| OwnedFd::from_raw_fd(raw))
    }
}

impl Table {
    fn read() -> io::Result<Self> {
        let mut table = Self { file: std::fs::File::open("/proc/self/mountinfo")?, mounts: Vec::new() };
        table.read_again()?;
        Ok(table)
    }

    /// The table is another one than when this was last asked, or than when the file was opened.
    fn has_changed(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLPRI, revents: 0 };
        // SAFETY: one live structure; it does not wait.
        let n = unsafe { libc::poll(&raw mut poll, 1, 0) };
        n != 0
    }

    fn read_again(&mut self) -> io::Result<()> {
        use std::io::{Read, Seek};
        self.mounts.clear();
        let mut text = Vec::new();
        // What changes while it is read is told by the next poll.
        self.file.rewind()?;
        self.file.read_to_end(&mut text)?;
        let mut lines: Vec<_> = text.split(|&byte| byte == b'\n').filter_map(parse).collect();
        // Files without a name, memfd_create(2), are on a mount of the kernel's own.
        // SAFETY: a static string; memfd_create gives a new descriptor, or -1.
        let memory = unsafe {
            let raw = libc::memfd_create(c"mod_pool".as_ptr(), libc::MFD_CLOEXEC);
            (raw >= 0).then(|| OwnedFd::from_raw_fd(raw))
        };
        lines.extend(memory.and_then(|fd| Some((mount_of(fd.as_fd())?, Reads::Apart))));
        self.mounts = lines;
        Ok(())
    }
}

/// Number and way of reading of one line of mountinfo (proc(5)), if its file system is a local one.
fn parse(line: &[u8]) -> Option<(u64, Reads)> {
    let line = std::str::from_utf8(line).ok()?;
    let (front, behind) = line.split_once(" - ")?;
    let id = front.split(' ').next()?.parse().ok()?;
    Some((id, Reads::of(behind.split(' ').next()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_tells_number_and_file_system() {
        let line = b"27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard";
        assert_eq!(parse(line), Some((27, Reads::Quickly)));
        assert_eq!(parse(b"9 1 0:5 / /a\\040b rw - overlay overlay rw"), Some((9, Reads::Apart)));
        assert_eq!(parse(b"28 27 0:40 / /mnt rw - fuse.sshfs sshfs rw"), None);
        assert_eq!(parse(b"28 27 0:40 / /mnt rw - fuseblk /dev/vdb rw"), None);
        assert_eq!(parse(b"28 27 0:40 / /mnt rw - nfs4 server:/ rw"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn locks_of_the_one_that_was_sent_are_not_listed() {
        let file = std::fs::File::open("/proc/self/exe").expect("the test itself");
        let before = mount_of(file.as_fd());
        assert!(before.is_some());
        for i in 0..200 {
            // SAFETY: all zero is a valid structure: numbers. F_RDLCK is 0, too.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            (lock.l_start, lock.l_len) = (2 * i, 1);
            // SAFETY: F_OFD_SETLK reads one live structure.
            assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }, 0);
        }
        assert_eq!(mount_of(file.as_fd()), before);
    }

    #[test]
    fn only_files_have_a_way_of_reading() {
        let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty()).expect("epoll");
        assert!(!is_file(epoll.0.as_fd()));
        let (a, _b) = std::os::unix::net::UnixStream::pair().expect("pair");
        assert!(!is_file(a.as_fd()));
        let directory = std::fs::File::open("/").expect("root");
        assert!(is_file(directory.as_fd()));
    }
}
