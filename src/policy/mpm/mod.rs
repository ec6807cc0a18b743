//! Decisions of the MPM: what becomes of a connection, when to accept, when to fork, which timeouts are due.
//!
//! Runs in: httpd's parent (`maintenance`), frontend (the others).  Trusts: nothing.  Owns: nothing.
//! Never: does I/O, reads a clock.

pub mod admission;
pub mod connection;
pub mod gate;
pub mod maintenance;
pub mod polling;
pub mod slots;
pub mod wheel;
