//! Files: which may travel to a frontend as a descriptor, and reads at a place of one's own.
//!
//! Runs in: worker, frontend.  Trusts: the kernel.  Owns: nothing.
//! Never: moves a file's own offset, which a passed descriptor shares with its receiver.

use super::mounts;
use std::ffi::{CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// How a file is read by a thread that must not wait. The description of a passed descriptor is shared: who has sent it
/// can set `O_DIRECT` at any time, and can hold the inode's lock by a write whose memory does not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// By `RWF_NOWAIT`, which these file systems keep to whatever flags and locks there are. What is not in memory is read by
    /// a thread of the pool's own, which need not wait for the inode's lock either: readahead(2) takes none here.
    Quickly,
    /// As above, but the pool's own thread may have to wait for the inode's lock.
    Mostly,
    /// By a thread of the pool's own only: the file system has no such reads, or takes locks in them.
    Apart,
}

impl Reads {
    /// Of a file system with this name in the mount table; `None` if its reads are not answered by this machine's own
    /// kernel. A FUSE or network file system can keep a reader waiting for as long as it likes, so a file there is read
    /// by the worker that names it. An overlayfs of the own mount namespace is the administrator's, and so are its layers.
    pub fn of(file_system: &str) -> Option<Self> {
        match file_system {
            "ext2" | "ext3" | "ext4" => Some(Self::Quickly),
            "xfs" | "f2fs" => Some(Self::Mostly),
            "btrfs" | "tmpfs" | "overlay" | "zfs" | "bcachefs" => Some(Self::Apart),
            _ => None,
        }
    }
}

/// A file that may be read here.
#[derive(Debug, Clone, Copy)]
pub struct Plain {
    pub size: u64,
    pub reads: Reads,
}

/// Of a regular file that is open for reading only, on a local file system; `None` for every other descriptor. No file
/// system is asked before it is known for one that answers by itself.
pub fn plain(fd: BorrowedFd<'_>) -> Option<Plain> {
    let reads = mounts::reads(fd)?;
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the structure when it returns 0.
    if unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled above.
    let stat = unsafe { stat.assume_init() };
    let size = u64::try_from(stat.st_size).ok()?;
    (stat.st_mode & libc::S_IFMT == libc::S_IFREG).then_some(Plain { size, reads })
}

/// Appends what can be read of `len` bytes from `offset` without any wait to `out`, and says how much; 0 is the end of the
/// file. `WouldBlock` if it is not in memory or a lock is held; `Unsupported` where such reads are not known.
pub fn read_now(fd: BorrowedFd<'_>, offset: u64, len: usize, out: &mut Vec<u8>) -> io::Result<usize> {
    out.reserve(len);
    let start = out.len();
    let room = &mut out.spare_capacity_mut()[..len];
    let at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let part = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: preadv2 writes at most iov_len bytes into `room`.
    let n = unsafe { libc::preadv2(fd.as_raw_fd(), &raw const part, 1, at, libc::RWF_NOWAIT) };
    let Ok(n) = usize::try_from(n) else {
        let e = io::Error::last_os_error();
        let unsupported = e.raw_os_error() == Some(libc::EOPNOTSUPP);
        return Err(if unsupported { io::ErrorKind::Unsupported.into() } else { e });
    };
    // SAFETY: the kernel has written `n` bytes behind `start`.
    unsafe { out.set_len(start + n) };
    Ok(n)
}

/// Has the kernel read a part of the file into memory. It may wait for the disk.
pub fn read_ahead(fd: BorrowedFd<'_>, offset: u64, len: usize) {
    // SAFETY: it takes numbers only. Where it fails, reading is slower.
    unsafe { libc::readahead(fd.as_raw_fd(), offset.cast_signed(), len) };
}

/// Appends up to `len` bytes from `offset` to `out`; returns how many there were (fewer only at the end of the file).
pub fn read_at(fd: BorrowedFd<'_>, offset: u64, len: usize, out: &mut Vec<u8>) -> io::Result<usize> {
    let start = out.len();
    let mut done = 0;
    out.reserve(len);
    while done < len {
        let room = &mut out.spare_capacity_mut()[..len - done];
        let at = libc::off_t::try_from(offset + done as u64).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: pread writes at most room.len() bytes into `room`.
        let n = unsafe { libc::pread(fd.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), at) };
        match usize::try_from(n) {
            Ok(0) => break,
            Ok(n) => {
                done += n;
                // SAFETY: the kernel has written `done` bytes behind `start`.
                unsafe { out.set_len(start + done) };
            }
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(e);
                }
            }
        }
    }
    Ok(done)
}

/// A new directory that only this process's user can enter: where `TMPDIR` says, else in /tmp. Its path is short enough
/// for a socket in it (unix(7)). Errors: those of mkdir(2).
pub fn private_directory(prefix: &str) -> io::Result<PathBuf> {
    /// What a socket's path leaves for the directory.
    const MOST: usize = 60;
    let place = std::env::temp_dir();
    let place = if place.as_os_str().len() <= MOST { place } else { PathBuf::from("/tmp") };
    let template = place.join(format!("{prefix}XXXXXX"));
    let mut path = CString::new(template.into_os_string().into_vec())?.into_bytes_with_nul();
    // SAFETY: a string that ends, with six X in front of that, which mkdtemp overwrites in place.
    if unsafe { libc::mkdtemp(path.as_mut_ptr().cast()) }.is_null() {
        return Err(io::Error::last_os_error());
    }
    path.pop();
    Ok(PathBuf::from(OsString::from_vec(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use std::os::fd::AsFd;

    fn sample() -> (std::path::PathBuf, std::fs::File) {
        let path = std::env::temp_dir().join(format!(
            "mod_pool-file-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let mut file = std::fs::File::create(&path).expect("temporary file");
        file.write_all(b"0123456789").expect("write");
        (path, file)
    }

    #[test]
    fn only_files_opened_for_reading_pass() {
        let (path, writable) = sample();
        assert_eq!(plain(writable.as_fd()).map(|p| p.size), None);
        let directory = std::fs::File::open("/").expect("root directory");
        assert_eq!(plain(directory.as_fd()).map(|p| p.size), None);
        let proc = std::fs::File::open("/proc/self/stat").expect("proc is mounted");
        assert_eq!(plain(proc.as_fd()).map(|p| p.size), None);
        let good = std::fs::File::open(&path).expect("open");
        assert_eq!(plain(good.as_fd()).map(|p| p.size), Some(10));
        // SAFETY: F_SETFL takes a number.
        unsafe { libc::fcntl(good.as_raw_fd(), libc::F_SETFL, libc::O_DIRECT) };
        assert_eq!(plain(good.as_fd()).map(|p| p.size), None);
        std::fs::remove_file(path).expect("remove");
    }

    #[test]
    fn memory_files_pass_when_opened_for_reading() {
        // SAFETY: a static string; the new descriptor is ours.
        let memory =
            unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(libc::memfd_create(c"x".as_ptr(), 0)) };
        assert_eq!(plain(memory.as_fd()).map(|p| p.size), None);
        let again = std::fs::File::open(format!("/proc/self/fd/{}", memory.as_raw_fd())).expect("open");
        assert_eq!(plain(again.as_fd()).map(|p| (p.size, p.reads)), Some((0, Reads::Apart)));
    }

    #[test]
    fn reading_leaves_the_offset_alone() {
        let (path, writable) = sample();
        drop(writable);
        let mut file = std::fs::File::open(&path).expect("open");
        let mut out = b"x".to_vec();
        assert_eq!(read_at(file.as_fd(), 3, 4, &mut out).expect("read"), 4);
        assert_eq!(out, b"x3456");
        assert_eq!(read_at(file.as_fd(), 8, 9, &mut out).expect("read"), 2);
        assert_eq!(out, b"x345689");
        assert_eq!(file.stream_position().expect("position"), 0);
        std::fs::remove_file(path).expect("remove");
    }
}
