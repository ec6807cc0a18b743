//! How long threads have been with requests of which pool: no pool may hold all threads of a frontend.
//!
//! Runs in: frontend, request threads.  Trusts: nothing.  Owns: one entry for each thread that has served a pool.
//! Never: reads a clock; takes a lock in a request's way, but where a pool holds many threads.

use super::Millis;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A thread counts once it has been with a request for so long.
const LONG: Millis = 1_000;
/// Bits of an entry for the time; above them is [`STREAM_WAITS`], then the pool's index, from 1. 0 is an idle thread.
const TIME_BITS: u32 = 40;
const TIME: u64 = (1 << TIME_BITS) - 1;
/// A stream of HTTP/2 waits for a process.
const STREAM_WAITS: u64 = 1 << TIME_BITS;
const POOL_SHIFT: u32 = TIME_BITS + 1;

/// All threads of this process that serve requests of pools.
#[derive(Debug)]
pub struct Threads {
    entries: Mutex<Vec<Weak<AtomicU64>>>,
    pools: Vec<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    /// Threads with a request.
    threads: AtomicU32,
    /// How many requests that waited got a process; in all frontends, where they have that in common.
    moves: Moving,
}

impl Pool {
    /// Its queue moves: see [`Threads::are_held`].
    fn moves_for(&self, limit: u32, now: Millis) -> bool {
        let moves = Moves::of(self.moves.count().load(Ordering::Relaxed));
        moves.at(now).in_a_second() >= limit.div_ceil(2)
    }
}

#[derive(Debug)]
enum Moving {
    Here(AtomicU64),
    Everywhere(&'static AtomicU64),
}

impl Default for Moving {
    fn default() -> Self {
        Self::Here(AtomicU64::default())
    }
}

impl Moving {
    fn count(&self) -> &AtomicU64 {
        match self {
            Self::Here(count) => count,
            Self::Everywhere(count) => count,
        }
    }
}

/// What one thread does now.
pub type Entry = Arc<AtomicU64>;

/// The calling thread is with a request as long as this lives.
#[derive(Debug)]
pub struct Serving<'t> {
    /// Of the pool; none for a part of another request.
    pool: Option<(&'t Pool, u32)>,
    stream: bool,
    entry: Entry,
    before: u64,
}

impl Serving<'_> {
    /// Its request did not have to wait for a process.
    pub fn has_process(&self) {
        if self.pool.is_some() {
            self.entry.fetch_and(!STREAM_WAITS, Ordering::Relaxed);
        }
    }

    /// Its request has waited, and has a process from now on, its `first` one or another. A stream begins anew with that.
    pub fn gets_process(&self, first: bool, now: Millis) {
        let Some((pool, index)) = self.pool.filter(|_| first) else { return };
        if self.stream {
            if self.entry.load(Ordering::Relaxed) & STREAM_WAITS == 0 {
                return;
            }
            self.entry.store(entry(index, 0, now), Ordering::Relaxed);
        }
        let more = |moves| Some(Moves::of(moves).at(now).one_more().packed());
        let _ = pool.moves.count().fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.entry.store(self.before, Ordering::Relaxed);
        if let Some((pool, _)) = self.pool {
            pool.threads.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn entry(pool: u32, waits: u64, now: Millis) -> u64 {
    (u64::from(pool) + 1) << POOL_SHIFT | waits | (now & TIME)
}

/// How often something happened in a second, and in the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moves {
    second: u32,
    now: u16,
    before: u16,
}

impl Moves {
    fn of(packed: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = packed.to_be_bytes();
        Self {
            second: u32::from_be_bytes([a, b, c, d]),
            now: u16::from_be_bytes([e, f]),
            before: u16::from_be_bytes([g, h]),
        }
    }

    fn packed(self) -> u64 {
        u64::from(self.second) << 32 | u64::from(self.now) << 16 | u64::from(self.before)
    }

    /// The same, told at another time.
    fn at(self, now: Millis) -> Self {
        // It goes round after 136 years.
        let second = u32::try_from((now / 1_000) & u64::from(u32::MAX)).unwrap_or_default();
        match second.wrapping_sub(self.second) {
            // Another process may have looked at the clock later and counted sooner.
            0 | u32::MAX => self,
            1 => Self { second, now: 0, before: self.now },
            _ => Self { second, now: 0, before: 0 },
        }
    }

    fn one_more(self) -> Self {
        Self { now: self.now.saturating_add(1), ..self }
    }

    fn in_a_second(self) -> u32 {
        self.now.max(self.before).into()
    }
}

impl Threads {
    /// For so many pools. `moves` are their numbers in memory that all frontends have in common; a pool without one counts
    /// for itself.
    pub fn new(pools: usize, moves: &'static [AtomicU64]) -> Self {
        let pool = |index| Pool {
            threads: AtomicU32::default(),
            moves: moves.get(index).map_or_else(Moving::default, Moving::Everywhere),
        };
        Self { entries: Mutex::default(), pools: (0..pools).map(pool).collect() }
    }

    fn pool(&self, index: u32) -> Option<&Pool> {
        self.pools.get(usize::try_from(index).ok()?)
    }

    /// Whether a thread is to give its request up, which only waits for a process: more than `limit` are held by its pool,
    /// and `needed` says that others need it. It does not count any more then, so that no more give up than have to. A
    /// stream's thread is none of the MPM's.
    pub fn is_one_too_many(
        &self,
        serving: &Serving<'_>,
        limit: u32,
        now: Millis,
        needed: impl FnOnce() -> bool,
    ) -> bool {
        let Some((of_pool, index)) = serving.pool.filter(|_| !serving.stream) else { return false };
        if of_pool.threads.load(Ordering::Relaxed) <= limit {
            return false;
        }
        let moves = of_pool.moves_for(limit, now);
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let too_many = held(&entries, index, moves, now) > usize::try_from(limit).unwrap_or(usize::MAX) && needed();
        if too_many {
            serving.entry.store(entry(index, 0, now), Ordering::Relaxed);
        }
        too_many
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

    /// The thread of this entry begins with a request, which is a `stream` of HTTP/2 or not, or goes on with one. A part of
    /// another request counts with that.
    pub fn serve(&self, own: Entry, index: u32, stream: bool, now: Millis) -> Serving<'_> {
        let before = own.load(Ordering::Relaxed);
        let pool = if before == 0 { self.pool(index) } else { None };
        if let Some(pool) = pool {
            pool.threads.fetch_add(1, Ordering::Relaxed);
            own.store(entry(index, if stream { STREAM_WAITS } else { 0 }, now), Ordering::Relaxed);
        }
        Serving { pool: pool.zip(Some(index)), stream, entry: own, before }
    }

    /// Whether so many threads have been with requests of this pool for long. That of a stream in the queue does not count
    /// while the queue moves: while, in a second, half as many requests that waited get a process, in whichever frontend.
    /// It is none of the MPM's.
    pub fn are_held(&self, pool: u32, limit: u32, now: Millis) -> bool {
        let Some(of_pool) = self.pool(pool) else { return false };
        if of_pool.threads.load(Ordering::Relaxed) < limit {
            return false;
        }
        let moves = of_pool.moves_for(limit, now);
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        held(&entries, pool, moves, now) >= usize::try_from(limit).unwrap_or(usize::MAX)
    }
}

/// How many threads have been with requests of this pool for long, those of streams in a queue that `moves` apart.
fn held(entries: &[Weak<AtomicU64>], pool: u32, moves: bool, now: Millis) -> usize {
    let held = |entry: &&Weak<AtomicU64>| {
        let entry = entry.upgrade().map_or(0, |entry| entry.load(Ordering::Relaxed));
        entry >> POOL_SHIFT == u64::from(pool) + 1
            && (entry & TIME) + LONG <= now & TIME
            && !(moves && entry & STREAM_WAITS != 0)
    };
    entries.iter().filter(held).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_counts_when_it_was_held_for_long() {
        let threads = Threads::new(2, &[]);
        let serving = threads.serve(threads.enter(), 1, false, 500);
        assert!(!threads.are_held(1, 1, 1_499));
        assert!(threads.are_held(1, 1, 1_500));
        assert!(!threads.are_held(1, 2, 1_500));
        assert!(!threads.are_held(0, 1, 1_500), "another pool");
        let _other = threads.serve(threads.enter(), 1, false, 1_000);
        assert!(!threads.are_held(1, 2, 1_999));
        assert!(threads.are_held(1, 2, 2_000));
        drop(serving);
        assert!(!threads.are_held(1, 2, 2_000));
    }

    #[test]
    fn a_part_of_a_request_is_not_a_second_thread() {
        let threads = Threads::new(2, &[]);
        let entry = threads.enter();
        let whole = threads.serve(Arc::clone(&entry), 1, false, 0);
        let part = threads.serve(entry, 0, false, 0);
        assert!(threads.are_held(1, 1, 1_000));
        assert!(!threads.are_held(0, 1, 1_000));
        drop(part);
        assert!(threads.are_held(1, 1, 1_000));
        drop(whole);
        assert!(!threads.are_held(1, 1, 1_000));
    }

    #[test]
    fn in_a_queue_that_moves_the_thread_of_a_stream_does_not_count() {
        let threads = Threads::new(1, &[]);
        let serving: Vec<_> = (0..4).map(|_| threads.serve(threads.enter(), 0, true, 0)).collect();
        assert!(threads.are_held(0, 4, 1_000));
        serving[0].gets_process(true, 1_100);
        assert!(threads.are_held(0, 3, 1_200), "for three that is too slow");
        serving[1].gets_process(true, 1_200);
        assert!(!threads.are_held(0, 3, 1_200), "the other two wait in a queue that moves");
        assert!(threads.are_held(0, 2, 2_200), "these two have had their processes for long");
        assert!(!threads.are_held(0, 3, 2_999));
        assert!(threads.are_held(0, 4, 3_000), "nothing has moved in the second before this one");
    }

    #[test]
    fn only_the_first_process_of_a_stream_is_a_move() {
        let threads = Threads::new(1, &[]);
        let serving = threads.serve(threads.enter(), 0, true, 5_000);
        serving.has_process();
        assert!(threads.are_held(0, 1, 6_000), "it counts from its beginning");
        (0..9).for_each(|_| serving.gets_process(true, 5_500));
        let _waits = threads.serve(threads.enter(), 0, true, 5_000);
        assert!(threads.are_held(0, 2, 6_000));
    }

    #[test]
    fn a_queue_that_moves_excuses_no_thread_of_the_mpm() {
        let threads = Threads::new(1, &[]);
        let serving: Vec<_> = (0..4).map(|_| threads.serve(threads.enter(), 0, false, 0)).collect();
        serving[0].gets_process(true, 900);
        serving[1].gets_process(true, 900);
        assert!(threads.are_held(0, 4, 1_000));
        let _streams: Vec<_> = (0..4)
            .map(|_| {
                let stream = threads.serve(threads.enter(), 0, true, 0);
                stream.gets_process(true, 900);
                stream
            })
            .collect();
        assert!(threads.are_held(0, 4, 1_000), "not by streams either");
    }

    #[test]
    fn a_queue_moves_for_all_frontends() {
        let common: &'static [AtomicU64] = Box::leak(Box::new([AtomicU64::new(0), AtomicU64::new(0)]));
        let (here, there) = (Threads::new(2, common), Threads::new(2, common));
        let waits: Vec<_> = (0..4).map(|_| here.serve(here.enter(), 1, true, 0)).collect();
        let served: Vec<_> = (0..2).map(|_| there.serve(there.enter(), 1, false, 0)).collect();
        there.serve(there.enter(), 0, true, 0).gets_process(true, 1_000);
        there.serve(there.enter(), 0, true, 0).gets_process(true, 1_000);
        assert!(here.are_held(1, 4, 1_000), "another pool moves");
        served.iter().for_each(|one| one.gets_process(true, 1_000));
        assert!(!here.are_held(1, 4, 1_000), "by requests of any kind");
        assert!(there.are_held(1, 2, 1_000), "which are not excused themselves");
        assert!(here.are_held(1, 4, 3_000), "nothing moves any more");
        drop(waits);
    }

    #[test]
    fn of_those_that_wait_no_more_give_up_than_are_too_many() {
        let threads = Threads::new(1, &[]);
        let waiting: Vec<_> = (0..5).map(|_| threads.serve(threads.enter(), 0, false, 0)).collect();
        let give_up =
            |limit, now| waiting.iter().filter(|serving| threads.is_one_too_many(serving, limit, now, || true)).count();
        assert_eq!(give_up(3, 999), 0, "nobody has been there for long");
        assert_eq!(give_up(5, 1_000), 0);
        assert!(!threads.is_one_too_many(&waiting[0], 3, 1_000, || false), "nobody needs it");
        assert_eq!(give_up(3, 1_000), 2);
        assert_eq!(give_up(3, 1_100), 0);
        assert!(threads.are_held(0, 3, 1_100) && !threads.are_held(0, 4, 1_100));
    }

    #[test]
    fn streams_make_nobody_give_up_while_their_queue_moves_and_do_not_themselves() {
        let threads = Threads::new(1, &[]);
        let streams: Vec<_> = (0..5).map(|_| threads.serve(threads.enter(), 0, true, 0)).collect();
        let plain = threads.serve(threads.enter(), 0, false, 0);
        streams[0].gets_process(true, 900);
        streams[1].gets_process(true, 900);
        assert!(!threads.is_one_too_many(&plain, 3, 1_000, || true));
        for stream in &streams {
            assert!(!threads.is_one_too_many(stream, 3, 5_000, || true), "its thread is none of the MPM's");
        }
        assert!(threads.is_one_too_many(&plain, 3, 5_000, || true), "nothing moves");
    }

    #[test]
    fn seconds_are_told_apart() {
        let moves = Moves::of(0).at(5_999).one_more().one_more();
        assert_eq!(moves, Moves { second: 5, now: 2, before: 0 });
        assert_eq!(Moves::of(moves.packed()), moves);
        assert_eq!(moves.at(5_000).in_a_second(), 2);
        assert_eq!(moves.at(6_000).one_more(), Moves { second: 6, now: 1, before: 2 });
        assert_eq!(moves.at(7_000).in_a_second(), 0);
        assert_eq!(moves.at(4_999), moves, "by the clock of one who looked before");
        assert_eq!(Moves { now: u16::MAX, ..moves }.one_more().now, u16::MAX);
    }

    #[test]
    fn threads_that_have_ended_are_forgotten() {
        let threads = Threads::new(1, &[]);
        for _ in 0..3 {
            drop(threads.serve(threads.enter(), 0, false, 0));
        }
        let _mine = threads.enter();
        assert_eq!(threads.entries.lock().expect("no panic").len(), 1);
    }
}
