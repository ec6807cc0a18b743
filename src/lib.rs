//! mod_pool: server pools for Apache httpd 2.4.
//!
//! The layers, bottom up; a module imports only downwards, and roles never import one another
//! (`tests/layering.rs` checks both): `ffi`, `apr`, `httpd` and `sys` hold the unsafe code, `wire`, `policy` and
//! `settings` are pure, `controller`, `seed`, `zygote`, `worker`, `frontend` are the roles a process can have, and
//! `entry` is where httpd calls in. See `docs/architecture.md`.

#[cfg(feature = "httpd")]
pub mod apr;
pub mod controller;
#[cfg(feature = "httpd")]
pub mod entry;
#[cfg(feature = "httpd")]
pub mod ffi;
#[cfg(feature = "httpd")]
pub mod frontend;
#[cfg(feature = "httpd")]
pub mod httpd;
#[cfg(feature = "httpd")]
pub mod mpm;
#[cfg(feature = "httpd")]
pub mod parent;
pub mod policy;
#[cfg(feature = "httpd")]
pub mod seed;
pub mod settings;
pub mod sys;
pub mod wire;
pub mod worker;
#[cfg(feature = "httpd")]
pub mod zygote;
