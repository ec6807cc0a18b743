//! Files: which may travel to a frontend as a descriptor, and reads at a place of one's own.
//!
//! Runs in: worker, frontend.  Trusts: the kernel.  Owns: nothing.
//! Never: moves a file's own offset, which a passed descriptor shares with its receiver.

use std::ffi::{CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// File systems whose reads are answered by this machine's own kernel. A FUSE or network file system can keep a
/// reader waiting for as long as it likes, so a file there is read by the worker that names it.
const LOCAL_FILE_SYSTEMS: [u64; 8] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683E, // Btrfs
    0x0102_1994, // tmpfs
    0x794c_7630, // overlayfs
    0xF2F5_2010, // F2FS
    0x2FC1_2FC1, // ZFS
    0xca45_1a4e, // bcachefs
];

/// Size of a regular file that is open for reading only, on a local file system; `None` for every other descriptor.
pub fn passable_size(fd: BorrowedFd<'_>) -> Option<u64> {
    // SAFETY: F_GETFL takes no argument and touches no memory.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 || flags & libc::O_PATH != 0 || flags & libc::O_ACCMODE != libc::O_RDONLY {
        return None;
    }
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the structure when it returns 0.
    if unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled above.
    let stat = unsafe { stat.assume_init() };
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return None;
    }
    let mut system = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: fstatfs fills the structure when it returns 0.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), system.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled above.
    let system = unsafe { system.assume_init() };
    // The magic number is 32 bits wide, kept in a signed word.
    let magic = u64::try_from(system.f_type).unwrap_or(0) & 0xffff_ffff;
    if !LOCAL_FILE_SYSTEMS.contains(&magic) {
        return None;
    }
    u64::try_from(stat.st_size).ok()
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
        assert_eq!(passable_size(writable.as_fd()), None);
        let directory = std::fs::File::open("/").expect("root directory");
        assert_eq!(passable_size(directory.as_fd()), None);
        let proc = std::fs::File::open("/proc/self/stat").expect("proc is mounted");
        assert_eq!(passable_size(proc.as_fd()), None);
        std::fs::remove_file(path).expect("remove");
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
