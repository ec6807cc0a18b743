//! httpd and APR as C sees them, and the guard that keeps panics out of C.
//!
//! Runs in: every process httpd is in.  Trusts: the installed headers.  Owns: nothing.  Never: takes a decision.

pub mod guard;

/// bindgen's output: httpd's, APR's and the shim's declarations.
#[allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    missing_debug_implementations,
    unsafe_op_in_unsafe_fn,
    unnecessary_transmutes,
    dead_code,
    clippy::all,
    clippy::pedantic,
    clippy::ptr_as_ptr,
    clippy::cast_possible_truncation,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;

/// httpd's "I have done it" (httpd.h; macros with a sign are not seen by bindgen on every version).
pub const HOOK_OK: i32 = 0;
/// httpd's "not mine".
pub const HOOK_DECLINED: i32 = -1;
/// httpd's "the response is complete".
pub const HOOK_DONE: i32 = -2;
