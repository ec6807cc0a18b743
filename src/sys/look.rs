//! Whose a name in the file system is.
//!
//! Runs in: parent.  Trusts: the kernel.  Owns: nothing.
//! Never: follows a link, asks a file system that a user serves (FUSE).

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    Link,
    Other,
}

#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub uid: u32,
    pub gid: u32,
    /// The permission bits.
    pub mode: u32,
    pub kind: Kind,
}

/// What the kernel has of the name itself, without asking a file system again (`AT_STATX_DONT_SYNC`) and without
/// mounting anything.
pub fn look(path: &Path) -> io::Result<Look> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the name is NUL-terminated, the structure is ours.
    if unsafe { libc::statx(libc::AT_FDCWD, name.as_ptr(), flags, libc::STATX_BASIC_STATS, found.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled above; all zeroes are valid too.
    let found = unsafe { found.assume_init() };
    let mode = u32::from(found.stx_mode);
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFLNK => Kind::Link,
        _ => Kind::Other,
    };
    Ok(Look { uid: found.stx_uid, gid: found.stx_gid, mode: mode & 0o7777, kind })
}
