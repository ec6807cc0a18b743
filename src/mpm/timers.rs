//! What is due when: timeouts of connections, and callbacks of modules.
//!
//! Runs in: frontend; one thread waits, the others put in.  Trusts: nothing.  Owns: the wheel.
//! Never: touches a connection.
#![forbid(unsafe_code)]

use crate::httpd::mpm::threads::Callback;
use crate::policy::mpm::slots::Token;
use crate::policy::mpm::wheel::Wheel;
use crate::policy::Millis;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Timers of one frontend.
#[derive(Debug)]
pub struct Timers {
    began: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    wheel: Wheel<Token>,
    /// By time, and in the order they came.
    callbacks: BTreeMap<(Millis, u64), Callback>,
    count: u64,
    /// When the waiting thread looks next.
    looks: Millis,
    stopped: bool,
    called: bool,
}

/// What is due.
#[derive(Debug, Default)]
pub struct Due {
    pub tokens: Vec<Token>,
    pub callbacks: Vec<Callback>,
    /// Nobody waits any more.
    pub stopped: bool,
    /// [`Timers::call_waiting`] was called.
    pub called: bool,
}

impl Timers {
    pub fn new() -> Self {
        let state = State {
            wheel: Wheel::new(0),
            callbacks: BTreeMap::new(),
            count: 0,
            looks: Millis::MAX,
            stopped: false,
            called: false,
        };
        Self { began: Instant::now(), state: Mutex::new(state), changed: Condvar::new() }
    }

    pub fn now(&self) -> Millis {
        Millis::try_from(self.began.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    /// This time on the clock of `now`.
    pub fn at(&self, time: Instant) -> Millis {
        let since = time.saturating_duration_since(self.began).as_micros().div_ceil(1000);
        Millis::try_from(since).unwrap_or(Millis::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token comes out at this time, or a little later.
    pub fn insert(&self, due: Millis, token: Token) {
        let mut state = self.lock();
        state.wheel.insert(due, token);
        self.look_by(&mut state, due);
    }

    /// The callback comes out after this time, not before.
    pub fn call(&self, after: Duration, callback: Callback) {
        let due = self.began.elapsed().saturating_add(after).as_micros().div_ceil(1000);
        let due = Millis::try_from(due).unwrap_or(Millis::MAX);
        let mut state = self.lock();
        state.count += 1;
        let key = (due, state.count);
        state.callbacks.insert(key, callback);
        self.look_by(&mut state, due);
    }

    fn look_by(&self, state: &mut State, due: Millis) {
        if due < state.looks {
            state.looks = due;
            self.changed.notify_one();
        }
    }

    /// Wakes the waiting thread for good.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_one();
    }

    /// Wakes the waiting thread once.
    pub fn call_waiting(&self) {
        self.lock().called = true;
        self.changed.notify_one();
    }

    /// Waits until something is due, `most` at the longest.
    pub fn wait(&self, most: Duration) -> Due {
        let give_up = self.now().saturating_add(Millis::try_from(most.as_millis()).unwrap_or(Millis::MAX));
        let mut state = self.lock();
        loop {
            let now = self.now();
            let mut due = Due { stopped: state.stopped, called: std::mem::take(&mut state.called), ..Due::default() };
            state.wheel.take_due(now, &mut due.tokens);
            let later = state.callbacks.split_off(&(now + 1, 0));
            due.callbacks = std::mem::replace(&mut state.callbacks, later).into_values().collect();
            if due.stopped || due.called || !due.tokens.is_empty() || !due.callbacks.is_empty() || now >= give_up {
                state.looks = Millis::MAX;
                return due;
            }
            let callback = state.callbacks.keys().next().map_or(Millis::MAX, |(at, _)| *at);
            state.looks = state.wheel.next_due().unwrap_or(Millis::MAX).min(callback).min(give_up);
            let pause = Duration::from_millis(state.looks.saturating_sub(now).max(1));
            state = self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
