//! A panic must not cross into C: each entry from httpd goes through [`guard`].
//!
//! Runs in: every process httpd is in.  Trusts: nothing.  Owns: nothing.  Never: lets a panic unwind into C.

use std::panic::{catch_unwind, AssertUnwindSafe};

/// Runs `body`; after a panic (already printed to standard error, which is httpd's error log) returns `on_panic`.
///
/// State that `body` shared is not trusted afterwards: an `on_panic` that fails the request or the start-up is right,
/// one that carries on is not.
pub fn guard<T>(on_panic: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(on_panic)
}

/// Runs `body`; a panic ends the process. For loops that cannot answer "failed": controller, seed, zygote, worker.
pub fn guard_or_abort<T>(body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| std::process::abort())
}
