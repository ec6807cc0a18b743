//! Closes what a tenant may have loaded.
//!
//! Runs in: frontend; one thread for each pool that has such things to close.  Trusts: nothing of them.
//! Owns: descriptors that nobody wants.  Never: closes one in a thread that serves others.
//!
//! To close a descriptor that a worker has sent, or a socket in whose queue it lies, can take as long as the worker likes:
//! a TCP connection lingers (socket(7)), a file of FUSE is flushed. So they are packed and sent to the controller, whose
//! disposable processes end with them, and even that is done by a thread of its own, as the own copy has to be closed.

use super::FRONTEND;
use crate::sys::thread;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A pool with so many sets of descriptors that are not closed yet gets no requests here: each may bring another.
const MOST: usize = 16;
/// The same for the descriptors in them: a frontend needs its own for clients.
const MOST_DESCRIPTORS: usize = 256;

/// What came with one request.
#[derive(Debug)]
struct Set {
    count: usize,
    /// Empty while its thread closes them.
    fds: Vec<OwnedFd>,
}

/// A pool's sets, and whether a thread is at it.
#[derive(Debug, Default)]
struct Pile {
    sets: VecDeque<Set>,
    has_thread: bool,
}

/// What is to be closed, by pool.
#[derive(Debug, Default)]
pub struct Closer {
    pools: Mutex<HashMap<u32, Pile>>,
    /// There may be some.
    any: AtomicBool,
}

impl Closer {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Pile>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So much of this pool's is left to be closed that nothing more may come.
    pub fn is_stuck(&self, pool: u32) -> bool {
        let full = |pile: &Pile| {
            let sets = &pile.sets;
            sets.len() >= MOST || sets.iter().map(|set| set.count).sum::<usize>() >= MOST_DESCRIPTORS
        };
        self.any.load(Ordering::Relaxed) && self.lock().get(&pool).is_some_and(full)
    }

    /// The next set of a pool; the one before it is closed. `None` ends the pool's thread.
    fn next(&self, pool: u32, first: bool) -> Option<Vec<OwnedFd>> {
        let mut pools = self.lock();
        let sets = &mut pools.get_mut(&pool)?.sets;
        if !first {
            sets.pop_front();
        }
        // Its place stays taken until it is closed.
        let next = sets.front_mut().map(|set| std::mem::take(&mut set.fds));
        if next.is_none() {
            pools.remove(&pool);
            self.any.store(!pools.is_empty(), Ordering::Relaxed);
        }
        next
    }
}

/// Closes descriptors that came from a pool's processes, at some time.
pub fn discard(pool: u32, fds: Vec<OwnedFd>) {
    let Some(frontend) = FRONTEND.get().filter(|_| !fds.is_empty()) else { return };
    let closer = &frontend.closer;
    {
        let mut pools = closer.lock();
        closer.any.store(true, Ordering::Relaxed);
        let pile = pools.entry(pool).or_default();
        pile.sets.push_back(Set { count: fds.len(), fds });
        if std::mem::replace(&mut pile.has_thread, true) {
            return;
        }
    }
    let work = move || {
        let mut first = true;
        while let Some(set) = closer.next(pool, std::mem::take(&mut first)) {
            // Without a controller they are closed here and now, however long that takes.
            drop(frontend.desk.channel.discard(pool, set));
        }
    };
    if thread::spawn_quiet("mod_pool", work).is_err() {
        // They stay open until there can be one, which the next set finds out.
        if let Some(pile) = closer.lock().get_mut(&pool) {
            pile.has_thread = false;
        }
    }
}
