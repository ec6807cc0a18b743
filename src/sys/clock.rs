//! The clock that all processes of the machine share.
//!
//! Runs in: frontend, controller.  Trusts: the kernel.  Owns: nothing.  Never: goes back.

use nix::time::{clock_gettime, ClockId};

/// Microseconds of `CLOCK_MONOTONIC`.
pub fn micros() -> u64 {
    // It fails for unknown clocks only.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        let part = |value: i64| u64::try_from(value).unwrap_or(0);
        part(time.tv_sec()) * 1_000_000 + part(time.tv_nsec()) / 1000
    })
}

#[cfg(test)]
mod tests {
    use super::micros;
    use std::time::{Duration, Instant};

    #[test]
    fn it_runs_as_fast_as_time_does() {
        let (began, at) = (Instant::now(), micros());
        std::thread::sleep(Duration::from_millis(20));
        let passed = micros() - at;
        let most = began.elapsed().as_micros();
        assert!(passed >= 20_000 && u128::from(passed) <= most + 1, "{passed} of {most}");
    }
}
