//! The operating system: system calls with checked results and owned file descriptors.
//!
//! Runs in: every role.  Trusts: the kernel.  Owns: nothing.  Never: knows httpd, decides a policy.

pub mod fork;
pub mod privileges;
pub mod socket;
pub mod title;
