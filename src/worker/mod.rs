//! The worker: serves one request at a time from its lease, with httpd's own hooks, handlers and filters.
//!
//! Runs in: worker (the pool's user, one thread).  Trusts: the frontend, and nothing that the application does.
//! Owns: the lease and everything of the exchange that runs on it.
//! Never: opens a listening socket, writes a log file, survives the end of its lease.
#![forbid(unsafe_code)]
// Without httpd only the parts are built that can be tested alone.
#![cfg_attr(not(feature = "httpd"), allow(dead_code))]

mod escape;
mod inbox;
mod outbox;

#[cfg(feature = "httpd")]
mod checks;
#[cfg(feature = "httpd")]
mod http2;
#[cfg(feature = "httpd")]
mod input;
#[cfg(feature = "httpd")]
mod log;
#[cfg(feature = "httpd")]
mod meta;
#[cfg(feature = "httpd")]
mod output;
#[cfg(feature = "httpd")]
mod previous;
#[cfg(feature = "httpd")]
mod serve;
#[cfg(feature = "httpd")]
mod state;
#[cfg(feature = "httpd")]
mod tls;

#[cfg(feature = "httpd")]
pub use checks::{start_checkers, start_wsgi};
#[cfg(feature = "httpd")]
pub use http2::{export_http2, http2_variable, is_http2};
#[cfg(feature = "httpd")]
pub use input::{body, handler_begins};
#[cfg(feature = "httpd")]
pub use log::{error_line, tagged};
#[cfg(feature = "httpd")]
pub use output::{header, network};
#[cfg(feature = "httpd")]
pub use previous::{forget_previous, tell_previous};
#[cfg(feature = "httpd")]
pub use serve::{run, Servers, WorkerStart};
#[cfg(feature = "httpd")]
pub use tls::{
    access_checker, default_port, export_variables, is_tls, keep_unique_id, scheme, see_location, tls_variable,
    verified_client,
};
