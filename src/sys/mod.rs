//! The operating system: system calls with checked results and owned file descriptors.
//!
//! Runs in: every role.  Trusts: the kernel.  Owns: nothing.  Never: knows httpd, decides a policy.

pub mod accounts;
pub mod clock;
pub mod descendants;
pub mod descriptor;
pub mod discard;
pub mod events;
pub mod file;
pub mod fork;
pub mod heritage;
pub mod image;
pub mod inherited;
pub mod launch;
pub mod logger;
pub mod look;
pub mod memory;
pub mod mounts;
pub mod place;
pub mod poller;
pub mod pollers;
pub mod privileges;
pub mod process;
pub mod shared;
pub mod shortage;
pub mod socket;
pub mod spawn;
pub mod syslog;
pub mod thread;
pub mod title;
pub mod trusted_open;
pub mod variables;
pub mod wait;
