//! httpd's structures and hooks behind safe names.
//!
//! Runs in: every process httpd is in.  Trusts: httpd.  Owns: nothing.  Never: knows a role.

pub mod checkers;
pub mod classes;
pub mod client;
pub mod command;
pub mod config;
pub mod conftree;
pub mod connection;
pub mod dispositions;
pub mod errorlog;
pub mod exposure;
pub mod frontend_tls;
pub mod hand_over;
pub mod hooks;
pub mod image;
pub mod log;
pub mod mapping;
pub mod mpm;
pub mod parking;
pub mod php;
pub mod pieces;
pub mod places;
pub mod rebuild;
pub mod request;
pub mod response;
pub mod server;
pub mod static_files;
pub mod supervise;
pub mod tls;
pub mod worker_filters;

pub use connection::Connection;
pub use request::RequestRec;
pub use server::ServerRec;
