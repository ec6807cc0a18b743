//! The MPM: httpd's parent and the frontends it forks, each with threads that wait together for all connections.
//!
//! Runs in: parent (`parent`), frontend (the others), where mod_pool is the MPM.  Trusts: httpd.
//! Owns: the frontends; in each its connections.  Never: knows what a request is, or a pool.
#![forbid(unsafe_code)]

mod accept;
mod child;
pub mod parent;
mod timers;
mod waiting;
mod work;

use crate::httpd::mpm::threads::Callback;
use std::time::Duration;

/// A module wants to be called, on one of the MPM's threads. Whether there is an MPM with threads here.
pub fn call_later(after: Duration, callback: Callback) -> bool {
    child::current().is_some_and(|frontend| {
        frontend.call_later(after, callback);
        true
    })
}
