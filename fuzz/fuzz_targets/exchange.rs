//! Sequences of frames of one exchange, whole and wrong: what the checker takes is one response, and its sums are right.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/sequences/mod.rs"]
mod sequences;

fuzz_target!(|bytes: &[u8]| {
    sequences::check(&mut bytes.iter().copied());
});
