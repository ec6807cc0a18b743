//! Threads that wait for events, no more than so many at a time; the others rest.
//!
//! Runs in: frontend, the threads that serve, and the one that looks after time.  Trusts: nothing.
//! Owns: the number of those that wait.  Never: decides the number (`policy::mpm::polling` does).
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub struct Pollers {
    most: AtomicU32,
    waiting: AtomicU32,
    /// Somebody looks again and again whether those that have waited come back.
    watched: AtomicBool,
    resting: Mutex<Resting>,
    called: Condvar,
}

#[derive(Debug, Default)]
struct Resting {
    threads: u32,
    /// Those of them that are to wait for events.
    calls: u32,
    /// Nobody rests any more.
    over: bool,
}

impl Pollers {
    pub fn new(most: u32) -> Self {
        Self {
            most: AtomicU32::new(most),
            waiting: AtomicU32::new(0),
            watched: AtomicBool::new(false),
            resting: Mutex::default(),
            called: Condvar::new(),
        }
    }

    fn resting(&self) -> MutexGuard<'_, Resting> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        let join = |waiting: u32| (waiting < most).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, join).is_ok()
    }

    /// Returns when the caller is to wait for an event.
    pub fn enter(&self) {
        if self.join() {
            return;
        }
        let mut resting = self.resting();
        // Under the lock: who has just been called has not come for nothing.
        if !resting.over && !self.join() {
            resting.threads += 1;
            while resting.calls == 0 && !resting.over {
                resting = self.called.wait(resting).unwrap_or_else(PoisonError::into_inner);
            }
            resting.calls = resting.calls.saturating_sub(1);
            resting.threads -= 1;
        } else if !resting.over {
            return;
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
    }

    /// The caller has an event. Whether nobody waits now, and somebody is to begin to look after that.
    pub fn leave(&self) -> bool {
        // In one order with what `stop_watching` does: at least one of the two sees what the other has done.
        self.waiting.fetch_sub(1, Ordering::SeqCst) == 1
            && !self.watched.load(Ordering::SeqCst)
            && !self.watched.swap(true, Ordering::SeqCst)
    }

    /// A thread waits for events.
    pub fn is_attended(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// A thread rests.
    pub fn has_spare(&self) -> bool {
        self.resting().threads > 0
    }

    /// Whether the looking may end. If not, it goes on: the last one that waited has left meanwhile.
    pub fn stop_watching(&self) -> bool {
        self.watched.store(false, Ordering::SeqCst);
        self.waiting.load(Ordering::SeqCst) > 0 || self.watched.swap(true, Ordering::SeqCst)
    }

    /// From now on so many may wait; and some of those that rest are to wait now.
    pub fn allow(&self, most: u32, called: u32) {
        self.most.store(most, Ordering::Relaxed);
        if called == 0 {
            return;
        }
        let mut resting = self.resting();
        resting.calls = resting.threads.min(resting.calls.saturating_add(called));
        let calls = resting.calls;
        drop(resting);
        for _ in 0..calls {
            self.called.notify_one();
        }
    }

    /// Nobody rests any more.
    pub fn end(&self) {
        self.resting().over = true;
        self.most.store(u32::MAX, Ordering::Relaxed);
        self.called.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    const SOON: Duration = Duration::from_millis(50);

    #[test]
    fn the_last_one_to_leave_says_so_once() {
        let pollers = Pollers::new(2);
        pollers.enter();
        pollers.enter();
        assert!(!pollers.leave());
        assert!(pollers.leave());
        pollers.enter();
        assert!(!pollers.leave(), "it is looked after already");
        assert!(!pollers.stop_watching(), "nobody waits");
        pollers.enter();
        assert!(pollers.stop_watching());
        assert!(pollers.leave());
    }

    #[test]
    fn those_beyond_the_number_rest_until_they_are_called() {
        let pollers = Pollers::new(1);
        let (said, heard) = mpsc::channel();
        std::thread::scope(|scope| {
            pollers.enter();
            for _ in 0..3 {
                let (pollers, said) = (&pollers, said.clone());
                scope.spawn(move || {
                    pollers.enter();
                    said.send(()).expect("heard");
                });
            }
            assert!(heard.recv_timeout(SOON).is_err());
            while pollers.resting().threads < 3 {
                std::thread::yield_now();
            }
            pollers.allow(2, 1);
            heard.recv_timeout(SOON * 100).expect("one is called");
            assert!(heard.recv_timeout(SOON).is_err(), "and no other");
            pollers.end();
            heard.recv_timeout(SOON * 100).expect("the second");
            heard.recv_timeout(SOON * 100).expect("the third");
        });
        pollers.enter();
        assert_eq!(pollers.waiting.load(Ordering::Relaxed), 5, "nobody rests any more");
    }

    #[test]
    fn a_call_that_nobody_hears_is_forgotten() {
        let pollers = Pollers::new(1);
        pollers.allow(1, 5);
        assert_eq!(pollers.resting().calls, 0);
    }
}
