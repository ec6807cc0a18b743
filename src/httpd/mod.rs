//! httpd's things with safe faces.
//!
//! Runs in: every process httpd is in.  Trusts: httpd.  Owns: this module's configuration.  Never: talks to a pool.

pub mod command;
pub mod config;
mod place;
