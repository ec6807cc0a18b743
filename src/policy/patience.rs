//! How long a request waits for the controller's word on how its worker died.
//!
//! Runs in: frontend, request threads.  Trusts: the clock.  Owns: when such a word was waited for in vain.  Never: waits.
//!
//! The word is for the error log only, and most often there at once. Where the controller is slow, the script that crashes
//! again and again would hold the thread of others for most of the time.

use super::turns::Micros;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_millis(50);
/// For so long nobody waits after one word has not come in time.
const PAUSE: Micros = 1_000_000;

/// Of one frontend.
#[derive(Debug, Default)]
pub struct Patience {
    /// Until when nobody waits.
    pause: AtomicU64,
}

impl Patience {
    /// How long to wait from now on.
    pub fn now(&self, now: Micros) -> Duration {
        if now < self.pause.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        PATIENCE
    }

    /// The word has not come in time.
    pub fn lost(&self, now: Micros) {
        if now >= self.pause.load(Ordering::Relaxed) {
            self.pause.store(now + PAUSE, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_deaths_one_in_a_second_is_waited_for_in_vain() {
        let patience = Patience::default();
        let mut now = 5;
        let mut waited = Duration::ZERO;
        // Forty deaths a second, for ten seconds, and the controller says nothing.
        for _ in 0..400 {
            let here = patience.now(now);
            waited += here;
            now += Micros::try_from(here.as_micros()).expect("small");
            patience.lost(now);
            now += 25_000 - Micros::try_from(here.as_micros()).expect("small").min(25_000);
        }
        assert!(waited <= PATIENCE * 11, "{waited:?}");
        assert_eq!(patience.now(now + PAUSE), PATIENCE, "it is tried again");
    }
}
