//! Directories that root makes for a pool's own use, where nobody else could have put something else in their place.
//!
//! Runs in: zygote, before its user changes; wherever the configuration is checked.  Trusts: directories that only root
//! can change.  Owns: nothing.
//! Never: follows a link that another user may have made, opens a directory that a pool's user owns.
#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::fcntl::{openat, readlinkat, renameat2, OFlag, RenameFlags};
use nix::sys::stat::{fchmod, fstat, fstatat, mkdirat, FileStat, Mode, SFlag};
use nix::unistd::{fchown, unlinkat, Gid, Uid, UnlinkatFlags};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

/// Most links on the way, as in the kernel.
const MOST_LINKS: usize = 40;
/// Of a directory in which pools have theirs: others go through it and do not look around.
const PASSAGE: Mode = Mode::from_bits_truncate(0o711);

/// Whose a directory of [`make`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The path of the directory `leaf` that [`make`] makes for these.
pub fn path(base: &Path, pool: &str, uid: u32, leaf: &str) -> PathBuf {
    base.join(of_pool(pool, uid)).join(leaf)
}

/// A pool that gets another user gets another directory: what was in the old one is not its own.
fn of_pool(pool: &str, uid: u32) -> String {
    format!("{pool}.{uid}")
}

/// Makes the directories `leaves` of a pool below `base`, which it makes too if it is missing (not what is above it). The
/// last ones are the pool's, mode 0700; all others are root's, and nobody else could put another directory in their place.
/// What is there already stays. Errors: a component is missing, is no directory, or can be changed by others than root.
pub fn make(base: &Path, pool: &str, owner: Owner, leaves: &[&str]) -> io::Result<()> {
    let name = base.file_name().ok_or_else(|| refused(base, "is not the path of a directory"))?;
    let above = trusted(base.parent().unwrap_or(Path::new("/")))?;
    let here = passage(&above, name, base)?;
    let own = base.join(of_pool(pool, owner.uid));
    let here = passage(&here, own.file_name().unwrap_or_default(), &own)?;
    for leaf in leaves {
        make_leaf(&here, leaf, owner).map_err(|e| at(&own.join(leaf), e))?;
    }
    Ok(())
}

/// Whether [`make`] can trust what is there of `base`.
pub fn check(base: &Path) -> io::Result<()> {
    let above = trusted(base.parent().unwrap_or(Path::new("/")))?;
    match base.file_name().map(|name| open(&above, name)) {
        Some(Ok(directory)) => trust(&directory, base).map(drop),
        Some(Err(Errno::ENOENT)) => Ok(()),
        Some(Err(e)) => Err(at(base, e)),
        None => Err(refused(base, "is not the path of a directory")),
    }
}

fn refused(path: &Path, what: &str) -> io::Error {
    io::Error::other(format!("{} {what}", path.display()))
}

fn at(path: &Path, e: Errno) -> io::Error {
    io::Error::other(format!("{}: {}", path.display(), io::Error::from(e)))
}

fn open(directory: &OwnedFd, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

/// Fails unless only root can change what is in this directory: it is root's, and not open for writing to others, or
/// sticky: there nobody can take away what is root's.
fn trust(directory: &OwnedFd, path: &Path) -> io::Result<FileStat> {
    let stat = fstat(directory).map_err(|e| at(path, e))?;
    if stat.st_uid != 0 {
        return Err(refused(path, &format!("belongs to uid {}, not to root", stat.st_uid)));
    }
    if is_open_to_others(&stat) && !is_sticky(&stat) {
        return Err(refused(path, "can be written by others than root"));
    }
    Ok(stat)
}

fn is_open_to_others(stat: &FileStat) -> bool {
    stat.st_mode & 0o022 != 0
}

fn is_sticky(stat: &FileStat) -> bool {
    stat.st_mode & 0o1000 != 0
}

/// Opens a directory all the way to which only root could have changed anything.
fn trusted(path: &Path) -> io::Result<OwnedFd> {
    let root = || -> io::Result<(OwnedFd, FileStat)> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open("/", flags, Mode::empty())?;
        let stat = trust(&root, Path::new("/"))?;
        Ok((root, stat))
    };
    let (mut here, mut stat) = root()?;
    let mut way = PathBuf::from("/");
    // The next one last.
    let mut todo = names(path);
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            return Err(refused(path, "has .. in it, or in a link"));
        }
        let next = way.join(&name);
        match open(&here, &name) {
            Ok(directory) => {
                stat = trust(&directory, &next)?;
                (here, way) = (directory, next);
            }
            // Which one it is for a link depends on the kernel.
            Err(e @ (Errno::ENOTDIR | Errno::ELOOP)) => {
                let found = fstatat(&here, name.as_os_str(), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
                    .map_err(|e| at(&next, e))?;
                let is_link = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK;
                links += 1;
                if !is_link || links > MOST_LINKS {
                    return Err(at(&next, e));
                }
                // In a sticky directory it could be another one's link to root's own.
                if found.st_uid != 0 || is_open_to_others(&stat) {
                    return Err(refused(&next, "is a link that others than root can have made"));
                }
                let target = PathBuf::from(readlinkat(&here, name.as_os_str()).map_err(|e| at(&next, e))?);
                if target.is_absolute() {
                    (here, stat) = root()?;
                    way = PathBuf::from("/");
                }
                todo.extend(names(&target));
            }
            Err(e) => return Err(at(&next, e)),
        }
    }
    Ok(here)
}

/// The components of a path, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().rev().filter_map(name).collect()
}

/// A directory of root's that others can go through, made if it is missing.
fn passage(directory: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<OwnedFd> {
    let made = match mkdirat(directory, name, PASSAGE) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(e) => return Err(at(path, e)),
    };
    let opened = open(directory, name).map_err(|e| at(path, e))?;
    let stat = trust(&opened, path)?;
    // The file mode mask is whatever httpd's is. What an administrator has chosen stays, but for the way through.
    let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
    let wanted = if made { PASSAGE } else { mode | Mode::S_IXUSR | Mode::S_IXGRP | Mode::S_IXOTH };
    if mode != wanted {
        fchmod(&opened, wanted).map_err(|e| at(path, e))?;
    }
    Ok(opened)
}

/// Under another name first: who finds it finds it complete. One that is there is not even looked at: its owner could have
/// mounted a file system of his own on it.
fn make_leaf(directory: &OwnedFd, leaf: &str, owner: Owner) -> nix::Result<()> {
    let new = format!("{leaf}.new.{}", std::process::id());
    let new = new.as_str();
    match mkdirat(directory, new, Mode::S_IRWXU) {
        // Of a process with this number that was killed.
        Err(Errno::EEXIST) => {}
        other => other?,
    }
    let opened = open(directory, OsStr::new(new))?;
    fchmod(&opened, Mode::S_IRWXU)?;
    fchown(&opened, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    match renameat2(directory, new, directory, leaf, RenameFlags::RENAME_NOREPLACE) {
        Err(Errno::EEXIST) => unlinkat(directory, new, UnlinkatFlags::RemoveDir),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{chown, symlink, MetadataExt, PermissionsExt};

    const OWNER: Owner = Owner { uid: 65_533, gid: 65_532 };

    /// A directory of root's in a sticky one, or `None` without root.
    fn ground(name: &str) -> Option<PathBuf> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let ground = PathBuf::from(format!("/tmp/mod_pool-place-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&ground);
        fs::create_dir(&ground).expect("mkdir");
        fs::set_permissions(&ground, fs::Permissions::from_mode(0o755)).expect("chmod");
        Some(ground)
    }

    fn seen(path: &Path) -> (u32, u32, u32) {
        let found = fs::symlink_metadata(path).expect("it is there");
        (found.uid(), found.gid(), found.mode() & 0o7777)
    }

    #[test]
    fn the_last_one_is_the_pools_and_all_above_it_are_roots() {
        let Some(ground) = ground("made") else { return };
        let base = ground.join("mod_pool");
        check(&base).expect("may be made");
        for _ in 0..2 {
            make(&base, "alice", OWNER, &["one", "two"]).expect("made");
        }
        check(&base).expect("trusted");
        for leaf in ["one", "two"] {
            assert_eq!(seen(&path(&base, "alice", OWNER.uid, leaf)), (OWNER.uid, OWNER.gid, 0o700));
        }
        assert_eq!(seen(&base), (0, 0, 0o711));
        assert_eq!(seen(&base.join("alice.65533")), (0, 0, 0o711));
        assert_eq!(fs::read_dir(base.join("alice.65533")).expect("read").count(), 2, "nothing else is left");
        // What is there stays, whatever its owner has made of it.
        let one = path(&base, "alice", OWNER.uid, "one");
        fs::write(one.join("file"), "x").expect("write");
        fs::set_permissions(&one, fs::Permissions::from_mode(0o755)).expect("chmod");
        make(&base, "alice", OWNER, &["one"]).expect("again");
        assert!(one.join("file").exists() && seen(&one).2 == 0o755);
        // Another user finds nothing of that.
        make(&base, "alice", Owner { uid: 65_531, gid: 65_531 }, &["one"]).expect("made");
        assert_eq!(fs::read_dir(path(&base, "alice", 65_531, "one")).expect("read").count(), 0);
        fs::remove_dir_all(ground).expect("remove");
    }

    #[test]
    fn nothing_is_made_where_others_could_change_it() {
        let Some(ground) = ground("refused") else { return };
        let refused = |base: &Path, why: &str| {
            let made = make(base, "alice", OWNER, &["one"]).expect_err("refused").to_string();
            assert!(made.contains(why), "{made}");
            let checked = check(base).expect_err("refused").to_string();
            assert_eq!(checked, made);
        };
        let inner = ground.join("inner");
        fs::create_dir(&inner).expect("mkdir");
        let base = inner.join("mod_pool");
        for mode in [0o777, 0o775, 0o2775] {
            fs::set_permissions(&inner, fs::Permissions::from_mode(mode)).expect("chmod");
            refused(&base, "inner can be written by others than root");
        }
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o1777)).expect("chmod");
        make(&base, "alice", OWNER, &["one"]).expect("sticky");
        fs::remove_dir_all(&base).expect("remove");
        // Put there by somebody else.
        fs::create_dir(&base).expect("mkdir");
        chown(&base, Some(65_533), None).expect("chown");
        refused(&base, "mod_pool belongs to uid 65533, not to root");
        fs::remove_dir(&base).expect("remove");
        symlink("/etc", &base).expect("link");
        assert!(make(&base, "alice", OWNER, &["one"]).is_err() && check(&base).is_err());
        assert!(!Path::new("/etc/alice.65533").exists());
        // Of root's directory it is root's link, and of a sticky one it could be anybody's.
        let linked = inner.join("linked");
        symlink(&ground, &linked).expect("link");
        refused(&linked.join("mod_pool"), "linked is a link that others than root can have made");
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).expect("chmod");
        make(&linked.join("by_link"), "alice", OWNER, &["one"]).expect("a link of root's");
        assert!(ground.join("by_link/alice.65533/one").is_dir());
        std::os::unix::fs::lchown(&linked, Some(65_533), None).expect("chown");
        refused(&linked.join("mod_pool"), "linked is a link that others than root can have made");
        chown(&inner, Some(65_533), None).expect("chown");
        refused(&inner.join("other"), "inner belongs to uid 65533, not to root");
        refused(&ground.join("missing/mod_pool"), "missing: No such file or directory");
        refused(&ground.join("missing/../mod_pool"), "No such file or directory");
        fs::remove_dir_all(ground).expect("remove");
    }
}
