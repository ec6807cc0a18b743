//! APR's pools and tables with Rust's ownership.
//!
//! Runs in: every process httpd is in.  Trusts: pointers that httpd gave.  Owns: nothing (httpd's pools own it all).
//! Never: keeps a value longer than its pool, decides a policy.

pub mod brigade;
pub mod pool;
pub mod sockaddr;
pub mod table;

pub use brigade::{Brigade, Bucket};
pub use pool::AprPool;
pub use table::Table;
