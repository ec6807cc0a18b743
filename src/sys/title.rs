//! The process's title, as `ps` shows it.
//!
//! Runs in: controller, seed, zygote, worker (one thread each).  Trusts: /proc/self/stat.
//! Owns: the memory of the command line.  Never: makes a system call in `set`.

use once_cell::sync::OnceCell;
use std::fs;

/// Where the kernel shows the command line from: address and length.
static AREA: OnceCell<(usize, usize)> = OnceCell::new();

/// Finds the command line's memory. To be called once, before privileges are dropped, and only in a process that has
/// no more use for its arguments.
///
/// The process's short name, which an exec of /proc/self/exe has made `exe`, becomes `mod_pool`.
pub fn init() {
    // SAFETY: the kernel reads a NUL-terminated name of at most 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"mod_pool".as_ptr()) };
    AREA.get_or_init(|| find().unwrap_or((0, 0)));
}

/// Fields 48 and 49 of /proc/self/stat, arg_start and arg_end (proc(5)).
fn find() -> Option<(usize, usize)> {
    let stat = fs::read("/proc/self/stat").ok()?;
    // The name in parentheses may have any byte in it.
    let end = stat.iter().rposition(|b| *b == b')')?;
    let mut fields = std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_whitespace();
    let start: usize = fields.nth(45)?.parse().ok()?;
    let end: usize = fields.next()?.parse().ok()?;
    (start != 0 && end > start).then_some((start, end - start))
}

/// Shows `title`, cut to the length of the command line that the process was started with.
pub fn set(title: &str) {
    let Some(&(start, len)) = AREA.get() else { return };
    if len == 0 {
        return;
    }
    let place = std::ptr::with_exposed_provenance_mut::<u8>(start);
    let n = title.len().min(len - 1);
    // SAFETY: the kernel keeps the command line of this process in [start, start + len), on its stack, mapped and
    // writable for as long as it runs; nothing reads the arguments any more (contract of `init`), and one thread
    // writes here.
    unsafe {
        std::ptr::copy_nonoverlapping(title.as_ptr(), place, n);
        std::ptr::write_bytes(place.add(n), 0, len - n);
    }
}

/// Runs `body` under another title, which what it forks keeps.
pub fn during<T>(title: &str, body: impl FnOnce() -> T) -> T {
    let before = shown();
    set(title);
    let result = body();
    set(&before);
    result
}

fn shown() -> String {
    let Some(&(start, len)) = AREA.get().filter(|(_, len)| *len > 0) else { return String::new() };
    let place = std::ptr::with_exposed_provenance::<u8>(start);
    // SAFETY: as in `set`; the copy is made before anything writes again.
    let bytes = unsafe { std::slice::from_raw_parts(place, len) };
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(len);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_found() {
        let (start, len) = super::find().expect("proc is mounted");
        let cmdline = std::fs::read("/proc/self/cmdline").expect("proc is mounted");
        assert!(start > 0);
        assert_eq!(len, cmdline.len());
    }
}
