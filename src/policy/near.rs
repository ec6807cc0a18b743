//! Which of a pool's idle workers gets a request.
//!
//! Runs in: frontend, request threads.  Trusts: nothing; a worker may claim any processor, and gets requests of its own
//! pool for it.  Owns: nothing.  Never: prefers a worker that has been idle for much longer than others.

/// The number of a processor, as of sched_getcpu(3).
pub type Processor = u16;

/// Nobody has said which one.
pub const UNKNOWN: Processor = Processor::MAX;

/// Workers that are looked at, those used last: with more of them idle the processors have time to spare.
const LOOKS: usize = 16;

/// The place of the one to take. `idle` says where each ran last, beginning with the one used last, which is the choice
/// where none ran on `own`.
///
/// A worker is woken where it ran last. If that is the processor on which the thread that asks goes to sleep, each of the
/// two follows the other there, and no processor has to interrupt another.
pub fn choose(idle: impl Iterator<Item = Processor>, own: Processor) -> usize {
    idle.take(LOOKS).position(|processor| processor == own).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_used_last_on_this_processor_is_taken() {
        assert_eq!(choose([1, 0, 1, 0].into_iter(), 0), 1);
        assert_eq!(choose([1, 0, 1, 0].into_iter(), 1), 0);
    }

    #[test]
    fn with_none_there_the_one_used_last_is_taken() {
        assert_eq!(choose([1, UNKNOWN, 3].into_iter(), 0), 0);
        assert_eq!(choose([].into_iter(), 0), 0);
    }

    #[test]
    fn one_that_has_rested_for_long_is_left_alone() {
        let idle = |at: usize| (0..40).map(move |place| Processor::from(place != at));
        assert_eq!(choose(idle(LOOKS - 1), 0), LOOKS - 1);
        assert_eq!(choose(idle(LOOKS), 0), 0);
    }
}
