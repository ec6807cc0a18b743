//! Numbers that several processes have in common.
//!
//! Runs in: parent (made), frontend (used).  Trusts: the kernel.  Owns: a mapping that fork(2) shares and exec(2) drops.
//! Never: holds anything but numbers, each of which may have any value.

use nix::sys::mman::{mmap_anonymous, munmap, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::io;
use std::mem::size_of;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU64;

/// Such numbers, 0 at first. Children that are forked while this lives have them, too.
#[derive(Debug)]
pub struct SharedNumbers {
    at: NonNull<c_void>,
    count: usize,
}

// SAFETY: nothing but atomic numbers is reached through it, from any thread.
unsafe impl Send for SharedNumbers {}

/// Bytes of the mapping, which has some at least.
fn bytes(count: usize) -> NonZeroUsize {
    NonZeroUsize::MIN.saturating_add(count.saturating_mul(size_of::<AtomicU64>()))
}

impl SharedNumbers {
    pub fn new(count: usize) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel likes.
        let at = unsafe { mmap_anonymous(None, bytes(count), protection, MapFlags::MAP_SHARED) }?;
        Ok(Self { at, count })
    }

    /// The numbers, for as long as the process lives.
    pub fn for_good(self) -> &'static [AtomicU64] {
        let numbers = std::mem::ManuallyDrop::new(self);
        // SAFETY: the mapping begins at a page and has room for `count` numbers; all zero bytes are valid ones. It stays, as
        // the destructor does not run, and others reach it through such numbers only.
        unsafe { slice::from_raw_parts(numbers.at.as_ptr().cast(), numbers.count) }
    }
}

impl Drop for SharedNumbers {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; `for_good` gives no reference to one that is dropped.
        let _ = unsafe { munmap(self.at, bytes(self.count).get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::SharedNumbers;
    use std::sync::atomic::Ordering;

    #[test]
    fn threads_and_later_owners_see_the_same_numbers() {
        drop(SharedNumbers::new(0).expect("mmap"));
        let numbers = SharedNumbers::new(70_000).expect("mmap").for_good();
        assert_eq!(numbers.len(), 70_000);
        assert!(numbers.iter().all(|number| number.load(Ordering::Relaxed) == 0));
        std::thread::spawn(|| numbers[69_999].store(7, Ordering::Relaxed)).join().expect("no panic");
        assert_eq!(numbers[69_999].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn what_a_child_counts_is_seen_here() {
        let numbers = SharedNumbers::new(2).expect("mmap");
        // SAFETY: the child stores a number and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            numbers.for_good()[1].store(9, Ordering::Relaxed);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(numbers.for_good()[1].load(Ordering::Relaxed), 9);
    }
}
