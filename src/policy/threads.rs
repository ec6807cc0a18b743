//! How long threads have been with requests of which pool: no pool may hold all threads of a frontend.
//!
//! Runs in: frontend, request threads.  Trusts: nothing.  Owns: one entry for each thread that has served a pool.
//! Never: reads a clock; takes a lock in a request's way, but where a pool holds many threads.

use super::Millis;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A thread counts once it has been with a request for so long.
const LONG: Millis = 1_000;
/// Bits of an entry for the time; the pool's index, from 1, is above them. 0 is an idle thread.
const TIME_BITS: u32 = 40;
const TIME: u64 = (1 << TIME_BITS) - 1;

/// All threads of this process that serve requests of pools.
#[derive(Debug)]
pub struct Threads {
    entries: Mutex<Vec<Weak<AtomicU64>>>,
    /// Threads with a request, by pool.
    counts: Vec<AtomicU32>,
}

/// What one thread does now.
pub type Entry = Arc<AtomicU64>;

/// The calling thread is with a request as long as this lives.
#[derive(Debug)]
pub struct Serving<'t> {
    count: Option<&'t AtomicU32>,
    entry: Entry,
    before: u64,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.entry.store(self.before, Ordering::Relaxed);
        if let Some(count) = self.count {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Threads {
    pub fn new(pools: usize) -> Self {
        Self { entries: Mutex::default(), counts: (0..pools).map(|_| AtomicU32::new(0)).collect() }
    }

    fn count(&self, pool: u32) -> Option<&AtomicU32> {
        self.counts.get(usize::try_from(pool).ok()?)
    }

    /// An entry for a thread, which keeps it for its life.
    pub fn enter(&self) -> Entry {
        let entry = Entry::default();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // Threads of HTTP/2 come and go.
        entries.retain(|other| other.strong_count() > 0);
        entries.push(Arc::downgrade(&entry));
        entry
    }

    /// The thread of this entry begins with a request, or goes on with one. A part of another request counts with that.
    pub fn serve(&self, entry: Entry, pool: u32, now: Millis) -> Serving<'_> {
        let before = entry.load(Ordering::Relaxed);
        let count = if before == 0 { self.count(pool) } else { None };
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
            entry.store((u64::from(pool) + 1) << TIME_BITS | (now & TIME), Ordering::Relaxed);
        }
        Serving { count, entry, before }
    }

    /// Whether so many threads have been with requests of this pool for long.
    pub fn are_held(&self, pool: u32, limit: u32, now: Millis) -> bool {
        if self.count(pool).is_none_or(|count| count.load(Ordering::Relaxed) < limit) {
            return false;
        }
        let held = |entry: &Weak<AtomicU64>| {
            let entry = entry.upgrade().map_or(0, |entry| entry.load(Ordering::Relaxed));
            entry >> TIME_BITS == u64::from(pool) + 1 && (entry & TIME) + LONG <= now & TIME
        };
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().filter(|entry| held(entry)).count() >= usize::try_from(limit).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_counts_when_it_was_held_for_long() {
        let threads = Threads::new(2);
        let serving = threads.serve(threads.enter(), 1, 500);
        assert!(!threads.are_held(1, 1, 1_499));
        assert!(threads.are_held(1, 1, 1_500));
        assert!(!threads.are_held(1, 2, 1_500));
        assert!(!threads.are_held(0, 1, 1_500), "another pool");
        let _other = threads.serve(threads.enter(), 1, 1_000);
        assert!(!threads.are_held(1, 2, 1_999));
        assert!(threads.are_held(1, 2, 2_000));
        drop(serving);
        assert!(!threads.are_held(1, 2, 2_000));
    }

    #[test]
    fn a_part_of_a_request_is_not_a_second_thread() {
        let threads = Threads::new(2);
        let entry = threads.enter();
        let whole = threads.serve(Arc::clone(&entry), 1, 0);
        let part = threads.serve(entry, 0, 0);
        assert!(threads.are_held(1, 1, 1_000));
        assert!(!threads.are_held(0, 1, 1_000));
        drop(part);
        assert!(threads.are_held(1, 1, 1_000));
        drop(whole);
        assert!(!threads.are_held(1, 1, 1_000));
    }

    #[test]
    fn threads_that_have_ended_are_forgotten() {
        let threads = Threads::new(1);
        for _ in 0..3 {
            drop(threads.serve(threads.enter(), 0, 0));
        }
        let _mine = threads.enter();
        assert_eq!(threads.entries.lock().expect("no panic").len(), 1);
    }
}
