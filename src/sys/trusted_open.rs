//! Opening a file for strangers, out of a directory that a tenant writes.
//!
//! Runs in: frontend.  Trusts: the kernel.  Owns: nothing.
//! Never: follows a symbolic link of one user to a file of another; waits for the other end of a FIFO.

use nix::errno::Errno;
use nix::fcntl::{open, openat, openat2, readlinkat, OFlag, OpenHow, ResolveFlag, AT_FDCWD};
use nix::sys::stat::{fstat, FileStat, Mode, SFlag};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// As the kernel's own limit (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Opens a regular file for reading. Symbolic links on the way are followed where each belongs to root or to the owner of
/// the file that is reached; what is compared is what gets opened, whatever is renamed meanwhile.
///
/// EPERM for another link, EINVAL for what is no regular file, else the error of openat(2).
pub fn open_trusted(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(AT_FDCWD, path, how) {
        Ok(file) => {
            regular(&fstat(&file)?)?;
            Ok(file)
        }
        // A link, or a kernel or filter without this call.
        Err(Errno::ELOOP | Errno::ENOSYS | Errno::EPERM) => walk(path, flags),
        Err(e) => Err(e.into()),
    }
}

fn walk(path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let by_path = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = || open("/", by_path | OFlag::O_DIRECTORY, Mode::empty());
    let mut directory = root()?;
    let mut owners = Vec::new();
    let mut todo = names(path.as_os_str());
    while let Some(name) = todo.pop() {
        if name == ".." {
            directory = openat(&directory, "..", by_path | OFlag::O_DIRECTORY, Mode::empty())?;
            continue;
        }
        let next = openat(&directory, name.as_os_str(), by_path | OFlag::O_NOFOLLOW, Mode::empty())?;
        let stat = fstat(&next)?;
        if kind(&stat) == SFlag::S_IFLNK {
            owners.push(stat.st_uid);
            if owners.len() > MOST_LINKS {
                return Err(Errno::ELOOP.into());
            }
            let target = readlinkat(&next, "")?;
            if target.as_bytes().starts_with(b"/") {
                directory = root()?;
            }
            todo.append(&mut names(&target));
        } else if todo.is_empty() {
            regular(&stat)?;
            if owners.iter().any(|owner| *owner != 0 && *owner != stat.st_uid) {
                return Err(Errno::EPERM.into());
            }
            return Ok(open(format!("/proc/self/fd/{}", next.as_raw_fd()).as_str(), flags, Mode::empty())?);
        } else {
            directory = next;
        }
    }
    Err(Errno::EINVAL.into())
}

/// The names of a path, the first one last.
fn names(path: &OsStr) -> Vec<OsString> {
    let parts = path.as_bytes().split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
    let mut names: Vec<OsString> = parts.map(|part| OsStr::from_bytes(part).to_owned()).collect();
    names.reverse();
    names
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn regular(stat: &FileStat) -> io::Result<()> {
    if kind(stat) == SFlag::S_IFREG {
        Ok(())
    } else {
        Err(Errno::EINVAL.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    fn text(path: &Path) -> io::Result<String> {
        let mut text = String::new();
        fs::File::from(open_trusted(path)?).read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn links_count_by_their_owners() {
        let root = std::env::temp_dir().join(format!("mod_pool-open-{}", std::process::id()));
        fs::create_dir_all(root.join("d/e")).expect("a directory of our own");
        fs::write(root.join("d/e/file"), "text").expect("writable");
        symlink("d/../d/e/file", root.join("relative")).expect("writable");
        symlink(root.join("d"), root.join("absolute")).expect("writable");
        symlink("loop", root.join("loop")).expect("writable");
        symlink("/etc/hostname-that-is-not-there", root.join("dangling")).expect("writable");
        for path in ["d/e/file", "relative", "absolute/e/file", "./d//e/../e/file"] {
            assert_eq!(text(&root.join(path)).expect(path), "text");
        }
        let code = |path: &str| text(&root.join(path)).expect_err(path).raw_os_error();
        assert_eq!(code("loop"), Some(libc::ELOOP));
        assert_eq!(code("dangling"), Some(libc::ENOENT));
        assert_eq!(code("d"), Some(libc::EINVAL));
        assert_eq!(code("d/e/file/x"), Some(libc::ENOTDIR));
        // Only root can give a link away.
        if std::os::unix::fs::lchown(root.join("relative"), Some(12345), None).is_ok() {
            assert_eq!(code("relative"), Some(libc::EPERM));
            std::os::unix::fs::chown(root.join("d/e/file"), Some(12345), None).expect("as root");
            assert_eq!(text(&root.join("relative")).expect("its own file"), "text");
            std::os::unix::fs::lchown(root.join("absolute"), Some(54321), None).expect("as root");
            assert_eq!(code("absolute/e/file"), Some(libc::EPERM));
        }
        fs::remove_dir_all(root).expect("ours");
    }
}
