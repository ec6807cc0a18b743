//! What of this process's memory others may have in common with it (proc(5), /proc/PID/smaps).
//!
//! Runs in: seed, while it has one thread.  Trusts: the kernel.  Owns: nothing.
//! Never: leaves a mapping without what was in it.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr;

/// A shared mapping that is writable, or that mprotect(2) makes so, as its file was opened for writing.
#[derive(Debug, PartialEq, Eq)]
struct Shared<'a> {
    /// The line that names it.
    line: &'a str,
    start: usize,
    len: usize,
    protection: libc::c_int,
}

/// Puts memory of this process's own in the place of each writable shared mapping, with the same content: what is forked
/// from here on has its own copy. An error names the mapping for which that is not possible.
pub fn make_private() -> Result<(), String> {
    // Names of files may have any bytes in them; the kernel escapes line feeds.
    let smaps = || fs::read("/proc/self/smaps").map(|text| String::from_utf8_lossy(&text).into_owned());
    let unreadable = |e: io::Error| format!("/proc/self/smaps: {e}");
    let text = smaps().map_err(unreadable)?;
    for shared in find(&text) {
        shared.replace().map_err(|e| format!("{}: {e}", shared.line))?;
    }
    let left = smaps().map_err(unreadable)?;
    find(&left).first().map_or(Ok(()), |shared| Err(shared.line.to_owned()))
}

impl Shared<'_> {
    /// Read by the kernel: a page behind the end of its file is an error and no signal, and a protection does not matter.
    fn replace(&self) -> io::Result<()> {
        const BLOCK: usize = 4096;
        let memory = fs::File::open("/proc/self/mem")?;
        let (anonymous, writable) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let copy = unsafe { libc::mmap(ptr::null_mut(), self.len, writable, anonymous, -1, 0) };
        if copy == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut block = [0; BLOCK];
        for at in (0..self.len).step_by(BLOCK) {
            let read = memory.read_exact_at(&mut block, (self.start + at) as u64);
            if let Err(e) = read {
                // SAFETY: the mapping made above, of which nobody else knows.
                unsafe { libc::munmap(copy, self.len) };
                return Err(e);
            }
            // What was never written costs no memory.
            if block != [0; BLOCK] {
                // SAFETY: mappings are whole pages, so the block lies within the one made above.
                unsafe { ptr::copy_nonoverlapping(block.as_ptr(), copy.cast::<u8>().add(at), BLOCK) };
            }
        }
        // SAFETY: the copy takes the place of a mapping of the same length and content, whose addresses stay good; this
        // process has one thread, so nobody writes meanwhile.
        unsafe {
            let place = self.start as *mut libc::c_void;
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            if libc::mprotect(copy, self.len, self.protection) < 0
                || libc::mremap(copy, self.len, self.len, flags, place) == libc::MAP_FAILED
            {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// The flag `sh` is the kernel's VM_SHARED, which a mapping of a file that is open for reading only has not.
fn find(smaps: &str) -> Vec<Shared<'_>> {
    let mut found = Vec::new();
    let mut mapping = "";
    for line in smaps.lines() {
        match line.strip_prefix("VmFlags:") {
            Some(flags) if flags.split_whitespace().any(|flag| flag == "sh") => found.extend(parse(mapping)),
            Some(_) => {}
            // All other lines of a mapping but the first begin with a word and a colon.
            None if line.split_whitespace().next().is_some_and(|word| !word.ends_with(':')) => mapping = line,
            None => {}
        }
    }
    found
}

/// `start-end rwxs ...`
fn parse(line: &str) -> Option<Shared<'_>> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let allowed = words.next()?.as_bytes();
    let flags = [(b'r', libc::PROT_READ), (b'w', libc::PROT_WRITE), (b'x', libc::PROT_EXEC)];
    let protection = flags.iter().filter(|(letter, _)| allowed.contains(letter)).fold(0, |all, (_, flag)| all | flag);
    Some(Shared { line, start, len: end.checked_sub(start)?, protection })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    const PAGE: usize = 4096;

    fn smaps() -> String {
        String::from_utf8_lossy(&fs::read("/proc/self/smaps").expect("smaps")).into_owned()
    }

    fn map(file: &fs::File, protection: libc::c_int, flags: libc::c_int) -> *mut u8 {
        // SAFETY: a new mapping.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, protection, flags, file.as_raw_fd(), 0) };
        assert_ne!(page, libc::MAP_FAILED);
        page.cast()
    }

    fn unmap(page: *mut u8) {
        // SAFETY: a mapping made by `map`.
        unsafe { libc::munmap(page.cast(), PAGE) };
    }

    /// A file of one page, without a name: for reading and writing, and for reading.
    fn files(name: &str) -> (fs::File, fs::File) {
        let path = std::env::temp_dir().join(format!("mod_pool-memory-{name}-{}", std::process::id()));
        fs::write(&path, [7; PAGE]).expect("write");
        let both = fs::File::options().read(true).write(true).open(&path).expect("open");
        let reading = fs::File::open(&path).expect("open");
        fs::remove_file(&path).expect("remove");
        (both, reading)
    }

    #[test]
    fn what_can_be_made_writable_counts() {
        let (both, reading) = files("find");
        let found_with = |file, protection, flags| {
            let page = map(file, protection, flags);
            let text = smaps();
            let found = find(&text).iter().any(|shared| shared.start == page.addr() && shared.protection == protection);
            unmap(page);
            found
        };
        for protection in [libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ, libc::PROT_NONE] {
            assert!(found_with(&both, protection, libc::MAP_SHARED));
            assert!(!found_with(&both, protection, libc::MAP_PRIVATE));
        }
        assert!(!found_with(&reading, libc::PROT_READ, libc::MAP_SHARED));
    }

    #[test]
    fn a_copy_takes_the_place_of_what_is_shared() {
        let (both, _) = files("replace");
        let page = map(&both, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let text = smaps();
        let shared = find(&text).into_iter().find(|shared| shared.start == page.addr()).expect("found");
        shared.replace().expect("replaced");
        assert!(!find(&smaps()).iter().any(|shared| shared.start == page.addr()));
        // SAFETY: a live mapping of one page.
        unsafe {
            assert_eq!(page.add(PAGE - 1).read(), 7);
            page.write(8);
        }
        let mut first = [0];
        both.read_exact_at(&mut first, 0).expect("read");
        assert_eq!(first, [7]);
        unmap(page);
    }

    #[test]
    fn what_cannot_be_read_is_left() {
        let (both, _) = files("short");
        let page = map(&both, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        both.set_len(0).expect("truncated");
        let text = smaps();
        let shared = find(&text).into_iter().find(|shared| shared.start == page.addr()).expect("found");
        shared.replace().expect_err("no page");
        assert!(find(&smaps()).iter().any(|shared| shared.start == page.addr()));
        unmap(page);
    }
}
