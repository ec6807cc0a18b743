//! httpd's structures and hooks behind safe names.
//!
//! Runs in: every process httpd is in.  Trusts: httpd.  Owns: nothing.  Never: knows a role.

pub mod hooks;
pub mod log;
pub mod request;
pub mod server;

pub use request::RequestRec;
pub use server::ServerRec;
