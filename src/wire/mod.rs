//! The bytes that mod_pool's processes exchange: values to bytes and back, no I/O.
//!
//! Runs in: every role.  Trusts: nothing it decodes.  Owns: the layout and the limits of each message.
//! Never: reads a socket, allocates by a length that a peer sent.
#![forbid(unsafe_code)]

pub mod chunked;
pub mod codec;
pub mod control;
pub mod exchange;
pub mod frame;
pub mod interim;
pub mod plain_log;
pub mod request;
pub mod response;
