//! What of this process's memory others may have in common with it (proc(5), /proc/PID/smaps).
//!
//! Runs in: seed.  Trusts: the kernel.  Owns: nothing.  Never: changes a mapping.

use std::fs;
use std::io;

/// A shared mapping that is writable, or that mprotect(2) makes so, as its file was opened for writing: the line that
/// names it.
pub fn writable_shared_mapping() -> io::Result<Option<String>> {
    // Names of files may have any bytes in them; the kernel escapes line feeds.
    Ok(find(&String::from_utf8_lossy(&fs::read("/proc/self/smaps")?)).map(str::to_owned))
}

/// The flag `sh` is the kernel's VM_SHARED, which a mapping of a file that is open for reading only has not.
fn find(smaps: &str) -> Option<&str> {
    let mut mapping = "";
    for line in smaps.lines() {
        match line.strip_prefix("VmFlags:") {
            Some(flags) if flags.split_whitespace().any(|flag| flag == "sh") => return Some(mapping),
            Some(_) => {}
            // All other lines of a mapping but the first begin with a word and a colon.
            None if line.split_whitespace().next().is_some_and(|word| !word.ends_with(':')) => mapping = line,
            None => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    /// The line that is found while a page of this file is mapped so.
    fn found_with(file: &fs::File, protection: libc::c_int, flags: libc::c_int) -> Option<String> {
        // SAFETY: a new mapping, of which nothing is read or written.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, file.as_raw_fd(), 0) };
        assert_ne!(page, libc::MAP_FAILED);
        let found = writable_shared_mapping().expect("smaps");
        // SAFETY: the mapping made above.
        unsafe { libc::munmap(page, 4096) };
        found
    }

    #[test]
    fn what_can_be_made_writable_counts() {
        let path = std::env::temp_dir().join(format!("mod_pool-memory-{}", std::process::id()));
        fs::write(&path, [0; 4096]).expect("write");
        let both = fs::File::options().read(true).write(true).open(&path).expect("open");
        let reading = fs::File::open(&path).expect("open");
        fs::remove_file(&path).expect("remove");
        let name = path.to_str().expect("a plain path");
        for protection in [libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ, libc::PROT_NONE] {
            let line = found_with(&both, protection, libc::MAP_SHARED).expect("found");
            assert!(line.contains(name), "{line}");
            assert_eq!(found_with(&both, protection, libc::MAP_PRIVATE), None);
        }
        assert_eq!(found_with(&reading, libc::PROT_READ, libc::MAP_SHARED), None);
    }
}
