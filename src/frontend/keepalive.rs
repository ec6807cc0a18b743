//! Whether a thread that has served a request waits a moment for what the client does next.
//!
//! An event MPM gives a connection back to its listener after each request, also one that it closes, and whatever comes
//! next costs two hand-offs between threads. A client that goes on at once (a proxy, a load balancer, a program) is
//! spared them.
//!
//! Runs in: frontend, request threads.  Trusts: httpd.  Owns: the number of threads that pools occupy.
//! Never: waits when others may need the thread.

use crate::httpd::connection::After;
use crate::httpd::{image, parking, Connection, RequestRec};
use crate::policy::habit::Habit;
use once_cell::sync::OnceCell;
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long the thread waits. A client on the same network needs less; a person needs more.
const PATIENCE: Duration = Duration::from_millis(2);

/// Threads of the MPM that serve a request of a pool, or wait.
static OCCUPIED: AtomicU32 = AtomicU32::new(0);
/// Above this many nobody waits: three quarters of the process's threads; none where a connection keeps its thread anyway.
static LIMIT: OnceCell<u32> = OnceCell::new();
/// Whether clients close at once when they have their response.
static ENDS: Habit = Habit::new();

/// A thread of the MPM is occupied as long as this lives.
#[derive(Debug)]
pub struct Occupied {
    counts: Cell<bool>,
}

impl Occupied {
    pub fn new() -> Self {
        OCCUPIED.fetch_add(1, Ordering::Relaxed);
        Self { counts: Cell::new(true) }
    }

    /// Whether pools occupy more than 3/4 of this process's threads. If so, this one does not count any more.
    pub fn is_one_too_many(&self) -> bool {
        static MANY: OnceCell<u32> = OnceCell::new();
        let many = *MANY.get_or_init(three_quarters);
        let less = |occupied: u32| (occupied > many).then(|| occupied - 1);
        if self.counts.get() && OCCUPIED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
            self.counts.set(false);
            return true;
        }
        false
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        if self.counts.get() {
            OCCUPIED.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn three_quarters() -> u32 {
    image::threads_per_child() * 3 / 4
}

/// The response of a pool is in httpd's queue. If it is worth to wait for the client's next request, the response is
/// written, as httpd logs a request when it is, and reads the next one after that.
pub fn offer(r: RequestRec<'_>) {
    let limit = *LIMIT.get_or_init(|| if image::is_async() && !parking::is_possible() { three_quarters() } else { 0 });
    if OCCUPIED.load(Ordering::Relaxed) > limit || r.is_subrequest() {
        return;
    }
    let Some(connection) = Connection::of(r) else { return };
    match connection.after() {
        After::Stays => {
            let state = connection.state();
            state.wanted.set(state.requests.worth_a_wait() && connection.write_queued());
        }
        After::Closes => {
            if connection.is_plain() && ENDS.worth_a_wait() {
                connection.state().wanted.set(true);
            }
        }
        After::Lost => {}
    }
}

/// The request is over and logged: waits for the next, if `offer` said so.
pub fn wait_for_next_request(r: RequestRec<'_>) {
    let Some((connection, state)) = Connection::of(r).and_then(|c| Some((c, c.kept()?))) else { return };
    if connection.after() == After::Stays && state.wanted.replace(false) {
        let _occupied = Occupied::new();
        state.requests.learn(connection.wait(PATIENCE));
    }
}

/// httpd is about to close: does the first step of that, and waits for the client to close too, if `offer` said so. httpd
/// then finds nothing left to wait for.
pub fn wait_for_close(connection: Connection<'_>) {
    let Some(state) = connection.kept() else { return };
    // TLS has a last word of its own, and what is still queued must not be cut off.
    let over = state.wanted.replace(false) && connection.after() == After::Closes;
    if over && connection.is_plain() && connection.write_queued() {
        let _occupied = Occupied::new();
        connection.end_sending();
        ENDS.learn(connection.wait(PATIENCE));
    }
}
